"""The trainable weights of an optimizer, sorted into three ways of perturbing them.

`Arrangement` knows all that does not depend on where the weights are in a step. Examples are which
weights there are, how far a perturbation moves them, and how much room their dtypes leave.
`Weights` adds the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic import checks
from dopaminergic.noise import Combination, Multiple, Term
from dopaminergic.noise.reference import WITHOUT_DOUBLE
from dopaminergic.weights import footing
from dopaminergic.weights.copied import Copied
from dopaminergic.weights.in_place import InPlace, representable
from dopaminergic.weights.layout import COPIED, EMPTY, IN_PLACE, ON_USE, Block, Look, arrange
from dopaminergic.weights.on_use import FoundOut, OnUse
from dopaminergic.weights.room import Room
from dopaminergic.weights.sharding import local, parts
from dopaminergic.weights.way import Way

PIECE = 1 << 16  # weights


class Arrangement:
    """The trainable tensors of an optimizer's groups.

    Args:
        groups: the optimizer's `param_groups`.
        seeds: uint64 `(R,)`, one for each replica.
        kind: `"rademacher"` or `"gaussian"`.
        shared: `sigma` is the length of a perturbation of all weights together, not that of one.
        keep_copies: keep copies of all weights during a step, however many there are.
        found_out: large 16-bit weights are perturbed on use, as far as this allows; None: they are
            copied.
        rule: the optimizer's name, for errors.
        replicas: R of a fleet; None for one model.

    Attributes:
        sigmas: how far a perturbation moves each weight of a group. Where weights are perturbed in
            place by signs, it is the given number rounded to 6 significant bits.
        short: None, or a function that writes a small model along one direction, faster than `move`
            and `update`. Its arguments are the scale, the multiple, the direction, the step and the
            rounding. It checks nothing, and `begin` and `check` may put another one here.
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
        self.sigmas: list[float] = []
        self.short: Callable[..., None] | None = None
        self._copied = Copied()
        self._in_place = InPlace()
        self._on_use = OnUse(seeds, kind, found_out or FoundOut(refused=True))
        self._ways: list[Way] = []  # the ways that have any weights
        self._layout = EMPTY
        self._look: Look | None = None  # None: all must be arranged anew
        self._places: list[footing.Place] = []
        self._room = Room([], len(seeds), kind)

    # ---- which weights there are -----------------------------------------------------------------

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
        """Number of trainable weights of one replica in each group, all shards included."""
        return self._layout.sizes

    @property
    def bytes(self) -> int:
        """Memory of all trainable weights, all shards included."""
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
    def alone(self) -> bool:
        """Whether there are only weights of one group, and torch's generator on the CPU."""
        one_group = len(self.groups) == len(self.generators) == 1
        return one_group and bool(self.blocks) and not self._on_use.parts

    # ---- arranging -------------------------------------------------------------------------------

    def _is_arranged(self) -> bool:
        """Whether nothing has changed since `_arrange`."""
        return self._look is not None and self._look.is_same()

    def _arrange(self) -> None:
        """Give each way its weights, and choose sigma for them."""
        self._look = None  # until all is done, since Ctrl-C may come
        checks.thawed(self.rule, self.groups, self.replicas)
        self._layout = arrange(
            self.groups,
            self.seeds,
            self.kind,
            keep_copies=self.keep_copies,
            on_use=not self._on_use.found_out.refused,
        )
        parts_of = self._layout.parts
        grids = self._choose_sigmas()
        self._copied.arrange(parts_of[COPIED])
        self._in_place.arrange(parts_of[IN_PLACE], grids, untold=self._layout.untold)
        self._on_use.arrange(parts_of[ON_USE])
        by_name = {COPIED: self._copied, IN_PLACE: self._in_place, ON_USE: self._on_use}
        self._ways = [way for name, way in by_name.items() if parts_of[name]]
        self._places = footing.places(self.parameters)
        self._room = Room(self.blocks, len(self.seeds), self.kind)
        self.short = self._find_short()
        self._look = Look(self.groups, sharded=self.sharded, alone=self.alone)

    def _choose_sigmas(self) -> list[float] | None:
        """Set `sigmas`; they are returned too where weights are to lie on their grid."""
        share = math.sqrt(max(1, sum(self.sizes))) if self.shared else 1.0
        self.sigmas = [group["sigma"] / share for group in self.groups]
        if self._layout.exact or self.kind != "rademacher":
            return None
        self.sigmas = [representable(sigma) for sigma in self.sigmas]
        return self.sigmas

    def _find_short(self) -> Callable[..., None] | None:
        copied = self._layout.parts[COPIED]
        if self.alone and len(self.blocks) == len(copied) == 1:
            return copied[0].combine.one
        return None

    # ---- numbers ---------------------------------------------------------------------------------

    def takes(self, terms: list[Term], scales: list[Multiple] | None) -> Any:
        """Whether an update leaves every weight finite in its own dtype.

        Returns:
            A bool, or bools `(R,)` of a fleet.
        """
        sound = self._room.takes(terms, scales)
        return sound if self.replicas is not None else bool(np.all(sound))

    def takes_one(self, move: float) -> bool:
        """`takes` of one model's update along one direction, in less time."""
        return self._room.takes_one(move)

    def squares(self, replicas: int) -> Tensor:
        """Sum of the squares of the trainable weights of each replica.

        Where ranks hold shards, the mean over ranks is that of all weights.
        """
        total = torch.zeros(replicas, dtype=torch.float64, device="cpu")
        for p in self.parameters:
            # In pieces, since each is converted to float64 as a whole.
            for piece in local(p).reshape(replicas, -1).split(max(1, PIECE // replicas), dim=1):
                piece = piece.cpu() if piece.device.type in WITHOUT_DOUBLE else piece
                lengths = torch.linalg.vector_norm(piece, dim=1, dtype=torch.float64)
                total += parts(p) * lengths.square().cpu()
        return total

    def directions(self, count: int, scales: list[float], step: int) -> Tensor:
        """The first directions, written out.

        Returns:
            float64 `(R, count, d)`, group g times `scales[g]`; on the CPU.
        """
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
