"""Journals: stopping and going on."""

from __future__ import annotations

import copy
import json
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from dopaminergic import SPSA, Dopamine, Journal, VectorDopamine, replay
from dopaminergic.journal import JournalError, read
from dopaminergic.journal.format import DIGEST_BYTES, HEADER, SNAPSHOT
from journals import PROBLEMS, bits, forged, recorded, trained
from launching import run_scripts
from optimizers import ROWS, VECTOR, Regression, Row, randn

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
    """Twice killed; base weights and journal alone bring it to the same end, in other processes."""
    script = path.with_suffix(".py")
    script.write_text(KILLED)
    arguments = (str(Path(__file__).parent), row.name, str(path))
    for kill in (["13"], ["27"], []):
        [done] = run_scripts(script, *arguments, *kill, environments=[{}])
        assert done.code == (-signal.SIGKILL if kill else 0), done.err
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
    wrong = [
        Dopamine(problems[0].model.parameters()),
        *(SPSA(p.model.parameters()) for p in problems[1:3]),
    ]
    two = [{"params": [p]} for p in problems[3].model.parameters()]
    for other, message in zip(
        [*wrong, SPSA(two)],
        ["another optimizer", "another dtype", "other weights", "4$|groups"],
        strict=True,
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
        for copied, other in (
            copy.deepcopy((problem, optimizer)),
            pickle.loads(pickle.dumps((problem, optimizer))),
        ):
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


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("groups", 0, "sigma"), [0.1], "sigma must be a number"),
        (("groups", 0, "lr"), -1.0, "lr must be finite and >= 0, got -1.0"),
        (("rule",), [1.0], "rule must be None"),
        (("batched",), "\x1b[31m", "batched must be a dict"),
        (("progress", "doublings"), 1 << 70, "doublings must be an int"),
        (("more",), 1, "has 'more'"),
        (("groups",), 7, "lacks"),
    ],
)
def test_a_snapshot_that_no_optimizer_has_made_is_refused_by_file_and_byte_before_weights_change(
    path: Path, place: tuple[Any, ...], value: Any, words: str
) -> None:
    trained(path, 3)
    [header, first, *steps] = list(read(path).records())
    last = steps.pop()
    state = json.loads(last.payload[DIGEST_BYTES:])
    holder = state
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    assert (header.kind, first.kind, last.kind) == (HEADER, SNAPSHOT, SNAPSHOT)
    forged(
        path,
        *((raw.kind, raw.payload) for raw in steps),
        (SNAPSHOT, last.payload[:32] + json.dumps(state).encode()),
    )
    content, problem = path.read_bytes(), Regression()
    optimizer = SPSA(problem.model.named_parameters(), directions=2, seed=3)
    before = repr(optimizer.state_dict()), bits(problem)
    with pytest.raises(JournalError) as error:
        Journal(optimizer, path, resume=True)
    said = str(error.value)
    assert f"{path}: " in said
    assert "snapshot at byte" in said
    assert words in said
    assert said.isprintable()
    assert len(said) - len(str(path)) < 300
    assert (repr(optimizer.state_dict()), bits(problem)) == before
    assert path.read_bytes() == content
