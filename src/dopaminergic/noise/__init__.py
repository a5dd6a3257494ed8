"""Directions: what z is, and how multiples of it are added to weights without z being stored.

`Combination` is the only way in which noise reaches a weight. It computes, for a group of
parameters,

    x = source;  x += undo_k z_k;  x *= scale;  x += coefficient_k z_k;  x = on_grid(x);  target = x

in this order. z comes from `reference` (the definition, torch), `cpu` (numba) or `gpu` (Triton).
The bits are the same, and the last two need one pass over memory.

16-bit weights are computed in float32 and rounded stochastically, so that small changes survive in
expectation. The errors of the thresholds partly cancel from step to step.

A grid lets signs that were added be taken back to the bit. Let sigma have 6 significant bits, and
|x| be a multiple of the last place of |x| + sigma. Then both x + sigma and x - sigma are exact as
long as |x| < 2^17 sigma (2^46 sigma in float64). `on_grid(x) = copysign((|x| + sigma) - sigma, x)`
is the nearest such x.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import pieces, reference
from dopaminergic.noise.pieces import in_threads

__all__ = ["KINDS", "UPDATE", "Combination", "Multiple", "Term", "fast_kernels", "perturbation"]

# A multiple of a direction: one number, or float64 of shape (R,), one for each replica.
Multiple = float | np.ndarray
# A direction's number, in [0, 2^28), with a multiple of it for each group of parameters.
Term = tuple[int, list[Multiple]]

UPDATE = 0  # the random numbers that round 16-bit weights in an update


def perturbation(direction: int) -> int:
    """The random numbers that round 16-bit weights which are displaced along a direction.

    An update has others. Otherwise weights that were rounded up while the loss was measured would
    be rounded up again.
    """
    return 1 + direction


KINDS = ("rademacher", "gaussian")
CHUNK = 1 << 16  # elements; a multiple of every block, small enough to stay in cache
MANTISSA_BITS_DROPPED = {torch.bfloat16: 16, torch.float16: 13}  # of float32's 23
FAST_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


# Numba's type of the weights in memory, and its type to compute in; it knows no 16-bit reals.
KERNEL_TYPES = {
    torch.float32: (np.float32, np.float32),
    torch.float64: (np.float64, np.float64),
    torch.bfloat16: (np.uint16, np.float32),
    torch.float16: (np.int16, np.float32),
}
PIECE = 1 << 20  # weights that are worth a thread
TRITON_DEVICES = ("cuda",)


@functools.cache
def fast_kernels() -> tuple[Callable[..., None], Callable[..., Callable[..., None]]] | None:
    """Numba's kernel, and the maker of one for a single direction of one replica.

    None without numba, which is said once in the log.
    """
    if importlib.util.find_spec("numba") is None:
        logging.getLogger(__name__).warning(
            "numba is not installed: noise comes from the slower torch reference, with the same "
            "bits (pip install 'dopaminergic[fast]')"
        )
        return None
    from dopaminergic.noise.cpu.kernels import combine, combine_one

    kernels: Any = combine, combine_one
    return kernels


@functools.cache
def triton_launch() -> Callable[..., Any] | None:
    """The maker of launches for tensors on a GPU.

    None without Triton, which is said once in the log.
    """
    if importlib.util.find_spec("triton") is None:
        logging.getLogger(__name__).warning(
            "triton is not installed: noise on the GPU comes from the slower torch reference, "
            "with the same bits (torch's CUDA builds bring it; else: pip install triton)"
        )
        return None
    from dopaminergic.noise.gpu.launch import Launch

    return Launch


def _is_for_triton(t: Tensor) -> bool:
    return t.device.type in TRITON_DEVICES and t.dtype in KERNEL_TYPES and not pieces.overlaps(t)


class Change(NamedTuple):
    """The change that `Combination` makes to weights, as the torch reference takes it.

    Attributes:
        directions: their numbers; those that are undone come first.
        multiples: of each direction for each replica, `(K, R, 1)`.
        undone: number of directions that come before the scale.
        scales: `(R, 1)`.
        grid: sigma of the grid; 0 for none.
        step: step number.
        rounding: `UPDATE` or `perturbation(k)`.
    """

    directions: list[int]
    multiples: Tensor
    undone: int
    scales: Tensor
    grid: float
    step: int
    rounding: int


def _is_fast(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.dtype in KERNEL_TYPES and not pieces.overlaps(t)


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
            all(map(_is_fast, targets))
            and all(map(_is_fast, sources))
            and (kernels := fast_kernels()) is not None
        ):
            self.fast, one = kernels
            memory, real = KERNEL_TYPES[targets[0].dtype]
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
            all(map(_is_for_triton, [*targets, *sources]))
            and (make_launch := triton_launch()) is not None
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
        exact = self.targets[0].dtype if self.targets[0].dtype in FAST_DTYPES else torch.float32
        scales, multiples = (
            torch.from_numpy(x).to(exact).to(self.targets[0].device)[..., None]
            for x in self._arrays(terms, scale)
        )
        change = Change(
            [direction for direction, _ in terms], multiples, undone, scales, grid, step, rounding
        )
        with torch.inference_mode():  # where torch lets one write to any tensor
            for target, source, parameter, first in zip(
                self.targets, sources, self.parameters, self.firsts, strict=True
            ):
                self._combine_slowly(target, source, parameter, first, change)

    def _combine_slowly(
        self, target: Tensor, source: Tensor, parameter: int, first: int, change: Change
    ) -> None:
        draw = reference.rademacher if self.signs else reference.gaussian
        seed = torch.from_numpy(self.seeds.astype(np.int64)).to(target.device)
        place = {"seed": seed, "step": change.step, "parameter": parameter}
        # These are views where the memory allows it, else copies of one tensor, written back below.
        old = source.reshape(len(self.seeds), -1)
        new = target.reshape(len(self.seeds), -1)
        for start in range(0, old.shape[1], CHUNK):
            x = old[:, start : start + CHUNK].to(change.scales.dtype)
            # Elements of the block that come before this chunk.
            before = (first + start) % reference.SIGNS_PER_BLOCK
            z_place = {**place, "first": first + start - before}
            for k, direction in enumerate(change.directions):
                x = x * change.scales if k == change.undone else x
                z = draw(before + x.shape[1], direction=direction, **z_place)[..., before:]
                x = x + change.multiples[k] * z.to(x.dtype)
            x = x * change.scales if change.undone == len(change.directions) else x
            if change.grid:
                grid = torch.tensor(change.grid, dtype=x.dtype, device=x.device)
                x = torch.copysign((x.abs() + grid) - grid, x)
            if target.dtype in MANTISSA_BITS_DROPPED:
                x = _round_stochastically(
                    x, target.dtype, seed, change.step, change.rounding, parameter, first + start
                )
            new[:, start : start + CHUNK] = x
        if new.data_ptr() != target.data_ptr():
            target.copy_(new.reshape(target.shape))


def _round_stochastically(
    x: Tensor,
    dtype: torch.dtype,
    seed: Tensor,
    step: int,
    rounding: int,
    parameter: int,
    first: int,
) -> Tensor:
    """Round float32 to a 16-bit neighbour.

    The probability of rounding up makes the expectation exact.
    """
    dropped = MANTISSA_BITS_DROPPED[dtype]
    before = first % reference.HALVES_PER_BLOCK
    place = {
        "seed": seed,
        "step": step,
        "direction": rounding,
        "parameter": parameter,
        "first": first - before,
    }
    noise = reference.thresholds(before + x.shape[1], **place)[:, before:].to(torch.int32)
    bits = (x.contiguous().view(torch.int32) + (noise >> (16 - dropped))) & ~((1 << dropped) - 1)
    rounded = bits.view(torch.float32)
    if dtype == torch.float16:
        # Below 2^-14 the neighbours are 2^-24 apart, however small the number is.
        exact = x * 2.0**24
        units = torch.floor(exact)
        # They are compared, since a sum would be rounded itself.
        up = exact - units >= 1.0 - (noise.to(torch.float32) + 0.5) * 2.0**-16
        rounded = torch.where(
            x.abs() < 2.0**-14, torch.where(up, units + 1.0, units) * 2.0**-24, rounded
        )
    # Infinities and NaN hold no fraction to round, and adding to their bits would change them.
    return torch.where(x.isfinite(), rounded, x).to(dtype)
