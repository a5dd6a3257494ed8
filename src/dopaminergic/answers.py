"""Answers of black boxes: read, compared, and saved.

An answer is a number, losses of samples, or predictions beside the truth.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic.outcomes import Outcome, cross_entropy, readable, squared_error
from dopaminergic.plain import brief

Answer = float | Tensor | Outcome
KNOWN = {"squared_error": squared_error, "cross_entropy": cross_entropy}


def read_answer(given: Any, number: int) -> Answer:
    """The answer in one of three forms: a float, a 1-d tensor, or an `Outcome`.

    Args:
        given: by the user.
        number: of the trial, for errors.

    Raises:
        TypeError: it is none of these.
        ValueError: it has no numbers, or more than one dimension.
    """
    place = f"AskTell.tell: the outcome of trial {number}"
    if isinstance(given, Outcome) and given.kind not in KNOWN:
        raise TypeError(f"{place} has a loss that cannot be saved; tell its losses, outcome.losses")
    try:
        found = readable(given, "AskTell")
    except TypeError as error:
        raise TypeError(
            f"{place} must be a number, a 1-d array or list of losses, squared_error(...) or "
            f"cross_entropy(...), got {brief(given)}"
        ) from error
    if isinstance(found, Outcome):
        return replace(found, values=found.values.detach().clone(), losses=found.losses.detach())
    if isinstance(found, Tensor):
        if found.ndim > 1 or found.numel() == 0:
            raise ValueError(
                f"{place} has shape {tuple(found.shape)}; tell a number, or a 1-d array with one "
                "loss for each sample"
            )
        found = found.detach()
        return float(found) if found.ndim == 0 else found.cpu().clone()
    return float(found)


def form_of(answer: Answer) -> str:
    """The kind and shape of an answer, in words."""
    if isinstance(answer, Outcome):
        return f"{answer.kind} of shape {tuple(answer.values.shape)}"
    return f"{len(answer)} losses" if isinstance(answer, Tensor) else "a number"


def unknown_like(answer: Answer | None) -> Answer:
    """NaN in the form of an answer."""
    if isinstance(answer, Tensor):
        return torch.full_like(answer, torch.nan)
    if isinstance(answer, Outcome):
        return KNOWN[answer.kind](torch.full_like(answer.values, torch.nan), answer.truth)
    return float("nan")


def digest(answer: Answer) -> int:
    """63 bits by which equal answers are told from others; NaN equals NaN."""
    if isinstance(answer, Outcome):
        parts = [answer.values, answer.truth]
    else:
        parts = [torch.as_tensor(answer, dtype=torch.float64, device="cpu")]
    found = hashlib.blake2b(form_of(answer).encode(), digest_size=8)
    for part in parts:
        numbers = part.detach().cpu().to(torch.float64).numpy() + 0.0  # -0 equals 0
        found.update(np.where(np.isnan(numbers), np.nan, numbers).tobytes())
    return int.from_bytes(found.digest(), "little") >> 1


def save_answer(answer: Answer) -> dict[str, Any]:
    """The answer for a state."""
    if isinstance(answer, Outcome):
        return {"kind": answer.kind, "values": answer.values, "truth": answer.truth}
    return {"kind": "losses", "values": answer}


def load_answer(saved: dict[str, Any], number: int) -> Answer:
    """The answer in a state.

    Raises:
        KeyError: something is missing.
        TypeError: it is no answer.
        ValueError: it is no answer.
    """
    make = KNOWN.get(saved["kind"])
    given = saved["values"] if make is None else make(saved["values"], saved["truth"])
    return read_answer(given, number)
