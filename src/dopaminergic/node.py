"""NodeDopamine: credit through perturbed activities, with learned expectations.

    every sample and unit has its own trial xi  ->  a vector of regrets for each sample
    feedback expects the regrets  ->  its prediction errors teach it, and correct the credit
    dW = presynaptic activity x credit

A rule that perturbs weights shares one trial among all samples of a batch. Here B samples tell B
independent regrets about far fewer units. Feedback from outcomes to units says which regret to
expect of each trial, so that only its prediction error carries noise.

Defined in algorithms.md. Node perturbation: Werfel, Xie and Seung (2005); learned feedback by
perturbations: Lansdell, Prakash and Kording (2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.activities import gauss_newton
from dopaminergic.activities.credit import DOUBT, Credit, learn, parts_of
from dopaminergic.activities.eigen import direction
from dopaminergic.activities.estimates import Product, wide
from dopaminergic.activities.evaluations import Record
from dopaminergic.activities.jacobian import MOST, Jacobians
from dopaminergic.activities.large import LargeStep, scaled
from dopaminergic.node_optimizer import NodeChange, NodeOptimizer, Trial
from dopaminergic.progress import Progress

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from dopaminergic.distributed import Ranks

STEP = 1e-2  # of each weight, in a first-order step
LEAST = 0.05  # of that step is taken, however little was expected
LEAST_DECAY = 0.1  # of the weight decay is left where a loss in nats vanishes
SLOWLY = 0.3  # of what a batch teaches feedback is taken, where weights are many


def node_credits(record: Record, credit: Credit) -> dict[Any, Tensor]:
    """The credit of every unit's input, and the exact one of the outcomes, by their nodes."""
    found: dict[Any, Tensor] = {}
    for part, one in zip(credit.parts, credit.credits, strict=True):
        family = part.family
        found.update(zip(family.nodes, family.of_calls(one), strict=True))
    node = record.outcome
    if node is not None:
        memory = record.loss.slope.new_zeros(max(node.place.span, record.place.span))
        slope = record.loss.slope.reshape(record.place.shape)
        record.place.within(memory).copy_(slope)
        found[node] = node.place.within(memory)
    return found


class NodePerturbation(NodeOptimizer):
    """The plain rule: each unit learns from its own trial and the loss of its sample alone.

    dW = mean over samples of presynaptic activity x trial x (loss with trials - loss) / sigma. It
    is the baseline of `NodeDopamine`, as `WeightPerturbation` is that of `Dopamine`. A step takes 3
    forward passes: two evaluations, and the products.

    Args:
        model: a module, its parameters, named parameters, or groups with their own `lr` and
            `weight_decay`. The closure must call it.
        lr: learning rate, >= 0; for a fleet also a tensor of shape `(R,)`.
        sigma: how far a trial moves the input of a unit, > 0. None: 0.001; with 16-bit weights
            0.03.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0: weights shrink by `lr` times it.
        process_group: `"alone"` or None; ranks are refused.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    Source: Werfel, Xie and Seung, "Learning curves for stochastic gradient descent in linear
    feedforward networks" (Neural Computation 2005).

    >>> import torch
    >>> from dopaminergic import squared_error
    >>> model, x = torch.nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [3.0, 5.0], [2.0, 0.0]])
    >>> optimizer = NodePerturbation(model, lr=0.05)
    >>> losses = [optimizer.step(lambda: squared_error(model(x), x[:, :1])) for _ in range(200)]
    >>> losses[-1] < 0.1 * losses[0]
    True
    """

    perturbs_readout = True
    most_passes = 3

    def __init__(
        self,
        model: Any,
        *,
        lr: float | Tensor = 0.01,
        sigma: float | None = None,
        noise: str = "rademacher",
        seed: int | Sequence[int] = 0,
        weight_decay: float = 0.0,
        process_group: ProcessGroup | Ranks | str | None = None,
    ) -> None:
        super().__init__(
            model,
            lr=lr,
            sigma=sigma,
            noise=noise,
            seed=seed,
            weight_decay=weight_decay,
            process_group=process_group,
        )

    def _credits(self, trial: Trial) -> dict[Any, Tensor]:
        regrets = self._regrets(trial)
        credits: dict[Any, Tensor] = {}
        for family in trial.found:
            credit = regrets * family.trials / family.reach
            credits.update(zip(family.nodes, family.of_calls(credit), strict=True))
        return credits

    @staticmethod
    def _regrets(trial: Trial) -> Tensor:
        """Of the mean loss, from each sample, `(R, B, 1, 1)`."""
        regrets = trial.loss_regrets
        finite = torch.where(regrets.isfinite(), regrets, 0.0)
        return finite[..., None, None] / trial.record.shape[1]

    def _decide(self, before: Progress, trial: Trial) -> NodeChange:
        updates: dict[int, Tensor | LargeStep] = {}
        for number, estimate, _ in self._estimates(trial, self._credits(trial)):
            parameter = self.parameters[number].detach()
            group = self.rates(number)
            lr = self.spread(group["lr"], parameter)
            if isinstance(estimate, Product):
                updates[number] = LargeStep(estimate, group["weight_decay"], lr)
                continue
            amount = estimate + group["weight_decay"] * parameter
            updates[number] = (-lr * amount).to(parameter.dtype)
        lr = self.param_groups[0]["lr"]
        after = before._replace(last_rpe=self._rpe(self._regrets(trial)), last_learning_rate=lr)
        return NodeChange(updates, trial.memory, after)

    def _rpe(self, regrets: Tensor) -> Any:
        sigma = self.param_groups[0]["sigma"]
        return self._own(sigma * regrets.sum((1, 2, 3)).cpu().double())


class NodeState(NamedTuple):
    """The controllers' numbers, each float64 `(R,)`.

    Attributes:
        damping: lambda of Gauss-Newton steps.
        expected: improvement that the last step promised.
        last_loss: before the last step.
        updates: steps that have changed the weights.
    """

    damping: Tensor
    expected: Tensor
    last_loss: Tensor
    updates: Tensor


class NodeDopamine(NodeOptimizer):
    """Credit through activities: trains deep networks by forward passes, with nothing to tune.

    Every unit of every sample is perturbed on its own, and learned feedback expects what the
    outcomes will answer. Networks of up to 1,500 weights take Gauss-Newton steps, 4 forward passes
    each; larger ones first-order steps of 3. The network is never differentiated.

    Give it predictions: a closure that returns `squared_error(prediction, target)`,
    `cross_entropy(logits, labels)` or `outcome(values, loss)`, samples first. Losses of single
    samples, shape `(n,)`, serve too. A lone number is refused.

    Args:
        model: a module, its parameters, named parameters, or groups with their own `lr` and
            `weight_decay`. The closure must call it.
        lr: factor on the step, >= 0; any scheduler may change it.
        sigma: how far a trial moves the input of a unit, > 0. None: 0.001; with 16-bit weights
            0.03. Units with a staircase behind them, `sign` for example, are moved by the root mean
            square of their inputs.
        span: time steps that feedback reaches back, >= 1.
        damping: first lambda, > 0.
        patience: steps, > 0, after which first-order steps become shorter: they are multiplied by
            1 / sqrt(1 + step / patience).
        seed: in [0, 2^63); a sequence makes a fleet, see `ForwardOptimizer`.
        weight_decay: >= 0, of first-order steps: this multiple of the weights is added to the
            estimate of the gradient, and less where the penalty would be worth more than half the
            loss. Gauss-Newton steps find their own from the evidence of the data.
        process_group: `"alone"` or None; ranks are refused.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    Defined in algorithms.md.

    >>> import torch
    >>> from dopaminergic import squared_error
    >>> model, x = torch.nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [3.0, 5.0], [2.0, 0.0]])
    >>> optimizer = NodeDopamine(model)
    >>> losses = [optimizer.step(lambda: squared_error(model(x), x[:, :1])) for _ in range(40)]
    >>> losses[-1] < 1e-6
    True
    """

    def __init__(
        self,
        model: Any,
        *,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        span: int = 8,
        damping: float = 1.0,
        patience: float = 300.0,
        seed: int | Sequence[int] = 0,
        weight_decay: float = 3e-4,
        process_group: ProcessGroup | Ranks | str | None = None,
    ) -> None:
        super().__init__(
            model,
            lr=lr,
            sigma=sigma,
            seed=seed,
            weight_decay=weight_decay,
            process_group=process_group,
            span=span,
            damping=damping,
            patience=patience,
        )

    def start(self) -> NodeState:
        """The first state, in which nothing is known."""
        zero = torch.zeros(self.replicas or 1, dtype=torch.float64, device="cpu")
        return NodeState(*[zero] * len(NodeState._fields))._replace(
            damping=zero + self.settings["damping"]
        )

    def _prepare(self, loaded: Any) -> None:
        super()._prepare(loaded)
        self._jacobians: Jacobians | None = None

    def _credits(self, trial: Trial) -> dict[Any, Tensor]:
        return node_credits(trial.record, self._credit(trial, SLOWLY))

    def _credit(self, trial: Trial, speed: float) -> Credit:
        record = trial.record
        usable = trial.usable.to(record.loss.slope.device)[:, None, None, None]
        slope = torch.where(usable, record.loss.slope.view(record.shape), 0.0)
        span = self.settings["span"]
        parts = parts_of(trial.found, trial.memory, record.shape, span, slope)
        return learn(parts, trial.regrets, slope, trial.memory.get(DOUBT), speed)

    def _decide(self, before: Progress, trial: Trial) -> NodeChange:
        jacobians = self._jacobians
        if jacobians is None or not jacobians.serves(self.parameters):
            self._jacobians = jacobians = Jacobians(self.parameters, self.replicas)
        credit = self._credit(trial, 1.0 if jacobians.width <= MOST else SLOWLY)
        memory = {**trial.memory, **credit.memory}
        jacobian = jacobians(trial.record, credit)
        if jacobian is not None:
            return self._second_order(before, trial, memory, jacobian, jacobians)
        return self._first_order(before, trial, memory, credit)

    def _first_order(
        self, before: Progress, trial: Trial, memory: dict[str, Tensor], credit: Credit
    ) -> NodeChange:
        """A step in the directions in which estimates vary, shorter as steps go on."""
        state: NodeState = before.rule
        count = int(state.updates.max()) + 1
        sure = (1.0 - credit.memory[DOUBT].double().cpu()).clamp(LEAST, 1.0)
        rate = sure * STEP / math.sqrt(1.0 + count / self.settings["patience"])
        loss = trial.record.loss.loss
        most = self._most_decay(loss)
        # Losses in nats vanish as a classifier becomes sure, while its weights go on growing.
        least = LEAST_DECAY if trial.record.loss.in_nats else 0.0
        promise = torch.zeros_like(loss)
        updates: dict[int, Tensor | LargeStep] = {}
        for number, estimate, sides in self._estimates(trial, node_credits(trial.record, credit)):
            parameter = self.parameters[number].detach()
            group = self.rates(number)
            whole_decay = group["weight_decay"]
            decay = self.spread(most.clamp(least * whole_decay, whole_decay), parameter)
            length = self.spread(rate * group["lr"], parameter)
            if isinstance(estimate, Product):
                assert sides is not None
                updates[number], expected = scaled(
                    memory, str(number), estimate, sides, parameter, decay, length, count
                )
                promise = promise + expected
                continue
            whole = estimate.nan_to_num() + decay * wide(parameter)
            each = whole if self._fleet else whole[None]
            turned = direction(memory, str(number), each, sides, count)
            amount = length * turned.view(parameter.shape)
            promise = promise + self.by_replica(amount * whole)
            updates[number] = -amount.to(parameter.dtype)
        known = state.updates > 0
        rpe = torch.where(known, state.last_loss - loss - state.expected, 0.0)
        rates = rate * self.param_groups[0]["lr"]
        after = before._replace(
            rule=state._replace(expected=promise, last_loss=loss, updates=state.updates + 1.0),
            last_rpe=self._own(rpe.nan_to_num()),
            last_learning_rate=self._own(rates),
        )
        return NodeChange(updates, memory, after)

    def _most_decay(self, loss: Tensor) -> Tensor:
        """The decay `(R,)` at which the penalty on all squares is worth half of the loss."""
        squares = torch.zeros_like(loss)
        for parameter in self.parameters:
            if parameter.requires_grad:
                each = parameter.detach().reshape(len(loss), -1)
                dtype = torch.promote_types(each.dtype, torch.float32)
                norms = torch.linalg.vector_norm(each, dim=1, dtype=dtype)
                squares = squares + norms.cpu().double().square()
        most = loss.clamp(min=0.0) / squares.clamp(min=torch.finfo(squares.dtype).tiny)
        return most.nan_to_num()

    def _second_order(
        self,
        before: Progress,
        trial: Trial,
        memory: dict[str, Tensor],
        jacobian: Tensor,
        jacobians: Jacobians,
    ) -> NodeChange:
        """A damped Gauss-Newton step, checked on the same batch."""
        loss = trial.record.loss
        state: NodeState = before.rule
        weights = jacobians.weights(jacobian.double())
        rates = jacobians.spread([self.rates(n)["lr"] for n in jacobians.numbers], weights)
        proposal = gauss_newton.propose(memory, loss, jacobian, weights, state.damping, rates)
        with self._moved(jacobians.as_updates(-proposal.taken)):
            after_step = trial.evaluations.at_trial()
        actual = loss.loss - after_step - proposal.penalty
        accepted = actual > 0.0
        step = torch.where(accepted.to(weights.device)[:, None], -proposal.taken, 0.0)
        lr = torch.as_tensor(self.param_groups[0]["lr"], dtype=torch.float64, device="cpu")
        after = before._replace(
            rule=state._replace(
                damping=gauss_newton.next_damping(state.damping, proposal.expected, actual),
                last_loss=loss.loss,
                expected=torch.where(accepted, proposal.expected, 0.0),
                updates=state.updates + 1.0,
            ),
            last_rpe=self._own((actual - proposal.expected).nan_to_num()),
            last_learning_rate=self._own(torch.where(accepted, gauss_newton.HALF * lr, 0.0)),
        )
        return NodeChange({**jacobians.as_updates(step)}, memory, after)
