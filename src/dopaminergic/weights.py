"""Weights that are perturbed, restored and updated, and are never left in between.

Two ways back from a perturbation, chosen by size:

- *saved*: small models (up to 1 MiB) and 16-bit weights keep a copy while a step lasts. Going back is a copy, bit-exact,
  and can be repeated, so an interruption at any moment is harmless.
- *in place*: large float32 and float64 models subtract the direction again, at no memory. Going back is exact to half a
  unit in the last place of |w| + sigma. Ctrl-C waits while the arithmetic runs, since it must not be done twice.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import FAST_DTYPES, Combination

SAVED_BYTES = 1 << 20

# One direction's number, with float64 (groups, R) multiples of it.
Term = tuple[int, np.ndarray]


class Block(NamedTuple):
    """Parameters of one group that are treated alike: same dtype, same device, same way back."""

    group: int
    tensors: list[Tensor]
    save: Combination | None  # None: in place
    write: Combination


class Weights:
    """The trainable tensors of an optimizer's groups during a step.

    Args:
        groups: the optimizer's `param_groups`.
        seeds: uint64 `(R,)`, one for each replica.
        kind: `"rademacher"` or `"gaussian"`.
    """

    def __init__(self, groups: list[dict[str, Any]], seeds: np.ndarray, kind: str) -> None:
        self.groups, self.seeds, self.kind = groups, seeds, kind
        self.counts: list[int] = []
        self.devices: set[torch.device] = set()
        self._step = 0
        self._blocks: list[Block] = []
        self._layout: list[tuple[Any, ...]] = []
        self._displacement: list[Term] = []  # of the blocks that are perturbed in place
        self._ready = self._any_in_place = False
        self._ones = np.ones(len(seeds))
        self._nothing = np.zeros((0, len(seeds)))

    def begin(self, step: int) -> None:
        """Look at the parameters as they are now, and save what is to be saved.

        Afterwards `counts` holds the trainable weights of one replica in each group.
        """
        self._ready, self._step = False, step
        # Users may move, cast, freeze or replace parameters between steps; an address alone would not show it.
        layout = [
            (p.data_ptr(), p.numel(), p.dtype, p.requires_grad, p.is_contiguous())
            for group in self.groups
            for p in group["params"]
        ]
        if layout != self._layout:
            self._arrange()
            self._layout = layout
        for block in self._blocks:
            if block.save is not None:
                block.save(self._ones, self._nothing, (), step)
        self._displacement = []
        self._ready = True

    def move(self, terms: Sequence[Term]) -> None:
        """Displace the weights by `terms`, measured from the weights at `begin`."""
        if not self._any_in_place:
            self._write(terms, None, in_place=False)
            return
        with _uninterrupted():
            self._write(terms, None, in_place=False)
            self._write([*terms, *_negative(self._displacement)], None, in_place=True)
            self._displacement = list(terms)

    def restore(self) -> None:
        """Bring the weights back to what they were at `begin`; harmless when they are there already."""
        if not self._ready:
            return
        with _uninterrupted():
            self._write((), None, in_place=False)
            if self._displacement:
                self._write(_negative(self._displacement), None, in_place=True)
                self._displacement = []

    def update(self, terms: Sequence[Term], scales: np.ndarray | None, commit: Callable[[], None]) -> None:
        """Restore and, in the same pass, set the weights to scale * weights + terms.

        Args:
            terms: the steps along each direction.
            scales: float64 `(groups, R)`, what weight decay leaves; None for ones.
            commit: called once all weights are written; an interruption before it lets `restore` bring the old weights
                back, after it the step has happened.
        """
        if not self._any_in_place:
            self._write(terms, scales, in_place=False)
            commit()
            return
        with _uninterrupted():
            self._write(terms, scales, in_place=False)
            # scale * (w + d) - scale * d + terms: the displacement shrinks with the weights.
            back = [(direction, c if scales is None else c * scales) for direction, c in self._displacement]
            self._write([*terms, *_negative(back)], scales, in_place=True)
            self._displacement = []
            commit()

    def _write(self, terms: Sequence[Term], scales: np.ndarray | None, *, in_place: bool) -> None:
        terms = _merged(terms) if in_place else terms
        directions = [direction for direction, _ in terms]
        for block in self._blocks:
            if (block.save is None) is in_place and (terms or scales is not None or not in_place):
                scale = self._ones if scales is None else scales[block.group]
                multiples = np.stack([c[block.group] for _, c in terms]) if terms else self._nothing
                block.write(scale, multiples, directions, self._step)

    def _arrange(self) -> None:
        """Sort the trainable parameters into blocks; a parameter keeps its index whoever else is frozen."""
        trainable = [p for group in self.groups for p in group["params"] if p.requires_grad]
        small = sum(p.numel() * p.element_size() for p in trainable) <= SAVED_BYTES
        members: defaultdict[tuple[Any, ...], list[tuple[Tensor, int]]] = defaultdict(list)
        index, self.counts, self.devices = 0, [0] * len(self.groups), {p.device for p in trainable}
        for number, group in enumerate(self.groups):
            for p in group["params"]:
                if p.requires_grad and p.numel() > 0:
                    save = small or p.dtype not in FAST_DTYPES
                    members[number, p.dtype, p.device, save, p.is_contiguous()].append((p.detach(), index))
                    self.counts[number] += p.numel() // len(self.seeds)
                index += 1
        self._blocks = [self._block(key[0], key[3], pairs) for key, pairs in members.items()]
        self._any_in_place = any(block.save is None for block in self._blocks)

    def _block(self, group: int, saved: bool, pairs: list[tuple[Tensor, int]]) -> Block:
        tensors, indices = [t for t, _ in pairs], [i for _, i in pairs]
        if not saved:
            return Block(group, tensors, None, Combination.of(tensors, tensors, indices, self.seeds, self.kind))
        copies = [torch.empty_like(t) for t in tensors]
        return Block(
            group,
            tensors,
            Combination.of(copies, tensors, indices, self.seeds, self.kind),
            Combination.of(tensors, copies, indices, self.seeds, self.kind),
        )


def _negative(terms: Sequence[Term]) -> list[Term]:
    return [(direction, -c) for direction, c in terms]


def _merged(terms: Sequence[Term]) -> list[Term]:
    """Add the multiples of the same direction, so that each direction is drawn once."""
    total: dict[int, np.ndarray] = {}
    for direction, c in terms:
        total[direction] = total[direction] + c if direction in total else c
    return list(total.items())


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done; only the main thread receives it."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    received: list[Any] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if received:
            previous(*received[-1])
