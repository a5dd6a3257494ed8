"""From the credit of units to an estimate of the gradient of each weight.

    dW = sum over samples, places and calls of presynaptic activity x credit

The credit of a sum is the credit of all that it adds up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.activities.nodes import Derived, Node, Place
from dopaminergic.activities.synapses import Synapse, summed_to

WIDEST = 512  # columns whose products are worth their memory
LARGE = WIDEST**2  # weights of a matrix whose estimate is worth no memory of its own

Calls = list[tuple[Synapse, Tensor]]


class Sides(NamedTuple):
    """How the rows, and the columns, of a weight matrix vary together.

    Attributes:
        left: products over its rows, `(R, rows, rows)`.
        right: products over its columns, `(R, columns, columns)`.
    """

    left: Tensor
    right: Tensor


class Product(NamedTuple):
    """The estimate for a large matrix, not multiplied out.

    Attributes:
        left: `(n, rows)`, times the factor.
        right: `(n, columns)`.
    """

    left: Tensor
    right: Tensor

    def whole(self) -> Tensor:
        """The estimate, `(rows, columns)`."""
        return self.left.mT @ self.right


class Estimate(NamedTuple):
    """An estimate of the gradient.

    Attributes:
        number: of the parameter.
        gradient: in the parameter's shape; in float32 at least. Or a product.
        sides: of a whole matrix, else None.
    """

    number: int
    gradient: Tensor | Product
    sides: Sides | None


def estimates(
    nodes: list[Node],
    credits: dict[Node, Tensor],
    parameters: list[Tensor],
    derived: list[Derived],
    trainable: set[int],
    replicas: int | None,
) -> Iterator[Estimate]:
    """The estimates for all trainable parameters, one after another to hold only one.

    Args:
        nodes: of an evaluation, in its order.
        credits: of some of them, in their shapes.
        parameters: of the model.
        derived: weights that the evaluation made of others.
        trainable: numbers of weights that may change, derived ones too.
        replicas: R, or None for one model.
    """
    groups: dict[int, dict[tuple[Any, ...], Calls]] = {}
    for node, credit in _spread(nodes, credits):
        for synapse in node.synapses:
            if synapse.weight.number in trainable:
                key = (synapse.weight, synapse.kind, synapse.turned, synapse.factor)
                mine = groups.setdefault(synapse.weight.number, {})
                mine.setdefault(key, []).append((synapse, credit))
    memory: dict[int, Tensor] = {}  # of weights of which others were made
    places = [*map(Place.of, parameters), *(one.place for one in derived)]
    for number in range(len(places) - 1, -1, -1):
        calls = groups.pop(number, {})
        found = memory.pop(number, None)
        if not calls and found is None:
            continue
        if number < len(parameters):
            yield _for_parameter(number, calls, found, parameters[number], replicas)
            continue
        one = derived[number - len(parameters)]
        whole = _gathered(calls, found, places[number])
        made = places[number].within(whole) * one.factor
        source = one.weight.number
        if source not in memory:
            memory[source] = made.new_zeros(places[source].span)
        add_to(memory[source], one.weight.place, made)


def _for_parameter(
    number: int,
    groups: dict[tuple[Any, ...], Calls],
    found: Tensor | None,
    parameter: Tensor,
    replicas: int | None,
) -> Estimate:
    place = Place.of(parameter)
    if found is None and len(groups) == 1 and replicas is None:
        product = _product_of(next(iter(groups.values())), place)
        if product is not None:
            inward, outward = (products_of_columns(x[None]) for x in product)
            return Estimate(number, product, Sides(inward, outward))
    sides = None
    for calls in groups.values():
        sides = _sides(calls, place, replicas) or sides
    return Estimate(number, place.within(_gathered(groups, found, place)), sides)


def _gathered(groups: dict[tuple[Any, ...], Calls], found: Tensor | None, place: Place) -> Tensor:
    """The sum of what all calls say of a weight, in its memory."""
    for calls in groups.values():
        one = _estimate(calls)
        if found is None:
            found = one.new_zeros(place.span)
        add_to(found, calls[0][0].weight.place, one)
    assert found is not None
    return found


def _product_of(calls: Calls, whole: Place) -> Product | None:
    """The estimate for a large matrix, where its factors are smaller than itself; else None."""
    if calls[0][0].kind != "matrix" or len(whole.shape) != 2:
        return None
    rows, columns = whole.shape
    turned = _is_turned(calls, whole)
    if turned is None or rows * columns <= LARGE:
        return None
    inputs, credits = _stacked(calls)
    if inputs.ndim != 2 or credits.ndim != 2 or len(inputs) * (rows + columns) > rows * columns:
        return None
    left, right = (credits, inputs) if turned else (inputs, credits)
    return Product(calls[0][0].factor * left, right)


def _is_turned(calls: Calls, whole: Place) -> bool | None:
    """Whether the products are taken with the transposed matrix; None: with parts of it."""
    place = calls[0][0].weight.place
    if place == whole:
        return False
    shape, stride = ((*x[:-2], x[-1], x[-2]) for x in (whole.shape, whole.stride))
    return True if place == (shape, stride, whole.offset) else None


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


def add_to(memory: Tensor, place: Place, found: Tensor) -> None:
    """Add an estimate for a view of a weight, which may be expanded, to that of the whole."""
    shape = tuple(1 if s == 0 else n for n, s in zip(place.shape, place.stride, strict=True))
    place._replace(shape=shape).within(memory).add_(summed_to(found, shape))


def _estimate(calls: Calls) -> Tensor:
    """The estimate for one view of a weight, from all calls in which it takes part."""
    first = calls[0][0]
    if first.kind == "matrix":
        return first.factor * _product(calls)
    found = [_one(synapse, credit) for synapse, credit in calls]
    return first.factor * torch.stack(found).sum(0) if len(found) > 1 else first.factor * found[0]


def _one(synapse: Synapse, credit: Tensor) -> Tensor:
    if synapse.estimate is not None:
        return wide(synapse.estimate(synapse.inputs, credit.to(_dtype_of(synapse, credit))))
    if synapse.inputs is not None:
        credit = credit * wide(synapse.inputs)
    return summed_to(credit, synapse.weight.place.shape)


def _sides(calls: Calls, whole: Place, replicas: int | None) -> Sides | None:
    """Products of activities, and of credits, for a whole matrix of weights."""
    lead = () if replicas is None else (replicas,)
    if calls[0][0].kind != "matrix" or len(whole.shape) != len(lead) + 2:
        return None
    turned = _is_turned(calls, whole)
    if turned is None:
        return None
    rows, credits = _stacked(calls)
    rows = rows.reshape(replicas or 1, -1, rows.shape[-1])
    credits = credits.reshape(replicas or 1, -1, credits.shape[-1])
    inward = products_of_columns(rows)
    outward = products_of_columns(credits)
    return Sides(outward, inward) if turned else Sides(inward, outward)


def products_of_columns(x: Tensor) -> Tensor:
    """Products of columns, summed over rows; an empty matrix where columns are too many."""
    return x.mT @ x if x.shape[-1] <= WIDEST else x.new_empty(len(x), 0, 0)


def _dtype_of(synapse: Synapse, credit: Tensor) -> torch.dtype:
    floating = isinstance(synapse.inputs, Tensor) and synapse.inputs.is_floating_point()
    return synapse.inputs.dtype if floating else credit.dtype


def wide(x: Tensor) -> Tensor:
    """The numbers in float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def _product(calls: Calls) -> Tensor:
    v, e = _stacked(calls)
    return v.mT @ e


def _stacked(calls: Calls) -> tuple[Tensor, Tensor]:
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
