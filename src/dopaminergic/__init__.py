"""Train neural networks with nothing but forward passes.

Names are loaded when they are first used, so that `import dopaminergic` and the help of the command
line do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dopaminergic._version import __version__

if TYPE_CHECKING:
    from dopaminergic.ask_tell import AskTell
    from dopaminergic.baselines import SPSA, EvolutionStrategy, WeightPerturbation
    from dopaminergic.diagnostics import EstimatorReport, check_estimator
    from dopaminergic.distributed import Ranks, broadcast
    from dopaminergic.dopamine import Dopamine, Dopamine2
    from dopaminergic.journal import Journal, replay, revert
    from dopaminergic.node import NodeDopamine, NodePerturbation
    from dopaminergic.node_diagnostics import NodeEstimatorReport
    from dopaminergic.optimizer import ForwardOptimizer
    from dopaminergic.outcomes import Outcome, cross_entropy, outcome, squared_error
    from dopaminergic.scalar_rule import ScalarRule
    from dopaminergic.vector import VectorDopamine

__all__ = [
    "SPSA",
    "AskTell",
    "Dopamine",
    "Dopamine2",
    "EstimatorReport",
    "EvolutionStrategy",
    "ForwardOptimizer",
    "Journal",
    "NodeDopamine",
    "NodeEstimatorReport",
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

# The public names, by the module that has them.
HOMES = {
    "ask_tell": ("AskTell",),
    "baselines": ("SPSA", "EvolutionStrategy", "WeightPerturbation"),
    "diagnostics": ("EstimatorReport", "check_estimator"),
    "distributed": ("Ranks", "broadcast"),
    "dopamine": ("Dopamine", "Dopamine2"),
    "journal": ("Journal", "replay", "revert"),
    "node": ("NodeDopamine", "NodePerturbation"),
    "node_diagnostics": ("NodeEstimatorReport",),
    "optimizer": ("ForwardOptimizer",),
    "outcomes": ("Outcome", "cross_entropy", "outcome", "squared_error"),
    "scalar_rule": ("ScalarRule",),
    "vector": ("VectorDopamine",),
}
_HOME_OF = {name: home for home, names in HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, or a module of the library, at its first use."""
    if name in _HOME_OF:
        found = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = found
        return found
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names of the module, and the public ones that are not loaded yet."""
    return sorted({*globals(), *__all__})
