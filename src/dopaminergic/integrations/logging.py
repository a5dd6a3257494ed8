"""Logs of a run, by one small protocol: a callback takes a dictionary of numbers.

    log = Log(optimizer, CSV("run.csv"), TensorBoard("runs/first"), wandb.log)
    log(loss=optimizer.step(closure))

Any function of a dictionary is a callback: `print`, `wandb.log`, `list.append` of your own list.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.plain import as_float, brief, number_of

Callback = Callable[[dict[str, float]], object]


def numbers(optimizer: ForwardOptimizer, **more: Any) -> dict[str, float]:
    """The numbers of the last step, by name.

    Args:
        optimizer: of one model.
        more: numbers of your own, such as the loss.

    Raises:
        TypeError: one of them is not a number.

    >>> import torch
    >>> from dopaminergic import Dopamine2
    >>> optimizer = Dopamine2([torch.nn.Parameter(torch.ones(3))])
    >>> numbers(optimizer, loss=torch.tensor(2.5))["loss"]
    2.5
    """
    if isinstance(optimizer.settings["seed"], list):
        raise TypeError(
            "numbers: this optimizer trains a fleet, which has a number for each replica; log "
            "last_rpe and the losses yourself"
        )
    found = {
        "step": optimizer.progress.step,
        "forward_passes": optimizer.forward_passes,
        "rpe": float(optimizer.last_rpe),
        "effective_learning_rate": float(optimizer.last_learning_rate),
        "skipped_steps": optimizer.skipped_steps,
    }
    for name, value in more.items():
        number = number_of(value)
        if number is None:
            raise TypeError(f"numbers: {name} must be a number, got {brief(value)}")
        found[name] = as_float(number)
    return found


class Log:
    """Calls callbacks with the numbers of a step.

    Args:
        optimizer: of one model.
        callbacks: called in turn with a dictionary of its own.
        every: steps from one call to the next, >= 1; the others are left out.
    """

    def __init__(self, optimizer: ForwardOptimizer, *callbacks: Callback, every: int = 1) -> None:
        for callback in callbacks:
            if not callable(callback):
                raise TypeError(
                    f"Log: a callback must be a function of a dictionary, got {brief(callback)}; "
                    "for example print, CSV('run.csv') or wandb.log"
                )
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"Log: every must be an int >= 1, got {brief(every)}")
        self.optimizer = optimizer
        self.callbacks = callbacks
        self.every = every

    def __call__(self, **more: Any) -> None:
        """Tell the callbacks of the last step.

        Args:
            more: numbers of your own, such as `loss=loss`.
        """
        if self.optimizer.progress.step % self.every:
            return
        found = numbers(self.optimizer, **more)
        for callback in self.callbacks:
            callback(dict(found))


class CSV:
    """Appends a row for each call; the first one names the columns.

    A file that is there already is continued. A column that a later call lacks stays empty.

    Args:
        path: of the file.

    Raises:
        ValueError: a call has a name that is no column.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._columns: list[str] = []

    def __call__(self, found: dict[str, float]) -> None:
        """Write one row."""
        if not self._columns:
            self._begin(list(found))
        strange = [name for name in found if name not in self._columns]
        if strange:
            raise ValueError(
                f"CSV: {brief(str(self.path))} has no column {strange[0]!r}; give all names in the "
                "first call, or take another file"
            )
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([found.get(name, "") for name in self._columns])

    def _begin(self, names: list[str]) -> None:
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file), [])
            return
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(names)
        self._columns = names


class TensorBoard:
    """Writes each number as a scalar, at the number of its step.

    Args:
        place: a folder for a new writer, or a `SummaryWriter`.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, place: Any) -> None:
        if hasattr(place, "add_scalar"):
            self.writer = place
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard: needs the package tensorboard: pip install tensorboard"
            ) from error
        # Absolute, since the writer goes on in a thread, and the process may change its folder.
        self.writer = SummaryWriter(str(Path(place).absolute()))

    def __call__(self, found: dict[str, float]) -> None:
        """Write the numbers of one step."""
        for name, value in found.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(found["step"]))

    def close(self) -> None:
        """Write what is left, and close the writer."""
        self.writer.close()
