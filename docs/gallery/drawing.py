"""The look of the pictures: one palette for light and dark, few lines, texts that stay texts."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Name: the colour on white, the colour on the dark page. Where texts have it, the contrast to its
# ground is at least 4.5. Lines of one picture differ in dashes or labels too.
PALETTE = {
    "ink": ("#1c1e26", "#e8e9f0"),
    "muted": ("#5a5f73", "#a9aec2"),
    "grid": ("#e3e5ee", "#3a3e4d"),
    "paper": ("#ffffff", "#1e2129"),
    "panel": ("#f1f2f8", "#2a2d3a"),
    "node": ("#0b6fa4", "#5cc0f5"),
    "vector": ("#7b2d8e", "#d08be6"),
    "dopamine": ("#b8400a", "#ff9a5c"),
    "dopamine2": ("#0f766e", "#4fd1c5"),
    "adam": ("#1a1a1a", "#f4f4f4"),
    "plain": ("#7a6400", "#d9c65a"),
}
INK, MUTED, GRID, PAPER, PANEL = (PALETTE[key][0] for key in list(PALETTE)[:5])
COLOURS = {name: PALETTE[name][0] for name in list(PALETTE)[5:]}
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "dopaminergic",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def new_figure(width: float = 7.2, height: float = 3.6, rows: int = 1, columns: int = 1) -> Any:
    """A figure in inches, and its axes or an array (rows, columns) of them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(rows, columns)


def empty(width: float, height: float) -> Any:
    """A figure whose axes are a sheet of paper: x to the right, y down, in inches / 100."""
    figure, axes = new_figure(width / 100, height / 100)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    return figure, axes


def plain_log(axes: Axes, which: str, ticks: list[float]) -> None:
    """A logarithmic axis with these ticks alone, as plain numbers."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    axis.set_ticks(ticks, [f"{tick:,.0f}" if tick >= 10 else f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def style_sheet() -> str:
    """The palette as variables of CSS, which follow the page's mode."""
    light, dark = (
        " ".join(f"--{name}: {pair[mode]};" for name, pair in PALETTE.items()) for mode in (0, 1)
    )
    return (
        f"<style>svg {{ {light} }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    )


LONG = re.compile(r"\d+\.\d{3,}")  # numbers in tags are places in hundredths of a pixel


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


def as_svg(figure: Figure) -> str:
    """The picture as text, the same at every run: no date, no fonts, variables for colours."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: LONG.sub(_rounded, tag[0]), text)
    for name, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{name})")
    text = re.sub(r"'DejaVu Sans',[^\";]*?sans-serif", "system-ui, sans-serif", text)
    head, _, rest = text.partition(">")
    return f"{head}>\n {style_sheet()}{rest}"


def write(figure: Figure, path: Path) -> None:
    """Keep a picture."""
    path.write_text(as_svg(figure), encoding="utf-8")
