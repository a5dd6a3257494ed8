"""Files as people and programs write them: each is read as written, or refused with line, cell and
way out.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest

from dopaminergic.lab.cli import main
from dopaminergic.lab.tasks import make_task, reading
from dopaminergic.lab.tasks.reading import read_data, read_series

VALUES = [50.5 + i * 7 % 31 for i in range(60)]
DAYS = pandas.date_range("2024-01-01", periods=60).strftime("%Y-%m-%d").tolist()


def lines(separator: str = ",", comma: str = ".", quote: str = "") -> str:
    rows = [
        f"{day}{separator}{quote}{str(v).replace('.', comma)}{quote}"
        for day, v in zip(DAYS, VALUES, strict=True)
    ]
    return f"date{separator}units\n" + "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (lines(), "utf-8"),
        (lines(";"), "utf-8"),
        (lines("\t"), "utf-8"),
        (lines("|"), "utf-8"),
        (lines(";", ","), "utf-8"),
        (lines(",", ",", '"'), "utf-8"),
        ("sep=;\n" + lines(";", ","), "utf-8"),
        ("# made by hand\n" + lines(), "utf-8"),
        (lines().replace("\n", "\r\n"), "utf-8-sig"),
        (lines().replace("\n", "\r"), "utf-8"),
        (lines().replace("\n", "\n\n"), "utf-8"),
        (lines(), "utf-16"),
        (lines(), "utf-16-le"),
        (lines(), "utf-32"),
        (lines().replace("date", "Zeit für"), "cp1252"),
    ],
)
def test_a_series_is_the_same_however_it_is_written(
    tmp_path: Path, text: str, encoding: str
) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert read_series(tmp_path / "a.csv", "units")[:, 0].tolist() == VALUES


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.csv.gz", gzip.compress),
        ("a.csv", gzip.compress),
        ("a.csv.bz2", bz2.compress),
        ("a.csv.xz", lzma.compress),
    ],
)
def test_compression_is_known_by_the_contents(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack(lines().encode()))
    assert read_series(tmp_path / name, "units")[:, 0].tolist() == VALUES
    (tmp_path / name).write_bytes(pack(lines().encode())[:-9])
    with pytest.raises(ValueError, match="damaged, or cut short"):
        read_series(tmp_path / name, "units")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lines().replace("2024-01-05,", "2024-01-05,1,"), "line 6 has 3 cells"),
        (lines().replace("2024-01-05,", "2024-01-05"), "line 6 has 1 cells"),
        (lines() + "Total,3000\n", "holds 'Total' in row 61 .line 62.: a line of totals"),
        (lines() + ",3000\n", "holds '' in row 61 .line 62., which is no date"),
        (lines().replace("2024-01-09", "2023-01-09"), "go back at '2023-01-09' in row 9 .line 10."),
        (lines().replace("2024-01-09", "2024-01-08"), "repeat at '2024-01-08' in row 9 .line 10."),
        (lines().replace("2024-01-09", "2024-01-0\0"), "line 10 holds a NUL"),
        (lines().replace("date", "units"), "columns 1 and 2 are both called 'units'"),
        (lines().replace("2024-01-09,", '"2024-01-09,'), "is a quote not closed"),
        ("units\n1\n\n3\n", "line 3 is blank"),
        ("units\n" + "1,500\n" * 3, "line 2 has 2 cells"),
        ("x,units\n" + '1,"1,500"\n' * 3, "'1,500' in row 1 .line 2. has two readings"),
        ("units\n1e400\n", "'1e400' in row 1 .line 2. is too large"),
        ("units\n1e-400\n", "'1e-400' in row 1 .line 2. is too small"),
        ("units\n1_000\n", "not numbers, the first '1_000' in row 1"),
        ("units\n5 %\n", "not numbers, the first '5 %' in row 1"),
        ("1.5,2.5\n1,2\n", "line 1 holds numbers"),
        ("date,units\n2024-01-01;5,5\n2024-01-02;6,5\n", "line 2 has ';' between its cells"),
        ("year,units\n2024,1\n2023,2\n2022,3\n", "goes down from 2024"),
    ],
)
def test_what_cannot_be_read_as_written_is_refused_with_its_line(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_series(tmp_path / "a.csv", "units")
    assert len(str(caught.value)) <= 300


def test_newest_first_is_turned_round_and_said(tmp_path: Path) -> None:
    head, *rows = lines().splitlines()
    (tmp_path / "a.csv").write_text("\n".join([head, *reversed(rows)]))
    data = read_data(tmp_path / "a.csv", "units")
    assert data.values[:, 0].tolist() == VALUES
    assert ["turned round" in note for note in data.notes] == [True]


def test_days_before_months_are_told_by_their_order(tmp_path: Path) -> None:
    days = pandas.date_range("2024-01-01", periods=60).strftime("%d/%m/%Y")
    (tmp_path / "a.csv").write_text(
        "date,units\n" + "\n".join(f"{d},{v}" for d, v in zip(days, VALUES, strict=True))
    )
    data = read_data(tmp_path / "a.csv", "units")
    assert data.values[:, 0].tolist() == VALUES
    assert not data.notes


@pytest.mark.parametrize(
    ("cell", "value"), [("1,234,567.5", 1234567.5), ("1.234.567,5", 1234567.5), ("1'234.5", 1234.5)]
)
def test_thousands_in_groups_are_read_and_said(tmp_path: Path, cell: str, value: float) -> None:
    (tmp_path / "a.csv").write_text(f'units\n"{cell}"\n3\n')
    data = read_data(tmp_path / "a.csv", "units")
    assert data.values[:, 0].tolist() == [value, 3]
    assert cell in data.notes[0]


@pytest.mark.parametrize("value", ["5.0", "0.1", "0.7", "1234.567", "1e300", "1e-300"])
def test_a_column_that_never_changes_is_refused_also_where_its_mean_is_rounded(
    tmp_path: Path, value: str
) -> None:
    (tmp_path / "a.csv").write_text("y\n" + f"{value}\n" * 120)
    with pytest.raises(ValueError, match="column 'y' never changes"):
        make_task("series", path=tmp_path / "a.csv", column="y")


@pytest.mark.parametrize("unit", [1e300, 1e-300])
def test_the_unit_of_a_column_does_not_matter(tmp_path: Path, unit: float) -> None:
    pandas.DataFrame({"y": np.array(VALUES * 2)}).to_csv(tmp_path / "a.csv", index=False)
    pandas.DataFrame({"y": np.array(VALUES * 2) * unit}).to_csv(tmp_path / "b.csv", index=False)
    one, other = (
        make_task("series", path=tmp_path / name, dtype="float64") for name in ("a.csv", "b.csv")
    )
    np.testing.assert_allclose(one.series, other.series, rtol=1e-12, atol=1e-12)  # pyright: ignore[reportAttributeAccessIssue]


def test_names_in_another_normal_form_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{unicodedata.normalize('NFD', 'Höhe')}\n1\n2\n")
    assert read_series(tmp_path / "a.csv", "Höhe")[:, 0].tolist() == [1, 2]


def test_parquet_columns_with_numbers_and_levels_can_be_named(tmp_path: Path) -> None:
    values = np.arange(120.0).reshape(60, 2)
    pandas.DataFrame(values).to_parquet(tmp_path / "a.parquet")
    levels = pandas.MultiIndex.from_tuples([("a", "x"), ("a", "y")])
    pandas.DataFrame(values, columns=levels).to_parquet(tmp_path / "b.parquet")
    assert read_series(tmp_path / "a.parquet", "1")[:, 0].tolist() == values[:, 1].tolist()
    assert read_series(tmp_path / "b.parquet", "a/y")[:, 0].tolist() == values[:, 1].tolist()


def test_a_file_is_parsed_once_as_long_as_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(lines())
    monkeypatch.setattr(reading, "RECENT_NANOSECONDS", 0)
    reading._read_once.cache_clear()
    first = read_series(path, "units")
    for _ in range(34):
        assert read_series(path, "units") is first
    assert not first.flags.writeable
    path.write_text(lines().replace("50.5", "99.25"))
    assert read_series(path, "units")[0, 0] == 99.25


def test_results_of_another_file_are_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    command = [
        "train",
        "--csv",
        str(path),
        "--budget",
        "200",
        "--json",
        "--resume",
        "--out",
        str(tmp_path / "out"),
    ]
    shown = []
    for values in (
        np.sin(np.arange(200) / 5),
        np.cos(np.arange(200) ** 2),
        np.sin(np.arange(200) / 5),
    ):
        path.write_text("y\n" + "\n".join(map(str, values)))
        assert main(command) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0] == shown[2]
    assert shown[0]["metrics"]["nrmse"] != shown[1]["metrics"]["nrmse"]
    with pytest.raises(ValueError, match="this run was begun with sha256:0"):
        make_task("series", path=path, contents="sha256:0")


def test_a_better_rival_is_said_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("y\n" + "\n".join(map(str, np.sin(np.arange(200) / 5))))
    assert (
        main(["train", "--csv", str(path), "--budget", "200", "--out", str(tmp_path / "out")]) == 0
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "lower is better" in shown
    assert "rows 141 to 200 of 200" in shown
    assert "A linear autoregression" in shown
    assert "better than this network" in shown
    assert shown.index("seconds") < shown.index("rows 141")  # results come first
    for name in ("model.pt", "forecast.csv", "forecast.png", "records.jsonl"):
        assert f": {tmp_path / 'out' / name}" in shown
        assert (tmp_path / "out" / name).exists()


@pytest.mark.parametrize("years", [(1700, 2200), (2261, 6020), (1, 9999)])
def test_dates_of_any_century_are_put_in_order(tmp_path: Path, years: tuple[int, int]) -> None:
    path = tmp_path / "ages.csv"
    rows = [f"{year:04d}-01-{day:02d},{day % 7}" for year in years for day in range(1, 29)]
    path.write_text("\n".join(["date,level", *rows]) + "\n")
    assert read_series(path, "level").shape == (56, 1)
    path.write_text("\n".join(["date,level", *rows[28:], *rows[:28]]) + "\n")
    with pytest.raises(
        ValueError,
        match=r"the dates of column 'date' go back at '\d{4}-01-01' in row 29 \(line 30\)",
    ):
        read_series(path, "level")


def test_a_damaged_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1\x1b[31m\n\x00" + b"\xff" * 40 + b"PAR1")
    with pytest.raises(ValueError, match=r"a.parquet: cannot be read as parquet: ") as error:
        read_series(path, "level")
    assert str(error.value).isprintable()
