"""VectorDopamine against Adam at equal forward passes: a recurrent network forecasts Lorenz."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from dopaminergic import VectorDopamine, squared_error

LENGTH, BATCH, TRAIN, TEST = 50, 16, 4000, 1000
RATES = (0.003, 0.01, 0.03)  # of Adam, each with the whole budget; the best of them is compared


def lorenz(steps: int) -> Tensor:
    """The system of Lorenz (1963), `(steps, 3)`, every 0.02 units of time, standardised."""
    x, y, z, path = 1.0, 1.0, 20.0, []
    for _ in range(10 * (steps + 500)):
        x, y, z = (
            x + 0.02 * (y - x),
            y + 0.002 * (x * (28 - z) - y),
            z + 0.002 * (x * y - 8 / 3 * z),
        )
        path.append([x, y, z])
    series = torch.tensor(path[5000::10])
    return (series - series[:TRAIN].mean(0)) / series[:TRAIN].std(0)


def train(series: Tensor, budget: int, rate: float | None) -> float:
    """Error on unseen data, in standard deviations; by Adam if there is a learning rate."""
    torch.manual_seed(0)
    memory, readout, generator = nn.RNN(3, 16), nn.Linear(16, 3), torch.Generator().manual_seed(0)
    weights, passes, shown = [*memory.parameters(), *readout.parameters()], 0, 0
    vector, adam = VectorDopamine(weights), torch.optim.Adam(weights, lr=rate or 0.0)
    while passes + (3 if rate else vector.next_passes) <= budget:
        starts = torch.randint(TRAIN - LENGTH, (BATCH,), generator=generator).tolist()
        x = torch.stack([series[i : i + LENGTH + 1] for i in starts], 1)
        if rate:
            adam.zero_grad()
            squared_error(readout(memory(x[:-1])[0]), x[1:]).mean().backward()
            adam.step()
            passes += 3  # backward counts as two forward passes
            continue
        loss = vector.step(lambda x=x: squared_error(readout(memory(x[:-1])[0]), x[1:]))
        if (passes := vector.forward_passes) >= shown:
            print(f"{passes:6,} forward passes  error on the batch {loss**0.5:.4f}")
            shown += budget // 5
    with torch.no_grad():
        forecast = readout(memory(series[TRAIN:-1, None])[0])[:, 0]
        return (forecast - series[TRAIN + 1 :]).square().mean().sqrt().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--budget", type=int, default=20000, help="forward passes of each run (20000)"
    )
    budget, series = parser.parse_args().budget, lorenz(TRAIN + TEST)
    vector = train(series, budget, None)
    best, rate = min((train(series, budget, rate), rate) for rate in RATES)
    print(
        f"on unseen data: VectorDopamine {vector:.4f}, Adam {best:.4f} with the best of "
        f"{len(RATES)} rates, {rate}"
    )
    print("one problem and one seed; see docs/theory.md for when this cannot be expected")
