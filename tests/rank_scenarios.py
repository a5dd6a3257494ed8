"""What `test_distributed.py` has four ranks do; each scenario returns what the test looks at."""

from __future__ import annotations

import copy
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dopaminergic import ForwardOptimizer, Outcome, cross_entropy, squared_error
from dopaminergic.distributed import Ranks, broadcast
from dopaminergic.journal import Journal, replay
from launching import SIZE
from optimizers import ROWS, VECTOR, Bowl, Regression, Row, copies, randn

STEPS = 3
# With the weights themselves eight evaluations, two for each rank; the pairs of SPSA are shared
# unevenly.
K = 7
SETTINGS: dict[str, Any] = {"directions": K, "seed": 5, "weight_decay": 0.1}


LARGE_ROWS = [ROWS[1], ROWS[3], VECTOR]


class Shards(Regression):
    """Four points for each shard of the data, seen by those ranks whose shard it is."""

    def __init__(self, shards: int = 1, shard: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(dtype=dtype)
        self.parts = list(zip(self.x.chunk(shards), self.y.chunk(shards), strict=True))
        self.shard = shard

    def of(self, shard: int) -> Tensor:
        x, y = self.parts[shard]
        return ((self.model(x) - y) ** 2).mean()

    def loss(self) -> Tensor:
        return self.of(self.shard)

    def outcome(self) -> Outcome:
        """Two classes; the logits saturate as they are learned."""
        x, y = self.parts[self.shard]
        values = 0.3 * self.model(x)  # near zero at first, or they could only become less saturated
        return cross_entropy(torch.cat([values, -values], 1), (y > 0).long()[:, 0])

    def mean(self) -> float:
        """The loss of all shards, summed in the order of ranks."""
        total = 0.0
        for shard in range(len(self.parts)):
            # Not by `sum`, which corrects the rounding of floats from Python 3.12 on.
            total += float(self.of(shard))
        return total / len(self.parts)

    def noisy(self) -> Tensor:
        """Draws, as dropout does."""
        return (
            (self.model(self.x * torch.bernoulli(torch.full_like(self.x, 0.8))) - self.y) ** 2
        ).mean()


def trained(
    make: Callable[..., ForwardOptimizer],
    problem: Any,
    closure: Callable[[], Any],
    group: Any,
    steps: int = STEPS,
    **settings: Any,
) -> dict[str, Any]:
    """Weights, losses and state after some steps."""
    parameters = [problem.w] if isinstance(problem, Bowl) else list(problem.model.parameters())
    optimizer = make(parameters, process_group=group, **{**SETTINGS, **settings})
    losses = [optimizer.step(closure) for _ in range(steps)]
    return {"weights": copies(parameters), "losses": losses, "state": optimizer.state_dict()}


def failing(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def directions(rank: int) -> dict[str, Any]:
    """Every optimizer, all ranks on the same data; `noisy` where the closure draws."""
    found = {}
    for row in ROWS:
        for noise in ("rademacher", "gaussian"):
            problem = Shards()
            found[row.name, noise] = trained(
                row.make, problem, problem.loss, Ranks(data_parallel=1), noise=noise
            )
        torch.manual_seed(rank)  # ranks need not start alike
        problem, before = Shards(), torch.get_rng_state()
        found[row.name, "noisy"] = trained(row.make, problem, problem.noisy, Ranks(data_parallel=1))
        found[row.name, "generator"] = torch.equal(before, torch.get_rng_state())
        problem = Shards()
        found[row.name, "batched"] = trained(
            row.make, problem, problem.loss, Ranks(data_parallel=1), batched=True
        )
    for name, closure in vector_closures().items():
        problem = Shards()
        found[VECTOR.name, name] = trained(
            VECTOR.make,
            problem,
            closure(problem, problem.x, problem.y),
            Ranks(data_parallel=1),
            memory=1,
        )
    for row in LARGE_ROWS:
        bowl = Bowl()
        run = trained(
            row.make, bowl, bowl.loss, Ranks(data_parallel=1, check_every=1), **large(row)
        )
        found[row.name, "large"] = {**run, "weights": [w[:1000] for w in run["weights"]]}
    bowl = Bowl()
    # Keeps copies.
    trained(ROWS[3].make, bowl, bowl.loss, Ranks(data_parallel=1, check_every=1), noise="gaussian")
    return found


def large(row: Row) -> dict[str, Any]:
    """Settings for a large model; in place, since batches of copies are only as exact as
    rounding.
    """
    return {"directions": 4, **({"memory": 1} if row is VECTOR else {})}


def vector_closures() -> dict[str, Callable[[Any, Tensor, Tensor], Callable[[], Any]]]:
    """Outcomes of all kinds, on some of the points."""
    return {
        "squared_error": lambda problem, x, y: lambda: squared_error(problem.model(x), y),
        "cross_entropy": lambda problem, x, y: (
            lambda: cross_entropy(
                torch.cat([problem.model(x), -problem.model(x)], 1), (y > 0).long()[:, 0]
            )
        ),
        "losses": lambda problem, x, y: lambda: ((problem.model(x) - y) ** 2)[:, 0],
    }


def data(rank: int) -> dict[str, Any]:
    """Every optimizer, four shards; and two shards with two shares of the directions."""
    found = {}
    for shards in (4, 2):
        for row in ROWS:
            ranks = Ranks(data_parallel=shards)
            problem = Shards(shards, ranks.shard)
            found[row.name, shards] = trained(row.make, problem, problem.loss, ranks)
        for name, closure in vector_closures().items():
            ranks = Ranks(data_parallel=shards)
            problem = Shards()
            sizes = [5, 3, 7, 1] if shards == 4 else [5, 11]
            x, y = problem.x.split(sizes)[ranks.shard], problem.y.split(sizes)[ranks.shard]
            found[name, shards] = trained(VECTOR.make, problem, closure(problem, x, y), ranks)
    return found


def faults(rank: int) -> dict[str, Any]:
    """Rank 2 raises in the second step, at a perturbed pass; rank 1 has a NaN in the third."""
    return {row.name: faulty(rank, row) for row in [*ROWS, VECTOR]}


def faulty(rank: int, row: Row) -> dict[str, Any]:
    problem, calls, step = Shards(), 0, 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        if step == 1 and rank == 2 and calls >= 2:
            raise ArithmeticError("of the closure")
        value = (
            problem.loss()
            if row is not VECTOR
            else ((problem.model(problem.x) - problem.y) ** 2)[:, 0]
        )
        return value * float("nan") if step == 2 and rank == 1 else value

    optimizer = row.make(
        problem.model.parameters(), process_group=Ranks(data_parallel=2), **SETTINGS
    )
    optimizer.step(loss)
    before, step, calls = problem.weights(), 1, 0
    message = failing(lambda: optimizer.step(loss))
    after_error, step = problem.weights(), 2
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer.step(loss)
    after_nan, step = problem.weights(), 3
    optimizer.step(loss)
    return {
        "message": message,
        "before": before,
        "after_error": after_error,
        "after_nan": after_nan,
        "warnings": len(said),
        "skipped": optimizer.skipped_steps,
        "end": problem.weights(),
    }


def differences(rank: int) -> dict[str, str]:
    """What the comparison of ranks must find; each at all ranks."""

    def run(change: Callable[[Any, dict[str, Any]], None], **settings: Any) -> str:
        problem = Shards()
        settings = {**SETTINGS, **settings}
        change(problem, settings)
        optimizer = ROWS[3].make(
            problem.model.parameters(), process_group=Ranks(check_every=2), **settings
        )
        return failing(lambda: [optimizer.step(problem.loss) for _ in range(3)])

    def start(problem: Any, settings: Any) -> None:
        if rank == 2:
            next(problem.model.parameters())[0, 0] += 1e-16

    def frozen(problem: Any, settings: Any) -> None:
        next(problem.model.parameters()).requires_grad_(False)
        start(problem, settings)

    def rate(problem: Any, settings: Any) -> None:
        settings["lr"] = 3.5 if rank != 1 else 3.0

    def broadcasted(problem: Any, settings: Any) -> None:
        start(problem, settings)
        broadcast(problem.model.parameters())

    def later() -> str:
        problem, seen = Shards(), []
        optimizer = ROWS[3].make(
            problem.model.parameters(), process_group=Ranks(check_every=2), **SETTINGS
        )
        for step in range(3):
            if step == 1 and rank == 3:
                next(problem.model.parameters())[2, 1] *= -1.0
            seen.append(failing(lambda: optimizer.step(problem.loss)))
        return "; ".join(seen)

    with torch.no_grad():
        return {
            "start": run(start),
            "frozen": run(frozen),
            "rate": run(rate),
            "broadcast": run(broadcasted),
            "later": later(),
        }


def resumed(rank: int) -> dict[str, Any]:
    """Six steps, and three and three with all that a run saves in between."""
    whole = Shards()
    end = trained(ROWS[4].make, whole, whole.noisy, Ranks(data_parallel=1), steps=2 * STEPS)
    first = Shards()
    half = trained(ROWS[4].make, first, first.noisy, Ranks(data_parallel=1))
    optimizer = ROWS[4].make(
        first.model.parameters(), process_group=Ranks(data_parallel=1), **SETTINGS
    )
    optimizer.load_state_dict(half["state"])
    for _ in range(STEPS):
        optimizer.step(first.noisy)
    twin = copy.deepcopy(optimizer)
    return {
        "whole": end["weights"],
        "halves": first.weights(),
        "pickle": failing(lambda: pickle.dumps(optimizer)),
        "twin": twin._ranks is optimizer._ranks,
    }


def fleet(rank: int) -> dict[str, Any]:
    """Three replicas, on one rank and on four."""
    return {"one": fleet_of_three("alone"), "four": fleet_of_three(Ranks(data_parallel=1))}


def fleet_of_three(group: Any) -> list[Tensor]:
    w, x = nn.Parameter(randn(3, 2, seed=2)), randn(8, 2, seed=1)
    optimizer = ROWS[3].make([w], process_group=group, directions=3, seed=[1, 2, 3])
    losses = [optimizer.step(lambda: ((w @ x.T) ** 2).mean(1)) for _ in range(STEPS)]
    return [w.detach().clone(), *losses]


def bytes_sent(rank: int) -> dict[Any, int]:
    """Of two steps, without the comparison at the start."""
    cases = [
        (row, size, shards) for row in [*ROWS, VECTOR] for size in (10, 10_000) for shards in (1, 4)
    ]
    return {
        (row.name, size, shards): bytes_of_two_steps(row, size, shards)
        for row, size, shards in cases
    }


def bytes_of_two_steps(row: Row, size: int, shards: int) -> int:
    w, ranks = nn.Parameter(randn(size)), Ranks(data_parallel=shards, check_every=1000)
    optimizer = row.make([w], process_group=ranks, directions=8)
    optimizer.step(lambda: (w**2).mean())
    before = ranks.bytes_sent
    for _ in range(2):
        optimizer.step(lambda: (w**2).mean())
    return ranks.bytes_sent - before


def sharded(rank: int) -> dict[str, Any]:
    """FSDP2 over all ranks, and over two with two shares of the directions; gathered, and not
    sharded at all.

    Five rows over four ranks make shards of two, two, one and none.
    """
    found = {}
    for shards in (4, 2):
        shape, names = ((4,), ("data",)) if shards == 4 else ((2, 2), ("directions", "data"))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for row in [*ROWS, VECTOR]:
            for dtype in (torch.float64, torch.bfloat16):
                for is_sharded in (False, True):
                    ranks = Ranks(data_parallel=shards)
                    problem = Shards(shards, ranks.shard, dtype)
                    if is_sharded:
                        fully_shard(problem.model, mesh=mesh, reshard_after_forward=True)
                    settings: dict[str, Any] = {
                        "sigma": 0.01,
                        **({"memory": 1} if row is VECTOR else {}),
                    }
                    closure = problem.outcome if row is VECTOR else problem.loss
                    run = trained(row.make, problem, closure, ranks, **settings)
                    whole = [w.full_tensor() if is_sharded else w for w in run["weights"]]
                    found[row.name, shards, str(dtype), is_sharded] = whole
                    found[row.name, shards, str(dtype), is_sharded, "state"] = run["state"][
                        "forward"
                    ]["progress"]
    return found


def unseen(rank: int) -> list[str]:
    """What is said of a model whose root keeps the weights that it has gathered."""
    problem = Shards()
    fully_shard(problem.model, mesh=init_device_mesh("cpu", (4,)))
    optimizer = ROWS[3].make(problem.model.parameters(), process_group=Ranks())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            optimizer.step(problem.loss)
    return [str(warning.message) for warning in said]


def misplaced(rank: int) -> str:
    """A parameter that is split by columns."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (4,))
    w = nn.Parameter(distribute_tensor(randn(3, 8), mesh, [Shard(1)]))
    optimizer = ROWS[0].make([w], process_group=Ranks())
    return failing(lambda: optimizer.step(lambda: 1.0))


def deadline(rank: int) -> dict[str, Any]:
    """With none to spare, each rank tries the first of its directions; with one to spare, all do
    that are not slow.
    """
    found: dict[Any, Any] = {
        row.name: in_time(row, Ranks(data_parallel=1, deadline=0.0)) for row in [*ROWS, VECTOR]
    }
    for row in (ROWS[3], VECTOR):
        found[row.name, "shards"] = in_time(row, Ranks(data_parallel=2, deadline=0.0))
    slow = Ranks(data_parallel=1, deadline=0.4)
    found["slow"] = in_time(ROWS[3], slow, seconds=0.5 if rank == 2 else 0.0, directions=15)
    model = nn.Linear(4, 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (4,)))
    found["sharded"] = failing(lambda: ROWS[3].make(model.parameters(), process_group=slow))
    return found


def in_time(row: Row, ranks: Ranks, seconds: float = 0.0, directions: int = K) -> dict[str, Any]:
    """A run in which directions are missing: where it went and by which, and where a replay of its
    journal ends.
    """
    w = nn.Parameter(randn(12, seed=3))
    twin = nn.Parameter(w.detach().clone())
    optimizer = row.make([w], process_group=ranks, directions=directions, seed=11)

    def loss() -> Tensor:
        time.sleep(seconds)
        return w.detach() ** 2 if row is VECTOR else bowl(w.detach())

    weights, moved = [], []
    optimizer.listen(
        lambda change: moved.append([k for k, multiples in change.terms if any(multiples)])
    )
    with tempfile.TemporaryDirectory() as folder:
        with Journal(optimizer, f"{folder}/run.journal"):
            for _ in range(STEPS):
                optimizer.step(loss)
                weights.append(w.detach().clone())
        replay([twin], f"{folder}/run.journal")
    return {
        "weights": weights,
        "moved": moved,
        "twin": twin.detach(),
        "passes": optimizer.forward_passes,
    }


def bowl(w: Any) -> Any:
    """Its loss, of a tensor or of a list of numbers."""
    return sum((1.0 + i % 3) * x * x for i, x in enumerate(w)) + 0.3 * w[0] * w[3] + 1.0


SCENARIOS = [
    directions,
    deadline,
    data,
    faults,
    differences,
    resumed,
    fleet,
    bytes_sent,
    sharded,
    unseen,
    misplaced,
]


def warm_up() -> None:
    """Have the kernels compiled."""
    for dtype in (torch.float64, torch.bfloat16):
        problem = Shards(dtype=dtype)
        for directions in (1, K):
            trained(ROWS[0].make, problem, problem.loss, "alone", directions=directions)
    for noise in ("rademacher", "gaussian"):
        trained(ROWS[0].make, Bowl(), Bowl().loss, "alone", noise=noise)


def main(rank: int, folder: str) -> None:
    """Do all of it, and leave what was found in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE
    )
    found = {scenario.__name__: scenario(rank) for scenario in SCENARIOS}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
