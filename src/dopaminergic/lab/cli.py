"""The command line: `dopaminergic COMMAND`.

Words are read here; `commands`, which loads torch, is loaded once they are known to be right.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial

from dopaminergic.lab.arguments import parser
from dopaminergic.lab.terminal import clean, say, show_all_signs

RUNS = ("reproduce", "train", "compare")  # the commands that train
COMMAND_NAMES = (*RUNS, "forecast", "report", "tasks", "journal")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        0, or 2 after an error that the user can mend, or 130 after Ctrl-C.
    """
    show_all_signs()
    options = parser(COMMANDS).parse_args(arguments)
    options.line = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that is gone can be told from a failure
        return status
    except KeyboardInterrupt as stop:
        print(f"\ninterrupted{_how_to_continue(options, str(stop))}", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        if not _readers_are_gone():
            return _fail(
                f"another process of this run is gone ({error}); run the same command again to "
                "continue"
            )
        # A reader such as `head` has had enough; nothing is missing unless runs were still to be
        # made.
        return 1 if options.command in RUNS else 0
    except ModuleNotFoundError as error:
        return _fail(
            f"{error.name} is not installed; the command line needs: pip install "
            "'dopaminergic[fast,lab]'"
        )
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        if os.environ.get("DOPAMINERGIC_TRACEBACK"):
            raise
        return _fail(str(error))


def _readers_are_gone() -> bool:
    """Whether nobody reads the output of this process; then the rest of it is dropped."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            gone = True
            os.dup2(nothing, stream.fileno())
        except (AttributeError, ValueError):  # closed, or none at all
            continue
    os.close(nothing)
    return gone


def _fail(message: str) -> int:
    print(f"dopaminergic: error: {clean(message)}", file=sys.stderr)
    return 2


def _how_to_continue(options: argparse.Namespace, checkpoint: str) -> str:
    """The command that goes on where this one was interrupted.

    It says from where it goes on; a plain one starts `train` again.
    """
    if options.command not in RUNS:
        return ""
    line = ["dopaminergic", *options.line]
    kept = "; finished runs are kept"
    if options.command == "train":
        kept = (
            f" at the checkpoint {checkpoint}"
            if checkpoint
            else "; the last checkpoint, if there is one, is kept"
        )
        line += [] if options.resume else ["--resume"]
    return clean(f"{kept}; to continue: {shlex.join(line)}")


def _run(name: str, options: argparse.Namespace) -> int:
    """Load the command of a name and run it."""
    if name in RUNS and not options.json:
        say("loading torch")
    from dopaminergic.lab import commands

    return getattr(commands, name)(options)


COMMANDS = {name: partial(_run, name) for name in COMMAND_NAMES}


if __name__ == "__main__":
    sys.exit(main())
