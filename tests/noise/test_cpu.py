"""The fast kernel against the definition: the same bits, through the optimizers that use it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dopaminergic
from dopaminergic import WeightPerturbation
from dopaminergic.noise import backends, reference

pytest.importorskip("numba")
SHAPES = [(1,), (127,), (128,), (129,), (3, 700), (2047,), (2049,), (5, 5, 5), (70_000,)]


def randn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.fixture
def without_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if numba were not installed."""
    monkeypatch.setattr(backends, "fast_kernels", lambda: None)


def trained(dtype: torch.dtype, kind: str, steps: int = 3, **settings: Any) -> list[Tensor]:
    parameters = [
        nn.Parameter(randn(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(SHAPES)
    ]
    groups = [{"params": parameters[:4], "sigma": 0.01}, {"params": parameters[4:]}]
    optimizer = WeightPerturbation(groups, noise=kind, lr=1e-4, **settings)
    for _ in range(steps):
        optimizer.step(lambda: sum((p.double() ** 2).sum() for p in parameters))  # pyright: ignore
    return [p.detach() for p in parameters]


SETTINGS = [{}, {"directions": 3}, {"weight_decay": 5.0}, {"directions": 2, "seed": (1 << 63) - 1}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_signs_have_the_bits_of_the_reference(
    dtype: torch.dtype, settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    fast = trained(dtype, "rademacher", **settings)
    request.getfixturevalue("without_fast")
    slow = trained(dtype, "rademacher", **settings)
    for a, b in zip(fast, slow, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_equal_the_reference_to_a_few_ulp(
    dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    fast = moved(dtype)
    request.getfixturevalue("without_fast")
    for a, b in zip(fast, moved(dtype), strict=True):
        # Four ulp of float32 of a normal of size 4.
        assert float((a - b).abs().max()) <= 4 * 2.0**-21


def moved(dtype: torch.dtype) -> list[Tensor]:
    """What the closure sees of the normals: weights start at 0 and sigma is 1."""
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    seen: list[list[Tensor]] = []

    def closure() -> float:
        seen.append([p.detach().double().clone() for p in parameters])
        return 0.0

    WeightPerturbation(parameters, sigma=1.0, noise="gaussian", seed=4).step(closure)
    return seen[1]


def test_normals_have_the_same_bits_on_every_processor() -> None:
    """Those of the first kernels, which LLVM made of loops over single numbers."""
    bits = torch.cat([w.float().flatten() for w in moved(torch.float32)]).view(torch.uint8)
    assert (
        hashlib.sha256(bits.numpy().tobytes()).hexdigest()
        == "3df5cb66fa8f7a4ac2edb9a452cc15efc67b954c9909972c07c80e15239ea75a"
    )


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_a_fleet_draws_each_replicas_numbers(kind: str) -> None:
    seeds = [3, 1 << 45, 12]
    w = nn.Parameter(torch.zeros(3, 5, 77))
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(w.detach().clone())
        return torch.zeros(3)

    WeightPerturbation([w], sigma=1.0, noise=kind, seed=seeds).step(closure)
    draw = reference.rademacher if kind == "rademacher" else reference.gaussian
    for i, seed in enumerate(seeds):
        expected = draw(5 * 77, seed=seed, step=0).reshape(5, 77)
        assert float((seen[1][i] - expected).abs().max()) <= (
            0 if kind == "rademacher" else 4 * 2.0**-21
        )


def test_every_direction_and_step_is_that_of_the_definition() -> None:
    w = nn.Parameter(torch.zeros(300, dtype=torch.float64))
    seen: list[Tensor] = []

    def closure() -> float:
        seen.append(w.detach().clone())
        return 0.0

    optimizer = WeightPerturbation([w], sigma=0.5, directions=3, seed=8)
    for _ in range(2):
        optimizer.step(closure)
    for step in range(2):
        for k in range(3):
            expected = 0.5 * reference.rademacher(300, seed=8, step=step, direction=k).double()
            assert torch.equal(seen[4 * step + 1 + k], expected)


SIGNS = """
import torch
from dopaminergic import WeightPerturbation
from dopaminergic.noise.cpu import kernels
w = torch.nn.Parameter(torch.zeros(40))
seen = []
WeightPerturbation([w], sigma=1.0, seed=1).step(lambda: seen.append(w.detach().clone()) or 0.0)
print(*(int(x) for x in seen[1]), sum(kernels._combine_one.stats.cache_hits.values()), sep=",")
"""


FULL = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"


def test_what_numba_kept_is_not_used_once_any_file_has_changed_even_where_the_disk_is_full(
    tmp_path: Path,
) -> None:
    """The copy takes along what is kept for the tests; to compile it anew takes ten seconds."""
    copy = tmp_path / "dopaminergic"
    ignored = shutil.ignore_patterns("*.pyc*", "*.tmp.*")
    shutil.copytree(Path(dopaminergic.__file__).parent, copy, ignore=ignored)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def signs(code: str = SIGNS) -> tuple[list[str], str, str]:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        *found, kept = done.stdout.strip().split(",")
        return found, kept, done.stderr

    first = signs()[0]
    assert first == list(map(str, reference.rademacher(40, seed=1, step=0).int().tolist()))
    assert signs()[:2] == (first, "1")
    philox = copy / "noise" / "cpu" / "philox.py"
    assert "& MASK) * first" in philox.read_text()
    philox.write_text(philox.read_text().replace("& MASK) * first", "& MASK) * second"))
    other, kept, said = signs(FULL + SIGNS)
    assert kept == "0"
    assert other != first
    assert said.count("set NUMBA_CACHE_DIR") == 1


SMALL = """
from dopaminergic.noise.cpu.kernels import kept
@kept
def double(x):
    return 2 * x
print(double(21), sum(double.stats.cache_hits.values()))
"""


@pytest.mark.parametrize("disk", ["read-only", "full"])
def test_where_nothing_can_be_kept_it_is_compiled_anew_after_saying_so(
    disk: str, tmp_path: Path
) -> None:
    """Told to look for zipped packages alone, numba finds no directory, as on a read-only disk."""
    settings = {"NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"} if disk == "read-only" else {}
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept"), **settings}
    script = tmp_path / "small.py"
    script.write_text((FULL if disk == "full" else "") + SMALL)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["42", "0"]
    assert done.stderr.count("set NUMBA_CACHE_DIR") == 1
