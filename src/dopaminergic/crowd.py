"""Steps of several optimizers at one time, in threads: they share torch's generators.

Every evaluation of a step starts from the same random numbers, which a step in another thread may
rewind. A lock would let threads wait for each other, and a closure that waits for another optimizer
would hang. So there is a warning only.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from dopaminergic import checks

steps: dict[int, int] = {}  # the thread of each step in progress, by the `id` of its optimizer
_told: list[str] = []


def look(thread: int) -> Tensor | None:
    """The state of torch's generator where a step of another thread is in progress, else None."""
    if len(steps) < 2 or _told or all(other == thread for other in list(steps.values())):
        return None
    return torch.default_generator.get_state()


def tell(rule: str, before: Tensor | None) -> None:
    """Warn once if random numbers were drawn since a `look` that saw another thread's step."""
    if before is None or torch.equal(before, torch.default_generator.get_state()):
        return
    _told.append(rule)
    warnings.warn(
        f"{rule}: steps run in several threads at once, and closures draw random numbers. Threads "
        "share torch's "
        "generator, so evaluations of one step may see different ones; use processes, or a lock "
        "around step()",
        RuntimeWarning,
        stacklevel=checks.levels_up(),
    )
