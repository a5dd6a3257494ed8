"""What is known of one evaluation: nodes, and the memory in which their results lie."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dopaminergic.activities.synapses import Synapse


class Place(NamedTuple):
    """Where a view lies in its storage, in elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        """The place of a view."""
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    @property
    def span(self) -> int:
        """Elements of the storage up to the last one of the view."""
        return (
            self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        )

    def elements(self) -> Tensor:
        """Numbers of the elements of the storage, in the order of the view."""
        return torch.arange(self.span, dtype=torch.int64, device="cpu").as_strided(*self).flatten()

    def within(self, buffer: Tensor) -> Tensor:
        """The same view of other memory, one-dimensional."""
        return buffer.as_strided(self.shape, self.stride, self.offset)


@functools.lru_cache(maxsize=4096)
def overlap(one: Place, other: Place) -> bool:
    """Whether two views of one storage have an element in common.

    >>> row = Place((3,), (1,), 0)
    >>> overlap(row, row._replace(offset=2)), overlap(row, row._replace(offset=3))
    (True, False)
    """
    return not set(one.elements().tolist()).isdisjoint(other.elements().tolist())


class Weight(NamedTuple):
    """A view of a parameter.

    Attributes:
        number: of the parameter.
        place: of the view, in the storage of the parameter.
    """

    number: int
    place: Place


class Derived(NamedTuple):
    """A multiple of a weight, plus a constant.

    Attributes:
        weight: the view it was made of.
        factor: its multiple; for a mask a tensor.
        place: of the result.
    """

    weight: Weight
    factor: float | Tensor
    place: Place


@dataclass(eq=False, slots=True)
class Node:
    """A sum of products of weights and activities, which may be perturbed.

    Attributes:
        number: of the operation among those of sites and sums, in the order of the evaluation.
        operation: that made it.
        place: of the result.
        synapses: of weights that enter it directly.
        operands: nodes that it adds up, where in their storages, and the factor of each.
        dtype: of the result.
        device: of the result.
        consumed: whether anything but a sum reads it.
        added: whether a sum reads it.
        slopes: of the activations that read it: the place of what they read, and how their results
            change with it.
        direct: places of it that are read as they are.
        reach: how far its trials must move it, where its activation is a staircase; 0 elsewhere.
    """

    number: int
    operation: Any
    place: Place
    synapses: list[Synapse]
    operands: list[tuple[Node, Place, float]]
    dtype: torch.dtype
    device: torch.device
    consumed: bool = False
    added: bool = False
    slopes: list[tuple[Place, Tensor]] = field(default_factory=list)
    direct: set[Place] = field(default_factory=set)
    reach: float = 0.0

    @property
    def absorbed(self) -> bool:
        """Whether a sum has taken its place."""
        return self.added and not self.consumed


@dataclass(eq=False, slots=True)
class Probe:
    """An activation at a little more and a little less than its input.

    Where another activation follows it, the slope is that of both.
    """

    node: Node
    place: Place
    sigma: float
    more: Tensor | None = None
    less: Tensor | None = None
    followed: bool = False

    def finish(self) -> None:
        """Tell the node its slope, once; the activation is not followed any further."""
        more, less = self.more, self.less
        if more is None or less is None:
            return
        self.more = self.less = None
        dtype = self.node.dtype
        slope = (more.to(dtype) - less.to(dtype)) / (2.0 * self.sigma)
        self.node.slopes.append((self.place, slope))
