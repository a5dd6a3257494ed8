"""A learning task: initial networks, batches, a loss, and test metrics.

Batches are a pure function of seed and step.

A task serves one model and a stack of R models (see `dopaminergic.lab.networks`) by the same calls.
It draws batches from the counter-based noise of the library, so a run resumes exactly. Every
optimizer that is given one seed sees the same initial weights and the same batches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from dopaminergic.lab.networks import Seeds, Stackable
from dopaminergic.noise.reference import BATCH, MASK, philox
from dopaminergic.outcomes import Outcome

Model = Stackable
Batch = tuple[Tensor, Tensor]

MOST = 1 << 20  # bound of every count: a typing error shall not ask for a terabyte
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def choose(name: str, value: str, known: tuple[str, ...]) -> str:
    """The value, if it is one of those known; else a ValueError that lists them."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value


def limited(name: str, value: float, least: float, most: float = math.inf) -> float:
    """The value, if it is a number in [least, most]; else a ValueError that says so."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        limits = f"of at least {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
        raise ValueError(f"{name}: expected a number {limits}, got {value!r}")
    return value


def counted(name: str, value: int, *, least: int = 1, most: int = MOST) -> int:
    """The value, if it is a whole number in [least, most]; else a ValueError that says so."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        large = isinstance(value, int) and value > most
        limit = f"at most {most:,}" if large else f"at least {least}"
        example = min(max(least, 16), most)
        raise ValueError(
            f"{name}: expected a whole number of {limit}, got {value!r:.40}; try {name}={example}"
        )
    return value


class Task(ABC):
    """A learning problem with fixed data; see the module for its promises.

    Attributes:
        name: the key in `TASKS`.
        title: for headings.
        metric: the key of `evaluate()` by which runs are ranked; lower is better.
        metric_label: for the axes of figures.
        threshold: a run has solved the task when its metric is below this. For example, it is
            0.01 on the four patterns of XOR. None if the task has no such mark.
        budget: forward passes of a full run.
        evaluate_every: forward passes between two evaluations.
        settings: everything that defines the task beside its name, as JSON.
        loss_floor: the least loss that can be reached.
        dtype: of the data and the parameters.
        notes: for a user, on the data as they were read.
        pinned: settings that tie a run to the data as they are now.
        patience: forward passes without a smaller error of `validate` after which a run ends; None:
            it uses all of its budget.
    """

    name: str
    title: str
    metric: ClassVar[str]
    metric_label: ClassVar[str]
    threshold: float | None = None
    budget: int
    evaluate_every: int
    settings: dict[str, Any]
    loss_floor: float = 0.0
    dtype: torch.dtype = torch.float32
    notes: tuple[str, ...] = ()
    pinned: Mapping[str, Any] = MappingProxyType({})
    patience: int | None = None

    def _define(
        self, name: str, title: str, budget: int, evaluate_every: int, settings: dict[str, Any]
    ) -> None:
        """Sets the attributes common to all tasks.

        `settings["dtype"]` is `"float32"` or `"float64"`.
        """
        self.name = name
        self.title = title
        self.budget = budget
        self.evaluate_every = evaluate_every
        self.settings = settings
        self.dtype = DTYPES[choose("dtype", settings["dtype"], tuple(DTYPES))]

    @abstractmethod
    def build(self, seeds: Seeds) -> Model:
        """The network at its initial weights: plain for an int, stacked for a sequence of R ints.

        Slice r of the stacked network equals `build(seeds[r])` exactly.
        """

    @abstractmethod
    def batch(self, seeds: int | Tensor, step: int) -> Batch:
        """Inputs and targets of one training step, a pure function of its arguments.

        Args:
            seeds: an int, or an int64 tensor of shape `(R,)` for one batch for each replica.
            step: in [0, 2^32).

        Returns:
            Inputs `(B, ...)` and targets `(B, ...)`, with a leading R for a tensor of seeds;
            without it where all replicas share the batch.
        """

    @abstractmethod
    def outcome(self, model: Model, batch: Batch) -> Outcome:
        """The predictions on a batch and their losses.

        For a stacked model both keep the leading R.
        """

    @abstractmethod
    def evaluate(self, model: Model) -> dict[str, Tensor]:
        """Test metrics cheap enough for learning curves.

        They are float64, 0-d, or `(R,)` for a stacked model.
        """

    def finish(self, model: Model) -> dict[str, Tensor]:
        """Metrics too costly for curves, wanted once at the end of a run.

        Shapes are as in `evaluate`.
        """
        return {}

    def validate(self, model: Model) -> Tensor | None:
        """The error by which the weights to keep are chosen, 0-d or `(R,)`; None: the last ones."""
        return None

    def picture(self, model: Model) -> list[dict[str, Any]]:
        """Data for figures of a plain model or a stack of one.

        Each is a JSON-able dict with a `name`.
        """
        return []

    def parameter_count(self) -> int:
        """The number of weights of one replica."""
        return sum(parameter.numel() for parameter in self.build(0).parameters())


class Draws:
    """`integers(n, high, seed=..., step=...)` for many steps at once: the same numbers, cheaper.

    Calling Philox on the few counters of one step costs as much as a small network. For many steps
    at once it is a twentieth of that. The last block of steps is kept. For any order of the calls,
    the result depends on the seeds and the step alone.

    Args:
        n: how many numbers a step.
        high: exclusive upper bound, in [1, 2^31).
        block: how many steps to draw at once.
    """

    def __init__(self, n: int, high: int, *, block: int = 64) -> None:
        self.n = n
        self.high = high
        self.block = block
        self._first = -1
        self._seeds = torch.empty(0, dtype=torch.int64)
        self._kept = torch.empty(0, dtype=torch.int64)

    def __call__(self, seeds: int | Tensor, step: int) -> Tensor:
        """Integers in [0, high), shape `(n,)`, or `(R, n)` for a tensor of seeds."""
        wanted = torch.as_tensor(seeds, dtype=torch.int64)
        first = step - step % self.block
        if first != self._first or not torch.equal(wanted, self._seeds):
            self._kept = self._draw(wanted, first)
            self._first = first
            self._seeds = wanted.clone()
        return self._kept[step - first]

    def _draw(self, seeds: Tensor, first: int) -> Tensor:
        steps = torch.arange(first, first + self.block).reshape(-1, *[1] * (seeds.ndim + 1))
        key = ((seeds & MASK)[..., None], (seeds >> 32)[..., None])
        counter = (torch.arange(-(-self.n // 4)), torch.tensor(0), steps, torch.tensor(BATCH << 28))
        bits = torch.stack(philox(counter, key), -1).flatten(-2)[..., : self.n]
        return (bits * self.high) >> 32


def mean_over_samples(values: Tensor, model: Model) -> Tensor:
    """The mean in float64 over all dimensions except the replicas.

    It is 0-d, or `(R,)` for a stacked model.
    """
    lead = 0 if model.replicas is None else 1
    return values.to(torch.float64).flatten(lead).mean(-1)


def single(model: Model) -> None:
    """Raises ValueError unless the model is plain or a stack of one."""
    if model.replicas not in (None, 1):
        raise ValueError(
            f"model: pictures are drawn of one model, got a stack of {model.replicas}; take one "
            "replica"
        )
