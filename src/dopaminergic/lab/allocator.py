"""Settings of the C library for freed memory; where it is not glibc, nothing is changed."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT = -1, -3, 1 << 28  # mallopt(3); bytes


def keep_memory() -> None:
    """Have this process keep up to 256 MB of freed memory.

    Batches of perturbed networks take blocks of the same sizes in each step. To page them in anew
    each time took a fifth of the time of `VectorDopamine`.
    """
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        _call("mallopt", option, KEPT)


def give_memory_back() -> None:
    """Give back to the system the memory that was freed and kept."""
    _call("malloc_trim", 0)


def _call(function: str, *arguments: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)
