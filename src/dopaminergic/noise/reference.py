"""The definition of every random number in the library.

    noise = Philox counter -> 32-bit words -> signs or normals

A direction z is a pure function of (seed, stream, step, direction, parameter, element). So it is
never stored. It is made again wherever it is needed, for example in another order, in chunks, or on
another device. The generator is Philox4x32-10, a keyed bijection of 128-bit counters (Salmon,
Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    key     = (seed mod 2^32, seed div 2^32)
    counter = (block, parameter, step, direction + 2^28 stream)

One block gives four 32-bit words: 128 Rademacher signs, 4 normals or 8 halves of words, in the
order of the elements. Every parameter starts a new block. This file is slow and obvious, in plain
integer arithmetic of torch. The fast backends are tested against it, and `tests/noise/vectors.json`
holds published test vectors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

WITHOUT_DOUBLE = ("mps",)  # devices that do not know float64

# The uses of a counter. Streams never share a number, in no step and along no direction.
RADEMACHER, GAUSSIAN, ROUNDING, BATCH = range(4)
MAX_DIRECTIONS = 1 << 28
GOLDEN = 40503  # 2^16 / golden ratio, and odd, so that a threshold takes all values in turn
SIGNS_PER_BLOCK = 128
NORMALS_PER_BLOCK = 4
HALVES_PER_BLOCK = 8


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Philox4x32-10: four words of 32 bits for each counter (Salmon et al. 2011, section 3.3).

    Args:
        counter: four int64 tensors holding unsigned 32-bit words, broadcast against each other and
            the key.
        key: two int64 tensors holding unsigned 32-bit words.

    Returns:
        Four int64 tensors of words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # An int64 product wraps around, yet holds the same 64 bits as the unsigned one.
        p0 = c0 * MULTIPLIERS[0]
        p1 = c2 * MULTIPLIERS[1]
        c0 = ((p1 >> 32) & MASK) ^ c1 ^ k0
        c1 = p1 & MASK
        c2 = ((p0 >> 32) & MASK) ^ c3 ^ k1
        c3 = p0 & MASK
        k0 = (k0 + KEY_INCREMENTS[0]) & MASK
        k1 = (k1 + KEY_INCREMENTS[1]) & MASK
    return [c0, c1, c2, c3]


def words(
    blocks: int,
    *,
    seed: int | Tensor,
    stream: int,
    step: int,
    direction: int = 0,
    parameter: int = 0,
    first: int = 0,
) -> Tensor:
    """The 32-bit words of consecutive blocks.

    Args:
        blocks: number of blocks.
        seed: in [0, 2^63); an int, or an int64 tensor of shape `(R,)`, one seed for each replica.
        stream: the use of the words: `RADEMACHER`, `GAUSSIAN`, `ROUNDING` or `BATCH`.
        step: in [0, 2^32).
        direction: in [0, 2^28).
        parameter: index of the parameter, in [0, 2^32).
        first: number of the first block.

    Returns:
        int64 words in [0, 2^32), shape `(4 blocks,)`, or `(R, 4 blocks)` for a tensor of seeds.
    """
    seeds = (
        seed if isinstance(seed, Tensor) else torch.tensor(seed, dtype=torch.int64, device="cpu")
    )
    key = ((seeds & MASK)[..., None], (seeds >> 32)[..., None])
    block = torch.arange(first, first + blocks, dtype=torch.int64, device=seeds.device)
    fixed = [
        # The number is filled in on the device, since a copy would wait for a GPU.
        torch.full((), word, dtype=torch.int64, device=seeds.device)
        for word in (parameter, step, direction + (stream << 28))
    ]
    out = philox((block, fixed[0], fixed[1], fixed[2]), key)
    return torch.stack([word.expand(*seeds.shape, blocks) for word in out], dim=-1).flatten(-2)


def _words_of(n: int, first: int, per_block: int, **place: Any) -> Tensor:
    """The words of elements `first` to `first + n`, of which a block has `per_block`.

    The first element begins a block.
    """
    return words(-(-n // per_block), first=first // per_block, **place)


def rademacher(
    n: int, *, seed: int | Tensor, step: int, direction: int = 0, parameter: int = 0, first: int = 0
) -> Tensor:
    """Signs, each +1 or -1 with probability 1/2.

    Element e is bit e mod 32 of word e div 32, and a set bit is +1.

    Args:
        n: number of elements.
        seed: see `words`.
        step: see `words`.
        direction: see `words`.
        parameter: see `words`.
        first: index of the first element; a multiple of 128.

    Returns:
        float32 of shape `(n,)` or `(R, n)`.
    """
    place = {"seed": seed, "step": step, "direction": direction, "parameter": parameter}
    bits = _words_of(n, first, SIGNS_PER_BLOCK, stream=RADEMACHER, **place)
    signs = (bits[..., None] >> torch.arange(32, dtype=torch.int64, device=bits.device)) & 1
    return (2 * signs - 1).flatten(-2)[..., :n].to(torch.float32)


def gaussian(
    n: int, *, seed: int | Tensor, step: int, direction: int = 0, parameter: int = 0, first: int = 0
) -> Tensor:
    """Standard normals by the transform of Box and Muller (1958).

    The 23-bit radius cuts them off at 5.77. They are computed in float64 and rounded once, so that
    faster ways can be judged by them. Words 0 and 1 of a block give elements 0 and 1, words 2 and 3
    give elements 2 and 3.

    Args:
        n: number of elements.
        seed: see `words`.
        step: see `words`.
        direction: see `words`.
        parameter: see `words`.
        first: index of the first element; a multiple of 4.

    Returns:
        float32 of shape `(n,)` or `(R, n)`.
    """
    place = {"seed": seed, "step": step, "direction": direction, "parameter": parameter}
    bits = _words_of(n, first, NORMALS_PER_BLOCK, stream=GAUSSIAN, **place)
    device = bits.device
    bits = bits.cpu() if device.type in WITHOUT_DOUBLE else bits
    radius_bits = bits[..., 0::2]
    angle_bits = bits[..., 1::2]
    uniform = ((radius_bits >> 9).double() + 0.5) * 2.0**-23  # in (0, 1)
    radius = torch.sqrt(-2.0 * torch.log(uniform))
    angle = (angle_bits >> 8).double() * (2.0**-24 * 2 * math.pi)
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pairs.flatten(-2)[..., :n].to(torch.float32).to(device)


def halves(
    n: int, *, seed: int | Tensor, step: int, direction: int = 0, parameter: int = 0, first: int = 0
) -> Tensor:
    """Uniform integers of 16 bits.

    Element e is half e mod 2 of word e div 2, the lower half first.

    Args:
        n: number of elements.
        seed: see `words`.
        step: see `words`.
        direction: which of the step's numbers, see `words`.
        parameter: see `words`.
        first: index of the first element; a multiple of 8.

    Returns:
        int64 in [0, 2^16), of shape `(n,)` or `(R, n)`.
    """
    place = {"seed": seed, "step": step, "direction": direction, "parameter": parameter}
    bits = _words_of(n, first, HALVES_PER_BLOCK, stream=ROUNDING, **place)
    return torch.stack([bits & 0xFFFF, bits >> 16], dim=-1).flatten(-2)[..., :n]


def thresholds(
    n: int, *, seed: int | Tensor, step: int, direction: int = 0, parameter: int = 0, first: int = 0
) -> Tensor:
    """Thresholds that decide which way 16-bit weights are rounded.

    They are the `halves` of step 0, moved on in each step by the golden ratio of their range. In
    every step they are uniform and independent between weights, so that each rounding is right in
    expectation.

    From step to step a weight's own threshold covers its range as evenly as can be. This is the
    recurrence of Weyl ("Über die Gleichverteilung von Zahlen mod. Eins", 1916), with the ratio
    whose multiples keep apart best. With fresh random numbers the errors of many small updates
    would add up like a random walk. With these, half of their variance cancels.

    Args:
        n: number of elements.
        seed: see `words`.
        step: see `words`.
        direction: which of the step's numbers, see `words`.
        parameter: see `words`.
        first: index of the first element; a multiple of 8.

    Returns:
        int64 in [0, 2^16), of shape `(n,)` or `(R, n)`.
    """
    return (
        halves(n, seed=seed, step=0, direction=direction, parameter=parameter, first=first)
        + step * GOLDEN
    ) & 0xFFFF


def integers(
    n: int, high: int, *, seed: int | Tensor, step: int, stream: int = BATCH, parameter: int = 0
) -> Tensor:
    """Uniform integers in [0, high), for drawing batches (the bias is below `high` / 2^32).

    Args:
        n: number of integers.
        high: exclusive upper bound, in [1, 2^31).
        seed: see `words`.
        step: see `words`.
        stream: see `words`.
        parameter: tells several draws of one step apart.

    Returns:
        int64 of shape `(n,)` or `(R, n)`.
    """
    bits = words(-(-n // 4), seed=seed, stream=stream, step=step, parameter=parameter)
    return ((bits * high) >> 32)[..., :n]
