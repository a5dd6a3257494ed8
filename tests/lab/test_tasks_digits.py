"""The digits task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.tasks.digits import Digits


def test_a_blind_network_errs_by_the_logarithm_of_ten() -> None:
    task = make_task("digits", dtype="float64")
    model = task.build(0)
    with torch.no_grad():
        model.get_parameter("weight_1").zero_()
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


def test_digits_are_learned_by_backpropagation() -> None:
    task = make_task("digits")
    model = task.build(100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(600):
        optimizer.zero_grad()
        task.outcome(model, task.batch(100, step)).mean().backward()
        optimizer.step()
    metrics = task.evaluate(model)
    assert metrics["cross_entropy"] < 0.12
    assert metrics["accuracy"] > 0.96
