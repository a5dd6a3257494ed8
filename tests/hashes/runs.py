"""One situation, trained for some steps, and the hashes of all that came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import ExponentialLR

import dopaminergic
from dopaminergic import ForwardOptimizer, Journal, replay

from .digests import bytes_of, digest, journal_content
from .knobs import conditions
from .networks import REPLICAS, Network
from .situations import LARGE_BY_ITSELF, VECTOR, Situation

STEPS = 12
EVERY = 5  # steps between snapshots of a journal
NONE = "-"
NO_OPTIMIZER = ("estimator", "jax")  # situations in which others draw noise, or nobody does
RATES = {
    "Dopamine": 3.5,
    "Dopamine2": 1.5,
    "VectorDopamine": 1.0,
    "SPSA": 0.05,
    "WeightPerturbation": 0.05,
    "EvolutionStrategy": 0.01,
}
SECOND_SIGMA = 1.0 / 128  # of the second group


class Row(NamedTuple):
    """The columns of the table: hashes, and how often the closure was called."""

    weights: str
    losses: str
    state: str
    counters: str
    journal: str
    calls: str


class Trial:
    """A network and its optimizer, trained in one situation; a special one is a subclass.

    Args:
        situation: which one.
        folder: for its journal.

    Attributes:
        step: number of steps that are done.
        calls: how often the closure was called, in all and in this step.
    """

    def __init__(self, situation: Situation, folder: Path) -> None:
        self.situation = situation
        self.path = folder / "run.journal"
        self.network = self.make_network()
        self.initial = [p.detach().clone() for p in self.parameters()]
        self.optimizer = self.make_optimizer()
        self.schedule = (
            ExponentialLR(self.optimizer, 0.75) if situation.change == "schedule" else None
        )
        self.closure = self.make_closure()
        self.losses: list[Any] = []
        self.counters: list[Any] = []
        self.step = 0
        self.calls = 0
        self.calls_now = 0

    # ---- how it is made --------------------------------------------------------------------------

    def make_network(self) -> Any:
        """The network at its initial weights."""
        situation = self.situation
        strided = situation.layout == "strided"
        network = Network(getattr(torch, situation.dtype), fleet=situation.fleet, strided=strided)
        network.draws = situation.draws == "draws"
        return network

    def parameters(self) -> list[torch.Tensor]:
        """All parameters, trainable or not."""
        return list(self.network.parameters.values())

    def make_closure(self) -> Callable[[], Any]:
        """Gives the outcome in the form of the situation."""
        return self.network.closure(self.situation.closure)

    def groups(self) -> list[Any]:
        """As an optimizer takes them: names where there is one group."""
        if self.situation.groups == "1 group":
            return list(self.network.parameters.items())
        first, *rest = self.parameters()
        rate = RATES[self.situation.rule]
        return [{"params": [first]}, {"params": rest, "lr": rate / 2, "sigma": SECOND_SIGMA}]

    def options(self) -> dict[str, Any]:
        """Arguments of the optimizer."""
        situation = self.situation
        seeds = [5 + r for r in range(REPLICAS)]
        options: dict[str, Any] = {
            "lr": RATES[situation.rule],
            "noise": situation.noise,
            "directions": int(situation.directions[1:]),
            "seed": seeds if situation.fleet else 5,
            "weight_decay": 0.125 if situation.change == "decay" else 0.0,
        }
        if situation.rule != VECTOR:
            options["batched"] = situation.batched
        if situation.sides != "default":
            options["two_sided"] = True
        return options

    def make_optimizer(self) -> ForwardOptimizer:
        """A new optimizer of these parameters."""
        return getattr(dopaminergic, self.situation.rule)(self.groups(), **self.options())

    # ---- how it is trained -----------------------------------------------------------------------

    def evaluate(self) -> Any:
        """What the optimizer is given as a closure."""
        self.calls += 1
        self.calls_now += 1
        return self.closure()

    def before_step(self) -> None:
        """Whatever a special situation does between two steps."""

    def one_step(self) -> Any:
        """The loss of a step, or of the probe that comes before it."""
        if self.situation.call == "step":
            return self.optimizer.step(self.evaluate)
        loss = self.optimizer.probe(self.evaluate)
        self.optimizer.step()
        return loss

    def train(self, upto: int = STEPS) -> None:
        """Go on to step number `upto`."""
        while self.step < upto:
            self.before_step()
            self.network.step = self.step
            self.calls_now = 0
            self.losses.append(self.one_step())
            self.count()
            if self.schedule is not None:
                self.schedule.step()
            self.step += 1

    def count(self) -> None:
        """Note all public counters after a step."""
        optimizer = self.optimizer
        names = ("forward_passes", "skipped_steps", "last_rpe", "last_learning_rate", "next_passes")
        self.counters.append([getattr(optimizer, name) for name in names])

    def run(self) -> None:
        """All steps, under a journal where there is to be one."""
        if self.situation.journal != "journal":
            self.train()
            return
        with Journal(self.optimizer, self.path, every=EVERY):
            self.train()
        self.replay()

    def replay(self) -> None:
        """Rebuild the weights from the journal; they must be those of the run."""
        fresh = [p.clone() for p in self.initial]
        steps = replay(fresh, self.path)
        trained = self.parameters()
        if steps != STEPS or any(
            bytes_of(a) != bytes_of(b) for a, b in zip(fresh, trained, strict=True)
        ):
            raise AssertionError(
                f"{self.situation.name}: the journal does not lead to the trained weights"
            )

    # ---- what came of it -------------------------------------------------------------------------

    def kept(self) -> list[torch.Tensor]:
        """Tensors that training changes."""
        return self.parameters()

    def row(self) -> Row:
        """Hashes of everything."""
        weights = b"".join(map(bytes_of, self.kept()))
        journal = digest(journal_content(self.path)) if self.path.exists() else NONE
        counters = [self.counters, torch.get_rng_state()]
        state = self.optimizer.state_dict()
        return Row(
            digest(weights),
            digest(self.losses),
            digest(state),
            digest(counters),
            journal,
            str(self.calls),
        )


def run(situation: Situation, kind: Callable[[Situation, Path], Trial] = Trial) -> Row:
    """The row of a situation; the exception's name in its first column where the library refuses
    it.
    """
    with tempfile.TemporaryDirectory() as folder:
        large = situation.size == "large" and situation.special != LARGE_BY_ITSELF
        watched = situation.special not in NO_OPTIMIZER
        with conditions(large=large, slow=situation.engine == "torch", watched=watched):
            try:
                trial = kind(situation, Path(folder))
                trial.run()
            except (TypeError, ValueError) as error:
                return Row(f"refused-{type(error).__name__}", *[NONE] * (len(Row._fields) - 1))
            return trial.row()
