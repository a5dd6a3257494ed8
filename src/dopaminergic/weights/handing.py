"""Torch operations that get perturbed tensors in the place of parameters, which stay as they are.

A tensor is made for the operation that needs it, with the bits that the parameter itself would have
if it were displaced. Only those of the last operation are kept, so that memory is that of inference
and of the largest layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dopaminergic.noise import UPDATE, Combination, Term
from dopaminergic.weights.layout import Block
from dopaminergic.weights.modes import exchanged

SMALL = 1 << 14  # weights; smaller tensors get rooms of this size
MOST_PLANS = 8  # kept for each parameter, one for each place where it was perturbed
HOLDERS = 2  # of memory that is free: our tensor, and the handle by which they are counted

# Attributes that lead to the numbers; all others are the same for a perturbed tensor, as these
# methods are.
VALUES = {"data", "T", "mT", "H", "mH", "real"}
ABOUT = {
    *("size", "dim", "stride", "numel", "nelement", "ndimension", "element_size", "__len__"),
    *("is_contiguous", "is_floating_point", "is_complex", "storage_offset", "get_device"),
    *("__hash__", "__set__", "__delete__"),
}
# These give the memory away, but nothing that keeps it alive.
ADDRESSES = {"data_ptr", "__cuda_array_interface__", "__array_interface__"}

_modes: Any = torch._C


@dataclasses.dataclass(slots=True)
class Perturbation:
    """How parameters are perturbed at the moment.

    Attributes:
        seeds: uint64 `(R,)`, one for each replica.
        kind: of the noise.
        terms: the steps along each direction; None: parameters are as they are.
        step: the number of the step.
        rounding: which random numbers round the weights: `UPDATE`, or `perturbation(k)`.
    """

    seeds: np.ndarray
    kind: str
    terms: list[Term] | None = None
    step: int = 0
    rounding: int = UPDATE


class Stock(NamedTuple):
    """Things that one evaluation leaves to the next.

    Attributes:
        rooms: memory for perturbed tensors.
        plans: how parameters were perturbed, by the places in memory where that was.
    """

    rooms: list[Tensor]
    plans: dict[Any, Combination]


class Handing(TorchFunctionMode):
    """While active, torch operations get perturbed tensors in the place of parameters.

    It is active at the weights themselves too. Torch takes other ways where it is watched, for
    example in `nn.TransformerEncoder` in eval mode. Losses must differ by the perturbation alone.

    Args:
        blocks: the parameters.
        now: how they are perturbed, in each operation anew.
        stock: from the last evaluation; starts empty.
        turned: all bits of the parameters are turned over at the moment.

    Attributes:
        used: the parameters that were handed over, by `id`.
        made: numbers of weights that were perturbed so far.
        why: the reason why this does not work, or "".
    """

    def __init__(
        self,
        blocks: list[Block],
        now: Perturbation,
        stock: Stock,
        *,
        turned: bool = False,
    ) -> None:
        super().__init__()
        self.now = now
        self.stock = stock
        self.turned = turned
        self.places: dict[int, tuple[Tensor, int, int]] = {}
        for group, parameters, indices in blocks:
            for p, index in zip(parameters, indices, strict=True):
                self.places[id(p)] = p, index, group
        self.used: set[int] = set()
        self.made = 0
        self.why = ""
        # The tensors of the last operation, each with the version that it was made with.
        self._last: dict[tuple[int, Any], tuple[Tensor, int]] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters."""
        return [p for p, _, _ in self.places.values()]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the tensors that the operation needs, forget the others, and call the operation."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.now.terms is None:
            return func(*args, **kwargs)
        if name == "__get__":
            name = getattr(func.__self__, "__name__", "")
            name = name if name in VALUES | ADDRESSES else "__len__"
        if name in ABOUT:
            return func(*args, **kwargs)
        needed = {id(p): p for p in self._handed([*args, *kwargs.values()])}
        if not needed:
            return func(*args, **kwargs)
        if name in ADDRESSES or torch.compiler.is_compiling():
            self.why = "it takes their addresses" if name in ADDRESSES else "it is compiled"
            return func(*args, **kwargs)
        keys = {i: (i, _stream(p)) for i, p in needed.items()}
        self.forget(keep={*keys.values()})
        self.used |= needed.keys()
        new = {i: self._made(key) for i, key in keys.items()}
        args = [exchanged(a, new) for a in args]
        kwargs = {key: exchanged(a, new) for key, a in kwargs.items()}
        return func(*args, **kwargs)

    def forget(self, keep: set[Any] = frozenset()) -> None:  # pyright: ignore[reportArgumentType]
        """Let go of the tensors that were made; views that somebody holds keep their memory."""
        for key in self._last.keys() - keep:
            tensor, version = self._last.pop(key)
            if tensor._version != version:
                self.why = "it writes to them"

    def _handed(self, arguments: Any) -> Iterator[Tensor]:
        """The parameters among the arguments of an operation."""
        for a in arguments:
            if isinstance(a, list | tuple):
                yield from self._handed(a)
            elif id(a) in self.places:
                yield a

    def _made(self, key: tuple[int, Any]) -> Tensor:
        if key not in self._last:
            with torch.inference_mode(False), torch.no_grad():
                tensor = self._perturbed(key)
            # A parameter requires gradients too, and torch.matmul goes by this even without them.
            self._last[key] = tensor.requires_grad_(), tensor._version
        return self._last[key][0]

    def _perturbed(self, key: tuple[int, Any]) -> Tensor:
        """A tensor with the bits that the parameter would have if it were displaced."""
        p, index, group = self.places[key[0]]
        now = self.now
        source = p.detach()
        tensor = self._room(source)
        if self.turned:
            tensor.copy_(source)
            turn(tensor)
            source = tensor
        place = *key, tensor.data_ptr(), source.data_ptr()
        combine = self.stock.plans.get(place)
        if combine is None:
            combine = Combination([tensor], [index], now.seeds, now.kind, [source], group)
            if combine.forget_tensors():  # or the room would never be free
                if len(self.stock.plans) >= MOST_PLANS * len(self.places):
                    self.stock.plans.clear()
                self.stock.plans[place] = combine
        combine.starts_from_sources(now.step)
        combine(now.terms or [], None, now.step, now.rounding)
        self.made += p.numel()
        return tensor

    def _room(self, like: Tensor) -> Tensor:
        """Memory for a perturbed tensor.

        It is that of an earlier one, once nobody holds that one or a view of it. An allocator would
        put the next layer beside the last one, and small tensors into the gaps.
        """
        if like.is_cuda:
            return torch.empty_like(like)
        size = max(SMALL, like.numel())
        rooms = self.stock.rooms
        alike = (r for r in rooms if (r.numel() > SMALL) == (size > SMALL))
        free = [r for r in alike if _holders(r) == HOLDERS]
        room = min((r for r in free if r.numel() >= size), key=Tensor.numel, default=None)
        if room is None:
            rooms[:] = [r for r in rooms if all(r is not f for f in free)]
            free.clear()  # before there is another
            room = torch.empty(size, dtype=torch.int16, device=like.device)
            rooms.append(room)
        # It is `data`, since torch.matmul takes another way with a view.
        return room.view(like.dtype).as_strided(like.size(), like.stride()).data


def _stream(p: Tensor) -> Any:
    """The stream that the next operation on a tensor goes to; None on the CPU."""
    return torch.cuda.current_stream(p.device) if p.is_cuda else None


def _holders(room: Tensor) -> int:
    """The number of holders of a piece of memory."""
    return _modes._storage_Use_Count(room.untyped_storage()._cdata)


def turn(p: Tensor) -> None:
    """Turn all bits of a 16-bit tensor over, or back."""
    p.detach().view(torch.int16).bitwise_not_()
