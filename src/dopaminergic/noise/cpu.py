"""The same numbers as `reference`, fused with the update of the weights and compiled by numba: one pass over memory.

One call serves every parameter of a group, since on a tiny network the calls cost more than the arithmetic. Counters
are turned 16 blocks at a time, which fills the vector registers; the tile of weights they belong to then stays in the
first-level cache however many directions are added to it.
"""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

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
    for lane in range(LANES):
        for w in range(4):
            # A slice, since indices that might be negative keep the loop from becoming vector instructions.
            word, part = words[w, lane], tile[lane * 128 + w * 32 : lane * 128 + w * 32 + 32]
            for i in range(part.size):
                sign = np.int32(np.int32((word >> np.uint32(i)) & ONE) * 2 - 1)
                part[i] += coefficient * np.float32(sign)


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
def combine(addresses, sizes, parameters, seeds, scales, coefficients, directions, step, first, signs):
    """Target <- scale * source + sum_k coefficients[k] z_k, for every parameter and every replica.

    Args:
        addresses: uint64 `(2, P)`, the targets' and the sources' first byte; equal where the update is in place.
        sizes: int64 `(P,)`, weights per replica; a parameter holds its R replicas one after the other.
        parameters: uint32 `(P,)`, the index that each parameter has in the noise.
        seeds: uint64 `(R,)`.
        scales: `(R,)`, of the weights' dtype.
        coefficients: `(K, R)`, of the weights' dtype.
        directions: uint32 `(K,)`.
        step: uint32.
        first: index of the first element of every parameter; a multiple of the block.
        signs: Rademacher if true, else Gaussian.
    """
    words = np.empty((4, LANES), np.uint32)
    per_block = 128 if signs else 4
    stream = SIGN_STREAM if signs else NORMAL_STREAM
    one = np.float32(1)
    for p in range(sizes.size):
        size, replicas = sizes[p], seeds.size
        target = numba.carray(_pointer(addresses[0, p]), (replicas * size,), coefficients.dtype)
        source = numba.carray(_pointer(addresses[1, p]), (replicas * size,), coefficients.dtype)
        for r in range(replicas):
            key0, key1 = np.uint32(seeds[r] & LOW), np.uint32(seeds[r] >> SHIFT)
            for start in range(0, size, per_block * LANES):
                end = min(start + per_block * LANES, size)
                tile = target[r * size + start : r * size + end]
                if addresses[0, p] != addresses[1, p]:
                    tile[:] = source[r * size + start : r * size + end]
                if scales[r] != one:
                    tile *= scales[r]
                for k in range(directions.size):
                    block, selector = np.uint32((first + start) // per_block), np.uint32(directions[k] | stream)
                    _turn(words, block, parameters[p], step, selector, key0, key1)
                    if signs:
                        _add_signs(tile, words, coefficients[k, r])
                    else:
                        _add_normals(tile, words, coefficients[k, r])
