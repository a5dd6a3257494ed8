"""The place of the weights, as the kernels are told.

A plan holds addresses and indices in the noise, a layout holds strides. Threads share out the
pieces of a plan. For example, two threads take half of the weights each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from torch import Tensor

START, STOP = 2, 3  # rows of a plan
ALIGNMENT = 4096  # weights; pieces that begin with a block need no partial words


def overlaps(t: Tensor) -> bool:
    """Whether several elements share memory, as those of an expanded tensor do.

    They cannot be written one by one.
    """
    return any(stride == 0 and size > 1 for size, stride in zip(t.shape, t.stride(), strict=True))


def plan(
    targets: list[Tensor],
    sources: list[Tensor],
    parameters: list[int],
    firsts: list[int],
    replicas: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The plan and layouts that `cpu.combine` takes.

    Args:
        targets: tensors to write; the first dimension is the replica where there are several.
        sources: tensors to read, of the same shapes.
        parameters: the index of each tensor in the noise.
        firsts: the index in the noise of the first element of each.
        replicas: number of replicas.

    Returns:
        int64 `(8, P)` and int64 `(P, 3, D)`.
    """
    columns = []
    layouts = []
    for target, source, parameter, first in zip(targets, sources, parameters, firsts, strict=True):
        strides, layout = layout_of(target, source, replicas)
        own, other = (stride * target.element_size() for stride in strides)
        plain = layout[0][1:] in ((1, 1), (0, 0)) and len(layout) == 1
        for r in range(replicas):
            addresses = [target.data_ptr() + r * own, source.data_ptr() + r * other]
            columns.append([*addresses, 0, target.numel() // replicas, parameter, first, r, plain])
            layouts.append(layout)
    deepest = max(map(len, layouts))
    padded = [[(1, 0, 0)] * (deepest - len(layout)) + layout for layout in layouts]
    return np.array(columns, np.int64).T.copy(), np.array(padded, np.int64).transpose(
        0, 2, 1
    ).copy()


def layout_of(
    target: Tensor, source: Tensor, replicas: int
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Strides of a replica in target and source, and the dimensions of one replica.

    Each dimension has its size and both strides, in elements.
    """
    own, other = (t if replicas > 1 else t[None] for t in (target, source))
    return [own.stride(0), other.stride(0)], _merged(
        own.shape[1:], own.stride()[1:], other.stride()[1:]
    )


def _merged(
    shape: tuple[int, ...], own: tuple[int, ...], other: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """Size and both strides of as few dimensions as give the same order of the elements."""
    merged: list[tuple[int, int, int]] = []
    for size, a, b in zip(shape, own, other, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == a * size and merged[-1][2] == b * size:
            merged[-1] = (merged[-1][0] * size, a, b)
        else:
            merged.append((size, a, b))
    return merged or [(1, 1, 1)]


def parts(
    plan: np.ndarray, layouts: np.ndarray | None, count: int
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Cut a plan into `count` plans of about as much work.

    A cut may fall between any two weights.
    """
    sizes = plan[STOP] - plan[START]
    share = -(-int(sizes.sum()) // (count * ALIGNMENT)) * ALIGNMENT
    ends = np.cumsum(sizes)
    found = []
    for begin in range(0, int(ends[-1]), share):
        inside = np.flatnonzero((ends > begin) & (ends - sizes < begin + share))
        own = plan[:, inside].copy()
        offset = (ends - sizes)[inside]  # of each parameter in all the weights
        own[START] = np.maximum(own[START], begin - offset)
        own[STOP] = np.minimum(own[STOP], begin + share - offset)
        found.append((own, None if layouts is None else layouts[inside].copy()))
    return found


def in_threads(work: list[Callable[[], None]]) -> None:
    """Do all work at once, the first piece in this thread.

    Come back when every thread is done, also after an exception. Threads are made each time, which
    costs little beside a million weights: none is left for a fork to lose. An exception that a
    signal's handler raises while they write is held until they have finished.
    """
    held: BaseException | None = None
    ends: list[threading.Event] = []
    for one in work[1:]:
        # Not `Thread.join`: interrupted once, it takes the thread for dead.
        end = threading.Event()
        try:
            threading.Thread(target=_do, args=(one, end)).start()
        except RuntimeError:  # the system gives no more of them
            one()
        except BaseException as error:  # raised while this thread waited for the other to begin
            held = error
            ends.append(end)
        else:
            ends.append(end)
    try:
        work[0]()
    except BaseException as error:
        held = error
    for end in ends:
        while not end.is_set():
            try:
                end.wait()
            except BaseException as error:
                held = error
    if held is not None:
        raise held


def _do(one: Callable[[], None], end: threading.Event) -> None:
    try:
        one()
    finally:
        end.set()
