"""The functions that Python calls, compiled once and kept on disk."""
# numba infers the types; annotations would be ignored by it and pyright cannot follow them.

from __future__ import annotations

import functools
import importlib.resources
import logging
import zlib

import numba
import numpy as np
from numba import types

from dopaminergic.files import open_file, require_file
from dopaminergic.noise.cpu.combination import combine_pieces
from dopaminergic.noise.cpu.instructions import compiled, pointer

_MARK = b"\0whole\0"  # before the checksum of a file of machine code
_said = []  # the reasons why nothing is kept


def kept(function, nogil=True):
    """Compile `function`, and keep it on disk.

    Where there is no place for that, it is compiled anew in each process.
    """
    settings = {"nogil": nogil, "error_model": "numpy"}
    try:
        dispatcher = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # numba's directories are read-only, as in many containers
        _say_that_nothing_is_kept("finds no directory that it may write to")
        return numba.njit(**settings)(function)
    _guard(dispatcher._cache)
    return dispatcher


def _guard(cache):
    """Let a full disk or a damaged file cost nothing but the time to compile."""
    load = cache.load_overload
    save = cache.save_overload
    files = cache._cache_file
    read = files._load_data

    def load_if_it_is_whole(*arguments):
        try:
            require_file(files._index_path)  # a FIFO would keep us waiting for ever
            return load(*arguments)
        # A dozen kinds come from `pickle` and LLVM, for bytes that were not written.
        except Exception as error:
            _forget(cache, error)
            return None  # so that it is compiled, and kept again

    def save_if_there_is_room(*arguments):
        try:
            require_file(files._index_path)
            save(*arguments)
        # The disk is full, or not ours; the compiled function is there all the same.
        except OSError as error:
            _say_that_nothing_is_kept(f"cannot keep what it compiled ({error})")
        except Exception as error:  # a file that was damaged since
            _forget(cache, error)

    def end_of(name, content):
        """The end of a file: a mark and a checksum.

        The checksum differs for other contents, kernels and versions of the source.
        """
        origin = f"{files._index_name} {name} {files._source_stamp}".encode()
        return _MARK + zlib.crc32(content, zlib.crc32(origin)).to_bytes(4, "little")

    def write_with_checksum(name, data):
        content = files._dump(data)
        # `pickle` does not look at bytes that follow its end.
        with files._open_for_write(files._data_path(name)) as file:
            file.write(content + end_of(name, content))

    def read_with_checksum(name):
        with open_file(files._data_path(name)) as file:
            content = file.read()
        body = content[: max(0, len(content) - len(_MARK) - 4)]
        if content[len(body) :] != end_of(name, body):
            # Otherwise the damaged machine code would be run.
            raise ValueError(f"{files._data_path(name)} is not as it was written")
        return read(name)

    cache.load_overload = load_if_it_is_whole
    cache.save_overload = save_if_there_is_room
    files._save_data = write_with_checksum
    files._load_data = read_with_checksum


def _forget(cache, error):
    """Begin the index of a kernel anew; its kernels are compiled and written again."""
    reason = " ".join(f"{type(error).__name__} {error}".split())
    logging.getLogger(__name__).warning(
        "numba's cache in %s is damaged (%.100s); the kernel is compiled again, some seconds in "
        "this step",
        cache.cache_path,
        reason,
    )
    try:
        cache.flush()
    except OSError as problem:
        _say_that_nothing_is_kept(f"cannot mend its cache ({problem})")


def _say_that_nothing_is_kept(why):
    if not _said:
        logging.getLogger(__name__).warning(
            "numba %s: each process compiles anew, some seconds in its first step (set "
            "NUMBA_CACHE_DIR to a directory with some MiB of room)",
            why,
        )
    _said.append(why)


@compiled
def _integers(address, shape):
    return numba.carray(pointer(address), shape, np.int64)


# A kernel encloses a number that all files of `noise` have a part in. Numba takes an old
# compilation if the kernel's own file and the enclosed values are the same. Functions that the
# kernel calls in other files may have changed.


def _make_combine(sources):
    @kept
    def combine(
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
        sources  # noqa: B018
        combine_pieces(
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
        )

    return combine


def _make_one(sources):
    # Python's lock is held. On a tiny model to give it back and take it again would be a tenth of
    # the call.
    @functools.partial(kept, nogil=False)
    def one(weight, number, fixed, scale, coefficient, direction, step, rounding):
        sources  # noqa: B018
        nothing = pointer(fixed)
        known = _integers(fixed, 5)
        combine_pieces(
            numba.carray(nothing, (0,), type(weight)),
            numba.carray(nothing, (0,), type(number)),
            _integers(known[0], (8, known[1])),
            None,
            (np.uint64(known[3]),),
            (scale,),
            ((coefficient,),),
            0,
            (np.uint32(direction),),
            0.0,
            step,
            rounding,
            known[4] != 0,
            _integers(known[2], 1),
        )

    return one


def _checksum():
    folders = map(importlib.resources.files, ("dopaminergic.noise", "dopaminergic.noise.cpu"))
    files = (file for folder in folders for file in folder.iterdir() if file.name.endswith(".py"))
    sources = sorted((file.name, file.read_bytes()) for file in files)
    return zlib.crc32(repr(sources).encode())


_sources = _checksum()
combine = _make_combine(_sources)
_combine_one = _make_one(_sources)


def combine_one(memory, real, plan, seed, signs, saved):
    """`combine` of weights without gaps for one replica and one direction, from numbers.

    On a tiny model arrays cost more than the work, and so does asking for the types of arguments in
    each call. So everything that stays the same is looked at here, once.

    Returns:
        A function of the scale, the coefficient, the direction, the step and the rounding.
    """
    kinds = numba.typeof(memory).dtype, numba.typeof(real).dtype
    integer = types.int64
    number = types.float64
    kernel = _combine_one.compile((*kinds, integer, number, number, integer, integer, integer))
    fixed = np.array([plan.ctypes.data, plan.shape[1], saved.ctypes.data, seed, signs], np.int64)
    one = functools.partial(kernel, 0, 0.0, fixed.ctypes.data)
    one.memory = fixed, plan, saved  # kept as long as its addresses are
    return one
