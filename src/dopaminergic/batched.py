"""K perturbed models evaluated as one batch: vmap over a closure whose parameters are exchanged.

A closure knows nothing of batches: it calls a model that holds its parameters. `Exchange` watches
every torch operation inside the closure, and hands it another tensor wherever a parameter would go.
So `torch.func.vmap` can run the closure once for many perturbed copies of the parameters.

Some closures cannot run so, for example one that leaves torch, asks for a number, or writes to
memory of its own. They are evaluated in place, one direction after the other, with the same
results.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dopaminergic.complaints import is_complaint
from dopaminergic.exchange import Exchange, revive
from dopaminergic.noise import Combination, Multiple, perturbation
from dopaminergic.weights import Weights
from dopaminergic.weights.modes import RandomStates, leave_modes, random_states, rewind

MEMORY = 1 << 26  # bytes of perturbed copies and outcomes that may exist at once, by default
MOST = 32  # copies at once: more fill the caches without making the products any faster
WORTH_IT = 4  # copies at once; with fewer, evaluating in place costs no more

_modes: Any = torch._C
Read = Callable[[Any], Tensor]  # makes one tensor of a returned value


class Copies:
    """Perturbed copies of all trainable parameters.

    Each copy holds `parameter + sum of multiples of directions`.

    Args:
        weights: those that are copied; they are not perturbed while copies are written.
        count: number C of copies.

    Attributes:
        parameters: the trainable parameters.
        stacks: for each parameter a tensor `(C, *parameter.shape)`.
    """

    def __init__(self, weights: Weights, count: int) -> None:
        self.parameters = weights.parameters
        self.stacks = [
            torch.empty((count, *p.shape), dtype=p.dtype, device=p.device) for p in self.parameters
        ]
        self.rows = [self._row(weights, i) for i in range(count)]

    def _row(self, weights: Weights, i: int) -> list[Combination]:
        stacks = iter(self.stacks)
        row = []
        for group, parameters, indices in weights.blocks:
            targets = [next(stacks)[i] for _ in parameters]
            sources = [p.detach() for p in parameters]
            row.append(Combination(targets, indices, weights.seeds, weights.kind, sources, group))
        return row

    def write(self, i: int, direction: int, multiples: list[Multiple], step: int) -> None:
        """Copy i <- weights + multiples[group] z_direction."""
        for combine in self.rows[i]:
            combine.starts_from_sources(step)  # the weights themselves
            combine([(direction, multiples)], None, step, perturbation(direction))


class Trials(NamedTuple):
    """The evaluations that one call of `Batched` makes.

    They are its arguments, and the states of torch's generators before it.
    """

    weights: Weights
    closure: Callable[[], Any]
    read: Read
    numbers: Sequence[int]
    multiples: list[Multiple]
    step: int
    states: RandomStates

    def alone(self, k: int, prepare: Callable[[], None] = lambda: None) -> Tensor:
        """Number k of the outcomes, evaluated in place.

        `prepare` is called at the perturbed weights, which stay perturbed afterwards.
        """
        self.weights.move([(self.numbers[k], self.multiples)])
        prepare()
        rewind(self.states)
        return self.read(self.closure())[None]


class Batched:
    """Evaluates a closure at perturbed weights: as batches where that is possible, else in place.

    Args:
        rule: the optimizer's name, for the log.
        memory: bytes that the copies of one batch and their outcomes may take.
        checked: whether a batch has been compared with an evaluation in place.
        refused: whether this closure can only be evaluated in place.
    """

    def __init__(
        self, rule: str, memory: int = MEMORY, *, checked: bool = False, refused: bool = False
    ) -> None:
        self.rule = rule
        self.memory = memory
        self.checked = checked
        self.refused = refused
        self._depth: int | None = None  # of torch's stack of modes before a batch
        self._levels: int | None = None  # of vmap before a batch
        # Parameters that hold NaN for a moment, and their values.
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._used: set[int] | None = None  # parameters that batches have handed over, by `id`
        self._copies: Copies | None = None
        self._layout: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # A pickle leaves the copies out, since they belong to the weights of this process.
        return {**self.__dict__, "_copies": None, "_layout": None, "_hidden": [], "_used": None}

    def __call__(
        self,
        weights: Weights,
        closure: Callable[[], Any],
        read: Read,
        base: Tensor,
        numbers: Sequence[int],
        multiples: list[Multiple],
        step: int,
    ) -> tuple[Tensor, int]:
        """The readings of a closure at weights + multiples z_k, and the number of evaluations.

        Args:
            weights: unperturbed, and unperturbed again afterwards unless evaluated in place.
            closure: see `ForwardOptimizer.step`; every evaluation gets the random numbers that
                torch would give next.
            read: makes one tensor of a returned value, of the same shape each time.
            base: that tensor at the unperturbed weights.
            numbers: of the K directions, at least one.
            multiples: of each direction, one for each group.
            step: step number.

        Returns:
            Shape `(K, *shape of a reading)`, and K, or K + 1 where one direction was tried both
            ways.
        """
        states = random_states(weights.generators)
        trials = Trials(weights, closure, read, numbers, multiples, step, states)
        count = evaluations = len(numbers)
        found: list[Tensor] = []
        at_once = 0 if weights.sharded else min(count, MOST, self.memory // max(1, weights.bytes))
        if at_once >= min(count, WORTH_IT):  # large models fill the processor alone
            if not (self.checked or self.refused):
                trial = self._attempt(trials, 0, 1)
                if self.refused:
                    found = [trial]
                else:
                    alone, tried = self._alone_as_batched(trials, trial, base)
                    evaluations = count + tried
                    found = [alone]
                    if not self.refused:
                        self._check(trial, alone, base, weights)
                    weights.restore(step)
                    weights.begin(step)
            while not self.refused and len(found) < count:
                found.extend(
                    self._attempt(trials, len(found), min(at_once, count - len(found))).split(1)
                )
        found += [trials.alone(k) for k in range(len(found), count)]
        return torch.cat(found), evaluations

    def leave(self) -> None:
        """End the exchange; harmless at any time."""
        leave_modes(self._depth)
        self._depth = None
        if self._levels is not None:
            functorch = _modes._functorch
            while (functorch.maybe_current_level() or 0) > self._levels:
                functorch.pop_dynamic_layer_stack()
            self._levels = None
        while self._hidden:
            p, value = self._hidden[-1]
            p.data.copy_(value)
            self._hidden.pop()

    def _attempt(self, trials: Trials, first: int, size: int) -> Tensor:
        """The next outcomes, as a batch.

        Where torch cannot follow the closure in a batch, it is one outcome, evaluated in place.
        """
        try:
            return self._batch(trials, first, size)
        except Exception as error:
            if not is_complaint(error):
                raise
            found = trials.alone(first)  # raises where the closure itself is at fault
            self._refuse(
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            )
            return found

    def _batch(self, trials: Trials, first: int, size: int) -> Tensor:
        trials.weights.check()
        copies = self._room(trials.weights)
        for i in range(size):
            copies.write(i, trials.numbers[first + i], trials.multiples, trials.step)
        rewind(trials.states)
        exchanges: list[Exchange] = []

        def one(*replaced: Tensor) -> Tensor:
            exchanges.append(Exchange(copies.parameters, replaced))
            with exchanges[0]:
                return trials.read(trials.closure())

        # vmap knows the plain attention; on the CPU the fused one would be a loop, and a warning.
        plain = (
            sdpa_kernel(SDPBackend.MATH)
            if copies.stacks[0].device.type == "cpu"
            else contextlib.nullcontext()
        )
        self._depth = _modes._len_torch_function_stack()
        self._levels = _modes._functorch.maybe_current_level() or 0
        try:
            with plain:
                found = torch.func.vmap(one, randomness="same")(
                    *[stack[:size] for stack in copies.stacks]
                )
        finally:
            self.leave()
        self._look_after(exchanges[0])
        return found

    def _look_after(self, exchange: Exchange) -> None:
        """Look at the tensors and weights of a batch that has run.

        Tensors that somebody still holds are made plain ones. If a weight is no longer handed over,
        the next batch is checked again.
        """
        leaked = exchange.leaked()
        if leaked:
            revive(leaked)
            self._refuse(
                f"it keeps {len(leaked)} tensors of an evaluation, a hidden state or a logged loss "
                "for example; keep loss.item(), or values that step() returns"
            )
        if self._used is not None and not self._used <= exchange.table.used:
            self.checked = False  # a weight is read in another way now
        self._used = exchange.table.used

    def _check(self, batched: Tensor, alone: Tensor, base: Tensor, weights: Weights) -> None:
        """Compare the regrets of one direction.

        Batches are refused if they differ by more than rounding.
        """
        self.checked = True
        dtypes = {base.dtype, *(p.dtype for p in weights.parameters)}
        eps = max(torch.finfo(dtype).eps for dtype in dtypes)
        if _alike(alone[0] - base, batched[0] - base, base, eps):
            return
        if _alike(torch.zeros_like(base), batched[0] - base, base, eps):
            self._refuse(
                "it gives other results there (does the closure keep copies of the weights?)"
            )
        else:
            self._refuse(
                "it gives other results there (does it give another outcome each time, of a batch "
                "that is drawn inside for example, or keep copies of the weights?)"
            )

    def _alone_as_batched(
        self, trials: Trials, batched: Tensor, base: Tensor
    ) -> tuple[Tensor, int]:
        """The first outcome in place, to compare a batch with, and the evaluations that it took.

        Weights that no operation of the batch was given are NaN meanwhile. An outcome that reads
        them, in scripted code for example, is not finite. Where the batch saw no perturbation at
        all, the comparison tells, and no weight is NaN.
        """
        unseen = [p for p in trials.weights.parameters if id(p) not in (self._used or ())]
        if torch.equal(batched[0], base):
            unseen = []
        try:
            found = trials.alone(0, lambda: self._hide(unseen))
        finally:
            self.leave()
        if not unseen or torch.equal(found.isfinite(), batched.isfinite()):
            return found, 1
        self._refuse("it reads weights past torch's operations, in scripted code for example")
        return trials.alone(0), 2

    def _hide(self, parameters: list[Tensor]) -> None:
        for p in parameters:
            self._hidden.append((p, p.detach().clone()))
            # Torch counts no version of this write, since the closure has not written.
            p.data.fill_(torch.nan)

    def _room(self, weights: Weights) -> Copies:
        if self._copies is None or self._layout is not weights.blocks:
            self._copies = Copies(weights, min(MOST, self.memory // max(1, weights.bytes)))
            self._layout = weights.blocks
        return self._copies

    def _refuse(self, why: str) -> None:
        self.refused = True
        self._copies = None
        logging.getLogger(__name__).warning(
            "%s: the closure cannot be evaluated as a batch, so directions are tried one by one, "
            "which is slower for small models and gives the same results; the reason: %s",
            self.rule,
            why,
        )


def _alike(one: Tensor, other: Tensor, base: Tensor, eps: float) -> bool:
    """Whether two regrets of the same weights agree but for the order of sums.

    The rounding of those sums is that of the outcome. The outcome itself would not tell: next to it
    regrets are small, and none at all would seem alike.
    """
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return False
    finite = one.isfinite()
    one, other, base = (x[finite].cpu().to(torch.float64) for x in (one, other, base))
    return float((one - other).norm()) <= 1e-3 * float(one.norm()) + 32 * eps * float(base.norm())
