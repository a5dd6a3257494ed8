"""Logs: dictionaries of numbers, and what takes them."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dopaminergic import Dopamine2
from dopaminergic.integrations.logging import CSV, Log, TensorBoard, numbers
from optimizers import Regression, Row


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_numbers_are_those_of_the_optimizer(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    loss = optimizer.step(problem.loss)
    assert numbers(optimizer, loss=loss, accuracy=np.float32(0.5)) == {
        "step": 1,
        "forward_passes": optimizer.forward_passes,
        "rpe": float(optimizer.last_rpe),
        "effective_learning_rate": float(optimizer.last_learning_rate),
        "skipped_steps": 0,
        "loss": loss,
        "accuracy": 0.5,
    }


def test_callbacks_get_dictionaries_of_their_own_every_so_many_steps() -> None:
    problem = Regression()
    optimizer = Dopamine2(problem.model.parameters())
    seen: list[dict[str, float]] = []
    log = Log(optimizer, dict.clear, seen.append, every=3)
    losses = []
    for _ in range(7):
        losses.append(optimizer.step(problem.loss))
        log(loss=losses[-1])
    assert [found["step"] for found in seen] == [3, 6]
    assert [found["loss"] for found in seen] == [losses[2], losses[5]]


def test_a_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    CSV(path)({"step": 1, "loss": 0.1})
    again = CSV(str(path))
    again({"step": 2, "loss": math.nan})
    again({"step": 3})
    assert rows(path) == [
        {"step": "1", "loss": "0.1"},
        {"step": "2", "loss": "nan"},
        {"step": "3", "loss": ""},
    ]
    assert float(rows(path)[0]["loss"]) == 0.1
    with pytest.raises(ValueError, match="no column 'rpe'; give all names in the first") as error:
        again({"step": 4, "rpe": 0.0})
    assert len(str(error.value)) <= 300
    assert len(rows(path)) == 3


def test_tensorboard_gets_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    for step in (1, 5):
        board({"step": step, "loss": 0.5 / step})
    TensorBoard(board.writer)({"step": 6, "loss": 0.0})
    board.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert found.Tags()["scalars"] == ["loss"]
    scalars = found.Scalars("loss")
    assert [(one.step, one.value) for one in scalars] == [
        (1, 0.5),
        (5, pytest.approx(0.1)),
        (6, 0.0),
    ]


def test_bad_input_is_one_sentence() -> None:
    optimizer = Dopamine2([torch.nn.Parameter(torch.ones(3))])
    fleet = Dopamine2([torch.nn.Parameter(torch.ones(2, 3))], seed=[0, 1])
    not_callable: Any = "run.csv"
    no_number: Any = 1.5
    for call, words in (
        (lambda: numbers(optimizer, loss="low"), "numbers: loss must be a number, got 'low'"),
        (lambda: numbers(optimizer, loss=torch.ones(2)), "numbers: loss must be a number, got"),
        (lambda: numbers(fleet), "numbers: this optimizer trains a fleet"),
        (lambda: Log(optimizer, not_callable), "Log: a callback must be a function of a dict"),
        (lambda: Log(optimizer, print, every=0), "Log: every must be an int >= 1, got 0"),
        (lambda: Log(optimizer, print, every=no_number), "Log: every must be an int >= 1, got 1.5"),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        assert words in str(error.value)
        assert len(str(error.value)) <= 300
