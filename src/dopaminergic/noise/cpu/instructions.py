"""What numba lacks: vector instructions, and numbers as bits and addresses."""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.
# pyright: basic, reportPrivateImportUsage=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

F = np.float32
BLOCKS = 512  # of normals, from one row to the next
compiled = numba.njit(error_model="numpy")
# By numba: where LLVM puts these together itself, loops around them become fewer vector instructions, or none.
inlined = numba.njit(error_model="numpy", inline="always")


# ---- single numbers --------------------------------------------------------------------------------------------------


@intrinsic
def pointer(typing_context, address):
    """What `numba.carray` takes, from a number."""
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
    """The one of math is a call, which keeps a loop from becoming vector instructions."""

    def generate(context, builder, signature, arguments):
        real = arguments[0].type
        function = builder.module.declare_intrinsic("llvm.copysign", [real], ir.FunctionType(real, [real, real]))
        return builder.call(function, arguments)

    return x(x, x), generate


@intrinsic
def multiply_add(typing_context, x, y, z):
    """X * y + z, rounded once; on any processor, or the bits would depend on it."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return x(x, x, x), generate


# ---- vectors ---------------------------------------------------------------------------------------------------------


class Vector:
    """Instructions on 32 reals: a word of signs at a time, which no loop over single weights becomes."""

    def __init__(self, builder, real):
        self.builder, self.real, self.type = builder, real, ir.VectorType(real, 32)

    def splat(self, x):
        """One number 32 times."""
        blank = ir.Constant(ir.VectorType(x.type, 32), ir.Undefined)
        first = self.builder.insert_element(blank, x, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, blank, ir.Constant(ir.VectorType(ir.IntType(32), 32), [0] * 32))

    def set_bits(self, word):
        """Which bits of a word are set."""
        bits = ir.Constant(ir.VectorType(ir.IntType(32), 32), [1 << i for i in range(32)])
        nothing = ir.Constant(bits.type, [0] * 32)
        return self.builder.icmp_unsigned("!=", self.builder.and_(self.splat(word), bits), nothing)

    def signed(self, coefficient, signs):
        """The coefficient where the sign is set, else its negative."""
        return self.builder.select(signs, self.splat(coefficient), self.splat(self.builder.fneg(coefficient)))

    def place(self, address):
        """A pointer to 32 reals."""
        return self.builder.inttoptr(address, self.type.as_pointer())

    def load(self, place):
        """From an address of any alignment."""
        return self.builder.load(place, align=1)

    def store(self, x, place):
        """To an address of any alignment."""
        self.builder.store(x, place, align=1)

    def call(self, name, *arguments):
        """A function of LLVM's, of each number."""
        function = ir.FunctionType(self.type, [self.type] * len(arguments))
        name = f"{name}.v32{self.real.intrinsic_name}"
        return self.builder.call(get_or_insert_function(self.builder.module, function, name), arguments)


def joined(builder, a, b, order):
    """Elements of two vectors, by their places in both, one after the other."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order)))


@intrinsic
def add_word(typing_context, address, word, coefficient):
    """32 weights at an address <- weights + coefficient * signs of one word."""

    def generate(context, builder, signature, arguments):
        address, word, coefficient = arguments
        vector = Vector(builder, coefficient.type)
        place = vector.place(address)
        vector.store(builder.fadd(vector.load(place), vector.signed(coefficient, vector.set_bits(word))), place)

    return types.void(address, word, coefficient), generate


@intrinsic
def step_word(typing_context, address, word, undo, scale, coefficient, grid):
    """32 weights at an address <- on_grid((weights + undo * signs) * scale + coefficient * signs)."""

    def generate(context, builder, signature, arguments):
        address, word, undo, scale, coefficient, grid = arguments
        vector = Vector(builder, coefficient.type)
        place, signs = vector.place(address), vector.set_bits(word)
        y = builder.fadd(vector.load(place), vector.signed(undo, signs))
        y = builder.fadd(builder.fmul(y, vector.splat(scale)), vector.signed(coefficient, signs))
        grid = vector.splat(grid)
        rounded = builder.fsub(builder.fadd(vector.call("llvm.fabs", y), grid), grid)
        vector.store(vector.call("llvm.copysign", rounded, y), place)

    return types.void(address, word, undo, scale, coefficient, grid), generate


@intrinsic
def add_blocks(typing_context, address, rows, coefficient):
    """32 weights at an address <- weights + coefficient * normals of 8 blocks, whose element e is in row e."""

    def generate(context, builder, signature, arguments):
        address, rows, coefficient = arguments
        vector, lanes = Vector(builder, coefficient.type), ir.VectorType(ir.FloatType(), 8)
        bytes_per_row = BLOCKS * 4
        starts = [builder.add(rows, ir.Constant(rows.type, e * bytes_per_row)) for e in range(4)]
        loaded = [builder.load(builder.inttoptr(start, lanes.as_pointer()), align=4) for start in starts]
        first, second = (joined(builder, *loaded[e : e + 2], range(16)) for e in (0, 2))
        z = joined(builder, first, second, [i % 4 * 8 + i // 4 for i in range(32)])
        place = vector.place(address)
        if coefficient.type != ir.FloatType():
            z = builder.fpext(z, vector.type)
        vector.store(builder.fadd(vector.load(place), builder.fmul(vector.splat(coefficient), z)), place)

    return types.void(address, rows, coefficient), generate


def squares(size):
    """What transposes `size` x `size` elements in registers."""

    @intrinsic
    def transpose(typing_context, to, to_pitch, of, of_pitch, like):
        """From one address to another, with rows a number of bytes apart."""

        def generate(context, builder, signature, arguments):
            to, to_pitch, of, of_pitch, _ = arguments
            row = ir.VectorType(context.get_value_type(signature.args[4].dtype), size)
            places = [
                [
                    builder.inttoptr(builder.add(x, builder.mul(pitch, ir.Constant(pitch.type, i))), row.as_pointer())
                    for i in range(size)
                ]
                for x, pitch in ((of, of_pitch), (to, to_pitch))
            ]
            rows = [builder.load(place, align=1) for place in places[0]]
            # As a deck of cards, by perfect shuffles (Stone 1971): each takes a bit of the column to the row.
            shuffled = [[i // 2 + i % 2 * size for i in range(first, first + size)] for first in (0, size)]
            for _ in range(size.bit_length() - 1):
                pairs = zip(rows[: size // 2], rows[size // 2 :], strict=True)
                rows = [joined(builder, *pair, order) for pair in pairs for order in shuffled]
            for x, place in zip(rows, places[1], strict=True):
                builder.store(x, place, align=1)

        return types.void(to, to_pitch, of, of_pitch, like), generate

    @compiled
    def squares(like, height, width, to, down, of, of_right):
        """The last of them may overlap those before: elements are only moved."""
        bytes_per = like.itemsize
        for column in range(0, width, size):
            left = min(column, width - size)
            for row in range(0, height, size):
                top = min(row, height - size)
                a, b = to + (top * down + left) * bytes_per, of + (left * of_right + top) * bytes_per
                transpose(a, down * bytes_per, b, of_right * bytes_per, like)

    return squares
