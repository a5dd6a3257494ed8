"""Other libraries beside ours: time of two passes over two bare forward passes, peak memory.

It prints one JSON object.

    python benchmarks/peers.py [--rounds 11] [--models xor,mlp] [--peers wp,mezo] [--memory
    10000000] [--out FILE]

The same models, batches and losses for all, one thread, interleaved. A step of two passes counts as
it is; of a population of P it is the time of a generation times 2 / P. SGD and Adam count as three
passes, so their time is that of a whole step. `mezo` is the algorithm of Malladi et al. (2023) as
the paper writes it: `torch.normal` for each tensor after a reset of the seed, four noise passes a
step. A peer that is not installed, or fails on a model, is named with the reason. Needs
`pip install 'dopaminergic[benchmarks]'`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import torch
from models import MODELS, build
from printing import publish, say
from torch import nn
from torch.func import functional_call

from dopaminergic.lab.costs import TINY_RATE, Loss, measure_memory, scalar, stepper, time_ratios

SIGMA, POPULATION = 1e-3, 16
OURS = ("dopamine", "wp", "spsa", "sgd", "adam")
Maker = Callable[[nn.Module, Loss], Callable[[], int]]  # of a step, which returns its passes


def ours(name: str, **settings: Any) -> Maker:
    return lambda model, loss: stepper(name, model, loss, **settings)


def mezo(model: nn.Module, loss: Loss) -> Callable[[], int]:
    """Algorithm 1 of "Fine-tuning language models with just forward passes" (2023)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    seeds = torch.Generator().manual_seed(0)

    def perturb(seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for p in parameters:
            z = torch.normal(mean=0.0, std=1.0, size=p.shape, dtype=p.dtype)
            p.data = p.data + scale * z

    @torch.no_grad()
    def step() -> int:
        seed = int(torch.randint(1 << 31, (), generator=seeds))
        perturb(seed, SIGMA)
        plus = float(scalar(loss()))
        perturb(seed, -2 * SIGMA)
        minus = float(scalar(loss()))
        perturb(seed, SIGMA)
        perturb(seed, -TINY_RATE * (plus - minus) / (2 * SIGMA))
        return 2

    return step


def torchzero(module: str, **settings: Any) -> Maker:
    def make(model: nn.Module, loss: Loss) -> Callable[[], int]:
        tz = importlib.import_module("torchzero")
        optimizer = tz.Optimizer(
            model.parameters(), getattr(tz.m, module)(h=SIGMA, **settings), tz.m.LR(TINY_RATE)
        )

        def step() -> int:
            with torch.no_grad():
                optimizer.step(lambda backward=False: scalar(loss()))
            return 2

        return step

    return make


def population_loss(
    model: nn.Module, loss: Loss
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """The loss of a stack of models, as these libraries evaluate one: `vmap` over `functional_call`."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> torch.Tensor:
            return torch.as_tensor(scalar(loss()))

    whole = Whole()

    def one(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(whole, {f"model.{name}": p for name, p in parameters.items()}, ())

    return torch.func.vmap(one, randomness="same")


def split(model: nn.Module, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows of all weights, shape `(P, d)`, as stacked parameters."""
    parameters = dict(model.named_parameters())
    parts = rows.split([p.numel() for p in parameters.values()], 1)
    return {
        name: part.reshape(-1, *p.shape)
        for (name, p), part in zip(parameters.items(), parts, strict=True)
    }


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def evotorch(model: nn.Module, loss: Loss) -> Callable[[], int]:
    """PGPE with antithetic pairs, its strategy for networks."""
    core, algorithms = (
        importlib.import_module("evotorch"),
        importlib.import_module("evotorch.algorithms"),
    )
    losses = population_loss(model, loss)

    @importlib.import_module("evotorch.decorators").vectorized
    def objective(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return losses(split(model, rows))

    start = flat(model)
    problem = core.Problem(
        "min", objective, solution_length=len(start), initial_bounds=(-1.0, 1.0), dtype=start.dtype
    )
    searcher = algorithms.PGPE(
        problem,
        popsize=POPULATION,
        center_learning_rate=TINY_RATE,
        stdev_learning_rate=TINY_RATE,
        stdev_init=SIGMA,
        center_init=start,
        optimizer="sgd",
        ranking_method="centered",
    )

    def step() -> int:
        searcher.step()
        return POPULATION

    return step


def evox(model: nn.Module, loss: Loss) -> Callable[[], int]:
    """OpenES with mirrored samples."""
    core, algorithms = (
        importlib.import_module("evox.core"),
        importlib.import_module("evox.algorithms"),
    )
    losses = population_loss(model, loss)

    class Losses(core.Problem):
        def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
            return losses(split(model, pop))

    algorithm = algorithms.OpenES(POPULATION, flat(model), TINY_RATE, SIGMA)
    workflow = importlib.import_module("evox.workflows").StdWorkflow(algorithm, Losses())

    def step() -> int:
        with torch.no_grad():
            workflow.step()
        return POPULATION

    return step


def evosax(model: nn.Module, loss: Loss) -> Callable[[], int]:
    """Open_ES, a jitted generation; perceptrons alone, since the model must be written again in JAX."""
    jax, jnp = importlib.import_module("jax"), importlib.import_module("jax.numpy")
    if not isinstance(model, nn.Sequential):
        raise NotImplementedError(
            "evosax takes models of JAX; only the perceptrons were written again"
        )
    inputs, target = (jnp.asarray(part.numpy()) for part in MODELS[named(model)]()[1:])
    kinds = [type(layer).__name__ for layer in model]
    start = [jnp.asarray(p.detach().numpy()) for p in model.parameters()]

    def evaluate(weights: Any) -> Any:
        x, left = inputs, list(weights)
        for kind in kinds:
            if kind == "Linear":
                x, left = x @ left[0].T + left[1], left[2:]
            else:
                x = {"Tanh": jnp.tanh, "ReLU": jax.nn.relu, "Sigmoid": jax.nn.sigmoid}[kind](x)
        if target.ndim == 2:
            return jnp.mean((x - target) ** 2)
        return -jnp.take_along_axis(jax.nn.log_softmax(x), target[:, None], 1).mean()

    strategy = importlib.import_module("evosax.algorithms").Open_ES(
        POPULATION,
        start,
        optimizer=importlib.import_module("optax").sgd(TINY_RATE),
        std_schedule=lambda generation: SIGMA,
    )
    settings, key = strategy.default_params, jax.random.key(0)

    @jax.jit
    def generation(key: Any, state: Any) -> Any:
        for_ask, for_tell, key = jax.random.split(key, 3)
        rows, state = strategy.ask(for_ask, state, settings)
        state, _ = strategy.tell(for_tell, rows, jax.vmap(evaluate)(rows), state, settings)
        return key, state

    state = strategy.init(key, start, settings)

    def step() -> int:
        nonlocal key, state
        key, state = jax.block_until_ready(generation(key, state))
        return POPULATION

    return step


def named(model: nn.Module) -> str:
    """The key in `MODELS` of one of its perceptrons."""
    first: Any = next(model.children())
    return "xor 2-8-1" if first.in_features == 2 else "mlp 784-512-512-10"


PEERS: dict[str, Maker] = {
    **{name: ours(name) for name in OURS},
    "wp, Gaussian": ours("wp", noise="gaussian"),
    "es, batched": ours("es", batched=True),
    "mezo": mezo,
    "torchzero SPSA": torchzero("SPSA", distribution="rademacher"),
    "torchzero MeZO": torchzero("MeZO", distribution="rademacher"),
    "evotorch PGPE": evotorch,
    "evox OpenES": evox,
    "evosax Open_ES": evosax,
}
WITH_POPULATION = ("es, batched", "evotorch PGPE", "evox OpenES", "evosax Open_ES")


def tried(name: str, model: nn.Module, loss: Loss) -> Callable[[], int] | str:
    """A step that has run once, or why it cannot."""
    try:
        step = PEERS[name](model, loss)
        step()
    except Exception as error:  # whatever another library raises is told, and is no reason to stop
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
    return step


def times(model_name: str, peers: list[str], rounds: int) -> dict[str, Any]:
    """Time of two passes with each, over that of two bare forward passes."""
    steps: dict[str, Callable[[], int]] = {}
    found: dict[str, Any] = {}
    for name in peers:
        say(model_name, name)
        step = tried(name, *build(model_name))
        if isinstance(step, str):
            found[name] = step
        else:
            steps[name] = step
    found |= time_ratios(steps, build(model_name)[1], rounds, warm_up=5)
    for name in set(WITH_POPULATION) & set(steps):
        found[name] = {end: ratio * 2 / POPULATION for end, ratio in found[name].items()} | {
            "population": POPULATION
        }
    return found


def peak_memory(name: str, weights: int) -> float | str:
    """Peak memory of training over inference, in a process of its own, or why it cannot be told."""
    say("memory", name)
    command = [sys.executable, __file__, "--child", name, str(weights)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]
    return json.loads(done.stdout.splitlines()[-1])


def versions() -> dict[str, str]:
    found = {}
    for package in ("torchzero", "evotorch", "evox", "evosax", "jax"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11, help="measurements of each (11)")
    parser.add_argument(
        "--models", default="", help="only models whose name starts so, separated by commas"
    )
    parser.add_argument(
        "--peers", default="", help="only methods whose name starts so, separated by commas"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=10_000_000,
        help="weights of the memory's model; 0: skip (10^7)",
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        print(json.dumps(measure_memory(PEERS[options.child[0]], int(options.child[1]))))
        return
    chosen = [name for name in MODELS if name.startswith(tuple(options.models.split(",")))]
    peers = [name for name in PEERS if name.startswith(tuple(options.peers.split(",")))]
    results: dict[str, Any] = {"time of two passes / of two forward passes": {}}
    for name in chosen:
        results["time of two passes / of two forward passes"][name] = times(
            name, peers, options.rounds
        )
    if options.memory:
        names = [name for name in peers if name != "evosax Open_ES"]  # its model is not torch's
        memory = {name: peak_memory(name, options.memory) for name in names}
        results[f"peak memory / of inference, {options.memory:,} weights"] = memory
    publish("beside other libraries", results, options.out, facts=versions())


if __name__ == "__main__":
    main()
