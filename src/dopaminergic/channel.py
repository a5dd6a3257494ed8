"""Messages between ranks that cannot be mistaken for others: each begins with a frame of a fixed size.

    frame = state, step, length, digest | the first 28 numbers        then, where all frames agree: the rest

A collective whose ranks hand over different lengths is undefined: gloo aborts the process. So the lengths are
compared first, in a message whose size nothing changes, together with all else that must be equal. For a small message
the frame is the message, and the comparison costs no latency.

A rank that is interrupted while it waits does not know whether the others have its numbers, and may have gone on. So
it leaves for good: its next frame says so, and the process group makes no further step, here or there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
import weakref
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

SENT, RAISED, LEFT = 0, 1, 2  # states of a rank
HEAD, FRAME = 4, 32  # numbers of 8 bytes
ROOM = FRAME - HEAD
POLL = 0.002  # seconds for which an answer is asked for again and again
SLICE = timedelta(seconds=0.1)  # after which a rank that waits looks at its signals
TEXT = 95  # bytes that one rank may say of itself
RESTART = "End all ranks and start them again from a checkpoint, as torchrun --max-restarts does"

_closed: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # process groups, and why


class Channel:
    """What the ranks of a process group tell each other.

    Attributes:
        rank: of this process in the group.
        size: number of ranks.
        bytes_sent: bytes that this rank has handed to collectives.
    """

    def __init__(self, process_group: Any) -> None:
        self.group = dist.group.WORLD if process_group is None else process_group
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        on_gpu = "nccl" in dist.get_backend(process_group)
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self._process, self._farewell = os.getpid(), None
        self.bytes_sent = 0

    def require_open(self) -> None:
        """Raise unless messages still mean here the same as there."""
        if self._process != os.getpid():
            raise RuntimeError(
                f"Ranks: they belong to process {self._process}, and this is its child {os.getpid()}, which shares its "
                "connections; call init_process_group and make the optimizer anew in the child"
            )
        if self.group in _closed:
            raise RuntimeError(f"Ranks: closed for good, since {_closed[self.group]}. {RESTART}")

    def exchange(self, step: int, what: str, numbers: np.ndarray, raised: bool) -> np.ndarray:
        """Hand numbers to all ranks, if all are about to do the same.

        Args:
            step: of the optimizer.
            what: is done; the same text on all ranks.
            numbers: int64, of the same length on all ranks.
            raised: whether this rank has no numbers, since it raised an exception.

        Returns:
            int64 `(size, length)`.

        Raises:
            RuntimeError: a rank raised an exception, does something else, has left, or does not answer.
        """
        self.require_open()
        frame = np.zeros(FRAME, np.int64)
        frame[:HEAD] = RAISED if raised else SENT, step, len(numbers), _digest(what)
        first = numbers[:ROOM]
        frame[HEAD : HEAD + len(first)] = first
        rows = self._gather(frame, step)
        self._refuse_the_rest(rows, step, what)
        found = rows[:, HEAD : HEAD + len(first)]
        if len(numbers) > ROOM:
            found = np.concatenate([found, self._gather(numbers[ROOM:], step)], axis=1)
        return found

    def leave(self, step: int, error: BaseException) -> None:
        """Close for good, and let the others know with their next message."""
        if self.group in _closed:
            return
        why = type(error).__name__
        _closed[self.group] = f"{why} interrupted rank {self.rank} in step {step}, which others may have completed"
        frame = np.concatenate([np.array([LEFT, step, 0, 0]), _words(why)])
        with contextlib.suppress(Exception):  # the others may be gone too
            self._farewell = self._post(frame)  # not waited for: they come when they come

    # ---- how --------------------------------------------------------------------------------------------------------

    def _post(self, sent: np.ndarray) -> tuple[Any, torch.Tensor]:
        one = torch.from_numpy(sent).to(self._device)
        rows = torch.empty(self.size, len(sent), dtype=torch.int64, device=self._device)
        self.bytes_sent += sent.nbytes
        return dist.all_gather(list(rows), one, group=self.group, async_op=True), rows

    def _gather(self, sent: np.ndarray, step: int) -> np.ndarray:
        try:
            work, rows = self._post(sent)
            until = time.monotonic() + POLL
            # A thread that sleeps leaves its core to others, and is back late.
            while not work.is_completed() and time.monotonic() < until:
                os.sched_yield()
            self._wait(work)
            return rows.cpu().numpy()
        except BaseException as error:
            # Not a subclass of the user's, which a handler of signals may raise.
            if type(error) not in (RuntimeError, dist.DistBackendError, dist.DistNetworkError):
                self.leave(step, error)
                raise
            _closed[self.group] = f"rank {self.rank} got no answer in step {step}"
            said = str(error).splitlines()[0][:50] if str(error) else ""
            raise RuntimeError(
                f"rank {self.rank} of {self.size} got no answer from the others: one has died, or hangs longer than "
                f"the timeout of init_process_group. The weights are those before the step. {RESTART}. torch: {said}"
            ) from error

    def _wait(self, work: Any) -> None:
        if self._device.type != "cpu":
            work.wait()  # with a limit NCCL would end the group
            return
        while True:
            try:
                work.wait(SLICE)
                return
            except RuntimeError:
                if work.is_completed():
                    raise

    def _refuse_the_rest(self, rows: np.ndarray, step: int, what: str) -> None:
        """Raise unless all ranks do the same; each rank sees the same rows, so all raise or none."""
        left = np.flatnonzero(rows[:, 0] == LEFT).tolist()
        if left:
            why = _text(rows[left[0], HEAD:])
            _closed[self.group] = f"rank {left[0]} has left in step {rows[left[0], 1]} ({why})"
            raise RuntimeError(
                f"rank {left[0]} of {self.size} was interrupted in step {rows[left[0], 1]} by {why} and has left; its "
                f"weights may be a step behind. Rank {self.rank} stops before step {step}. {RESTART}"
            )
        others = np.flatnonzero((rows[:, 1:HEAD] != rows[0, 1:HEAD]).any(1)).tolist()
        if others:
            own = _words(f"step {step}, {what}")
            texts = [_text(words) for words in self._gather(own, step)]
            raise RuntimeError(
                f"rank {others[0]} is at [{texts[others[0]]}], rank 0 at [{texts[0]}]; make the same model, optimizer "
                "and Ranks, and load the same state, on all"
            )
        raised = np.flatnonzero(rows[:, 0] == RAISED).tolist()
        if raised:
            raise RuntimeError(
                f"rank {', '.join(map(str, raised[:8]))} of {self.size} raised an exception in this step, see its own "
                f"message; rank {self.rank} stops with it, its weights are those before the step"
            )


def _words(text: str) -> np.ndarray:
    """As many numbers as a frame has room for."""
    return np.frombuffer(text.encode()[:TEXT].ljust(8 * ROOM, b"\0"), np.int64).copy()


def _text(words: np.ndarray) -> str:
    return np.ascontiguousarray(words).tobytes().rstrip(b"\0").decode(errors="replace")


@functools.lru_cache(maxsize=1024)
def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
