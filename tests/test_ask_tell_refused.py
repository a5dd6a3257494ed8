"""Bad input to ask and tell: one clear sentence each, and nothing has changed afterwards."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dopaminergic import SPSA, AskTell, Dopamine2, NodeDopamine, NodePerturbation, VectorDopamine

BAD_STARTS: list[tuple[Any, type[Exception], str]] = [
    (3.0, TypeError, "start must be an array"),
    ("weights", TypeError, "start must be an array"),
    (np.ones(3, int), TypeError, "start is no array of floats but int64"),
    (np.ones(3, np.float16), TypeError, "float16"),
    (np.ones(3, complex), TypeError, "complex128"),
    (torch.ones(3, dtype=torch.bfloat16), TypeError, "bfloat16"),
    ([1.0, 2.0], TypeError, r"start\[0\] is no array of floats but float"),
    ({"a": None}, TypeError, r"start\['a'\] is no array"),
    ([{"sigma": 1.0}], TypeError, "group 0 of start has no 'params'"),
    ([], ValueError, "start has no weights"),
    ({}, ValueError, "start has no weights"),
    (np.ones((0, 3)), ValueError, "start has no weights"),
]


@pytest.mark.parametrize(("given", "error", "words"), BAD_STARTS, ids=str)
def test_bad_starts_are_refused(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as found:
        AskTell(given)
    assert len(str(found.value)) <= 300


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (NodeDopamine, "NodeDopamine cannot be asked"),
        (NodePerturbation, "NodePerturbation cannot be asked"),
        (torch.optim.SGD, "SGD cannot be asked .* no optimizer of this library"),
        (lambda params: torch.optim.SGD(params, lr=1.0), "SGD cannot be asked"),
        ("Dopamine2", "optimizer must be a class"),
        (lambda params: None, "NoneType cannot be asked"),
    ],
)
def test_optimizers_that_cannot_be_asked_are_refused_by_name(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words) as found:
        AskTell(np.ones(3), given)
    assert len(str(found.value)) <= 300


def test_settings_that_cannot_be_asked_are_refused() -> None:
    for given, words in [
        ({"batched": True}, "Dopamine2 was given batched=True"),
        ({"seed": [1, 2, 3]}, "a fleet"),
        ({"timeout": 0}, "timeout must be finite and > 0, got 0"),
        ({"timeout": math.inf}, "timeout must be finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            AskTell(np.ones((3, 1)), **given)
    with pytest.raises(ValueError, match="made Dopamine2 of other parameters"):
        AskTell(np.ones(3), lambda params: Dopamine2([nn.Parameter(torch.ones(2))]))
    with pytest.raises(TypeError, match="timeout must be a number"):
        AskTell(np.ones(3), timeout="1 s")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("number", "outcome", "error", "words"),
    [
        (0, None, TypeError, "the outcome of trial 0 must be a number"),
        (0, "1.0", TypeError, "got '1.0'"),
        (0, (1.0, 2.0), TypeError, "must be a number"),
        (0, [], ValueError, "shape"),
        (0, np.ones((2, 2)), ValueError, r"has shape \(2, 2\)"),
        (0, 1j, TypeError, "must be a number"),
        (1, 1.0, ValueError, r"trial 1 was never asked; .* open ones are \[0\]"),
        (7, 1.0, ValueError, "trial 7 was never asked"),
        (-1, 1.0, ValueError, "number must be >= 0, got -1"),
        (0.0, 1.0, TypeError, "number must be the int"),
        ("0", 1.0, TypeError, "number must be the int"),
        (True, 1.0, TypeError, "number must be the int"),
    ],
)
def test_bad_answers_are_refused_and_change_nothing(
    number: Any, outcome: Any, error: type[Exception], words: str
) -> None:
    asker = AskTell(np.ones(3))
    asker.ask()
    before = str(asker.state_dict())
    with pytest.raises(error, match=re.compile(words)) as found:
        asker.tell(number, outcome)
    assert len(str(found.value)) <= 300
    assert str(asker.state_dict()) == before
    assert asker.missing == [0]


def test_bad_questions_are_refused() -> None:
    asker = AskTell(np.ones(3))
    for count, error in ((0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="count must be"):
            asker.ask(count)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="forget: trial 0 was never asked"):
        asker.forget(0)
    with pytest.raises(TypeError, match="forget: number must be the int"):
        asker.forget(None)  # pyright: ignore[reportArgumentType]


def test_vector_dopamine_refuses_other_samples_within_a_step() -> None:
    asker = AskTell(np.ones(3), VectorDopamine)
    asker.tell(asker.ask().number, [1.0, 2.0])
    asker.ask()
    with pytest.raises(ValueError, match=r"answered by 3 losses, and the first .* by 2 losses"):
        asker.tell(1, [1.0, 2.0, 3.0])
    assert asker.tell(1, [1.0, 2.5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"weights": []}, "no list of 1 tensors"),
        ({"weights": [torch.ones(4, dtype=torch.float64)]}, "other shapes"),
        ({"weights": [torch.ones(3)]}, "float32"),
        ({"first": -1}, "first is -1"),
        ({"answers": {0: {"kind": "losses", "values": "high"}}}, "damaged"),
        ({"answers": {0: {}}}, "damaged"),
        ({"answers": {99: {"kind": "losses", "values": 1.0}}}, "answers trials"),
        ({"answers": 3}, "damaged"),
        ({"remembered": {0: -1}}, "a digest is -1"),
        ({"best": {"number": 0, "loss": math.nan, "weights": []}}, "best loss is nan"),
        ({"optimizer": {}}, "does not come from a forward-only optimizer"),
    ],
    ids=str,
)
def test_damaged_states_are_refused_and_change_nothing(change: dict[str, Any], words: str) -> None:
    asker = AskTell(np.ones(3))
    saved = asker.state_dict()
    asker.tell(asker.ask().number, 1.0)
    before = str(asker.state_dict())
    with pytest.raises(ValueError, match=words) as found:
        asker.load_state_dict({**saved, **change})
    assert len(str(found.value)) <= 300
    assert str(asker.state_dict()) == before
    assert asker.ask().number == 1


def test_states_of_other_things_are_refused() -> None:
    asker = AskTell(np.ones(3))
    others: tuple[Any, ...] = ({}, None, asker.optimizer.state_dict())
    for given in others:
        with pytest.raises(ValueError, match="no state of an AskTell"):
            asker.load_state_dict(given)
    with pytest.raises(ValueError, match="Dopamine2"):
        asker.load_state_dict(AskTell(np.ones(3), SPSA).state_dict())
