"""Weights to start from, for black boxes: arrays or parameters, given back in the same form.

array -> array;  list of arrays -> list;  dict or model -> dict by name
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dopaminergic.plain import brief

NUMBERS = (torch.float32, torch.float64)
WAY_OUT = "give float32 or float64 weights, for example array.astype('float32')"


class StartWeights:
    """Parameters for an optimizer, and the form in which a black box is given their values.

    Parameters of torch are trained in place. Arrays and other tensors are copied.

    Args:
        start: an array, a list or a dict of arrays, a list of parameters, parameter groups, or a
            model.

    Attributes:
        params: to make the optimizer of, a list of parameters or of groups.
        tensors: all parameters, each once.

    Raises:
        TypeError: it is none of these, or its numbers are not float32 or float64.
        ValueError: it is empty.
    """

    def __init__(self, start: Any) -> None:
        self.tensors: list[nn.Parameter] = []
        self._names: list[str] | None = None
        self._alone = isinstance(start, np.ndarray | Tensor)
        if isinstance(start, nn.Module):
            start = dict(start.named_parameters())
        if self._alone:
            self.params: list[Any] = [self._take("start", start)]
        elif isinstance(start, Mapping):
            self._names = [str(name) for name in start]
            self.params = [self._take(f"start[{name!r}]", x) for name, x in start.items()]
        elif isinstance(start, Iterable) and not isinstance(start, str | bytes):
            self.params = [self._take_entry(i, x) for i, x in enumerate(start)]
        else:
            raise TypeError(
                f"AskTell: start must be an array, a list or dict of arrays, or a model, got "
                f"{brief(start)}; {WAY_OUT}"
            )
        if not any(tensor.numel() for tensor in self.tensors):
            raise ValueError("AskTell: start has no weights; give at least one number to be found")

    def _take_entry(self, i: int, entry: Any) -> Any:
        if not isinstance(entry, Mapping):
            return self._take(f"start[{i}]", entry)
        given = entry.get("params")
        if given is None:
            raise TypeError(
                f"AskTell: group {i} of start has no 'params', its keys are {brief(list(entry))}; "
                "give the arrays of a group by this name"
            )
        arrays = [given] if isinstance(given, np.ndarray | Tensor) else given
        found = [self._take(f"start[{i}]['params'][{k}]", x) for k, x in enumerate(arrays)]
        return {**entry, "params": found}

    def _take(self, place: str, given: Any) -> nn.Parameter:
        tensor = given
        if not isinstance(given, nn.Parameter):
            if (
                isinstance(given, np.ndarray)
                and given.dtype.kind == "f"
                and given.itemsize
                in (
                    4,
                    8,
                )
            ):
                given = torch.from_numpy(given.astype(given.dtype.newbyteorder("="), order="C"))
            if not isinstance(given, Tensor):
                kind = given.dtype if isinstance(given, np.ndarray) else type(given).__name__
                raise TypeError(f"AskTell: {place} is no array of floats but {kind}; {WAY_OUT}")
            tensor = given.detach()
        if tensor.dtype not in NUMBERS:
            raise TypeError(f"AskTell: {place} holds {tensor.dtype}; {WAY_OUT}")
        if not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor.clone(memory_format=torch.contiguous_format))
        if not any(tensor is other for other in self.tensors):
            self.tensors.append(tensor)
        return tensor

    def now(self) -> list[np.ndarray]:
        """Copies of all parameters as they are, perhaps perturbed."""
        return [tensor.detach().cpu().numpy().copy() for tensor in self.tensors]

    def shaped(self, arrays: list[np.ndarray]) -> Any:
        """Copies of arrays, in the form in which the start was given."""
        found = [array.copy() for array in arrays]
        if self._alone:
            return found[0]
        return found if self._names is None else dict(zip(self._names, found, strict=True))

    def write(self, arrays: list[np.ndarray]) -> None:
        """Set the parameters to these arrays, where they differ."""
        with torch.no_grad():
            for tensor, array in zip(self.tensors, arrays, strict=True):
                if not same_numbers(tensor.detach().cpu().numpy(), array):
                    tensor.copy_(torch.from_numpy(array))


def same_numbers(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays of floats are equal; NaN equals NaN."""
    return np.array_equal(first, second, equal_nan=True)
