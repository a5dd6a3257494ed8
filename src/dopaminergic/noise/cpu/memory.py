"""Tiles of weights of 16 bits or with strides, which are read from memory and written back.

Weights with strides are read into a tile in the order of their elements. 16-bit weights are read as
float32.
"""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.

from __future__ import annotations

import numba
from numba.extending import overload

from dopaminergic.noise.cpu.draws import make_dither
from dopaminergic.noise.cpu.halves import narrow, widen
from dopaminergic.noise.cpu.instructions import compiled, pointer, squares

# Neighbours in a row may lie far apart, for example in a transposed matrix. So many rows and
# columns are taken at a time that the pages of all columns stay known to the processor. Rows lie so
# far apart in the tile that they do not share its cache lines.
STRIP_ROWS = 64
STRIP_COLUMNS = 1024
STRIP_PITCH = 1040
FEWEST_ROWS = 16  # a tile should have at least so many
large_squares = squares(16)
small_squares = squares(8)


@compiled
def _run(layout, side, at, most):
    """The place of element `at`, and the number of elements from there on at one stride.

    The number includes the element itself, and is at most `most`.
    """
    last = layout.shape[1] - 1
    row = at // layout[0, last]
    column = at % layout[0, last]
    place = column * layout[side, last]
    for d in range(last - 1, -1, -1):
        place += row % layout[0, d] * layout[side, d]
        row //= layout[0, d]
    return place, min(layout[0, last] - column, most)


@compiled
def _rows(layout, at, most):
    """The number of whole rows of one matrix that begin with element `at`.

    They have `most` elements at most. Within a row the number is 0.
    """
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
def block_of(layout, at, left, most):
    """Rows and columns that are taken together from element `at` on, if `left` elements are left.

    Rows too long for a tile, which lie closer to each other than their elements do, are a matrix.
    All else is one row.
    """
    last = layout.shape[1] - 1
    columns = layout[0, last]
    if last == 0 or not (_near(layout, 1) or _near(layout, 2)):
        return 1, left
    if columns <= (most - 128) // FEWEST_ROWS:
        return 1, min(left, (most - 128) // columns * columns - at % columns)
    rows = _rows(layout, at, left)
    return (rows, columns) if rows >= FEWEST_ROWS else (1, min(left, columns - at % columns))


@compiled
def copy(to, of):
    """To <- of.

    It is a loop, since an assignment of numba's is five times as slow.
    """
    for i in range(to.size):
        to[i] = of[i]


@compiled
def _every(like, address, stride, count):
    return numba.carray(pointer(address), ((count - 1) * stride + 1,), like.dtype)[::stride]


@compiled
def _move(like, height, width, to, down, right, of, of_down, of_right):
    """Matrix at address `to` <- matrix at address `of`.

    Each has its own strides from row to row and within rows.
    """
    if right == of_right == 1:
        for r in range(height):
            a = to + r * down * like.itemsize
            b = of + r * of_down * like.itemsize
            copy(
                numba.carray(pointer(a), (width,), like.dtype),
                numba.carray(pointer(b), (width,), like.dtype),
            )
    elif (right == of_down == 1 or down == of_right == 1) and min(height, width) >= 8:
        if down == 1:
            height, width, down, of_right = width, height, right, of_down
        if min(height, width) >= 16:
            large_squares(like, height, width, to, down, of, of_right)
        else:
            small_squares(like, height, width, to, down, of, of_right)
    else:
        if height > width:
            height, width, down, right, of_down, of_right = (
                width,
                height,
                right,
                down,
                of_right,
                of_down,
            )
        for r in range(height):
            a = to + r * down * like.itemsize
            b = of + r * of_down * like.itemsize
            copy(_every(like, a, right, width), _every(like, b, of_right, width))


@compiled
def _exchange(tile, memory, layout, side, at, height, width, out):
    """Memory <- tile if `out`, else tile <- memory.

    A tile is a row, or rows of a matrix that lie STRIP_PITCH apart in it.
    """
    last = layout.shape[1] - 1
    done = 0
    down = layout[side, max(last - 1, 0)]
    right = layout[side, last]
    while done < width:
        place, count = _run(layout, side, at + done, width - done)
        rows = height
        pitch = STRIP_PITCH
        if height == 1 and _near(layout, side):
            rows = max(_rows(layout, at + done, width - done), 1)
            pitch = count
        there = memory.ctypes.data + place * tile.itemsize
        here = tile.ctypes.data + done * tile.itemsize
        to = here
        to_down = pitch
        to_right = 1
        of = there
        of_down = down
        of_right = right
        if out:
            to, to_down, to_right, of, of_down, of_right = (
                of,
                of_down,
                of_right,
                to,
                to_down,
                to_right,
            )
        _move(tile, rows, count, to, to_down, to_right, of, of_down, of_right)
        done += rows * count


# ---- tiles ---------------------------------------------------------------------------------------


@compiled
def memory_of(like, plan, layouts, p, side):
    """All memory that a piece's parameter reaches from its first element on."""
    extent = plan[3, p]
    if layouts is not None:
        extent = 1
        for d in range(layouts.shape[2]):
            extent += (layouts[p, 0, d] - 1) * layouts[p, 1 + side, d]
    return numba.carray(pointer(plan[side, p]), (extent,), like.dtype)


@compiled
def _words(words, memory, layout, side, at, height, width):
    """The memory of a tile itself where that is one run, else a place for its words."""
    if height == 1 and layout[side, layout.shape[1] - 1] == 1:
        place, count = _run(layout, side, at, width)
        if count == width:
            return memory[place : place + width], True
    return words, False


def open_plain(buffer, target, source, at, width, copied, save):
    """A tile to compute on <- memory without gaps; reals are computed on where they are."""
    raise NotImplementedError


@overload(open_plain)
def _open_by_type(buffer, target, source, at, width, copied, save):
    def real(buffer, target, source, at, width, copied, save):
        x = target[at : at + width]
        y = source[at : at + width]
        if copied and save:
            copy(y, x)
        elif copied:
            copy(x, y)
        return x

    def half(buffer, target, source, at, width, copied, save):
        y = source[at : at + width]
        if copied and save:
            copy(y, target[at : at + width])
        widen(buffer[:width], y)
        return buffer

    return real if buffer.dtype == target.dtype else half


def round_plain(target, at, x, noise, words, which):
    """Memory without gaps <- x, of 16 bits."""
    raise NotImplementedError


@overload(round_plain)
def _round_plain_by_type(target, at, x, noise, words, which):
    def real(target, at, x, noise, words, which):
        pass

    def half(target, at, x, noise, words, which):
        narrow(target[at : at + x.size], x, make_dither(noise, words, x.size, which))

    return real if x.dtype == target.dtype else half


def load(buffer, words, source, layout, tile):
    """A tile to compute on <- memory."""
    raise NotImplementedError


@overload(load)
def _load_by_type(buffer, words, source, layout, tile):
    def real(buffer, words, source, layout, tile):
        at, height, width = tile
        _exchange(buffer, source, layout, 2, at, height, width, False)

    def half(buffer, words, source, layout, tile):
        at, height, width = tile
        found, direct = _words(words, source, layout, 2, at, height, width)
        if not direct:
            _exchange(words, source, layout, 2, at, height, width, False)
        for row in range(0, height * STRIP_PITCH, STRIP_PITCH):
            widen(buffer[row : row + width], found[row : row + width])

    return real if buffer.dtype == source.dtype else half


def round_row(raw, target, layout, tile, row, x, noise, words, which):
    """A row of 16-bit weights <- x."""
    raise NotImplementedError


@overload(round_row)
def _round_by_type(raw, target, layout, tile, row, x, noise, words, which):
    def real(raw, target, layout, tile, row, x, noise, words, which):
        pass

    def half(raw, target, layout, tile, row, x, noise, words, which):
        at, height, width = tile
        found, _ = _words(raw, target, layout, 1, at, height, width)
        place = row * STRIP_PITCH
        narrow(found[place : place + width], x, make_dither(noise, words, x.size, which))

    return real if x.dtype == target.dtype else half


def store(buffer, words, target, layout, tile):
    """Memory <- a tile, from where it was computed or, of 16 bits, where it was rounded to."""
    raise NotImplementedError


@overload(store)
def _store_by_type(buffer, words, target, layout, tile):
    def real(buffer, words, target, layout, tile):
        at, height, width = tile
        _exchange(buffer, target, layout, 1, at, height, width, True)

    def half(buffer, words, target, layout, tile):
        at, height, width = tile
        if not _words(words, target, layout, 1, at, height, width)[1]:
            _exchange(words, target, layout, 1, at, height, width, True)

    return real if buffer.dtype == target.dtype else half
