"""Drawings that explain: no numbers of runs are in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from docs.gallery.drawing import COLOURS, INK, MUTED, PANEL, empty
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch


def box(
    axes: Any, x: float, y: float, width: float, height: float, text: str, colour: str = MUTED
) -> None:
    """A rounded box around a text; x and y are its left upper corner."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=9",
            facecolor=PANEL,
            edgecolor=colour,
            linewidth=1.4,
        )
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow, with a text at its middle."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=12,
            color=MUTED,
            linewidth=1.4,
            shrinkA=2,
            shrinkB=2,
        )
    )
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        flat = abs(start[1] - end[1]) < 1
        axes.text(
            x + (0 if flat else 7),
            y - (9 if flat else 0),
            text,
            ha="center" if flat else "left",
            va="center",
            fontsize=9.5,
            color=MUTED,
        )


def which() -> Figure:
    """Which optimizer to take."""
    figure, axes = empty(540, 470)
    questions = (
        "Attention, or millions of weights,\nand backpropagation fits into memory?",
        "A torch model that makes predictions,\nsamples first, without ranks or journal?",
        "Smooth outcomes, batches of 64 samples\nand more, more passes than weights?",
        "A staircase, or a loss of which\nonly the order counts?",
        "Is the least possible loss known?",
    )
    answers = (
        ("Adam", "adam"),
        ("NodeDopamine", "node"),
        ("VectorDopamine", "vector"),
        ("EvolutionStrategy,\nwith your sigma", "plain"),
        ("Dopamine", "dopamine"),
    )
    for row, (question, (answer, colour)) in enumerate(zip(questions, answers, strict=True)):
        y = 14 + 78 * row
        box(axes, 14, y, 310, 52, question)
        box(axes, 384, y, 142, 52, answer, COLOURS[colour])
        arrow(axes, (324, y + 26), (384, y + 26), "yes")
        arrow(axes, (169, y + 52), (169, y + 78), "no")
    box(axes, 98, 404, 142, 52, "Dopamine2", COLOURS["dopamine2"])
    return figure


def one_step() -> Figure:
    """The calls of the closure in one step."""
    figure, axes = empty(720, 250)
    box(axes, 14, 20, 150, 54, "weights W")
    box(axes, 14, 100, 150, 54, "W + sigma z", COLOURS["dopamine"])
    box(
        axes, 250, 20, 150, 134, "your closure\n\nany code:\nmodel, simulator,\ndevice, people", INK
    )
    arrow(axes, (164, 47), (250, 47), "1")
    arrow(axes, (164, 127), (250, 127), "2")
    box(axes, 480, 20, 100, 54, "loss 0.52")
    box(axes, 480, 100, 100, 54, "loss 0.49")
    arrow(axes, (400, 47), (480, 47))
    arrow(axes, (400, 127), (480, 127))
    box(axes, 620, 60, 86, 54, "the rule")
    arrow(axes, (580, 47), (620, 80))
    arrow(axes, (580, 127), (620, 94))
    axes.text(
        360, 190, "better than expected: W moves along z", ha="center", fontsize=11, color=INK
    )
    axes.text(
        360,
        216,
        "the weights are put back before anything else happens",
        ha="center",
        fontsize=9.5,
        color=MUTED,
    )
    return figure


def ranks() -> Figure:
    """Ranks that exchange losses."""
    figure, axes = empty(720, 270)
    for rank in range(3):
        x = 14 + 240 * rank
        box(axes, x, 14, 212, 62, f"rank {rank}: the same weights\nnoise from seed and step")
        box(axes, x, 112, 212, 40, f"tries directions {rank * 2 + 1} and {rank * 2 + 2}")
        arrow(axes, (x + 106, 76), (x + 106, 112))
        arrow(axes, (x + 106, 152), (x + 106, 188))
    axes.text(
        360,
        206,
        "all_gather of 6 losses: some hundred bytes",
        ha="center",
        va="center",
        fontsize=11,
        color=COLOURS["dopamine"],
    )
    axes.plot([14, 706], [188, 188], color=COLOURS["dopamine"], linewidth=2)
    axes.text(
        360,
        244,
        "every rank makes the same update of its weights, bit for bit",
        ha="center",
        va="center",
        fontsize=11,
        color=INK,
    )
    return figure


def journal() -> Figure:
    """A journal: few bytes a step rebuild all weights."""
    figure, axes = empty(720, 190)
    box(axes, 14, 20, 130, 60, "first weights\nor a checkpoint")
    for step in range(4):
        x = 170 + 92 * step
        box(axes, x, 26, 76, 48, f"step {step + 1}\n20 bytes", COLOURS["dopamine"])
        arrow(axes, (144 if step == 0 else x - 16, 50), (x, 50))
    box(axes, 590, 20, 116, 60, "weights of\nany step")
    arrow(axes, (522, 50), (590, 50), "replay")
    arrow(axes, (648, 80), (648, 130))
    axes.text(648, 144, "revert goes back", ha="center", fontsize=9.5, color=MUTED)
    axes.text(
        330,
        120,
        "seed and counters make directions anew;\nthe journal holds their multiples",
        ha="center",
        va="center",
        fontsize=10.5,
        color=INK,
    )
    return figure


def noise() -> Figure:
    """A direction is a pure function of seed, step and place."""
    figure, axes = empty(720, 210)
    box(axes, 14, 26, 150, 104, "seed\nstep\ndirection\nplace of the weight")
    box(axes, 250, 50, 150, 56, "Philox4x32-10", COLOURS["dopamine2"])
    arrow(axes, (164, 78), (250, 78))
    arrow(axes, (400, 78), (466, 78))
    signs = np.random.default_rng(3).integers(2, size=(5, 12))
    for row in range(5):
        for column in range(12):
            colour = COLOURS["dopamine2"] if signs[row, column] else PANEL
            axes.add_patch(
                FancyBboxPatch(
                    (470 + 19 * column, 32 + 19 * row),
                    15,
                    15,
                    boxstyle="round,pad=0,rounding_size=3",
                    facecolor=colour,
                    edgecolor=MUTED,
                    linewidth=0.6,
                )
            )
    axes.text(582, 146, "+1 and -1, one for each weight", ha="center", fontsize=10, color=INK)
    axes.text(
        360,
        186,
        "made anew on any device, in any order: nothing is stored or sent",
        ha="center",
        fontsize=10.5,
        color=MUTED,
    )
    return figure


PICTURES = {
    "which": which,
    "one_step": one_step,
    "ranks": ranks,
    "journal": journal,
    "noise": noise,
}
