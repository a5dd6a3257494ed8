"""Blocks of random words, and signs and normals made of them, added to a tile of weights."""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.
# pyright: basic, reportPrivateImportUsage=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from dopaminergic.noise.cpu.instructions import (
    BLOCKS,
    F,
    add_blocks,
    add_word,
    as_integer,
    as_real,
    compiled,
    copysign,
    inlined,
    multiply_add,
    step_word,
)
from dopaminergic.noise.reference import GAUSSIAN, RADEMACHER, ROUNDING

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
SIGN_STREAM, NORMAL_STREAM = np.uint32(RADEMACHER << 28), np.uint32(GAUSSIAN << 28)
ROUNDING_STREAM = np.uint32(ROUNDING << 28)
ROOT_HALF = np.int32(np.array(math.sqrt(0.5), F).view(np.int32))
# -2 ln f = t P(t) with t = f - 1, for f in [sqrt(1/2), sqrt(2)]: the polynomial of least largest relative error, 3e-8.
LOG = (-0.17477584, 0.28615448, -0.29832712, 0.33140627, -0.3992448, 0.50003552, -0.6666789, 0.99999982, -2.0)
LOG, MINUS_2_LOG_2 = tuple(F(c) for c in LOG), F(-2 * math.log(2.0))
# sin(a) / sqrt(2) = a P(a^2) and cos(a) / sqrt(2) = P(a^2), for angles a within an eighth of a turn: the polynomials of
# least largest error, 2e-8 at most. All by iterated weights (Lawson 1961).
SINE = (F(0.707106779), F(-0.117851017), F(5.89163978e-3), F(-1.37914262e-4))
COSINE = (F(0.70710676), F(-0.35355238), F(0.02945455), F(-0.00096067))
QUARTER, TOP_BIT, ANGLE_BITS = F(math.pi / 2 * 2.0**-32), np.uint32(1 << 31), np.uint32(0xFFFFFC00)


@inlined
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al. 2011) of a counter and its key, both in 64 bits, of which the lower 32 count."""
    # The high half is only emptied before a product, which makes that one instruction.
    for _ in range(10):
        p0, p1 = (c0 & LOW) * M0, (c2 & LOW) * M1
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1, (p0 >> SHIFT) ^ c3 ^ k1, p0
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


@compiled
def turn_blocks(words, blocks, block, parameter, step, selector, key0, key1):
    """Philox of consecutive blocks, into `words[:, lane]`."""
    # Two at once, since a product takes longer than what else is to be done for one counter meanwhile.
    half, start, parameter, step = blocks // 2, np.uint64(block), np.uint64(parameter), np.uint64(step)
    selector, key0, key1 = np.uint64(selector), np.uint64(key0), np.uint64(key1)
    for lane in range(half):
        one = _philox(start + np.uint64(lane), parameter, step, selector, key0, key1)
        other = _philox(start + np.uint64(half + lane), parameter, step, selector, key0, key1)
        words[0, lane], words[1, lane], words[2, lane], words[3, lane] = one
        words[0, half + lane], words[1, half + lane], words[2, half + lane], words[3, half + lane] = other
    for lane in range(2 * half, blocks):
        last = _philox(start + np.uint64(lane), parameter, step, selector, key0, key1)
        words[0, lane], words[1, lane], words[2, lane], words[3, lane] = last


@compiled
def turn_each(words, plan, p, count, step, selector, seeds):
    """`turn_blocks` of one block for each of `count` pieces from number p on, with keys and counters of their own."""
    for lane in range(count):
        first, seed = plan[5, p + lane] + plan[2, p + lane], seeds[plan[6, p + lane]]
        words[0, lane], words[1, lane] = np.uint32(first // 128), np.uint32(plan[4, p + lane])
        words[2, lane], words[3, lane] = np.uint32(seed & LOW), np.uint32(seed >> SHIFT)
    turn, selector = np.uint64(step), np.uint64(selector)
    for lane in range(count):  # a loop of its own, or it does not become vector instructions
        block, parameter = np.uint64(words[0, lane]), np.uint64(words[1, lane])
        key0, key1 = np.uint64(words[2, lane]), np.uint64(words[3, lane])
        found = _philox(block, parameter, turn, selector, key0, key1)
        words[0, lane], words[1, lane], words[2, lane], words[3, lane] = found


# ---- signs -----------------------------------------------------------------------------------------------------------


@compiled
def _word(words, place):
    return words[(place >> 5) & 3, place >> 7]


@compiled
def _sign(words, place, coefficient):
    return coefficient if _word(words, place) >> np.uint32(place & 31) & np.uint32(1) else -coefficient


@compiled
def _whole_words(offset, size):
    """Where whole words of signs begin and end among weights that start with the `offset`-th sign."""
    first = min(-offset & 31, size)
    return first, first + (size - first) // 32 * 32


@compiled
def add_signs(x, words, offset, coefficient):
    """X <- x + coefficient * signs, from the `offset`-th sign of the words on."""
    first, last = _whole_words(offset, x.size)
    for i in range(first, last, 32):
        add_word(x.ctypes.data + i * x.itemsize, _word(words, offset + i), coefficient)
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            x[i] += _sign(words, offset + i, coefficient)


@compiled
def step_signs(x, words, offset, undo, scale, coefficient, grid):
    """X <- on_grid((x + undo * signs) * scale + coefficient * signs): all of a step along one direction."""
    first, last = _whole_words(offset, x.size)
    for i in range(first, last, 32):
        step_word(x.ctypes.data + i * x.itemsize, _word(words, offset + i), undo, scale, coefficient, grid)
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            y = (x[i] + _sign(words, offset + i, undo)) * scale + _sign(words, offset + i, coefficient)
            x[i] = copysign((abs(y) + grid) - grid, y)


# ---- normals ---------------------------------------------------------------------------------------------------------


@compiled
def make_normals(z, words, blocks):
    """z[e, b] <- element e of block b: normals (Box and Muller 1958) from words."""
    for first in range(0, 4, 2):
        x, y = z[first, :blocks], z[first + 1, :blocks]
        for b in range(blocks):
            x[b] = _radius(words[first, b])
        for b in range(blocks):
            x[b], y[b] = _point(x[b], words[first + 1, b])


@compiled
def add_normals(x, z, offset, coefficient):
    """X <- x + coefficient * normals, from the `offset`-th normal on."""
    first = min(-offset & 3, x.size)
    last = first + (x.size - first) // 32 * 32
    for i in range(first, last, 32):
        block = (offset + i) >> 2
        add_blocks(x.ctypes.data + i * x.itemsize, z.ctypes.data + block * z.itemsize, coefficient)
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            x[i] += coefficient * x.dtype.type(z[(offset + i) & 3, (offset + i) >> 2])


@inlined
def _radius(word):
    """sqrt(-2 ln u), from u = 2^e f with f in [sqrt(1/2), sqrt(2))."""
    # 2^24 u, an odd number of 24 bits.
    bits = as_integer(F(np.int32((word >> np.uint32(8)) | np.uint32(1))))
    e = np.int32(np.int32(bits - ROOT_HALF) >> np.int32(23))
    t = as_real(np.int32(bits - np.int32(e << np.int32(23)))) - F(1)
    p = LOG[0]
    for c in LOG[1:]:
        p = multiply_add(t, p, c)
    e = np.int32(e - np.int32(24))
    return math.sqrt(multiply_add(F(e), MINUS_2_LOG_2, t * p))


@inlined
def _point(radius, word):
    """Radius * cos(angle), radius * sin(angle)."""
    s0, s1, s2, s3 = SINE
    c0, c1, c2, c3 = COSINE
    # Two bits say in which quarter of the turn the angle lies, 22 how far it is from the quarter's middle; there
    # cos(b + a) and sin(b + a) are sums of cos(a) and sin(a) over sqrt(2), whose signs tell the quarters apart.
    a = F(np.int32(np.uint32((word << np.uint32(2)) ^ TOP_BIT) & ANGLE_BITS)) * QUARTER
    q = a * a
    sine = as_integer(a * multiply_add(q, multiply_add(q, multiply_add(q, s3, s2), s1), s0))
    cosine = as_integer(multiply_add(q, multiply_add(q, multiply_add(q, c3, c2), c1), c0))
    below, left = np.int32(word & TOP_BIT), np.int32((word ^ (word << np.uint32(1))) & TOP_BIT)
    x = radius * (as_real(np.int32(cosine ^ left)) - as_real(np.int32(sine ^ below)))
    return x, radius * (as_real(np.int32(cosine ^ below)) + as_real(np.int32(sine ^ left)))


# ---- rounding --------------------------------------------------------------------------------------------------------


@compiled
def _interleave(out, rows, blocks):
    """Element e of block b <- rows[e, b]."""
    # One dimension and rows of their own, or the loop does not become vector instructions.
    a, b, c, d = rows[0, :blocks], rows[1, :blocks], rows[2, :blocks], rows[3, :blocks]
    for i in range(a.size):
        out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3] = a[i], b[i], c[i], d[i]


@compiled
def make_dither(noise, words, needed, place, parameter, turn, rounding, key):
    """The random numbers that round a tile whose first element is number `place`; none where nothing was changed."""
    if not needed:
        noise[:] = 0
        return noise
    first, selector = np.uint32(place // 8), np.uint32(rounding | ROUNDING_STREAM)
    whole = noise.view(np.uint32)  # the lower half of a word comes first in memory
    for block in range(0, noise.size // 8, BLOCKS):
        blocks = min(noise.size // 8 - block, BLOCKS)
        turn_blocks(words, blocks, np.uint32(first + np.uint32(block)), parameter, turn, selector, key[0], key[1])
        _interleave(whole[4 * block : 4 * (block + blocks)], words, blocks)
    return noise[place % 8 :]
