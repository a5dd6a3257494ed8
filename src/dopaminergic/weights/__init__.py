"""The weights of a step: perturbed, restored and updated, and never left in between."""

from dopaminergic.weights.weights import KIND, Weights

__all__ = ["KIND", "Weights"]
