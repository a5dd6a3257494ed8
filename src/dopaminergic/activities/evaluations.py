"""The evaluations of one step: as the network is, with perturbed units, at a trial of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.activities.families import Family, shortened
from dopaminergic.activities.layout import Layout
from dopaminergic.activities.nodes import Node, Place
from dopaminergic.activities.tape import Fused, OtherPath, Perturbed, Tape
from dopaminergic.outcomes import Closure, Outcome
from dopaminergic.quadratic import Quadratic, quadratic, read_again
from dopaminergic.weights.modes import random_states, rewind

# torch.backends.mkldnn.flags sets precisions of float32 too, of which torch warns each time.
_get_mkldnn: Any = torch._C._get_mkldnn_enabled  # pyright: ignore
_set_mkldnn: Any = torch._C._set_mkldnn_enabled  # pyright: ignore


class Record(NamedTuple):
    """An evaluation as the network is.

    Attributes:
        tape: the nodes.
        loss: around the outcome, of all samples.
        outcome: the node that the outcome is a view of; None if there is none.
        place: of the outcome in that node.
        losses: of each sample, `(R, B)`.
        layout: of the outcome: which of it are samples, time steps, numbers of one.
        shape: of the outcome, `(R, B, T, C)`.
    """

    tape: Tape
    loss: Quadratic
    outcome: Node | None
    place: Place
    losses: Tensor
    layout: Layout
    shape: tuple[int, int, int, int]


class Evaluations:
    """Every evaluation starts from the random numbers that torch would give next.

    Args:
        closure: of the user, looked after.
        parameters: of the model.
        sigma: how far activations are probed.
        rule: the optimizer's name, for errors.
        replicas: R of a fleet; None for one model.
        generators: of torch, on the devices of the parameters.
        copies: inputs of sites are copied.
    """

    def __init__(
        self,
        closure: Closure,
        parameters: list[Tensor],
        sigma: float,
        *,
        rule: str,
        replicas: int | None,
        generators: list[torch.Generator],
        copies: bool = False,
    ) -> None:
        self._closure = closure
        self._parameters = parameters
        self._sigma = sigma
        self._rule = rule
        self._replicas = replicas
        self._states = random_states(generators)
        self._in_parts: set[str] = set()
        self._copies = copies
        self.count = 0
        self.limit = 0  # of the count, for trials of layouts

    def record(self) -> Record:
        """Evaluate the network as it is."""
        while True:
            tape = Tape(self._parameters, self._sigma, self._copies)
            try:
                with self._unfused(), tape:
                    returned = self._closure()
                break
            except Fused as error:
                if str(error) in self._in_parts:
                    raise RuntimeError(
                        f"{self._rule}: a fused operation ({error}) hides the products of weights "
                        "and activities, and torch does not offer it in parts; replace that module"
                    ) from error
                self._in_parts.add(str(error))
                rewind(self._states)
        self.count += 1
        loss = quadratic(returned, self._rule, self._replicas)
        values: Any = returned.values if isinstance(returned, Outcome) else returned
        shape = self._samples(returned, values)
        outcome = tape.finish(values)
        replicas = self._replicas or 1
        lead = 0 if self._replicas is None else 1
        _, samples, times, width = shape
        split = (*((replicas,) * lead), samples, times, width)
        layout = Layout(split, tuple(range(len(split))), (lead, 1, 1))
        losses = sample_losses(returned, shape)
        return Record(tape, loss, outcome, Place.of(values), losses, layout, shape)

    def _samples(self, returned: Any, values: Any) -> tuple[int, int, int, int]:
        """R, B, T and C of the outcome.

        Raises:
            TypeError: it has no samples.
        """
        lead = 0 if self._replicas is None else 1
        if not isinstance(values, Tensor) or values.ndim <= lead:
            raise TypeError(
                f"{self._rule}: the closure returned a lone number, which says nothing of single "
                "samples; return squared_error(prediction, target), cross_entropy(logits, labels), "
                "outcome(values, loss), or losses of samples, shape (n,); rules that need only a "
                "number are Dopamine2 and SPSA"
            )
        rest = values.shape[lead:]
        if len(rest) == 1:
            return (self._replicas or 1, rest[0], 1, 1)
        times = rest[1:-1].numel()
        return (self._replicas or 1, rest[0], times, rest[-1])

    @contextlib.contextmanager
    def _unfused(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if "mkldnn" in self._in_parts:
                stack.callback(_set_mkldnn, _get_mkldnn())
                _set_mkldnn(False)
            if "attention" in self._in_parts:
                before = torch.backends.mha.get_fastpath_enabled()
                stack.callback(torch.backends.mha.set_fastpath_enabled, before)
                torch.backends.mha.set_fastpath_enabled(False)
            yield

    def perturbed(
        self, record: Record, noise: list[tuple[Family, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The outcome `(R, n)`, and losses `(R, B)`, where noise is added to the inputs of units.

        Args:
            record: of the evaluation as the network is.
            noise: for each family, `(R, B, S, U)`.

        Raises:
            RuntimeError: the closure takes another way through its code.
        """
        planned: dict[int, Tensor] = {}
        for family, amount in noise:
            for node, part in zip(family.nodes, family.of_calls(amount), strict=True):
                planned[node.number] = part.to(node.dtype)
        rewind(self._states)
        mode = Perturbed(record.tape.operations, planned)
        try:
            with self._unfused(), mode:
                returned = self._closure()
            mode.end()
        except OtherPath as error:
            raise self._other_path(*error.args) from None
        self.count += 1
        values = read_again(returned, record.loss.values, self._rule, self._replicas)
        return values, sample_losses(returned, record.shape)

    def _other_path(self, expected: str, found: str) -> RuntimeError:
        return RuntimeError(
            f"{self._rule}: the closure ran {shortened(found)} instead of {shortened(expected)} "
            "when its units were perturbed; it must do the same each time, for example without "
            "`if` on activities, and with caches filled before the first step"
        )

    def at_trial(self) -> Tensor:
        """The loss `(R,)` at the weights as they are now."""
        rewind(self._states)
        with self._unfused():
            returned = self._closure()
        self.count += 1
        return quadratic(returned, self._rule, self._replicas).loss


def sample_losses(returned: Any, shape: tuple[int, ...]) -> Tensor:
    """The loss of each sample `(R, B)`, whose mean is the loss; NaN where only a mean is known."""
    losses = returned.losses if isinstance(returned, Outcome) else returned
    count = shape[0] * shape[1]
    if losses.numel() % count:
        return losses.new_full(shape[:2], torch.nan)
    return losses.detach().reshape(*shape[:2], -1).mean(-1)
