"""MNIST-1D: the data are as described, and networks learn them about as well as published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call, vmap
from torch.nn import functional

from dopaminergic.lab.convolution import Convolutional1d
from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.tasks.mnist1d import (
    CLASSES,
    JITTER,
    LENGTH,
    PADDED,
    SHAPES,
    SHIFT,
    make_data,
    make_sequence,
    smooth,
)

DOUBLE = torch.float64


def trained(network: str, steps: int) -> dict[str, float]:
    """Test measures after steps of Adam."""
    task = make_task("mnist1d", network=network)
    model = task.build(100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(steps):
        optimizer.zero_grad()
        task.outcome(model, task.batch(100, step)).mean().backward()
        optimizer.step()
    return {name: value.item() for name, value in task.evaluate(model).items()}


def test_there_are_as_many_sequences_of_each_class() -> None:
    sequences, classes = make_data()
    assert sequences.shape == (5000, LENGTH)
    assert np.bincount(classes).tolist() == [500] * CLASSES
    assert len({tuple(each) for each in SHAPES}) == CLASSES
    assert {len(each) for each in SHAPES} == {12}
    task = make_task("mnist1d")
    assert np.bincount(task.test[1]).min() > 70  # pyright: ignore[reportAttributeAccessIssue]


def test_the_data_are_the_same_in_every_process_and_for_every_network() -> None:
    again = make_data.__wrapped__()
    assert np.array_equal(make_data()[0], again[0])
    assert np.array_equal(make_data()[1], again[1])
    for one in ("cnn", "gru"):
        for a, b in zip(
            make_task("mnist1d", network=one).batch(7, 3),
            make_task("mnist1d").batch(7, 3),
            strict=True,
        ):
            assert torch.equal(a, b)


class Middle:
    """A generator of the same interface whose numbers change nothing, but for a chosen shift."""

    def __init__(self, shift: int) -> None:
        self.shift = shift

    def rand(self) -> float:
        return 0.5

    def randn(self, length: int) -> np.ndarray:
        return np.zeros(length)

    def randint(self, low: int, high: int | None = None) -> int:
        return self.shift if low == SHIFT else LENGTH


def test_without_noise_a_sequence_is_its_shape_and_zeros() -> None:
    assert PADDED[0] <= LENGTH <= PADDED[1]
    shape = np.array(SHAPES[5])
    for shift in (0, 9, 35):
        sequence = make_sequence(shape, Middle(shift))  # pyright: ignore[reportArgumentType]
        expected = np.roll(np.concatenate([shape, np.zeros(LENGTH - len(shape))]), shift)
        np.testing.assert_allclose(sequence, expected, rtol=1e-12, atol=1e-12)


def test_noise_is_smooth_and_spares_the_shape() -> None:
    assert np.allclose(smooth(np.ones(50)), 1.0)
    noise = smooth(np.random.RandomState(1).randn(100_000))
    # A Gaussian filter of deviation s leaves white noise a variance of 1 / (2 s sqrt(pi)).
    assert noise.std() == pytest.approx((4 * np.pi**0.5) ** -0.5, rel=0.02)

    class Shortest(np.random.RandomState):
        """Sequences of 36 numbers, which a shape of 36 takes whole."""

        def randint(self, *limits: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
            return min(limits) if len(limits) == 2 else 0

    draw = Shortest(3)
    flat = np.stack([make_sequence(np.zeros(PADDED[0]), draw) for _ in range(400)])
    slopes = np.polynomial.polynomial.polyfit(np.arange(LENGTH), flat.T, 1)
    rest = flat - np.polynomial.polynomial.polyval(np.arange(LENGTH), slopes)
    assert rest.std() < 1.1 * JITTER


def test_a_blind_network_errs_by_the_logarithm_of_ten() -> None:
    for network, readout in (("mlp", "weight_2"), ("cnn", "weight_3"), ("gru", "output_weight")):
        task = make_task("mnist1d", network=network, dtype="float64")
        model = task.build(0)
        with torch.no_grad():
            model.get_parameter(readout).zero_()
        metrics = task.evaluate(model)
        assert metrics["cross_entropy"].item() == pytest.approx(2.302585092994046, rel=1e-12)


def test_a_perceptron_is_about_as_good_as_published() -> None:
    assert 0.60 < trained("mlp", 1500)["accuracy"] < 0.72


def test_a_convolutional_network_is_better_than_a_perceptron() -> None:
    assert trained("cnn", 1000)["accuracy"] > 0.72


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="network: expected one of mlp, cnn, gru, got 'rnn'"):
        make_task("mnist1d", network="rnn")
    with pytest.raises(ValueError, match="units: expected a whole number of at least 1, got 0"):
        make_task("mnist1d", units=0)
    with pytest.raises(ValueError, match="length: expected at least 19, got 18"):
        Convolutional1d(18)


def small(seeds: int | list[int]) -> Convolutional1d:
    """A small network whose biases, 0 at the start, are random: a mistake in them would show."""
    model = Convolutional1d(LENGTH, 4, 3, seeds=seeds, dtype=DOUBLE)
    for i in range(4):
        bias = model.get_parameter(f"bias_{i}")
        bias.data = torch.randn(bias.shape[-1], dtype=DOUBLE).expand_as(bias).clone()
    return model


def by_torch(model: Convolutional1d, inputs: torch.Tensor) -> torch.Tensor:
    """A plain network by `conv1d` and a product."""
    p = dict(model.named_parameters())
    h = inputs[:, None]
    for i, kernel in enumerate(model.kernels):
        weight = p[f"weight_{i}"].view(kernel, h.shape[1], -1).permute(2, 1, 0)
        h = functional.conv1d(h, weight, p[f"bias_{i}"], stride=2).relu()
    return h.mT.flatten(1) @ p["weight_3"] + p["bias_3"]


def test_it_is_the_convolutions_of_torch_values_and_gradients() -> None:
    model, inputs = small(2), torch.randn(6, LENGTH, dtype=DOUBLE)
    out, expected = model(inputs), by_torch(model, inputs)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-13)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(out.square().sum(), parameters)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", ["mlp", "cnn", "gru"])
def test_stacks_are_their_slices_and_as_written_the_same(network: str) -> None:
    task = make_task("mnist1d", network=network, dtype="float64")
    stack, inputs = task.build([3, 8]), task.test[0][:9]  # pyright: ignore[reportAttributeAccessIssue]
    logits = task.logits(stack, inputs)  # pyright: ignore[reportAttributeAccessIssue]
    stack.as_written = True
    written = task.logits(stack, inputs)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(written, logits, rtol=1e-11, atol=1e-12)
    for r, seed in enumerate([3, 8]):
        plain = task.logits(task.build(seed), inputs)  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(logits[r], plain, rtol=1e-11, atol=1e-12)


def test_many_directions_through_vmap() -> None:
    model, inputs = small([1, 2]), torch.randn(5, LENGTH, dtype=DOUBLE)
    many = {key: torch.stack([p.detach(), 0.9 * p.detach()]) for key, p in model.named_parameters()}
    found = vmap(lambda p: functional_call(model, p, (inputs,)))(many)
    for k in range(2):
        one = functional_call(model, {key: p[k] for key, p in many.items()}, (inputs,))
        torch.testing.assert_close(found[k], one, rtol=1e-11, atol=1e-12)
