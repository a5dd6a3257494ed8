"""Large 16-bit weights are perturbed where they are used: the same bits as by a copy, and no
copy.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import dopaminergic.noise as noise
from dopaminergic import SPSA, VectorDopamine, WeightPerturbation, cross_entropy, squared_error
from dopaminergic.outcomes import Outcome
from dopaminergic.weight_optimizer import WeightOptimizer
from dopaminergic.weights import handing
from dopaminergic.weights import layout as module
from optimizers import Row, copies, perceptron, randn, same

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAVED_BYTES", 0)
    monkeypatch.setattr(handing, "SMALL", 0)


class Layers(nn.Module):
    """One of everything; the embedding is tied to the output."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, dtype=dtype)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1, dtype=dtype)
        self.norm = nn.LayerNorm(8, dtype=dtype)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=dtype)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True, dtype=dtype)
        self.linear = nn.Linear(8, 8, dtype=dtype)
        self.output = nn.Linear(8, 11, dtype=dtype)
        self.output.weight = self.embedding.weight
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(randn(*p.shape, seed=i) / 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.convolution(self.embedding(tokens).mT).mT)
        x = functional.dropout(x + self.attention(x, x, x)[0], 0.1)
        return self.output(self.linear(self.lstm(x)[0]).tanh())


class Problem:
    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        self.model, self.tokens = Layers(dtype), torch.arange(24).reshape(4, 6) % 11
        self.calls = 0

    def loss(self) -> Outcome:
        self.calls += 1
        return cross_entropy(self.model(self.tokens).float(), self.tokens)


def copying(optimizer: WeightOptimizer) -> WeightOptimizer:
    """The same optimizer, but that it copies the weights."""
    optimizer._found_on_use.refused = True
    optimizer._weights = optimizer._make_weights()
    return optimizer


def on_use(optimizer: WeightOptimizer) -> bool:
    return bool(optimizer._weights._on_use.parts) and not optimizer._found_on_use.refused


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_optimizer_steps_as_with_a_copy(any_row: Row, dtype: torch.dtype, kind: str) -> None:
    runs = []
    for prepare in (lambda optimizer: optimizer, copying):
        problem = Problem(dtype)
        settings: dict[str, Any] = {
            **any_row.learns,
            "noise": kind,
            "weight_decay": 0.1,
            "directions": 3,
        }
        # Each evaluation is a call.
        settings |= {"memory": 1} if any_row.make is VectorDopamine else {}
        optimizer = prepare(any_row.make(problem.model.parameters(), **settings))
        losses = []
        for _ in range(4):
            torch.manual_seed(len(losses))
            losses.append(optimizer.step(problem.loss))
        extra = optimizer._found_on_use.checked
        assert on_use(optimizer) == extra == (prepare is not copying)
        assert problem.calls == optimizer.forward_passes
        runs.append((copies(problem.model.parameters()), losses, optimizer.forward_passes - extra))
    assert same(runs[0][0], runs[1][0])
    assert not same(runs[0][0], copies(Problem(dtype).model.parameters()))
    assert runs[0][1:] == runs[1][1:]


def test_a_trial_step_is_rounded_as_the_update_will_be() -> None:
    seen: list[list[Tensor]] = []
    model, x = perceptron(3, 8, 1, dtype=torch.bfloat16), randn(16, 3, dtype=torch.bfloat16)

    def closure() -> Any:
        seen.append([p.clone() for p in model.parameters()])
        return squared_error(model(x).float(), torch.zeros(16, 1))

    optimizer = VectorDopamine(model.parameters(), memory=1)
    accepted = []
    for _ in range(5):
        before = copies(model.parameters())
        optimizer.step(closure)
        assert on_use(optimizer)
        accepted.append(not same(before, copies(model.parameters())))
        assert not accepted[-1] or same([p.detach() for p in seen[-1]], copies(model.parameters()))
    assert any(accepted)


def test_mixed_precision(any_row: Row) -> None:
    runs = []
    for prepare in (lambda optimizer: optimizer, copying):
        problem = Problem()
        problem.model.norm.float()
        problem.model.norm.register_forward_pre_hook(lambda _, x: (x[0].float(),))
        problem.model.norm.register_forward_hook(lambda _, __, y: y.bfloat16())
        optimizer = prepare(any_row.make(problem.model.parameters()))
        for step in range(3):
            torch.manual_seed(step)
            optimizer.step(problem.loss)
        assert on_use(optimizer) == (prepare is not copying)
        runs.append(copies(problem.model.parameters()))
    assert same(*runs)


@pytest.mark.parametrize("call", range(1, 6))
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_leaves_the_very_bits(
    any_row: Row, call: int, error: type[BaseException]
) -> None:
    problem, fails = Problem(), True
    old, optimizer = (
        copies(problem.model.parameters()),
        any_row.make(problem.model.parameters(), directions=4),
    )
    depth = torch._C._len_torch_function_stack()

    def closure() -> Outcome:
        loss = problem.loss()
        if fails and problem.calls >= call:
            raise error
        return loss

    with pytest.raises(error):
        optimizer.step(closure)
    assert same(copies(problem.model.parameters()), old)
    assert torch._C._len_torch_function_stack() == depth
    fails = False
    optimizer.step(closure)
    assert on_use(optimizer)
    assert optimizer._progress.step == 1


def test_an_update_that_fails_between_two_blocks_is_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = []
    for fails in (False, True):
        model = perceptron(3, 8, 8, 1, dtype=torch.bfloat16)
        groups = [{"params": [p]} for p in model.parameters()]
        optimizer, done, left = WeightPerturbation(groups, lr=0.1), [], [3 if fails else 1000]
        optimizer.listen(done.append)
        x, call = randn(4, 3, dtype=torch.bfloat16), noise.Combination.__call__

        def short(
            self: Any,
            *arguments: Any,
            call: Any = call,
            left: list[int] = left,
            groups: Any = groups,
            **named: Any,
        ) -> None:
            if self.copies is None:
                left[0] -= 1
                if left[0] == 0:
                    raise MemoryError
            call(self, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(noise.Combination, "__call__", short)
            if fails:
                with pytest.raises(MemoryError):
                    optimizer.step(lambda x=x, model=model: model(x).square().mean())
            else:
                optimizer.step(lambda x=x, model=model: model(x).square().mean())
        assert (optimizer._progress.step, len(done)) == (1, 1)
        ends.append(copies(model.parameters()))
    assert same(*ends)


# ---- what cannot be done -------------------------------------------------------------------------


def reads_memory(model: Any) -> Callable[[Tensor], Tensor]:
    first = model[0].weight.data  # made before, and the bias is read as it should be
    return lambda x: model[2](functional.linear(x, first, model[0].bias).tanh())


def writes(model: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        model[0].weight.clamp_(-0.3, 0.3)
        return model(x)

    return forward


def takes_addresses(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x) + 0.0 * model[0].weight.data_ptr()


def is_compiled(model: Any) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend="eager")


def alternates(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: sum((model(x + i) for i in range(5)), torch.zeros(()))


OUTSIDE = [reads_memory, writes, takes_addresses, alternates, is_compiled]


@pytest.mark.parametrize("outside", OUTSIDE)
def test_what_reads_weights_otherwise_gets_a_copy(
    outside: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runs, x = [], randn(4, 3, dtype=torch.bfloat16)
    for prepare in (lambda optimizer: optimizer, copying):
        model = perceptron(3, 8, 1, dtype=torch.bfloat16)
        forward = outside(model)
        optimizer = prepare(SPSA(model.parameters(), lr=0.1, directions=2))
        with caplog.at_level(logging.WARNING, "dopaminergic.weights.on_use"):
            losses = [
                optimizer.step(lambda f=forward: f(x).float().square().mean()) for _ in range(3)
            ]
        assert optimizer._found_on_use.refused
        runs.append((copies(model.parameters()), losses))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert len([r for r in caplog.records if "16-bit weights are copied" in r.message]) == 1


def test_a_closure_that_turns_to_other_ways_later_gets_a_copy() -> None:
    runs, x = [], randn(4, 3, dtype=torch.bfloat16)
    for prepare in (lambda optimizer: optimizer, copying):
        model: Any = perceptron(3, 8, 1, dtype=torch.bfloat16)
        steps = 0
        first = model[0].weight.data
        optimizer = prepare(SPSA(model.parameters(), lr=0.1))

        def closure() -> Tensor:
            weight = model[0].weight if steps < 2 else first  # noqa: B023
            return model[2](functional.linear(x, weight, model[0].bias).tanh()).square().mean()  # noqa: B023

        for steps in range(4):
            optimizer.step(closure)
            assert on_use(optimizer) == (prepare is not copying and steps < 2)
        runs.append(copies(model.parameters()))
    assert same(*runs)


def uses_a_view(model: Any, x: Tensor) -> Tensor:
    views = [p.t() if p.ndim > 1 else p.view(-1) for p in model.parameters()]
    return ((x @ views[0] + views[1]).tanh() @ views[2] + views[3]).float().square().mean()


def is_inference(model: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x).float().square().mean()


def has_gradients(model: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        loss = model(x).float().square().mean()
        loss.backward()
    return loss.detach()


def is_functional(model: Any, x: Tensor) -> Tensor:
    return (
        torch.func.functional_call(model, dict(model.named_parameters()), (x,))
        .float()
        .square()
        .mean()
    )


def leaves_some_out(model: Any, x: Tensor) -> Tensor:
    return model[0](x).float().square().mean()


def looks(model: Any, x: Tensor) -> Tensor:
    size = sum(
        p.numel() * p.dim() * len(p)
        for p in model.parameters()
        if p.requires_grad and p.shape and p.is_leaf
    )
    return (
        model(x).float().square().mean()
        + size
        + float(model[0].weight[0, 0])
        + copy.deepcopy(model)(x).mean()
    )


@pytest.mark.parametrize(
    "forward", [uses_a_view, is_inference, has_gradients, is_functional, leaves_some_out, looks]
)
def test_what_torch_allows_is_allowed(forward: Any) -> None:
    runs, x = [], randn(4, 3, dtype=torch.bfloat16)
    for prepare in (lambda optimizer: optimizer, copying):
        model = perceptron(3, 8, 1, dtype=torch.bfloat16)
        optimizer = prepare(WeightPerturbation(model.parameters(), lr=0.1, directions=2))
        losses = [optimizer.step(lambda m=model: forward(m, x)) for _ in range(3)]
        assert on_use(optimizer) == (prepare is not copying)
        runs.append((copies(model.parameters()), losses))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_the_ways_torch_takes_are_the_same_for_all_evaluations() -> None:
    """An encoder in eval mode has a fast way that it does not take while it is watched; its losses
    differ.
    """
    model, losses = (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.bfloat16).eval(),
        [],
    )
    x = randn(2, 5, 8, dtype=torch.bfloat16)

    def closure() -> Tensor:
        losses.append(model(x).float().square().mean())
        return losses[-1]

    # So small that, with a weight's neighbours this far away, hardly any is rounded to another
    # number.
    optimizer = WeightPerturbation(model.parameters(), sigma=1e-30)
    optimizer.probe(closure)
    assert on_use(optimizer)
    assert losses[1] == losses[0]


def test_going_on_from_a_state_is_going_on() -> None:
    ends = []
    for stops in (False, True):
        problem = Problem()
        optimizer = SPSA(problem.model.parameters(), lr=0.01)
        for step in range(4):
            torch.manual_seed(step)
            optimizer.step(problem.loss)
            if stops:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = SPSA(problem.model.parameters(), lr=0.01)
                optimizer.load_state_dict(state)
        ends.append((copies(problem.model.parameters()), optimizer.forward_passes))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


class Allocations(TorchDispatchMode):
    """Bytes of all tensors that are alive at once, at most, beyond those that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[Any, int]] = {}
        self.known: set[int] = set()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        made = func(*args, **kwargs or {})
        for t in made if isinstance(made, tuple | list) else [made]:
            if isinstance(t, Tensor) and t.device.type == "cpu":
                storage = t.untyped_storage()
                if storage.data_ptr() not in known:
                    key = storage._cdata
                    self.alive[key] = (weakref.ref(t), storage.nbytes())
        self.alive = {key: value for key, value in self.alive.items() if value[0]() is not None}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return made


def test_no_more_than_the_largest_layer_is_made() -> None:
    model = perceptron(*[128] * 12, dtype=torch.bfloat16)
    x, largest = torch.zeros(1, 128, dtype=torch.bfloat16), 2 * 128 * 129
    with Allocations() as everything:
        WeightPerturbation(model.parameters(), directions=2).step(lambda: model(x).square().mean())
    assert largest <= everything.most < 1.2 * largest
    with Allocations() as everything:
        copying(WeightPerturbation(model.parameters(), directions=2)).step(
            lambda: model(x).square().mean()
        )
    assert everything.most > 11 * largest


@pytest.mark.parametrize("small", [0, 1 << 14])
def test_weights_are_planned_for_once(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later steps find the memory and the kernels of the first ones again."""
    pytest.importorskip("numba")
    monkeypatch.setattr(handing, "SMALL", small)
    problem, plans, made = Problem(), 0, []

    def counted(*args: Any) -> noise.Combination:
        nonlocal plans
        plans += 1
        return noise.Combination(*args)

    optimizer = SPSA(problem.model.parameters(), lr=0.01)
    monkeypatch.setattr(handing, "Combination", counted)
    for _ in range(6):
        optimizer.step(problem.loss)
        made.append(plans)
    assert made[0] > 0
    assert made[-1] == made[2]


def test_plans_do_not_pile_up_where_closures_keep_what_they_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handing, "MOST_PLANS", 2)
    kept, runs = [], []
    for prepare in (lambda optimizer: optimizer, copying):
        torch.manual_seed(0)
        problem = Problem()
        optimizer = prepare(WeightPerturbation(problem.model.parameters(), lr=0.01))

        def closure(problem: Problem = problem) -> Outcome:
            kept.append(problem.model.linear.weight.t())
            return problem.loss()

        for _ in range(40):
            optimizer.step(closure)
        runs.append(copies(problem.model.parameters()))
        assert on_use(optimizer) == (prepare is not copying)
        assert len(optimizer._weights._on_use._stock.plans) <= handing.MOST_PLANS * len(runs[0])
    assert len({view.data_ptr() for view in kept}) > 20
    assert same(*runs)
