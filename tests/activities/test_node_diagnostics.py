"""check_estimator of rules of nodes: sound ones are found sound, and damaged ones are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import (
    NodeDopamine,
    NodeEstimatorReport,
    NodePerturbation,
    check_estimator,
    cross_entropy,
    squared_error,
)
from optimizers import randn

x = randn(32, 4, seed=1)
labels = torch.arange(32) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def closure(model: nn.Module) -> Any:
    return lambda: cross_entropy(model(x), labels)


class Climbing(NodePerturbation):
    def _credits(self, trial: Any) -> dict[Any, Tensor]:
        return {node: -credit for node, credit in super()._credits(trial).items()}


class Doubled(NodePerturbation):
    def _credits(self, trial: Any) -> dict[Any, Tensor]:
        return {node: 2.0 * credit for node, credit in super()._credits(trial).items()}


class Aside(NodePerturbation):
    """The first node, and only that, gets no credit."""

    def _credits(self, trial: Any) -> dict[Any, Tensor]:
        credits = super()._credits(trial)
        first = min(credits, key=lambda node: node.number)
        return {node: credit for node, credit in credits.items() if node is not first}


def test_the_plain_rule_is_sound_and_varies_as_theory_says() -> None:
    w = nn.Parameter(randn(3, 1, seed=2))
    samples = randn(16, 3, seed=3)
    optimizer = NodePerturbation([w], sigma=1e-6)
    target = torch.full((16, 1), 5.0, dtype=torch.float64)
    report = check_estimator(optimizer, lambda: squared_error(samples @ w, target), probes=200)
    assert report.sound
    assert report.expected is None
    # One unit behind each sample: the sign of its trial cancels, so that estimates do not vary.
    assert report.variance < 1e-8
    assert report.slope == pytest.approx(1.0, abs=1e-5)


def test_several_units_make_the_plain_rule_vary_as_theory_says() -> None:
    w = nn.Parameter(randn(3, 5, seed=2))
    samples = randn(16, 3, seed=3)
    readout = randn(5, seed=4)
    report = check_estimator(
        NodePerturbation([w], sigma=1e-6),
        lambda: squared_error((samples @ w) @ readout, torch.zeros(16, dtype=torch.float64)),
        probes=600,
    )
    # Var dW = sum over samples of |v|^2 (N - 1) |g|^2 / B^2, for signs and N units.
    slopes = 2.0 * (samples @ w.detach()) @ readout
    credit = slopes[:, None] * readout / 16
    theory = float((samples.square().sum(1) * credit.square().sum(1)).sum()) * 4
    gradient = samples.mT @ credit
    assert report.sound
    assert report.variance == pytest.approx(theory / float(gradient.square().sum()), rel=0.1)


def test_learned_feedback_expects_the_regrets_and_takes_the_noise_away() -> None:
    plain = check_estimator(NodePerturbation(model := network()), closure(model))
    learned = check_estimator(NodeDopamine(model := network()), closure(model))
    assert plain.sound
    assert learned.sound
    assert learned.expected is not None
    assert learned.expected > 0.8
    assert learned.cosine > 0.999
    assert learned.variance < 1e-3 * plain.variance


@pytest.mark.parametrize("rule", [NodePerturbation, NodeDopamine])
def test_everything_is_as_before(rule: Any) -> None:
    model = network()
    optimizer = rule(model, seed=3)
    for _ in range(3):
        optimizer.step(closure(model))
    weights = [p.detach().clone() for p in model.parameters()]
    state, random = optimizer.state_dict(), torch.get_rng_state()
    check_estimator(optimizer, closure(model), probes=100)
    assert all(map(torch.equal, weights, model.parameters()))
    assert torch.equal(random, torch.get_rng_state())
    after = optimizer.state_dict()
    assert state["forward"]["memory"].keys() == after["forward"]["memory"].keys()
    assert all(
        torch.equal(value, after["forward"]["memory"][name])
        for name, value in state["forward"]["memory"].items()
    )
    assert str(state["forward"]["progress"]) == str(after["forward"]["progress"])


@pytest.mark.parametrize(
    ("rule", "problem"),
    [(Climbing, "climbs"), (Doubled, "times the gradient"), (Aside, "aside")],
)
def test_damaged_rules_are_found(rule: Any, problem: str) -> None:
    model = network()
    report = check_estimator(rule(model), closure(model), probes=400)
    assert not report.sound
    assert any(problem in told for told in report.problems), str(report)
    assert "NOT sound" in str(report)


def test_a_batch_that_changes_is_no_follower() -> None:
    model = network()
    drawn = torch.Generator().manual_seed(0)

    def noisy() -> Any:
        noise = torch.randn(32, 3, generator=drawn, dtype=torch.float64)
        return squared_error(model(x) + 1e3 * noise, torch.zeros(32, 3, dtype=torch.float64))

    with pytest.warns(RuntimeWarning, match="depend on each other"):
        report: NodeEstimatorReport = check_estimator(NodePerturbation(model), noisy, probes=100)
    assert not report.sound


@pytest.mark.parametrize("rule", [NodePerturbation, NodeDopamine])
def test_what_has_no_gradient_is_refused(rule: Any) -> None:
    model = network()
    with pytest.raises(ValueError, match="not differentiable"):
        check_estimator(rule(model), lambda: cross_entropy(model(x).detach(), labels))
    with pytest.raises(ValueError, match="fleet"):
        check_estimator(rule([nn.Parameter(torch.zeros(2, 3, 1))], seed=[0, 1]), closure(network()))
