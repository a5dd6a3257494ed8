"""A journal rebuilds the weights of every step bit for bit, whatever happened on the way and to the file."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler

from dopaminergic import SPSA, Dopamine, ForwardOptimizer, Journal, VectorDopamine, replay, revert
from dopaminergic.journal import Contents, JournalDamage, JournalError, digest, merge, read
from dopaminergic.journal.format import HEADER, STEP, Codec, framed, read_varint, to_json, varint
from dopaminergic.lab import cli
from dopaminergic.noise import Combination
from optimizers import ROWS, VECTOR, Bowl, Regression, Row, copies, randn

FEW = 7


class Mixed:
    """More than 1 MiB, so that float32 is perturbed in place, and 16-bit weights beside it, which are copied."""

    def __init__(self) -> None:
        self.big, self.half = Bowl().w, nn.Parameter(randn(50, seed=8).bfloat16())
        self.model = nn.ParameterList([self.big, self.half])

    def loss(self) -> Tensor:
        return self.big.square().mean() + self.half.float().square().mean()


def small(dtype: torch.dtype) -> Callable[[], Any]:
    return lambda: Regression(dtype=dtype)


PROBLEMS: dict[str, Callable[[], Any]] = {
    "float64": small(torch.float64),
    "float32": small(torch.float32),
    "bfloat16": small(torch.bfloat16),
    "float16": small(torch.float16),
    "in place and 16-bit": Mixed,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


def bits(problem: Any) -> str:
    return digest(list(problem.model.parameters()))


def recorded(
    problem: Any, optimizer: ForwardOptimizer, path: Path, steps: int = FEW, before: Any = None, **options: Any
) -> list[str]:
    """Train under a journal; the digest of the weights after 0, 1, 2, ... steps."""
    ends = [bits(problem)]
    with Journal(optimizer, path, **options):
        for step in range(steps):
            if before is not None:
                before(step)
            optimizer.step(problem.loss)
            ends.append(bits(problem))
    return ends


def assert_rebuilt(make: Callable[[], Any], path: Path, ends: list[str], moved: int = 2) -> None:
    """Every step's weights, from the initial ones; at least so many differ."""
    assert len(set(ends)) >= moved
    for step, end in enumerate(ends):
        fresh = make()
        assert replay(fresh.model, path, upto=step) == step
        assert bits(fresh) == end, step


# ---- every optimizer, every kind of weights --------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_step_is_rebuilt(any_row: Row, kind: str, noise: str, path: Path) -> None:
    problem = PROBLEMS[kind]()
    optimizer = any_row.make(problem.model.parameters(), directions=3, noise=noise, seed=9, weight_decay=0.01)
    steps = 3 if kind.startswith("in place") else FEW
    ends = recorded(problem, optimizer, path, steps, every=2)
    assert_rebuilt(PROBLEMS[kind], path, ends)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_a_step_in_place_is_rebuilt_in_one_pass(noise: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training writes in place twice a step, perturbed and updated; the sums of a replay draw a direction once."""
    bowl, fresh = Bowl(), Bowl()
    with Journal(Dopamine([bowl.w], noise=noise), path) as journal:
        for _ in range(3):
            journal.optimizer.step(bowl.loss)
    once, passes = Combination.__call__, []

    def counted(self: Combination, *arguments: Any, **options: Any) -> None:
        passes.append(self)
        once(self, *arguments, **options)

    monkeypatch.setattr(Combination, "__call__", counted)
    assert replay([fresh.w], path) == 3
    assert torch.equal(fresh.w, bowl.w)
    assert len(passes) == 3 + (noise == "rademacher")  # the first brings the weights onto sigma's grid


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_rejected_trials_in_place_are_rebuilt(noise: str, path: Path) -> None:
    """A trial step that was taken back leaves weights that differ from those before it in their last bit."""
    problem, passes = Mixed(), 0

    def loss() -> float:
        nonlocal passes
        passes += 1
        return float(problem.loss()) + (5.0 if passes > 1 and passes % 6 == 1 else 0.0)  # of K + 2 and a check

    optimizer = VectorDopamine(problem.model.parameters(), directions=4, noise=noise, memory=1)
    ends = [bits(problem)]
    with Journal(optimizer, path):
        for _ in range(3):
            optimizer.step(loss)
            ends.append(bits(problem))
    assert float(optimizer._progress.rule.expected) == 0.0  # it was rejected
    for step, end in enumerate(ends):
        fresh = Mixed()
        replay(fresh.model, path, upto=step)
        assert bits(fresh) == end, step


def test_fleets_are_rebuilt(any_row: Row, path: Path) -> None:
    def make() -> Any:
        class Fleet:
            model = nn.ParameterList([randn(3, 4, 2, seed=1), randn(3, 5, seed=2)])

            def loss(self) -> Tensor:
                return sum((p.flatten(1).square().sum(1) for p in self.model), torch.zeros(3))

        return Fleet()

    problem = make()
    rates = torch.tensor([0.01, 0.02, 0.0], dtype=torch.float64)
    optimizer = any_row.make(problem.model.parameters(), directions=2, seed=[4, 5, 6], lr=rates, weight_decay=0.1)
    ends = recorded(problem, optimizer, path)
    assert_rebuilt(make, path, ends)


def test_a_fleet_with_a_bad_replica_is_rebuilt(path: Path) -> None:
    weights = nn.Parameter(randn(2, 4, seed=1))
    optimizer = Dopamine([weights], seed=[1, 2])
    bad = torch.zeros(2)
    with Journal(optimizer, path):
        optimizer.step(lambda: weights.square().sum(1) + bad)
        bad[1] = torch.nan
        with pytest.warns(RuntimeWarning, match="not finite"):
            optimizer.step(lambda: weights.square().sum(1) + bad)
        optimizer.step(lambda: weights.square().sum(1) + bad.nan_to_num())
    fresh = nn.Parameter(randn(2, 4, seed=1))
    replay([fresh], path)
    assert torch.equal(fresh, weights)


@pytest.mark.parametrize("kind", ["float64", "in place and 16-bit"])
def test_groups_schedules_frozen_parameters_and_hooks(any_row: Row, kind: str, path: Path) -> None:
    """Sigma is recorded where it changes, and so is who is frozen."""
    problem = PROBLEMS[kind]()
    first, *rest = problem.model.parameters()
    optimizer = any_row.make(
        [{"params": [first], "lr": 0.02, "weight_decay": 0.1}, {"params": rest, "sigma": 0.01}], directions=2
    )
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.7)

    def before(step: int) -> None:
        schedule.step()
        optimizer.param_groups[1]["sigma"] *= 0.9 if step in (2, 3) else 1.0
        rest[-1].requires_grad_(step not in (3, 4))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        ends = recorded(problem, optimizer, path, 6, before, every=3)
    contents = read(path)
    assert contents.kinds["sigma"] > 0
    assert len(contents.headers) == 3  # at first, frozen, thawed
    assert_rebuilt(PROBLEMS[kind], path, ends)


def test_a_group_that_is_added_later(any_row: Row, path: Path) -> None:
    problem = Regression()
    first, *rest = problem.model.parameters()
    optimizer = any_row.make([first], directions=2)

    def before(step: int) -> None:
        if step == 3:
            optimizer.add_param_group({"params": rest, "sigma": 0.01})

    ends = recorded(problem, optimizer, path, before=before, every=2)
    assert_rebuilt(Regression, path, ends)


def test_a_group_that_is_added_before_the_end(path: Path) -> None:
    problem = Regression()
    first, *rest = problem.model.parameters()
    optimizer = Dopamine([first])
    with Journal(optimizer, path):
        optimizer.step(problem.loss)
        optimizer.add_param_group({"params": rest})
        optimizer.param_groups[0]["sigma"] = 0.01
    with Journal(optimizer, path.with_suffix(".2")):
        optimizer.step(problem.loss)
    merge(path, path.with_suffix(".2"), path.with_suffix(".both"))
    fresh = Regression()
    assert replay(fresh.model, path.with_suffix(".both")) == 2
    assert bits(fresh) == bits(problem)


@pytest.mark.parametrize("kind", ["float64", "in place and 16-bit"])
def test_probe_and_step_apart(any_row: Row, kind: str, path: Path) -> None:
    problem = PROBLEMS[kind]()
    optimizer = any_row.make(problem.model.parameters(), directions=2, noise="gaussian")
    ends = [bits(problem)]
    with Journal(optimizer, path):
        for step in range(4):
            optimizer.probe(problem.loss)
            if step == 2:
                optimizer.probe(problem.loss)  # the first one is forgotten, but has left its trace
            optimizer.step()
            ends.append(bits(problem))
    assert_rebuilt(PROBLEMS[kind], path, ends)


@pytest.mark.parametrize("kind", ["float64", "in place and 16-bit"])
def test_steps_that_fail_and_steps_that_are_skipped(any_row: Row, kind: str, path: Path) -> None:
    problem = PROBLEMS[kind]()
    optimizer = any_row.make(problem.model.parameters(), directions=2, noise="gaussian")
    ends = [bits(problem)]

    def failing_at(call: int, value: float | None) -> Callable[[], Any]:
        calls = iter(range(100))

        def closure() -> Any:
            if next(calls) < call:
                return problem.loss()
            if value is None:
                raise ConnectionError("the simulator is gone")
            return torch.tensor(value)

        return closure

    with Journal(optimizer, path) as journal, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(2):
            for call in range(3):
                with pytest.raises(ConnectionError):
                    optimizer.step(failing_at(call, None))
            optimizer.step(failing_at(0, torch.nan))
            ends.append(bits(problem))
            optimizer.step(problem.loss)
            ends.append(bits(problem))
        with pytest.raises(ConnectionError):
            optimizer.step(failing_at(2, None))
        assert journal.steps == 4
    assert_rebuilt(PROBLEMS[kind], path, ends[:4], moved=1)  # VectorDopamine may reject its only step
    fresh = PROBLEMS[kind]()
    replay(fresh.model, path)
    assert bits(fresh) == bits(problem)  # also the trace of the step that failed last


def test_skipped_steps_cost_a_few_bytes(path: Path) -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    with Journal(optimizer, path):
        before = path.stat().st_size
        with pytest.warns(RuntimeWarning, match="not finite"):
            optimizer.step(lambda: torch.nan)
        for _ in range(9):
            optimizer.step(lambda: torch.nan)
        assert path.stat().st_size - before == 60
    assert read(path).skipped == 10


def test_a_step_costs_at_most_forty_bytes_whatever_the_size_of_the_model(any_row: Row, path: Path) -> None:
    sizes = []
    for n in (10, 20_000):
        weights = nn.Parameter(randn(n))
        optimizer = any_row.make([weights], directions=1, weight_decay=0.01)
        file = path.with_suffix(f".{n}")
        with Journal(optimizer, file) as journal:
            for _ in range(300):
                optimizer.step(lambda w=weights: w.square().mean())
        contents = read(file)
        assert journal.steps == contents.steps == 300
        sizes.append((contents.size - contents.kinds["header"]) / 300)
    assert max(sizes) <= 40
    assert abs(sizes[0] - sizes[1]) < 1  # digits of the rule's state


# ---- replay, revert, merge -------------------------------------------------------------------------------------------


def trained(path: Path, steps: int = 9, **options: Any) -> tuple[Regression, ForwardOptimizer, list[str]]:
    problem = Regression()
    optimizer = SPSA(problem.model.named_parameters(), directions=2, seed=3)
    return problem, optimizer, recorded(problem, optimizer, path, steps, **options)


def test_replay_goes_on_from_a_snapshot(path: Path) -> None:
    _, _, ends = trained(path, every=3)
    fresh = Regression()
    replay(fresh.model, path, upto=6)
    assert replay(fresh.model, path, upto=8) == 8
    assert bits(fresh) == ends[8]
    with pytest.raises(JournalError, match="starts from other weights"):
        replay(fresh.model, path)  # 8 is no snapshot


def test_revert_goes_back_to_the_bit(path: Path) -> None:
    problem, _, ends = trained(path, every=4)
    torch.save(Regression().model.state_dict(), path.with_suffix(".pt"))
    for base in (Regression().model, Regression().model.state_dict(), path.with_suffix(".pt")):
        for step in (7, 2, 0):
            assert revert(problem.model, path, step, base=base) == step
            assert bits(problem) == ends[step]


def test_revert_needs_a_base_and_says_why(path: Path) -> None:
    problem, _, ends = trained(path)
    with pytest.raises(JournalError, match="base is needed"):
        revert(problem.model, path, 2)
    with pytest.raises(JournalError, match="other weights"):
        revert(problem.model, path, 2, base=Regression(seed=4).model)
    with pytest.raises(JournalError, match="only `revert`"):
        replay(problem.model, path, upto=2)
    assert bits(problem) == ends[-1]


def test_other_weights_shapes_and_steps_are_refused(path: Path) -> None:
    trained(path)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (Regression(seed=1).model, {}, "other weights"),
        (Regression(dtype=torch.float32).model, {}, "float32"),
        (nn.Linear(3, 2).double(), {}, "4 parameters, but 2"),
        ([*list(Regression().model.parameters())[::-1]], {}, "same order"),
        ([1, 2], {}, "dict of tensors"),
        (Regression().model, {"upto": 10}, "steps 0 to 9, not 10"),
        (Regression().model, {"upto": -1}, "not -1"),
    ]
    for model, options, message in wrong:
        parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
        before = copies(parameters)
        with pytest.raises(JournalError, match=message):
            replay(model, path, **options)
        assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    with pytest.raises(TypeError, match=r"upto must be an int.*2\.5"):
        replay(Regression().model, path, upto=2.5)  # pyright: ignore[reportArgumentType]


def test_names_find_parameters_in_any_order(path: Path) -> None:
    problem = Regression()
    named = list(problem.model.named_parameters())[::-1]
    ends = recorded(problem, Dopamine(named), path)
    assert_rebuilt(Regression, path, ends)
    state = Regression().model.state_dict()
    replay({"unrelated": torch.ones(3), **state}, path)
    assert all(torch.equal(state[name], p) for name, p in named)


def test_a_state_dict_with_buffers_will_do(path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=True), nn.Linear(4, 1)).eval()

    model, x = make(), randn(5, 3, dtype=torch.float32)
    optimizer = Dopamine(model.parameters())
    with Journal(optimizer, path):
        for _ in range(3):
            optimizer.step(lambda: model(x).square().mean())
    state = make().state_dict()
    replay(state, path)
    assert all(torch.equal(state[name], p) for name, p in model.named_parameters())


def test_weights_changed_by_other_hands_are_found(path: Path) -> None:
    problem = Regression()

    def before(step: int) -> None:
        if step == 5:
            with torch.no_grad():
                next(problem.model.parameters()).add_(1e-9)

    recorded(problem, Dopamine(problem.model.parameters()), path, before=before, every=2)
    replay(Regression().model, path, upto=4)
    with pytest.raises(JournalError, match="weights after 6 steps are not those"):
        replay(Regression().model, path)


def test_merging_what_follows(path: Path) -> None:
    problem, optimizer, ends = trained(path, every=4)
    ends += recorded(problem, VectorDopamine(problem.model.parameters(), seed=77), path.with_suffix(".2"), 3)[1:]
    ends += recorded(problem, optimizer, path.with_suffix(".3"), 3)[1:]
    merge(path, path.with_suffix(".2"), path.with_suffix(".12"))
    merge(path.with_suffix(".12"), path.with_suffix(".3"), path.with_suffix(".123"))
    assert_rebuilt(Regression, path.with_suffix(".123"), ends)


def test_merging_what_does_not_follow_is_refused(path: Path) -> None:
    trained(path)
    other = path.with_suffix(".2")
    recorded(Regression(), Dopamine(Regression().model.parameters()), other)
    with pytest.raises(JournalError, match="no order of their steps"):
        merge(path, other, path.with_suffix(".12"))
    problem, optimizer, _ = trained(path.with_suffix(".3"))
    recorded(problem, optimizer, path.with_suffix(".4"))
    with pytest.raises(FileExistsError):
        merge(path.with_suffix(".3"), path.with_suffix(".4"), other)
    other.write_bytes(other.read_bytes()[:-5])
    with pytest.raises(JournalError, match="damaged"):
        merge(path, other, path.with_suffix(".12"))
    assert not path.with_suffix(".12").exists()


# ---- stopping and going on -------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, time, warnings
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from optimizers import ROWS, VECTOR, Regression
from dopaminergic import Journal
[row] = [row for row in [*ROWS, VECTOR] if row.name == sys.argv[2]]
problem = Regression()
optimizer = row.make(problem.model.parameters(), directions=2, noise="gaussian")
schedule = None
with Journal(optimizer, sys.argv[3], every=5, resume=True) as journal:
    while journal.steps < 40:
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + journal.steps)
        optimizer.step(problem.loss)
        if len(sys.argv) > 4 and journal.steps == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("row", [ROWS[-1], VECTOR], ids=lambda row: row.name)
def test_a_killed_run_ends_as_if_it_had_not_been(row: Row, path: Path) -> None:
    """Twice killed; base weights and journal alone bring it to the same end, in fresh processes."""
    command = [sys.executable, "-W", "error", "-c", KILLED, str(Path(__file__).parent), row.name]
    for kill in (["13"], ["27"], []):
        done = subprocess.run([*command, str(path), *kill], capture_output=True, text=True, timeout=300)
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
        assert read(path).steps == int(kill[0] if kill else 40)  # killing has lost nothing
    problem = Regression()
    optimizer = row.make(problem.model.parameters(), directions=2, noise="gaussian")

    def before(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)

    ends = recorded(problem, optimizer, path.with_suffix(".whole"), 40, before, every=5)
    assert path.read_bytes() == path.with_suffix(".whole").read_bytes()
    fresh = Regression()
    replay(fresh.model, path)
    assert bits(fresh) == ends[-1]


@pytest.mark.parametrize("kind", ["float64", "bfloat16", "in place and 16-bit"])
def test_resuming_again_and_again_at_any_step(any_row: Row, kind: str, path: Path) -> None:
    problem = PROBLEMS[kind]()
    options: dict[str, Any] = {"directions": 2, "noise": "gaussian", "weight_decay": 0.01}
    ends = recorded(problem, any_row.make(problem.model.parameters(), **options), path, 6)
    broken, step = path.with_suffix(".broken"), 0
    while step < 6:
        again = PROBLEMS[kind]()
        optimizer = any_row.make(again.model.parameters(), **options)
        with Journal(optimizer, broken, every=2, resume=True) as journal:
            step = journal.steps
            assert bits(again) == ends[step]
            optimizer.step(again.loss)
            if step % 3 == 1:
                optimizer.step(again.loss)
            step = journal.steps
    fresh = PROBLEMS[kind]()
    replay(fresh.model, broken)
    assert bits(fresh) == ends[6]


def test_the_rule_and_the_counters_are_resumed(any_row: Row, path: Path) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters(), directions=2)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, 50)
    with Journal(optimizer, path):
        for _ in range(5):
            optimizer.step(problem.loss)
            schedule.step()
    again = Regression()
    other = any_row.make(again.model.parameters(), seed=5, lr=0.5)
    with Journal(other, path, resume=True) as journal:
        assert journal.steps == 5
        assert str(other.state_dict()) == str(optimizer.state_dict())
        for p, o in ((problem, optimizer), (again, other)):
            o.step(p.loss)
    assert bits(again) == bits(problem)


def test_resuming_fleets_with_rates_of_their_own(path: Path) -> None:
    rates = torch.tensor([0.01, 0.02], dtype=torch.float64)
    ends = []
    for stops in ((6,), (2, 6)):
        path.unlink(missing_ok=True)
        weights = nn.Parameter(torch.empty(0))
        for stop in stops:
            weights = nn.Parameter(randn(2, 4, seed=1))
            optimizer = VectorDopamine([weights], seed=[1, 2], lr=rates)
            with Journal(optimizer, path, resume=True) as journal:
                while journal.steps < stop:
                    optimizer.step(lambda w=weights: w.square().sum(1))
        ends.append(weights)
    assert torch.equal(*ends)


def test_what_is_frozen_when_it_is_resumed(path: Path) -> None:
    problem, _, ends = trained(path, every=2)
    again = Regression()
    optimizer = SPSA(again.model.named_parameters(), directions=2)
    frozen = list(again.model.parameters())[1].requires_grad_(False)
    with Journal(optimizer, path, resume=True):
        optimizer.step(again.loss)
    fresh = Regression()
    replay(fresh.model, path)
    assert bits(fresh) == bits(again) != ends[-1]
    assert torch.equal(frozen, list(problem.model.parameters())[1])


def test_a_journal_of_something_else_is_not_resumed(path: Path) -> None:
    _, optimizer, _ = trained(path)
    whole = path.read_bytes()
    with pytest.raises(FileExistsError, match="resume=True"):
        Journal(optimizer, path)
    problems = [Regression(), Regression(dtype=torch.float32), Regression(seed=1), Regression()]
    wrong = [Dopamine(problems[0].model.parameters()), *(SPSA(p.model.parameters()) for p in problems[1:3])]
    two = [{"params": [p]} for p in problems[3].model.parameters()]
    for other, message in zip(
        [*wrong, SPSA(two)], ["another optimizer", "another dtype", "other weights", "4$|groups"], strict=True
    ):
        with pytest.raises(JournalError, match=message):
            Journal(other, path, resume=True)
        assert other.forward_passes == 0
    assert path.read_bytes() == whole


def test_loading_a_state_in_mid_run_is_noticed(path: Path) -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    journal = Journal(optimizer, path)
    optimizer.step(problem.loss)
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(JournalError, match="cannot go on"):
        optimizer.step(problem.loss)
    journal.close()
    assert read(path).steps == 1
    journal = Journal(optimizer, path.with_suffix(".2"))
    problem.model.float()
    with pytest.raises(JournalError, match="another shape or dtype"):
        optimizer.step(lambda: float(next(problem.model.parameters()).sum()))
    journal.close()
    assert read(path.with_suffix(".2")).steps == 0


def test_copies_do_not_write_into_the_journal(path: Path) -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    with Journal(optimizer, path) as journal:
        for copied, other in (copy.deepcopy((problem, optimizer)), pickle.loads(pickle.dumps((problem, optimizer)))):
            other.step(copied.loss)
        assert journal.steps == 0
        optimizer.step(problem.loss)
        assert journal.steps == 1
    optimizer.step(problem.loss)  # closed: not recorded
    assert read(path).steps == 1


def test_ctrl_c_loses_no_step(path: Path) -> None:
    """The signal comes when the weights are written and nothing is recorded yet."""
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    with Journal(optimizer, path) as journal:
        update = optimizer._weights.update

        def interrupted(*arguments: Any) -> None:
            update(*arguments)
            signal.raise_signal(signal.SIGINT)

        optimizer._weights.update = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(problem.loss)
        assert journal.steps == 1
        del optimizer._weights.update
        optimizer.step(problem.loss)
    fresh = Regression()
    assert replay(fresh.model, path) == 2
    assert bits(fresh) == bits(problem)


# ---- disks -----------------------------------------------------------------------------------------------------------


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_nothing(path: Path) -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    ends = [bits(problem)]
    with Journal(optimizer, path) as journal:
        with full_after(path.stat().st_size + 20):
            for failed in range(3):
                if failed:
                    with pytest.raises(OSError, match=r"step has happened.*are kept"):
                        optimizer.step(problem.loss)
                else:
                    optimizer.step(problem.loss)
                ends.append(bits(problem))
            assert replay(Regression().model, read(path)._replace(damage=None)) == 1  # half a record is there
            with pytest.raises(OSError, match="step has happened"):
                journal.close()
        optimizer.step(problem.loss)  # not recorded: it was asked to stop
    contents = read(path)
    assert contents.damage is None
    assert contents.steps == 3
    assert_rebuilt(Regression, path, ends)


def test_where_nothing_can_be_written_there_is_an_error_first(path: Path) -> None:
    optimizer = Dopamine(Regression().model.parameters())
    path.touch()
    for folder in (path, path.with_name("missing")):
        with pytest.raises(OSError, match="cannot be written"):
            Journal(optimizer, folder / "a.journal")
    with full_after(100), pytest.raises(OSError, match="not written"):
        Journal(optimizer, path.with_suffix(".new"))
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert optimizer._listeners == []


def test_two_writers_are_refused(path: Path) -> None:
    optimizer = Dopamine(Regression().model.parameters())
    with Journal(optimizer, path), pytest.raises(JournalError, match="being written"):
        Journal(Dopamine(Regression().model.parameters()), path, resume=True)


def test_wrong_arguments(path: Path) -> None:
    with pytest.raises(TypeError, match="SGD"):
        Journal(torch.optim.SGD(Regression().model.parameters()), path)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"every must be finite and >= 1, got 0"):
        Journal(Dopamine(Regression().model.parameters()), path, every=0)
    optimizer = Dopamine([{"params": Regression().model.parameters(), "note": object()}])
    with pytest.raises(TypeError, match="cannot hold <object"):
        Journal(optimizer, path)
    assert not path.exists()


# ---- damage ----------------------------------------------------------------------------------------------------------


def read_quietly(path: Path) -> Contents | None:
    try:
        return read(path)
    except JournalError:
        return None


def test_cut_off_anywhere(path: Path) -> None:
    """Every whole record before the cut is used, and what is lost is named."""
    _, _, ends = trained(path, 5, every=2)
    whole, sound = path.read_bytes(), read(path)
    bounds = [raw.end for raw in sound.records()]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        contents = read_quietly(path)
        if contents is None:
            assert size < sound.snapshots[0].end
            continue
        assert contents.size == max(b for b in bounds if b <= size)
        assert (contents.damage is None) == (size in bounds)
        if contents.damage is not None and size % 25 == 0:
            fresh = Regression()
            with pytest.warns(JournalDamage, match=f"at byte {contents.size}.*{contents.steps} whole steps"):
                replay(fresh.model, path)
            assert bits(fresh) == ends[contents.steps]


def test_any_flipped_bit_is_found(path: Path) -> None:
    _, _, ends = trained(path, 5, every=2)
    whole, sound = path.read_bytes(), read(path)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        contents = read_quietly(path)
        if contents is None:
            assert at < sound.snapshots[0].end
            continue
        assert contents.damage is not None
        assert contents.size <= at
    assert len(ends) == 6


def test_records_that_are_lost_or_in_another_order_are_found(path: Path) -> None:
    """Each checksum is that of all bytes before it too."""
    trained(path, 5)
    whole, records = path.read_bytes(), list(read(path).records())
    one, two = records[2:4]
    path.write_bytes(whole[: one.start] + whole[one.end :])
    assert read(path).steps == 0
    path.write_bytes(whole[: one.start] + whole[two.start : two.end] + whole[one.start : one.end] + whole[two.end :])
    assert read(path).steps == 0


def test_a_torn_tail_is_cut_off_after_saying_so(path: Path) -> None:
    _, _, ends = trained(path, 5, every=2)
    path.write_bytes(path.read_bytes()[:-20])
    again = Regression()
    optimizer = SPSA(again.model.named_parameters(), directions=2, seed=3)
    with pytest.warns(JournalDamage, match=r"damaged at byte \d+.*cut off now"):
        journal = Journal(optimizer, path, every=2, resume=True)
    with journal:
        assert journal.steps == 4
        optimizer.step(again.loss)
    assert read(path).damage is None
    assert_rebuilt(Regression, path, ends)


# ---- hostile files ---------------------------------------------------------------------------------------------------


def forged(path: Path, *records: tuple[int, bytes], first: bytes | None = None) -> None:
    """A journal with sound checksums over anything at all."""
    start = path.read_bytes()[:10]
    contents = read(path)
    original = list(contents.records())[:2]
    checksum, out = zlib.crc32(start), start
    head = [(HEADER, first)] if first is not None else [(raw.kind, raw.payload) for raw in original]
    for kind, payload in [*head, *records]:
        record, checksum = framed(kind, payload, checksum)
        out += record
    path.write_bytes(out)


def test_sizes_are_checked_before_anything_is_made(path: Path) -> None:
    trained(path, 2)
    whole = path.read_bytes()
    huge = varint(1 << 40)
    payloads = [
        bytes([0]) + huge,  # directions that are not there
        bytes([2]) + huge + bytes(8),  # one number for all of them
        bytes([4]) + varint(3) + bytes(24) + huge,
        bytes([8]) + varint(0) + huge,  # traces
        bytes([8]) + varint(0) + varint(1) + varint(2) + huge,
        bytes([8]) + varint(0) + varint(1) + varint(3 + (1 << 31)),
        b"",
        bytes([0, 0, 0]),
    ]
    for payload in payloads:
        path.write_bytes(whole)
        forged(path, (STEP, payload))
        fresh = Regression()
        with pytest.raises(JournalError, match="record at byte"):
            replay(fresh.model, path)
        assert bits(fresh) == bits(Regression())
    path.write_bytes(whole)
    path.write_bytes(whole[:10] + bytes([HEADER]) + huge + b"{}")
    with pytest.raises(JournalError, match="cut off"):
        read(path)


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"tensor": "float64", "shape": [1000000000], "values": [1]}',
        b'{"tensor": "nothing", "shape": [1], "values": [1]}',
    ],
)
def test_headers_that_make_no_sense(path: Path, text: bytes) -> None:
    trained(path, 2)
    forged(path, first=text)
    with pytest.raises(JournalError, match="before its first step"):
        read(path)


WRONG = [
    {"step": -1},
    {"step": "0"},
    {"groups": []},
    {"settings": {"seed": -1}},
    {"perturbation": {"groups": True}},
    {"perturbation": []},
    {"x": 1},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_headers_with_wrong_values(path: Path, change: dict[str, Any]) -> None:
    trained(path, 2)
    header = {**read(path).headers[0]._asdict(), **change}
    header = {name: value for name, value in header.items() if "x" not in change or name != "library"}
    forged(path, first=to_json(header))
    with pytest.raises(JournalError, match="the header"):
        read(path)


def test_other_files_and_versions_are_refused(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(JournalError, match=r"not a journal: it starts with b'PK"):
        read(path)
    trained(path.with_suffix(".2"))
    whole = path.with_suffix(".2").read_bytes()
    path.write_bytes(whole[:8] + struct.pack("<H", 99) + whole[10:])
    with pytest.raises(JournalError, match=r"version 99.*version 1"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(path.with_name("missing"))


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_rebuilds_weights(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem, _, _ = trained(path, 5)
    base, out = path.with_suffix(".base.pt"), path.with_suffix(".out.pt")
    torch.save(Regression().model.state_dict(), base)
    command = ["journal", "replay", str(path), "--base", str(base), "--out", str(out)]
    assert cli.main(command) == 0
    assert "after 5 steps" in capsys.readouterr().out
    state = torch.load(out, weights_only=True)
    assert all(torch.equal(state[name], p) for name, p in problem.model.named_parameters())
    assert cli.main([*command, "--upto", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 0
    state, initial = torch.load(out, weights_only=True), torch.load(base, weights_only=True)
    assert all(torch.equal(state[name], initial[name]) for name in initial)


def test_the_command_line_shows_and_verifies(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(path, 5)
    assert cli.main(["journal", "show", str(path), "--last", "2"]) == 0
    text = capsys.readouterr().out
    for word in ("SPSA", "bytes a step", "SHA-256", "damage               None"):
        assert word in text
    assert cli.main(["journal", "show", str(path), "--last", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in shown["last"]] == [4, 5]
    assert (shown["steps"], shown["weights"], shown["damage"]) == (5, 26, None)
    assert cli.main(["journal", "verify", str(path)]) == 0
    assert "5 steps" in capsys.readouterr().out
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert cli.main(["journal", "verify", str(path)]) == 1
    assert "damaged at byte" in capsys.readouterr().out
    forged(path, (STEP, b"\x00\x07"))  # the checksum is sound, what it protects is not
    assert cli.main(["journal", "verify", str(path), "--json"]) == 1
    assert "do not fit" in json.loads(capsys.readouterr().out)["damage"]


class Malicious:
    """What pickle would run, if it were let."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("malicious",)


def test_the_command_line_says_what_is_wrong(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    trained(path)
    base = path.with_suffix(".pt")
    torch.save(Regression().model.state_dict(), base)
    torch.save([1], path.with_suffix(".list"))
    path.with_suffix(".evil").write_bytes(pickle.dumps(Malicious()))
    path.with_suffix(".text").write_text("nothing")
    files = {name: str(path.with_suffix("." + name)) for name in ("pt", "list", "evil", "text", "missing", "out")}
    replaying = ["replay", str(path), "--out", files["out"]]
    for arguments, message in [
        (["show", files["missing"]], "missing"),
        (["show", files["text"]], "not a journal"),
        (replaying, "needs --base"),
        ([*replaying, "--base", files["missing"]], "missing"),
        ([*replaying, "--base", files["list"]], "holds a list"),
        ([*replaying, "--base", files["evil"]], "cannot be loaded"),
        ([*replaying, "--base", files["pt"], "--upto", "99"], "steps 0 to 9, not 99"),
        (["replay", str(path), "--base", files["pt"], "--out", files["pt"]], "base itself"),
        (["replay", str(path), "--base", files["pt"], "--out", files["pt"] + "/x"], "cannot write there"),
    ]:
        assert cli.main(["journal", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(JournalError, match="cannot be loaded"):
        revert(Regression().model, path, 1, base=files["evil"])
    assert not Path("malicious").exists()
    assert {each.suffix for each in path.parent.iterdir()} == {".journal", ".pt", ".list", ".evil", ".text"}


# ---- the format ------------------------------------------------------------------------------------------------------


@given(st.integers(0, (1 << 62) - 1))
def test_numbers_of_any_size(value: int) -> None:
    assert read_varint(b"\xff" + varint(value) + b"\x01", 1) == (value, len(varint(value)) + 1)


numbers = st.floats(width=64)


@settings(deadline=None)
@given(st.data())
def test_steps_come_back_to_the_bit(data: st.DataObject) -> None:
    groups, replicas = data.draw(st.integers(1, 3)), data.draw(st.none() | st.integers(1, 3))
    multiple: Any = numbers if replicas is None else st.lists(numbers, min_size=replicas, max_size=replicas)
    row = st.lists(multiple.map(lambda m: m if replicas is None else np.array(m)), min_size=groups, max_size=groups)
    direction = st.integers(0, (1 << 28) - 1)
    terms = st.lists(st.tuples(direction, row), max_size=3)
    writer, reader = Codec(groups, replicas), Codec(groups, replicas)
    for _ in range(2):
        update = data.draw(terms | st.lists(row, max_size=3).map(lambda rows: list(enumerate(rows))))
        scales, traces = data.draw(st.none() | row), data.draw(st.lists(terms, max_size=3))
        back = [[(d, [-m for m in ms]) for d, ms in each] for each in traces]
        traces = [*traces, *back, *traces, update]
        step = reader.read_step(writer.step(update, scales, traces))
        assert image(step.terms) == image(update)
        assert (step.scales is None) == (scales is None)
        assert image([(0, step.scales or [])]) == image([(0, scales or [])])
        assert list(map(image, step.traces)) == list(map(image, traces))


def image(terms: Any) -> Any:
    return [(d, [np.asarray(m, np.float64).tobytes() for m in multiples]) for d, multiples in terms]


def test_a_known_journal_is_read_for_ever(path: Path) -> None:
    """The bytes of version 1; where this fails, the version must change."""
    weights = nn.Parameter(torch.ones(2))
    optimizer = SPSA([weights], lr=0.5, sigma=0.25)
    with Journal(optimizer, path):
        optimizer.step(lambda: weights.double().sum())
    raw = [raw for raw in read(path).records() if raw.kind == STEP]
    multiple = optimizer.last_rpe * -0.5 / 0.25
    assert raw[0].payload == b"\x00\x01" + struct.pack("<d", multiple)
    whole = path.read_bytes()
    assert whole[:10] == b"\x89DOPAJ\r\n\x01\x00"
    record = whole[raw[0].start : raw[0].end]
    assert record[:2] == b"\x02\x0a"
    # The checksum is that of all bytes before it, without the other checksums.
    records = list(read(path).records())
    so_far = b"".join([whole[:10], *(whole[r.start : r.end - 4] for r in records if r.start <= raw[0].start)])
    assert record[-4:] == zlib.crc32(so_far).to_bytes(4, "little")
    header = json.loads(records[0].payload)
    assert set(header) == {"library", "optimizer", "settings", "step", "groups", "weights", "perturbation"}
    assert header["groups"][0]["parameters"] == [{"name": None, "shape": [2], "dtype": "float32", "trainable": True}]
