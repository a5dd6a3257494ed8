"""What rules of nodes cannot do is refused with the way out, or told once; the rest is sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import (
    Journal,
    NodeDopamine,
    NodePerturbation,
    squared_error,
)
from optimizers import copies, randn, same, through_a_file

x = randn(12, 4, seed=1)
y = x[:, :2].tanh()
sequence, outcomes = randn(5, 12, 4, seed=3), randn(5, 12, 2, seed=4)


@pytest.fixture(params=[NodeDopamine, NodePerturbation])
def rule(request: pytest.FixtureRequest) -> Any:
    """Both rules."""
    return request.param


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def refused(optimizer: Any, closure: Callable[[], Any], kind: type[Exception]) -> str:
    """What a step says that is refused; it must leave all as it was."""
    before = copies(optimizer.parameters), str(optimizer.state_dict())
    with pytest.raises(kind) as error:
        optimizer.step(closure)
    assert same(before[0], copies(optimizer.parameters))
    assert before[1] == str(optimizer.state_dict())
    text = str(error.value)
    assert len(text) <= 300
    return text


# ---- closures ------------------------------------------------------------------------------------

NUMBERS: dict[str, Callable[[nn.Module], Any]] = {
    "a float": lambda model: float(squared_error(model(x), y).losses.mean()),
    "a tensor": lambda model: squared_error(model(x), y).losses.mean(),
}


@pytest.mark.parametrize("form", NUMBERS)
def test_a_lone_number_is_refused_with_the_ways_out(rule: Any, form: str) -> None:
    model = net()
    text = refused(rule(model), lambda: NUMBERS[form](model), TypeError)
    for way in ("squared_error", "cross_entropy", "outcome", "(n,)", "Dopamine2"):
        assert way in text


@pytest.mark.parametrize(
    "kind",
    [
        "no model",
        "another model",
        "only frozen weights",
        "a sum of frozen weights",
        "a multiple of frozen weights",
    ],
)
def test_a_closure_without_sites_is_refused(rule: Any, kind: str) -> None:
    model: Any = net()
    other = net()
    if "frozen" in kind:
        model[0].requires_grad_(False)
    closures: dict[str, Callable[[], Any]] = {
        "no model": lambda: squared_error(x[:, :2], y),
        "another model": lambda: squared_error(other(x), y),
        "only frozen weights": lambda: squared_error(model[0](x)[:, :2], y),
        "a sum of frozen weights": lambda: squared_error((model[0](x) + model[0](-x))[:, :2], y),
        "a multiple of frozen weights": lambda: squared_error(
            x @ (2.0 * model[0].weight[:2]).t(), y
        ),
    }
    text = refused(rule(model), closures[kind], ValueError)
    assert "call the model" in text


def test_no_samples_are_refused(rule: Any) -> None:
    model = net()
    refused(rule(model), lambda: squared_error(model(x[:0]), y[:0]), ValueError)


def test_frozen_models_and_empty_ones_are_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match="frozen") as error:
        rule(net().requires_grad_(False))
    assert len(str(error.value)) <= 300
    with pytest.raises(ValueError, match="params is empty"):
        rule(nn.Tanh())


OTHERWISE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "an operation more": lambda model, h: model[2](torch.tanh(h @ torch.eye(6, dtype=h.dtype))),
    "an operation more at the end": lambda model, h: model[2](torch.tanh(h)) + y,
    "an operation less": lambda model, h: torch.tanh(h)[:, :2],
    "another operation": lambda model, h: torch.tanh(h) @ model[2].weight.t(),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_operations_when_perturbed_are_refused(rule: Any, name: str) -> None:
    model = net()
    calls: list[int] = []

    def closure() -> Any:
        calls.append(0)
        h = model[0](x)
        values = model[2](torch.tanh(h)) if len(calls) == 1 else OTHERWISE[name](model, h)
        return squared_error(values, y)

    text = refused(rule(model), closure, RuntimeError)
    assert "without `if`" in text
    assert "instead of" in text


def test_a_batch_may_change_its_size_between_steps(rule: Any) -> None:
    model = net()
    optimizer = rule(model)
    inputs = randn(64, 4, seed=5)
    target = inputs[:, :2].tanh()
    first = optimizer.step(lambda: squared_error(model(inputs), target))
    for size in (48, 1, 64, 33, 48, 64, 63, 64):
        optimizer.step(lambda size=size: squared_error(model(inputs[:size]), target[:size]))
    assert optimizer.step(lambda: squared_error(model(inputs), target)) < first


def test_a_batch_that_changes_its_size_within_a_step_is_refused(rule: Any) -> None:
    model = net()
    calls: list[int] = []

    def closure() -> Any:
        calls.append(0)
        size = 12 if len(calls) == 1 else 11
        return squared_error(model(x[:size]), y[:size])

    text = refused(rule(model), closure, RuntimeError)
    assert "(11, 6)" in text
    assert "(12, 6)" in text


def test_outcomes_with_time_first_are_refused_with_the_way_out(rule: Any) -> None:
    model = nn.ModuleList([nn.RNN(4, 6), nn.Linear(6, 2)]).double()
    closure = lambda: squared_error(model[1](model[0](sequence)[0]), outcomes)  # noqa: E731
    text = refused(rule(model), closure, ValueError)
    assert "batch_first=True" in text
    assert "0.weight_ih_l0" in text


@pytest.mark.parametrize("kind", ["exponential", "bag"])
def test_weights_without_credit_are_told_once_by_name_and_stay(rule: Any, kind: str) -> None:
    model = nn.ParameterDict(dict(zip(["first", "readout"], net()[2].parameters(), strict=True)))
    model["odd"] = nn.Parameter(randn(4, 6, seed=5) if kind == "exponential" else randn(12, 6))
    odd = model["odd"].detach().clone()

    def closure() -> Any:
        if kind == "exponential":
            h = x @ model["odd"].exp()
        else:
            h = nn.functional.embedding_bag(torch.arange(12).view(12, 1), model["odd"])
        return squared_error(nn.functional.linear(h, model["first"], model["readout"]), y)

    optimizer = rule(model)
    with pytest.warns(RuntimeWarning, match="odd") as told:
        optimizer.step(closure)
    optimizer.step(closure)  # a second warning would be an error
    assert len(told) == 1
    assert len(str(told[0].message)) <= 300
    assert torch.equal(odd, model["odd"])


# ---- numbers -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_skips_the_step_and_is_told_once(rule: Any) -> None:
    model = net()
    optimizer = rule(model)
    broken = torch.where(torch.arange(12)[:, None] == 3, torch.nan, y)
    optimizer.step(lambda: squared_error(model(x), y))
    before = copies(model.parameters())
    memory = str(optimizer.state_dict()["forward"]["memory"])
    with pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.step(lambda: squared_error(model(x), broken))
    optimizer.step(lambda: squared_error(model(x), broken))  # a second warning would be an error
    assert optimizer.skipped_steps == 2
    assert same(before, copies(model.parameters()))
    assert memory == str(optimizer.state_dict()["forward"]["memory"])
    optimizer.step(lambda: squared_error(model(x), y))
    assert not same(before, copies(model.parameters()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_samples_that_are_not_finite_when_perturbed_are_left_out(
    rule: Any, bad: float, all_of_them: bool
) -> None:
    model = net()
    optimizer = rule(model)
    optimizer.step(lambda: squared_error(model(x), y))
    before = copies(model.parameters())
    calls: list[int] = []

    def closure() -> Any:
        calls.append(0)
        values = model(x)
        if len(calls) == 2:
            values = values.clone()
            values[: 12 if all_of_them else 1] = bad
        return squared_error(values, y)

    optimizer.step(closure)
    after = copies(model.parameters())
    assert all(bool(p.isfinite().all()) for p in after)
    assert same(before, after) == (all_of_them and rule is NodePerturbation)
    memory = optimizer.state_dict()["forward"]["memory"]
    assert all(bool(value.isfinite().all()) for value in memory.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_16_bits_are_trained(rule: Any, dtype: torch.dtype) -> None:
    model = net().to(dtype)
    optimizer = rule(model, **({"lr": 0.1} if rule is NodePerturbation else {}))
    losses = [
        optimizer.step(lambda: squared_error(model(x.to(dtype)), y.to(dtype))) for _ in range(60)
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.dtype == dtype for p in model.parameters())
    state = through_a_file(optimizer.state_dict())
    rule(model).load_state_dict(state)


def test_a_constant_network_stays(rule: Any) -> None:
    model = net()
    optimizer = rule(model)
    before = copies(model.parameters())
    for _ in range(3):
        optimizer.step(lambda: squared_error(model(x) * 0.0, y))
    assert same(before, copies(model.parameters()))


def test_dead_units_do_not_stop_the_rest(rule: Any) -> None:
    model = net()
    optimizer = rule(model)

    def closure() -> Any:
        return squared_error(model[2](torch.relu(model[0](x) - 1e3)), y)

    losses = [optimizer.step(closure) for _ in range(30)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_predictions_in_other_units_are_learned_as_fast(scale: float) -> None:
    model = net()
    optimizer = NodeDopamine(model)
    losses = [optimizer.step(lambda: squared_error(scale * model(x), scale * y)) for _ in range(30)]
    assert losses[-1] < 0.02 * losses[0]


# ---- what does not serve these rules -------------------------------------------------------------


def test_ranks_are_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match="one rank") as error:
        rule(net(), process_group=object())
    assert len(str(error.value)) <= 300


def test_a_journal_is_refused_with_the_way_out(rule: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="state_dict") as error:
        Journal(rule(net()), tmp_path / "run.journal")
    assert len(str(error.value)) <= 300
    assert not [*tmp_path.iterdir()]


# ---- long names ----------------------------------------------------------------------------------

LONG = "_".join(["a_name_that_frameworks_make"] * 8)


def deep(model: nn.Module) -> nn.Module:
    return nn.ModuleDict({LONG: nn.ModuleDict({LONG: model})})


def test_names_of_any_length_fit_into_the_warning_of_coupled_samples(rule: Any) -> None:
    model = net()
    optimizer = rule(deep(model))
    with pytest.warns(RuntimeWarning, match="depend on each other") as told:
        optimizer.step(lambda: squared_error(model(x) - model(x).mean(0), y))
    assert len(str(told[0].message)) <= 300
    assert "0.weight" in str(told[0].message)


def test_names_of_any_length_fit_into_the_warning_of_weights_without_credit(rule: Any) -> None:
    torch.manual_seed(3)
    holders = [nn.Linear(4, 2, bias=False, dtype=x.dtype) for _ in range(6)]
    names = [(f"{LONG}.{i}.weight", holder.weight) for i, holder in enumerate(holders)]
    optimizer = rule(names)

    def closure() -> Any:
        parts = [x @ holder.weight.exp().t() for holder in holders[:5]]
        return squared_error(torch.stack(parts).sum(0) + holders[5](x), y)

    with pytest.warns(RuntimeWarning, match="no credit") as told:
        optimizer.step(closure)
    text = str(told[0].message)
    assert len(text) <= 300
    assert "1.weight (aten.exp.default) and 3 more" in text
    assert "another optimizer" in text


def test_names_of_any_length_fit_into_the_error_of_samples_that_are_not_found(rule: Any) -> None:
    model = net()
    closure = lambda: squared_error(model(x)[:5], y[:5])  # noqa: E731
    text = refused(rule(deep(model)), closure, ValueError)
    assert "0.weight" in text
    assert "batch_first" in text
