"""Logs of a run by one protocol: a file of CSV, TensorBoard, and functions of a dictionary."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

from dopaminergic import Dopamine2
from dopaminergic.integrations.logging import CSV, Log, TensorBoard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (1000)")
    steps = parser.parse_args().steps

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 2, generator=generator) * 2 - 1
    y = torch.sin(3 * x[:, :1]) * x[:, 1:]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = Dopamine2(model.parameters())
    loss_of = nn.MSELoss()

    with tempfile.TemporaryDirectory() as folder:
        file, board = Path(folder) / "run.csv", TensorBoard(Path(folder) / "board")
        kept: list[dict[str, float]] = []
        # wandb.log is such a function too
        log = Log(optimizer, CSV(file), board, kept.append, every=max(1, steps // 5))
        for _ in range(steps):
            log(loss=optimizer.step(lambda: loss_of(model(x), y)))
        board.close()
        print(file.read_text().strip())
        events = [path for path in Path(folder, "board").iterdir() if path.stat().st_size > 100]
        print(f"TensorBoard: {len(events)} file; in a list: {len(kept)} rows")


if __name__ == "__main__":
    main()
