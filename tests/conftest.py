"""What all tests share: one thread, and one run for each row of the table of optimizers."""

from __future__ import annotations

import contextlib
import importlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dopaminergic.distributed import Ranks
from optimizers import ROWS, VECTOR, Row

# Triton reads once, when it is imported, that its interpreter is to run. Other people's frameworks
# import it too, so it comes first.
if not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Networks this small are slower with several, and sums may differ."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """Shells let jobs in the background ignore it, and tests raise it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    """Every optimizer in turn."""
    return request.param


@pytest.fixture(params=[*ROWS, VECTOR], ids=lambda row: row.name)
def any_row(request: pytest.FixtureRequest) -> Row:
    """Every optimizer, also the one that keeps whole vectors of regrets."""
    return request.param


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Ranks]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Ranks()
    dist.destroy_process_group()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a run's journal goes."""
    return tmp_path / "run.journal"
