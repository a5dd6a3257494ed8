"""Thousands of damaged and forged files, each of which must be read, or refused in words.

    python -m tests.fuzz --count 5000 --seed 0

Journals, checkpoints, states of optimizers, CSV files and records are changed at random: bits, cuts, doubled parts,
and under checksums that fit, values of any kind.
Whatever comes out must be an error that the library documents, of at most
300 characters, within seconds and within 1 GiB; what was there before must be there still.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import json
import logging
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import dopaminergic
from dopaminergic import Journal, replay, squared_error
from dopaminergic.journal import reading
from dopaminergic.journal.format import HEADER, SNAPSHOT, STEP, TRACE, JournalError, framed, varint
from dopaminergic.lab import fleet as fleet_module
from dopaminergic.lab.claims import judge
from dopaminergic.lab.figures import plan_all
from dopaminergic.lab.fleet import Fleet
from dopaminergic.lab.journals import show, verify
from dopaminergic.lab.records import append_records, read_costs, read_records, sealed
from dopaminergic.lab.report import REQUIRED, render, summarise, write_report
from dopaminergic.lab.results import unique
from dopaminergic.lab.runner import recorded
from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.training import train

RULES = ("Dopamine", "Dopamine2", "VectorDopamine", "SPSA", "WeightPerturbation", "EvolutionStrategy")
SHARES = {"journal": 0.3, "state": 0.3, "record": 0.2, "checkpoint": 0.1, "csv": 0.1}
SECONDS = 20.0
MEBIBYTE = 1 << 20
LONGEST = 300
HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**400, 0.0, -0.0, 1e-320, 1e308, -1e308,
    math.nan, math.inf, -math.inf, "", "x", "gaussian", "\x1b]52;c;YQ==\x07", "\ud800", "a" * 300, "../" * 40,
    "[/red]", "<script>", [], {}, [[]], [None], {"": {}}, [1, 2, 3], "nan", "\u202e", [[[[[[]]]]]],
]  # fmt: skip


class Hang(BaseException):
    """A case that took too long."""


class Failure(Exception):  # noqa: N818  (found, not raised by the library)
    """What must not be."""


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes with a few flipped, cut, doubled or replaced."""
    out = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(out) + 1)
        length = min(chance.choice((1, 1, 4, 30)), len(out) - at)
        how = chance.randrange(6)
        if how == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            del out[at : at + length]
        elif how == 2:
            out[at:at] = bytes(chance.randrange(256) for _ in range(length))
        elif how == 3:
            out[at:at] = out[at : at + length]
        elif how == 4:
            del out[at:]
        else:
            out[at : at + length] = chance.choice((b"\0", b"\xff", b"\x1b", b"\n", b"9", b"\xed\xa0\x80")) * length
    return bytes(out)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies within lists and dicts."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list | tuple) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def changed(value: Any, chance: random.Random) -> Any:
    """A copy in which something is replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        found = list(places(value))
        if not found:
            return value
        # As many chances for what lies above as for the many numbers below it.
        depth = chance.choice(sorted({len(path) for path in found}))
        *above, key = chance.choice([path for path in found if len(path) == depth])
        holder = value
        for each in above:
            holder = holder[each]
        if isinstance(holder, tuple):
            continue
        new = _replacement(holder[key], chance)
        if chance.random() < 0.15:
            del holder[key]
        else:
            holder[key] = new
    return value


def _replacement(old: Any, chance: random.Random) -> Any:
    if isinstance(old, torch.Tensor) and chance.random() < 0.7:
        makes: list[Callable[[], Any]] = [
            lambda: old.double() * math.nan, lambda: old.double() * 1e300, lambda: old.reshape(-1)[:0],
            lambda: old.reshape(1, *old.shape), lambda: old.to(torch.int8), lambda: -old,
            lambda: old.flatten().tolist(),
            lambda: torch.zeros(3, 5), lambda: torch.empty_like(old, device="meta"),
        ]  # fmt: skip
        return chance.choice(makes)()
    if type(old) in (int, float) and chance.random() < 0.3:
        return chance.choice((-old, old + 1, old * 2**40, float(old), str(old)))
    if isinstance(old, str) and chance.random() < 0.3:
        return old + chance.choice(("\x1b[31m", "\ud800", " " * 200, "?"))
    return copy.deepcopy(chance.choice(HOSTILE))


# ---- the kinds; each is made once, and gives a case at a time -------------------------------------------------------


class Kind:
    """One kind of file: good examples, and how it is read."""

    allowed: tuple[type[BaseException], ...] = (ValueError,)
    named = True  # whether messages must name the file

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "f"

    def try_one(self, chance: random.Random) -> bool:
        """Make a case and read it; whether it was accepted. Raises what the library raises, or `Failure`."""
        raise NotImplementedError


class Journals(Kind):
    """Journals of all rules: read, verified, shown, replayed and resumed."""

    allowed = (JournalError, OSError)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "j.journal"
        self.examples = []
        for number, rule in enumerate(RULES):
            weights, optimizer = self._fresh(rule)
            path = folder / f"{rule}.journal"
            with Journal(optimizer, path, every=4):
                for _ in range(6):
                    optimizer.step(lambda weights=weights: squared_error(weights, torch.zeros(4)))
            self.examples.append((number, rule, path.read_bytes()))

    @staticmethod
    def _fresh(rule: str) -> tuple[torch.nn.Parameter, Any]:
        weights = torch.nn.Parameter(torch.ones(4))
        return weights, getattr(dopaminergic, rule)([("w", weights)], seed=1)

    def try_one(self, chance: random.Random) -> bool:
        """Of each case all that can be done with a journal is tried."""
        _, rule, whole = chance.choice(self.examples)
        content = damaged(whole, chance) if chance.random() < 0.35 else self._forged(whole, chance)
        self.path.write_bytes(content)
        verify(self.path, False)
        show(self.path, 3, chance.random() < 0.5)
        weights, optimizer = self._fresh(rule)
        try:
            replay([weights], self.path)
            weights, optimizer = self._fresh(rule)
            Journal(optimizer, self.path, resume=True).close()
        except Exception:
            if self.path.read_bytes() != content:
                raise Failure("a journal that was refused has been changed") from None
            raise
        return True

    def _forged(self, whole: bytes, chance: random.Random) -> bytes:
        """Records that are changed under checksums that fit."""
        self.path.write_bytes(whole)
        raws = list(reading.read(self.path).records())
        out, checksum, chosen = whole[:10], zlib.crc32(whole[:10]), chance.randrange(len(raws))
        for number, raw in enumerate(raws):
            kind, payload = raw.kind, raw.payload
            if number == chosen:
                kind, payload = self._mutated(kind, payload, chance)
            record, checksum = framed(kind, payload, checksum)
            out += record
        return out

    @staticmethod
    def _mutated(kind: int, payload: bytes, chance: random.Random) -> tuple[int, bytes]:
        start = {HEADER: 0, SNAPSHOT: 32}.get(kind)
        if start is not None and chance.random() < 0.8:
            value = changed(json.loads(payload[start:]), chance)
            return kind, payload[:start] + json.dumps(value).encode()
        if chance.random() < 0.3:
            huge = varint(chance.choice((0, 1, 65536, 1 << 20, 1 << 28, 1 << 40, 1 << 62)))
            flags = bytes([chance.randrange(16)])
            return chance.choice((STEP, TRACE)), flags + huge + chance.randbytes(chance.choice((0, 8, 9, 40)))
        return (chance.randrange(8) if chance.random() < 0.1 else kind), damaged(payload, chance)


class States(Kind):
    """`load_state_dict` of all six rules: refused with nothing changed, or taken and trained on."""

    allowed = (ValueError, TypeError)
    named = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.examples = []
        for rule in RULES:
            weights, optimizer = Journals._fresh(rule)
            for _ in range(5):
                optimizer.step(lambda weights=weights: squared_error(weights, torch.zeros(4)))
            self.examples.append((rule, optimizer.state_dict()))

    def try_one(self, chance: random.Random) -> bool:
        """One state."""
        rule, state = chance.choice(self.examples)
        weights, optimizer = Journals._fresh(rule)

        def step() -> None:
            optimizer.step(lambda: squared_error(weights, torch.zeros(4)))

        step()
        before = repr((optimizer.state_dict(), weights))
        mutant = changed(state, chance)
        said = repr(mutant)
        try:
            optimizer.load_state_dict(mutant)
        except Exception:
            if repr((optimizer.state_dict(), weights)) != before:
                raise Failure(f"{rule}: a state that was refused has been loaded in part") from None
            raise
        if said != repr(mutant):
            raise Failure(f"{rule}: the state that was loaded has been changed")
        for _ in range(2):
            step()
        if not bool(torch.isfinite(weights).all()) or float(weights.detach().abs().max()) > 1e3:
            raise Failure(f"{rule}: weights are {weights.detach().tolist()} after a state that was taken")
        return True


class Checkpoints(Kind):
    """Checkpoints of the lab."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "c.pt"
        self.task = make_task("xor-2-8-1")
        self.examples = []
        for optimizer in ("dopamine", "vector", "adam"):
            fleet = self._fresh(optimizer)
            for _ in range(3):
                fleet.step()
            fleet.save(self.path)
            content = self.path.read_bytes()
            body = content[content.find(b"\n") + 1 :]
            self.examples.append((optimizer, content, torch.load(io.BytesIO(body), weights_only=True)))

    def _fresh(self, optimizer: str) -> Fleet:
        return Fleet(self.task, optimizer, [0, 1], [0.1, 0.2], 600)

    def try_one(self, chance: random.Random) -> bool:
        """One checkpoint."""
        optimizer, content, state = chance.choice(self.examples)
        if chance.random() < 0.2:
            self.path.write_bytes(damaged(content, chance))
        else:
            body = io.BytesIO()
            torch.save(changed(state, chance), body)
            self.path.write_bytes(fleet_module._header(body.getvalue()) + body.getvalue())
        fleet = self._fresh(optimizer)
        before = repr((fleet.model.state_dict(), fleet.optimizer.state_dict(), fleet._own()))
        try:
            fleet.load(self.path)
        except Exception:
            if repr((fleet.model.state_dict(), fleet.optimizer.state_dict(), fleet._own())) != before:
                raise Failure("a checkpoint that was refused has been loaded in part") from None
            raise
        fleet.done  # noqa: B018
        fleet.step()
        return True


class Tables(Kind):
    """CSV files, read as a task."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "t.csv"
        rows = [f"2020-01-{1 + i % 28:02d},{math.sin(i / 3) + i / 100:.4f},{i % 7},n{i}" for i in range(150)]
        self.examples = ["\n".join(["day,level,count,name", *rows]).encode() + b"\n"]
        self.examples.append("\n".join(["level", *(row.split(",")[1] for row in rows)]).encode())

    def try_one(self, chance: random.Random) -> bool:
        """One table."""
        content = chance.choice(self.examples)
        if chance.random() < 0.5:
            content = damaged(content, chance)
        else:
            lines = [line.split(b",") for line in content.split(b"\n")]
            for _ in range(chance.choice((1, 2, 8))):
                line = chance.choice(lines)
                cell = str(chance.choice(HOSTILE)).encode(errors="surrogatepass")
                line[chance.randrange(len(line))] = cell
            content = b"\n".join(b",".join(line) for line in lines)
        self.path.write_bytes(content)
        task = make_task("series", path=str(self.path), column="level")
        task.evaluate(task.build([0]))
        return True


class Folders(Kind):
    """Records, pictures and costs, read for a report; one in thirty is drawn too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.records: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        for task, optimizer in (("xor-2-8-1", "wp"), ("continuous-xor", "dopamine"), ("lorenz-vpt", "vector")):
            out = folder / task
            out.mkdir()
            train(task, {"forcing": 1} if task == "lorenz-vpt" else {}, optimizer, lr=None, seed=0, budget=100,
                  folder=lambda out=out: out, resume=False, progress=lambda *_: None)  # fmt: skip
            self.records += read_records(out / "records.jsonl").records
            self.pictures += read_records(out / "pictures.jsonl").records
        self.records += [{**each, "role": "tuning", "settings": {"lr": 0.5}} for each in self.records]
        for picture in self.pictures:  # as short as the shortest
            for key in ("truth", "forecast"):
                picture.update({key: picture[key][:30]} if key in picture else {})
        row = {"optimizer": "wp", "task": "lorenz", "passes_per_step": 2, "time_over_two_forwards": 1.1}
        self.costs = {"rows": [{**row, "peak_memory_over_inference": None}], "environment": {"threads": 1}}

    def try_one(self, chance: random.Random) -> bool:
        """One folder, in which one file is changed."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        files = {"records.jsonl": self.records, "pictures.jsonl": self.pictures, "costs.json": [self.costs]}
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
        found, costs = read_records(folder / "records.jsonl", REQUIRED), read_costs(folder / "costs.json")
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


KINDS: dict[str, type[Kind]] = {
    "journal": Journals, "state": States, "record": Folders, "checkpoint": Checkpoints, "csv": Tables,
}  # fmt: skip


# ---- a case, and all of them -----------------------------------------------------------------------------------------


def judged(kind: Kind, chance: random.Random) -> tuple[str, str]:
    """What became of a case: "taken", "refused", or what is wrong with it, and details."""
    _reset_peak()
    before = _status("VmRSS")
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            kind.try_one(chance)
        found = "taken", ""
    except Hang:
        found = "hang", f"more than {SECONDS:g} s"
    except Failure as error:
        found = "broken", str(error)[:300]
    except kind.allowed as error:
        found = _judged_words(kind, error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = "traceback", f"{type(error).__name__}: {str(error)[:160]} ({Path(place.filename).name}:{place.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (_status("VmHWM") - before) / 1024
    return ("memory", f"{grown:.0f} MiB") if grown > 1024 else found


def _judged_words(kind: Kind, error: BaseException) -> tuple[str, str]:
    words = str(error)
    if len(words) - words.count(str(kind.path)) * len(str(kind.path)) > LONGEST:
        return "long message", f"{len(words)} characters: {words[:200]}"
    if any(not one.isprintable() and one != "\n" for one in words):
        return "control characters", ascii(words)[:200]
    if kind.named and str(kind.folder) not in words:
        return "no file named", f"{type(error).__name__}: {words[:200]}"
    return "refused", ""


def _status(name: str) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def in_processes(folder: Path, chance: random.Random) -> Iterator[tuple[str, str]]:
    """A few cases of the command line as users call it: exit status, and no traceback."""
    journals = Journals(folder / "cli")
    for number in range(4):
        path = folder / f"{number}.journal"
        path.write_bytes(journals._forged(chance.choice(journals.examples)[2], chance))
        yield _called("journal", "verify", str(path))
    out = folder / "report"
    out.mkdir()
    append_records(out / "records.jsonl", [{"task": "\x1b[31m", "optimizer": [], "curve": 1}])
    yield _called("report", str(out))


def _called(*arguments: str) -> tuple[str, str]:
    command = [sys.executable, "-m", "dopaminergic", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    wrong = "Traceback" in done.stderr or done.returncode not in (0, 1, 2) or "\x1b" in done.stdout + done.stderr
    return ("traceback", f"{arguments[0]}: {done.stderr[-200:]}") if wrong else ("refused", "")


def fuzz(count: int, seed: int, kinds: list[str], details: int) -> int:
    """Try cases and print a summary; the number of failures."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _hang)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    examples: collections.Counter[tuple[str, str, str]] = collections.Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        share = sum(SHARES[kind] for kind in kinds)
        for kind in kinds:
            folder = Path(name) / kind
            folder.mkdir()
            tried = KINDS[kind](folder)
            for number in range(math.ceil(count * SHARES[kind] / share)):
                outcome, detail = judged(tried, random.Random(f"{seed} {kind} {number}"))
                counts[kind, outcome] += 1
                if outcome not in ("taken", "refused"):
                    examples[kind, outcome, detail.replace(name, "")] += 1
        (Path(name) / "cli").mkdir()
        (Path(name) / "cli" / "cli").mkdir()
        for outcome, detail in in_processes(Path(name) / "cli", random.Random(seed)):
            counts["command", outcome] += 1
            if outcome != "refused":
                examples["command", outcome, detail] += 1
    for (kind, outcome, detail), times in examples.most_common(details):
        print(f"{kind}: {outcome} x{times}: {detail}")
    failures = sum(number for (_, outcome), number in counts.items() if outcome not in ("taken", "refused"))
    told = ", ".join(f"{kind} {outcome} {number}" for (kind, outcome), number in sorted(counts.items()))
    seconds = time.monotonic() - began
    print(f"{sum(counts.values()):,} cases in {seconds:.0f} s, seed {seed}: {failures} failures ({told})")
    return failures


def _hang(number: int, frame: Any) -> None:
    raise Hang


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Try damaged and forged files.", prog="python -m tests.fuzz")
    parser.add_argument("--count", type=int, default=5000, help="cases (5000)")
    parser.add_argument("--seed", type=int, default=0, help="other cases for another seed (0)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of files (%(default)s)")
    parser.add_argument("--details", type=int, default=40, help="kinds of failures to print (40)")
    options = parser.parse_args()
    return min(1, fuzz(options.count, options.seed, options.kinds.split(","), options.details))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
