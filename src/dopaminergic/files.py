"""Files beside those of others: made anew, opened only if they are files, shown as text.

A file is never made through a link that somebody else planted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import unicodedata
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

JOINERS = "\u200c\u200d"
# Characters of a name that a temporary file keeps: names of 255 bytes leave no room for more.
LONGEST_STEM = 100
KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotAFileError(ValueError, OSError):
    """A FIFO, a socket, a device or a folder, where there should be a file.

    To read it might never end.
    """


def open_file(path: str | os.PathLike[str], mode: str = "rb") -> BinaryIO:
    """Open a file that others may have put there, without a buffer if it is to be written.

    Args:
        path: of the file; a link to a file will do.
        mode: "rb", "r+b" or "a+b".

    Raises:
        NotAFileError: it is no file, for example a FIFO, which would keep its reader waiting for
            ever.
        OSError: there is no such file, or it cannot be opened.
    """
    require_file(path)
    flags = {"rb": os.O_RDONLY, "r+b": os.O_RDWR, "a+b": os.O_RDWR | os.O_APPEND | os.O_CREAT}[mode]
    # Without waiting, for a FIFO may have taken its place since.
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags, 0o666)
    try:
        _require(path, os.fstat(number).st_mode)
        return os.fdopen(number, mode) if mode == "rb" else os.fdopen(number, mode, buffering=0)  # pyright: ignore[reportReturnType]
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(number)
        raise


def require_file(path: str | os.PathLike[str]) -> None:
    """Raise `NotAFileError` if there is something at a path that is no file.

    Where there is nothing all is well.
    """
    with contextlib.suppress(FileNotFoundError):
        _require(path, os.stat(path).st_mode)


def _require(path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no file")
        raise NotAFileError(
            f"{shown(os.fspath(path), 200)} is {kind}, not a file; remove it, or give another path"
        )


def open_temporary(path: Path, buffering: int = -1) -> tuple[BinaryIO, Path]:
    """A new file beside `path` that is to take its name once it is whole, and its name until then.

    Nobody can foresee the name, so nobody can plant a link there. The file is made only if there is
    nothing of that name. The number of the process in it shows `discard_leftovers` which files a
    kill has left.
    """
    name = f".{_short(path.name)}.{uuid.uuid4().hex[:12]}.{os.getpid()}.tmp"
    temporary = path.with_name(name)
    flags = (
        os.O_RDWR
        | os.O_CREAT
        | os.O_EXCL
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_BINARY", 0)
    )
    return os.fdopen(os.open(temporary, flags, 0o666), "r+b", buffering=buffering), temporary  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, all at once and on the disk.

    It does so when the block ends without an error.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/notes"
    >>> with replacing(path) as file:
    ...     _ = file.write(b"whole")
    >>> with open_file(path) as file:
    ...     file.read()
    b'whole'
    """
    target = Path(path)
    file, temporary = open_temporary(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def appear(temporary: Path, path: Path) -> None:
    """Give a temporary file its name, which nobody else may have taken.

    Raises:
        FileExistsError: somebody has; their file is left as it is.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    # A file system without links, such as FAT: the next best is to look first.
    except OSError as error:
        if error.errno not in (
            errno.EPERM,
            errno.ENOTSUP,
            errno.ENOSYS,
            errno.EMLINK,
            errno.EACCES,
            errno.EINVAL,
        ):
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(temporary, path)
        return
    os.unlink(temporary)


def discard_leftovers(folder: str | os.PathLike[str], name: str = "") -> None:
    """Remove the temporary files that a killed process has left in a folder.

    Files of living processes stay.

    Args:
        folder: where they lie.
        name: of the file that they were to become; "" for all.
    """
    start = f".{_short(name)}." if name else "."
    for path in Path(folder).glob(".*.tmp"):
        number = path.name.split(".")[-2]
        if (
            path.name.startswith(start)
            and number.isascii()
            and number.isdigit()
            and not _alive(int(number))
        ):
            path.unlink(missing_ok=True)


def _short(name: str) -> str:
    return name.encode(errors="surrogateescape")[:LONGEST_STEM].decode(errors="ignore")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user, or no number of a process
        return True
    return True


def shown(text: str, longest: int | None = None) -> str:
    r"""Text of others as a terminal or a page may show it.

    Control characters and halves of characters are spelled out. A terminal obeys some of them: it
    writes to the clipboard, changes colours, or moves the text on the screen. Marks that turn the
    direction of writing show another text than there is. Joiners within words and pictures stay.

    Args:
        text: of anybody.
        longest: number of characters, >= 4, from which on it is cut; None: any.

    >>> shown("flow [l/s]"), shown("\x1b]52;c;YQ==\x07"), shown("a\ud800"), shown("x" * 9, 6)
    ('flow [l/s]', '\\x1b]52;c;YQ==\\x07', 'a\\ud800', 'xxx...')
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(
            one if _harmless(one) else one.encode("unicode_escape").decode() for one in text
        )
    return text if longest is None or len(text) <= longest else text[: longest - 3] + "..."


def _harmless(one: str) -> bool:
    return one.isprintable() or one in JOINERS or unicodedata.category(one) == "Zs"
