"""Numbers in README and docs are those of the run of record in `results/record`: every table, wins
and losses alike.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from dopaminergic.lab import statistics
from dopaminergic.lab.claims import judge
from dopaminergic.lab.comparisons import passes_to
from dopaminergic.lab.records import Record, read_records
from dopaminergic.lab.results import Cells, Method, by_task, final_error, solved_at

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
THEORY = (ROOT / "docs/theory.md").read_text()
VERDICTS = (ROOT / "docs/reproduce.md").read_text()
METHODS: dict[str, Method] = {
    "VectorDopamine": ("vector", "default"),
    "Adam": ("adam", "tuned"),
    "Dopamine": ("dopamine", "default"),
    "Dopamine2": ("dopamine2", "default"),
    "WP": ("wp", "tuned"),
    "SPSA": ("spsa", "tuned"),
    "ES": ("es", "tuned"),
    "SGD": ("sgd", "tuned"),
}
# The rows of the tables by the beginning of their first cell: the task's title in the record, and
# what is measured.
README_ROWS = {
    "Lorenz, NRMSE": "Lorenz (hidden 16)",
    "Lorenz, 32 units": "Lorenz (hidden 32)",
    "Rössler": "Rössler",
    "Mackey-Glass": "Mackey–Glass",  # noqa: RUF001
    "sunspots": "Sunspots",
    "cluster XOR": "Cluster XOR",
    "digits, cross-entropy": "Digits (budget {passes})",
    "convolutional digits": "Digits conv",
    "Markov chain": "Markov transformer",
}
FREE = ("test_nrmse", "vpt")
THEORY_ROWS = {
    "Lorenz, test NRMSE": ("Lorenz (hidden 16)", ["final"]),
    "Rössler": ("Rössler", ["final"]),
    "Mackey-Glass": ("Mackey–Glass", ["final"]),  # noqa: RUF001
    "Lorenz, 32 units": ("Lorenz (hidden 32)", ["final"]),
    "sunspots 1921–55": ("Sunspots", ["final"]),  # noqa: RUF001
    "sunspots 1956–79": ("Sunspots", ["error_1956_1979"]),  # noqa: RUF001
    "sunspots 1980–2008": ("Sunspots", ["error_1980_2008"]),  # noqa: RUF001
    "cluster XOR": ("Cluster XOR", ["final"]),
    "digits, test": ("Digits (budget {passes})", ["final", "accuracy"]),
    "digits by": ("Digits conv", ["final", "accuracy"]),
    "digits": ("Digits (budget {passes})", ["final", "accuracy"]),
    "Markov chain": ("Markov transformer", ["final"]),
    "XOR 2-8-1, passes": ("XOR 2-8-1 (loss mse)", ["passes"]),
    "XOR 2-8-1 from": ("XOR 2-8-1 (loss bce)", ["passes"]),
    "XOR 2-2-1, solved": ("XOR 2-2-1 (loss mse)", ["solved"]),
    "XOR 2-2-1 from": ("XOR 2-2-1 (loss bce)", ["solved"]),
    "continuous XOR": ("Continuous XOR", ["passes"]),
    "temporal XOR": ("Temporal XOR", ["passes"]),
    "free run, Lorenz: one-step": ("Lorenz free run (forcing 0.3, budget 12000)", FREE),
    "free run, Rössler, the same": ("Rössler free run (forcing 1.0)", FREE),
    "free run, Mackey-Glass, the same": ("Mackey–Glass free run (forcing 1.0)", FREE),  # noqa: RUF001
    "free run, Rössler": ("Rössler free run (forcing 0.3)", FREE),
    "free run, Mackey-Glass": ("Mackey–Glass free run (forcing 0.3)", FREE),  # noqa: RUF001
    "free run, Lorenz, trained": ("Lorenz free run (forcing 1.0, budget 12000)", FREE),
    "the same": ("Lorenz free run (forcing 1.0, budget 200000)", FREE),
}


@cache
def record() -> list[Record]:
    return read_records(ROOT / "results/record/records.jsonl").records


@cache
def tasks() -> dict[str, Cells]:
    return by_task(record())


def measured(measure: str, runs: list[Record]) -> float:
    """The median of a measure over the runs, or the share of them that met the threshold."""
    if measure == "solved":
        return sum(math.isfinite(solved_at(run)) for run in runs) / len(runs)
    score: dict[str, Callable[[Record], float]] = {"final": final_error, "passes": solved_at}
    read = score.get(measure, lambda run: run["metrics"][measure])
    return float(statistics.median([read(run) for run in runs]))


def agrees(shown: str, value: float) -> bool:
    """Whether a number is another one, rounded to the digits that are shown."""
    digits = len(shown.partition(".")[2])
    return abs(float(shown.replace(",", "")) - value) <= 0.5 * 10.0**-digits * (1 + 1e-6)


def table(text: str, heading: str) -> tuple[list[str], list[list[str]]]:
    """The columns and the rows of the first table below a heading."""
    lines = ("\n" + text.split(f"\n{heading}\n")[1]).split("\n\n|")[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return rows[0], rows[2:]


def named(label: str, rows: dict[str, object]) -> str:
    """The longest of the known beginnings of a row's name."""
    return max((each for each in rows if label.startswith(each)), key=len)


def test_numbers_agree_to_the_digits_that_are_shown() -> None:
    assert agrees(".0009", 0.000862)
    assert agrees("1,250", 1250.0)
    assert not agrees(".0009", 0.00081)
    assert not agrees("1.82", 1.8301)


def test_the_table_of_the_readme_is_the_record() -> None:
    columns, rows = table(README, "## Measured")
    assert columns[1:] == ["passes", "seeds", "VectorDopamine", "Adam", "best other"]
    for label, passes, seeds, *cells in rows:
        title = README_ROWS[named(label, {**README_ROWS})].format(passes=passes.replace(",", ""))
        found = {
            name: tasks()[title][key] for name, key in METHODS.items() if key in tasks()[title]
        }
        values = {name: measured("final", runs) for name, runs in found.items()}
        for runs in found.values():
            assert len(runs) == int(seeds), label
            assert {run["budget"] for run in runs} == {int(passes.replace(",", ""))}, label
        best = min(values.keys() - {"VectorDopamine", "Adam"}, key=lambda name: values[name])
        shown = [cell.strip("*") for cell in cells]
        assert shown[2].split()[0] == best, label
        names = ("VectorDopamine", "Adam", best)
        for name, cell in zip(names, (shown[0], shown[1], shown[2].split()[1]), strict=True):
            assert agrees(cell, values[name]), (label, name, cell, values[name])
        bold = [name for name, cell in zip(names, cells, strict=True) if cell.startswith("**")]
        assert bold == [min(values, key=lambda name: values[name])], label


def test_the_table_of_the_theory_is_the_record_and_leaves_no_task_out() -> None:
    columns, rows = table(THEORY, "## Measured")
    assert columns == ["task", "passes", "seeds", "VectorDopamine", "Adam"]
    told = set()
    for label, passes, seeds, *cells in rows:
        title, measures = THEORY_ROWS[named(label, {**THEORY_ROWS})]
        title = title.format(passes=passes.replace(",", ""))
        told.add(title)
        for name, cell in zip(("VectorDopamine", "Adam"), cells, strict=True):
            assert bool(cell) == (METHODS[name] in tasks()[title]), (label, name)
            runs = tasks()[title].get(METHODS[name], [])
            numbers = re.findall(r"[\d.,]+", re.sub(r"\(.*?\)", "", cell))
            assert not cell or len(numbers) == len(measures), (label, cell)
            for measure, number in zip(measures, numbers, strict=False):
                assert agrees(number, measured(measure, runs)), (
                    label,
                    name,
                    number,
                    measured(measure, runs),
                )
            assert not cell or len(runs) == int(seeds), (label, name)
            assert not passes or {run["budget"] for run in runs} <= {
                int(passes.replace(",", ""))
            }, label
    assert told == set(tasks())


@pytest.mark.parametrize("text", [README, THEORY], ids=["README", "theory"])
def test_errors_of_the_linear_autoregression_stand_beside_the_sunspots(text: str) -> None:
    runs = tasks()["Sunspots"]["vector", "default"]
    found = re.findall(
        r"^\| sunspots,? (\d+).*?linear autoregression(?: has|:) (\.\d+)", text, re.MULTILINE
    )
    suffix = {"1921": "", "1956": "_1956_1979", "1980": "_1980_2008"}
    assert found
    for year, error in found:
        assert agrees(error, measured("linear_ar" + suffix[year], runs))


def test_what_is_said_of_the_sunspots_is_so() -> None:
    cells = {name: tasks()["Sunspots"][method] for name, method in METHODS.items()}
    errors = {name: measured("final", runs) for name, runs in cells.items()}
    assert max(errors, key=lambda name: errors[name]) == "VectorDopamine"
    assert len(errors) == 8
    paragraph = " ".join(
        THEORY.split("Sunspots are the only measured series")[1].split("\n\n")[0].split()
    )
    for name, shown in re.findall(
        r"`?(SPSA|WP|Dopamine2|Dopamine)`?(?: ends)? at (\.\d+)", paragraph
    ):
        assert agrees(shown, errors[name]), name
    passes, shown = re.findall(r"After (\d+) passes it was at (\.\d+)", paragraph)[0]
    curves = [dict(zip(*run["curve"].values(), strict=True)) for run in cells["VectorDopamine"]]
    assert agrees(shown, float(statistics.median([curve[int(passes)] for curve in curves])))
    assert measured("linear_ar", cells["VectorDopamine"]) < errors["VectorDopamine"]
    cluster = tasks()["Cluster XOR"]
    for name in ("VectorDopamine", "Dopamine", "Dopamine2"):
        assert measured("train_error_rate", cluster[METHODS[name]]) == 0


def test_what_is_said_of_the_passes_to_the_best_scalar_rule_is_so() -> None:
    rows = re.findall(
        r"^\| (.+?) \| tuned `?(\w+)`? \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|$",
        THEORY,
        re.MULTILINE,
    )
    titles = {
        "convolutions on digits": "Digits conv",
        "Markov chain, transformer": "Markov transformer",
    }
    assert [row[0] for row in rows] == list(titles)
    for label, name, budget, shown, factor in rows:
        runs = tasks()[titles[label]]
        method = (METHODS[name][0], "tuned")
        goal = measured("final", runs[method])
        needed = float(
            statistics.median([passes_to(run, goal) for run in runs["vector", "default"]])
        )
        passes = int(budget.replace(",", ""))
        assert {run["budget"] for run in runs[method]} == {passes}
        assert agrees(shown, needed), label
        assert agrees(factor, passes / needed), label


def test_verdicts_and_their_evidence_are_those_of_the_report() -> None:
    costs = json.loads((ROOT / "results/record/costs.json").read_text())
    verdicts = {each.claim: each for each in judge(record(), costs)}
    _, rows = table(VERDICTS, "## Verdicts")
    assert [row[0][:2] for row in rows] == ["V1", "C1", "C2", "C3", "C4", "C5", "C6"]
    assert {row[0][:2]: row[1] for row in rows} == {
        name: each.verdict for name, each in verdicts.items()
    }
    evidence = {name: each.evidence[0] for name, each in verdicts.items()}
    told = {row[0][:2]: row[2] for row in rows}
    for name in ("V1", "C1"):
        won, level, lost, total = re.findall(r"\d+", evidence[name])
        assert f"{won} won, {level} level, {lost} lost of {total} tasks" in told[name]
    won, level, lost, total = re.findall(r"\d+", evidence["V1"])
    told_first = " ".join(README.split())
    assert f"{won} won, {level} level, {lost} lost of {total} tasks" in told_first
    assert f"**{verdicts['V1'].verdict}**" in told_first
    assert f"of {total} tasks {won} are won, {level} level, {lost} lost" in " ".join(THEORY.split())
    patterns = {
        "C2": (r"(\d+ of \d+) XOR", r"(\d+ of \d+) forecasting"),
        "C3": (r"(\d+ of \d+) (?:forecasting )?tasks", r"Adam (4\.\d)"),
        "C4": (r"on (\d).*of 2", r"of (2)"),
        "C5": (r"(\d of \d) (?:forecasting )?tasks", r"without gradients on (\d)"),
        "C6": (r"in (\d+ of \d+) comparisons",),
    }
    for name, each in patterns.items():
        for pattern in each:
            ours, theirs = (re.findall(pattern, text) for text in (told[name], evidence[name]))
            assert ours, (name, pattern)
            assert ours[0] in theirs, (name, pattern, ours, theirs)
    unstable, of = ([int(number) for number in re.findall(pattern, evidence["C6"])] for pattern in
                    (r"(\d+) of \d+[,;]", r"Dopamine2? \d+ of (\d+)"))  # fmt: skip
    assert f"{sum(unstable)} of {sum(of)} runs unstable" in told["C6"]


def test_costs_in_the_readme_are_those_measured() -> None:
    rows = json.loads((ROOT / "results/record/costs.json").read_text())["rows"]
    per_pass = {
        row["optimizer"]: 2 * row["time_over_two_forwards"] / row["passes_per_step"] for row in rows
    }
    scalar = [per_pass[name] for name in ("dopamine", "dopamine2", "wp", "spsa", "es")]
    low, high = re.findall(r"costs ([\d.]+) to ([\d.]+) of two", " ".join(README.split()))[0]
    assert agrees(low, min(scalar))
    assert agrees(high, max(scalar))
    [batched] = re.findall(r"as a batch, at ([\d.]+) of a pass each", README)
    assert agrees(batched, per_pass["vector"])
    ours = [
        row["peak_memory_over_inference"] for row in rows if row["optimizer"] not in ("sgd", "adam")
    ]
    assert "within 0.5 % of" in README
    assert max(ours) <= 1.005
