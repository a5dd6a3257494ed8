"""The digits task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.tasks.digits import Digits


@pytest.mark.parametrize(
    ("name", "readout"),
    [("digits", "weight_1"), ("threshold-digits", "weight_1"), ("digits-conv", "weight_3")],
)
def test_a_blind_network_errs_by_the_logarithm_of_ten(name: str, readout: str) -> None:
    task = make_task(name, dtype="float64")
    model = task.build(0)
    with torch.no_grad():
        model.get_parameter(readout).zero_()
    metrics = task.evaluate(model)
    assert metrics["cross_entropy"].item() == pytest.approx(2.302585092994046, rel=1e-12)


def test_training_and_test_images_are_all_the_images() -> None:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    task = Digits()
    pixels = torch.cat([task.train[0], task.test[0]])
    labels = torch.cat([task.train[1], task.test[1]])
    assert len(task.train[0]) == 1297
    assert len(task.test[0]) == 500
    assert pixels.double().sum().item() * 16 == bunch.data.sum()
    assert torch.equal(labels.bincount(), torch.from_numpy(bunch.target).bincount())
    assert task.test[1].bincount().min() / 500 > 0.05  # shuffled: every digit is tested


@pytest.mark.parametrize(("name", "steps"), [("digits", 600), ("digits-conv", 150)])
def test_digits_are_learned_by_backpropagation(name: str, steps: int) -> None:
    task = make_task(name)
    model = task.build(100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(steps):
        optimizer.zero_grad()
        task.outcome(model, task.batch(100, step)).mean().backward()
        optimizer.step()
    metrics = task.evaluate(model)
    assert metrics["cross_entropy"] < 0.12
    assert metrics["accuracy"] > 0.96


def test_both_networks_see_the_same_images() -> None:
    perceptron, convolutional = make_task("digits"), make_task("digits-conv")
    for a, b in zip(perceptron.batch(7, 3), convolutional.batch(7, 3), strict=True):
        assert torch.equal(a, b)
