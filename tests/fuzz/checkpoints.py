"""Checkpoints of the lab, of all its optimizers."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import torch
from tests.fuzz.kind import Failure, Kind
from tests.fuzz.mutations import changed, damaged

from dopaminergic.lab.fleet import Fleet, with_header
from dopaminergic.lab.optimizers import METHODS
from dopaminergic.lab.tasks import make_task


class Checkpoints(Kind):
    """A checkpoint is refused with nothing changed, or taken and trained on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "c.pt"
        self.task = make_task("xor-2-8-1")
        self.examples: list[tuple[str, bytes, dict[str, Any]]] = []
        for optimizer in METHODS:
            fleet = self._fresh(optimizer)
            for _ in range(3):
                fleet.step()
            fleet.save(self.path)
            content = self.path.read_bytes()
            body = content[content.find(b"\n") + 1 :]
            self.examples.append(
                (optimizer, content, torch.load(io.BytesIO(body), weights_only=True))
            )

    def _fresh(self, optimizer: str) -> Fleet:
        return Fleet(self.task, optimizer, [0, 1], [0.1, 0.2], 3000)

    def try_one(self, chance: random.Random) -> bool:
        """One checkpoint."""
        optimizer, content, state = chance.choice(self.examples)
        if chance.random() < 0.1:
            self.path.write_bytes(damaged(content, chance))
        else:
            body = io.BytesIO()
            torch.save(changed(state, chance), body)
            self.path.write_bytes(with_header(body.getvalue()))
        fleet = self._fresh(optimizer)
        before = everything(fleet)
        try:
            fleet.load(self.path)
        except Exception:
            if everything(fleet) != before:
                raise Failure("a checkpoint that was refused has been loaded in part") from None
            raise
        for _ in range(2):
            if not fleet.done:
                fleet.step()
        fleet.metrics()
        return True


def everything(fleet: Fleet) -> str:
    """All that a refused checkpoint must leave as it is."""
    counted = (
        fleet.steps,
        fleet.evaluated,
        fleet.kept,
        fleet.traced,
        fleet.curve,
        fleet.traces,
        fleet.solved_at,
    )
    return repr((fleet.model.state_dict(), fleet.optimizer.state_dict(), counted))
