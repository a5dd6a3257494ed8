"""16-bit weights, which numba does not know.

Their bits come as uint16 (bfloat16) and int16 (float16).
"""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from dopaminergic.noise.cpu.instructions import F, as_integer, as_real, copysign

UNIT = F(2.0**-16)
INFINITE = np.int32(0x7F800000)


def widen(x, words):
    """X <- the numbers that have these bits."""
    raise NotImplementedError


def narrow(words, x, noise):
    """Memory <- x, rounded stochastically, as `noise.in_torch._round_stochastically` does."""
    raise NotImplementedError


@overload(widen)
def _widen_by_type(x, words):
    def bfloat16(x, words):
        for i in range(x.size):
            x[i] = as_real(np.int32(np.int32(words[i]) << np.int32(16)))

    def float16(x, words):
        for i in range(x.size):
            # A product gives the exponent the offset of float32, also for the smallest numbers.
            h = np.int32(words[i]) & np.int32(0x7FFF)
            bits = np.int32(h << np.int32(13))
            value = as_real(bits) * F(2.0**112)
            value = as_real(np.int32(bits | INFINITE)) if h >= np.int32(0x7C00) else value
            x[i] = copysign(value, as_real(np.int32(np.int32(words[i]) << np.int32(16))))

    return {types.uint16: bfloat16, types.int16: float16}[words.dtype]


@overload(narrow)
def _narrow_by_type(words, x, noise):
    def bfloat16(words, x, noise):
        for i in range(x.size):
            bits = as_integer(x[i])
            up = np.uint32(np.uint32(bits) + np.uint32(noise[i]))
            finite = np.int32(bits & INFINITE) != INFINITE
            other = np.uint32(0x7FC00000) if x[i] != x[i] else np.uint32(bits)
            words[i] = np.uint16((up if finite else other) >> np.uint32(16))

    def float16(words, x, noise):
        for i in range(x.size):
            bits = as_integer(x[i])
            up = np.int32(
                np.int32(bits + np.int32(np.int32(noise[i]) >> np.int32(3))) & np.int32(0x7FFFE000)
            )
            # Below 2^-14 the neighbours are 2^-24 apart, however small the number is.
            exact = x[i] * F(2.0**24)
            steps = np.floor(exact)
            carries = exact - steps >= F(1) - (F(np.int32(noise[i])) + F(0.5)) * UNIT
            steps = steps + F(1) if carries else steps
            small = abs(x[i]) < F(2.0**-14)
            size = np.int32((up - np.int32(112 << 23)) >> np.int32(13))
            size = np.int32(0x7C00) if up >= np.int32(143 << 23) else size
            size = np.int32(abs(steps)) if small else size
            size = np.int32(0x7E00) if x[i] != x[i] else size
            sign = as_integer(steps) if small else bits
            words[i] = np.int16(size | (np.int32(sign >> np.int32(16)) & np.int32(0x8000)))

    return {types.uint16: bfloat16, types.int16: float16}[words.dtype]
