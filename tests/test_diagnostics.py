"""check_estimator: sound optimizers are found sound, and those with the faults of other libraries
are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import (
    SPSA,
    Dopamine,
    Dopamine2,
    EvolutionStrategy,
    Journal,
    WeightPerturbation,
    replay,
    squared_error,
)
from dopaminergic.diagnostics import EstimatorReport, check_estimator
from dopaminergic.noise import Combination
from dopaminergic.weights import Weights
from optimizers import Regression, Row, copies, perceptron, randn, same


def linear(
    d: int = 60, shapes: list[tuple[int, ...]] | None = None
) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    """A loss of which theory is exact; it is far above 0, so that there is much to gain."""
    parameters = [nn.Parameter(randn(*shape, seed=i)) for i, shape in enumerate(shapes or [(d,)])]
    gradients = [randn(*p.shape, seed=100 + i) for i, p in enumerate(parameters)]
    return (
        parameters,
        lambda: (
            torch.stack([(p * g).sum() for p, g in zip(parameters, gradients, strict=True)]).sum()
            + 100
        ),
    )


# ---- sound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"noise": "gaussian"}, {"noise": "rademacher", "directions": 3}], ids=str
)
def test_every_optimizer_is_sound(row: Row, settings: dict[str, Any]) -> None:
    problem = Regression()
    report: Any = check_estimator(
        row.make(problem.model.parameters(), **settings), problem.loss, probes=100
    )
    assert report.sound, str(report)
    assert report.rule == row.name
    assert (report.expected_learning_rate is not None) is row.estimates


def test_every_optimizer_is_sound_in_float32(row: Row) -> None:
    problem = Regression(dtype=torch.float32)
    report = check_estimator(row.make(problem.model.parameters()), problem.loss, probes=100)
    assert report.sound, str(report)


def test_16_bit_weights_are_sound_and_noisier(row: Row) -> None:
    """Stochastic rounding adds variance, which is no fault."""
    w, target = nn.Parameter(randn(30).bfloat16()), randn(30, seed=1)
    settings = {"lr": 0.02} if row.estimates else {}
    optimizer = row.make([w], sigma=0.1, directions=2, noise="rademacher", **settings)
    report: Any = check_estimator(optimizer, lambda: ((w.double() - target) ** 2).sum(), probes=100)
    assert report.sound, str(report)
    assert report.variance_excess is None


def test_a_trained_optimizer_is_sound(row: Row) -> None:
    problem = Regression()
    optimizer = row.make(problem.model.parameters(), **row.learns)
    for _ in range(30):
        optimizer.step(problem.loss)
    report = check_estimator(optimizer, problem.loss, probes=100)
    assert report.sound, str(report)


def test_groups_frozen_and_tied_weights_are_sound(row: Row) -> None:
    tied = nn.Linear(4, 4, dtype=torch.float64)
    model = nn.Sequential(tied, nn.Tanh(), perceptron(4, 4), tied, perceptron(4, 1, seed=1))
    first, second, *rest = model.parameters()
    rest[0].requires_grad_(False)
    x, y = randn(16, 4), randn(16, 1, seed=1)
    groups = [
        {"params": [first], "lr": 0.3},
        {"params": [second, *rest], "sigma": 0.003, "weight_decay": 0.1},
    ]
    optimizer = row.make(groups, lr=0.1, sigma=0.001)
    report = check_estimator(optimizer, lambda: squared_error(model(x), y), probes=200)
    assert report.sound, str(report)
    assert report.weights == sum(p.numel() for p in model.parameters()) - rest[0].numel()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]


def test_dropout_is_sound() -> None:
    model = nn.Sequential(perceptron(3, 8), nn.Dropout(0.5), perceptron(8, 1, seed=1))
    x, y = randn(16, 3), randn(16, 1, seed=1)
    report = check_estimator(
        WeightPerturbation(model.parameters()), lambda: (model(x) - y) ** 2 @ torch.ones(1).double()
    )
    assert report.sound, str(report)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("directions", [1, 5])
def test_a_linear_loss_meets_theory_exactly(noise: str, directions: int) -> None:
    """Variance (d -+ 1) / K |g|^2, so the cosine of the mean of M updates is 1 / sqrt(1 + (d -+ 1)
    / (K M)).
    """
    parameters, loss = linear(60)
    report = check_estimator(
        SPSA(parameters, lr=0.1, directions=directions, noise=noise), loss, probes=200
    )
    assert report.sound
    assert report.learning_rate == pytest.approx(0.1, rel=1e-4)
    assert report.variance == pytest.approx(1.0, rel=1e-4)
    d = 59 if noise == "rademacher" else 61
    assert report.predicted_cosine == pytest.approx(1 / math.sqrt(1 + d / (200 * directions)))
    # (1 / cosine^2 - 1) is chi-square of 59 over its mean, within five standard deviations.
    measured, predicted = (
        1 / c**2 - 1 for c in (report.cosine, 1 / math.sqrt(1 + 59 / (200 * directions)))
    )
    assert abs(measured / predicted - 1) < 5 * math.sqrt(2 / 59)


def test_one_weight_is_enough() -> None:
    w = nn.Parameter(randn(1))
    for make in (WeightPerturbation, SPSA, Dopamine):
        assert check_estimator(make([w]), lambda: (w**2).sum()).sound


def test_false_alarms_are_rare() -> None:
    """Thirty runs, three figures each, all within five standard errors."""
    problem = Regression()
    for seed in range(10):
        for make in (EvolutionStrategy, Dopamine, Dopamine2):
            report = check_estimator(
                make(problem.model.parameters(), seed=seed), problem.loss, probes=100
            )
            assert report.sound, f"seed {seed}: {report}"


# ---- broken, as other libraries were -------------------------------------------------------------


class WrongSign(WeightPerturbation):
    def rule(self, state: Any, losses: Any, groups: Any) -> Any:
        decision = super().rule(state, losses, groups)
        return decision._replace(signals=[-s for s in decision.signals])


class WrongScale(SPSA):
    """Forgets the 2 of 2 sigma."""

    def rule(self, state: Any, losses: Any, groups: Any) -> Any:
        decision = super().rule(state, losses, groups)
        return decision._replace(signals=[2 * s for s in decision.signals])


class OneGroupUphill(WeightPerturbation):
    def rule(self, state: Any, losses: Any, groups: Any) -> Any:
        decision = super().rule(state, losses, groups)
        first, *rest = decision.step_sizes
        return decision._replace(step_sizes=[-first, *rest])


class SwappedSignals(WeightPerturbation):
    """Every direction gets the signal of the next."""

    def rule(self, state: Any, losses: Any, groups: Any) -> Any:
        decision = super().rule(state, losses, groups)
        return decision._replace(signals=[*decision.signals[1:], decision.signals[0]])


def breaking(make: Any, fault: Callable[[Weights], None]) -> Any:
    """The optimizer with a fault in how it draws its noise."""

    class Broken(make):
        def _make_weights(self) -> Weights:
            weights = super()._make_weights()
            # Small models go through `move` and `update` then, where the faults are.
            weights._find_short = lambda: None
            fault(weights)
            return weights

    return Broken


def same_noise_at_every_step(weights: Any) -> None:
    begin = weights.begin
    again = weights.begin_again
    weights.begin = lambda step, *rest: begin(0 * step, *rest)
    weights.begin_again = lambda step: again(0 * step)


def same_noise_in_every_direction(weights: Any) -> None:
    move, update = weights.move, weights.update
    weights.move = lambda terms, *rest: move([(0 * k, multiples) for k, multiples in terms], *rest)
    weights.update = lambda terms, *rest: update(
        [(0 * k, multiples) for k, multiples in terms], *rest
    )


def other_noise_in_the_update(weights: Any) -> None:
    update = weights.update
    weights.update = lambda terms, *rest: update(
        [(k + 100, multiples) for k, multiples in terms], *rest
    )


def checked(optimizer: Any, loss: Any, probes: int = 200) -> EstimatorReport:
    report = check_estimator(optimizer, loss, probes=probes)
    assert report.sound == (not report.problems)
    assert ("is sound" in str(report)) is report.sound
    assert all(problem in str(report) for problem in report.problems)
    return report


def test_a_wrong_sign_is_found() -> None:
    problem = Regression()
    report = checked(WrongSign(problem.model.parameters()), problem.loss)
    assert not report.sound
    assert "climbs" in report.problems[0]
    assert report.cosine < -0.5


def test_a_wrong_scale_is_found() -> None:
    problem = Regression()
    report = checked(WrongScale(problem.model.parameters(), lr=0.1), problem.loss)
    assert not report.sound
    assert "2 times" in report.problems[0]
    assert report.learning_rate == pytest.approx(0.2, rel=0.01)


def test_a_group_that_climbs_is_found() -> None:
    problem = Regression()
    first, *rest = problem.model.parameters()
    report = checked(OneGroupUphill([{"params": [first]}, {"params": rest}]), problem.loss)
    assert not report.sound


def test_signals_of_other_directions_are_found() -> None:
    problem = Regression()
    report = checked(
        SwappedSignals(problem.model.parameters(), directions=4), problem.loss, probes=100
    )
    assert not report.sound
    assert "does not follow" in report.problems[0]


def test_updates_with_other_noise_than_the_perturbation_are_found(row: Row) -> None:
    problem = Regression()
    broken = breaking(row.make, other_noise_in_the_update)
    report = checked(broken(problem.model.parameters(), seed=1), problem.loss)
    assert not report.sound
    assert "does not follow" in report.problems[0]


def test_noise_shared_by_layers_of_one_shape_is_found(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, loss = linear(shapes=[(5, 5), (5, 5)])
    assert checked(row.make(parameters), loss).sound

    def shared(targets: list[Tensor], indices: list[int], *rest: Any) -> Combination:
        return Combination(targets, [0] * len(indices), *rest)

    monkeypatch.setattr("dopaminergic.weights.layout.Combination", shared)
    report = checked(row.make(parameters), loss)
    assert not report.sound
    assert "leads aside" in "".join(report.problems)


def test_noise_that_repeats_at_every_step_is_found(row: Row) -> None:
    problem = Regression()
    report = checked(
        breaking(row.make, same_noise_at_every_step)(problem.model.parameters()), problem.loss
    )
    assert not report.sound


def test_directions_that_repeat_within_a_step_are_found(row: Row) -> None:
    """Unbiased, but K times as noisy as K directions should be."""
    parameters, loss = linear(30)
    broken = breaking(row.make, same_noise_in_every_direction)
    report = checked(
        broken(parameters, directions=5, noise="rademacher"),
        loss,
        probes=100 if row.estimates else 200,
    )
    assert not report.sound
    assert "directions may repeat" in report.problems[-1]


def test_a_noisy_closure_is_found() -> None:
    problem, generator = Regression(), torch.Generator().manual_seed(0)

    def closure() -> Tensor:
        return problem.loss() * (1 + 0.01 * torch.randn((), generator=generator))

    assert not checked(WeightPerturbation(problem.model.parameters()), closure).sound


def test_updates_lost_in_rounding_are_found() -> None:
    w = nn.Parameter(randn(20, dtype=torch.float32) + 3)
    assert not checked(WeightPerturbation([w], lr=1e-10), lambda: (w.double() ** 2).sum()).sound


def test_an_optimizer_that_does_not_move_is_not_sound(row: Row) -> None:
    problem = Regression()
    report = checked(row.make(problem.model.parameters(), lr=0.0), problem.loss)
    assert not report.sound
    assert "does not move" in report.problems[0]


# ---- nothing changes -----------------------------------------------------------------------------


def test_everything_is_as_before(row: Row) -> None:
    problem, heard = Regression(dtype=torch.float32), []
    optimizer = row.make(problem.model.parameters(), weight_decay=0.1)
    optimizer.register_step_post_hook(lambda *_: heard.append(1))
    optimizer.step(problem.loss)
    optimizer.probe(problem.loss)
    weights, state, generator = (
        problem.weights(),
        str(optimizer.state_dict()),
        torch.get_rng_state(),
    )
    check_estimator(optimizer, lambda: problem.loss() + 0 * torch.rand(()), probes=100)
    assert same(problem.weights(), weights)
    assert str(optimizer.state_dict()) == state
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(heard) == 1
    assert all(p.grad is None for p in problem.model.parameters())
    other = Regression(dtype=torch.float32)
    control = row.make(other.model.parameters(), weight_decay=0.1)
    for _ in range(2):
        control.step(other.loss)
    optimizer.step()
    assert same(problem.weights(), other.weights())


def test_everything_is_as_before_when_it_fails() -> None:
    problem, calls = Regression(), 0
    optimizer = Dopamine(problem.model.parameters(), weight_decay=0.1)
    weights, state = problem.weights(), str(optimizer.state_dict())

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return problem.loss() if calls < 30 else problem.loss() / (1 // 0)

    with pytest.raises(ZeroDivisionError):
        check_estimator(optimizer, closure)
    assert same(problem.weights(), weights)
    assert str(optimizer.state_dict()) == state
    optimizer.step(problem.loss)


def test_large_models_come_back_bit_for_bit() -> None:
    w = nn.Parameter(randn(300_000, dtype=torch.float32))
    old = copies([w])
    report = check_estimator(
        WeightPerturbation([w], lr=0.1), lambda: (w[:50].double() ** 2).sum(), probes=100
    )
    assert same(copies([w]), old)
    assert report.weights == 300_000
    assert report.sound, str(report)


# ---- bad input -----------------------------------------------------------------------------------


def rejected(
    error: type[Exception],
    words: str,
    closure: Callable[[Tensor], Any] | None = None,
    **settings: Any,
) -> None:
    w = nn.Parameter(randn(3, 4))
    old, probes = copies([w]), settings.pop("probes", 100)
    with pytest.raises(error, match=words):
        check_estimator(
            Dopamine([w], **settings),
            lambda: (closure or (lambda w: (w**2).sum()))(w),
            probes=probes,
        )
    assert same(copies([w]), old)


def test_bad_input() -> None:
    rejected(
        TypeError,
        r"closure must return a tensor.*float.*loss\.item",
        lambda w: float((w.detach() ** 2).sum()),
    )
    rejected(ValueError, "not differentiable", lambda w: (w.detach() ** 2).sum())
    rejected(ValueError, "gradient has length 0", lambda w: (0 * w).sum())
    rejected(ValueError, "loss is nan", lambda w: (w * math.nan).sum())
    rejected(
        ValueError, "not finite at perturbed", lambda w: torch.sqrt((w - randn(3, 4)).sum() + 1e-9)
    )
    rejected(ValueError, "fleet of 3 seeds", seed=[0, 1, 2])
    rejected(ValueError, "probes must be >= 100.*got 10", probes=10)
    rejected(TypeError, "probes must be an int, got 1.5", probes=1.5)
    with pytest.raises(TypeError, match="ForwardOptimizer, got SGD"):
        check_estimator(torch.optim.SGD([nn.Parameter(randn(3))]), lambda: 0.0)  # pyright: ignore


def test_every_optimizer_is_served_or_refused_by_name(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())

    if any_row.name == "VectorDopamine":
        with pytest.raises(TypeError, match=r"VectorDopamine.*check Dopamine2"):
            check_estimator(optimizer, problem.loss, probes=100)
        return
    assert check_estimator(optimizer, problem.loss, probes=100).rule == any_row.name


def test_a_closure_that_calls_backward_is_told_so() -> None:
    def closure(w: Tensor) -> Tensor:
        loss = (w**2).sum()
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    rejected(ValueError, "backward", closure)


def test_virtual_steps_do_not_reach_an_open_journal(tmp_path: Path) -> None:
    problem = Regression()
    optimizer = WeightPerturbation(problem.model.parameters())
    with Journal(optimizer, tmp_path / "run.journal") as journal:
        optimizer.step(problem.loss)
        check_estimator(optimizer, problem.loss, probes=100)
        optimizer.step(problem.loss)

    assert journal.steps == 2
    weights = [p.detach().clone() for p in problem.model.parameters()]
    fresh = Regression()
    replay(list(fresh.model.parameters()), tmp_path / "run.journal")
    assert same(weights, [p.detach() for p in fresh.model.parameters()])
