"""K perturbed models evaluated as one batch: vmap over a closure whose parameters are exchanged while it runs.

A closure knows nothing of batches: it calls a model that holds its parameters. `Exchange` watches every torch operation
inside the closure and hands it another tensor wherever a parameter would go, so that `torch.func.vmap` can run the
closure once for many perturbed copies of the parameters. What cannot be run so (a closure that leaves torch, asks for a
number, writes to memory of its own) is evaluated in place, one direction after the other, with the same results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dopaminergic.noise import Combination, Multiple
from dopaminergic.recurrent import RECURRENT
from dopaminergic.weights import Weights

MEMORY = 1 << 28  # bytes of perturbed copies and outcomes that may exist at once, by default
MOST = 32  # copies at once: more fill the caches without making the products any faster
WORTH_IT = 4  # copies at once, below which evaluating in place costs no more

Read = Callable[[Any], Tensor]  # what to keep of that which a closure returns, as one tensor


class Exchange(TorchFunctionMode):
    """While active, torch operations get `new[i]` wherever they are given `old[i]`.

    Args:
        old: parameters.
        new: tensors of the same shapes.
    """

    def __init__(self, old: list[Tensor], new: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.table = {id(o): n for o, n in zip(old, new, strict=True)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Exchange the arguments and call; torch's fused recurrent layers, which vmap does not know, step by step."""
        args = [self._new(a) for a in args]
        kwargs = {key: self._new(a) for key, a in kwargs.items()} if kwargs else {}
        call: Any = RECURRENT.get(getattr(func, "__name__", ""), func)
        return call(*args, **kwargs)

    def _new(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple) and not isinstance(argument, torch.Size):
            return type(argument)([self._new(a) for a in argument])
        return self.table.get(id(argument), argument)


class Copies:
    """Perturbed copies of all trainable parameters, of which each holds `parameter + sum of multiples of directions`.

    Args:
        weights: whose parameters; not perturbed while copies are written.
        count: number C of copies.

    Attributes:
        parameters: the trainable parameters.
        stacks: for each parameter a tensor `(C, *parameter.shape)`.
    """

    def __init__(self, weights: Weights, count: int) -> None:
        self.parameters = [p for block in weights.blocks for p in block.parameters]
        self.stacks = [torch.empty((count, *p.shape), dtype=p.dtype, device=p.device) for p in self.parameters]
        self.rows = [self._row(weights, i) for i in range(count)]

    def _row(self, weights: Weights, i: int) -> list[Combination]:
        stacks, row = iter(self.stacks), []
        for group, parameters, indices in weights.blocks:
            targets = [next(stacks)[i] for _ in parameters]
            sources = [p.detach() for p in parameters]
            row.append(Combination(targets, indices, weights.seeds, weights.kind, sources, group))
        return row

    def write(self, i: int, direction: int, multiples: list[Multiple], step: int) -> None:
        """Copy i <- weights + multiples[group] z_direction."""
        for combine in self.rows[i]:
            combine.saved[0] = step  # what it starts from are the weights themselves, which need no saving
            combine([(direction, multiples)], None, step, rounding=1 + direction)


class Batched:
    """Evaluates a closure at perturbed weights, as batches where that is possible, else in place.

    Args:
        rule: the optimizer's name, for the log.
        memory: bytes that the copies of one batch and their outcomes may take.
    """

    def __init__(self, rule: str, memory: int = MEMORY) -> None:
        self.rule, self.memory = rule, memory
        self.refused = False
        self._checked = False
        self._copies: Copies | None = None
        self._layout: Any = None

    def __call__(
        self, weights: Weights, closure: Callable[[], Any], read: Read, count: int, multiples: list[Multiple], step: int
    ) -> tuple[Tensor, int]:
        """What `read` keeps of the closure at weights + multiples z_k, for k < count, and the number of evaluations.

        Args:
            weights: unperturbed, and unperturbed again afterwards unless evaluated in place.
            closure: see `ForwardOptimizer.step`; every evaluation gets the random numbers that torch would give next.
            read: a tensor of what the closure returned, of the same shape each time.
            count: number K of directions.
            multiples: of each direction, one for each group.
            step: step number.

        Returns:
            Shape `(K, *shape of what is read)`, and K, or K + 1 where the first batch was compared with one evaluation
            in place.
        """
        states = [(generator, generator.get_state()) for generator in weights.generators]
        found = None if self.refused else self._as_batches(weights, closure, read, count, multiples, step, states)
        if found is None:
            return torch.stack(
                [self._in_place(weights, closure, read, k, multiples, states) for k in range(count)]
            ), count
        if self._checked:
            return found, count
        self._checked = True
        alone = self._in_place(weights, closure, read, 0, multiples, states)
        weights.restore(step)
        weights.begin(step)
        if alone.shape == found.shape[1:] and _alike(alone, found[0]):
            return found, count + 1
        self._refuse("it gives other results there (does the closure keep copies of the weights?)")
        rest = [self._in_place(weights, closure, read, k, multiples, states) for k in range(1, count)]
        return torch.stack([alone, *rest]), count

    def _in_place(
        self,
        weights: Weights,
        closure: Callable[[], Any],
        read: Read,
        direction: int,
        multiples: list[Multiple],
        states: list[tuple[torch.Generator, Tensor]],
    ) -> Tensor:
        weights.move([(direction, multiples)])
        rewind(states)
        return read(closure())

    def _as_batches(
        self,
        weights: Weights,
        closure: Callable[[], Any],
        read: Read,
        count: int,
        multiples: list[Multiple],
        step: int,
        states: list[tuple[torch.Generator, Tensor]],
    ) -> Tensor | None:
        at_once = min(count, MOST, self.memory // max(1, weights.bytes))
        if at_once < min(count, WORTH_IT):
            return None  # large models fill the processor alone
        copies, found = self._room(weights, min(MOST, self.memory // max(1, weights.bytes))), []

        def one(*replaced: Tensor) -> Tensor:
            with Exchange(copies.parameters, replaced):
                return read(closure())

        for first in range(0, count, at_once):
            size = min(at_once, count - first)
            for i in range(size):
                copies.write(i, first + i, multiples, step)
            rewind(states)
            try:
                found.append(torch.func.vmap(one, randomness="same")(*[stack[:size] for stack in copies.stacks]))
            except Exception as error:  # whatever a closure does that vmap cannot follow
                self._refuse(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                return None
        return torch.cat(found)

    def _room(self, weights: Weights, at_once: int) -> Copies:
        if self._copies is None or self._layout is not weights.blocks:
            self._copies, self._layout = Copies(weights, at_once), weights.blocks
        return self._copies

    def _refuse(self, why: str) -> None:
        self.refused, self._copies = True, None
        logging.getLogger(__name__).warning(
            "%s: the closure cannot be evaluated as a batch, so directions are tried one by one, which is slower for "
            "small models and gives the same results; the reason: %s",
            self.rule,
            why,
        )


def rewind(states: list[tuple[torch.Generator, Tensor]]) -> None:
    """Let every generator go on from a state again, so that evaluations see common random numbers."""
    for generator, state in states:
        generator.set_state(state)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two outcomes of the same weights agree but for the order of sums."""
    one, other = one.to(torch.float64), other.to(torch.float64)
    finite = one.isfinite() & other.isfinite()
    scale = one[finite].abs().max() if bool(finite.any()) else torch.tensor(0.0)
    return bool((one.isfinite() == other.isfinite()).all()) and bool(
        ((one - other)[finite].abs() <= 1e-4 * scale + 1e-12).all()
    )
