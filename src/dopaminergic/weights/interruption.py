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


class uninterrupted:  # noqa: N801  (used as a function, like those of contextlib)
    """Hold every signal with a handler in Python back until the block is done.

    Handlers run in the main thread alone. For example, Slurm's SIGUSR1 waits like Ctrl-C.
    """

    __slots__ = ("_handlers", "_received")

    def __enter__(self) -> None:
        """Put a handler that waits in the place of all others."""
        self._received: list[tuple[int, Any]] = []
        self._handlers = _handlers_now() if _is_main_thread() else {}
        try:
            for number in self._handlers:
                _signal.signal(number, self._hold)
        except BaseException:  # one may come before the next handler is replaced
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        """Put the handlers back, and call those of the signals that came."""
        handlers = self._handlers
        try:
            _handle(handlers)
        # One signal may come as soon as its own handler is back, before the others are.
        except BaseException:
            _handle(handlers)
            raise
        finally:
            if self._received:
                _pass_on(self._received, handlers)

    def _hold(self, number: int, frame: Any) -> None:
        self._received.append((number, frame))


def _handlers_now() -> dict[int, Any]:
    """The handlers in Python, by the numbers of their signals."""
    pairs = zip(HELD_BACK, map(_signal.getsignal, HELD_BACK))  # noqa: B905 (a check takes time)
    return {number: handler for number, handler in pairs if callable(handler)}


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


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
