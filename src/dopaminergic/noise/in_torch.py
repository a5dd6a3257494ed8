"""`Combination` in torch, from the reference: for tensors that neither numba nor Triton takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import reference

CHUNK = 1 << 16  # elements; a multiple of every block, small enough to stay in cache
MANTISSA_BITS_DROPPED = {torch.bfloat16: 16, torch.float16: 13}  # of float32's 23
FAST_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


class Change(NamedTuple):
    """The change that `Combination` makes to weights, as the torch reference takes it.

    Attributes:
        seeds: uint64 `(R,)`.
        signs: whether the noise is Rademacher's, not Gaussian.
        directions: their numbers; those that are undone come first.
        multiples: of each direction for each replica, `(K, R, 1)`.
        undone: number of directions that come before the scale.
        scales: `(R, 1)`.
        grid: sigma of the grid; 0 for none.
        step: step number.
        rounding: `UPDATE` or `perturbation(k)`.
    """

    seeds: np.ndarray
    signs: bool
    directions: list[int]
    multiples: Tensor
    undone: int
    scales: Tensor
    grid: float
    step: int
    rounding: int


def combine(target: Tensor, source: Tensor, parameter: int, first: int, change: Change) -> None:
    """Write the changed source to the target.

    Args:
        target: the first dimension is the replica where there are several seeds.
        source: of the same shape; it may be the target.
        parameter: its index in the noise.
        first: the index of the tensor's first element in the whole parameter.
        change: the change to make.
    """
    draw = reference.rademacher if change.signs else reference.gaussian
    seed = torch.from_numpy(change.seeds.astype(np.int64)).to(target.device)
    place = {"seed": seed, "step": change.step, "parameter": parameter}
    # These are views where the memory allows it, else copies of one tensor, written back below.
    old = source.reshape(len(change.seeds), -1)
    new = target.reshape(len(change.seeds), -1)
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
            x = _round_stochastically(x, target.dtype, seed, change, parameter, first + start)
        new[:, start : start + CHUNK] = x
    if new.data_ptr() != target.data_ptr():
        target.copy_(new.reshape(target.shape))


def _round_stochastically(
    x: Tensor, dtype: torch.dtype, seed: Tensor, change: Change, parameter: int, first: int
) -> Tensor:
    """Round float32 to a 16-bit neighbour.

    The probability of rounding up makes the expectation exact.
    """
    dropped = MANTISSA_BITS_DROPPED[dtype]
    before = first % reference.HALVES_PER_BLOCK
    place = {
        "seed": seed,
        "step": change.step,
        "direction": change.rounding,
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
