"""16-bit weights that are perturbed where they are used: no copy of all weights, and nothing to restore.

16-bit weights are rounded when they are perturbed, so no arithmetic takes a perturbation back. `Handing` leaves them as
they are and gives each torch operation a perturbed tensor, made for it, wherever a parameter would go; it has the bits
that the parameter itself would have. Only those of the last operation are kept, so that memory is that of inference
and of the largest layer.

What reads a weight past torch's operations (a view made before, compiled code, another thread) would not see it
perturbed. The first evaluation is therefore repeated while all bits of the weights are turned over, which `Handing`
allows for and nobody else: if the outcome is not the very same, weights are copied (which the log says once). So it is
again when a weight that was used is so no longer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dopaminergic.complaints import is_complaint
from dopaminergic.noise import Combination
from dopaminergic.outcomes import Outcome
from dopaminergic.weights.interruption import uninterrupted
from dopaminergic.weights.modes import exchanged, leave_modes, random_states, rewind
from dopaminergic.weights.weights import Weights

MOST_PASSES = 3  # over all weights in an evaluation; beyond, it is cheaper to copy them
SMALL = 1 << 14  # weights that have rooms of their own, all of this size
MOST_PLANS = 8  # that are kept for each parameter: places in memory where it was perturbed
HOLDERS = 2  # of memory that is free: our tensor, and the handle by which they are counted
# Attributes that lead to the numbers; all others, and these methods, are the same for a perturbed tensor.
VALUES = {"data", "T", "mT", "H", "mH", "real"}
ABOUT = {"size", "dim", "stride", "numel", "nelement", "ndimension", "is_contiguous", "is_floating_point", "__len__"}
ABOUT |= {"__hash__", "element_size", "storage_offset", "get_device", "is_complex", "__set__", "__delete__"}
# These give the memory away without what keeps it alive.
ADDRESSES = {"data_ptr", "__cuda_array_interface__", "__array_interface__"}

_modes: Any = torch._C


class Kept(NamedTuple):
    """What one evaluation leaves to the next.

    Attributes:
        rooms: memory for what is made.
        plans: how parameters were perturbed, by the places in memory where that was.
    """

    rooms: list[Tensor]
    plans: dict[Any, Combination]


class Handing(TorchFunctionMode):
    """While active, torch operations get perturbed tensors in place of the parameters that `weights` leaves alone.

    Args:
        weights: displaced on use, or as they are: torch takes other ways where it is watched (`nn.TransformerEncoder`
            in eval mode does), and losses are to differ by the perturbation alone.
        kept: from the last evaluation; starts empty.
        turned: all bits of those parameters are turned over at the moment.

    Attributes:
        used: the parameters that were handed over, by `id`.
        made: numbers of weights that were perturbed so far.
        why: what does not work in this way, or "".
    """

    def __init__(self, weights: Weights, kept: Kept, *, turned: bool = False) -> None:
        super().__init__()
        self.weights, self.kept, self.turned = weights, kept, turned
        self.places = {id(p): (p, i, b.group) for b in weights.on_use_blocks for p, i in zip(*b[1:], strict=True)}
        self.used: set[int] = set()
        self.made, self.why = 0, ""
        self._last: dict[tuple[int, Any], tuple[Tensor, int]] = {}  # with the version that it was made with

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make what the operation needs, forgetting what it does not need, and call it."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.weights.held is None:
            return func(*args, **kwargs)
        if name == "__get__":
            name = getattr(func.__self__, "__name__", "")
            name = name if name in VALUES | ADDRESSES else "__len__"
        needed = {} if name in ABOUT else {id(p): p for p in self._parameters([*args, *kwargs.values()])}
        if not needed:
            return func(*args, **kwargs)
        if name in ADDRESSES or torch.compiler.is_compiling():
            self.why = "it takes their addresses" if name in ADDRESSES else "it is compiled"
            return func(*args, **kwargs)
        keys = {i: (i, torch.cuda.current_stream(p.device) if p.is_cuda else None) for i, p in needed.items()}
        self.forget(keep={*keys.values()})
        self.used |= needed.keys()
        new = {i: self._made(key) for i, key in keys.items()}
        return func(*[exchanged(a, new) for a in args], **{key: exchanged(a, new) for key, a in kwargs.items()})

    def forget(self, keep: set[Any] = frozenset()) -> None:  # pyright: ignore[reportArgumentType]
        """Let go of what was made; views of it that somebody holds keep its memory."""
        for key in self._last.keys() - keep:
            tensor, version = self._last.pop(key)
            if tensor._version != version:
                self.why = "it writes to them"

    def _parameters(self, arguments: Any) -> Iterator[Tensor]:
        for a in arguments:
            if isinstance(a, list | tuple):
                yield from self._parameters(a)
            elif id(a) in self.places:
                yield a

    def _made(self, key: tuple[int, Any]) -> Tensor:
        if key not in self._last:
            with torch.inference_mode(False), torch.no_grad():
                tensor = self._perturbed(key)
            # As a parameter does, for torch.matmul goes by this even without gradients.
            self._last[key] = tensor.requires_grad_(), tensor._version
        return self._last[key][0]

    def _perturbed(self, key: tuple[int, Any]) -> Tensor:
        """A tensor with the bits that the parameter would have had it been displaced."""
        p, index, group = self.places[key[0]]
        weights, source = self.weights, p.detach()
        tensor = self._room(source)
        if self.turned:
            tensor.copy_(source)
            turn(tensor)
            source = tensor
        place = *key, tensor.data_ptr(), source.data_ptr()
        combine = self.kept.plans.get(place)
        if combine is None:
            combine = Combination([tensor], [index], weights.seeds, weights.kind, [source], group)
            if combine.forget_tensors():  # or the room would never be free
                if len(self.kept.plans) >= MOST_PLANS * len(self.places):
                    self.kept.plans.clear()
                self.kept.plans[place] = combine
        combine.saved[0] = weights.step  # the source needs no saving
        combine(weights.held or [], None, weights.step, weights.held_rounding)
        self.made += p.numel()
        return tensor

    def _room(self, like: Tensor) -> Tensor:
        """Memory for a perturbed tensor: what an earlier one took, once nobody holds it or a view of it.

        An allocator would put the next layer beside the last one, and small tensors into the gaps.
        """
        if like.is_cuda:
            return torch.empty_like(like)
        size = max(SMALL, like.numel())
        alike = (r for r in self.kept.rooms if (r.numel() > SMALL) == (size > SMALL))
        free = [r for r in alike if _modes._storage_Use_Count(r.untyped_storage()._cdata) == HOLDERS]
        room = min((r for r in free if r.numel() >= size), key=Tensor.numel, default=None)
        if room is None:
            self.kept.rooms[:] = [r for r in self.kept.rooms if all(r is not f for f in free)]
            free.clear()  # before there is another
            room = torch.empty(size, dtype=torch.int16, device=like.device)
            self.kept.rooms.append(room)
        # `data`, for torch.matmul takes another way with a view, too.
        return room.view(like.dtype).as_strided(like.size(), like.stride()).data


class OnUse:
    """Evaluates a closure at weights that `Weights` holds perturbed for their use, or has them copied.

    Args:
        rule: the optimizer's name, for the log.
        checked: whether it is known that the closure reads no weights past torch's operations.
        refused: whether weights must be copied for this closure.

    Attributes:
        extra: evaluations beyond those of the step.
    """

    def __init__(self, rule: str, *, checked: bool = False, refused: bool = False) -> None:
        self.rule, self.checked, self.refused, self.extra = rule, checked, refused, 0
        self._depth: int | None = None  # of torch's stack of modes before an evaluation
        self._turned: list[Tensor] = []
        self._kept = Kept([], {})
        self._used: set[int] | None = None
        self._layout: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # They belong to this process.
        return {**self.__dict__, "_kept": Kept([], {}), "_used": None, "_layout": None}

    def __call__(self, weights: Weights, closure: Callable[[], Any]) -> Any:
        """What the closure returns at the weights as they are displaced."""
        if weights.held is None or not weights.on_use_blocks:
            return self._evaluate(weights, closure)[0] if weights.on_use_blocks else closure()
        if self._layout is not weights.blocks:
            self.checked, self._used = self.checked and self._layout is None, None
            self._layout, self._kept = weights.blocks, Kept([], {})
        states = random_states(weights.generators)
        try:
            found, handing = self._evaluate(weights, closure)
            why = handing.why
            if not why and not (self.checked and (self._used is None or self._used <= handing.used)):
                rewind(states)
                why = self._check(weights, closure, found, handing)
        except Exception as error:  # whatever a closure does that does not bear with this
            if self.checked or not is_complaint(error):
                raise
            why, handing = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", None
            found = None
        if why:
            rewind(states)
            return self._copying(weights, closure, why)
        assert handing is not None
        self._used = handing.used if self._used is None else self._used & handing.used
        return found

    def leave(self) -> None:
        """End an evaluation, whatever interrupted it; harmless at any time."""
        leave_modes(self._depth)
        self._depth = None
        with uninterrupted():
            while self._turned:
                turn(self._turned.pop())

    def _evaluate(self, weights: Weights, closure: Callable[[], Any], *, turned: bool = False) -> tuple[Any, Handing]:
        handing = Handing(weights, self._kept, turned=turned)
        self._depth = _modes._len_torch_function_stack()
        try:
            if turned:
                with uninterrupted():
                    for p, *_ in handing.places.values():
                        turn(p)
                        self._turned.append(p)
            with handing:
                found = closure()
        finally:
            self.leave()
        handing.forget()
        return found, handing

    def _check(self, weights: Weights, closure: Callable[[], Any], found: Any, handing: Handing) -> str:
        """Why weights must be copied, or "". An outcome that is not finite would tell nothing; it is tried again."""
        if handing.made > MOST_PASSES * sum(p.numel() for p, *_ in handing.places.values()):
            return "it uses its weights in turn, many times"
        self.extra += 1
        other, _ = self._evaluate(weights, closure, turned=True)
        one, other = _numbers(found), _numbers(other)
        self.checked = all(bool(x.isfinite().all()) for x in one)
        alike = len(one) == len(other) and all(
            a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
            for a, b in zip(one, other, strict=True)
        )
        return "" if alike else "it reads weights past torch's operations, or gives another outcome each time"

    def _copying(self, weights: Weights, closure: Callable[[], Any], why: str) -> Any:
        self.extra += 1
        weights.copy_halves(True)
        try:
            found = closure()
        except BaseException:  # the closure itself is at fault
            weights.copy_halves(self.refused)
            raise
        self.refused, self._kept = True, Kept([], {})
        logging.getLogger(__name__).warning(
            "%s: 16-bit weights are copied during a step, with the same results, since the closure cannot be given "
            "perturbed weights when it uses them; the reason: %s",
            self.rule,
            why,
        )
        return found


def turn(p: Tensor) -> None:
    """Turn all bits of a 16-bit tensor over, or back."""
    p.detach().view(torch.int16).bitwise_not_()


def _numbers(returned: Any) -> list[Tensor]:
    if isinstance(returned, Outcome):
        return [returned.values.detach(), returned.losses.detach()]
    if isinstance(returned, Tensor):
        return [returned.detach()]
    number = returned if isinstance(returned, float) else math.nan
    return [torch.tensor(number, dtype=torch.float64, device="cpu")]
