"""Whether an update leaves every weight finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dopaminergic.weights.layout import Block
from dopaminergic.weights.room import NORMAL_MOST, Room


def room(
    *values: float, dtype: torch.dtype = torch.float16, kind: str = "rademacher", replicas: int = 1
) -> Room:
    weights = torch.tensor(values, dtype=dtype).reshape(replicas, -1)
    return Room([Block(0, [weights], [0])], replicas, kind)


def test_steps_within_the_range_are_taken() -> None:
    beside = room(1.0, -60000.0)
    assert beside.takes_one(100.0)
    assert beside.takes([(0, [100.0]), (1, [-100.0])], None)


def test_a_step_past_the_largest_number_is_not_taken() -> None:
    assert not room(1.0, -60000.0).takes_one(6000.0)
    assert not room(1.0, 60000.0).takes([(0, [3000.0]), (1, [-3000.0])], None)


def test_steps_that_add_up_are_looked_at_before_they_leave_the_range() -> None:
    """Each look measures the weights anew, which have not moved here."""
    beside = room(1.0)
    assert all(beside.takes_one(5000.0) for _ in range(100))


def test_normal_directions_reach_farther_than_signs() -> None:
    far = 65504.0 / NORMAL_MOST
    assert room(1.0).takes_one(far)
    assert not room(1.0, kind="gaussian").takes_one(far)


def test_a_factor_that_is_not_finite_is_not_taken() -> None:
    assert not room(1.0).takes([], [float("nan")])
    assert not room(1.0).takes([(0, [0.0])], [float("inf")])


def test_weights_at_the_end_of_their_range_may_shrink() -> None:
    beside = room(65504.0)
    assert not beside.takes_one(65504.0)
    assert room(1.0).takes([], [0.5])


@pytest.mark.parametrize("move", [np.array([10.0, 60000.0])])
def test_replicas_are_told_apart(move: np.ndarray) -> None:
    found = room(1.0, 60000.0, replicas=2).takes([(0, [move])], None)
    assert found.tolist() == [True, False]
