"""The Jacobian of all outcomes, written out for networks of few weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dopaminergic.activities.alignment import (
    Aligned,
    NotInLine,
    Path,
    add_readout,
    add_rows,
    align,
    inputs_of,
    paths,
    structure,
    synapses_of,
)
from dopaminergic.activities.credit import Credit
from dopaminergic.activities.evaluations import Record
from dopaminergic.activities.layout import Layout

MOST = 1500  # weights


class Jacobians:
    """Makes the Jacobian of each step; how weights lie is found once.

    Args:
        parameters: of the model.
        replicas: R, or None for one model.
    """

    def __init__(self, parameters: list[Tensor], replicas: int | None) -> None:
        self._parameters = parameters
        self._fleet = replicas is not None
        self._aligned: dict[Any, Aligned | None] = {}
        self._replicas = replicas or 1
        self._starts: dict[int, int] = {}
        self.width = 0
        for number, parameter in enumerate(parameters):
            if parameter.requires_grad:
                self._starts[number] = self.width
                self.width += parameter.numel() // (replicas or 1)

    @property
    def numbers(self) -> list[int]:
        """Of the parameters that change."""
        return list(self._starts)

    def serves(self, parameters: list[Tensor]) -> bool:
        """Whether these are the parameters, and the same of them change."""
        return (
            len(parameters) == len(self._parameters)
            and all(a is b for a, b in zip(parameters, self._parameters, strict=True))
            and self.numbers == [i for i, p in enumerate(parameters) if p.requires_grad]
        )

    def __call__(self, record: Record, credit: Credit) -> Tensor | None:
        """J `(R, n, d)`, the weights in the order of parameters; None where it is not written out.

        Args:
            record: of the network as it is.
            credit: the feedback that it is made of.
        """
        if self.width > MOST or record.loss.black_box or record.tape.derived:
            return None
        if any(n in self._starts for n in record.tape.strange):
            return None
        rows: list[Any] = []
        for part in credit.parts:
            nodes = part.family.nodes
            key = (part.family.layout, *map(structure, nodes))
            aligned = self._known(
                key, lambda nodes=nodes: [paths(n, n.place) for n in nodes], part.family.layout
            )
            if aligned is None:
                return None
            rows.append((part, aligned, inputs_of(aligned, [synapses_of(n) for n in nodes])))
        jacobian = record.loss.slope.new_zeros(*record.shape, self.width)
        for part, aligned, inputs in rows:
            kernel = credit.memory[part.name]
            add_rows(jacobian, part.family, aligned, inputs, kernel, part.times)
        node = record.outcome
        if node is not None:
            key = (structure(node), record.place)
            aligned = self._known(key, lambda: [paths(node, record.place)], record.layout)
            if aligned is None:
                return None
            add_readout(jacobian, aligned, inputs_of(aligned, [synapses_of(node)]))
        return jacobian.flatten(1, 3)

    def _known(self, key: Any, calls: Any, layout: Layout) -> Aligned | None:
        if key not in self._aligned:
            try:
                found: list[list[Path]] = calls()
                self._aligned[key] = align(found, layout, self._columns_of)
            except NotInLine:
                self._aligned[key] = None
        return self._aligned[key]

    def _columns_of(self, weight: Any) -> Tensor | None:
        """The columns of a view of a parameter, in its shape; None if it does not change."""
        if weight.number not in self._starts:
            return None
        first = self._parameters[weight.number].storage_offset()
        place = weight.place._replace(offset=weight.place.offset - first)
        elements = place.elements().view(place.shape)
        return (elements[:1] if self._fleet else elements) + self._starts[weight.number]

    def spread(self, values: list[Any], like: Tensor) -> Tensor:
        """A number for each parameter that changes, or one for each replica of it, as `(R, d)`."""
        parts = [
            torch.as_tensor(value, dtype=torch.float64, device="cpu")
            .reshape(-1, 1)
            .expand(self._replicas, self._parameters[n].numel() // self._replicas)
            for value, n in zip(values, self.numbers, strict=True)
        ]
        return torch.cat(parts, 1).to(like.device, like.dtype)

    def weights(self, like: Tensor) -> Tensor:
        """All weights that change, as `(R, d)`."""
        parts = [self._parameters[n].detach().reshape(self._replicas, -1) for n in self.numbers]
        return torch.cat([part.to(like.device, like.dtype) for part in parts], 1)

    def as_updates(self, flat: Tensor) -> dict[int, Tensor]:
        """Amounts for all weights `(R, d)`, by the numbers of parameters and in their shapes."""
        updates: dict[int, Tensor] = {}
        for number, start in self._starts.items():
            parameter = self._parameters[number]
            size = parameter.numel() // len(flat)
            part = flat[:, start : start + size].reshape(parameter.shape)
            updates[number] = part.to(parameter.device, parameter.dtype)
        return updates
