"""Vector instructions, and numbers as bits and addresses, which numba lacks."""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dopaminergic.noise.cpu.lanes import Lanes

F = np.float32
compiled = numba.njit(error_model="numpy")
# Part of the code that calls it, so that nothing is handed over.
inlined = numba.njit(error_model="numpy", forceinline=True)


# ---- single numbers ------------------------------------------------------------------------------


@intrinsic
def pointer(typing_context, address):
    """A number as the pointer that `numba.carray` takes."""
    signature = types.voidptr(address)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic
def as_integer(typing_context, x):
    """The bits of a float32 as an int32."""
    return types.int32(types.float32), _reinterpret


@intrinsic
def as_real(typing_context, x):
    """A float32 of the bits of an int32."""
    return types.float32(types.int32), _reinterpret


def _reinterpret(context, builder, signature, arguments):
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


@intrinsic
def copysign(typing_context, x, sign):
    """A number with the sign of another one.

    The function of math is a call, which keeps a loop from becoming vector instructions.
    """

    def generate(context, builder, signature, arguments):
        real = arguments[0].type
        function = builder.module.declare_intrinsic(
            "llvm.copysign", [real], ir.FunctionType(real, [real, real])
        )
        return builder.call(function, arguments)

    return x(x, x), generate


@compiled
def whole_vectors(offset, size, unit):
    """Where vectors of 32 begin and end among weights that start with element `offset`.

    The first vector begins with a whole unit.
    """
    first = min(-offset & (unit - 1), size)
    return first, first + (size - first) // 32 * 32


# ---- a word of signs at a time, which no loop over single weights becomes ------------------------


def _signs(builder, word):
    """Bits of a word as booleans: which are set."""
    bits = Lanes.of(builder, word, 32)
    bits &= [1 << i for i in range(32)]
    return builder.icmp_unsigned("!=", bits.value, bits.like(0).value)


def _signed(builder, coefficient, signs):
    """The coefficient where the sign is set, else its negative."""
    both = (Lanes.of(builder, x, 32).value for x in (coefficient, builder.fneg(coefficient)))
    return Lanes(builder, builder.select(signs, *both))


@intrinsic
def add_word(typing_context, address, word, coefficient):
    """32 weights at an address <- weights + coefficient * signs of one word."""

    def generate(context, builder, signature, arguments):
        address, word, coefficient = arguments
        x = Lanes.load(builder, address, coefficient.type, 32)
        (x + _signed(builder, coefficient, _signs(builder, word))).store(address)

    return types.void(address, word, coefficient), generate


@intrinsic
def step_word(typing_context, address, word, undo, scale, coefficient, grid):
    """Weights <- on_grid((weights + undo * signs) * scale + coefficient * signs).

    These are 32 weights at an address.
    """

    def generate(context, builder, signature, arguments):
        address, word, undo, scale, coefficient, grid = arguments
        signs = _signs(builder, word)
        grid = Lanes.of(builder, grid, 32)
        x = Lanes.load(builder, address, coefficient.type, 32) + _signed(builder, undo, signs)
        x = x * Lanes.of(builder, scale, 32) + _signed(builder, coefficient, signs)
        ((x.call("fabs") + grid) - grid).call("copysign", x).store(address)

    return types.void(address, word, undo, scale, coefficient, grid), generate


# ---- matrices ------------------------------------------------------------------------------------


def squares(size):
    """A function that transposes a matrix by `size` x `size` elements in registers."""

    @intrinsic
    def transpose(typing_context, to, to_pitch, of, of_pitch, like):
        """Transpose a square from one address to another, with rows a number of bytes apart."""

        def generate(context, builder, signature, arguments):
            to, to_pitch, of, of_pitch, _ = arguments
            kind = context.get_value_type(signature.args[4].dtype)
            places = [
                [
                    builder.add(x, builder.mul(pitch, ir.Constant(pitch.type, i)))
                    for i in range(size)
                ]
                for x, pitch in ((of, of_pitch), (to, to_pitch))
            ]
            rows = [Lanes.load(builder, place, kind, size) for place in places[0]]
            # Perfect shuffles, as of a deck of cards (Stone 1971): each takes a bit of the column
            # to the row.
            orders = [
                [i // 2 + i % 2 * size for i in range(first, first + size)] for first in (0, size)
            ]
            for _ in range(size.bit_length() - 1):
                pairs = zip(rows[: size // 2], rows[size // 2 :], strict=True)
                rows = [x.shuffled(y, order) for x, y in pairs for order in orders]
            for x, place in zip(rows, places[1], strict=True):
                x.store(place)

        return types.void(to, to_pitch, of, of_pitch, like), generate

    @compiled
    def squares(like, height, width, to, down, of, of_right):
        """Transpose a matrix square by square.

        The last squares may overlap those before, since elements are only moved.
        """
        bytes_per = like.itemsize
        for column in range(0, width, size):
            left = min(column, width - size)
            for row in range(0, height, size):
                top = min(row, height - size)
                a = to + (top * down + left) * bytes_per
                b = of + (left * of_right + top) * bytes_per
                transpose(a, down * bytes_per, b, of_right * bytes_per, like)

    return squares
