"""From the regrets of all samples to the credit of all units, and to better expectations.

    unexpected_i = D_i - what feedback expected of the trials        a vector for each sample
    RPE_i        = <r_i, unexpected_i>                               a number for each sample
    credit       = what feedback says of r_i + doubt M / (M + N) RPE_i xi_i

M samples tell of N units. The last term corrects the credit where feedback is wrong. It is noise
where feedback is right, so it also counts by the share of the regrets that was not expected.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dopaminergic.activities import feedback
from dopaminergic.activities.estimates import wide
from dopaminergic.activities.families import Family
from dopaminergic.activities.feedback import Times

DOUBT = "doubt"  # the name of that share in the memory
MEMORY = 0.95  # decay of its mean


class Part(NamedTuple):
    """A family with its feedback.

    Attributes:
        family: the units.
        times: how they are in time with the outcomes; None where they are not.
        name: under which the feedback is kept.
        kernel: K, `(R, ...)`.
        rows: features xi g in line with the outcomes.
    """

    family: Family
    times: Times | None
    name: str
    kernel: Tensor
    rows: Tensor


class Credit(NamedTuple):
    """The credit of one step.

    Attributes:
        parts: families with their feedback, as it was and as it is now.
        credits: of each, `(R, B, S, U)`.
        memory: what is kept, by name: feedback as it has become, and the share of the regrets'
            squares that was not expected, `(R,)`.
    """

    parts: list[Part]
    credits: list[Tensor]
    memory: dict[str, Tensor]


def parts_of(
    found: list[Family], memory: dict[str, Tensor], shape: tuple[int, ...], span: int, like: Tensor
) -> list[Part]:
    """The families of a step with the feedback that is kept for them, or zeros.

    Args:
        found: the families, with their trials.
        memory: all that is kept, by name.
        shape: of the outcomes, `(R, B, T, C)`.
        span: steps that a kernel reaches back.
        like: a tensor of the dtype and device.
    """
    parts: list[Part] = []
    for family in found:
        times = feedback.times_of(family, shape[2], span)
        form = feedback.shape_of(family, times, (shape[2], shape[3]))
        name = f"feedback of {family.name} {'x'.join(map(str, form[1:]))}"
        kernel = memory.get(name)
        kernel = like.new_zeros(form) if kernel is None else kernel.to(like.device, like.dtype)
        features = family.reach * family.trials * wide(family.gains)
        parts.append(Part(family, times, name, kernel, feedback.rows(features, times)))
    return parts


def learn(
    parts: list[Part], regrets: Tensor, slope: Tensor, doubt: Tensor | None, speed: float
) -> Credit:
    """What the regrets of a step teach.

    Args:
        parts: families with their feedback.
        regrets: D, `(R, B, T, C)`; NaN where an outcome was not finite.
        slope: r, of the same shape.
        doubt: mean share of the regrets' squares that was not expected, `(R,)`, or None.
        speed: factor on what feedback learns.
    """
    usable = regrets.isfinite().all(-1).all(-1)[..., None, None]
    regrets = torch.where(usable, regrets, 0.0)
    unexpected = regrets
    for part in parts:
        said = torch.bmm(part.rows, part.kernel.flatten(1, -2))
        unexpected = unexpected - torch.where(usable, said.view(regrets.shape), 0.0)
    samples = regrets.shape[1]
    count = sum(part.family.size for part in parts)
    power = regrets.square().sum((1, 2, 3))
    now = unexpected.square().sum((1, 2, 3)) / power.clamp(min=torch.finfo(power.dtype).tiny)
    doubt = now if doubt is None else doubt.lerp(now, 1.0 - MEMORY)
    share = doubt.clamp(max=1.0) * samples / (samples + count)
    errors = (unexpected * slope).sum(-1) * share[:, None, None]  # (R, B, T)
    credits = [_credit(part, slope, errors) for part in parts]
    return Credit(parts, credits, {**_taught(parts, unexpected, speed), DOUBT: doubt})


def _credit(part: Part, slope: Tensor, errors: Tensor) -> Tensor:
    family = part.family
    said = feedback.credit(slope, part.kernel, family, part.times) * wide(family.gains)
    if part.times is None:
        error = errors.sum(2)[..., None, None]
    else:  # only later outcomes depend on a unit
        late = family.shape[2] - part.times.lag - part.times.outcomes
        later = functional.pad(errors, (part.times.lag, late))
        error = later.flip(2).cumsum(2).flip(2)[..., None]
    return said + error / family.reach * family.trials


def _taught(parts: list[Part], unexpected: Tensor, speed: float) -> dict[str, Tensor]:
    """The feedback after it has learned from its errors, by name."""
    memory: dict[str, Tensor] = {}
    width = sum(part.rows.shape[2] for part in parts)
    for timed in (True, False):
        mine = [part for part in parts if (part.times is not None) == timed]
        if not mine:
            continue
        errors = unexpected.flatten(1, 2) if timed else unexpected.flatten(2)
        changes = feedback.learned([part.rows for part in mine], errors, width)
        for part, change in zip(mine, changes, strict=True):
            memory[part.name] = part.kernel + speed * change.view(part.kernel.shape)
    return memory
