"""The same numbers as `reference`, fused with the update of the weights and compiled by numba: one pass over memory.

One call serves every parameter of a group, since on a tiny network the calls cost more than the arithmetic. Counters
are turned 32 blocks at a time, which fills the vector registers; the tile of weights they belong to then stays in the
first-level cache however many directions are added to it.
"""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.
# pyright: basic, reportPrivateImportUsage=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from dopaminergic.noise.reference import GAUSSIAN, RADEMACHER

LANES = 32
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
ONE = np.uint32(1)
SIGN_STREAM, NORMAL_STREAM = np.uint32(RADEMACHER << 28), np.uint32(GAUSSIAN << 28)
RADIUS_SCALE, ANGLE_SCALE = np.float32(2.0**-23), np.float32(2.0**-24 * 2 * math.pi)
HALF, MINUS_TWO = np.float32(0.5), np.float32(-2.0)


@intrinsic
def _pointer(typing_context, address):
    signature = types.voidptr(address)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@numba.njit
def _turn(words, blocks, block, parameter, step, selector, key0, key1):
    """Philox4x32-10 of at most `LANES` consecutive blocks, into `words[4, lane]` (Salmon et al. 2011)."""
    for lane in range(blocks):
        # numba widens every sum of 32-bit integers, hence the conversions back.
        c0, c1, c2, c3 = np.uint32(block + np.uint32(lane)), parameter, step, selector
        k0, k1 = key0, key1
        for _ in range(10):
            p0, p1 = np.uint64(c0) * M0, np.uint64(c2) * M1
            c0 = np.uint32(np.uint32(p1 >> SHIFT) ^ c1 ^ k0)
            c2 = np.uint32(np.uint32(p0 >> SHIFT) ^ c3 ^ k1)
            c1, c3 = np.uint32(p1), np.uint32(p0)
            k0, k1 = np.uint32(k0 + W0), np.uint32(k1 + W1)
        words[0, lane], words[1, lane], words[2, lane], words[3, lane] = c0, c1, c2, c3


@numba.njit
def _signed(coefficient, word, i):
    """The coefficient times +1 where bit i is set, times -1 elsewhere: one shift into the sign, then one choice."""
    return coefficient if np.int32(word << np.uint32(31 - i)) < 0 else -coefficient


@numba.njit
def _add_signs(tile, words, coefficient):
    """Tile <- tile + coefficient * signs, at most `LANES` blocks of 128 weights."""
    for start in range(0, tile.size, 32):
        # A slice, since indices that might be negative keep the loop from becoming vector instructions; and a known
        # number of turns for a whole word, for the same reason.
        word, part = words[(start >> 5) & 3, start >> 7], tile[start : start + 32]
        if part.size == 32:
            for i in range(32):
                part[i] += _signed(coefficient, word, i)
        else:
            for i in range(part.size):
                part[i] += _signed(coefficient, word, i)


@numba.njit
def _add_normals(tile, words, coefficient):
    """Tile <- tile + coefficient * normals, at most `LANES` blocks of 4 weights."""
    for lane in range(-(-tile.size // 4)):
        for pair in range(2):
            uniform = (np.float32(words[2 * pair, lane] >> np.uint32(9)) + HALF) * RADIUS_SCALE
            angle = np.float32(words[2 * pair + 1, lane] >> np.uint32(8)) * ANGLE_SCALE
            radius = math.sqrt(MINUS_TWO * math.log(uniform))
            part = tile[lane * 4 + pair * 2 : lane * 4 + pair * 2 + 2]
            for i in range(part.size):
                normal = radius * (math.cos(angle) if i == 0 else math.sin(angle))
                part[i] += coefficient * normal


@numba.njit
def _combine(dtype, plan, seeds, scales, coefficients, directions, step, signs, saved):
    """`combine`, from arrays or from tuples of numbers, which need no memory."""
    words, real = np.empty((4, LANES), np.uint32), dtype.dtype.type
    per_block = 128 if signs else 4
    stream = SIGN_STREAM if signs else NORMAL_STREAM
    replicas, turn, save = len(seeds), np.uint32(step), saved[0] != step
    for p in range(plan.shape[1]):
        size, parameter, copied = np.int64(plan[2, p]), np.uint32(plan[3, p]), plan[0, p] != plan[1, p]
        target = numba.carray(_pointer(plan[0, p]), (replicas * size,), dtype.dtype)
        source = numba.carray(_pointer(plan[1, p]), (replicas * size,), dtype.dtype)
        if copied and save:
            _copy(source, target)
        elif copied:
            _copy(target, source)
        for r in range(replicas):
            key0, key1 = np.uint32(seeds[r] & LOW), np.uint32(seeds[r] >> SHIFT)
            for start in range(0, size, per_block * LANES):
                tile = target[r * size + start : r * size + min(start + per_block * LANES, size)]
                if scales[r] != 1.0:
                    tile *= real(scales[r])
                for k in range(len(directions)):
                    block, selector = np.uint32(start // per_block), np.uint32(directions[k] | stream)
                    _turn(words, -(-tile.size // per_block), block, parameter, turn, selector, key0, key1)
                    if signs:
                        _add_signs(tile, words, real(coefficients[k][r]))
                    else:
                        _add_normals(tile, words, real(coefficients[k][r]))
    saved[0] = step


@numba.njit
def _copy(target, source):
    for i in range(target.size):
        target[i] = source[i]


@numba.njit(nogil=True, cache=True)
def combine(dtype, plan, seeds, scales, coefficients, directions, step, signs, saved):
    """Target <- scale * source + sum_k coefficients[k] z_k, for every parameter and every replica.

    Args:
        dtype: any array of the weights' dtype; only its type is looked at.
        plan: uint64 `(4, P)`: addresses of the targets and of the sources (the same where the update is in place);
            weights per replica (a parameter holds its R replicas one after the other); index in the noise.
        seeds: uint64 `(R,)`.
        scales: float64 `(R,)`.
        coefficients: float64 `(K, R)`.
        directions: uint32 `(K,)`.
        step: step number.
        signs: Rademacher if true, else Gaussian.
        saved: int64 `(1,)`, the step whose weights the sources hold. In the first call of another step the targets hold
            them, and are saved to the sources: within the call, so that no signal falls in between.
    """
    _combine(dtype, plan, seeds, scales, coefficients, directions, step, signs, saved)


@numba.njit(nogil=True, cache=True)
def combine_one(dtype, plan, seed, scale, coefficient, direction, step, signs, saved):
    """`combine` for one replica and one direction, from numbers: on a tiny model, arrays cost more than the work."""
    direction = np.uint32(direction)
    _combine(dtype, plan, (np.uint64(seed),), (scale,), ((coefficient,),), (direction,), step, signs, saved)
