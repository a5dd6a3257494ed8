"""The file that a journal is written to: one writer, chained records, disks that fill."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
import zlib
from pathlib import Path
from typing import BinaryIO

from dopaminergic.journal.format import START, JournalError, framed

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes from writing one journal there
    fcntl = None

SYNC_EVERY = 1.0  # seconds; a tiny model may do a hundred steps while the disk syncs


class Output:
    """Adds records to a file that no other journal writes.

    Args:
        file: without a buffer of Python's.
        path: its name, for errors.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._waiting = bytearray()
        self._checksum = 0
        self._synced = -SYNC_EVERY
        _open.add(self)

    def lock(self) -> None:
        """Keep other journals from writing the file.

        Raises:
            JournalError: one does.
        """
        if fcntl is not None:
            try:
                fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise JournalError(
                    f"{self._path} is being written by another journal, here or in another "
                    "process; close that first (of several ranks, let one record)"
                ) from error

    def begin(self) -> None:
        """Put the first bytes of a journal."""
        self._waiting += START
        self._checksum = zlib.crc32(START)

    def cut(self, end: int, checksum: int) -> None:
        """Drop everything from byte `end` on; the record before it has this checksum."""
        self._file.truncate(end)
        self._file.seek(end)
        self._checksum = checksum

    def put(self, kind: int, payload: bytes) -> None:
        """Add a record, which `write` hands on."""
        record, self._checksum = framed(kind, payload, self._checksum)
        self._waiting += record

    def write(self) -> None:
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
                str(self._path),
            ) from error

    def sync(self) -> None:
        """Force the file to the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def sync_if_due(self) -> None:
        """Force the file to the disk, unless that was done less than a second ago."""
        if time.monotonic() - self._synced > SYNC_EVERY:
            self.sync()

    def close(self) -> None:
        """Close the file; bytes that wait are dropped."""
        self._file.close()


_open: weakref.WeakSet[Output] = weakref.WeakSet()


def _let_go() -> None:
    """Close the journals' files in a forked child.

    The child's copies would hold the locks when the parent has long let them go.
    """
    for output in list(_open):
        output.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def sync_folder(folder: Path) -> None:
    """Force the name of a new file to the disk, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
