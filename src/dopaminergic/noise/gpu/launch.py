"""The launch: the table of parameters, and the numbers of a call."""
# Triton compiles code that looks like Python. Its types are not Python's, and it is not installed
# everywhere.

from __future__ import annotations

import contextlib

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from dopaminergic.noise.gpu.kernel import GRID, combine
from dopaminergic.noise.pieces import layout_of

TILE = 4096  # weights of a program; a multiple of every block
# bfloat16 is float32's upper half, taken as bits. The compiler's conversions would differ.
DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.uint16,
    torch.float16: tl.float16,
}
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


class Launch:
    """The launch for the tensors of one `Combination`.

    Args:
        targets: tensors of one dtype (see `DTYPES`) on one GPU. Their elements share no memory;
            with R seeds the first dimension is R. They must keep their memory as long as this
            object is used.
        sources: tensors to read, of the same shapes; the targets themselves for work in place.
        parameters: the index of each tensor in the noise.
        firsts: the index of the first element of each tensor in the whole parameter, any number >=
            0.
        seeds: uint64 `(R,)`, below 2^63.
        signs: Rademacher if true, else Gaussian.
    """

    def __init__(
        self,
        targets: list[Tensor],
        sources: list[Tensor],
        parameters: list[int],
        firsts: list[int],
        seeds: np.ndarray,
        signs: bool,
    ) -> None:
        self.device = targets[0].device
        self.dtype = targets[0].dtype
        self.signs = signs
        self.replicas = len(seeds)
        sizes = [t.numel() // self.replicas for t in targets]
        tiles = [
            -(-(first % 128 + size) // TILE) for first, size in zip(firsts, sizes, strict=True)
        ]
        before = np.concatenate([[0], np.cumsum(tiles)])
        addresses = [[t.data_ptr() for t in tensors] for tensors in (targets, sources)]
        rows = [*addresses, sizes, firsts, parameters, before[:-1]]
        layouts = [layout_of(*pair, self.replicas) for pair in zip(targets, sources, strict=True)]
        plain = all(t.is_contiguous() for t in [*targets, *sources])
        self.dims = 0 if plain else max(len(layout) for _, layout in layouts)
        if not plain:
            rows += zip(*[self._fields(*layout) for layout in layouts], strict=True)
        table = np.array(rows, np.int64)
        self.narrow = max(sizes) < 1 << 31
        whole = self.replicas == 1 or not any(size % 8 for size in sizes)
        self.aligned = (
            plain
            and whole
            and not (table[:2] % 16).any()
            and not any(first % 8 for first in firsts)
        )
        self.tiles = int(before[-1])
        self._table = self._on_device(table.T.copy())
        self._owners = self._on_device(np.repeat(np.arange(len(tiles), dtype=np.int32), tiles))
        self._seeds = self._on_device(seeds.astype(np.int64))
        self._numbers = torch.zeros(0, dtype=torch.int64, device=self.device)

    def __call__(
        self,
        directions: np.ndarray,
        coefficients: np.ndarray,
        scales: np.ndarray,
        step: int,
        rounding: int = 0,
        undone: int = 0,
        grid: float = 0.0,
    ) -> None:
        """Call `write`, then `launch`."""
        self.write(directions, coefficients, scales, step, rounding, undone, grid)
        self.launch()

    def write(
        self,
        directions: np.ndarray,
        coefficients: np.ndarray,
        scales: np.ndarray,
        step: int,
        rounding: int = 0,
        undone: int = 0,
        grid: float = 0.0,
    ) -> None:
        """Say what the next launch does, without waiting for the device.

        Args:
            directions: integers `(K,)`, each in [0, 2^28).
            coefficients: float64 `(K, R)`, the multiple of each direction, in this order.
            scales: float64 `(R,)`, the factors of the weights.
            step: step number in [0, 2^32).
            rounding: which random numbers round 16-bit weights, in [0, 2^28).
            undone: number of directions that are added before the weights are scaled.
            grid: spacing that makes the results multiples of a unit, see `Combination`; 0: none.
        """
        header = np.array([step, rounding, undone, len(directions), 0], np.int64)
        header[GRID.value] = np.float64(grid).view(np.int64)
        rows = np.empty((len(directions), 1 + self.replicas), np.int64)
        rows[:, 0] = directions
        rows[:, 1:] = np.ascontiguousarray(coefficients, np.float64).view(np.int64)
        scale = np.ascontiguousarray(scales, np.float64).view(np.int64)
        host = torch.from_numpy(np.concatenate([header, scale, rows.ravel()]))
        if len(self._numbers) < len(host):
            self._numbers = torch.zeros(len(host), dtype=torch.int64, device=self.device)
        self._numbers[: len(host)].copy_(self._pinned(host), non_blocking=True)

    def launch(self) -> None:
        """Launch the numbers that were written.

        Every argument is the same each time, unless `write` was given more than ever before.
        """
        if self.tiles == 0:
            return
        with (
            torch.cuda.device(self.device)
            if self.device.type == "cuda"
            else contextlib.nullcontext()
        ):
            combine[(self.tiles * self.replicas,)](
                self._table, self._owners, self._seeds, self._numbers, self.replicas,
                dtype=DTYPES[self.dtype], signs=self.signs, aligned=self.aligned, tile=TILE,
                dims=self.dims, narrow=self.narrow,
                **OPTIONS,
            )  # fmt: skip

    def _fields(self, replica: list[int], layout: list[tuple[int, int, int]]) -> list[int]:
        dimensions = layout[::-1] + [(1, 0, 0)] * (self.dims - len(layout))
        return [*replica, *(number for dimension in dimensions for number in dimension)]

    def _pinned(self, host: Tensor) -> Tensor:
        """An array in memory that can be sent without waiting; torch keeps it until it is read."""
        return host.pin_memory() if self.device.type == "cuda" else host

    def _on_device(self, array: np.ndarray) -> Tensor:
        return self._pinned(torch.from_numpy(array)).to(self.device, non_blocking=True)
