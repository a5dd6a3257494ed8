"""The forecasting tasks: pinned series, both protocols against their anchors, and rivals on real
series.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.tasks.forecasting import QuickForecasting
from dopaminergic.lab.tasks.free_running import LongForecasting
from dopaminergic.lab.tasks.real import RealForecasting, linear_errors
from dopaminergic.lab.tasks.series import (
    SYSTEMS,
    Series,
    _mackey_glass_steps,
    long_series,
    lorenz_field,
    quick_series,
    runge_kutta,
)

QUICK = {
    "lorenz": ([-0.08347, -0.168371, 10.495833], [7.833506, 9.018158, 8.876736]),
    "rossler": ([7.690266, -2.782075, 0.309704], [5.110142, 4.802184, 2.678123]),
    "mackey-glass": ([1.315717], [0.227179]),
    "henon": ([-1.236153, 0.37488], [0.711459, 0.211525]),
    "logistic": ([0.462062], [0.29761]),
}
# SHA-256 of all 20,000 samples: one other bit anywhere is another trajectory.
LONG = {
    "lorenz": "d2219d284bbb38bf",
    "rossler": "b88e668a2455f867",
    "mackey-glass": "89c3a0159fbf9e3a",
}


@cache
def long_task(system: str) -> LongForecasting:
    return LongForecasting(system)


def pinned(series: Series, last: list[float], deviation: list[float]) -> None:
    """The first 200 steps; a difference in the last bit grows by less than 1e10 up to there."""
    assert np.isfinite(series).all()
    assert not series.flags.writeable
    np.testing.assert_allclose(series[199], last, rtol=0, atol=1e-4)
    np.testing.assert_allclose(series[:200].std(0), deviation, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", QUICK)
def test_quick_series_are_pinned(name: str) -> None:
    assert len(quick_series(name)) == 4000
    pinned(quick_series(name), *QUICK[name])


@pytest.mark.parametrize("name", LONG)
def test_long_series_are_the_same_bits_on_every_machine(name: str) -> None:
    series = long_series(name)
    assert len(series) == 20_000
    assert not series.flags.writeable
    assert hashlib.sha256(series.astype("<f8").tobytes()).hexdigest()[:16] == LONG[name]


def test_long_lorenz_agrees_with_an_independent_integrator() -> None:
    start = tuple(long_series("lorenz")[0].tolist())
    other = runge_kutta(
        lorenz_field, (start[0], start[1], start[2]), dt=0.0005, every=1, n=8000, skip=0
    )
    np.testing.assert_allclose(long_series("lorenz")[1:201], other[39::40], rtol=0, atol=1e-5)


def test_mackey_glass_converges_with_order_four() -> None:
    exact = _mackey_glass_steps(300, 0, 160)
    coarse, fine = (np.abs(_mackey_glass_steps(300, 0, n) - exact).max() for n in (10, 20))
    assert fine < 1e-9
    assert 12 < coarse / fine < 20


@pytest.mark.parametrize("name", QUICK)
def test_quick_sequences_follow_the_series(name: str) -> None:
    task = QuickForecasting(name, dtype="float64")
    series = task.series.numpy()
    np.testing.assert_allclose(series.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(series.std(0), 1, rtol=1e-12)
    inputs, targets = task.batch(torch.tensor([3, 4]), 9)
    starts = task.starts(torch.tensor([3, 4]), 9)
    for r in range(2):
        for b in range(8):
            start = int(starts[r, b])
            assert start >= 0
            assert start + 51 <= 2800
            np.testing.assert_array_equal(inputs[r, b].numpy(), series[start : start + 50])
            np.testing.assert_array_equal(targets[r, b].numpy(), series[start + 1 : start + 51])
    assert task.test[0].shape[0] == 48


@pytest.mark.parametrize("kind", [QuickForecasting, LongForecasting])
@pytest.mark.parametrize("output", ["direct", "delta"])
def test_constant_networks_have_known_errors(kind: type[QuickForecasting], output: str) -> None:
    """With a readout of 0 a direct network predicts the mean and a delta network the present
    state.
    """
    teacher: dict[str, Any] = {"forcing": 1} if kind is LongForecasting else {}
    task = kind("lorenz", output=output, dtype="float64", **teacher)
    model = task.build(0)
    with torch.no_grad():
        model.get_parameter("output_weight").zero_()
    errors = task.test[1] - (task.test[0] if output == "delta" else 0)
    expected = errors[:, task.washout :].square().mean().sqrt().item()
    if isinstance(task, LongForecasting):
        expected /= task.series[8000:].square().mean().sqrt().item()
    assert task.evaluate(model)["nrmse"].item() == pytest.approx(expected, rel=1e-10)
    batch = task.batch(1, 2)
    change = (batch[1] - batch[0]) / torch.from_numpy(
        np.diff(task.series[: task.train_rows].numpy(), axis=0).std(0)
    )
    goal = (batch[1] if output == "direct" else change)[:, task.washout :]
    assert task.outcome(model, batch).mean().item() == pytest.approx(
        goal.square().mean().item(), rel=1e-10
    )


def test_quick_lorenz_is_learned_by_backpropagation() -> None:
    task = make_task("lorenz")
    model, seeds = task.build([100, 101]), torch.tensor([100, 101])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(500):
        optimizer.zero_grad()
        task.outcome(model, task.batch(seeds, step)).losses.mean((1, 2, 3)).sum().backward()
        optimizer.step()
    assert task.evaluate(model)["nrmse"].max() < 0.06


# The anchors were measured on one trajectory of each system; Rössler's rare spikes make the figure
# vary by some 3 % from one stretch to the next, and the standard error of 50 starts is up to .006
# Lyapunov times.
@pytest.mark.parametrize(
    ("system", "error", "tolerance", "time"),
    [
        ("lorenz", 0.149, 0.01, 0.07),
        ("rossler", 0.194, 0.04, 0.04),
        ("mackey-glass", 0.146, 0.01, 0.02),
    ],
)
def test_persistence_has_the_published_errors(
    system: str, error: float, tolerance: float, time: float
) -> None:
    task = long_task(system)
    model = task.build(0)
    with torch.no_grad():
        for name in ("output_weight", "output_bias"):
            model.get_parameter(name).zero_()
    metrics = task.finish(model)
    assert metrics["test_nrmse"].item() == pytest.approx(error, rel=tolerance)
    assert metrics["vpt"].item() == pytest.approx(time, abs=0.016)
    assert metrics["diverged_share"] == 0


def test_long_protocol_is_normalised_by_its_training_part() -> None:
    series = LongForecasting("rossler", dtype="float64").series
    assert len(series) == 20_000
    torch.testing.assert_close(
        series[:5000].mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10
    )
    torch.testing.assert_close(
        series[:5000].std(0, correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-10, atol=0
    )
    assert abs(series.mean(0)).max() > 1e-3


def test_delta_predictions_are_changes_in_units_of_their_spread() -> None:
    task = QuickForecasting("lorenz", output="delta", dtype="float64")
    inputs = task.test[0]
    model = task.build(3)
    spread = task.series[1 : task.train_rows] - task.series[: task.train_rows - 1]
    expected = inputs + spread.std(0, correction=0) * model(inputs)[0]
    torch.testing.assert_close(task.predict(model, inputs)[0], expected, rtol=1e-10, atol=1e-12)
    loss = task.outcome(model, task.test).mean()
    error = (task.predict(model, inputs)[0] - task.test[1]) / spread.std(0, correction=0)
    torch.testing.assert_close(loss, error[:, 5:].square().mean(), rtol=1e-10, atol=0)


def test_valid_time_of_made_forecasts() -> None:
    task = long_task("lorenz")
    truth = task.truth()
    per_step = 0.02 * 0.905
    perfect = task.forecast_metrics(truth)
    assert perfect["vpt"].item() == pytest.approx(15, abs=per_step)
    assert perfect["nrmse_one_lyapunov_time"] == 0
    wrong = truth.clone()
    wrong[:, 55:, 0] += 0.41 * task.scale
    wrong[:, 20, 0] += 0.39 * task.scale
    wrong[3, 200:] = float("nan")
    metrics = task.forecast_metrics(torch.stack([wrong, truth]))
    assert metrics["vpt"][0].item() == pytest.approx(55 * per_step, rel=1e-6)
    assert metrics["vpt"][1] == perfect["vpt"]
    torch.testing.assert_close(
        metrics["diverged_share"], torch.tensor([0.02, 0.0], dtype=torch.float64)
    )
    lost = truth.clone()
    lost[:25, 30:] = float("nan")
    expected = (30 * per_step + perfect["vpt"].item()) / 2
    assert task.forecast_metrics(lost)["vpt"].item() == pytest.approx(expected, rel=1e-6)
    # One Lyapunov time is 55 steps: only step 20 is off in it.
    assert metrics["nrmse_one_lyapunov_time"][0].item() == pytest.approx(0.39 / 55**0.5, rel=1e-4)


def test_free_run_feeds_the_network_its_own_predictions() -> None:
    task = LongForecasting("lorenz", dtype="float64")
    model = task.build([1, 2])
    start = torch.tensor([9000])
    forecast = task.free_run(model, start, 6)
    rows = task.series[8900:9000].expand(2, 1, -1, -1)
    for k in range(6):
        prediction = task.predict(model, rows)[0][..., -1:, :]
        torch.testing.assert_close(forecast[..., k : k + 1, :], prediction, rtol=1e-9, atol=1e-11)
        rows = torch.cat([rows, prediction], -2)


def test_pieces_side_by_side_are_one_long_pass() -> None:
    task = make_task("lorenz", hidden=4, dtype="float64")
    assert isinstance(task, QuickForecasting)
    model = task.build(0)
    with torch.no_grad():  # a short memory, so that the warm-up is as good as the whole past
        model.get_parameter("recurrent_weight").mul_(0.3)
    whole = task.predict(model, task.series[:-1][None])[0][0] - task.series[1:]
    pieces = task.one_step_errors(model, 2000, 3777, warm_up=60, piece=250)
    torch.testing.assert_close(pieces, whole[1999:3776], rtol=0, atol=1e-10)


def test_input_noise_is_of_the_stated_size_and_not_in_the_targets() -> None:
    noisy, plain = (
        LongForecasting("mackey-glass", input_noise=size, forcing=1) for size in (0.01, 0)
    )
    a, b = noisy.batch(5, 3), plain.batch(5, 3)
    assert torch.equal(a[1], b[1])
    noise = a[0] - b[0]
    assert noise.std().item() == pytest.approx(0.01, rel=5 / (2 * noise.numel()) ** 0.5)
    later = noisy.batch(5, 4)[0] - plain.batch(5, 4)[0]
    assert torch.equal(noisy.batch(5, 3)[0], a[0])
    assert not torch.equal(later, noise)


def test_forcing_of_one_is_teacher_forcing_and_of_none_a_free_run() -> None:
    plain = LongForecasting("lorenz", dtype="float64", forcing=1)
    assert long_task("lorenz").settings["forcing"] == 0.3
    for washout in (0, 20):
        free = LongForecasting("lorenz", dtype="float64", washout=washout, forcing=0.0)
        model, seeds = free.build([1, 2]), torch.tensor([1, 2])
        inputs, targets = free.batch(seeds, 3)
        first = max(1, washout)
        assert inputs[..., first:, :].isnan().all()
        assert torch.equal(inputs[..., :first, :], plain.batch(seeds, 3)[0][..., :first, :])
        found, state = free.predict(model, inputs[..., :first, :])
        forecast = list(found.split(1, -2))
        while len(forecast) < 100:
            out, state = free.predict(model, forecast[-1], state)
            forecast.append(out)
        error = ((torch.cat(forecast, -2) - targets) / free.change)[..., washout:, :]
        torch.testing.assert_close(
            free.outcome(model, (inputs, targets)).values, error, rtol=1e-9, atol=1e-9
        )


def test_forcing_hides_the_stated_share_and_scores_the_same_forecasts() -> None:
    task, plain = (LongForecasting("rossler", forcing=share, dtype="float64") for share in (0.7, 1))
    model, batch = task.build([4]), task.batch(torch.tensor([4]), 0)
    hidden = batch[0][..., 20:, :].isnan()
    assert torch.equal(hidden.any(-1), hidden.all(-1))
    assert hidden.double().mean().item() == pytest.approx(
        0.3, abs=5 * (0.3 * 0.7 / (64 * 80)) ** 0.5
    )
    assert not torch.equal(hidden, task.batch(torch.tensor([4]), 1)[0][..., 20:, :].isnan())
    assert torch.equal(batch[0].isnan(), task.batch(torch.tensor([4]), 0)[0].isnan())
    # Where nothing was hidden yet in a sequence, its errors are those of one-step predictions.
    before = (~hidden[..., 0]).long().cumprod(-1).bool()
    one_step = plain.squared_errors(model, plain.batch(torch.tensor([4]), 0)).sqrt() / task.change
    torch.testing.assert_close(
        task.outcome(model, batch).values[before].abs(), one_step[before], rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("forcing", [-0.1, 1.1, float("nan"), "yes", True])
def test_forcing_is_a_share(forcing: Any) -> None:
    with pytest.raises(ValueError, match=r"forcing: expected a number in \[0, 1\]"):
        LongForecasting("lorenz", forcing=forcing)


def test_picture_of_a_free_run() -> None:
    task = long_task("mackey-glass")
    picture = task.picture(task.build([3]))[0]
    assert picture["lyapunov_time"] == SYSTEMS["mackey-glass"].lyapunov_time
    start = int(task.spread(task.STARTS, task.steps)[0])
    assert picture["truth"] == task.series[start : start + 1818].tolist()
    assert (
        picture["forecast"][:3]
        == task.free_run(task.build(3), torch.tensor([start]), 3)[0].tolist()
    )


def test_linear_autoregression_recovers_its_own_process() -> None:
    """x_t = 1.6 x_{t-1} - 0.9 x_{t-2} + 0.2 is fitted without error; another process is not."""
    x = [0.3, -0.2]
    for _ in range(100):
        x.append(1.6 * x[-1] - 0.9 * x[-2] + 0.2)
    series = np.array(x)[:, None]
    assert linear_errors(series, 60, 2).shape == (100, 1)
    assert np.abs(linear_errors(series, 60, 2)).max() < 1e-10
    assert np.abs(linear_errors(series, 60, 1)).max() > 0.01


def test_sunspots_rivals_have_the_published_errors() -> None:
    task = make_task("sunspots")
    assert isinstance(task, RealForecasting)
    assert task.parts == {
        "error": (221, 256),
        "error_1956_1979": (256, 280),
        "error_1980_2008": (280, 309),
    }
    metrics = task.finish(task.build([0, 1]))
    for key, value in {
        "linear_ar": 0.119,
        "linear_ar_1956_1979": 0.337,
        "linear_ar_1980_2008": 0.181,
    }.items():
        assert metrics[key].shape == (2,)
        assert metrics[key][1].item() == pytest.approx(value, abs=6e-4)
    model = task.build(0)
    with torch.no_grad():
        for name in ("output_weight", "output_bias"):
            model.get_parameter(name).zero_()
    delta = make_task("sunspots", output="delta")
    assert delta.evaluate(model)["error"].item() == pytest.approx(
        metrics["persistence"][0].item(), rel=1e-5
    )
