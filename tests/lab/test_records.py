from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dopaminergic.lab import records as module
from dopaminergic.lab import results
from dopaminergic.lab.records import append_records, read_records
from dopaminergic.lab.results import by_task


def record(
    task: str = "lorenz", seed: int = 0, error: float | None = 0.1, **others: Any
) -> dict[str, Any]:
    base = {"schema": 1, "task": task, "task_settings": {"hidden": 16}, "optimizer": "wp",
            "variant": "tuned",
            "role": "report", "settings": {"lr": 0.1}, "seed": seed, "budget": 100,
            "curve": {"passes": [50, 100], "error": [1.0, error]},
            "metrics": {"nrmse": error}}  # fmt: skip
    return base | others


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


def test_what_is_appended_is_read(path: Path) -> None:
    append_records(path, [record(seed=1)])
    append_records(path, [record(seed=2), record(seed=3)])
    assert read_records(path) == ([record(seed=seed) for seed in (1, 2, 3)], 0)


def test_numbers_that_are_not_finite_are_null_and_arrays_are_lists(path: Path) -> None:
    append_records(
        path,
        [
            {
                "task": "x",
                "a": math.nan,
                "b": [math.inf, np.float32(1.5)],
                "c": np.array([[1.0, -np.inf]]),
            }
        ],
    )
    assert read_records(path).records == [
        {"task": "x", "a": None, "b": [None, 1.5], "c": [[1.0, None]]}
    ]


def test_a_file_cut_at_any_byte_gives_every_whole_line(path: Path) -> None:
    append_records(path, [record(seed=1), record(seed=2)])
    content = path.read_bytes()
    first, second = content.splitlines(keepends=True)
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = (length >= len(first) - 1) + (length >= len(content) - 1)
        cut = length not in (0, len(first) - 1, len(first), len(content) - 1, len(content))
        assert read_records(path) == ([record(seed=1), record(seed=2)][:whole], int(cut)), length
    assert second


def test_a_record_appended_after_a_cut_starts_on_its_own_line(path: Path) -> None:
    append_records(path, [record(seed=1), record(seed=2)])
    path.write_bytes(path.read_bytes()[:-20])
    append_records(path, [record(seed=3)])
    assert read_records(path) == ([record(seed=1), record(seed=3)], 1)
    # A line that lost nothing but its end is whole, and stays so.
    path.write_bytes(path.read_bytes()[:-1])
    append_records(path, [record(seed=4)])
    assert read_records(path) == ([record(seed=1), record(seed=3), record(seed=4)], 1)


def test_a_damaged_line_in_the_middle_is_skipped_and_counted(path: Path) -> None:
    append_records(path, [record(seed=1)])
    with path.open("ab") as file:
        file.write(b'{"schema": 1, "ta\n\xff\xfe\n\n')
    append_records(path, [record(seed=2)])
    assert read_records(path) == ([record(seed=1), record(seed=2)], 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"time,value\n1,2\n", r"records.jsonl, line 1: not a JSON object"),
        (b"\n\x89PNG\r\n\x1a\n", r"records.jsonl, line 2: not a JSON object"),
        (b'[1, 2]\n"text"\n', r"records.jsonl, line 1: not a JSON object"),
        (b'{"task": "a"}\n{"name": "b"}\n', r"records.jsonl, line 2: a JSON object without 'task'"),
        (
            b'{"task": "a", "schema": 9}\n',
            r"records.jsonl, line 1: record of schema 9, this version reads up to 1",
        ),
    ],
)
def test_a_file_that_is_no_records_is_refused_by_file_and_line(
    path: Path, content: bytes, message: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_records(path)
    assert path.read_bytes() == content


def test_a_missing_file_has_no_records(path: Path) -> None:
    assert read_records(path) == ([], 0)


def test_a_whole_file_is_replaced_in_one_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module.write_whole(path, "old")
    module.write_whole(path, "new é")
    assert path.read_text("utf-8") == "new é"

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        module.write_whole(path, "newer")
    assert path.read_text("utf-8") == "new é"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_costs(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    assert module.read_costs(path) == {}
    for content, message in (("{", "not JSON"), ("[]", "'rows'"), ('{"rows": 1}', "'rows'")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            module.read_costs(path)


def test_the_final_error_of_a_run_that_diverged_is_infinite() -> None:
    assert results.final_error(record(error=0.25)) == 0.25
    assert math.isinf(results.final_error(record(error=None)))
    assert math.isinf(results.final_error(record(error=0.25, diverged=True)))
    assert math.isinf(results.final_error(record(curve={"passes": [], "error": []})))
    assert (
        results.solved_at(record(solved_at=260)),
        results.solved_at(record(solved_at=None)),
    ) == (260, math.inf)


def test_the_metric_of_the_curves_is_found_by_its_value() -> None:
    runs = [
        record(error=None),
        record(error=0.25, metrics={"vpt": 2.0, "loss": None, "nrmse": 0.25}),
    ]
    assert results.metric_name(runs) == "nrmse"
    assert results.metric_name([record(error=0.25, metrics={"vpt": 2.0})]) == "error"
    assert (
        results.metric_name([record(error=0.25, metrics={"loss": 0.25003, "mse": 0.250001})])
        == "mse"
    )


def test_a_run_that_was_repeated_counts_once_by_its_last_record() -> None:
    cells = by_task([record(seed=1, error=0.5), record(seed=2), record(seed=1, error=0.25)])
    assert [results.final_error(run) for run in cells["Lorenz"]["wp", "tuned"]] == [0.25, 0.1]


def test_tasks_that_differ_in_settings_are_kept_apart_and_say_how() -> None:
    tasks = by_task(
        [
            record(),
            record(task_settings={"hidden": 32}),
            record("xor-2-2-1"),
            record("mackey-glass", role="tuning"),
            record("digits", budget=100),
            record("digits", budget=200),
        ]
    )
    assert " · ".join(tasks) == (
        "Lorenz (hidden 16) · Lorenz (hidden 32) · XOR 2-2-1 · Digits (budget 100) · Digits "
        "(budget 200)"
    )


def test_methods_come_in_the_order_of_the_tables() -> None:
    runs = [
        record(optimizer=name, variant="tuned")
        for name in ("adam", "mine", "wp", "dopamine2", "dopamine")
    ]
    assert [name for name, _ in by_task(runs)["Lorenz"]] == [
        "dopamine",
        "dopamine2",
        "wp",
        "adam",
        "mine",
    ]


@pytest.mark.parametrize(
    ("task", "title"),
    [("mackey-glass", "Mackey\u2013Glass"), ("lorenz-vpt", "Lorenz free run"),
     ("xor-2-8-1", "XOR 2-8-1"),
     ("cluster-xor", "Cluster XOR"), ("sunspots", "Sunspots")],
)  # fmt: skip
def test_titles(task: str, title: str) -> None:
    assert results.task_title(task) == title
    assert results.is_xor(task) == ("XOR" in title)
    assert results.is_forecasting(task) == (title[0] in "ML")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.033412, "0.0334"), (20_000, "20,000"), (1.2e-5, "1.20 \u00d7 10⁻⁵"), (math.inf, "∞"),
     (math.nan, "\u2013"),
     (0, "0"),
     (0.9996, "1.00"), (9.9999e-4, "0.00100"), (1234.5, "1,230"), (-0.5, "-0.500"),
     (3e8, "3.00 \u00d7 10⁸"),
     (16.04, "16.0")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert results.compact(value) == text


def test_compressed_records_come_before_those_of_the_file_itself(path: Path) -> None:
    append_records(path, [{"task": "a"}, {"task": "b"}])
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert [each["task"] for each in read_records(path).records] == ["a", "b"]

    append_records(path, [{"task": "c"}])
    assert [each["task"] for each in read_records(path).records] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            gzip.compress(b'{"task": "a"}\n', mtime=0)[:-9],
            r"records.jsonl.gz, after line \d+: damaged",
        ),
        (b"no archive", r"records.jsonl.gz, after line 0: damaged"),
        (gzip.compress(bytes(65 << 20)), r"records.jsonl.gz, line 1: longer than 64 MiB"),
    ],
)
def test_compressed_records_that_are_damaged_or_unpack_to_too_much_are_refused(
    path: Path, content: bytes, words: str
) -> None:
    path.with_name(path.name + ".gz").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_records(path)
