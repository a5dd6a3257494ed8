"""Torch operations inside a batch that get other tensors than the closure names.

A closure calls a model that holds its parameters. `Exchange` watches every operation and hands it
another tensor wherever a parameter would go, for example one perturbed copy of a batch of them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dopaminergic.recurrent import RECURRENT
from dopaminergic.weights.modes import exchanged

_modes: Any = torch._C


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout as torch does it without vmap.

    The layout of `x` in memory decides which random number meets which element.
    """
    if not training or p in (0.0, 1.0):
        return functional.dropout(x, p, training)
    strides = [0] * x.ndim
    stride = 1
    for i in sorted(range(x.ndim), key=lambda i: (x.stride(i), -i)):
        strides[i] = stride
        stride *= max(1, x.shape[i])
    kept = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    return x * kept.div_(1.0 - p)


# Operations that behave differently under vmap, by name.
REPLACED: dict[str, Callable[..., Any]] = {**RECURRENT, "dropout": _dropout}


class Exchange(TorchFunctionMode):
    """While active, torch operations get `new[i]` wherever they are given `old[i]`.

    Args:
        old: parameters.
        new: tensors of the same shapes.
    """

    def __init__(self, old: list[Tensor], new: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.table = Table({id(o): n for o, n in zip(old, new, strict=True)})
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Exchange the arguments and call the operation, or its version for vmap."""
        args = [exchanged(a, self.table) for a in args]
        kwargs = {key: exchanged(a, self.table) for key, a in kwargs.items()} if kwargs else {}
        call: Any = REPLACED.get(getattr(func, "__name__", ""), func)
        result = call(*args, **kwargs)
        self._note(result)
        return result

    def _note(self, result: Any) -> None:
        if isinstance(result, Tensor):
            self._made.append(weakref.ref(result))
        elif isinstance(result, list | tuple):
            for entry in result:
                self._note(entry)

    def leaked(self) -> list[Tensor]:
        """Tensors of the batch that code of others still holds; ask when the batch is over."""
        # An operation may return a tensor that it was handed, as x.double() of a float64 tensor.
        self.table.clear()
        alive = {id(t): t for ref in self._made if (t := ref()) is not None}
        # `swap_tensors` refuses a tensor to which somebody has a weak reference.
        self._made = []
        return [t for t in alive.values() if _modes._functorch.is_batchedtensor(t)]


class Table(dict[int, Tensor]):
    """Tensors by the `id` of those that they stand for.

    Attributes:
        used: the `id`s that were asked for and found.
    """

    def __init__(self, entries: dict[int, Tensor]) -> None:
        super().__init__(entries)
        self.used: set[int] = set()

    def get(self, key: int, default: Any = None) -> Any:
        """Get an entry as from any dict; an entry that is found counts as used."""
        found = super().get(key, default)
        if found is not default:
            self.used.add(key)
        return found


def revive(tensors: list[Tensor]) -> None:
    """Turn tensors that have outlived a batch into plain ones, those of its first copy."""
    functorch = _modes._functorch
    for t in tensors:
        with contextlib.suppress(RuntimeError):  # torch holds some of them itself
            whole = functorch.get_unwrapped(t)
            place = functorch.maybe_get_bdim(t)
            plain = whole.select(place, 0).clone()
            torch.utils.swap_tensors(t, plain)
