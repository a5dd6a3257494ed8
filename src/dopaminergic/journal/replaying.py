"""From initial weights and a journal to the weights of any step.

The updates are made once more, by the code that made them first.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dopaminergic.files import shown
from dopaminergic.journal.format import (
    DIGEST_BYTES,
    HEADER,
    SIGMA,
    SKIPPED,
    SNAPSHOT,
    STEP,
    TRACE,
    JournalError,
    Raw,
    Step,
)
from dopaminergic.journal.reading import Contents, Header, JournalDamage, Snapshot, header_of, read
from dopaminergic.journal.tensors import Parameters, digest, dtype_name, fits, load, matched
from dopaminergic.weights import Weights


def replay(
    model: Parameters,
    journal: str | os.PathLike[str] | Contents,
    upto: int | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Bring a model from its initial weights to those of a step, bit for bit.

    That takes no forward pass.

    The model may also hold the weights of a snapshot on the way; the replay then starts there.
    There is one every 100 steps by default, and one where the recording ended. At each snapshot the
    weights are compared with those that were recorded.

    Args:
        model: a model, or the parameters as they were given to the optimizer; a dict of tensors,
            such as a `state_dict`, is changed in place.
        journal: a file, or the contents that `dopaminergic.journal.read` made of it.
        upto: number of steps, counted from the start of the journal; None: all of them.
        progress: called with the number of steps done and of all steps, from time to time.

    Returns:
        The number of steps that lie between the initial weights and those that the model now has.

    Raises:
        JournalError: the model is not that of the journal, or other weights than were recorded came
            out.
        OSError: the file cannot be read.

    Warns:
        JournalDamage: the journal is damaged, and ends early.

    >>> import tempfile, torch
    >>> from dopaminergic import Dopamine, Journal
    >>> path = tempfile.mkdtemp() + "/run.journal"
    >>> model, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> _ = other.load_state_dict(model.state_dict())
    >>> with Journal(Dopamine(model.parameters()), path) as journal:
    ...     for _ in range(5):
    ...         _ = journal.optimizer.step(lambda: model(torch.ones(4, 2)).square().mean())
    >>> replay(other, path)
    5
    >>> torch.equal(other.weight, model.weight) and torch.equal(other.bias, model.bias)
    True
    """
    contents = journal if isinstance(journal, Contents) else read(journal)
    stop = _last_step(contents, upto)
    parameters = matched(model, contents)
    start = _start(parameters, contents, stop)
    with torch.no_grad():
        _Replay(parameters, contents, start).run(stop, progress)
    return stop


def revert(
    model: Parameters,
    journal: str | os.PathLike[str] | Contents,
    to: int,
    *,
    base: Parameters | str | os.PathLike[str] | None = None,
) -> int:
    """Go back to the weights of an earlier step, bit for bit.

    Sums of floating-point numbers cannot be undone exactly, so there is no way back from the
    weights alone. This copies the initial weights, or those of a snapshot before the step, and
    replays from there.

    Args:
        model: as for `replay`; its weights are overwritten.
        journal: as for `replay`.
        to: number of steps, counted from the start of the journal.
        base: the weights to start from, needed: a model, parameters, a `state_dict`, or a file that
            `torch.save` wrote one to.

    Returns:
        `to`.

    Raises:
        JournalError: as `replay`; if the base is not that of the journal, the model is left as it
            was.
    """
    contents = journal if isinstance(journal, Contents) else read(journal)
    stop = _last_step(contents, to)
    parameters = matched(model, contents)
    if base is None:
        raise JournalError(
            "revert: base is needed, the weights that the recording started from: floating-point "
            "sums cannot be undone "
            "exactly; pass base=initial_state_dict, or a file that holds it"
        )
    if isinstance(base, str | os.PathLike):
        base = load(Path(base))
    bases = matched(cast(Parameters, base), contents)
    start = _start(bases, contents, stop)
    with torch.no_grad():
        for p, b in zip(parameters, bases, strict=True):
            p.copy_(b)
        _Replay(parameters, contents, start).run(stop, None)
    return stop


# ---- which steps ---------------------------------------------------------------------------------


def _last_step(contents: Contents, upto: int | None) -> int:
    if upto is None:
        if contents.damage is not None:
            warnings.warn(contents.warning, JournalDamage, stacklevel=3)
        return contents.steps
    if not isinstance(upto, int) or isinstance(upto, bool):
        raise TypeError(f"upto must be an int, a number of steps, got {upto!r}")
    if not 0 <= upto <= contents.steps:
        raise JournalError(
            f"{contents.path} holds steps 0 to {contents.steps:,}, not {upto:,}"
            + (f"; it is damaged {contents.damage}" if contents.damage else "")
        )
    return upto


def _start(parameters: list[Tensor], contents: Contents, stop: int) -> Snapshot:
    """The last snapshot before `stop` whose weights these are."""
    have: dict[int, str] = {}
    for snapshot in reversed(contents.snapshots):
        count = len(snapshot.header.parameters)
        if count not in have:
            have[count] = digest(parameters[:count])
        if snapshot.steps <= stop and snapshot.weights == have[count]:
            return snapshot
    later = any(s.weights == have[len(s.header.parameters)] for s in contents.snapshots)
    raise JournalError(
        f"{contents.path} starts from other weights: SHA-256 "
        f"{contents.snapshots[0].weights[:16]}..., those given "
        f"have {have[len(contents.headers[0].parameters)][:16]}..."
        + (
            "; they are those of a later step, from which only `revert` with a base leads back"
            if later
            else ""
        )
        + "; load the weights that the recording started from"
    )


# ---- the replay itself ---------------------------------------------------------------------------


class _Replay:
    def __init__(self, parameters: list[Tensor], contents: Contents, start: Snapshot) -> None:
        self.parameters = parameters
        self.contents = contents
        self.start = start
        self.steps = start.steps
        state = contents.state(start)
        self._section(start.header)
        try:
            self.step = int(state["progress"]["step"])
            self._set_sigmas([float(group["sigma"]) for group in state["groups"]])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise JournalError(
                f"{contents.path}: the snapshot at byte {start.start} lacks the state"
            ) from None

    def run(self, stop: int, progress: Callable[[int, int], None] | None) -> None:
        records = self.contents.records(self.start)
        while self.steps < stop:
            raw = next(records)
            self._take_named(raw)
            if progress is not None and self.steps % 100 == 0:
                progress(self.steps, stop)
        # A snapshot of this very step, if there is one, is a last check.
        for raw in records:
            if raw.kind == SNAPSHOT:
                self._take_named(raw)
            if raw.kind != TRACE:
                break
            self._take_named(raw)

    def _take_named(self, raw: Raw) -> None:
        try:
            self._take(raw)
        except JournalError as error:
            raise JournalError(
                f"{self.contents.path}: the record at byte {raw.start}: {error}"
            ) from None

    def _take(self, raw: Raw) -> None:
        if raw.kind == STEP:
            self._do(self.codec.read_step(raw.payload))
            self.step = self.step + 1
            self.steps = self.steps + 1
        elif raw.kind == SKIPPED:
            self._do(Step([], None, []))
            self.step = self.step + 1
            self.steps = self.steps + 1
        elif raw.kind == TRACE:
            self._repeat(self.codec.read_traces(raw.payload))
            self.weights.restore(self.step)
        elif raw.kind == SIGMA:
            if len(raw.payload) != 8 * len(self.groups):
                raise JournalError(
                    f"{len(raw.payload)} bytes are not a sigma for each of {len(self.groups)} "
                    "groups"
                )
            self._set_sigmas(list(struct.unpack(f"<{len(self.groups)}d", raw.payload)))
        elif raw.kind == SNAPSHOT:
            self._check(raw.payload[:DIGEST_BYTES].hex())
            self.codec.displacement = b""
        elif raw.kind == HEADER:
            header = header_of(raw)
            self._section(header)
            self.step = header.step
            if header.weights:
                self._check(header.weights)

    def _section(self, header: Header) -> None:
        """Parameters and groups as the optimizer had them.

        The memory is the same, also where other parameters are frozen now.
        """
        self.codec = header.codec()
        groups = []
        at = 0
        for group in header.groups:
            members = []
            for wanted in group["parameters"]:
                alias = self.parameters[at].detach()
                if not fits(alias, wanted):
                    raise JournalError(
                        f"parameter {at} is given as {dtype_name(alias)} of shape "
                        f"{list(alias.shape)}"
                    )
                members.append(alias.requires_grad_(wanted["trainable"]))
                at += 1
            groups.append({"params": members, "sigma": group["sigma"]})
        kind = header.settings.get("noise")
        if kind not in ("rademacher", "gaussian"):
            raise JournalError(f"{self.contents.path}: there is no noise {shown(repr(kind), 60)}")
        self.groups = groups
        perturbation: dict[str, Any] = header.perturbation
        self.weights = Weights(groups, np.array(header.seeds, np.uint64), kind, **perturbation)

    def _set_sigmas(self, sigmas: list[float]) -> None:
        for group, sigma in zip(self.groups, sigmas, strict=True):
            group["sigma"] = sigma

    def _do(self, step: Step) -> None:
        weights = self.weights
        try:
            self._repeat(step.traces)
            weights.update(step.terms, step.scales, lambda: None)
        except BaseException:
            weights.restore(self.step)
            raise

    def _repeat(self, traces: list[Any]) -> None:
        if not 0 <= self.step < 1 << 32:
            raise JournalError(f"step numbers are below 2^32, this is {self.step}")
        self.weights.begin(self.step)
        if traces:  # holding signals back takes as long as a tiny update
            self.weights.repeat(traces)

    def _check(self, recorded: str) -> None:
        count = sum(len(group["params"]) for group in self.groups)
        if digest(self.parameters[:count]) != recorded:
            raise JournalError(
                f"the weights after {self.steps:,} steps are not those that were recorded; either "
                "something but the "
                "optimizer changed them since the snapshot before, or this machine draws other "
                "Gaussian directions (in "
                "the last place; Rademacher ones are the same everywhere)"
            )
