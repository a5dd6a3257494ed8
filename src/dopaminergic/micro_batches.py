"""Micro-batches: closures that wait for others, and are evaluated as one.

    probe(a, more=True), probe(b, more=True), probe(c)  ->  the mean over all samples of a, b, c

Each perturbation is evaluated with all of them, so that the step is that of the whole batch. A
closure that waits is called later than it was made. So the variables that it reads are remembered,
and one that was bound anew since is an error: all closures of a loop would see its last batch.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.outcomes import Closure, Outcome, read
from dopaminergic.plain import brief


class Waiting(NamedTuple):
    """A closure that waits for others.

    Attributes:
        closure: of the user.
        variables: a function that it calls, the name of a variable, and its value.
    """

    closure: Closure
    variables: list[tuple[FunctionType, str, Any]]


def wait(closure: Any, rule: str) -> Waiting:
    """The closure, with what it reads from around it.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(closure):
        raise TypeError(
            f"{rule}: the closure must be a function that computes the loss, got {brief(closure)}; "
            "pass opt.probe(lambda: loss_of(model(x), y), more=True)"
        )
    variables: list[tuple[FunctionType, str, Any]] = []
    _look(closure, variables, set())
    waiting: Closure = closure  # pyright: ignore[reportAssignmentType]
    return Waiting(waiting, variables)


def join(waiting: Sequence[Waiting], last: Sequence[Closure], rule: str, replicas: Any) -> Closure:
    """One closure for all: it returns the mean over their samples.

    Args:
        waiting: closures that have waited.
        last: one that has not, or none.
        rule: the optimizer's name, for errors.
        replicas: R of a fleet; None for one model.

    Raises:
        RuntimeError: a variable of a closure was bound anew while it waited.
    """
    for one in waiting:
        for function, name, value in one.variables:
            if _value(function, name) is not value:
                raise RuntimeError(
                    f"{rule}: {name!r} was bound anew since probe(closure, more=True), and the "
                    "closure, which is called with the last one, would read the new value; keep "
                    f"the old one: lambda {name}={name}: ... The micro-batches are dropped"
                )
    closures = [*(one.closure for one in waiting), *last]
    if len(closures) == 1:
        return closures[0]
    return lambda: mean([closure() for closure in closures], rule, replicas)


def mean(returned: Sequence[Any], rule: str, replicas: int | None) -> Any:
    """What one closure over all micro-batches would return.

    Losses of samples, and predictions, are joined. Where a part is a lone number, the mean of all
    parts counts each of them alike.
    """
    readings = [read(value, rule, replicas) for value in returned]
    lead = 0 if replicas is None else 1
    values = [reading.value for reading in readings]
    outcomes = [value for value in values if isinstance(value, Outcome)]
    kinds = {outcome.kind for outcome in outcomes}
    if len(outcomes) == len(values) and len(kinds) == 1:
        return _join_outcomes(outcomes, kinds.pop(), lead)
    if all(isinstance(x, Outcome) or (isinstance(x, Tensor) and x.ndim > lead) for x in values):
        losses = torch.cat([reading.losses for reading in readings], 1)
        return losses if lead else losses[0]
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) == len(values):
        return sum(numbers) / len(numbers)
    means = torch.stack([reading.means() for reading in readings]).mean(0)
    return means if lead else means[0]


def _join_outcomes(outcomes: list[Outcome], kind: str, lead: int) -> Outcome:
    classes = int(kind == "cross_entropy")  # the last dimension is not one of samples
    values = _join_rows([one.values for one in outcomes], lead, classes)
    losses = _join_losses([one.losses for one in outcomes], lead)
    if kind != "custom":
        return Outcome(values, losses, kind, _join_rows([one.truth for one in outcomes], lead, 0))
    shapes = [one.values.shape for one in outcomes]
    functions: list[Callable[[Tensor], Tensor]] = [one.truth for one in outcomes]

    def loss_of(joined: Tensor) -> Tensor:
        flat = joined.reshape(*joined.shape[:lead], -1)
        parts = flat.split([shape[lead:].numel() for shape in shapes], lead)
        pairs = zip(functions, parts, shapes, strict=True)
        return _join_losses([loss(part.reshape(shape)) for loss, part, shape in pairs], lead)

    return Outcome(values, losses, kind, loss_of)


def _join_losses(losses: list[Tensor], lead: int) -> Tensor:
    if all(one.ndim == lead for one in losses):  # each is a mean already
        return torch.stack(losses).mean(0)
    return _join_rows(losses, lead, 0)


def _join_rows(tensors: list[Tensor], lead: int, last: int) -> Tensor:
    """All samples, one after the other; flat where parts have other shapes, padded texts say.

    Args:
        tensors: of the parts.
        lead: number of dimensions of replicas, before the samples.
        last: number of dimensions that are kept at the end.
    """
    alike = len({one.shape[lead + 1 :] for one in tensors}) == 1
    if alike and all(one.ndim > lead + last for one in tensors):
        return torch.cat(tensors, lead)
    flat = [one.reshape(*one.shape[:lead], -1, *one.shape[one.ndim - last :]) for one in tensors]
    return torch.cat(flat, lead)


# ---- variables of a closure ----------------------------------------------------------------------


def _look(function: Any, found: list[tuple[FunctionType, str, Any]], seen: set[int]) -> None:
    """Note the variables that a function reads, also by functions of its own module."""
    while isinstance(function, functools.partial | MethodType):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    for name in dict.fromkeys(_read_names(function.__code__)):
        value = _value(function, name)
        found.append((function, name, value))
        if isinstance(value, FunctionType) and value.__globals__ is function.__globals__:
            _look(value, found, seen)


def _read_names(code: CodeType) -> Iterator[str]:
    yield from code.co_freevars
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a lambda or a comprehension inside
            inner = set(constant.co_freevars)
            yield from (name for name in _read_names(constant) if name not in inner)


def _value(function: FunctionType, name: str) -> Any:
    """The value of a variable around a function; None while there is none."""
    if name in function.__code__.co_freevars:
        cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]
        try:
            return cell.cell_contents
        except ValueError:  # it is not bound yet
            return None
    return function.__globals__.get(name)
