"""Directions: what z is, and how multiples of it are added to weights without z ever being stored.

`Combination` is the only way in which noise reaches a weight. It computes, for a group of parameters,

    target <- scale * source + sum_k coefficient_k z_k

with z from `reference` (the definition, torch) or `cpu` (numba, the same bits in one pass over memory). 16-bit weights
are computed in float32 and rounded stochastically, so that small changes survive in expectation.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import reference

__all__ = ["KINDS", "Combination", "Multiple", "Term", "fast_kernels"]

# A multiple of a direction: one number, or float64 of shape (R,), one for each replica.
Multiple = float | np.ndarray
# A direction's number, in [0, 2^28), with a multiple of it for each group of parameters.
Term = tuple[int, list[Multiple]]

KINDS = ("rademacher", "gaussian")
CHUNK = 1 << 16  # elements; a multiple of every block, small enough to stay in cache
MANTISSA_BITS_DROPPED = {torch.bfloat16: 16, torch.float16: 13}  # of float32's 23
FAST_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


@functools.cache
def fast_kernels() -> tuple[Callable[..., None], Callable[..., None]] | None:
    """Numba's kernels for many directions or replicas and for one, or None without numba (said once in the log)."""
    if importlib.util.find_spec("numba") is None:
        logging.getLogger(__name__).warning(
            "numba is not installed: noise comes from the slower torch reference, with the same bits "
            "(pip install 'dopaminergic[fast]')"
        )
        return None
    from dopaminergic.noise.cpu import combine, combine_one

    return combine, combine_one


class Combination:
    """target <- scale * source + sum_k coefficient_k z_k, to be called many times for the same tensors.

    Args:
        targets: tensors of one dtype and device; the first dimension is the replica where there are several seeds.
        parameters: the index of each tensor in the noise.
        seeds: uint64 `(R,)`, below 2^63.
        kind: `"rademacher"` or `"gaussian"`.
        copies: tensors of the same shapes that the targets are saved to, and computed from; None: in place.
        group: the number of their group.
    """

    def __init__(
        self,
        targets: list[Tensor],
        parameters: list[int],
        seeds: np.ndarray,
        kind: str,
        copies: list[Tensor] | None = None,
        group: int = 0,
    ) -> None:
        self.group = group
        self.targets, self.copies, self.parameters, self.seeds = targets, copies, parameters, seeds
        self.kind, self.signs = kind, kind == "rademacher"
        self.fast = None
        self.saved = np.full(1, -1, np.int64)  # the step whose weights the copies hold; -1: none
        self._seed, self._one_replica = int(seeds[0]), len(seeds) == 1
        plain = all(
            t.device.type == "cpu" and t.dtype in FAST_DTYPES and t.is_contiguous() for t in [*targets, *(copies or [])]
        )
        if plain and fast_kernels() is not None:
            sources = [t.data_ptr() for t in (targets if copies is None else copies)]
            own, sizes = [t.data_ptr() for t in targets], [t.numel() // len(seeds) for t in targets]
            # Addresses are looked up once; they must stay valid as long as this object is used.
            self._plan = np.array([own, sources, sizes, parameters], np.uint64)
            self._dtype = np.empty(0, FAST_DTYPES[targets[0].dtype])
            self.fast = fast_kernels()

    def __call__(self, terms: Sequence[Term], scales: list[Multiple] | None, step: int, rounding: int = 0) -> None:
        """Do it; the first call of a step saves the targets to the copies, which all calls of the step start from.

        Args:
            terms: directions and their multiples for all groups, of which this takes its own.
            scales: one for each group; None for ones.
            step: step number in [0, 2^32).
            rounding: which random numbers round 16-bit weights. An update must not share them with the perturbation:
                weights that were rounded up while the loss was measured would be rounded up again.
        """
        scale = 1.0 if scales is None else scales[self.group]
        if self.fast is None:
            self._slowly(terms, scale, step, rounding)
            return
        combine, combine_one = self.fast
        if self._one_replica and len(terms) == 1 and isinstance(scale, float):
            direction, multiples = terms[0]
            own = multiples[self.group]
            multiple = own.item() if isinstance(own, np.ndarray) else float(own)  # a fleet of one has arrays
            combine_one(self._dtype, self._plan, self._seed, scale, multiple, direction, step, self.signs, self.saved)
            return
        numbers, rows = self._arrays(terms, scale)
        directions = np.array([direction for direction, _ in terms], np.uint32)
        combine(self._dtype, self._plan, self.seeds, numbers, rows, directions, step, self.signs, self.saved)

    def _arrays(self, terms: Sequence[Term], scale: Multiple) -> tuple[np.ndarray, np.ndarray]:
        rows = np.empty((len(terms), len(self.seeds)))
        for row, (_, multiples) in zip(rows, terms, strict=True):
            row[:] = multiples[self.group]
        return np.full(len(self.seeds), scale, np.float64), rows

    def _slowly(self, terms: Sequence[Term], scale: Multiple, step: int, rounding: int) -> None:
        scales, multiples = self._arrays(terms, scale)
        directions = [direction for direction, _ in terms]
        sources = self.targets if self.copies is None else self.copies
        if self.copies is not None and self.saved[0] != step:
            for target, source in zip(self.targets, sources, strict=True):
                source.copy_(target)
            self.saved[0] = step
        for i, (target, source) in enumerate(zip(self.targets, sources, strict=True)):
            self._combine_slowly(target, source, self.parameters[i], scales, multiples, directions, step, rounding)

    def _combine_slowly(
        self,
        target: Tensor,
        source: Tensor,
        parameter: int,
        scales: np.ndarray,
        coefficients: np.ndarray,
        directions: Sequence[int],
        step: int,
        rounding: int,
    ) -> None:
        draw = reference.rademacher if self.kind == "rademacher" else reference.gaussian
        exact = target.dtype if target.dtype in FAST_DTYPES else torch.float32
        seed = torch.from_numpy(self.seeds.astype(np.int64)).to(target.device)
        scale = torch.from_numpy(scales).to(target.device, exact)[:, None]
        coefficient = torch.from_numpy(coefficients).to(target.device, exact)[..., None]
        # A view where the memory allows it, else one tensor's copy that is written back at the end.
        old, new = source.reshape(len(self.seeds), -1), target.reshape(len(self.seeds), -1)
        for start in range(0, old.shape[1], CHUNK):
            chunk = old[:, start : start + CHUNK].to(exact) * scale
            for k, direction in enumerate(directions):
                z = draw(chunk.shape[1], seed=seed, step=step, direction=direction, parameter=parameter, first=start)
                chunk = chunk + coefficient[k] * z.to(exact)
            if target.dtype in MANTISSA_BITS_DROPPED:
                chunk = _round_stochastically(chunk, target.dtype, seed, step, rounding, parameter, start)
            new[:, start : start + CHUNK] = chunk
        if new.data_ptr() != target.data_ptr():
            target.copy_(new.reshape(target.shape))


def _round_stochastically(
    x: Tensor, dtype: torch.dtype, seed: Tensor, step: int, rounding: int, parameter: int, first: int
) -> Tensor:
    """Round float32 to a 16-bit neighbour, up with the probability that makes the expectation exact."""
    dropped, blocks = MANTISSA_BITS_DROPPED[dtype], -(-x.shape[1] // reference.NORMALS_PER_BLOCK)
    words = reference.words(
        blocks,
        seed=seed,
        stream=reference.ROUNDING,
        step=step,
        direction=rounding,
        parameter=parameter,
        first=first // reference.NORMALS_PER_BLOCK,
    )
    noise = (words[:, : x.shape[1]] >> (32 - dropped)).to(torch.int32)
    bits = (x.contiguous().view(torch.int32) + noise) & ~((1 << dropped) - 1)
    rounded = bits.view(torch.float32)
    if dtype == torch.float16:
        # Below 2^-14 the neighbours are 2^-24 apart, however small the number is.
        fraction = (words[:, : x.shape[1]] >> 8).to(torch.float32) * 2.0**-24
        rounded = torch.where(x.abs() < 2.0**-14, torch.floor(x * 2.0**24 + fraction) * 2.0**-24, rounded)
    # Infinities and NaN hold no fraction to round, and adding to their bits would change what they are.
    return torch.where(x.isfinite(), rounded, x).to(dtype)
