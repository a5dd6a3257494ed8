"""A fleet of replicas is the single runs, one beside the other."""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import Dopamine, Dopamine2, ForwardOptimizer, WeightPerturbation, squared_error
from optimizers import RULES, Row, copies, randn, same

SEEDS = [5, 9, 1 << 40]
X, Y = randn(8, 3, seed=50), randn(8, seed=51)


class Perceptrons:
    """R copies of a 3-4-1 network with stacked weights; R = None: one network, without that
    dimension.

    Written in sums and products of one element at a time, whose bits do not depend on where in
    memory they are.
    """

    def __init__(self, replicas: list[int] | None) -> None:
        def stacked(*shape: int) -> nn.Parameter:
            starts = [
                randn(*shape, seed=7 * (seed % 1000) + len(shape)) for seed in replicas or [0]
            ]
            return nn.Parameter(torch.stack(starts) if replicas is not None else starts[0])

        self.W, self.b, self.v = stacked(4, 3), stacked(4), stacked(4)
        self.parameters = [self.W, self.b, self.v]

    def start_as(self, seed: int) -> Perceptrons:
        for p, other in zip(self.parameters, Perceptrons([seed]).parameters, strict=True):
            p.data.copy_(other.detach()[0])
        return self

    def predictions(self) -> Tensor:
        """`(R, n)`, or `(n,)` for one network."""
        out = torch.zeros(())
        for h in range(4):
            u = self.b[..., h, None]
            for i in range(3):
                u = u + self.W[..., h, i, None] * X[:, i]
            out = out + self.v[..., h, None] * (u / (1 + u * u))
        return out

    def losses(self) -> Tensor:
        """`(R,)`, or 0-d for one network."""
        errors = self.predictions() - Y
        total = torch.zeros(())
        for n in range(len(Y)):
            total = total + errors[..., n] * errors[..., n]
        return total / len(Y)


CASES: list[dict[str, Any]] = [
    {},
    {"directions": 3},
    {"noise": "gaussian"},
    {"weight_decay": 0.3},
    {"lr": 0.05, "sigma": 0.01, "weight_decay": 0.1, "directions": 2},
]


@pytest.mark.filterwarnings("ignore:.*each step learns from N = 1 loss")
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_three_replicas_are_three_runs_bit_for_bit(any_row: Row, settings: dict[str, Any]) -> None:
    fleet = Perceptrons(SEEDS)
    optimizer = any_row.make(fleet.parameters, seed=SEEDS, **settings)
    losses = [optimizer.step(fleet.losses) for _ in range(25)]
    for i, seed in enumerate(SEEDS):
        alone = Perceptrons(None).start_as(seed)
        single = any_row.make(alone.parameters, seed=seed, **settings)
        for loss in losses:
            assert single.step(alone.losses) == float(loss[i])
        assert same([p[i] for p in copies(fleet.parameters)], copies(alone.parameters))
        assert float(optimizer.last_rpe[i]) == single.last_rpe
        assert (
            float(torch.as_tensor(optimizer.last_learning_rate, dtype=torch.float64).expand(3)[i])
            == single.last_learning_rate
        )
        assert optimizer.forward_passes == single.forward_passes


def test_sums_are_those_of_any_python(any_row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 3.12 on `sum` corrects the rounding of floats, but not that of a fleet's arrays."""
    plain = builtins.sum

    def corrected(values: Iterable[Any], start: Any = 0) -> Any:
        values = list(values)
        are_floats = bool(values) and all(isinstance(x, float) for x in values)
        return math.fsum([start, *values]) if are_floats else plain(values, start)

    def trained() -> list[Any]:
        net = Perceptrons(None)
        optimizer = any_row.make([{"params": [p]} for p in net.parameters], seed=5, directions=5)
        losses = [optimizer.step(net.losses) for _ in range(10)]
        return [
            losses,
            optimizer.last_rpe,
            optimizer.last_learning_rate,
            *(p.tolist() for p in net.parameters),
        ]

    here = trained()
    monkeypatch.setattr(builtins, "sum", corrected)
    assert trained() == here


def test_a_fleet_of_one_is_the_single_run(any_row: Row) -> None:
    fleet, alone = Perceptrons([9]), Perceptrons(None).start_as(9)
    a, b = (
        any_row.make(fleet.parameters, seed=[9], weight_decay=0.1),
        any_row.make(alone.parameters, seed=9, weight_decay=0.1),
    )
    for _ in range(25):
        losses = a.step(fleet.losses)
        assert losses.shape == (1,)
        assert float(losses) == b.step(alone.losses)
    assert same([p[0] for p in copies(fleet.parameters)], copies(alone.parameters))


@pytest.mark.filterwarnings("ignore:Dopamine.*below a hundredth of its default:RuntimeWarning")
def test_each_replica_may_have_its_own_learning_rate(any_row: Row) -> None:
    rates = [0.01, 0.0, 0.3]
    fleet = Perceptrons(SEEDS)
    optimizer = any_row.make(
        fleet.parameters, seed=SEEDS, lr=torch.tensor(rates, dtype=torch.float64)
    )
    for _ in range(5):
        optimizer.step(fleet.losses)
    for i, (seed, rate) in enumerate(zip(SEEDS, rates, strict=True)):
        alone = Perceptrons(None).start_as(seed)
        single = any_row.make(alone.parameters, seed=seed, lr=rate)
        for _ in range(5):
            single.step(alone.losses)
        assert same([p[i] for p in copies(fleet.parameters)], copies(alone.parameters)), rate


def test_replicas_with_one_seed_and_one_start_stay_together(any_row: Row) -> None:
    fleet = Perceptrons([4, 4])
    optimizer = any_row.make(fleet.parameters, seed=[4, 4])
    for _ in range(5):
        optimizer.step(fleet.losses)
    assert all(torch.equal(p[0], p[1]) for p in copies(fleet.parameters))


def test_an_outcome_of_a_fleet_is_averaged_over_all_but_the_replicas() -> None:
    fleet = Perceptrons(SEEDS)
    optimizer = Dopamine(fleet.parameters, seed=SEEDS)
    target = Y.expand(3, -1)
    expected = ((fleet.predictions() - Y) ** 2).mean(1).detach()
    torch.testing.assert_close(
        optimizer.step(lambda: squared_error(fleet.predictions(), target)), expected
    )


def test_large_fleets_in_place_are_their_runs() -> None:
    """Above 1 MiB there is no copy; a replica alone is below, and takes the other way back: equal
    but for rounding.

    Only with a sigma of few bits, for it is rounded to six of them where weights are perturbed in
    place.
    """
    starts = randn(3, 60_000, seed=1, dtype=torch.float64)
    w = nn.Parameter(starts.clone())
    optimizer = WeightPerturbation(
        [w], seed=SEEDS, lr=1e-3, sigma=2.0**-10, directions=2, weight_decay=0.1
    )
    for _ in range(2):
        optimizer.step(lambda: (w**2).sum(1))
    for i, seed in enumerate(SEEDS):
        v = nn.Parameter(starts[i].clone())
        single = WeightPerturbation(
            [v], seed=seed, lr=1e-3, sigma=2.0**-10, directions=2, weight_decay=0.1
        )
        for _ in range(2):
            single.step(lambda v=v: (v**2).sum())
        torch.testing.assert_close(w.detach()[i], v.detach(), rtol=1e-7, atol=1e-8)


# ---- one replica fails ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_replica_whose_loss_is_not_finite_is_frozen_alone(row: Row, bad: float) -> None:
    """It keeps weights and rule state for that step; the others go on as if alone."""
    if row.name == "EvolutionStrategy" and bad == math.inf:
        pytest.skip("a loss of inf ranks last there")
    passes = row.passes(2)
    fleet, calls = Perceptrons(SEEDS), 0
    optimizer = row.make(fleet.parameters, seed=SEEDS, directions=2, weight_decay=0.1)

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        losses = fleet.losses().clone()
        if 2 * passes < calls <= 3 * passes and calls % passes == 1:  # the third step
            losses[1] = bad
        return losses

    for step in range(5):
        old = copies(fleet.parameters)
        if step == 2:
            with pytest.warns(RuntimeWarning, match="not finite") as caught:
                optimizer.step(closure)
            assert len(caught) == 1
            assert all(
                torch.equal(p.detach()[1], w[1]) for p, w in zip(fleet.parameters, old, strict=True)
            )
        else:
            optimizer.step(closure)
            assert not any(
                torch.equal(p.detach()[1], w[1]) for p, w in zip(fleet.parameters, old, strict=True)
            )
    assert optimizer.skipped_steps.tolist() == [0, 1, 0]
    for i, seed in enumerate(SEEDS):
        alone = Perceptrons(None).start_as(seed)
        single = row.make(alone.parameters, seed=seed, directions=2, weight_decay=0.1)
        for step in range(5):
            if (step, i) == (2, 1):
                with pytest.warns(RuntimeWarning, match="not finite"):
                    single.step(lambda: math.nan)
            else:
                single.step(alone.losses)
        assert same([p[i] for p in copies(fleet.parameters)], copies(alone.parameters)), i


def test_a_diverged_replica_harms_nobody_for_good(any_row: Row) -> None:
    """NaN weights in one replica, at every step."""
    fleet = Perceptrons(SEEDS)
    fleet.W.data[1] = math.nan
    optimizer = any_row.make(fleet.parameters, seed=SEEDS)
    with pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.step(fleet.losses)
    for _ in range(4):
        optimizer.step(fleet.losses)
    assert optimizer.skipped_steps.tolist() == [0, 5, 0]
    alone = Perceptrons(None).start_as(SEEDS[2])
    single = any_row.make(alone.parameters, seed=SEEDS[2])
    for _ in range(5):
        single.step(alone.losses)
    assert same([p[2] for p in copies(fleet.parameters)], copies(alone.parameters))


# ---- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", RULES, ids=lambda make: make.__name__)
def test_a_fleet_resumes_bit_for_bit(make: Any, tmp_path: Any) -> None:
    fleet = Perceptrons(SEEDS)
    optimizer: ForwardOptimizer = make(fleet.parameters, seed=SEEDS)
    for _ in range(3):
        optimizer.step(fleet.losses)
    torch.save([copies(fleet.parameters), optimizer.state_dict()], tmp_path / "fleet.pt")
    weights, state = torch.load(tmp_path / "fleet.pt", weights_only=True)
    other = Perceptrons([1, 2, 3])
    for p, w in zip(other.parameters, weights, strict=True):
        p.data.copy_(w)
    resumed = make(other.parameters, seed=[1, 2, 3])
    resumed.load_state_dict(state)
    for _ in range(3):
        optimizer.step(fleet.losses)
        resumed.step(other.losses)
    assert same(copies(other.parameters), copies(fleet.parameters))
    assert str(resumed.state_dict()) == str(optimizer.state_dict())


@pytest.mark.parametrize("make", [Dopamine, Dopamine2])
def test_loss_x_128_changes_no_replica(make: Any) -> None:
    ends = []
    for scale in (1.0, 128.0):
        fleet = Perceptrons(SEEDS)
        optimizer = make(fleet.parameters, seed=SEEDS)
        for _ in range(10):
            optimizer.step(lambda fleet=fleet, scale=scale: scale * fleet.losses())
        ends.append(copies(fleet.parameters))
    assert same(*ends)
