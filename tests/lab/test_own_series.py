"""Series of the user's own: columns known ahead, times, parts of the rows, and early stopping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from dopaminergic.lab.cli import main
from dopaminergic.lab.fleet import Fleet
from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.tasks.own_series import UserSeries
from dopaminergic.lab.tasks.reading import read_data
from dopaminergic.lab.tasks.times import following

ROWS = 200


def series(folder: Path, name: str = "a.csv", rows: int = ROWS) -> Path:
    """`y` is the driver `u` of the same row, as a linear rule; `v` is a wave."""
    draw = np.random.default_rng(0)
    u = draw.normal(size=rows)
    frame = pandas.DataFrame({"t": np.arange(rows), "u": u, "y": 3 * u + 1})
    frame["v"] = np.sin(np.arange(rows) / 4)
    frame.to_csv(folder / name, index=False)
    return folder / name


def own(path: Path, **settings: object) -> UserSeries:
    task = make_task("series", path=path, dtype="float64", **settings)
    assert isinstance(task, UserSeries)
    return task


def test_inputs_are_seen_one_row_before_they_happen(tmp_path: Path) -> None:
    task = own(series(tmp_path), column=["y", "v"], inputs=["u"])
    inputs, targets = task.cut(torch.tensor([7]))
    assert inputs.shape == (1, 25, 3)
    assert targets.shape == (1, 25, 2)
    assert torch.equal(inputs[0, :, :2], task.series[7:32, :2])
    assert torch.equal(inputs[0, :, 2], task.series[8:33, 2])
    assert torch.equal(targets[0], task.series[8:33, :2])
    assert torch.equal(task.seen(torch.arange(7, 32)), inputs[0])


def test_the_linear_rival_knows_them_too(tmp_path: Path) -> None:
    path = series(tmp_path)
    told = own(path, column="y", inputs=["u"], order=2)
    untold = own(path, column="y", order=2)
    assert told.finish(told.build(0))["linear_ar"] < 1e-10
    assert untold.finish(untold.build(0))["linear_ar"] > 0.8


def test_errors_further_ahead_are_those_of_runs_by_themselves(tmp_path: Path) -> None:
    task = own(series(tmp_path), column="v", horizon=6, order=2)
    model = task.build(0)
    one = task.free_errors(model, 140, 200, 1, most=1000)[:, 0]
    assert torch.allclose(one, task.one_step_errors(model, 140, 200), atol=1e-12)
    found = task.finish(model)
    assert found["linear_ar_horizon"] < 1e-9  # a sine goes on by two lags
    v = task.series[:, 0]
    ahead = torch.stack([v[139 + k : 194 + k] for k in range(1, 7)], 1) - v[139:194, None]
    # 55 starts have six rows after them in the test part.
    assert found["persistence_horizon"].item() == pytest.approx(
        ahead.square().mean().sqrt().item(), rel=1e-12
    )


def test_the_validation_part_lies_between_training_and_test(tmp_path: Path) -> None:
    task = own(series(tmp_path), column="v", validation=0.1)
    assert (task.train_rows, task.test_first) == (120, 140)
    assert task.parts == {"nrmse": (140, 200)}
    raw = read_data(tmp_path / "a.csv", "v").values
    assert float(task.series[:120].mean()) == pytest.approx(0, abs=1e-12)
    assert task.scaling.means[0] == pytest.approx(raw[:120].mean())
    rival = own(tmp_path / "a.csv", column="v")
    # The linear rival is fitted to the same rows, and its error is in other units alone.
    ratio = rival.scaling.deviations[0] / task.scaling.deviations[0]
    ours, theirs = (each.finish(each.build(0))["linear_ar"] for each in (task, rival))
    assert ours.item() == pytest.approx(theirs.item() * ratio, rel=1e-6, abs=1e-12)


def noisy(folder: Path) -> Path:
    draw = np.random.default_rng(1)
    pandas.DataFrame({"y": draw.normal(size=150)}).to_csv(folder / "noise.csv", index=False)
    return folder / "noise.csv"


def trained(task: UserSeries, budget: int, seeds: list[int]) -> Fleet:
    fleet = Fleet(task, "adam", seeds, [0.03] * len(seeds), budget)
    for _ in fleet.run():
        pass
    return fleet


def test_the_weights_that_err_least_on_validation_rows_are_kept(tmp_path: Path) -> None:
    """Each replica its own; noise cannot be learned, so the last ones are not the best."""
    task = own(noisy(tmp_path), validation=0.1, patience=100_000)
    fleet = trained(task, 6000, [0, 1])
    errors = task.validate(fleet.model)
    assert errors is not None
    assert fleet.best is not None
    assert torch.equal(errors, fleet.best.errors)
    assert len(set(fleet.best.passes.tolist()) - {6000}) >= 1
    alone = trained(task, 6000, [1])
    assert alone.best is not None
    assert alone.best.passes[0] == fleet.best.passes[1]
    assert alone.curve[-1][1][0] == pytest.approx(fleet.curve[-1][1][1], rel=1e-9)
    # The error that is reported is that of the kept weights.
    assert fleet.curve[-1][1] == fleet.metrics()["nrmse"]


def test_training_stops_where_nothing_has_helped_for_long(tmp_path: Path) -> None:
    task = own(noisy(tmp_path), validation=0.1, patience=1500)
    fleet = trained(task, 60_000, [0])
    assert fleet.best is not None
    assert fleet.passes < 60_000
    assert fleet.passes - int(fleet.best.passes[0]) <= 1500 + 503  # it looks every 500 passes


def test_a_checkpoint_knows_the_best_weights(tmp_path: Path) -> None:
    task = own(noisy(tmp_path), validation=0.1, patience=100_000)
    whole = trained(task, 3000, [0, 1])
    first = Fleet(task, "adam", [0, 1], [0.03] * 2, 3000)
    while first.passes < 1600:
        first.step()
    first.save(tmp_path / "cut.pt")
    second = Fleet(task, "adam", [0, 1], [0.03] * 2, 3000)
    second.load(tmp_path / "cut.pt")
    for _ in second.run():
        pass
    assert second.curve == whole.curve
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    plain = Fleet(own(tmp_path / "noise.csv"), "adam", [0, 1], [0.03] * 2, 3000)
    with pytest.raises(ValueError, match="it belongs to other runs"):
        plain.load(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"column": "y", "inputs": ["y"]}, "'y' is named twice"),
        ({"column": "y", "time": "y"}, "'y' is named twice"),
        ({"inputs": ["u"]}, "--inputs: which columns are to be forecast"),
        ({"column": "y", "inputs": ["w"]}, "no column 'w'"),
        ({"column": "y", "time": "when"}, "no column 'when'"),
        ({"column": "y", "horizon": 31}, "horizon: at most 30, half of the last 30 %"),
        ({"column": "y", "horizon": 0}, "horizon: expected a whole number"),
        ({"column": "y", "validation": 0.6}, "validation: expected a number in"),
        ({"column": "y", "patience": 5}, "patience: needs a part of the rows"),
        ({"column": "y", "time": "v"}, "column 'v' does not rise at"),
    ],
)
def test_settings_that_do_not_fit_are_explained(
    tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    path = series(tmp_path, rows=100 if "horizon" in settings else ROWS)
    if settings.get("horizon") == 31:
        words = words.replace("30,", "15,")
    with pytest.raises(ValueError, match=words) as caught:
        own(path, **settings)
    assert len(str(caught.value)) <= 300


def test_rows_of_the_future_need_inputs(tmp_path: Path) -> None:
    path = series(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "200,0.5,,", "201,0.25,,"]))
    data = read_data(path, ["y", "v"], inputs=["u"], time="t")
    assert data.values.shape == (ROWS, 3)
    assert data.future.tolist() == [[0.5], [0.25]]
    assert data.times is not None
    assert data.times.labels[-1] == "199"
    assert data.times.future == ["200", "201"]
    with pytest.raises(ValueError, match=r"2 missing or infinite values, the first in row 201"):
        read_data(path, ["y", "v"])
    path.write_text("\n".join([*lines, "200,0.5,,", "201,,,"]))
    with pytest.raises(ValueError, match="column 'u' has 1 missing"):
        read_data(path, ["y", "v"], inputs=["u"])


@pytest.mark.parametrize(
    ("days", "wanted"),
    [
        (pandas.date_range("2024-01-31", periods=30, freq="ME"), ["2026-07-31", "2026-08-31"]),
        (pandas.date_range("2024-01-01", periods=30, freq="B"), ["2024-02-12", "2024-02-13"]),
        (pandas.date_range("2024-02-27", periods=30, freq="D"), ["2024-03-28", "2024-03-29"]),
        (
            pandas.date_range("2024-01-01", periods=30, freq="6h"),
            ["2024-01-08 12:00:00", "2024-01-08 18:00:00"],
        ),
    ],
)
def test_dates_go_on_as_they_did(
    tmp_path: Path, days: pandas.DatetimeIndex, wanted: list[str]
) -> None:
    frame = pandas.DataFrame({"day": days.astype(str), "y": np.arange(30) ** 2})
    frame.to_csv(tmp_path / "days.csv", index=False)
    frame.iloc[::-1].to_csv(tmp_path / "turned.csv", index=False)
    for name in ("days.csv", "turned.csv"):
        times = read_data(tmp_path / name, "y", time="day").times
        assert times is not None
        assert times.labels[0] == str(days.astype(str)[0])
        assert following(times.about(), 2) == wanted


def test_unequal_steps_are_told(tmp_path: Path) -> None:
    steps = np.cumsum(np.where(np.arange(60) % 3, 1, 5))
    pandas.DataFrame({"t": steps, "y": steps % 7}).to_csv(tmp_path / "a.csv", index=False)
    [note] = read_data(tmp_path / "a.csv", "y", time="t").notes
    assert "not equal (1 to 5)" in note


def test_train_keeps_a_validation_part_of_long_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rows, validation in ((99, None), (100, 0.1)):
        path = series(tmp_path, f"{rows}.csv", rows)
        command = ["train", "--csv", str(path), "--column", "v", "--budget", "60", "--json"]
        assert main([*command, "--optimizer", "adam", "--out", str(tmp_path / str(rows))]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["task_settings"].get("validation") == validation
