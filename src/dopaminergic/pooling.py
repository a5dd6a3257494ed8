"""VectorDopamine over ranks: the part of each in the loss in the span of the directions.

    shards of the data:       l, g, A, <J, J> and moments are sums over samples, so over ranks:
                              1.5 K^2 + 5 K numbers
    shares of the directions: A needs products of all regrets, so the regrets travel:
                              n numbers a direction

Either way the numbers do not grow with the model. Without ranks every function here does its work
and hands it on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopaminergic.distributed import CHECKS, COMPARED, Check, Ranks
from dopaminergic.outcomes import as_double
from dopaminergic.quadratic import Quadratic
from dopaminergic.subspace import Subspace


class Measured(NamedTuple):
    """The loss at the weights.

    Attributes:
        loss: around this rank's outcome, as its part of the loss of all samples.
        usable: `(R,)`, whether the outcome is finite on all ranks.
        outcomes: number n of outcomes, the most that any rank has.
        portions: of all samples, one for each shard.
    """

    loss: Quadratic
    usable: Tensor
    outcomes: int
    portions: np.ndarray


class Projection(NamedTuple):
    """The loss in the span of the directions, and how much of it is not seen from there.

    Attributes:
        space: its Gram matrix is still an identity.
        steepness: |r|^2, shape `(R,)`.
        taken: directions that change any outcome, bool `(R, K)`.
        used: directions whose outcomes are all finite, bool `(R, K)`.
    """

    space: Subspace
    steepness: Tensor
    taken: Tensor
    used: Tensor


def measure(
    ranks: Ranks | None, evaluate: Callable[[], Quadratic], check: Check | None, replicas: int
) -> Measured:
    """The loss of all shards, from that of each."""
    if ranks is None:
        loss = evaluate()
        return Measured(loss, _sound(loss), loss.values.shape[1], np.ones(1))
    checks = CHECKS if check else 0
    length = checks + 2 + 2 * replicas
    with ranks.exchange(length, f"loss{COMPARED if check else ''}") as message:
        message.send(check() if check else ())
        own = evaluate()
        message.send([own.samples, own.values.shape[1]])
        message.send([*own.loss.tolist(), *_sound(own).tolist()])
    rows = message.rows
    ranks.compare(rows[:, :checks])
    sizes, losses, sound = np.split(rows[:, checks:], [2, 2 + replicas], axis=1)
    for rank, size in enumerate(sizes):
        if (size != sizes[rank % ranks.shards]).any():
            raise RuntimeError(
                f"ranks {rank % ranks.shards} and {rank} share a shard of the data, but one's "
                "closure returned "
                f"{sizes[rank % ranks.shards].astype(int).tolist()} samples and outcomes, the "
                "other's "
                f"{size.astype(int).tolist()}; ranks with the same Ranks.shard must see the same "
                "data"
            )
    samples = sizes[: ranks.shards, 0]
    portions = samples / samples.sum()
    return Measured(
        _scaled(own, portions[ranks.shard])._replace(
            loss=torch.from_numpy(ranks.average(losses, portions)[0]), samples=int(samples.sum())
        ),
        torch.from_numpy((sound == 1.0).all(0)),
        int(sizes[:, 1].max()),
        portions,
    )


def project(
    ranks: Ranks | None,
    tried: Callable[[range], Tensor],
    here: Callable[[Tensor], Projection],
    shape: tuple[int, int, int],
) -> Projection:
    """The loss of all shards in the span of all directions.

    Args:
        ranks: None for one process.
        tried: the regrets `(R, k, n)` of k directions, not all finite perhaps.
        here: projects regrets of all directions on this rank's shard.
        shape: R, K and the most outcomes that any rank has.
    """
    replicas, count, _ = shape
    regrets = None
    if ranks is not None and ranks.shares > 1:
        regrets = _gathered(ranks, tried, shape)
    if ranks is None or ranks.shards == 1:
        return here(tried(range(count)) if regrets is None else regrets)
    row, column = np.triu_indices(count)
    sizes = np.cumsum([replicas * n for n in (count, *[len(row)] * 3, 1, count, count)])
    with ranks.exchange(int(sizes[-1]), f"span of {count} directions") as message:
        own = here(tried(range(count)) if regrets is None else regrets)
        message.send(own.space.slope.flatten().numpy())
        for matrix in (own.space.products, own.space.outputs, own.space.moments):
            message.send(matrix[:, row, column].flatten().numpy())
        for part in (own.steepness, own.taken, own.used):
            message.send(part.flatten().numpy())
    rows = message.rows
    total = torch.from_numpy(ranks.average(rows, np.ones(ranks.shards))[0])
    slope, products, outputs, moments, steepness, taken, used = [
        x.reshape(replicas, -1) for x in torch.tensor_split(total, sizes[:-1].tolist())
    ]
    used = used == ranks.shards
    slope = torch.where(used, slope, 0.0)
    matrices = []
    for half in (products, outputs, moments):
        full = torch.zeros(replicas, count, count, dtype=torch.float64, device="cpu")
        full[:, row, column] = half
        full[:, column, row] = half
        matrices.append(torch.where(used[:, None] & used[..., None], full, 0.0))
    identity = torch.eye(count, dtype=torch.float64, device="cpu")
    space = Subspace(slope, matrices[0], matrices[1], matrices[2], identity[None], 0)
    return Projection(space, steepness[:, 0], (taken > 0) & used, used)


def judged(
    ranks: Ranks | None,
    work: Callable[[], tuple[Tensor, Tensor]],
    portions: np.ndarray,
    replicas: int,
) -> tuple[Tensor, Tensor]:
    """The loss of all shards at the weights that are tried, and the squares of the weights.

    The squares are the mean over ranks.

    Args:
        ranks: None for one process.
        work: returns both for this rank, `(R,)` each.
        portions: of all samples, one for each shard.
        replicas: R.
    """
    if ranks is None:
        return work()
    with ranks.exchange(2 * replicas, "trial") as message:
        message.send(torch.cat(work()).numpy())
    losses, squares = np.split(message.rows, 2, axis=1)
    return torch.from_numpy(ranks.average(losses, portions)[0]), torch.from_numpy(squares.mean(0))


def _gathered(
    ranks: Ranks, tried: Callable[[range], Tensor], shape: tuple[int, int, int]
) -> Tensor:
    """Regrets of all directions on this rank's shard.

    Each is tried by one of the ranks that see it.
    """
    replicas, count, outcomes = shape
    parts = [ranks.part(count, share) for share in range(ranks.shares)]
    length = max(map(len, parts)) * replicas * outcomes
    with ranks.exchange(length, f"regrets of {count} directions") as message:
        own = tried(ranks.part(count))  # (R, k, n)
        padded = torch.nn.functional.pad(own, (0, outcomes - own.shape[2]))
        message.send(as_double(padded.transpose(0, 1).flatten()).numpy())
    rows = message.rows
    found = [
        torch.from_numpy(rows[share * ranks.shards + ranks.shard]).reshape(-1, replicas, outcomes)[
            : len(part)
        ]
        for share, part in enumerate(parts)
    ]
    return torch.cat(found).transpose(0, 1)[..., : own.shape[2]].to(own)


def _scaled(loss: Quadratic, portion: float) -> Quadratic:
    """A shard's part of the loss of all samples."""
    if portion == 1.0:
        return loss
    curve = loss.curve
    return loss._replace(slope=loss.slope * portion, curve=lambda J: curve(J) * portion)


def _sound(loss: Quadratic) -> Tensor:
    return (
        loss.loss.isfinite()
        & loss.values.isfinite().all(1).cpu()
        & loss.slope.isfinite().all(1).cpu()
    )
