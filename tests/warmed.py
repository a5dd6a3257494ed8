"""Imported by the server that starts the ranks of tests: kernels are compiled and loaded once, not
by each of them.
"""

from __future__ import annotations

import torch

import channel_scenarios  # noqa: F401  # pyright: ignore[reportUnusedImport]
import rank_scenarios

torch.set_num_threads(1)  # no thread may run where processes are forked
rank_scenarios.warm_up()
