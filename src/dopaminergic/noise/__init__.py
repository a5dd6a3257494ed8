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
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import reference

__all__ = ["KINDS", "Combination", "fast_kernel"]

KINDS = ("rademacher", "gaussian")
CHUNK = 1 << 16  # elements; a multiple of every block, small enough to stay in cache
MANTISSA_BITS_DROPPED = {torch.bfloat16: 16, torch.float16: 13}  # of float32's 23
FAST_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


@functools.cache
def fast_kernel():
    """The numba kernel, or None where numba is not installed (said once in the log)."""
    if importlib.util.find_spec("numba") is None:
        logging.getLogger(__name__).warning(
            "numba is not installed: noise comes from the slower torch reference, with the same bits "
            "(pip install 'dopaminergic[fast]')"
        )
        return None
    from dopaminergic.noise.cpu import combine

    return combine


class Combination(NamedTuple):
    """target <- scale * source + sum_k coefficient_k z_k, to be called many times for the same tensors.

    Attributes:
        targets: tensors of one dtype and device; the first dimension is the replica where there are several seeds.
        sources: tensors of the same shapes and dtype; a target may be its own source.
        parameters: the index of each tensor in the noise.
        seeds: uint64 `(R,)`, below 2^63.
        kind: `"rademacher"` or `"gaussian"`.
        fast: what the numba kernel is called with, or None where the reference must do.
    """

    targets: list[Tensor]
    sources: list[Tensor]
    parameters: list[int]
    seeds: np.ndarray
    kind: str
    fast: tuple[Any, ...] | None

    @classmethod
    def of(
        cls, targets: list[Tensor], sources: list[Tensor], parameters: list[int], seeds: np.ndarray, kind: str
    ) -> Combination:
        """Look up addresses once; they must stay valid as long as the combination is used."""
        plain = all(t.device.type == "cpu" and t.dtype in FAST_DTYPES and t.is_contiguous() for t in targets + sources)
        fast = None
        if plain and fast_kernel() is not None:
            addresses = np.array([[t.data_ptr() for t in targets], [s.data_ptr() for s in sources]], np.uint64)
            sizes = np.array([t.numel() // len(seeds) for t in targets], np.int64)
            fast = (FAST_DTYPES[targets[0].dtype], addresses, sizes, np.array(parameters, np.uint32))
        return cls(targets, sources, parameters, seeds, kind, fast)

    def __call__(self, scales: np.ndarray, coefficients: np.ndarray, directions: Sequence[int], step: int) -> None:
        """Do it.

        Args:
            scales: float64 `(R,)`.
            coefficients: float64 `(K, R)`.
            directions: `K` direction numbers in [0, 2^28).
            step: step number in [0, 2^32).
        """
        if self.fast is None:
            for target, source, parameter in zip(self.targets, self.sources, self.parameters, strict=True):
                self._slowly(target, source, parameter, scales, coefficients, directions, step)
            return
        dtype, addresses, sizes, parameters = self.fast
        fast_kernel()(
            addresses,
            sizes,
            parameters,
            self.seeds,
            scales.astype(dtype),
            coefficients.astype(dtype),
            np.array(directions, np.uint32),
            np.uint32(step),
            0,
            self.kind == "rademacher",
        )

    def _slowly(
        self,
        target: Tensor,
        source: Tensor,
        parameter: int,
        scales: np.ndarray,
        coefficients: np.ndarray,
        directions: Sequence[int],
        step: int,
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
                chunk = _round_stochastically(chunk, target.dtype, seed, step, parameter, start)
            new[:, start : start + CHUNK] = chunk
        if new.data_ptr() != target.data_ptr():
            target.copy_(new.reshape(target.shape))


def _round_stochastically(x: Tensor, dtype: torch.dtype, seed: Tensor, step: int, parameter: int, first: int) -> Tensor:
    """Round float32 to a 16-bit neighbour, up with the probability that makes the expectation exact."""
    dropped, blocks = MANTISSA_BITS_DROPPED[dtype], -(-x.shape[1] // reference.NORMALS_PER_BLOCK)
    words = reference.words(
        blocks, seed=seed, stream=reference.ROUNDING, step=step, parameter=parameter, first=first // 4
    )
    noise = (words[:, : x.shape[1]] >> (32 - dropped)).to(torch.int32)
    bits = (x.contiguous().view(torch.int32) + noise) & ~((1 << dropped) - 1)
    # Infinities and NaN hold no fraction to round, and adding to their bits would change what they are.
    return torch.where(x.isfinite(), bits.view(torch.float32), x).to(dtype)
