"""Train neural networks with nothing but forward passes."""

from dopaminergic._version import __version__
from dopaminergic.baselines import SPSA, EvolutionStrategy, WeightPerturbation
from dopaminergic.dopamine import Dopamine, Dopamine2
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Outcome, cross_entropy, outcome, squared_error

__all__ = [
    "SPSA",
    "Dopamine",
    "Dopamine2",
    "EvolutionStrategy",
    "ForwardOptimizer",
    "Outcome",
    "WeightPerturbation",
    "__version__",
    "cross_entropy",
    "outcome",
    "squared_error",
]
