"""Tests the package against the lowest and the highest versions that it supports.

    python scripts/versions.py            # the lowest, and the highest
    python scripts/versions.py --python 3.11 --torch 2.6 --numpy 1.26 -- tests/test_step.py

Each pair gets a virtual environment of its own. pip takes the torch of its index. A version
that is not to be had is told and left out. The exit status is that of the tests. Where the index
serves torch for CUDA, that is some gigabytes for each pair.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
QUICK = ["tests/test_step.py", "tests/test_rules.py", "tests/test_state.py", "tests/test_vector.py"]


def supported() -> list[str]:
    """The versions of Python that the package names."""
    head = "Programming Language :: Python :: "
    named = [each.removeprefix(head) for each in PROJECT["classifiers"] if each.startswith(head)]
    return [each for each in named if "." in each]


def lowest(package: str) -> str:
    """The oldest version of a package that is promised."""
    [found] = [
        each.partition(">=")[2] for each in PROJECT["dependencies"] if each.startswith(package)
    ]
    return found


def interpreter(version: str) -> str | None:
    """The command of a version of Python; None where there is none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    kept = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    return shutil.which(f"python{version}") or (str(kept[-1]) if kept else None)


def check(python: str, torch: str, numpy: str, tests: list[str]) -> bool | None:
    """Whether the tests pass in a fresh environment; None where it cannot be made."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        own = f"{folder}/bin/python"
        pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = [f"torch{torch}", f"numpy{numpy}", f"{ROOT}[fast]", "pytest", "hypothesis"]
        if subprocess.run([*pip, *wanted]).returncode:
            return None
        told = "import torch, numpy; print('torch', torch.__version__, 'numpy', numpy.__version__)"
        subprocess.run([own, "-c", told], check=True)
        # Warnings of old versions about themselves are not ours.
        command = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *tests]
        return subprocess.run(command, cwd=ROOT).returncode == 0


def main() -> int:
    """Try the ends of the range."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--python", help="one version, for example 3.11")
    parser.add_argument("--torch", help="one version, for example 2.6")
    parser.add_argument("--numpy", help="one version, for example 1.26")
    parser.add_argument("tests", nargs="*", default=QUICK)
    given = parser.parse_args()
    pairs = [
        (supported()[0], f"=={lowest('torch')}.*", f"=={lowest('numpy')}.*"),
        (supported()[-1], "", ""),
    ]
    if given.python or given.torch:
        torch, numpy = (f"=={each}.*" if each else "" for each in (given.torch, given.numpy))
        pairs = [(given.python or supported()[0], torch, numpy)]
    failed = False
    for version, torch, numpy in pairs:
        python = interpreter(version)
        found = check(python, torch, numpy, given.tests) if python else None
        words = {True: "passes", False: "FAILS", None: "not to be had here"}[found]
        print(
            f"Python {version}, torch{torch or ' newest'}, numpy{numpy or ' newest'}: {words}",
            flush=True,
        )
        failed |= found is False
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
