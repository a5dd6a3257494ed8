"""Pictures of measured numbers: of the run of record, and of `benchmarks/results`."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from docs.gallery.drawing import COLOURS, GRID, INK, MUTED, new_figure, plain_log
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
NAMES = {
    "vector": "VectorDopamine",
    "adam": "Adam, tuned",
    "dopamine": "Dopamine",
    "dopamine2": "Dopamine2",
    "wp": "WP, tuned",
    "spsa": "SPSA, tuned",
    "es": "ES, tuned",
    "sgd": "SGD, tuned",
    "node": "NodeDopamine",
}
TUNED = ("adam", "wp", "spsa", "es", "sgd")


@cache
def lines(name: str) -> list[dict[str, Any]]:
    """The lines of a file of the record."""
    with gzip.open(ROOT / f"results/record/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def curves(task: str, budget: int, optimizer: str, **settings: Any) -> tuple[Any, Any]:
    """Passes, and the quartiles of the test error there (3, n), of the reported runs."""
    variant = "tuned" if optimizer in TUNED else "default"
    runs = [
        run["curve"]
        for run in lines("records")
        if (run["task"], run["optimizer"], run["variant"], run["role"], run["budget"])
        == (task, optimizer, variant, "report", budget)
        and all(run["task_settings"].get(key) == value for key, value in settings.items())
    ]
    first = max(run["passes"][1] for run in runs)
    grid = np.geomspace(first, max(run["passes"][-1] for run in runs), 40)
    found = [np.interp(grid, run["passes"], run["error"]) for run in runs]
    return grid, np.quantile(np.array(found), (0.25, 0.5, 0.75), axis=0)


def of_nodes(task: str) -> tuple[Any, Any]:
    """Passes, and the quartiles there, of NodeDopamine by `benchmarks/nodes.py`."""
    results = json.loads((ROOT / "benchmarks/results/nodes.json").read_text())["results"]
    quartiles = results[task]["node"]["quartiles"]
    passes = sorted(map(int, quartiles))
    return np.array(passes), np.array([quartiles[str(p)] for p in passes]).T


def one_task(
    axes: Any,
    task: str,
    budget: int,
    shown: dict[str, str],
    lifts: dict[str, int] | None = None,
    **settings: Any,
) -> None:
    """The curves of some optimizers, each with its name at its end, lifted by some points."""
    for optimizer, style in shown.items():
        passes, (low, middle, high) = (
            of_nodes(task) if optimizer == "node" else curves(task, budget, optimizer, **settings)
        )
        colour = COLOURS.get(optimizer, COLOURS["plain"])
        axes.fill_between(passes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(passes, middle, style, color=colour, linewidth=2.2)
        axes.annotate(
            NAMES[optimizer],
            (passes[-1], middle[-1]),
            (6, (lifts or {}).get(optimizer, 0)),
            textcoords="offset points",
            color=colour,
            va="center",
            fontweight="bold" if optimizer in ("node", "vector") else "normal",
        )
    axes.grid(True, axis="y")
    axes.set_xlabel("forward passes")


def lorenz() -> Figure:
    """Test errors on the Lorenz system."""
    figure, axes = new_figure(7.2, 4.2)
    shown = {"node": "o-", "vector": "-", "adam": "--", "dopamine": "-", "wp": "-."}
    one_task(axes, "lorenz", 20000, shown, {"node": -11}, hidden=16)
    plain_log(axes, "x", [30, 100, 300, 1000, 3000, 20000])
    plain_log(axes, "y", [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1])
    axes.set(xlim=(30, 72000), ylim=(0.0006, 1.6), ylabel="test error (lower is better)")
    axes.set_title("Forecasting the Lorenz system: 1 is no better than the mean")
    return figure


def sunspots() -> Figure:
    """Test errors on the only measured series of the record, where our rule loses."""
    figure, axes = new_figure(7.2, 3.9)
    shown = {"node": "o-", "vector": "-", "adam": "--", "dopamine2": "-", "spsa": "-."}
    one_task(axes, "sunspots", 10000, shown, {"adam": 9, "spsa": -9, "node": -11})
    axes.axhline(0.119, color=MUTED, linestyle=":", linewidth=1.6)
    axes.annotate(
        "linear autoregression", (32, 0.119), (0, 4), textcoords="offset points", color=MUTED
    )
    plain_log(axes, "x", [30, 100, 300, 1000, 3000, 10000])
    axes.set(xlim=(30, 34000), ylim=(0.06, 0.3), ylabel="test error, 1921 to 1955")
    axes.set_title("Sunspots, 221 noisy years: VectorDopamine fits the noise")
    return figure


def attractors() -> Figure:
    """True and forecast paths of three chaotic systems, run freely from one start."""
    figure, axes = new_figure(8.4, 7.2, 3, 3)
    for row, (task, name) in enumerate(
        {
            "lorenz-vpt": "Lorenz",
            "rossler-vpt": "Rössler",
            "mackey-glass-vpt": "Mackey-Glass",
        }.items()
    ):
        runs = {
            p["optimizer"]: p
            for p in lines("pictures")
            if p["task"] == task and p["task_settings"].get("forcing") == 0.3
        }
        columns = {
            "the system": (runs["vector"], "truth", "ink"),
            "VectorDopamine": (runs["vector"], "forecast", "vector"),
            "Adam, tuned": (runs["adam"], "forecast", "adam"),
        }
        for place, (title, (run, key, colour)) in zip(axes[row], columns.items(), strict=True):
            path = np.array(run[key])[:1200]
            flat = path[:, [0, -1]] if path.shape[1] > 1 else np.c_[path[8:, 0], path[:-8, 0]]
            place.plot(*flat.T, color=COLOURS.get(colour, INK), linewidth=0.6)
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if row == 0:
                place.set_title(title)
        axes[row, 0].set_ylabel(name)
    return figure


def planes() -> Figure:
    """What networks say of the plane after 20,000 passes of continuous XOR."""
    shown = ("vector", "dopamine", "dopamine2", "es", "spsa", "wp", "adam", "sgd")
    figure, axes = new_figure(8.4, 4.6, 2, 4)
    colours = LinearSegmentedColormap.from_list("plane", ["#f4a261", "#fdf6ec", "#457b9d"])
    runs = {p["optimizer"]: p for p in lines("pictures") if p["task"] == "continuous-xor"}
    for place, optimizer in zip(axes.flat, shown, strict=True):
        run = runs[optimizer]
        low, high = run["extent"]
        image = np.array(run["probability"])
        place.imshow(
            image, origin="lower", extent=(low, high, low, high), cmap=colours, vmin=0, vmax=1
        )
        place.axhline(0, color=GRID, linewidth=1, linestyle=":")
        place.axvline(0, color=GRID, linewidth=1, linestyle=":")
        place.set(xticks=[], yticks=[])
        place.set_title(NAMES[optimizer], fontsize=11)
    return figure


def costs() -> Figure:
    """Time and memory of a step, in units of inference."""
    rows = json.loads((ROOT / "results/record/costs.json").read_text())["rows"]
    figure, (left, right) = new_figure(8.2, 3.4, 1, 2)
    order = ("vector", "wp", "spsa", "dopamine", "dopamine2", "es", "sgd", "adam")
    found = {row["optimizer"]: row for row in rows}
    places = range(len(order), 0, -1)
    for axes, title in ((left, "time of a pass / inference"), (right, "peak memory / inference")):
        for place, name in zip(places, order, strict=True):
            row = found[name]
            time = 2 * row["time_over_two_forwards"] / row["passes_per_step"]
            value = time if axes is left else row["peak_memory_over_inference"]
            axes.barh(place, value, 0.62, color=COLOURS.get(name, COLOURS["plain"]))
            axes.annotate(
                f"{value:.2f}", (value, place), (4, 0), textcoords="offset points", va="center"
            )
        axes.axvline(1, color=MUTED, linewidth=1, linestyle=":")
        axes.set_yticks(
            places, [NAMES[name] for name in order] if axes is left else [""] * len(order)
        )
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.margins(x=0.16)
        axes.set_title(title)
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.set_xticks([])
    return figure


PICTURES = {
    "lorenz": lorenz,
    "sunspots": sunspots,
    "attractors": attractors,
    "planes": planes,
    "costs": costs,
}
