"""Slope and curvature of the losses: what torch's differentiation says of them, for one model and
for fleets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dopaminergic import Outcome, cross_entropy, outcome, squared_error
from dopaminergic.outcomes import read
from dopaminergic.quadratic import Quadratic, outcome_in, quadratic
from optimizers import randn

Mean = Callable[[Tensor], Tensor]  # the mean loss of one replica's values
Returned = Callable[[Tensor], Any]

TARGET = randn(5, 3, seed=8)
LABELS = torch.tensor([0, 2, 1, 1, 0])


def target(values: Tensor) -> Tensor:
    return TARGET[: values.shape[-2], : values.shape[-1]].expand(values.shape)


def labels(values: Tensor) -> Tensor:
    return LABELS[: values.shape[-2]].expand(values.shape[:-1])


def quartic(values: Tensor) -> Tensor:
    return ((values - target(values)) ** 4).sum(-1) + values.square().sum(-1)


KINDS: dict[str, tuple[Returned, Mean]] = {
    "squared_error": (
        lambda v: squared_error(v, target(v)),
        lambda v: ((v - target(v)) ** 2).mean(),
    ),
    "cross_entropy": (
        lambda v: cross_entropy(v, labels(v)),
        lambda v: functional.cross_entropy(v, labels(v)),
    ),
    "outcome": (lambda v: outcome(v, quartic), lambda v: quartic(v).mean()),
    "outcome of single numbers": (
        lambda v: outcome(v, lambda v: v.exp() - v),
        lambda v: (v.exp() - v).mean(),
    ),
}


def test_labels_of_minus_100_are_not_scored() -> None:
    values, some = randn(2, 5, 3, seed=4), torch.tensor([0, -100, 2, 1, -100])
    found = quadratic(cross_entropy(values, some.expand(2, 5)), "Rule", 2)
    scored = some != -100

    def mean(v: Tensor) -> Tensor:
        return functional.cross_entropy(v, some, reduction="sum") / 5

    for r in range(2):
        torch.testing.assert_close(found.loss[r], mean(values[r]), rtol=1e-14, atol=0)
        torch.testing.assert_close(
            found.slope[r], torch.func.grad(mean)(values[r]).flatten(), rtol=1e-12, atol=1e-14
        )
        assert torch.equal(found.values[r].reshape(5, 3)[scored], values[r][scored])
        assert not found.values[r].reshape(5, 3)[~scored].any()
    other = values.clone()
    other[:, ~scored] = 7.0
    assert torch.equal(
        quadratic(cross_entropy(other, some.expand(2, 5)), "Rule", 2).slope, found.slope
    )


def checked(found: Quadratic, mean: Mean, values: Tensor) -> None:
    """`values` has a leading dimension of replicas."""
    changes = randn(len(values), 4, values[0].numel(), seed=30)
    curved = found.curve(changes)
    for r, v in enumerate(values):
        n = v.numel()
        slope = torch.func.grad(mean)(v).flatten()
        hessian = torch.func.jacrev(torch.func.grad(mean))(v).reshape(n, n)
        torch.testing.assert_close(found.slope[r], slope, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(curved[r], changes[r] @ hessian, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.loss[r], mean(v), rtol=1e-14, atol=0)
        assert torch.equal(found.values[r], v.flatten())


@pytest.mark.parametrize("shape", [(5, 3), (1, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_slope_and_curvature_of_one_model(kind: str, shape: tuple[int, int]) -> None:
    make, mean = KINDS[kind]
    if kind == "cross_entropy" and shape == (1, 1):
        shape = (1, 2)
    values = randn(*shape, seed=3)
    found = quadratic(make(values), "Rule", None)
    checked(found, mean, values[None])
    assert not found.black_box
    assert found.saturates == (kind != "squared_error")
    assert found.loss.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_slope_and_curvature_of_fleets(kind: str) -> None:
    make, mean = KINDS[kind]
    values = randn(4, 5, 3, seed=3)
    returned = (
        outcome(values, lambda v: KINDS[kind][0](v).losses) if "outcome" in kind else make(values)
    )
    found = quadratic(returned, "Rule", 4)
    checked(found, mean, values)
    per_sample = kind in ("cross_entropy", "outcome")
    assert found.samples == (5 if per_sample else 15)


def test_values_of_more_dimensions_are_flattened() -> None:
    """A sequence of logits `(batch, time, classes)` is batch * time samples."""
    values = randn(2, 3, 4, seed=3)
    sequence = quadratic(cross_entropy(values, torch.arange(6).reshape(2, 3) % 4), "Rule", None)
    flat = quadratic(cross_entropy(values.reshape(6, 4), torch.arange(6) % 4), "Rule", None)
    changes = randn(1, 2, 24)
    assert torch.equal(sequence.slope, flat.slope)
    assert torch.equal(sequence.curve(changes), flat.curve(changes))
    assert sequence.samples == flat.samples == 6


def test_saturated_logits_are_not_curved_and_finite() -> None:
    found = quadratic(
        cross_entropy(torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([0, 0])), "Rule", None
    )
    assert found.slope.tolist() == [[0.0, 0.0, -0.5, 0.5]]
    assert not found.curve(torch.ones(1, 1, 4)).any()


# ---- losses without predictions ------------------------------------------------------------------


def test_losses_of_samples_are_squares_of_something_linear() -> None:
    """l_i = u_i^2 and do = 2 u du: <do, H do> would be that of the squared error, 2 du^2 / N; exact
    Gauss-Newton.

    But for a tenth of the mean that is added to each loss.
    """
    u, du = randn(7, seed=1), randn(2, 7, seed=2)
    losses, changes = u * u, 2 * u * du
    found = quadratic(losses, "Rule", None)
    unit = losses + 0.1 * losses.mean()
    expected = (changes * changes / (2 * 7 * unit)).sum(1)
    torch.testing.assert_close(
        (changes * found.curve(changes[None])[0]).sum(1), expected, rtol=1e-13, atol=0
    )
    torch.testing.assert_close(
        changes @ found.slope[0], (2 / 7 * u * du).sum(1), rtol=1e-13, atol=0
    )
    alike = torch.full((7,), 1.5, dtype=torch.float64)
    moved = 2 * alike.sqrt() * du
    bent = (moved * quadratic(alike, "Rule", None).curve(moved[None])[0]).sum(1)
    torch.testing.assert_close(1.1 * bent, 2 / 7 * (du * du).sum(1), rtol=1e-13, atol=0)
    assert found.black_box
    assert not found.saturates
    assert found.samples == 7


def test_a_lone_loss_has_the_curvature_of_its_square_root() -> None:
    for returned in (2.5, torch.tensor(2.5, dtype=torch.float64), torch.tensor([2.5])):
        found = quadratic(returned, "Rule", None)
        assert found.values.tolist() == [[2.5]]
        assert found.slope.tolist() == [[1.0]]
        assert float(found.curve(torch.ones(1, 1, 1))) == pytest.approx(0.5 / (1.1 * 2.5), rel=1e-6)
        assert found.samples == 1


@pytest.mark.parametrize("losses", [[-3.0, -1.0, 2.0], [-2.0], [0.0, 0.0], [0.0]], ids=str)
def test_negative_and_vanishing_losses_have_a_curvature_that_is_finite_and_not_negative(
    losses: list[float],
) -> None:
    found = quadratic(torch.tensor(losses, dtype=torch.float64), "Rule", None)
    curved = found.curve(torch.full((1, 1, len(losses)), 1e-3, dtype=torch.float64))
    assert curved.isfinite().all()
    assert bool((curved >= 0).all())
    if any(losses):
        excess = [x - min(losses) for x in losses] if len(losses) > 1 else [2.0]
        mean = sum(excess) / len(excess)
        units = [x + 0.1 * mean for x in excess] if len(losses) > 1 else excess
        expected = [1e-3 / (2 * len(losses) * unit) for unit in units]
        assert curved[0, 0].tolist() == pytest.approx(expected, rel=1e-13)


def test_replicas_do_not_mix() -> None:
    losses = randn(3, 6).square()
    fleet = quadratic(losses, "Rule", 3)
    changes = randn(3, 2, 6, seed=1)
    for r in range(3):
        alone = quadratic(losses[r], "Rule", None)
        assert torch.equal(fleet.curve(changes)[r], alone.curve(changes[r : r + 1])[0])
        assert torch.equal(fleet.loss[r : r + 1], alone.loss)


@pytest.mark.parametrize("kind", ["outcome", "losses"])
def test_a_hundredfold_loss_has_a_hundredfold_slope_and_curvature(kind: str) -> None:
    """As functions of the weights: where the outcomes are the losses, their changes grow with
    them.
    """
    values, changes = randn(5, 3), randn(1, 2, 15, seed=1)
    if kind == "outcome":
        one, many = (
            quadratic(outcome(values, lambda v, s=s: s * quartic(v)), "Rule", None)
            for s in (1.0, 100.0)
        )
        scaled = changes
    else:
        one, many = (quadratic(s * values.flatten().square(), "Rule", None) for s in (1.0, 100.0))
        scaled = 100.0 * changes
    torch.testing.assert_close(
        scaled @ many.slope[0], 100.0 * changes @ one.slope[0], rtol=1e-13, atol=1e-13
    )
    torch.testing.assert_close(
        scaled @ many.curve(scaled)[0].mT,
        100.0 * changes @ one.curve(changes)[0].mT,
        rtol=1e-12,
        atol=1e-12,
    )


# ---- forms and errors ----------------------------------------------------------------------------


def test_16_bit_and_whole_numbers_are_read_in_float32() -> None:
    for values in (torch.ones(2, 3).bfloat16(), torch.ones(2, 3, dtype=torch.long)):
        found = outcome_in(read(outcome(values, lambda v: v.float().sum(1)), "it"))
        assert found.dtype == torch.float32
        assert found.shape == (1, 6)
    assert outcome_in(read(randn(4), "it")).dtype == torch.float64


def test_the_mean_of_float32_losses_is_taken_in_float64() -> None:
    """Late improvements are smaller than the resolution of a float32 mean."""
    losses = torch.full((1000,), 1.0) + torch.linspace(0, 1e-6, 1000)
    exact = math.fsum(losses.tolist()) / 1000
    assert float(quadratic(losses, "Rule", None).loss) == pytest.approx(exact, abs=1e-15)


def test_an_unknown_loss_is_an_error_that_says_what_to_do() -> None:
    values = randn(3)
    with pytest.raises(
        ValueError, match=r"Rule.*'hinge'.*squared_error, cross_entropy.*outcome\(values, loss\)"
    ):
        quadratic(Outcome(values, values**2, "hinge", values), "Rule", None)


@pytest.mark.parametrize(
    "returned", [None, "loss", (1.0,), [], torch.zeros(2, 2), torch.zeros(0)], ids=str
)
def test_what_is_no_loss_is_an_error_that_names_the_rule(returned: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="Rule"):
        quadratic(returned, "Rule", None)


@pytest.mark.parametrize("replicas", [None, 3])
def test_an_outcome_whose_loss_is_a_mean_has_as_many_samples_as_rows(replicas: int | None) -> None:
    values = torch.ones(6, 2) if replicas is None else torch.ones(replicas, 6, 2)
    returned = outcome(values, lambda v: v.square().mean((-2, -1)))
    assert quadratic(returned, "VectorDopamine", replicas).samples == 6
