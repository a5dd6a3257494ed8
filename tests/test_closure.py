"""What a closure may return, may do, and may rely on."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dopaminergic import (
    SPSA,
    Dopamine,
    Outcome,
    WeightPerturbation,
    cross_entropy,
    outcome,
    squared_error,
)
from optimizers import Regression, Row, copies, perceptron, randn, same

# ---- what it returns -----------------------------------------------------------------------------

RETURNS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a float": lambda p, y: float(((p - y) ** 2).mean()),
    "a numpy number": lambda p, y: np.float64(((p - y) ** 2).mean().item()),
    "a 0-d tensor": lambda p, y: ((p - y) ** 2).mean(),
    "losses per sample": lambda p, y: ((p - y) ** 2).flatten(),
    "an array without dimensions": lambda p, y: np.array(((p - y) ** 2).mean().item()),
    "an array of losses": lambda p, y: ((p - y) ** 2).flatten().numpy(),
    "an array from the end, of the other byte order": lambda p, y: (
        ((p - y) ** 2).flatten().numpy().astype(">f8")[::-1]
    ),
    "a list of floats": lambda p, y: ((p - y) ** 2).flatten().tolist(),
    "a list of tensors": lambda p, y: list(((p - y) ** 2).flatten()),
    "a sparse tensor": lambda p, y: ((p - y) ** 2).flatten().to_sparse(),
    "losses with a gradient": lambda p, y: ((p - y) ** 2).flatten().requires_grad_(),
    "one loss in a vector": lambda p, y: ((p - y) ** 2).mean()[None],
    "squared_error": squared_error,
    "outcome": lambda p, y: outcome(p, lambda p: ((p - y) ** 2).flatten()),
    "outcome of one number": lambda p, y: outcome(p, lambda p: ((p - y) ** 2).mean()),
}


@pytest.mark.parametrize("form", RETURNS)
def test_every_form_of_the_same_loss_gives_the_same_run(row: Row, form: str) -> None:
    ends = []
    for make in (RETURNS["a 0-d tensor"], RETURNS[form]):
        problem = Regression()
        optimizer = row.make(problem.model.parameters())
        losses = [
            optimizer.step(lambda p=problem, make=make: make(p.model(p.x), p.y)) for _ in range(3)
        ]
        assert all(isinstance(loss, float) for loss in losses)
        ends.append((problem.weights(), losses))
    # Means of the same 16 numbers, perhaps added up in another order; the regret magnifies that.
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:.*no loss answered:RuntimeWarning")  # they are all the same
def test_numbers_of_other_kinds_are_losses() -> None:
    w = nn.Parameter(randn(3))
    optimizer = WeightPerturbation([w], lr=0.0)
    values = (
        2,
        np.float32(2),
        np.int64(2),
        np.array(2),
        torch.tensor(2),
        torch.tensor(2.0, dtype=torch.float16),
    )
    for value in (
        *values,
        Fraction(2),
        Decimal(2),
        [2],
        [3, np.float32(1)],
        torch.tensor(2.0).to(torch.float8_e5m2),
    ):
        assert optimizer.step(lambda value=value: value) == 2.0  # pyright: ignore[reportArgumentType]


def test_errors_yes_or_no_are_losses() -> None:
    w = nn.Parameter(randn(3))
    optimizer = WeightPerturbation([w], lr=0.0)
    for value in (
        True,
        np.bool_(True),
        torch.tensor(True),
        [True, True],
        np.array([True]),
        torch.ones(2) == 1,
    ):
        assert optimizer.step(lambda value=value: value) == 1.0  # pyright: ignore[reportArgumentType]


@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
def test_a_number_beyond_all_floats_is_an_infinite_loss(row: Row) -> None:
    w = nn.Parameter(randn(3))
    optimizer = row.make([w])
    optimizer.step(lambda: 10**5000)
    assert optimizer.skipped_steps == 1


def test_a_simulator_may_answer_in_numpy(any_row: Row) -> None:
    """A run by numbers of numpy is that by the same numbers of torch, also of a rule that learns
    from all of them.
    """
    goal, ends = randn(3).numpy(), []
    for make in (torch.from_numpy, lambda x: x, lambda x: x.tolist()):
        w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = any_row.make([w])
        for _ in range(3):
            optimizer.step(lambda w=w, make=make: make((w.detach().numpy() - goal) ** 2))
        ends.append(copies([w]))
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_a_fleets_losses_may_be_of_numpy(any_row: Row) -> None:
    ends = []
    for make in (lambda x: x, lambda x: x.numpy(), lambda x: x.tolist()):
        w = nn.Parameter(randn(3, 4))
        optimizer = any_row.make([w], seed=[1, 2, 3])
        for _ in range(2):
            optimizer.step(lambda w=w, make=make: make(w.detach().square().sum(1)))
        ends.append(copies([w]))
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_cross_entropy_is_torchs() -> None:
    model, x, labels = perceptron(4, 6, 3), randn(10, 4), torch.arange(10) % 3
    optimizer = WeightPerturbation(model.parameters())
    expected = float(nn.functional.cross_entropy(model(x), labels).detach())
    assert optimizer.step(lambda: cross_entropy(model(x), labels)) == pytest.approx(
        expected, rel=1e-14
    )
    for integers in (torch.uint8, torch.int16, torch.int32):
        whole = cross_entropy(randn(4, 3), torch.tensor([0, 2, 1, 0]).to(integers))
        same_labels = cross_entropy(randn(4, 3), torch.tensor([0, 2, 1, 0]))
        assert torch.equal(whole.losses, same_labels.losses)
    sequence = cross_entropy(randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.long))
    assert sequence.losses.shape == (2, 5)
    assert float(sequence.mean()) == pytest.approx(
        float(
            nn.functional.cross_entropy(
                randn(2, 5, 3).reshape(10, 3), torch.zeros(10, dtype=torch.long)
            )
        )
    )


def test_an_outcome_keeps_what_the_model_predicted() -> None:
    p, y = randn(4, 2), randn(4, 2, seed=1)
    found = squared_error(p, y)
    assert isinstance(found, Outcome)
    assert found.kind == "squared_error"
    assert found.values is p
    torch.testing.assert_close(found.mean(), nn.functional.mse_loss(p, y))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: squared_error(randn(4, 1), randn(4)), ValueError, ["(4, 1)", "(4,)"]),
        (
            lambda: cross_entropy(randn(4, 3), torch.zeros(3, dtype=torch.long)),
            ValueError,
            ["(4, 3)", "(3,)"],
        ),
        (lambda: cross_entropy(randn(4, 3), torch.zeros(4)), TypeError, ["labels", "float32"]),
        (lambda: cross_entropy(torch.tensor(1.0), torch.tensor(0)), ValueError, ["logits"]),
        (
            lambda: cross_entropy(randn(4, 3), torch.tensor([1, 2, 3, 0])),
            ValueError,
            ["labels", "[0, 3)", "-100", "3", "from 0"],
        ),
        (lambda: squared_error(randn(4), 0.0), TypeError, ["target", "float"]),  # pyright: ignore[reportArgumentType]
        (lambda: cross_entropy(randn(4, 3), [0, 1, 2, 0]), TypeError, ["labels", "list"]),  # pyright: ignore
        (lambda: outcome(np.zeros(4), abs), TypeError, ["values", "ndarray"]),  # pyright: ignore
    ],
)
def test_outcomes_of_what_does_not_fit(
    make: Callable[[], Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert all(word in str(caught.value) for word in words)


# ---- what it may do ------------------------------------------------------------------------------


def test_it_runs_without_gradients(any_row: Row) -> None:
    problem, modes = Regression(), []

    def closure() -> Tensor:
        modes.append((torch.is_grad_enabled(), problem.loss().requires_grad))
        return problem.loss()

    any_row.make(problem.model.parameters()).step(closure)
    assert set(modes) == {(False, False)}


def test_gradients_it_computes_are_neither_needed_nor_used(row: Row) -> None:
    """Closures written for backpropagation work unchanged."""
    ends = []
    for backward in (False, True):
        problem = Regression()
        optimizer = row.make(problem.model.parameters())

        def closure(
            problem: Regression = problem, optimizer: Any = optimizer, backward: bool = backward
        ) -> Tensor:
            if not backward:
                return problem.loss()
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = problem.loss()
                loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        assert all((p.grad is not None) is backward for p in problem.model.parameters())
        ends.append(problem.weights())
    assert same(*ends)


@pytest.mark.parametrize("settings", [{}, {"directions": 8}], ids=str)
def test_a_closure_that_asks_for_gradients_is_told_to_return_the_loss(
    any_row: Row, settings: Any
) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters(), **settings)
    optimizer.step(problem.loss)
    old, before = problem.weights(), str(optimizer.state_dict())

    def backward() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    def grad() -> Tensor:
        loss = problem.loss()
        torch.autograd.grad(loss, list(problem.model.parameters()))
        return loss

    for closure in (backward, grad):
        for half in (optimizer.step, optimizer.probe):
            with pytest.raises(
                RuntimeError, match=rf"{any_row.name}: .*leave backward\(\) out"
            ) as caught:
                half(closure)
            assert len(str(caught.value)) <= 300
            assert isinstance(caught.value.__cause__, RuntimeError)
            assert same(problem.weights(), old)
            assert str(optimizer.state_dict()) == before
    optimizer.step(problem.loss)


def test_a_step_without_a_closure_says_what_frameworks_do(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    for call in (
        optimizer.step,
        lambda: optimizer.step(None),
        lambda: optimizer.step(closure=None),
    ):
        with pytest.raises(
            RuntimeError, match=rf"{any_row.name}\.step\(\).*needs a probe first.*accelerate"
        ) as caught:
            call()
        assert len(str(caught.value)) <= 300
    assert optimizer.forward_passes == 0


def test_a_second_probe_without_a_step_is_warned_of_once(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    for _ in range(3):
        optimizer.probe(problem.loss)
        optimizer.step()
    optimizer.probe(problem.loss)
    with pytest.warns(RuntimeWarning, match=rf"{any_row.name}: a second probe .*more=True"):
        optimizer.probe(problem.loss)
    optimizer.probe(problem.loss)
    optimizer.step()


def test_it_may_switch_gradients_on_for_good() -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())

    def closure() -> Tensor:
        torch.set_grad_enabled(True)
        return problem.loss()

    with torch.no_grad():
        optimizer.step(closure)
        assert not torch.is_grad_enabled()


def test_averaging_micro_batches_is_the_whole_batch(any_row: Row) -> None:
    """Gradient accumulation is just a closure that averages."""
    ends = []
    for parts in (1, 4):
        problem = Regression()
        optimizer = any_row.make(problem.model.parameters())

        def closure(problem: Regression = problem, parts: int = parts) -> Tensor:
            batches = zip(problem.x.chunk(parts), problem.y.chunk(parts), strict=True)
            return torch.stack([((problem.model(x) - y) ** 2).mean() for x, y in batches]).mean()

        for _ in range(3):
            optimizer.step(closure)
        ends.append(problem.weights())
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-9)


def test_it_may_use_the_optimizer_of_another_model() -> None:
    """Two networks in one loop share nothing."""
    one, two = Regression(), Regression(seed=1)
    a, b = Dopamine(one.model.parameters()), Dopamine(two.model.parameters())
    alone, c = Regression(seed=1), None
    c = Dopamine(alone.model.parameters())
    for _ in range(3):
        a.step(lambda: one.loss() + b.step(two.loss))
    for _ in range(3 * 2):
        c.step(alone.loss)
    assert same(two.weights(), alone.weights())


# ---- common random numbers -----------------------------------------------------------------------


def test_all_evaluations_of_a_step_see_the_same_random_numbers(row: Row) -> None:
    problem, masks = Regression(), []
    optimizer = row.make(problem.model.parameters(), directions=2)

    def closure() -> Tensor:
        masks.append(torch.rand(8))
        return problem.loss()

    for _ in range(3):
        optimizer.step(closure)
    passes = row.passes(2)
    for step in range(3):
        assert all(
            torch.equal(m, masks[passes * step]) for m in masks[passes * step : passes * (step + 1)]
        )
    assert not torch.equal(masks[0], masks[passes])


def test_dropout_does_not_drown_the_regret() -> None:
    """Between masks the loss differs by tenths; within a step the regret is that of the
    perturbation alone.
    """
    model = nn.Sequential(perceptron(3, 32), nn.Dropout(0.5), perceptron(32, 1, seed=1))
    x, y = randn(16, 3), randn(16, 1, seed=1)

    def closure() -> Tensor:
        return ((model(x) - y) ** 2).mean()

    losses = torch.stack([closure().detach() for _ in range(20)])
    assert float(losses.std()) > 0.01
    for rule in (WeightPerturbation, SPSA, Dopamine):
        optimizer = rule(model.parameters(), lr=0.0, sigma=1e-9)
        for _ in range(3):
            optimizer.step(closure)
            assert 0 < abs(optimizer.last_rpe) < 1e-6


def test_the_generator_is_left_as_after_one_call(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters(), directions=3)

    def closure() -> Tensor:
        return problem.loss() + torch.rand(5).sum()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        closure()
        expected = torch.get_rng_state()
        torch.manual_seed(1)
        optimizer.step(closure)
        assert torch.equal(torch.get_rng_state(), expected)
        torch.manual_seed(1)
        optimizer.probe(closure)
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_global_generators_are_neither_read_nor_set(any_row: Row, noise: str) -> None:
    runs = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
            problem = Regression()
            optimizer = any_row.make(problem.model.parameters(), noise=noise)
            for _ in range(2):
                optimizer.step(problem.loss)
            runs.append(problem.weights())
            assert torch.equal(torch.get_rng_state(), before[0])
            assert (str(np.random.get_state()), random.getstate()) == before[1:]
    assert same(*runs)


def test_equal_seeds_give_equal_runs_and_others_do_not(row: Row) -> None:
    runs = []
    for seed in (3, 3, 4, (1 << 63) - 1):
        problem = Regression()
        optimizer = row.make(problem.model.parameters(), seed=seed)
        for _ in range(2):
            optimizer.step(problem.loss)
        runs.append(copies(problem.model.parameters()))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
    assert not same(runs[2], runs[3])


def test_an_iterator_that_ends_within_the_closure_is_explained(row: Row) -> None:
    w = torch.nn.Parameter(torch.zeros(3))
    batches = iter([torch.ones(3), torch.zeros(3)])
    optimizer = row.make([w])

    def closure() -> Any:
        return ((w - next(batches)) ** 2)[None].sum(1)

    def train() -> None:
        for _ in range(3):
            optimizer.step(closure)

    with (
        pytest.warns(RuntimeWarning, match="take the batch before the step") as told,
        pytest.raises(StopIteration),
    ):
        train()
    assert len(str(told[-1].message)) <= 300
