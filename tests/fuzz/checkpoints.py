"""Checkpoints of the lab, of all its optimizers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.checkpoints import everything, state_in, write_forged
from tests.fuzz.kind import Failure, Kind
from tests.fuzz.mutations import changed, damaged

from dopaminergic.lab.fleet import Fleet
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
            self.examples.append((optimizer, self.path.read_bytes(), state_in(self.path)))

    def _fresh(self, optimizer: str) -> Fleet:
        return Fleet(self.task, optimizer, [0, 1], [0.1, 0.2], 3000)

    def try_one(self, chance: random.Random) -> bool:
        """One checkpoint."""
        optimizer, content, state = chance.choice(self.examples)
        if chance.random() < 0.1:
            self.path.write_bytes(damaged(content, chance))
        else:
            write_forged(self.path, changed(state, chance))
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
