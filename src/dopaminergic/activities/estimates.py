"""From the credit of units to an estimate of the gradient of each weight.

    dW = sum over samples, places and calls of presynaptic activity x credit

The credit of a sum is the credit of all that it adds up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.activities.nodes import Derived, Node, Place, Weight
from dopaminergic.activities.synapses import Synapse, summed_to

WIDEST = 512  # columns whose products are worth their memory


class Sides(NamedTuple):
    """How the rows, and the columns, of a weight matrix vary together.

    Attributes:
        left: products over its rows, `(R, rows, rows)`.
        right: products over its columns, `(R, columns, columns)`.
    """

    left: Tensor
    right: Tensor


class Estimates(NamedTuple):
    """Estimates of the gradient.

    Attributes:
        gradients: for each parameter, by its number and in its shape; in float32 at least.
        sides: for those that are a whole matrix.
    """

    gradients: dict[int, Tensor]
    sides: dict[int, Sides]


def estimates(
    nodes: list[Node],
    credits: dict[Node, Tensor],
    parameters: list[Tensor],
    derived: list[Derived],
    trainable: set[int],
    replicas: int | None,
) -> Estimates:
    """The estimate for each trainable parameter.

    Args:
        nodes: of an evaluation, in its order.
        credits: of some of them, in their shapes.
        parameters: of the model.
        derived: weights that the evaluation made of others.
        trainable: numbers of weights that may change, derived ones too.
        replicas: R, or None for one model.
    """
    products: dict[int, Sides] = {}
    groups: dict[tuple[Any, ...], list[tuple[Synapse, Tensor]]] = {}
    for node, credit in _spread(nodes, credits):
        for synapse in node.synapses:
            if synapse.weight.number in trainable:
                key = (synapse.weight, synapse.kind, synapse.turned, synapse.factor)
                groups.setdefault(key, []).append((synapse, credit))
    memory: dict[int, Tensor] = {}
    for (weight, *_), calls in groups.items():
        found = _estimate(calls)
        if weight.number < len(parameters):
            sides = _sides(weight, calls, tuple(parameters[weight.number].shape), replicas)
            if sides is not None:
                products[weight.number] = sides
        add_to(_memory(weight, memory, parameters, derived, found), weight.place, found)
    for number in range(len(parameters) + len(derived) - 1, len(parameters) - 1, -1):
        one = derived[number - len(parameters)]
        if number in memory:
            found = one.place.within(memory.pop(number)) * one.factor
            there = _memory(one.weight, memory, parameters, derived, found)
            add_to(there, one.weight.place, found)
    gradients = {
        number: Place.of(parameters[number]).within(found) for number, found in memory.items()
    }
    return Estimates(gradients, products)


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
            add_to(memory[operand], place, factor * credit)


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


def _sides(
    weight: Weight,
    calls: list[tuple[Synapse, Tensor]],
    shape: tuple[int, ...],
    replicas: int | None,
) -> Sides | None:
    """Products of activities, and of credits, for a whole matrix of weights."""
    lead = () if replicas is None else (replicas,)
    if calls[0][0].kind != "matrix" or len(shape) != len(lead) + 2:
        return None
    rows, credits = _stacked(calls)
    rows = rows.reshape(replicas or 1, -1, rows.shape[-1])
    credits = credits.reshape(replicas or 1, -1, credits.shape[-1])
    inward = products_of_columns(rows)
    outward = products_of_columns(credits)
    place = weight.place.shape[-2:]
    if place == shape[-2:]:
        return Sides(inward, outward)
    return Sides(outward, inward) if place[::-1] == shape[-2:] else None


def products_of_columns(x: Tensor) -> Tensor:
    """Products of columns, summed over rows; an empty matrix where columns are too many."""
    return x.mT @ x if x.shape[-1] <= WIDEST else x.new_empty(len(x), 0, 0)


def _dtype_of(synapse: Synapse, credit: Tensor) -> torch.dtype:
    floating = isinstance(synapse.inputs, Tensor) and synapse.inputs.is_floating_point()
    return synapse.inputs.dtype if floating else credit.dtype


def wide(x: Tensor) -> Tensor:
    """The numbers in float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def _product(calls: list[tuple[Synapse, Tensor]]) -> Tensor:
    v, e = _stacked(calls)
    return v.mT @ e


def _stacked(calls: list[tuple[Synapse, Tensor]]) -> tuple[Tensor, Tensor]:
    """Inputs `(..., rows, P)` and credits `(..., rows, U)` of all calls."""
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
    return v, e
