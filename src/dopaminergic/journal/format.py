"""The bytes of a journal: framed records, chained by checksums and bounded before allocation.

    file = magic, version, record, record, ...
    record = kind, length, payload, checksum of all bytes so far

`docs/journal.md` describes every byte. Integers are little endian or LEB128, numbers are float64,
text is JSON; nothing in a journal is code.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from dopaminergic.noise import Multiple, Term
from dopaminergic.noise.reference import MAX_DIRECTIONS

# Magic and version; a copy in text mode changes the line end in it.
START = struct.pack("<8sH", b"\x89DOPAJ\r\n", 1)
HEADER, STEP, SKIPPED, SIGMA, SNAPSHOT, TRACE = range(1, 7)
KINDS = {
    HEADER: "header",
    STEP: "step",
    SKIPPED: "skipped",
    SIGMA: "sigma",
    SNAPSHOT: "snapshot",
    TRACE: "trace",
}
HAS_SCALES, ALL_EQUAL, NUMBERED, HAS_TRACES = 1, 2, 4, 8  # flags of a step
# Codes of a trace, the last one and all above it name a direction.
BACK, AS_UPDATE, WRITTEN_OUT, ALONG = range(4)
MOST_EQUAL = 1 << 16  # directions that one stored number may stand for
MOST_BYTES = 128 << 20  # of a record; one with more could not be read within 1 GiB
MOST_MEMORY = 384 << 20  # bytes that the numbers of a record may take as Python's objects
CHECKSUM_BYTES = 4
DIGEST_BYTES = 32


class JournalError(ValueError):
    """A journal that cannot be written, read or replayed as asked."""


class Damage(Exception):  # noqa: N818  (a place, which `read` reports, not an error)
    """Where the whole records of a journal end before the file does.

    Attributes:
        offset: number of bytes before the damage, all of which are sound.
        reason: the fault there.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"at byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason


class Raw(NamedTuple):
    """A record with a sound checksum: kind, payload, start, end and checksum."""

    kind: int
    payload: bytes
    start: int
    end: int
    checksum: int


class Step(NamedTuple):
    """The change that one step makes to the weights.

    Attributes:
        terms: directions and their multiples for each group, for `Weights.update`.
        scales: the factors of weight decay on the weights of each group; None for ones.
        traces: the writes in place before, see `Weights.traces`.
    """

    terms: list[Term]
    scales: list[Multiple] | None
    traces: list[list[Term]]


# ---- framing -------------------------------------------------------------------------------------


def framed(kind: int, payload: bytes, checksum: int) -> tuple[bytes, int]:
    """A record's bytes and its checksum, from the checksum of the record before it."""
    record = bytes((kind,)) + varint(len(payload)) + payload
    checksum = zlib.crc32(record, checksum)
    return record + checksum.to_bytes(CHECKSUM_BYTES, "little"), checksum


def scan(file: BinaryIO, start: int, size: int, checksum: int) -> Iterator[Raw]:
    """Records from `start` on, one by one.

    Raises `Damage` at the first that is not whole before byte `size`.
    """
    file.seek(start)
    while start < size:
        head = file.read(min(2, size - start))
        while len(head) > 1 and head[-1] & 0x80 and len(head) < 10 and start + len(head) < size:
            head += file.read(1)
        try:
            length, _ = read_varint(head, 1)
        except JournalError:
            raise Damage(start, "a record is cut off, or its length is damaged") from None
        end = start + len(head) + length + CHECKSUM_BYTES
        if end > size:  # before anything of this length is read
            raise Damage(
                start, f"a record of {end - start:,} bytes is cut off after {size - start:,}"
            )
        if length > MOST_BYTES:
            raise Damage(
                start, f"a record of {length:,} bytes is longer than any may be, {MOST_BYTES:,}"
            )
        payload = file.read(length)
        checksum = zlib.crc32(payload, zlib.crc32(head, checksum))
        if file.read(CHECKSUM_BYTES) != checksum.to_bytes(CHECKSUM_BYTES, "little"):
            raise Damage(start, "the checksum does not fit the record")
        if head[0] not in KINDS:
            raise Damage(start, f"there are no records of kind {head[0]}")
        yield Raw(head[0], payload, start, end, checksum)
        start = end


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first.

    The highest bit of a byte says that more follow. For example, 300 is the bytes AC 02.
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and the place after it."""
    value = 0
    for i in range(9):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 0x7F) << 7 * i
        if data[at + i] < 0x80:
            return value, at + i + 1
    raise JournalError("a number is cut off")


# ---- numbers of a step ---------------------------------------------------------------------------


class Codec:
    """Turns steps into payloads and back.

    Both directions remember the last displacement, to name it in one byte.

    Args:
        groups: number of parameter groups.
        replicas: R of a fleet; None for one model.
    """

    def __init__(self, groups: int, replicas: int | None) -> None:
        self.groups = groups
        self.replicas = replicas
        self.width = 8 * groups * (replicas or 1)  # bytes of the multiples of a direction
        self.displacement = b""
        self._spent = 0

    def step(
        self, terms: list[Term], scales: list[Multiple] | None, traces: list[list[Term]]
    ) -> bytes:
        """The payload of a step."""
        rows = self._bytes([multiples for _, multiples in terms])
        numbered = [direction for direction, _ in terms] != list(range(len(terms)))
        equal = 1 < len(terms) <= MOST_EQUAL and rows == rows[:8] * (len(rows) // 8)
        flags = (
            (scales is not None) * HAS_SCALES
            | equal * ALL_EQUAL
            | numbered * NUMBERED
            | bool(traces) * HAS_TRACES
        )
        parts = [
            bytes((flags,)),
            varint(len(terms)),
            self._bytes([scales]) if scales is not None else b"",
        ]
        parts += [rows[:8] if equal else rows, *(varint(d) for d, _ in terms if numbered)]
        return b"".join([*parts, self.traces(traces, terms) if traces else b""])

    def read_step(self, data: bytes) -> Step:
        """The step that a payload stands for."""
        flags = data[0] if data else 0
        (count, at) = read_varint(data, 1)
        self._spent = 0
        scales, at = self._floats(data, at, 1) if flags & HAS_SCALES else (None, at)
        if flags & ALL_EQUAL:
            if count > MOST_EQUAL or at + 8 > len(data):
                raise JournalError(f"a step claims {count:,} equal directions")
            # One row for all of them: written out, some bytes would stand for gigabytes.
            self._spend(self.width)
            row = self._floats(data[at : at + 8] * (self.width // 8), 0, 1)[0][0]
            rows = [row] * count
            at = at + 8
        else:
            rows, at = self._floats(data, at, count)
        directions, at = (
            self._directions(data, at, count) if flags & NUMBERED else (range(count), at)
        )
        terms = list(zip(directions, rows, strict=True))
        traces, at = self._read_traces(data, at, terms) if flags & HAS_TRACES else ([], at)
        if at != len(data):
            raise JournalError(f"{len(data) - at} bytes too many in a step")
        return Step(terms, None if scales is None else scales[0], traces)

    def traces(self, traces: list[list[Term]], update: list[Term]) -> bytes:
        """The writes in place: at the best a byte for each."""
        parts = [varint(len(traces))]
        for terms in traces:
            written = self._bytes([multiples for _, multiples in terms])
            if not terms:
                parts.append(varint(BACK))
            elif len(terms) == 1 and written == self.displacement:
                parts.append(varint(ALONG + 2 * terms[0][0]))
            elif len(terms) == 1 and written == self._negative(self.displacement):
                parts.append(varint(ALONG + 2 * terms[0][0] + 1))
            elif [d for d, _ in terms] == [d for d, _ in update] and written == self._bytes(
                [m for _, m in update]
            ):
                parts.append(varint(AS_UPDATE))
            else:
                parts += [
                    varint(WRITTEN_OUT),
                    varint(len(terms)),
                    *(varint(d) for d, _ in terms),
                    written,
                ]
                self.displacement = written if len(terms) == 1 else self.displacement
        return b"".join(parts)

    def read_traces(self, data: bytes) -> list[list[Term]]:
        """The payload of writes that no step followed."""
        self._spent = 0
        traces, at = self._read_traces(data, 0, [])
        if at != len(data):
            raise JournalError(f"{len(data) - at} bytes too many in a trace")
        return traces

    def _read_traces(
        self, data: bytes, at: int, update: list[Term]
    ) -> tuple[list[list[Term]], int]:
        traces: list[list[Term]] = []
        shared: dict[bytes, list[Multiple]] = {}  # a trace of a byte gets no numbers of its own
        count, at = read_varint(data, at)
        for _ in range(count):
            code, at = read_varint(data, at)
            self._spend(160)
            if code in (BACK, AS_UPDATE):
                traces.append(update if code == AS_UPDATE else [])
            elif code == WRITTEN_OUT:
                number, at = read_varint(data, at)
                directions, at = self._directions(data, at, number)
                rows, end = self._floats(data, at, number)
                self.displacement = data[at:end] if number == 1 else self.displacement
                traces.append(list(zip(directions, rows, strict=True)))
                at = end
            else:
                backwards = (code - ALONG) & 1
                direction = (code - ALONG) >> 1
                row = self._negative(self.displacement) if backwards else self.displacement
                if direction >= MAX_DIRECTIONS:
                    raise JournalError(f"there is no direction {direction}")
                if row not in shared:
                    shared[row] = self._floats(row, 0, 1)[0][0]
                traces.append([(direction, shared[row])])
        return traces, at

    def _bytes(self, rows: Sequence[list[Multiple]]) -> bytes:
        if self.replicas is None:
            numbers = [m for row in rows for m in row]
            return struct.pack(f"<{len(numbers)}d", *numbers)
        shape = (self.replicas,)
        return b"".join(
            np.broadcast_to(np.asarray(m, "<f8"), shape).tobytes() for row in rows for m in row
        )

    def _floats(self, data: bytes, at: int, count: int) -> tuple[list[list[Multiple]], int]:
        end = at + count * self.width
        if end > len(data):
            raise JournalError(f"{count:,} directions do not fit into {len(data):,} bytes")
        self._spend(count * (200 + 144 * self.groups + self.width))
        if self.replicas is None:
            numbers = struct.unpack_from(f"<{count * self.groups}d", data, at)
            n = self.groups
            return [list(numbers[i : i + n]) for i in range(0, len(numbers), n)], end
        rows = np.frombuffer(data, "<f8", count * self.width // 8, at).astype(np.float64)
        return [list(row) for row in rows.reshape(count, self.groups, self.replicas)], end

    def _directions(self, data: bytes, at: int, count: int) -> tuple[list[int], int]:
        if count > len(data) - at:
            raise JournalError(f"{count:,} directions do not fit into {len(data):,} bytes")
        directions = []
        for _ in range(count):
            direction, at = read_varint(data, at)
            if direction >= MAX_DIRECTIONS:
                raise JournalError(f"there is no direction {direction}")
            directions.append(direction)
        return directions, at

    def _spend(self, memory: int) -> None:
        """Count the memory that a record asks for, before it gets it."""
        self._spent += memory
        if self._spent > MOST_MEMORY:
            raise JournalError(
                f"its numbers would take more than {MOST_MEMORY >> 20} MiB of memory"
            )

    @staticmethod
    def _negative(row: bytes) -> bytes:
        return (-np.frombuffer(row, "<f8")).tobytes() if row else b""
