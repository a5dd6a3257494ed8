"""The convolutional network against torch's convolutions, stacks against their slices, vmap against
a loop.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional

from dopaminergic.lab.convolution import Convolutional, patches

DOUBLE = torch.float64
BATCH = 37  # more than one piece, and not a whole number of them


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(seeds: int | list[int], dtype: torch.dtype = DOUBLE) -> Convolutional:
    """A small network whose biases, 0 at the start, are random: a mistake in them would show."""
    model = Convolutional((3, 5), 7, 4, seeds=seeds, dtype=dtype)
    for i in range(4):
        bias = model.get_parameter(f"bias_{i}")
        bias.data = randn(*bias.shape, seed=i, dtype=dtype)
    return model


def by_torch(model: Convolutional, pixels: Tensor) -> Tensor:
    """A plain network by `conv2d` and `linear`."""
    p = dict(model.named_parameters())
    h = pixels.view(-1, 1, 8, 8)
    for i, (kernel, stride) in enumerate([(3, 1), (4, 2)]):
        weight = p[f"weight_{i}"].view(kernel, kernel, h.shape[1], -1).permute(3, 2, 0, 1)
        h = functional.conv2d(h, weight, p[f"bias_{i}"], stride=stride).relu()
    h = h.permute(0, 2, 3, 1).flatten(1)  # channels last
    h = (h @ p["weight_2"] + p["bias_2"]).relu()
    return h @ p["weight_3"] + p["bias_3"]


def test_it_is_the_convolutions_of_torch_values_and_gradients() -> None:
    model, pixels = small(2), randn(BATCH, 64)
    out, expected = model(pixels), by_torch(model, pixels)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-13)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(out.square().sum(), parameters)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_patches_of_channels_are_slices() -> None:
    images = randn(2, 6, 5, 3)
    found = patches(images, 2, 2)
    assert found.shape == (2, 6, 12)
    for row in range(3):
        for column in range(2):
            slices = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(found[:, 2 * row + column], slices.flatten(1))


def test_stack_slices_are_the_plain_networks() -> None:
    seeds = [3, 1, 4]
    stack, pixels = Convolutional(seeds=seeds, dtype=DOUBLE), randn(3, BATCH, 64)
    own, shared = stack(pixels), stack(pixels[0])
    for r, seed in enumerate(seeds):
        plain = Convolutional(seeds=seed, dtype=DOUBLE)
        for a, b in zip(stack.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a[r], b)
        torch.testing.assert_close(own[r], plain(pixels[r]), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(shared[r], plain(pixels[0]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_stack_of_one_is_bitwise_the_plain_network(dtype: torch.dtype) -> None:
    plain, one, pixels = small(5, dtype), small([5], dtype), randn(BATCH, 64, dtype=dtype)
    for i in range(4):
        one.get_parameter(f"bias_{i}").data = plain.get_parameter(f"bias_{i}").data[None]
    assert torch.equal(one(pixels)[0], plain(pixels))
    assert torch.equal(one(pixels[None])[0], plain(pixels))


@pytest.mark.parametrize("seeds", [6, [6, 2]])
@pytest.mark.parametrize("own", [False, True])
def test_many_directions_through_vmap(seeds: int | list[int], own: bool) -> None:
    model = small(seeds)
    pixels = randn(*([2] if own and isinstance(seeds, list) else []), BATCH, 64)
    many = {
        n: p.detach() + 0.1 * randn(3, *p.shape, seed=i)
        for i, (n, p) in enumerate(model.named_parameters())
    }
    out = vmap(lambda parameters: functional_call(model, parameters, (pixels,)))(many)
    for k in range(3):
        one = functional_call(model, {n: p[k] for n, p in many.items()}, (pixels,))
        torch.testing.assert_close(out[k], one, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(out[0], out[1])


def test_initial_weights_have_the_stated_spread() -> None:
    model = Convolutional((16, 32), 96, 10, seeds=list(range(20)))
    for i, variance in enumerate([2 / 9, 2 / 256, 2 / 128, 1 / 96]):
        values = model.get_parameter(f"weight_{i}").detach().flatten()
        # The sample deviation of n normals has standard error deviation / sqrt(2 n).
        assert abs(values.std() / variance**0.5 - 1) < 5 / (2 * len(values)) ** 0.5
        assert not model.get_parameter(f"bias_{i}").any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Convolutional((1, 2, 3)), "channels: expected two numbers"),
        (lambda: Convolutional((1, 0)), "channels: expected a whole number of at least 1, got 0"),
        (lambda: Convolutional(units=0), "units: expected a whole number of at least 1, got 0"),
        (lambda: Convolutional()(torch.zeros(3, 63)), r"expected shape \(B, 64\), got \(3, 63\)"),
        (
            lambda: Convolutional(seeds=[1, 2])(torch.zeros(3, 4, 64)),
            r"or \(2, B, 64\), got \(3, 4, 64\)",
        ),
    ],
)
def test_errors_say_what_was_expected(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("seeds", [2, [2, 9]])
def test_as_written_it_is_the_same(seeds: int | list[int]) -> None:
    model = Convolutional((3, 5), 7, 4, seeds=seeds, dtype=DOUBLE)
    for i in range(4):
        bias = model.get_parameter(f"bias_{i}")
        bias.data = randn(*bias.shape, seed=i)
    pixels = randn(BATCH, 64)
    out = model(pixels)
    model.as_written = True
    torch.testing.assert_close(model(pixels), out, rtol=1e-11, atol=1e-13)
