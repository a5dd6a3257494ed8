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
compiled = numba.njit(error_model="numpy")
WORD, LONG, REAL = ir.IntType(32), ir.IntType(64), ir.FloatType()


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


# ---- vectors ---------------------------------------------------------------------------------------------------------


class Lanes:
    """A vector of numbers while LLVM's code is made, with Python's operators; one number stands for many of it."""

    def __init__(self, builder, value):
        self.builder, self.value, self.kind, self.count = builder, value, value.type.element, value.type.count

    @classmethod
    def of(cls, builder, x, count):
        """One number many times."""
        blank = ir.Constant(ir.VectorType(x.type, count), ir.Undefined)
        first = cls(builder, builder.insert_element(blank, x, ir.Constant(WORD, 0)))
        return first.shuffled(first, [0] * count)

    @classmethod
    def load(cls, builder, address, kind, count):
        """From an address of any alignment."""
        return cls(builder, builder.load(builder.inttoptr(address, ir.VectorType(kind, count).as_pointer()), align=1))

    def store(self, address):
        """To an address of any alignment."""
        self.builder.store(self.value, self.builder.inttoptr(address, self.value.type.as_pointer()), align=1)

    def like(self, x):
        """X, one number or a sequence of them, as a vector of this type."""
        if isinstance(x, Lanes):
            return x
        numbers = [x] * self.count if isinstance(x, int | float) else list(x)
        return Lanes(self.builder, ir.Constant(self.value.type, numbers))

    def _do(self, name, other):
        name = name if isinstance(self.kind, ir.IntType) else f"f{name}"
        return Lanes(self.builder, getattr(self.builder, name)(self.value, self.like(other).value))

    def __add__(self, other):
        return self._do("add", other)

    def __sub__(self, other):
        return self._do("sub", other)

    def __mul__(self, other):
        return self._do("mul", other)

    def __and__(self, other):
        return self._do("and_", other)

    def __or__(self, other):
        return self._do("or_", other)

    def __xor__(self, other):
        return self._do("xor", other)

    def __lshift__(self, other):
        return self._do("shl", other)

    def __rshift__(self, other):
        return self._do("lshr", other)

    def bits(self, kind, count=None):
        """The same bits as numbers of another kind."""
        return Lanes(self.builder, self.builder.bitcast(self.value, ir.VectorType(kind, count or self.count)))

    def real(self):
        """Integers with signs as float32."""
        return Lanes(self.builder, self.builder.sitofp(self.value, ir.VectorType(REAL, self.count)))

    def widened(self, kind):
        """Float32 as reals of a kind."""
        return (
            self
            if kind == REAL
            else Lanes(self.builder, self.builder.fpext(self.value, ir.VectorType(kind, self.count)))
        )

    def halved(self, times):
        """Integers with signs, divided by two and rounded down a number of times."""
        return self._do("ashr", times)

    def shuffled(self, other, order):
        """Elements of both vectors, by their places in one after the other."""
        order = ir.Constant(ir.VectorType(WORD, len(order)), list(order))
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, other.value, order))

    def call(self, name, *others):
        """A function of LLVM's, of each number."""
        values = [x.value for x in (self, *map(self.like, others))]
        kind = ir.FunctionType(self.value.type, [self.value.type] * len(values))
        name = f"llvm.{name}.v{self.count}{self.kind.intrinsic_name}"
        return Lanes(self.builder, self.builder.call(get_or_insert_function(self.builder.module, kind, name), values))


# ---- a word of signs at a time, which no loop over single weights becomes --------------------------------------------


def _signs(builder, word):
    """Which bits of a word are set."""
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
    """32 weights at an address <- on_grid((weights + undo * signs) * scale + coefficient * signs)."""

    def generate(context, builder, signature, arguments):
        address, word, undo, scale, coefficient, grid = arguments
        signs, grid = _signs(builder, word), Lanes.of(builder, grid, 32)
        x = Lanes.load(builder, address, coefficient.type, 32) + _signed(builder, undo, signs)
        x = x * Lanes.of(builder, scale, 32) + _signed(builder, coefficient, signs)
        ((x.call("fabs") + grid) - grid).call("copysign", x).store(address)

    return types.void(address, word, undo, scale, coefficient, grid), generate


# ---- matrices --------------------------------------------------------------------------------------------------------


def squares(size):
    """What transposes `size` x `size` elements in registers."""

    @intrinsic
    def transpose(typing_context, to, to_pitch, of, of_pitch, like):
        """From one address to another, with rows a number of bytes apart."""

        def generate(context, builder, signature, arguments):
            to, to_pitch, of, of_pitch, _ = arguments
            kind = context.get_value_type(signature.args[4].dtype)
            places = [
                [builder.add(x, builder.mul(pitch, ir.Constant(pitch.type, i))) for i in range(size)]
                for x, pitch in ((of, of_pitch), (to, to_pitch))
            ]
            rows = [Lanes.load(builder, place, kind, size) for place in places[0]]
            # As a deck of cards, by perfect shuffles (Stone 1971): each takes a bit of the column to the row.
            orders = [[i // 2 + i % 2 * size for i in range(first, first + size)] for first in (0, size)]
            for _ in range(size.bit_length() - 1):
                pairs = zip(rows[: size // 2], rows[size // 2 :], strict=True)
                rows = [x.shuffled(y, order) for x, y in pairs for order in orders]
            for x, place in zip(rows, places[1], strict=True):
                x.store(place)

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
