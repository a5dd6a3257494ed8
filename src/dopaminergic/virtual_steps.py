"""Steps that are made, looked at and taken back.

They show where an optimizer would go from the present weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.baselines import SPSA, WeightPerturbation
from dopaminergic.noise import reference
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Closure, Outcome, as_double
from dopaminergic.progress import Progress
from dopaminergic.scalar_rule import ScalarRule

SETTLING = 50  # virtual steps in which running scales forget that they started from one regret


class Observed(NamedTuple):
    """M virtual steps, seen from G groups; float64.

    Attributes:
        mean: the mean update, shape `(d,)`.
        along: inner products of the updates with the gradient of each group, `(M, G)`.
        square: squared lengths, `(M,)`.
        rates: mean learning rate of each group.
        linear_along: as `along`, for the updates on a linear loss; None for rules that set their
            own scale.
        linear_square: as `square`, likewise.
    """

    mean: Tensor
    along: Tensor
    square: Tensor
    rates: list[float]
    linear_along: Tensor | None
    linear_square: Tensor | None


class Model(NamedTuple):
    """The optimizer's weights; vectors are float64, flat, over the trainable weights.

    Attributes:
        members: group, index in the noise and tensor of every parameter that a step changes.
        group: group of each weight, int64.
        sigma: perturbation scale of each weight.
        gradient: exact.
    """

    members: list[tuple[int, int, Tensor]]
    group: Tensor
    sigma: Tensor
    gradient: Tensor


def observe(optimizer: ScalarRule, closure: Closure, probes: int) -> tuple[Model, Observed]:
    """The exact gradient, and `probes` virtual steps.

    Afterwards the optimizer, its weights and all generators are as before.

    Raises:
        TypeError: the closure returned neither a tensor nor an `Outcome`.
        ValueError: the loss is not differentiable or not finite, or its gradient is 0.
    """
    members = trainable(optimizer)
    with undone(optimizer, members) as old:
        model = _model(optimizer, members, exact_gradient(closure, members))
        return model, _observed(optimizer, closure, model, old, probes)


def trainable(optimizer: ForwardOptimizer) -> list[tuple[int, int, Tensor]]:
    """Group, index in the noise and tensor of every parameter that a step changes."""
    parameters = [
        (number, p) for number, group in enumerate(optimizer.param_groups) for p in group["params"]
    ]
    return [
        (number, i, p) for i, (number, p) in enumerate(parameters) if p.requires_grad and p.numel()
    ]


@contextlib.contextmanager
def undone(
    optimizer: ForwardOptimizer, members: list[tuple[int, int, Tensor]]
) -> Iterator[list[Tensor]]:
    """Hand out a copy of the weights, and in the end bring back everything that a step changes."""
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    old = [p.detach().clone() for _, _, p in members]
    try:
        with optimizer.unheard():
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0
            yield old
    finally:
        _put_back(members, old)
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay


@torch.no_grad()
def _put_back(members: list[tuple[int, int, Tensor]], old: list[Tensor]) -> None:
    for (_, _, p), value in zip(members, old, strict=True):
        p.copy_(value)


def _same_random_numbers(
    members: list[tuple[int, int, Tensor]],
) -> contextlib.AbstractContextManager[None]:
    """Draw, and put the generators back.

    All virtual steps and the gradient see the same dropout masks.
    """
    return torch.random.fork_rng(
        sorted({p.device.index or 0 for _, _, p in members if p.device.type == "cuda"})
    )


def exact_gradient(closure: Closure, members: list[tuple[int, int, Tensor]]) -> Tensor:
    """The gradient of the mean loss by autograd, flat, in float64.

    Raises:
        TypeError: the closure returned neither a tensor nor an `Outcome`.
        ValueError: the loss is not differentiable or not finite, or its gradient is 0.
    """
    parameters = [p for _, _, p in members]
    with _same_random_numbers(members), torch.enable_grad():
        returned = closure()
        losses = returned.losses if isinstance(returned, Outcome) else returned
        if not isinstance(losses, Tensor):
            raise TypeError(
                "check_estimator: the closure must return a tensor or an Outcome, got "
                f"{type(losses).__name__}; return "
                "the loss itself, not loss.item()"
            )
        if not losses.requires_grad:
            raise ValueError(
                "check_estimator: the closure's loss is not differentiable, so there is no "
                "gradient to compare with; "
                "does the closure detach, round or use torch.no_grad()?"
            )
        try:
            parts = torch.autograd.grad(
                losses.mean(), parameters, allow_unused=True, materialize_grads=True
            )
        except RuntimeError as error:
            raise ValueError(
                f"check_estimator: autograd cannot differentiate the closure's loss ({error}); "
                "does the closure call "
                "loss.backward() itself?"
            ) from error
    gradient = torch.cat([as_double(part).flatten() for part in parts])
    loss = float(losses.detach().mean())
    size = float(gradient.norm())
    if not (math.isfinite(loss) and math.isfinite(size) and size > 0):
        raise ValueError(
            f"check_estimator: at these weights the loss is {loss:g} and its gradient has length "
            f"{size:g}; both must "
            "be finite, and the gradient not 0"
        )
    return gradient


def _model(
    optimizer: ScalarRule, members: list[tuple[int, int, Tensor]], gradient: Tensor
) -> Model:
    group = torch.cat(
        [
            torch.full((p.numel(),), number, dtype=torch.int64, device="cpu")
            for number, _, p in members
        ]
    )
    sigmas = _doubles([g["sigma"] for g in optimizer.param_groups])
    return Model(members, group, sigmas[group], gradient)


def _observed(
    optimizer: ScalarRule, closure: Closure, model: Model, old: list[Tensor], probes: int
) -> Observed:
    mean = torch.zeros_like(model.gradient)
    start = _settled(optimizer, closure, model, old)
    rates: list[list[float]] = []
    optimizer.listen(lambda change: rates.append([float(rate) for rate in change.rates]))
    updates: list[tuple[Tensor, float]] = []
    linear: list[tuple[Tensor, float]] = []
    for step in range(start.step, start.step + probes):
        optimizer.continue_from(start._replace(step=step))
        update = virtual_step(optimizer, closure, model.members, old)
        mean += update / probes
        updates.append(_projected(update, optimizer, model))
        if promises_a_scale(optimizer):
            linear.append(_projected(_linear_update(optimizer, model, step), optimizer, model))
    return Observed(
        mean,
        *_columns(updates),
        [sum(row) / len(rates) for row in zip(*rates, strict=True)],
        *(_columns(linear) if linear else (None, None)),
    )


def _settled(optimizer: ScalarRule, closure: Closure, model: Model, old: list[Tensor]) -> Progress:
    for _ in range(0 if optimizer.progress.rule is None else SETTLING):
        virtual_step(optimizer, closure, model.members, old)
    return optimizer.progress


def virtual_step(
    optimizer: ForwardOptimizer,
    closure: Closure,
    members: list[tuple[int, int, Tensor]],
    old: list[Tensor],
) -> Tensor:
    """Make a step, and take it back: the change of the weights."""
    skipped = optimizer.skipped_steps
    with _same_random_numbers(members):
        optimizer.step_unhooked(closure)
    if optimizer.skipped_steps != skipped:
        raise ValueError(
            "check_estimator: the loss is not finite at perturbed weights; take a smaller sigma or "
            "other weights"
        )
    changes = [
        (as_double(p) - as_double(o)).flatten() for (_, _, p), o in zip(members, old, strict=True)
    ]
    _put_back(members, old)
    return torch.cat(changes)


def promises_a_scale(optimizer: ScalarRule) -> bool:
    """Whether the mean update is the learning rate times the gradient.

    If not, it is only parallel to it.
    """
    return isinstance(optimizer, WeightPerturbation | SPSA)


def _projected(update: Tensor, optimizer: ScalarRule, model: Model) -> tuple[Tensor, float]:
    along = torch.zeros(len(optimizer.param_groups), dtype=torch.float64, device="cpu")
    return along.index_add_(0, model.group, update * model.gradient), float(update @ update)


def _columns(rows: list[tuple[Tensor, float]]) -> tuple[Tensor, Tensor]:
    return torch.stack([along for along, _ in rows]), _doubles([square for _, square in rows])


def _linear_update(optimizer: ScalarRule, model: Model, step: int) -> Tensor:
    """The update if the loss were linear, from the definition of the noise.

    It is -mean_k (g . sigma z_k) lr / sigma z_k.
    """
    settings = optimizer.settings
    draw = reference.rademacher if settings["noise"] == "rademacher" else reference.gaussian
    rates = _doubles([group["lr"] for group in optimizer.param_groups])[model.group]
    total = torch.zeros_like(model.gradient)
    for k in range(settings["directions"]):
        numbers = {"seed": settings["seed"], "step": step, "direction": k}
        z = torch.cat(
            [draw(p.numel(), **numbers, parameter=i) for _, i, p in model.members]
        ).double()
        total -= (model.gradient @ (model.sigma * z)) * rates / model.sigma * z
    return total / settings["directions"]


def _doubles(values: list[Any]) -> Tensor:
    return torch.tensor([float(x) for x in values], dtype=torch.float64, device="cpu")
