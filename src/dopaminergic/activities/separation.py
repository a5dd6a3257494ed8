"""Tries once whether samples, and time steps, are apart as the shapes of tensors say.

Trials of the first samples must leave the outcomes of the others alone. Where they do not, another
layout of the same shape is tried. For example (256, 3) may be 128 samples of 2 places, or 2 places
of 128 samples. Trials of late time steps must leave early outcomes alone, or feedback is not told
apart by lags.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dopaminergic.activities.evaluations import Evaluations, Record
from dopaminergic.activities.families import Family

LEAK = 1e-3  # of the answer of perturbed samples, that rounding may make elsewhere


def separate(
    evaluations: Evaluations,
    record: Record,
    found: list[Family],
    sigma: float,
    memory: dict[str, Tensor],
    tell: Callable[[str, str], None],
    rule: str,
) -> None:
    """Choose the layouts of families, and whether their time runs forward.

    Args:
        evaluations: of this step.
        record: of the network as it is.
        found: families; their layouts are put into order, and `causal` is set.
        sigma: length of a trial.
        memory: what has been found before, by name; new answers are added.
        tell: warns once of a subject.
        rule: the optimizer's name.
    """
    for family in found:
        name = _name(family, record)
        if name not in memory:
            memory[name] = _answer(evaluations, record, family, sigma, tell, rule)
        layout, causal = memory[name].tolist()
        layout = min(layout, len(family.layouts) - 1)
        family.use(int(layout), bool(causal))


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
        for layout in range(len(family.layouts)):
            family.use(layout, True)
            if not _leaks(evaluations, record, family, sigma, 1, samples // 2):
                chosen = layout
                break
        else:
            tell(
                "coupled",
                f"{rule}: samples of a batch depend on each other at {family.name} (batch "
                "normalisation, or a loss of pairs?), so that a sample's regret is not its own; "
                "training goes on, less sharply. A norm of single samples is better, LayerNorm say",
            )
    family.use(chosen, True)
    causal = True
    steps = family.shape[2]
    if times > 1 and steps >= times and len(family.nodes) == 1:
        causal = not _leaks(evaluations, record, family, sigma, 2, steps - times // 2)
    return torch.tensor([chosen, int(causal)])


def _leaks(
    evaluations: Evaluations, record: Record, family: Family, sigma: float, dim: int, first: int
) -> bool:
    """Whether trials of one part of the units change outcomes of the other part.

    Samples: those before `first`; time steps: those from `first` on.
    """
    noise = torch.full(family.shape, sigma * family.reach, dtype=family.gains.dtype)
    noise = noise.to(family.gains.device)
    noise.view(-1)[::2].neg_()
    late = family.shape[dim] - first
    quiet = noise.narrow(dim, first, late) if dim == 1 else noise.narrow(dim, 0, first)
    quiet.zero_()
    values, _ = evaluations.perturbed(record, [(family, noise)])
    answer: Any = (values - record.loss.values).view(record.shape).abs().nan_to_num()
    size = record.shape[dim]
    if dim == 1:
        loud, silent = answer.narrow(1, 0, first), answer.narrow(1, first, size - first)
    else:
        silent, loud = answer.narrow(2, 0, size - late), answer.narrow(2, size - late, late)
    return bool(silent.max() > LEAK * loud.max())
