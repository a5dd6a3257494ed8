"""Optimizers that perturb weights: how weights and batches belong to a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch

from dopaminergic import checks, silence, states
from dopaminergic.batched import MEMORY, Batched
from dopaminergic.evaluation import Evaluation
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Closure
from dopaminergic.progress import Change
from dopaminergic.weights import FoundOut, Weights


class WeightOptimizer(ForwardOptimizer):
    """Base of `ScalarRule` and `VectorDopamine`; its weights are kept by `Weights`."""

    shares_sigma = False  # `sigma` is the length of a perturbation of all weights together
    default_sigmas = (1e-3, 1e-2)  # without and with 16-bit weights

    @property
    def weights(self) -> Weights:
        """The weights as steps move them, for journals; new ones after a state was loaded."""
        return self._weights

    def _prepare(self, loaded: states.Loaded | None) -> None:
        self._unchanged = False  # the weights lie as the last step saw them
        self._chosen_casts: set[torch.dtype] | None = None  # those that sigma was chosen for
        self._chosen_doublings = 0
        self._found_on_use = FoundOut(**(loaded.on_use if loaded else {}))
        self._weights = self._make_weights()
        self._batched = self._make_batched(**(loaded.batched if loaded else {}))

    def _default_sigma(self, params: Any, casts: Collection[torch.dtype] = ()) -> float:
        return self.default_sigmas[bool(casts) or checks.any_16_bits(params)]

    def _choose_again(self) -> None:
        """Choose sigma for the weights and the closure as they are now.

        A sigma that the user gave is kept.
        """
        chosen = self._progress.chosen_sigma
        doublings = self._progress.doublings
        casts: Collection[torch.dtype] = self._casts
        if self._progress.step and not self._buffers.known:
            casts = self._casts_of_state(chosen, doublings)
        self._chosen_casts = self._casts
        self._chosen_doublings = doublings
        if not chosen:
            return
        sigma = self._default_sigma(self.param_groups, casts) * 2.0**doublings
        if sigma == chosen:
            return
        self._unchanged = False
        for group in self.param_groups:
            if group["sigma"] == chosen:
                group["sigma"] = sigma
        self._progress = self._progress._replace(chosen_sigma=sigma)

    def _casts_of_state(self, chosen: float, doublings: int) -> Collection[torch.dtype]:
        """Casts that the sigma of a loaded state fits; the closure tells its own later."""
        for casts in ((), (torch.bfloat16,), (torch.float16,)):
            sigma = self._default_sigma(self.param_groups, casts)
            if chosen in [sigma * 2.0**k for k in range(doublings + 1)]:
                return casts
        return self._casts

    def _make_weights(self) -> Weights:
        seeds = self.settings["seed"] if self._fleet else [self.settings["seed"]]
        seeds = np.array(seeds, np.uint64)
        # In place, Gaussian directions are taken back only up to rounding. Each rank takes back
        # other directions, so its weights would differ.
        keep = (
            self.settings["noise"] == "gaussian"
            and self._ranks is not None
            and self._ranks.shares > 1
        )
        return Weights(
            self.param_groups,
            seeds,
            self.settings["noise"],
            shared=self.shares_sigma,
            keep_copies=keep,
            found_out=self._found_on_use,
            rule=self._rule_name,
            replicas=self.replicas,
        )

    def _make_batched(self, *, checked: bool = False, refused: bool = False) -> Batched:
        return Batched(
            self._rule_name, self.settings.get("memory", MEMORY), checked=checked, refused=refused
        )

    def _get_ready(self) -> None:
        progress = self._progress
        self._unchanged = self._weights.begin_again(progress.step)
        if not self._unchanged and self._weights.unfinished:
            # The last step could not be completed, for example since memory ran out.
            self._undo(progress)
        # Sigma depends on the weights, on the closure's casts and on silence.
        known = self._casts is self._chosen_casts and progress.doublings == self._chosen_doublings
        if not (self._unchanged and known):
            self._choose_again()

    def _begin(self, step: int) -> None:
        self._weights.begin(step)

    def _watched(self, closure: Closure) -> Closure:
        def remember(casts: set[torch.dtype]) -> None:
            self._casts = casts

        self._weights.count_anew()
        return Evaluation(closure, self._weights, self._buffers, remember, self._rule_name)

    def _write(self, change: Change, commit: Callable[[], None]) -> None:
        self._weights.update(change.terms, change.scales, commit)

    def _leave(self) -> None:
        self._batched.leave()
        self._weights.leave()

    def _take_back(self, step: int) -> None:
        self._weights.restore(step)

    def _extra_passes(self) -> int:
        return self._weights.extra

    def _may_look_farther(self) -> bool:
        """Whether sigma may be doubled.

        It may where the library chose it, and while it is small beside the weights.
        """
        if not self._progress.chosen_sigma or self._fleet:
            return False
        return 2.0 * max(self._weights.sigmas, default=math.inf) <= silence.farthest(self._weights)

    def _found_out(self) -> dict[str, Any]:
        return {
            "batched": {"checked": self._batched.checked, "refused": self._batched.refused},
            "on_use": dataclasses.asdict(self._found_on_use),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "settings" in self.__dict__:
            self._weights = self._make_weights()
