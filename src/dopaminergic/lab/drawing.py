"""The look of every figure of the lab: colours, type, readable axes, labels beside lines, files.

Each optimizer has one colour and one mark everywhere, so that no reader depends on colours. Rules
that only run forward have hues after Okabe and Ito's palette. Those that use gradients are black
and grey, dashed. Texts have these colours too: their contrast to white is at least 4.5.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from dopaminergic.lab.records import write_whole
from dopaminergic.lab.results import LABELS, compact
from dopaminergic.lab.svg import as_svg

COLOURS = {
    "dopamine": "#B84A00",
    "dopamine2": "#0072B2",
    "vector": "#7B2D8E",
    "node": "#00809A",
    "wp": "#007A57",
    "spsa": "#B5478A",
    "es": "#8A6400",
    "sgd": "#707070",
    "adam": "#1A1A1A",
}
MARKS = {
    "dopamine": "o",
    "dopamine2": "s",
    "vector": "D",
    "node": "P",
    "wp": "^",
    "spsa": "v",
    "es": "X",
    "sgd": "<",
    "adam": ">",
}
GRADIENTS = ("sgd", "adam")
OURS = ("dopamine", "dopamine2", "vector", "node")  # drawn in bold
TRUTH = "#444444"
SMALL, WIDE = (5.33, 4.0), 8.0  # inches; 150 dots each make 800 and 1200 pixels
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E9E9E9",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
    "mathtext.fontset": "dejavusans",
}


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **keywords: Any
) -> tuple[Figure, Any]:
    """A figure of its own (no global state), in inches, with its axes.

    The axes are one, or an array (rows, columns) of them.
    """
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=rows * columns == 1, **keywords)


def colour(optimizer: str) -> str:
    """The one colour of an optimizer; grey for one that this module does not know."""
    return COLOURS.get(optimizer, "#666666")


def mark(optimizer: str) -> str:
    """The one mark of an optimizer; a small dot for one that this module does not know."""
    return MARKS.get(optimizer, ".")


def spaced_marks(optimizer: str) -> dict[str, Any]:
    """Keywords of a line with a mark about every seventh of the figure.

    Lines that run together have their marks at different places.
    """
    rank = list(MARKS).index(optimizer) if optimizer in MARKS else 0
    return {
        "marker": mark(optimizer),
        "markersize": 5.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "markevery": (0.02 + 0.014 * rank, 0.15),
    }


def line_style(optimizer: str) -> str:
    """Dashed for optimizers that use gradients."""
    return "--" if optimizer in GRADIENTS else "-"


def plain_number(value: float, _: object = None) -> str:
    """A label for a tick, such as 0.0005, 20 or 10⁻⁵."""
    if 0 < value < 1e-4:
        return compact(value, 2).replace(".0 ", " ").removeprefix("1 ").lstrip("× ")  # noqa: RUF001
    return f"{value:g}" if value < 1e4 else f"{value:,.0f}"


def thousands(value: float, _: object = None) -> str:
    """A label for a tick of forward passes: 500, 20k."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def zero_place(errors: Iterable[float]) -> float | None:
    """Place of zeros on a logarithmic axis: at half of the smallest error above zero.

    None where there are no zeros.
    """
    finite = [error for error in errors if math.isfinite(error)]
    return min((error for error in finite if error > 0), default=1.0) / 2 if 0 in finite else None


def readable_log(
    axes: Axes,
    which: str,
    zero: float | None = None,
    form: Callable[..., str] = plain_number,
    least: str = "0",
) -> None:
    """Plain numbers on a logarithmic axis: 1-2-5 ticks within two decades, powers beyond.

    `zero` is labelled 0, or with other words where it stands for more.
    """
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = math.log10(high / low)
    tight = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    tightest = [tenths / 10 for tenths in (*range(10, 20), *range(20, 100, 2))]
    steps = (
        tightest
        if decades < 0.12
        else tight
        if decades < 0.4
        else (1, 1.5, 2, 3, 5, 7)
        if decades < 0.7
        else (1, 2, 5)
        if decades < 2.3
        else (1, 3)
        if decades < 3.2
        else (1,)
    )
    powers = range(
        math.floor(math.log10(low)),
        math.ceil(math.log10(high)) + 1,
        math.ceil(decades / (12 if which == "y" else 7)),
    )
    ticks = [step * 10.0**power for power in powers for step in steps]
    names = [form(tick) if decades < 4 else f"$10^{{{math.log10(tick):.0f}}}$" for tick in ticks]
    shown = [
        (tick, name)
        for tick, name in zip(ticks, names, strict=True)
        if max(low, 1.5 * (zero or 0)) <= tick <= high
    ]
    if len(shown) < 2 and not zero:  # between two steps
        shown = [(tick, f"{tick:.4g}") for tick in MaxNLocator(4).tick_values(low, high)]
        shown = [(tick, name) for tick, name in shown if low <= tick <= high]
    shown += [(zero, least)] if zero else []
    shown = _without_overlaps(axes, which, shown)
    axis.set_ticks([tick for tick, _ in shown], [name for _, name in shown])
    axis.set_ticks([], minor=True)
    axis.set_minor_formatter(NullFormatter())


def _without_overlaps(
    axes: Axes, which: str, ticks: Sequence[tuple[float, str]]
) -> list[tuple[float, str]]:
    """The ticks of a logarithmic axis whose names have room; powers of ten go before others."""
    figure = axes.figure.get_figure(root=True)
    width, height = figure.get_size_inches() if figure is not None else SMALL
    spec = axes.get_subplotspec()
    rows, columns = spec.get_gridspec().get_geometry() if spec is not None else (1, 1)
    # The part of a figure that axes take, beside names of lines and of the axis.
    room = 72 * (0.55 * width / columns if which == "x" else 0.7 * height / rows)
    low, high = getattr(axes, f"get_{which}lim")()
    kept: list[tuple[float, float, str]] = []
    for tick, name in sorted(ticks, key=lambda one: _roundness(*one)):
        place = room * math.log(tick / low) / math.log(high / low)
        apart = [
            1.3 * 11 if which == "y" else (_width(name) + _width(other)) / 2 for _, _, other in kept
        ]
        if all(abs(place - there) >= gap for gap, (there, _, _) in zip(apart, kept, strict=True)):
            kept.append((place, tick, name))
    return [(tick, name) for _, tick, name in sorted(kept)]


def _width(name: str) -> float:
    """About the width of a tick's name, in points."""
    return 0.62 * 11 * _letters(name) + 5


def _letters(name: str) -> int:
    """Letters that are drawn; those of a formula's mark-up are not."""
    return len(name.translate(str.maketrans("", "", "${}^")))


def _roundness(tick: float, name: str) -> tuple[bool, int, float]:
    """The rank of a tick: zero, then 1, then 5 and 2, then the others."""
    first = f"{tick:.1e}".split("e")[0]
    order = {"1.0": 0, "5.0": 1, "2.0": 1, "3.0": 1}
    return (
        not (name == "0" or name.isalpha()),
        order.get(first, 2 if first.endswith(".0") else 3),
        tick,
    )


def clip_at(axes: Axes, which: str, worst: float) -> None:
    """End an axis at the worst value to be shown, if values within it go beyond."""
    low, high = getattr(axes, f"get_{which}lim")()
    if low < worst < high:
        getattr(axes, f"set_{which}lim")(low, worst)


def label_lines(axes: Axes, ends: Sequence[tuple[float, str, str]], size: float = 11.5) -> None:
    """Names right of the axes at the heights where their lines end.

    They are pushed apart until none overlaps.
    """
    if not ends:
        return
    figure = axes.figure
    engine = axes.figure.get_layout_engine()
    if not (isinstance(figure, Figure) and isinstance(engine, ConstrainedLayoutEngine)):
        raise TypeError("axes: must come from new_figure(), whose layout makes room for the names")
    # A bold letter of SMALL's width.
    engine.set(rect=(0, 0, 0.97 - 0.0205 * max(len(text) for _, text, _ in ends), 1))
    figure.draw_without_rendering()
    to_fraction = axes.transAxes.inverted()
    heights = [
        to_fraction.transform(axes.transData.transform((axes.get_xlim()[1], y)))[1]
        for y, _, _ in ends
    ]
    gap = 1.35 * size / 72 / (axes.get_position().height * figure.get_size_inches()[1])
    placed = _apart(np.clip(heights, 0, 0.97), min(gap, 1 / max(1, len(ends) - 1)))
    for height, at, (_, text, hue) in zip(placed, heights, ends, strict=True):
        label = axes.annotate(
            text,
            xy=(1.0, float(np.clip(at, 0, 1))),
            xytext=(1.05, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=hue,
            fontsize=size,
            fontweight="bold" if text in [LABELS[name] for name in OURS] else "normal",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": hue,
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
        label.set_in_layout(False)


def legend_below(figure: Figure, axes: Axes, optimizers: Sequence[str]) -> None:
    """A legend below the axes, for lines that end in one place or nowhere in particular."""
    handles = [
        axes.plot([], [], line_style(name), color=colour(name), linewidth=2.2, marker=mark(name))[0]
        for name in optimizers
    ]
    names = [LABELS.get(name, name) for name in optimizers]
    place: dict[str, Any] = {
        "loc": "outside lower center",
        "ncols": min(4, len(names)),
        "frameon": False,
    }
    figure.legend(handles, names, fontsize=10.5, handlelength=1.7, columnspacing=1.1, **place)


def _apart(heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """The heights nearest to those wanted, in their order.

    They are at least `gap` apart and within [0, 1].
    """
    order = np.argsort(heights, kind="stable")
    placed = heights[order].astype(float)
    for _ in range(200):
        for low in range(len(placed) - 1):
            overlap = gap - (placed[low + 1] - placed[low])
            if overlap > 1e-9:
                placed[low] -= overlap / 2
                placed[low + 1] += overlap / 2
        placed += max(0.0, -placed[0])
        placed -= max(0.0, placed[-1] - 1)
    result = np.empty_like(placed)
    result[order] = placed
    return result


def passes_axis(axes: Axes, start: float, budget: float, logarithmic: bool) -> None:
    """Forward passes along x, logarithmic where a task is solved early."""
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(start, budget)
        readable_log(axes, "x", form=thousands)
    else:
        axes.set_xlim(0, budget)
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("Forward passes")


def symmetric_log(axes: Axes, values: Sequence[float]) -> None:
    """A scale that is linear about zero up to a typical size and logarithmic beyond."""
    sizes = np.abs(np.array(values, dtype=float))
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return
    lower = 10.0 ** math.floor(math.log10(np.median(sizes)))
    upper = 10.0 ** math.ceil(math.log10(sizes.max()))
    axes.set_yscale("symlog", linthresh=lower)
    axes.set_ylim(-upper, upper)
    ticks = [0.0] + [sign * power for sign in (-1, 1) for power in (lower, upper)]
    names = [
        f"${'-' if tick < 0 else ''}10^{{{math.log10(abs(tick)):.0f}}}$" if tick else "0"
        for tick in ticks
    ]
    axes.set_yticks(ticks, names)
    axes.minorticks_off()


def as_png(figure: Figure) -> bytes:
    """A PNG of 150 dots per inch.

    Without shading it has 255 colours, which take a fifth of the bytes.
    """
    raw = io.BytesIO()
    small = io.BytesIO()
    figure.savefig(raw, format="png", dpi=150, facecolor="white")
    image = Image.open(raw).convert("RGB")
    if not any(axes.images for axes in figure.axes):
        image = image.quantize(255, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True, dpi=(150, 150))
    return small.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG in one step."""
    write_whole(path, as_png(figure))


def save_smallest(figure: Figure, folder: Path, name: str) -> Path:
    """Write `name.svg`, or `name.png` where that is smaller; the path of the file.

    Bytes are compared as a page holds them: a PNG takes a third more there.
    """
    lines, dots = as_svg(figure), as_png(figure)
    vector = len(lines) <= len(dots) * 4 / 3
    path = folder / f"{name}.{'svg' if vector else 'png'}"
    write_whole(path, lines if vector else dots)
    return path
