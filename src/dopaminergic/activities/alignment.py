"""The weights of a family in line with its units, so that each gets its column of a Jacobian.

    d o_c / d W[p, u] = sum over calls s of v_sp g_su K_{t-s}[u, c]

The feedback that gives credit is a model of the Jacobian. It tells how units move outcomes; here is
told which weight moves which unit, and by how much. The rows of a readout are exact.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dopaminergic.activities.estimates import wide
from dopaminergic.activities.families import Family
from dopaminergic.activities.feedback import Times
from dopaminergic.activities.layout import Layout
from dopaminergic.activities.nodes import Node, Place
from dopaminergic.activities.synapses import Synapse


class Entry(NamedTuple):
    """A weight of a family, in line with its units.

    Attributes:
        columns: of the Jacobian, `(P, U)`.
        rows: of the inputs of all its synapses, one after the other: `(R, B, S)`; None for ones.
        factor: on the inputs.
        elements: rows are elements of inputs of the shape of the units, `(R, B, S, U)`.
    """

    columns: Tensor
    rows: Tensor | None
    factor: float
    elements: bool


class NotInLine(Exception):  # noqa: N818  (never leaves the package)
    """A weight meets activities in a way that has no rows of a Jacobian here."""


class Path(NamedTuple):
    """A synapse whose result comes to a call.

    Attributes:
        synapse: the weight.
        node: that it enters.
        positions: of the node's elements, in the shape of the call.
        factor: of the sums between.
    """

    synapse: Synapse
    node: Node
    positions: Tensor
    factor: float


def paths(node: Node, place: Place) -> list[Path]:
    """All weights that come to a view of a call, also by nodes that it has absorbed."""
    return _paths(node, _within(node.place, place), 1.0)


def _within(whole: Place, part: Place) -> Tensor:
    """The number of each element of a view among those of another view of the same memory."""
    elements = whole.elements()
    numbers = torch.full((max(whole.span, part.span),), -1, dtype=torch.int64, device="cpu")
    numbers[elements] = torch.arange(len(elements), dtype=torch.int64, device="cpu")
    return numbers[part.elements()].view(part.shape)


def structure(node: Node) -> tuple[Any, ...]:
    """All that decides how the weights of a call lie; equal for calls that are alike."""
    return (
        node.place,
        tuple((s.weight, s.kind, s.turned, s.factor, s.inputs is None) for s in node.synapses),
        tuple(
            (place, factor, structure(operand))
            for operand, place, factor in node.operands
            if operand.absorbed
        ),
    )


def synapses_of(node: Node) -> list[tuple[Node, Synapse]]:
    """The synapses of `paths`, in their order, each with the node that it enters."""
    found = [(node, synapse) for synapse in node.synapses]
    for operand, _, _ in node.operands:
        if operand.absorbed:
            found.extend(synapses_of(operand))
    return found


def _paths(node: Node, positions: Tensor, factor: float) -> list[Path]:
    found = [Path(synapse, node, positions, factor) for synapse in node.synapses]
    for operand, place, own in node.operands:
        if operand.absorbed:
            within = _within(operand.place, place).flatten()
            found.extend(_paths(operand, within[positions], factor * own))
    return found


class Aligned(NamedTuple):
    """The weights of a family in line with its units.

    Attributes:
        entries: one for each weight.
        sources: for each of them the calls' nodes and synapses, by their place in a list of paths.
    """

    entries: list[Entry]
    sources: list[list[tuple[int, int]]]


def align(calls: list[list[Path]], layout: Layout, columns_of: Any) -> Aligned:
    """Bring the weights of a family in line with its units.

    Args:
        calls: the paths of each call.
        layout: of a call.
        columns_of: maps a weight to the columns of its elements, in its own shape; -1 for those
            that do not change.

    Raises:
        NotInLine: it cannot be done.
    """
    groups: dict[Any, list[tuple[int, int]]] = {}
    for i, found in enumerate(calls):
        for j, path in enumerate(found):
            synapse = path.synapse
            key = (synapse.weight, synapse.kind, synapse.turned, synapse.factor * path.factor)
            groups.setdefault(key, []).append((i, j))
    entries: list[Entry] = []
    sources: list[list[tuple[int, int]]] = []
    for key, members in groups.items():
        columns = columns_of(key[0])
        if columns is None:
            continue
        if len(members) != len(calls):
            raise NotInLine
        entries.append(_entry(calls, members, layout, columns, key[3]))
        sources.append(members)
    return Aligned(entries, sources)


def _entry(
    calls: list[list[Path]],
    members: list[tuple[int, int]],
    layout: Layout,
    columns: Tensor,
    factor: float,
) -> Entry:
    first = calls[members[0][0]][members[0][1]]
    kind = first.synapse.kind
    if kind == "factor":
        spread = columns.expand(first.node.place.shape).flatten()
        found = _same([layout.apart(spread[calls[i][j].positions]) for i, j in members])
        if first.synapse.inputs is None:
            return Entry(found[None], None, factor, False)
        rows = _numbered(calls, members, lambda path, start: start + path.positions, layout)
        return Entry(found[None], rows, factor, True)
    if kind != "matrix" or columns.ndim > 3 or (columns.ndim == 3 and columns.shape[0] != 1):
        raise NotInLine
    columns = columns.view(columns.shape[-2:])
    shape = first.node.place.shape
    turned = first.synapse.turned
    shape = (*shape, 1) if len(shape) == 1 else shape
    width, height = (shape[-2], shape[-1]) if turned else (shape[-1], 1)

    def split(path: Path) -> tuple[Tensor, Tensor]:
        p = path.positions
        if not turned:
            return p // width, p % width
        return p // (width * height) * height + p % height, p // height % width

    units = _same([layout.apart(split(calls[i][j])[1]) for i, j in members])
    rows = _numbered(calls, members, lambda path, start: start + split(path)[0], layout)
    if bool((rows != rows[..., :1]).any()):
        raise NotInLine
    return Entry(columns[:, units], rows[..., 0], factor, False)


def _same(found: list[Tensor]) -> Tensor:
    """What does not depend on replicas, samples and steps, `(U,)`."""
    whole = torch.cat(found, 2).flatten(0, 2)
    if bool((whole != whole[:1]).any()):
        raise NotInLine
    return whole[0]


def _numbered(calls: Any, members: Any, number: Any, layout: Layout) -> Tensor:
    """Row numbers among the inputs of all distinct nodes, one after the other."""
    starts: dict[int, int] = {}
    total = 0
    found: list[Tensor] = []
    for i, j in members:
        path = calls[i][j]
        if id(path.node) not in starts:
            starts[id(path.node)] = total
            total += _input_rows(path)
        found.append(layout.apart(number(path, starts[id(path.node)])))
    return torch.cat(found, 2)


def _input_rows(path: Path) -> int:
    if path.synapse.kind == "factor":
        return math.prod(path.node.place.shape)
    inputs = path.synapse.inputs
    return inputs.numel() // inputs.shape[-1]


def inputs_of(aligned: Aligned, calls: list[list[tuple[Node, Synapse]]]) -> list[Tensor | None]:
    """V of each weight in line with the units: `(R, B, S, P)`, `(R, B, S, U)`, or None for ones."""
    found: list[Tensor | None] = []
    for entry, members in zip(aligned.entries, aligned.sources, strict=True):
        if entry.rows is None:
            found.append(None)
            continue
        seen: set[int] = set()
        parts: list[Tensor] = []
        for i, j in members:
            node, synapse = calls[i][j]
            if id(node) not in seen:
                seen.add(id(node))
                v = wide(synapse.inputs)
                v = v.expand(node.place.shape).flatten() if entry.elements else v.flatten(0, -2)
                parts.append(v)
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        found.append(whole[entry.rows])
    return found


def add_rows(
    jacobian: Tensor,
    family: Family,
    aligned: Aligned,
    inputs: list[Tensor | None],
    kernel: Tensor,
    times: Times | None,
) -> None:
    """Add what a family's weights do to the outcomes.

    Args:
        jacobian: `(R, B, T, C, d)`.
        family: the units.
        aligned: its weights.
        inputs: of its weights.
        kernel: K.
        times: of the family.
    """
    gains = family.gains.to(jacobian.dtype)
    replicas, samples, steps, units = family.shape
    total, outcomes = jacobian.shape[2:4]
    inward, columns = _inward(family, aligned, inputs, gains.dtype)
    columns = columns.to(jacobian.device)  # they are found on the CPU
    if times is None:
        # (R, B T C, S U) as K says, times (R, B, S, P U)
        matrix = kernel.view(replicas, 1, steps, units, total * outcomes)
        block = torch.einsum("rbspu,rbsuo->rbopu", inward, matrix.expand(-1, samples, -1, -1, -1))
        jacobian.index_add_(4, columns, block.unflatten(2, (total, outcomes)).flatten(4))
        return
    before = max(0, times.span - 1 - times.lag)
    padded = functional.pad(inward, (0, 0, 0, 0, before, 0)) if before else inward
    last = before + times.lag
    lagged = torch.stack(
        [padded[:, :, last - k : last - k + total] for k in range(times.span)], -1
    )  # (R, B, T, P, U, span)
    by_unit = lagged.movedim(4, 1).flatten(2, 4)  # (R, U, B T P, span)
    block = (by_unit @ kernel.transpose(1, 2)).view(
        replicas, units, samples, total, inward.shape[3], outcomes
    )
    block = block.permute(0, 2, 3, 5, 4, 1).flatten(4)
    jacobian.index_add_(4, columns, block)


def _inward(
    family: Family, aligned: Aligned, inputs: list[Tensor | None], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """How weights move their unit, `(R, B, S, P, U)`, and the columns of those weights."""
    gains = family.gains.to(dtype)
    shared: list[Tensor] = []
    own: list[Tensor] = []
    columns: list[Tensor] = []
    last: list[Tensor] = []
    for entry, v in zip(aligned.entries, inputs, strict=True):
        if v is None:
            ones = torch.ones_like(gains[..., :1])
            shared.append(entry.factor * ones)
            columns.append(entry.columns)
        elif entry.elements:
            own.append((entry.factor * v.to(dtype) * gains)[..., None, :])
            last.append(entry.columns)
        else:
            shared.append(entry.factor * v.to(dtype))
            columns.append(entry.columns)
    parts = own
    if shared:
        whole = torch.cat(shared, -1)
        parts = [whole[..., :, None] * gains[..., None, :], *own]
    return torch.cat(parts, 3), torch.cat([*columns, *last]).flatten()


def add_readout(jacobian: Tensor, aligned: Aligned, inputs: list[Tensor | None]) -> None:
    """Add the exact rows of the weights whose sums the outcomes are."""
    outcomes = jacobian.shape[3]
    for entry, v in zip(aligned.entries, inputs, strict=True):
        for c in range(outcomes):
            columns = entry.columns[:, c]
            if v is None:
                jacobian[:, :, :, c, columns] += entry.factor
            else:
                part = v[..., c : c + 1] if entry.elements else v
                jacobian[:, :, :, c, columns] += entry.factor * part.to(jacobian.dtype)
