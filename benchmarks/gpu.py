"""Noise, steps and memory on a CUDA GPU; prints one JSON object of ratios.

    python benchmarks/gpu.py [--rounds 15] [--weights 100000000] [--layers 12] [--out FILE]

- noise: time of one pass that adds noise to weights in place, over the time of a copy of as many
  bytes (both read and write each weight once), bfloat16 and float32;
- steps: time of a step over two forward passes, of a bfloat16 transformer of about 100 million
  weights, with Triton's kernels and with the torch path that takes over without them;
- memory: peak memory of those steps over that of inference;
- waits: how often a step waits for the device. The loss must be read after each evaluation; the
  noise waits never.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from printing import publish
from torch import nn
from torch.nn import functional

import dopaminergic.noise as noise
from dopaminergic.lab.costs import stepper, time_ratios
from dopaminergic.noise import backends

WIDTH, TOKENS, BATCH, LENGTH = 768, 32_000, 8, 512
STEPS = {"wp": {}, "wp, Gaussian": {"noise": "gaussian"}, "wp, torch path": {}}


class Transformer(nn.Module):
    """Layers of width 768 between an embedding and a readout that share their weights; every token sees all."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 12, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.layers(self.embedding(tokens)), self.embedding.weight)


def build(layers: int, device: str) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """A bfloat16 transformer and its loss on a fixed batch."""
    torch.manual_seed(0)
    model = Transformer(layers).to(device, torch.bfloat16)
    tokens = torch.randint(TOKENS, (BATCH, LENGTH), device=device)
    target = tokens.roll(-1, 1).flatten()
    return model, lambda: functional.cross_entropy(model(tokens).flatten(0, 1), target)


def seconds(work: Callable[[], Any], repeats: int = 10) -> float:
    """Time of one call, of several that the device does one after the other."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def noise_over_copy(weights: int, rounds: int) -> dict[str, Any]:
    results = {}
    for kind, dtype in itertools.product(noise.KINDS, (torch.bfloat16, torch.float32)):
        w = torch.ones(weights, dtype=dtype, device="cuda")
        other = torch.empty_like(w)
        add = noise.Combination([w], [0], np.zeros(1, np.uint64), kind)
        passes = (functools.partial(add, [(0, [1e-3])], None, 0), functools.partial(other.copy_, w))
        for work in passes:
            seconds(work)
        pairs = [[seconds(work) for work in passes] for _ in range(rounds)]
        ratios = sorted(own / copy for own, copy in pairs)
        spread = {"low": ratios[rounds // 4], "high": ratios[-1 - rounds // 4]}
        results[f"{kind} {str(dtype).removeprefix('torch.')}"] = {
            "median": median(ratios),
            **spread,
        }
    return results


def settled(work: Callable[[], Any]) -> Callable[[], Any]:
    """The work, with all that it left for the device to do."""

    def waited() -> Any:
        result = work()
        torch.cuda.synchronize()
        return result

    return waited


def make_step(name: str, model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], int]:
    """A step that has run once, with the kernels it is named after."""
    step, usual = stepper("wp", model, loss, **STEPS[name]), backends.TRITON_DEVICES

    def with_kernels() -> int:
        backends.TRITON_DEVICES = () if name.endswith("torch path") else usual
        try:
            return step()
        finally:
            backends.TRITON_DEVICES = usual

    with_kernels()
    return with_kernels


def peak(work: Callable[[], Any]) -> int:
    """Bytes of torch's allocator, the model among them."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def waits(work: Callable[[], Any]) -> int:
    """How often the host waits for the device, as torch counts it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(w.message) for w in seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each (15)")
    parser.add_argument(
        "--weights", type=int, default=100_000_000, help="of the noise passes (100,000,000)"
    )
    parser.add_argument(
        "--layers", type=int, default=12, help="of the transformer (12, for 110 million weights)"
    )
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error(
            f"this needs a CUDA device, and torch {torch.__version__} sees none; install a CUDA "
            "build of torch on a "
            "machine with a GPU, or measure the CPU with benchmarks/step_cost.py and "
            "benchmarks/memory.py"
        )
    if backends.triton_launch() is None:
        parser.error(
            "Triton is not installed, and its kernels are what is measured: pip install triton"
        )
    results: dict[str, Any] = {
        "noise pass / copy": noise_over_copy(options.weights, options.rounds)
    }
    memory, waited = {}, {}
    for name in STEPS:
        model, loss = build(options.layers, "cuda")
        with torch.no_grad():
            inference = peak(lambda loss=loss: float(loss()))
        step = make_step(name, model, loss)
        memory[name], waited[name] = peak(step) / inference, waits(step)
        del model, loss, step
    steps = {name: settled(make_step(name, *build(options.layers, "cuda"))) for name in STEPS}
    results["step / two forwards"] = time_ratios(
        steps, build(options.layers, "cuda")[1], options.rounds
    )
    results["peak memory / inference"], results["waits for the device in a step"] = memory, waited
    facts = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    publish("noise, steps and memory on a GPU", results, options.out, facts=facts)


if __name__ == "__main__":
    main()
