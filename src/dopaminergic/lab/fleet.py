"""Many runs of one optimizer on one task, side by side in one process.

Their replicas are stacked and evaluated as one batch.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dopaminergic.files import open_file, shown
from dopaminergic.lab.best import Best
from dopaminergic.lab.form import difference, is_like
from dopaminergic.lab.optimizers import find_method
from dopaminergic.lab.records import write_whole
from dopaminergic.lab.tasks import Task

TRACE_POINTS = 200
FEWEST_POINTS = 10  # of a learning curve, however small the budget is
COUNTS = ("steps", "evaluated", "kept", "traced")
HEADER = b"dopaminergic checkpoint 1, sha256 "


class CheckpointError(ValueError):
    """A checkpoint that is not as it was written; nothing of it was used."""


class Fleet:
    """R runs that differ in their seed and learning rate alone, and know nothing of each other.

    Args:
        task: the task to learn.
        optimizer: name in `METHODS`.
        seeds: one for each replica; equal seeds have equal initial weights, batches and directions.
        learning_rates: one for each replica.
        budget: forward passes of each run.
        curve_points: about how many points of the learning curve to keep.
    """

    def __init__(
        self,
        task: Task,
        optimizer: str,
        seeds: list[int],
        learning_rates: list[float],
        budget: int,
        curve_points: int = 40,
    ) -> None:
        self.task = task
        self.seeds = seeds
        self.budget = budget
        self.model = task.build(seeds)
        lr = torch.tensor(learning_rates, dtype=torch.float64)
        method = find_method(optimizer)
        self.model.as_written = method.as_written
        self.optimizer = method.make(self.model.parameters(), lr, seeds)
        # Solved is judged as finely as the task wants; the curve keeps fewer points than that.
        self.evaluate_every = min(task.evaluate_every, max(1, budget // FEWEST_POINTS))
        self.keep_every = max(self.evaluate_every, budget // curve_points)
        self.steps = 0
        self.evaluated = 0
        self.kept = -1
        self.traced = 0
        self.curve: list[tuple[int, list[float]]] = []
        self.traces: list[tuple[int, float, float]] = []
        self.solved_at = torch.full((len(seeds),), math.inf, dtype=torch.float64)
        self._seeds = torch.tensor(seeds)
        self.best: Best | None = None
        self._evaluate(0)

    @property
    def passes(self) -> int:
        """Forward passes of each replica so far."""
        return self.optimizer.forward_passes

    @property
    def done(self) -> bool:
        """Whether another step might go over the budget, or none has helped for long."""
        if self.best is not None and self.best.is_tired(self.passes, self.task.patience):
            return True
        return self.passes + self.optimizer.next_passes > self.budget

    def run(self, seconds: float = 0.25) -> Iterator[int]:
        """Train to the end of the budget.

        Yields the forward passes so far every `seconds` seconds.
        """
        yielded = time.monotonic()
        while not self.done:
            self.step()
            if time.monotonic() - yielded > seconds:
                yielded = time.monotonic()
                yield self.passes
        if self.kept < self.passes:
            self._evaluate(self.passes, keep=True)
        if self.best is not None:
            self.best.put_back(self.model)
            self.curve.pop()
            self._evaluate(self.passes, keep=True)

    def step(self) -> Tensor:
        """One step of every replica; returns their losses before it, shape `(R,)`."""
        batch = self.task.batch(self._seeds, self.steps)
        losses = self.optimizer.step(lambda: self.task.outcome(self.model, batch))
        self.steps += 1
        if self.passes - self.evaluated >= self.evaluate_every:
            self._evaluate(self.passes)
        if self.passes - self.traced >= self.budget // TRACE_POINTS and hasattr(
            self.optimizer, "last_rpe"
        ):
            self.traced = self.passes
            optimizer: Any = self.optimizer
            # Plain numbers until a first step was not skipped.
            rpe = float(torch.as_tensor(optimizer.last_rpe).flatten()[0])
            rate = float(torch.as_tensor(optimizer.last_learning_rate).flatten()[0])
            self.traces.append((self.passes, rpe, rate))
        return losses

    def _evaluate(self, passes: int, keep: bool = False) -> None:
        self.evaluated = passes
        error = self.task.evaluate(self.model)[self.task.metric]
        chosen_by = self.task.validate(self.model)
        if chosen_by is not None:
            self.best = self.best or Best(self.model, len(self.seeds))
            self.best.see(self.model, chosen_by, passes)
        if self.task.threshold is not None:
            now = (error < self.task.threshold) & self.solved_at.isinf()
            self.solved_at = torch.where(now, float(passes), self.solved_at)
        if keep or self.kept < 0 or passes - self.kept >= self.keep_every:
            self.kept = passes
            self.curve.append((passes, error.tolist()))

    def metrics(self) -> dict[str, list[float]]:
        """All test metrics at this moment, a list over replicas for each."""
        found = {**self.task.evaluate(self.model), **self.task.finish(self.model)}
        return {name: values.expand(len(self.seeds)).tolist() for name, values in found.items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint in one step; a kill leaves the old one or the new one."""
        content = io.BytesIO()
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **self._own(),
        }
        torch.save(state, content)
        write_whole(path, with_header(content.getvalue()))

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of a fleet of the same making, bit for bit.

        Raises:
            CheckpointError: the file is not one of `save`; the fleet is as before.
            ValueError: the checkpoint belongs to other runs.
        """
        state = _read(path)
        self._check(path, state)
        # All else has been looked at, so that the one part that may still be refused comes first.
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # torch has many kinds for it
            said = shown(" ".join(str(error).split()), 150)
            raise CheckpointError(
                f"{path}: not a checkpoint of this run ({type(error).__name__}: {said})"
            ) from error
        self.model.load_state_dict(dict(state["model"]))
        for name in (*COUNTS, "solved_at"):
            setattr(self, name, state[name])
        if self.best is not None:
            self.best.load(state["best"])
        self.curve = [(passes, errors) for passes, errors in state["curve"]]
        self.traces = [(passes, rpe, rate) for passes, rpe, rate in state["traces"]]

    def _check(self, path: Path, state: dict[str, Any]) -> None:
        """Raise unless a checkpoint is of these runs.

        All that this class keeps in it must be of the right kind.
        """
        task = [self.task.name, self.task.settings]
        if difference([state.get("seeds"), state.get("task")], [self.seeds, task]):
            said = shown(str(state.get("task"))[:200], 80)
            raise ValueError(
                f"{path}: it belongs to other runs, of {said}; delete it, or give another --out"
            )
        replicas = len(self.seeds)
        sound = {
            **{name: self._counted(state.get(name)) for name in COUNTS},
            "curve": _rows(
                state.get("curve"),
                lambda row: self._counted(row[0]) and _reals(row[1], replicas),
                2,
            ),
            "traces": _rows(
                state.get("traces"),
                lambda row: self._counted(row[0]) and _reals(list(row[1:]), 2),
                3,
            ),
            "solved_at": is_like(state.get("solved_at"), self.solved_at),
            "optimizer": _has_same_settings(state.get("optimizer"), self.optimizer.state_dict()),
            "model": not difference(state.get("model"), dict(self.model.state_dict())),
            "best": self.best is None or self.best.is_like(state.get("best")),
        }
        for name, well in sound.items():
            if not well:
                raise CheckpointError(
                    f"{path}: not a readable checkpoint, its {name!r} is missing or of another kind"
                )
        passes = [row[0] for row in state["curve"]]
        if (
            passes[-1:] != [state["kept"]]
            or passes != sorted({*passes})
            or state["kept"] > state["evaluated"]
        ):
            raise CheckpointError(
                f"{path}: not a readable checkpoint, its 'curve' is not one that runs go through"
            )

    def _counted(self, value: Any) -> bool:
        """Whether this is a possible number of steps or passes of these runs."""
        return type(value) is int and 0 <= value <= self.budget

    def _own(self) -> dict[str, Any]:
        names = ("seeds", "steps", "evaluated", "kept", "traced", "solved_at", "curve", "traces")
        own = {
            "task": [self.task.name, self.task.settings],
            **{name: getattr(self, name) for name in names},
        }
        return own if self.best is None else own | {"best": self.best.state()}


def with_header(body: bytes) -> bytes:
    """The content of a checkpoint: a line with its kind and its checksum, then a state."""
    return HEADER + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _read(path: Path) -> dict[str, Any]:
    """The dict in a checkpoint, once its bytes are known to be as they were written."""
    with open_file(path) as file:
        content = file.read()
    # torch itself does not notice a flipped bit in a tensor.
    body = content[content.find(b"\n") + 1 :]
    if content != with_header(body):
        raise CheckpointError(
            f"{path}: not a readable checkpoint, its bytes and their sha256 do not agree"
        )
    try:
        state = torch.load(io.BytesIO(body), weights_only=True)
    except Exception as error:  # half a dozen kinds, where another version of torch wrote it
        said = shown(" ".join(str(error).split()), 150)
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {said})"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path}: not a readable checkpoint, it holds no dict but a {type(state).__name__}"
        )
    return state


def _has_same_settings(theirs: Any, own: dict[str, Any]) -> bool:
    """Whether this is the state of an optimizer that was made alike.

    The optimizer itself looks at all the rest.
    """
    if not isinstance(theirs, dict):
        return False
    if "forward" not in own:
        return True
    forward = theirs.get("forward")
    return isinstance(forward, dict) and not difference(
        forward.get("settings"), own["forward"]["settings"]
    )


def _reals(value: Any, length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(type(each) is float for each in value)
    )


def _rows(value: Any, test: Callable[[Any], bool], length: int) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, list | tuple) and len(row) == length and test(row) for row in value
    )
