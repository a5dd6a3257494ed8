"""Closures that write to weights in their forward pass.

Examples are `Embedding(max_norm=...)`, clipping and quantisers. Large weights are displaced in
place, and the same arithmetic takes them back; a write in between would spoil the way back. The
first step therefore looks out for writes, and stops one before it happens to displaced weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

HARMLESS = {"requires_grad_", "retain_grad"}
SETTERS = {
    "__setitem__",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
    "__ipow__",
    "__ifloordiv__",
    "__imod__",
}


class Written(BaseException):
    """The closure is about to write to displaced weights; no code of users should catch it."""


class WriteWatch(TorchFunctionMode):
    """Notes torch operations that write to the memory of some tensors.

    Args:
        storages: addresses of that memory.
        stop: raise `Written` in place of the write.

    Attributes:
        seen: whether there was one.
    """

    def __init__(self, storages: Iterable[int], *, stop: bool) -> None:
        super().__init__()
        self.storages = set(storages)
        self.stop = stop
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the operation, and call it."""
        kwargs = kwargs or {}
        if any(_address(t) in self.storages for t in _targets(func, args, kwargs)):
            self.seen = True
            if self.stop:
                raise Written
        return func(*args, **kwargs)


def _targets(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Tensors that an operation writes to, by its name and arguments."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__") and name not in HARMLESS
    if args and (in_place or name in SETTERS):
        yield from _tensors(args[0])
    if "out" in kwargs:
        yield from _tensors(kwargs["out"])
    if name in ("embedding", "embedding_bag"):
        if kwargs.get("max_norm") is not None:
            yield from _tensors([*args[:2], *kwargs.values()])
    elif name.startswith("_foreach_") and in_place:
        yield from _tensors(args[0])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def _address(t: Tensor) -> int:
    try:
        return t.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # tensors without memory of their own
        return 0
