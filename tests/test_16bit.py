"""16-bit weights: exact after a probe, and small updates survive in expectation."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import SPSA, WeightPerturbation
from optimizers import Row, copies, drawn, randn, same

HALVES = [torch.bfloat16, torch.float16]
STANDARD_ERRORS = 5.0
dtypes = pytest.mark.parametrize("dtype", HALVES, ids=str)


class Half:
    """A least-squares problem with 16-bit weights whose loss, 0 at best, is computed in float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.w = nn.Parameter(randn(8, seed=1).to(dtype))
        self.x, self.true = randn(32, 8), randn(8, seed=2)

    def loss(self) -> Tensor:
        return ((self.x @ (self.w.double() - self.true)) ** 2).mean().detach()


@pytest.mark.filterwarnings("ignore:.*a second probe:RuntimeWarning")
@dtypes
def test_hundreds_of_probes_do_not_move_a_bit(any_row: Row, dtype: torch.dtype) -> None:
    half = Half(dtype)
    old, optimizer, probes = copies([half.w]), any_row.make([half.w]), 0
    while probes < 250:
        optimizer.probe(half.loss)
        probes += any_row.passes(optimizer.settings["directions"])
    assert same(copies([half.w]), old)


def test_16_bit_weights_are_perturbed_more(any_row: Row) -> None:
    half, single = (nn.Parameter(randn(5).to(dtype)) for dtype in (torch.float16, torch.float32))
    small, most = any_row.make([single]).default_sigmas
    # Sigma is then the length of the perturbation of all weights.
    together = any_row.name == "VectorDopamine"
    large, larger, coarse = (
        min(most, math.sqrt(size) / parts) if together else most
        for size, parts in ((5, 200), (10, 200), (5, 80))
    )
    for params in ([half], iter([half]), [("w", half)]):
        assert [group["sigma"] for group in any_row.make(params).param_groups] == [large]
    both = any_row.make([{"params": iter([single])}, {"params": [half]}])
    assert [group["sigma"] for group in both.param_groups] == [larger, larger]
    frozen = nn.Parameter(randn(7).to(torch.float16), requires_grad=False)
    assert any_row.make([half, frozen]).param_groups[0]["sigma"] == large
    assert (
        any_row.make([nn.Parameter(torch.zeros(100_000, dtype=torch.bfloat16))]).param_groups[0][
            "sigma"
        ]
        == most
    )
    fleet = any_row.make([nn.Parameter(torch.zeros(2, 5, dtype=torch.bfloat16))], seed=[1, 2])
    assert fleet.param_groups[0]["sigma"] == coarse
    frozen = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16), requires_grad=False)
    assert any_row.make([half, frozen]).param_groups[0]["sigma"] == coarse
    assert any_row.make([single]).param_groups[0]["sigma"] == small
    assert any_row.make([half], sigma=0.1).param_groups[0]["sigma"] == 0.1
    groups = [{"params": [half], "sigma": 0.2}, {"params": [single]}]
    assert [group["sigma"] for group in any_row.make(groups).param_groups] == [0.2, larger]
    with pytest.raises(TypeError, match="iterable"):
        any_row.make(half)  # pyright: ignore


@dtypes
def test_no_learning_rate_no_change(any_row: Row, dtype: torch.dtype) -> None:
    half = Half(dtype)
    old = copies([half.w])
    optimizer = any_row.make([half.w], lr=0.0, weight_decay=0.5, directions=2)
    for _ in range(20):
        optimizer.step(half.loss)
    assert same(copies([half.w]), old)


@dtypes
def test_an_exception_is_undone_bit_for_bit(any_row: Row, dtype: torch.dtype) -> None:
    half, calls = Half(dtype), 0
    old, optimizer = copies([half.w]), any_row.make([half.w])

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return half.loss() if calls < 2 else half.loss() / (1 // 0)

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert same(copies([half.w]), old)


@dtypes
def test_perturbed_weights_are_neighbours_of_the_exact_ones(dtype: torch.dtype) -> None:
    """Rounding goes to one of the two nearest 16-bit numbers, and is right on average."""
    w, sigma, seen = nn.Parameter(torch.full((20_000,), 0.75, dtype=dtype)), 3e-4, []

    def closure() -> float:
        seen.append(w.detach().double())
        return 0.0

    WeightPerturbation([w], sigma=sigma).step(closure)
    moved = seen[1] - 0.75
    step = float(torch.finfo(dtype).eps) / 2  # of numbers in [1/2, 1)
    assert float(moved.abs().max()) <= math.ceil(sigma / step) * step
    error = moved.abs().mean() - sigma
    assert abs(float(error)) < STANDARD_ERRORS * step / 2 / math.sqrt(len(moved))


def mean_update(
    make: Any, dtype: torch.dtype, gradient: Tensor, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Mean and standard error of one step over many seeds, for a linear loss; both over the
    learning rate.
    """
    replicas = 10_000
    start = (
        torch.linspace(0.6, 0.9, len(gradient))
        * torch.tensor([1.0, -1.0]).repeat(len(gradient))[: len(gradient)]
    )
    w = nn.Parameter(start.repeat(replicas, 1).to(dtype))
    old = w.detach().double()
    make([w], seed=range(replicas), **settings).step(lambda: (w.double() * gradient).sum(1))
    change = (w.detach().double() - old) / settings["lr"]
    return change.mean(0), change.std(0) / math.sqrt(replicas)


@dtypes
def test_updates_far_below_the_resolution_survive_in_expectation(dtype: torch.dtype) -> None:
    """Steps of 1e-6 on weights whose neighbours are 4e-3 (5e-4) away: rounding to nearest would
    lose every one.
    """
    gradient = torch.tensor([1.0, -2.0, 0.5, 0.25, 1.5, -1.0, 0.75, 2.0], dtype=torch.float64)
    mean, error = mean_update(WeightPerturbation, dtype, gradient, lr=2e-5, sigma=0.25)
    assert float(((mean + gradient) / error).abs().max()) < STANDARD_ERRORS
    slope = (mean @ gradient) / (gradient @ gradient)
    assert float(slope) == pytest.approx(-1.0, abs=0.5)  # and they do move


@dtypes
@pytest.mark.parametrize("sign", ["the same", "random"])
def test_errors_of_many_small_updates_cancel(dtype: torch.dtype, sign: str) -> None:
    """Thresholds drawn anew in each step would leave a variance of steps * 0.1 * 0.9."""
    unit, steps = float(torch.finfo(dtype).eps) / 2, 200  # in [1/2, 1)
    w = nn.Parameter(torch.full((4_000,), 0.75, dtype=dtype))
    optimizer, exact = WeightPerturbation([w]), torch.full((4_000,), 0.75, dtype=torch.float64)
    for step in range(steps):
        optimizer._weights.begin(step)
        if sign == "random":
            exact += 0.1 * unit * drawn(optimizer, w, 0, step=step)
            optimizer._weights.update([(0, [0.1 * unit])], None, lambda: None)
        else:
            exact -= 0.1 * unit
            optimizer._weights.update(
                [], [1.0 - 0.1 * unit / w.detach().double().mean().item()], lambda: None
            )
    error = (w.detach().double() - exact) / unit
    assert abs(float(error.mean())) < 0.1 + STANDARD_ERRORS * float(error.std()) / math.sqrt(len(w))
    assert float(error.var()) < steps * 0.1 * 0.9 * (0.6 if sign == "random" else 0.06)


@dtypes
@pytest.mark.parametrize("make", [WeightPerturbation, SPSA])
def test_the_update_is_rounded_with_other_numbers_than_the_perturbation(
    make: Any, dtype: torch.dtype
) -> None:
    """Sharing them would move just those weights that had been perturbed, and bias the update by a
    factor.
    """
    gradient = torch.linspace(0.5, 1.0, 4, dtype=torch.float64)
    fine = 1.0 if dtype == torch.bfloat16 else 0.125  # the ratio of the resolutions
    mean, error = mean_update(make, dtype, gradient, lr=2e-4 * fine, sigma=1e-3 * fine)
    size = gradient @ gradient
    slope, spread = (
        float(mean @ gradient / size),
        float(((error * gradient).square().sum()).sqrt() / size),
    )
    assert abs(slope + 1.0) < STANDARD_ERRORS * spread


@dtypes
def test_large_16_bit_models_are_exact_too(dtype: torch.dtype) -> None:
    """Above 1 MiB as below: a copy is kept, since going back in place would drift."""
    w = nn.Parameter(randn(600_000, dtype=torch.float32).to(dtype))
    old, optimizer = w.detach().clone(), WeightPerturbation([w])
    optimizer.probe(lambda: float(w[0]))
    assert torch.equal(w.detach(), old)


@dtypes
def test_overflow_does_not_make_nan(dtype: torch.dtype) -> None:
    """The largest numbers and infinities stay what they are, or become infinite; NaN is never
    made.
    """
    largest = torch.finfo(dtype).max
    w = nn.Parameter(torch.tensor([largest, -largest, math.inf, -math.inf, 0.0, 1.0], dtype=dtype))
    old = w.detach().clone()
    optimizer = WeightPerturbation([w], sigma=0.5, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step(lambda: float(w[5]))
    assert not w.detach().isnan().any()
    assert torch.equal(w.detach()[2:4], old[2:4])


@dtypes
def test_training_goes_down(any_row: Row, dtype: torch.dtype) -> None:
    half = Half(dtype)
    # Rounding multiplies the variance of the estimate, which a fixed learning rate must allow for.
    settings = {**any_row.learns, "lr": 0.02} if any_row.estimates else any_row.learns
    optimizer, before = any_row.make([half.w], **settings), float(half.loss())
    while optimizer.forward_passes < 400:
        optimizer.step(half.loss)
    assert float(half.loss()) < 0.5 * before


def test_the_smallest_halves_are_not_rounded_away() -> None:
    """Below 2^-14 neighbours of float16 are 2^-24 apart; an update of a tenth of that must survive
    in expectation.
    """
    w = nn.Parameter(torch.full((20_000,), 3e-6, dtype=torch.float16))
    optimizer = WeightPerturbation([w], lr=0.0, sigma=1e-6)
    before = w.detach().double()
    shift = 2.0**-24 / 10
    optimizer._weights.begin(0)
    optimizer._weights.update([], [1.0 - shift / 3e-6], lambda: None)
    change = (w.detach().double() - before).mean()
    spread = 2.0**-24 * (0.1 * 0.9 / 20_000) ** 0.5
    assert abs(float(change) + float(before[0]) * shift / 3e-6) < 5 * spread
