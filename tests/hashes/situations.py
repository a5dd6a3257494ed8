"""The situations of the table: a cover of all triples of levels, and special ones that are listed
by name.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

VECTOR = "VectorDopamine"
RULES = ("Dopamine", "Dopamine2", VECTOR, "SPSA", "WeightPerturbation", "EvolutionStrategy")
TWO_SIDED = ("Dopamine", "Dopamine2")  # rules with an option of that name

LEVELS: dict[str, tuple[str, ...]] = {
    "rule": RULES,
    "dtype": ("float32", "float64", "bfloat16", "float16"),
    "size": ("small", "large"),  # large: in place, or on use with 16 bits
    "noise": ("rademacher", "gaussian"),
    "directions": ("K1", "K3"),
    "groups": ("1 group", "2 groups"),
    "mode": ("single", "fleet", "batched", "batched fleet"),
    "engine": ("numba", "torch"),
    "closure": ("number", "numpy", "samples", "squared", "custom"),
    "call": ("step", "probe"),
    "journal": ("unrecorded", "journal"),
    "change": ("constant", "decay", "schedule"),
    "layout": ("contiguous", "strided"),
    "draws": ("fixed", "draws"),
    "sides": ("default", "two-sided"),
}
ALWAYS_NAMED = 9  # levels; the others are named where they are not the first
SEED = 20261129
ENGINE = [*LEVELS].index("engine")
# The share of rows that take numba, where either serves: the reference takes ten times as long.
FASTER = 0.75
CANDIDATES = 12  # rows that are tried for each triple


class Situation(NamedTuple):
    """One row of the table: a level of each factor, and perhaps something special that happens."""

    rule: str
    dtype: str = "float32"
    size: str = "small"
    noise: str = "rademacher"
    directions: str = "K1"
    groups: str = "1 group"
    mode: str = "single"
    engine: str = "numba"
    closure: str = "number"
    call: str = "step"
    journal: str = "journal"
    change: str = "constant"
    layout: str = "contiguous"
    draws: str = "fixed"
    sides: str = "default"
    special: str = ""

    @property
    def name(self) -> str:
        """Its name in the table: all levels that must be known, parted by slashes."""
        parts = [*self[:ALWAYS_NAMED]]
        rest = zip(self[ALWAYS_NAMED:-1], list(LEVELS.values())[ALWAYS_NAMED:], strict=True)
        parts += [level for level, levels in rest if level != levels[0]]
        name = "/".join(parts).replace(" ", "-")
        return f"{self.special}:{name}" if self.special else name

    @property
    def fleet(self) -> bool:
        """Whether two models are trained at once."""
        return "fleet" in self.mode

    @property
    def batched(self) -> bool:
        """Whether directions are evaluated as one batch."""
        return "batched" in self.mode


def situations() -> list[Situation]:
    """All rows of the table, in its order."""
    return [*cover(), *specials()]


# ---- a cover of all triples ----------------------------------------------------------------------

Level = tuple[int, str]  # the number of a factor, and one of its levels


def possible(row: tuple[str, ...] | list[str]) -> bool:
    """Whether the levels go together: an option that a rule lacks cannot be set."""
    chosen = dict(zip(LEVELS, row, strict=True))
    if chosen["rule"] == VECTOR and "batched" in chosen["mode"]:
        return False
    return chosen["sides"] == "default" or chosen["rule"] in TWO_SIDED


def cover() -> list[Situation]:
    """Rows in which each three levels that can go together do so at least once; always the same
    ones.
    """
    draw = random.Random(SEED)
    missing = dict.fromkeys(_all_triples())
    rows: list[Situation] = []
    while missing:
        first = next(iter(missing))
        candidates = [_row_with(first, draw) for _ in range(CANDIDATES)]
        best = max(candidates, key=lambda row: sum(triple in missing for triple in _triples(row)))
        for triple in _triples(best):
            missing.pop(triple, None)
        rows.append(Situation(*best))
    return rows


def _triples(row: list[str]) -> Iterator[tuple[Level, ...]]:
    return itertools.combinations(enumerate(row), 3)


def _all_triples() -> Iterator[tuple[Level, ...]]:
    factors = list(LEVELS.values())
    for numbers in itertools.combinations(range(len(factors)), 3):
        for levels in itertools.product(*(factors[i] for i in numbers)):
            triple = tuple(zip(numbers, levels, strict=True))
            if _can_be_met(triple):
                yield triple


def _can_be_met(triple: tuple[Level, ...]) -> bool:
    """Whether some row has these levels; where the rule is open, one with every option is taken."""
    row = [levels[0] for levels in LEVELS.values()]
    for number, level in triple:
        row[number] = level
    return possible(row)


def _row_with(triple: tuple[Level, ...], draw: random.Random) -> list[str]:
    while True:
        row = [levels[int(draw.random() * len(levels))] for levels in LEVELS.values()]
        if draw.random() < FASTER:
            row[ENGINE] = "numba"
        for number, level in triple:
            row[number] = level
        if possible(row):
            return row


# ---- special situations --------------------------------------------------------------------------

# What happens in each is in `special.py`, by the same name.
MIXTURE = (
    {"dtype": "float64"},
    {"dtype": "float32", "size": "large"},
    {"dtype": "bfloat16", "size": "large", "directions": "K3"},
    {"dtype": "float16", "groups": "2 groups", "mode": "fleet"},
)
FOR_ALL_RULES = ("raising", "not-finite", "resumed", "loaded")
LARGE_BY_ITSELF = "above-1-MiB"  # without a knob
ONCE_A_RULE = (
    "moved",
    "frozen",
    "thawed",
    "added-group",
    "copied",
    "constant-loss",
    "infinite",
    "one-rank",
    "batch-norm",
    "max-norm",
    "alias",
    "mixed-dtypes",
    "hooked",
    LARGE_BY_ITSELF,
)
SINGLE_ONLY = (
    "constant-loss",
    "batch-norm",
    "max-norm",
    "mixed-dtypes",
    LARGE_BY_ITSELF,
    "added-group",
)


def specials() -> list[Situation]:
    """Situations that no level stands for."""
    rows: list[Situation] = []
    for special in FOR_ALL_RULES:
        for rule in RULES:
            # Each rule meets two of them, and each of them three rules.
            for i in (len(rows), len(rows) + 1):
                rows.append(Situation(rule, **MIXTURE[i % len(MIXTURE)], special=special))
    for first, special in enumerate(ONCE_A_RULE):
        for number, rule in enumerate(RULES):
            levels = {**MIXTURE[(first + number) % len(MIXTURE)]}
            if special in SINGLE_ONLY:
                levels.pop("mode", None)
            if special == LARGE_BY_ITSELF:
                levels["size"] = "large"
            rows.append(Situation(rule, **levels, special=special))
    return [*rows, *_specials_of_few_rules()]


def _specials_of_few_rules() -> list[Situation]:
    rows = [Situation(rule, mode="fleet", special="rates") for rule in ("Dopamine", "SPSA", VECTOR)]
    # Gaussian directions are taken back in place to rounding alone, so that a write that is lost
    # shows.
    rows += [
        Situation(rule, "float32", "large", "gaussian", special="broken-off") for rule in RULES
    ]
    rows += [Situation(rule, special="settings") for rule in (*TWO_SIDED, VECTOR)]
    rows += [
        Situation(rule, mode="batched", closure="samples", special="many")
        for rule in ("SPSA", "Dopamine2")
    ]
    rows += [Situation(VECTOR, closure="squared", special="many")]
    rows += [
        Situation(VECTOR, "float64", mode=mode, closure=closure, special="decay-from-noise")
        for mode, closure in (("single", "squared"), ("fleet", "samples"))
    ]
    rows += [Situation(rule, special="autocast") for rule in ("Dopamine", "WeightPerturbation")]
    rows += [
        Situation(rule, "float64", journal="unrecorded", special="estimator")
        for rule in ("Dopamine2", "SPSA")
    ]
    functional = ("Dopamine", "Dopamine2", "SPSA", "WeightPerturbation")
    return rows + [Situation(rule, journal="unrecorded", special="jax") for rule in functional]
