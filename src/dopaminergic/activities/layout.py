"""Which part of a tensor is a replica, a sample, a time step, a unit.

    any shape  <->  (R, B, T, U): replicas, samples, time steps, units

Shapes alone often leave more than one answer: (256, 3) may be 128 samples of 2 places, or 2 places
of 128 samples. `layouts` lists the answers, the usual one first. The optimizer tries whether
samples are apart in one of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """How a tensor of one shape is brought into the form `(R, B, T, U)`, and back.

    Attributes:
        split: the shape, with a dimension for each part.
        order: numbers of the parts: replicas, samples, time, then units.
        ends: how many parts replicas, samples and time have.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    ends: tuple[int, int, int]

    def apart(self, tensor: Tensor) -> Tensor:
        """The tensor as `(R, B, T, U)`."""
        moved = tensor.reshape(self.split).permute(self.order)
        return moved.reshape(self._form())

    def together(self, found: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor of a shape that `apart` made `(R, B, T, U)` of."""
        moved = found.reshape([self.split[i] for i in self.order])
        back = sorted(range(len(self.order)), key=lambda i: self.order[i])
        return moved.permute(back).reshape(shape)

    def _form(self) -> tuple[int, int, int, int]:
        sizes = [self.split[i] for i in self.order]
        first, second, third = self.ends
        third += second + first
        second += first
        return (
            math.prod(sizes[:first]),
            math.prod(sizes[first:second]),
            math.prod(sizes[second:third]),
            math.prod(sizes[third:]),
        )


def layouts(shape: tuple[int, ...], replicas: int | None, samples: int, times: int) -> list[Layout]:
    """The layouts that a shape may have, the likeliest first; none where no sample fits in.

    Args:
        shape: of a tensor.
        replicas: R of a fleet, whose dimension comes first; None for one model.
        samples: B.
        times: T of the outcomes; 1 if they have no time.

    >>> layouts((8, 50, 16), None, 8, 50)[0]
    Layout(split=(8, 50, 16), order=(0, 1, 2), ends=(0, 1, 1))
    """
    lead = 0
    if replicas is not None:
        if not shape or shape[0] != replicas:
            return []
        lead = 1
    found: list[Layout] = []
    axes = list(range(lead, len(shape)))
    if len(axes) > 1:
        axes = [i for i in axes[:-1] if shape[i] > 1 or samples == 1] + axes[-1:]
    for axis in axes:
        size = shape[axis]
        if size == samples:
            found.append(_layout(shape, lead, axis, times))
        elif size % samples == 0 and samples > 1:
            other = size // samples
            major = (*shape[:axis], samples, other, *shape[axis + 1 :])
            minor = (*shape[:axis], other, samples, *shape[axis + 1 :])
            found.append(_layout(major, lead, axis, times))
            found.append(_layout(minor, lead, axis + 1, times))
    if samples == 1 and not found:
        whole = (*shape[:lead], 1, *shape[lead:])
        found.append(_layout(whole, lead, lead, times))
    return found


def _layout(split: tuple[int, ...], lead: int, axis: int, times: int) -> Layout:
    rest = [i for i in range(lead, len(split)) if i != axis]
    # A lone dimension is that of units, also if it is as long as time; so is one beside a dimension
    # of 1 before the samples, as in (1, 6, 20): 6 samples of 20 units.
    several = [i for i in rest if split[i] > 1 or i > axis]
    # Outcomes may leave out some steps: the first ones, where a network warms up, or the last.
    candidates = [i for i in rest if times <= split[i] <= 2 * times] if times > 1 else []
    candidates.sort(key=lambda i: split[i] != times)
    time = [candidates[0]] if candidates and len(several) > 1 else []
    units = [i for i in rest if i not in time]
    return Layout(tuple(split), (*range(lead), axis, *time, *units), (lead, 1, len(time)))
