"""Fleets: replicas know nothing of each other, equal single runs, and resume bit for bit."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import everything, state_in, write_forged
from dopaminergic import Dopamine, Dopamine2
from dopaminergic.lab.fleet import CheckpointError, Fleet
from dopaminergic.lab.optimizers import METHODS, Backpropagation, find_method, grid_of
from dopaminergic.lab.tasks import TASKS, make_task

SEEDS = [11, 12, 13]
RATES = {
    "dopamine": [5.0, 1.0, 9.0],
    "dopamine2": [1.5, 3.0, 0.5],
    "adam": [0.01, 0.1, 0.03],
    "wp": [0.3, 0.1, 1.0],
}
RATES["vector"] = RATES["node"] = [1.0, 0.5, 0.8]


@pytest.mark.parametrize("kind", [Dopamine, Dopamine2])
@pytest.mark.parametrize("name", ["xor-2-8-1", "lorenz"])
def test_a_fleet_of_one_is_the_single_run_bit_for_bit(
    kind: type[Dopamine] | type[Dopamine2], name: str
) -> None:
    task = make_task(name, dtype="float64")
    single, stacked = task.build(7), task.build([7])
    alone, fleet = kind(single.parameters(), seed=7), kind(stacked.parameters(), seed=[7])
    for step in range(30):
        one, many = task.batch(7, step), task.batch(torch.tensor([7]), step)
        loss = alone.step(lambda one=one: task.outcome(single, one))
        losses = fleet.step(lambda many=many: task.outcome(stacked, many))
        assert loss == losses.item()
    for p, q in zip(single.parameters(), stacked.parameters(), strict=True):
        assert torch.equal(p, q[0])


@pytest.mark.parametrize("optimizer", RATES)
def test_replicas_do_not_know_of_each_other(optimizer: str) -> None:
    """Sums of a batched product may run in another order than those of a single one, hence the
    tolerance: float64.
    """
    task = make_task("xor-2-8-1", dtype="float64")
    together = Fleet(task, optimizer, SEEDS, RATES[optimizer], budget=120)
    for _ in together.run():
        pass
    for r, (seed, rate) in enumerate(zip(SEEDS, RATES[optimizer], strict=True)):
        alone = Fleet(task, optimizer, [seed], [rate], budget=120)
        for _ in alone.run():
            pass
        for p, q in zip(together.model.parameters(), alone.model.parameters(), strict=True):
            torch.testing.assert_close(p[r], q[0], rtol=1e-7, atol=1e-9)
        assert together.solved_at[r] == alone.solved_at[0]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_backpropagation_is_torchs_own_with_a_learning_rate_for_each_replica(
    kind: type[torch.optim.Optimizer],
) -> None:
    task, rates = make_task("xor-2-8-1", dtype="float64"), [0.3, 0.02]
    stacked = task.build([1, 2])
    fleet = Backpropagation(stacked.parameters(), kind, torch.tensor(rates, dtype=torch.float64))
    singles = [task.build(seed) for seed in (1, 2)]
    plain = [kind(model.parameters(), lr=rate) for model, rate in zip(singles, rates, strict=True)]  # pyright: ignore[reportCallIssue]
    for _ in range(25):
        fleet.step(lambda: task.outcome(stacked, task.batch(0, 0)))
        for model, optimizer in zip(singles, plain, strict=True):
            optimizer.zero_grad()
            task.outcome(model, task.batch(0, 0)).mean().backward()
            optimizer.step()
    assert fleet.forward_passes == 75
    for r, model in enumerate(singles):
        for p, q in zip(stacked.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p[r], q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["dopamine", "dopamine2", "vector", "node", "es", "adam"])
def test_a_checkpoint_continues_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    task, rate = make_task("continuous-xor"), METHODS[optimizer].grid[-1] / 30
    whole = Fleet(task, optimizer, SEEDS, [rate] * 3, budget=640)
    for _ in whole.run():
        pass
    first = Fleet(task, optimizer, SEEDS, [rate] * 3, budget=640)
    while first.passes < 300:
        first.step()
    first.save(tmp_path / "checkpoint.pt")
    second = Fleet(task, optimizer, SEEDS, [rate] * 3, budget=640)
    second.load(tmp_path / "checkpoint.pt")
    for _ in second.run():
        pass
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.passes == second.passes
    assert whole.curve == second.curve
    assert whole.traces == second.traces
    assert torch.equal(whole.solved_at, second.solved_at)


def test_a_checkpoint_of_other_runs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    Fleet(make_task("xor-2-8-1"), "wp", [1, 2], [0.1, 0.1], budget=100).save(path)
    with pytest.raises(ValueError, match="belongs to other runs"):
        Fleet(make_task("xor-2-8-1"), "wp", [1, 3], [0.1, 0.1], budget=100).load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        Fleet(make_task("xor-2-8-1"), "wp", [1, 2], [0.1, 0.1], budget=100).load(path)


Place = tuple[Any, ...]
ADAM = ("optimizer", "inner")
FORGED: list[tuple[str, Place, Any]] = [
    ("adam", (*ADAM, "state", 0, "exp_avg_sq"), None),
    ("adam", (*ADAM, "state", 0, "exp_avg"), torch.zeros(1, 2, 8, 2)),
    ("adam", (*ADAM, "state", 0, "step"), "x"),
    ("adam", (*ADAM, "state", 1, "exp_avg"), torch.zeros(1).expand(2, 8, 1)),
    ("adam", (*ADAM, "state"), {}),
    ("adam", (*ADAM, "param_groups", 0, "capturable"), True),
    ("adam", (*ADAM, "param_groups", 0, "betas"), (0.9, "y")),
    ("adam", ("optimizer", "steps"), "3"),
    ("adam", ("optimizer", "steps"), -3),
    ("adam", ("optimizer", "lr"), torch.ones(1, dtype=torch.float64)),
    ("adam", ("optimizer", "lr"), torch.full((2,), math.nan, dtype=torch.float64)),
    ("sgd", (*ADAM, "param_groups", 0, "momentum"), 0.9),
    ("dopamine", ("optimizer", "forward", "settings", "directions"), 65535),
    ("dopamine", ("optimizer", "forward", "settings", "seed"), [7, 8]),
    ("dopamine", ("optimizer", "forward", "rule"), [0.0]),
    ("dopamine", ("solved_at",), torch.zeros(2, dtype=torch.float64, device="meta")),
    ("dopamine", ("kept",), 1 << 61),
    ("dopamine", ("curve",), []),
    ("dopamine", ("traces",), [(1, None, 0.5)]),
    ("dopamine", ("steps",), True),
    ("dopamine", ("model",), {}),
]


@pytest.mark.parametrize(
    ("optimizer", "place", "value"), FORGED, ids=[f"{o} {p[-1]}" for o, p, _ in FORGED]
)
def test_a_forged_checkpoint_is_refused_and_nothing_of_it_loaded(
    optimizer: str, place: Place, value: Any, tmp_path: Path
) -> None:
    path, task = tmp_path / "checkpoint.pt", make_task("xor-2-8-1")

    def fleet() -> Fleet:
        return Fleet(task, optimizer, [1, 2], [0.1, 0.1], budget=600)

    trained = fleet()
    for _ in range(3):
        trained.step()
    trained.save(path)
    state = state_in(path)
    holder = state
    for key in place[:-1]:
        holder = holder[key]
    assert place[-1] in holder or isinstance(holder, list)
    holder[place[-1]] = value
    write_forged(path, state)
    fresh = fleet()
    before = everything(fresh)
    words = r"checkpoint.pt: not a (readable checkpoint|checkpoint of this run)"
    with pytest.raises(CheckpointError, match=words) as error:
        fresh.load(path)
    assert len(str(error.value)) - len(str(path)) < 300
    assert everything(fresh) == before
    fresh.step()


PAGES = """
import resource, sys, torch
from dopaminergic.lab.allocator import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
for repeat in range(42):
    if repeat == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_kept_memory_is_not_paged_in_anew() -> None:
    """Blocks of 40 MB, above all that glibc would keep by itself."""
    found = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", PAGES, how], capture_output=True, check=True
            ).stdout
        )
        for how in ("kept", "given back")
    }
    assert found["kept"] < found["given back"] / 2


def test_solved_is_the_first_time_below_the_threshold() -> None:
    fleet = Fleet(make_task("xor-2-8-1"), "adam", [1, 2], [0.1, 1e-9], budget=300)
    for _ in fleet.run():
        pass
    assert 10 <= fleet.solved_at[0] <= 300
    assert fleet.solved_at[1].isinf()


@pytest.mark.parametrize("task", ["lorenz", "digits-conv"])
def test_every_method_that_has_something_to_tune_is_tuned_over_seven_rates_of_three_decades(
    task: str,
) -> None:
    for name, method in METHODS.items():
        grid = grid_of(name, task)
        if name in ("vector", "node"):
            assert (grid, method.default, method.tunable) == ([1.0], 1.0, False)
            continue
        assert method.tunable
        assert len(grid) == 7
        assert grid[-1] / grid[0] == pytest.approx(1000)
        assert method.default is None or grid[1] < method.default < grid[-2]
    assert grid_of("wp", "digits-conv")[2] == 0.001  # 0.0015 diverges


@pytest.mark.parametrize("optimizer", METHODS)
def test_no_step_costs_more_than_was_said_and_no_run_more_than_its_budget(optimizer: str) -> None:
    fleet = Fleet(
        make_task("continuous-xor"), optimizer, [1, 2], [METHODS[optimizer].grid[0]] * 2, budget=301
    )
    most = said = 0
    while not fleet.done:
        before, said = fleet.passes, fleet.optimizer.next_passes
        fleet.step()
        assert 0 < fleet.passes - before <= said
        if before == 0 and optimizer == "node":  # it tries once whether samples are apart
            continue
        assert said <= METHODS[optimizer].passes_per_step
        most = max(most, fleet.passes - before)
    assert 301 - said < fleet.passes <= 301
    assert most == METHODS[optimizer].passes_per_step or optimizer == "vector"


# The batches of free runs take minutes; their network and their loop are those of other tasks.
LONG = {"lorenz-vpt", "rossler-vpt", "mackey-glass-vpt"}


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"series"} - LONG))
def test_perturbed_activities_reach_every_weight_of_every_task(name: str) -> None:
    task, method = make_task(name), METHODS["node"]
    model = task.build([1, 2])
    model.as_written = method.as_written
    optimizer = method.make(model.parameters(), torch.ones(2, dtype=torch.float64), [1, 2])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for step in range(3):
        batch = task.batch(torch.tensor([1, 2]), step)
        losses = optimizer.step(lambda batch=batch: task.outcome(model, batch))
        assert losses.isfinite().all()
    for old, (key, new) in zip(before, model.named_parameters(), strict=True):
        assert new.isfinite().all(), key
        assert (old != new).flatten(1).any(1).all(), key


def test_an_unknown_optimizer_is_told_the_nearest() -> None:
    with pytest.raises(
        ValueError, match="no optimizer 'dopamin'; did you mean dopamine or dopamine2"
    ):
        find_method("dopamin")
