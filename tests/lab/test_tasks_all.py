"""What every task promises: pure batches, stacks equal to their slices, settings that define it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch.func import functional_call, vmap

from dopaminergic.lab.tasks import TASKS, Task, make_task
from dopaminergic.lab.tasks.task import Draws
from dopaminergic.noise.reference import integers

NAMES = sorted(set(TASKS) - {"series"})
SEEDS = [7, 100, 3]


@cache
def task(name: str) -> Task:
    return make_task(name, dtype="float64")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, where the inputs that a network has to forecast itself are NaN in both."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_is_its_slices(name: str) -> None:
    t, seeds = task(name), torch.tensor(SEEDS)
    stack, batch = t.build(SEEDS), t.batch(torch.tensor(SEEDS), 5)
    result, metrics = t.outcome(stack, batch), t.evaluate(stack)
    assert t.metric in metrics
    for r, seed in enumerate(SEEDS):
        plain = t.build(seed)
        for a, b in zip(stack.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a[r], b)
        own = t.batch(seed, 5)
        for a, b in zip(batch, own, strict=True):
            assert same(a[r] if a.ndim > b.ndim else a, b)
        single = t.outcome(plain, own)
        torch.testing.assert_close(result.values[r], single.values, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(result.losses[r], single.losses, rtol=1e-10, atol=1e-12)
        for key, value in t.evaluate(plain).items():
            assert value.dtype == torch.float64
            assert value.ndim == 0
            assert not value.requires_grad
            torch.testing.assert_close(metrics[key][r], value, rtol=1e-9, atol=1e-12)
    assert seeds.tolist() == SEEDS


@pytest.mark.parametrize("name", NAMES)
def test_batches_depend_on_seed_and_step_alone(name: str) -> None:
    t = task(name)
    first = t.batch(4, 130)
    t.batch(torch.tensor(SEEDS), 2)
    t.batch(4, 1)
    again = make_task(name, dtype="float64").batch(4, 130)
    assert same(first[0], again[0])
    assert same(first[1], again[1])
    if not name.startswith("xor"):
        assert not same(first[0], t.batch(4, 131)[0])
        assert not same(first[0], t.batch(5, 130)[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_matters_to_the_loss(name: str) -> None:
    t = task(name)
    model = t.build([1, 2])
    t.outcome(model, t.batch(torch.tensor([1, 2]), 0)).losses.mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
    for key, parameter in model.named_parameters():
        answers = parameter.grad is not None and bool(parameter.grad.flatten(1).any(1).all())
        assert answers != (name == "threshold-digits" and key.endswith("_0")), key


@pytest.mark.parametrize("name", NAMES)
def test_many_directions_through_vmap(name: str) -> None:
    t = task(name)
    model, batch = t.build([1, 2]), t.batch(torch.tensor([1, 2]), 0)
    many = {key: torch.stack([p.detach(), 0.9 * p.detach()]) for key, p in model.named_parameters()}

    class Losses(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> torch.Tensor:
            return t.outcome(self.model, batch).losses

    def losses(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(Losses(), {f"model.{key}": p for key, p in parameters.items()}, ())

    found = vmap(losses)(many)
    for k in range(2):
        one = losses({key: p[k] for key, p in many.items()})
        torch.testing.assert_close(found[k], one, rtol=1e-10, atol=1e-12)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_json_and_make_the_same_task(name: str) -> None:
    settings = json.loads(json.dumps(task(name).settings))
    t = make_task(name, **settings)
    assert t.settings == task(name).settings
    assert t.name == name
    assert same(t.batch(1, 1)[0], task(name).batch(1, 1)[0])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("xor-2-2-1", 9),
        ("xor-2-8-1", 33),
        ("continuous-xor", 65),
        ("lorenz", 371),
        ("sunspots", 89),
        ("digits", 4810),
        ("threshold-digits", 4810),
        ("mnist1d", 41 * 100 + 101 * 100 + 101 * 10),
        ("digits-conv", 160 + 8224 + 12384 + 970),
        ("markov-transformer", 12 * 16 + 16 * 16 + 2 * 3216 + 32 + 17 * 12),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    assert task(name).parameter_count() == count


@pytest.mark.parametrize("seeds", [9, torch.tensor([9, 1 << 40])])
@pytest.mark.parametrize("step", [0, 63, 64, 1000])
def test_draws_are_integers(seeds: int | torch.Tensor, step: int) -> None:
    draws = Draws(10, 77)
    draws(1, step)
    assert torch.equal(draws(seeds, step), integers(10, 77, seed=seeds, step=step))
    assert torch.equal(draws(seeds, step + 1), integers(10, 77, seed=seeds, step=step + 1))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: make_task("lorentz"), ValueError, "no task 'lorentz'; did you mean lorenz"),
        (lambda: make_task("?"), ValueError, "there are xor-2-2-1"),
        (
            lambda: make_task("lorenz", hiden=3),
            TypeError,
            r"no setting 'hiden' \(did you mean hidden\?\); it has batch",
        ),
        (
            lambda: make_task("lorenz", cell="rnn"),
            ValueError,
            "cell: expected one of tanh, gru, lstm, got 'rnn'",
        ),
        (
            lambda: make_task("lorenz", dtype="half"),
            ValueError,
            "dtype: expected one of float32, float64",
        ),
        (lambda: make_task("xor-2-2-1", loss="mae"), ValueError, "loss: expected one of mse, bce"),
        (lambda: make_task("series"), TypeError, "series: needs the setting path"),
        (lambda: make_task("temporal-xor", delay=0), ValueError, "delay: expected"),
        (lambda: make_task("cluster-xor", sd=0.0), ValueError, "sd: expected a positive number"),
        (
            lambda: task("xor-2-2-1").picture(task("xor-2-2-1").build([1, 2])),
            ValueError,
            "stack of 2",
        ),
    ],
)
def test_errors_name_the_argument(
    make: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make()
