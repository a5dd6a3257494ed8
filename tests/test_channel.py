"""Ranks that differ, are interrupted or raise errors: all are told, none is aborted, none hangs."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import channel_scenarios
from channel_scenarios import BY_FRAMES, BY_NUMBERS, DEPARTURES, failing
from dopaminergic import Dopamine
from dopaminergic.channel import _error_of
from dopaminergic.distributed import Ranks
from launching import SIZE, ranks_that_leave
from optimizers import same
from rank_scenarios import SETTINGS, Shards, trained

found = ranks_that_leave(channel_scenarios.main, "channel")


# ---- ranks that differ ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*BY_FRAMES, *BY_NUMBERS])
def test_ranks_that_differ_are_all_told_by_the_same_words(found: list[Any], what: str) -> None:
    """No process is aborted, and the weights stay."""
    [said] = {found[rank]["out_of_step"][what]["said"] for rank in range(SIZE)}
    if what == "outcomes":
        assert said.startswith("RuntimeError: ranks 1 and 3 share a shard of the data")
    elif what in BY_NUMBERS:
        assert said.startswith(
            "RuntimeError: rank 3 differs from rank 0 in the optimizer's settings"
        )
    else:
        assert said.startswith("RuntimeError: rank 3 is at [step ")
        there, here = said.split("[")[1:]
        assert there.split("]")[0] != here.split("]")[0]
    assert len(said) <= len("RuntimeError: ") + 300, said
    for rank in range(SIZE):
        assert same(*found[rank]["out_of_step"][what]["weights"])


@pytest.mark.parametrize("what", [*BY_FRAMES, *BY_NUMBERS])
def test_ranks_whose_frames_differ_have_parted_for_good(found: list[Any], what: str) -> None:
    for rank in range(SIZE):
        run = found[rank]["out_of_step"][what]
        if what in BY_FRAMES:
            assert run["again"].startswith(
                "RuntimeError: Ranks: closed for good, since rank 3 and rank 0 were about"
            )
        else:
            assert run["again"] == run["said"]


# ---- ranks that are interrupted ------------------------------------------------------------------

RAISED = {
    "handler that raises a RuntimeError": "RuntimeError: of a handler",
    "Ctrl-C after the exchange": "KeyboardI",
}
# Others complete the second step where they have all numbers of the rank that has left.
COMPLETED = [
    "waiting",
    "handler that raises a RuntimeError",
    "Ctrl-C after the exchange",
    "waiting for the second message",
]


@pytest.mark.parametrize("where", DEPARTURES)
def test_a_rank_that_is_interrupted_leaves_and_ends_all(found: list[Any], where: str) -> None:
    """The others may have completed the step that it did not, so that no step is made after it."""
    runs = [found[rank]["departures"][where] for rank in range(SIZE)]
    assert runs[1]["said"][0].startswith(RAISED.get(where, "TimeoutError"))
    completed = where in COMPLETED
    assert [run["steps"] for run in runs] == [1 + completed, 1, 1 + completed, 1 + completed]
    name = runs[1]["said"][0].split(":")[0]
    for rank in (0, 2, 3):
        said = runs[rank]["said"]
        if completed:
            assert said.pop(0) == "nothing was raised"
        if where == "waiting while another raises" and rank == 0:
            assert said[0] == "ArithmeticError: of the closure"
        else:
            assert said[0].startswith(
                f"RuntimeError: rank 1 of 4 was interrupted in step 1 by {name} and has left"
            )
            assert len(said[0]) <= len("RuntimeError: ") + 300
    for run in runs:
        assert all(
            said.startswith("RuntimeError: Ranks: closed for good, since ")
            for said in run["said"][1:]
        )


def test_an_error_of_a_handler_of_signals_is_not_taken_for_one_of_torch() -> None:
    """The signal comes while C code waits, which then returns as if nothing had been."""

    def late(number: int, frame: Any) -> None:
        raise RuntimeError("of a handler")

    before = signal.signal(signal.SIGUSR1, late)
    try:
        with pytest.raises(RuntimeError, match="of a handler"):
            _error_of(SimpleNamespace(wait=functools.partial(signal.raise_signal, signal.SIGUSR1)))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ranks_that_raise_the_same_error_after_the_exchange_go_on(found: list[Any]) -> None:
    problem = Shards()
    reference = trained(Dopamine, problem, problem.loss, None)
    for rank in range(SIZE):
        run = found[rank]["errors"]["all"]
        assert run["said"] == [
            "nothing was raised",
            "ArithmeticError: of the rule",
            *2 * ["nothing was raised"],
        ]
        assert run["steps"] == 3
        assert all(
            a.allclose(b, rtol=1e-12)
            for a, b in zip(run["weights"], reference["weights"], strict=True)
        )
        assert same(run["weights"], found[0]["errors"]["all"]["weights"])


def test_an_error_of_one_rank_after_the_exchange_is_told_to_all(found: list[Any]) -> None:
    """It is a step behind, which its next frame shows."""
    for rank in range(SIZE):
        run = found[rank]["errors"]["one"]
        assert run["said"][1] == (
            "ArithmeticError: of the rule" if rank == 1 else "nothing was raised"
        )
        assert "rank 1 is at [step 1, Failing" in run["said"][2]
        assert "rank 0 at [step 2, Failing" in run["said"][2]
        assert run["said"][3].startswith("RuntimeError: Ranks: closed for good")
        assert run["steps"] == (1 if rank == 1 else 2)


# ---- other processes -----------------------------------------------------------------------------


def in_a_child(work: Callable[[], Any]) -> tuple[int, str]:
    """Number of a forked process, and what it is told."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, failing(work).encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reading, 1000).decode()
    os.close(reading)
    os.close(writing)
    return child, said


# JAX says so where another test of the process has imported it.
@pytest.mark.filterwarnings("ignore:os.fork")
def test_ranks_are_refused_in_a_forked_child(alone: Ranks) -> None:
    """Those of its parent, and new ones over the same connections."""
    problem = Shards()
    optimizer = Dopamine(problem.model.parameters(), process_group=alone, **SETTINGS)
    optimizer.step(problem.loss)
    for work in (lambda: optimizer.step(problem.loss), Ranks):
        child, said = in_a_child(work)
        assert f"they belong to process {os.getpid()}, and this is its child {child}" in said
    optimizer.step(problem.loss)


def test_an_optimizer_beside_other_ranks_is_told_once_that_it_is_alone(found: list[Any]) -> None:
    for rank in range(SIZE):
        [said] = found[rank]["not_introduced"]
        assert "none of the 4 ranks" in said
        assert "DistributedDataParallel" in said
        assert len(said) <= 300


def test_a_group_that_is_only_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"process_group must be .* 'alone', got 'world'"):
        Dopamine(Shards().model.parameters(), process_group="world")
