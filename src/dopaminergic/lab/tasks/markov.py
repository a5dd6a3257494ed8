"""Sequences of tokens from a fixed random Markov chain of second order.

Its entropy is known exactly. The token after a, b is a ball drawn from the urn of (a, b). Half of
its balls were named at random for b alone and half for the pair. So there is something to learn at
every stage: first the share of each token, then the token after one, then the token after two. The
last stage takes attention, since a position is given its own token alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dopaminergic.lab.networks import Seeds, whole
from dopaminergic.lab.tasks.classification import Classification
from dopaminergic.lab.tasks.task import MOST, Batch, Draws, Model, counted
from dopaminergic.lab.transformer import Transformer
from dopaminergic.noise.reference import integers

BALLS = 4
TEST_SEQUENCES = 256
# Tell draws of seed 0 and step 0 from each other and from batches.
URNS_OF_LAST, URNS_OF_PAIRS, TEST = 1, 2, 3


def make_urns(tokens: int) -> Tensor:
    """The balls of every urn: int64 in `[0, tokens)` of shape `(tokens, tokens, BALLS)`.

    The older token comes first.
    """
    half = BALLS // 2
    last = integers(tokens * half, tokens, seed=0, step=0, parameter=URNS_OF_LAST).view(
        1, tokens, half
    )
    pairs = integers(tokens**2 * half, tokens, seed=0, step=0, parameter=URNS_OF_PAIRS).view(
        tokens, tokens, half
    )
    return torch.cat([last.expand(tokens, -1, -1), pairs], -1)


def mean_entropy(urns: Tensor, steps: int) -> float:
    """The mean entropy in nats of the first `steps` tokens after two uniform ones.

    Each is given the two before it.
    """
    chances = functional.one_hot(urns, len(urns)).to(torch.float64).mean(-2)
    entropies = -torch.special.xlogy(chances, chances).sum(-1)
    pairs = torch.full_like(entropies, 1 / entropies.numel())
    total = 0.0
    for _ in range(steps):
        total += float((pairs * entropies).sum())
        pairs = torch.einsum("ab,abc->bc", pairs, chances)
    return total / steps


class Markov(Classification):
    """Foretell each token of a Markov chain of second order, by a causal transformer.

    The first token to foretell is the third.

    Args:
        tokens: how many different ones there are, at least 1.
        length: tokens that the network sees of each sequence, at least 2.
        width: of the transformer.
        heads: of its attention.
        blocks: of attention and dense network.
        batch_size: sequences in a batch, drawn afresh.
        dtype: `"float32"` or `"float64"`.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        *,
        tokens: int = 12,
        length: int = 16,
        width: int = 16,
        heads: int = 2,
        blocks: int = 2,
        batch_size: int = 32,
        dtype: str = "float32",
    ) -> None:
        for name, count, most in (
            ("tokens", tokens, 1024),
            ("length", length, MOST),
            ("width", width, MOST),
        ):
            counted(name, count, most=most)
        for name, count in (("heads", heads), ("blocks", blocks), ("batch_size", batch_size)):
            counted(name, count)
        network = {
            "tokens": tokens,
            "length": length,
            "width": width,
            "heads": heads,
            "blocks": blocks,
        }
        settings: dict[str, Any] = {
            **network,
            "batch_size": whole("batch_size", batch_size),
            "dtype": dtype,
        }
        self._define(
            "markov-transformer", "second-order Markov chain, transformer", 30_000, 250, settings
        )
        if whole("length", length) < 2:
            raise ValueError(
                f"length: expected at least 2, the tokens on which the next depends, got {length}"
            )
        self.urns = make_urns(whole("tokens", tokens))
        self.loss_floor = mean_entropy(self.urns, length - 1)
        # Both tokens and balls are remainders of these numbers, and so uniform.
        self.draws = Draws(batch_size * (length + 1), tokens * BALLS)
        shape = (TEST_SEQUENCES, length + 1)
        self.test = self._sequences(
            integers(shape[0] * shape[1], tokens * BALLS, seed=0, step=0, parameter=TEST)
        )

    def build(self, seeds: Seeds) -> Transformer:  # noqa: D102
        sizes = {
            name: self.settings[name] for name in ("tokens", "length", "width", "heads", "blocks")
        }
        return Transformer(**sizes, seeds=seeds, dtype=self.dtype)

    def batch(self, seeds: int | Tensor, step: int) -> Batch:  # noqa: D102
        return self._sequences(self.draws(seeds, step))

    def _sequences(self, drawn: Tensor) -> Batch:
        """Inputs, and the tokens from the third on as targets.

        The inputs have shape `(..., B, length)`, and the targets have `(..., B, length - 1)`.

        Args:
            drawn: int64 in `[0, tokens BALLS)`, shape `(..., B (length + 1))`.
        """
        tokens = self.settings["tokens"]
        urns = self.urns.flatten()
        first, second, *balls = drawn.unflatten(-1, (-1, self.settings["length"] + 1)).unbind(-1)
        sequence = [first % tokens, second % tokens]
        for ball in balls:
            sequence.append(urns[(sequence[-2] * tokens + sequence[-1]) * BALLS + ball % BALLS])
        whole_sequence = torch.stack(sequence, -1)
        return whole_sequence[..., :-1], whole_sequence[..., 2:]

    def logits(self, model: Model, inputs: Tensor) -> Tensor:
        """The logits at the second position and later: the first sees one token alone."""
        return model(inputs)[..., 1:, :]
