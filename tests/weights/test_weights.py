"""Whatever happens within a step, the weights are afterwards those before it or those after it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import dopaminergic.noise as noise
from dopaminergic import Dopamine, ForwardOptimizer, VectorDopamine, WeightPerturbation
from optimizers import ROWS, Bowl, Regression, Row, copies, perceptron, randn, same

PACKAGE = noise.__file__.rsplit("/", 2)[0]


class Trained(NamedTuple):
    """Weights, what is minimised, and whether an interrupted step is undone bit for bit."""

    parameters: Sequence[Tensor]
    groups: Any
    loss: Callable[[], Tensor]
    exact: bool = True


def small() -> Trained:
    problem = Regression(dtype=torch.float32)
    parameters = list(problem.model.parameters())
    return Trained(parameters, parameters, problem.loss)


def several_groups() -> Trained:
    """Two groups and three kinds of memory: float32, float64 and not contiguous."""
    a, b = nn.Parameter(randn(6, 5, dtype=torch.float32)), nn.Parameter(randn(7, seed=1))
    c = nn.Parameter(randn(6, 5, seed=2).t())
    groups = [{"params": [a, b]}, {"params": [c], "sigma": 0.01}]
    return Trained([a, b, c], groups, lambda: (a.double() ** 2).sum() + (b**2).sum() + (c**2).sum())


def half() -> Trained:
    model = perceptron(3, 4, 1, dtype=torch.bfloat16)
    x = randn(8, 3, seed=5).bfloat16()
    parameters = list(model.parameters())
    return Trained(parameters, parameters, lambda: (model(x).double() ** 2).mean())


def large() -> Trained:
    bowl = Bowl()
    return Trained([bowl.w], [bowl.w], bowl.loss, exact=False)


def large_and_half() -> Trained:
    """Both ways back in one model: in place for the float32 weights, from a copy for the 16-bit
    ones.
    """
    bowl, h = Bowl(), nn.Parameter(randn(50, seed=8).bfloat16())
    return Trained(
        [bowl.w, h], [bowl.w, h], lambda: bowl.loss() + (h.double() ** 2).mean(), exact=False
    )


STRIDES = {small: 1, several_groups: 3, half: 31, large: 7, large_and_half: 23}
MODELS = [small, several_groups, half, large, large_and_half]


def restored(new: list[Tensor], old: list[Tensor], exact: bool, passes: int = 1) -> bool:
    if exact:
        return same(new, old)
    return all(
        torch.equal(a, b)
        if a.dtype == torch.bfloat16
        else bool(((a - b).abs() <= passes * torch.finfo(a.dtype).eps * (b.abs() + 0.12)).all())
        for a, b in zip(new, old, strict=True)
    )


# ---- exceptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_at_any_evaluation_leaves_everything_as_before(
    row: Row, make: Callable[[], Trained], error: type[BaseException]
) -> None:
    directions = 2
    for at in range(row.passes(directions)):
        model = make()
        optimizer = row.make(model.groups, directions=directions)
        optimizer.step(model.loss)
        old, before, calls = copies(model.parameters), optimizer.state_dict(), 0

        def closure(model: Trained = model, at: int = at) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise error("from the closure")
            return model.loss()

        with pytest.raises(error, match="from the closure"):
            optimizer.step(closure)
        assert restored(copies(model.parameters), old, model.exact, passes=directions)
        after = optimizer.state_dict()
        assert str(after["forward"]) == str(before["forward"])


def test_after_an_exception_the_run_goes_on_as_if_it_had_not_been(any_row: Row) -> None:
    ends = []
    for disturbed in (False, True):
        problem = Regression(dtype=torch.float32)
        optimizer = any_row.make(problem.model.parameters())
        for _ in range(4):
            if disturbed:
                with pytest.raises(ZeroDivisionError):
                    optimizer.step(failing_second(problem))
                with pytest.raises(ZeroDivisionError):
                    optimizer.probe(failing_second(problem))
            optimizer.step(problem.loss)
        ends.append((problem.weights(), optimizer.forward_passes))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def failing_second(problem: Regression) -> Callable[[], Tensor]:
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return problem.loss() if calls == 1 else problem.loss() / (1 // 0)

    return closure


@pytest.mark.parametrize("bad", [None, torch.zeros(2, 2), "loss"])
def test_a_wrong_outcome_under_perturbation_restores_the_weights(any_row: Row, bad: Any) -> None:
    problem = Regression(dtype=torch.float32)
    optimizer, old, calls = any_row.make(problem.model.parameters()), problem.weights(), 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        return problem.loss() if calls == 1 else bad

    with pytest.raises((TypeError, ValueError), match=any_row.name):
        optimizer.step(closure)
    assert same(problem.weights(), old)


def test_the_weights_saved_by_an_earlier_step_are_not_brought_back() -> None:
    """What the user loads between steps is what an interrupted step returns to."""
    problem = Regression(dtype=torch.float32)
    optimizer = WeightPerturbation(problem.model.parameters())
    optimizer.step(problem.loss)
    with torch.no_grad():
        for p in problem.model.parameters():
            p.mul_(2.0)
    loaded = problem.weights()
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert same(problem.weights(), loaded)
    with pytest.raises(RuntimeError, match="probe"):
        optimizer.step()
    assert same(problem.weights(), loaded)


# ---- Ctrl-C --------------------------------------------------------------------------------------


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own answer to SIGINT, whatever the test runner has put in its place."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


class Interruption:
    """Sends SIGINT when the package's n-th line (of a step) is about to run."""

    def __init__(self, n: int) -> None:
        self.n, self.lines, self.where = n, 0, ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.n:
                self.where = f"{frame.f_code.co_filename[len(PACKAGE) :]}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return self


def interrupted(
    make: Callable[[], Trained], start: Callable[[Any], ForwardOptimizer], n: int
) -> tuple[Any, ...]:
    """Weights before and after the second of two steps, how many of its passes counted, and the
    interruption.
    """
    model = make()
    optimizer = start(model.groups)
    optimizer.step(model.loss)
    old, passes, interruption = copies(model.parameters), optimizer.forward_passes, Interruption(n)
    tracing = sys.gettrace()
    sys.settrace(interruption)
    try:
        optimizer.step(model.loss)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracing)
        torch.set_grad_enabled(True)
    return old, copies(model.parameters), optimizer.forward_passes - passes, interruption


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("row", [ROWS[1], ROWS[3]], ids=lambda row: row.name)
def test_ctrl_c_anywhere_leaves_the_weights_before_or_after(
    row: Row, make: Callable[[], Trained]
) -> None:
    """At every line of the package that a step runs; at every third or so where a step is slow or
    long.
    """

    def start(groups: Any) -> ForwardOptimizer:
        return row.make(groups, weight_decay=0.01)

    _, after, passes, whole = interrupted(make, start, 0)
    assert passes == 2
    torn = []
    for n in range(1, whole.lines + 1, STRIDES[make]):
        old, new, passed, interruption = interrupted(make, start, n)
        good = same(new, after) if passed else restored(new, old, make().exact, passes=2)
        if not (good and passed in (0, 2)):
            torn.append(interruption.where)
    assert not torn, f"weights are torn by Ctrl-C at {sorted(set(torn))}"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    "make", [small, several_groups, half, large], ids=lambda make: make.__name__
)
def test_ctrl_c_anywhere_in_a_step_of_many_directions(make: Callable[[], Trained]) -> None:
    """As above, in batches and in place; what is compared in the first step makes a third and a
    fourth evaluation.
    """

    def start(groups: Any) -> ForwardOptimizer:
        # From a lone loss of 300,000 weights comes a step of hundreds, from which float32 finds no
        # exact way back.
        return VectorDopamine(groups, directions=5, weight_decay=0.01, lr=1e-6)

    _, after, passes, whole = interrupted(make, start, 0)
    assert passes in (7, 8)
    torn = []
    for n in range(1, whole.lines + 1, 31 * STRIDES[make]):
        old, new, passed, interruption = interrupted(make, start, n)
        good = same(new, after) if passed else restored(new, old, make().exact, passes=7)
        if not (good and passed in (0, passes)):
            torn.append(interruption.where)
    assert not torn, f"weights are torn by Ctrl-C at {sorted(set(torn))}"


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_never_swallowed() -> None:
    """A signal that arrives while it is held back is delivered as soon as the arithmetic is
    done.
    """
    model = large()
    optimizer = Dopamine(model.groups)
    optimizer.step(model.loss)
    whole = Interruption(0)
    sys.settrace(whole)
    optimizer.step(model.loss)
    sys.settrace(None)
    for n in range(1, whole.lines, 11):
        optimizer = Dopamine(model.groups)
        optimizer.step(model.loss)  # so that the next one is the step whose lines were counted
        with pytest.raises(KeyboardInterrupt):
            trace_step(optimizer, model, Interruption(n))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def trace_step(optimizer: ForwardOptimizer, model: Trained, interruption: Interruption) -> None:
    sys.settrace(interruption)
    try:
        optimizer.step(model.loss)
    finally:
        sys.settrace(None)
        torch.set_grad_enabled(True)


# ---- memory --------------------------------------------------------------------------------------


def test_large_models_use_the_definitions_noise_too(row: Row) -> None:
    """The change made in place is parallel to the one made from a copy, whose step may have another
    size.
    """
    changes = []
    for n in (300_000, 1_000):
        w = nn.Parameter(randn(300_000, seed=5, dtype=torch.float32)[:n].clone())
        old = w.detach()[:1000].clone()
        # Both see the loss of the first thousand weights alone, so that their regrets are the same
        # but for rounding.
        row.make([w], directions=2).step(lambda w=w: (w[:1000].double() ** 2).sum())
        changes.append((w.detach()[:1000] - old).double())
    cosine = (changes[0] @ changes[1]) / (changes[0].norm() * changes[1].norm())
    assert float(cosine) > 0.9999


def test_no_copy_of_a_large_model_is_kept() -> None:
    """Python sees every tensor that is made: none of them is as large as the weights."""
    bowl = Bowl()
    optimizer = WeightPerturbation([bowl.w])
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        optimizer.step(lambda: float(bowl.w[0]))
    assert profile is not None
    assert profile.function_events is not None
    largest = max((event.cpu_memory_usage for event in profile.function_events), default=0)
    assert largest < bowl.w.numel() * bowl.w.element_size() // 4


def test_a_fast_write_does_not_touch_its_neighbours() -> None:
    """Two parameters in one piece of memory, with a gap that must keep its value."""
    memory = torch.full((1000,), 7.0)
    a, b = nn.Parameter(memory[100:357]), nn.Parameter(memory[400:411])
    optimizer = WeightPerturbation([a, b], lr=0.1, directions=2)
    optimizer.step(lambda: (a**2).sum() + (b**2).sum())
    kept = torch.cat([memory[:100], memory[357:400], memory[411:]])
    assert torch.equal(kept, torch.full_like(kept, 7.0))
    assert not (memory[100:357] == 7.0).any()
    assert not (memory[400:411] == 7.0).any()
