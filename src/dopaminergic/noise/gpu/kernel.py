"""The kernel: a program takes one tile of one parameter of one replica.

It reads the weights once, draws each direction as often as it is needed, and writes the weights
once. `x + c z` is two operations wherever the product is not exact. The launch forbids the compiler
to fuse them (`enable_fp_fusion=False`). A fused product is not rounded, and the bits would not be
the reference's.
"""
# Triton compiles code that looks like Python. Its types are not Python's, and it is not installed
# everywhere.

from __future__ import annotations

import math

import triton
import triton.language as tl

from dopaminergic.noise.reference import GAUSSIAN, GOLDEN, RADEMACHER, ROUNDING

SIGN_STREAM = tl.constexpr(RADEMACHER << 28)
NORMAL_STREAM = tl.constexpr(GAUSSIAN << 28)
ROUNDING_STREAM = tl.constexpr(ROUNDING << 28)
STRIDE = tl.constexpr(GOLDEN)
UNIT = tl.constexpr(2.0**-23)
TURN = tl.constexpr(2.0**-24 * 2 * math.pi)
# Fields of a row of the table: target, source, size, first, parameter, number of its first tile.
# Where the parameters have gaps, the strides of a replica in target and source follow, and size and
# both strides of each dimension, the last first.
FIELDS = tl.constexpr(6)
STRIDES = tl.constexpr(3)
# The places of the numbers of a call.
STEP, ROUND, UNDONE, ROWS, GRID, HEADER = map(tl.constexpr, range(6))


@triton.jit
def _words(seed, block, blocks: tl.constexpr, parameter, step, selector):
    """Philox4x32-10 of consecutive blocks, in the order of their words: uint32 `(4 blocks,)`."""
    numbers = block.to(tl.uint32) + tl.arange(0, blocks).to(tl.uint32)
    same = tl.zeros_like(numbers)
    a, b, c, d = tl.philox(
        seed,
        numbers,
        same + parameter.to(tl.uint32),
        same + step.to(tl.uint32),
        same + selector.to(tl.uint32),
    )
    return a, b, c, d


@triton.jit
def _signs(seed, start, parameter, step, direction, tile: tl.constexpr):
    """The signs of a tile: +1 where the bit is set, else -1.

    Element e is bit e mod 32 of word e div 32.
    """
    a, b, c, d = _words(seed, start // 128, tile // 128, parameter, step, direction | SIGN_STREAM)
    words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    bits = (words[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]) & 1
    return tl.reshape(bits, (tile,)).to(tl.float32) * 2.0 - 1.0


@triton.jit
def _normals(seed, start, parameter, step, direction, tile: tl.constexpr):
    """Normals of a tile by Box and Muller (1958).

    Words 0 and 1 of a block give elements 0 and 1, words 2 and 3 give 2 and 3.
    """
    a, b, c, d = _words(seed, start // 4, tile // 4, parameter, step, direction | NORMAL_STREAM)
    first_cosine, first_sine = _pair(a, b)
    second_cosine, second_sine = _pair(c, d)
    return tl.interleave(
        tl.interleave(first_cosine, second_cosine), tl.interleave(first_sine, second_sine)
    )


@triton.jit
def _pair(radius_word, angle_word):
    uniform = ((radius_word >> 9).to(tl.float32) + 0.5) * UNIT
    angle = (angle_word >> 8).to(tl.float32) * TURN
    radius = tl.sqrt_rn(-2.0 * tl.log(uniform))
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _end_on_grid(x, grid):
    """The number copysign((|x| + grid) - grid, x), by its bits: Triton has no copysign."""
    if x.dtype == tl.float64:
        integer: tl.constexpr = tl.int64
        rest: tl.constexpr = 0x7FFFFFFFFFFFFFFF
    else:
        integer: tl.constexpr = tl.int32
        rest: tl.constexpr = 0x7FFFFFFF
    bits = x.to(integer, bitcast=True)
    size = (bits & rest).to(x.dtype, bitcast=True)
    rounded = ((size + grid) - grid).to(integer, bitcast=True)
    return ((rounded & rest) | (bits & ~rest)).to(x.dtype, bitcast=True)


@triton.jit
def _round_stochastically(x, noise, dtype: tl.constexpr):
    """Round float32 to a 16-bit neighbour, as the reference does it; infinities and NaN stay."""
    bits = x.to(tl.uint32, bitcast=True)
    half: tl.constexpr = dtype == tl.float16
    dropped: tl.constexpr = 13 if half else 16
    kept: tl.constexpr = 0xFFFFE000 if half else 0xFFFF0000
    rounded = ((bits + (noise >> (16 - dropped))) & kept).to(tl.float32, bitcast=True)
    if half:
        # Below 2^-14 the neighbours are 2^-24 apart, however small the number is.
        tiny = tl.abs(x) < 6.103515625e-05
        units = tl.where(tiny, x, 0.0) * 16777216.0
        # Towards zero; a GPU's floor would flush the smallest numbers.
        whole = units.to(tl.int32).to(tl.float32)
        whole -= (units < whole).to(tl.float32)
        carries = units - whole >= 1.0 - (noise.to(tl.float32) + 0.5) * 1.52587890625e-05
        rounded = tl.where(tiny, (whole + carries.to(tl.float32)) * 5.9604644775390625e-08, rounded)
    return tl.where((bits & 0x7F800000) != 0x7F800000, rounded, x)


@triton.jit
def _pointers(address, offsets, dtype: tl.constexpr, aligned: tl.constexpr):
    start = address.to(tl.pointer_type(dtype))
    if aligned:  # a thread can then move 16 bytes at once
        start = tl.multiple_of(start, 16)
    return start + offsets


@triton.jit
def _read(pointers, inside, real: tl.constexpr, masked: tl.constexpr):
    x = tl.load(pointers, mask=inside, other=0) if masked else tl.load(pointers)
    if x.dtype == tl.uint16:
        return (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(real)


@triton.jit
def _write(pointers, inside, x, dtype: tl.constexpr, masked: tl.constexpr):
    y = (x.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16) if dtype == tl.uint16 else x.to(dtype)
    if masked:
        tl.store(pointers, y, mask=inside)
    else:
        tl.store(pointers, y)


@triton.jit
def _places(row, elements, replica, dims: tl.constexpr, narrow: tl.constexpr):
    """Where elements of a parameter with gaps lie in target and source.

    Places count from the first elements on.
    """
    # To divide by 64 bits takes three times as long.
    rest = elements.to(tl.uint32) if narrow else elements.to(tl.uint64)
    target = replica * tl.load(row + FIELDS)
    source = replica * tl.load(row + FIELDS + 1)
    targets = target + tl.zeros_like(elements)
    sources = source + tl.zeros_like(elements)
    for d in tl.static_range(dims):
        place = row + FIELDS + 2 + STRIDES * d
        size = tl.load(place).to(rest.dtype)
        digit = (rest % size).to(tl.int64)
        rest = rest // size
        targets += digit * tl.load(place + 1)
        sources += digit * tl.load(place + 2)
    return targets, sources


@triton.jit
def _work(
    target, source, targets, sources, inside, start, parameter, seed, numbers, replica, replicas,
    dtype: tl.constexpr, signs: tl.constexpr, aligned: tl.constexpr, tile: tl.constexpr,
    masked: tl.constexpr,
):  # fmt: skip
    """Work on one tile.

    `start` is the index of its first element in the whole parameter, a multiple of 128.
    """
    reals = numbers.to(tl.pointer_type(tl.float64))
    real: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    step = tl.load(numbers + STEP)
    undone = tl.load(numbers + UNDONE)
    rows = tl.load(numbers + ROWS)
    x = _read(_pointers(source, sources, dtype, aligned), inside, real, masked)
    scale = tl.load(reals + HEADER + replica).to(real)
    if undone == 0:
        x = x * scale
    drawn = tl.full((), -1, tl.int64)
    z = tl.zeros_like(x)
    for k in range(0, rows):
        row = HEADER + replicas + k * (replicas + 1)
        direction = tl.load(numbers + row)
        if direction != drawn:  # a step often undoes and adds along one direction
            if signs:
                z = _signs(seed, start, parameter, step, direction, tile).to(real)
            else:
                z = _normals(seed, start, parameter, step, direction, tile).to(real)
        drawn = direction
        x = x + tl.load(reals + row + 1 + replica).to(real) * z
        if k + 1 == undone:
            x = x * scale
    grid = tl.load(reals + GRID).to(real)
    if grid > 0:
        x = _end_on_grid(x, grid)
    if dtype.primitive_bitwidth == 16:
        rounding = tl.load(numbers + ROUND)
        a, b, c, d = _words(
            seed, start // 8, tile // 8, parameter, step * 0, rounding | ROUNDING_STREAM
        )
        words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
        gone = (step * STRIDE).to(tl.uint32)
        x = _round_stochastically(
            x, (tl.interleave(words & 0xFFFF, words >> 16) + gone) & 0xFFFF, dtype
        )
    _write(_pointers(target, targets, dtype, aligned), inside, x, dtype, masked)


@triton.jit
def combine(
    table, owners, seeds, numbers, replicas,
    dtype: tl.constexpr, signs: tl.constexpr, aligned: tl.constexpr, tile: tl.constexpr,
    dims: tl.constexpr, narrow: tl.constexpr,
):  # fmt: skip
    """Work on all tiles.

    Programs are numbered by tile, and within a tile by replica. `owners` gives the parameter of
    each tile.
    """
    program = tl.program_id(0)
    number = program // replicas
    replica = program % replicas
    row = table + tl.load(owners + number) * (FIELDS + (2 + STRIDES * dims if dims > 0 else 0))
    target = tl.load(row)
    source = tl.load(row + 1)
    size = tl.load(row + 2)
    first = tl.load(row + 3)
    parameter = tl.load(row + 4)
    tiles_before = tl.load(row + 5)
    start = (first // 128) * 128 + (number - tiles_before) * tile
    local = start - first  # negative in the first tile of a piece that begins within a block
    shift = replica.to(tl.int64) * size
    if aligned:
        local = tl.multiple_of(local, 8)
        shift = tl.multiple_of(shift, 8)
    lanes = tl.arange(0, tile)
    inside = (local + lanes >= 0) & (local + lanes < size)
    if dims > 0:
        elements = tl.where(inside, local + lanes, 0)
        targets, sources = _places(row, elements, replica.to(tl.int64), dims, narrow)
    else:
        targets = shift + local + lanes
        sources = targets
    seed = tl.load(seeds + replica)
    if (local >= 0) & (local + tile <= size):
        _work(
            target, source, targets, sources, inside, start, parameter, seed, numbers,
            replica, replicas,
            dtype, signs, aligned, tile, False,
        )  # fmt: skip
    else:
        _work(
            target, source, targets, sources, inside, start, parameter, seed, numbers,
            replica, replicas,
            dtype, signs, aligned, tile, True,
        )  # fmt: skip
