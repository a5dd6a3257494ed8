"""A loss in other units: the weights end where they would, and never beyond what their dtype
holds.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dopaminergic import Dopamine, Dopamine2, VectorDopamine, outcome, squared_error

Rule = type[Dopamine] | type[Dopamine2] | type[VectorDopamine]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def trained(rule: Rule, unit: float, steps: int, kind: str = "squares") -> torch.Tensor:
    """All weights after some steps on outcomes that are given in another unit."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, generator=draws)
    y = torch.sin(x.sum(1, keepdim=True))
    model = network()
    optimizer = rule(model.parameters())

    def closure():
        prediction, target = unit * model(x), unit * y
        if kind == "squares":
            return squared_error(prediction, target)
        if kind == "custom":
            return outcome(prediction, lambda p: (p - target).square().mean(1))
        return (prediction - target).square().mean(1)

    for _ in range(steps):
        optimizer.step(closure)
    assert optimizer.skipped_steps == 0
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("unit", [2.0**-50, 2.0**-20, 2.0**20, 2.0**50])
@pytest.mark.parametrize("rule", [Dopamine, Dopamine2, VectorDopamine])
def test_weights_do_not_depend_on_the_unit_of_the_outcomes(rule: Rule, unit: float) -> None:
    usual = trained(rule, 1.0, 12)

    torch.testing.assert_close(trained(rule, unit, 12), usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", [2.0**-30, 2.0**50])
@pytest.mark.parametrize("kind", ["custom", "black box"])
def test_vectors_of_other_kinds_do_not_depend_on_the_unit(kind: str, unit: float) -> None:
    usual = trained(VectorDopamine, 1.0, 12, kind)

    torch.testing.assert_close(trained(VectorDopamine, unit, 12, kind), usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [0, 8])
def test_time_stamps_in_nanoseconds_leave_the_weights_finite(hidden: int) -> None:
    torch.manual_seed(0)
    stamps = 1.7e18 + 3.6e12 * torch.arange(48.0)[:, None]
    y = torch.sin(torch.arange(48.0) / 4)[:, None]
    layers = (
        [nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1)] if hidden else [nn.Linear(1, 1)]
    )
    model = nn.Sequential(*layers)
    optimizer = VectorDopamine(model.parameters())

    losses = [optimizer.step(lambda: squared_error(model(stamps), y)) for _ in range(20)]

    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_vector_step_beyond_the_largest_number_is_skipped(dtype: torch.dtype) -> None:
    weights = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = VectorDopamine([weights], sigma=0.5)
    huge = torch.finfo(dtype).max * 10.0

    target = torch.full((4,), huge, dtype=torch.float64)

    def train() -> None:
        for _ in range(8):
            optimizer.step(lambda: squared_error(weights.double(), target))

    with pytest.warns(RuntimeWarning, match="not finite"):
        train()

    assert bool(weights.isfinite().all())
    assert optimizer.skipped_steps > 0
