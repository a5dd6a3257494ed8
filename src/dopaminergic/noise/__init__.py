"""Directions: what z is, and how multiples of it are added to weights without z being stored.

`Combination` is the only way in which noise reaches a weight. It computes, for a group of
parameters,

    x = source;  x += undo_k z_k;  x *= scale;  x += coefficient_k z_k;  x = on_grid(x);  target = x

in this order. z comes from `reference` (the definition, torch), `cpu` (numba) or `gpu` (Triton).
The bits are the same, and the last two need one pass over memory.

16-bit weights are computed in float32 and rounded stochastically, so that small changes survive in
expectation. The errors of the thresholds partly cancel from step to step.

A grid lets signs that were added be taken back to the bit. Let sigma have 6 significant bits, and
|x| be a multiple of the last place of |x| + sigma. Then both x + sigma and x - sigma are exact as
long as |x| < 2^17 sigma (2^46 sigma in float64). `on_grid(x) = copysign((|x| + sigma) - sigma, x)`
is the nearest such x.
"""

from __future__ import annotations

from dopaminergic.noise.backends import fast_kernels, triton_launch
from dopaminergic.noise.combination import Combination
from dopaminergic.noise.in_torch import FAST_DTYPES, MANTISSA_BITS_DROPPED
from dopaminergic.noise.terms import UPDATE, Multiple, Term, perturbation

__all__ = [
    "FAST_DTYPES",
    "KINDS",
    "MANTISSA_BITS_DROPPED",
    "UPDATE",
    "Combination",
    "Multiple",
    "Term",
    "fast_kernels",
    "perturbation",
    "triton_launch",
]

KINDS = ("rademacher", "gaussian")
