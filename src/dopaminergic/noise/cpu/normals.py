"""Normals (Box and Muller 1958) made of random words, and added to a tile of weights."""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dopaminergic.noise.cpu.instructions import F, compiled, whole_vectors
from dopaminergic.noise.cpu.lanes import REAL, WORD, Lanes
from dopaminergic.noise.cpu.philox import FEW, MANY

# Blocks of a row, a multiple of `MANY`. All rows fit in the first-level cache with their weights.
BLOCKS = 480
# -2 ln f = t P(t) with t = f - 1, for f in [sqrt(1/2), sqrt(2)]: the polynomial of least largest
# relative error, 3e-8.
LOG = (
    -0.17477584,
    0.28615448,
    -0.29832712,
    0.33140627,
    -0.3992448,
    0.50003552,
    -0.6666789,
    0.99999982,
    -2.0,
)
# sin(a) / sqrt(2) = a P(a^2) and cos(a) / sqrt(2) = P(a^2), for angles a within an eighth of a
# turn: the polynomials of least largest error, 2e-8 at most. All by iterated weights (Lawson 1961).
SINE = (-1.37914262e-4, 5.89163978e-3, -0.117851017, 0.707106779)
COSINE = (-0.00096067, 0.02945455, -0.35355238, 0.70710676)
ROOT_HALF = int(np.array(math.sqrt(0.5), F).view(np.int32))
MINUS_2_LOG_2 = float(F(-2 * math.log(2.0)))
QUARTER = float(F(math.pi / 2 * 2.0**-32))
TOP_BIT = 1 << 31
ANGLE_BITS = 0xFFFFFC00


def _polynomial(xs, coefficients):
    """The values of a polynomial by Horner's rule.

    Each step is rounded once on any processor, or the bits would depend on it.
    """
    first, *rest = (float(F(c)) for c in coefficients)
    ps = [x.like(first) for x in xs]
    for c in rest:
        ps = [x.call("fma", p, c) for x, p in zip(xs, ps, strict=True)]
    return ps


def _radii(words):
    """The radii sqrt(-2 ln u), from u = 2^e f with f in [sqrt(1/2), sqrt(2))."""
    # 2^24 u is an odd number of 24 bits. After the subtraction e stands above the bits of
    # f / sqrt(1/2).
    odd = [((word >> 8) | 1).real() for word in words]
    bits = [x.bits(WORD) - (ROOT_HALF + (24 << 23)) for x in odd]
    ts = [((x & 0x7FFFFF) + ROOT_HALF).bits(REAL) - 1.0 for x in bits]
    logs = [t * p for t, p in zip(ts, _polynomial(ts, LOG), strict=True)]
    exponents = [x.halved(23).real() for x in bits]
    return [
        e.call("fma", MINUS_2_LOG_2, log).call("sqrt")
        for e, log in zip(exponents, logs, strict=True)
    ]


def _points(words):
    """Cosines and sines of angles, and the sign that both are still to be given."""
    # Two bits say in which quarter of the turn the angle lies, 22 how far it is from the quarter's
    # middle. There cos(b + a) and sin(b + a) are sums of cos(a) and sin(a) over sqrt(2). Their
    # signs tell the quarters apart.
    angles = [(((word << 2) ^ TOP_BIT) & ANGLE_BITS).real() * QUARTER for word in words]
    squares = [a * a for a in angles]
    sines = [a * p for a, p in zip(angles, _polynomial(squares, SINE), strict=True)]
    found = []
    for word, sine, cosine in zip(words, sines, _polynomial(squares, COSINE), strict=True):
        left = (word << 1) & TOP_BIT
        x = (cosine.bits(WORD) ^ left).bits(REAL) - sine
        y = cosine + (sine.bits(WORD) ^ left).bits(REAL)
        found.append((x, y, word & TOP_BIT))
    return found


@intrinsic
def _turn_to_normals(typing_context, words, pitch):
    """Turn two rows of `MANY` words into normals.

    The first row, at an address, is for radii; the second one is for angles.
    """

    def generate(context, builder, signature, arguments):
        words, pitch = arguments
        rows = [
            [builder.add(row, ir.Constant(row.type, 4 * first)) for first in range(0, MANY, FEW)]
            for row in (words, builder.add(words, pitch))
        ]
        # Several vectors side by side, since each operation waits for the last one.
        points = _points([Lanes.load(builder, place, WORD, FEW) for place in rows[1]])
        radii = _radii([Lanes.load(builder, place, WORD, FEW) for place in rows[0]])
        for radius, (x, y, sign), *places in zip(radii, points, *rows, strict=True):
            radius = (radius.bits(WORD) ^ sign).bits(REAL)
            for z, place in zip((x, y), places, strict=True):
                (radius * z).store(place)

    return types.void(words, pitch), generate


def _element_by_element(builder, row, pitch, kind):
    """Normals of 8 blocks in their order, from rows that each hold one element of every block."""
    rows = []
    for _ in range(4):
        rows.append(Lanes.load(builder, row, REAL, 8))
        row = builder.add(row, pitch)
    first = rows[0].shuffled(rows[1], range(16))
    second = rows[2].shuffled(rows[3], range(16))
    return first.shuffled(second, [i % 4 * 8 + i // 4 for i in range(32)]).widened(kind)


@intrinsic
def _add_blocks(typing_context, address, row, pitch, coefficient):
    """32 weights at an address <- weights + coefficient * normals."""

    def generate(context, builder, signature, arguments):
        address, row, pitch, coefficient = arguments
        z = _element_by_element(builder, row, pitch, coefficient.type)
        x = Lanes.load(builder, address, coefficient.type, 32)
        (x + Lanes.of(builder, coefficient, 32) * z).store(address)

    return types.void(address, row, pitch, coefficient), generate


@intrinsic
def _step_blocks(typing_context, address, row, pitch, undo, scale, coefficient):
    """32 weights at an address <- (weights + undo * normals) * scale + coefficient * normals."""

    def generate(context, builder, signature, arguments):
        address, row, pitch, *numbers = arguments
        undo, scale, coefficient = (Lanes.of(builder, x, 32) for x in numbers)
        z = _element_by_element(builder, row, pitch, undo.kind)
        x = Lanes.load(builder, address, undo.kind, 32)
        ((x + undo * z) * scale + coefficient * z).store(address)

    return types.void(address, row, pitch, undo, scale, coefficient), generate


@compiled
def make_normals(words, blocks):
    """words[e, b] <- the bits of element e of block b, and so on up to a multiple of `MANY`."""
    for row in range(0, 4, 2):
        for block in range(0, blocks, MANY):
            _turn_to_normals(
                words.ctypes.data + row * words.strides[0] + block * 4, words.strides[0]
            )


@compiled
def add_normals(x, z, offset, coefficient):
    """X <- x + coefficient * normals, from the `offset`-th normal on."""
    first, last = whole_vectors(offset, x.size, 4)
    for i in range(first, last, 32):
        place = z.ctypes.data + ((offset + i) >> 2) * z.itemsize
        _add_blocks(x.ctypes.data + i * x.itemsize, place, z.strides[0], coefficient)
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            x[i] += coefficient * x.dtype.type(z[(offset + i) & 3, (offset + i) >> 2])


@compiled
def step_normals(x, z, offset, undo, scale, coefficient):
    """X <- (x + undo * normals) * scale + coefficient * normals.

    This is all of a step along one direction.
    """
    first, last = whole_vectors(offset, x.size, 4)
    for i in range(first, last, 32):
        place = z.ctypes.data + ((offset + i) >> 2) * z.itemsize
        _step_blocks(x.ctypes.data + i * x.itemsize, place, z.strides[0], undo, scale, coefficient)
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            normal = x.dtype.type(z[(offset + i) & 3, (offset + i) >> 2])
            x[i] = (x[i] + undo * normal) * scale + coefficient * normal
