"""Messages between ranks that cannot be mistaken for others.

Each message begins with a frame of a fixed size:

    frame = state, step, length, digest | the work, as text | the first 28 numbers

A collective whose ranks hand over different lengths is undefined: gloo aborts the process. So the
lengths are compared first, in a message whose size nothing changes, together with all else that
must be equal. For up to 28 numbers the frame is the whole message, and the comparison costs no
latency. More numbers follow in a second message, where all frames agree; it begins with the frame
again.

A rank that is interrupted while it waits does not know whether the others have its numbers. The
others may have gone on. So it leaves for good: its next frame says so, and the process group makes
no further step, here or there. Frames that differ close the group as well, so that the length of
the next message follows from the frames of this rank alone. For example, a rank can say that it
leaves though it has not heard the others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dopaminergic.weights.interruption import uninterrupted

SENT, RAISED, LEFT = 0, 1, 2  # states of a rank
HEAD, TEXT, ROOM = 4, 12, 28  # numbers of 8 bytes
BEGIN = HEAD + TEXT
FRAME = BEGIN + ROOM
POLL = 0.002  # seconds of asking for an answer without sleep
SLICE = timedelta(seconds=0.1)  # after which a rank that waits looks at its signals
RESTART = "End all ranks and start them again from a checkpoint, as torchrun --max-restarts does"

# The reason for each process group that is closed.
_closed: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
# The process that each process group belongs to.
_owners: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


class _Refused(Exception):  # noqa: N818  (it never leaves this file)
    """An exchange fails; all ranks know why, or this one is closed."""


# Bits of a NaN that no arithmetic makes: this rank has no number here.
MISSING = 0x7FF8_DEAD_0000_0001


class Message:
    """Numbers that one rank hands to all others, and those of all.

    Attributes:
        bits: int64 `(length,)`, the bits of what is sent; `MISSING` where nothing was.
        rows: float64 `(size, length)`, one row for each rank, once the block has ended.
    """

    def __init__(self, length: int) -> None:
        self.bits = np.full(length, MISSING)
        self.rows = np.zeros((0, length))
        self._sent = 0

    def send(self, numbers: Sequence[float] | np.ndarray) -> None:
        """Add numbers to the message."""
        found = np.asarray(numbers, np.float64).reshape(-1)
        place = slice(self._sent, self._sent + len(found))
        self.bits.view(np.float64)[place] = np.where(np.isnan(found), np.nan, found)  # one NaN
        self._sent += len(found)


class SharedLosses:
    """The losses of all ranks.

    Attributes:
        units: those that no rank is missing, all without a deadline.
        found: float64 `(len(units), width)`, once the block has ended.
    """

    def __init__(self, message: Message) -> None:
        self.send = message.send
        self.units: list[int] = []
        self.found = np.zeros((0, 0))


class Channel:
    """The messages between the ranks of a process group.

    Attributes:
        rank: the number of this process in the group.
        size: number of ranks.
        bytes_sent: bytes that this rank has handed to collectives.
    """

    def __init__(self, process_group: Any) -> None:
        self.group = dist.group.WORLD if process_group is None else process_group
        self.rank = dist.get_rank(process_group)
        self.size = dist.get_world_size(process_group)
        on_gpu = "nccl" in dist.get_backend(process_group)
        self._device = (
            torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        )
        _owners.setdefault(self.group, os.getpid())
        self._due = FRAME  # length of the next message, as the others expect it
        self._farewell: Any = None
        self.bytes_sent = 0

    def require_open(self) -> None:
        """Raise unless messages still mean here the same as there."""
        owner = _owners[self.group]
        if owner != os.getpid():
            raise RuntimeError(
                f"Ranks: they belong to process {owner}, and this is its child {os.getpid()}, "
                "which shares its connections; call init_process_group and make the optimizer "
                "anew in the child"
            )
        if self.group in _closed:
            raise RuntimeError(f"Ranks: closed for good, since {_closed[self.group]}. {RESTART}")

    def exchange(self, step: int, what: str, numbers: np.ndarray, raised: bool) -> np.ndarray:
        """Hand numbers to all ranks, if all are about to do the same.

        Args:
            step: the step of the optimizer.
            what: names the work that is done; the same text on all ranks.
            numbers: int64, of the same length on all ranks.
            raised: whether this rank has no numbers, since it raised an exception.

        Returns:
            int64 `(size, length)`.

        Raises:
            RuntimeError: a rank raised an exception, does something else, has left, or does not
                answer.
        """
        self.require_open()
        frame = np.zeros(FRAME, np.int64)
        frame[:HEAD] = RAISED if raised else SENT, step, len(numbers), _digest(what)
        frame[HEAD:BEGIN] = _words(what)
        frame[BEGIN : BEGIN + len(numbers)] = numbers[:ROOM]
        try:
            return self._exchanged(frame, numbers)
        except _Refused as refusal:
            raise RuntimeError(str(refusal)) from refusal.__cause__
        except BaseException as error:
            self.leave(step, error)
            raise

    def leave(self, step: int, error: BaseException) -> None:
        """Close for good, and let the others know with their next message."""
        if self.group in _closed:
            return
        why = type(error).__name__
        message = np.zeros(self._due, np.int64)
        message[:HEAD] = LEFT, step, 0, 0
        message[HEAD:BEGIN] = _words(why)
        with uninterrupted(), contextlib.suppress(Exception):  # the others may be gone too
            _closed[self.group] = (
                f"{why} interrupted rank {self.rank} in step {step}, which others may have "
                "completed"
            )
            self._farewell = self._post(message)  # nobody waits for it here

    # ---- how -------------------------------------------------------------------------------------

    def _exchanged(self, frame: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        rows = self._gather(frame, max(FRAME, FRAME + len(numbers) - ROOM))
        self._refuse(rows, frame)
        found = rows[:, BEGIN : BEGIN + len(numbers)]
        if len(numbers) > ROOM:
            rest = self._gather(np.concatenate([frame, numbers[ROOM:]]), FRAME)
            self._refuse(rest, frame)
            found = np.concatenate([found, rest[:, FRAME:]], axis=1)
        # This comes last, so that the number of messages is the same as if none had raised.
        self._stop_with_others(rows)
        return found

    def _gather(self, sent: np.ndarray, due: int) -> np.ndarray:
        """Hand a message to all ranks; the next one that they expect may have another length."""
        if due == self._due:
            work, rows = self._post(sent)
        else:
            with uninterrupted():  # else nobody knows which of the two they expect
                work, rows = self._post(sent)
                self._due = due
        error = self._wait(work)
        if error is None:
            return rows.cpu().numpy()
        _closed[self.group] = f"rank {self.rank} got no answer in step {sent[1]}"
        said = str(error).split("] ")[-1].splitlines()[0][:50] if str(error) else ""
        raise _Refused(
            f"rank {self.rank} of {self.size} got no answer from the others: one has died, or "
            "hangs longer than the timeout of init_process_group. The weights are those before "
            f"the step. {RESTART}. torch: {said}"
        ) from error

    def _post(self, sent: np.ndarray) -> tuple[Any, torch.Tensor]:
        one = torch.from_numpy(sent).to(self._device)
        rows = torch.empty(self.size, len(sent), dtype=torch.int64, device=self._device)
        work = dist.all_gather(list(rows), one, group=self.group, async_op=True)
        self.bytes_sent += sent.nbytes
        return work, rows

    def _wait(self, work: Any) -> RuntimeError | None:
        """Wait for all ranks.

        An error of torch is returned, those of handlers of signals are raised.
        """
        until = time.monotonic() + POLL
        # A thread that sleeps leaves its core to others, and is back late.
        while not work.is_completed() and time.monotonic() < until:
            os.sched_yield()
        if self._device.type != "cpu":
            return _error_of(work)  # without a limit, at which NCCL would end the group
        while _error_of(work, SLICE) is not None:
            if work.is_completed():  # with an error, or just after the slice of time
                return _error_of(work)
        return None

    def _refuse(self, rows: np.ndarray, frame: np.ndarray) -> None:
        """Close unless all ranks do the same.

        Each rank sees the same rows, so all raise or none.
        """
        differ = (rows[:, 1:HEAD] != frame[1:HEAD]).any(1)
        left = rows[:, 0] == LEFT
        if left.any():
            first = int(left.argmax())
            step = rows[first, 1]
            why = _text(rows[first, HEAD:BEGIN])
            _closed[self.group] = f"rank {first} has left in step {step} ({why[:40]})"
            raise _Refused(
                f"rank {first} of {self.size} was interrupted in step {step} by {why[:40]} and has "
                f"left; its weights may be a step behind. Rank {self.rank} stops before step "
                f"{frame[1]}. {RESTART}"
            )
        if differ.any():
            other = int((rows[:, 1:HEAD] != rows[0, 1:HEAD]).any(1).argmax())
            here, there = _told_apart(rows[0], rows[other])
            _closed[self.group] = f"rank {other} and rank 0 were about to do different things"
            raise _Refused(
                f"rank {other} is at [{there}], rank 0 at [{here}]; make the same model, optimizer "
                "and Ranks, load the same state on all, and start all again"
            )

    def _stop_with_others(self, rows: np.ndarray) -> None:
        raised = np.flatnonzero(rows[:, 0] == RAISED).tolist()
        if raised:
            raise _Refused(
                f"rank {', '.join(map(str, raised[:8]))} of {self.size} raised an exception in "
                f"this step, see its own message; rank {self.rank} stops with it, its weights are "
                "those before the step"
            )


def _error_of(work: Any, *limit: timedelta) -> RuntimeError | None:
    try:
        work.wait(*limit)
    except RuntimeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # it comes from Python code, so from a handler of signals
        return error
    return None


def _told_apart(*frames: np.ndarray) -> list[str]:
    """Each frame in words.

    The number of numbers is named only where nothing else is different.
    """
    texts = [f"step {frame[1]}, {_text(frame[HEAD:BEGIN])}"[:88] for frame in frames]
    if len(set(texts)) == 1:
        return [
            f"{text[:70]}, {frame[2]} numbers" for text, frame in zip(texts, frames, strict=True)
        ]
    return texts


@functools.lru_cache(maxsize=256)
def _words(text: str) -> np.ndarray:
    """A text as numbers, as many as a frame has room for."""
    words = np.frombuffer(text.encode()[: 8 * TEXT].ljust(8 * TEXT, b"\0"), np.int64).copy()
    words.flags.writeable = False
    return words


def _text(words: np.ndarray) -> str:
    return np.ascontiguousarray(words).tobytes().rstrip(b"\0").decode(errors="replace")


@functools.lru_cache(maxsize=256)
def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
