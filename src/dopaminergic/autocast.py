"""Mixed precision: casts that torch keeps, and whether a closure computes in 16 bits.

Torch keeps the casts of weights until the outermost `torch.autocast` ends. A perturbed pass inside
it would see the weights of the pass before, so the casts are forgotten around every evaluation. A
closure that computes in 16 bits needs the larger perturbations that 16-bit weights need. The dtype
of its weights does not matter for that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

HALVES = (torch.bfloat16, torch.float16)

forget_casts = torch.clear_autocast_cache


@contextlib.contextmanager
def watched() -> Iterator[set[torch.dtype]]:
    """The 16-bit dtypes in which the code of the block computes.

    They include those of an `torch.autocast` that the code enters itself.
    """
    seen = {
        torch.get_autocast_dtype(kind)
        for kind in ("cpu", "cuda")
        if torch.is_autocast_enabled(kind)
    }
    enter: Any = torch.autocast.__enter__

    def enter_watched(self: Any) -> Any:
        found = enter(self)
        if torch.is_autocast_enabled(self.device):
            seen.add(torch.get_autocast_dtype(self.device))
        return found

    torch.autocast.__enter__ = enter_watched
    try:
        yield seen
    finally:
        if torch.autocast.__enter__ is enter_watched:
            torch.autocast.__enter__ = enter
        seen.intersection_update(HALVES)
