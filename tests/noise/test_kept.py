"""Compiled kernels that are kept on disk: whatever became of the files, results are right."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")

from dopaminergic.noise.cpu import kernels

SOURCE = """
from dopaminergic.noise.cpu.kernels import kept

@kept
def double(x):
    return 2 * x

@kept
def triple(x):
    return 3 * x
"""

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="FIFOs, and files in use that are replaced"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module whose kernels can be kept beside it and nowhere else."""
    (tmp_path / "module.py").write_text(SOURCE)
    (tmp_path / "in the way").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "in the way"))
    monkeypatch.setattr(kernels, "_said", [])
    return tmp_path


def results(folder: Path) -> tuple[tuple[int, int], int]:
    """Both kernels, as a new process finds them; and how many came from the disk."""
    spec = importlib.util.spec_from_file_location("module", folder / "module.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.double(21), module.triple(21)
    both = (module.double, module.triple)
    return found, sum(
        sum(each.stats.cache_hits.values()) for each in both if hasattr(each, "stats")
    )


def files(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / "__pycache__").glob(f"module.*{kind}"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_text(path: Path) -> None:
    path.write_text("notes of somebody else\n")


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def remove(path: Path) -> None:
    path.unlink()


def exchange(path: Path) -> None:
    """The file of the other kernel, whole and as it was written."""
    [other] = [each for each in files(path.parent.parent, path.suffix) if each != path]
    shutil.copy(other, path)


@pytest.mark.parametrize("kind", [".nbi", ".nbc"])
@pytest.mark.parametrize("harm", [empty, cut, flip, make_text, make_fifo, remove, exchange])
def test_damaged_files_are_made_again(
    folder: Path, harm: Callable[[Path], None], kind: str
) -> None:
    assert results(folder) == ((42, 63), 0)
    assert results(folder) == ((42, 63), 2)
    harm(files(folder, kind)[0])
    assert results(folder) == ((42, 63), 1)
    assert results(folder) == ((42, 63), 2)


@pytest.mark.parametrize("kind", [".nbi", ".nbc"])
def test_a_folder_in_the_place_of_a_file_costs_time_alone_and_is_said(
    folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    results(folder)
    path = files(folder, kind)[0]
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        assert results(folder) == ((42, 63), 1)
        assert results(folder) == ((42, 63), 1)
    assert "set NUMBA_CACHE_DIR to a directory" in caplog.text


def test_machine_code_of_an_older_source_is_not_run(folder: Path) -> None:
    """As a kill leaves it: the index is new already, and the file that it names is still the old
    one.
    """
    results(folder)
    old = {path: path.read_bytes() for path in files(folder, ".nbc")}
    (folder / "module.py").write_text(SOURCE.replace("2 * x", "20 * x").replace("3 * x", "30 * x"))
    assert results(folder) == ((420, 630), 0)
    for path, content in old.items():
        path.write_bytes(content)
    assert results(folder) == ((420, 630), 0)
    assert results(folder) == ((420, 630), 2)


def test_kernels_are_compiled_where_nothing_can_be_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "__pycache__").touch()  # so that there can be no folder of that name
    with caplog.at_level(logging.WARNING):
        assert results(folder) == ((42, 63), 0)
    assert caplog.text.count("set NUMBA_CACHE_DIR to a directory") == 1


def test_a_cache_that_vanishes_before_it_is_written_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results(folder)
    spec = importlib.util.spec_from_file_location("module", folder / "module.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.rmtree(folder / "__pycache__")
    (folder / "__pycache__").touch()
    with caplog.at_level(logging.WARNING):
        assert module.double(21.5) == 43.0
    assert "cannot" in caplog.text
