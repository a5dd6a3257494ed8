"""VectorDopamine: fleets are their single runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import VectorDopamine, cross_entropy, outcome, squared_error
from fits import DOUBLE, through_a_file
from optimizers import copies, randn, same

SEEDS = [5, 9, 1 << 40]


class Fleet:
    """Stacked 3-4-2 networks; None: one of them, without that dimension."""

    def __init__(self, form: str, replicas: list[int] | None) -> None:
        self.form, self.replicas = form, replicas
        starts = [
            [randn(*shape, seed=seed % 999) / 2 for shape in ((3, 4), (4, 2))]
            for seed in replicas or [0]
        ]
        stacked = [torch.stack(parts) for parts in zip(*starts, strict=True)]
        self.parameters = [nn.Parameter(p if replicas else p[0]) for p in stacked]

    def start_as(self, seed: int) -> Fleet:
        for p, q in zip(self.parameters, Fleet(self.form, [seed]).parameters, strict=True):
            p.data.copy_(q.detach()[0])
        return self

    def __call__(self) -> Any:
        values = torch.tanh(randn(8, 3) @ self.parameters[0]) @ self.parameters[1]
        if self.form == "cross_entropy":
            return cross_entropy(values, (torch.arange(8) % 2).expand(values.shape[:-1]))
        target = randn(8, 2, seed=1).expand(values.shape)
        if self.form == "outcome":
            return outcome(values, lambda v: ((v - target) ** 4 + (v - target) ** 2).sum(-1))
        losses = ((values - target) ** 2).sum(-1)
        return squared_error(values, target) if self.form == "squared_error" else losses


@pytest.mark.parametrize("form", ["squared_error", "cross_entropy", "outcome", "losses"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_fleet_is_its_single_runs(form: str, batched: bool) -> None:
    fleet, rates = Fleet(form, SEEDS), torch.tensor([1.0, 0.5, 0.25], dtype=DOUBLE)
    optimizer = VectorDopamine(fleet.parameters, seed=SEEDS, lr=rates, weight_decay=0.05)
    optimizer._batched.refused = not batched
    losses = torch.stack([optimizer.step(fleet) for _ in range(5)])
    for r, seed in enumerate(SEEDS):
        alone = Fleet(form, None).start_as(seed)
        single = VectorDopamine(alone.parameters, seed=seed, lr=float(rates[r]), weight_decay=0.05)
        single._batched.refused = not batched
        found = [single.step(alone) for _ in range(5)]
        torch.testing.assert_close(losses[:, r].tolist(), found, rtol=1e-10, atol=1e-12)
        for p, q in zip(fleet.parameters, alone.parameters, strict=True):
            torch.testing.assert_close(p.detach()[r], q.detach(), rtol=1e-8, atol=1e-9)
        assert optimizer.forward_passes == single.forward_passes
        assert float(optimizer.last_rpe[r]) == pytest.approx(single.last_rpe, rel=1e-6, abs=1e-10)
        assert float(optimizer.last_learning_rate[r]) == pytest.approx(
            single.last_learning_rate, rel=1e-9
        )


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("form", ["squared_error", "cross_entropy", "outcome", "losses"])
def test_a_diverged_replica_harms_nobody(form: str, large: bool) -> None:
    """Its weights are NaN, or its batch is for a step; the others go on as if all were well."""
    ends = []
    for spoilt in (False, True):
        fleet = Fleet(form, SEEDS)
        extra = [nn.Parameter(torch.zeros(3, 1 << 16, dtype=DOUBLE))] if large else []
        optimizer = VectorDopamine([*fleet.parameters, *extra], seed=SEEDS, directions=12)

        def closure(bad: bool, fleet: Fleet = fleet) -> Any:
            found = fleet()
            if not bad:
                return found
            factor = torch.tensor([1.0, math.nan, 1.0], dtype=DOUBLE)
            if isinstance(found, Tensor):
                return found * factor[:, None]
            values = found.values * factor[:, None, None]
            if form == "cross_entropy":
                return cross_entropy(values, found.truth)
            return (
                squared_error(values, found.truth)
                if form == "squared_error"
                else outcome(values, found.truth)
            )

        optimizer.step(lambda closure=closure: closure(False))
        old, state = copies(fleet.parameters), optimizer._progress.rule
        if spoilt:
            with pytest.warns(RuntimeWarning, match="VectorDopamine"):
                optimizer.step(lambda closure=closure: closure(True))
            if not large:
                assert all(
                    torch.equal(p.detach()[1], w[1])
                    for p, w in zip(fleet.parameters, old, strict=True)
                )
            assert all(p.detach().isfinite().all() for p in fleet.parameters)
            assert all(
                torch.equal(a[1], b[1])
                for a, b in zip(optimizer._progress.rule, state, strict=True)
            )
        else:
            optimizer.step(lambda closure=closure: closure(False))
        optimizer.step(lambda closure=closure: closure(False))
        ends.append([p.detach()[[0, 2]].clone() for p in fleet.parameters])
        assert optimizer.skipped_steps.tolist() == [0, int(spoilt), 0]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-10)


def test_a_fleet_resumes_bit_for_bit(tmp_path: Path) -> None:
    fleet, other = Fleet("cross_entropy", SEEDS), Fleet("cross_entropy", [1, 2, 3])
    optimizer, resumed = (
        VectorDopamine(x.parameters, seed=s) for x, s in ((fleet, SEEDS), (other, [1, 2, 3]))
    )
    for _ in range(2):
        optimizer.step(fleet)
    weights, state = through_a_file(
        [copies(fleet.parameters), optimizer.state_dict()], tmp_path / "fleet.pt"
    )
    for p, w in zip(other.parameters, weights, strict=True):
        p.data.copy_(w)
    resumed.load_state_dict(state)
    for _ in range(3):
        assert torch.equal(optimizer.step(fleet), resumed.step(other))
    assert same(copies(other.parameters), copies(fleet.parameters))
