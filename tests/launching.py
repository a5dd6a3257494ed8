"""Processes of ranks for the tests, started by a server that has imported all and compiled the
kernels.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.multiprocessing as mp

SIZE = 4  # ranks
LIMIT = 400.0  # seconds; the first time, numba compiles
TESTS = Path(__file__).parent


@contextlib.contextmanager
def _paths() -> Iterator[None]:
    """Let the server find the tests, as newer versions of Python do by themselves."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        map(str, [TESTS, TESTS.parent / "src", *filter(None, [before])])
    )
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _server() -> Any:
    """What starts processes, by a server that is there from now on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warmed"])
    with _paths():
        forkserver.ensure_running()
    return context


def start(main: Callable[[int, str], None], folder: Path, size: int) -> Any:
    """Start a function in as many processes; what comes back is waited for by `join`."""
    _server()
    return mp.start_processes(  # pyright: ignore[reportPrivateImportUsage]
        main, (str(folder),), nprocs=size, join=False, start_method="forkserver"
    )


class Done(NamedTuple):
    """How a script has ended, and what it has printed."""

    code: int | None
    out: str
    err: str


def _run_as_main(
    script: str, arguments: list[str], environment: dict[str, str], folder: str
) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ |= environment
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    warnings.simplefilter("error")
    runpy.run_path(script, run_name="__main__")


def run_scripts(
    script: Path, *arguments: str, environments: list[dict[str, str]], limit: float = LIMIT
) -> list[Done]:
    """Run a script as `python -W error` would, side by side in as many environments.

    Torch and the library are in memory already, which else takes each process three seconds.
    """
    context = _server()
    with tempfile.TemporaryDirectory() as base:
        processes = []
        for number, environment in enumerate(environments):
            folder = Path(base) / str(number)
            folder.mkdir()
            given = (str(script), list(arguments), environment, str(folder))
            processes.append(context.Process(target=_run_as_main, args=given))
            processes[-1].start()
        end = time.monotonic() + limit
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()  # nothing, where it has ended
            process.join()
        return [
            Done(
                process.exitcode, *(Path(base, str(i), name).read_text() for name in ("out", "err"))
            )
            for i, process in enumerate(processes)
        ]


def run_ranks(
    main: Callable[[int, str], None], folder: Path, size: int, limit: float = LIMIT
) -> None:
    """Run a function in as many processes; kill them when they take longer than `limit` seconds."""
    context = start(main, folder, size)
    end = time.monotonic() + limit
    try:
        while not context.join(
            timeout=max(0.0, end - time.monotonic())
        ):  # it returns whenever a process ends
            assert time.monotonic() < end, "the ranks hang"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def ranks_that_leave(main: Callable[[int, str], None], name: str) -> Any:
    """A fixture of a module: the file that each of four ranks left, as a list.

    The ranks run once, also where several workers share the tests.
    """

    @pytest.fixture(scope="module", name="found")
    def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
        try:
            folder.mkdir()
        except FileExistsError:
            end = time.monotonic() + LIMIT
            while not (folder / "ended").exists():
                assert time.monotonic() < end, "the ranks of another worker hang"
                time.sleep(0.1)
        else:
            try:
                run_ranks(main, folder, SIZE)
            finally:
                (folder / "ended").touch()
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(SIZE)]

    return found
