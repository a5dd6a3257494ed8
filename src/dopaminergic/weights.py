"""Weights that are perturbed, restored and updated, and are never left in between.

Two ways back from a perturbation, chosen by size:

- *saved*: small models (up to 1 MiB) and 16-bit weights keep a copy while a step lasts. Going back is a copy, exact to
  the bit, and can be repeated, so an interruption at any moment is harmless.
- *in place*: large float32 and float64 models subtract the direction again, at no memory. Going back is exact to a unit
  in the last place of |w| + sigma for each direction. Signals wait while the arithmetic runs, which must not
  be done twice.
"""

from __future__ import annotations

import contextlib
import operator
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import FAST_DTYPES, Combination, Multiple, Term

SAVED_BYTES = 1 << 20
HELD_BACK = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]

_DTYPE_AND_FROZEN = operator.attrgetter("dtype", "requires_grad")


class Block(NamedTuple):
    """Trainable parameters of one group that are alike, with the index of each in the noise."""

    group: int
    parameters: list[Tensor]
    indices: list[int]


class Weights:
    """The trainable tensors of an optimizer's groups during a step.

    Args:
        groups: the optimizer's `param_groups`.
        seeds: uint64 `(R,)`, one for each replica.
        kind: `"rademacher"` or `"gaussian"`.

    Attributes:
        sizes: number of trainable weights of one replica in each group.
        bytes: memory of all trainable weights.
        blocks: the trainable parameters; a new list whenever they have changed.
        generators: torch's generators that a closure may draw from.
    """

    def __init__(self, groups: list[dict[str, Any]], seeds: np.ndarray, kind: str) -> None:
        self.groups, self.seeds, self.kind = groups, seeds, kind
        self.sizes: list[int] = []
        self.bytes = 0
        self.blocks: list[Block] = []
        self.generators: list[torch.Generator] = []
        self._step = 0
        # One for the parameters of each group that are alike: same dtype, same device.
        self._saved: list[Combination] = []
        self._in_place: list[Combination] = []
        self._layout: list[list[Any]] = []
        # How far each block that is perturbed in place is from the weights at `begin`: its terms and its scale. Each
        # has its own, since an exception may come between two.
        self._displaced: list[tuple[list[Term], list[Multiple] | None]] = []

    @property
    def saved_all(self) -> bool:
        """Whether a copy of every weight is kept during a step."""
        return not self._in_place

    def begin(self, step: int) -> None:
        """Look at the parameters as they are now; afterwards `sizes` and `generators` are up to date."""
        if any(terms or scales is not None for terms, scales in self._displaced):
            self.restore(self._step)  # the last step could not, for want of memory say
        self._step = step
        layout = [_layout(group["params"]) for group in self.groups]
        if layout != self._layout:
            self._arrange()
            self._layout = layout

    def move(self, terms: list[Term], *, as_update: bool = False) -> None:
        """Displace the weights by `terms`, measured from the weights at `begin`.

        Args:
            terms: the steps along each direction.
            as_update: 16-bit weights are rounded as `update` would round them.
        """
        for combine in self._saved:
            combine(terms, None, self._step, rounding=0 if as_update else 1 + terms[0][0])
        if self._in_place:
            with _uninterrupted():
                self._write_in_place(terms, None)

    def restore(self, step: int) -> None:
        """Bring the weights back to what they were when `step` began; harmless when they are there already."""
        with _uninterrupted():
            for combine in self._saved:
                # Copies of another step are no way back: this one was interrupted before it touched the weights.
                if combine.saved[0] == step:
                    combine((), None, step)
                    combine.saved[0] = -1
            self._write_in_place([], None)

    def update(self, terms: list[Term], scales: list[Multiple] | None, commit: Callable[[], None]) -> None:
        """Restore and, in the same pass, set the weights to scale * weights + terms.

        Args:
            terms: the steps along each direction.
            scales: what weight decay leaves in each group; None for ones.
            commit: called once all weights are written; an interruption before it lets `restore` bring the old weights
                back, after it the step has happened.
        """
        for combine in self._saved:
            combine(terms, scales, self._step)
        if not self._in_place:
            commit()
            return
        with _uninterrupted():
            self._write_in_place(terms, scales)
            commit()
            self._displaced = [([], None)] * len(self._in_place)

    def directions(self, count: int, scales: list[float], step: int) -> Tensor:
        """The first directions, written out: float64 `(R, count, d)`, group g times `scales[g]`; on the CPU."""
        parts = []
        for group, parameters, indices in self.blocks:
            blank = [
                torch.zeros(len(self.seeds), p.numel() // len(self.seeds), dtype=torch.float64) for p in parameters
            ]
            rows = []
            for k in range(count):
                made = [torch.zeros_like(b) for b in blank]
                combine = Combination(made, indices, self.seeds, self.kind, blank, 0)
                combine.saved[0] = step
                combine([(k, [scales[group]])], None, step)
                rows.append(torch.cat(made, 1))
            parts.append(torch.stack(rows, 1))
        return torch.cat(parts, 2)

    def _write_in_place(self, terms: list[Term], scales: list[Multiple] | None) -> None:
        """Weights <- scale * (weights at `begin`) + terms, block by block."""
        for i, combine in enumerate(self._in_place):
            displacement, scaled = self._displaced[i]
            if scaled is None:
                # scale * (w + d) - scale * d + terms: the displacement shrinks with the weights.
                back = displacement if scales is None else _scaled(displacement, scales)
                moves, factors = _merged([*terms, *_negative(back)]), scales
            else:  # restore, after an update that failed between two blocks: (w - terms) / scale
                factors = [1.0 / s for s in scaled]
                moves = _negative(_scaled(displacement, factors))
            if moves or factors is not None:
                combine(moves, factors, self._step)
            self._displaced[i] = (terms, scales)

    def _arrange(self) -> None:
        """Sort the trainable parameters by kind; a parameter keeps its index whoever else is frozen."""
        trainable = [p for group in self.groups for p in group["params"] if p.requires_grad]
        self.bytes = sum(p.numel() * p.element_size() for p in trainable)
        small = self.bytes <= SAVED_BYTES
        members: defaultdict[tuple[Any, ...], list[tuple[Tensor, int]]] = defaultdict(list)
        index, self.sizes, self.generators = 0, [0] * len(self.groups), _generators({p.device for p in trainable})
        for number, group in enumerate(self.groups):
            for p in group["params"]:
                if p.requires_grad and p.numel() > 0:
                    in_place = not small and p.dtype in FAST_DTYPES
                    members[number, p.dtype, p.device, in_place, p.is_contiguous()].append((p, index))
                    self.sizes[number] += p.numel() // len(self.seeds)
                index += 1
        self._saved, self._in_place, self.blocks, self._displaced = [], [], [], []
        for (group, _, _, in_place, _), pairs in members.items():
            block = Block(group, [p for p, _ in pairs], [i for _, i in pairs])
            tensors = [p.detach() for p in block.parameters]
            copies = None if in_place else [torch.empty_like(t) for t in tensors]
            combine = Combination(tensors, block.indices, self.seeds, self.kind, copies, group)
            (self._in_place if in_place else self._saved).append(combine)
            self._displaced += [([], None)] * in_place
            self.blocks.append(block)


def _layout(parameters: list[Tensor]) -> list[Any]:
    """All that users may change by moving, casting, freezing, viewing or replacing parameters between steps.

    `Combination` keeps the memory that it writes to, so another tensor's memory has another address.
    """
    return [
        *map(Tensor.data_ptr, parameters),
        *map(Tensor.numel, parameters),
        *map(Tensor.is_contiguous, parameters),
        *map(_DTYPE_AND_FROZEN, parameters),
    ]


def _generators(devices: set[torch.device]) -> list[torch.Generator]:
    cuda = [torch.cuda.default_generators[d.index or 0] for d in devices if d.type == "cuda"]
    return [torch.default_generator, *cuda]


def _scaled(terms: list[Term], scales: list[Multiple]) -> list[Term]:
    return [(direction, [m * s for m, s in zip(ms, scales, strict=True)]) for direction, ms in terms]


def _negative(terms: list[Term]) -> list[Term]:
    return [(direction, [-m for m in multiples]) for direction, multiples in terms]


def _merged(terms: list[Term]) -> list[Term]:
    """Add the multiples of the same direction, so that each direction is drawn once."""
    total: dict[int, list[Multiple]] = {}
    for direction, multiples in terms:
        old = total.get(direction)
        total[direction] = multiples if old is None else [a + b for a, b in zip(old, multiples, strict=True)]
    return [(direction, multiples) for direction, multiples in total.items() if any(map(np.any, multiples))]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C, alarms and SIGTERM back until the block is done; only the main thread receives them."""
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: found for number in HELD_BACK if callable(found := signal.getsignal(number))}
    received: list[tuple[int, Any]] = []

    def hold(number: int, frame: Any) -> None:
        received.append((number, frame))

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        try:
            _handle(handlers)
        except BaseException:  # one signal may come as soon as its own handler is back, before the others are
            _handle(handlers)
            raise
        for number, frame in received:
            handlers[number](number, frame)


def _handle(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
