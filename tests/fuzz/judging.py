"""A case, and the verdict on it."""

from __future__ import annotations

import contextlib
import io
import random
import resource
import signal
import traceback
from pathlib import Path
from typing import Any

from tests.fuzz.kind import Failure, Kind

# Seconds of the processor, of which others take none away, and of the clock, for what waits without
# an end.
LIMITS = {signal.ITIMER_PROF: 20.0, signal.ITIMER_REAL: 120.0}
MOST_GROWTH = 1024  # MiB
LONGEST = 300


class Hang(BaseException):
    """A case that took too long."""


def limit_time() -> None:
    """Let a case that takes too long raise `Hang`."""
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _hang)


def _hang(number: int, frame: Any) -> None:
    raise Hang


def judged(kind: Kind, chance: random.Random) -> tuple[str, str]:
    """What became of a case: "taken", "refused", or what is wrong with it, and details."""
    _reset_peak()
    before = _status("VmRSS")
    for timer, seconds in LIMITS.items():
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            kind.try_one(chance)
        found = "taken", ""
    except Hang:
        found = "hang", "more than 20 s of work or 120 s of waiting"
    except Failure as error:
        found = "broken", str(error)[:300]
    except kind.allowed as error:
        found = _judged_words(kind, error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = (
            "traceback",
            f"{type(error).__name__}: {str(error)[:160]} "
            f"({Path(place.filename).name}:{place.lineno})",
        )
    finally:
        for timer in LIMITS:
            signal.setitimer(timer, 0)
    grown = (_status("VmHWM") - before) / 1024
    return ("memory", f"{grown:.0f} MiB") if grown > MOST_GROWTH else found


def _judged_words(kind: Kind, error: BaseException) -> tuple[str, str]:
    words = str(error)
    if len(words) - words.count(str(kind.path)) * len(str(kind.path)) > LONGEST:
        return "long message", f"{len(words)} characters: {words[:200]}"
    if any(not one.isprintable() and one != "\n" for one in words):
        return "control characters", ascii(words)[:200]
    if kind.named and str(kind.folder) not in words:
        return "no file named", f"{type(error).__name__}: {words[:200]}"
    return "refused", ""


def _status(name: str) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
