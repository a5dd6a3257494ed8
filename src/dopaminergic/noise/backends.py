"""Two fast ways to make noise: numba on CPUs, Triton on GPUs; which tensors each of them takes."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import pieces

# Numba's type of the weights in memory, and its type to compute in; it knows no 16-bit reals.
KERNEL_TYPES = {
    torch.float32: (np.float32, np.float32),
    torch.float64: (np.float64, np.float64),
    torch.bfloat16: (np.uint16, np.float32),
    torch.float16: (np.int16, np.float32),
}
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


def is_for_numba(t: Tensor) -> bool:
    """Whether numba can write to it in place."""
    return t.device.type == "cpu" and t.dtype in KERNEL_TYPES and not pieces.overlaps(t)


def is_for_triton(t: Tensor) -> bool:
    """Whether Triton can write to it in place."""
    return t.device.type in TRITON_DEVICES and t.dtype in KERNEL_TYPES and not pieces.overlaps(t)
