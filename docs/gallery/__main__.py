"""Write all pictures, or some: `python -m docs.gallery [NAME ...] [--out FOLDER]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from docs.gallery import computed, measured, schemes
from docs.gallery.drawing import STYLE, write
from matplotlib import rc_context

PICTURES = {**measured.PICTURES, **computed.PICTURES, **schemes.PICTURES}


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(prog="python -m docs.gallery", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        with rc_context(STYLE):
            write(PICTURES[name](), arguments.out / f"{name}.svg")
        print(arguments.out / f"{name}.svg")


if __name__ == "__main__":
    main()
