"""Steps that see nothing: passes are paid, no loss answers to a perturbation, and nothing moves.

Ten such steps in a row are told once. Where the library chose sigma itself, it looks farther: sigma
is doubled in each step until a loss answers. It is doubled again after ten silent steps more than
others. This happens, for example, with a simulator that has thresholds.
"""

from __future__ import annotations

import math

from dopaminergic.weights import Weights

PATIENCE = 10  # silent steps before a warning
# Of a perturbation of one weight, in units of the root mean square of the weights, at least of 1.
FARTHEST = 1.0


def warning(rule: str, sigma: float) -> str:
    """Text for a user whose losses do not answer."""
    return (
        f"{rule}: in {PATIENCE} steps no loss answered to a perturbation (sigma={sigma:.3g}). Is "
        "sigma too small, are predictions made outside the closure, or do these parameters not "
        "belong to the model any more (replaced, merged, copied)? Pass a larger sigma, or make the "
        "optimizer anew"
    )


def farthest(weights: Weights) -> float:
    """How far a perturbation may move one weight."""
    count = sum(weights.sizes)
    squares = float(weights.squares(1).sum())
    size = math.sqrt(squares / max(1, count))
    return FARTHEST * max(1.0, size) if math.isfinite(size) else 0.0
