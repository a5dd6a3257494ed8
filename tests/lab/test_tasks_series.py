"""The user's own series: what is read, and what is said about files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.tasks.real import RealForecasting
from dopaminergic.lab.tasks.series import read_series


def wave(n: int = 200) -> pandas.DataFrame:
    t = np.arange(n)
    return pandas.DataFrame({"time": t, "level": 3 + np.sin(t / 5), "flow": np.cos(t / 7) * 100})


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "wave.csv"
    wave().to_csv(path, index=False)
    return path


def test_csv_and_parquet_hold_the_same_series(csv: Path) -> None:
    wave().to_parquet(csv.with_suffix(".parquet"))
    one, other = (
        read_series(csv, ["flow", "level"]),
        read_series(csv.with_suffix(".parquet"), ["flow", "level"]),
    )
    np.testing.assert_allclose(one, wave()[["flow", "level"]].to_numpy(), rtol=1e-14)
    np.testing.assert_allclose(one, other, rtol=1e-14)
    assert read_series(csv, "level").shape == (200, 1)


def test_the_first_seventy_percent_train_and_normalise(csv: Path) -> None:
    task = make_task("series", path=csv, column=["level", "flow"], dtype="float64")
    assert isinstance(task, RealForecasting)
    raw = wave()[["level", "flow"]].to_numpy()
    np.testing.assert_allclose(
        task.series.numpy(), (raw - raw[:140].mean(0)) / raw[:140].std(0), rtol=1e-10
    )
    assert task.parts == {"nrmse": (140, 200)}
    assert task.train_rows == 140
    last = max(int(task.starts(seed, step).max()) for seed in range(5) for step in range(200))
    assert last + task.length + 1 <= 140


def test_rivals_are_in_the_units_of_the_network(csv: Path) -> None:
    task = make_task("series", path=csv, column="level", output="delta", order=2, dtype="float64")
    assert isinstance(task, RealForecasting)
    model = task.build(0)
    with torch.no_grad():
        for name in ("output_weight", "output_bias"):
            model.get_parameter(name).zero_()
    metrics = task.finish(model)
    change = task.series[140:] - task.series[139:-1]
    assert metrics["persistence"].item() == pytest.approx(
        change.square().mean().sqrt().item(), rel=1e-10
    )
    assert task.evaluate(model)["nrmse"].item() == pytest.approx(
        metrics["persistence"].item(), rel=1e-10
    )
    assert metrics["linear_ar"] < 1e-9  # a sine obeys x_t = 2 cos(w) x_{t-1} - x_{t-2} + constant


def changed(column: str, row: int, value: object) -> pandas.DataFrame:
    frame = wave().astype(object)
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "column", "words"),
    [
        (
            wave(),
            "levle",
            "no column 'levle'; it has 'time', 'level', 'flow'. Did you mean 'level'",
        ),
        (
            changed("level", 17, "n/a?"),
            "level",
            "1 cells that are not numbers, the first 'n/a\\?' in row 18",
        ),
        (
            changed("level", 4, None),
            "level",
            "1 missing or infinite values, the first in row 5 .line 6.; fill",
        ),
        (
            changed("flow", 9, float("inf")),
            "flow",
            "missing or infinite values, the first in row 10",
        ),
        (wave(40), "level", "40 rows, but at least 41 are needed"),
        (wave().assign(level=1.0), "level", "column 'level' never changes"),
    ],
)
def test_unusable_columns_are_explained(
    tmp_path: Path, frame: pandas.DataFrame, column: str, words: str
) -> None:
    frame.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match=words):
        make_task("series", path=tmp_path / "bad.csv", column=column)


def test_dates_are_not_numbers(tmp_path: Path) -> None:
    frame = wave().assign(level=pandas.date_range("2020-01-01", periods=200))
    frame.to_parquet(tmp_path / "dates.parquet")
    with pytest.raises(ValueError, match="column 'level' holds dates"):
        read_series(tmp_path / "dates.parquet", "level")


def test_the_least_series_works(tmp_path: Path) -> None:
    wave(41).to_csv(tmp_path / "short.csv", index=False)
    task = make_task("series", path=tmp_path / "short.csv", column="level")
    assert task.batch(0, 0)[0].shape == (8, 25, 1)
    assert task.finish(task.build(0))["linear_ar"] < 0.1


def test_unusable_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none\.csv'"):
        read_series(tmp_path / "none.csv", "x")
    (tmp_path / "data.txt").write_text("x\n1\n")
    with pytest.raises(ValueError, match=r"ends in \.csv or \.parquet"):
        read_series(tmp_path / "data.txt", "x")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv: cannot be read as csv"):
        read_series(tmp_path / "empty.csv", "x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_series(tmp_path / "broken.parquet", "x")
