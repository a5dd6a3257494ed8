"""One evaluation of a closure, and all that must be in order around it.

    forget autocast's casts -> call -> keep the buffers of the first call, put them back after each
    other one

The first step also finds the buffers, the 16-bit dtypes of autocast, and whether the closure writes
to weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from dopaminergic import autocast
from dopaminergic.buffers import Buffers
from dopaminergic.complaints import is_complaint
from dopaminergic.outcomes import Closure
from dopaminergic.weights import Weights
from dopaminergic.weights.modes import random_states, rewind
from dopaminergic.weights.writes import WriteWatch, Written


class Evaluation:
    """The closure of one step; a call evaluates it.

    Args:
        closure: the user's closure.
        weights: those that the closure may write to.
        buffers: those of its modules.
        tell_casts: called in the first step, with the 16-bit dtypes in which the closure computes.
        rule: the optimizer's name, for the log.
    """

    def __init__(
        self,
        closure: Closure,
        weights: Weights,
        buffers: Buffers,
        tell_casts: Callable[[set[torch.dtype]], None],
        rule: str,
    ) -> None:
        self._closure = closure
        self._weights = weights
        self._buffers = buffers
        self._tell_casts = tell_casts
        self._rule = rule
        self._unknown = not buffers.known  # this is the first step
        if buffers.known:
            buffers.begin()

    def __call__(self) -> Any:
        """Call the closure, and return its result."""
        autocast.forget_casts()
        first = not self._buffers.kept
        try:
            return self._call_first() if first else self._call()
        finally:
            autocast.forget_casts()
            if not first:
                self._buffers.put_back()

    def _call_first(self) -> Any:
        buffers = self._buffers
        if buffers.known:
            found = self._call()
        else:
            with buffers.found(), autocast.watched() as casts:
                found = self._call()
            self._tell_casts(casts)
        buffers.keep()
        return found

    def _call(self) -> Any:
        if self._unknown and self._weights.in_place:
            return self._call_and_look_for_writes()
        return self._closure()

    def _call_and_look_for_writes(self) -> Any:
        """Call the closure, and look whether it writes to weights that are perturbed in place.

        If it does, copies of them are kept from now on.
        """
        weights = self._weights
        states = random_states(weights.generators)
        watch = WriteWatch(
            (place.storage.data_ptr() for place in weights.memory), stop=weights.displaced
        )
        try:
            with watch:
                returned = self._closure()
        except Written:
            returned = None
        except Exception as error:
            if not is_complaint(error):
                raise
            # Code that torch cannot watch, for example compiled as one graph, is trusted.
            rewind(states)
            return self._closure()
        if not watch.seen:
            return returned
        logging.getLogger(__name__).warning(
            "%s: the closure writes to weights in its forward pass (max_norm, clipping, a "
            "quantiser?), so a copy of them is kept during a step",
            self._rule,
        )
        stopped = weights.displaced
        weights.copy_from_now_on()
        if not stopped:
            return returned
        rewind(states)
        return self._closure()
