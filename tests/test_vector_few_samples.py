"""VectorDopamine: few samples, drawn afresh or the same again, and small noisy tables."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from dopaminergic import Dopamine2, VectorDopamine, evidence, squared_error


def wave(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x.sum(1, keepdim=True) / 2)


def test_noisy_batches_of_eight_do_not_make_the_error_grow() -> None:
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = VectorDopamine(model.parameters())
    for _ in range(300):
        x = torch.randn(8, 5, generator=draws)
        y = wave(x) + 0.3 * torch.randn(8, 1, generator=draws)
        optimizer.step(lambda x=x, y=y: squared_error(model(x), y))
    x = torch.randn(1000, 5, generator=draws)
    with torch.no_grad():
        error = (model(x) - wave(x)).square().mean() / wave(x).var()
    assert error < 0.5


def last_errors(rule: type[VectorDopamine | Dopamine2], samples: int) -> torch.Tensor:
    """Error over variance of each run of a fleet, after 3,000 passes of fresh batches."""
    seeds = list(range(8))
    draws = torch.Generator().manual_seed(0)
    shapes = ((5, 16), (1, 16), (16, 1), (1, 1))
    sides = [5**-0.5, 5**-0.5, 16**-0.5, 16**-0.5]
    weights = [
        nn.Parameter(side * (2 * torch.rand(len(seeds), *shape, generator=draws) - 1))
        for shape, side in zip(shapes, sides, strict=True)
    ]

    def model(x: torch.Tensor) -> torch.Tensor:
        first, bias, last, shift = weights
        return torch.tanh(x @ first + bias) @ last + shift

    def target(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x.sum(-1, keepdim=True) / 2)

    optimizer = rule(weights, seed=seeds)
    while optimizer.forward_passes < 3000:
        x = torch.randn(len(seeds), samples, 5, generator=draws)
        optimizer.step(lambda x=x: squared_error(model(x), target(x)))
    x = torch.randn(len(seeds), 1000, 5, generator=draws)
    with torch.no_grad():
        return (model(x) - target(x)).square().mean((1, 2)) / target(x).var(dim=(1, 2))


@pytest.mark.filterwarnings("ignore:VectorDopamine. each step learns from N = 1:RuntimeWarning")
@pytest.mark.parametrize(("samples", "most"), [(1, 1.4), (4, 1.2), (8, 1.2)])
def test_few_clean_samples_teach_as_much_as_they_teach_dopamine2(samples: int, most: float) -> None:
    found = last_errors(VectorDopamine, samples).median()
    assert found <= most * last_errors(Dopamine2, samples).median()


def lone_samples(steps: int, *, fresh: bool) -> list[str]:
    """The warnings of a run with one sample a batch."""
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = VectorDopamine(model.parameters())
    x = torch.randn(1, 5, generator=draws)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            x = torch.randn(1, 5, generator=draws) if fresh else x
            optimizer.step(lambda x=x: squared_error(model(x), wave(x)))
    return [str(warning.message) for warning in caught]


def test_one_sample_after_another_is_warned_of_once() -> None:
    said = lone_samples(40, fresh=True)
    assert len(said) == 1
    assert said[0].startswith("VectorDopamine: each step learns from N = 1 loss")
    assert "the last 8 or more samples together" in said[0]
    assert len(said[0]) <= 300


def test_one_sample_that_stays_is_no_reason_to_warn() -> None:
    assert lone_samples(40, fresh=False) == []


def noisy_table(samples: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ten columns, of which the sum of two tells the target, as large as its noise."""
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(samples + 500, 10, generator=draws)
    clean = wave(x[:, :2])
    y = clean + clean.std() * torch.randn(samples + 500, 1, generator=draws)
    return x[:samples], y[:samples], x[samples:], clean[samples:]


def test_the_error_of_a_small_noisy_table_does_not_rise_with_training() -> None:
    x, y, unseen, clean = noisy_table()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = VectorDopamine(model.parameters())
    errors = []
    for step in range(120):
        optimizer.step(lambda: squared_error(model(x), y))
        if step + 1 in (20, 120):
            with torch.no_grad():
                errors.append(float((model(unseen) - clean).square().mean() / clean.var()))
    assert errors[1] <= 1.1 * errors[0]
    assert errors[1] < 1.0  # the mean of the targets has 1


def test_without_the_decay_the_error_of_that_table_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "STRENGTH", 0.0)
    with pytest.raises(AssertionError):
        test_the_error_of_a_small_noisy_table_does_not_rise_with_training()
