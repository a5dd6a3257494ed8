"""Weights and directions put together, in one pass over memory.

One call serves every parameter of a group, since on a tiny network the calls cost more than the
arithmetic. Weights are taken a tile at a time. A tile stays in the first-level cache with its
noise, for any number of directions.

    target <- on_grid((source + first terms) * scale + other terms)

`combine_pieces` does this for every piece of a parameter. The first terms are the first `undone`
ones. It takes

- memory: any array of the type of the weights: float32, float64, uint16 for bfloat16, int16 for
  float16;
- real: any array of the type that is computed in;
- plan: int64 `(8, P)`, a column for each piece of a parameter. Rows 0 and 1 are addresses of the
  first elements of target and source, the same where the update is in place. Rows 2 and 3 are the
  first and last + 1 element of the piece. Row 4 is the index in the noise, row 5 the index in the
  noise of the first element. Row 6 is the replica, and row 7 says whether both are without gaps;
- layouts: int64 `(P, 3, D)`: shape, strides of the target, strides of the source, in elements. None
  where all are without gaps;
- seeds: uint64 `(R,)`;
- scales: float64 `(R,)`;
- coefficients: float64 `(K, R)`; a term is coefficients[k] z_k;
- undone: number of terms that come before the scale;
- directions: uint32 `(K,)`;
- grid: sigma of the grid; 0 for none;
- step: step number;
- rounding: which random numbers round 16-bit weights;
- signs: Rademacher if true, else Gaussian;
- saved: int64 `(1,)`, the step whose weights the sources hold; for weights without gaps only. In
  the first call of another step the targets hold the weights. They are saved to the sources within
  the call, so that no signal falls in between.
"""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.

from __future__ import annotations

import numba
import numpy as np

from dopaminergic.noise.cpu.draws import (
    NORMAL_STREAM,
    SIGN_STREAM,
    add_signs,
    step_signs,
)
from dopaminergic.noise.cpu.instructions import F, compiled, copysign, inlined, pointer
from dopaminergic.noise.cpu.memory import (
    STRIP_COLUMNS,
    STRIP_PITCH,
    STRIP_ROWS,
    block_of,
    copy,
    load,
    memory_of,
    open_plain,
    round_plain,
    round_row,
    store,
)
from dopaminergic.noise.cpu.normals import BLOCKS, add_normals, make_normals, step_normals
from dopaminergic.noise.cpu.philox import LOW, MANY, SHIFT, turn_blocks, turn_each

SIGN_TILE, NORMAL_TILE = 6144, 4 * BLOCKS  # weights at a time, in whole blocks


@compiled
def _aligned(count):
    """Room for numbers of 32 bits, from the beginning of a cache line on.

    Otherwise vectors would lie across two lines.
    """
    room = np.empty(count + 16, np.uint32)
    first = -room.ctypes.data % 64 // 4
    return room[first : first + count]


@compiled
def _scale(x, scale):
    if scale != x.dtype.type(1):
        for i in range(x.size):
            x[i] *= scale


@compiled
def _onto_grid(x, grid):
    if grid > 0:
        for i in range(x.size):
            x[i] = copysign((abs(x[i]) + grid) - grid, x[i])


@compiled
def _all_tiny(plan):
    """Whether each piece is plain and has all its signs in one block.

    An example is a fleet of small networks.
    """
    for p in range(plan.shape[1]):
        first = plan[5, p] + plan[2, p]
        if plan[7, p] == 0 or first % 128 + plan[3, p] - plan[2, p] > 128:
            return False
    return True


@compiled
def _set_tiny(x, y, words, lane, offset, scale, coefficient):
    """X <- y * scale + coefficient * signs of one block, from its `offset`-th sign on."""
    done = 0
    while done < x.size:
        place = offset + done
        word = words[place >> 5, lane] >> np.uint32(place & 31)
        count = min(x.size - done, 32 - (place & 31))
        to = x[done : done + count]
        of = y[done : done + count]
        for i in range(count):
            to[i] = of[i] * scale + (
                coefficient if (word >> np.uint32(i)) & np.uint32(1) else -coefficient
            )
        done += count


@compiled
def _combine_tiny(
    memory, real, plan, seeds, scales, coefficients, undone, directions, grid, step, save
):
    """`combine_pieces` where a block has more signs than a piece has weights.

    Blocks of many pieces are drawn at a time.
    """
    exact = real.dtype.type
    rows = len(directions)
    turn = np.uint32(step)
    words = np.empty((4, MANY), np.uint32)
    for begin in range(0, plan.shape[1], MANY):
        count = min(plan.shape[1] - begin, MANY)
        for k in range(rows + 1):
            if k == rows and rows > undone and grid == 0:
                break
            if k < rows and (k == 0 or directions[k] != directions[k - 1]):
                turn_each(
                    words, plan, begin, count, turn, np.uint32(directions[k] | SIGN_STREAM), seeds
                )
            for p in range(begin, begin + count):
                start = plan[2, p]
                size = plan[3, p] - plan[2, p]
                r = plan[6, p]
                x = numba.carray(
                    pointer(plan[0, p] + start * memory.itemsize), (size,), memory.dtype
                )
                source = numba.carray(
                    pointer(plan[1, p] + start * memory.itemsize), (size,), memory.dtype
                )
                if k == 0 and save and plan[0, p] != plan[1, p]:
                    copy(source, x)
                y = source if k == 0 else x
                scale = exact(scales[r] if k == undone else 1.0)
                if k < rows:
                    _set_tiny(
                        x,
                        y,
                        words,
                        p - begin,
                        (plan[5, p] + start) % 128,
                        scale,
                        exact(coefficients[k][r]),
                    )
                else:
                    copy(x, y)
                    _scale(x, scale)
                    _onto_grid(x, exact(grid))


@inlined
def _change_row(x, words, where, terms):
    """X <- on_grid((x + first terms) * scale + other terms), for a row of a tile.

    Args:
        x: the row.
        words: room for random words.
        where: what the noise of the row depends on beside the direction, and its kind.
        terms: as above, for replica `r`; and whether a displacement is taken back and the change is
            made along one direction, which takes one draw.
    """
    place, parameter, turn, key, signs = where
    directions, coefficients, r, undone, together, scale, grid = terms
    exact = x.dtype.type
    rows = len(directions)
    normals = words.view(F)
    per_block, stream = (128, SIGN_STREAM) if signs else (4, NORMAL_STREAM)
    offset = place % per_block
    block = np.uint32(place // per_block)
    blocks = -(-(offset + x.size) // per_block)
    for k in range(rows + 1):
        if k == undone and not together:
            _scale(x, scale)
        if k == rows:
            break
        if k == 0 or directions[k] != directions[k - 1]:
            selector = np.uint32(directions[k] | stream)
            turn_blocks(words, blocks, block, parameter, turn, selector, key[0], key[1])
            if not signs:
                make_normals(words, blocks)
        coefficient = exact(coefficients[k][r])
        if together:
            if k == 1:
                undo = exact(coefficients[0][r])
                if signs:
                    step_signs(x, words, offset, undo, scale, coefficient, grid)
                else:
                    step_normals(x, normals, offset, undo, scale, coefficient)
        elif signs:
            add_signs(x, words, offset, coefficient)
        else:
            add_normals(x, normals, offset, coefficient)
    if not (together and signs):
        _onto_grid(x, grid)


@inlined
def _make_room(memory, real, plan, layouts, most):
    """Room for the largest tile.

    Returns:
        Reals, and for 16-bit weights the bits that are read, and noise.
    """
    largest = most
    if layouts is not None:
        for p in range(plan.shape[1]):
            if block_of(layouts[p], 0, plan[3, p], most)[0] > 1:
                largest = max(most, STRIP_ROWS * STRIP_PITCH)
    # One piece of memory, since asking for it takes a while.
    halves = memory.itemsize == 2
    room = np.empty(2 * largest + most if halves else largest, real.dtype)
    rest = room[largest:]
    half = rest.size // 2
    return room[:largest], rest[:half].view(memory.dtype), rest[half:].view(np.uint16)


@inlined
def _combine_piece(plan, p, target, source, layouts, room, words, copying, noise, terms):
    """Combine piece `p`, a tile at a time.

    Args:
        plan: of all pieces.
        p: number of the piece.
        target: all memory that it reaches from its first element on.
        source: likewise.
        layouts: of all pieces.
        room: for a tile.
        words: room for random words.
        copying: whether target and source differ, and whether the target is saved to the source.
        noise: what the noise of all rows depends on beside the direction, and its kind.
        terms: as for a row.
    """
    buffer, raw, dither = room
    rounding, turn, key, signs = noise
    directions, _, _, _, _, scale, grid = terms
    copied, save = copying
    at = plan[2, p]
    stop = plan[3, p]
    parameter = np.uint32(plan[4, p])
    first = plan[5, p]
    plain = plan[7, p] != 0
    changed = len(directions) > 0 or scale != 1 or grid > 0
    per_block, most = (128, SIGN_TILE) if signs else (4, NORMAL_TILE)
    while at < stop:
        height = 1
        width = stop - at
        # Where layouts are None, branches that ask for `is not None` are not compiled.
        if layouts is not None and not plain:
            height, width = block_of(layouts[p], at, stop - at, most)
        if height == 1:
            width = min(width, most - (first + at) % per_block)
        strip = width if height == 1 else STRIP_COLUMNS
        left = 0
        while left < width:
            for top in range(0, height, STRIP_ROWS):
                deep = min(height - top, STRIP_ROWS)
                wide = min(width - left, strip)
                tile = (at + top * width + left, deep, wide)
                opened = buffer
                if plain:
                    opened = open_plain(buffer, target, source, at, wide, copied, save)
                if layouts is not None and not plain:
                    load(buffer, raw, source, layouts[p], tile)
                for row in range(deep):
                    x = opened[row * STRIP_PITCH : row * STRIP_PITCH + wide]
                    place = first + tile[0] + row * width
                    _change_row(x, words, (place, parameter, turn, key, signs), terms)
                    which = changed, place, parameter, turn, rounding, key
                    if plain:
                        round_plain(target, at, x, dither, words, which)
                    if layouts is not None and not plain:
                        round_row(raw, target, layouts[p], tile, row, x, dither, words, which)
                if layouts is not None and not plain:
                    store(buffer, raw, target, layouts[p], tile)
            left += strip
        at += height * width


@compiled
def combine_pieces(
    memory,
    real,
    plan,
    layouts,
    seeds,
    scales,
    coefficients,
    undone,
    directions,
    grid,
    step,
    rounding,
    signs,
    saved,
):
    """All pieces, from arrays or from tuples of numbers, which need no memory."""
    exact = real.dtype.type
    save = saved[0] != step
    if signs and memory.itemsize != 2 and plan.shape[1] > 1 and _all_tiny(plan):
        _combine_tiny(
            memory, real, plan, seeds, scales, coefficients, undone, directions, grid, step, save
        )
        saved[0] = step
        return
    words = _aligned(4 * BLOCKS).reshape((4, BLOCKS))
    room = _make_room(memory, real, plan, layouts, SIGN_TILE if signs else NORMAL_TILE)
    together = len(directions) == 2 and undone == 1 and directions[0] == directions[1]
    for p in range(plan.shape[1]):
        r = plan[6, p]
        key = (np.uint32(seeds[r] & LOW), np.uint32(seeds[r] >> SHIFT))
        _combine_piece(
            plan,
            p,
            memory_of(memory, plan, layouts, p, 0),
            memory_of(memory, plan, layouts, p, 1),
            layouts,
            room,
            words,
            (plan[0, p] != plan[1, p], save),
            (rounding, np.uint32(step), key, signs),
            (directions, coefficients, r, undone, together, exact(scales[r]), exact(grid)),
        )
    saved[0] = step
