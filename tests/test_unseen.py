"""Steps that see nothing, closures that lie or leak, casts and buffers: each is mended, or said
once.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dopaminergic import (
    SPSA,
    Dopamine,
    Dopamine2,
    EvolutionStrategy,
    Outcome,
    VectorDopamine,
    squared_error,
)
from optimizers import ROWS, VECTOR, Regression, Row, perceptron, randn, same, through_a_file

ALL_ROWS = [*ROWS, VECTOR]


def data(count: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.sin(x.sum(1, keepdim=True))


def network(seed: int = 0) -> nn.Sequential:
    return perceptron(4, 16, 1, seed=seed, dtype=torch.float32)


# ---- silence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.name)
def test_ten_steps_without_an_answer_are_told_once(row: Row) -> None:
    model, (x, y) = network(), data()
    optimizer = row.make(model.parameters())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(30):
            prediction = model(x).detach()
            optimizer.step(lambda p=prediction: squared_error(p, y))
    told = [str(w.message) for w in said if "no loss answered" in str(w.message)]
    assert len(told) == 1
    assert row.name in told[0]
    assert len(told[0]) <= 300
    assert said[0].filename == __file__


@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.name)
def test_layers_that_were_replaced_are_told(row: Row) -> None:
    model, (x, y) = network(), data()
    optimizer = row.make(model.parameters())
    fresh = network(seed=1)

    def train() -> None:
        for _ in range(10):
            optimizer.step(lambda: squared_error(fresh(x), y))

    with pytest.warns(RuntimeWarning, match="do these parameters not belong to the model any more"):
        train()


def steps(w: Tensor) -> float:
    """A loss of thresholds: a change below a tenth of a weight is often not seen."""
    return float(torch.round(10.0 * w.detach()).square().sum())


@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
def test_sigma_grows_until_a_loss_of_thresholds_answers(rule: Any) -> None:
    w = nn.Parameter(torch.full((6,), 2.03))
    optimizer = rule([w])
    first = steps(w)
    for _ in range(400):
        optimizer.step(lambda: steps(w))
    assert optimizer.param_groups[0]["sigma"] > 10 * rule.default_sigmas[0]
    assert steps(w) < 0.05 * first


def test_a_sigma_that_the_user_gave_is_never_changed() -> None:
    w = nn.Parameter(torch.full((6,), 2.03))
    optimizer = Dopamine([w], sigma=1e-4)

    def train() -> None:
        for _ in range(20):
            optimizer.step(lambda: steps(w))

    with pytest.warns(RuntimeWarning, match="no loss answered"):
        train()
    assert optimizer.param_groups[0]["sigma"] == 1e-4


def test_the_search_for_sigma_goes_on_bit_for_bit_after_loading() -> None:
    def run(stops: set[int]) -> Tensor:
        w = nn.Parameter(torch.full((6,), 2.03))
        optimizer = Dopamine([w])
        for t in range(40):
            if t in stops:
                state = optimizer.state_dict()
                optimizer = Dopamine([w])
                optimizer.load_state_dict(state)
            optimizer.step(lambda: steps(w))
        return w.detach().clone()

    assert torch.equal(run(set()), run({1, 2, 3, 4, 5, 6, 7, 8, 9, 20}))


def test_a_loss_below_the_floor_names_dopamine2() -> None:
    w = nn.Parameter(torch.zeros(4))
    optimizer = Dopamine([w])
    with pytest.warns(RuntimeWarning, match="below loss_floor=0.*Dopamine2"):
        optimizer.step(lambda: w.square().sum() - 10.0)


# ---- rates and numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lr", "sigma", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.name)
def test_a_schedule_that_makes_a_setting_impossible_is_refused_before_a_pass(
    row: Row, value: float, name: str
) -> None:
    w = nn.Parameter(torch.ones(8))
    optimizer = row.make([w])
    optimizer.step(lambda: squared_error(w, torch.zeros(8)))
    before, passes = w.detach().clone(), optimizer.forward_passes
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"{row.name}: {name}"):
        optimizer.step(lambda: squared_error(w, torch.zeros(8)))
    assert torch.equal(w, before)
    assert optimizer.forward_passes == passes


@pytest.mark.parametrize(
    ("dtype", "spike"), [(torch.float16, 1e9), (torch.bfloat16, 1e44), (torch.float32, 1e44)]
)
@pytest.mark.parametrize("size", [50, 600_000])
@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.name)
def test_an_update_that_the_dtype_of_the_weights_cannot_hold_is_skipped(
    row: Row, size: int, dtype: torch.dtype, spike: float
) -> None:
    w = nn.Parameter(torch.linspace(-1.0, 1.0, size).to(dtype))
    optimizer = row.make([w], **({} if row in (VECTOR, ROWS[3], ROWS[4]) else {"lr": 1e-3}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for step in range(6):
            scale = spike if step == 3 else 1.0
            optimizer.step(lambda s=scale: s * w[:50].double().square().mean())
    assert bool(w.isfinite().all())


def test_weights_that_grow_to_the_end_of_float16_stay_finite() -> None:
    w = nn.Parameter(torch.full((8,), 65_000.0, dtype=torch.float16))
    optimizer = EvolutionStrategy([w], lr=40.0, sigma=2.0, noise="rademacher")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(400):
            optimizer.step(lambda: -w.double().sum())
    assert bool(w.isfinite().all())
    assert optimizer.skipped_steps > 0


# ---- mixed precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Dopamine, Dopamine2, SPSA, VectorDopamine])
def test_autocast_around_a_step_does_what_autocast_without_its_cache_does(rule: Any) -> None:
    ends = []
    for cached in (False, True):
        model, (x, y) = network(), data()
        optimizer = rule(model.parameters())

        def closure(model: nn.Module = model, x: Tensor = x, y: Tensor = y) -> Any:
            return squared_error(model(x).float(), y)

        for _ in range(12):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
                optimizer.step(closure)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_no_cast_of_perturbed_weights_is_left_behind() -> None:
    model, (x, y) = network(), data()
    optimizer = Dopamine(model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            optimizer.step(lambda: squared_error(model(x).float(), y))
            with torch.no_grad():
                after = model(x)
            torch.clear_autocast_cache()
            assert torch.equal(after, model(x))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("rule", [Dopamine, Dopamine2, VectorDopamine])
def test_sigma_follows_the_precision_of_the_closure(rule: Any, inside: bool) -> None:
    model, (x, y) = network(), data()
    optimizer = rule(model.parameters())
    small = optimizer.param_groups[0]["sigma"]

    def closure() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            return squared_error(model(x).float(), y)

    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
            if inside:
                with torch.autocast("cpu", enabled=False):
                    optimizer.step(closure)
            else:
                optimizer.step(lambda: squared_error(model(x).float(), y))
    assert optimizer.param_groups[0]["sigma"] > 5 * small
    assert torch.autocast.__enter__.__name__ == "__enter__"


@pytest.mark.parametrize("rule", [Dopamine, Dopamine2, VectorDopamine])
def test_sigma_follows_a_model_that_is_cast_after_the_optimizer_was_made(rule: Any) -> None:
    model, (x, y) = network(), data()
    optimizer = rule(model.parameters())
    model.bfloat16()
    fresh = rule(model.parameters())
    optimizer.step(lambda: squared_error(model(x.bfloat16()).float(), y))
    assert optimizer.param_groups[0]["sigma"] == fresh.param_groups[0]["sigma"]


# ---- buffers -------------------------------------------------------------------------------------


class Counts(nn.Module):
    """Buffers as observers and codebooks have them: written in place, bound anew, and grown."""

    mean: Tensor
    bound: Tensor
    large: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("bound", torch.zeros(1))
        self.register_buffer("large", torch.zeros(100_000))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.calls += 1
        self.mean.add_(1.0)
        self.bound = self.bound + y.detach().mean()
        self.large.add_(1.0)
        return y


@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.name)
def test_buffers_follow_one_evaluation_of_a_step(row: Row) -> None:
    model, (x, y) = Counts(), data()
    settings = {} if row is VECTOR else {"directions": 3}
    optimizer = row.make(model.parameters(), **settings)
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        optimizer.step(lambda: squared_error(model(x), y))
    # The weights that a trial step leads to are evaluated as well.
    accepted = 3 if row is VECTOR else 0
    assert 3 <= float(model.mean) <= 3 + accepted
    assert model.calls > 3
    assert type(model.bound) is Tensor
    assert any(not torch.equal(p, s) for p, s in zip(model.parameters(), start, strict=True))


def test_buffers_of_an_interrupted_step_are_those_before_it() -> None:
    model, (x, y) = Counts(), data()
    optimizer = Dopamine(model.parameters())
    optimizer.step(lambda: squared_error(model(x), y))
    before = [b.clone() for b in model.buffers()]
    calls = []

    def closure() -> Any:
        calls.append(0)
        found = squared_error(model(x), y)
        if len(calls) == 2:
            raise ConnectionError
        return found

    with pytest.raises(ConnectionError):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_batch_normalisation_evaluates_as_it_was_trained() -> None:
    x = torch.randn(512, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    y = torch.sin(x.sum(1, keepdim=True) / 3)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = Dopamine2(model.parameters())
    loss = 0.0
    for _ in range(600):
        loss = optimizer.step(lambda: squared_error(model(x), y))
    model.eval()
    with torch.no_grad():
        assert float((model(x) - y).square().mean()) < 1.05 * loss


# ---- closures that write, lie or leak ------------------------------------------------------------


@pytest.mark.parametrize("writer", ["max_norm", "clamp of data", "quantiser"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_closure_may_write_to_large_weights_in_its_forward_pass(row: Row, writer: str) -> None:
    rows = torch.arange(256)
    table = nn.Embedding(20_000, 32, max_norm=1.0 if writer == "max_norm" else None)
    goal = torch.ones(256, 32)

    def forward() -> Tensor:
        if writer == "clamp of data":
            table.weight.data.clamp_(-1.0, 1.0)
        elif writer == "quantiser":
            with torch.no_grad():
                table.weight.copy_(table.weight.mul(64).round().div(64))
        return table(rows)

    forward()
    before = table.weight.detach().clone()
    optimizer = row.make(table.parameters(), lr=0.0)
    for _ in range(5):
        optimizer.step(lambda: (forward() - goal).square().mean())
    assert float((table.weight.detach() - before).abs().max()) <= 2.5e-7


def test_scripted_code_behind_a_head_of_zeros_is_found_out() -> None:
    @torch.jit.script
    def fused(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(torch.nn.functional.linear(h, w, b))

    x, y = data(32)
    for seed in range(4):
        torch.manual_seed(seed)
        a, head = nn.Linear(4, 16), nn.Linear(16, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = VectorDopamine([*a.parameters(), *head.parameters()], directions=64)
        loss = 1.0
        for _ in range(60):
            loss = optimizer.step(
                lambda a=a, head=head: squared_error(head(fused(x, a.weight, a.bias)), y)
            )
        assert loss < 1e-6


def test_weights_that_nothing_reads_do_not_turn_batches_off() -> None:
    model, unused = network(), nn.Linear(4, 4)
    x, y = data()
    optimizer = VectorDopamine([*model.parameters(), *unused.parameters()])
    for _ in range(3):
        optimizer.step(lambda: squared_error(model(x), y))
    assert optimizer.state_dict()["forward"]["batched"] == {"checked": True, "refused": False}
    assert all(bool(p.isfinite().all()) for p in unused.parameters())


def test_a_hidden_state_that_is_carried_stays_a_tensor_of_its_own() -> None:
    torch.manual_seed(0)
    series, rnn, head = torch.randn(20, 5, 3), nn.GRU(3, 8), nn.Linear(8, 3)
    weights = [*rnn.parameters(), *head.parameters()]
    for optimizer in (
        VectorDopamine(weights),
        Dopamine(weights, directions=8, batched=True),
        Dopamine(weights),
    ):
        carried = {"h": torch.zeros(1, 5, 8)}

        def closure(carried: dict[str, Tensor] = carried) -> Any:
            out, carried["h"] = rnn(series[:-1], carried["h"])
            return squared_error(head(out), series[1:])

        for _ in range(3):
            optimizer.step(closure)
        assert float(carried["h"].abs().sum()) > 0.0


def test_losses_that_are_logged_can_be_read_afterwards() -> None:
    model, (x, y) = network(), data()
    optimizer, logged = VectorDopamine(model.parameters()), list[Tensor]()

    def closure() -> Any:
        found = squared_error(model(x), y)
        logged.append(found.mean())
        return found

    for _ in range(4):
        optimizer.step(closure)
    assert all(np.isfinite(float(loss)) for loss in logged)


def test_an_exception_of_the_closure_in_a_batch_reaches_the_caller_and_batches_stay() -> None:
    model, (x, y) = network(), data()
    optimizer = VectorDopamine(model.parameters())
    for _ in range(3):
        optimizer.step(lambda: squared_error(model(x), y))
    before = [p.detach().clone() for p in model.parameters()]
    for error in (TimeoutError, ConnectionError, MemoryError, RuntimeError, ValueError, KeyError):
        calls = []

        def closure(calls: list[int] = calls, error: type[Exception] = error) -> Any:
            calls.append(0)
            if len(calls) == 2:
                raise error("once")
            return squared_error(model(x), y)

        with pytest.raises(error, match="once"):
            optimizer.step(closure)
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert optimizer.state_dict()["forward"]["batched"] == {"checked": True, "refused": False}


def test_a_closure_that_draws_its_batch_inside_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    model, (x, y) = network(), data()
    random = np.random.default_rng(0)

    def closure() -> Any:
        chosen = torch.from_numpy(random.choice(64, 16, replace=False))
        return squared_error(model(x[chosen]), y[chosen])

    optimizer = VectorDopamine(model.parameters())
    optimizer.step(closure)
    assert "another outcome each time" in caplog.text


def test_an_outcome_that_is_a_weight_itself_has_regrets() -> None:
    w = nn.Parameter(torch.linspace(-1.0, 1.0, 10))
    optimizer = VectorDopamine([w])

    def closure() -> Any:
        w.tolist()  # so that batches are refused
        return squared_error(w, torch.zeros(10))

    for _ in range(15):
        optimizer.step(closure)
    assert float(w.detach().abs().max()) < 1e-3


@pytest.mark.parametrize("keeps", [False, True])
def test_an_operation_that_returns_what_it_was_handed_is_no_leak_unless_somebody_keeps_it(
    keeps: bool, caplog: pytest.LogCaptureFixture
) -> None:
    weights = nn.Parameter(randn(12))
    optimizer = VectorDopamine([weights], directions=6)
    kept: list[Tensor] = []

    def closure() -> Outcome:
        same_tensor = weights.double()
        if keeps:
            kept[:] = [same_tensor]
        return squared_error(same_tensor, torch.zeros_like(weights))

    for _ in range(3):
        optimizer.step(closure)

    assert ("keeps 1 tensors" in caplog.text) is keeps


def test_a_run_in_autocast_is_resumed_with_the_sigma_it_had(any_row: Row) -> None:
    """The casts of a closure are known after its first evaluation, also after a restart."""

    def loss_of(problem: Regression) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return problem.loss()

    def run(problem: Regression, optimizer: Any, steps: int) -> None:
        for _ in range(steps):
            optimizer.step(lambda: loss_of(problem))

    whole, stopped = Regression(dtype=torch.float32), Regression(dtype=torch.float32)
    optimizer, first = (any_row.make(one.model.parameters()) for one in (whole, stopped))
    run(whole, optimizer, 6)
    run(stopped, first, 3)
    second = any_row.make(stopped.model.parameters())
    second.load_state_dict(through_a_file(first.state_dict()))
    run(stopped, second, 3)
    assert second.param_groups[0]["sigma"] == optimizer.param_groups[0]["sigma"]
    assert same(whole.weights(), stopped.weights())
