"""The file `model.pt` of a run: a trained network with all that it takes to use it.

It holds plain types and tensors alone, so `torch.load(path, weights_only=True)` reads it. A SHA-256
of its contents is among them, since torch does not notice a flipped bit in a tensor.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic import __version__
from dopaminergic.files import open_file, shown
from dopaminergic.lab.form import difference
from dopaminergic.lab.records import within, write_whole
from dopaminergic.lab.tasks import TASKS, Task, make_task
from dopaminergic.lab.tasks.cells import tail
from dopaminergic.lab.tasks.forecasting import SequenceTask
from dopaminergic.lab.tasks.task import Model

FORMAT = 1
FILE = "model.pt"
COMMON = {"format": int, "library": str, "kind": str, "run": str, "weights": dict, "check": str}


class ModelError(ValueError):
    """A file that holds no model that this version can use."""


class TaskModel:
    """A trained network of one of the lab's tasks.

    Attributes:
        task: the task.
        network: the network, a `torch.nn.Module`.
        settings: everything in the file but the weights.
    """

    def __init__(self, settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.settings = settings
        self.task: Task = make_task(settings["task"], **settings["task_settings"])
        self.network: Model = self.task.build(0)
        fill(self.network, weights)

    def predict(self, values: Any) -> np.ndarray:
        """What the network says of inputs.

        Args:
            values: as the task's batches are: a row for each sample. Of a series they are rows of
                it in the task's units, or several series of them, shape `(B, rows, columns)`.

        Returns:
            The outputs of each row; of a series its forecast of the row that follows.
        """
        with torch.no_grad():
            if not isinstance(self.task, SequenceTask):
                outputs: Any = self.network(torch.as_tensor(values))
                return outputs.numpy()
            rows = torch.as_tensor(values, dtype=self.task.dtype)
            alone = rows.ndim == 2
            found = self.task.predict(self.network, rows[None] if alone else rows)[0]
            return (found[0] if alone else found).numpy()


def task_model(task: Task, network: Model, run: str, about: dict[str, Any]) -> dict[str, Any]:
    """The contents of the file of a network that learned one of the lab's tasks.

    Args:
        task: the task.
        network: a plain one.
        run: the name of the job.
        about: of the training, in plain types.
    """
    return {
        "kind": "task",
        "run": run,
        "task": task.name,
        "task_settings": task.settings,
        "about": about,
        "weights": weights_of(network),
    }


def weights_of(network: Model) -> dict[str, Tensor]:
    """Copies of a network's weights."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def write(folder: Path, contents: dict[str, Any]) -> Path:
    """Write the file into a folder in one step.

    Args:
        folder: of the run.
        contents: plain types and tensors: "kind", "run", "weights", and what the kind needs.
    """
    whole = {"format": FORMAT, "library": __version__, **contents}
    whole["check"] = _digest(whole)
    body = io.BytesIO()
    torch.save(whole, body)
    path = within(folder, FILE)
    write_whole(path, body.getvalue())
    return path


def read(run: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a model's file, known to be as they were written.

    Args:
        run: the folder of a run, or the file.

    Raises:
        FileNotFoundError: there is none.
        ModelError: it is damaged, or of another version.
    """
    path = Path(run) / FILE if Path(run).is_dir() else Path(run)
    where = tail(shown(str(path)))
    if not path.exists():
        raise FileNotFoundError(
            f"there is no model at {where}; `dopaminergic train` writes one into its folder"
        )
    try:
        with open_file(path) as file:
            whole = torch.load(io.BytesIO(file.read()), weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # half a dozen kinds, for bytes that were not written
        said = shown(" ".join(str(error).split()), 60)
        raise ModelError(
            f"{where}: not a readable model ({type(error).__name__}: {said}); train again"
        ) from error
    _check(whole, where)
    return whole


def _check(whole: Any, where: str) -> None:
    if not isinstance(whole, dict) or type(whole.get("format")) is not int:
        raise ModelError(
            f"{where}: not a model of this library, it has no 'format'; give the folder of "
            "`dopaminergic train`"
        )
    if whole["format"] != FORMAT:
        version = shown(str(whole.get("library")), 20)
        raise ModelError(
            f"{where}: a model of format {shown(str(whole['format']), 12)}, written by version "
            f"{version}; this one, {__version__}, reads format {FORMAT}: use that version, or "
            "train again"
        )
    wrong = [name for name, kind in COMMON.items() if type(whole.get(name)) is not kind]
    if not wrong:
        check = whole.pop("check")
        wrong = [] if _safe_digest(whole) == check else ["check"]
    if wrong:
        raise ModelError(
            f"{where}: damaged, its {wrong[0]!r} is not as it was written; take it from its "
            "source again, or train again"
        )


def load_task_model(whole: dict[str, Any], where: str) -> TaskModel:
    """The network of one of the lab's tasks.

    Raises:
        ModelError: the file names no such task, or weights of another network.
    """
    settings = {key: value for key, value in whole.items() if key != "weights"}
    name = settings.get("task")
    known = isinstance(name, str) and name in TASKS and name != "series"
    if not known or not isinstance(settings.get("task_settings"), dict):
        raise ModelError(f"{where}: it names no task of this version; train again")
    try:
        return TaskModel(settings, whole["weights"])
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        said = shown(" ".join(str(error).split()), 120)
        raise ModelError(
            f"{where}: the network cannot be built again ({said}); train again"
        ) from error


def fill(network: Model, weights: dict[str, Tensor]) -> None:
    """Give a network weights from a file; raise `ModelError` unless they are built like its own."""
    wrong = difference(weights, dict(network.state_dict()), "weights")
    if wrong:
        raise ModelError(f"not the weights of this network: {wrong}")
    network.load_state_dict(weights)


def _safe_digest(whole: Any) -> str:
    try:
        return _digest(whole)
    except (TypeError, ValueError, RuntimeError, RecursionError):
        return "none: it holds values of another kind"


def _digest(whole: dict[str, Any]) -> str:
    """SHA-256 of the contents, tensors by their bytes."""
    found = hashlib.sha256()

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            return "tensor"
        if isinstance(value, dict):
            return {key: plain(value[key]) for key in sorted(value)}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    found.update(json.dumps(plain(whole), sort_keys=True).encode())
    return found.hexdigest()
