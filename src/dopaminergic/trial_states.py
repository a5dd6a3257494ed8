"""The state of `AskTell`: the optimizer, the weights, and a step that is half told."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopaminergic.answers import Answer, load_answer, save_answer
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.plain import brief, number_of

VERSION = 1
KEYS = ("version", "optimizer", "weights", "first", "answers", "remembered", "best")
LAST = 1 << 62  # no trial has a number beyond


class Told(NamedTuple):
    """All that was told.

    Attributes:
        first: number of the first trial of this step.
        answers: to trials of this step.
        remembered: digests of answers to trials of earlier steps.
        best: number, loss and weights of the best trial.
    """

    first: int
    answers: dict[int, Answer]
    remembered: dict[int, int]
    best: tuple[int, float, list[np.ndarray]] | None


def save(optimizer: dict[str, Any], weights: list[np.ndarray], told: Told) -> dict[str, Any]:
    """A state of tensors, numbers, lists and dicts."""
    best = None
    if told.best is not None:
        number, loss, arrays = told.best
        best = {"number": number, "loss": loss, "weights": _tensors(arrays)}
    return {
        "version": VERSION,
        "optimizer": optimizer,
        "weights": _tensors(weights),
        "first": told.first,
        "answers": {n: save_answer(answer) for n, answer in told.answers.items()},
        "remembered": dict(told.remembered),
        "best": best,
    }


def load(
    saved: Any, optimizer: ForwardOptimizer, own: list[np.ndarray]
) -> tuple[list[np.ndarray], Told]:
    """The weights and all that was told; raise unless the state fits, and change nothing.

    Args:
        saved: the state.
        optimizer: that is to continue.
        own: its weights, for their shapes and dtypes.

    Raises:
        ValueError: something is wrong with it.
    """
    if not isinstance(saved, dict) or set(saved) != set(KEYS):
        has = brief(list(saved)) if isinstance(saved, dict) else brief(saved)
        raise ValueError(
            f"AskTell.load_state_dict: this is no state of an AskTell, it has {has}; pass what "
            "state_dict() returned"
        )
    if saved["version"] != VERSION:
        raise ValueError(
            f"AskTell.load_state_dict: the state has version {brief(saved['version'])}, and this "
            f"library reads {VERSION}; install the one that saved it"
        )
    optimizer.check_state_dict(saved["optimizer"])
    try:
        return _read(saved, own)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"AskTell.load_state_dict: the state is damaged or of other weights "
            f"({str(error)[:120]}); load another copy"
        ) from error


def _read(saved: dict[str, Any], own: list[np.ndarray]) -> tuple[list[np.ndarray], Told]:
    arrays = _arrays("weights", saved["weights"], own)
    first = _number("first", saved["first"])
    answers: dict[int, Answer] = {}
    for key, value in saved["answers"].items():
        number = _number("a trial", key)
        if number < first:
            raise ValueError(f"trial {number} is answered, and the step begins at {first}")
        answers[number] = load_answer(value, number)
    remembered = {
        _number("a trial", key): _number("a digest", value, 1 << 63)
        for key, value in saved["remembered"].items()
    }
    best = saved["best"]
    if best is not None:
        loss = number_of(best["loss"])
        if loss is None or not np.isfinite(loss):
            raise ValueError(f"the best loss is {brief(best['loss'])}")
        found = _arrays("the best weights", best["weights"], own)
        best = (_number("the best trial", best["number"]), float(loss), found)
    return arrays, Told(first, answers, remembered, best)


def _number(name: str, value: Any, below: int = LAST) -> int:
    number = number_of(value)
    if not isinstance(number, int) or not 0 <= number < below:
        raise ValueError(f"{name} is {brief(value)}, and no int >= 0")
    return number


def _arrays(name: str, saved: Any, own: list[np.ndarray]) -> list[np.ndarray]:
    if not isinstance(saved, list) or len(saved) != len(own):
        raise ValueError(f"{name} are no list of {len(own)} tensors")
    for tensor, array in zip(saved, own, strict=True):
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != array.shape:
            raise ValueError(f"{name} have other shapes than here, where one is {array.shape}")
        if torch.from_numpy(array[..., None]).dtype != tensor.dtype:
            raise ValueError(f"{name} hold {tensor.dtype}, here {array.dtype}")
    return [tensor.detach().cpu().numpy().copy() for tensor in saved]


def _tensors(arrays: list[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(array.copy()) for array in arrays]
