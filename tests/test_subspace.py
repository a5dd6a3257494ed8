"""The rule of VectorDopamine without a model: the damped minimum, and the two prediction errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dopaminergic import cross_entropy, squared_error
from dopaminergic.controllers import (
    DAMPING_LIMITS,
    GAIN_LIMITS,
    WIDEST,
    next_damping,
    next_gain,
    next_reach,
    share,
    with_noise,
)
from dopaminergic.quadratic import Quadratic, quadratic
from dopaminergic.subspace import (
    DAMPED,
    FEWEST,
    FIRST_DIRECTIONS,
    GROWTH,
    LIFT,
    MOST_DIRECTIONS,
    Proposal,
    Subspace,
    VectorState,
    covariance,
    directions_for,
    kept,
    mean_curvature,
    propose,
    subspace,
)
from optimizers import randn

DOUBLE = torch.float64
KNOBS: dict[str, Any] = {"tau": 0.25, "kappa": 0.05, "beta": 0.9}


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def state(replicas: int = 1, **values: float) -> VectorState:
    start = {"damping": 1.0, "gain": 0.5, "curvature": 0.0}
    filled = dict.fromkeys(VectorState._fields, 0.0) | start | values
    return VectorState(
        **{name: torch.full((replicas,), value, dtype=DOUBLE) for name, value in filled.items()}
    )


def eye(count: int) -> Tensor:
    return torch.eye(count, dtype=DOUBLE)[None]


def summed_curvature(space: Subspace) -> Tensor:
    """In the state's unit, the curvature of the sum of the losses."""
    return mean_curvature(space) * space.samples


def logits(replicas: int = 1) -> Quadratic:
    values, labels = randn(replicas, 6, 3), (torch.arange(6) % 3).expand(replicas, -1)
    return quadratic(cross_entropy(values, labels), "Rule", replicas)


# ---- the damped minimum --------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("damping", [1e-6, 0.3, 50.0])
def test_the_proposal_is_the_dense_solution(damping: float, factor: float) -> None:
    """Two replicas, logits, angles between the directions; the curvature was `factor` times larger
    once.
    """
    loss, regrets, count = logits(2), 0.1 * randn(2, 4, 18, seed=1), 4
    raw = randn(2, count, 9, seed=2)
    gram = raw @ raw.mT
    space = subspace(regrets, loss, gram)
    h = factor * mean_curvature(space)
    found = propose(space, state(2, damping=damping)._replace(curvature=h * space.samples))
    for r in range(2):
        p = loss.values[r].reshape(6, 3).softmax(-1)
        H = torch.block_diag(*[(torch.diag(row) - torch.outer(row, row)) / 6 for row in p])
        J = regrets[r]
        A, JJ, g = J @ H @ J.T, J @ J.T, J @ loss.slope[r]
        torch.testing.assert_close(space.slope[r], g, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(space.products[r], A, rtol=1e-12, atol=1e-15)
        now = A.trace() / JJ.trace()
        lost = h[r] - now
        assert float(lost / h[r]) == pytest.approx(1 - 1 / factor, abs=1e-12)
        unit = h[r] * JJ.trace() / count / 2
        least = max(damping, DAMPED * (1 - 1 / factor))
        c = torch.linalg.solve(A + LIFT * lost * JJ + least * unit * gram[r], g)
        torch.testing.assert_close(found.coefficients[r], c, rtol=1e-8, atol=1e-12)
        s = 0.7
        expected = s * g @ c - s**2 * c @ A @ c / 2
        torch.testing.assert_close(found.expected(numbers(s, s))[r], expected, rtol=1e-8, atol=0)


def least_squares(weights: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    return randn(samples, weights, seed=4), randn(samples, seed=5), randn(weights, seed=6)


@pytest.mark.parametrize("correlated", [False, True])
def test_as_many_directions_as_weights_reach_the_minimum(correlated: bool) -> None:
    x, y, w = least_squares(5, 12)
    z = randn(5, 5, seed=7) if correlated else torch.eye(5, dtype=DOUBLE)
    loss = quadratic(squared_error(x @ w, y), "Rule", None)
    space = subspace((0.01 * z @ x.T)[None], loss, (z @ z.T)[None])
    found = propose(space, state(damping=1e-12)._replace(curvature=summed_curvature(space)))
    reached = w - 0.01 * found.coefficients[0] @ z
    torch.testing.assert_close(reached, torch.linalg.lstsq(x, y).solution, rtol=1e-8, atol=1e-8)
    lowest = ((x @ reached - y) ** 2).mean()
    torch.testing.assert_close(
        found.expected(numbers(1.0))[0], loss.loss[0] - lowest, rtol=1e-9, atol=0
    )


def test_the_damped_step_depends_on_the_span_and_not_on_the_directions() -> None:
    """With their gram, other directions of the same span give the same step but for the unit of the
    damping.
    """
    x, y, w = least_squares(5, 12)
    loss, steps = quadratic(squared_error(x @ w, y), "Rule", None), []
    mix = randn(3, 3, seed=9)
    for z in (randn(3, 5, seed=8), mix @ randn(3, 5, seed=8)):
        space = subspace((z @ x.T)[None], loss, (z @ z.T)[None])
        unit = float(mean_curvature(space) / 2 * space.outputs[0].trace() / 3)
        found = propose(
            space, state(damping=0.3 / unit)._replace(curvature=summed_curvature(space))
        )
        steps.append(found.coefficients[0] @ z)
    torch.testing.assert_close(*steps, rtol=1e-10, atol=1e-12)


def test_more_damping_is_a_shorter_step() -> None:
    space = subspace(randn(1, 4, 18, seed=1), logits(), eye(4))
    lengths = [
        float(
            propose(
                space, state(damping=d, curvature=float(summed_curvature(space)))
            ).coefficients.norm()
        )
        for d in (1e-6, 1e-2, 1.0, 1e2, 1e4)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 1e-3 * lengths[0]


def test_a_hundredfold_loss_is_the_same_proposal() -> None:
    loss, regrets = logits(), randn(1, 4, 18, seed=1)
    scaled = loss._replace(slope=100.0 * loss.slope, curve=lambda J: 100.0 * loss.curve(J))
    one, many = (subspace(regrets, x, eye(4)) for x in (loss, scaled))
    a, b = (
        propose(s, state(damping=0.1)._replace(curvature=2 * summed_curvature(s)))
        for s in (one, many)
    )
    torch.testing.assert_close(a.coefficients, b.coefficients, rtol=1e-12, atol=0)


# ---- what algebra cannot invert ------------------------------------------------------------------


@pytest.mark.parametrize("damping", [1e-8, 1.0])
def test_directions_that_change_nothing_are_not_taken(damping: float) -> None:
    regrets = randn(1, 4, 18, seed=1)
    regrets[:, 2] = 0.0
    space = subspace(regrets, logits(), eye(4))
    found = propose(space, state(damping=damping)._replace(curvature=summed_curvature(space)))
    assert found.coefficients[0, 2] == 0.0
    assert float(found.coefficients.abs().min(1).values) == 0.0
    assert int((found.coefficients != 0).sum()) == 3


def test_regrets_of_zero_are_no_step() -> None:
    space = subspace(torch.zeros(1, 4, 18, dtype=DOUBLE), logits(), eye(4))
    found = propose(space, state())
    assert not found.coefficients.any()
    assert found.expected(numbers(1.0)).tolist() == [0.0]


def test_identical_directions_share_the_step() -> None:
    """A singular A, all but undamped: the coefficients stay finite and add up to those of one of
    them.
    """
    regrets = randn(1, 1, 18, seed=1)
    once, thrice = (
        subspace(regrets.expand(1, n, 18), logits(), torch.ones(1, n, n, dtype=DOUBLE))
        for n in (1, 3)
    )
    a, b = (
        propose(s, state(damping=1e-8)._replace(curvature=summed_curvature(s)))
        for s in (once, thrice)
    )
    torch.testing.assert_close(b.coefficients.sum(), a.coefficients.sum(), rtol=1e-6, atol=0)
    assert float(b.coefficients.abs().max()) < float(a.coefficients.abs())


def test_a_matrix_that_is_not_definite_has_its_least_squares_solution() -> None:
    """Rounding does that to A; here it is made so. The other replica's solution is untouched."""
    space = subspace(randn(2, 3, 18, seed=1), logits(2), eye(3))
    broken = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=DOUBLE)
    spoilt = space._replace(products=torch.stack([space.products[0], broken]))
    start = state(2, damping=1e-8)._replace(curvature=summed_curvature(spoilt))
    found, alone = propose(spoilt, start), propose(space, start)
    torch.testing.assert_close(found.coefficients[0], alone.coefficients[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(
        found.coefficients[1], torch.linalg.solve(broken, space.slope[1]), rtol=1e-5, atol=1e-9
    )


def test_fewer_outcomes_than_directions() -> None:
    """n = 1: A has rank 1, and one number is all that K directions can change."""
    loss = quadratic(squared_error(numbers(3.0), numbers(1.0)), "Rule", None)
    regrets = randn(1, 6, 1, seed=1)
    space = subspace(regrets, loss, eye(6))
    found = propose(space, state(damping=1e-8)._replace(curvature=summed_curvature(space)))
    # Its change -J.c brings the prediction from 3 to 1.
    assert float(found.coefficients[0] @ regrets[0, :, 0]) == pytest.approx(2.0, rel=1e-6)


# ---- the noise of a batch ------------------------------------------------------------------------


def test_of_targets_that_are_noise_all_of_the_slope_is_noise() -> None:
    """Labels that no weights explain: g.c is positive in every batch, and its mean is what `noise`
    says.
    """
    excess, slopes = [], []
    for batch in range(400):
        x, y = randn(40, 6, seed=2 * batch), randn(40, seed=2 * batch + 1)
        loss = quadratic(squared_error(torch.zeros_like(y), y), "Rule", None)
        space = subspace((0.01 * randn(4, 6, seed=7) @ x.T)[None], loss, eye(4))
        found = propose(space, state(damping=0.1)._replace(curvature=summed_curvature(space)))
        slopes.append(float(found.slope))
        excess.append(float(found.slope - found.noise))
    assert min(slopes) > 0.0
    error = float(numbers(*excess).std()) / math.sqrt(len(excess))
    assert abs(sum(excess) / len(excess)) < 4.0 * error
    assert error < 0.05 * sum(slopes) / len(slopes)  # so that a missing correction would be seen


@pytest.mark.parametrize(("samples", "width"), [(1, 18), (1, 0), (5, 0)])
def test_outcomes_that_do_not_belong_to_samples_have_no_known_noise(
    samples: int, width: int
) -> None:
    loss = logits()._replace(samples=samples, width=width)
    space = subspace(randn(1, 4, 18, seed=1), loss, eye(4))
    found = propose(space, state(curvature=1.0))
    assert abs(float(found.noise)) < 1e-12 * float(found.slope)
    known = subspace(randn(1, 4, 18, seed=1), logits(), eye(4))
    assert float(propose(known, state(curvature=1.0)).noise) > 0.1 * float(found.slope)


def test_the_covariance_is_that_of_the_parts_of_samples() -> None:
    loss, regrets = logits(), randn(1, 4, 18, seed=1)
    parts = torch.stack(
        [regrets[0, :, i : i + 3] @ loss.slope[0, i : i + 3] for i in range(0, 18, 3)], 1
    )
    torch.testing.assert_close(covariance(subspace(regrets, loss, eye(4)))[0], 6 * torch.cov(parts))


def noisy(**values: float) -> Any:
    return state(1, comparisons=1.0, slope=1.0, **values)


def test_the_share_is_what_noise_leaves_of_the_slope() -> None:
    found = propose(subspace(randn(1, 4, 18, seed=1), logits(), eye(4)), state(curvature=1.0))
    found = found._replace(slope=numbers(2.0), noise=numbers(1.5))
    after = with_noise(noisy(gap=10.0, signal=0.6), found, beta=0.5)
    assert (float(after.slope), float(after.signal)) == (1.5, 0.5 * 0.6 + 0.5 * 0.5)
    assert float(share(after._replace(gain=numbers(0.9)), numbers(0.0), 1000)) == pytest.approx(
        0.55 / 1.5
    )
    # Eta is the smaller one.
    assert float(share(after._replace(gain=numbers(0.2)), numbers(0.0), 1000)) == 0.2
    # Outcomes have saturated.
    assert float(share(after._replace(gain=numbers(0.9)), numbers(1.0), 1000)) == 0.9
    below = after._replace(gain=numbers(0.9), signal=numbers(-3.0))
    assert float(share(below, numbers(0.0), 1000)) == GAIN_LIMITS[0]


@pytest.mark.parametrize(
    ("samples", "gap", "least"),
    [(1, 1.0, 1.0), (1, 0.1, 0.16), (4, 1.0, 0.4), (4, 9.0, 0.4), (16, 1.0, 0.1), (64, 1.0, 0.05)],
)
def test_of_few_fresh_samples_a_part_is_taken_however_much_noise_they_hold(
    samples: int, gap: float, least: float
) -> None:
    full_of_noise = noisy(gap=gap, signal=-3.0, gain=0.05, last_loss=1.0)
    assert float(share(full_of_noise, numbers(0.0), samples)) == pytest.approx(least)
    sure = full_of_noise._replace(signal=numbers(1.0), gain=numbers(0.9))
    assert float(share(sure, numbers(0.0), samples)) == max(0.9, least)


def test_a_batch_that_comes_again_has_no_noise() -> None:
    """The gap between a batch and the next is 0 then, however much the samples differ."""
    found = propose(subspace(randn(1, 4, 18, seed=1), logits(), eye(4)), state(curvature=1.0))
    assert float(found.noise) > 0.0
    after = with_noise(state(comparisons=1.0, gap=0.0), found, beta=0.9)
    assert float(after.signal) == float(after.slope) > 0.0
    started = with_noise(state(), found, beta=0.9)
    assert float(share(started, numbers(0.0), 1000)) == 0.5


# ---- the controllers -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.2, 0.9, 0.975, 1.5])
def test_actual_against_expected_improvement_sets_the_gain(loss: float) -> None:
    before = state(
        gain=0.5,
        last_loss=1.0,
        expected=0.1,
        actual=0.03,
        promised=0.02,
        comparisons=0.19,
        tried=0.9,
    )
    after = next_gain(before, numbers(loss), **KNOBS)
    A, P = 1.0 - loss, 0.1
    actual, promised, weights = 0.9 * 0.03 + 0.1 * abs(A), 0.9 * 0.02 + 0.1 * P, 0.9 * 0.19 + 0.1
    error = (A - 0.25 * P) / ((actual + promised) / weights)
    assert float(after.gain) == pytest.approx(
        0.5 * math.exp(0.05 * max(-3.0, min(3.0, error))), rel=1e-12
    )
    assert float(after.actual) == pytest.approx(actual)
    assert float(after.promised) == pytest.approx(promised)
    assert float(after.comparisons) == pytest.approx(weights)
    assert float(after.gap) == pytest.approx(0.1 * abs(loss - 0.9))
    assert after.damping is before.damping


def test_a_surprise_counts_three_standard_sizes_and_the_gain_has_limits() -> None:
    used = state(
        last_loss=1.0, expected=1e-9, actual=1e-9, promised=1e-9, comparisons=1.0, gain=0.5
    )
    assert float(
        next_gain(used, numbers(1e3), tau=0.25, kappa=0.05, beta=1 - 1e-12).gain
    ) == pytest.approx(0.5 * math.exp(-0.15), rel=1e-9)
    for gain, loss in ((GAIN_LIMITS[0], 2.0), (GAIN_LIMITS[1], 0.0)):
        assert (
            float(
                next_gain(
                    state(gain=gain, last_loss=1.0, expected=0.1), numbers(loss), **KNOBS
                ).gain
            )
            == gain
        )


def test_a_step_that_expected_nothing_teaches_nothing() -> None:
    before = state(last_loss=1.0, expected=0.0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(next_gain(before, numbers(7.0), **KNOBS), before, strict=True)
    )


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [
        (2.0, 0.5),
        (0.76, 0.5),
        (0.75, 1.0),
        (0.5, 1.0),
        (0.49, 3.0),
        (-1.0, 3.0),
        (math.nan, 3.0),
        (-math.inf, 3.0),
    ],
)
def test_lambda_follows_the_quality_of_the_model(ratio: float, factor: float) -> None:
    after = next_damping(state(damping=0.4), numbers(0.5), numbers(0.5 * ratio))
    assert float(after.damping) == pytest.approx(0.4 * factor)


def test_lambda_stays_where_nothing_was_tried_and_in_its_limits() -> None:
    assert float(next_damping(state(damping=0.4), numbers(0.0), numbers(0.0)).damping) == 0.4
    for damping, actual in ((DAMPING_LIMITS[0], 1.0), (DAMPING_LIMITS[1], -1.0)):
        assert (
            float(next_damping(state(damping=damping), numbers(1.0), numbers(actual)).damping)
            == damping
        )


def test_perturbations_grow_where_no_step_helps_until_one_does_or_there_is_no_further_to_look() -> (
    None
):
    stuck = state(damping=DAMPING_LIMITS[1], reach=1.0)
    grown = next_reach(stuck, stuck, numbers(-1.0), first=0.7)
    assert (float(grown.reach), float(grown.damping)) == (2.0, DAMPING_LIMITS[1])
    assert float(next_reach(stuck, stuck, numbers(math.nan), first=0.7).reach) == 2.0
    saved = next_reach(grown, grown, numbers(0.1), first=0.7)
    assert (float(saved.reach), float(saved.damping)) == (1.0, 0.7)
    given_up = next_reach(stuck._replace(reach=numbers(WIDEST)), stuck, numbers(0.0), first=0.7)
    assert (float(given_up.reach), float(given_up.damping)) == (1.0, 0.7)


@pytest.mark.parametrize(
    ("damping", "actual"), [(DAMPING_LIMITS[1], 0.1), (DAMPING_LIMITS[1] / 3, -1.0)]
)
def test_perturbations_stay_where_a_step_helps_or_a_shorter_one_may(
    damping: float, actual: float
) -> None:
    before, after = state(damping=damping, reach=1.0), state(damping=0.2, reach=1.0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(next_reach(before, after, numbers(actual), first=0.7), after, strict=True)
    )


def test_of_wide_copies_the_one_that_promises_most_is_taken_whole() -> None:
    regrets, target = randn(1, 5, 12, seed=3), randn(12, seed=4)
    space = subspace(
        regrets,
        quadratic(squared_error(torch.zeros(12, dtype=DOUBLE), target), "Rule", None),
        eye(5),
    )
    wide = state(damping=DAMPING_LIMITS[1], reach=8.0, gain=0.3)._replace(
        curvature=summed_curvature(space)
    )
    found, losses = propose(space, wide), (regrets[0] - target).square().mean(1)
    best = int(losses.argmin())
    assert found.coefficients[0].tolist() == [-1.0 if k == best else 0.0 for k in range(5)]
    assert float(share(wide, found.lost, 1000)) == 1.0
    assert float(found.expected(numbers(1.0))) == pytest.approx(
        float(target.square().mean() - losses[best]), rel=1e-5
    )


def test_the_controllers_take_each_replica_alone() -> None:
    before = state(3, last_loss=1.0)._replace(
        expected=numbers(0.1, 0.0, 0.3), gain=numbers(0.1, 0.5, 0.9)
    )
    losses = numbers(0.9, 0.5, 2.0)
    after = next_damping(next_gain(before, losses, **KNOBS), before.expected, 1.0 - losses)
    for r in range(3):
        one = VectorState(*(x[r : r + 1] for x in before))
        alone = next_damping(
            next_gain(one, losses[r : r + 1], **KNOBS), one.expected, 1.0 - losses[r : r + 1]
        )
        assert all(torch.equal(a[r : r + 1], b) for a, b in zip(after, alone, strict=True))


# ---- how many directions -------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [1, 2, 7, 8, 12, 100, 10_000, 10**9])
@pytest.mark.parametrize("samples", [1, 3, 64, 10**6])
def test_directions_stay_within_their_bounds(weights: int, samples: int) -> None:
    counts = [directions_for(weights, samples, step) for step in range(80)]
    assert counts == sorted(counts)
    assert min(counts) >= min(weights, FEWEST)
    useful = max(FEWEST, min(math.ceil(2 * weights / 3), samples // 2, MOST_DIRECTIONS))
    assert max(counts) == min(weights, useful)
    assert counts[0] <= max(FEWEST, FIRST_DIRECTIONS)
    assert all(b <= max(FEWEST, GROWTH * a + 1) for a, b in itertools.pairwise(counts))


def test_directions_fit_the_memory_of_their_regrets() -> None:
    assert directions_for(10**6, 10**6, 60, outcomes=1000, memory=4 * 1000 * 100) == 100
    assert directions_for(10**6, 10**6, 60, outcomes=10**9, memory=1) == FEWEST
    assert directions_for(10**6, 10**6, 10**9) == MOST_DIRECTIONS


# ---- what saturated outcomes leave of the weights ------------------------------------------------


def saturated(lost: float) -> Proposal:
    nothing = torch.zeros(1, dtype=DOUBLE)
    return Proposal(
        nothing[None], nothing, nothing, nothing, nothing + lost, nothing + math.sqrt(lost)
    )


@pytest.mark.parametrize("lost", [0.0, 0.25, 1.0])
def test_a_step_across_the_weights_adds_to_their_length_only_where_outcomes_have_not_saturated(
    lost: float,
) -> None:
    weights, step = (
        torch.tensor([3.0, 0.0, 4.0], dtype=DOUBLE),
        torch.tensor([0.0, 0.02, 0.0], dtype=DOUBLE),
    )
    factor = kept(saturated(lost), 1_000_000, step @ step, weights @ weights)
    after = factor * weights + step
    added = float(after @ after - weights @ weights) / float(step @ step)
    assert added == pytest.approx(1 - math.sqrt(lost), abs=1e-3)


def test_weights_of_zero_and_steps_of_zero_are_kept_as_they_are() -> None:
    zero, one = torch.zeros(1, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    assert (
        kept(saturated(1.0), 9, zero, zero).item()
        == kept(saturated(1.0), 9, zero, one).item()
        == 1.0
    )
    assert kept(saturated(0.0), 9, one, zero).item() == 1.0
    # As many directions as weights: nothing is left to chance.
    assert kept(saturated(1.0), 1, one, zero).item() == 1.0


@pytest.mark.parametrize("kind", ["squared_error", "cross_entropy"])
def test_only_a_loss_whose_curvature_changes_saturates(kind: str) -> None:
    state_, values = (
        state(curvature=0.0, damping=1.0, reach=1.0),
        torch.randn(1, 16, 4, generator=torch.Generator()),
    )
    seen = []
    for scale in (1.0, 30.0):
        outcome = (
            cross_entropy(scale * values, torch.zeros(1, 16, dtype=torch.long))
            if kind == "cross_entropy"
            else squared_error(scale * values, torch.zeros(1, 16, 4))
        )
        loss = quadratic(outcome, "test", 1)
        space = subspace(
            torch.randn(1, 5, 64, generator=torch.Generator()),
            loss,
            torch.eye(5, dtype=DOUBLE)[None],
        )
        state_ = state_._replace(
            curvature=torch.maximum(state_.curvature, mean_curvature(space) * loss.samples)
        )
        seen.append(propose(space, state_).saturated.item())
    assert seen[0] == 0.0
    assert (seen[1] > 0.5) == (kind == "cross_entropy")
    assert (seen[1] == 0.0) == (kind == "squared_error")
