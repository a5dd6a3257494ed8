from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dopaminergic.lab import curves, plots
from dopaminergic.lab.claims import judge
from dopaminergic.lab.drawing import COLOURS
from dopaminergic.lab.figures import Drawing, draw_all
from dopaminergic.lab.records import append_records, read_records
from dopaminergic.lab.report import write_report
from dopaminergic.lab.report_headline import headline
from dopaminergic.lab.report_words import environment_rows, missing
from dopaminergic.lab.results import by_task
from dopaminergic.lab.tables import tables

HOSTILE = "<script>alert('1')</script>"
METHODS = (("dopamine", "default"), ("dopamine", "tuned"), ("wp", "tuned"), ("adam", "tuned"))
VECTOR = ("vector", "default")


def run(
    task: str, method: tuple[str, str], seed: int, error: float | None, **others: Any
) -> dict[str, Any]:
    base = {"schema": 1, "task": task, "task_settings": {}, "optimizer": method[0],
            "variant": method[1], "role": "report",
            "settings": {"lr": 0.1, "sigma": 1e-3},
            "seed": seed, "budget": 300, "forward_passes": 300,
            "curve": {"passes": [100, 200, 300], "error": [1.0, 0.5, error]}, "traces": None,
            "solved_at": None,
            "metrics": {"nrmse": error, "vpt": 1 / error if error else None},
            "diverged": error is None,
            "seconds": 6.0, "replicas": 3, "versions": {"torch": "2.13.0"}, "commit": "abc123",
            "dtype": "float32",
            "created": "2026-11-23T22:00:00+00:00"}  # fmt: skip
    return base | others


def results(n: int = 3) -> list[dict[str, Any]]:
    """Lorenz with medians .3, .2, .4 and .1, and Roessler, where WP diverges."""
    medians = dict(zip(METHODS, (0.3, 0.2, 0.4, 0.1), strict=True))
    records = [
        run("lorenz", m, s, e + 0.01 * (s - n // 2)) for m, e in medians.items() for s in range(n)
    ]
    return records + [
        run("rossler", m, s, None if m[0] == "wp" else 0.25) for m in METHODS for s in range(n)
    ]


def everything() -> list[dict[str, Any]]:
    trace = {"passes": [0, 2, 4], "rpe": [1e-3, None, -2e-3], "learning_rate": [0.1, 0.2, 0.1]}
    xor = [
        run("xor-2-2-1", m, s, 0.0 if s else 0.25, solved_at=200 if s else None)
        for m in METHODS
        for s in range(3)
    ]
    tuning = [
        run("lorenz", m, s, 0.1 * rate if rate < 10 else None, role="tuning", settings={"lr": rate})
        for m in METHODS[1:] for s in (50, 51) for rate in (0.1, 1.0, 10.0)
    ]  # fmt: skip
    return results() + xor + tuning + [run("lorenz", METHODS[0], 9, 0.3, traces=trace)]


def pictures() -> list[dict[str, Any]]:
    time = np.linspace(0, 12, 60)
    state = np.stack([np.sin(time), np.cos(time), np.sin(2 * time)], axis=1)
    free = {
        "name": "free_run",
        "optimizer": "dopamine",
        "variant": "default",
        "seed": 100,
        "lyapunov_time": 2.0,
        "sample_time": 0.5,
    }
    grid = np.linspace(0, 1, 9)
    return [
        free | {"task": "lorenz-vpt", "truth": state, "forecast": 0.5 * state},
        free | {"task": "mackey-glass-vpt", "truth": state[:, :1],
                "forecast": np.full((60, 1), np.nan)},
        {"name": "decision_boundary", "task": "continuous-xor", "optimizer": "wp",
         "variant": "tuned", "seed": 1,
         "extent": [-1.5, 1.5], "probability": np.outer(grid, grid)},
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of runs of its own."""
    return filled(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with its report, for tests that read it."""
    folder = filled(tmp_path_factory.mktemp("reported"))
    path = write_report(folder, commands=["dopaminergic reproduce --seeds 3"])
    assert path == folder / "report.html"
    return folder


class Drawn(NamedTuple):
    """A folder of figures, and what was drawn into it."""

    folder: Path
    drawings: list[Drawing]


@pytest.fixture(scope="module")
def drawn(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """The figures, beside what lay there before."""
    target = tmp_path_factory.mktemp("drawn")
    for name in ("99-curves-of-old.png", "98-old.svg", "own.png", "01-notes.txt"):
        (target / name).write_text("")
    return Drawn(target, draw_all(reported, target))


def filled(tmp_path: Path) -> Path:
    append_records(tmp_path / "records.jsonl", everything())
    append_records(tmp_path / "pictures.jsonl", pictures())
    rows = [{"optimizer": name, "task": "lorenz", "passes_per_step": 2,
             "time_over_two_forwards": 1.05,
             "peak_memory_over_inference": 1.0} for name in ("dopamine", "adam")]  # fmt: skip
    environment = {"versions": {"torch": "2.13.0", "python": "3.11.7"}, "threads": 1}
    (tmp_path / "costs.json").write_text(json.dumps({"environment": environment, "rows": rows}))
    return tmp_path


class Page(HTMLParser):
    """What a browser would load, run and show of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "action", "data")
        ]
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_holds_everything_and_loads_nothing(reported: Path) -> None:
    text = (reported / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == []
    kinds = ("data:image/png;base64,", "data:image/svg+xml;charset=utf-8,", "#")
    assert all(link.startswith(kinds) for link in page.links)
    assert set(re.findall(r"url\(....", text)) == {"url(%23i"}  # parts of a drawing itself
    assert "@import" not in text
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not re.search(r" (style|on[a-z]+)=\"", re.sub(r'"data:[^"]*"', "", text))
    assert "link" not in page.tags
    assert page.tags.count("img") == len(list((reported / "figures").iterdir())) == 16
    for words in ("The paper's claims, and one of this library's, judged",
                  "Fewer than 20 seeds on 3 of 3 tasks: Lorenz (n = 3); ",
                  "dopaminergic reproduce --seeds 3",
                  "abc123", "2.13.0", "lr 0.100, sigma 0.00100", "threads"):  # fmt: skip
        assert words in page.words, words
    targets = set(re.findall(r'id="([^"]+)"', text))
    assert {link[1:] for link in page.links if link.startswith("#")} <= targets


def test_browsers_run_no_script_and_no_style_but_the_pages_own(reported: Path) -> None:
    text = (reported / "report.html").read_text("utf-8")
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        [own] = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_alternative_texts_say_the_finding(reported: Path) -> None:
    text = (reported / "report.html").read_text("utf-8")
    found = [unescape(each) for each in re.findall(r' alt="([^"]*)"', text)]
    assert len(found) == 16
    for each in (
        "Lorenz: learning curves. Adam ends lowest, at a median NRMSE of 0.100; Dopamine follows "
        "with 0.300, and WP is last with 0.400.",
        "XOR 2-2-1: runs that met the threshold. Dopamine met the threshold in 67% of its runs, "
        "the median run after 200 passes; Adam did in 67%, the median run after 200.",
        "Lorenz. The lowest median and its learning rate: Dopamine 0.0100 at 0.10, WP 0.0100 at "
        "0.10, Adam 0.0100 at 0.10.",
        "Lorenz. Learning rates go: Dopamine's from 0.10 to 0.10.",
        "Passes, time and memory. Passes of a step, and the peak memory of inference: Dopamine 2 "
        "and 1 times; Adam 2 and 1 times.",
    ):
        assert each in found, found
    captions = re.findall(r"<figcaption><b>.*?</b>(.*?)</figcaption>", text)
    assert not {unescape(each) for each in captions} & set(found)


def test_cells_have_the_number_that_sorts_them(reported: Path) -> None:
    text = (reported / "report.html").read_text("utf-8")
    row = text[text.index("Rössler<span") :].partition("</tr>")[0]
    assert re.findall(r'data-value="([^"]*)"', row) == ["0.25", "0.25", "Infinity"]
    shown = (reported / "report.html").read_text("utf-8").partition("<script>")[2]
    assert "aria-sort" in shown


def test_a_commit_with_changes_is_told_in_words() -> None:
    rows = environment_rows([run("lorenz", VECTOR, 0, 0.1, commit="abc123-dirty")], {}, [])
    assert ("commit", "abc123 with changes") in rows


def test_names_are_escaped(tmp_path: Path) -> None:
    append_records(tmp_path / "records.jsonl", [
        run(HOSTILE, (HOSTILE, HOSTILE), seed, 0.1, settings={HOSTILE: HOSTILE}, commit=HOSTILE,
            versions={HOSTILE: HOSTILE},
            metrics={HOSTILE: 1.0}, task_settings={}, created=HOSTILE, dtype=HOSTILE)
        for seed in range(2)
    ])  # fmt: skip
    text = write_report(tmp_path, commands=[HOSTILE]).read_text("utf-8")
    assert text.lower().count("<script") == Page(text).tags.count("script") == 1  # our own
    assert HOSTILE in Page(text).words


def test_a_folder_without_runs_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"folder: no finished run in .*records\.jsonl; `dopaminergic reproduce`"
    ):
        write_report(tmp_path)
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(ValueError, match="no finished run"):
        write_report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    append_records(
        tmp_path / "records.jsonl",
        [record for record in everything() if record["role"] == "tuning"],
    )
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"schema": 1, "task": "lor')
    words = Page(write_report(tmp_path, tmp_path / "out").read_text("utf-8")).words
    for each in (
        "Tuning seeds only",
        "No pictures.jsonl",
        "No costs.json",
        "1 damaged line of records.jsonl left out",
    ):
        assert each in words
    assert words.count("Not measured: ") == 7
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "figures",
        "report.html",
        "summary.json",
    ]


def test_the_summary_has_the_medians(reported: Path) -> None:
    summary = json.loads((reported / "summary.json").read_text("utf-8"))
    rows = {(row["title"], row["optimizer"], row["variant"]): row for row in summary["results"]}
    lorenz = rows["Lorenz", "wp", "tuned"]
    assert lorenz["error"]["value"] == pytest.approx(0.4)
    assert lorenz["n"] == lorenz["error"]["n"] == 3
    assert (lorenz["error"]["low"], lorenz["error"]["high"]) == pytest.approx((0.39, 0.41))
    diverged = rows["Rössler", "wp", "tuned"]
    assert diverged["diverged"] == 3
    assert diverged["error"]["value"] is None
    solved = rows["XOR 2-2-1", "adam", "tuned"]
    assert solved["solved"]["value"] == pytest.approx(2 / 3)
    assert solved["passes_to_threshold"]["value"] == 200
    assert [claim["claim"] for claim in summary["claims"]] == [
        "C1",
        "C2",
        "C3",
        "C4",
        "C5",
        "C6",
        "V1",
    ]


def test_the_best_of_a_row_is_marked() -> None:
    errors, others = tables(results())
    assert errors.columns == ["Adam", "Dopamine, default", "Dopamine, tuned", "WP"]
    (name, unit, cells), (_, _, rossler) = errors.rows
    assert (name, unit, [cell.text for cell in cells]) == (
        "Lorenz",
        "NRMSE",
        ["0.100", "0.300", "0.200", "0.400"],
    )
    assert [cell.best for cell in cells] == [True, False, False, False]
    assert [cell.best_without_gradients for cell in cells] == [False, False, True, False]
    assert rossler[3].text == "diverges"
    assert [cell.best for cell in rossler] == [True, True, True, False]
    # Valid prediction time is 1 / error here: the highest is best.
    assert [cell.text for cell in others.rows[0][2]] == ["10", "3.33", "5", "2.50"]
    assert [cell.best for cell in others.rows[0][2]] == [True, False, False, False]


def test_numbers_that_look_equal_are_marked_alike() -> None:
    errors = dict(zip(METHODS, (0.39129, 0.39131, 0.5, 0.39133), strict=True))
    cells = tables([run("lorenz", method, 0, error) for method, error in errors.items()])[0].rows[
        0
    ][2]
    assert [cell.text for cell in cells] == ["0.391", "0.391", "0.391", "0.500"]
    assert [cell.best for cell in cells] == [True, True, True, False]
    assert [cell.best_without_gradients for cell in cells] == [False, True, True, False]


def sunspots(part: str = "") -> list[dict[str, Any]]:
    """Two methods that end at .2 and .1, beside a persistence of .4 and an autoregression of
    .15.
    """
    return [
        run("sunspots", method, seed, error, metrics={
            "error": error, "persistence": 0.4, "linear_ar": 0.15,
            f"error{part}": 2 * error, f"persistence{part}": 0.8, f"linear_ar{part}": 0.5,
        })
        for method, error in ((VECTOR, 0.2), (("adam", "tuned"), 0.1)) for seed in range(3)
    ]  # fmt: skip


def test_the_first_table_has_few_columns_and_names_the_best_other() -> None:
    records = [
        *sunspots("_1956_1979"),
        *(run("sunspots", ("wp", "tuned"), s, 0.15) for s in range(3)),
    ]
    records += [run("sunspots", ("spsa", "tuned"), s, 0.3) for s in range(3)]
    found = headline(records)
    assert found is not None
    assert found.columns == ["VectorDopamine", "Adam", "Best other"]
    [(name, _, cells)] = found.rows
    assert name == "Sunspots"
    assert [(cell.text, cell.below, cell.best) for cell in cells] == [
        ("0.200", "", False),
        ("0.100", "", True),
        ("0.150", "WP", False),
    ]
    assert found.references == {
        0: "Without a network: persistence 0.400, linear autoregression 0.150."
    }
    older = headline(results())
    assert older is not None
    assert older.columns == ["Best Dopamine rule", "Adam", "Best other"]
    assert [cell.below for cell in older.rows[0][2]] == ["Dopamine, tuned", "", "WP"]
    assert [cell.best for cell in older.rows[1][2]] == [True, True, False]  # equal to the eye
    assert headline(results()[:3]) is None  # one method compares with nothing


def test_columns_begin_with_the_newest_rules_and_adam() -> None:
    names = ("dopamine", "adam", "sgd", "vector", "node", "wp")
    records = [run("lorenz", (name, "tuned"), 0, 0.1) for name in names]
    assert tables(records)[0].columns == [
        "NodeDopamine", "VectorDopamine", "Adam", "Dopamine", "WP", "SGD"
    ]  # fmt: skip


def test_tables_of_other_measures_have_no_empty_columns() -> None:
    alone = [run("rossler", VECTOR, seed, 0.1) for seed in range(2)]
    both = [run("lorenz", method, 0, 0.1) for method in METHODS]
    dense = [table for table in tables(alone + both) if table.title.startswith("Other measures")]
    assert [len(table.columns) for table in dense] == [4, 1]
    assert all(cell.text for table in dense for _, _, cells in table.rows for cell in cells)


def test_the_first_figure_and_table_come_before_verdicts_and_all_else_is_folded(
    reported: Path,
) -> None:
    text = (reported / "report.html").read_text("utf-8")
    places = [text.index(each) for each in (
        'id="headline"', "<figure>", "Best other", 'id="claims"', "Results of all methods",
        "<details class=\"fold\">", "Final test error"
    )]  # fmt: skip
    assert places == sorted(places)
    rest = text[text.index('id="results"') :]
    unfolded = re.sub(r"<details.*?</details>", "", rest, flags=re.DOTALL)
    assert "<figure" not in unfolded
    assert "<table" not in unfolded


def test_references_are_a_table_of_their_own_and_say_who_is_worse() -> None:
    found = {table.title: table for table in tables(sunspots("_1956_1979"))}
    references = found["Forecasts without a network"]
    assert references.columns == [
        "Persistence",
        "Linear autoregression",
        "Medians above the autoregression",
    ]
    rows = [(unit, [cell.text for cell in cells]) for _, unit, cells in references.rows]
    assert rows == [
        ("error", ["0.400", "0.150", "VectorDopamine"]),
        ("error, 1956–79", ["0.800", "0.500", "none"]),  # noqa: RUF001
    ]
    assert [unit for _, unit, _ in found["Other measures at the end of a run"].rows] == [rows[1][0]]
    assert not any(cell.best for _, _, cells in references.rows for cell in cells)


def test_a_series_of_the_users_own_is_not_told_of_the_papers_claims(tmp_path: Path) -> None:
    append_records(
        tmp_path / "records.jsonl", [each for each in sunspots() if each["optimizer"] == "vector"]
    )
    words = Page(write_report(tmp_path).read_text("utf-8")).words
    for each in ("judged", "Not measured", "No forecasting task", "C1"):
        assert each not in words, each
    assert "VectorDopamine never computes a gradient" in words
    both = tmp_path / "both"
    both.mkdir()
    append_records(both / "records.jsonl", sunspots())
    words = Page(write_report(both).read_text("utf-8")).words
    assert "A claim of this library's, judged" in words
    assert "V1This library's own" in words
    assert "weight perturbation (WP)" not in words


def test_few_seeds_are_told_of_the_tasks_that_have_them() -> None:
    many = [
        run("lorenz", method, seed, 0.1)
        for method in (METHODS[0], METHODS[2])
        for seed in range(20)
    ]
    few = [
        run("rossler", method, seed, 0.1)
        for method in (METHODS[0], METHODS[2])
        for seed in range(3)
    ]
    assert not any("seeds" in note for note in missing(many, {}, [], [], 0))
    [note] = [
        note for note in missing(many + few, {}, judge(many + few, {}), [], 0) if "seeds" in note
    ]
    assert note == (
        "Fewer than 20 seeds on 1 of 2 tasks: Rössler (n = 3); no verdict depends on them."
    )
    [note] = [note for note in missing(few, {}, judge(few, {}), [], 0) if "seeds" in note]
    assert note.endswith("; C1 and C6 are provisional for it.")


def test_tuning_and_environment_are_told_in_words(reported: Path) -> None:
    words = " ".join(Page((reported / "report.html").read_text("utf-8")).words.split())
    assert "costs: versionstorch 2.13.0, python 3.11.7" in words
    assert (
        "an unsolved run counts as twice the budget (PAR2); on the others, the least median final "
        "error" in words
    )


def test_every_figure_is_small_enough_and_says_its_n(drawn: Drawn) -> None:
    assert len({drawing.path for drawing in drawn.drawings}) == len(drawn.drawings)
    for path, title, caption, *_ in drawn.drawings:
        assert path.stat().st_size < 40_000, title
        if path.suffix == ".svg":
            assert "n = " in caption, title
            continue
        with Image.open(path) as image:
            assert (image.format, image.width <= 1200) == ("PNG", True), title
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20, title
        assert "n = " in caption, title


def test_only_the_figures_of_the_last_report_are_left(drawn: Drawn) -> None:
    names = {drawing.path.name for drawing in drawn.drawings}
    assert {path.name for path in drawn.folder.iterdir()} == names | {"own.png", "01-notes.txt"}


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    append_records(tmp_path / "records.jsonl", results())
    first, second = (draw_all(tmp_path, tmp_path / name) for name in ("first", "second"))
    assert [each.path.read_bytes() for each in first] == [each.path.read_bytes() for each in second]


def test_a_drawing_is_xml_without_dates_or_names_of_its_maker(drawn: Drawn) -> None:
    texts = [each.path.read_text("utf-8") for each in drawn.drawings if each.path.suffix == ".svg"]
    assert len(texts) >= 10
    for text in texts:
        root = ElementTree.fromstring(text)
        names = {each.get("id") for each in root.iter()} - {None}
        assert set(re.findall(r"#(i\d+)", text)) <= names
        assert not re.search("[Mm]atplotlib|metadata|20\\d\\d-", text)
        assert "DejaVu Sans,Verdana" in text


def test_a_small_drawing_is_in_the_page_as_it_is_on_disk(reported: Path) -> None:
    text = (reported / "report.html").read_text("utf-8")
    found = re.findall(r'<img src="data:image/svg[^,]*,([^"]*)"', text)
    shown = {unquote(unescape(each)).replace("&apos;", "") for each in found}
    files = [each.read_text("utf-8") for each in (reported / "figures").glob("*.svg")]
    assert shown == {each.replace('"', "'").replace("&apos;", "") for each in files}


def test_vector_dopamine_is_in_every_figure_and_table(folder: Path) -> None:
    trace = {"passes": [0, 50], "rpe": [1e-3, -2e-3], "learning_rate": [0.5, 0.52]}
    append_records(
        folder / "records.jsonl", [run("lorenz", VECTOR, s, 0.05, traces=trace) for s in range(3)]
    )
    write_report(folder)
    text = Page((folder / "report.html").read_text("utf-8")).words
    assert "V1This library's own: VectorDopamine beats backpropagation" in text
    assert "VectorDopamine, Dopamine and WP never compute a gradient" in text
    cells = by_task(read_records(folder / "records.jsonl").records)["Lorenz"]
    axes = curves.learning_curves(cells).axes[0]
    assert COLOURS["vector"] in [line.get_color() for line in axes.lines]
    assert "VectorDopamine" in [
        label.get_text() for label in plots.final_errors(cells).axes[0].get_yticklabels()
    ]
    assert "VectorDopamine" in [
        panel.get_title(loc="left") for panel in curves.traces(cells[VECTOR]).axes
    ]
    assert tables(cells[VECTOR])[0].columns == ["VectorDopamine"]
