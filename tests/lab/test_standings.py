"""Results as a ranking: which method is best, what it cost, and how a terminal shows it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dopaminergic.lab import progress as progress_module
from dopaminergic.lab.cli import main
from dopaminergic.lab.progress import Progress
from dopaminergic.lab.ranking import lines_of, spark
from dopaminergic.lab.standings import as_json, short, standings


def run(optimizer: str, seed: int, error: float | None, **more: Any) -> dict[str, Any]:
    record = {
        "task": "sunspots", "task_settings": {}, "optimizer": optimizer, "variant": "default",
        "role": "report", "seed": seed, "settings": {"lr": 1.0}, "budget": 1000,
        "forward_passes": 990, "seconds": 12.0, "replicas": 4, "diverged": error is None,
        "curve": {"passes": [0, 500, 990], "error": [1.0, 0.5, error]},
        "metrics": {"error": error, "persistence": 0.4, "linear_ar": 0.12},
    }  # fmt: skip
    return {**record, **more}


RECORDS = [
    *(run("node", seed, 0.08 + 0.01 * seed) for seed in range(3)),
    *(run("adam", seed, 0.2, seconds=3.0, replicas=1) for seed in range(3)),
    *(run("wp", seed, None) for seed in range(3)),
]


def test_the_best_comes_first_with_its_cost_and_the_references() -> None:
    [found] = standings(RECORDS)
    assert [place.method for place in found.places] == ["NodeDopamine", "Adam", "WP"]
    assert [place.best for place in found.places] == [True, False, False]
    first, second, third = found.places
    assert first.error == (pytest.approx(0.09), pytest.approx(0.08), pytest.approx(0.1), 3)
    assert (first.passes, first.seconds) == (990, 3.0)
    assert second.seconds == 3.0
    assert math.isinf(third.error.value)
    assert found.references == (
        ("persistence", "Persistence", 0.4),
        ("linear_ar", "Linear autoregression", 0.12),
    )
    assert first.curve[0] == 1.0
    assert first.curve[-1] == pytest.approx(0.09)


def test_numbers_that_look_equal_are_equally_good_and_one_method_is_not_the_best() -> None:
    [tied] = standings([run("node", 0, 0.1), run("adam", 0, 0.1000001), run("wp", 0, 0.2)])
    assert [place.best for place in tied.places] == [True, True, False]
    [alone] = standings([run("node", 0, 0.1)])
    assert [place.best for place in alone.places] == [False]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    records = [*RECORDS, run("es", 0, 1.23456e-11), run("dopamine", 0, 0.3)]
    records += [run("dopamine", 0, 0.3, variant="tuned")]
    lines = lines_of(standings(records))
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in ("* ES", "NodeDopamine", "0.09", "diverges", "persistence", "0.12", "990"):
        assert words in text
    assert text.index("* ES") < text.index("NodeDopamine") < text.index("persistence")


def test_programs_get_the_numbers_that_people_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = standings(RECORDS)
    [task] = as_json(found)
    text = "\n".join(lines_of(found))
    for method in task["methods"]:
        for number in (method["error"]["value"], method["passes"], method["seconds"]):
            assert short(number) in text
    assert task["references"] == {"persistence": 0.4, "linear_ar": 0.12}
    assert [method["best"] for method in task["methods"]] == [True, False, False]


def test_a_curve_is_a_line_of_bars() -> None:
    assert spark([100.0, 10.0, 1.0], 1.0, 100.0) == "█▅▁"
    assert spark([math.inf, 0.0], 1.0, 100.0) == "█▁"
    assert spark([1.0, 1.0], 1.0, 1.0) == ""


def test_results_come_before_all_else_and_claims_only_where_they_were_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--task", "henon", "--optimizers", "adam", "--seeds", "2"]
    command += ["--tuning-seeds", "1", "--budget", "60", "--workers", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("Hénon: test NRMSE, lower is better; median of 2 seeds\n")
    assert "not measured" not in out
    assert "laim" not in out
    assert main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    [standing] = summary["standings"]
    assert short(standing["methods"][0]["error"]["value"]) in out
    assert main(["report", str(tmp_path)]) == 0
    assert "not measured" not in capsys.readouterr().out


def test_tasks_outside_the_paper_have_no_claims(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--task", "sunspots", "--optimizer", "adam", "--budget", "30"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path), "--json"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert json.loads(last)["claims"] == []


@pytest.mark.parametrize("width", [40, 80])
def test_bars_of_two_workers_fit_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    consoles: list[Console] = []

    def terminal(**settings: Any) -> Console:
        consoles.append(Console(**settings, force_terminal=True, width=width, height=24))
        return consoles[-1]

    monkeypatch.setattr(progress_module, "Console", terminal)
    with Progress() as progress:
        for done in (1, 50):
            running = ["markov-transformer dopamine2", "mackey-glass-vpt vector"]
            progress("a phase of a very long name indeed, longer than", done, 100, running)
    with consoles[0].capture() as drawn:
        consoles[0].print(progress.bar.make_tasks_table(progress.bar.tasks))
    [line] = drawn.get().splitlines()
    plain = "".join(part.split("m", 1)[-1] for part in line.split("\x1b["))
    assert len(plain) <= width
    assert "50%" in plain
    assert "left" in plain


def test_node_is_left_out_of_free_runs_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dopaminergic.lab import experiments

    planned: list[tuple[str, ...]] = []

    def stop(plan: list[experiments.Study], *_: object) -> None:
        planned.append(plan[0].optimizers)
        raise ValueError("planned")

    monkeypatch.setattr(experiments, "run_studies", stop)
    command = ["compare", "--task", "lorenz-vpt", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "note: node is left out here" in capsys.readouterr().err
    assert main([*command, "--optimizers", "node,adam"]) == 2
    assert "left out" not in capsys.readouterr().err
    assert "node" not in planned[0]
    assert planned[1] == ("node", "adam")
