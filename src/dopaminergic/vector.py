"""VectorDopamine: a vector of prediction errors for each direction, one error for each outcome.

    VectorDopamine = sign noise + vector-valued regrets + Gauss-Newton step in their span +
    expected-versus-actual trust

A perturbed pass returns n outcomes, and the scalar rules keep one number of them. Here the regrets
of K directions are kept whole. So the loss is a known quadratic function of K coefficients, and its
damped minimum is the step.

Two prediction errors are the only controllers. Actual against expected improvement on the same
batch sets the damping. On the next batch it sets the length of the step.

Defined in algorithms.md; vector-valued dopamine errors: Lee, Sagiv, Engelhard, Witten and Daw, "A
feature-specific prediction error model explains dopaminergic heterogeneity" (Nature Neuroscience
2024).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dopaminergic import checks
from dopaminergic.batched import Batched
from dopaminergic.controllers import (
    ONE_BY_ONE,
    next_curvature,
    next_damping,
    next_gain,
    next_reach,
    one_by_one,
    share,
    with_noise,
)
from dopaminergic.noise import Multiple, Term
from dopaminergic.outcomes import Closure
from dopaminergic.pooling import Projection, judged, measure, project
from dopaminergic.progress import Change, Progress
from dopaminergic.quadratic import Quadratic
from dopaminergic.rule import Losses, choose, decay_factors
from dopaminergic.scalars import Scalar
from dopaminergic.span import (
    angles,
    default_length,
    held,
    part_taken,
    penalise,
    project_regrets,
    written_out,
)
from dopaminergic.subspace import (
    MOST_DIRECTIONS,
    Proposal,
    VectorState,
    directions_for,
    kept,
    propose,
)
from dopaminergic.vector_evaluations import Evaluations, Plan
from dopaminergic.weight_optimizer import WeightOptimizer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from dopaminergic.distributed import Ranks

LONGEST = 0.1  # root mean square change of a weight in one step of a large model


class VectorDopamine(WeightOptimizer):
    """Gauss-Newton steps in the span of random directions, with nothing to tune.

    Prediction errors steer the steps. A step costs K + 2 forward passes: one at the weights, K at
    perturbed copies, and one that checks the step on the same batch. The copies are one batch where
    possible. Give it predictions, not only their loss: a closure that returns
    `squared_error(prediction, target)`, `cross_entropy(logits, labels)` or `outcome(values, loss)`.
    Losses of single samples, shape `(n,)`, serve too; a lone number leaves it little to learn from.

    Small noisy data are learned with a weight decay that the noise itself sets, see `evidence`. It
    vanishes on clean data.

    Few samples say little about others. Where the next batch surprises, steps from few samples are
    short. Fresh batches of 1 to 4 samples learn about as fast as by `Dopamine2`, more samples
    faster. The decay takes the data for all that there are. So fresh batches of 3 or more samples
    for each direction pay for it with accuracy.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and
            `weight_decay`.
        lr: factor on the step, >= 0; any scheduler may change it.
        sigma: length of a perturbation of all weights together, > 0. None chooses 0.003 without
            16-bit weights. For d weights it chooses sqrt(d) / 80 if any is bfloat16, else sqrt(d) /
            200 if any is float16; at most 1.
        directions: number K of random directions. None chooses it by the numbers of weights and
            losses, see `directions_for`.
        damping: first lambda, > 0.
        tau: share in (0, 1) of the expected improvement on the next batch that is enough.
        kappa: speed of the controller of the step's length, >= 0.
        beta: decay in [0, 1) of the running means.
        memory: bytes that the perturbed copies of one batch, and the regrets, may take, > 0.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0: weights shrink by `lr` times eta times it.
        batched: evaluate the directions as one batch where possible. False evaluates them one by
            one, for example with a simulator.
        process_group: of `torch.distributed`, or a `Ranks`, see `ForwardOptimizer`.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    Defined in algorithms.md; a Levenberg-Marquardt method in a random subspace.

    >>> import torch
    >>> from dopaminergic import squared_error
    >>> model, x = torch.nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [3.0, 5.0], [2.0, 0.0]])
    >>> optimizer = VectorDopamine(model.parameters(), directions=3)
    >>> losses = [optimizer.step(lambda: squared_error(model(x), x[:, :1])) for _ in range(40)]
    >>> losses[-1] < 1e-6
    True
    """

    shares_sigma = True
    default_sigmas = (0.003, 1.0)

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        directions: int | None = None,
        damping: float = 1.0,
        tau: float = 0.25,
        kappa: float = 0.1,
        beta: float = 0.9,
        memory: int = 2**26,
        noise: str = "rademacher",
        seed: int | Sequence[int] = 0,
        weight_decay: float = 0.0,
        batched: bool = True,
        process_group: ProcessGroup | Ranks | str | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            sigma=sigma,
            directions=MOST_DIRECTIONS if directions is None else directions,
            noise=noise,
            seed=seed,
            weight_decay=weight_decay,
            batched=batched,
            process_group=process_group,
            automatic=directions is None,
            damping=damping,
            tau=tau,
            kappa=kappa,
            beta=beta,
            memory=memory,
        )
        checks.usual_rate("VectorDopamine", self.param_groups, 1.0)

    @property
    def next_passes(self) -> int:
        """The most forward passes that the next step may take.

        A closure that reads weights past torch may take one more, until a batch has been checked.
        """
        trainable = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        size = sum(p.numel() for p in trainable) // (self.replicas or 1)
        unchecked = not (self._batched.checked or self._batched.refused)
        return self._count(self._progress.step, size, 1 << 60, 1) + 2 + unchecked

    def _default_sigma(self, params: Any, casts: Collection[torch.dtype] = ()) -> float:
        tensors = checks.tensors(params)
        size = sum(p.numel() for p in tensors if p.requires_grad) / (self.replicas or 1)
        return default_length(size, {*casts, *(p.dtype for p in tensors)}, *self.default_sigmas)

    def _make_batched(self, *, checked: bool = False, refused: bool = False) -> Batched:
        return super()._make_batched(
            checked=checked, refused=refused or not self.settings["batched"]
        )

    def _count(self, step: int, weights: int, samples: int, outcomes: int) -> int:
        if self.settings["automatic"]:
            return directions_for(weights, samples, step, outcomes, self.settings["memory"])
        return min(self.settings["directions"], weights)

    def start(self) -> VectorState:
        """The first state, in which nothing is known: all 0 but lambda, eta = 1/2 and reach = 1."""
        zero = torch.zeros(self.replicas or 1, dtype=torch.float64, device="cpu")
        return VectorState(*[zero] * len(VectorState._fields))._replace(
            damping=zero + self.settings["damping"], gain=zero + 0.5, reach=zero + 1.0
        )

    def _evaluate(self, closure: Closure, before: Progress) -> tuple[Losses, Change]:
        weights = self._weights
        ranks = self._ranks
        replicas = self.replicas or 1
        evaluations = Evaluations(
            closure,
            weights,
            self._batched,
            ranks,
            rule=self._rule_name,
            seed=self.settings["seed"],
            replicas=self.replicas,
            step=before.step,
        )
        check = None if ranks is None else self._check(before.step)
        loss, usable, outcomes, portions = measure(ranks, evaluations.at_weights, check, replicas)
        self._agreed = True
        self._seen_any = True  # unless the directions tell otherwise
        losses = Losses(self._own(loss.loss), [], [])
        if not bool(usable.any()):
            return losses, self._skip(before, 1)
        # The squares are taken here, since later the weights may be perturbed.
        squares = weights.squares(replicas) if loss.saturates else torch.zeros_like(loss.loss)

        count = self._count(before.step, sum(weights.sizes), loss.samples, outcomes)
        weighed = held(weights, count, loss.samples)
        multiples: list[Multiple] = [
            s.numpy() if self._fleet else s.item() for s in self._scales(before)
        ]
        seen = project(
            ranks,
            lambda numbers: evaluations.regrets(numbers, loss, multiples),
            lambda found: project_regrets(found, loss),
            (replicas, count, outcomes),
        )
        self._seen_any = bool(seen.taken.any())
        tried = evaluations.tried if ranks is None else count

        state, proposal = self._propose(before.rule, loss, seen, before.step, weighed)
        if one_by_one(state, loss.samples, before.step):
            self._tell("one", ONE_BY_ONE.format(self._rule_name))
        plan = self._plan(before, state, proposal, usable, loss.samples)
        if not bool(plan.usable.any()):
            return losses, self._skip(before, tried + 1)

        def try_step() -> tuple[Tensor, Tensor]:
            self._buffers.expect_trial()
            return evaluations.at_trial(plan.terms), squares

        trial, pooled = judged(ranks, try_step, portions, replicas)
        return losses, self._judge(before, plan, loss, trial, pooled, tried + 2)

    def _plan(
        self, before: Progress, state: VectorState, proposal: Proposal, usable: Tensor, samples: int
    ) -> Plan:
        """The step to try: none for replicas where it would leave the range of the weights' dtype.

        Sums may overflow even where all outcomes are finite, and no way leads back from NaN.
        """
        usable = usable & proposal.coefficients.isfinite().all(1)
        state = choose(usable, state, before.rule)
        taken = torch.where(usable, share(state, proposal.lost, samples), state.gain)

        def planned(usable: Tensor) -> Plan:
            coefficients = torch.where(usable[:, None], proposal.coefficients, 0.0)
            rates = [torch.where(usable, group["lr"] * taken, 0.0) for group in self.param_groups]
            terms = self._terms(coefficients, rates, before)
            return Plan(state, proposal._replace(coefficients=coefficients), rates, terms, usable)

        plan = planned(usable & taken.isfinite())
        fits = torch.as_tensor(
            self._weights.takes(plan.terms, None), dtype=torch.bool, device="cpu"
        )
        return plan if bool(fits.all()) else planned(plan.usable & fits)

    def _is_silent(self, losses: Losses, change: Change) -> bool:
        """Whether no direction changed any outcome."""
        return not self._seen_any

    def _scales(self, before: Progress) -> list[Tensor]:
        """D: how far a direction moves each weight, `(R,)` for each group.

        The squares of all weights' moves sum to about sigma^2.
        """
        return [before.rule.reach * sigma for sigma in self._weights.sigmas]

    def _propose(
        self,
        state: VectorState,
        loss: Quadratic,
        seen: Projection,
        step: int,
        weighed: Tensor | None,
    ) -> tuple[VectorState, Proposal]:
        z = written_out(self._weights, seen.taken.shape[1], step)
        space = seen.space._replace(gram=angles(z, seen.taken), samples=loss.samples)
        state = next_gain(
            state,
            loss.loss,
            tau=self.settings["tau"],
            kappa=self.settings["kappa"],
            beta=self.settings["beta"],
        )
        state = next_curvature(state, space, loss.loss, seen.steepness)
        proposal = propose(space, state, penalise(z, weighed, seen.taken, state.reach, loss))
        if not loss.saturates:
            proposal = proposal._replace(saturated=torch.zeros_like(proposal.saturated))
        state = with_noise(state, proposal, beta=self.settings["beta"])
        # Weights without a copy come back from a trial with an error that grows with its length.
        return state, proposal if self._weights.saved_all else proposal.within(
            LONGEST / max(self._weights.sigmas)
        )

    def _terms(self, coefficients: Tensor, rates: list[Tensor], before: Progress) -> list[Term]:
        """The step -sum_k c_k D z_k, each group at its own rate."""
        columns: list[list[Any]] = []
        for rate, scale in zip(rates, self._scales(before), strict=True):
            multiples = (-scale[:, None] * rate[:, None] * coefficients).mT.contiguous()
            columns.append(list(multiples.numpy()) if self._fleet else multiples[:, 0].tolist())
        return [(k, list(row)) for k, row in enumerate(zip(*columns, strict=True))]

    def _judge(
        self,
        before: Progress,
        plan: Plan,
        loss: Quadratic,
        trial: Tensor,
        squares: Tensor,
        passes: int,
    ) -> Change:
        """Accept the step where it improves the loss of the same batch.

        Learn from both prediction errors.
        """
        usable = plan.usable
        rates = plan.rates
        part = part_taken(self._weights, rates)
        expected = torch.where(usable, plan.proposal.expected(part), 0.0)
        shrinking = torch.where(usable, plan.proposal.shrinking(part), 0.0)
        actual = loss.loss - trial + shrinking
        # A loss of -inf is no improvement.
        actual = torch.where(actual.isfinite(), actual, torch.nan)
        accepted = usable & (actual > 0.0)
        if bool(accepted.all()):
            self._buffers.accept_trial()
        after = next_damping(plan.state, expected, actual)
        if self._weights.saved_all:
            after = next_reach(plan.state, after, actual, first=self.settings["damping"])
        after = after._replace(
            last_loss=loss.loss,
            expected=torch.where(accepted, (expected - shrinking).clamp(min=0.0), 0.0),
            tried=torch.where(accepted, trial, 0.0),
        )
        if not bool(usable.all()):
            self._warn()
        after = choose(usable, after, before.rule)
        progress = before._replace(
            rule=after,
            step=before.step + 1,
            forward_passes=before.forward_passes + passes,
            skipped_steps=before.skipped_steps + (~usable if self._fleet else 0),
            last_rpe=self._own(
                torch.where(usable, (actual - expected).nan_to_num(), before.last_rpe)
            ),
            last_learning_rate=self._own(torch.where(usable, rates[0], before.last_learning_rate)),
        )
        coefficients = torch.where(accepted[:, None], plan.proposal.coefficients, 0.0)
        proposal = plan.proposal._replace(coefficients=coefficients)
        scales = self._shrinks(proposal, rates, accepted, squares, before)
        return Change(self._terms(proposal.coefficients, rates, before), scales, progress)

    def _shrinks(
        self,
        proposal: Proposal,
        rates: list[Tensor],
        accepted: Tensor,
        squares: Tensor,
        before: Progress,
    ) -> list[Multiple] | None:
        """The factors by which the weights of each group shrink.

        They come from weight decay, and from outcomes that saturate. None stands for ones.
        """
        decays = [group["weight_decay"] for group in self.param_groups]
        if not any(decays) and not bool(proposal.saturated.any()):
            return None
        steps = zip(self._weights.sizes, self._scales(before), rates, strict=True)
        moved = sum(
            (n * (scale * rate) ** 2 for n, scale, rate in steps), 0.0
        ) * proposal.coefficients.square().sum(1)
        # Ranks and fleets add the squares in other orders, which must not show.
        left = kept(proposal, sum(self._weights.sizes), moved, squares.float().double())
        factor = torch.where(accepted, left, 1.0)
        scales = [
            torch.as_tensor(scale, dtype=torch.float64, device="cpu") * factor
            for scale in decay_factors(decays, rates, accepted)
        ]
        return [scale.numpy() if self._fleet else float(scale) for scale in scales]

    def _own(self, x: Tensor) -> Scalar:
        """Numbers in the form of this optimizer's losses: `(R,)` for a fleet, else a float."""
        return x if self._fleet else float(x)
