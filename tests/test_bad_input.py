"""What users get wrong in the core: errors name argument, rule, value and a way out, and nothing is
lost.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from dopaminergic import (
    Dopamine,
    Dopamine2,
    ForwardOptimizer,
    ScalarRule,
    VectorDopamine,
    WeightPerturbation,
    checks,
)
from dopaminergic.plain import brief
from optimizers import Regression, Row, copies, randn, same, through_a_file

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
    ({"seed": np.bool_(True)}, TypeError, ["seed", "True"]),
    ({"seed": {1: 2}}, TypeError, ["seed", "{1: 2}"]),
    ({"seed": np.array([[1, 2]])}, TypeError, ["seed"]),
    ({"seed": torch.zeros(2, dtype=torch.int64, device="meta")}, TypeError, ["seed"]),
    ({"seed": [1 << 70] * 1000}, ValueError, ["seed", "2^63"]),
    ({"sigma": np.float32(0)}, ValueError, ["sigma", "> 0", "0.0"]),
    ({"sigma": Decimal("sNaN")}, ValueError, ["sigma", "finite"]),
    ({"sigma": 10**5000}, ValueError, ["sigma", "finite"]),
    ({"sigma": "x" * 10_000}, TypeError, ["sigma", "number", "'xx"]),
    ({"lr": np.bool_(True)}, TypeError, ["lr", "number", "True"]),
    ({"lr": torch.tensor(-1.0)}, ValueError, ["lr", ">= 0", "-1"]),
    ({"lr": torch.tensor(1.0, device="meta")}, TypeError, ["lr", "number"]),
    ({"lr": [0.1, 0.2]}, TypeError, ["lr", "[0.1, 0.2]"]),
    ({"lr": None}, TypeError, ["lr", "None"]),
    ({"weight_decay": np.nan}, ValueError, ["weight_decay", "nan"]),
    ({"directions": np.int64(0)}, ValueError, ["directions", ">= 1"]),
    ({"directions": np.float64(2)}, TypeError, ["directions", "int"]),
    ({"noise": np.array(["gaussian"])}, ValueError, ["noise", "rademacher"]),
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
    (VectorDopamine, {"memory": "much"}, TypeError, ["memory", "'much'"]),
    (Dopamine, {"batched": "yes"}, TypeError, ["batched", "True or False", "'yes'"]),
    (Dopamine, {"batched": 1}, TypeError, ["batched", "1"]),
]


@pytest.mark.parametrize(
    ("settings", "error", "words"), COMMON, ids=[brief(case[0]) for case in COMMON]
)
def test_settings_out_of_range(
    any_row: Row, settings: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    w = nn.Parameter(randn(4))
    with pytest.raises(error) as caught:
        any_row.make([w], **settings)
    assert all(word in str(caught.value) for word in [any_row.name, *words]), str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("make", "settings", "error", "words"), OWN, ids=[f"{c[0].__name__}-{c[1]}" for c in OWN]
)
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


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda x: np.float64(x) if isinstance(x, float) else np.int64(x),
    "numpy, 32 bits": lambda x: np.float32(x) if isinstance(x, float) else np.int32(x),
    "an array": np.array,
    "a tensor": lambda x: torch.tensor(
        x, dtype=torch.float64 if isinstance(x, float) else torch.int64
    ),
    "a tensor with a gradient": lambda x: (
        torch.tensor(x, requires_grad=True) if isinstance(x, float) else x
    ),
    "fractions": lambda x: Fraction(x) if isinstance(x, float) else x,
    "decimals": lambda x: Decimal(x) if isinstance(x, float) else x,
}


@pytest.mark.parametrize("form", NUMBERS)
def test_numbers_of_any_kind_become_floats_and_ints(any_row: Row, form: str) -> None:
    """Powers of two, which are the same in all precisions."""
    settings = {"lr": 0.5, "sigma": 0.0078125, "weight_decay": 0.25, "directions": 2, "seed": 3}
    states = []
    for make in (lambda x: x, NUMBERS[form]):
        w = nn.Parameter(randn(6))
        optimizer = any_row.make([w], **{name: make(value) for name, value in settings.items()})
        assert all(
            type(optimizer.param_groups[0][name]) is float
            for name in ("lr", "sigma", "weight_decay")
        )
        optimizer.step(lambda w=w: (w**2).sum())
        states.append((str(optimizer.state_dict()), w.tolist()))
        through_a_file(optimizer.state_dict())
    assert states[0] == states[1]


@pytest.mark.parametrize(
    "make", [Dopamine, Dopamine2, VectorDopamine], ids=lambda rule: rule.__name__
)
def test_a_rules_own_numbers_become_floats(make: Any) -> None:
    usual = make([nn.Parameter(randn(3))]).settings
    names = [name for name, value in usual.items() if name in checks.RANGES]
    own = {name: np.float64(usual[name]) for name in names}
    found = make([nn.Parameter(randn(3))], **own).settings
    assert str(found) == str(usual)
    assert {type(found[name]) for name in names} <= {float, int}


def test_all_settings_of_all_rules_are_checked(any_row: Row) -> None:
    """A setting that is not in the table would be taken from any file."""
    known = {*checks.RANGES, *checks.FLAGS, "directions", "noise", "seed"}
    assert {*any_row.make([nn.Parameter(randn(3))]).settings} <= known


def test_a_fleets_rates_and_seeds_may_come_from_numpy(any_row: Row) -> None:
    ends = []
    for make in (lambda x: x, np.array, torch.tensor):
        w = nn.Parameter(randn(3, 4))
        rates = [0.5, 0.25, 0.125]
        lr = torch.tensor(rates, dtype=torch.float64) if make is not np.array else np.array(rates)
        optimizer = any_row.make([w], seed=make([7, 8, 9]), lr=lr)
        optimizer.step(lambda w=w: (w**2).sum(1))
        through_a_file(optimizer.state_dict())
        ends.append(copies([w]))
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_numbers_that_a_schedule_puts_into_groups_are_saved_as_floats(any_row: Row) -> None:
    w = nn.Parameter(randn(4))
    optimizer = any_row.make([w])
    lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / 10))  # pyright: ignore[reportArgumentType]
    group = optimizer.param_groups[0]
    group["sigma"], group["weight_decay"] = np.float32(0.125), torch.tensor(0.5)
    group["mine"] = {"steps": np.int64(3), "betas": (np.float32(0.5), np.array([1.0, 2.0]))}
    saved = through_a_file(optimizer.state_dict())
    assert type(saved["param_groups"][0]["lr"]) is float
    any_row.make([nn.Parameter(randn(4))]).load_state_dict(saved)


def test_seeds_of_numpy_are_seeds(any_row: Row) -> None:
    w, v = nn.Parameter(randn(4)), nn.Parameter(randn(4))
    any_row.make([w], seed=np.int64(7)).step(lambda: (w**2).sum())
    any_row.make([v], seed=7).step(lambda: (v**2).sum())
    assert torch.equal(w.detach(), v.detach())


# ---- parameters ----------------------------------------------------------------------------------


def frozen() -> list[Tensor]:
    return [
        nn.Parameter(randn(3), requires_grad=False),
        nn.Parameter(randn(2), requires_grad=False),
    ]


PARAMETERS: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "none": (list, ValueError, ["param"]),
    "all frozen": (frozen, ValueError, ["params", "2 parameters", "requires_grad_"]),
    "all empty": (
        lambda: [nn.Parameter(torch.empty(0, 4))],
        ValueError,
        ["params", "1 parameters"],
    ),
    "integers alone": (
        lambda: [torch.zeros(2, 3, dtype=torch.long)],
        TypeError,
        ["nothing to train", "int64", "floating-point"],
    ),
    "complex": (
        lambda: [nn.Parameter(randn(2)), nn.Parameter(torch.zeros(3, dtype=torch.complex64))],
        TypeError,
        ["parameter 1", "(3,)", "complex64", "view_as_real"],
    ),
    "named": (
        lambda: [("scale", nn.Parameter(torch.zeros(3, dtype=torch.complex128)))],
        TypeError,
        ["'scale'", "complex128"],
    ),
    "8 bits": (
        lambda: [nn.Parameter(randn(3).to(torch.float8_e4m3fn))],
        TypeError,
        ["parameter 0", "float8_e4m3fn", "bfloat16"],
    ),
    "without memory": (
        lambda: [nn.Parameter(torch.empty(3, device="meta"))],
        ValueError,
        ["parameter 0", "(3,)", "meta", "to_empty"],
    ),
    "lazy": (
        lambda: nn.LazyLinear(3).parameters(),
        ValueError,
        ["parameter 0", "not initialized", "one forward pass"],
    ),
    "lazy, in a group": (
        lambda: [{"params": [nn.Parameter(randn(2))]}, {"params": nn.LazyLinear(3).parameters()}],
        ValueError,
        ["not initialized"],
    ),
    "sparse": (
        lambda: [nn.Parameter(torch.eye(3).to_sparse())],
        TypeError,
        ["parameter 0", "sparse", "to_dense"],
    ),
    "sparse and frozen": (
        lambda: [
            nn.Parameter(randn(2)),
            nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False),
        ],
        TypeError,
        ["parameter 1", "sparse", "leave it out"],
    ),
    "a model": (lambda: nn.Linear(2, 1), TypeError, ["params", "Linear", "model.parameters()"]),
    "a state": (
        lambda: nn.Linear(2, 1).state_dict(),
        TypeError,
        ["params", "OrderedDict", "model.parameters()"],
    ),
    "None": (lambda: None, TypeError, ["params", "NoneType"]),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters_that_cannot_be_trained(any_row: Row, kind: str) -> None:
    make, error, words = PARAMETERS[kind]
    with pytest.raises(error) as caught:
        any_row.make(make())
    assert all(word in str(caught.value) for word in [any_row.name, *words]), str(caught.value)
    assert len(str(caught.value)) <= 300


FROZEN: dict[str, Callable[[], Tensor]] = {
    "packed": lambda: torch.arange(64, dtype=torch.uint8),
    "a mask": lambda: torch.ones(4, dtype=torch.bool),
    "counts": lambda: torch.arange(4),
    "complex": lambda: torch.ones(3, dtype=torch.complex128),
    "8 bits": lambda: torch.ones(8).to(torch.float8_e5m2),
    "without memory": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_parameters_may_be_of_any_dtype(any_row: Row, kind: str) -> None:
    """Nobody perturbs them, and those beside them get the noise of their place in the list."""
    ends = []
    for make in (lambda: torch.zeros(3), FROZEN[kind]):
        w, frozen = nn.Parameter(randn(4)), nn.Parameter(make(), requires_grad=False)
        before = frozen.detach().clone()
        optimizer = any_row.make([frozen, w])
        for _ in range(2):
            optimizer.step(lambda w=w: (w**2).sum())
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        optimizer.step(lambda w=w: (w**2).sum())
        ends.append(copies([w]))
        assert frozen.is_meta or torch.equal(
            before.view(torch.uint8), frozen.detach().view(torch.uint8)
        )
    assert same(*ends)


@pytest.mark.parametrize("kind", ["complex", "8 bits"])
def test_what_is_thawed_later_is_looked_at_then(any_row: Row, kind: str) -> None:
    w, frozen = nn.Parameter(randn(4)), nn.Parameter(FROZEN[kind](), requires_grad=False)
    optimizer = any_row.make([w, frozen])
    optimizer.step(lambda: (w**2).sum())
    frozen.requires_grad_(True)
    old = copies([w])
    with pytest.raises(TypeError, match=f"{any_row.name}: parameter 1 .*cannot be perturbed"):
        optimizer.step(lambda: (w**2).sum())
    assert same(copies([w]), old)
    frozen.requires_grad_(False)
    optimizer.step(lambda: (w**2).sum())


def test_a_refused_group_leaves_the_optimizer_as_it_was(any_row: Row) -> None:
    w = nn.Parameter(randn(4))
    optimizer = any_row.make([w])
    before = str(optimizer.state_dict())
    for bad in (
        {"params": [nn.Parameter(torch.zeros(3, dtype=torch.complex64))]},
        {"params": [w]},
        {"params": nn.LazyLinear(3).parameters()},
        {"params": [nn.Parameter(randn(2))], "sigma": math.nan},
    ):
        with pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group(bad)
        assert str(optimizer.state_dict()) == before
    optimizer.step(lambda: (w**2).sum())


def test_a_probe_does_not_outlive_a_new_group(any_row: Row) -> None:
    w, v = nn.Parameter(randn(4)), nn.Parameter(randn(4))
    optimizer = any_row.make([w])
    optimizer.probe(lambda: (w**2).sum())
    optimizer.add_param_group({"params": [v]})
    with pytest.raises(RuntimeError, match="needs a probe first"):
        optimizer.step()


def test_what_torch_refuses_is_refused(any_row: Row) -> None:
    """A single tensor, no tensors, tensors that are computed from others, and one parameter in two
    groups.
    """
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
    with pytest.raises(
        NotImplementedError,
        match="ForwardOptimizer is a base class; use a subclass such as Dopamine",
    ):
        ForwardOptimizer([w], lr=0.1, sigma=0.1)
    optimizer = ScalarRule([w], lr=0.1, sigma=0.1)
    with pytest.raises(
        NotImplementedError, match="ScalarRule is a base class; use a subclass such as Dopamine"
    ):
        optimizer.step(lambda: 1.0)
    assert torch.equal(w.detach(), randn(3))


def test_settings_are_named() -> None:
    with pytest.raises(TypeError):
        WeightPerturbation([nn.Parameter(randn(3))], 0.1)  # pyright: ignore


# ---- closures ------------------------------------------------------------------------------------

OUTCOMES: list[tuple[Any, type[Exception], list[str]]] = [
    (None, TypeError, ["None", "return loss"]),
    ("0.5", TypeError, ["'0.5'", "str"]),
    ([0.5, None], TypeError, ["[0.5, None]", "list"]),
    ([[0.5, 1.0]], TypeError, ["list"]),
    ([], ValueError, ["(0,)"]),
    ((0.5, 1.0), TypeError, ["(0.5, 1.0)", "tuple", "alone"]),
    ({"loss": 0.5}, TypeError, ["dict", "output.loss"]),
    (1 + 2j, TypeError, ["complex", "real"]),
    (np.complex64(1), TypeError, ["complex64", "real"]),
    (np.zeros((2, 3)), ValueError, ["(2, 3)"]),
    (np.zeros(0), ValueError, ["(0,)"]),
    (np.array(["0.5"]), TypeError, ["ndarray"]),
    (np.array([None]), TypeError, ["ndarray"]),
    (np.ma.masked_array([1.0, 2.0], [True, False]), TypeError, ["MaskedArray", "compressed()"]),
    (b"0.5", TypeError, ["bytes", "text"]),
    (nn.Linear(500, 500), TypeError, ["Linear", "call the module"]),
    (len, TypeError, ["builtin_function"]),
    (object(), TypeError, ["object"]),
    (float, TypeError, ["type"]),
    ([*list(range(100000)), None], TypeError, ["[0, 1, 2, 3, ...]"]),
    (dict.fromkeys(range(1000), "x" * 1000), TypeError, ["dict"]),
    ("x\x1b]52;c" * 1000, TypeError, ["str"]),
    (torch.empty((), device="meta"), TypeError, ["meta", "to_empty"]),
    (torch.empty(3, device="meta"), TypeError, ["meta", "to_empty"]),
    (torch.zeros(3, 2), ValueError, ["(3, 2)", "1-d tensor", "squared_error"]),
    (torch.zeros(1, 1), ValueError, ["(1, 1)"]),
    (torch.zeros(0), ValueError, ["(0,)"]),
    (torch.tensor(1 + 2j), TypeError, ["complex"]),
]


OUTCOME_IDS = [f"{i} {type(case[0]).__name__}" for i, case in enumerate(OUTCOMES)]


@pytest.mark.parametrize(("returned", "error", "words"), OUTCOMES, ids=OUTCOME_IDS)
def test_a_closure_that_returns_no_loss(
    any_row: Row, returned: Any, error: type[Exception], words: list[str]
) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    optimizer.step(problem.loss)
    old, before = problem.weights(), str(optimizer.state_dict())
    for half in (optimizer.step, optimizer.probe):
        with pytest.raises(error) as caught:
            half(lambda: returned)
        assert all(word in str(caught.value) for word in [any_row.name, *words]), str(caught.value)
        assert len(str(caught.value)) <= 300
        assert str(caught.value).isprintable()
        assert same(problem.weights(), old)
        assert str(optimizer.state_dict()) == before
    optimizer.step(problem.loss)


class Unprintable:
    """What cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


async def waits() -> float:
    return 1.0


def test_closures_that_return_what_has_no_words(any_row: Row) -> None:
    w = nn.Parameter(randn(3))
    optimizer = any_row.make([w])
    for returned, words in (
        (waits, "async def"),
        (lambda: (x for x in (1.0,)), "yield"),
        (Unprintable, "Unprintable"),
    ):
        with pytest.raises(TypeError, match=words) as caught:
            optimizer.step(returned)  # pyright: ignore[reportArgumentType]
        assert len(str(caught.value)) <= 300
    gc.collect()  # a coroutine that nobody waits for would warn here


def test_what_is_no_closure_is_told_so(any_row: Row) -> None:
    w = nn.Parameter(randn(3))
    optimizer = any_row.make([w])
    for closure in ((w**2).sum().detach(), 0.5, "loss", [1.0]):
        for half in (optimizer.step, optimizer.probe):
            with pytest.raises(
                TypeError, match=f"{any_row.name}: the closure must be a function .*lambda"
            ):
                half(closure)  # pyright: ignore[reportArgumentType]
    assert optimizer.forward_passes == 0


def test_whole_numbers_are_losses_too() -> None:
    """Counts of errors, say: one for each sample, or their sum."""
    w = nn.Parameter(randn(3))
    optimizer = WeightPerturbation([w])
    assert optimizer.step(lambda: torch.tensor([1, 2, 2, 1])) == 1.5


# ---- fleets --------------------------------------------------------------------------------------


def test_parameters_of_a_fleet_need_a_replica_dimension(any_row: Row) -> None:
    for shape in ((2, 3), (), (0, 3)):
        with pytest.raises(ValueError, match=rf"{any_row.name}.*3 seeds.*{re.escape(str(shape))}"):
            any_row.make([nn.Parameter(torch.zeros(shape))], seed=[0, 1, 2])


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        (0.5, TypeError, ["float", "3 losses"]),
        (None, TypeError, ["NoneType"]),
        ((0.5, 0.5, 0.5), TypeError, ["tuple"]),
        (np.float64(0.5), (TypeError, ValueError), ["3"]),
        (np.zeros(2), ValueError, ["3", "(2,)"]),
        ([0.5, 0.5], ValueError, ["3", "(2,)"]),
        (torch.zeros(3, dtype=torch.complex64), TypeError, ["complex64"]),
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
