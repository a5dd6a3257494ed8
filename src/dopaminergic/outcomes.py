"""What a closure may return: a number, per-sample losses, or predictions together with their loss.

A closure answers one question, "how well do these weights do?", as richly as it can:

- a `float` or a 0-d tensor: the mean loss, nothing else is known;
- a 1-d tensor of `n` losses, one per sample: their mean is the loss;
- `squared_error(prediction, target)` or `cross_entropy(logits, labels)`: the predictions themselves with a loss that is
  a known convex function of them.

The scalar rules use the mean loss of each; rules that learn from a vector of prediction errors use all of it.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # as torch has it


@dataclass(frozen=True)
class Outcome:
    """Predictions and the loss of each sample of them; made by `squared_error`, `cross_entropy` or `outcome`.

    Attributes:
        values: what the model predicted, of any shape.
        losses: the losses, one per sample (or per number); their mean is the loss that is minimised.
        kind: the name of the loss, `"squared_error"`, `"cross_entropy"` or `"custom"`.
        truth: what the loss compares the values with: targets, labels, or for a custom loss the function itself.
    """

    values: Tensor
    losses: Tensor
    kind: str
    truth: Any = None

    def mean(self) -> Tensor:
        """The loss that is minimised, a 0-d tensor."""
        return self.losses.mean()


def squared_error(prediction: Tensor, target: Tensor) -> Outcome:
    """Predictions under the mean squared error.

    Args:
        prediction: real numbers of any shape.
        target: the truth, of the same shape.

    Raises:
        ValueError: the shapes differ (broadcasting here is nearly always a mistake).
        TypeError: one of them is not a tensor.

    >>> squared_error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])).mean()
    tensor(2.)
    """
    _need_tensors("squared_error", prediction=prediction, target=target)
    if prediction.shape != target.shape:
        raise ValueError(
            f"squared_error: prediction has shape {tuple(prediction.shape)} but target has {tuple(target.shape)}; "
            "reshape one of them, they are not broadcast"
        )
    return Outcome(prediction, (prediction - target) ** 2, "squared_error", target)


def cross_entropy(logits: Tensor, labels: Tensor) -> Outcome:
    """Predictions under the softmax cross-entropy, in nats.

    Args:
        logits: unnormalised log-probabilities, shape `(..., classes)`.
        labels: class numbers in `[0, classes)`, integers of shape `(...)`. A label of -100 marks what is not scored,
            padding say: its loss is 0, and counts as such in the mean.

    Raises:
        ValueError: the shapes do not fit.
        TypeError: the labels are not integers, or one of them is not a tensor.

    >>> cross_entropy(torch.zeros(4, 10), torch.tensor([3, 1, 4, 1])).mean()
    tensor(2.3026)
    """
    _need_tensors("cross_entropy", logits=logits, labels=labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"cross_entropy: labels must be integers, got {labels.dtype}; use labels.long()")
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"cross_entropy: logits of shape {tuple(logits.shape)} need labels of shape {tuple(logits.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    losses = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none")
    return Outcome(logits, losses.reshape(labels.shape), "cross_entropy", labels)


def outcome(values: Tensor, loss: Callable[[Tensor], Tensor]) -> Outcome:
    """Predictions under any loss that is a known convex function of them.

    Args:
        values: the predictions, of any shape.
        loss: maps `values` to a loss (0-d) or to losses, one per sample (1-d or more).

    Raises:
        TypeError: the values are not a tensor.

    >>> outcome(torch.tensor([2.0, -1.0]), torch.abs).mean()
    tensor(1.5000)
    """
    _need_tensors("outcome", values=values)
    return Outcome(values, loss(values), "custom", loss)


def _need_tensors(function: str, **arguments: Any) -> None:
    for name, argument in arguments.items():
        if not isinstance(argument, Tensor):
            raise TypeError(
                f"{function}: {name} must be a tensor, got {type(argument).__name__}; use torch.as_tensor({name})"
            )


def mean_loss(returned: Any, rule: str) -> float:
    """The loss in what a closure returned.

    Args:
        returned: whatever the closure returned.
        rule: the optimizer's name, for errors.

    Raises:
        TypeError: it is not a loss.
        ValueError: it is a tensor of a shape that is not one.
    """
    kind = type(returned)  # what most closures return comes first, since to ask for all that they may takes a while
    if kind is float:
        return returned
    if kind is Tensor and returned.ndim == 0 and type(loss := returned.item()) is float:
        return loss
    losses = returned.losses if isinstance(returned, Outcome) else returned
    if isinstance(losses, Tensor) and losses.ndim == 0:
        loss = losses.item()  # unlike float(losses), without a warning where a closure wants gradients
        if not isinstance(loss, complex):
            return float(loss)
    elif isinstance(losses, Tensor) and not losses.is_complex():
        if losses.numel() == 0 or (losses.ndim > 1 and losses is returned):
            raise ValueError(
                f"{rule}: the closure returned a tensor of shape {tuple(losses.shape)}; return a number, a 1-d tensor "
                "of per-sample losses, squared_error(prediction, target) or cross_entropy(logits, labels)"
            )
        if not losses.is_floating_point():
            losses = losses.to(torch.float64)
        return float(losses.detach().reshape(1, -1).mean(1))  # in the order of a fleet of one
    if isinstance(losses, numbers.Real):
        return float(losses)
    hint = (
        "it has no return statement; add `return loss`" if losses is None else "return a number or a tensor of losses"
    )
    kind = f"{losses.dtype}" if isinstance(losses, Tensor) else type(losses).__name__
    raise TypeError(f"{rule}: the closure returned {losses!r} of type {kind}; {hint}")


def mean_losses(returned: Any, rule: str, replicas: int) -> Tensor:
    """The losses of a fleet in what its closure returned.

    Args:
        returned: an `Outcome` or a tensor whose first dimension is the replica.
        rule: the optimizer's name, for errors.
        replicas: number R of replicas.

    Returns:
        float64 on the CPU, shape `(R,)`.

    Raises:
        TypeError: it is neither an `Outcome` nor a tensor.
        ValueError: its first dimension is not the replica.
    """
    losses = returned.losses if isinstance(returned, Outcome) else returned
    if not isinstance(losses, Tensor):
        raise TypeError(
            f"{rule}: the closure of a fleet returned {type(losses).__name__}; return a tensor of {replicas} losses"
        )
    if losses.ndim == 0 or losses.shape[0] != replicas or losses.numel() == 0:
        raise ValueError(
            f"{rule}: the closure of a fleet of {replicas} returned shape {tuple(losses.shape)}; its first dimension "
            f"must be {replicas}"
        )
    if not losses.is_floating_point():
        losses = losses.to(torch.float64)
    return losses.reshape(replicas, -1).mean(1).to("cpu", torch.float64)


def mean_tensor(returned: Any, rule: str, replicas: int | None) -> Tensor:
    """The losses in what a closure returned, as a tensor that may be part of a batch.

    Args:
        returned: as for `mean_loss` or, of a fleet, `mean_losses`.
        rule: the optimizer's name, for errors.
        replicas: number R of replicas; None for one model.

    Returns:
        float64, shape `(R,)`.
    """
    if replicas is not None:
        return mean_losses(returned, rule, replicas)
    losses = returned.losses if isinstance(returned, Outcome) else returned
    if isinstance(losses, Tensor) and losses.is_floating_point() and (losses.ndim < 2 or losses is not returned):
        return losses.detach().reshape(1, -1).mean(1).to("cpu", torch.float64)
    return torch.tensor([mean_loss(returned, rule)], dtype=torch.float64)
