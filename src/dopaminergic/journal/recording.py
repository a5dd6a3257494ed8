"""Writing a journal while an optimizer trains, and resuming it after the process was killed."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
import warnings
import weakref
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from dopaminergic import checks
from dopaminergic._version import __version__
from dopaminergic.files import appear, discard_leftovers, open_file, open_temporary, shown
from dopaminergic.journal.format import (
    HEADER,
    SIGMA,
    SKIPPED,
    SNAPSHOT,
    START,
    STEP,
    TRACE,
    Codec,
    JournalError,
    framed,
    to_json,
)
from dopaminergic.journal.reading import (
    PERTURBATION,
    Contents,
    Header,
    JournalDamage,
    Snapshot,
    read,
)
from dopaminergic.journal.replaying import digest, replay
from dopaminergic.noise import Term
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.progress import Change
from dopaminergic.weight_optimizer import WeightOptimizer

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes from writing one journal there
    fcntl = None

SYNC_EVERY = 1.0  # seconds; a tiny model may do a hundred steps while the disk syncs


class Journal:
    """Records every step of an optimizer in a file.

    `replay` rebuilds the weights of any step from it. A step costs about 16 bytes for one direction
    and group. It is handed to the operating system before `step` returns, so that killing the
    process loses nothing.

    Every `every` steps the journal takes a snapshot of the rule's state. At a snapshot the file is
    forced to the disk, unless that was done less than a second ago.

    Args:
        optimizer: the optimizer to record, until `close` or the end of a `with` block.
        path: of the file.
        every: number of steps between snapshots, >= 1. A snapshot costs a pass over the weights and
            some 500 bytes.
        resume: continue the file if it exists; otherwise a journal is begun. The weights must be
            those that the journal started from, or those of one of its snapshots. They are replayed
            to the last snapshot, and the optimizer gets its state from there. Later steps are
            dropped, to be done again; they are fewer than `every` unless the file is damaged.

    Attributes:
        optimizer: as given.
        path: as given.
        steps: number of steps in the file, skipped ones included.

    Raises:
        FileExistsError: the file exists, and `resume` is False.
        OSError: the file cannot be written.
        JournalError: the file to be resumed is of another run, or another journal writes it.
        TypeError: the optimizer is of another kind, or a group has a value that a journal cannot
            hold.

    Warns:
        JournalDamage: the file to be resumed is damaged; the part that cannot be read is cut off.

    >>> import tempfile, torch
    >>> from dopaminergic import Dopamine
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = Dopamine(model.parameters())
    >>> with Journal(optimizer, tempfile.mkdtemp() + "/run.journal", resume=True) as journal:
    ...     while journal.steps < 10:
    ...         loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean())
    """

    def __init__(
        self,
        optimizer: ForwardOptimizer,
        path: str | os.PathLike[str],
        *,
        every: int = 100,
        resume: bool = False,
    ) -> None:
        if not isinstance(optimizer, WeightOptimizer):
            raise TypeError(
                f"Journal: optimizer must be one of dopaminergic, got {type(optimizer).__name__}"
            )
        checks.number("Journal", "every", every, at_least=1)
        self.optimizer = optimizer
        self.path = Path(path)
        self.every = int(every)
        self.steps = 0
        self._since = 0
        self._closed = False
        self._waiting = bytearray()
        self._synced = -SYNC_EVERY
        self._traces: list[list[Term]] = []
        self._process = os.getpid()
        if resume and self.path.exists():
            self._continue()
        else:
            self._begin()
        self._watch()
        self._stop_listening = optimizer.listen(self._record)
        _opened.add(self)

    def __enter__(self) -> Journal:
        """Return the journal itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Write all that is left and a last snapshot, and stop recording.

        Closing twice is harmless.

        Raises:
            OSError: the disk is full; make room and close again.
        """
        if self._closed:
            return
        self._stop_listening()
        if self._process != os.getpid():  # a fork: the journal is its parent's
            self._finish()
            return
        try:
            if self._follows(self._first + self.steps):
                if self._traces:  # of a step that failed
                    self._put(TRACE, self._codec.traces(self._traces, []))
                    self._traces.clear()
                    self._since = 1
                if self._since:
                    self._snapshot()
            self._write()
            self._sync()
        except OSError:
            raise  # the rest can still be written
        except BaseException:
            self._finish()
            raise
        self._finish()

    def _finish(self) -> None:
        self._weights.stop_tracing_to(self._traces)
        self._closed = True
        self._file.close()

    # ---- opening ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make the file with a header and a first snapshot.

        Both appear at once, so that a journal that exists can be resumed.
        """
        if os.path.lexists(self.path):
            raise self._exists()
        header = self._header(digest(self._parameters()), self.optimizer._progress.step)
        self._noted, self._sigmas = self._groups(), self._current_sigmas()
        self._checksum, self._codec = zlib.crc32(START), self._new_codec()
        discard_leftovers(self.path.parent, self.path.name)
        try:
            self._file, new = open_temporary(self.path, buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock()
            self._waiting += START
            self._put(HEADER, header)
            self._snapshot()
            appear(new, self.path)  # if several begin it at once, to one of them
        except FileExistsError:
            self._file.close()
            raise self._exists() from None
        except BaseException:
            self._file.close()
            raise
        finally:
            with contextlib.suppress(OSError):
                new.unlink()
        _sync_folder(self.path.parent)

    def _exists(self) -> FileExistsError:
        path = shown(str(self.path))
        return FileExistsError(
            f"{path} exists; pass resume=True to go on with it, give another path, or remove it"
        )

    def _unwritable(self, error: OSError) -> OSError:
        words = f"the journal cannot be written ({error.strerror}); give another path"
        return type(error)(error.errno, words, str(self.path))

    def _continue(self) -> None:
        self._file = open_file(self.path, "r+b")
        try:
            self._lock()
            contents = read(self.path)
            snapshot = contents.snapshots[-1]
            self._check_same(snapshot.header)
            # A group that was added after the snapshot is added again.
            known = contents.headers[: contents.headers.index(snapshot.header) + 1]
            contents = contents._replace(headers=known)
            state = self._state(contents, snapshot)  # before the weights change
            replay(self._parameters(), contents, snapshot.steps)
            self.optimizer.load_state_dict(state)
            if contents.damage is not None:
                warnings.warn(contents.warning + "; it is cut off now", JournalDamage, stacklevel=4)
            logging.getLogger(__name__).info(
                "%s: resumed at step %d; %d later steps are done again",
                self.path,
                snapshot.steps,
                contents.steps - snapshot.steps,
            )
            self._file.truncate(snapshot.end)
            self._file.seek(snapshot.end)
        except BaseException:
            self._file.close()
            raise
        self.steps, self._checksum, self._codec = (
            snapshot.steps,
            snapshot.checksum,
            self._new_codec(),
        )
        self._noted = [{"parameters": group["parameters"]} for group in snapshot.header.groups]
        self._sigmas = self._current_sigmas()

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise JournalError(
                    f"{self.path} is being written by another journal, here or in another process; "
                    "close that first (of several ranks, let one record)"
                ) from error

    def _check_same(self, header: Header) -> None:
        own = self.optimizer._identity()
        theirs = {
            "optimizer": header.optimizer,
            "shapes": [p["shape"] for p in header.parameters],
            "dtypes": ["torch." + p["dtype"] for p in header.parameters],
        }
        for name, value in theirs.items():
            if own[name] != value:
                said = shown(str(value), 60)
                mine = shown(str(own[name]), 60)
                raise JournalError(
                    f"{self.path} is the journal of another {name.removesuffix('s')}: it has "
                    f"{said}, the optimizer {mine}; build the same model and optimizer first"
                )

    def _state(self, contents: Contents, snapshot: Snapshot) -> dict[str, Any]:
        """The state at the snapshot, in the form that `load_state_dict` takes.

        It is one that `load_state_dict` would not refuse.
        """
        saved = contents.state(snapshot)
        state = self.optimizer.state_dict()
        own = state["param_groups"]
        try:
            groups = saved.pop("groups")
            if len(groups) != len(own):
                raise JournalError(
                    f"{self.path} has {len(groups)} parameter groups, the optimizer {len(own)}; "
                    "make the same groups"
                )
            state["param_groups"] = [
                {**o, **g, "params": o["params"]} for o, g in zip(own, groups, strict=True)
            ]
            state["forward"].update(saved, settings=snapshot.header.settings)
            self.optimizer._read(state)
        except JournalError:
            raise
        except (KeyError, TypeError) as error:
            raise JournalError(
                f"{self.path}: the snapshot at byte {snapshot.start} lacks {error}"
            ) from None
        except ValueError as error:
            said = shown(str(error), 220)
            raise JournalError(
                f"{self.path}: of the snapshot at byte {snapshot.start}, {said}"
            ) from error
        return state

    # ---- recording -------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Remember the things that the optimizer must not change unnoticed."""
        step = self.optimizer._progress.step
        self._first = step - self.steps
        self._weights = self.optimizer._weights
        self._blocks = None
        self._weights.trace_to(self._traces)

    def _follows(self, step: int) -> bool:
        """Whether the weights are those that the journal leads to, as far as is known."""
        return self.optimizer._weights is self._weights and self.optimizer._progress.step == step

    def _record(self, change: Change) -> None:
        weights = self._weights
        step = change.after.step - 1
        if self._process != os.getpid():
            raise JournalError(
                f"{shown(str(self.path), 100)} is written by process {self._process}, of which "
                "this one is a fork: the step has happened, unrecorded, and the journal is whole. "
                "Here, call close() and begin another journal"
            )
        if not self._follows(self._first + self.steps + 1):
            raise JournalError(
                f"{self.path} cannot go on: the optimizer's state was loaded from elsewhere, or a "
                f"step was lost, after {self.steps} recorded steps; this one has happened, "
                "unrecorded. Close the journal and begin another"
            )
        self._note_settings(step, weights.blocks is not self._blocks)
        self._blocks = weights.blocks
        if change.terms or change.scales or self._traces:
            self._put(STEP, self._codec.step(change.terms, change.scales, self._traces))
        else:
            self._put(SKIPPED, b"")
        self._traces.clear()
        self.steps = self.steps + 1
        self._since = self._since + 1
        if self.steps % self.every == 0:
            self._snapshot()
        else:
            self._write()

    def _note_settings(self, step: int, layout_may_differ: bool) -> None:
        """Write a record if sigma or the parameters have changed.

        Parameters change when some are frozen or thawed, or come with a new group.
        """
        groups = self._groups() if layout_may_differ else self._noted
        if groups != self._noted:
            old, new = (
                [(p["shape"], p["dtype"]) for g in gs for p in g["parameters"]]
                for gs in (self._noted, groups)
            )
            if new[: len(old)] != old:
                raise JournalError(
                    f"{self.path} cannot go on: parameters have another shape or dtype since step "
                    f"{self.steps}. Close the journal and begin another, whose base are the "
                    "weights as they are now"
                )
            self._noted, self._sigmas = groups, self._current_sigmas()
            self._put(HEADER, self._header("", step))
            self._codec = self._new_codec()
        elif self._current_sigmas() != self._sigmas:
            self._sigmas = self._current_sigmas()
            self._put(SIGMA, struct.pack(f"<{len(self._sigmas)}d", *self._sigmas))

    def _snapshot(self) -> None:
        state = self.optimizer.state_dict()
        self._note_settings(self.optimizer._progress.step, True)
        groups = [
            {k: v for k, v in g.items() if k not in ("params", "param_names")}
            for g in state["param_groups"]
        ]
        saved = {
            "groups": groups,
            **{name: state["forward"][name] for name in ("rule", "progress", "batched")},
        }
        self._put(SNAPSHOT, bytes.fromhex(digest(self._parameters())) + to_json(saved))
        self._codec.displacement = b""
        self._since = 0
        self._write()
        if time.monotonic() - self._synced > SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _put(self, kind: int, payload: bytes) -> None:
        record, self._checksum = framed(kind, payload, self._checksum)
        self._waiting += record

    def _write(self) -> None:
        """Hand everything to the operating system.

        Bytes that a full disk leaves are kept, and tried again with the next step.
        """
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            raise type(error)(
                error.errno,
                f"the step has happened, but {len(self._waiting)} bytes of the journal are not "
                f"written ({error.strerror}); they are kept and will be written with the next "
                "step, or by close()",
                str(self.path),
            ) from error

    # ---- facts of the optimizer ------------------------------------------------------------------

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _current_sigmas(self) -> list[float]:
        return [float(group["sigma"]) for group in self.optimizer.param_groups]

    def _new_codec(self) -> Codec:
        return Codec(len(self.optimizer.param_groups), self.optimizer._replicas)

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters of each group.

        Sigmas are kept apart, since they may change at every step.
        """
        groups = []
        for group in self.optimizer.param_groups:
            names = group.get("param_names") or [None] * len(group["params"])
            pairs = zip(names, group["params"], strict=True)
            groups.append({"parameters": [_description(name, p) for name, p in pairs]})
        return groups

    def _header(self, weights: str, step: int) -> bytes:
        optimizer = self.optimizer
        sigmas = self._current_sigmas()
        header = Header(
            __version__,
            optimizer._rule_name,
            optimizer.settings,
            step,
            [
                {"sigma": sigma, **group}
                for sigma, group in zip(sigmas, self._groups(), strict=True)
            ],
            weights,
            {
                name: getattr(optimizer._weights, name)
                for name in PERTURBATION
                if hasattr(optimizer._weights, name)
            },
        )
        return to_json(header._asdict())


_opened: weakref.WeakSet[Journal] = weakref.WeakSet()


def _let_go() -> None:
    """Close the journals' files in a forked child.

    The child's copies would hold the locks when the parent has long let them go.
    """
    for journal in list(_opened):
        journal._file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _description(name: str | None, p: Tensor) -> dict[str, Any]:
    dtype = str(p.dtype).removeprefix("torch.")
    return {"name": name, "shape": list(p.shape), "dtype": dtype, "trainable": p.requires_grad}


def _sync_folder(folder: Path) -> None:
    """Force the name of a new file to the disk, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
