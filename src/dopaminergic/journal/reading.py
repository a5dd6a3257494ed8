"""A journal's contents: its headers, its snapshots, and where it is damaged."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dopaminergic.files import open_file, shown
from dopaminergic.journal.format import (
    DIGEST_BYTES,
    HEADER,
    KINDS,
    SKIPPED,
    SNAPSHOT,
    START,
    STEP,
    Codec,
    Damage,
    JournalError,
    Raw,
    scan,
)
from dopaminergic.journal.texts import from_json, json_memory

MOST_HELD = 384 << 20  # bytes of all headers and snapshots together
SNAPSHOT_MEMORY = 400
TOO_MANY = (
    "it has more headers and snapshots than are kept in memory (384 MiB); replay it with more "
    "distance between them"
)
# Options of `Weights`, of which a header may hold those that it knows.
PERTURBATION = ("shared", "keep_copies")


class JournalDamage(UserWarning):
    """The end of a journal cannot be read; everything before it is used."""


class Header(NamedTuple):
    """The beginning of a section of a journal.

    A journal has more than one after `add_param_group` or `merge`.

    Attributes:
        library: version of this library that wrote it.
        optimizer: name of its class.
        settings: its settings, the noise and the seeds among them.
        step: number of its next step.
        groups: for each its `sigma` and its `parameters`, of which each has `name`, `shape`,
            `dtype`, `trainable`.
        weights: SHA-256 of the weights at this point; "" where they go on from the section before.
        perturbation: how weights are perturbed, as far as updates depend on it: options of
            `Weights`, True or False.
    """

    library: str
    optimizer: str
    settings: dict[str, Any]
    step: int
    groups: list[dict[str, Any]]
    weights: str
    perturbation: dict[str, bool]

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """Of all groups, in order."""
        return [p for group in self.groups for p in group["parameters"]]

    @property
    def sigmas(self) -> list[float]:
        """Of each group."""
        return [group["sigma"] for group in self.groups]

    @property
    def seeds(self) -> list[int]:
        """One for each replica."""
        seed = self.settings["seed"]
        return seed if isinstance(seed, list) else [seed]

    def codec(self) -> Codec:
        """For the steps of this section."""
        return Codec(
            len(self.groups), len(self.seeds) if isinstance(self.settings["seed"], list) else None
        )


class Snapshot(NamedTuple):
    """A point from which a replay may start.

    Attributes:
        steps: number of steps before it in the journal.
        header: of the section that it lies in.
        weights: SHA-256 of the weights, in hexadecimal.
        start: byte at which its record starts.
        end: byte at which the next record starts.
        checksum: of its record.
    """

    steps: int
    header: Header
    weights: str
    start: int
    end: int
    checksum: int


class Contents(NamedTuple):
    """All that is known of a journal without replaying it.

    Attributes:
        path: of the file.
        headers: of all sections.
        steps: number of whole steps, skipped ones included.
        skipped: number of steps that changed nothing.
        snapshots: in order; the first one is that of the initial weights.
        size: bytes of all whole records.
        kinds: bytes of the records of each kind.
        damage: the damage that ends the journal early; None if there is none.
    """

    path: Path
    headers: list[Header]
    steps: int
    skipped: int
    snapshots: list[Snapshot]
    size: int
    kinds: dict[str, int]
    damage: Damage | None

    @property
    def warning(self) -> str:
        """The damage in words."""
        if self.damage is None:
            return ""
        lost = max(0, os.path.getsize(self.path) - self.damage.offset)
        return (
            f"{self.path}: damaged {self.damage}; the {self.steps:,} whole steps before it are "
            f"sound, the {lost:,} "
            "bytes from there on cannot be used"
        )

    def records(self, after: Snapshot | None = None) -> Iterator[Raw]:
        """The whole records, from the first one or from the one after a snapshot."""
        with open_file(self.path) as file:
            start, checksum = (
                (after.end, after.checksum) if after else (len(START), zlib.crc32(START))
            )
            yield from scan(file, start, self.size, checksum)

    def state(self, snapshot: Snapshot) -> dict[str, Any]:
        """The optimizer's state in a snapshot: `groups`, `rule`, `progress` and `batched`."""
        with open_file(self.path) as file:
            file.seek(snapshot.start)
            raw = file.read(snapshot.end - snapshot.start)
        return from_json(raw[raw.index(bytes.fromhex(snapshot.weights)) + DIGEST_BYTES : -4])


def read(path: str | os.PathLike[str]) -> Contents:
    """Look through a journal and check every checksum.

    Args:
        path: of a journal; it may be damaged, or still be written.

    Raises:
        JournalError: it is no journal, of a version that is not known, or damaged before its first
            step.
        OSError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_start(path, file)
        return _contents(path, file, size)


def _check_start(path: Path, file: BinaryIO) -> None:
    start = file.read(len(START))
    if start[:8] != START[:8]:
        raise JournalError(
            f"{path} is not a journal: it starts with {start[:8]!r}, a journal with {START[:8]!r}"
        )
    if start != START:
        raise JournalError(
            f"{path} is a journal of version {int.from_bytes(start[8:], 'little')}, this library "
            "reads version "
            f"{int.from_bytes(START[8:], 'little')}; install the version of dopaminergic that "
            "wrote it"
        )


def _contents(path: Path, file: BinaryIO, size: int) -> Contents:
    headers: list[Header] = []
    snapshots: list[Snapshot] = []
    steps = 0
    skipped = 0
    end = len(START)
    damage = None
    kinds = dict.fromkeys(KINDS.values(), 0)
    held = 0  # memory of what is kept
    try:
        for raw in scan(file, end, size, zlib.crc32(START)):
            if raw.kind == HEADER:
                headers.append(header_of(raw))
            elif not headers:
                raise Damage(raw.start, "the first record is not a header")
            elif raw.kind in (STEP, SKIPPED):
                steps = steps + 1
                skipped = skipped + (raw.kind == SKIPPED)
            elif raw.kind == SNAPSHOT and len(raw.payload) < DIGEST_BYTES:
                raise Damage(
                    raw.start,
                    f"a snapshot of {len(raw.payload)} bytes, the digest alone has {DIGEST_BYTES}",
                )
            elif raw.kind == SNAPSHOT:
                digest = raw.payload[:DIGEST_BYTES].hex()
                snapshots.append(
                    Snapshot(steps, headers[-1], digest, raw.start, raw.end, raw.checksum)
                )
            held += (
                json_memory(raw.payload)
                if raw.kind == HEADER
                else SNAPSHOT_MEMORY * (raw.kind == SNAPSHOT)
            )
            if held > MOST_HELD:
                raise JournalError(TOO_MANY)
            kinds[KINDS[raw.kind]] += raw.end - raw.start
            end = raw.end
    except Damage as found:
        damage = found
    except JournalError as error:
        if held > MOST_HELD:  # no damage, which `resume` would cut off
            raise JournalError(f"{path}: {error}") from None
        damage = Damage(end, str(error))
    if not snapshots:
        raise JournalError(
            f"{path}: damaged {damage or f'at byte {end}: it ends'}, before its first step"
        )
    return Contents(path, headers, steps, skipped, snapshots, end, kinds, damage)


def header_of(raw: Raw) -> Header:
    """The header that a record holds; raises `Damage` unless all is there and of the right type."""
    data = from_json(raw.payload)
    try:
        header = Header(**{name: data[name] for name in Header._fields})
        wrong = _wrong(header)
    except (AttributeError, KeyError, TypeError) as error:
        said = shown(f"{type(error).__name__}: {error}", 100)
        raise Damage(raw.start, f"the header is not complete ({said})") from None
    if wrong:
        raise Damage(raw.start, f"the header holds something that it must not, in {wrong}")
    return header


def _wrong(header: Header) -> str:
    """The part of a header that is of the wrong kind; "" if none is."""
    seeds = header.seeds
    parameters = header.parameters
    sound = {
        "step": _below(header.step, 1 << 63),
        "settings": bool(seeds) and all(_below(seed, 1 << 63) for seed in seeds),
        "groups": bool(header.groups)
        and all(type(s) is float and 0 < s < math.inf for s in header.sigmas),
        "perturbation": all(
            n in PERTURBATION and type(x) is bool for n, x in header.perturbation.items()
        ),
        "parameters": all(map(_parameter, parameters)),
        "library, optimizer and weights": all(
            type(text) is str for text in (header.library, header.optimizer, header.weights)
        ),
    }
    return next((name for name, well in sound.items() if not well), "")


def _below(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end


def _parameter(p: dict[str, Any]) -> bool:
    shape = type(p["shape"]) is list and all(_below(size, 1 << 48) for size in p["shape"])
    name = p.get("name") is None or type(p["name"]) is str
    return shape and name and type(p["trainable"]) is bool and type(p["dtype"]) is str
