"""What is exchanged inside the library while a situation runs; the only place that knows names of
its inside.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from dopaminergic.noise import reference

THRESHOLD = "SAVED_BYTES"  # bytes of a model up to which it is small
FAST = "fast_kernels"  # gives numba's kernels, or None for noise of torch
LARGE_FROM = 64  # bytes, so that each network of the tests is large


@contextlib.contextmanager
def conditions(*, large: bool, slow: bool, watched: bool = True) -> Iterator[None]:
    """One thread, no warnings, torch's generator as new; models count as large, noise comes from
    the reference.

    Args:
        large: each model counts as one above the threshold.
        slow: noise comes from the torch reference, not from numba.
        watched: look whether it does; False where something else draws from the reference too.

    Raises:
        RuntimeError: numba is not there, or noise did not come from where it should.
    """
    threads = torch.get_num_threads()
    logger = logging.getLogger("dopaminergic")
    level = logger.level
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.callback(logger.setLevel, level)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        if large:
            stack.enter_context(exchanged(THRESHOLD, LARGE_FROM))
        if slow:
            stack.enter_context(exchanged(FAST, lambda: None))
        with _counted() as drawn:
            yield
        if watched and slow != bool(drawn):
            wanted = "the torch reference" if slow else "numba"
            raise RuntimeError(
                f"conditions: noise did not come from {wanted}; look at knobs.FAST, and install "
                "numba"
            )


@contextlib.contextmanager
def exchanged(name: str, value: Any) -> Iterator[None]:
    """Give a global another value in each module of the library that has it.

    Raises:
        LookupError: there is no such module.
    """
    modules = [
        m
        for key, m in list(sys.modules.items())
        if key.startswith("dopaminergic") and name in vars(m)
    ]
    if not modules:
        raise LookupError(
            f"exchanged: no module of dopaminergic has {name}; say in knobs.py what it is called "
            "now"
        )
    before = [vars(module)[name] for module in modules]
    try:
        for module in modules:
            setattr(module, name, value)
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            setattr(module, name, old)


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
    """A list that grows whenever the reference draws the words of a direction."""
    drawn: list[int] = []
    words = reference.words

    def counting(*args: Any, **kwargs: Any) -> Any:
        drawn.append(1)
        return words(*args, **kwargs)

    reference.words = counting
    try:
        yield drawn
    finally:
        reference.words = words
