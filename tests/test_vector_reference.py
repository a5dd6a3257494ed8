"""VectorDopamine: whole runs against a slow reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dopaminergic import VectorDopamine
from fits import DOUBLE, FORMS, Fit
from optimizers import copies, drawn


def black_box_curvature(losses: Tensor) -> Tensor:
    excess = losses - min(0.0, float(losses.min()))
    mean = excess.mean()
    unit = excess + 0.1 * mean if float(mean) > 0 else losses.abs()
    return torch.diag(0.5 / len(losses) / (unit + torch.finfo(losses.dtype).tiny))


def loss_slope_curvature(form: str, o: Tensor, y: Tensor) -> tuple[float, Tensor, Tensor, int]:
    """l, r, H and N at the outcome, all dense."""
    if form in ("losses", "number"):
        return float(o.mean()), torch.full_like(o, 1 / len(o)), black_box_curvature(o), len(o)
    shape = (16, 3) if form == "cross_entropy" else (16, 1)

    def mean(o: Tensor) -> Tensor:
        found = FORMS[form](o.reshape(shape), y)
        return found.losses.mean() if form != "outcome" else found.truth(o.reshape(shape)).mean()

    grad = torch.func.grad(mean)
    return float(mean(o)), grad(o), torch.func.jacrev(grad)(o), 16


def noise_of_the_batch(J: Tensor, r: Tensor, M: Tensor, samples: int) -> float:
    """tr(M^-1 C), C from the parts that samples have in the slopes."""
    if samples < 2:
        return 0.0
    parts = torch.stack([J[:, i] @ r[i] for i in torch.arange(len(r)).reshape(samples, -1)], 1)
    return float(torch.linalg.solve(M, samples * torch.cov(parts).reshape(len(J), len(J))).trace())


def clamped(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def eta_taken(gain: float, sound: float, lost: float, least: float) -> float:
    taken = lost * gain + (1 - lost) * min(gain, clamped(sound, 0.05, 1.0))
    return max(taken, clamped(least, 0.05, 1.0))


def least_damping(surprise: float, samples: int, lost: float) -> float:
    return max(0.015 * lost, 1024 / (samples**2 * (samples + 1)) * surprise)


def fitted_by_chance(form: str, loss: float, K: int, n: int, noise: float) -> float:
    """The part of a loss that K directions fit, if all is noise: of squares, nats, others."""
    if form == "cross_entropy":
        return min(K / 16, loss)
    return noise if form == "outcome" else abs(loss) * min(1, 2 * K / (n - K))


def by_hand(problem: Fit, optimizer: VectorDopamine, steps: int) -> Any:
    """Yields weights, damping, gain, forward passes and prediction error after each step.

    Settings are as documented.
    """
    groups = [{**group, "params": copies(group["params"])} for group in optimizer.param_groups]
    parameters = [p for group in groups for p in group["params"]]
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    d, tau, kappa, beta = sum(sizes), *(optimizer.settings[key] for key in ("tau", "kappa", "beta"))
    D = torch.cat(
        [
            torch.full((n,), group["sigma"] / math.sqrt(d))
            for n, group in zip(sizes, groups, strict=True)
        ]
    ).double()
    w: Tensor = torch.cat([p.flatten() for p in parameters])

    def outcomes(w: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(w, problem.model.parameters())
        with torch.no_grad():
            returned = problem()
        values = returned if isinstance(returned, Tensor) else returned.values
        return values.flatten()

    damping: float = optimizer.settings["damping"]
    gain: float = 0.5
    curvature: float = 0.0
    actuals: float = 0.0
    promises: float = 0.0
    comparisons: float = 0.0
    expected: float = 0.0
    gaps: float = 0.0
    slopes: float = 0.0
    signals: float = 0.0
    tried: float = 0.0
    last: float = math.nan
    passes: int = 0
    K: int
    samples: int
    loss: float
    h: float
    lost: float
    unit: float
    gap: float
    surprise: float
    least: float
    ridge: float
    heard: float
    rpe: float
    taken: float
    rates: list[Any]
    share: float
    o: Tensor
    r: Tensor
    H: Tensor
    Z: Tensor
    J: Tensor
    g: Tensor
    A: Tensor
    JJ: Tensor
    for step in range(steps):
        o = outcomes(w)
        loss, r, H, samples = loss_slope_curvature(problem.form, o, problem.y)
        K = min(optimizer.settings["directions"], d)
        if optimizer.settings["automatic"]:
            K = int(32 * 1.05**step)
            K = max(8, min(K, math.ceil(2 * d / 3), max(8, samples // 2), 512))
        Z = torch.stack(
            [
                torch.cat(
                    [
                        drawn(optimizer, p, i, step=step, direction=k).flatten()
                        for i, p in enumerate(parameters)
                    ]
                )
                for k in range(K)
            ]
        )
        Z = Z * D
        J = torch.stack([outcomes(w + z) - o for z in Z])
        if problem.form in ("losses", "number") and K >= 8:
            J = J - J.mean(0)
        inner: Tensor = Z @ w
        products: Tensor = Z @ Z.T
        unit_gram = products / products.diagonal().mean()
        G: Tensor = torch.eye(K, dtype=DOUBLE) if d > 16 * K else unit_gram
        if expected > 0:
            gained: float = last - loss
            actuals = beta * actuals + (1 - beta) * abs(gained)
            promises = beta * promises + (1 - beta) * expected
            comparisons = beta * comparisons + (1 - beta)
            gaps = beta * gaps + (1 - beta) * abs(loss - tried)
            error = (gained - tau * expected) / ((actuals + promises) / comparisons)
            gain = clamped(gain * math.exp(kappa * clamped(error, -3, 3)), 0.05, 1.0)
        g, A, JJ = J @ r, J @ H @ J.T, J @ J.T
        h = float(A.trace() / JJ.trace())
        curvature = clamped(curvature, h, math.inf)
        lost = curvature - h
        unit = curvature / 2 * float(JJ.trace()) / K
        gap = gaps / comparisons if comparisons else 0.0
        surprise = clamped(gap / abs(last), 0.0, 1.0) if gap else 0.0
        ridge = max(damping, least_damping(surprise, samples, lost / curvature)) * unit
        M: Tensor = A + 0.2 * lost * JJ + ridge * G
        c: Tensor = torch.linalg.solve(M, g)
        slope: float = float(g @ c)
        noise: float = noise_of_the_batch(J, r, M, samples)
        decay: float = 0.0
        if d <= 16 * K and samples >= 2 * K:
            chance = fitted_by_chance(problem.form, loss, K, len(o) // samples * samples, noise)
            decay = 2 * clamped(noise / slope, 0, 1) * chance / float(w @ w)
            decay = min(decay, float(A.trace() / products.trace()))
            if samples < 3 * K:
                decay *= clamped(1 - math.sqrt(samples) * surprise, 0.0, 1.0)
            M = M + decay * products
            c = torch.linalg.solve(M, g + decay * inner)
            slope, noise = float((g + decay * inner) @ c), noise_of_the_batch(J, r, M, samples)
        heard = slope - clamped(noise, 0.0, 8 * gap)
        slopes, signals = beta * slopes + (1 - beta) * slope, beta * signals + (1 - beta) * heard
        least = 1.6 / samples * surprise
        taken = eta_taken(gain, signals / slopes, lost / curvature, least)
        rates = [group["lr"] * taken for group in groups]
        squares = [n * group["sigma"] ** 2 for n, group in zip(sizes, groups, strict=True)]
        share = sum(a * b for a, b in zip(rates, squares, strict=True)) / sum(squares)
        rate: Tensor = torch.cat(
            [torch.full((n,), x) for n, x in zip(sizes, rates, strict=True)]
        ).double()
        move: Tensor = -rate * (c @ Z)
        shrinking: float = decay * float(share * inner @ c - share**2 * c @ products @ c / 2)
        data: float = float(share * g @ c - share**2 * c @ A @ c / 2)
        expected = data + shrinking
        trial: float = loss_slope_curvature(problem.form, outcomes(w + move), problem.y)[0]
        actual: float = loss - trial + shrinking
        ratio: float = actual / expected
        damping = clamped(
            damping * (0.5 if ratio > 0.75 else 1.0 if ratio >= 0.5 else 3.0), 1e-8, 1e4
        )
        rpe, last, tried = actual - expected, loss, trial
        if actual > 0:
            expected = clamped(data, 0.0, math.inf)
            decays: Tensor = torch.cat(
                [
                    torch.full((n,), group["weight_decay"])
                    for n, group in zip(sizes, groups, strict=True)
                ]
            )
            longer: Any = sum(c @ c * a**2 * b / d for a, b in zip(rates, squares, strict=True))
            saturated = (
                math.sqrt(lost / curvature) if problem.form in ("cross_entropy", "outcome") else 0.0
            )
            kept = math.sqrt(1 - (1 - K / d) ** 2 * saturated * longer / (w @ w + longer))
            w = kept * (1 - rate * decays.double()) * w + move
        else:
            expected = 0.0
        passes += K + 2 + (step == 0)
        yield w, damping, gain, passes, rpe


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "few directions": {"directions": 1},
    "knobs": {
        "directions": 9,
        "lr": 0.7,
        "sigma": 0.03,
        "damping": 0.01,
        "tau": 0.4,
        "kappa": 0.3,
        "beta": 0.5,
    },
    "decay": {"directions": 12, "weight_decay": 0.2, "noise": "gaussian"},
    "more than weights": {"directions": 99},
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("form", FORMS)
def test_a_run_is_the_slow_reference(form: str, settings: str, grouped: bool) -> None:
    problem, other = Fit(form), Fit(form)
    first, *rest = problem.model.parameters()
    params: Any = (
        [{"params": [first], "lr": 0.3, "sigma": 0.02}, {"params": rest}]
        if grouped
        else [first, *rest]
    )
    optimizer = VectorDopamine(params, seed=4, **SETTINGS[settings])
    moved = 0
    # Regrets of 0.01 lose two of sixteen digits, an ill-conditioned solution more; fast normals
    # differ by ulps.
    near = 1e-6 if optimizer.settings["noise"] == "rademacher" else 1e-3
    for w, damping, gain, passes, rpe in by_hand(other, optimizer, 6):
        old = torch.cat([p.flatten() for p in problem.weights()])
        optimizer.step(problem)
        got = torch.cat([p.flatten() for p in problem.weights()])
        torch.testing.assert_close(got, w, rtol=near, atol=near)
        state = optimizer._progress.rule
        assert float(state.damping) == pytest.approx(damping, rel=1e-12)
        assert float(state.gain) == pytest.approx(gain, rel=near)
        assert optimizer.forward_passes == passes
        assert optimizer.last_rpe == pytest.approx(rpe, rel=1e-3, abs=near)
        moved += not torch.equal(got, old)
    assert moved >= 1
