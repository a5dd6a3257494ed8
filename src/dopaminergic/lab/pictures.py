"""Figures of the skills of trained networks: forecasts that run free, decision boundaries.

Each is a function from pictures, the data that a run leaves of its end, to a matplotlib figure, as
in `plots`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dopaminergic.lab.drawing import STYLE, TRUTH, WIDE, colour, new_figure
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import LABELS, compact

# Relative error at which a forecast counts as having left the truth (chaos forecasting's usual
# mark).
DEPARTURE = 0.4


def departure_time(picture: Record) -> float:
    """Lyapunov times until the error first exceeds 0.4 of the truth's root mean square.

    It is infinity if it never does.
    """
    truth = _states(picture["truth"])
    forecast = _forecast(picture)
    scale = math.sqrt(float(np.mean(np.sum(truth**2, axis=1))))
    distance = np.sqrt(np.sum((forecast - truth) ** 2, axis=1)) / scale
    left = np.flatnonzero(~(distance <= DEPARTURE))  # NaN, a forecast that blew up, has left too
    return (
        float(left[0] * picture["sample_time"] / picture["lyapunov_time"])
        if left.size
        else math.inf
    )


def _states(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    return np.array(rows, dtype=float).reshape(len(rows), -1)


def _forecast(picture: Record) -> NDArray[np.float64]:
    """The forecast, as long as the truth.

    It is NaN from where it blew up (ten times the truth's reach) or was cut.
    """
    truth = _states(picture["truth"])
    forecast = np.full(truth.shape, np.nan)
    given = np.array(picture["forecast"], dtype=float).reshape(-1, truth.shape[1])[: len(truth)]
    forecast[: len(given)] = given
    lost = ~(np.abs(forecast) <= 10 * np.abs(truth).max()).all(axis=1)
    forecast[np.logical_or.accumulate(lost)] = np.nan
    return forecast


def _projection(
    picture: Record, key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], str, str]:
    states = _forecast(picture) if key == "forecast" else _states(picture["truth"])
    if states.shape[1] >= 3:
        return states[:, 0], states[:, 2], "x", "z"
    if states.shape[1] == 2:
        return states[:, 0], states[:, 1], "x", "y"
    # A tenth of a Lyapunov time unfolds a scalar series (18 of Mackey and Glass's units, near their
    # delay of 17).
    delay = max(1, round(0.1 * picture["lyapunov_time"] / picture["sample_time"]))
    unit = f"{delay * picture['sample_time']:.3g}"
    return states[delay:, 0], states[:-delay, 0], "x(t)", rf"x(t $-$ {unit})"


def attractors(pictures: Sequence[Record]) -> Figure:
    """The true attractor and each forecast of it, running free from the same start, side by side.

    Args:
        pictures: "free_run" pictures of one task; three-dimensional states are seen along y, scalar
            series in delay coordinates.
    """
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        columns = 3 if len(pictures) > 1 else 2
        rows = math.ceil((1 + len(pictures)) / columns)
        figure, panels = new_figure(
            WIDE, 0.3 + 2.65 * rows, rows, columns, sharex=True, sharey=True
        )
        panels = np.asarray(panels).ravel()
        x, y, x_name, y_name = _projection(pictures[0], "truth")
        dotted = (
            pictures[0]["sample_time"] / pictures[0]["lyapunov_time"] > 0.2
        )  # a map: successive states are far apart
        draw: dict[str, Any] = (
            {"linestyle": "", "marker": ".", "markersize": 3} if dotted else {"linewidth": 0.9}
        )
        panels[0].plot(x, y, color=TRUTH, **draw)
        panels[0].set_title("Truth", color=TRUTH)
        for panel, picture in zip(panels[1:], pictures, strict=False):
            panel.plot(
                *_projection(picture, "forecast")[:2], color=colour(picture["optimizer"]), **draw
            )
            panel.set_title(_picture_name(picture), color=colour(picture["optimizer"]))
        margin_x = 0.12 * np.ptp(x)
        margin_y = 0.12 * np.ptp(y)
        panels[0].set_xlim(x.min() - margin_x, x.max() + margin_x)
        panels[0].set_ylim(y.min() - margin_y, y.max() + margin_y)
        for index, panel in enumerate(panels):
            panel.set_visible(index <= len(pictures))
            panel.xaxis.set_major_locator(MaxNLocator(4))
            panel.yaxis.set_major_locator(MaxNLocator(4))
            panel.tick_params(
                labelbottom=index // columns == rows - 1, labelleft=index % columns == 0
            )
            panel.set_xlabel(x_name if index // columns == rows - 1 else "")
            panel.set_ylabel(y_name if index % columns == 0 else "")
        return figure


def _picture_name(picture: Record) -> str:
    optimizer = str(picture["optimizer"])
    return LABELS.get(optimizer, optimizer)


def free_runs(pictures: Sequence[Record]) -> Figure:
    """First coordinate of the truth and of each forecast against time.

    A line marks where the forecast leaves.

    Args:
        pictures: "free_run" pictures of one task.
    """
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = new_figure(
            WIDE, 0.75 + 1.5 * len(pictures), len(pictures), 1, sharex=True, sharey=True
        )
        panels = np.asarray(panels).ravel()
        longest = 0.0
        for panel, picture in zip(panels, pictures, strict=True):
            truth = _states(picture["truth"])[:, 0]
            forecast = _forecast(picture)[:, 0]
            time = np.arange(len(truth)) * picture["sample_time"] / picture["lyapunov_time"]
            longest = max(longest, min(time[-1], 10.0))
            panel.plot(time, truth, color="#999999", linewidth=1.6)
            panel.plot(time, forecast, color=colour(picture["optimizer"]), linewidth=1.5)
            left = departure_time(picture)
            words = (
                f"leaves after {compact(left, 2)} Lyapunov times"
                if math.isfinite(left)
                else "never leaves"
            )
            panel.set_title(_picture_name(picture), color=colour(picture["optimizer"]))
            panel.set_title(words, loc="right", fontsize=11.5, fontweight="normal", color=TRUTH)
            if math.isfinite(left):
                panel.axvline(left, color=TRUTH, linewidth=1.6, linestyle=(0, (4, 2)))
            panel.set_ylabel("x")
        spread = np.ptp(_states(pictures[0]["truth"])[:, 0])
        middle = _states(pictures[0]["truth"])[:, 0]
        panels[0].set_ylim(middle.min() - 0.15 * spread, middle.max() + 0.15 * spread)
        panels[0].set_xlim(0, longest)
        panels[-1].set_xlabel("Time (Lyapunov times)")
        return figure


def decision_boundaries(pictures: Sequence[Record]) -> Figure:
    """Predicted probability of class 1 over the plane, for each optimizer.

    A line shows where it is one half.

    Args:
        pictures: "decision_boundary" pictures of one task; rows of `probability` go with y, columns
            with x, upwards.
    """
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        columns = 2 if len(pictures) < 3 else 3 if len(pictures) < 7 else 4
        rows = math.ceil(len(pictures) / columns)
        figure, panels = new_figure(
            WIDE, 0.35 + 0.25 * rows + 7.2 / columns * rows, rows, columns, sharex=True, sharey=True
        )
        panels = np.asarray(panels).ravel()
        image = None
        for index, panel in enumerate(panels):
            panel.set_visible(index < len(pictures))
            if index >= len(pictures):
                continue
            picture = pictures[index]
            low = picture["extent"][0]
            high = picture["extent"][-1]
            probability = np.array(picture["probability"], dtype=float)
            grid = np.linspace(low, high, len(probability))
            look: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -0.2, "vmax": 1.2}
            # Steps of a tenth: smooth shades take five times the bytes.
            shades = np.linspace(0, 1, 11)
            image = panel.contourf(grid, grid, probability.clip(0, 1), levels=shades, **look)
            panel.set_aspect("equal")
            panel.contour(grid, grid, probability, levels=[0.5], colors="#1A1A1A", linewidths=1.8)
            panel.axhline(0, color="#1A1A1A", linewidth=0.8, linestyle=":")
            panel.axvline(0, color="#1A1A1A", linewidth=0.8, linestyle=":")
            panel.set_title(
                _picture_name(picture),
                color=colour(picture["optimizer"]),
                fontsize=13 if columns < 4 else 11,
            )
            panel.set_xlabel("x" if index // columns == rows - 1 else "")
            panel.tick_params(
                labelbottom=index // columns == rows - 1, labelleft=index % columns == 0
            )
            panel.set_ylabel("y" if index % columns == 0 else "")
        if image is not None:
            bar = figure.colorbar(
                image, ax=list(panels), shrink=0.85, aspect=28, pad=0.02, ticks=[0, 0.5, 1]
            )
            bar.set_label("Predicted probability of class 1")
        return figure
