"""Work that signals do not interrupt.

Weights must not be left half written, and arithmetic must not be done twice. For example, Ctrl-C
during a write of the weights raises `KeyboardInterrupt` once the write is complete.
"""

from __future__ import annotations

# `signal` is made of this module. It does not turn numbers into enumeration members, and is ten
# times as fast.
import _signal  # pyright: ignore[reportMissingImports]
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

# The system sends these for faults of the program itself; their handlers must run at once, or
# never.
FAULTS = (
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGILL",
    "SIGKILL",
    "SIGSEGV",
    "SIGSTOP",
    "SIGSYS",
    "SIGTRAP",
)
HELD_BACK = sorted(
    int(number) for number in signal.valid_signals() if getattr(number, "name", "") not in FAULTS
)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold every signal with a handler in Python back until the block is done.

    Handlers run in the main thread alone. For example, Slurm's SIGUSR1 waits like Ctrl-C.
    """
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {
            number: found for number in HELD_BACK if callable(found := _signal.getsignal(number))
        }
    received: list[tuple[int, Any]] = []

    def hold(number: int, frame: Any) -> None:
        received.append((number, frame))

    try:
        for number in handlers:
            _signal.signal(number, hold)
        yield
    finally:
        try:
            _handle(handlers)
        # One signal may come as soon as its own handler is back, before the others are.
        except BaseException:
            _handle(handlers)
            raise
        finally:
            _pass_on(received, handlers)


def _pass_on(received: list[tuple[int, Any]], handlers: dict[int, Any]) -> None:
    """Call the handlers of the signals that came, also after one that raised."""
    while received:
        number, frame = received.pop(0)
        try:
            handlers[number](number, frame)
        finally:
            _pass_on(received, handlers)


def _handle(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        _signal.signal(number, handler)


@contextlib.contextmanager
def room_on_the_stack() -> Iterator[None]:
    """Let cleaning up go deeper than the code whose recursion has reached the limit."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 200)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
