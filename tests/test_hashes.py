"""Training gives the bits that the table of hashes holds, and the table knows every situation."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from dopaminergic.noise import fast_kernels
from hashes import __main__ as command
from hashes import table
from hashes.digests import canonical, journal_content
from hashes.runs import Row
from hashes.situations import LEVELS, Situation, cover, possible, situations
from hashes.special import KINDS, PlannedError, row_of

EVERY = 13  # of the situations, one is trained here; the command trains all
RECORDED = table.read()
QUICK = [s for s in situations()[::EVERY] if s.special != "jax" and s.engine == "numba"]

needs_numba = pytest.mark.skipif(
    fast_kernels() is None, reason="noise comes from torch alone without numba"
)
same_machine = pytest.mark.skipif(
    bool(table.other_machine(RECORDED.head)),
    reason=f"bits are of: {table.other_machine(RECORDED.head)}",
)


@needs_numba
@same_machine
@pytest.mark.parametrize("situation", QUICK, ids=lambda situation: situation.name)
def test_training_gives_the_recorded_bits(situation: Situation) -> None:
    assert row_of(situation) == RECORDED.rows[situation.name]


def test_the_table_has_each_situation_once_in_its_order() -> None:
    names = [situation.name for situation in situations()]
    assert list(RECORDED.rows) == names, "make the table anew: python -m tests.hashes --write"
    assert len(set(names)) == len(names) >= 200


def test_no_situation_is_refused() -> None:
    assert not [name for name, row in RECORDED.rows.items() if row.weights.startswith("refused")]


def test_no_two_situations_of_the_cover_end_in_the_same_state() -> None:
    rows = [RECORDED.rows[situation.name] for situation in cover()]
    assert len({row.state for row in rows}) == len(rows)


def test_an_exception_a_resumed_journal_and_a_loaded_state_leave_no_trace() -> None:
    for situation in situations():
        if situation.special == "raising":
            row, *others = [
                RECORDED.rows[situation._replace(special=special).name]
                for special in ("raising", "resumed", "loaded")
            ]
            assert all(
                (other.weights, other.losses) == (row.weights, row.losses) for other in others
            )


def test_each_three_levels_that_go_together_occur_in_a_situation() -> None:
    found = {triple for row in cover() for triple in itertools.combinations(enumerate(row[:-1]), 3)}
    factors = list(LEVELS.values())
    for numbers in itertools.combinations(range(len(factors)), 3):
        for levels in itertools.product(*(factors[i] for i in numbers)):
            row = [names[0] for names in factors]
            for number, level in zip(numbers, levels, strict=True):
                row[number] = level
            if possible(row):
                assert tuple(zip(numbers, levels, strict=True)) in found, levels


def test_each_special_situation_is_in_the_table() -> None:
    assert {situation.special for situation in situations()} == KINDS.keys()


@needs_numba
def test_numba_and_the_reference_give_the_same_row() -> None:
    situation = Situation(
        "Dopamine2", "bfloat16", "large", directions="K3", groups="2 groups", change="decay"
    )
    assert row_of(situation) == row_of(situation._replace(engine="torch"))


@needs_numba
def test_a_row_is_the_same_again_and_another_where_a_bit_of_a_setting_is() -> None:
    situation = Situation("SPSA")
    row = row_of(situation)
    assert row == row_of(situation)
    assert all(
        a != b for a, b in zip(row[:5], row_of(situation._replace(change="decay"))[:5], strict=True)
    )


@needs_numba
def test_the_command_names_rows_and_columns_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = Situation("SPSA", mode="fleet", special="rates").name
    right = row_of(Situation("SPSA", mode="fleet", special="rates"))
    monkeypatch.setattr(table, "PATH", tmp_path / "table.txt")
    table.write({name: right})
    assert command.main(["--only", name]) == 0
    table.write({name: right._replace(losses="0" * 12, calls="1")})
    assert command.main(["--only", name]) == 1
    said = capsys.readouterr().out
    assert f"{name}: losses 000000000000 -> {right.losses}, calls 1 -> {right.calls}\n" in said
    table.write({})
    assert command.main(["--only", name]) == 1
    assert f"{name}: not in the table\n" in capsys.readouterr().out


def raise_planned_error(*_: object) -> None:
    raise PlannedError("on purpose")


@needs_numba
def test_a_situation_that_fails_is_told_and_stops_no_other_and_no_such_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [
        Situation("SPSA", mode="fleet", special="rates"),
        Situation("Dopamine", mode="fleet", special="rates"),
    ]
    monkeypatch.setattr(command, "situations", lambda: two)
    monkeypatch.setattr(table, "PATH", tmp_path / "table.txt")
    table.write({two[1].name: row_of(two[1])})
    monkeypatch.setattr("dopaminergic.SPSA.step", raise_planned_error)
    assert command.main([]) == 1
    said = capsys.readouterr().out
    assert f"{two[0].name}: PlannedError: on purpose\n" in said
    assert f"{two[1].name}" not in said
    assert command.main(["--write"]) == 1
    assert table.read() == (table.head(), {two[1].name: row_of(two[1])})


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = {"a/b": Row("1", "2", "3", "4", "-", "5")}
    table.write(rows, tmp_path / "table.txt")
    assert table.read(tmp_path / "table.txt") == (table.head(), rows)


def test_text_tells_values_apart_to_the_last_bit() -> None:
    one = torch.tensor([1.0])
    values = [
        0.0,
        -0.0,
        0,
        False,
        None,
        "0",
        [0],
        (0,),
        {"a": 0, "b": 1},
        {"b": 1, "a": 0},
        1.0,
        1.0 + 2**-52,
    ]
    values += [
        one,
        one.double(),
        one[0],
        torch.nextafter(one, 2 * one),
        torch.tensor([-0.0]),
        torch.tensor([0.0]),
    ]
    assert len({canonical(value) for value in values}) == len(values)


def test_layout_in_memory_does_not_show() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert canonical(x) == canonical(x.t().contiguous().t())


def test_the_version_in_a_journal_does_not_show_but_its_numbers_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dopaminergic import SPSA, Journal
    from dopaminergic.journal import describing

    def content(version: str, lr: float) -> bytes:
        monkeypatch.setattr(describing, "__version__", version)
        w = torch.nn.Parameter(torch.ones(3))
        optimizer, path = SPSA([w], lr=lr), tmp_path / f"{version}-{lr}"
        with Journal(optimizer, path):
            optimizer.step(lambda: w.square().sum())
        return journal_content(path)

    assert content("1.0", 0.1) == content("22.33", 0.1) != content("1.0", 0.2)
