from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from test_report import VECTOR, everything, pictures, results, run

from dopaminergic.lab import alt_texts, curves, plots
from dopaminergic.lab.drawing import COLOURS, MARKS, SMALL, _apart, new_figure, readable_log
from dopaminergic.lab.figures import _pictures, plan_all
from dopaminergic.lab.pictures import departure_time
from dopaminergic.lab.results import LABELS, by_task


def test_pictures_of_other_settings_are_figures_of_their_own() -> None:
    """And of a run that was made again, the last one is shown."""
    free = pictures()[0] | {"budget": 100, "task_settings": {"hidden": 4}}
    again = free | {"forecast": 0.9 * free["forecast"]}
    other = free | {"task_settings": {"hidden": 4, "forcing": 0.3}}
    found = _pictures([other, free, again], "free_run")
    assert list(found) == ["Lorenz free run (forcing 0.3)", "Lorenz free run"]
    assert [[id(p) for p in chosen] for chosen in found.values()] == [[id(other)], [id(again)]]


def test_alternative_texts_of_forecasts_and_of_decisions_count() -> None:
    time = np.linspace(0, 12, 60)[:, None]
    free = {"optimizer": "vector", "sample_time": 0.5, "lyapunov_time": 2.0,
            "truth": np.cos(time), "forecast": np.cos(time)}  # fmt: skip
    early = free | {"optimizer": "adam", "forecast": np.cos(time) + (time > 6)}
    assert alt_texts.free_runs([early, free]) == (
        "The forecast of VectorDopamine stays with the truth to the end, the longest; that of Adam "
        "for 7.5 Lyapunov times, the shortest."
    )
    axis = np.linspace(-1, 1, 10)
    right = {"optimizer": "vector", "probability": np.outer(axis, axis) < 0}
    wrong = {"optimizer": "adam", "probability": np.ones((10, 10))}
    assert alt_texts.boundaries([wrong, right]) == (
        "VectorDopamine classes 100% of the plane as the axes divide it, the most; Adam 50%, the "
        "least."
    )


def test_every_optimizer_has_a_colour_and_a_mark_of_its_own() -> None:
    assert set(COLOURS) == set(MARKS) == set(LABELS)
    assert len(set(COLOURS.values())) == len(set(MARKS.values())) == len(LABELS)


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
             for part in to_rgb(colour)]  # fmt: skip
    return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("name", COLOURS)
def test_names_in_colour_can_be_read_on_white(name: str) -> None:
    assert 1.05 / (luminance(COLOURS[name]) + 0.05) >= 4.5


def test_lines_and_legends_have_marks_beside_colours() -> None:
    cells = by_task(everything())["XOR 2-2-1"]
    figure = curves.solved_shares(cells)
    named = {line.get_color(): line.get_marker() for line in figure.axes[0].lines}
    legend = {line.get_color(): line.get_marker() for line in figure.legends[0].get_lines()}
    assert named == legend == {COLOURS[name]: MARKS[name] for name in ("dopamine", "wp", "adam")}


def test_one_bad_run_does_not_flatten_the_others() -> None:
    bad = run("lorenz", ("wp", "tuned"), 0, 1e6)
    bad["curve"] = {"passes": [0, 100, 300], "error": [1.0, 1e22, 1e6]}
    cells = by_task([*results(), bad, *(bad | {"seed": seed} for seed in range(1, 9))])["Lorenz"]
    assert curves.learning_curves(cells).axes[0].get_ylim()[1] == 2.0
    figure = plots.final_errors(cells)
    assert figure.axes[0].get_xlim()[1] == 2.0
    assert "9 of 9 beyond" in [text.get_text() for text in figure.axes[0].texts]
    rates = [run("lorenz", ("wp", "tuned"), seed, error, settings={"lr": rate}) for seed in range(3)
             for rate, error in ((0.1, 0.5), (0.2, 0.4), (1.0, 1e13))]  # fmt: skip
    axes = curves.sensitivity(by_task(rates)["Lorenz"], 2.0).axes[0]
    assert axes.get_ylim()[1] < 4
    assert [np.array(line.get_xdata()).tolist() for line in axes.lines[:2]] == [[0.1, 0.2], [1.0]]


def test_one_run_that_is_nearly_zero_does_not_flatten_the_others() -> None:
    errors = (1e-38, 0.4, 0.5)
    odd = [run("lorenz", ("es", "tuned"), seed, error) for seed, error in enumerate(errors)]
    cells = by_task([*results(), *odd])["Lorenz"]
    axes = plots.final_errors(cells).axes[0]
    assert axes.get_xlim()[0] > 1e-5
    assert "less" in [label.get_text() for label in axes.get_xticklabels()]
    captions = [plan.caption for plan in plan_all(odd, [], [])]
    assert captions[1].endswith(" Less: an error below a thousandth of the lowest median.")


def test_a_single_run_has_no_figure_of_final_errors() -> None:
    plans = plan_all([run("lorenz", VECTOR, 0, 0.1)], [], [])
    assert [plan.name for plan in plans] == ["curves-lorenz"]


def test_legends_stay_on_the_figure() -> None:
    times = [run("xor-2-2-1", (name, "tuned"), 0, 0.0, solved_at=200) for name in LABELS]
    figure = curves.solved_shares(by_task(times)["XOR 2-2-1"])
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize("low", [2e-5, 3e-4, 7e-3, 0.2, 40.0])
@pytest.mark.parametrize("span", [1.05, 1.3, 2.0, 8.0, 90.0, 1e3, 1e5, 1e12])
def test_names_of_ticks_do_not_overlap(which: str, low: float, span: float) -> None:
    figure, axes = new_figure(*SMALL)
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, low * span)
    readable_log(axes, which)
    figure.draw_without_rendering()
    labels = getattr(axes, f"get_{which}ticklabels")()
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    assert len(boxes) >= 2
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_lines_of_a_learning_curve_are_the_quartiles() -> None:
    cells = by_task(
        [run("lorenz", ("wp", "tuned"), s, e) for s, e in enumerate((0.1, 0.2, 0.3, 0.4, 0.5))]
    )["Lorenz"]
    axes = curves.learning_curves(cells).axes[0]
    assert list(axes.lines[0].get_ydata()) == [1.0, 0.5, 0.3]  # type: ignore[arg-type]
    heights = np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1].tolist()
    assert {0.2, 0.4} <= set(heights)
    assert not {0.1, 0.5 + 1e-9} & set(heights)


def test_names_beside_lines_stay_on_the_figure() -> None:
    figure = curves.learning_curves({VECTOR: [run("lorenz", VECTOR, 0, 0.05)]})
    figure.draw_without_rendering()
    [label] = [text for text in figure.axes[0].texts if text.get_text() == "VectorDopamine"]
    assert label.get_window_extent().x1 <= figure.bbox.x1


def test_many_decades_have_few_ticks_and_a_small_part_of_one_has_some() -> None:
    for low, high, ticks in (
        (1e-22, 1.0, range(6, 14)),
        (0.5, 0.56, range(3, 9)),
        (9.0, 11.5, range(3, 9)),
    ):
        _, axes = new_figure(*SMALL)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        readable_log(axes, "y")
        assert len(axes.get_yticks()) in ticks


def test_time_is_drawn_for_a_pass() -> None:
    row = {
        "task": "lorenz",
        "passes_per_step": 250,
        "time_over_two_forwards": 50.0,
        "peak_memory_over_inference": 7.0,
    }
    figure = plots.costs_of_steps([{**row, "optimizer": "vector"}])
    bars = [
        patch for panel in figure.axes for patch in panel.patches if isinstance(patch, Rectangle)
    ]
    assert [bar.get_width() for bar in bars] == [250, pytest.approx(0.4), 7.0]
    assert bars[0].get_facecolor()[:3] == pytest.approx(to_rgb(COLOURS["vector"]))


def test_labels_are_pushed_apart_in_their_order() -> None:
    placed = _apart(np.array([0.5, 0.52, 0.1, 0.51]), 0.1)
    assert list(np.argsort(placed)) == [2, 0, 3, 1]
    assert np.diff(np.sort(placed)).min() >= 0.1 - 1e-6
    assert placed[2] == pytest.approx(0.1)
    assert np.mean(placed[[0, 1, 3]]) == pytest.approx(0.51)
    crowded = _apart(np.full(5, 1.0), 0.25)
    assert crowded == pytest.approx([0, 0.25, 0.5, 0.75, 1.0], abs=1e-3)


def test_the_time_a_forecast_leaves_is_in_lyapunov_times() -> None:
    truth = np.ones((10, 1))
    picture = {"truth": truth, "forecast": truth.copy(), "sample_time": 0.5, "lyapunov_time": 2.0}
    assert math.isinf(departure_time(picture))
    picture["forecast"][6:] = 1.41
    picture["forecast"][4] = 0.61
    assert departure_time(picture) == 6 * 0.5 / 2.0
    picture["forecast"][3] = np.nan
    assert departure_time(picture) == 3 * 0.5 / 2.0
    assert departure_time(picture | {"forecast": truth[:2].tolist()}) == 2 * 0.5 / 2.0


def test_the_sensitivity_takes_the_best_other_settings() -> None:
    grid = ((0.1, 1, 0.5), (0.1, 2, 0.3), (1.0, 1, 0.7), (1.0, 2, None))
    runs = [
        run("lorenz", ("wp", "tuned"), seed, error, settings={"lr": rate, "sigma": sigma})
        for seed in range(3)
        for rate, sigma, error in grid
    ]
    assert curves.errors_by_rate(runs) == [(0.1, 0.3, 0.3, 0.3), (1.0, 0.7, 0.7, 0.7)]


def test_the_profile_leaves_out_tasks_that_few_have_run() -> None:
    both = [("vector", "default"), ("adam", "tuned")]
    records = [
        run(task, m, s, 0.1) for task in ("lorenz", "rossler") for m in both for s in range(3)
    ]
    alone = [run("mackey-glass", both[0], s, 0.1) for s in range(3)]
    plan = next(p for p in plan_all(records + alone, [], []) if p.name == "profile")
    assert "Mackey" not in plan.caption
    assert [text.get_text() for text in plan.draw().legends[0].get_texts()] == [
        "VectorDopamine",
        "Adam",
    ]
