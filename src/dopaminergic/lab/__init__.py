"""The laboratory: tasks, experiments, reports and the command line; it needs the extra `lab`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dopaminergic.lab.forecaster import Forecaster
    from dopaminergic.lab.saved import TaskModel

__all__ = ["load"]


def load(run: str | os.PathLike[str]) -> Forecaster | TaskModel:
    """The network that `dopaminergic train` has kept, ready to predict.

    Args:
        run: the folder of the run, or its `model.pt`.

    Returns:
        A `Forecaster` of a series of one's own, whose `predict(values)` gives the rows that follow.
        A `TaskModel` of one of the lab's tasks, whose `predict(values)` gives the network's
        outputs.

    Raises:
        FileNotFoundError: there is no model.
        ModelError: the file is damaged, or another version wrote it.
    """
    from dopaminergic.lab.forecaster import load_forecaster
    from dopaminergic.lab.saved import load_task_model, read

    whole = read(run)
    where = str(run)[-60:]
    return (load_forecaster if whole["kind"] == "series" else load_task_model)(whole, where)
