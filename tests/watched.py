"""An evaluation under the tape, and its estimates beside autograd's gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.activities.estimates import Product, estimates
from dopaminergic.activities.nodes import Node, Place
from dopaminergic.activities.tape import Tape
from optimizers import randn


class Seen(NamedTuple):
    """An evaluation that was watched."""

    tape: Tape
    node: Node
    place: Place
    result: Tensor

    @property
    def left(self) -> list[Node]:
        """The nodes that no sum has absorbed."""
        return [node for node in self.tape.nodes if not node.absorbed]


def watch(run: Callable[[], Tensor], weights: Sequence[Tensor]) -> Seen:
    """Evaluate, with a tape; the result must be a view of a node."""
    tape = Tape(list(weights), 1e-3)
    with torch.no_grad(), tape:
        result = run()
    node = tape.finish(result)
    assert node is not None
    return Seen(tape, node, Place.of(result), result)


def estimated(seen: Seen, credit: Tensor, weights: Sequence[Tensor]) -> dict[int, Tensor]:
    """The estimates that follow from the credit of a result."""
    memory = credit.new_zeros(max(seen.node.place.span, seen.place.span))
    seen.place.within(memory).copy_(credit)
    credits = {seen.node: seen.node.place.within(memory)}
    derived = seen.tape.derived
    trainable = {i for i, w in enumerate(weights) if w.requires_grad}
    trainable |= {
        len(weights) + i
        for i, one in enumerate(derived)
        if one.weight.number in trainable or one.weight.number >= len(weights)
    }
    found = estimates(seen.tape.nodes, credits, list(weights), derived, trainable, None)
    return {n: one.whole() if isinstance(one, Product) else one for n, one, _ in found}


def assert_exact(run: Callable[[], Tensor], weights: Sequence[Tensor], **tolerance: Any) -> Seen:
    """The estimates of all weights are the gradients of <credit, result>."""
    seen = watch(run, weights)
    credit = randn(*seen.result.shape, seed=11, dtype=seen.result.dtype)
    found = estimated(seen, credit, weights)
    trainable = [i for i, w in enumerate(weights) if w.requires_grad]
    with torch.enable_grad():
        exact = torch.autograd.grad(run(), [weights[i] for i in trainable], credit)
    assert sorted(found) == trainable
    for number, gradient in zip(trainable, exact, strict=True):
        torch.testing.assert_close(
            found[number].to(gradient.dtype), gradient, rtol=1e-10, atol=1e-12, **tolerance
        )
    return seen
