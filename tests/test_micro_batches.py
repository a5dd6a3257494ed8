"""Closures that wait for others make the step of the whole batch."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import (
    Dopamine,
    Dopamine2,
    NodeDopamine,
    Ranks,
    VectorDopamine,
    check_estimator,
    cross_entropy,
    outcome,
    squared_error,
)
from optimizers import Regression, Row, copies, perceptron, randn, same

FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "losses per sample": lambda p, y: (p - y).square().mean(1),
    "squared_error": squared_error,
    "cross_entropy": lambda p, y: cross_entropy(p, y.argmax(1)),
    "outcome": lambda p, y: outcome(p - y, lambda e: e.abs().sum(1)),
    "outcome of one number": lambda p, y: outcome(p - y, lambda e: e.square().mean()),
}


class Parts:
    """A network and a batch in parts."""

    def __init__(self, sizes: tuple[int, ...] = (8, 8)) -> None:
        self.model = perceptron(3, 5, 2)
        self.x = randn(sum(sizes), 3, seed=98).split(sizes)
        self.y = randn(sum(sizes), 2, seed=99).split(sizes)

    def part(self, form: Callable[..., Any], number: int) -> Any:
        return form(self.model(self.x[number]), self.y[number])

    def whole(self, form: Callable[..., Any]) -> Any:
        """The batch at once; each part goes through the network alone, since products may differ
        in their last bit.
        """
        return form(torch.cat([self.model(x) for x in self.x]), torch.cat(self.y))

    def step_in_parts(self, optimizer: Any, form: Callable[..., Any]) -> Any:
        *first, last = [functools.partial(self.part, form, i) for i in range(len(self.x))]
        for one in first:
            assert optimizer.probe(one, more=True) is None
        loss = optimizer.probe(last)
        optimizer.step()
        return loss


def runs_alike(make: Callable[..., Any], form: Callable[..., Any], *sizes: int) -> None:
    """Five steps in parts, and five of the whole batch, are the same bits."""
    apart, whole = Parts(sizes), Parts(sizes)
    one, other = make(apart.model.parameters()), make(whole.model.parameters())
    for _ in range(5):
        loss = apart.step_in_parts(one, form)
        assert loss == other.step(lambda: whole.whole(form))
        assert same(copies(apart.model.parameters()), copies(whole.model.parameters()))
    assert one.forward_passes == other.forward_passes


@pytest.mark.parametrize("form", FORMS)
def test_two_halves_make_the_step_of_the_whole_batch(any_row: Row, form: str) -> None:
    # A mean of two means may round in another way than one mean does.
    if form != "outcome of one number":
        runs_alike(any_row.make, FORMS[form], 8, 8)
        return
    apart, whole = Parts(), Parts()
    one, other = any_row.make(apart.model.parameters()), any_row.make(whole.model.parameters())
    losses = apart.step_in_parts(one, FORMS[form]), other.step(lambda: whole.whole(FORMS[form]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-15)
    assert one.forward_passes == other.forward_passes


@pytest.mark.parametrize("form", ["losses per sample", "squared_error", "cross_entropy", "outcome"])
def test_parts_of_other_sizes_count_by_their_samples(any_row: Row, form: str) -> None:
    runs_alike(any_row.make, FORMS[form], 7, 5, 1)


def test_numbers_of_parts_are_averaged(any_row: Row) -> None:
    """Multiples of 2^-20 are added and halved without rounding."""

    def on_a_grid(problem: Regression, part: slice) -> float:
        losses = (problem.model(problem.x[part]) - problem.y[part]).square()
        return float((losses * 2**20).round().mean() / 2**20)

    ends = []
    for parts in ([slice(0, 8), slice(8, 16)], [slice(0, 16)]):
        problem = Regression()
        optimizer = any_row.make(problem.model.parameters())
        loss = None
        for _ in range(3):
            for part in parts[:-1]:
                optimizer.probe(functools.partial(on_a_grid, problem, part), more=True)
            loss = optimizer.step(functools.partial(on_a_grid, problem, parts[-1]))
        ends.append((problem.weights(), loss))
    assert ends[0][1] == ends[1][1]
    assert same(ends[0][0], ends[1][0])


def test_the_whole_batch_in_one_product_differs_by_rounding_only(any_row: Row) -> None:
    halves, whole = Regression(), Regression()
    one, other = any_row.make(halves.model.parameters()), any_row.make(whole.model.parameters())

    def half(part: slice) -> Tensor:
        return (halves.model(halves.x[part]) - halves.y[part]).square().mean()

    one.probe(lambda: half(slice(0, 8)), more=True)
    found = one.step(lambda: half(slice(8, 16)))
    assert found == pytest.approx(other.step(whole.loss), rel=1e-15)
    pairs = zip(halves.weights(), whole.weights(), strict=True)
    moved = [float((p - q).abs().max()) for p, q in pairs]
    # A regret, of about sigma, has the rounding of a loss of about 1.
    assert max(moved) <= 1e-15 / one.param_groups[0]["sigma"]


def test_parts_may_be_texts_padded_to_other_lengths(any_row: Row) -> None:
    table = nn.Embedding(7, 4, dtype=torch.float64)
    texts = [torch.randint(7, (2, n), generator=torch.Generator().manual_seed(n)) for n in (5, 3)]

    def part(text: Tensor) -> Any:
        return cross_entropy(table(text), text % 4)

    def whole() -> Any:
        flat = torch.cat([text.flatten() for text in texts])
        return cross_entropy(table(flat), flat % 4)

    old, ends = copies(table.parameters()), []
    for apart in (True, False):
        with torch.no_grad():
            table.weight.copy_(old[0])
        optimizer = any_row.make(table.parameters())
        if apart:
            optimizer.probe(lambda: part(texts[0]), more=True)
        ends.append(optimizer.step((lambda: part(texts[1])) if apart else whole))
        ends.append(copies(table.parameters()))
    assert ends[0] == ends[2]
    assert same(ends[1], ends[3])


def test_step_evaluates_all_that_waits(any_row: Row) -> None:
    apart, whole = Parts(), Parts()
    one, other = any_row.make(apart.model.parameters()), any_row.make(whole.model.parameters())
    form = FORMS["squared_error"]
    for number in range(2):
        one.probe(functools.partial(apart.part, form, number), more=True)
    assert one.step() == other.step(lambda: whole.whole(form))
    assert same(copies(apart.model.parameters()), copies(whole.model.parameters()))
    with pytest.raises(RuntimeError, match="needs a probe first"):
        one.step()


@pytest.mark.parametrize("make", [Dopamine2, VectorDopamine])
def test_directions_as_one_batch_give_the_same(make: Any) -> None:
    make = functools.partial(make, directions=4, batched=True)
    for form in ("losses per sample", "squared_error", "cross_entropy", "outcome"):
        runs_alike(make, FORMS[form], 6, 4)


def test_dropout_draws_for_one_part_after_the_other() -> None:
    def run(apart: bool) -> list[Tensor]:
        problem = Parts()
        model = nn.Sequential(problem.model, nn.Dropout(0.5))
        optimizer = Dopamine2(model.parameters())
        torch.manual_seed(3)
        form = FORMS["squared_error"]
        for _ in range(3):
            halves = [
                lambda i=i: form(model(problem.x[i]), problem.y[i]).losses.flatten() for i in (0, 1)
            ]
            if apart:
                optimizer.probe(halves[0], more=True)
                optimizer.step(halves[1])
            else:
                optimizer.step(lambda halves=halves: torch.cat([half() for half in halves]))
        return [*copies(model.parameters()), torch.rand(1)]

    assert same(run(apart=True), run(apart=False))


def test_each_replica_of_a_fleet_has_its_mean() -> None:
    def run(apart: bool) -> tuple[Tensor, Tensor]:
        w = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
        optimizer = Dopamine2([w], seed=range(3))
        x = [randn(4, 5, seed=1), randn(4, 2, seed=2)]
        halves = [lambda x=x: (w @ x - 1.0).square() for x in x]  # (R, n)
        if apart:
            optimizer.probe(halves[0], more=True)
            return optimizer.step(halves[1]), w.detach()
        return optimizer.step(lambda: torch.cat([half() for half in halves], 1)), w.detach()

    (loss, w), (whole_loss, whole_w) = run(apart=True), run(apart=False)
    assert torch.equal(loss, whole_loss)
    assert torch.equal(w, whole_w)


def test_losses_of_replicas_are_averaged_over_parts() -> None:
    w = nn.Parameter(torch.ones(2, 4))
    optimizer = Dopamine2([w], seed=range(2))
    optimizer.probe(lambda: torch.tensor([1.0, 2.0]) + 0 * w.sum(), more=True)
    assert optimizer.probe(lambda: torch.tensor([3.0, 8.0]) + 0 * w.sum()).tolist() == [2.0, 5.0]


def test_ranks_join_their_own_parts(alone: Ranks, any_row: Row) -> None:
    runs_alike(functools.partial(any_row.make, process_group=alone), FORMS["squared_error"], 8, 8)


# ---- what may go wrong ---------------------------------------------------------------------------


def test_a_batch_that_a_loop_has_replaced_is_an_error(any_row: Row) -> None:
    problem = Parts()
    optimizer = any_row.make(problem.model.parameters())
    old = copies(problem.model.parameters())
    x = problem.x[0]
    for x in problem.x:
        optimizer.probe(lambda: problem.model(x).square().mean(), more=True)  # noqa: B023
    with pytest.raises(RuntimeError, match=rf"{any_row.name}: 'x' was bound anew.*lambda x=x") as e:
        optimizer.step()
    assert len(str(e.value)) <= 300
    assert same(copies(problem.model.parameters()), old)
    assert optimizer.forward_passes == 0
    optimizer.step(lambda: problem.model(x).square().mean())  # the others are dropped


def test_variables_of_a_script_and_of_its_functions_are_looked_at() -> None:
    script = """
def loss_of():
    return [model(batch).square().mean() for _ in range(1)][0]

for batch in batches:
    optimizer.probe(lambda: loss_of(), more=True)
optimizer.step()
"""
    model = perceptron(3, 1)
    names = {"model": model, "optimizer": Dopamine2(model.parameters())}
    with pytest.raises(RuntimeError, match="'batch' was bound anew"):
        exec(script, {**names, "batches": [randn(4, 3), randn(4, 3)]})
    exec(script, {**names, "batches": [randn(4, 3)]})


def test_values_that_a_closure_keeps_are_no_error(any_row: Row) -> None:
    problem = Parts()
    optimizer = any_row.make(problem.model.parameters())
    x = y = 0  # attributes and arguments may have the same names
    for x, y in zip(problem.x, problem.y, strict=True):
        optimizer.probe(lambda x=x, y=y: squared_error(problem.model(x), y), more=True)
    assert x is not y
    assert isinstance(optimizer.step(), float)


def test_zero_grad_forgets_what_waits(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    expected = optimizer.probe(problem.loss)
    optimizer.step()
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    optimizer.probe(lambda: 1e9, more=True)
    optimizer.zero_grad()
    assert optimizer.probe(problem.loss) == expected


def test_what_waits_belongs_to_no_state(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    before = str(optimizer.state_dict())
    optimizer.probe(lambda: 1e9, more=True)
    assert str(optimizer.state_dict()) == before
    copy = pickle.loads(pickle.dumps(optimizer))  # lambdas cannot be pickled
    with pytest.raises(RuntimeError, match="needs a probe first"):
        copy.step()
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="needs a probe first"):
        optimizer.step()


def test_a_step_that_failed_can_be_tried_again(any_row: Row) -> None:
    apart, whole = Parts(), Parts()
    one, other = any_row.make(apart.model.parameters()), any_row.make(whole.model.parameters())
    form, broken = FORMS["squared_error"], [True]

    def last() -> Any:
        if broken:
            raise ConnectionError
        return apart.part(form, 1)

    one.probe(functools.partial(apart.part, form, 0), more=True)
    with pytest.raises(ConnectionError):
        one.step(last)
    broken.clear()
    assert one.step(last) == other.step(lambda: whole.whole(form))
    assert same(copies(apart.model.parameters()), copies(whole.model.parameters()))


def test_a_result_that_was_found_already_is_lost_with_a_warning(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    optimizer.probe(problem.loss)
    with pytest.warns(RuntimeWarning, match="a second probe came before step"):
        optimizer.probe(problem.loss, more=True)
    optimizer.step()


def test_a_closure_must_be_a_function(any_row: Row) -> None:
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    loss: Any = problem.loss()
    with pytest.raises(TypeError, match=rf"{any_row.name}: the closure must be a function"):
        optimizer.probe(loss, more=True)
    optimizer.probe(problem.loss, more=True)
    for half in (optimizer.probe, optimizer.step):
        with pytest.raises(TypeError, match=rf"{any_row.name}: the closure must be a function"):
            half(loss)
    optimizer.step()


def test_it_cannot_wait_within_a_step() -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    with pytest.raises(RuntimeError, match="probe was called from its own closure"):
        optimizer.step(lambda: optimizer.probe(problem.loss, more=True))


def test_other_kinds_of_results_are_joined_by_their_losses() -> None:
    problem = Parts()
    optimizer = Dopamine(problem.model.parameters())
    optimizer.probe(lambda: problem.part(FORMS["squared_error"], 0), more=True)
    loss = optimizer.probe(lambda: problem.part(FORMS["losses per sample"], 1))
    parts = [
        problem.part(FORMS["squared_error"], 0).losses.flatten(),
        problem.part(FORMS["losses per sample"], 1),
    ]
    assert loss == pytest.approx(torch.cat(parts).mean().item(), rel=1e-15)
    optimizer.step()
    optimizer.probe(lambda: 1.0, more=True)
    optimizer.probe(lambda: torch.tensor([1.0, 3.0]), more=True)
    assert optimizer.step(lambda: torch.tensor(3.0)) == 2.0


def test_check_estimator_leaves_what_waits_alone() -> None:
    problem = Regression()
    optimizer = Dopamine2(problem.model.parameters())
    optimizer.probe(lambda: 7.0, more=True)
    check_estimator(optimizer, problem.loss, probes=100)
    assert optimizer.step() == 7.0


def test_activities_must_see_all_samples_at_once() -> None:
    problem = Regression()
    optimizer = NodeDopamine(problem.model)
    with pytest.raises(ValueError, match=r"NodeDopamine: probe\(more=True\) is not sup") as e:
        optimizer.probe(problem.loss, more=True)
    assert len(str(e.value)) <= 300
