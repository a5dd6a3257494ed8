"""An exception or a signal just before and just after every phase of a step leaves a whole step or
none.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bench import (
    ALL_ROWS,
    MODELS,
    Fault,
    Model,
    complaint,
    faulty,
    optimizer_of,
    reference,
    told_closure,
)

from optimizers import VECTOR, Row, copies, same

HAPPENINGS: dict[str, type[BaseException] | signal.Signals] = {
    "an exception": ZeroDivisionError,
    "Ctrl-C in the closure": KeyboardInterrupt,
    "SIGINT": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
    "no memory": MemoryError,
    "no memory on the device": torch.OutOfMemoryError,
    "an alarm": signal.SIGALRM,
    "SIGUSR1": signal.SIGUSR1,
}
RAISED = (
    ZeroDivisionError,
    KeyboardInterrupt,
    MemoryError,
    torch.OutOfMemoryError,
    TimeoutError,
    SystemExit,
)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own answer to Ctrl-C, and one to alarms and SIGTERM as time limits and job
    schedulers install it.
    """

    def late(number: int, frame: Any) -> None:
        raise TimeoutError("the closure hangs")

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(143)

    wanted = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGALRM: late,
        signal.SIGUSR1: late,
        signal.SIGTERM: leave,
    }
    previous = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def happen(kind: type[BaseException] | signal.Signals) -> None:
    if isinstance(kind, signal.Signals):
        signal.raise_signal(kind)
    else:
        raise kind("on purpose")


@functools.cache
def events(name: str, optimizer_name: str) -> list[str]:
    """Those of the second step."""
    return broken(name, ALL_ROWS[optimizer_name], Fault(lambda: None, 0))[0].events


def broken(name: str, row: Row, fault: Fault) -> tuple[Fault, bool, str | None]:
    """The fault, whether it came out of the step, and what was wrong afterwards."""
    model = MODELS[name]()
    optimizer = optimizer_of(row, model)
    optimizer.step(model.loss)
    before, raised = optimizer.forward_passes, False
    with faulty(fault, optimizer):
        try:
            optimizer.step(told_closure(model.loss, fault))
        except RAISED:
            raised = True
    if fault.n and not raised and optimizer._batched.refused:  # pyright: ignore[reportPrivateUsage]
        # What fails in a batch is tried once more in place. That is a step like any other, but for
        # its passes.
        return (
            fault,
            True,
            None if in_place(name, row, model) else "weights are not those after the step",
        )
    return fault, raised, complaint(name, row, model, optimizer, before)


def in_place(name: str, row: Row, broken: Model) -> bool:
    """Whether the second step ended as one without batches or, where one of two batches failed, as
    one with them.
    """
    model = MODELS[name]()
    optimizer = optimizer_of(row, model)
    optimizer.step(model.loss)
    optimizer._batched.refused = True  # pyright: ignore[reportPrivateUsage]
    optimizer.step(model.loss)
    after = reference(name, row.name).weights[1]
    return same(copies(model.parameters), copies(broken.parameters)) or all(
        torch.allclose(a, b, rtol=1e-6, atol=1e-9)
        for a, b in zip(broken.parameters, after, strict=True)
    )


def plan(name: str, row: Row) -> list[tuple[int, str]]:
    """Every event, or every other where a step is slow, with one kind of fault or with three; kinds
    take turns.
    """
    kinds, large = list(HAPPENINGS), name.startswith("large")
    found = events(name, row.name)
    turns = (0,) if large or name == "bfloat16" or row is VECTOR else (0, 2, 5)
    chosen = [
        (n, kinds[(n + len(row.name) + i) % len(kinds)])
        for n in range(1, len(found) + 1, 2 if name == "bfloat16" else 1)
        for i in turns
    ]
    if large:  # signals wait there, exceptions do not
        return [(n, "no memory" if "Combination" in found[n - 1] else kind) for n, kind in chosen]
    return chosen


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("row", ALL_ROWS.values(), ids=lambda row: row.name)
def test_a_fault_around_any_phase_leaves_a_whole_step_or_none(row: Row, name: str) -> None:
    torn = []
    for n, kind in plan(name, row):
        fault, raised, wrong = broken(
            name, row, Fault(lambda kind=kind: happen(HAPPENINGS[kind]), n)
        )
        if wrong or not raised:
            torn.append(f"{kind} {fault.where}: {wrong or 'it was swallowed'}")
    assert not torn, "\n".join(torn)


def test_there_are_three_thousand_faults() -> None:
    """So that their number does not shrink unseen."""
    assert sum(len(plan(name, row)) for name in MODELS for row in ALL_ROWS.values()) >= 3000
