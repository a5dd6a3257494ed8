"""XOR and its relatives: data, anchors and learning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dopaminergic.lab.networks import Perceptron
from dopaminergic.lab.tasks import Task, make_task
from dopaminergic.lab.tasks.xor import ClusterXor, ContinuousXor


def adam(task: Task, seeds: list[int], lr: float, steps: int) -> dict[str, Tensor]:
    model, drawn = task.build(seeds), torch.tensor(seeds)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        task.outcome(model, task.batch(drawn, step)).losses.flatten(1).mean(1).sum().backward()
        optimizer.step()
    return task.evaluate(model)


def solution(dtype: torch.dtype = torch.float32) -> Perceptron:
    """Two units of XOR 2-2-1: "both" and "neither" at saturation, so that the logit is +-20."""
    model = Perceptron((2, 2, 1), dtype=dtype)
    with torch.no_grad():
        model.get_parameter("weight_0").copy_(torch.tensor([[9.0, -9.0], [9.0, -9.0]]))
        model.get_parameter("bias_0").copy_(torch.tensor([-9.0, -9.0]))
        model.get_parameter("weight_1").copy_(torch.tensor([[-20.0], [-20.0]]))
        model.get_parameter("bias_1").copy_(torch.tensor([-20.0]))
    return model


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_the_known_solution_solves_xor(loss: str) -> None:
    task = make_task("xor-2-2-1", loss=loss)
    model = solution()
    assert task.evaluate(model)["mse"] < 1e-12
    assert task.evaluate(model)["error_rate"] == 0
    assert task.outcome(model, task.batch(0, 0)).losses.max() < 1e-6
    with torch.no_grad():
        model.get_parameter("weight_1").neg_()
        model.get_parameter("bias_1").neg_()
    assert task.evaluate(model)["mse"] > 0.99
    assert task.evaluate(model)["error_rate"] == 1


def test_xor_start_is_at_chance() -> None:
    task = make_task("xor-2-8-1", loss="bce", dtype="float64")
    model = task.build(0)
    with torch.no_grad():
        model.get_parameter("weight_1").zero_()
    assert task.evaluate(model)["mse"].item() == pytest.approx(0.25, rel=1e-12)
    assert task.outcome(model, task.batch(0, 0)).mean().item() == pytest.approx(
        0.6931471805599453, rel=1e-12
    )


def test_xor_2_8_1_is_learned_in_twenty_adam_steps() -> None:
    assert adam(make_task("xor-2-8-1"), list(range(20)), 0.3, 20)["mse"].max() < 0.01


def test_xor_2_2_1_has_local_minima() -> None:
    """Adam solves 0.47 of the seeds; 40 seeds have a standard error of 0.08."""
    solved = (
        (adam(make_task("xor-2-2-1"), list(range(40)), 0.3, 300)["mse"] < 0.01)
        .double()
        .mean()
        .item()
    )
    assert abs(solved - 0.47) < 3 * 0.08


def test_continuous_xor_is_learned() -> None:
    task = ContinuousXor()
    assert len(task.train[0]) == 256
    assert len(task.test[0]) == 1000
    for points, classes in (task.train, task.test):
        assert points.abs().max() <= 1
        assert torch.equal(classes[:, 0] == 1, (points[:, 0] > 0) == (points[:, 1] > 0))
    metrics = adam(task, list(range(5)), 0.003, 900)
    assert metrics["error_rate"].median() < 0.05
    assert metrics["loss"].max() < 0.2


@pytest.mark.parametrize(("sd", "accuracy"), [(0.3, 0.9991), (0.5, 0.9555), (1.0, 0.733)])
def test_cluster_xor_has_the_stated_bayes_error(sd: float, accuracy: float) -> None:
    task = ClusterXor(sd=sd)
    bayes = task.bayes_error
    assert 1 - bayes == pytest.approx(accuracy, abs=6e-5 if sd < 1 else 6e-4)
    points, classes = task.test
    best = ((points.prod(-1, keepdim=True) > 0).float() != classes).double().mean().item()
    assert abs(best - bayes) < 4 * (bayes * (1 - bayes) / 10_000) ** 0.5


def test_cluster_xor_training_points_depend_on_the_data_seed_and_differ_from_the_test_points() -> (
    None
):
    a, b = ClusterXor(), ClusterXor(data_seed=1)
    assert not torch.equal(a.train[0], b.train[0])
    assert torch.equal(a.test[0], b.test[0])
    assert not torch.isin(a.train[0], a.test[0]).all()
    assert a.train[1].mean() == 0.5


@pytest.mark.parametrize("delay", [1, 2, 4])
def test_temporal_xor_classes_are_products_of_signs(delay: int) -> None:
    task = make_task("temporal-xor", delay=delay, batch_size=64)
    signs, classes = task.batch(3, 17)
    assert signs.shape == (64, 20 + delay, 1)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    for t in range(20):
        assert torch.equal(classes[:, t] == 1, signs[:, t] == signs[:, t + delay])
    # n fair signs have a mean of standard deviation 1/sqrt(n).
    assert abs(signs.mean()) < 4 / signs.numel() ** 0.5
    assert abs(signs[:, 1:].mul(signs[:, :-1]).mean()) < 4 / signs.numel() ** 0.5


def test_temporal_xor_is_learned() -> None:
    assert adam(make_task("temporal-xor"), [1, 2, 3], 0.02, 300)["error_rate"].max() < 0.05


def test_decision_boundary_of_the_known_solution() -> None:
    picture = make_task("xor-2-2-1").picture(solution())[0]
    grid = torch.tensor(picture["probability"])
    assert grid.shape == (40, 40)
    assert picture["extent"] == [-1.5, 1.5]
    assert grid[0, 0] < 0.01 < 0.99 < grid[0, -1]
    # With the weight of y gone the columns alone decide: x runs along a row.
    model = solution()
    with torch.no_grad():
        model.get_parameter("weight_0")[1].zero_()
    grid = torch.tensor(make_task("xor-2-2-1").picture(model)[0]["probability"])
    assert torch.equal(grid[0], grid[-1])
    assert not torch.equal(grid[:, 0], grid[:, 20])
