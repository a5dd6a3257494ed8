"""Random words: Philox4x32-10 (Salmon et al. 2011).

They are drawn for consecutive blocks, or for blocks with keys of their own.
"""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from dopaminergic.noise.cpu.instructions import compiled
from dopaminergic.noise.cpu.lanes import LONG, WORD, Lanes
from dopaminergic.noise.reference import KEY_INCREMENTS, MASK, MULTIPLIERS, ROUNDS

LOW = np.uint64(MASK)
SHIFT = np.uint64(32)
# Blocks come in pairs of vectors: those of even number are in one, and the words of the others are
# put above theirs. A product must wait for the last one, so with few pairs a processor is idle.
# More pairs than its registers hold are moved to memory.
FEW = 16
PAIRS = 3 if binding.get_host_cpu_features().get("avx512f") else 1
MANY = FEW * PAIRS


def _turn(counters, keys):
    """Turn counters into words; of each 64 bits the lower 32 count."""
    first, second = MULTIPLIERS
    for _ in range(ROUNDS):
        # The upper halves are emptied only for a product, which makes that one instruction; all of
        # them come first.
        products = [((c0 & MASK) * first, (c2 & MASK) * second) for c0, _, c2, _ in counters]
        each = zip(products, counters, keys, strict=True)
        counters = [
            ((p1 >> 32) ^ c[1] ^ k0, p1, (p0 >> 32) ^ c[3] ^ k1, p0)
            for (p0, p1), c, (k0, k1) in each
        ]
        keys = [[k + w for k, w in zip(key, KEY_INCREMENTS, strict=True)] for key in keys]
    return counters


def _place(builder, words, pitch, row, first):
    """The address of a word."""
    row, first = (ir.Constant(pitch.type, x) for x in (row, 4 * first))
    return builder.add(words, builder.add(builder.mul(pitch, row), first))


def _store(builder, words, pitch, counters):
    order = [place for lane in range(0, FEW, 2) for place in (lane, FEW + lane)]
    for i, (even, odd) in enumerate(zip(counters[::2], counters[1::2], strict=True)):
        for row, (x, y) in enumerate(zip(even, odd, strict=True)):
            x.bits(WORD, FEW).shuffled(y.bits(WORD, FEW), order).store(
                _place(builder, words, pitch, row, i * FEW)
            )


def _turning(pairs):
    """Functions that store Philox of 16 blocks for each pair.

    They store it in four rows of words, from an address on.
    """

    @intrinsic
    def consecutive(typing_context, words, pitch, block, parameter, step, selector, key0, key1):
        def generate(context, builder, signature, arguments):
            words, pitch, *numbers = arguments
            block, parameter, step, selector, *key = (
                Lanes.of(builder, x, FEW // 2) for x in numbers
            )
            firsts = [i * FEW + odd for i in range(pairs) for odd in range(2)]
            counters = [
                (block + range(first, first + FEW, 2), parameter, step, selector)
                for first in firsts
            ]
            _store(builder, words, pitch, _turn(counters, [key] * len(counters)))

        return types.void(words, pitch, block, parameter, step, selector, key0, key1), generate

    @intrinsic
    def each(typing_context, words, pitch, step, selector):
        def generate(context, builder, signature, arguments):
            words, pitch, *numbers = arguments
            same = [Lanes.of(builder, x, FEW // 2) for x in numbers]
            counters = []
            keys = []
            for first in range(0, pairs * FEW, FEW):
                places = [_place(builder, words, pitch, row, first) for row in range(4)]
                even = [Lanes.load(builder, place, LONG, FEW // 2) for place in places]
                for block, parameter, *key in (even, [x >> 32 for x in even]):
                    counters.append((block, parameter, *same))
                    keys.append(key)
            _store(builder, words, pitch, _turn(counters, keys))

        return types.void(words, pitch, step, selector), generate

    return consecutive, each


(few_consecutive, few_each) = _turning(1)
(many_consecutive, many_each) = _turning(PAIRS)


@compiled
def turn_blocks(words, blocks, block, parameter, step, selector, key0, key1):
    """Philox of consecutive blocks, into `words[:, lane]`.

    More is written, up to a multiple of `MANY`.
    """
    block = np.uint64(block)
    parameter = np.uint64(parameter)
    step = np.uint64(step)
    selector = np.uint64(selector)
    key0 = np.uint64(key0)
    key1 = np.uint64(key1)
    for lane in range(0, blocks, MANY):
        address = words.ctypes.data + lane * 4
        first = block + np.uint64(lane)
        if blocks - lane > FEW:
            many_consecutive(
                address, words.strides[0], first, parameter, step, selector, key0, key1
            )
        else:
            few_consecutive(address, words.strides[0], first, parameter, step, selector, key0, key1)


@compiled
def turn_each(words, plan, p, count, step, selector, seeds):
    """Philox of one block for each of up to `MANY` pieces, from number p on.

    Each piece has a counter and a key of its own.
    """
    for lane in range(count):
        first = plan[5, p + lane] + plan[2, p + lane]
        seed = seeds[plan[6, p + lane]]
        words[0, lane] = np.uint32(first // 128)
        words[1, lane] = np.uint32(plan[4, p + lane])
        words[2, lane] = np.uint32(seed & LOW)
        words[3, lane] = np.uint32(seed >> SHIFT)
    if count > FEW:
        many_each(words.ctypes.data, words.strides[0], np.uint64(step), np.uint64(selector))
    else:
        few_each(words.ctypes.data, words.strides[0], np.uint64(step), np.uint64(selector))
