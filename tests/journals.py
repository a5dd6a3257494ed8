"""Runs that are journalled, and what must come back of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dopaminergic import SPSA, ForwardOptimizer, Journal, replay
from dopaminergic.journal import digest, read
from dopaminergic.journal.format import HEADER, framed
from optimizers import Bowl, Regression, randn

FEW = 7


class Mixed:
    """More than 1 MiB, so that float32 is perturbed in place, and 16-bit weights beside it, which
    are copied.
    """

    def __init__(self) -> None:
        self.big, self.half = Bowl().w, nn.Parameter(randn(50, seed=8).bfloat16())
        self.model = nn.ParameterList([self.big, self.half])

    def loss(self) -> Tensor:
        return self.big.square().mean() + self.half.float().square().mean()


def small(dtype: torch.dtype) -> Callable[[], Any]:
    return lambda: Regression(dtype=dtype)


PROBLEMS: dict[str, Callable[[], Any]] = {
    "float64": small(torch.float64),
    "float32": small(torch.float32),
    "bfloat16": small(torch.bfloat16),
    "float16": small(torch.float16),
    "in place and 16-bit": Mixed,
}


def bits(problem: Any) -> str:
    return digest(list(problem.model.parameters()))


def recorded(
    problem: Any,
    optimizer: ForwardOptimizer,
    path: Path,
    steps: int = FEW,
    before: Any = None,
    **options: Any,
) -> list[str]:
    """Train under a journal; the digest of the weights after 0, 1, 2, ... steps."""
    ends = [bits(problem)]
    with Journal(optimizer, path, **options):
        for step in range(steps):
            if before is not None:
                before(step)
            optimizer.step(problem.loss)
            ends.append(bits(problem))
    return ends


def assert_rebuilt(make: Callable[[], Any], path: Path, ends: list[str], moved: int = 2) -> None:
    """Every step's weights, from the initial ones; at least so many differ."""
    assert len(set(ends)) >= moved
    for step, end in enumerate(ends):
        fresh = make()
        assert replay(fresh.model, path, upto=step) == step
        assert bits(fresh) == end, step


def trained(
    path: Path, steps: int = 9, **options: Any
) -> tuple[Regression, ForwardOptimizer, list[str]]:
    problem = Regression()
    optimizer = SPSA(problem.model.named_parameters(), directions=2, seed=3)
    return problem, optimizer, recorded(problem, optimizer, path, steps, **options)


def forged(path: Path, *records: tuple[int, bytes], first: bytes | None = None) -> None:
    """A journal with sound checksums over anything at all."""
    start = path.read_bytes()[:10]
    contents = read(path)
    original = list(contents.records())[:2]
    checksum, out = zlib.crc32(start), start
    head = [(HEADER, first)] if first is not None else [(raw.kind, raw.payload) for raw in original]
    for kind, payload in [*head, *records]:
        record, checksum = framed(kind, payload, checksum)
        out += record
    path.write_bytes(out)
