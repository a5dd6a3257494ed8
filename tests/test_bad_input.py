"""What users get wrong in the core: errors name argument, rule, value and a way out, and nothing is lost."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dopaminergic import Dopamine, Dopamine2, ForwardOptimizer, VectorDopamine, WeightPerturbation
from optimizers import Regression, Row, copies, randn, same

COMMON: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"sigma": 0}, ValueError, ["sigma", "> 0", "0"]),
    ({"sigma": -1e-3}, ValueError, ["sigma", "> 0", "-0.001"]),
    ({"sigma": math.nan}, ValueError, ["sigma", "finite", "nan"]),
    ({"sigma": math.inf}, ValueError, ["sigma", "finite", "inf"]),
    ({"sigma": "small"}, TypeError, ["sigma", "number", "'small'"]),
    ({"sigma": torch.tensor([1e-3, 1e-3])}, (TypeError, ValueError), ["sigma"]),  # pyright: ignore
    ({"lr": -0.1}, ValueError, ["lr", ">= 0", "-0.1"]),
    ({"lr": math.inf}, ValueError, ["lr", "finite", "inf"]),
    ({"lr": True}, TypeError, ["lr", "number", "True"]),
    ({"lr": torch.ones(3)}, ValueError, ["lr", "(3,)"]),
    ({"weight_decay": -1}, ValueError, ["weight_decay", ">= 0", "-1"]),
    ({"directions": 0}, ValueError, ["directions", ">= 1", "0"]),
    ({"directions": -2}, ValueError, ["directions", ">= 1", "-2"]),
    ({"directions": 1 << 28}, ValueError, ["directions", str(1 << 28)]),
    ({"directions": 2.0}, TypeError, ["directions", "int", "2.0"]),
    ({"directions": True}, TypeError, ["directions", "int", "True"]),
    ({"noise": "uniform"}, ValueError, ["noise", "rademacher", "gaussian", "'uniform'"]),
    ({"noise": None}, ValueError, ["noise", "None"]),
    ({"seed": -1}, ValueError, ["seed", "2^63", "-1"]),
    ({"seed": 1 << 63}, ValueError, ["seed", "2^63"]),
    ({"seed": 1.5}, TypeError, ["seed", "int", "1.5"]),
    ({"seed": None}, TypeError, ["seed", "int", "None"]),
    ({"seed": True}, TypeError, ["seed", "True"]),
    ({"seed": "0"}, TypeError, ["seed", "'0'"]),
    ({"seed": []}, ValueError, ["seed", "empty"]),
    ({"seed": [0, 1.5]}, TypeError, ["seed", "1.5"]),
]
OWN: list[tuple[Any, dict[str, Any], type[Exception], list[str]]] = [
    (Dopamine, {"cap": 0.0}, ValueError, ["cap", "> 0", "0.0"]),
    (Dopamine, {"loss_floor": math.nan}, ValueError, ["loss_floor", "nan"]),
    (Dopamine, {"loss_floor": "zero"}, TypeError, ["loss_floor", "'zero'"]),
    (Dopamine, {"beta": 1.0}, ValueError, ["beta", "< 1", "1.0"]),
    (Dopamine, {"beta": -0.1}, ValueError, ["beta", ">= 0", "-0.1"]),
    (Dopamine2, {"beta": 1.5}, ValueError, ["beta", "< 1", "1.5"]),
    (Dopamine2, {"beta": "slow"}, TypeError, ["beta", "'slow'"]),
    (Dopamine2, {"tau": 0.0}, ValueError, ["tau", "> 0", "0.0"]),
    (Dopamine2, {"tau": 1.0}, ValueError, ["tau", "< 1", "1.0"]),
    (Dopamine2, {"kappa": -1}, ValueError, ["kappa", ">= 0", "-1"]),
    (Dopamine2, {"cap": -1.0}, ValueError, ["cap", "> 0", "-1.0"]),
    (VectorDopamine, {"damping": 0}, ValueError, ["damping", "> 0", "0"]),
    (VectorDopamine, {"damping": "small"}, TypeError, ["damping", "'small'"]),
    (VectorDopamine, {"tau": 1.0}, ValueError, ["tau", "< 1", "1.0"]),
    (VectorDopamine, {"tau": 0.0}, ValueError, ["tau", "> 0", "0.0"]),
    (VectorDopamine, {"kappa": -0.1}, ValueError, ["kappa", ">= 0", "-0.1"]),
    (VectorDopamine, {"beta": 1}, ValueError, ["beta", "< 1", "1"]),
    (VectorDopamine, {"memory": 0}, ValueError, ["memory", "> 0", "0"]),
]


@pytest.mark.parametrize(("settings", "error", "words"), COMMON, ids=[str(case[0]) for case in COMMON])
def test_settings_out_of_range(
    any_row: Row, settings: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    w = nn.Parameter(randn(4))
    with pytest.raises(error) as caught:
        any_row.make([w], **settings)
    assert all(word in str(caught.value) for word in [any_row.name, *words]), str(caught.value)


@pytest.mark.parametrize(("make", "settings", "error", "words"), OWN, ids=[f"{c[0].__name__}-{c[1]}" for c in OWN])
def test_a_rules_own_settings_out_of_range(
    make: Any, settings: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        make([nn.Parameter(randn(4))], **settings)
    assert all(word in str(caught.value) for word in [make.__name__, *words]), str(caught.value)


def test_settings_of_groups_are_checked_too(any_row: Row) -> None:
    a, b = nn.Parameter(randn(3)), nn.Parameter(randn(3))
    with pytest.raises(ValueError, match=rf"{any_row.name}: sigma must be .*-1"):
        any_row.make([{"params": [a]}, {"params": [b], "sigma": -1.0}])
    optimizer = any_row.make([a])
    with pytest.raises(ValueError, match=rf"{any_row.name}: lr must be .*-5"):
        optimizer.add_param_group({"params": [b], "lr": -5.0})
    # The refused group is forgotten, and the optimizer works.
    assert len(optimizer.param_groups) == 1
    old = b.detach().clone()
    optimizer.step(lambda: (a**2).sum())
    assert torch.equal(b.detach(), old)


def test_seeds_of_numpy_are_seeds(any_row: Row) -> None:
    w, v = nn.Parameter(randn(4)), nn.Parameter(randn(4))
    any_row.make([w], seed=np.int64(7)).step(lambda: (w**2).sum())
    any_row.make([v], seed=7).step(lambda: (v**2).sum())
    assert torch.equal(w.detach(), v.detach())


# ---- parameters ------------------------------------------------------------------------------------------------------


def frozen() -> list[Tensor]:
    return [nn.Parameter(randn(3), requires_grad=False), nn.Parameter(randn(2), requires_grad=False)]


PARAMETERS: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "none": (list, ValueError, ["param"]),
    "all frozen": (frozen, ValueError, ["params", "2 parameters", "requires_grad_"]),
    "all empty": (lambda: [nn.Parameter(torch.empty(0, 4))], ValueError, ["params", "1 parameters"]),
    "integers": (
        lambda: [nn.Parameter(randn(3)), torch.zeros(2, 3, dtype=torch.long)],
        TypeError,
        ["parameter 1", "(2, 3)", "int64", "is_floating_point"],
    ),
    "complex": (
        lambda: [nn.Parameter(torch.zeros(3, dtype=torch.complex64))],
        TypeError,
        ["parameter 0", "complex64"],
    ),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters_that_cannot_be_trained(any_row: Row, kind: str) -> None:
    make, error, words = PARAMETERS[kind]
    with pytest.raises(error) as caught:
        any_row.make(make())
    assert all(word in str(caught.value) for word in [any_row.name, *words]), str(caught.value)


def test_what_torch_refuses_is_refused(any_row: Row) -> None:
    """A single tensor, no tensors, tensors that are computed from others, and one parameter in two groups."""
    w = nn.Parameter(randn(3))
    for params in (w, [1.0], [w * 2], [{"params": [w]}, {"params": [w]}]):
        with pytest.raises((TypeError, ValueError)):
            any_row.make(params)


def test_freezing_everything_later_is_an_error_in_the_step(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    optimizer.step(problem.loss)
    problem.model.requires_grad_(False)
    old, passes = problem.weights(), optimizer.forward_passes
    with pytest.raises(ValueError, match=rf"{any_row.name}.*requires_grad_"):
        optimizer.step(problem.loss)
    assert same(problem.weights(), old)
    assert optimizer.forward_passes == passes
    problem.model.requires_grad_(True)
    optimizer.step(problem.loss)


def test_the_base_class_has_no_rule() -> None:
    w = nn.Parameter(randn(3))
    optimizer = ForwardOptimizer([w], lr=0.1, sigma=0.1)
    with pytest.raises(NotImplementedError, match="subclass such as Dopamine"):
        optimizer.step(lambda: 1.0)
    assert torch.equal(w.detach(), randn(3))


def test_settings_are_named() -> None:
    with pytest.raises(TypeError):
        WeightPerturbation([nn.Parameter(randn(3))], 0.1)  # pyright: ignore


# ---- closures --------------------------------------------------------------------------------------------------------

OUTCOMES: list[tuple[Any, type[Exception], list[str]]] = [
    (None, TypeError, ["None", "return loss"]),
    ("0.5", TypeError, ["'0.5'", "str"]),
    ([0.5], TypeError, ["[0.5]", "list"]),
    ((0.5, 1.0), TypeError, ["tuple"]),
    ({"loss": 0.5}, TypeError, ["dict"]),
    (1 + 2j, TypeError, ["complex"]),
    (np.zeros(3), TypeError, ["ndarray"]),
    (torch.zeros(3, 2), ValueError, ["(3, 2)", "1-d tensor", "squared_error"]),
    (torch.zeros(1, 1), ValueError, ["(1, 1)"]),
    (torch.zeros(0), ValueError, ["(0,)"]),
    (torch.tensor(1 + 2j), TypeError, ["complex"]),
]


@pytest.mark.parametrize(("returned", "error", "words"), OUTCOMES, ids=[str(case[0]) for case in OUTCOMES])
def test_a_closure_that_returns_no_loss(any_row: Row, returned: Any, error: type[Exception], words: list[str]) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    optimizer.step(problem.loss)
    old, before = problem.weights(), str(optimizer.state_dict())
    for half in (optimizer.step, optimizer.probe):
        with pytest.raises(error) as caught:
            half(lambda: returned)
        assert all(word in str(caught.value) for word in [any_row.name, *words]), str(caught.value)
        assert same(problem.weights(), old)
        assert str(optimizer.state_dict()) == before
    optimizer.step(problem.loss)


def test_whole_numbers_are_losses_too() -> None:
    """Counts of errors, say: one for each sample, or their sum."""
    w = nn.Parameter(randn(3))
    optimizer = WeightPerturbation([w])
    assert optimizer.step(lambda: torch.tensor([1, 2, 2, 1])) == 1.5


# ---- fleets ----------------------------------------------------------------------------------------------------------


def test_parameters_of_a_fleet_need_a_replica_dimension(any_row: Row) -> None:
    for shape in ((2, 3), (), (0, 3)):
        with pytest.raises(ValueError, match=rf"{any_row.name}.*3 seeds.*{re.escape(str(shape))}"):
            any_row.make([nn.Parameter(torch.zeros(shape))], seed=[0, 1, 2])


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        (0.5, TypeError, ["float", "3 losses"]),
        (None, TypeError, ["NoneType"]),
        (torch.tensor(0.5), ValueError, ["3", "()"]),
        (torch.zeros(2), ValueError, ["3", "(2,)"]),
        (torch.zeros(2, 3), ValueError, ["3", "(2, 3)"]),
        (torch.zeros(3, 0), ValueError, ["3", "(3, 0)"]),
    ],
    ids=str,
)
def test_a_fleets_closure_returns_one_loss_for_each_replica(
    any_row: Row, returned: Any, error: type[Exception], words: list[str]
) -> None:
    w = nn.Parameter(randn(3, 4))
    optimizer, old = any_row.make([w], seed=[0, 1, 2]), copies([w])
    with pytest.raises(error) as caught:
        optimizer.step(lambda: returned)
    assert all(word in str(caught.value) for word in [any_row.name, *words]), str(caught.value)
    assert same(copies([w]), old)
    assert optimizer.forward_passes == 0


def test_a_fleets_learning_rates_are_as_many_as_its_seeds(row: Row) -> None:
    w = nn.Parameter(randn(3, 4))
    with pytest.raises(ValueError, match=r"lr must be .*\(3,\).*\(2,\)"):
        row.make([w], seed=[0, 1, 2], lr=torch.ones(2))
    with pytest.raises(ValueError, match="lr must be"):
        row.make([w], seed=[0, 1, 2], lr=torch.tensor([0.1, -0.1, 0.1]))
