"""`load_state_dict` of all six rules: refused with nothing changed, or taken and trained on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tests.fuzz.kind import RULES, Failure, Kind, Run
from tests.fuzz.mutations import changed

FARTHEST = 1e3  # a weight, three steps from 1


class States(Kind):
    """States of one model, of two groups, and of a fleet."""

    allowed = (ValueError, TypeError)
    named = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.examples: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        for rule in RULES:
            makings: list[tuple[Any, ...]] = [(rule,), (rule,), (rule, 1, 2), (rule, [1, 2])]
            for making in makings:
                run = Run(*making)
                run.step(5)
                self.examples.append((making, run.optimizer.state_dict()))

    def try_one(self, chance: random.Random) -> bool:
        """One state."""
        making, state = chance.choice(self.examples)
        run = Run(*making)
        run.step()
        before, mutant = run.everything(), changed(state, chance)
        said = repr(mutant)
        try:
            run.optimizer.load_state_dict(mutant)
        except Exception:
            if run.everything() != before:
                raise Failure(
                    f"{making}: a state that was refused has been loaded in part"
                ) from None
            raise
        if said != repr(mutant):
            raise Failure(f"{making}: the state that was loaded has been changed")
        run.step(2)
        for weights in run.weights:
            sound = bool(torch.isfinite(weights).all())
            # Rates that a user might have given throw weights as far as that user would have thrown
            # them.
            if not sound or (
                rates(mutant) == rates(state) and float(weights.detach().abs().max()) > FARTHEST
            ):
                raise Failure(
                    f"{making}: weights are {weights.detach().tolist()} after a state that was "
                    "taken"
                )
        return True


def rates(state: dict[str, Any]) -> str:
    """The numbers of the groups."""
    return repr(
        [
            [group[name] for name in ("lr", "sigma", "weight_decay")]
            for group in state["param_groups"]
        ]
    )
