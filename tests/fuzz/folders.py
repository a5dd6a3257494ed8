"""Folders of results: records, pictures and costs, read for a report; one in thirty is drawn
too.
"""

from __future__ import annotations

import json
import random
import tempfile
import zlib
from pathlib import Path
from typing import Any

from tests.fuzz.kind import Failure, Kind
from tests.fuzz.mutations import changed, damaged

from dopaminergic.lab.claims import judge
from dopaminergic.lab.figures import plan_all
from dopaminergic.lab.records import read_costs, read_records, sealed
from dopaminergic.lab.report import REQUIRED, render, summarise, write_report
from dopaminergic.lab.results import unique
from dopaminergic.lab.runner import recorded
from dopaminergic.lab.training import train


class Folders(Kind):
    """Records, pictures and costs, read for a report; one in thirty is drawn too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.records: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        for task, optimizer in (
            ("xor-2-8-1", "wp"),
            ("continuous-xor", "dopamine"),
            ("lorenz-vpt", "vector"),
        ):
            out = folder / task
            out.mkdir()
            train(task, {"forcing": 1} if task == "lorenz-vpt" else {}, optimizer, lr=None, seed=0,
                  budget=100,
                  folder=lambda out=out: out, resume=False, progress=lambda *_: None)  # fmt: skip
            self.records += read_records(out / "records.jsonl").records
            self.pictures += read_records(out / "pictures.jsonl").records
        self.records += [
            {**each, "role": "tuning", "settings": {"lr": 0.5}} for each in self.records
        ]
        for picture in self.pictures:  # as short as the shortest
            for key in ("truth", "forecast"):
                picture.update({key: picture[key][:30]} if key in picture else {})
        row = {
            "optimizer": "wp",
            "task": "lorenz",
            "passes_per_step": 2,
            "time_over_two_forwards": 1.1,
        }
        self.costs = {
            "rows": [{**row, "peak_memory_over_inference": None}],
            "environment": {"threads": 1},
        }

    def try_one(self, chance: random.Random) -> bool:
        """One folder, in which one file is changed."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        files = {
            "records.jsonl": self.records,
            "pictures.jsonl": self.pictures,
            "costs.json": [self.costs],
        }
        self.path = folder / chance.choice(sorted(files))
        for name, objects in files.items():
            lines = [self._sealed(each) for each in objects]
            if name == self.path.name:
                number = chance.randrange(len(lines))
                raw = chance.random() < 0.25
                one = lines[number] if raw else self._sealed(changed(objects[number], chance))
                lines[number] = damaged(one, chance) if raw else one
            (folder / name).write_bytes(b"\n".join(lines) + b"\n")
        before = self.path.read_bytes()
        recorded(folder)
        if chance.random() < 1 / 30:
            write_report(folder)
        else:
            self._read(folder)
        if self.path.read_bytes() != before:
            raise Failure(f"{self.path.name} was changed by a reader")
        return True

    @staticmethod
    def _read(folder: Path) -> None:
        found, costs = (
            read_records(folder / "records.jsonl", REQUIRED),
            read_costs(folder / "costs.json"),
        )
        pictures = read_records(folder / "pictures.jsonl", ("name", "task", "optimizer")).records
        records = unique(found.records)
        if not records:
            raise ValueError(f"{folder} holds no records")
        verdicts = judge(records, costs)
        summarise(records, verdicts)
        plan_all(records, pictures, costs.get("rows", []))
        page = render(records, costs, verdicts, [], found.damaged, [])
        if any(ord(one) < 32 and one not in "\n\t" for one in page) or "\x1b" in page:
            raise Failure("control characters in the page")

    @staticmethod
    def _sealed(record: dict[str, Any]) -> bytes:
        try:
            return sealed(record)
        except (ValueError, TypeError, AttributeError):
            line = json.dumps(record).encode()
            return line[:-1] + b', "check": "%08x"}' % zlib.crc32(line)
