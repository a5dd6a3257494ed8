"""Work that signals do not interrupt: weights must not be left half written, nor arithmetic be done twice."""

from __future__ import annotations

# What `signal` is made of: it does not turn numbers into enumeration members, and is ten times as fast.
import _signal  # pyright: ignore[reportMissingImports]
import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

HELD_BACK = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C, alarms and SIGTERM back until the block is done; only the main thread receives them."""
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: found for number in HELD_BACK if callable(found := _signal.getsignal(number))}
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
        except BaseException:  # one signal may come as soon as its own handler is back, before the others are
            _handle(handlers)
            raise
        for number, frame in received:
            handlers[number](number, frame)


def _handle(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        _signal.signal(number, handler)
