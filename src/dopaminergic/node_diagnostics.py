"""Are the estimates of a rule of nodes sound? Many trials are compared with autograd's gradient.

All trials are made at the same weights, with the feedback that the rule has there. The mean of M
estimates is seen along the gradient and across it. The part across is judged by the products of
means of different blocks of trials, whose expectation is the square of the bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dopaminergic.activities.credit import DOUBT
from dopaminergic.node import NodePerturbation
from dopaminergic.node_optimizer import NodeOptimizer
from dopaminergic.outcomes import Closure, as_double
from dopaminergic.virtual_steps import SETTLING, exact_gradient, trainable, undone, virtual_step

BLOCKS = 20  # of trials
STANDARD_ERRORS = 5.0
NEGLIGIBLE = 0.01  # bias over the length of the gradient


@dataclass(frozen=True)
class NodeEstimatorReport:
    """How the estimates of a rule of nodes compare with the gradient; `print` it.

    Attributes:
        rule: the optimizer's class.
        weights: number d of trainable weights.
        probes: number M of trials.
        cosine: of the mean estimate and the gradient.
        single_cosine: mean cosine of single estimates and the gradient.
        slope: part of the mean estimate along the gradient, over the gradient; 1 if unbiased.
        slope_error: its standard error.
        bias: part of the mean estimate across the gradient, over the gradient; without the part
            that chance makes.
        bias_errors: its square in standard errors.
        variance: of one estimate, over the squared length of the gradient.
        expected: share of the regrets' squares that feedback expects; None for the plain rule.
        problems: the faults found, in words; empty if the estimate is sound.
    """

    rule: str
    weights: int
    probes: int
    cosine: float
    single_cosine: float
    slope: float
    slope_error: float
    bias: float
    bias_errors: float
    variance: float
    expected: float | None
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether estimates follow the gradient; for the plain rule also without bias."""
        return not self.problems

    def __str__(self) -> str:
        """The verdict first, then the figures behind it."""
        verdict = "The estimate is sound." if self.sound else "The estimate is NOT sound:"
        rows = [
            f"{self.rule}: {self.probes} trials, {self.weights} weights",
            verdict,
            *(f"  - {problem}" for problem in self.problems),
            f"  cosine of the mean estimate        {self.cosine:.4f}",
            f"  mean cosine of one estimate        {self.single_cosine:.4f}",
            f"  along the gradient                 {self.slope:.4f} +- {self.slope_error:.4f}",
            f"  bias across the gradient           {self.bias:.4f}"
            f" ({self.bias_errors:+.1f} standard errors)",
            f"  variance over the squared gradient {self.variance:.4g}",
        ]
        if self.expected is not None:
            rows.append(f"  of the regrets, feedback expects   {self.expected:.1%}")
        return "\n".join(rows)


def check_nodes(optimizer: NodeOptimizer, closure: Closure, probes: int) -> NodeEstimatorReport:
    """Compare many estimates at the present weights with the exact gradient.

    Args:
        optimizer: of a single model.
        closure: as of `check_estimator`.
        probes: number M of trials.
    """
    members = trainable(optimizer)
    with undone(optimizer, members) as old:
        gradient = exact_gradient(closure, members)
        for _ in range(SETTLING):
            virtual_step(optimizer, closure, members, old)
        start = optimizer.progress
        doubt = optimizer.state_dict()["forward"]["memory"].get(DOUBT)
        numbers = [i for i, p in enumerate(optimizer.parameters) if p.requires_grad and p.numel()]
        found: list[Tensor] = []
        for step in range(start.step, start.step + probes):
            optimizer.continue_from(start._replace(step=step))
            each = optimizer.estimates(closure)
            parts = [each.get(n, torch.zeros_like(optimizer.parameters[n])) for n in numbers]
            found.append(torch.cat([as_double(part).flatten() for part in parts]))
    expected = None if doubt is None else 1.0 - float(doubt.clamp(max=1.0))
    return _judge(optimizer, torch.stack(found), gradient, expected)


def _judge(
    optimizer: NodeOptimizer, found: Tensor, gradient: Tensor, expected: float | None
) -> NodeEstimatorReport:
    size = float(gradient.norm())
    mean = found.mean(0)
    shares = found @ gradient / size**2
    slope = float(shares.mean())
    error = float(shares.std()) / math.sqrt(len(shares)) + 1e-15
    square, spread = _square_of_bias(found - shares[:, None] * gradient)
    lengths = found.norm(dim=1).clamp(min=1e-300)
    report = NodeEstimatorReport(
        rule=type(optimizer).__name__,
        weights=len(gradient),
        probes=len(found),
        cosine=float(mean @ gradient) / (size * float(mean.norm()) + 1e-300),
        single_cosine=float((shares * size / lengths).mean()),
        slope=slope,
        slope_error=error,
        bias=math.sqrt(max(square, 0.0)) / size,
        bias_errors=square / (spread + 1e-300),
        variance=float((found - mean).square().sum() / (len(found) - 1)) / size**2,
        expected=expected,
        problems=(),
    )
    plain = isinstance(optimizer, NodePerturbation)
    return NodeEstimatorReport(
        **{**report.__dict__, "problems": tuple(_problems(report, plain=plain))}
    )


def _square_of_bias(across: Tensor) -> tuple[float, float]:
    """The squared length of the mean, without what chance adds, and its standard error."""
    blocks = torch.stack([block.mean(0) for block in across.chunk(BLOCKS)])
    products = blocks @ blocks.T
    count = len(blocks)

    def of(chosen: list[int]) -> float:
        part = products[chosen][:, chosen]
        pairs = len(chosen) * (len(chosen) - 1)
        return float(part.sum() - part.diagonal().sum()) / pairs

    whole = of(list(range(count)))
    left_out = [of([i for i in range(count) if i != k]) for k in range(count)]
    mean = sum(left_out) / count
    spread = math.sqrt((count - 1) / count * sum((x - mean) ** 2 for x in left_out))
    return whole, spread


def _problems(report: NodeEstimatorReport, *, plain: bool) -> list[str]:
    found: list[str] = []
    along = report.slope / report.slope_error
    if along < -STANDARD_ERRORS:
        found.append("it climbs: the mean estimate points down the gradient; a sign is wrong")
    elif along < STANDARD_ERRORS:
        found.append(
            "it does not follow the gradient: the closure may be noisy, or sigma be lost in "
            "rounding, or too large"
        )
    elif plain and abs(report.slope - 1.0) > max(NEGLIGIBLE, STANDARD_ERRORS * report.slope_error):
        found.append(f"the mean estimate is {report.slope:.3g} times the gradient along it")
    if plain and report.bias_errors > STANDARD_ERRORS and report.bias > NEGLIGIBLE:
        found.append(
            "it leads aside: the mean estimate has a part across the gradient; samples may not be "
            "independent, or some weights get no credit, or sigma be too large"
        )
    return found
