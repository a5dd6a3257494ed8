"""Rules of nodes between steps: a run stays the same, however it is kept."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import NodeDopamine, NodePerturbation, squared_error
from optimizers import copies, randn, same, through_a_file

x, y = randn(12, 4, seed=1), randn(12, 2, seed=2)
RULES = [NodeDopamine, NodePerturbation]
SEEDS = [5, 9, 1 << 40]


def net(width: int = 6, **options: Any) -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(4, width), nn.Tanh(), nn.Dropout(options.get("drop", 0.0))]
    return nn.Sequential(*layers, nn.Linear(width, 2)).double()


def loss_of(model: Any) -> Callable[[], Any]:
    return lambda: squared_error(model(x), y)


# Of first order above 1500 weights, of second order below.
KINDS = [
    pytest.param((NodeDopamine, 6), id="NodeDopamine, second order"),
    pytest.param((NodeDopamine, 300), id="NodeDopamine, first order"),
    pytest.param((NodePerturbation, 6), id="NodePerturbation"),
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    """A rule, and a width of the network with which it takes each of its ways."""
    return request.param


def train(optimizer: Any, model: Any, steps: int) -> list[Any]:
    return [optimizer.step(loss_of(model)) for _ in range(steps)]


@pytest.mark.parametrize("through", ["a file", "deepcopy", "pickle", "the pair"])
def test_a_run_that_is_resumed_is_the_run_that_was_not(kind: Any, through: str) -> None:
    rule, width = kind
    model = net(width)
    optimizer = rule(model, weight_decay=0.01)
    train(optimizer, model, 4)
    if through == "the pair":
        other, again = copy.deepcopy((model, optimizer))
    else:
        other = copy.deepcopy(model)
        again = rule(other, weight_decay=0.01)
        if through == "a file":
            again.load_state_dict(through_a_file(optimizer.state_dict()))
        elif through == "deepcopy":
            again.load_state_dict(copy.deepcopy(optimizer).state_dict())
        else:
            again.load_state_dict(pickle.loads(pickle.dumps(optimizer)).state_dict())
    assert train(optimizer, model, 4) == train(again, other, 4)
    assert same(copies(model.parameters()), copies(other.parameters()))
    assert optimizer.forward_passes == again.forward_passes
    assert optimizer.last_rpe == again.last_rpe


def test_a_probe_and_a_step_are_one_step(kind: Any) -> None:
    rule, width = kind
    one, other = net(width), net(width)
    whole, halves = rule(one), rule(other)
    for _ in range(4):
        first = whole.step(loss_of(one))
        before = copies(other.parameters())
        assert halves.probe(loss_of(other)) == first
        assert same(before, copies(other.parameters()))
        halves.step()
    assert same(copies(one.parameters()), copies(other.parameters()))


def test_a_rate_of_0_moves_nothing_and_learns_all_the_same(kind: Any) -> None:
    rule, width = kind
    model = net(width)
    optimizer = rule(model, lr=0.0, weight_decay=0.1)
    before = copies(model.parameters())
    train(optimizer, model, 5)
    assert same(before, copies(model.parameters()))
    memory = optimizer.state_dict()["forward"]["memory"]
    assert any(name.startswith("feedback") for name in memory) == (rule is NodeDopamine)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(kind: Any) -> None:
    rule, width = kind
    ends = []
    for seed in (7, 7, 8):
        model = net(width)
        train(rule(model, seed=seed), model, 3)
        ends.append(copies(model.parameters()))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


# ---- groups --------------------------------------------------------------------------------------


def test_groups_have_rates_and_decays_of_their_own(kind: Any) -> None:
    rule, width = kind
    model = net(width)
    layers = [model[0].named_parameters(), model[3].named_parameters()]
    groups = [{"params": [*layers[0]], "lr": 0.0}, {"params": [*layers[1]], "weight_decay": 0.1}]
    before = copies(model.parameters())
    optimizer = rule(groups)
    train(optimizer, model, 3)
    after = copies(model.parameters())
    assert same(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])


def test_a_scheduler_changes_the_rate(kind: Any) -> None:
    rule, width = kind
    model = net(width)
    optimizer = rule(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0 if epoch else 1.0)
    before = copies(model.parameters())
    train(optimizer, model, 1)
    schedule.step()
    between = copies(model.parameters())
    train(optimizer, model, 2)
    assert not same(before, between)
    assert same(between, copies(model.parameters()))


def test_a_group_can_be_added_between_steps(kind: Any) -> None:
    rule, width = kind
    model = net(width)
    optimizer = rule([*model[0].parameters()])
    train(optimizer, model, 3)
    before = copies(model.parameters())
    optimizer.add_param_group({"params": [*model[3].parameters()]})
    train(optimizer, model, 3)
    assert all(
        not torch.equal(a, b) for a, b in zip(before, copies(model.parameters()), strict=True)
    )


def test_weights_can_be_frozen_and_thawed_between_steps(kind: Any) -> None:
    rule, width = kind
    model = net(width)
    optimizer = rule(model)
    for frozen in (model[0].weight, model[3].weight, model[0].bias):
        frozen.requires_grad_(False)
        before = copies(model.parameters())
        train(optimizer, model, 3)
        frozen.requires_grad_(True)
        for p, old in zip(model.parameters(), before, strict=True):
            assert torch.equal(p, old) == (p is frozen)
    before = copies(model.parameters())
    train(optimizer, model, 3)
    assert not any(map(torch.equal, before, copies(model.parameters())))


# ---- fleets --------------------------------------------------------------------------------------


def stacked(seeds: list[int], width: int) -> list[nn.Parameter]:
    starts = [
        [randn(*shape, seed=seed % 999) / 2 for shape in ((4, width), (width, 2))] for seed in seeds
    ]
    return [nn.Parameter(torch.stack(parts)) for parts in zip(*starts, strict=True)]


def loss_of_stacked(weights: list[nn.Parameter]) -> Callable[[], Any]:
    def closure() -> Any:
        values = torch.tanh(x @ weights[0]) @ weights[1]
        return squared_error(values, y.expand(values.shape))

    return closure


@pytest.mark.parametrize("width", [6, 300])
@pytest.mark.parametrize("rule", RULES)
def test_a_fleet_is_its_single_runs(rule: Any, width: int) -> None:
    weights = stacked(SEEDS, width)
    rates = torch.tensor([0.02, 0.01, 0.0], dtype=torch.float64)
    optimizer = rule(weights, seed=SEEDS, lr=rates, weight_decay=0.05)
    closure = loss_of_stacked(weights)
    losses = torch.stack([optimizer.step(closure) for _ in range(5)])
    for r, seed in enumerate(SEEDS):
        alone = [nn.Parameter(p[0].detach().clone()) for p in stacked([seed], width)]
        single = rule(alone, seed=seed, lr=float(rates[r]), weight_decay=0.05)
        found = [single.step(loss_of_stacked(alone)) for _ in range(5)]
        torch.testing.assert_close(losses[:, r].tolist(), found, rtol=1e-8, atol=1e-10)
        for p, q in zip(weights, alone, strict=True):
            torch.testing.assert_close(p[r].detach(), q.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_a_replica_that_is_not_finite_is_skipped_alone(rule: Any) -> None:
    ends = []
    for spoiled in (False, True):
        weights = stacked(SEEDS, 6)
        optimizer = rule(weights, seed=SEEDS, lr=0.02)
        if spoiled:
            weights[0].data[1] = torch.nan
        before = copies(weights)
        closure = loss_of_stacked(weights)
        if spoiled:
            with pytest.warns(RuntimeWarning, match="not finite"):
                optimizer.step(closure)
            assert optimizer.skipped_steps.tolist() == [0, 1, 0]
            assert torch.equal(weights[1][1], before[1][1])
        else:
            optimizer.step(closure)
        ends.append(copies(weights))
    for plain, odd in zip(*ends, strict=True):
        torch.testing.assert_close(plain[[0, 2]], odd[[0, 2]])


# ---- random numbers and buffers ------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_dropout_has_the_same_mask_in_all_evaluations_of_a_step_and_another_in_the_next(
    rule: Any,
) -> None:
    model = net(drop=0.5)
    masks: list[Tensor] = []
    model[2].register_forward_hook(lambda module, args, out: masks.append(out.eq(0)))
    optimizer = rule(model)
    torch.manual_seed(4)
    train(optimizer, model, 1)
    first = list(masks)
    masks.clear()
    train(optimizer, model, 1)
    assert len(first) >= 2
    assert all(torch.equal(first[0], mask) for mask in first)
    assert all(torch.equal(masks[0], mask) for mask in masks)
    assert not torch.equal(first[0], masks[0])


@pytest.mark.filterwarnings("ignore:.*depend on each other:RuntimeWarning")
@pytest.mark.parametrize("rule", RULES)
def test_running_statistics_are_those_of_one_evaluation_a_step(rule: Any) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
    by_hand = copy.deepcopy(model)
    optimizer = rule(model)
    for _ in range(3):
        with torch.no_grad():
            for p, q in zip(by_hand.parameters(), model.parameters(), strict=True):
                p.copy_(q)
            by_hand(x)
        train(optimizer, model, 1)
        for mine, hand in zip(model.buffers(), by_hand.buffers(), strict=True):
            torch.testing.assert_close(mine, hand, rtol=1e-12, atol=1e-12)
