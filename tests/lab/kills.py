"""Kills `train`, `compare` and `reproduce` at random moments, starts them again, and compares what
they end with.

python tests/lab/kills.py --train 34 --compare 33 --reproduce 33      100 kills, prints JSON; about
ten minutes

Every run is a fork of this process, which has torch and the library in memory already; so a run
takes no longer to start than it takes to kill. Half of the kills hit the whole process group, half
the first process alone, whose workers then outlive it for a while beside those of the next start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMANDS = {
    "train": "train --task lorenz --optimizer dopamine2 --budget 400 --resume --json --out",
    "compare": "compare --task xor-2-8-1 --optimizers wp,dopamine --seeds 2 --tuning-seeds 1 "
    "--budget 1500 --workers 2 --json --out",
    "reproduce": "reproduce xor --quick --workers 2 --json --out",
}
CIRCUMSTANCES = ("seconds", "created", "commit", "versions")


def run(
    command: str, folder: Path, kill_after: float | None = None, group: bool = True
) -> int | None:
    """Run a command into a folder: its exit status, or None where it was killed after so many
    seconds.
    """
    child = os.fork()
    if child == 0:
        from dopaminergic.lab.cli import main

        os.setpgid(0, 0)
        output = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        try:
            code = main([*command.split(), str(folder)])
        finally:
            sys.stdout.flush()
            os._exit(code)
    with contextlib.suppress(OSError):  # whichever of the two comes first
        os.setpgid(child, child)
    began = time.monotonic()
    while kill_after is None or time.monotonic() - began < kill_after:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    (os.killpg if group else os.kill)(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def ending(folder: Path) -> list[str]:
    """All that a finished folder holds but the time of day and the like; repeated pictures count
    once.
    """
    from dopaminergic.lab.records import read_records

    records = [
        {k: v for k, v in r.items() if k not in CIRCUMSTANCES}
        for r in _lines(read_records, folder, "records")
    ]
    pictures = {
        json.dumps(each, sort_keys=True) for each in _lines(read_records, folder, "pictures")
    }
    return sorted(json.dumps(each, sort_keys=True) for each in records) + sorted(pictures)


def _lines(read: Any, folder: Path, name: str) -> list[dict[str, Any]]:
    return read(folder / f"{name}.jsonl").records


def survive(
    name: str, kills: int, chance: random.Random, folder: Path, seconds: float
) -> dict[str, Any]:
    """Kill a command so many times, fewer if time is up, and run it to its end: how often as if
    never killed.
    """
    command, began = COMMANDS[name], time.monotonic()
    assert run(command, folder / "whole") == 0, (folder / "whole.log").read_text()
    whole, expected = time.monotonic() - began, ending(folder / "whole")
    done, finished, equal, resumed, number = 0, 0, 0, 0, 0
    while True:
        own = folder / str(number)
        resumed += any((own / "checkpoints").glob("*.pt"))
        last = done == kills or time.monotonic() - began > seconds
        code = run(
            command, own, None if last else chance.uniform(0.0, 1.05 * whole), chance.random() < 0.5
        )
        if code is None:
            done += 1
            print(
                f"{name}: {done} kills, {finished} finished, {equal} of them equal",
                file=sys.stderr,
                flush=True,
            )
            continue
        finished += 1
        equal += code == 0 and ending(own) == expected and not list((own / "checkpoints").iterdir())
        if last:
            break
        number += 1
    found = {
        "kills": done,
        "finished": finished,
        "equal": equal,
        "resumed_from_checkpoint": resumed,
    }
    return {
        **found,
        "whole_seconds": round(whole, 2),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Kill each command as often as it is said."""
    parser = argparse.ArgumentParser(
        description="Kill runs at random moments and compare what they end with."
    )
    for name in COMMANDS:
        parser.add_argument(f"--{name}", type=int, default=0, metavar="KILLS")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="at most, for each command (60)"
    )
    options = parser.parse_args()
    os.environ |= {
        "DOPAMINERGIC_CHECKPOINT_SECONDS": "0.2",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    # What the children need is in memory before they start.
    import dopaminergic.lab.experiments
    import dopaminergic.lab.progress
    import dopaminergic.lab.report
    import dopaminergic.lab.training  # noqa: F401
    from dopaminergic.lab.runner import environment

    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as folder:
        found = {
            name: survive(
                name, getattr(options, name), chance, Path(folder) / name, 60 * options.minutes
            )
            for name in COMMANDS
            if getattr(options, name) and not (Path(folder) / name).mkdir()
        }
    command = ["python", "tests/lab/kills.py", *sys.argv[1:]]
    what = (
        "runs killed with -9 at random moments, and those that ended equal to an uninterrupted one"
    )
    print(
        json.dumps(
            {
                "what": what,
                "command": " ".join(command),
                "environment": environment(),
                "results": found,
            }
        )
    )


if __name__ == "__main__":
    main()
