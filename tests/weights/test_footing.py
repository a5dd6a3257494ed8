"""A closure that changes the ground a step stands on: the weights are those before the step or
those after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dopaminergic import ForwardOptimizer, VectorDopamine, squared_error
from optimizers import ROWS, VECTOR, Row

ALL_ROWS = [*ROWS, VECTOR]
SIZES = {"from a copy": 10, "in place": 400_000}


def rebind(w: nn.Parameter) -> None:
    w.data = w.data.clone()


def cast(w: nn.Parameter) -> None:
    w.data = w.data.double()


def move_to_shared_memory(w: nn.Parameter) -> None:
    w.detach().share_memory_()


ACTS: list[Callable[[nn.Parameter], None]] = [rebind, cast, move_to_shared_memory]


def parameter(size: int) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1.0, 1.0, size))


def first_ten(w: Tensor) -> Any:
    return squared_error(w[:10].float(), torch.zeros(10))


def settled(row: Row, w: nn.Parameter) -> ForwardOptimizer:
    """After a step, which brings large weights onto the grid of sigma; with a rate of 0, so that
    nothing else moves.
    """
    optimizer = row.make([w], lr=0.0)
    optimizer.step(lambda: first_ten(w))
    return optimizer


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.name)
def test_weights_that_move_during_a_step_come_back_where_they_are_now(
    row: Row, size: int, act: Callable[[nn.Parameter], None], call: int
) -> None:
    w = parameter(size)
    optimizer = settled(row, w)
    before = w.detach().clone()
    calls = []

    def closure() -> Any:
        calls.append(0)
        if len(calls) == call:
            act(w)
        return first_ten(w)

    optimizer.step(closure)
    exact = size < 1000 or optimizer.settings["noise"] == "rademacher"
    tolerance = 0.0 if exact and row is not VECTOR else 1e-6
    assert float((w.detach().double() - before.double()).abs().max()) <= tolerance


def test_a_step_after_weights_have_moved_is_the_step_of_weights_that_stayed() -> None:
    for size in SIZES.values():
        ends = []
        for moves in (False, True):
            w = parameter(size)
            optimizer = ROWS[0].make([w])
            calls: list[int] = []

            def closure(w: nn.Parameter = w, calls: list[int] = calls, moves: bool = moves) -> Any:
                calls.append(0)
                if moves and len(calls) == 4:
                    rebind(w)
                return first_ten(w)

            for _ in range(4):
                optimizer.step(closure)
            ends.append(w.detach().clone())
        assert torch.equal(*ends)


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_memory_that_is_gone_is_never_written_and_the_error_says_so(size: int) -> None:
    kept, lost = parameter(size), parameter(size)
    optimizer = ROWS[0].make([kept, lost], lr=0.0)
    optimizer.step(lambda: first_ten(kept))
    before = kept.detach().clone()
    calls = []

    def closure() -> Any:
        calls.append(0)
        if len(calls) == 2:
            lost.untyped_storage().resize_(0)
        return first_ten(kept)

    with pytest.raises(RuntimeError, match=r"has no memory any more.*between steps only"):
        optimizer.step(closure)
    assert torch.equal(kept, before)


def test_a_parameter_of_another_shape_is_refused_and_the_others_are_restored() -> None:
    kept, changed = parameter(10), parameter(10)
    optimizer = ROWS[0].make([kept, changed], lr=0.0)
    before = kept.detach().clone()
    calls = []

    def closure() -> Any:
        calls.append(0)
        if len(calls) == 2:
            changed.data = torch.ones(3)
        return first_ten(kept)

    with pytest.raises(RuntimeError, match="now has shape"):
        optimizer.step(closure)
    assert torch.equal(kept, before)


INNER: dict[str, Callable[[ForwardOptimizer, nn.Parameter], Any]] = {
    "step": lambda optimizer, w: optimizer.step(lambda: first_ten(w)),
    "probe": lambda optimizer, w: optimizer.probe(lambda: first_ten(w)),
    "load_state_dict": lambda optimizer, w: optimizer.load_state_dict(optimizer.state_dict()),
    "add_param_group": lambda optimizer, w: optimizer.add_param_group({"params": [parameter(3)]}),
}


@pytest.mark.parametrize("act", INNER.values(), ids=list(INNER))
@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.name)
def test_a_closure_may_not_use_its_own_optimizer(
    row: Row, size: int, act: Callable[..., Any]
) -> None:
    w = parameter(size)
    optimizer = settled(row, w)
    before, passes = w.detach().clone(), optimizer.forward_passes
    calls = []

    def closure() -> Any:
        calls.append(0)
        if len(calls) == 2:
            act(optimizer, w)
        return first_ten(w)

    with pytest.raises(RuntimeError, match="from its own closure while a step is in progress"):
        optimizer.step(closure)
    near = (
        0.0
        if size < 1000 or (row is not VECTOR and optimizer.settings["noise"] == "rademacher")
        else 1e-6
    )
    assert float((w.detach() - before).abs().max()) <= near
    assert optimizer.forward_passes == passes
    optimizer.step(lambda: first_ten(w))


def test_another_thread_may_not_step_at_the_same_time() -> None:
    import threading

    w = parameter(10)
    optimizer = ROWS[0].make([w])
    inside, told = threading.Event(), threading.Event()
    errors: list[str] = []

    def slow() -> Any:
        inside.set()
        told.wait(20)
        return first_ten(w)

    thread = threading.Thread(target=lambda: optimizer.step(slow))
    thread.start()
    inside.wait(20)
    try:
        optimizer.step(lambda: first_ten(w))
    except RuntimeError as error:
        errors.append(str(error))
    told.set()
    thread.join()
    assert len(errors) == 1
    assert "another thread" in errors[0]
    optimizer.step(lambda: first_ten(w))


def test_a_step_near_the_limit_of_recursion_leaves_gradients_on_and_weights_whole() -> None:
    import sys

    w = parameter(8)
    optimizer = ROWS[0].make([w])
    optimizer.step(lambda: w.square().mean())

    def deep(n: int, work: Callable[[], Any]) -> Any:
        return work() if n == 0 else deep(n - 1, work)

    limit = sys.getrecursionlimit()
    here = 0
    frame: Any = sys._getframe()
    while frame is not None:
        here, frame = here + 1, frame.f_back
    for depth in range(60):
        before, passes = w.detach().clone(), optimizer.forward_passes
        sys.setrecursionlimit(here + 70)
        try:
            deep(depth, lambda: optimizer.step(lambda: w.square().mean()))
        except RecursionError:
            pass
        finally:
            sys.setrecursionlimit(limit)
        assert torch.is_grad_enabled()
        assert optimizer.forward_passes > passes or torch.equal(w, before), depth


def test_a_model_that_computes_in_another_process_is_trained() -> None:
    """The usual way of parallel rollouts: weights travel through a queue, which moves them to
    shared memory.
    """
    import torch.multiprocessing as processes

    context = processes.get_context("spawn")
    for size in (10, 4000):
        model = nn.Sequential(nn.Linear(10, 100), nn.Tanh(), nn.Linear(100, size))
        optimizer = ROWS[0].make(model.parameters())
        tasks = context.SimpleQueue()

        def closure(model: nn.Module = model, tasks: Any = tasks) -> float:
            tasks.put([p.detach() for p in model.parameters()])
            return float(sum(w.square().sum() for w in tasks.get()))

        before = [p.detach().clone() for p in model.parameters()]
        for _ in range(3):
            optimizer.step(closure)
        sizes = [
            float((p.detach() - b).abs().max())
            for p, b in zip(model.parameters(), before, strict=True)
        ]
        assert all(np.isfinite(size) and size > 0.0 for size in sizes)


def test_vector_dopamine_perturbs_copies_of_where_weights_are_now() -> None:
    w = parameter(10)
    optimizer = VectorDopamine([w])

    def closure() -> Any:
        if optimizer.forward_passes == 0:
            w.data = w.data.clone()
        return squared_error(w, torch.zeros(10))

    for _ in range(20):
        optimizer.step(closure)
    assert float(w.detach().abs().max()) < 1e-2
