"""The forms in which a closure may return its loss, from a number to predictions.

A closure answers one question, "how well do these weights do?", as richly as it can:

- a `float`, a number of another library or a 0-d tensor: the mean loss, nothing else is known;
- a 1-d tensor of `n` losses, one per sample, or an array or a list of them: their mean is the loss;
- `squared_error(prediction, target)` or `cross_entropy(logits, labels)`: the predictions themselves
  with a loss that is a known convex function of them.

The scalar rules use the mean loss of each. Rules that learn from a vector of prediction errors use
all of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dopaminergic.plain import as_float, brief, number_of

IGNORED = -100  # as torch has it


@dataclass(frozen=True)
class Outcome:
    """Predictions and the loss of each sample of them.

    It is made by `squared_error`, `cross_entropy` or `outcome`.

    Attributes:
        values: the model's predictions, of any shape.
        losses: the losses, one per sample (or per number); their mean is the loss that is
            minimised.
        kind: the name of the loss, `"squared_error"`, `"cross_entropy"` or `"custom"`.
        truth: the thing that the loss compares the values with: targets, labels, or for a custom
            loss the function itself.
    """

    values: Tensor
    losses: Tensor
    kind: str
    truth: Any = None

    def mean(self) -> Tensor:
        """The loss that is minimised, a 0-d tensor."""
        return self.losses.mean()


Closure = Callable[[], float | Tensor | Outcome]


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
            f"squared_error: prediction has shape {tuple(prediction.shape)} but target has "
            f"{tuple(target.shape)}; "
            "reshape one of them, they are not broadcast"
        )
    return Outcome(prediction, (prediction - target) ** 2, "squared_error", target)


def cross_entropy(logits: Tensor, labels: Tensor) -> Outcome:
    """Predictions under the softmax cross-entropy, in nats.

    Args:
        logits: unnormalised log-probabilities, shape `(..., classes)`.
        labels: class numbers in `[0, classes)`, integers of shape `(...)`. A label of -100 marks a
            position that is not scored, such as padding: its loss is 0, and counts as such in the
            mean.

    Raises:
        ValueError: the shapes do not fit, or a label is no class.
        TypeError: the labels are not integers, or one of them is not a tensor.

    >>> cross_entropy(torch.zeros(4, 10), torch.tensor([3, 1, 4, 1])).mean()
    tensor(2.3026)
    """
    _need_tensors("cross_entropy", logits=logits, labels=labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"cross_entropy: labels must be integers, got {labels.dtype}; use labels.long()"
        )
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"cross_entropy: logits of shape {tuple(logits.shape)} need labels of shape "
            f"{tuple(logits.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    try:
        losses = functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), reduction="none"
        )
    except IndexError as error:  # torch names the label alone
        raise ValueError(
            f"cross_entropy: labels must be in [0, {logits.shape[-1]}), the number of classes, or "
            f"{IGNORED} for what is not scored; torch says: {str(error)[:80]} Number the classes "
            "from 0, or give the model more outputs"
        ) from error
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
                f"{function}: {name} must be a tensor, got {type(argument).__name__}; use "
                f"torch.as_tensor({name})"
            )


class Reading(NamedTuple):
    """The losses in a closure's value.

    Attributes:
        value: the closure's value as a number, a dense real tensor, or an `Outcome`.
        losses: a row for each replica, `(R, n)`; a number is a row of one, in float64.
    """

    value: float | Tensor | Outcome
    losses: Tensor

    def means(self) -> Tensor:
        """The mean losses, float64 of shape `(R,)` on the CPU.

        They are not detached, since the lab compares with backpropagation through them.
        """
        return self.losses.mean(1).cpu().to(torch.float64)


def read(returned: Any, rule: str, replicas: int | None = None) -> Reading:
    """Read the losses in a closure's value.

    Args:
        returned: the closure's value. Of a fleet it is an `Outcome`, or a tensor (or a value that
            can be read as one), whose first dimension is the replica.
        rule: the optimizer's name, for errors.
        replicas: number R of replicas; None for one model.

    Raises:
        TypeError: it is not a loss.
        ValueError: it is a tensor of a shape that is not one.
    """
    if (
        replicas is not None
        and not isinstance(returned, Tensor | np.ndarray)
        and number_of(returned) is not None
    ):
        raise TypeError(
            f"{rule}: the closure of a fleet returned {type(returned).__name__}; return a tensor "
            f"of {replicas} losses"
        )
    value = readable(returned, rule)
    losses = value.losses if isinstance(value, Outcome) else value
    if not isinstance(losses, Tensor):
        losses = torch.tensor(losses, dtype=torch.float64, device="cpu")
    shape = tuple(losses.shape)
    if replicas is not None and (shape[:1] != (replicas,) or losses.numel() == 0):
        raise ValueError(
            f"{rule}: the closure of a fleet of {replicas} returned shape {brief(shape)}; its "
            f"first dimension must be {replicas}"
        )
    if replicas is None and (losses.numel() == 0 or (len(shape) > 1 and losses is value)):
        raise ValueError(
            f"{rule}: the closure returned a tensor of shape {brief(shape)}; return a number, a "
            "1-d tensor of per-sample losses, squared_error(prediction, target) or "
            "cross_entropy(logits, labels)"
        )
    return Reading(value, losses.reshape(replicas or 1, -1))


def mean_loss(returned: Any, rule: str) -> float:
    """The mean of `read(returned, rule)` for one model, sooner for the most common values."""
    if isinstance(returned, float):
        return float(returned)
    if type(returned) is Tensor and returned.ndim == 0:
        try:
            loss = returned.item()
        except RuntimeError:
            if not returned.is_meta:  # of which `readable` says more
                raise
        else:
            if type(loss) is float:
                return loss
    # Unlike float(losses), without a warning where a closure wants gradients.
    return float(read(returned, rule).means().item())


def as_double(x: Tensor) -> Tensor:
    """The numbers as float64 on the CPU.

    They are converted there, since not every device knows float64.
    """
    return x.detach().cpu().to(torch.float64)


# ---- values of closures --------------------------------------------------------------------------


def readable(returned: Any, rule: str) -> float | Tensor | Outcome:
    """A closure's value in one of three forms: a number, a dense real tensor, or an `Outcome`.

    Numbers of any library are numbers, and arrays and lists of numbers are losses, one for each
    sample. A tuple is none of these: `return loss, accuracy` would be taken for two samples.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(returned, Outcome):
        if isinstance(returned.values, Tensor) and _is_real(returned.losses):
            return returned
        losses = _real_tensor(returned.losses, rule)
        values = _real_tensor(returned.values, rule)
        return replace(returned, values=values, losses=losses)
    if isinstance(returned, bool):  # an error, yes or no
        return float(returned)
    if (
        not isinstance(returned, Tensor | np.ndarray | np.generic)
        and (number := number_of(returned)) is not None
    ):
        return as_float(number)
    return _real_tensor(returned, rule)


def _is_real(losses: Any) -> bool:
    return isinstance(losses, Tensor) and losses.dtype in COUNTED and losses.layout == torch.strided


def _real_tensor(returned: Any, rule: str) -> Tensor:
    if isinstance(returned, list):
        returned = _listed(returned, rule)
    if not isinstance(returned, Tensor):
        return torch.from_numpy(_real_array(returned, rule))
    if returned.is_meta:
        raise TypeError(
            f"{rule}: the closure returned a tensor on the meta device, which has no numbers; give "
            "the model memory, "
            "model.to_empty(device='cpu'), or name the device of tensors that the closure makes"
        )
    if returned.is_complex() or returned.is_nested:
        raise _no_loss(returned, rule)
    if returned.layout != torch.strided:
        returned = returned.to_dense()
    if returned.is_quantized:
        returned = returned.dequantize()
    if returned.dtype in COUNTED:
        return returned
    return as_double(returned.to(torch.float32) if returned.is_floating_point() else returned)


def _listed(returned: list[Any], rule: str) -> Tensor:
    """Losses of samples in a list, whose entries may be numbers of any kind."""
    found = [float(x) if isinstance(x, bool | np.bool_) else number_of(x) for x in returned]
    if any(x is None for x in found):
        raise _no_loss(returned, rule)
    return torch.tensor([as_float(x) for x in found], dtype=torch.float64, device="cpu")


def _real_array(returned: Any, rule: str) -> np.ndarray:
    """The value as a numpy array of real numbers, in a dtype that torch knows; a copy."""
    if (
        not hasattr(returned, "__array__")
        or np.ma.isMaskedArray(returned)
        or isinstance(returned, type)
    ):
        raise _no_loss(returned, rule)
    try:
        array = np.asarray(returned)
    except Exception as error:  # of another library, for example if its arrays are on its device
        raise _no_loss(returned, rule) from error
    if array.dtype.kind not in "biuf":
        raise _no_loss(returned, rule)
    dtype = np.float32 if array.dtype.newbyteorder("=") == np.float32 else np.float64
    return np.array(array, dtype=dtype, order="C")


def _no_loss(returned: Any, rule: str) -> TypeError:
    if inspect.iscoroutine(returned):
        returned.close()  # or Python would warn that nobody has awaited it
    hint = "return a number or a tensor of losses"
    for kinds, other in HINTS:
        if isinstance(returned, kinds):
            hint = other
            break
    kind = str(returned.dtype) if isinstance(returned, Tensor) else type(returned).__name__[:40]
    what = (
        f"a tensor of shape {tuple(returned.shape)}"
        if isinstance(returned, Tensor)
        else brief(returned)
    )
    return TypeError(f"{rule}: the closure returned {what} of type {kind}; {hint}")


# Dtypes that torch takes means of.
COUNTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HINTS: list[tuple[Any, str]] = [
    (type(None), "it has no return statement; add `return loss`"),
    (
        tuple,
        "return the loss alone, say the first of these; losses of samples may be a list or a "
        "tensor",
    ),
    (Mapping, "return the loss in it alone, output['loss'] or output.loss say"),
    (str | bytes, "return the number, not its text"),
    (Coroutine, "it is `async def`; make it a plain function that waits for the result itself"),
    (Generator, "it has a `yield`; return the loss instead"),
    (torch.nn.Module, "call the module and return the loss of what it predicts"),
    (complex | np.complexfloating, "return a real number, its abs() say"),
    (np.ma.MaskedArray, "return the losses that count, losses.compressed()"),
]
