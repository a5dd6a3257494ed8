"""The kernels for GPUs against the definition: on a GPU where there is one, else in Triton's
interpreter on the CPU.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dopaminergic import Dopamine, WeightPerturbation
from dopaminergic.noise import backends, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRET = {} if DEVICE == "cuda" else {"TRITON_INTERPRET": "1"}
with pytest.MonkeyPatch.context() as patch:
    for variable in INTERPRET.items():
        patch.setenv(*variable)
    pytest.importorskip(
        "triton",
        reason="needs Triton (on Linux: pip install triton), which also runs without a GPU",
    )
    from dopaminergic.noise.gpu import launch as gpu

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES, FIRSTS, PARAMETERS = (
    [1, 127, 129, 4097, 260],
    [0, 5, 0, 256, 4094],
    [2, 0, 3, (1 << 32) - 1, 4],
)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """For these tests alone, since torch's compiler would read it too."""
    for variable in INTERPRET.items():
        monkeypatch.setenv(*variable)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(DEVICE, dtype)


def drawn(kind: str, n: int, first: int, **counter: Any) -> Tensor:
    """Elements `first` to `first + n` of a direction."""
    draw = reference.rademacher if kind == "rademacher" else reference.gaussian
    skipped = first % 128
    return draw(skipped + n, first=first - skipped, **counter)[..., skipped:]


def to_16_bits(x: Tensor, dtype: torch.dtype, first: int, **counter: Any) -> Tensor:
    """Float32 `(R, n)` to a neighbour in `dtype`, up where the random number is beyond what is
    missing to it.
    """
    skipped, half = first % 8, dtype == torch.float16
    noise = reference.thresholds(skipped + x.shape[1], first=first - skipped, **counter)[
        ..., skipped:
    ].to(x.device)
    digits, x = 11 if half else 8, x.double()
    # Between the neighbours.
    unit = torch.pow(2.0, torch.frexp(x).exponent.clamp(min=-125).double() - digits)
    rounded = (
        torch.floor(x.abs() / unit + (noise >> (digits - 8)) * 2.0 ** (digits - 24))
        * unit
        * x.sign()
    )
    if half:  # has no exponent for smaller numbers, whose neighbours are equally far apart
        fraction = (noise + 0.5) * 2.0**-16  # exact, in float64
        rounded = torch.where(
            x.abs() < 2.0**-14, torch.floor(x * 2.0**24 + fraction) * 2.0**-24, rounded
        )
    return torch.where(x.isfinite(), rounded, x).to(dtype)


def combined(
    kind: str, source: Tensor, first: int, parameter: int, seeds: list[int], call: dict[str, Any]
) -> Tensor:
    """What a call makes of `source` `(R, n)`, spelled out operation by operation."""
    exact = torch.float64 if source.dtype == torch.float64 else torch.float32
    x, counter = (
        source.to(exact),
        {"seed": torch.tensor(seeds), "step": call["step"], "parameter": parameter},
    )
    undone, scales = (
        call.get("undone", 0),
        torch.tensor(call["scales"], dtype=exact, device=DEVICE)[:, None],
    )
    for k in range(-1, len(call["directions"])):
        if k >= 0:
            z = drawn(kind, x.shape[1], first, direction=int(call["directions"][k]), **counter).to(
                DEVICE, exact
            )
            x = x + torch.tensor(call["coefficients"][k], dtype=exact, device=DEVICE)[:, None] * z
        if k + 1 == undone:
            x = x * scales
    grid = torch.tensor(call.get("grid", 0.0), dtype=exact, device=DEVICE)
    x = torch.copysign((x.abs() + grid) - grid, x) if grid > 0 else x
    if source.dtype in (torch.bfloat16, torch.float16):
        return to_16_bits(x, source.dtype, first, direction=call.get("rounding", 0), **counter)
    return x


ONE = {"directions": [7], "coefficients": [[0.3]], "scales": [1.0], "step": 4}
CALLS = {
    "one direction": ONE,
    "nothing but a copy": {"directions": [], "coefficients": np.zeros((0, 1)), "scales": [1.0],
                           "step": 4},
    "decay": {**ONE, "scales": [0.7], "step": (1 << 32) - 1, "rounding": 5},
    "undone, decayed, along the same": {**ONE, "directions": [7, 7],
                                        "coefficients": [[-0.1], [0.013]],
                                        "scales": [0.9], "undone": 1, "grid": 0.125},
    "undone and three more": {**ONE, "directions": [3, (1 << 28) - 1, 0, 3], "undone": 1,
                              "grid": 2.0**-6,
                              "coefficients": [[0.5], [0.1], [1e-9], [-2.0]], "scales": [0.5],
                              "rounding": 1},
}  # fmt: skip


def tensors(dtype: torch.dtype, replicas: int = 1) -> list[Tensor]:
    return [randn(replicas, n, seed=i, dtype=dtype) for i, n in enumerate(SIZES)]


def launch(kind: str, targets: list[Tensor], sources: list[Tensor], seeds: list[int]) -> gpu.Launch:
    return gpu.Launch(
        targets, sources, PARAMETERS, FIRSTS, np.array(seeds, np.uint64), kind == "rademacher"
    )


def arrays(call: dict[str, Any]) -> dict[str, Any]:
    return {
        key: np.array(value) if isinstance(value, list) else value for key, value in call.items()
    }


def wanted(
    kind: str, sources: list[Tensor], seeds: list[int], call: dict[str, Any]
) -> list[Tensor]:
    places = zip(sources, FIRSTS, PARAMETERS, strict=True)
    return [
        combined(kind, source, first, parameter, seeds, call) for source, first, parameter in places
    ]


def largest_difference(some: list[Tensor], others: list[Tensor]) -> float:
    return max(
        float((a.double() - b.double()).abs().max()) for a, b in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_signs_have_the_bits_of_the_definition(dtype: torch.dtype, call: dict[str, Any]) -> None:
    """In place, in pieces of parameters that begin anywhere."""
    weights, seeds = tensors(dtype), [(1 << 63) - 1]
    expected = wanted("rademacher", weights, seeds, call)
    launch("rademacher", weights, weights, seeds)(**arrays(call))
    for got, right in zip(weights, expected, strict=True):
        assert torch.equal(got, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_equal_the_definition_to_a_few_ulp(dtype: torch.dtype) -> None:
    weights = [torch.zeros_like(w) for w in tensors(dtype)]
    call = {**ONE, "coefficients": [[1.0]]}
    expected = wanted("gaussian", weights, [3], call)
    launch("gaussian", weights, weights, [3])(**arrays(call))
    # Four ulp of float32 of a normal of size 4.
    assert largest_difference(weights, expected) <= 4 * 2.0**-21
    assert float(expected[3].abs().max()) > 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_normals_reach_the_neighbours_of_16_bit_weights(dtype: torch.dtype) -> None:
    """The other neighbour at most, and that hardly ever: where the last bits of a normal decide."""
    weights = [torch.ones_like(w) for w in tensors(dtype)]
    expected = wanted("gaussian", weights, [3], {**ONE, "coefficients": [[0.1]]})
    launch("gaussian", weights, weights, [3])(**arrays({**ONE, "coefficients": [[0.1]]}))
    assert largest_difference(weights, expected) <= torch.finfo(dtype).eps
    assert sum(int((a != b).sum()) for a, b in zip(weights, expected, strict=True)) <= 0.01 * sum(
        SIZES
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replicas_have_seeds_and_numbers_of_their_own_and_are_read_from_the_copies(
    dtype: torch.dtype,
) -> None:
    copies, seeds = tensors(dtype, replicas=3), [3, 1 << 45, 12]
    targets, before = [torch.full_like(c, torch.nan) for c in copies], [c.clone() for c in copies]
    call = {
        **ONE,
        "directions": [1, 2],
        "scales": [1.0, 0.5, 0.0],
        "coefficients": [[0.1, -0.2, 0.3], [1.0, 0.0, 2.0]],
    }
    launch("rademacher", targets, copies, seeds)(**arrays(call))
    for got, right in zip(targets, wanted("rademacher", copies, seeds, call), strict=True):
        assert torch.equal(got, right)
    assert largest_difference(copies, before) == 0


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("cuts", [[4096], [1, 2, 333, 5000]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_parameter_in_pieces_gets_the_same_bits(
    kind: str, cuts: list[int], dtype: torch.dtype
) -> None:
    whole, pieces = randn(1, 9000, dtype=dtype), randn(1, 9000, dtype=dtype)
    seeds, firsts = np.array([6], np.uint64), [0, *cuts]
    views = [pieces[:, a:b] for a, b in pairwise([*firsts, 9000])]
    call = arrays({**ONE, "directions": [1, 2], "coefficients": [[0.2], [0.01]], "grid": 0.0})
    gpu.Launch([whole], [whole], [9], [0], seeds, kind == "rademacher")(**call)
    gpu.Launch(views, views, [9] * len(views), firsts, seeds, kind == "rademacher")(**call)
    assert torch.equal(whole, pieces)


def test_what_is_undone_comes_back_to_the_bit() -> None:
    """On the grid of a representable sigma; the weights after a step do not know how they were
    probed.
    """
    sigma, seeds = 2.0**-10, [5]
    weights = tensors(torch.float32)
    call = launch("rademacher", weights, weights, seeds)
    rest = {"scales": np.ones(1), "step": 0}
    call(np.array([0]), np.zeros((1, 1)), grid=sigma, **rest)
    before = [w.clone() for w in weights]
    call(np.array([8]), np.array([[sigma]]), **rest)
    call(np.array([8, 2]), np.array([[-sigma], [-sigma]]), undone=1, **rest)
    assert largest_difference(weights, before) == sigma
    call(np.array([2]), np.array([[sigma]]), undone=1, **rest)
    assert largest_difference(weights, before) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_without_neighbours_pass_unharmed(dtype: torch.dtype) -> None:
    """Infinities, NaN, zeros, and the largest and smallest numbers."""
    limits, smallest = torch.finfo(dtype), torch.finfo(dtype).smallest_normal
    values = [
        torch.inf,
        -torch.inf,
        torch.nan,
        0.0,
        -0.0,
        limits.max,
        -limits.max,
        smallest,
        -smallest * limits.eps,
    ]
    weights = torch.tensor([values], dtype=torch.float64).to(DEVICE, dtype)
    before, nothing = (
        weights.clone(),
        {"directions": [], "coefficients": np.zeros((0, 1)), "scales": [1.0], "step": 0},
    )
    call = gpu.Launch([weights], [weights], [0], [0], np.array([1], np.uint64), True)
    call(**arrays(nothing))
    assert torch.equal(weights.nan_to_num(1.0), before.nan_to_num(1.0))
    if dtype != torch.float16:  # whose smallest numbers are rounded upwards, so -0 is 0
        assert torch.equal(weights.signbit()[:, 3:5], before.signbit()[:, 3:5])
    assert bool(weights[0, 2].isnan())
    call(**arrays({**nothing, "scales": [0.7]}))
    right = combined("rademacher", before, 0, 0, [1], {**nothing, "scales": [0.7]})
    assert torch.equal(weights.nan_to_num(1.0), right.nan_to_num(1.0))
    # A GPU's own NaN, to whose bits nothing can be added.
    call(**arrays({**nothing, "scales": [np.int64((1 << 63) - 1).view(np.float64)]}))
    assert bool(weights.isnan().all())


def test_all_parameters_share_one_launch_with_the_same_arguments_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a CUDA graph may hold the launch: what a call says lies in memory that `write` fills."""
    launches: list[tuple[Any, ...]] = []
    kernel: Any = gpu.combine

    class Seen:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def run(*arguments: Any, **settings: Any) -> None:
                addresses = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
                launches.append((grid, addresses, settings))
                kernel[grid](*arguments, **settings)

            return run

    monkeypatch.setattr(gpu, "combine", Seen())
    weights, seeds = tensors(torch.float32), [5]
    call = launch("rademacher", weights, weights, seeds)
    expected = weights
    for said in (CALLS["undone and three more"], ONE, {**ONE, "step": 5, "scales": [0.5]}):
        expected = wanted("rademacher", expected, seeds, said)
        call.write(**arrays(said))
        call.launch()
    assert largest_difference(weights, expected) == 0
    assert len(launches) == 3
    assert launches[0] == launches[1] == launches[2]
    assert launches[0][2]["enable_fp_fusion"] is False


def test_nothing_to_do_is_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "combine", None)
    empty = torch.empty(1, 0, device=DEVICE)
    launch = gpu.Launch([empty], [empty], [0], [128], np.array([1], np.uint64), True)
    assert launch(**arrays(ONE)) is None  # a launch would have called None


# ---- through the optimizers ----------------------------------------------------------------------


def trained(
    make: Any, dtype: torch.dtype, shapes: list[tuple[int, ...]], **settings: Any
) -> list[Tensor]:
    parameters = [
        nn.Parameter(randn(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(shapes)
    ]
    groups = [{"params": parameters[:1], "sigma": 0.01}, {"params": parameters[1:]}]
    optimizer = make(groups, **settings)
    fleet = len(settings["seed"]) if isinstance(settings.get("seed"), list) else None
    for _ in range(3):
        optimizer.step(
            lambda: sum((p.double() ** 2).reshape(fleet or 1, -1).sum(1) for p in parameters)
        )
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (WeightPerturbation, {"directions": 3, "weight_decay": 5.0}),
        (WeightPerturbation, {"seed": [4, 9], "directions": 2}),
        (Dopamine, {}),
    ],
    ids=["decay", "fleet", "Dopamine"],
)
def test_optimizers_end_at_the_bits_of_the_torch_path(
    make: Any, settings: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(2, 700), (2, 3, 5), (2, 33)]
    monkeypatch.setattr(backends, "fast_kernels", lambda: None)
    monkeypatch.setattr(backends, "TRITON_DEVICES", ())
    slow = trained(make, dtype, shapes, **settings)
    used = watched(monkeypatch)
    fast = trained(make, dtype, shapes, **settings)
    for a, b in zip(slow, fast, strict=True):
        assert torch.equal(a, b)
    assert used


def watched(monkeypatch: pytest.MonkeyPatch) -> list[gpu.Launch]:
    """Send noise to Triton on whatever device there is, and write down each use."""
    used: list[gpu.Launch] = []
    plain = gpu.Launch.launch
    monkeypatch.setattr(backends, "TRITON_DEVICES", (DEVICE,))
    monkeypatch.setattr(gpu.Launch, "launch", lambda self: (used.append(self), plain(self)))
    return used


def test_a_large_model_is_perturbed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dopaminergic.weights.layout.SAVED_BYTES", 100)
    monkeypatch.setattr(backends, "fast_kernels", lambda: None)
    monkeypatch.setattr(backends, "TRITON_DEVICES", ())
    slow = trained(WeightPerturbation, torch.float32, [(700,), (3, 5)])
    used = watched(monkeypatch)
    fast = trained(WeightPerturbation, torch.float32, [(700,), (3, 5)])
    assert largest_difference(slow, fast) == 0
    # Two groups, three steps, one pass out and one back, which also updates; one before, if there
    # is a grid.
    assert len(used) in (12, 14)


def strided(dtype: torch.dtype, replicas: int) -> list[Tensor]:
    """Transposed, with channels last, every other column of a piece that begins within a block, and
    without gaps.
    """
    shapes = [(20, 66), (3, 5, 3, 3), (7, 300), (300,)]
    whole = [randn(replicas, *shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    last = torch.stack([image.contiguous(memory_format=torch.channels_last) for image in whole[1]])
    return [whole[0].mT, last, whole[2][..., ::2], whole[3]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("wide", [False, True])
def test_other_strides_get_the_bits_of_their_elements(
    dtype: torch.dtype, replicas: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one launch; sources and targets need not have the same strides."""
    places = {
        "parameters": [2, 0, 3, 4],
        "firsts": [0, 5, 4094, 128],
        "seeds": np.array([3, 9][:replicas], np.uint64),
    }
    sources, seeds = strided(dtype, replicas), [3, 9][:replicas]
    call = {**CALLS["undone and three more"], "scales": [0.5] * replicas}
    call["coefficients"] = [row * replicas for row in call["coefficients"]]
    flat = zip(sources, places["firsts"], places["parameters"], strict=True)
    expected = [
        combined("rademacher", s.reshape(replicas, -1), first, p, seeds, call)
        for s, first, p in flat
    ]
    contiguous = [torch.full(s.shape, torch.nan, device=DEVICE).to(dtype) for s in sources]
    for targets in (contiguous, sources):
        own, other = (
            [t if replicas > 1 else t[0] for t in tensors] for tensors in (targets, sources)
        )
        run = gpu.Launch(own, other, signs=True, **places)
        assert (run.dims, run.narrow) == (3, True)
        run.narrow = not wide
        run(**arrays(call))
        for got, right in zip(targets, expected, strict=True):
            assert torch.equal(got.reshape(replicas, -1), right)


def test_transposed_weights_of_an_optimizer_take_no_torch_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step() -> Tensor:
        w = nn.Parameter(randn(20, 30).T)
        WeightPerturbation([w], sigma=0.1, seed=2).step(lambda: (w**2).sum())
        return w.detach()

    monkeypatch.setattr(backends, "fast_kernels", lambda: None)
    slow, used = step(), watched(monkeypatch)
    assert torch.equal(step(), slow)
    assert used


def test_without_triton_the_torch_path_takes_over_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "TRITON_DEVICES", (DEVICE,))
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    backends.triton_launch.cache_clear()
    with caplog.at_level(logging.WARNING, "dopaminergic"):
        for _ in range(2):
            trained(WeightPerturbation, torch.float32, [(7,), (3, 5)])
    backends.triton_launch.cache_clear()
    (line,) = [r.getMessage() for r in caplog.records if "triton" in r.getMessage()]
    assert "pip install triton" in line


# ---- compiled ------------------------------------------------------------------------------------

COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dopaminergic.noise.gpu import launch as gpu
names = ("replicas", "dtype", "signs", "aligned", "tile", "dims", "narrow")
signature = {"table": "*i64", "owners": "*i32", "seeds": "*i64", "numbers": "*i64",
    **dict.fromkeys(names, "constexpr")}
kinds = [(True, gpu.tl.float32, 0), (True, gpu.tl.float16, 0), (True, gpu.tl.float64, 0),
    (False, gpu.tl.uint16, 0)]
for signs, dtype, dims in [*kinds, (True, gpu.tl.float32, 3)]:
    constants = dict(zip(names, (1, dtype, signs, dims == 0, gpu.TILE, dims, True), strict=True))
    source = ASTSource(gpu.combine, signature, constants)
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=gpu.OPTIONS).asm["ptx"]
    sums = [line.split()[0] for line in text.splitlines() if ".f32 " in line or ".f64 " in line]
    print(signs, dtype, dims, "ld.global.v4.b32" in text or "ld.global.v2.b64" in text,
        *sorted(set(sums)))
"""


def test_it_compiles_for_a_gpu_without_fused_products(tmp_path: Path) -> None:
    """No GPU is needed to compile. A weight's sum is never fused, nor are its smallest numbers
    flushed to zero.
    """
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", COMPILE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == 5
    for signs, dtype, dims, wide, *operations in lines:
        assert dims != "0" or wide == "True", f"{dtype}: weights are not moved 16 bytes at once"
        real = "f64" if dtype == "fp64" else "f32"
        assert f"add.rn.{real}" in operations
        assert not [o for o in operations if o.startswith(("fma", "mad")) and ".ftz" not in o]
        # The logarithm and the circle functions of normals, which come compiled, may fuse and
        # flush.
        assert signs == "False" or not [o for o in operations if ".ftz" in o]
        assert not [o for o in operations if o.startswith("add") and ".ftz" in o]
