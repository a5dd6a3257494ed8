"""Random words as signs that are added to a tile of weights, and as thresholds of rounding."""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.

from __future__ import annotations

import numpy as np

from dopaminergic.noise.cpu.instructions import (
    add_word,
    compiled,
    copysign,
    step_word,
    whole_vectors,
)
from dopaminergic.noise.cpu.normals import BLOCKS
from dopaminergic.noise.cpu.philox import turn_blocks
from dopaminergic.noise.reference import GAUSSIAN, GOLDEN, RADEMACHER, ROUNDING

SIGN_STREAM = np.uint32(RADEMACHER << 28)
NORMAL_STREAM = np.uint32(GAUSSIAN << 28)
ROUNDING_STREAM = np.uint32(ROUNDING << 28)


# ---- signs ---------------------------------------------------------------------------------------


@compiled
def _word(words, place):
    return words[(place >> 5) & 3, place >> 7]


@compiled
def _sign(words, place, coefficient):
    return (
        coefficient if _word(words, place) >> np.uint32(place & 31) & np.uint32(1) else -coefficient
    )


@compiled
def add_signs(x, words, offset, coefficient):
    """X <- x + coefficient * signs, from the `offset`-th sign of the words on."""
    first, last = whole_vectors(offset, x.size, 32)
    for i in range(first, last, 32):
        add_word(x.ctypes.data + i * x.itemsize, _word(words, offset + i), coefficient)
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            x[i] += _sign(words, offset + i, coefficient)


@compiled
def step_signs(x, words, offset, undo, scale, coefficient, grid):
    """X <- on_grid((x + undo * signs) * scale + coefficient * signs).

    This is all of a step along one direction.
    """
    first, last = whole_vectors(offset, x.size, 32)
    for i in range(first, last, 32):
        step_word(
            x.ctypes.data + i * x.itemsize, _word(words, offset + i), undo, scale, coefficient, grid
        )
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            y = (x[i] + _sign(words, offset + i, undo)) * scale + _sign(
                words, offset + i, coefficient
            )
            x[i] = copysign((abs(y) + grid) - grid, y)


# ---- rounding ------------------------------------------------------------------------------------


@compiled
def _interleave(out, rows, blocks):
    """Element e of block b <- rows[e, b]."""
    # Each row is an array of one dimension, or the loop does not become vector instructions.
    a = rows[0, :blocks]
    b = rows[1, :blocks]
    c = rows[2, :blocks]
    d = rows[3, :blocks]
    for i in range(a.size):
        out[4 * i] = a[i]
        out[4 * i + 1] = b[i]
        out[4 * i + 2] = c[i]
        out[4 * i + 3] = d[i]


@compiled
def make_dither(noise, words, size, which):
    """The thresholds that round a row of a tile, in part of `noise`.

    They are 0 where nothing was changed.

    Args:
        noise: room for `size` and 14 more.
        words: room for Philox.
        size: number of thresholds.
        which: whether anything was changed, the number of the first element, and the rest of the
            counter and the key.
    """
    changed, place, parameter, turn, rounding, key = which
    noise = noise[: (place % 8 + size + 7) // 8 * 8]
    if not changed:
        noise[:] = 0
        return noise
    first = np.uint32(place // 8)
    selector = np.uint32(rounding | ROUNDING_STREAM)
    whole = noise.view(np.uint32)  # the lower half of a word comes first in memory
    for block in range(0, noise.size // 8, BLOCKS):
        blocks = min(noise.size // 8 - block, BLOCKS)
        number = np.uint32(first + np.uint32(block))
        turn_blocks(words, blocks, number, parameter, np.uint32(0), selector, key[0], key[1])
        _interleave(whole[4 * block : 4 * (block + blocks)], words, blocks)
    gone = np.uint16(turn * np.uint32(GOLDEN))
    for i in range(noise.size):
        noise[i] = np.uint16(noise[i] + gone)
    return noise[place % 8 :]
