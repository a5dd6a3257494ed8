"""Many ranks, one step: only losses travel, and every rank makes the same update of them.

    ranks = shards of the data x shares of the directions

A direction is a function of (seed, step, number), so the losses alone determine the update. Each
rank evaluates its share of a step on its shard of the data. One all_gather of a few float64 numbers
hands all losses to all ranks. They sum them in the order of ranks, and run the same rule on the
same bits. Weights are never sent; every so many steps a hash of them is (Salimans et al.,
"Evolution strategies as a scalable alternative to reinforcement learning", 2017).

Whatever a rank does between two exchanges, it comes to the next one: that it raised an exception
travels too, so that all ranks stop at the same step with the weights they had before it. See
`channel` for how messages are compared.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dopaminergic import checks
from dopaminergic.channel import MISSING, Channel, Message, SharedLosses
from dopaminergic.fingerprint import digest
from dopaminergic.weights import Weights
from dopaminergic.weights.modes import random_states, rewind
from dopaminergic.weights.sharding import is_sharded

if dist.is_available():
    # The defaults of its functions are the process group there is when it is imported. torch.optim
    # imports it with the first optimizer, and destroy_process_group would no longer end the threads
    # of gloo, which may abort the process where they wake while Python shuts down.
    import torch.distributed.nn.functional

CHECKS = 3  # numbers that a check sends
COMPARED = ", compared"  # what such a message says of itself
ALONE = "alone"  # as `process_group`: other ranks have nothing to do with this optimizer

Check = Callable[[], Sequence[float]]


class Ranks:
    """How the ranks of a process group share the work of a step; an optimizer's `process_group`.

    Rank r sees shard `r mod data_parallel` of the data and tries share `r div data_parallel` of the
    directions. Losses are averaged over shards, each shard counting the same (in `VectorDopamine`,
    each sample).

    Args:
        process_group: of `torch.distributed`; None: all processes.
        data_parallel: number of shards of the data, a divisor of the number of ranks; None: every
            rank has its own. 1: all ranks see the same data and try different directions.
        check_every: steps between two comparisons of all ranks' settings, states and weights, >= 1.
            The first step always compares.
        deadline: seconds, >= 0, after which a rank begins no more directions of a step, but for its
            first one; those that are missing on any rank are left out by all. Results then depend
            on timing, though a journal repeats them to the bit. None: slow ranks are waited for.

    Attributes:
        rank: of this process in the group.
        size: number of ranks.
        shards: number of shards of the data.
        shares: number of shares of the directions.
        shard: which data this rank should see, in [0, shards).

    Raises:
        RuntimeError: there is no process group.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        data_parallel: int | None = None,
        check_every: int = 100,
        deadline: float | None = None,
    ) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "Ranks: there is no process group; call torch.distributed.init_process_group() "
                "first, and start the "
                "script with torchrun"
            )
        if dist.get_rank(process_group) < 0:
            raise ValueError(
                "Ranks: this process is not in process_group; make the optimizer on its members "
                "only"
            )
        self._channel = Channel(process_group)
        self._channel.require_open()
        self.rank = self._channel.rank
        self.size = self._channel.size
        self.shards = self.size if data_parallel is None else data_parallel
        if not isinstance(self.shards, int) or self.shards < 1 or self.size % self.shards:
            raise ValueError(
                f"Ranks: data_parallel must divide the number of ranks, {self.size}, got "
                f"{data_parallel!r}; 1 tries "
                f"different directions on the same data, {self.size} the same directions on "
                "different data"
            )
        if not isinstance(check_every, int) or check_every < 1:
            raise ValueError(f"Ranks: check_every must be an int >= 1, got {check_every!r}")
        if deadline is not None:
            checks.number("Ranks", "deadline", deadline, at_least=0)
        self.shares = self.size // self.shards
        self.check_every = check_every
        self.deadline = deadline
        self.shard = self.rank % self.shards
        self.share = self.rank // self.shards
        self._began = 0.0
        self._rule = ""
        self._step = 0
        self._handed = (
            False  # whether the others may complete a step that this rank has not completed
        )
        _keep_gloo_from_interrupting()

    def __deepcopy__(self, memo: Any) -> Ranks:
        return self  # a copy of an optimizer belongs to the same ranks

    def __getstate__(self) -> Any:
        raise TypeError(
            "Ranks belong to this process and cannot be saved; save optimizer.state_dict() and "
            "make the optimizer anew"
        )

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank has handed to collectives."""
        return self._channel.bytes_sent

    # ---- who does what ---------------------------------------------------------------------------

    def part(self, units: int, share: int | None = None) -> range:
        """The units of work, out of so many, of one share: this rank's, if none is named."""
        share = self.share if share is None else share
        return range(units * share // self.shares, units * (share + 1) // self.shares)

    def check(self, rule: str, parameters: Iterable[Tensor]) -> None:
        """Raise unless these parameters can be trained in this way."""
        if self.deadline is not None and any(map(is_sharded, parameters)):
            raise ValueError(
                f"{rule}: Ranks(deadline=...) does not go with sharded parameters: the ranks of "
                "one model must make "
                "its forward passes together, however slow one of them is"
            )

    @property
    def late(self) -> bool:
        """Whether this rank has worked past the deadline since it last heard from the others."""
        return self.deadline is not None and time.monotonic() - self._began > self.deadline

    def seeded(
        self, closure: Callable[[], Any], weights: Weights, seed: Any, step: int
    ) -> Callable[[], Any]:
        """The closure, with draws from torch's generators that start from (seed, step, shard).

        The generators are left as they were. Ranks evaluate different numbers of directions, so the
        draws of a closure must not depend on those before.
        """
        number = digest((seed, step, self.shard))
        states: list[list[tuple[torch.Generator, Tensor]]] = []

        def call() -> Any:
            if not states:  # the generators are known from the beginning of the step on
                states.append(random_states(weights.generators))
            try:
                if len(states) == 1:
                    states.append(
                        [
                            (generator, generator.manual_seed(number).get_state())
                            for generator, _ in states[0]
                        ]
                    )
                else:
                    rewind(states[1])  # faster than seeding anew
                return closure()
            finally:
                rewind(states[0])

        return call

    # ---- what travels ----------------------------------------------------------------------------

    def begin(self, rule: str, step: int) -> None:
        """Raise unless this rank can still make a step with the others."""
        self._channel.require_open()
        self._rule = rule
        self._step = step
        self._handed = False

    def settle(self) -> None:
        """Note that this rank has done what it could for the step."""
        self._handed = False

    def stop(self, error: BaseException) -> None:
        """Leave if Ctrl-C or the like has ended a step that the others complete.

        Errors may be raised by all ranks alike, after which all go on. Where they are not, the next
        frames differ.
        """
        if self._handed and not isinstance(error, Exception):
            self._channel.leave(self._step, error)

    @contextlib.contextmanager
    def exchange(self, length: int, what: str) -> Iterator[Message]:
        """A block of work; when it ends, all ranks hand each other the numbers that it has sent.

        An exception in the block reaches the caller as it is, once the others know.

        Args:
            length: how many numbers each rank sends at the most, the same on all ranks.
            what: name of the numbers, the same text on all ranks.

        Raises:
            RuntimeError: another rank raised an exception, does something else, has left, or does
                not answer.
        """
        step = self._step
        message = Message(length)
        self._began = time.monotonic()
        self._handed = False
        what = f"{self._rule}, check_every={self.check_every}, data_parallel={self.shards}, {what}"
        try:
            yield message
        except BaseException:
            with contextlib.suppress(RuntimeError):  # its own message is the one to be read
                self._channel.exchange(step, what, message.bits, True)
            raise
        message.rows = self._channel.exchange(step, what, message.bits, False).view(np.float64)
        self._handed = True

    def average(self, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Mean over shards, of each share: `(size, ...)` to `(shares, ...)`.

        Sums are taken in the order of ranks.

        Args:
            rows: one for each rank.
            weights: of the shards, which sum to 1; None: all the same.
        """
        split = rows.reshape(self.shares, self.shards, *rows.shape[1:])
        if self.shards == 1:
            return split[:, 0]
        if weights is not None:
            split = split * weights.reshape(1, -1, *[1] * (rows.ndim - 1))
        total = split[:, 0].copy()
        for shard in range(1, self.shards):
            total += split[:, shard]
        return total if weights is not None else total / self.shards

    @contextlib.contextmanager
    def losses(self, units: int, width: int, check: Check | None) -> Iterator[SharedLosses]:
        """A block of work that sends the losses of this rank's part of the units.

        When it ends, the losses of all ranks are there, averaged over shards, in the order of a
        single rank.

        Args:
            units: into which the step is split, see `part`.
            width: numbers that one unit brings.
            check: see `compare`; None: no check is due.
        """
        compared = 0 if check is None else CHECKS
        parts = [self.part(units, share) for share in range(self.shares)]
        length = compared + max(map(len, parts)) * width
        with self.exchange(length, f"{units} evaluations{COMPARED if check else ''}") as message:
            message.send(check() if check else ())
            shared = SharedLosses(message)
            yield shared
        self.compare(message.rows[:, :compared])
        rows = message.rows[:, compared:].reshape(self.size, -1, width)
        missing = (rows.view(np.int64) == MISSING).any(2)
        missing = missing.reshape(self.shares, self.shards, -1).any(1)
        shares = self.average(rows)
        found = []
        for share, part in enumerate(parts):
            places = [i for i in range(len(part)) if not missing[share, i]]
            found.append(shares[share, places])
            shared.units += [part[i] for i in places]
        shared.found = np.concatenate(found)

    # ---- what is checked -------------------------------------------------------------------------

    def compare(self, rows: np.ndarray) -> None:
        """Raise unless all ranks sent the same `fingerprint`.

        Hashes of weights are compared among the ranks that hold the same part of them.

        Raises:
            RuntimeError: two ranks differ; all ranks raise it.
        """
        if rows.shape[1] == 0:
            return
        settings, places, weights = rows.T
        if (settings != settings[0]).any():
            other = int(np.flatnonzero(settings != settings[0])[0])
            raise RuntimeError(
                f"rank {other} differs from rank 0 in the optimizer's settings, parameter groups, "
                "step or state; make "
                "the same model and optimizer on all ranks, and load the same state_dict on all or "
                "on none"
            )
        for place in np.unique(places):
            same = np.flatnonzero(places == place)
            if (weights[same] != weights[same[0]]).any():
                other = int(same[weights[same] != weights[same[0]]][0])
                raise RuntimeError(
                    f"the weights of rank {other} differ from those of rank {same[0]}: they must "
                    "be equal at the start "
                    "(seed the model alike or dopaminergic.broadcast it, load the same checkpoint) "
                    "and must not "
                    "be changed by anybody else; load a checkpoint on all ranks to go on"
                )


def _keep_gloo_from_interrupting() -> None:
    """Let the threads of gloo run while this process waits, and not before.

    They poll for a lock that another thread of this process holds. Where every core is busy with a
    rank, they interrupt that thread, and poll until their time slice of some milliseconds ends.
    Batch threads interrupt nobody (`man 7 sched`).
    """
    if not hasattr(os, "SCHED_BATCH"):  # other systems than Linux
        return
    with contextlib.suppress(OSError):  # not allowed here, or the thread has ended
        for thread in Path("/proc/self/task").iterdir():
            if thread.joinpath("comm").read_text().startswith("gloo"):
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))


def ranks_of(process_group: Any) -> Ranks | None:
    """The `Ranks` of an optimizer's `process_group`: a bare group is data-parallel.

    `"alone"` is no group.
    """
    if process_group is None:
        _warn_of_others()
    elif isinstance(process_group, str) and process_group != ALONE:
        raise ValueError(
            f"process_group must be a group of torch.distributed, a Ranks, None or {ALONE!r}, got "
            f"{process_group!r}"
        )
    if process_group is None or isinstance(process_group, str | Ranks):
        return process_group if isinstance(process_group, Ranks) else None
    return Ranks(process_group)


def _warn_of_others() -> None:
    global _warned
    if (
        _warned
        or not dist.is_available()
        or not dist.is_initialized()
        or dist.get_world_size() == 1
    ):
        return
    _warned = True
    warnings.warn(
        f"process_group is None, so that none of the {dist.get_world_size()} ranks hears of the "
        "others; pass "
        f"process_group=Ranks() or torch.distributed.group.WORLD, or {ALONE!r} if that is meant. "
        "DistributedDataParallel averages nothing here: there are no gradients.",
        RuntimeWarning,
        stacklevel=checks.levels_up(),
    )


_warned = False  # once is enough in a process


def broadcast(parameters: Iterable[Tensor], process_group: dist.ProcessGroup | None = None) -> None:
    """Give all ranks the parameters of rank 0, once, before training (not those that are sharded).

    Args:
        parameters: of the model; buffers too, if the closure reads them.
        process_group: of `torch.distributed`; None: all processes.
    """
    source = 0 if process_group is None else dist.get_global_rank(process_group, 0)
    with torch.no_grad():
        for p in parameters:
            if not is_sharded(p):
                dist.broadcast(p.detach(), source, group=process_group)
