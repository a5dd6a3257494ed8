"""A small causal transformer, one model or R replicas like those of `dopaminergic.lab.networks`.

A block has attention and a dense network, each added to its input (Vaswani et al. 2017), with the
norm before each rather than after (Xiong et al. 2020):

    x <- x + softmax(q k^T / sqrt(width / heads), no later position) v Wo,   q, k, v = norm(x) Wqkv
    x <- x + relu(norm(x) W1 + b1) W2 + b2

A norm is (x - mean) / deviation * (1 + gain) + shift (Ba, Kiros and Hinton 2016), so that
everything that starts at a constant starts at 0. Every product is one batched product for all
replicas, also under `torch.func.vmap`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from dopaminergic.lab.networks import Seeds, Stackable, whole

EXPANSION = 4  # units of a dense network for each number of its input

# Larger pieces of the activations of 128 replicas exceed the memory that the allocator keeps. They
# are paged in anew in every pass.
SEQUENCES_AT_ONCE = 16


class Transformer(Stackable):
    """Token numbers in, logits of the next token out, at every position from those up to it.

    The parameters have one more leading dimension R in a stacked network. They are `embedding`
    `(tokens, width)`, `position` `(length, width)`, `readout` `(width, tokens)` and `readout_bias`
    `(tokens,)`. Block i has `query_key_value_i` `(width, 3 width)`, `attention_output_i` `(width,
    width)`, `dense_in_i` `(width, 4 width)`, `dense_in_bias_i`, `dense_out_i` `(4 width, width)`
    and `dense_out_bias_i`. The norms `attention_norm`, `dense_norm` of block i and `readout_norm`
    have a `..._gain` and a `..._shift` of shape `(width,)`.

    Initial weights are normal. Their variance is 1/2 for embedding and position, and 1/fan_in for
    matrices. It is that over 2 blocks for matrices whose product is added (Radford et al. 2019).
    The others are 0.

    Args:
        tokens: how many different ones there are, at least 1.
        length: of a sequence, at least 1.
        width: numbers that represent a token, a multiple of `heads`.
        heads: of the attention, at least 1.
        blocks: at least 1.
        seeds: seed of the initial weights; a sequence of R seeds makes a stacked network.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or a width that the heads do not divide.
    """

    mask: Tensor

    def __init__(
        self,
        tokens: int,
        length: int,
        *,
        width: int = 16,
        heads: int = 2,
        blocks: int = 2,
        seeds: Seeds = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.tokens = whole("tokens", tokens)
        self.length = whole("length", length)
        self.width = whole("width", width)
        self.heads = whole("heads", heads)
        self.blocks = whole("blocks", blocks)
        if width % heads:
            raise ValueError(f"width: expected a multiple of heads={heads}, got {width}")
        self._set_parameters(seeds, self._shapes(), dtype)
        later = torch.full((length, length), -math.inf, dtype=dtype).triu(1)
        self.register_buffer("mask", later, persistent=False)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """Name -> shape and initial standard deviation of every parameter."""
        n = self.width
        m = EXPANSION * self.width
        added = 1 / math.sqrt(2 * self.blocks)
        shapes: dict[str, tuple[tuple[int, ...], float]] = {
            "embedding": ((self.tokens, n), math.sqrt(0.5)),
            "position": ((self.length, n), math.sqrt(0.5)),
        }
        for i in range(self.blocks):
            shapes |= {f"attention_norm_{i}_{part}": ((n,), 0.0) for part in ("gain", "shift")}
            shapes[f"query_key_value_{i}"] = ((n, 3 * n), 1 / math.sqrt(n))
            shapes[f"attention_output_{i}"] = ((n, n), added / math.sqrt(n))
            shapes |= {f"dense_norm_{i}_{part}": ((n,), 0.0) for part in ("gain", "shift")}
            shapes |= {
                f"dense_in_{i}": ((n, m), 1 / math.sqrt(n)),
                f"dense_in_bias_{i}": ((m,), 0.0),
            }
            shapes |= {
                f"dense_out_{i}": ((m, n), added / math.sqrt(m)),
                f"dense_out_bias_{i}": ((n,), 0.0),
            }
        shapes |= {f"readout_norm_{part}": ((n,), 0.0) for part in ("gain", "shift")}
        return shapes | {
            "readout": ((n, self.tokens), 1 / math.sqrt(n)),
            "readout_bias": ((self.tokens,), 0.0),
        }

    def forward(self, inputs: Tensor) -> Tensor:
        """The logits of the next token at every position.

        Args:
            inputs: int64 in `[0, tokens)`, shape `(B, length)`; a stacked network also takes
                `(R, B, length)`.

        Returns:
            Shape `(B, length, tokens)`, or `(R, B, length, tokens)` for a stacked network.
        """
        sequences = self._stacked_input(inputs, 2, self.length)
        if self.as_written:
            logits = self._logits(sequences)
        else:
            logits = torch.cat(
                [self._logits(piece) for piece in sequences.split(SEQUENCES_AT_ONCE, 1)], 1
            )
        return logits[0] if self.replicas is None else logits

    def _logits(self, sequences: Tensor) -> Tensor:
        """Logits `(R, b, length, tokens)` for some sequences, `(R, b, length)`."""
        chosen = sequences.flatten(1)[..., None].expand(-1, -1, self.width)
        x = self._stacked("embedding").gather(1, chosen).view(*sequences.shape, self.width)
        x = (x + self._stacked("position")[:, None]).flatten(1, 2)
        for i in range(self.blocks):
            x = torch.baddbmm(x, self._attention(i, x), self._stacked(f"attention_output_{i}"))
            h = self._affine(
                f"dense_in_bias_{i}", self._norm(f"dense_norm_{i}", x), f"dense_in_{i}"
            ).relu()
            x = x + self._affine(f"dense_out_bias_{i}", h, f"dense_out_{i}")
        logits = self._affine("readout_bias", self._norm("readout_norm", x), "readout")
        return logits.view(*sequences.shape, self.tokens)

    def _attention(self, i: int, x: Tensor) -> Tensor:
        """The outputs of the heads of block i, side by side.

        The shape is `(R, b length, width)`, like that of `x`.
        """
        replicas = x.shape[0]
        size = self.width // self.heads
        projected = torch.bmm(
            self._norm(f"attention_norm_{i}", x), self._stacked(f"query_key_value_{i}")
        )
        parts = projected.view(replicas, -1, self.length, 3, self.heads, size).permute(
            3, 0, 1, 4, 2, 5
        )
        query, key, value = parts.reshape(3, -1, self.length, size)
        scores = torch.baddbmm(self.mask, query, key.mT, alpha=1 / math.sqrt(size))
        read = torch.bmm(scores.softmax(-1), value)
        return (
            read.view(replicas, -1, self.heads, self.length, size).transpose(2, 3).reshape(x.shape)
        )

    def _norm(self, name: str, x: Tensor) -> Tensor:
        gain = self._stacked(f"{name}_gain")[:, None]
        shift = self._stacked(f"{name}_shift")[:, None]
        return torch.addcmul(shift, functional.layer_norm(x, (self.width,)), 1.0 + gain)

    def _affine(self, bias: str, x: Tensor, weight: str) -> Tensor:
        return torch.baddbmm(self._stacked(bias)[:, None], x, self._stacked(weight))
