"""Networks that `train` keeps: their file, their forecasts, and files and data that are refused."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from dopaminergic.lab import load, saved
from dopaminergic.lab.cli import main
from dopaminergic.lab.fleet import Fleet
from dopaminergic.lab.forecaster import LEVELS, Forecaster, quantiles, series_model
from dopaminergic.lab.form import difference
from dopaminergic.lab.runner import first_network
from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.tasks.own_series import UserSeries

ROWS = 120


def shop(folder: Path, future: int = 4) -> Path:
    """Daily sales that follow a price which is known ahead; the last rows have a price alone."""
    days = pandas.date_range("2024-01-01", periods=ROWS + future).strftime("%Y-%m-%d")
    price = 2 + np.sin(np.arange(ROWS + future) * 1.7)
    lines = ["day,units,cost,price"]
    for i, day in enumerate(days):
        units = f"{100 - 20 * price[i]:.3f},{50 + 10 * np.sin(i / 3):.3f}" if i < ROWS else ","
        lines.append(f"{day},{units},{price[i]:.4f}")
    (folder / "shop.csv").write_text("\n".join(lines) + "\n")
    return folder / "shop.csv"


SETTINGS: dict[str, Any] = {"column": ["units", "cost"], "inputs": ["price"], "time": "day"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training of two columns, one known ahead, and days."""
    folder = tmp_path_factory.mktemp("shop")
    words = ["--targets", "units,cost", "--inputs", "price", "--time", "day", "--horizon", "3"]
    words += ["--validation", "0.1", "--budget", "600", "--optimizer", "adam"]
    assert main(["train", "--csv", str(shop(folder)), *words, "--out", str(folder / "run")]) == 0
    return folder / "run"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_file_holds_plain_types_and_tensors_alone(run: Path) -> None:
    whole = torch.load(run / "model.pt", weights_only=True)
    assert whole["format"] == saved.FORMAT
    assert whole["columns"]["targets"] == ["units", "cost"]
    assert whole["columns"]["inputs"] == ["price"]
    assert whole["columns"]["time"]["name"] == "day"
    assert whole["network"]["cell"] == "tanh"
    assert whole["horizon"] == 3
    record = json.loads((run / "records.jsonl").read_text())
    assert whole["about"]["metrics"] == record["metrics"]


def test_a_kept_network_forecasts_as_the_trained_one(tmp_path: Path) -> None:
    """One row ahead, it says what the task's own evaluation says of the row."""
    task = make_task("series", path=shop(tmp_path, 0), dtype="float64", **SETTINGS)
    assert isinstance(task, UserSeries)
    fleet = Fleet(task, "adam", [3], [0.01], 300)
    for _ in fleet.run():
        pass
    network = first_network(fleet)
    saved.write(tmp_path, series_model(task, network, "run", {}))
    model = load(tmp_path)
    assert isinstance(model, Forecaster)
    errors = task.one_step_errors(network, ROWS - 1, ROWS).detach().numpy()
    wanted = task.scaling.undone(task.series[ROWS - 1 :, :2].numpy() + errors)
    values = task.data.values
    found = model.predict(values[:-1], 1, known=values[-1:, 2:])
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    # And so do several rows, each from the forecast before it.
    several = model.predict(values[:-5], 5, known=values[-5:, 2:])
    own = task.free_errors(network, ROWS - 5, ROWS, 5).detach().numpy()[0]
    truth = task.series[-5:, :2].numpy()
    np.testing.assert_allclose(several, task.scaling.undone(truth + own), rtol=1e-11)


def test_the_forecast_of_a_run_lies_beside_the_truth_and_goes_on(run: Path) -> None:
    rows = rows_of(run / "forecast.csv")
    assert list(rows[0])[:5] == ["day", "units", "units_forecast", "units_low", "units_high"]
    assert rows[0]["day"] == "2024-03-25"  # the first of the last 30 %
    known = [row for row in rows if row["units"]]
    assert len(known) == ROWS - 84
    assert [row["day"] for row in rows[-3:]] == ["2024-04-30", "2024-05-01", "2024-05-02"]
    inside = [
        float(row["units_low"]) <= float(row["units"]) <= float(row["units_high"]) for row in known
    ]
    assert np.mean(inside) >= 0.9
    assert (run / "forecast.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_forecast_writes_the_rows_that_follow(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "next.csv"
    assert main(["forecast", str(run), "--out", str(out)]) == 0
    rows = rows_of(out)
    assert [row["day"] for row in rows] == ["2024-04-30", "2024-05-01", "2024-05-02"]
    last = rows_of(run / "forecast.csv")[-3:]
    assert [row["units"] for row in rows] == [row["units_forecast"] for row in last]
    assert "units, with intervals of 90 %" in capsys.readouterr().out
    assert main(["forecast", str(run), "--json", "--steps", "1", "--interval", "50"]) == 0
    shown = json.loads(capsys.readouterr().out)
    day, units, low, high = shown["rows"][0][:4]
    assert (day, units) == (rows[0]["day"], rows[0]["units"])
    assert float(rows[0]["units_low"]) < float(low) < float(high) < float(rows[0]["units_high"])


def changed(path: Path, folder: Path, old: str, new: str) -> Path:
    (folder / "new.csv").write_text(path.read_text().replace(old, new))
    return folder / "new.csv"


def test_new_rows_are_used_if_they_are_like_those_of_training(run: Path, tmp_path: Path) -> None:
    path = run.parent / "shop.csv"
    head, *lines = path.read_text().splitlines()
    (tmp_path / "new.csv").write_text("\n".join([head, *lines[60:]]))
    command = ["forecast", str(run), "--csv", str(tmp_path / "new.csv"), "--out"]
    assert main([*command, str(tmp_path / "next.csv")]) == 0
    rows = rows_of(tmp_path / "next.csv")
    assert [row["day"] for row in rows] == ["2024-04-30", "2024-05-01", "2024-05-02"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("units,cost", "sold,cost", "no column 'units'; it has 'day', 'sold'"),
        (",price", ",prize", "no column 'price'"),
        ("day,", "date,", "no column 'day'"),
        ("2024-", "2024-", "at least 25 are needed"),
    ],
)
def test_new_data_that_do_not_fit_are_refused(
    run: Path, tmp_path: Path, old: str, new: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(run.parent / "shop.csv", tmp_path, old, new)
    if "needed" in words:
        path.write_text("\n".join(path.read_text().splitlines()[:20]))
    assert main(["forecast", str(run), "--csv", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert len(said) <= 330


def test_new_rows_of_another_spacing_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, *lines = (run.parent / "shop.csv").read_text().splitlines()
    (tmp_path / "weekly.csv").write_text("\n".join([head, *lines[::2]]))
    assert main(["forecast", str(run), "--csv", str(tmp_path / "weekly.csv")]) == 2
    assert "rows are 2 days apart, in training they were 1 days" in capsys.readouterr().err
    numbers = [f"{i},{line.partition(',')[2]}" for i, line in enumerate(lines)]
    (tmp_path / "numbers.csv").write_text("\n".join([head, *numbers]))
    assert main(["forecast", str(run), "--csv", str(tmp_path / "numbers.csv")]) == 2
    assert "holds numbers, in training it held dates" in capsys.readouterr().err


def test_inputs_must_be_known_for_each_row_ahead(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["forecast", str(run), "--steps", "5"]) == 2
    assert "price must be known for each row ahead, and are for 4 of 5" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0.01, 0.3, 0.5, 0.7, 0.99])
def test_a_damaged_file_is_one_sentence(
    run: Path, tmp_path: Path, place: float, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((run / "model.pt").read_bytes())
    content[int(place * len(content))] ^= 0x10
    for name, body in (("flipped", bytes(content)), ("cut", bytes(content)[: len(content) // 2])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pt").write_bytes(body)
    # Some bytes of the file say nothing: then it is what it was.
    with contextlib.suppress(saved.ModelError):
        whole = saved.read(tmp_path / "flipped")
        assert not difference(whole, saved.read(run), "model")
    assert main(["forecast", str(tmp_path / "cut")]) == 2
    [said] = capsys.readouterr().err.strip().splitlines()
    assert "not a readable model" in said


def test_flipped_weights_are_noticed(run: Path, tmp_path: Path) -> None:
    whole = torch.load(run / "model.pt", weights_only=True)
    whole["weights"]["bias"][0] += 1e-6
    torch.save(whole, tmp_path / "model.pt")
    with pytest.raises(saved.ModelError, match="damaged, its 'check' is not as it was written"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "format",
            2,
            "of format 2, written by version 0.1.0; this one, .*, reads format 1",
        ),
        ("lags", "many", "its parts do not fit together"),
        ("horizon", 0, "its parts do not fit together"),
        ("network", {"cell": "tanh", "hidden": 1 << 40}, "its parts do not fit together"),
        ("columns", {"targets": ["units"], "inputs": [], "time": {}}, "its parts do not fit"),
        ("weights", {}, "its parts do not fit together"),
        ("scaling", {}, "its parts do not fit together"),
    ],
)
def test_a_forged_file_or_one_of_another_version_is_refused(
    run: Path, tmp_path: Path, name: str, value: object, words: str
) -> None:
    whole = torch.load(run / "model.pt", weights_only=True)
    del whole["check"]
    saved.write(tmp_path, {**whole, name: value})
    with pytest.raises(saved.ModelError, match=words) as caught:
        load(tmp_path)
    assert len(str(caught.value)) <= 300


def test_a_folder_without_a_model_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`dopaminergic train` writes one"):
        load(tmp_path)


def test_a_network_of_a_task_predicts_too(tmp_path: Path) -> None:
    for task in ("xor-2-2-1", "henon"):
        out = tmp_path / task
        words = ["--optimizer", "adam", "--budget", "300", "--out", str(out), "--json"]
        assert main(["train", "--task", task, *words]) == 0
    xor = load(tmp_path / "xor-2-2-1").predict([[1.0, -1.0], [1.0, 1.0]])
    assert xor.shape == (2, 1)
    forecast = load(tmp_path / "henon").predict(np.zeros((7, 2)))
    assert forecast.shape == (7, 2)
    assert (tmp_path / "henon" / "forecast.png").exists()
    assert main(["forecast", str(tmp_path / "xor-2-2-1")]) == 2


@pytest.mark.parametrize("n", [19, 40, 400])
def test_intervals_hold_new_errors_as_often_as_they_say(n: int) -> None:
    """Exactly: a new residual is as likely to fall into each of the n + 1 gaps."""
    residuals = np.arange(1.0, n + 1)[:, None]
    found = quantiles(residuals)[0]
    for percent in (50, 80, 90):
        low = found[LEVELS.index((100 - percent) / 200)]
        high = found[LEVELS.index(1 - (100 - percent) / 200)]
        assert (high - low) / (n + 1) >= percent / 100 - 1e-12
        assert (high - low) / (n + 1) < percent / 100 + 2.5 / (n + 1)


def test_predict_says_what_it_takes(run: Path) -> None:
    model = load(run)
    assert isinstance(model, Forecaster)
    rows = np.ones((30, 3))
    ahead = np.ones((3, 1))
    for values, known, words in (
        (rows[:, :2], ahead, r"expected shape \(rows, 3\), got \(30, 2\); .* units, cost, price"),
        (rows[:10], ahead, "10 rows, but at least 25 are needed"),
        (rows * np.nan, ahead, "row 0 has a missing or infinite value"),
        (rows, None, "price must be known for each row ahead"),
        ([["a"] * 3] * 30, ahead, "expected rows of numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            model.predict(values, known=known)
    assert model.predict(rows, known=ahead).shape == (3, 2)
