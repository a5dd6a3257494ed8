"""Journals on full disks and in damaged files."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dopaminergic import SPSA, Dopamine, Journal, replay
from dopaminergic.journal import Contents, JournalDamage, JournalError, read
from journals import assert_rebuilt, bits, trained
from optimizers import Regression

# ---- disks ---------------------------------------------------------------------------------------


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_nothing(path: Path) -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    ends = [bits(problem)]
    with Journal(optimizer, path) as journal:
        with full_after(path.stat().st_size + 20):
            for failed in range(3):
                if failed:
                    with pytest.raises(OSError, match=r"step has happened.*are kept"):
                        optimizer.step(problem.loss)
                else:
                    optimizer.step(problem.loss)
                ends.append(bits(problem))
            # Half a record is there.
            assert replay(Regression().model, read(path)._replace(damage=None)) == 1
            with pytest.raises(OSError, match="step has happened"):
                journal.close()
        optimizer.step(problem.loss)  # not recorded: it was asked to stop
    contents = read(path)
    assert contents.damage is None
    assert contents.steps == 3
    assert_rebuilt(Regression, path, ends)


def test_where_nothing_can_be_written_there_is_an_error_first(path: Path) -> None:
    optimizer = Dopamine(Regression().model.parameters())
    path.touch()
    for folder in (path, path.with_name("missing")):
        with pytest.raises(OSError, match="cannot be written"):
            Journal(optimizer, folder / "a.journal")
    with full_after(100), pytest.raises(OSError, match="not written"):
        Journal(optimizer, path.with_suffix(".new"))
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert optimizer._listeners == []


def test_two_writers_are_refused(path: Path) -> None:
    optimizer = Dopamine(Regression().model.parameters())
    with Journal(optimizer, path), pytest.raises(JournalError, match="being written"):
        Journal(Dopamine(Regression().model.parameters()), path, resume=True)


def test_wrong_arguments(path: Path) -> None:
    with pytest.raises(TypeError, match="SGD"):
        Journal(torch.optim.SGD(Regression().model.parameters()), path)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"every must be finite and >= 1, got 0"):
        Journal(Dopamine(Regression().model.parameters()), path, every=0)
    optimizer = Dopamine([{"params": Regression().model.parameters(), "note": object()}])
    with pytest.raises(TypeError, match="cannot hold <object"):
        Journal(optimizer, path)
    assert not path.exists()


# ---- damage --------------------------------------------------------------------------------------


def read_quietly(path: Path) -> Contents | None:
    try:
        return read(path)
    except JournalError:
        return None


def test_cut_off_anywhere(path: Path) -> None:
    """Every whole record before the cut is used, and what is lost is named."""
    _, _, ends = trained(path, 5, every=2)
    whole, sound = path.read_bytes(), read(path)
    bounds = [raw.end for raw in sound.records()]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        contents = read_quietly(path)
        if contents is None:
            assert size < sound.snapshots[0].end
            continue
        assert contents.size == max(b for b in bounds if b <= size)
        assert (contents.damage is None) == (size in bounds)
        if contents.damage is not None and size % 25 == 0:
            fresh = Regression()
            with pytest.warns(
                JournalDamage, match=f"at byte {contents.size}.*{contents.steps} whole steps"
            ):
                replay(fresh.model, path)
            assert bits(fresh) == ends[contents.steps]


def test_any_flipped_bit_is_found(path: Path) -> None:
    _, _, ends = trained(path, 5, every=2)
    whole, sound = path.read_bytes(), read(path)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        contents = read_quietly(path)
        if contents is None:
            assert at < sound.snapshots[0].end
            continue
        assert contents.damage is not None
        assert contents.size <= at
    assert len(ends) == 6


def test_records_that_are_lost_or_in_another_order_are_found(path: Path) -> None:
    """Each checksum is that of all bytes before it too."""
    trained(path, 5)
    whole, records = path.read_bytes(), list(read(path).records())
    one, two = records[2:4]
    path.write_bytes(whole[: one.start] + whole[one.end :])
    assert read(path).steps == 0
    path.write_bytes(
        whole[: one.start]
        + whole[two.start : two.end]
        + whole[one.start : one.end]
        + whole[two.end :]
    )
    assert read(path).steps == 0


def test_a_torn_tail_is_cut_off_after_saying_so(path: Path) -> None:
    _, _, ends = trained(path, 5, every=2)
    path.write_bytes(path.read_bytes()[:-20])
    again = Regression()
    optimizer = SPSA(again.model.named_parameters(), directions=2, seed=3)
    with pytest.warns(JournalDamage, match=r"damaged at byte \d+.*cut off now"):
        journal = Journal(optimizer, path, every=2, resume=True)
    with journal:
        assert journal.steps == 4
        optimizer.step(again.loss)
    assert read(path).damage is None
    assert_rebuilt(Regression, path, ends)
