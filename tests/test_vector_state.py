"""VectorDopamine: stopping and going on, and runs that are the same to the bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dopaminergic import Dopamine, VectorDopamine, outcome, squared_error
from fits import FORMS, Fit, run, through_a_file
from launching import run_scripts
from optimizers import same

# ---- stopping and going on -----------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_loaded_state_goes_on_bit_for_bit(
    form: str, after: int, batched: bool, tmp_path: Path
) -> None:
    """In the ramp of the directions, and where the closure cannot be batched."""
    problem = Fit(form)

    def closure(problem: Fit) -> Any:
        return problem() if batched or float(problem.model[0].weight.sum()) < 1e9 else None  # pyright: ignore

    optimizer = VectorDopamine(problem.model.parameters(), seed=7, weight_decay=0.01)
    for _ in range(after):
        optimizer.step(lambda: closure(problem))
    saved = through_a_file(
        [problem.model.state_dict(), optimizer.state_dict()], tmp_path / "half.pt"
    )
    other = Fit(form, seed=1)
    resumed = VectorDopamine(other.model.parameters(), directions=2, sigma=0.5, memory=300)
    run(other, resumed, 1)
    other.model.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for _ in range(4):
        assert resumed.next_passes == optimizer.next_passes
        assert resumed.step(lambda: closure(other)) == optimizer.step(lambda: closure(problem))
    assert same(other.weights(), problem.weights())
    assert str(resumed.state_dict()) == str(optimizer.state_dict())
    assert resumed._batched.refused is not batched


FRESH_PROCESS = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from dopaminergic import VectorDopamine
from fits import Fit, run
problem = Fit("cross_entropy", seed=1)
optimizer = VectorDopamine(problem.model.parameters())
model, state = torch.load(sys.argv[2], weights_only=True)
problem.model.load_state_dict(model)
optimizer.load_state_dict(state)
run(problem, optimizer, 4)
torch.save(problem.weights(), sys.argv[3])
"""


def test_another_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    problem = Fit("cross_entropy")
    optimizer = VectorDopamine(problem.model.parameters(), seed=3)
    run(problem, optimizer, 2)
    before, after = tmp_path / "before.pt", tmp_path / "after.pt"
    torch.save([problem.model.state_dict(), optimizer.state_dict()], before)
    run(problem, optimizer, 4)
    script = tmp_path / "again.py"
    script.write_text(FRESH_PROCESS)
    arguments = (str(Path(__file__).parent), str(before), str(after))
    [done] = run_scripts(script, *arguments, environments=[{}])
    assert done.code == 0, done.err
    assert same(torch.load(after, weights_only=True), problem.weights())


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
def test_copies_go_their_own_way(duplicate: Any) -> None:
    problem = Fit()
    optimizer = VectorDopamine(problem.model.parameters())
    run(problem, optimizer, 2)
    other_problem, other = duplicate((problem, optimizer))
    old = other_problem.weights()
    losses = run(problem, optimizer, 3)
    assert same(other_problem.weights(), old)
    assert run(other_problem, other, 3) == losses
    assert same(other_problem.weights(), problem.weights())
    assert other.forward_passes == optimizer.forward_passes


def test_a_state_of_something_else_is_refused() -> None:
    problem = Fit()
    optimizer = VectorDopamine(problem.model.parameters())
    run(problem, optimizer, 2)
    before = str(optimizer.state_dict())
    for state in (
        Dopamine(problem.model.parameters()).state_dict(),
        VectorDopamine([nn.Parameter(problem.x)]).state_dict(),
        {},
    ):
        with pytest.raises(ValueError, match="VectorDopamine"):
            optimizer.load_state_dict(state)
        assert str(optimizer.state_dict()) == before
    run(problem, optimizer, 1)


# ---- the same run --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_two_runs_are_the_same_bits_and_other_seeds_are_not(form: str) -> None:
    ends = []
    for torch_seed, seed in ((0, 3), (1, 3), (0, 4)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed)
            before = torch.get_rng_state()
            problem = Fit(form)
            run(problem, VectorDopamine(problem.model.parameters(), seed=seed, noise="gaussian"), 4)
            assert torch.equal(torch.get_rng_state(), before)
        ends.append(problem.weights())
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_generators_are_left_as_after_one_call() -> None:
    problem = Fit()

    def closure() -> Any:
        return squared_error(problem.model(problem.x) + torch.rand(16, 1), problem.y)

    for refused in (False, True):
        optimizer = VectorDopamine(problem.model.parameters(), directions=5)
        optimizer._batched.refused = refused
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            closure()
            expected = torch.get_rng_state()
            torch.manual_seed(1)
            optimizer.step(closure)
            assert torch.equal(torch.get_rng_state(), expected)
            assert optimizer._batched.checked is not refused


@pytest.mark.parametrize("form", ["outcome", "losses", "number"])
def test_a_hundredfold_loss_changes_nothing_but_rounding(form: str) -> None:
    runs = []
    for scale in (1.0, 100.0):
        problem = Fit(form)
        optimizer = VectorDopamine(problem.model.parameters())

        def closure(problem: Fit = problem, scale: float = scale) -> Any:
            found = problem()
            return (
                scale * found
                if form != "outcome"
                else outcome(found.values, lambda v: scale * found.truth(v))
            )

        for _ in range(8):
            optimizer.step(closure)
        runs.append(problem.weights())
    torch.testing.assert_close(*runs, rtol=1e-6, atol=1e-7)


def test_gradients_and_gradient_mode_do_not_matter() -> None:
    ends = []
    for mode in ("off", "backward", "left on"):
        problem = Fit()
        optimizer = VectorDopamine(problem.model.parameters(), directions=6)
        optimizer._batched.refused = True

        def closure(problem: Fit = problem, mode: str = mode) -> Any:
            if mode == "off":
                return problem()
            torch.set_grad_enabled(True)
            found = problem()
            if mode == "backward":
                found.mean().backward()
            return found

        for _ in range(3):
            optimizer.step(closure)
        ends.append(problem.weights())
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])
