"""Buffers of modules, such as running statistics, which must not follow perturbed weights.

    a step:  first evaluation (at the weights, where the rule asks for that) -> its buffers are kept
             every other evaluation -> the buffers are put back

Without it a batch normalisation averages the statistics of all perturbed passes, and its network is
lost in eval mode. The same holds for observers and codebooks. Modules are found when they are
called in the first evaluation; a module that is never called has no say in a closure.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

# A buffer of at most so many bytes is copied in every step, also if nobody seems to write to it.
SMALL = 1 << 16


class Buffer(NamedTuple):
    """One entry of a module's buffers.

    Attributes:
        owner: the module's dict of buffers.
        name: its key.
    """

    owner: dict[str, Tensor | None]
    name: str


class Saved(NamedTuple):
    """A buffer as it was: the tensor that it is, its version, and its contents or None.

    The contents are a copy.
    """

    tensor: Tensor | None
    version: int
    contents: Tensor | None


class Buffers:
    """The buffers of all modules that a closure calls.

    Attributes:
        known: whether the modules have been looked for.
    """

    def __init__(self) -> None:
        self.known = False
        self._buffers: list[Buffer] = []
        # Places in `_buffers` of large ones that the closure writes to.
        self._written: set[int] = set()
        self._before: list[Saved] = []  # as they were when the step began
        self._kept: list[Saved] | None = None  # as the first evaluation left them
        self._trial: list[Saved] | None = None  # as the evaluation of the new weights left them
        self._is_trial = False

    def __bool__(self) -> bool:
        return bool(self._buffers) or not self.known

    def __getstate__(self) -> dict[str, Any]:
        # They belong to the modules of this process; a copy looks for its own.
        return Buffers().__dict__

    @contextlib.contextmanager
    def found(self) -> Iterator[None]:
        """Look for modules among those that are called within the block."""
        seen: set[int] = set()
        self._buffers = []
        self._before = []
        self._written = set()

        def look(module: Any, _: Any) -> None:
            for m in module.modules() if id(module) not in seen else ():
                if id(m) not in seen:
                    seen.add(id(m))
                    self._add(m._buffers)

        hook = register_module_forward_pre_hook(look)
        try:
            with warnings.catch_warnings():
                # Torch says of any such hook that it is called twice for compiled modules, which
                # does no harm here.
                warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)
                yield
        finally:
            hook.remove()
        self.known = True

    @property
    def kept(self) -> bool:
        """Whether the first evaluation of this step is over."""
        return self._kept is not None

    def _add(self, owner: dict[str, Tensor | None]) -> None:
        for name in owner:
            self._buffers.append(Buffer(owner, name))
            self._before.append(self._save(len(self._buffers) - 1))

    def begin(self) -> None:
        """Remember the buffers before the first evaluation of a step."""
        self._kept = None
        self._before = [self._save(i) for i in range(len(self._buffers))]

    def keep(self) -> None:
        """Keep the buffers of the first evaluation; every other one is undone from here on."""
        for i, (saved, buffer) in enumerate(zip(self._before, self._buffers, strict=True)):
            now = buffer.owner.get(buffer.name)
            if now is not saved.tensor or (now is not None and now._version != saved.version):
                self._written.add(i)
        self._kept = [self._save(i) for i in range(len(self._buffers))]

    def put_back(self) -> None:
        """Undo the writes of an evaluation after the first one."""
        if self._kept is None:
            return
        if self._is_trial:
            self._trial = [self._save(i) for i in range(len(self._buffers))]
            self._is_trial = False
        self._write(self._kept)

    def expect_trial(self) -> None:
        """Remember the writes of the next evaluation.

        It is made at the weights that the step may lead to.
        """
        self._is_trial = True

    def accept_trial(self) -> None:
        """Take the writes of that evaluation, for the weights are those now."""
        if self._trial is not None:
            self._write(self._trial)

    def undo(self) -> None:
        """Undo all evaluations of the step; harmless when none has begun."""
        if self._before:
            self._write(self._before)
        self.end()

    def end(self) -> None:
        """Forget the step."""
        self._before = []
        self._kept = self._trial = None
        self._is_trial = False

    def _save(self, i: int) -> Saved:
        buffer = self._buffers[i]
        tensor = buffer.owner.get(buffer.name)
        if tensor is None:
            return Saved(None, 0, None)
        small = tensor.numel() * tensor.element_size() <= SMALL
        copied = small or i in self._written
        return Saved(tensor, tensor._version, tensor.detach().clone() if copied else None)

    def _write(self, saved: list[Saved]) -> None:
        for i, (one, buffer) in enumerate(zip(saved, self._buffers, strict=True)):
            if buffer.owner.get(buffer.name) is not one.tensor:
                buffer.owner[buffer.name] = one.tensor
            if one.tensor is None:
                continue
            if one.contents is not None:
                _copy(one)
            elif one.tensor._version != one.version:
                # Too late for this evaluation; from the next step on it is copied.
                self._written.add(i)


@torch.no_grad()
def _copy(saved: Saved) -> None:
    tensor: Any = saved.tensor
    contents: Any = saved.contents
    if tensor.shape != contents.shape:
        tensor.resize_(contents.shape)  # observers grow their buffers in place
    tensor.detach().copy_(contents)
