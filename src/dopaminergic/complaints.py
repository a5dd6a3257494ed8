"""Whether an exception is a complaint of torch, or the closure's own.

Torch complains about batched or handed-over tensors. A closure that torch cannot follow is
evaluated in another way. An exception of its own, for example a time limit, must reach the caller.
"""

from __future__ import annotations

import dis
from pathlib import Path
from types import TracebackType

import torch

OF_TORCH = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, AttributeError)
RAISES = ("RAISE_VARARGS", "RERAISE")
TORCH = str(Path(torch.__file__).parent)
RECURRENT = str(Path(__file__).with_name("recurrent.py"))
# These parts of torch raise for the closure, for example a data loader whose worker died.
OF_CLOSURES = tuple(
    str(Path(TORCH) / name) for name in ("utils/data", "distributed", "multiprocessing")
)


def is_complaint(error: BaseException) -> bool:
    """Whether torch refused an operation; False where Python code of the closure raised.

    Args:
        error: raised by a closure, for example in a batch. One that a library raises because of
            torch's complaint (`raise EinopsError from error`) counts as that complaint.
    """
    seen: set[int] = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        if _comes_from_torch(chain):
            return True
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return False


def _comes_from_torch(error: BaseException) -> bool:
    if not isinstance(error, OF_TORCH) or error.__traceback__ is None:
        return False
    last: TracebackType = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    if code.co_filename == RECURRENT:
        return True  # raised by our replacements of torch's own recurrent layers in a batch
    if code.co_filename.startswith(TORCH):
        return not code.co_filename.startswith(OF_CLOSURES)
    # A statement `raise` of Python belongs to the closure; compiled code raises at a call.
    return dis.opname[code.co_code[last.tb_lasti]] not in RAISES
