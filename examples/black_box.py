"""A loss without a gradient: a cart-pole in numpy, pushed by hard decisions of the network."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import nn

from dopaminergic import EvolutionStrategy

SECONDS, TICK = 4.0, 0.02
GRAVITY, CART, POLE, HALF_LENGTH, PUSH = 9.8, 1.0, 0.1, 0.5, 10.0


def fallen_share(policy: nn.Module, starts: np.ndarray) -> float:
    """Share of the time for which the poles lie (Barto, Sutton and Anderson 1983)."""
    state, standing, ticks_stood = starts.copy(), np.ones(len(starts), bool), 0.0
    ticks = int(SECONDS / TICK)
    for _ in range(ticks):
        _, speed, angle, turning = state.T
        # The policy sees angles in radians and decides by a sign: nothing here could be
        # differentiated.
        decision = policy(torch.tensor(state, dtype=torch.float32)).numpy()[:, 0]
        force = np.where(decision > 0, PUSH, -PUSH)
        pull = (force + POLE * HALF_LENGTH * turning**2 * np.sin(angle)) / (CART + POLE)
        inertia = HALF_LENGTH * (4 / 3 - POLE * np.cos(angle) ** 2 / (CART + POLE))
        swing = (GRAVITY * np.sin(angle) - np.cos(angle) * pull) / inertia
        push = pull - POLE * HALF_LENGTH * swing * np.cos(angle) / (CART + POLE)
        state = state + TICK * np.stack([speed, push, turning, swing], axis=1)
        standing &= (np.abs(state[:, 0]) < 2.4) & (np.abs(state[:, 2]) < 0.21)
        ticks_stood += standing.mean()
        if not standing.any():
            break
    return 1 - float(ticks_stood) / ticks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=40, help="optimizer steps, 16 simulated batches each (40)"
    )
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = EvolutionStrategy(policy.parameters(), lr=0.1, sigma=0.2, directions=8)
    for step in range(steps):
        # The same for all candidates of a step.
        starts = np.random.default_rng(step).uniform(-0.05, 0.05, (20, 4))
        loss = optimizer.step(lambda starts=starts: fallen_share(policy, starts))
        if step % max(1, steps // 8) == 0:
            print(f"step {step:3d}  share of the time fallen {loss:.3f}")

    with torch.no_grad():
        final = fallen_share(policy, np.random.default_rng(10**6).uniform(-0.05, 0.05, (100, 4)))
    print(
        f"on 100 new starts: fallen {final:.3f} of the time, after {optimizer.forward_passes} "
        "batches of episodes"
    )


if __name__ == "__main__":
    main()
