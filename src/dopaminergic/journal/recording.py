"""Writing a journal while an optimizer trains, and resuming it after the process was killed."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from dopaminergic import checks
from dopaminergic.files import appear, discard_leftovers, open_file, open_temporary, shown
from dopaminergic.journal import describing
from dopaminergic.journal.format import (
    HEADER,
    SIGMA,
    SKIPPED,
    SNAPSHOT,
    STEP,
    TRACE,
    JournalError,
)
from dopaminergic.journal.output import Output, sync_folder
from dopaminergic.journal.reading import JournalDamage, read
from dopaminergic.journal.replaying import replay
from dopaminergic.journal.tensors import digest
from dopaminergic.node_optimizer import NodeOptimizer
from dopaminergic.noise import Term
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.progress import Change
from dopaminergic.weight_optimizer import WeightOptimizer


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
        if isinstance(optimizer, NodeOptimizer):
            raise TypeError(
                f"Journal: optimizer is a {type(optimizer).__name__}, whose steps are as many "
                "numbers as there are weights and cannot be replayed from a few; save its "
                "state_dict and the model's instead, or train by Dopamine2 or VectorDopamine"
            )
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
        self._traces: list[list[Term]] = []
        self._process = os.getpid()
        if resume and self.path.exists():
            self._continue()
        else:
            self._begin()
        self._watch()
        self._stop_listening = optimizer.listen(self._record)

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
                    self._output.put(TRACE, self._codec.traces(self._traces, []))
                    self._traces.clear()
                    self._since = 1
                if self._since:
                    self._snapshot()
            self._output.write()
            self._output.sync()
        except OSError:
            raise  # the rest can still be written
        except BaseException:
            self._finish()
            raise
        self._finish()

    def _finish(self) -> None:
        self._weights.stop_tracing_to(self._traces)
        self._closed = True
        self._output.close()

    # ---- opening ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make the file with a header and a first snapshot.

        Both appear at once, so that a journal that exists can be resumed.
        """
        if os.path.lexists(self.path):
            raise self._exists()
        header = describing.header(self.optimizer, self._digest(), self.optimizer.progress.step)
        self._note_groups()
        discard_leftovers(self.path.parent, self.path.name)
        try:
            file, new = open_temporary(self.path, buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        self._output = Output(file, self.path)
        try:
            self._output.lock()
            self._output.begin()
            self._output.put(HEADER, header)
            self._snapshot()
            appear(new, self.path)  # if several begin it at once, to one of them
        except FileExistsError:
            self._output.close()
            raise self._exists() from None
        except BaseException:
            self._output.close()
            raise
        finally:
            with contextlib.suppress(OSError):
                new.unlink()
        sync_folder(self.path.parent)

    def _exists(self) -> FileExistsError:
        path = shown(str(self.path))
        return FileExistsError(
            f"{path} exists; pass resume=True to go on with it, give another path, or remove it"
        )

    def _unwritable(self, error: OSError) -> OSError:
        words = f"the journal cannot be written ({error.strerror}); give another path"
        return type(error)(error.errno, words, str(self.path))

    def _continue(self) -> None:
        self._output = Output(open_file(self.path, "r+b"), self.path)
        try:
            self._output.lock()
            contents = read(self.path)
            snapshot = contents.snapshots[-1]
            describing.check_same(self.optimizer, self.path, snapshot.header)
            # A group that was added after the snapshot is added again.
            known = contents.headers[: contents.headers.index(snapshot.header) + 1]
            contents = contents._replace(headers=known)
            # Before the weights change.
            state = describing.state_at(self.optimizer, contents, snapshot)
            replay(describing.parameters(self.optimizer), contents, snapshot.steps)
            self.optimizer.load_state_dict(state)
            if contents.damage is not None:
                warnings.warn(contents.warning + "; it is cut off now", JournalDamage, stacklevel=4)
            logging.getLogger(__name__).info(
                "%s: resumed at step %d; %d later steps are done again",
                self.path,
                snapshot.steps,
                contents.steps - snapshot.steps,
            )
            self._output.cut(snapshot.end, snapshot.checksum)
        except BaseException:
            self._output.close()
            raise
        self.steps = snapshot.steps
        self._note_groups()
        self._noted = [{"parameters": group["parameters"]} for group in snapshot.header.groups]

    # ---- recording -------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Remember the things that the optimizer must not change unnoticed."""
        step = self.optimizer.progress.step
        self._first = step - self.steps
        self._weights = self.optimizer.weights
        self._blocks = None
        self._weights.trace_to(self._traces)

    def _follows(self, step: int) -> bool:
        """Whether the weights are those that the journal leads to, as far as is known."""
        return self.optimizer.weights is self._weights and self.optimizer.progress.step == step

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
            self._output.put(STEP, self._codec.step(change.terms, change.scales, self._traces))
        else:
            self._output.put(SKIPPED, b"")
        self._traces.clear()
        self.steps = self.steps + 1
        self._since = self._since + 1
        if self.steps % self.every == 0:
            self._snapshot()
        else:
            self._output.write()

    def _note_settings(self, step: int, layout_may_differ: bool) -> None:
        """Write a record if sigma or the parameters have changed.

        Parameters change when some are frozen or thawed, or come with a new group.
        """
        groups = describing.groups(self.optimizer) if layout_may_differ else self._noted
        sigmas = describing.sigmas(self.optimizer)
        if groups != self._noted:
            self._check_grown(groups)
            self._note_groups()
            self._output.put(HEADER, describing.header(self.optimizer, "", step))
        elif sigmas != self._sigmas:
            self._sigmas = sigmas
            self._output.put(SIGMA, struct.pack(f"<{len(sigmas)}d", *sigmas))

    def _check_grown(self, groups: list[dict[str, Any]]) -> None:
        """Raise unless the parameters are those that were noted, and perhaps more."""
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

    def _note_groups(self) -> None:
        """Remember the groups as they are, and begin to write steps of such groups."""
        self._noted = describing.groups(self.optimizer)
        self._sigmas = describing.sigmas(self.optimizer)
        self._codec = describing.codec(self.optimizer)

    def _snapshot(self) -> None:
        self._note_settings(self.optimizer.progress.step, True)
        self._output.put(SNAPSHOT, describing.snapshot(self.optimizer, self._digest()))
        self._codec.displacement = b""
        self._since = 0
        self._output.write()
        self._output.sync_if_due()

    def _digest(self) -> str:
        return digest(describing.parameters(self.optimizer))
