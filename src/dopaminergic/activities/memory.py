"""All that rules of nodes keep between steps, by name, and whether a saved one may be used.

layout of NAME SxUxT      (2,): the layout, and the lag, -1 for none
feedback of NAME AxB...   (R, A, B, ...): K
doubt, level, pull        (R,), and first squares
looks                     (): a number of steps
copies                    (): 1 where inputs of sites are copied, since closures write over them
curvature                 (R, d, d)
square, rows, columns, left, right, basis left, basis right of NUMBER: of a parameter
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from dopaminergic.activities.eigen import WIDEST
from dopaminergic.activities.jacobian import MOST
from dopaminergic.activities.separation import OPEN
from dopaminergic.plain import brief

COPIES = "copies"
LAYOUT = re.compile(r"layout of .+ \d+x\d+x\d+", re.DOTALL)
FEEDBACK = re.compile(r"feedback of .+ (\d+(?:x\d+)+)", re.DOTALL)
OF_PARAMETER = re.compile(r"(square|rows|columns|(?:basis )?(?:left|right)) of (0|[1-9]\d*)")
SCALARS = ("doubt", "level", "pull", "first squares")
SIGNED = re.compile(r"level|(feedback|basis (left|right)|left|right) of .+", re.DOTALL)


def check_memory(memory: Any, parameters: list[Tensor], replicas: int | None, place: str) -> None:
    """Raise unless rules of nodes could have kept it.

    Args:
        memory: from a state.
        parameters: of the optimizer that is to load it.
        replicas: R of a fleet; None for one model.
        place: begins the error.

    Raises:
        ValueError: an entry is no tensor, or not of its form; or its name says nothing.
    """
    if not isinstance(memory, dict):
        raise ValueError(f"{place}: memory must be a dict, got {brief(memory)}")
    shapes = [_shape(parameter, replicas) for parameter in parameters]
    for name, value in memory.items():
        wrong = _wrong(name, value, shapes)
        if wrong is not None:
            raise ValueError(
                f"{place}: memory must hold {wrong}, got {_told(value)} for {brief(name)}; the "
                "state is damaged, or of another version or model; load another copy"
            )


def _shape(parameter: Tensor, replicas: int | None) -> tuple[int, ...]:
    """Of the estimates for a parameter, the replicas first."""
    shape: tuple[int, ...] = tuple(parameter.shape)
    return shape if replicas is not None else (1, *shape)


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"[:80]
    return brief(value)


def _wrong(name: Any, value: Any, shapes: list[tuple[int, ...]]) -> str | None:
    """The rule that an entry breaks; None if it is right."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return "tensors by name"
    if value.layout != torch.strided or value.is_meta:
        return "dense tensors"
    if LAYOUT.fullmatch(name):
        fits = value.dtype == torch.int64 and value.shape == (2,)
        right = fits and int(value[0]) >= 0 and int(value[1]) >= -1
        return None if right else "int64 layouts of shape (2,), >= 0 and >= -1"
    if name in ("looks", OPEN, COPIES):
        right = value.dtype == torch.int64 and value.ndim == 0 and int(value) >= 0
        return None if right else f"one int64 >= 0 as {name}"
    if not _is_known(name, len(shapes)):
        return "entries of names that this version knows"
    if not value.is_floating_point() or not bool(value.isfinite().all()):
        return "finite numbers of a floating dtype"
    if not SIGNED.fullmatch(name) and name != "curvature" and bool((value < 0.0).any()):
        return "numbers >= 0"
    return _wrong_shape(name, tuple(value.shape), shapes)


def _is_known(name: str, parameters: int) -> bool:
    if name in (*SCALARS, "curvature") or FEEDBACK.fullmatch(name):
        return True
    found = OF_PARAMETER.fullmatch(name)
    return found is not None and int(found[2]) < parameters


def _wrong_shape(name: str, shape: tuple[int, ...], shapes: list[tuple[int, ...]]) -> str | None:
    """The rule of shapes that an entry of a known name breaks."""
    replicas = shapes[0][0]
    feedback = FEEDBACK.fullmatch(name)
    found = OF_PARAMETER.fullmatch(name)
    if feedback is not None:
        expected = (replicas, *map(int, feedback[1].split("x")))
    elif found is not None:
        expected = _of_parameter(found[1], shapes[int(found[2])])
    elif name in SCALARS:
        expected = (replicas,)
    else:
        square = len(shape) == 3 and shape[0] == replicas and shape[1] == shape[2]
        if square and _may_be_all(shape[1], shapes):
            return None
        return f"{replicas} square matrices as curvature, as wide as parameters that may change"
    return None if shape == expected else f"a tensor {expected}"


def _of_parameter(kind: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of something that is kept for a parameter; None where nothing is."""
    if len(shape) < 3:
        return shape if kind == "square" else None
    replicas, rows, columns = (*shape[:2], math.prod(shape[2:]))
    if kind == "square":
        return None
    size = rows if kind == "rows" or kind.endswith("left") else columns
    if kind in ("rows", "columns"):
        return (replicas, size)
    return (replicas, size, size) if 1 < size <= WIDEST else None


def _may_be_all(width: int, shapes: list[tuple[int, ...]]) -> bool:
    """Whether some of the parameters have so many weights of one replica together."""
    reached = 1  # bit d: d weights
    for shape in shapes:
        size = math.prod(shape[1:])
        if size <= MOST:
            reached |= reached << size
    return 0 < width <= MOST and bool(reached >> width & 1)
