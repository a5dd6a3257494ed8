"""What `test_channel.py` has four ranks do: they differ, are interrupted, raise errors; each in a
group of its own.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dopaminergic import Dopamine, VectorDopamine
from dopaminergic.distributed import Ranks
from launching import SIZE
from optimizers import ROWS, VECTOR
from rank_scenarios import SETTINGS, Shards

# Told by the first frames, which close the group; told by what the frames bring.
BY_FRAMES = [
    "directions",
    "many_directions",
    "check_every",
    "data_parallel",
    "rule",
    "two_sided",
    "replicas",
]
BY_FRAMES += ["later_seed", "repeated", "skipped"]
BY_NUMBERS = ["noise", "dtype", "seed", "outcomes"]
CHANGES: dict[str, Any] = {
    "directions": 8,
    "many_directions": 200,
    "seed": 6,
    "noise": "gaussian",
    "two_sided": True,
}


def new_group(**settings: Any) -> dist.ProcessGroup:
    group = dist.new_group(**settings)
    assert isinstance(group, dist.ProcessGroup)
    return group


def failing(work: Callable[[], Any]) -> str:
    try:
        work()
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


# ---- ranks that differ ---------------------------------------------------------------------------


def out_of_step(rank: int, folder: Path) -> dict[Any, Any]:
    """Rank 3 is about to do something else than the others, in the first step or in the second."""
    return {what: deviating(what, rank == 3) for what in [*BY_FRAMES, *BY_NUMBERS]}


def deviating(what: str, other: bool) -> dict[str, Any]:
    """What is said twice, and the weights before and after."""
    problem = Shards(dtype=torch.float32 if other and what == "dtype" else torch.float64)
    optimizer = differently_made(what, other, problem)
    count = 3 if other and what == "outcomes" else 4
    before = problem.weights()

    def loss() -> Tensor:
        residuals = problem.model(problem.x[:count]) - problem.y[:count]
        return (residuals**2)[:, 0]

    def two_steps() -> None:
        optimizer.step(loss)
        before[:] = problem.weights()
        if other:
            load_another_state(optimizer, what)
        optimizer.step(loss)

    said = failing(two_steps)
    return {
        "said": said,
        "again": failing(lambda: optimizer.step(loss)),
        "weights": (before, problem.weights()),
    }


def differently_made(what: str, other: bool, problem: Shards) -> Any:
    settings = {**SETTINGS, "two_sided": False}
    make: Any = ROWS[3].make
    if other and what in CHANGES:
        settings[what.removeprefix("many_")] = CHANGES[what]
    if what == "replicas":
        return fleet(5 if other else 3)
    if what in ("rule", "outcomes"):
        del settings["two_sided"]
        make = VECTOR.make if what == "outcomes" or other else make
    ranks = Ranks(
        new_group(),
        data_parallel=4 if other and what == "data_parallel" else 2,
        check_every=1 if other and what == "check_every" else 100,
    )
    return make(problem.model.parameters(), process_group=ranks, **settings)


def fleet(replicas: int) -> Any:
    w = torch.nn.Parameter(torch.ones(replicas, 2))
    return Fleet([w], process_group=Ranks(new_group(), data_parallel=1), seed=list(range(replicas)))


class Fleet(Dopamine):
    """Has a closure of its own, since the losses of a fleet are many."""

    def step(self, closure: Any = None) -> Any:
        w = self.param_groups[0]["params"][0]
        return super().step(lambda: (w**2).mean(1))


def load_another_state(optimizer: Any, what: str) -> None:
    state = optimizer.state_dict()
    if what == "later_seed":
        state["forward"]["settings"]["seed"] = 9
        optimizer.load_state_dict(state)
    if what in ("repeated", "skipped"):
        state["forward"]["progress"]["step"] += 1 if what == "skipped" else -1
        optimizer.load_state_dict(state)
        optimizer._agreed = True


# ---- ranks that are interrupted ------------------------------------------------------------------

# Where an alarm or Ctrl-C strikes rank 1 in the second step, the optimizer and its directions (28
# numbers are a frame).
DEPARTURES: dict[str, tuple[Any, int]] = {
    "waiting": (Dopamine, 5),
    "waiting with many numbers": (Dopamine, 200),
    "waiting as VectorDopamine": (VectorDopamine, 40),
    "waiting for the second message": (Dopamine, 200),
    "between the messages": (Dopamine, 200),
    "waiting while another raises": (Dopamine, 200),
    "handler that raises a RuntimeError": (Dopamine, 5),
    "Ctrl-C after the exchange": (Dopamine, 5),
}
LATE = [
    "waiting",
    "waiting with many numbers",
    "waiting as VectorDopamine",
    "waiting while another raises",
    "handler that raises a RuntimeError",
]


def departures(rank: int, folder: Path) -> dict[str, Any]:
    return {where: departing(where, rank, folder / where.replace(" ", "_")) for where in DEPARTURES}


def departing(where: str, rank: int, gone: Path) -> dict[str, Any]:
    """What each rank is told in four attempts, and the number of steps that it has done."""
    make, directions = DEPARTURES[where]
    w, said = torch.nn.Parameter(torch.ones(20)), []
    ranks = Ranks(new_group(timeout=timedelta(seconds=100)), data_parallel=1)
    optimizer = make([w], directions=directions, process_group=ranks)
    square = w.detach().square
    value: Callable[[], Tensor] = square if make is VectorDopamine else lambda: square().mean()
    optimizer.step(value)
    if rank == 1:
        strike(where, optimizer, ranks._channel)
    if rank == 0 and where == "waiting for the second message":
        hold_back(ranks._channel, gone)

    def loss() -> Tensor:
        if rank == 0 and where in LATE and not said:
            wait_for(gone)
            if where == "waiting while another raises":
                raise ArithmeticError("of the closure")
        return value()

    for _ in range(4):
        said.append(failing(lambda: optimizer.step(loss)))
        gone.touch()
    said.append(failing(lambda: Ranks(ranks._channel.group)))
    return {"said": said, "steps": steps_of(optimizer)}


def steps_of(optimizer: Any) -> int:
    return optimizer.state_dict()["forward"]["progress"]["step"]


def hold_back(channel: Any, gone: Path) -> None:
    """Send the second message only after another rank has left."""
    refuse = channel._refuse

    def later(*arguments: Any) -> None:
        refuse(*arguments)
        wait_for(gone)

    channel._refuse = later


def wait_for(gone: Path) -> None:
    while not gone.exists():
        time.sleep(0.005)


def strike(where: str, optimizer: Any, channel: Any) -> None:
    """Have a signal come once, at a certain place of the next step."""
    name, turn = "_wait", 1
    if where == "waiting for the second message":
        turn = 2
    elif where == "between the messages":
        name = "_refuse"
    elif where == "Ctrl-C after the exchange":
        channel, name = optimizer, "rule"
    before, left = getattr(channel, name), [turn]

    def struck(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if name == "_wait":
                # Strikes while the rank waits, if it waits for long.
                signal.setitimer(signal.ITIMER_REAL, 0.02)
            else:
                signal.raise_signal(signal.SIGINT if name == "rule" else signal.SIGALRM)
        return before(*arguments)

    error = RuntimeError("of a handler") if "RuntimeError" in where else TimeoutError()

    def late(number: int, frame: Any) -> None:
        raise error

    signal.signal(signal.SIGALRM, late)
    setattr(channel, name, struck)


# ---- ranks that raise an error after the exchange ------------------------------------------------


class Failing(Dopamine):
    """Its rule raises an error once."""

    fails = False

    def rule(self, state: Any, losses: Any, groups: Any) -> Any:
        if self.fails:
            self.fails = False
            raise ArithmeticError("of the rule")
        return super().rule(state, losses, groups)


def errors(rank: int, folder: Path) -> dict[str, Any]:
    """All ranks raise the same in the second step; or rank 1 alone does."""
    return {who: failing_steps(who == "all" or rank == 1) for who in ("all", "one")}


def failing_steps(fails: bool) -> dict[str, Any]:
    problem = Shards()
    optimizer = Failing(problem.model.parameters(), process_group=Ranks(new_group()), **SETTINGS)
    said = []
    for step in range(4):
        optimizer.fails = fails and step == 1
        said.append(failing(lambda: optimizer.step(problem.loss)))
    return {"said": said, "weights": problem.weights(), "steps": steps_of(optimizer)}


# ---- ranks that were never introduced ------------------------------------------------------------


def not_introduced(rank: int, folder: Path) -> list[str]:
    """Warnings of optimizers without a group; the one that says so is not warned."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for group in ("alone", None, None):
            problem = Shards()
            ROWS[3].make(problem.model.parameters(), process_group=group).step(problem.loss)
    return [str(warning.message) for warning in said]


SCENARIOS = [out_of_step, departures, errors, not_introduced]


def main(rank: int, folder: str) -> None:
    """Do all of it, and leave what was found in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE
    )
    found = {scenario.__name__: scenario(rank, Path(folder)) for scenario in SCENARIOS}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
