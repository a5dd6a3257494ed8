"""Way 3, for large 16-bit models: weights are perturbed where they are used.

16-bit weights are rounded when they are perturbed, so no arithmetic takes a perturbation back. Here
they stay as they are, and `Handing` gives perturbed tensors to torch's operations. There is no
copy, and nothing to restore. Only an update that stopped between two blocks leaves something to do:
it is finished, since there is no way back.

Code that reads a weight past torch's operations would not see it perturbed. Examples are a view
made before, compiled code, and another thread. The first evaluation is therefore repeated while all
bits of the weights are turned over. Only `Handing` allows for that. If the outcome is not the very
same, weights are copied from then on, and the log says so once. The check is repeated when a weight
that was used is used no longer.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic.complaints import is_complaint
from dopaminergic.noise import Multiple, Term
from dopaminergic.outcomes import Outcome, readable
from dopaminergic.weights.handing import Handing, Perturbation, Stock, turn
from dopaminergic.weights.interruption import uninterrupted
from dopaminergic.weights.layout import Block, Part
from dopaminergic.weights.modes import leave_modes, random_states, rewind
from dopaminergic.weights.way import Way

MOST_PASSES = 3  # over all weights in an evaluation; beyond, it is cheaper to copy them

_modes: Any = torch._C


@dataclasses.dataclass(slots=True)
class FoundOut:
    """How a closure bears with weights that are perturbed on use; a saved state keeps it.

    Attributes:
        checked: it is known that the closure reads no weights past torch's operations.
        refused: weights must be copied for this closure.
    """

    checked: bool = False
    refused: bool = False


class OnUse(Way):
    """Weights that stay as they are, and the evaluation of closures that get perturbed ones.

    Args:
        seeds: uint64 `(R,)`, one for each replica.
        kind: of the noise.
        found_out: about the closure, here and in earlier steps.

    Attributes:
        parts: the weights, in blocks.
        found_out: see the argument.
        extra: evaluations beyond those that were asked for; `Weights` sets it back.
    """

    def __init__(self, seeds: np.ndarray, kind: str, found_out: FoundOut) -> None:
        super().__init__()
        self.parts: list[Part] = []
        self.found_out = found_out
        self.extra = 0
        self._now = Perturbation(seeds, kind)
        self._unfinished: Callable[[], None] | None = None  # completes an interrupted update
        self._depth: int | None = None  # of torch's stack of modes before an evaluation
        self._turned: list[Tensor] = []
        self._stock = Stock([], {})
        self._used: set[int] | None = None
        self._evaluated: list[Part] | None = None  # the parts in the last evaluation

    def arrange(self, parts: list[Part]) -> None:
        """Serve other weights from now on, none of which are perturbed."""
        self.parts = parts
        self._now.terms = None

    # ---- a way of perturbing ---------------------------------------------------------------------

    @property
    def held(self) -> tuple[list[Term], int] | None:
        """The terms by which weights are perturbed now, and the rounding; None if they are not."""
        return None if self._now.terms is None else (self._now.terms, self._now.rounding)

    @property
    def unfinished(self) -> bool:
        """Whether an update stopped between two blocks."""
        return self._unfinished is not None

    def move(self, terms: list[Term], rounding: int) -> None:
        """See `Way`."""
        self._now.step = self.step
        self._now.rounding = rounding
        self._now.terms = terms if self.parts else None

    def restore(self, step: int) -> None:
        """See `Way`."""
        self._now.terms = None

    def update(self, terms: list[Term], scales: list[Multiple] | None) -> None:
        """See `Way`; called last, since from the second block on there is no way but ahead."""
        self._now.terms = None
        if terms or scales is not None:
            self._change(list(self.parts), terms, scales)

    def finish(self) -> None:
        """Complete an update that stopped between two blocks."""
        if self._unfinished is not None:
            self._unfinished()

    def _change(self, rest: list[Part], terms: list[Term], scales: list[Multiple] | None) -> None:
        while rest:
            rest[0].combine(terms, scales, self.step)
            rest.pop(0)
            self._unfinished = functools.partial(self._change, rest, terms, scales)
        self._unfinished = None

    # ---- evaluations -----------------------------------------------------------------------------

    def evaluate(
        self,
        closure: Callable[[], Any],
        generators: list[torch.Generator],
    ) -> tuple[Any, str]:
        """Call a closure at the weights as they are perturbed.

        Args:
            closure: see `ForwardOptimizer.step`.
            generators: from which it may draw.

        Returns:
            The returned value of the closure, and "". Or None, and a reason why the weights must be
            copied for it; generators are then as they were.
        """
        if self._now.terms is None:
            return self._evaluate(closure)[0], ""
        if self._evaluated is not self.parts:
            self.found_out.checked = self.found_out.checked and self._evaluated is None
            self._used = None
            self._evaluated = self.parts
            self._stock = Stock([], {})
        states = random_states(generators)
        try:
            found, handing = self._evaluate(closure)
            why = handing.why
            known = self._used is None or self._used <= handing.used
            if not why and not (self.found_out.checked and known):
                rewind(states)
                why = self._check(closure, found, handing)
        except Exception as error:  # some closures cannot be evaluated so
            if self.found_out.checked or not is_complaint(error):
                raise
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            found = handing = None
        if why or handing is None:
            rewind(states)
            return None, why
        self._used = handing.used if self._used is None else self._used & handing.used
        return found, ""

    def say_that_it_is_refused(self, rule: str, why: str) -> None:
        """Say in the log that weights are copied for this closure from now on.

        Args:
            rule: the optimizer's name.
            why: the reason that `evaluate` gave.
        """
        self._stock = Stock([], {})
        logging.getLogger(__name__).warning(
            "%s: 16-bit weights are copied during a step, with the same results, since the "
            "closure cannot be given perturbed weights when it uses them; the reason: %s",
            rule,
            why,
        )

    def leave(self) -> None:
        """End an evaluation that may have been interrupted; harmless at any time."""
        leave_modes(self._depth)
        self._depth = None
        with uninterrupted():
            while self._turned:
                turn(self._turned.pop())

    def _evaluate(self, closure: Callable[[], Any], *, turned: bool = False) -> tuple[Any, Handing]:
        blocks: list[Block] = [part.block for part in self.parts]
        handing = Handing(blocks, self._now, self._stock, turned=turned)
        self._depth = _modes._len_torch_function_stack()
        try:
            if turned:
                with uninterrupted():
                    for p in handing.parameters:
                        turn(p)
                        self._turned.append(p)
            with handing:
                found = closure()
        finally:
            self.leave()
        handing.forget()
        return found, handing

    def _check(self, closure: Callable[[], Any], found: Any, handing: Handing) -> str:
        """Repeat an evaluation while the bits of the weights are turned over.

        An outcome that is not finite would tell nothing, so that the next one is tried again.

        Returns:
            The reason why weights must be copied, or "".
        """
        if handing.made > MOST_PASSES * sum(p.numel() for p in handing.parameters):
            return "it uses its weights in turn, many times"
        self.extra += 1
        other, _ = self._evaluate(closure, turned=True)
        one = _numbers(found)
        other = _numbers(other)
        self.found_out.checked = all(bool(x.isfinite().all()) for x in one)
        alike = len(one) == len(other) and all(
            a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
            for a, b in zip(one, other, strict=True)
        )
        if alike:
            return ""
        return "it reads weights past torch's operations, or gives another outcome each time"


def _numbers(returned: Any) -> list[Tensor]:
    try:
        found = readable(returned, "the closure")
    except TypeError:  # of which the reader of losses says more
        found = math.nan
    if isinstance(found, Outcome):
        return [found.values.detach(), found.losses.detach()]
    if isinstance(found, Tensor):
        return [found.detach()]
    return [torch.tensor(found, dtype=torch.float64, device="cpu")]
