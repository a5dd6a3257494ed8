"""The drawing of forecast against truth: the end of the test part, then the rows after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dopaminergic.lab.drawing import STYLE, TRUTH, WIDE, new_figure

if TYPE_CHECKING:
    from dopaminergic.lab.forecasts import Ahead, Tested

MOST_PANELS = 6
TICKS = 6

Values = NDArray[np.float64]


def against_truth(
    found: Tested, next_rows: Ahead | None, title: str, hue: str, most: int
) -> Figure:
    """Truth and one-step forecast of the last test rows, and the forecast of the rows after them.

    Each column has a panel of its own, up to six.

    Args:
        found: the test part.
        next_rows: the rows after it; None where there is no forecast of them.
        title: of the figure.
        hue: colour of the forecast.
        most: rows of the test part that are drawn.
    """
    count = min(len(found.names), MOST_PANELS)
    with matplotlib.rc_context(STYLE):
        figure, panels = new_figure(WIDE, 0.9 + 2.4 * count, count, 1, sharex=True)
        for column, axes in enumerate(np.asarray(panels).ravel()):
            _draw_test(axes, found, column, hue, most)
            if next_rows is not None:
                _draw_ahead(axes, found, next_rows, column, hue)
            axes.set_ylabel(_plain(found.names[column]))
        first = np.asarray(panels).ravel()[0]
        first.set_title(_plain(title))
        handles, names = first.get_legend_handles_labels()
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 4, "frameon": False}
        figure.legend(handles, names, fontsize=10.5, handlelength=1.6, **place)
        _label_rows(np.asarray(panels).ravel()[-1], found, next_rows, most)
        return figure


def _draw_test(axes: Axes, found: Tested, column: int, hue: str, most: int) -> None:
    part = slice(-most, None)
    rows = np.arange(len(found.truth))[part]
    low, high = found.low[part, column], found.high[part, column]
    if np.isfinite(low).any():
        axes.fill_between(
            rows, low, high, color=hue, alpha=0.15, linewidth=0, label="90 % of errors"
        )
    axes.plot(rows, found.truth[part, column], color=TRUTH, linewidth=1.6, label="truth")
    style: dict[str, Any] = {"color": hue, "linewidth": 1.4, "label": "forecast one row before"}
    axes.plot(rows, found.forecast[part, column], "--", **style)
    # A forecast that runs off shall not flatten the truth.
    truth = found.truth[part, column]
    room = 0.6 * (np.ptp(truth) or 1.0)
    axes.set_ylim(truth.min() - room, truth.max() + room)


def _draw_ahead(axes: Axes, found: Tested, next_rows: Ahead, column: int, hue: str) -> None:
    last = len(found.truth) - 1
    rows = last + np.arange(1, len(next_rows.labels) + 1)
    values, low, high = (part[:, column] for part in next_rows.forecast)
    axes.axvline(last + 0.5, color="#999999", linewidth=0.8)
    # A bar for each row, since one row alone has no area.
    spread = np.abs(np.stack((values - low, high - values)))
    axes.errorbar(
        rows,
        values,
        np.nan_to_num(spread),
        color=hue,
        fmt="o-",
        markersize=4,
        linewidth=1.2,
        elinewidth=1.0,
        capsize=2,
        label="forecast of the rows to come",
    )


def _label_rows(axes: Axes, found: Tested, next_rows: Ahead | None, most: int) -> None:
    labels = [*found.labels, *(next_rows.labels if next_rows is not None else [])]
    start = max(0, len(found.labels) - most)
    ticks = np.unique(np.linspace(start, len(labels) - 1, TICKS).round().astype(int))
    axes.set_xticks(ticks, [_plain(labels[tick])[:19] for tick in ticks])
    if all(label.isdigit() for label in labels[:3]):
        axes.set_xlabel("row")


def _plain(text: str) -> str:
    """Text in which no dollar begins a formula."""
    return text.replace("$", r"\$")
