"""From the credit of units to an estimate of the gradient of each weight.

    dW = sum over samples, places and calls of presynaptic activity x credit

The credit of a sum is the credit of all that it adds up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dopaminergic.activities.synapses import Synapse, summed_to
from dopaminergic.activities.tape import Derived, Node, Place, Weight


def estimates(
    nodes: list[Node],
    credits: dict[Node, Tensor],
    parameters: list[Tensor],
    derived: list[Derived],
    trainable: set[int],
) -> dict[int, Tensor]:
    """The estimate for each trainable parameter, by its number; in float32 at least.

    Args:
        nodes: of an evaluation, in its order.
        credits: of some of them, in their shapes.
        parameters: of the model.
        derived: weights that the evaluation made of others.
        trainable: numbers of weights that may change, derived ones too.
    """
    groups: dict[tuple[Any, ...], list[tuple[Synapse, Tensor]]] = {}
    for node, credit in _spread(nodes, credits):
        for synapse in node.synapses:
            if synapse.weight.number in trainable:
                key = (synapse.weight, synapse.kind, synapse.turned, synapse.factor)
                groups.setdefault(key, []).append((synapse, credit))
    memory: dict[int, Tensor] = {}
    for (weight, *_), calls in groups.items():
        found = _estimate(calls)
        add_to(_memory(weight, memory, parameters, derived, found), weight.place, found)
    for number in range(len(parameters) + len(derived) - 1, len(parameters) - 1, -1):
        one = derived[number - len(parameters)]
        if number in memory:
            found = one.place.within(memory.pop(number)) * one.factor
            there = _memory(one.weight, memory, parameters, derived, found)
            add_to(there, one.weight.place, found)
    return {number: Place.of(parameters[number]).within(found) for number, found in memory.items()}


def _spread(nodes: list[Node], credits: dict[Node, Tensor]) -> Iterable[tuple[Node, Tensor]]:
    """Every node with its credit, sums before what they add up."""
    memory: dict[Node, Tensor] = {}
    for node in reversed(nodes):
        credit = credits.get(node)
        if credit is None and node in memory:
            credit = node.place.within(memory.pop(node))
        if credit is None:
            continue
        yield node, credit
        for operand, place, factor in node.operands:
            if not operand.absorbed:
                continue
            if operand not in memory:
                span = max(operand.place.span, place.span)
                memory[operand] = credit.new_zeros(span)
            place.within(memory[operand]).add_(credit, alpha=factor)


def _memory(
    weight: Weight,
    memory: dict[int, Tensor],
    parameters: list[Tensor],
    derived: list[Derived],
    like: Tensor,
) -> Tensor:
    number = weight.number
    if number not in memory:
        known = number < len(parameters)
        place = Place.of(parameters[number]) if known else derived[number - len(parameters)].place
        memory[number] = like.new_zeros(place.span)
    return memory[number]


def add_to(memory: Tensor, place: Place, found: Tensor) -> None:
    """Add an estimate for a view of a weight, which may be expanded, to that of the whole."""
    shape = tuple(1 if s == 0 else n for n, s in zip(place.shape, place.stride, strict=True))
    place._replace(shape=shape).within(memory).add_(summed_to(found, shape))


def _estimate(calls: list[tuple[Synapse, Tensor]]) -> Tensor:
    """The estimate for one view of a weight, from all calls in which it takes part."""
    first = calls[0][0]
    if first.kind == "matrix":
        return first.factor * _product(calls)
    found = [_one(synapse, credit) for synapse, credit in calls]
    return first.factor * torch.stack(found).sum(0) if len(found) > 1 else first.factor * found[0]


def _one(synapse: Synapse, credit: Tensor) -> Tensor:
    if synapse.estimate is not None:
        return wide(synapse.estimate(credit.to(_dtype_of(synapse, credit))))
    if synapse.inputs is not None:
        credit = credit * wide(synapse.inputs)
    return summed_to(credit, synapse.weight.place.shape)


def _dtype_of(synapse: Synapse, credit: Tensor) -> torch.dtype:
    floating = isinstance(synapse.inputs, Tensor) and synapse.inputs.is_floating_point()
    return synapse.inputs.dtype if floating else credit.dtype


def wide(x: Tensor) -> Tensor:
    """The numbers in float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def _product(calls: list[tuple[Synapse, Tensor]]) -> Tensor:
    rows: list[Tensor] = []
    credits: list[Tensor] = []
    for synapse, credit in calls:
        credit = credit[:, None] if credit.ndim == 1 else credit
        rows.append(wide(synapse.inputs))
        credits.append(credit.mT if synapse.turned else credit)
    if len(calls) == 1:
        v, e = rows[0], credits[0]
    else:
        v, e = torch.cat(rows, -2), torch.cat(credits, -2)
    if v.ndim > 2 and e.ndim == 2:
        v = v.flatten(0, -2)
    return v.mT @ e
