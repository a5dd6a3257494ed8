"""Stopping and going on: bit for bit, through files, processes, copies and schedulers."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from dopaminergic import Dopamine, ForwardOptimizer, WeightPerturbation
from optimizers import ROWS, Regression, Row, same, through_a_file

SETTINGS: dict[str, Any] = {
    "directions": 2,
    "noise": "rademacher",
    "seed": 77,
    "weight_decay": 0.01,
}


def run(problem: Regression, optimizer: ForwardOptimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.step(problem.loss)


def halfway(row: Row) -> tuple[Regression, ForwardOptimizer]:
    problem = Regression()
    optimizer = row.make(problem.model.parameters(), **SETTINGS)
    run(problem, optimizer, 4)
    return problem, optimizer


def test_a_loaded_state_goes_on_bit_for_bit(any_row: Row) -> None:
    problem, optimizer = halfway(any_row)
    saved = through_a_file(
        {"model": problem.model.state_dict(), "optimizer": optimizer.state_dict()}
    )
    run(problem, optimizer, 4)
    # Other settings and some steps, all of which loading must overrule.
    other = Regression(seed=1)
    resumed = any_row.make(other.model.parameters(), seed=1, lr=0.5, sigma=0.1)
    run(other, resumed, 3)
    other.model.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    run(other, resumed, 4)
    assert same(other.weights(), problem.weights())
    assert str(resumed.state_dict()) == str(optimizer.state_dict())
    for what in ("forward_passes", "last_rpe", "last_learning_rate", "skipped_steps"):
        assert getattr(resumed, what) == getattr(optimizer, what)


FRESH_PROCESS = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from optimizers import ROWS, Regression
saved = torch.load(sys.argv[2], weights_only=True)
ends = {}
for row in ROWS:
    problem = Regression(seed=1)
    optimizer = row.make(problem.model.parameters())
    problem.model.load_state_dict(saved[row.name]["model"])
    optimizer.load_state_dict(saved[row.name]["optimizer"])
    for _ in range(4):
        optimizer.step(problem.loss)
    ends[row.name] = problem.weights()
torch.save(ends, sys.argv[3])
"""


def test_a_fresh_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    saved, expected = {}, {}
    for row in ROWS:
        problem, optimizer = halfway(row)
        saved[row.name] = copy.deepcopy(
            {"model": problem.model.state_dict(), "optimizer": optimizer.state_dict()}
        )
        run(problem, optimizer, 4)
        expected[row.name] = problem.weights()
    before, after = tmp_path / "before.pt", tmp_path / "after.pt"
    torch.save(saved, before)
    arguments = [
        sys.executable,
        "-W",
        "error",
        "-c",
        FRESH_PROCESS,
        str(Path(__file__).parent),
        str(before),
        str(after),
    ]
    subprocess.run(arguments, check=True, timeout=300)
    ends = torch.load(after, weights_only=True)
    for row in ROWS:
        assert same(ends[row.name], expected[row.name]), row.name


def test_a_state_dict_does_not_change_with_the_run(any_row: Row) -> None:
    problem, optimizer = halfway(any_row)
    state = optimizer.state_dict()
    text = str(state)
    run(problem, optimizer, 2)
    assert str(state) == text


def test_a_state_can_be_loaded_twice(any_row: Row) -> None:
    problem, optimizer = halfway(any_row)
    weights, state = copy.deepcopy(problem.model.state_dict()), optimizer.state_dict()
    ends = []
    for _ in range(2):
        problem.model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        run(problem, optimizer, 3)
        ends.append(problem.weights())
    assert same(*ends)


def test_loading_does_not_rebind_parameters(row: Row) -> None:
    """The tensors that are trained after loading are those of the model, not copies from the
    file.
    """
    problem, optimizer = halfway(row)
    parameters = list(problem.model.parameters())
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], parameters, strict=True))
    old = problem.weights()
    run(problem, optimizer, 1)
    assert not same(problem.weights(), old)


def test_a_deep_copy_goes_its_own_way(any_row: Row) -> None:
    problem, optimizer = halfway(any_row)
    other_problem, other = copy.deepcopy((problem, optimizer))
    run(problem, optimizer, 3)
    before = other_problem.weights()
    assert not same(before, problem.weights())
    run(other_problem, other, 3)
    assert same(other_problem.weights(), problem.weights())
    assert other.forward_passes == optimizer.forward_passes


def test_pickling_goes_on_bit_for_bit(any_row: Row) -> None:
    problem, optimizer = halfway(any_row)
    other_problem, other = pickle.loads(pickle.dumps((problem, optimizer)))
    run(problem, optimizer, 3)
    run(other_problem, other, 3)
    assert same(other_problem.weights(), problem.weights())


def test_copies_of_a_scheduled_optimizer_are_copies(any_row: Row) -> None:
    """Schedulers put a wrapper on the optimizer they were given, which a copy must not share."""
    problem, optimizer = halfway(any_row)
    lr_scheduler.StepLR(optimizer, 10)
    for duplicate in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        other_problem, other = duplicate((problem, optimizer))
        passes, weights = optimizer.forward_passes, problem.weights()
        run(other_problem, other, 1)
        assert optimizer.forward_passes == passes
        assert same(problem.weights(), weights)
        assert other.forward_passes == passes + any_row.passes(2)


# ---- learning rates and groups -------------------------------------------------------------------


def test_schedulers_have_their_effect(any_row: Row) -> None:
    problem, by_hand = Regression(), Regression()
    optimizer = any_row.make(problem.model.parameters(), lr=0.05)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    other = any_row.make(by_hand.model.parameters(), lr=0.05)
    for step in range(6):
        optimizer.step(problem.loss)
        scheduler.step()
        other.param_groups[0]["lr"] = 0.05 * 0.1 ** (step // 2)
        other.step(by_hand.loss)
    torch.testing.assert_close(problem.weights(), by_hand.weights(), rtol=1e-12, atol=1e-12)
    stale = Regression()
    never = any_row.make(stale.model.parameters(), lr=0.05)
    run(stale, never, 6)
    assert not same(stale.weights(), problem.weights())


@pytest.mark.parametrize(
    "make", [lr_scheduler.OneCycleLR, lr_scheduler.CosineAnnealingLR], ids=lambda c: c.__name__
)
def test_other_schedulers_run(make: Any) -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    settings = (
        {"max_lr": 3.0, "total_steps": 5, "cycle_momentum": False}
        if "OneCycle" in make.__name__
        else {"T_max": 5}
    )
    scheduler, rates = make(optimizer, **settings), []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step(problem.loss)
        scheduler.step()
    assert len(set(rates)) == 4


def test_a_scheduled_run_resumes(any_row: Row) -> None:
    ends = []
    for stopped in (False, True):
        problem = Regression()
        optimizer = any_row.make(problem.model.parameters())
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.7)
        for step in range(6):
            if stopped and step == 3:
                saved = through_a_file(
                    [x.state_dict() for x in (problem.model, optimizer, scheduler)]
                )
                problem = Regression(seed=2)
                optimizer = any_row.make(problem.model.parameters())
                scheduler = lr_scheduler.ExponentialLR(optimizer, 0.7)
                for x, state in zip((problem.model, optimizer, scheduler), saved, strict=True):
                    x.load_state_dict(state)
            optimizer.step(problem.loss)
            scheduler.step()
        ends.append(problem.weights())
    assert same(*ends)


def test_groups_and_named_parameters_are_saved_too(any_row: Row) -> None:
    ends = []
    for stopped in (False, True):
        problem = Regression()

        def make(problem: Regression) -> ForwardOptimizer:
            named = list(problem.model.named_parameters())
            return any_row.make(
                [
                    {"params": named[:2], "lr": 0.05, "sigma": 0.01},
                    {"params": named[2:], "weight_decay": 0.1},
                ]
            )

        optimizer = make(problem)
        run(problem, optimizer, 3)
        if stopped:
            saved = through_a_file([problem.model.state_dict(), optimizer.state_dict()])
            problem = Regression(seed=1)
            optimizer = any_row.make(
                [
                    {"params": p}
                    for p in (list(problem.model.named_parameters())[i : i + 2] for i in (0, 2))
                ]
            )
            problem.model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        run(problem, optimizer, 3)
        ends.append(problem.weights())
    assert same(*ends)


def test_a_group_added_later_is_trained_and_moves_nobodys_noise(any_row: Row) -> None:
    """An added group starts new indices, so that the parameters before it keep their directions."""
    problem = Regression()
    first, *rest = problem.model.parameters()
    ends = []
    for late in (False, True):
        problem = Regression()
        first, *rest = problem.model.parameters()
        groups = [{"params": [first]}, {"params": rest, "sigma": 0.01, "lr": 0.05}]
        optimizer = any_row.make(groups[:1] if late else groups)
        if late:
            optimizer.add_param_group(groups[1])
            assert optimizer.param_groups[1]["sigma"] == 0.01
            assert optimizer.param_groups[1]["weight_decay"] == 0.0
        run(problem, optimizer, 3)
        ends.append(problem.weights())
    assert same(*ends)


def test_a_group_added_between_steps_is_found() -> None:
    problem = Regression()
    first, *rest = problem.model.parameters()
    optimizer = WeightPerturbation([first])
    run(problem, optimizer, 2)
    before = problem.weights()
    optimizer.add_param_group({"params": rest})
    run(problem, optimizer, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, problem.weights(), strict=True))


# ---- states of something else --------------------------------------------------------------------


def wrong_states() -> dict[str, tuple[Any, list[str]]]:
    def saved(model: nn.Module, make: Any = Dopamine) -> Any:
        return make(model.parameters()).state_dict()

    good = saved(nn.Linear(3, 2))
    return {
        "another optimizer": (
            saved(nn.Linear(3, 2), WeightPerturbation),
            ["WeightPerturbation", "Dopamine"],
        ),
        "another model": (saved(nn.Linear(2, 3)), ["[3, 2]", "[2, 3]"]),
        "more parameters": (saved(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))), ["shapes"]),
        "another dtype": (saved(nn.Linear(3, 2).double()), ["float64", "float32"]),
        "torch's": (
            torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1).state_dict(),
            ["state_dict", "param_groups"],
        ),
        "nothing": ({}, ["state_dict"]),
        "not a dict": (None, ["state_dict", "NoneType"]),
        "other groups": (
            Dopamine([{"params": [p]} for p in nn.Linear(3, 2).parameters()]).state_dict(),
            ["group"],
        ),
        "cut off": ({**good, "forward": {"optimizer": "Dopamine"}}, ["state_dict"]),
    }


@pytest.mark.parametrize("kind", wrong_states())
def test_a_wrong_state_is_refused_and_nothing_is_lost(kind: str) -> None:
    state, words = wrong_states()[kind]
    model = nn.Linear(3, 2)
    optimizer = Dopamine(model.parameters(), seed=3)
    optimizer.step(lambda: float(model.weight.sum()) ** 2)
    old, before = [p.detach().clone() for p in model.parameters()], str(optimizer.state_dict())
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        optimizer.load_state_dict(state)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert str(optimizer.state_dict()) == before
    assert same([p.detach() for p in model.parameters()], old)
    optimizer.step(lambda: float(model.weight.sum()) ** 2)
