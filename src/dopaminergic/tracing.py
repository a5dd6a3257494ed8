"""How torch.compile is kept out of a step.

A step is no tensor program: it counts, and calls kernels by address.
"""

from __future__ import annotations

from typing import Any

import torch


def keep_tracers_out(*functions: Any) -> None:
    """Let torch.compile run these functions, and all that they call, as they are.

    The mark stands with their code, so that a step pays nothing for it; torch.compiler.disable
    would wrap each call. A compiled model inside the closure stays compiled.
    """
    frames: Any = getattr(torch._C, "_dynamo").eval_frame  # noqa: B009  (not in torch's types)
    if not hasattr(frames, "_FrameExecStrategy"):  # torch 2.6
        return
    skip = frames._FrameAction.SKIP
    for function in functions:
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
