"""The same numbers as `reference`, fused with the update of the weights and compiled by numba: one pass over memory.

One call serves every parameter of a group, since on a tiny network the calls cost more than the arithmetic. Weights are
taken a tile at a time, which stays in the first-level cache with its noise however many directions are added to it.
Signs are added by vector instructions of our own; every other loop over a tile is plain enough for LLVM to make them.

numba knows neither bfloat16 nor float16 weights: their bits come as uint16 and int16, are widened to a tile of float32
and rounded back. Weights with strides are read into such a tile too, in the order of their elements.

It is one file because numba keeps compiled code until the file of the outermost function changes: a kernel in another
file could be changed, and the old one would run.
"""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.
# pyright: basic, reportPrivateImportUsage=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import functools
import math

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, overload

from dopaminergic.noise.reference import GAUSSIAN, RADEMACHER, ROUNDING

SIGN_TILE, NORMAL_TILE = 8192, 2048  # weights at a time, whole blocks
# Where neighbours in a row lie far apart, as in a transposed matrix: so many rows and columns at a time that the pages
# of all columns stay known to the processor, and rows so far apart in the tile that they do not share its cache lines.
STRIP_ROWS, STRIP_COLUMNS, STRIP_PITCH = 64, 1024, 1040
FEWEST_ROWS = 16  # that a tile should have
TINY_LANES = 64  # pieces of less than a block at a time
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
SIGN_STREAM, NORMAL_STREAM = np.uint32(RADEMACHER << 28), np.uint32(GAUSSIAN << 28)
ROUNDING_STREAM = np.uint32(ROUNDING << 28)
F = np.float32
UNIT = F(2.0**-16)
ROOT_HALF = np.int32(np.array(math.sqrt(0.5), F).view(np.int32))
# -2 ln f = t P(t) with t = f - 1, for f in [sqrt(1/2), sqrt(2)]: the polynomial of least largest relative error, 3e-8.
LOG = (-0.17477584, 0.28615448, -0.29832712, 0.33140627, -0.3992448, 0.50003552, -0.6666789, 0.99999982, -2.0)
LOG, MINUS_2_LOG_2 = tuple(F(c) for c in LOG), F(-2 * math.log(2.0))
# sin(a) / sqrt(2) = a P(a^2) and cos(a) / sqrt(2) = P(a^2), for angles a within an eighth of a turn: the polynomials of
# least largest error, 2e-8 at most. All by iterated weights (Lawson 1961).
SINE = (F(0.707106779), F(-0.117851017), F(5.89163978e-3), F(-1.37914262e-4))
COSINE = (F(0.70710676), F(-0.35355238), F(0.02945455), F(-0.00096067))
QUARTER, TOP_BIT, ANGLE_BITS = F(math.pi / 2 * 2.0**-32), np.uint32(1 << 31), np.uint32(0xFFFFFC00)
INFINITE = np.int32(0x7F800000)
compiled = numba.njit(error_model="numpy")
# By numba: where LLVM puts these together itself, loops around them become fewer vector instructions, or none.
inlined = numba.njit(error_model="numpy", inline="always")


# ---- what numba lacks ------------------------------------------------------------------------------------------------


@intrinsic
def _address(typing_context, address):
    signature = types.voidptr(address)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic
def _bits(typing_context, x):
    return types.int32(types.float32), _reinterpret


@intrinsic
def _float(typing_context, x):
    return types.float32(types.int32), _reinterpret


def _reinterpret(context, builder, signature, arguments):
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


@intrinsic
def _copysign(typing_context, x, sign):
    """The one of math is a call, which keeps a loop from becoming vector instructions."""

    def generate(context, builder, signature, arguments):
        real = arguments[0].type
        function = builder.module.declare_intrinsic("llvm.copysign", [real], ir.FunctionType(real, [real, real]))
        return builder.call(function, arguments)

    return x(x, x), generate


@intrinsic
def _multiply_add(typing_context, x, y, z):
    """X * y + z, rounded once; on any processor, or the bits would depend on it."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return x(x, x, x), generate


# ---- noise -----------------------------------------------------------------------------------------------------------


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
def _turn(words, blocks, block, parameter, step, selector, key0, key1):
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


@intrinsic
def _add_word(typing_context, address, word, coefficient):
    """32 weights at an address <- weights + coefficient * signs of one word."""

    def generate(context, builder, signature, arguments):
        address, word, coefficient = arguments
        vector = _Vector(builder, coefficient.type)
        place = vector.place(address)
        vector.store(builder.fadd(vector.load(place), vector.signed(coefficient, vector.set_bits(word))), place)

    return types.void(address, word, coefficient), generate


@intrinsic
def _step_word(typing_context, address, word, undo, scale, coefficient, grid):
    """32 weights at an address <- on_grid((weights + undo * signs) * scale + coefficient * signs)."""

    def generate(context, builder, signature, arguments):
        address, word, undo, scale, coefficient, grid = arguments
        vector = _Vector(builder, coefficient.type)
        place, signs = vector.place(address), vector.set_bits(word)
        y = builder.fadd(vector.load(place), vector.signed(undo, signs))
        y = builder.fadd(builder.fmul(y, vector.splat(scale)), vector.signed(coefficient, signs))
        grid = vector.splat(grid)
        rounded = builder.fsub(builder.fadd(vector.call("llvm.fabs", y), grid), grid)
        vector.store(vector.call("llvm.copysign", rounded, y), place)

    return types.void(address, word, undo, scale, coefficient, grid), generate


@intrinsic
def _add_blocks(typing_context, address, rows, coefficient):
    """32 weights at an address <- weights + coefficient * normals of 8 blocks, whose element e is in row e."""

    def generate(context, builder, signature, arguments):
        address, rows, coefficient = arguments
        vector, lanes = _Vector(builder, coefficient.type), ir.VectorType(ir.FloatType(), 8)
        bytes_per_row = NORMAL_TILE // 4 * 4
        starts = [builder.add(rows, ir.Constant(rows.type, e * bytes_per_row)) for e in range(4)]
        loaded = [builder.load(builder.inttoptr(start, lanes.as_pointer()), align=4) for start in starts]
        first, second = (_joined(builder, *loaded[e : e + 2], range(16)) for e in (0, 2))
        z = _joined(builder, first, second, [i % 4 * 8 + i // 4 for i in range(32)])
        place = vector.place(address)
        if coefficient.type != ir.FloatType():
            z = builder.fpext(z, vector.type)
        vector.store(builder.fadd(vector.load(place), builder.fmul(vector.splat(coefficient), z)), place)

    return types.void(address, rows, coefficient), generate


def _joined(builder, a, b, order):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order)))


class _Vector:
    """Instructions on 32 reals: a word of signs at a time, which no loop over single weights becomes."""

    def __init__(self, builder, real):
        self.builder, self.real, self.type = builder, real, ir.VectorType(real, 32)

    def splat(self, x):
        blank = ir.Constant(ir.VectorType(x.type, 32), ir.Undefined)
        first = self.builder.insert_element(blank, x, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, blank, ir.Constant(ir.VectorType(ir.IntType(32), 32), [0] * 32))

    def set_bits(self, word):
        bits = ir.Constant(ir.VectorType(ir.IntType(32), 32), [1 << i for i in range(32)])
        nothing = ir.Constant(bits.type, [0] * 32)
        return self.builder.icmp_unsigned("!=", self.builder.and_(self.splat(word), bits), nothing)

    def signed(self, coefficient, signs):
        return self.builder.select(signs, self.splat(coefficient), self.splat(self.builder.fneg(coefficient)))

    def place(self, address):
        return self.builder.inttoptr(address, self.type.as_pointer())

    def load(self, place):
        return self.builder.load(place, align=1)

    def store(self, x, place):
        self.builder.store(x, place, align=1)

    def call(self, name, *arguments):
        function = ir.FunctionType(self.type, [self.type] * len(arguments))
        name = f"{name}.v32{self.real.intrinsic_name}"
        return self.builder.call(get_or_insert_function(self.builder.module, function, name), arguments)


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
def _add_signs(x, words, offset, coefficient):
    """X <- x + coefficient * signs, from the `offset`-th sign of the words on."""
    first, last = _whole_words(offset, x.size)
    for i in range(first, last, 32):
        _add_word(x.ctypes.data + i * x.itemsize, _word(words, offset + i), coefficient)
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            x[i] += _sign(words, offset + i, coefficient)


@compiled
def _step_signs(x, words, offset, undo, scale, coefficient, grid):
    """X <- on_grid((x + undo * signs) * scale + coefficient * signs): all of a step along one direction."""
    first, last = _whole_words(offset, x.size)
    for i in range(first, last, 32):
        _step_word(x.ctypes.data + i * x.itemsize, _word(words, offset + i), undo, scale, coefficient, grid)
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            y = (x[i] + _sign(words, offset + i, undo)) * scale + _sign(words, offset + i, coefficient)
            x[i] = _copysign((abs(y) + grid) - grid, y)


@compiled
def _normals(z, words, blocks):
    """z[e, b] <- element e of block b: normals (Box and Muller 1958) from words."""
    for first in range(0, 4, 2):
        x, y = z[first, :blocks], z[first + 1, :blocks]
        for b in range(blocks):
            x[b] = _radius(words[first, b])
        for b in range(blocks):
            x[b], y[b] = _point(x[b], words[first + 1, b])


@compiled
def _add_normals(x, z, offset, coefficient):
    """X <- x + coefficient * normals, from the `offset`-th normal on."""
    first = min(-offset & 3, x.size)
    last = first + (x.size - first) // 32 * 32
    for i in range(first, last, 32):
        block = (offset + i) >> 2
        _add_blocks(x.ctypes.data + i * x.itemsize, z.ctypes.data + block * z.itemsize, coefficient)
    for edge in (range(first), range(last, x.size)):
        for i in edge:
            x[i] += coefficient * x.dtype.type(z[(offset + i) & 3, (offset + i) >> 2])


@compiled
def _interleave(out, rows, blocks):
    """Element e of block b <- rows[e, b]."""
    # One dimension and rows of their own, or the loop does not become vector instructions.
    a, b, c, d = rows[0, :blocks], rows[1, :blocks], rows[2, :blocks], rows[3, :blocks]
    for i in range(a.size):
        out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3] = a[i], b[i], c[i], d[i]


@inlined
def _radius(word):
    """sqrt(-2 ln u), from u = 2^e f with f in [sqrt(1/2), sqrt(2))."""
    # 2^24 u, an odd number of 24 bits.
    bits = _bits(F(np.int32((word >> np.uint32(8)) | np.uint32(1))))
    e = np.int32(np.int32(bits - ROOT_HALF) >> np.int32(23))
    t = _float(np.int32(bits - np.int32(e << np.int32(23)))) - F(1)
    p = LOG[0]
    for c in LOG[1:]:
        p = _multiply_add(t, p, c)
    e = np.int32(e - np.int32(24))
    return math.sqrt(_multiply_add(F(e), MINUS_2_LOG_2, t * p))


@inlined
def _point(radius, word):
    """Radius * cos(angle), radius * sin(angle)."""
    s0, s1, s2, s3 = SINE
    c0, c1, c2, c3 = COSINE
    # Two bits say in which quarter of the turn the angle lies, 22 how far it is from the quarter's middle; there
    # cos(b + a) and sin(b + a) are sums of cos(a) and sin(a) over sqrt(2), whose signs tell the quarters apart.
    a = F(np.int32(np.uint32((word << np.uint32(2)) ^ TOP_BIT) & ANGLE_BITS)) * QUARTER
    q = a * a
    sine = _bits(a * _multiply_add(q, _multiply_add(q, _multiply_add(q, s3, s2), s1), s0))
    cosine = _bits(_multiply_add(q, _multiply_add(q, _multiply_add(q, c3, c2), c1), c0))
    below, left = np.int32(word & TOP_BIT), np.int32((word ^ (word << np.uint32(1))) & TOP_BIT)
    x = radius * (_float(np.int32(cosine ^ left)) - _float(np.int32(sine ^ below)))
    return x, radius * (_float(np.int32(cosine ^ below)) + _float(np.int32(sine ^ left)))


# ---- 16-bit weights and strides --------------------------------------------------------------------------------------


def _widen(x, words):
    """X <- the numbers whose bits are in memory."""
    raise NotImplementedError


def _narrow(words, x, noise):
    """Memory <- x, rounded stochastically where it has 16 bits: as `noise._round_stochastically` does."""
    raise NotImplementedError


@overload(_widen)
def _widen_by_type(x, words):
    def plain(x, words):
        for i in range(x.size):
            x[i] = words[i]

    def bfloat16(x, words):
        for i in range(x.size):
            x[i] = _float(np.int32(np.int32(words[i]) << np.int32(16)))

    def float16(x, words):
        for i in range(x.size):
            # The exponent's offset is that of float32 after a product, which the smallest numbers go through too.
            h = np.int32(words[i]) & np.int32(0x7FFF)
            bits = np.int32(h << np.int32(13))
            value = _float(bits) * F(2.0**112)
            value = _float(np.int32(bits | INFINITE)) if h >= np.int32(0x7C00) else value
            x[i] = _copysign(value, _float(np.int32(np.int32(words[i]) << np.int32(16))))

    return {types.uint16: bfloat16, types.int16: float16}.get(words.dtype, plain)


@overload(_narrow)
def _narrow_by_type(words, x, noise):
    def plain(words, x, noise):
        for i in range(x.size):
            words[i] = x[i]

    def bfloat16(words, x, noise):
        for i in range(x.size):
            bits = _bits(x[i])
            up = np.uint32(np.uint32(bits) + np.uint32(noise[i]))
            finite = np.int32(bits & INFINITE) != INFINITE
            other = np.uint32(0x7FC00000) if x[i] != x[i] else np.uint32(bits)
            words[i] = np.uint16((up if finite else other) >> np.uint32(16))

    def float16(words, x, noise):
        for i in range(x.size):
            bits = _bits(x[i])
            up = np.int32(np.int32(bits + np.int32(np.int32(noise[i]) >> np.int32(3))) & np.int32(0x7FFFE000))
            # Below 2^-14 the neighbours are 2^-24 apart, however small the number is.
            exact = x[i] * F(2.0**24)
            steps = np.floor(exact)
            carries = exact - steps >= F(1) - (F(np.int32(noise[i])) + F(0.5)) * UNIT
            steps = steps + F(1) if carries else steps
            small = abs(x[i]) < F(2.0**-14)
            size = np.int32((up - np.int32(112 << 23)) >> np.int32(13))
            size = np.int32(0x7C00) if up >= np.int32(143 << 23) else size
            size = np.int32(abs(steps)) if small else size
            size = np.int32(0x7E00) if x[i] != x[i] else size
            sign = _bits(steps) if small else bits
            words[i] = np.int16(size | (np.int32(sign >> np.int32(16)) & np.int32(0x8000)))

    return {types.uint16: bfloat16, types.int16: float16}.get(words.dtype, plain)


@compiled
def _run(layout, side, at, most):
    """Where element `at` is, and how many elements follow it (itself included) at one stride; at most `most`."""
    last = layout.shape[1] - 1
    row, column = at // layout[0, last], at % layout[0, last]
    place = column * layout[side, last]
    for d in range(last - 1, -1, -1):
        place += row % layout[0, d] * layout[side, d]
        row //= layout[0, d]
    return place, min(layout[0, last] - column, most)


@compiled
def _rows(layout, at, most):
    """How many whole rows of one matrix begin with element `at` and have `most` elements at most; 0 within a row."""
    last = layout.shape[1] - 1
    columns = layout[0, last]
    if last == 0 or most < columns or at % columns != 0:
        return 0
    return min(layout[0, last - 1] - at // columns % layout[0, last - 1], most // columns)


@compiled
def _near(layout, side):
    """Whether rows lie closer to each other than their elements do."""
    last = layout.shape[1] - 1
    return last > 0 and layout[side, last - 1] < layout[side, last]


@compiled
def _block(layout, at, left, most):
    """How many rows of how many elements are taken together from element `at` on, before which `left` are left.

    Rows too long for a tile, which lie closer to each other than their elements do, are a matrix; all else is one row.
    """
    last = layout.shape[1] - 1
    columns = layout[0, last]
    if last == 0 or not (_near(layout, 1) or _near(layout, 2)):
        return 1, left
    if columns <= (most - 128) // FEWEST_ROWS:
        return 1, min(left, (most - 128) // columns * columns - at % columns)
    rows = _rows(layout, at, left)
    return (rows, columns) if rows >= FEWEST_ROWS else (1, min(left, columns - at % columns))


def _square(size):
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
                rows = [_joined(builder, *pair, order) for pair in pairs for order in shuffled]
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


_large_squares, _small_squares = _square(16), _square(8)


@compiled
def _copy(to, of):
    """To <- of, a loop, since an assignment of numba's is five times as slow."""
    for i in range(to.size):
        to[i] = of[i]


@compiled
def _every(like, address, stride, count):
    return numba.carray(_address(address), ((count - 1) * stride + 1,), like.dtype)[::stride]


@compiled
def _move(like, height, width, to, down, right, of, of_down, of_right):
    """Matrix at address `to` <- matrix at address `of`, each with its own strides from row to row and within rows."""
    if right == of_right == 1:
        for r in range(height):
            a, b = to + r * down * like.itemsize, of + r * of_down * like.itemsize
            _copy(numba.carray(_address(a), (width,), like.dtype), numba.carray(_address(b), (width,), like.dtype))
    elif (right == of_down == 1 or down == of_right == 1) and min(height, width) >= 8:
        if down == 1:
            height, width, down, of_right = width, height, right, of_down
        if min(height, width) >= 16:
            _large_squares(like, height, width, to, down, of, of_right)
        else:
            _small_squares(like, height, width, to, down, of, of_right)
    else:
        for r in range(height):
            a, b = to + r * down * like.itemsize, of + r * of_down * like.itemsize
            _copy(_every(like, a, right, width), _every(like, b, of_right, width))


@compiled
def _exchange(tile, pitch, memory, layout, side, at, height, width, out):
    """Memory <- tile if `out`, else tile <- memory: a row, or rows of a matrix which are `pitch` apart in the tile."""
    last, done = layout.shape[1] - 1, 0
    down, right = layout[side, max(last - 1, 0)], layout[side, last]
    while done < width:
        place, count = _run(layout, side, at + done, width - done)
        rows = height
        if height == 1 and down < right:
            rows, pitch = max(_rows(layout, at + done, width - done), 1), count
        there, here = memory.ctypes.data + place * tile.itemsize, tile.ctypes.data + done * tile.itemsize
        to, to_down, to_right, of, of_down, of_right = here, pitch, 1, there, down, right
        if out:
            to, to_down, to_right, of, of_down, of_right = of, of_down, of_right, to, to_down, to_right
        _move(tile, rows, count, to, to_down, to_right, of, of_down, of_right)
        done += rows * count


@compiled
def _memory(like, plan, layouts, p, side):
    """All that a piece's parameter reaches from its first element on."""
    extent = plan[3, p]
    if layouts is not None:
        extent = 1
        for d in range(layouts.shape[2]):
            extent += (layouts[p, 0, d] - 1) * layouts[p, 1 + side, d]
    return numba.carray(_address(plan[side, p]), (extent,), like.dtype)


@compiled
def _words(words, memory, layout, side, at, height, width):
    """The memory of a tile itself where that is one run, else the place for what is read from it or written to it."""
    if height == 1 and layout[side, layout.shape[1] - 1] == 1:
        place, count = _run(layout, side, at, width)
        if count == width:
            return memory[place : place + width], True
    return words, False


def _own(buffer, target, at, width):
    """The memory of plain weights; no 16-bit weights are plain."""
    raise NotImplementedError


@overload(_own)
def _own_by_type(buffer, target, at, width):
    def real(buffer, target, at, width):
        return target[at : at + width]

    def half(buffer, target, at, width):
        return buffer

    return real if buffer.dtype == target.dtype else half


def _load(buffer, words, source, layout, tile):
    """A tile to compute on <- memory."""
    raise NotImplementedError


@overload(_load)
def _load_by_type(buffer, words, source, layout, tile):
    def real(buffer, words, source, layout, tile):
        at, height, width, pitch = tile
        _exchange(buffer, pitch, source, layout, 2, at, height, width, False)

    def half(buffer, words, source, layout, tile):
        at, height, width, pitch = tile
        found, direct = _words(words, source, layout, 2, at, height, width)
        if not direct:
            _exchange(words, pitch, source, layout, 2, at, height, width, False)
        for row in range(0, height * pitch, pitch):
            _widen(buffer[row : row + width], found[row : row + width])

    return real if buffer.dtype == source.dtype else half


def _round(words, target, layout, tile, row, x, noise):
    """A row of words <- x, of 16 bits."""
    raise NotImplementedError


@overload(_round)
def _round_by_type(words, target, layout, tile, row, x, noise):
    def real(words, target, layout, tile, row, x, noise):
        pass

    def half(words, target, layout, tile, row, x, noise):
        at, height, width, pitch = tile
        found, _ = _words(words, target, layout, 1, at, height, width)
        _narrow(found[row * pitch : row * pitch + width], x, noise)

    return real if x.dtype == target.dtype else half


def _store(buffer, words, target, layout, tile):
    """Memory <- a tile, from where it was computed or, of 16 bits, where it was rounded to."""
    raise NotImplementedError


@overload(_store)
def _store_by_type(buffer, words, target, layout, tile):
    def real(buffer, words, target, layout, tile):
        at, height, width, pitch = tile
        _exchange(buffer, pitch, target, layout, 1, at, height, width, True)

    def half(buffer, words, target, layout, tile):
        at, height, width, pitch = tile
        if not _words(words, target, layout, 1, at, height, width)[1]:
            _exchange(words, pitch, target, layout, 1, at, height, width, True)

    return real if buffer.dtype == target.dtype else half


# ---- the combination -------------------------------------------------------------------------------------------------


@compiled
def _scale(x, scale):
    if scale != x.dtype.type(1):
        for i in range(x.size):
            x[i] *= scale


@compiled
def _onto_grid(x, grid):
    if grid > 0:
        for i in range(x.size):
            x[i] = _copysign((abs(x[i]) + grid) - grid, x[i])


@compiled
def _dither(noise, words, needed, place, parameter, turn, rounding, key):
    """The random numbers that round the tile whose first element is number `place`; none where nothing was changed."""
    if not needed:
        noise[:] = 0
        return noise
    first, selector = np.uint32(place // 8), np.uint32(rounding | ROUNDING_STREAM)
    whole = noise.view(np.uint32)  # the lower half of a word comes first in memory
    for block in range(0, noise.size // 8, NORMAL_TILE // 4):
        blocks = min(noise.size // 8 - block, NORMAL_TILE // 4)
        _turn(words, blocks, np.uint32(first + np.uint32(block)), parameter, turn, selector, key[0], key[1])
        _interleave(whole[4 * block : 4 * (block + blocks)], words, blocks)
    return noise[place % 8 :]


@compiled
def _all_tiny(plan):
    """Whether each piece is plain and has all its signs in one block, as in a fleet of small networks."""
    for p in range(plan.shape[1]):
        first = plan[5, p] + plan[2, p]
        if plan[7, p] == 0 or first % 128 + plan[3, p] - plan[2, p] > 128:
            return False
    return True


@compiled
def _turn_each(words, plan, p, count, step, selector, seeds):
    """One block for each of `count` pieces from number p on: `_turn`, but each lane has its own key and counter."""
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


@compiled
def _set_tiny(x, y, words, lane, offset, scale, coefficient):
    """X <- y * scale + coefficient * signs of one block, from its `offset`-th sign on."""
    done = 0
    while done < x.size:
        place = offset + done
        word, count = words[place >> 5, lane] >> np.uint32(place & 31), min(x.size - done, 32 - (place & 31))
        to, of = x[done : done + count], y[done : done + count]
        for i in range(count):
            to[i] = of[i] * scale + (coefficient if (word >> np.uint32(i)) & np.uint32(1) else -coefficient)
        done += count


@compiled
def _combine_tiny(memory, real, plan, seeds, scales, coefficients, undone, directions, grid, step, save):
    """`_combine` where a block has more signs than a piece has weights: blocks of many pieces are made at a time."""
    exact, rows, turn = real.dtype.type, len(directions), np.uint32(step)
    words = np.empty((4, TINY_LANES), np.uint32)
    for begin in range(0, plan.shape[1], TINY_LANES):
        count = min(plan.shape[1] - begin, TINY_LANES)
        for k in range(rows + 1):
            if k == rows and rows > undone and grid == 0:
                break
            if k < rows and (k == 0 or directions[k] != directions[k - 1]):
                _turn_each(words, plan, begin, count, turn, np.uint32(directions[k] | SIGN_STREAM), seeds)
            for p in range(begin, begin + count):
                start, size, r = plan[2, p], plan[3, p] - plan[2, p], plan[6, p]
                x = numba.carray(_address(plan[0, p] + start * memory.itemsize), (size,), memory.dtype)
                source = numba.carray(_address(plan[1, p] + start * memory.itemsize), (size,), memory.dtype)
                if k == 0 and save and plan[0, p] != plan[1, p]:
                    _copy(source, x)
                y = source if k == 0 else x
                scale = exact(scales[r] if k == undone else 1.0)
                if k < rows:
                    _set_tiny(x, y, words, p - begin, (plan[5, p] + start) % 128, scale, exact(coefficients[k][r]))
                else:
                    _copy(x, y)
                    _scale(x, scale)
                    _onto_grid(x, exact(grid))


@compiled
def _combine(
    memory, real, plan, layouts, seeds, scales, coefficients, undone, directions, grid, step, rounding, signs, saved
):
    """`combine`, from arrays or from tuples of numbers, which need no memory."""
    # Where layouts are None, what is asked for by `is not None` is not compiled.
    exact, rows, turn = real.dtype.type, len(directions), np.uint32(step)
    save, halves = saved[0] != step, memory.itemsize == 2
    if signs and plan.shape[1] > 1 and _all_tiny(plan):
        _combine_tiny(memory, real, plan, seeds, scales, coefficients, undone, directions, grid, step, save)
        saved[0] = step
        return
    per_block, most, stream = (128, SIGN_TILE, SIGN_STREAM) if signs else (4, NORMAL_TILE, NORMAL_STREAM)
    words, normals = np.empty((4, NORMAL_TILE // 4), np.uint32), np.empty((4, 0 if signs else NORMAL_TILE // 4), F)
    largest = most
    if layouts is not None:
        for p in range(plan.shape[1]):
            if _block(layouts[p], 0, plan[3, p], most)[0] > 1:
                largest = max(most, STRIP_ROWS * STRIP_PITCH)
    # One piece of memory, since asking for it takes a while: reals, and of 16-bit weights what is read, and noise.
    room = np.empty(2 * largest + most if halves else largest, real.dtype)
    buffer, rest = room[:largest], room[largest:]
    raw, noise = rest[: rest.size // 2].view(memory.dtype), rest[rest.size // 2 :].view(np.uint16)
    together = signs and rows == 2 and undone == 1 and directions[0] == directions[1] and grid > 0
    for p in range(plan.shape[1]):
        start, stop, parameter, first, r = plan[2, p], plan[3, p], np.uint32(plan[4, p]), plan[5, p], plan[6, p]
        plain, copied = plan[7, p] != 0, plan[0, p] != plan[1, p]
        target, source = _memory(memory, plan, layouts, p, 0), _memory(memory, plan, layouts, p, 1)
        key, scale = (np.uint32(seeds[r] & LOW), np.uint32(seeds[r] >> SHIFT)), exact(scales[r])
        changed = rows > 0 or scale != exact(1) or grid > 0
        at = start
        while at < stop:
            height, width = 1, stop - at
            if layouts is not None and not plain:
                height, width = _block(layouts[p], at, stop - at, most)
            if height == 1:
                width = min(width, most - (first + at) % per_block)
            strip, left = width if height == 1 else STRIP_COLUMNS, 0
            while left < width:
                for top in range(0, height, STRIP_ROWS):
                    deep, wide = min(height - top, STRIP_ROWS), min(width - left, strip)
                    tile, opened = (at + top * width + left, deep, wide, STRIP_PITCH), buffer
                    if plain:
                        opened = _own(buffer, target, at, wide)
                        if copied and save:
                            _copy(source[at : at + wide], opened)
                        elif copied:
                            _copy(opened, source[at : at + wide])
                    if layouts is not None and not plain:
                        _load(buffer, raw, source, layouts[p], tile)
                    for row in range(deep):
                        x = opened[row * STRIP_PITCH : row * STRIP_PITCH + wide]
                        place = first + tile[0] + row * width
                        offset, block = place % per_block, np.uint32(place // per_block)
                        blocks = -(-(offset + wide) // per_block)
                        for k in range(rows + 1):
                            if k == undone and not together:
                                _scale(x, scale)
                            if k == rows:
                                break
                            if k == 0 or directions[k] != directions[k - 1]:
                                selector = np.uint32(directions[k] | stream)
                                _turn(words, blocks, block, parameter, turn, selector, key[0], key[1])
                                if not signs:
                                    _normals(normals, words, blocks)
                            coefficient = exact(coefficients[k][r])
                            if together:
                                if k == 1:
                                    undo = exact(coefficients[0][r])
                                    _step_signs(x, words, offset, undo, scale, coefficient, exact(grid))
                            elif signs:
                                _add_signs(x, words, offset, coefficient)
                            else:
                                _add_normals(x, normals, offset, coefficient)
                        if not together:
                            _onto_grid(x, exact(grid))
                        if layouts is not None and halves:
                            dither = noise[: (place % 8 + wide + 7) // 8 * 8]
                            dither = _dither(dither, words, changed, place, parameter, turn, rounding, key)
                            _round(raw, target, layouts[p], tile, row, x, dither)
                    if layouts is not None and not plain:
                        _store(buffer, raw, target, layouts[p], tile)
                left += strip
            at += height * width
    saved[0] = step


@numba.njit(nogil=True, cache=True, error_model="numpy")
def combine(
    memory, real, plan, layouts, seeds, scales, coefficients, undone, directions, grid, step, rounding, signs, saved
):
    """Target <- on_grid((source + the first `undone` terms) * scale + the other terms), for every piece.

    Args:
        memory: any array of the type of the weights: float32, float64, uint16 for bfloat16, int16 for float16.
        real: any array of the type that is computed in.
        plan: int64 `(8, P)`, a column for each piece of a parameter: addresses of the first elements of target and
            source (the same where the update is in place), first and last + 1 element of the piece; index in the noise,
            index in the noise of the first element; replica; whether both are reals without gaps.
        layouts: int64 `(P, 3, D)`: shape, strides of the target, strides of the source, in elements. None where all
            are reals without gaps.
        seeds: uint64 `(R,)`.
        scales: float64 `(R,)`.
        coefficients: float64 `(K, R)`; a term is coefficients[k] z_k.
        undone: how many terms come before the scale.
        directions: uint32 `(K,)`.
        grid: 0 for none.
        step: step number.
        rounding: which random numbers round 16-bit weights.
        signs: Rademacher if true, else Gaussian.
        saved: int64 `(1,)`, the step whose weights the sources hold. In the first call of another step the targets hold
            them, and are saved to the sources: within the call, so that no signal falls in between. (Only where both
            are reals without gaps.)
    """
    _combine(
        memory, real, plan, layouts, seeds, scales, coefficients, undone, directions, grid, step, rounding, signs, saved
    )


@compiled
def _integers(address, shape):
    return numba.carray(_address(address), shape, np.int64)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _combine_one(zero, fixed, scale, coefficient, direction, step):
    memory, known = np.full(0, zero), _integers(fixed, 5)
    plan, saved = _integers(known[0], (8, known[1])), _integers(known[2], 1)
    seeds, directions = (np.uint64(known[3]),), (np.uint32(direction),)
    scales, rows, signs = (scale,), ((coefficient,),), known[4] != 0
    _combine(memory, memory, plan, None, seeds, scales, rows, 0, directions, 0.0, step, 0, signs, saved)


def combine_one(memory, plan, seed, signs, saved):
    """`combine` of plain reals for one replica and one direction, from numbers.

    On a tiny model arrays cost more than the work, and so does asking for the types of arguments in each call; so all
    that stays the same is looked at here, once.

    Returns:
        A function of the scale, the coefficient, the direction and the step.
    """
    number, real = types.int64, types.float64
    kernel = _combine_one.compile((numba.typeof(memory).dtype, number, real, real, number, number))
    fixed = np.array([plan.ctypes.data, plan.shape[1], saved.ctypes.data, seed, signs], np.int64)
    one = functools.partial(kernel, 0.0, fixed.ctypes.data)
    one.memory = fixed, plan, saved  # kept as long as its addresses are
    return one
