"""The learning tasks by name. To add one, write a `Task` and a line in `TASKS`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial

from dopaminergic.lab.tasks.digits import Digits, ThresholdDigits
from dopaminergic.lab.tasks.digits_conv import ConvolutionalDigits
from dopaminergic.lab.tasks.forecasting import QuickForecasting
from dopaminergic.lab.tasks.free_running import LongForecasting
from dopaminergic.lab.tasks.markov import Markov
from dopaminergic.lab.tasks.mnist1d import Mnist1d
from dopaminergic.lab.tasks.own_series import UserSeries
from dopaminergic.lab.tasks.real import Sunspots
from dopaminergic.lab.tasks.task import Task
from dopaminergic.lab.tasks.xor import ClusterXor, ContinuousXor, TemporalXor, Xor

__all__ = ["TASKS", "Task", "make_task"]

TASKS: dict[str, Callable[..., Task]] = {
    "xor-2-2-1": partial(Xor, 2),
    "xor-2-8-1": partial(Xor, 8),
    "continuous-xor": ContinuousXor,
    "cluster-xor": ClusterXor,
    "temporal-xor": TemporalXor,
    "lorenz": partial(QuickForecasting, "lorenz"),
    "rossler": partial(QuickForecasting, "rossler"),
    "mackey-glass": partial(QuickForecasting, "mackey-glass"),
    "henon": partial(QuickForecasting, "henon"),
    "logistic": partial(QuickForecasting, "logistic"),
    "lorenz-vpt": partial(LongForecasting, "lorenz"),
    "rossler-vpt": partial(LongForecasting, "rossler"),
    "mackey-glass-vpt": partial(LongForecasting, "mackey-glass"),
    "sunspots": Sunspots,
    "digits": Digits,
    "digits-conv": ConvolutionalDigits,
    "threshold-digits": ThresholdDigits,
    "mnist1d": Mnist1d,
    "markov-transformer": Markov,
    "series": UserSeries,
}


def make_task(name: str, **settings: object) -> Task:
    """The task of a name, with settings other than its defaults.

    Args:
        name: a key of `TASKS`.
        **settings: keyword arguments of the task's class.

    Raises:
        ValueError: an unknown name, or a value out of range.
        TypeError: an unknown or missing setting.

    >>> make_task("lorenz", hidden=32).parameter_count()
    1251
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(TASKS)}"
        raise ValueError(f"task: no task {name!r}; {hint}")
    parameters = inspect.signature(TASKS[name]).parameters
    known = {
        key for key, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise TypeError(f"{name}: no setting {key!r}{hint}; it has {', '.join(sorted(known))}")
    missing = [
        key
        for key in known
        if parameters[key].default is inspect.Parameter.empty and key not in settings
    ]
    if missing:
        raise TypeError(f"{name}: needs the setting {' and '.join(sorted(missing))}")
    return TASKS[name](**settings)


def describe() -> list[dict[str, object]]:
    """The tasks for listings: name, title, metric, budget in forward passes, settings."""
    listing: list[dict[str, object]] = []
    for name, maker in TASKS.items():
        settings = [
            key
            for key, value in inspect.signature(maker).parameters.items()
            if value.kind is value.KEYWORD_ONLY
        ]
        if name == "series":
            about = {
                "title": "your own series, CSV or Parquet",
                "metric": "nrmse",
                "budget": 20_000,
            }
        else:
            task = make_task(name)
            about = {"title": task.title, "metric": task.metric, "budget": task.budget}
        listing.append({"name": name, **about, "settings": ", ".join(settings)})
    return listing
