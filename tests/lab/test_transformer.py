"""The transformer against the layers of torch.nn, stacks against their slices, vmap against a loop,
causality.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional

from dopaminergic.lab.transformer import Transformer

DOUBLE = torch.float64
TOKENS, LENGTH, WIDTH = 5, 7, 12
BATCH = 21  # more than one piece, and not a whole number of them


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(TOKENS, shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(seeds: int | list[int], dtype: torch.dtype = DOUBLE) -> Transformer:
    """A small network in which what starts at 0 is random, the same for every seed: a mistake there
    would show.
    """
    model = Transformer(TOKENS, LENGTH, width=WIDTH, heads=3, seeds=seeds, dtype=dtype)
    for i, parameter in enumerate(model.parameters()):
        if not parameter.any():
            parameter.data = (
                (0.5 * randn(parameter.shape[-1], seed=i, dtype=dtype)).expand_as(parameter).clone()
            )
    return model


def by_torch(model: Transformer, sequences: Tensor) -> Tensor:
    """A plain network as its equations are written, with the attention of torch."""
    p = dict(model.named_parameters())

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), 1 + p[f"{name}_gain"], p[f"{name}_shift"])

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (3, -1)).transpose(1, 2)

    x = p["embedding"][sequences] + p["position"]
    for i in range(2):
        query, key, value = (norm(f"attention_norm_{i}", x) @ p[f"query_key_value_{i}"]).chunk(
            3, -1
        )
        read = functional.scaled_dot_product_attention(
            heads(query), heads(key), heads(value), is_causal=True
        )
        x = x + read.transpose(1, 2).flatten(2) @ p[f"attention_output_{i}"]
        h = (norm(f"dense_norm_{i}", x) @ p[f"dense_in_{i}"] + p[f"dense_in_bias_{i}"]).relu()
        x = x + h @ p[f"dense_out_{i}"] + p[f"dense_out_bias_{i}"]
    return norm("readout_norm", x) @ p["readout"] + p["readout_bias"]


def test_it_is_the_layers_of_torch_values_and_gradients() -> None:
    model, sequences = small(2), tokens(BATCH, LENGTH)
    out, expected = model(sequences), by_torch(model, sequences)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(out.square().sum(), parameters)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_token_changes_what_follows_and_nothing_before() -> None:
    model, sequences = small(3), tokens(BATCH, LENGTH)
    before = model(sequences)
    for position in range(LENGTH):
        changed = sequences.clone()
        changed[:, position] = (changed[:, position] + 1) % TOKENS
        after = model(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        moved = (after - before)[:, position:].abs().amax(-1)
        assert moved.min() > 1e-9, "every later position attends to every earlier one"


def test_stack_slices_are_the_plain_networks() -> None:
    seeds = [3, 1, 4]
    stack, sequences = small(seeds), tokens(3, BATCH, LENGTH)
    own, shared = stack(sequences), stack(sequences[0])
    for r, seed in enumerate(seeds):
        plain = small(seed)
        for a, b in zip(stack.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a[r], b)
        torch.testing.assert_close(own[r], plain(sequences[r]), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(shared[r], plain(sequences[0]), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_stack_of_one_is_bitwise_the_plain_network(dtype: torch.dtype) -> None:
    plain, one, sequences = small(5, dtype), small([5], dtype), tokens(BATCH, LENGTH)
    assert torch.equal(one(sequences)[0], plain(sequences))
    assert torch.equal(one(sequences[None])[0], plain(sequences))


@pytest.mark.parametrize("seeds", [6, [6, 2]])
@pytest.mark.parametrize("own", [False, True])
def test_many_directions_through_vmap(seeds: int | list[int], own: bool) -> None:
    model = small(seeds)
    sequences = tokens(*([2] if own and isinstance(seeds, list) else []), BATCH, LENGTH)
    many = {
        n: p.detach() + 0.1 * randn(3, *p.shape, seed=i)
        for i, (n, p) in enumerate(model.named_parameters())
    }
    out = vmap(lambda parameters: functional_call(model, parameters, (sequences,)))(many)
    for k in range(3):
        one = functional_call(model, {n: p[k] for n, p in many.items()}, (sequences,))
        torch.testing.assert_close(out[k], one, rtol=1e-11, atol=1e-13)
    assert not torch.allclose(out[0], out[1])


def test_initial_weights_have_the_stated_spread() -> None:
    model = Transformer(12, 16, width=16, blocks=3, seeds=list(range(40)))
    for name, parameter in model.named_parameters():
        values, fan_in = parameter.detach().flatten(), parameter.shape[-2]
        added = 6 if "output" in name or "dense_out" in name else 1
        variance = 0.5 if name in ("embedding", "position") else 1 / (fan_in * added)
        if name.endswith(("gain", "shift")) or "bias" in name:
            assert not values.any()
        else:
            # The sample deviation of n normals has standard error deviation / sqrt(2 n).
            assert abs(values.std() / math.sqrt(variance) - 1) < 5 / (2 * len(values)) ** 0.5, name


def test_the_mask_is_no_weight() -> None:
    model = Transformer(3, 4)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Transformer(0, 4), "tokens: expected a whole number of at least 1, got 0"),
        (
            lambda: Transformer(3, 4, blocks=0),
            "blocks: expected a whole number of at least 1, got 0",
        ),
        (
            lambda: Transformer(3, 4, width=10, heads=4),
            "width: expected a multiple of heads=4, got 10",
        ),
        (lambda: Transformer(3, 4)(tokens(2, 5)), r"expected shape \(B, 4\), got \(2, 5\)"),
        (
            lambda: Transformer(3, 4, seeds=[1, 2])(tokens(3, 2, 4)),
            r"or \(2, B, 4\), got \(3, 2, 4\)",
        ),
    ],
)
def test_errors_say_what_was_expected(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("seeds", [2, [2, 9]])
def test_as_written_it_is_the_same(seeds: int | list[int]) -> None:
    model, sequences = small(seeds), tokens(BATCH, LENGTH)
    out = model(sequences)
    model.as_written = True
    torch.testing.assert_close(model(sequences), out, rtol=1e-11, atol=1e-13)
