"""The rules without a model: closed forms, invariances, and whole runs against formulas by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dopaminergic import Dopamine, Dopamine2, ForwardOptimizer, WeightPerturbation, scalars
from dopaminergic.baselines import antithetic, ranked, weight_perturbation
from dopaminergic.prediction_errors import (
    Dopamine2State,
    DopamineState,
    dopamine,
    dopamine2,
    learning_rate_gain,
    variance_factor,
)
from dopaminergic.rule import Group, Losses
from optimizers import ROWS, Row, drawn, randn

START = DopamineState(*[0.0] * len(DopamineState._fields))._replace(doubt=1.0)
START2 = Dopamine2State(*[0.0] * len(Dopamine2State._fields))._replace(doubt=1.0, gain=1.0)
KNOBS: dict[str, Any] = {"tau": 0.25, "kappa": 0.02, "beta": 0.99, "limits": (1e-3, 1e3)}


def test_the_first_error_is_the_regret_in_units_of_itself() -> None:
    for errors in (dopamine(START, 2.0, [2.5]), dopamine2(START2, 2.0, [2.5])):
        assert errors.rpes == [0.5]
        assert errors.scale == pytest.approx(0.5 + 1e-8 * 2.0, rel=1e-14)
    assert dopamine(START, 2.0, [2.5]).level == pytest.approx(2.0)
    assert dopamine2(START2, 2.0, [2.5]).level == 1.0


def test_the_second_error_by_hand() -> None:
    state = dopamine(START, 2.0, [2.5]).state
    errors = dopamine(state, 1.0, [0.8, 1.4], loss_floor=0.25)
    m = 0.5  # the expected regret does not know of these trials
    square = (0.99 * 0.01 * 0.25 + 0.01 * (0.04 + 0.16) / 2) / (0.99 * 0.01 + 0.01)
    assert errors.rpes == pytest.approx([-0.2 - m, 0.4 - m])
    assert errors.scale == pytest.approx(math.sqrt(square) + 1e-8 * (0.99 * 2.0 + 1.0) / 1.99)
    assert errors.level == pytest.approx((0.99 * 2.0 + 1.0) / 1.99 - 0.25)
    again = dopamine2(dopamine2(START2, 2.0, [2.5]).state, 1.0, [0.8, 1.4])
    assert again.rpes == pytest.approx(errors.rpes)
    assert again.scale == pytest.approx(errors.scale)


@pytest.mark.parametrize("beta", [0.5, 0.99])
@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
def test_one_look_at_usual_losses_changes_no_bits(rule: Any, beta: float) -> None:
    """Arrays are always looked at closely.

    Some losses and regrets are 0, or up to 30 times as large.
    """
    one = rule([nn.Parameter(randn(4))], beta=beta)
    many = rule([nn.Parameter(randn(1, 4))], beta=beta, seed=[0])
    state = one.start()
    fleet = many.start()
    draw = np.random.default_rng(0)
    group = Group(1.0, 0.01, 4)
    for _ in range(1500):
        rare, wide = 10.0 ** (draw.uniform(0.5, 1.5, 2) * (draw.random(2) < 0.01))
        base = float(rare * draw.normal(1.0, 0.1) * (draw.random() > 0.01))
        plus = [base + float(wide * draw.normal(0.0, 0.1))]
        decision = one.rule(state, Losses(base, plus, []), [group])
        there = Losses(np.array([base]), [np.array(plus)], [])
        with np.errstate(all="ignore"):
            other = many.rule(fleet, there, [group])
        state = decision.state
        fleet = other.state
        assert [float(x[0]) for x in (*fleet, *other.signals)] == [*state, *decision.signals]


def test_what_is_expected_is_the_mean_of_all_regrets_so_far() -> None:
    state = START
    for regret in (0.3, -0.1, 0.7):
        state = dopamine(state, 1.0, [1.0 + regret]).state
    weights = [0.99**2, 0.99, 1.0]
    m = sum(w * r for w, r in zip(weights, (0.3, -0.1, 0.7), strict=True)) / sum(weights)
    assert dopamine(state, 1.0, [1.0]).rpes[0] == pytest.approx(-m)


def test_nothing_left_to_gain_stops_dopamine() -> None:
    assert dopamine(START, 0.3, [0.4], loss_floor=0.5).level == 0.0


@pytest.mark.parametrize("improvement", [0.1, 0.025, -0.2, 0.8])
def test_actual_against_expected_improvement_sets_the_gain(improvement: float) -> None:
    state = dopamine2(learning_rate_gain(START2, 1.0, **KNOBS), 1.0, [1.1]).state._replace(
        expected=0.1
    )
    after = learning_rate_gain(state, 1.0 - improvement, **KNOBS)
    error = (improvement - 0.25 * 0.1) / (abs(improvement) + 0.1)
    assert after.gain == pytest.approx(math.exp(0.02 * error), rel=1e-12)
    third = learning_rate_gain(after._replace(last_loss=0.0, expected=0.4), 0.3, **KNOBS)
    sizes = [(0.99 * a + b) / 1.99 for a, b in ((abs(improvement), 0.3), (0.1, 0.4))]
    assert third.gain / after.gain == pytest.approx(
        math.exp(0.02 * (-0.3 - 0.1) / sum(sizes)), rel=1e-12
    )


def test_a_surprise_counts_three_standard_sizes_at_most() -> None:
    state = dopamine2(START2, 1.0, [1.1]).state._replace(expected=1e-9)
    for _ in range(300):
        state = learning_rate_gain(state._replace(last_loss=1.0), 1.0 - 1e-9, **KNOBS)
    crash = learning_rate_gain(state._replace(last_loss=1.0), 1.0 + 3.0, **KNOBS)
    assert crash.gain / state.gain == pytest.approx(math.exp(-0.06), rel=1e-9)


def test_the_gain_waits_for_the_first_improvement_and_stays_in_its_limits() -> None:
    assert learning_rate_gain(START2, 5.0, **KNOBS) == START2
    state = dopamine2(START2, 1.0, [1.1]).state._replace(expected=1.0, gain=1e-3)
    assert learning_rate_gain(state, 2.0, **KNOBS).gain == 1e-3
    state = state._replace(expected=0.0, gain=1e3)
    assert learning_rate_gain(state, 0.5, **KNOBS).gain == 1e3


def test_baselines_in_closed_form() -> None:
    assert weight_perturbation(1.0, [1.5, 0.25]) == [0.5, -0.75]
    assert antithetic([1.5, 2.0], [0.5, 3.0]) == [0.5, -0.5]


def test_ranks_see_only_the_order() -> None:
    # Ranks among 6: plus 5, 0, 2 and minus 1, 4, 3, over 5.
    plus, minus = [9.0, -3.0, 1.0], [0.0, 4.0, 2.0]
    assert ranked(plus, minus) == pytest.approx([0.4, -0.4, -0.1])
    assert ranked([math.exp(x) for x in plus], [math.exp(x) for x in minus]) == ranked(plus, minus)


def test_equal_losses_have_equal_ranks() -> None:
    assert ranked([2.0, 2.0], [2.0, 2.0]) == [0.0, 0.0]
    assert ranked([1.0, 2.0], [1.0, 0.0]) == pytest.approx([0.0, 0.5])
    assert ranked([1.0, 1.0], [0.0, 1.0]) == pytest.approx([1 / 3, 0.0])


def test_variance_factor_is_the_mean_square_of_the_estimate() -> None:
    """Averages of all sign patterns of 3 weights, taken two at a time.

    E|g_hat|^2 / |g|^2 = (d + K - 1) / K.
    """
    g = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    z = torch.tensor(
        [[1.0 - 2 * (i >> b & 1) for b in range(3)] for i in range(8)], dtype=torch.float64
    )
    estimates = (z @ g)[:, None] * z
    pairs = (estimates[:, None] + estimates[None]) / 2
    assert float((estimates**2).sum(-1).mean() / (g @ g)) == pytest.approx(variance_factor(3, 1))
    assert float((pairs**2).sum(-1).mean() / (g @ g)) == pytest.approx(variance_factor(3, 2))


# ---- whole runs ----------------------------------------------------------------------------------

SCALES = (0.5, 2.0, 1.0, 3.0, 0.1)


def bowl(w: list[float]) -> float:
    return sum(a * x * x for a, x in zip(SCALES, w, strict=True)) + 0.3 * w[0] * w[3] + 1.0


def torch_bowl(w: Tensor) -> Tensor:
    return (torch.tensor(SCALES, dtype=torch.float64) * w * w).sum() + 0.3 * w[0] * w[3] + 1.0


def trained(row: Row, settings: dict[str, Any], steps: int) -> list[Tensor]:
    w = nn.Parameter(randn(5, seed=3))
    optimizer = row.make([w], seed=11, **settings)
    weights = []
    for _ in range(steps):
        optimizer.step(lambda: torch_bowl(w))
        weights.append(w.detach().clone())
    return weights


CASES = [
    (row, settings)
    for row in ROWS
    for settings in (
        {},
        {"directions": 1},
        {"directions": 3},
        {"lr": 0.05},
        {"lr": 0.5},
        {"sigma": 0.05},
        {"noise": "gaussian"},
        {"noise": "rademacher"},
    )
]
CASES += [
    (row, {"two_sided": True, "directions": k})
    for row in ROWS
    if "Dopamine" in row.name
    for k in (1, 3)
]


@pytest.mark.parametrize(
    ("row", "settings"), CASES, ids=[f"{row.name}-{settings}" for row, settings in CASES]
)
def test_a_run_is_the_formulas_of_algorithms_md(row: Row, settings: dict[str, Any]) -> None:
    w = nn.Parameter(randn(5, seed=3))
    optimizer = row.make([w], seed=11, **settings)
    group, own = optimizer.param_groups[0], optimizer.settings
    by_hand = {key: group[key] for key in ("lr", "sigma")}
    by_hand |= {key: value for key, value in own.items() if key not in ("noise", "seed", "batched")}
    expected = row.plain(
        bowl,
        w.tolist(),
        lambda t, k: drawn(optimizer, w, 0, step=t, direction=k).tolist(),
        5,
        **by_hand,
    )
    # Losses near 10 are differenced over 1e-3: rounding of 2e-15 becomes 1e-11 of a regret. Normals
    # may differ by a few ulp of float32 from the definition's.
    near = 1e-10 if optimizer.settings["noise"] == "rademacher" else 2e-6
    for got, want in zip(trained(row, settings, 5), expected, strict=True):
        torch.testing.assert_close(
            got, torch.tensor(want, dtype=torch.float64), rtol=10 * near, atol=near
        )


@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
def test_the_scale_of_the_loss_changes_nothing(rule: Any) -> None:
    runs = []
    for scale in (1.0, 128.0):  # a power of two: exact, bit for bit
        w = nn.Parameter(randn(5, seed=3))
        optimizer = rule([w])
        for _ in range(40):
            optimizer.step(lambda w=w, scale=scale: scale * torch_bowl(w))
        runs.append(w.detach())
    assert torch.equal(*runs)


@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
def test_a_hundredfold_loss_changes_nothing_but_rounding(rule: Any) -> None:
    runs = []
    for scale in (1.0, 100.0):
        w = nn.Parameter(randn(5, seed=3))
        optimizer = rule([w])
        for _ in range(40):
            optimizer.step(lambda w=w, scale=scale: scale * torch_bowl(w))
        runs.append(w.detach())
    torch.testing.assert_close(*runs, rtol=1e-8, atol=1e-9)


def test_a_constant_in_the_loss_does_not_change_dopamine2() -> None:
    runs = []
    for offset in (0.0, 1.0):
        w = nn.Parameter(randn(5, seed=3))
        optimizer = Dopamine2([w])
        for _ in range(40):
            optimizer.step(lambda w=w, offset=offset: torch_bowl(w) + offset)
        runs.append(w.detach())
    # The floor of the scale, 1e-8 of the first loss, is 1e-5 of a regret of 1e-3.
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-5)


def test_dopamine_does_depend_on_the_offset_as_documented() -> None:
    runs = []
    for floor in (0.0, 1.0):
        w = nn.Parameter(randn(5, seed=3))
        optimizer = Dopamine([w], loss_floor=floor, cap=10.0)
        optimizer.step(lambda w=w: torch_bowl(w))
        runs.append((w.detach() - randn(5, seed=3)).norm())
    loss = float(torch_bowl(randn(5, seed=3)))
    assert float(runs[1] / runs[0]) == pytest.approx((loss - 1.0) / loss, rel=1e-9)


@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
def test_no_weight_moves_farther_than_the_cap(rule: Any) -> None:
    w = nn.Parameter(randn(5, seed=3))
    rule([w], lr=1e6, cap=0.02).step(lambda: torch_bowl(w))
    # One direction, whose signal is 1 in the first step but for the floor of the scale.
    torch.testing.assert_close(
        (w.detach() - randn(5, seed=3)).abs(), torch.full_like(w, 0.02), rtol=1e-4, atol=0
    )


def test_one_number_and_a_fleets_give_the_same_bits() -> None:
    """The exponential of the C library differs from numpy's in the last bit for some numbers."""
    values = randn(3000, seed=2).abs().tolist()
    rows = np.array(values).reshape(-1, 3)
    for function in (
        scalars.sqrt,
        scalars.exp,
        scalars.absolute,
        lambda x: scalars.clip(x, 0.3, 0.9),
    ):
        fleets = np.concatenate([function(row) for row in rows]).tolist()
        assert fleets == [function(x) for x in values]
    for row in (rows[0], torch.from_numpy(rows[0])):
        chosen = scalars.select(row > sorted(values[:3])[1], 0.1, 1.0)
        assert sorted(chosen.tolist()) == [0.1, 1.0, 1.0]


def test_several_directions_are_averaged() -> None:
    """The step with K = 3 is the mean of the three steps with one direction each."""
    w = nn.Parameter(randn(5, seed=3))
    optimizer = WeightPerturbation([w], lr=0.1, directions=3)
    optimizer.step(lambda: torch_bowl(w))
    old, parts = randn(5, seed=3), []
    for k in range(3):
        z = drawn(optimizer, w, 0, step=0, direction=k)
        parts.append(-0.1 * (torch_bowl(old + 1e-3 * z) - torch_bowl(old)) / 1e-3 * z)
    torch.testing.assert_close(w.detach() - old, torch.stack(parts).mean(0), rtol=1e-9, atol=1e-12)


def test_rpe_and_learning_rate_are_told() -> None:
    w = nn.Parameter(randn(5, seed=3))
    optimizer = Dopamine([w], sigma=1e-3)
    optimizer.step(lambda: torch_bowl(w))
    old = randn(5, seed=3)
    delta = float(torch_bowl(old + 1e-3 * drawn(optimizer, w, 0, step=0)) - torch_bowl(old))
    assert optimizer.last_rpe == pytest.approx(delta, rel=1e-9)
    # The update is -rate * delta / sigma * z, whatever set the rate.
    moved = float((w.detach() - old)[0] / drawn(optimizer, w, 0, step=0)[0])
    assert moved == pytest.approx(-optimizer.last_learning_rate * delta / 1e-3, rel=1e-9)


# ---- two sides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
def test_both_sides_are_asked_for_where_weights_have_16_bits(
    rule: type[Dopamine] | type[Dopamine2],
) -> None:
    def passes(optimizer: ForwardOptimizer) -> int:
        optimizer.step(lambda: 1.0)
        return optimizer.forward_passes

    full, half = nn.Parameter(randn(5)), nn.Parameter(randn(5).bfloat16())
    for parameters, given, sides in (
        ([full], None, False),
        ([half], None, True),
        ([full, half], None, True),
        ([half], False, False),
        ([full], True, True),
    ):
        optimizer = rule(iter(parameters), two_sided=given, directions=3)
        assert optimizer.settings["two_sided"] is sides
        assert passes(optimizer) == (6 if sides else 4)
        assert optimizer.next_passes == (6 if sides else 4)
    with pytest.raises(TypeError, match=r"two_sided must be True, False or None, got 1"):
        rule([full], two_sided=1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
def test_curvature_is_no_part_of_a_two_sided_regret(rule: type[Dopamine] | type[Dopamine2]) -> None:
    """On a quadratic it is sigma g'z for every sigma.

    At the minimum all else is curvature, and nothing moves.
    """
    w = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = rule([w], two_sided=True, sigma=0.5)
    curvature = torch.linspace(1.0, 6.0, 6, dtype=torch.float64)
    for _ in range(5):
        assert optimizer.step(lambda: 1.0 + (curvature * w.square()).sum()) == pytest.approx(
            1.0 + 0.25 * 21
        )
    assert torch.equal(w.detach(), torch.zeros(6, dtype=torch.float64))
    one = rule([w], two_sided=False, sigma=0.5)
    for _ in range(5):
        one.step(lambda: 1.0 + (curvature * w.square()).sum())
    assert w.detach().abs().max() > 0


def test_a_saved_state_keeps_its_sides() -> None:
    w, twin = nn.Parameter(randn(5)), nn.Parameter(randn(5))
    both, other = Dopamine([w], two_sided=True, directions=2), Dopamine([twin], directions=2)
    both.step(lambda: w.square().sum())
    with torch.no_grad():
        twin.copy_(w)
    other.load_state_dict(both.state_dict())
    for _ in range(3):
        assert both.step(lambda: w.square().sum()) == other.step(lambda: twin.square().sum())
    assert torch.equal(w, twin)
    assert other.forward_passes == 16
