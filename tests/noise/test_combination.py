"""Combinations of every kind of memory: the kernels against the reference, in any pieces and any
number of threads.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dopaminergic.noise import (
    UPDATE,
    Combination,
    Term,
    backends,
    combination,
    perturbation,
    pieces,
    reference,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
kinds = pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def values(*shape: int, dtype: torch.dtype) -> Tensor:
    """From the smallest halves to large ones."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(shape, generator=generator)
        * 2.0 ** torch.randint(-24, 4, shape, generator=generator)
    ).to(dtype)


def contiguous(dtype: torch.dtype) -> Tensor:
    return values(3, 2000, dtype=dtype)


def transposed(dtype: torch.dtype) -> Tensor:
    return values(130, 77, dtype=dtype).t().contiguous().t()


def channels_last(dtype: torch.dtype) -> Tensor:
    return values(4, 3, 5, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)


def many_channels(dtype: torch.dtype) -> Tensor:
    """More than is read at a time, which then ends within a row."""
    return values(9, 70, 11, 11, dtype=dtype).contiguous(memory_format=torch.channels_last)


def long_rows(dtype: torch.dtype) -> Tensor:
    """Transposed, more rows and columns than are read at a time, and no multiple of what is moved
    at a time.
    """
    return values(1050, 68, dtype=dtype).t()


def short_rows(dtype: torch.dtype) -> Tensor:
    """Transposed batches of matrices with fewer rows than are worth it, for a tile to end in."""
    return values(3, 600, 11, dtype=dtype).transpose(1, 2)


def few_columns(dtype: torch.dtype) -> Tensor:
    """Transposed, too few for squares."""
    return values(3, 2900, dtype=dtype).t()


def spaced_long_rows(dtype: torch.dtype) -> Tensor:
    """Transposed, and no two elements are neighbours in memory."""
    return values(530, 40, dtype=dtype)[:, ::2].t()


def spaced(dtype: torch.dtype) -> Tensor:
    """Every second row and every third column of something larger."""
    return values(120, 210, dtype=dtype)[1::2, ::3]


def tiny(dtype: torch.dtype) -> Tensor:
    """As a fleet, more replicas of less than a block than are taken at a time."""
    return values(150, 37, dtype=dtype)


def whole_blocks(dtype: torch.dtype) -> Tensor:
    return values(70, 128, dtype=dtype)


LAYOUTS = [contiguous, transposed, channels_last, many_channels, spaced, tiny, whole_blocks]
LAYOUTS += [long_rows, short_rows, few_columns, spaced_long_rows]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
# terms, undo, scale, grid
CHANGES: list[tuple[list[Term], list[Term], float, float]] = [
    ([(0, [1e-3])], [], 1.0, 0.0),
    ([(0, [1e-3])], [(0, [-2e-3])], 0.9, 2.0**-9),
    ([(0, [1e-3]), (1, [2e-3])], [(1, [-0.25])], 0.9, 2.0**-9),
    ([], [(1, [-0.25])], 0.5, 0.0),
    ([], [], 1.0, 0.0),
]


def combined(
    target: Tensor, kind: str, change: Any, *, first: int = 0, seeds: int = 1, copied: bool = False
) -> Tensor:
    terms, undo, scale, grid = change
    copies = [torch.empty_like(target)] if copied else None
    combine = Combination(
        [target], [3], np.arange(1, 1 + seeds, dtype=np.uint64), kind, copies, 0, [first]
    )
    assert (combine.fast is None) == (backends.fast_kernels() is None)
    combine(terms, [scale], 5, rounding=2, undo=undo, grids=[grid])
    return target


@kinds
@dtypes
@layouts
def test_kernels_do_what_the_reference_does(
    layout: Any, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    cases = list(itertools.product(CHANGES, [0, 5, 129], [1, len(layout(dtype))], [False, True]))
    fast = [
        combined(layout(dtype), kind, c, first=f, seeds=s, copied=copied)
        for c, f, s, copied in cases
    ]
    monkeypatch.setattr(backends, "fast_kernels", lambda: None)
    slow = [
        combined(layout(dtype), kind, c, first=f, seeds=s, copied=copied)
        for c, f, s, copied in cases
    ]
    for a, b in zip(fast, slow, strict=True):
        if kind == "rademacher":
            assert torch.equal(a, b)
        else:  # weights may round to the other neighbour
            apart = max(1e-6, float(torch.finfo(dtype).eps) * float(b.abs().max()))
            assert float((a.double() - b.double()).abs().max()) <= apart


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_step_along_one_direction_has_the_bits_of_its_two_parts(
    dtype: torch.dtype, kind: str
) -> None:
    """What is taken back and added again goes over a tile once."""
    for first in (0, 5, 131):
        whole = combined(
            contiguous(dtype), kind, ([(3, [0.01])], [(3, [-0.2])], 0.9, 0.0), first=first
        )
        parts = combined(contiguous(dtype), kind, ([(3, [-0.2])], [], 1.0, 0.0), first=first)
        assert torch.equal(whole, combined(parts, kind, ([(3, [0.01])], [], 0.9, 0.0), first=first))


@pytest.mark.parametrize("fast", [True, False])
@kinds
@dtypes
def test_a_shard_gets_the_noise_of_its_place(
    dtype: torch.dtype, kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(backends, "fast_kernels", lambda: None)
    whole = combined(contiguous(dtype).flatten(), kind, CHANGES[2])
    parts = contiguous(dtype).flatten().split([1, 333, 4096, 6000 - 4430])
    firsts = np.cumsum([0, *map(len, parts)])
    made = [
        combined(p.clone(), kind, CHANGES[2], first=int(f))
        for p, f in zip(parts, firsts[:-1], strict=True)
    ]
    assert torch.equal(torch.cat(made), whole)


# ---- threads -------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@kinds
@dtypes
@layouts
def test_any_number_of_threads_gives_the_same_bits(
    layout: Any, dtype: torch.dtype, kind: str, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(combination, "PIECE", 300)
    monkeypatch.setattr(pieces, "ALIGNMENT", 100)
    started, found = [], []
    start = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda self: (started.append(self), start(self))[1]
    )
    for count in (1, 2, 5):
        threads(count)
        started.clear()
        targets = [layout(dtype), contiguous(dtype), values(7, dtype=dtype)]
        combine = Combination(targets, [0, 1, 2], np.array([4], np.uint64), kind)
        combine(*CHANGES[2][:1], [0.9], 1, undo=CHANGES[2][1], grids=[2.0**-9])
        assert len(started) == count - 1
        found.append(torch.cat([t.flatten() for t in targets]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_interruption_waits_for_the_threads() -> None:
    """A handler that raises while threads write is heard when they are done, and not before."""
    ends: list[float] = []

    def write(seconds: float) -> None:
        time.sleep(seconds)
        ends.append(time.perf_counter())

    def alarm(*_: Any) -> None:
        raise TimeoutError("from the handler")

    previous = signal.signal(signal.SIGALRM, alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeoutError, match="from the handler"):
            pieces.in_threads([lambda: None, lambda: write(0.5), lambda: write(0.0)])
        assert len(ends) == 2
        assert time.perf_counter() >= max(ends)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


# ---- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_copies_are_made_once_in_a_step_and_say_of_which(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(backends, "fast_kernels", lambda: None)
    target, copy = torch.ones(5), torch.zeros(5)
    combine = Combination([target], [0], np.array([1], np.uint64), "rademacher", [copy])
    assert not combine.holds_copies_of(3)
    combine([(0, [0.5])], None, 3, perturbation(0))
    assert combine.holds_copies_of(3)
    assert not combine.holds_copies_of(4)
    assert torch.equal(copy, torch.ones(5))
    combine((), None, 3)
    assert torch.equal(target, torch.ones(5))
    combine.forget_copies()
    assert not combine.holds_copies_of(3)
    target.fill_(2.0)
    combine([(0, [0.5])], None, 3, perturbation(0))
    assert torch.equal(copy, torch.full((5,), 2.0))


@pytest.mark.parametrize("fast", [True, False])
def test_sources_are_never_written_to(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(backends, "fast_kernels", lambda: None)
    target, source = torch.zeros(5), torch.full((5,), 7.0)
    combine = Combination([target], [0], np.array([1], np.uint64), "rademacher", [source])
    combine.starts_from_sources(3)
    combine([(0, [0.5])], None, 3, perturbation(0))
    assert torch.equal(source, torch.full((5,), 7.0))
    assert torch.equal((target - source).abs(), torch.full((5,), 0.5))


@dtypes
def test_an_update_rounds_by_other_numbers_than_every_perturbation(dtype: torch.dtype) -> None:
    ends = []
    for rounding in (UPDATE, perturbation(0), perturbation(1)):
        target = torch.ones(4000, dtype=dtype)
        Combination([target], [0], np.array([1], np.uint64), "rademacher")(
            [(0, [1e-4])], None, 2, rounding
        )
        ends.append(target)
    alike = [torch.equal(a, b) for a, b in itertools.combinations(ends, 2)]
    assert alike == [dtype.itemsize > 2] * 3


def test_an_expanded_tensor_is_left_to_torch() -> None:
    assert pieces.overlaps(torch.zeros(3, 1).expand(3, 4))
    assert not pieces.overlaps(torch.zeros(1, 4)[:, ::2])


# ---- normals -------------------------------------------------------------------------------------


def test_normals_are_those_of_the_reference_within_four_ulp() -> None:
    """Of the radius, which is what the logarithm, the root and the polynomials err by; measured: 3
    in 2^24.
    """
    pytest.importorskip("numba")
    n = 1 << 20
    z = torch.zeros(n)
    Combination([z], [0], np.array([7], np.uint64), "gaussian")([(0, [1.0])], None, 0)
    expected = reference.gaussian(n, seed=7, step=0)
    radius = expected.reshape(-1, 2).double().norm(dim=1).float().repeat_interleave(2)
    ulp = torch.nextafter(radius, torch.tensor(torch.inf)) - radius
    assert float(((z.double() - expected.double()).abs() / ulp).max()) <= 4.0
