"""Vectors for the making of LLVM's code.

They are for operations that numba does not make vectors of, out of loops over single numbers.
"""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.

from __future__ import annotations

from llvmlite import ir
from numba.core.cgutils import get_or_insert_function

WORD = ir.IntType(32)
LONG = ir.IntType(64)
REAL = ir.FloatType()


class Lanes:
    """A vector of numbers while LLVM's code is made, with Python's operators.

    A single number stands for a vector of it. For example, `x * 2.0` doubles each number.
    """

    def __init__(self, builder, value):
        self.builder = builder
        self.value = value
        self.kind = value.type.element
        self.count = value.type.count

    @classmethod
    def of(cls, builder, x, count):
        """Repeat one number."""
        blank = ir.Constant(ir.VectorType(x.type, count), ir.Undefined)
        first = cls(builder, builder.insert_element(blank, x, ir.Constant(WORD, 0)))
        return first.shuffled(first, [0] * count)

    @classmethod
    def load(cls, builder, address, kind, count):
        """Load a vector from an address of any alignment."""
        return cls(
            builder,
            builder.load(
                builder.inttoptr(address, ir.VectorType(kind, count).as_pointer()), align=1
            ),
        )

    def store(self, address):
        """Store the vector to an address of any alignment."""
        self.builder.store(
            self.value, self.builder.inttoptr(address, self.value.type.as_pointer()), align=1
        )

    def like(self, x):
        """A number, or a sequence of them, as a vector of this type."""
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
        return Lanes(
            self.builder, self.builder.bitcast(self.value, ir.VectorType(kind, count or self.count))
        )

    def real(self):
        """Integers with signs as float32."""
        return Lanes(self.builder, self.builder.sitofp(self.value, ir.VectorType(REAL, self.count)))

    def widened(self, kind):
        """Float32 as reals of a kind."""
        if kind == REAL:
            return self
        return Lanes(self.builder, self.builder.fpext(self.value, ir.VectorType(kind, self.count)))

    def halved(self, times):
        """Integers with signs, divided by two and rounded down a number of times."""
        return self._do("ashr", times)

    def shuffled(self, other, order):
        """Elements of both vectors, by their places in one after the other."""
        order = ir.Constant(ir.VectorType(WORD, len(order)), list(order))
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, other.value, order))

    def call(self, name, *others):
        """Apply a function of LLVM's to each number."""
        values = [x.value for x in (self, *map(self.like, others))]
        kind = ir.FunctionType(self.value.type, [self.value.type] * len(values))
        name = f"llvm.{name}.v{self.count}{self.kind.intrinsic_name}"
        return Lanes(
            self.builder,
            self.builder.call(get_or_insert_function(self.builder.module, kind, name), values),
        )
