"""Samples, time steps and units are found in tensors of any shape, and told apart by a trial."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dopaminergic import NodeDopamine, NodePerturbation, squared_error
from dopaminergic.activities.layout import layouts
from optimizers import randn


@st.composite
def shapes(draw: Any) -> tuple[tuple[int, ...], int | None, int, int]:
    """A shape in which samples can be found, replicas, samples, and time steps."""
    samples = draw(st.integers(1, 6))
    times = draw(st.integers(1, 4))
    replicas = draw(st.none() | st.integers(1, 3))
    rest = draw(st.lists(st.integers(1, 5), max_size=3))
    factor = draw(st.integers(1, 3))
    place = draw(st.integers(0, len(rest)))
    shape = [*rest[:place], samples * factor, *rest[place:]]
    if draw(st.booleans()):
        shape.insert(draw(st.integers(0, len(shape))), times)
    return tuple(([] if replicas is None else [replicas]) + shape), replicas, samples, times


@given(shapes())
@settings(max_examples=300, deadline=None)
def test_apart_and_together_are_inverse(case: Any) -> None:
    shape, replicas, samples, times = case
    whole = torch.arange(math.prod(shape)).view(shape)
    for layout in layouts(shape, replicas, samples, times):
        found = layout.apart(whole)
        assert found.ndim == 4
        assert found.shape[:2] == (replicas or 1, samples)
        assert torch.equal(layout.together(found, shape), whole)


@given(shapes())
@settings(max_examples=300, deadline=None)
def test_replicas_come_first_and_samples_are_found(case: Any) -> None:
    shape, replicas, samples, times = case
    found = layouts(shape, replicas, samples, times)
    assert found
    assert len(set(found)) == len(found)
    if replicas is not None:
        numbers = torch.arange(replicas).view(-1, *[1] * (len(shape) - 1)).expand(shape)
        apart = found[0].apart(numbers)
        assert torch.equal(apart, torch.arange(replicas).view(-1, 1, 1, 1).expand(apart.shape))


def test_no_layout_is_found_where_no_sample_fits() -> None:
    assert layouts((5, 3), None, 7, 1) == []
    assert layouts((), None, 2, 1) == []
    assert layouts((3, 8), 2, 8, 1) == []


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((1, 6, 20), (1, 6, 1, 20)),
        ((1, 6, 12), (1, 6, 1, 12)),
        ((1, 1, 6, 12), (1, 6, 1, 12)),
        ((6, 20), (1, 6, 1, 20)),
        ((6, 12), (1, 6, 1, 12)),
        ((6, 12, 20), (1, 6, 12, 20)),
        ((13, 6, 20), (1, 6, 13, 20)),
        ((6, 15, 12), (1, 6, 12, 15)),
        ((6, 12, 1), (1, 6, 12, 1)),
        ((6, 1, 12), (1, 6, 12, 1)),
        ((1, 72, 2), (1, 6, 12, 2)),
    ],
)
def test_the_likeliest_layout_tells_time_from_units(
    shape: tuple[int, ...], form: tuple[int, ...]
) -> None:
    likeliest = layouts(shape, None, 6, 12)[0]
    assert likeliest.apart(torch.zeros(shape)).shape == form


class TimeMajor(nn.Module):
    """A network that puts time first, and all steps of all samples into rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        rows = x.transpose(0, 1).reshape(t * b, 3)
        h = torch.tanh(self.first(rows))
        return self.second(h).view(t, b, 2).transpose(0, 1)


class SampleMajor(TimeMajor):
    """The same with the steps of each sample one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        h = torch.tanh(self.first(x.reshape(b * t, 3)))
        return self.second(h).view(b, t, 2)


@pytest.mark.parametrize(("kind", "chosen"), [(TimeMajor, 1), (SampleMajor, 0)])
@pytest.mark.parametrize("rule", [NodeDopamine, NodePerturbation])
def test_rows_that_run_over_time_first_are_found_by_a_trial(
    rule: Any, kind: Any, chosen: int
) -> None:
    torch.manual_seed(1)
    model = kind().double()
    x, y = randn(6, 4, 3, seed=2), randn(6, 4, 2, seed=3)
    optimizer = rule(model)
    optimizer.step(lambda: squared_error(model(x), y))
    memory = optimizer.state_dict()["forward"]["memory"]
    found = [v.tolist()[0] for name, v in memory.items() if name.startswith("layout of first")]
    assert found == [chosen]


def test_both_orders_of_rows_train_alike() -> None:
    ends = []
    for kind in (TimeMajor, SampleMajor):
        torch.manual_seed(1)
        model = kind().double()
        x = randn(24, 4, 3, seed=2)
        y = torch.stack([x.sum(2).sin(), x[..., 0]], 2)
        optimizer = NodeDopamine(model)
        losses = [
            optimizer.step(lambda model=model, x=x, y=y: squared_error(model(x), y))
            for _ in range(80)
        ]
        ends.append(losses[-1])
    assert ends[0] == pytest.approx(ends[1], rel=0.5)
    assert max(ends) < 0.05


def test_batch_norm_is_told_once_as_coupled_and_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 2))
    x = randn(64, 4, seed=1, dtype=torch.float32)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)
    optimizer = NodeDopamine(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        losses = [optimizer.step(lambda: squared_error(model(x), y)) for _ in range(100)]
    assert len(told) == 1
    text = str(told[0].message)
    assert "depend on each other" in text
    assert "0.weight" in text
    assert "LayerNorm" in text
    assert len(text) <= 300
    assert losses[-1] < 0.7 * losses[0]


def test_norms_of_single_samples_are_not_told_of() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 2)).double()
    x = randn(64, 4, seed=1)
    optimizer = NodeDopamine(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer.step(lambda: squared_error(model(x), x[:, :2]))
    assert told == []


def test_a_trial_is_made_once_for_each_form_of_a_site() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = randn(12, 4, seed=1)
    optimizer = NodePerturbation(model)
    passes = []
    for size in (12, 12, 8, 12):
        before = optimizer.forward_passes
        optimizer.step(lambda size=size: squared_error(model(x[:size]), x[:size, :2]))
        passes.append(optimizer.forward_passes - before)
    assert passes == [5, 3, 3, 3]


@pytest.mark.parametrize("rule", [NodeDopamine, NodePerturbation])
def test_a_lone_sample_can_be_trained(rule: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = randn(1, 4, seed=1)
    optimizer = rule(model)
    losses = [optimizer.step(lambda: squared_error(model(x), x[:, :2])) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
