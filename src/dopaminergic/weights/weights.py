"""Weights that are perturbed, restored and updated, and are never left in between.

    begin(step) -> move(terms) -> evaluate(closure), both for each point -> update(terms, scales)

Directions are never stored: a term is a direction's number with multiples of it, see `noise`. There
are three ways to and back from a perturbation, chosen by size and dtype in `layout`: `copied`,
`in_place` and `on_use`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from dopaminergic import checks
from dopaminergic.noise import UPDATE, Multiple, Term, perturbation
from dopaminergic.weights import footing
from dopaminergic.weights.arrangement import Arrangement
from dopaminergic.weights.interruption import uninterrupted


class Weights(Arrangement):
    """The trainable tensors of an optimizer's groups during a step.

    For the arguments see `Arrangement`.

    Attributes:
        step: the number of the step.
    """

    step = 0
    _commit: Callable[[], None] | None = None  # of an update that has begun

    @property
    def in_place(self) -> bool:
        """Whether any weights are displaced in place."""
        return bool(self._in_place.pieces)

    @property
    def displaced(self) -> bool:
        """Whether any of them are displaced at the moment."""
        return self._in_place.displaced

    @property
    def unfinished(self) -> bool:
        """Whether an update was interrupted where there was no way back; `restore` completes it."""
        return self._on_use.unfinished

    # ---- a step ----------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Look at the parameters as they are now; afterwards all attributes are up to date.

        Weights that are perturbed in place by signs are brought onto the grid of sigma, if they do
        not lie there.
        """
        if self._in_place.pieces and self._in_place.displaced:
            self.restore(self.step)  # the last step could not, for example for lack of memory
        self.step = step
        if not self._is_arranged():
            self._arrange()
        for way in self._ways:
            way.begin(step)

    def begin_again(self, step: int) -> bool:
        """Begin where the weights of one model lie as `begin` saw them last, in less time.

        Returns:
            False, and nothing has begun, where that cannot be told; call `begin` then.
        """
        if self._look is None or not self._look.is_same_at_a_glance():
            return False
        if self._in_place.pieces and self._in_place.displaced:
            return False
        self.step = step
        for way in self._ways:
            way.begin(step)
        return True

    def move(self, terms: list[Term], *, as_update: bool = False) -> None:
        """Displace the weights by `terms`, measured from the weights at `begin`.

        Args:
            terms: the steps along each direction.
            as_update: 16-bit weights are rounded as `update` would round them.
        """
        self.check()
        rounding = UPDATE if as_update else perturbation(terms[0][0])
        for way in self._ways:
            way.move(terms, rounding)

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        """Call a closure at the weights as they are displaced, and return its result.

        `extra` counts evaluations beyond this one. For example, the first perturbed evaluation of a
        large 16-bit model is repeated as a check.
        """
        if not self._on_use.parts:
            return closure()
        found, why = self._on_use.evaluate(closure, self.generators)
        return self._evaluate_with_copies(closure, why) if why else found

    def restore(self, step: int) -> None:
        """Bring the weights back to where `step` began; harmless if they are there."""
        self._on_use.restore(step)
        if not self.unfinished:
            self.check()
        with uninterrupted():
            if self.unfinished:
                self._on_use.finish()
                self._settle()
                return
            self._copied.restore(step)
            self._in_place.restore(step)

    def update(
        self,
        terms: list[Term],
        scales: list[Multiple] | None,
        commit: Callable[[], None],
    ) -> None:
        """Restore and, in the same pass, set the weights to scale * weights + terms.

        Args:
            terms: the steps along each direction.
            scales: a factor for each group, which weight decay makes; None for ones.
            commit: called once all weights are written. After an interruption before it, `restore`
                brings the old weights back; after it the step has happened.
        """
        self.check()
        self._copied.update(terms, scales)
        if not self._in_place.pieces and not self._on_use.parts:
            commit()
            return
        with uninterrupted():
            self._commit = commit
            self._in_place.update(terms, scales)
            self._on_use.update(terms, scales)
            self._settle()

    def _settle(self) -> None:
        # Before `commit`, which tells listeners; they may raise, and the update is complete.
        self._in_place.settle()
        commit = self._commit
        self._commit = None
        if commit is not None:
            commit()

    def leave(self) -> None:
        """End an evaluation that may have been interrupted; harmless at any time."""
        self._on_use.leave()

    @property
    def extra(self) -> int:
        """Evaluations beyond those that `evaluate` was asked for, since `count_anew`."""
        return self._on_use.extra

    def count_anew(self) -> None:
        """Let `extra` be 0."""
        self._on_use.extra = 0

    # ---- code of others, which may do anything to the weights ------------------------------------

    def check(self) -> None:
        """Look whether the weights still lie where they lay, after code of others has run.

        Where they do not, they are brought back in the memory that they have now, and the step goes
        on there.

        Raises:
            RuntimeError: a parameter has lost its memory or its shape; all others are those before
                the step.
        """
        if not footing.stand(self._places):
            self._regain()
        elif self._in_place.pieces and self._in_place.is_written_to():
            if self.displaced:
                self._take_back_after_writing()
            else:
                self.copy_from_now_on()

    def copy_from_now_on(self) -> None:
        """Keep a copy of all weights during a step; a displacement stays as it is."""
        terms = self._in_place.terms
        self._take_back_and_copy()
        if terms is not None:
            self.move(terms)

    def _take_back_and_copy(self) -> None:
        """Undo a displacement in place, and keep a copy of all weights from here on."""
        with uninterrupted():
            self._in_place.restore(self.step)
        self.keep_copies = True
        self._look = None
        self.begin(self.step)

    def _take_back_after_writing(self) -> None:
        """Keep copies since the closure wrote to displaced weights: there is no exact way back."""
        self._take_back_and_copy()
        warnings.warn(
            f"{self.rule}: the closure wrote to weights while they were perturbed (max_norm, "
            "clipping or a quantiser in its forward pass?). They were taken back to within about "
            "sigma; from now on a copy of the weights is kept during a step",
            RuntimeWarning,
            stacklevel=checks.levels_up(),
        )

    def _regain(self) -> None:
        """Bring weights back that lie elsewhere now, and go on there."""
        with uninterrupted():
            lost = [*self._copied.regain(self.step), *self._in_place.regain()]
        self._look = None
        self._places = []
        if lost:
            raise RuntimeError(
                f"{self.rule}: the closure moved weights away while they were perturbed: "
                f"{lost[0]}. All others are those before the step; move, cast or free a model "
                "between steps only"
            )
        self.begin(self.step)

    def _evaluate_with_copies(self, closure: Callable[[], Any], why: str) -> Any:
        """Copy weights from now on, for a closure that cannot be given perturbed ones on use."""
        on_use = self._on_use
        on_use.extra += 1
        held = on_use.held
        try:
            on_use.found_out.refused = True
            self._look = None
            self.restore(self.step)
            self.begin(self.step)
            if held is not None:
                terms, rounding = held
                self.move(terms, as_update=rounding == UPDATE)
            found = closure()
        except BaseException:  # the closure itself is at fault
            on_use.found_out.refused = False
            self._look = None
            raise
        on_use.say_that_it_is_refused(self.rule, why)
        return found

    # ---- journals --------------------------------------------------------------------------------

    def trace_to(self, reader: list[list[Term]]) -> None:
        """Append all terms to a list that are written in place, those of updates left out.

        Such writes are not undone to the bit, so that a journal needs them.
        """
        self._in_place.readers.append(reader)

    def stop_tracing_to(self, reader: list[list[Term]]) -> None:
        """Append nothing to this list any more; harmless where nothing was."""
        readers = self._in_place.readers
        readers[:] = [each for each in readers if each is not reader]

    def repeat(self, traces: list[list[Term]]) -> None:
        """Write as a recorded step wrote, together with the `update` or `restore` that follows."""
        with uninterrupted():
            self._in_place.repeat(traces)
