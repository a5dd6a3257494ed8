"""Many processes, one run: ranks try different directions of the same step, and only losses travel.

python examples/ranks.py                                     # one process tries all seven
torchrun --nproc-per-node=2 examples/ranks.py                # two share them, and end at the same
bits torchrun --nproc-per-node=2 examples/ranks.py --data 2       # two see half of the data each
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss

from dopaminergic import Dopamine, Ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (300)")
    parser.add_argument(
        "--data", type=int, default=1, help="shards of the data (1: all ranks see all of it)"
    )
    options = parser.parse_args()

    torch.set_num_threads(1)
    if "RANK" in os.environ:  # started by torchrun, which says where the others are
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    ranks = Ranks(data_parallel=options.data)

    torch.manual_seed(0)  # the same weights on all ranks
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(64, 3)
    y = x.prod(1, keepdim=True)
    own_x, own_y = (part.chunk(options.data)[ranks.shard] for part in (x, y))

    optimizer = Dopamine(model.parameters(), directions=7, process_group=ranks)
    losses = [optimizer.step(lambda: mse_loss(model(own_x), own_y)) for _ in range(options.steps)]
    if ranks.rank == 0:
        sent = ranks.bytes_sent / options.steps
        print(
            f"{ranks.size} ranks: loss {losses[0]:.4f} -> {losses[-1]:.4f}, {sent:.0f} bytes a "
            "step and rank"
        )
        print(f"sum of the weights {sum(p.double().sum().item() for p in model.parameters()):.17g}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
