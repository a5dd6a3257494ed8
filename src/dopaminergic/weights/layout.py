"""Which parameters are perturbed in which way, and whether they have changed since the last look.

| way      | parameters                                                                        |
|----------|-----------------------------------------------------------------------------------|
| copied   | models up to 1 MiB, and 16-bit parameters that cannot be perturbed on use         |
| in place | large float32 and float64 models                                                  |
| on use   | large 16-bit models, where torch makes tensors of the same layout and none is cut |
"""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import FAST_DTYPES, MANTISSA_BITS_DROPPED, Combination
from dopaminergic.weights.sharding import first_element, is_sharded, local

SAVED_BYTES = 1 << 20

KIND = operator.attrgetter("dtype", "requires_grad", "shape")
COPIED = "copied"
IN_PLACE = "in place"
ON_USE = "on use"


class Block(NamedTuple):
    """Trainable parameters of one group that are alike, with the index of each in the noise."""

    group: int
    parameters: list[Tensor]
    indices: list[int]


class Part(NamedTuple):
    """The weights of a block that this process holds.

    Attributes:
        block: the block.
        combine: adds directions to the weights.
        owners: the parameters that own the memory.
    """

    block: Block
    combine: Combination
    owners: list[Tensor]


class Layout(NamedTuple):
    """The trainable parameters, sorted.

    Attributes:
        blocks: all of them.
        parts: the parts of blocks, by the way in which they are perturbed.
        sizes: number of trainable weights of one replica in each group.
        bytes: memory of all trainable weights; of a sharded parameter that of the whole.
        generators: torch's generators that a closure may draw from.
        sharded: some parameters are DTensors, of which this rank holds a part.
        exact: every weight comes back to the bit from any move; the same on all ranks, also on one
            without weights.
        untold: torch counts no writes to some parameters, which were made in
            `torch.inference_mode()`.
    """

    blocks: list[Block]
    parts: dict[str, list[Part]]
    sizes: list[int]
    bytes: int
    generators: list[torch.Generator]
    sharded: bool
    exact: bool
    untold: bool


EMPTY = Layout([], {COPIED: [], IN_PLACE: [], ON_USE: []}, [], 0, [], False, True, False)


def arrange(
    groups: list[dict[str, Any]],
    seeds: np.ndarray,
    kind: str,
    *,
    keep_copies: bool,
    on_use: bool,
) -> Layout:
    """Sort the trainable parameters; each keeps its index in the noise while others are frozen.

    Args:
        groups: the optimizer's `param_groups`.
        seeds: uint64 `(R,)`, one for each replica.
        kind: of the noise.
        keep_copies: all weights are copied, however many there are.
        on_use: large 16-bit weights may be perturbed on use.
    """
    trainable = [p for group in groups for p in group["params"] if p.requires_grad]
    sharded = any(map(is_sharded, trainable))
    size = sum(p.numel() * p.element_size() for p in trainable)
    small = size <= SAVED_BYTES or keep_copies
    on_use = on_use and not small and not sharded

    members: defaultdict[Any, list[tuple[Tensor, int]]] = defaultdict(list)
    sizes = [0] * len(groups)
    index = 0
    for number, group in enumerate(groups):
        for p in group["params"]:
            if p.requires_grad and p.numel() > 0:
                way = _way_of(p, small, on_use)
                members[number, p.dtype, p.device, way, p.is_contiguous()].append((p, index))
                sizes[number] += p.numel() // len(seeds)
            index += 1

    blocks = []
    parts: dict[str, list[Part]] = {COPIED: [], IN_PLACE: [], ON_USE: []}
    for (number, _, _, way, _), pairs in members.items():
        block = Block(number, [p for p, _ in pairs], [i for _, i in pairs])
        blocks.append(block)
        parts[way] += _part(block, seeds, kind, copied=way == COPIED)

    return Layout(
        blocks,
        parts,
        sizes,
        size,
        _generators({p.device for p in trainable}),
        sharded,
        small or not any(p.dtype in FAST_DTYPES for p in trainable),
        any(p.is_inference() for p in trainable),
    )


def _way_of(p: Tensor, small: bool, on_use: bool) -> str:
    if not small and p.dtype in FAST_DTYPES:
        return IN_PLACE
    return ON_USE if on_use and _can_be_made(p) else COPIED


def _can_be_made(p: Tensor) -> bool:
    """Whether `torch.empty_like` has the layout of `p`.

    The order of sums in a product may depend on it.
    """
    plain = type(p) in (Tensor, torch.nn.Parameter) and p.dtype in MANTISSA_BITS_DROPPED
    return plain and torch.empty_like(p, device="meta").stride() == p.stride()


def _part(block: Block, seeds: np.ndarray, kind: str, *, copied: bool) -> list[Part]:
    """The weights of a block that this process holds; empty if another rank has all of them."""
    pairs = zip(block.parameters, block.indices, strict=True)
    held = [(p, i) for p, i in pairs if local(p).numel() > 0]
    if not held:
        return []
    owners = [p for p, _ in held]
    indices = [i for _, i in held]
    tensors = [local(p) for p in owners]
    copies = [torch.empty_like(t) for t in tensors] if copied else None
    firsts = [first_element(p) for p in owners]
    combine = Combination(tensors, indices, seeds, kind, copies, block.group, firsts)
    return [Part(block, combine, owners)]


def _generators(devices: set[torch.device]) -> list[torch.Generator]:
    cuda = [torch.cuda.default_generators[d.index or 0] for d in devices if d.type == "cuda"]
    return [torch.default_generator, *cuda]


class Look:
    """How users had arranged everything when one looked; it tells whether that has changed.

    They change sigma, and parameters by moving, casting, freezing, viewing or replacing them.
    `Combination` keeps the memory that it writes to, so another tensor's memory has another
    address.

    Args:
        groups: the optimizer's `param_groups`.
        sharded: some parameters are DTensors.
        alone: one model of one group; `is_same_at_a_glance` may then serve.
    """

    def __init__(self, groups: list[dict[str, Any]], *, sharded: bool, alone: bool) -> None:
        self._groups = groups
        self._sharded = sharded
        self._seen = self._now()
        self._glance = self._first_glance() if alone else None

    def is_same(self) -> bool:
        """Whether nothing has changed."""
        return self._now() == self._seen

    def is_same_at_a_glance(self) -> bool:
        """`is_same` of one model, in less time; False where that cannot be told.

        A parameter of another shape in the same memory goes unnoticed.
        """
        if self._glance is None or len(self._groups) > 1:
            return False
        (group,) = self._groups
        sigma, places = self._glance
        parameters = group["params"]
        if sigma != group["sigma"] or len(parameters) != len(places):
            return False
        for p, (address, count) in zip(parameters, places):  # noqa: B905 (a check takes time)
            same_place = p.data_ptr() == address and p.numel() == count
            if not (same_place and p.is_contiguous() and p.requires_grad):
                return False
        return True

    def _now(self) -> list[Any]:
        seen: list[Any] = []
        for group in self._groups:
            parameters = group["params"]
            seen += map(KIND, parameters)
            if self._sharded:  # a DTensor has no memory of its own
                parameters = [local(p) for p in parameters]
                seen += map(Tensor.size, parameters)
            seen += map(Tensor.data_ptr, parameters)
            seen += map(Tensor.stride, parameters)
            seen.append(group["sigma"])
        return seen

    def _first_glance(self) -> tuple[float, list[tuple[int, int]]] | None:
        """Sigma and places; None where they would not tell, for example bfloat16 from float16."""
        (group,) = self._groups
        parameters = group["params"]
        if self._sharded or not all(map(_is_told_by_its_place, parameters)):
            return None
        return group["sigma"], [(p.data_ptr(), p.numel()) for p in parameters]


def _is_told_by_its_place(p: Tensor) -> bool:
    return p.dtype in FAST_DTYPES and p.is_contiguous() and p.requires_grad
