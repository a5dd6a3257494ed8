"""Weights that are perturbed, restored and updated, and are never left in between.

    begin(step) -> move(terms), evaluate(closure), again for each point -> update(terms, scales), or restore

Directions are never stored: a term is a direction's number with multiples of it, see `noise`. There are three ways to
and back from a perturbation, chosen by size and dtype in `layout`: `copied`, `in_place` and `on_use`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic import checks
from dopaminergic.noise import UPDATE, Combination, Multiple, Term, perturbation
from dopaminergic.noise.reference import WITHOUT_DOUBLE
from dopaminergic.weights import footing
from dopaminergic.weights.copied import Copied
from dopaminergic.weights.in_place import InPlace, representable
from dopaminergic.weights.interruption import uninterrupted
from dopaminergic.weights.layout import COPIED, EMPTY, IN_PLACE, ON_USE, Block, Look, arrange
from dopaminergic.weights.on_use import FoundOut, OnUse
from dopaminergic.weights.room import Room
from dopaminergic.weights.sharding import local, parts
from dopaminergic.weights.way import Way

PIECE = 1 << 16  # weights


class Weights:
    """The trainable tensors of an optimizer's groups during a step.

    Args:
        groups: the optimizer's `param_groups`.
        seeds: uint64 `(R,)`, one for each replica.
        kind: `"rademacher"` or `"gaussian"`.
        shared: `sigma` is the length of a perturbation of all weights together, not that of one.
        keep_copies: of all weights during a step, however many there are.
        found_out: large 16-bit weights are perturbed on use, as far as this allows; None: they are copied.
        rule: the optimizer's name, for errors.
        replicas: R of a fleet; None for one model.

    Attributes:
        sigmas: how far a perturbation moves each weight of a group: what is asked for or, where weights are perturbed
            in place by signs, that number rounded to 6 significant bits.
        short: None, or a function that writes a small model along one direction, faster than `move` and `update`. Its
            arguments are the scale, the multiple, the direction, the step and the rounding. It looks after nothing, and
            `begin` and `check` may put another one here.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        seeds: np.ndarray,
        kind: str,
        *,
        shared: bool = False,
        keep_copies: bool = False,
        found_out: FoundOut | None = None,
        rule: str = "Weights",
        replicas: int | None = None,
    ) -> None:
        self.groups = groups
        self.seeds = seeds
        self.kind = kind
        self.shared = shared
        self.keep_copies = keep_copies
        self.rule = rule
        self.replicas = replicas
        self.step = 0
        self.sigmas: list[float] = []
        self.short: Callable[..., None] | None = None
        self._copied = Copied()
        self._in_place = InPlace()
        self._on_use = OnUse(seeds, kind, found_out or FoundOut(refused=True))
        self._ways: list[Way] = []  # those of them that have any weights
        self._layout = EMPTY
        self._look: Look | None = None  # None: all must be arranged anew
        self._room = Room([], len(seeds), kind)
        self._places: list[footing.Place] = []
        self._commit: Callable[[], None] = lambda: None  # of the last update, which may be unfinished

    # ---- how the weights lie -----------------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[Block]:
        """The trainable parameters; a new list whenever they have changed."""
        return self._layout.blocks

    @property
    def parameters(self) -> list[Tensor]:
        """The trainable parameters, block by block."""
        return [p for block in self.blocks for p in block.parameters]

    @property
    def sizes(self) -> list[int]:
        """Number of trainable weights of one replica in each group; of sharded ones that of the whole."""
        return self._layout.sizes

    @property
    def bytes(self) -> int:
        """Memory of all trainable weights; of sharded ones that of the whole."""
        return self._layout.bytes

    @property
    def generators(self) -> list[torch.Generator]:
        """Torch's generators that a closure may draw from."""
        return self._layout.generators

    @property
    def sharded(self) -> bool:
        """Whether some parameters are DTensors, of which this rank holds a part."""
        return self._layout.sharded

    @property
    def saved_all(self) -> bool:
        """Whether every weight comes back to the bit from any move; the same on all ranks."""
        return self._layout.exact

    @property
    def memory(self) -> list[footing.Place]:
        """Storages of all trainable weights, with their address."""
        return self._places

    @property
    def in_place(self) -> bool:
        """Whether any weights are displaced in place."""
        return bool(self._in_place.pieces)

    @property
    def displaced(self) -> bool:
        """Whether any of them are displaced at the moment."""
        return self._in_place.displaced

    @property
    def unfinished(self) -> bool:
        """Whether an update was interrupted where there was no way back; `restore` completes it."""
        return self._on_use.unfinished

    # ---- a step ------------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Look at the parameters as they are now; afterwards all attributes are up to date.

        Weights that are perturbed in place by signs are brought onto the grid of sigma if they do not lie there.
        """
        if self._in_place.pieces and self._in_place.displaced:
            self.restore(self.step)  # the last step could not, for want of memory for example
        self.step = step
        if self._look is None or not self._look.is_same():
            self._look = None  # until all is arranged, for Ctrl-C may come
            self._arrange()
            self._look = Look(self.groups, sharded=self.sharded, alone=self.short is not None)
        for way in self._ways:
            way.begin(step)

    def begin_again(self, step: int) -> bool:
        """Begin where the weights of a small model lie as `begin` saw them last, in less time.

        Returns:
            False, and nothing has begun, where that cannot be told; call `begin` then.
        """
        if self._look is None or not self._look.is_same_at_a_glance():
            return False
        self.step = step
        self._copied.step = step
        return True

    def move(self, terms: list[Term], *, as_update: bool = False) -> None:
        """Displace the weights by `terms`, measured from the weights at `begin`.

        Args:
            terms: the steps along each direction.
            as_update: 16-bit weights are rounded as `update` would round them.
        """
        self.check()
        rounding = UPDATE if as_update else perturbation(terms[0][0])
        for way in self._ways:
            way.move(terms, rounding)

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        """Call a closure at the weights as they are displaced; `extra` counts evaluations beyond this one.

        Returns:
            What the closure returned.
        """
        if not self._on_use.parts:
            return closure()
        found, why = self._on_use.evaluate(closure, self.generators)
        return self._evaluate_with_copies(closure, why) if why else found

    def restore(self, step: int) -> None:
        """Bring the weights back to what they were when `step` began; harmless when they are there already."""
        self._on_use.restore(step)
        if not self.unfinished:
            self.check()
        with uninterrupted():
            if self.unfinished:
                self._on_use.finish()
                self._settle()
                return
            self._copied.restore(step)
            self._in_place.restore(step)

    def update(self, terms: list[Term], scales: list[Multiple] | None, commit: Callable[[], None]) -> None:
        """Restore and, in the same pass, set the weights to scale * weights + terms.

        Args:
            terms: the steps along each direction.
            scales: what weight decay leaves in each group; None for ones.
            commit: called once all weights are written; an interruption before it lets `restore` bring the old weights
                back, after it the step has happened.
        """
        self.check()
        self._copied.update(terms, scales)
        if not self._in_place.pieces and not self._on_use.parts:
            commit()
            return
        with uninterrupted():
            self._commit = commit
            self._in_place.update(terms, scales)
            self._on_use.update(terms, scales)
            self._settle()

    def _settle(self) -> None:
        # Before `commit`, for whoever is told of the step by it may raise, and the update is complete.
        self._in_place.settle()
        self._commit()

    def leave(self) -> None:
        """End an evaluation, whatever interrupted it; harmless at any time."""
        self._on_use.leave()

    @property
    def extra(self) -> int:
        """Evaluations beyond those that `evaluate` was asked for, since `count_anew`."""
        return self._on_use.extra

    def count_anew(self) -> None:
        """Let `extra` be 0."""
        self._on_use.extra = 0

    # ---- code of others, which may do anything to the weights --------------------------------------------------------

    def check(self) -> None:
        """Look whether the weights still lie where they lay, after code of others has run.

        Where they do not, they are brought back in the memory that they have now, and the step goes on there.

        Raises:
            RuntimeError: a parameter has lost its memory or its shape; all others are those before the step.
        """
        if not footing.stand(self._places):
            self._regain()
        elif self._in_place.pieces and self._in_place.is_written_to():
            if self.displaced:
                self._take_back_after_writing()
            else:
                self.copy_from_now_on()

    def copy_from_now_on(self) -> None:
        """Keep a copy of all weights during a step; a displacement stays as it is."""
        terms = self._in_place.terms
        self._take_back_and_copy()
        if terms is not None:
            self.move(terms)

    def _take_back_and_copy(self) -> None:
        """Undo a displacement in place, and keep a copy of all weights from here on."""
        with uninterrupted():
            self._in_place.restore(self.step)
        self.keep_copies = True
        self._look = None
        self.begin(self.step)

    def _take_back_after_writing(self) -> None:
        """The closure wrote to weights that were displaced in place: there is no exact way back."""
        self._take_back_and_copy()
        warnings.warn(
            f"{self.rule}: the closure wrote to weights while they were perturbed (max_norm, clipping or a quantiser "
            "in its forward pass?). They were taken back to within about sigma; from now on a copy of the weights "
            "is kept during a step",
            RuntimeWarning,
            stacklevel=checks.levels_up(),
        )

    def _regain(self) -> None:
        with uninterrupted():
            lost = [*self._copied.regain(self.step), *self._in_place.regain()]
        self._look = None
        self._places = []
        if lost:
            raise RuntimeError(
                f"{self.rule}: the closure moved weights away while they were perturbed: {lost[0]}. All others are "
                "those before the step; move, cast or free a model between steps only"
            )
        self.begin(self.step)

    def _evaluate_with_copies(self, closure: Callable[[], Any], why: str) -> Any:
        """Call a closure that cannot be given perturbed weights on use, and copy weights for it from now on."""
        on_use = self._on_use
        on_use.extra += 1
        held = on_use.held
        try:
            on_use.found_out.refused = True
            self._look = None
            self.restore(self.step)
            self.begin(self.step)
            if held is not None:
                terms, rounding = held
                self.move(terms, as_update=rounding == UPDATE)
            found = closure()
        except BaseException:  # the closure itself is at fault
            on_use.found_out.refused = False
            self._look = None
            raise
        on_use.say_that_it_is_refused(self.rule, why)
        return found

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def takes(self, terms: list[Term], scales: list[Multiple] | None) -> Any:
        """Whether an update leaves every weight finite in its own dtype: a bool, or bools `(R,)` of a fleet."""
        sound = self._room.takes(terms, scales)
        return sound if self.replicas is not None else bool(np.all(sound))

    def takes_one(self, move: float) -> bool:
        """`takes` of one model's update along one direction, in less time."""
        return self._room.takes_one(move)

    def squares(self, replicas: int) -> Tensor:
        """Sum of the squares of the trainable weights of each replica; the mean over ranks, where they hold shards."""
        total = torch.zeros(replicas, dtype=torch.float64, device="cpu")
        for p in self.parameters:
            # In pieces, since each is converted to float64 as a whole.
            for piece in local(p).reshape(replicas, -1).split(max(1, PIECE // replicas), dim=1):
                piece = piece.cpu() if piece.device.type in WITHOUT_DOUBLE else piece
                total += parts(p) * torch.linalg.vector_norm(piece, dim=1, dtype=torch.float64).square().cpu()
        return total

    def directions(self, count: int, scales: list[float], step: int) -> Tensor:
        """The first directions, written out: float64 `(R, count, d)`, group g times `scales[g]`; on the CPU."""
        replicas = len(self.seeds)
        columns = []
        for group, parameters, indices in self.blocks:
            shapes = [(replicas, p.numel() // replicas) for p in parameters]
            blank = [torch.zeros(shape, dtype=torch.float64, device="cpu") for shape in shapes]
            made = [torch.zeros_like(b) for b in blank]
            combine = Combination(made, indices, self.seeds, self.kind, blank, 0)
            combine.starts_from_sources(step)
            rows = []
            for k in range(count):
                combine([(k, [scales[group]])], None, step)
                rows.append(torch.cat(made, 1))
            columns.append(torch.stack(rows, 1))
        return torch.cat(columns, 2)

    # ---- journals ----------------------------------------------------------------------------------------------------

    def trace_to(self, reader: list[list[Term]]) -> None:
        """Append to a list whatever is written in place but updates: such writes are not undone to the bit."""
        self._in_place.readers.append(reader)

    def stop_tracing_to(self, reader: list[list[Term]]) -> None:
        """Append nothing to this list any more; harmless where nothing was."""
        self._in_place.readers[:] = [each for each in self._in_place.readers if each is not reader]

    def repeat(self, traces: list[list[Term]]) -> None:
        """Write what a recorded step wrote, together with the `update` or `restore` that must follow."""
        with uninterrupted():
            self._in_place.repeat(traces)

    # ---- arranging ---------------------------------------------------------------------------------------------------

    def _arrange(self) -> None:
        """Give each way its weights, and choose sigma for them."""
        checks.thawed(self.rule, self.groups, self.replicas)
        may_be_on_use = not self._on_use.found_out.refused
        layout = arrange(self.groups, self.seeds, self.kind, keep_copies=self.keep_copies, on_use=may_be_on_use)
        self._layout = layout
        grids = self._choose_sigmas()
        self._copied.parts = layout.parts[COPIED]
        self._in_place.arrange(layout.parts[IN_PLACE], grids, untold=layout.untold)
        self._on_use.arrange(layout.parts[ON_USE])
        by_way = {COPIED: self._copied, IN_PLACE: self._in_place, ON_USE: self._on_use}
        self._ways = [way for name, way in by_way.items() if layout.parts[name]]
        self._places = footing.places(self.parameters)
        self._room = Room(self.blocks, len(self.seeds), self.kind)
        self.short = self._find_short()

    def _choose_sigmas(self) -> list[float] | None:
        """Set `sigmas`; where weights are to lie on their grid, these are returned."""
        share = math.sqrt(max(1, sum(self.sizes))) if self.shared else 1.0
        self.sigmas = [group["sigma"] / share for group in self.groups]
        if self._layout.exact or self.kind != "rademacher":
            return None
        self.sigmas = [representable(sigma) for sigma in self.sigmas]
        return self.sigmas

    @property
    def alone(self) -> bool:
        """Whether there are only weights of one group, and torch's generator on the CPU."""
        one_group = len(self.groups) == len(self.generators) == 1
        return one_group and bool(self.blocks) and not self._on_use.parts

    def _find_short(self) -> Callable[..., None] | None:
        parts = self._layout.parts[COPIED]
        if self.alone and len(self.blocks) == len(parts) == 1:
            return parts[0].combine.one
        return None
