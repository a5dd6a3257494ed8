"""Journals: replay, revert and merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dopaminergic import Dopamine, Journal, VectorDopamine, replay, revert
from dopaminergic.journal import JournalError, merge
from journals import assert_rebuilt, bits, recorded, trained
from optimizers import Regression, copies, randn


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
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4, affine=True), nn.Linear(4, 1)
        ).eval()

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
    ends += recorded(
        problem, VectorDopamine(problem.model.parameters(), seed=77), path.with_suffix(".2"), 3
    )[1:]
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


@pytest.mark.parametrize("way", ["meta", "sparse", "expanded"])
def test_tensors_without_memory_of_their_own_are_no_base(path: Path, way: str) -> None:
    problem, _, _ = trained(path)
    state = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    name = max(state, key=lambda name: state[name].numel())
    old = state[name]
    ways = {
        "meta": old.to("meta"),
        "sparse": old.to_sparse(),
        "expanded": old.flatten()[:1].expand(old.shape),
    }
    with pytest.raises(
        JournalError, match=r"has no memory for each of its entries; give a dense one"
    ):
        replay({**state, name: ways[way]}, path)
