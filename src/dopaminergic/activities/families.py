"""All calls of one site in an evaluation, stacked: the units whose inputs are perturbed.

A recurrent cell is called at each time step, by the same weights. Its calls are one family of
`(R, B, S, U)` units: replicas, samples, S calls or time steps, units. A layer that is called once
is a family with S = 1, or with its own dimension of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dopaminergic.activities.layout import Layout, layouts
from dopaminergic.activities.nodes import Node, Place, Weight


@dataclass(eq=False, slots=True)
class Family:
    """The calls of one site, or of one sum of sites.

    Attributes:
        name: of the first of its weights, with the number of calls before if they are apart.
        nodes: the calls.
        layouts: those that a call may have, the likeliest first.
        gains: how much an activation answers to its input, `(R, B, S, U)`.
        reach: how far its trials move it, in units of sigma.
        trials: xi, of the same shape.
        lag: steps of units before the one that the first outcome comes with; None: units and
            outcomes have no time in common.
        layout: that is used.
    """

    name: str
    nodes: list[Node]
    layouts: list[Layout]
    gains: Tensor
    reach: float = 1.0
    trials: Any = None
    lag: int | None = None
    layout: Any = None

    def use(self, layout: int, lag: int | None) -> None:
        """Take one of the layouts, and a lag."""
        self.lag = lag
        if self.layout is not self.layouts[layout]:
            self.layout = self.layouts[layout]
            self.gains = torch.cat([self.layout.apart(gain_of(n)) for n in self.nodes], 2)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(R, B, S, U)`."""
        return tuple(self.gains.shape)  # pyright: ignore[reportReturnType]

    @property
    def size(self) -> int:
        """N: units of one sample."""
        return self.shape[2] * self.shape[3]

    def of_calls(self, found: Tensor) -> list[Tensor]:
        """Something that all units have, in the shape of each call."""
        parts = found.chunk(len(self.nodes), 2)
        return [
            self.layout.together(part, node.place.shape)
            for part, node in zip(parts, self.nodes, strict=True)
        ]


def credited(nodes: list[Node], outcome: Node | None, trainable: set[int]) -> list[Node]:
    """The nodes that are units: not absorbed, and with a weight to learn.

    Args:
        nodes: of an evaluation.
        outcome: the node that the outcome is, which is known exactly; it is not among them.
        trainable: numbers of weights that may change.
    """
    return [
        node
        for node in nodes
        if node is not outcome
        and (node.consumed or node.added)
        and not node.absorbed
        and any(weight.number in trainable for weight in weights_of(node))
    ]


def weights_of(node: Node) -> list[Weight]:
    """All weights that enter a node, also by nodes that it has absorbed."""
    found = [synapse.weight for synapse in node.synapses]
    for operand, _, _ in node.operands:
        if operand.absorbed:
            found.extend(weights_of(operand))
    return found


def families(
    units: list[Node],
    replicas: int | None,
    samples: int,
    times: int,
    sigma: float,
    name: Callable[[int], str],
) -> list[Family]:
    """The families of an evaluation, in its order.

    Args:
        units: its nodes that are perturbed.
        replicas: R, or None.
        samples: B.
        times: T of the outcomes.
        sigma: length of a trial.
        name: maps the number of a weight to its name.

    Raises:
        ValueError: the samples cannot be found in the units of a site.
    """
    groups: dict[Any, list[Node]] = {}
    for node in units:
        groups.setdefault((_parts_of(node), node.place.shape), []).append(node)
    found: list[Family] = []
    named: dict[str, int] = {}
    for (_, shape), nodes in groups.items():
        there = layouts(shape, replicas, samples, times)
        label = name(min(weight.number for weight in weights_of(nodes[0])))
        named[label] = named.get(label, 0) + 1
        label += f" ({named[label]})" * (named[label] > 1)
        if not there:
            raise ValueError(
                f"the site of {shortened(label)} has shape {tuple(shape)}, in which "
                f"{samples} samples of the outcomes cannot be found"
            )
        if len(nodes) > 1 and there[0].ends[2]:  # each call has time steps of its own
            for i, node in enumerate(nodes):
                found.append(_family(f"{label} {i}", [node], there, sigma))
        else:
            found.append(_family(label, nodes, there, sigma))
    return found


def shortened(name: str, most: int = 48) -> str:
    """The end of a long name, which tells more than its beginning.

    >>> shortened("encoder.layers.11.attention.output.weight", 20)
    '...ion.output.weight'
    """
    return name if len(name) <= most else f"...{name[3 - most :]}"


def _parts_of(node: Node) -> tuple[Any, ...]:
    """The weights of a node, and which columns of what it adds up: alike for calls of one family.

    For example the gates of a recurrent cell share weights, and read other columns of the sums.
    """
    own = tuple((synapse.weight, synapse.kind) for synapse in node.synapses)
    added = [
        (_parts_of(operand), place.offset % max(1, operand.place.shape[-1]))
        for operand, place, _ in node.operands
        if operand.absorbed and operand.place.shape
    ]
    return (own, tuple(added))


def _family(name: str, nodes: list[Node], there: list[Layout], sigma: float) -> Family:
    gains = torch.cat([there[0].apart(gain_of(node)) for node in nodes], 2)
    reach = max(node.reach for node in nodes) / sigma
    return Family(name, nodes, there, gains, reach or 1.0, layout=there[0])


def gain_of(node: Node) -> Tensor:
    """How much what reads a node answers to it, in its shape; 1 where nothing is known.

    Where several read one element, it is the mean of their slopes. Beside activations, the slope of
    all else counts as 1. For example h + tanh(h) answers by 1/2 (1 + tanh'), but for a factor.
    """
    place = node.place
    if not node.slopes:
        return torch.ones(place.shape, dtype=node.dtype, device=node.device)
    if len(node.slopes) == 1 and node.slopes[0][0] == place and not node.direct:
        return node.slopes[0][1]
    direct = [(other, node.slopes[0][1].new_ones(other.shape)) for other in node.direct]
    slopes = [*node.slopes, *direct]
    span = max([place.span, *(other.span for other, _ in slopes)])
    memory = torch.zeros(span, dtype=node.dtype, device=node.device)
    times = torch.zeros_like(memory)
    for other, slope in slopes:
        other, slope = _unexpanded(other, slope)
        there, seen = other.within(memory), other.within(times)
        # z and 1 - z answer alike; their mean would be 0.
        slope = torch.where(there * slope < 0.0, -slope, slope)
        there.copy_((there * seen + slope) / (seen + 1.0))
        seen.add_(1.0)
    return place.within(torch.where(times > 0.0, memory, 1.0))


def _unexpanded(place: Place, slope: Tensor) -> tuple[Place, Tensor]:
    """A place without elements that lie in one memory, and the mean of their slopes."""
    dims = [
        i for i, (n, step) in enumerate(zip(place.shape, place.stride, strict=True)) if not step
    ]
    if not dims:
        return place, slope
    shape = tuple(1 if i in dims else n for i, n in enumerate(place.shape))
    return place._replace(shape=shape), slope.mean(dims, keepdim=True)
