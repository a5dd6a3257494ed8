"""Journals of all rules: read, verified, shown, replayed and resumed; and weights to replay them
over.
"""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

import torch
from tests.fuzz.kind import RULES, Failure, Kind, Run
from tests.fuzz.mutations import changed, damaged

from dopaminergic import Journal, replay
from dopaminergic.journal import reading
from dopaminergic.journal.format import HEADER, SNAPSHOT, STEP, TRACE, JournalError, framed, varint
from dopaminergic.lab.journals import rebuild, show, verify


class Journals(Kind):
    """Of each case all that can be done with a journal is tried."""

    allowed = (JournalError, OSError)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "j.journal"
        self.examples: list[tuple[str, bytes]] = []
        for rule in RULES:
            run, path = Run(rule), folder / f"{rule}.journal"
            with Journal(run.optimizer, path, every=4):
                run.step(6)
            self.examples.append((rule, path.read_bytes()))

    def try_one(self, chance: random.Random) -> bool:
        """One journal."""
        rule, whole = chance.choice(self.examples)
        content = damaged(whole, chance) if chance.random() < 0.35 else self.forged(whole, chance)
        self.path.write_bytes(content)
        verify(self.path, False)
        show(self.path, 3, chance.random() < 0.5)
        replay(Run(rule).weights, self.path)
        run = Run(rule)
        before = run.everything()
        try:
            Journal(run.optimizer, self.path, resume=True).close()
        except Exception as error:
            if self.path.read_bytes() != content:
                raise Failure("a journal that was refused has been changed") from None
            # A replay is compared with what was recorded only after it: the weights may be on the
            # way then.
            if "not those that were recorded" not in str(error) and run.everything() != before:
                raise Failure("a journal that was refused has been loaded in part") from None
            raise
        return True

    def forged(self, whole: bytes, chance: random.Random) -> bytes:
        """Records that are changed under checksums that fit."""
        self.path.write_bytes(whole)
        raws = list(reading.read(self.path).records())
        out, checksum, chosen = whole[:10], zlib.crc32(whole[:10]), chance.randrange(len(raws))
        for number, raw in enumerate(raws):
            kind, payload = raw.kind, raw.payload
            if number == chosen:
                kind, payload = _mutated(kind, payload, chance)
            record, checksum = framed(kind, payload, checksum)
            out += record
        return out


def _mutated(kind: int, payload: bytes, chance: random.Random) -> tuple[int, bytes]:
    start = {HEADER: 0, SNAPSHOT: 32}.get(kind)
    if start is not None and chance.random() < 0.8:
        value = changed(json.loads(payload[start:]), chance)
        return kind, payload[:start] + json.dumps(value).encode()
    if chance.random() < 0.3:
        huge = varint(chance.choice((0, 1, 65536, 1 << 20, 1 << 28, 1 << 40, 1 << 62)))
        flags = bytes([chance.randrange(16)])
        return chance.choice((STEP, TRACE)), flags + huge + chance.randbytes(
            chance.choice((0, 8, 9, 40))
        )
    return (chance.randrange(8) if chance.random() < 0.1 else kind), damaged(payload, chance)


class Bases(Kind):
    """Files of weights that a journal is replayed over."""

    allowed = (JournalError, OSError)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "base.pt"
        self.journal, self.out = folder / "j.journal", folder / "out.pt"
        run = Run("Dopamine", groups=2)
        self.state = {f"w{i}": w.detach().clone() for i, w in enumerate(run.weights)}
        with Journal(run.optimizer, self.journal):
            run.step(3)
        torch.save(self.state, self.path)
        self.content = self.path.read_bytes()
        self.out.write_bytes(b"precious")

    def try_one(self, chance: random.Random) -> bool:
        """One base."""
        if chance.random() < 0.4:
            self.path.write_bytes(damaged(self.content, chance))
        else:
            torch.save(changed(self.state, chance), self.path)
        try:
            rebuild(
                self.path if chance.random() < 0.01 else self.journal,
                self.path,
                self.out,
                None,
                True,
            )
        except Exception:
            if self.out.read_bytes() != b"precious":
                raise Failure("a replay that failed has replaced its output") from None
            raise
        self.out.write_bytes(b"precious")
        return True
