"""Tables of users: CSV in some dialects, packed, and Parquet."""

from __future__ import annotations

import datetime
import gzip
import io
import math
import random
from pathlib import Path

from tests.fuzz.kind import Kind
from tests.fuzz.mutations import HOSTILE, damaged

from dopaminergic.lab.tasks import make_task

try:
    import pandas
except ImportError:
    pandas = None


class Tables(Kind):
    """A table is read as a task, whose error is then asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        days = [datetime.date(2020, 1, 1) + datetime.timedelta(i) for i in range(150)]
        rows = [f"{day},{math.sin(i / 3) + i / 100:.4f},{i % 7},n{i}" for i, day in enumerate(days)]
        whole = "\n".join(["day,level,count,name", *rows]) + "\n"
        single = "\n".join(["level", *(row.split(",")[1] for row in rows)])
        self.examples = [
            (".csv", whole.encode()),
            (".csv", single.encode()),
            (".csv", whole.encode("utf-16")),
        ]
        self.examples += [
            (".tsv", whole.replace(",", "\t").encode()),
            (".csv", whole.replace(",", ";").encode()),
        ]
        if pandas is not None:
            self.examples.append((".parquet", pandas.read_csv(io.StringIO(whole)).to_parquet()))

    def try_one(self, chance: random.Random) -> bool:
        """One table."""
        suffix, content = chance.choice(self.examples)
        if chance.random() < 0.5 or suffix == ".parquet":
            content = damaged(content, chance)
        else:
            content = _with_other_cells(content, b"\t" if suffix == ".tsv" else b",", chance)
        if suffix == ".csv" and chance.random() < 0.2:
            suffix, content = ".csv.gz", gzip.compress(content, 1)
            content = damaged(content, chance) if chance.random() < 0.5 else content
        self.path = self.folder / f"t{suffix}"
        self.path.write_bytes(content)
        task = make_task("series", path=str(self.path), column="level")
        task.evaluate(task.build([0]))
        return True


def _with_other_cells(content: bytes, separator: bytes, chance: random.Random) -> bytes:
    lines = [line.split(separator) for line in content.split(b"\n")]
    for _ in range(chance.choice((1, 2, 8))):
        line = chance.choice(lines)
        cell = str(chance.choice(HOSTILE)).encode(errors="surrogatepass")
        line[chance.randrange(len(line))] = cell
    return b"\n".join(separator.join(line) for line in lines)
