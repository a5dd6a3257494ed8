"""Train neural networks with nothing but forward passes."""

from dopaminergic._version import __version__
from dopaminergic.baselines import SPSA, EvolutionStrategy, WeightPerturbation
from dopaminergic.diagnostics import EstimatorReport, check_estimator
from dopaminergic.distributed import Ranks, broadcast
from dopaminergic.dopamine import Dopamine, Dopamine2
from dopaminergic.journal import Journal, replay, revert
from dopaminergic.node import NodeDopamine, NodePerturbation
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Outcome, cross_entropy, outcome, squared_error
from dopaminergic.scalar_rule import ScalarRule
from dopaminergic.vector import VectorDopamine

__all__ = [
    "SPSA",
    "Dopamine",
    "Dopamine2",
    "EstimatorReport",
    "EvolutionStrategy",
    "ForwardOptimizer",
    "Journal",
    "NodeDopamine",
    "NodePerturbation",
    "Outcome",
    "Ranks",
    "ScalarRule",
    "VectorDopamine",
    "WeightPerturbation",
    "__version__",
    "broadcast",
    "check_estimator",
    "cross_entropy",
    "outcome",
    "replay",
    "revert",
    "squared_error",
]
