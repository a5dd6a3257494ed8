"""Tries once whether samples, and time steps, are apart as the shapes of tensors say.

Trials of the first samples must leave the outcomes of the others alone. Where they do not, another
layout of the same shape is tried. For example (256, 3) may be 128 samples of 2 places, or 2 places
of 128 samples. Trials of late time steps must leave early outcomes alone, or feedback is not told
apart by lags. The first outcome that answers tells which step it comes with.

A step makes only as many trials as it has announced. The others are left to the next one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dopaminergic.activities.evaluations import Evaluations, Record
from dopaminergic.activities.families import Family, shortened

LEAK = 1e-3  # of the answer of perturbed samples, that rounding may make elsewhere

CHECKS = 16  # evaluations of one step at most; also the most that one family takes
OPEN = "open"  # kept in memory while some families are not known


class Spent(Exception):  # noqa: N818  (never leaves this file)
    """All evaluations that a step may take for trials are made."""


def separate(
    evaluations: Evaluations,
    record: Record,
    found: list[Family],
    sigma: float,
    memory: dict[str, Tensor],
    tell: Callable[[str, str], None],
    rule: str,
    most: int,
) -> bool:
    """Choose the layouts of families, and whether their time runs forward.

    Args:
        evaluations: of this step.
        record: of the network as it is.
        found: families, which are told their layout and lag.
        sigma: length of a trial.
        memory: what has been found before, by name; new answers are added.
        tell: warns once of a subject.
        rule: the optimizer's name.
        most: evaluations that may be made.

    Returns:
        Whether all families are known now.
    """
    evaluations.limit = evaluations.count + most
    for family in found:
        name = _name(family, record)
        if name not in memory:
            try:
                memory[name] = _answer(evaluations, record, family, sigma, tell, rule)
            except Spent:
                return False
        layout, lag = memory[name].tolist()
        family.use(min(int(layout), len(family.layouts) - 1), None if lag < 0 else int(lag))
    return True


def _name(family: Family, record: Record) -> str:
    form = "x".join(map(str, (*family.shape[2:], record.shape[2])))
    return f"layout of {family.name} {form}"


def _answer(
    evaluations: Evaluations,
    record: Record,
    family: Family,
    sigma: float,
    tell: Callable[[str, str], None],
    rule: str,
) -> Tensor:
    samples, times = record.shape[1:3]
    chosen = 0
    if samples > 1:
        for layout in range(min(len(family.layouts), CHECKS - 1)):
            family.use(layout, None)
            if not _leaks(evaluations, record, family, sigma, samples // 2):
                chosen = layout
                break
        else:
            tell(
                "coupled",
                f"{rule}: samples of a batch depend on each other at {shortened(family.name)} "
                "(batch normalisation, or a loss of pairs?), so that a sample's regret is not its "
                "own; training goes on, less sharply. A norm of single samples, LayerNorm say, is "
                "better",
            )
    family.use(chosen, None)
    if times > 1 and family.shape[2] > 1:
        family.lag = _lag(evaluations, record, family, sigma)
    lag = -1 if family.lag is None else family.lag
    return torch.tensor([chosen, lag], dtype=torch.int64, device="cpu")


def _leaks(
    evaluations: Evaluations, record: Record, family: Family, sigma: float, first: int
) -> bool:
    """Whether trials of the first samples change outcomes of the others."""
    noise = _noise(family, sigma)
    noise[:, first:] = 0.0
    answer = _answers(evaluations, record, family, noise)
    return bool(answer[:, first:].max() > LEAK * answer[:, :first].max())


def _lag(evaluations: Evaluations, record: Record, family: Family, sigma: float) -> int | None:
    """Steps of units before the first that an outcome comes with; None if time does not run.

    Late units are tried. The first outcome that answers comes with the first of them.
    """
    first = (family.shape[2] + 1) // 2
    noise = _noise(family, sigma)
    noise[:, :, :first] = 0.0
    answer = _answers(evaluations, record, family, noise).amax((0, 1, 3))
    moved = answer > LEAK * answer.max()
    if not bool(moved.any()):
        return None
    lag = first - int(moved.int().argmax())
    fits = 0 <= lag <= family.shape[2] - record.shape[2]
    return lag if fits and not bool(moved[0]) else None


def _noise(family: Family, sigma: float) -> Tensor:
    length = sigma * family.reach
    noise = torch.full(family.shape, length, dtype=family.gains.dtype, device="cpu")
    noise.view(-1)[::2].neg_()
    return noise.to(family.gains.device)


def _answers(evaluations: Evaluations, record: Record, family: Family, noise: Tensor) -> Tensor:
    if evaluations.count >= evaluations.limit:
        raise Spent
    values, _ = evaluations.perturbed(record, [(family, noise)])
    return (values - record.loss.values).view(record.shape).abs().nan_to_num()
