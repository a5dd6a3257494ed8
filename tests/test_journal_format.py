"""Journals: forged files are refused, known ones read for ever."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dopaminergic import SPSA, Journal, replay
from dopaminergic.journal import JournalError, read
from dopaminergic.journal.format import HEADER, STEP, Codec, read_varint, varint
from dopaminergic.journal.texts import to_json
from journals import bits, forged, trained
from optimizers import Regression

# ---- hostile files -------------------------------------------------------------------------------


def test_sizes_are_checked_before_anything_is_made(path: Path) -> None:
    trained(path, 2)
    whole = path.read_bytes()
    huge = varint(1 << 40)
    payloads = [
        bytes([0]) + huge,  # directions that are not there
        bytes([2]) + huge + bytes(8),  # one number for all of them
        bytes([4]) + varint(3) + bytes(24) + huge,
        bytes([8]) + varint(0) + huge,  # traces
        bytes([8]) + varint(0) + varint(1) + varint(2) + huge,
        bytes([8]) + varint(0) + varint(1) + varint(3 + (1 << 31)),
        b"",
        bytes([0, 0, 0]),
    ]
    for payload in payloads:
        path.write_bytes(whole)
        forged(path, (STEP, payload))
        fresh = Regression()
        with pytest.raises(JournalError, match="record at byte"):
            replay(fresh.model, path)
        assert bits(fresh) == bits(Regression())
    path.write_bytes(whole)
    path.write_bytes(whole[:10] + bytes([HEADER]) + huge + b"{}")
    with pytest.raises(JournalError, match="cut off"):
        read(path)


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"tensor": "float64", "shape": [1000000000], "values": [1]}',
        b'{"tensor": "nothing", "shape": [1], "values": [1]}',
    ],
)
def test_headers_that_make_no_sense(path: Path, text: bytes) -> None:
    trained(path, 2)
    forged(path, first=text)
    with pytest.raises(JournalError, match="before its first step"):
        read(path)


WRONG = [
    {"step": -1},
    {"step": "0"},
    {"groups": []},
    {"settings": {"seed": -1}},
    {"perturbation": {"groups": True}},
    {"perturbation": []},
    {"x": 1},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_headers_with_wrong_values(path: Path, change: dict[str, Any]) -> None:
    trained(path, 2)
    header = {**read(path).headers[0]._asdict(), **change}
    header = {
        name: value for name, value in header.items() if "x" not in change or name != "library"
    }
    forged(path, first=to_json(header))
    with pytest.raises(JournalError, match="the header"):
        read(path)


def test_other_files_and_versions_are_refused(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(JournalError, match=r"not a journal: it starts with b'PK"):
        read(path)
    trained(path.with_suffix(".2"))
    whole = path.with_suffix(".2").read_bytes()
    path.write_bytes(whole[:8] + struct.pack("<H", 99) + whole[10:])
    with pytest.raises(JournalError, match=r"version 99.*version 1"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(path.with_name("missing"))


# ---- the format ----------------------------------------------------------------------------------


@given(st.integers(0, (1 << 62) - 1))
def test_numbers_of_any_size(value: int) -> None:
    assert read_varint(b"\xff" + varint(value) + b"\x01", 1) == (value, len(varint(value)) + 1)


numbers = st.floats(width=64)


@settings(deadline=None)
@given(st.data())
def test_steps_come_back_to_the_bit(data: st.DataObject) -> None:
    groups, replicas = data.draw(st.integers(1, 3)), data.draw(st.none() | st.integers(1, 3))
    multiple: Any = (
        numbers if replicas is None else st.lists(numbers, min_size=replicas, max_size=replicas)
    )
    row = st.lists(
        multiple.map(lambda m: m if replicas is None else np.array(m)),
        min_size=groups,
        max_size=groups,
    )
    direction = st.integers(0, (1 << 28) - 1)
    terms = st.lists(st.tuples(direction, row), max_size=3)
    writer, reader = Codec(groups, replicas), Codec(groups, replicas)
    for _ in range(2):
        update = data.draw(
            terms | st.lists(row, max_size=3).map(lambda rows: list(enumerate(rows)))
        )
        scales, traces = data.draw(st.none() | row), data.draw(st.lists(terms, max_size=3))
        back = [[(d, [-m for m in ms]) for d, ms in each] for each in traces]
        traces = [*traces, *back, *traces, update]
        step = reader.read_step(writer.step(update, scales, traces))
        assert image(step.terms) == image(update)
        assert (step.scales is None) == (scales is None)
        assert image([(0, step.scales or [])]) == image([(0, scales or [])])
        assert list(map(image, step.traces)) == list(map(image, traces))


def image(terms: Any) -> Any:
    return [(d, [np.asarray(m, np.float64).tobytes() for m in multiples]) for d, multiples in terms]


def test_a_known_journal_is_read_for_ever(path: Path) -> None:
    """The bytes of version 1; where this fails, the version must change."""
    weights = nn.Parameter(torch.ones(2))
    optimizer = SPSA([weights], lr=0.5, sigma=0.25)
    with Journal(optimizer, path):
        optimizer.step(lambda: weights.double().sum())
    raw = [raw for raw in read(path).records() if raw.kind == STEP]
    multiple = optimizer.last_rpe * -0.5 / 0.25
    assert raw[0].payload == b"\x00\x01" + struct.pack("<d", multiple)
    whole = path.read_bytes()
    assert whole[:10] == b"\x89DOPAJ\r\n\x01\x00"
    record = whole[raw[0].start : raw[0].end]
    assert record[:2] == b"\x02\x0a"
    # The checksum is that of all bytes before it, without the other checksums.
    records = list(read(path).records())
    so_far = b"".join(
        [whole[:10], *(whole[r.start : r.end - 4] for r in records if r.start <= raw[0].start)]
    )
    assert record[-4:] == zlib.crc32(so_far).to_bytes(4, "little")
    header = json.loads(records[0].payload)
    assert set(header) == {
        "library",
        "optimizer",
        "settings",
        "step",
        "groups",
        "weights",
        "perturbation",
    }
    assert header["groups"][0]["parameters"] == [
        {"name": None, "shape": [2], "dtype": "float32", "trainable": True}
    ]
