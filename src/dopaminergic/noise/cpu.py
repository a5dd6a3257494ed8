"""The same numbers as `reference`, fused with the update of the weights and compiled by numba: one pass over memory.

One call serves every parameter of a group, since on a tiny network the calls cost more than the arithmetic. Counters
are turned 16 blocks at a time, which fills the vector registers; the tile of weights they belong to then stays in the
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

LANES = 16
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
def _turn(words, block, parameter, step, selector, key0, key1):
    """Philox4x32-10 of `LANES` consecutive blocks, into `words[4, lane]` (Salmon et al. 2011)."""
    for lane in range(LANES):
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
def _add_signs(tile, words, coefficient):
    """Tile <- tile + coefficient * signs, at most `LANES` blocks of 128 weights."""
    full = tile.size == LANES * 128
    for lane in range(LANES):
        for w in range(4):
            # A slice, since indices that might be negative keep the loop from becoming vector instructions; and a known
            # number of turns where the tile is full, for the same reason.
            word, part = words[w, lane], tile[lane * 128 + w * 32 : lane * 128 + w * 32 + 32]
            if full:
                for i in range(32):
                    part[i] += coefficient * np.float32(np.int32(np.int32((word >> np.uint32(i)) & ONE) * 2 - 1))
            else:
                for i in range(part.size):
                    part[i] += coefficient * np.float32(np.int32(np.int32((word >> np.uint32(i)) & ONE) * 2 - 1))


@numba.njit
def _add_normals(tile, words, coefficient):
    """Tile <- tile + coefficient * normals, at most `LANES` blocks of 4 weights."""
    for lane in range(LANES):
        for pair in range(2):
            uniform = (np.float32(words[2 * pair, lane] >> np.uint32(9)) + HALF) * RADIUS_SCALE
            angle = np.float32(words[2 * pair + 1, lane] >> np.uint32(8)) * ANGLE_SCALE
            radius = math.sqrt(MINUS_TWO * math.log(uniform))
            part = tile[lane * 4 + pair * 2 : lane * 4 + pair * 2 + 2]
            for i in range(part.size):
                normal = radius * (math.cos(angle) if i == 0 else math.sin(angle))
                part[i] += coefficient * normal


@numba.njit(nogil=True, cache=True)
def combine(dtype, plan, seeds, scales, coefficients, directions, step, signs, save, saved):
    """Target <- scale * source + sum_k coefficients[k] z_k, for every parameter and every replica.

    Args:
        dtype: any array of the weights' dtype; only its type is looked at.
        plan: uint64 `(5, P)`: addresses of the targets, of the sources (the same where the update is in place) and of
            copies; weights per replica (a parameter holds its R replicas one after the other); index in the noise.
        seeds: uint64 `(R,)`.
        scales: float64 `(R,)`.
        coefficients: float64 `(K, R)`.
        directions: uint32 `(K,)`.
        step: step number.
        signs: Rademacher if true, else Gaussian.
        save: write the sources to the copies on the way.
        saved: int64 `(1,)`, set to `step` by a call that saves: within the call, so that no signal falls in between.
    """
    words = np.empty((4, LANES), np.uint32)
    multiples, factors = np.empty(coefficients.shape, dtype.dtype), np.empty(scales.shape, dtype.dtype)
    multiples[:], factors[:] = coefficients, scales
    per_block = 128 if signs else 4
    stream = SIGN_STREAM if signs else NORMAL_STREAM
    replicas, turn = seeds.size, np.uint32(step)
    for p in range(plan.shape[1]):
        size, parameter = np.int64(plan[3, p]), np.uint32(plan[4, p])
        target = numba.carray(_pointer(plan[0, p]), (replicas * size,), dtype.dtype)
        source = numba.carray(_pointer(plan[1, p]), (replicas * size,), dtype.dtype)
        for r in range(replicas):
            key0, key1 = np.uint32(seeds[r] & LOW), np.uint32(seeds[r] >> SHIFT)
            for start in range(0, size, per_block * LANES):
                at, to = r * size + start, r * size + min(start + per_block * LANES, size)
                tile = target[at:to]
                if plan[0, p] != plan[1, p]:
                    tile[:] = source[at:to]
                if save:
                    numba.carray(_pointer(plan[2, p]), (replicas * size,), dtype.dtype)[at:to] = tile
                if scales[r] != 1.0:
                    tile *= factors[r]
                for k in range(directions.size):
                    block, selector = np.uint32(start // per_block), np.uint32(directions[k] | stream)
                    _turn(words, block, parameter, turn, selector, key0, key1)
                    if signs:
                        _add_signs(tile, words, multiples[k, r])
                    else:
                        _add_normals(tile, words, multiples[k, r])
    if save:
        saved[0] = step


@numba.njit(nogil=True, cache=True)
def combine_one(dtype, plan, seed, scale, coefficient, direction, step, signs, save, saved):
    """`combine` for one replica and one direction, from numbers: on a tiny model, arrays cost more than the work."""
    seeds, scales, coefficients = np.empty(1, np.uint64), np.empty(1), np.empty((1, 1))
    directions = np.empty(1, np.uint32)
    seeds[0], scales[0], coefficients[0, 0], directions[0] = seed, scale, coefficient, direction
    combine(dtype, plan, seeds, scales, coefficients, directions, step, signs, save, saved)
