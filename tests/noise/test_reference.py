"""The definition of the noise: published vectors, and what makes directions directions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dopaminergic.noise import reference

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
PLACES = ("seed", "step", "direction", "parameter")
STANDARD_ERRORS = 5.0


def place(vector: dict[str, Any]) -> dict[str, int]:
    return {key: vector[key] for key in PLACES}


@pytest.mark.parametrize("vector", VECTORS["philox4x32-10"])
def test_known_answers_of_random123(vector: dict[str, list[str]]) -> None:
    """The three that Salmon et al. distribute (kat_vectors of Random123)."""
    c0, c1, c2, c3 = (torch.tensor(int(x, 16)) for x in vector["counter"])
    k0, k1 = (torch.tensor(int(x, 16)) for x in vector["key"])
    got = reference.philox((c0, c1, c2, c3), (k0, k1))
    assert [f"{int(word):08x}" for word in got] == vector["words"]


@pytest.mark.parametrize("vector", VECTORS["rademacher"])
def test_published_signs(vector: dict[str, Any]) -> None:
    signs = reference.rademacher(128, **place(vector))
    assert "".join("+" if z > 0 else "-" for z in signs) == vector["signs"]
    assert signs.abs().eq(1).all()


@pytest.mark.parametrize("vector", VECTORS["gaussian"])
def test_published_normals(vector: dict[str, Any]) -> None:
    normals = reference.gaussian(8, **place(vector))
    # The vectors are the exact formula, rounded to float64.
    torch.testing.assert_close(
        normals.double(), torch.tensor(vector["normals"]).double(), rtol=2.0**-24, atol=0
    )


@pytest.mark.parametrize("vector", VECTORS["halves"])
def test_published_halves(vector: dict[str, Any]) -> None:
    assert reference.halves(16, **place(vector)).tolist() == vector["halves"]


@pytest.mark.parametrize("vector", VECTORS["thresholds"])
def test_published_thresholds(vector: dict[str, Any]) -> None:
    assert reference.thresholds(16, **place(vector)).tolist() == vector["thresholds"]


def test_thresholds_are_uniform_in_a_step_and_even_from_step_to_step() -> None:
    n, steps = 4096, 300
    found = (
        torch.stack([reference.thresholds(n, seed=3, step=step) for step in range(steps)]) / 65536
    )
    error = STANDARD_ERRORS / math.sqrt(12 * n)
    assert float((found.mean(1) - 0.5).abs().max()) < error
    for share in (0.01, 0.1, 0.37):
        for hits in (found < share, found >= 1 - share):
            assert float((hits.double().mean(1) - share).abs().max()) < STANDARD_ERRORS * math.sqrt(
                share / n
            )
            # At random some would be 20 off.
            assert float((hits.sum(0) - share * steps).abs().max()) < 3


@pytest.mark.parametrize(
    ("draw", "block"),
    [(reference.rademacher, 128), (reference.gaussian, 4), (reference.thresholds, 8)],
)
@pytest.mark.parametrize("n", [1, 3, 127, 129, 1000])
def test_any_chunks_give_the_same_numbers(draw: Any, block: int, n: int) -> None:
    whole = draw(n, seed=3, step=5, direction=2, parameter=1)
    cut = min(n // 2 // block * block, n)
    parts = [
        draw(cut, seed=3, step=5, direction=2, parameter=1),
        draw(n - cut, seed=3, step=5, direction=2, parameter=1, first=cut),
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("draw", [reference.rademacher, reference.gaussian, reference.thresholds])
def test_a_tensor_of_seeds_is_each_seed_on_its_own(draw: Any) -> None:
    seeds = [0, 7, (1 << 63) - 1]
    together = draw(200, seed=torch.tensor(seeds), step=4, parameter=2)
    alone = [draw(200, seed=seed, step=4, parameter=2) for seed in seeds]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("draw", [reference.rademacher, reference.gaussian])
@pytest.mark.parametrize("what", PLACES)
def test_directions_at_different_places_are_uncorrelated(draw: Any, what: str) -> None:
    """The inner product of two of n numbers has mean 0 and standard deviation sqrt(n)."""
    n, many = 512, 40
    fixed = {key: 1 for key in PLACES if key != what}
    z = torch.stack([draw(n, **fixed, **{what: i}) for i in range(many)]).double()
    products = (z @ z.T)[*torch.triu_indices(many, many, 1)] / math.sqrt(n)
    count = products.numel()
    assert abs(float(products.mean())) < STANDARD_ERRORS / math.sqrt(count)
    # The variance of a standard normal's square is 2; a product of directions is one but for terms
    # in 1/n.
    assert abs(float((products**2).mean()) - 1) < STANDARD_ERRORS * math.sqrt(2 / count)
    assert float(products.abs().max()) < 5.5  # no pair shares its numbers: that would be sqrt(512)


def test_seeds_that_differ_in_high_bits_differ() -> None:
    assert not torch.equal(
        reference.rademacher(64, seed=1, step=0),
        reference.rademacher(64, seed=1 + (1 << 40), step=0),
    )


def test_streams_share_no_words() -> None:
    words = {int(w) for s in range(4) for w in reference.words(64, seed=0, stream=s, step=0)}
    assert len(words) >= 4 * 256 - 2  # a rare coincidence of two 32-bit words is allowed


def test_moments_of_signs_and_normals() -> None:
    n = 200_000
    signs = reference.rademacher(n, seed=9, step=0).double()
    assert abs(float(signs.mean())) < STANDARD_ERRORS / math.sqrt(n)
    normals = reference.gaussian(n, seed=9, step=0).double()
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        error = STANDARD_ERRORS * math.sqrt(variance / n)
        assert abs(float((normals**power).mean()) - moment) < error, power


def test_normals_are_finite_up_to_the_documented_cut() -> None:
    """The smallest radius uniform is 2^-24, whose normal has length 5.77."""
    assert math.sqrt(-2 * math.log(2.0**-24)) == pytest.approx(5.77, abs=0.005)
    assert float(reference.gaussian(1 << 20, seed=0, step=0).abs().max()) < 5.77


def test_integers_are_uniform() -> None:
    n, high = 60_000, 7
    counts = torch.bincount(reference.integers(n, high, seed=5, step=2), minlength=high).double()
    assert counts.numel() == high
    chi_square = float(((counts - n / high) ** 2 / (n / high)).sum())
    assert chi_square < (high - 1) + STANDARD_ERRORS * math.sqrt(2 * (high - 1))


def test_integers_of_one_step_are_told_apart() -> None:
    a, b = (reference.integers(64, 1000, seed=5, step=2, parameter=i) for i in (0, 1))
    assert not torch.equal(a, b)
    several = reference.integers(64, 1000, seed=torch.tensor([5, 6]), step=2)
    assert torch.equal(several[0], a)


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    reference.gaussian(100, seed=0, step=0)
    reference.rademacher(100, seed=0, step=0)
    assert torch.equal(torch.get_rng_state(), before)
