"""The only way in which noise reaches a weight, each time by the fastest code that there is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import backends, in_torch, pieces
from dopaminergic.noise.pieces import in_threads
from dopaminergic.noise.terms import UPDATE, Multiple, Term

PIECE = 1 << 20  # weights that are worth a thread


class Combination:
    """Target <- on_grid((source + undo) * scale + terms), many times for the same tensors.

    Args:
        targets: tensors of one dtype and device; the first dimension is the replica where there are
            several seeds.
        parameters: the index of each tensor in the noise.
        seeds: uint64 `(R,)`, below 2^63.
        kind: `"rademacher"` or `"gaussian"`.
        copies: tensors of the same shapes that the targets are saved to, and computed from. None
            works in place.
        group: the number of their group.
        firsts: the index of each tensor's first element in the whole parameter, >= 0. None is for
            whole parameters, and stands for zeros.
    """

    def __init__(
        self,
        targets: list[Tensor],
        parameters: list[int],
        seeds: np.ndarray,
        kind: str,
        copies: list[Tensor] | None = None,
        group: int = 0,
        firsts: list[int] | None = None,
    ) -> None:
        self.group = group
        self.targets = targets
        self.copies = copies
        self.parameters = parameters
        self.seeds = seeds
        self.firsts = [0] * len(targets) if firsts is None else firsts
        self.kind = kind
        self.signs = kind == "rademacher"
        self.fast = self.launch = None
        # The shorter way of a small model along one direction.
        self.one: Callable[..., None] | None = None
        self._saved = np.full(1, -1, np.int64)  # the step whose weights the copies hold; -1: none
        sources = targets if copies is None else copies
        if (
            all(map(backends.is_for_numba, targets))
            and all(map(backends.is_for_numba, sources))
            and (kernels := backends.fast_kernels()) is not None
        ):
            self.fast, one = kernels
            memory, real = backends.KERNEL_TYPES[targets[0].dtype]
            # Addresses are looked up once; they must stay valid as long as this object is used.
            plan, layouts = pieces.plan(targets, sources, parameters, self.firsts, len(seeds))
            self._plain = bool(plan[7].all())
            self._whole = (
                np.empty(0, memory),
                np.empty(0, real),
                plan,
                None if self._plain else layouts,
            )
            self._threads = 1
            self._parts = []
            self._large = sum(t.numel() for t in targets) >= 2 * PIECE
            if self._plain and not self._large and len(seeds) == 1:
                self.one = one(*self._whole[:2], plan, seeds[0], self.signs, self._saved)
        if (
            all(map(backends.is_for_triton, [*targets, *sources]))
            and (make_launch := backends.triton_launch()) is not None
        ):
            self.launch = make_launch(targets, sources, parameters, self.firsts, seeds, self.signs)

    def __call__(
        self,
        terms: Sequence[Term],
        scales: list[Multiple] | None,
        step: int,
        rounding: int = UPDATE,
        undo: Sequence[Term] = (),
        grids: list[float] | None = None,
    ) -> None:
        """Write the targets.

        The first call of a step saves the targets to the copies. All calls of the step start from
        those.

        Args:
            terms: directions and their multiples for all groups; those of this group are taken.
            scales: one for each group; None for ones.
            step: step number in [0, 2^32).
            rounding: which random numbers round 16-bit weights: `UPDATE`, or `perturbation(k)`.
            undo: terms that come before the scale; they take a displacement back.
            grids: the sigma for each group on whose grid the result is brought; 0 or None for none.
        """
        group = self.group
        scale = 1.0 if scales is None else scales[group]
        if self.one is not None and len(terms) == 1 and not undo and grids is None:
            ((direction, multiples),) = terms
            # A fleet of one has arrays, which `one` does not take.
            if isinstance(multiples[group], float) and isinstance(scale, float):
                self.one(scale, multiples[group], direction, step, rounding)
                return
        grid = 0.0 if grids is None else grids[group]
        if self.launch is not None:
            self._save(step)
            numbers, rows = self._arrays([*undo, *terms], scale)
            directions = np.array([direction for direction, _ in [*undo, *terms]], np.int64)
            self.launch(directions, rows, numbers, step, rounding, len(undo), grid)
            return
        if self.fast is None or not self._plain:
            self._save(step)
        if self.fast is None:
            self._slowly([*undo, *terms], len(undo), scale, grid, step, rounding)
            return
        numbers, rows = self._arrays([*undo, *terms], scale)
        directions = np.array([direction for direction, _ in [*undo, *terms]], np.uint32)
        rest = (self.seeds, numbers, rows, len(undo), directions, grid, step, rounding, self.signs)
        if self._large and (self.copies is None or self._saved[0] == step):
            self._in_threads(self.fast, rest, step)
        else:
            self.fast(*self._whole, *rest, self._saved)

    def moved(self, there: list[bool]) -> Combination:
        """A combination of the same tensors, whose memory has moved.

        Tensors that are not `there` are left out.
        """

        def kept(entries: list[Any]) -> list[Any]:
            return [entry for entry, found in zip(entries, there, strict=True) if found]

        copies = None if self.copies is None else kept(self.copies)
        return Combination(
            kept(self.targets),
            kept(self.parameters),
            self.seeds,
            self.kind,
            copies,
            self.group,
            kept(self.firsts),
        )

    def holds_copies_of(self, step: int) -> bool:
        """Whether the copies hold the weights with which a step began."""
        return bool(self._saved[0] == step)

    def starts_from_sources(self, step: int) -> None:
        """Let all calls of a step start from the copies as they are.

        The targets are not saved to them.
        """
        self._saved[0] = step

    def forget_copies(self) -> None:
        """Let the next call, of any step, save the targets to the copies."""
        self._saved[0] = -1

    def forget_tensors(self) -> bool:
        """Work from addresses alone.

        From now on the caller keeps the memory, and calls `starts_from_sources` each time.

        Returns:
            False, and nothing is forgotten, where the tensors themselves are needed.
        """
        if self.fast is None and self.launch is None:
            return False
        self.targets = []
        self.copies = None if self.copies is None else []
        return True

    def _in_threads(self, combine: Callable[..., None], rest: tuple[Any, ...], step: int) -> None:
        """Use as many threads as torch does, each with pieces of its own.

        Any number of threads gives the same bits.
        """
        wanted = min(
            torch.get_num_threads(), int((self._whole[2][3] - self._whole[2][2]).sum()) // PIECE
        )
        if wanted != self._threads:
            memory, real, plan, layouts = self._whole
            parts = pieces.parts(plan, layouts, wanted) if wanted > 1 else []
            self._parts = [(memory, real, *part) for part in parts]
            self._threads = wanted
        saved = np.full(1, step, np.int64)
        in_threads(
            [
                functools.partial(combine, *part, *rest, saved)
                for part in self._parts or [self._whole]
            ]
        )

    def _save(self, step: int) -> None:
        if self.copies is not None and self._saved[0] != step:
            with torch.inference_mode():  # where torch lets one write to any tensor
                for target, source in zip(self.targets, self.copies, strict=True):
                    source.copy_(target)
            self._saved[0] = step

    def _arrays(self, terms: Sequence[Term], scale: Multiple) -> tuple[np.ndarray, np.ndarray]:
        rows = np.empty((len(terms), len(self.seeds)))
        for row, (_, multiples) in zip(rows, terms, strict=True):
            row[:] = multiples[self.group]
        return np.full(len(self.seeds), scale, np.float64), rows

    def _slowly(
        self,
        terms: Sequence[Term],
        undone: int,
        scale: Multiple,
        grid: float,
        step: int,
        rounding: int,
    ) -> None:
        sources = self.targets if self.copies is None else self.copies
        dtype = self.targets[0].dtype
        exact = dtype if dtype in in_torch.FAST_DTYPES else torch.float32
        scales, multiples = (
            torch.from_numpy(x).to(exact).to(self.targets[0].device)[..., None]
            for x in self._arrays(terms, scale)
        )
        change = in_torch.Change(
            self.seeds,
            self.signs,
            [direction for direction, _ in terms],
            multiples,
            undone,
            scales,
            grid,
            step,
            rounding,
        )
        with torch.inference_mode():  # where torch lets one write to any tensor
            for target, source, parameter, first in zip(
                self.targets, sources, self.parameters, self.firsts, strict=True
            ):
                in_torch.combine(target, source, parameter, first, change)
