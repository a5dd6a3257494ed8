"""The first minute: kernels of the noise are compiled once, in a process that Ctrl-C may end.

Compiling within a step would keep signals waiting until the step is done.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dopaminergic.lab.terminal import say

KERNELS = ("combine", "one")  # the names that their files in numba's cache have


def compile_noise(optimizers: Sequence[str], *, quiet: bool = False) -> None:
    """Compile the kernels of the noise if this machine has not yet, and say so before.

    Args:
        optimizers: names in `METHODS` whose steps will need them.
        quiet: do not say so.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the compiling has ended.
    """
    if importlib.util.find_spec("numba") is None or _compiled():
        return
    if not quiet:
        say("compiling the noise once, about 10 s")
    process = multiprocessing.get_context("spawn").Process(
        target=_take_steps, args=(tuple(optimizers),), daemon=True
    )
    with _deaf():  # the process must not hear Ctrl-C: it would print where it was
        process.start()
    try:
        process.join()
    except BaseException:
        process.kill()
        process.join()
        raise


def _take_steps(optimizers: Sequence[str]) -> None:
    """Two steps of each optimizer, of one replica and of two."""
    import torch

    from dopaminergic.lab.fleet import Fleet
    from dopaminergic.lab.optimizers import find_method
    from dopaminergic.lab.tasks import make_task

    torch.set_num_threads(1)
    # All that goes wrong here goes wrong in the training, which says so.
    with open(os.devnull, "w") as nowhere, contextlib.suppress(Exception):
        sys.stderr = nowhere
        task = make_task("xor-2-8-1")
        for name in optimizers:
            rate = find_method(name).grid[0]
            for replicas in (1, 2):
                fleet = Fleet(task, name, list(range(replicas)), [rate] * replicas, 5000)
                fleet.step()
                fleet.step()


def _compiled() -> bool:
    """Whether numba's cache has the kernels of this version; a guess by the times of its files."""
    home = Path(__file__).parents[1] / "noise"
    newest = max(path.stat().st_mtime_ns for path in home.rglob("*.py"))
    ending = f".py{sys.version_info.major}{sys.version_info.minor}{_threads()}.nbi"
    kept = [
        path
        for folder in _places(home / "cpu")
        for path in folder.rglob(f"kernels.*{ending}")
        if path.stat().st_mtime_ns > newest
    ]
    return all(any(f".{kernel}-" in path.name for path in kept) for kernel in KERNELS)


def _threads() -> str:
    return "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""


def _places(home: Path) -> list[Path]:
    """The folders where numba may keep what it compiled."""
    own = os.environ.get("NUMBA_CACHE_DIR")
    if own:
        return [Path(own)]
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [home / "__pycache__", Path(user) / "numba"]


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start in this block ignore Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: Callable[..., object] | int | None = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
