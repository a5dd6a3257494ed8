"""The weights of a step: perturbed, restored and updated, and never left in between."""

from dopaminergic.weights.layout import KIND
from dopaminergic.weights.on_use import FoundOut
from dopaminergic.weights.weights import Weights

__all__ = ["KIND", "FoundOut", "Weights"]
