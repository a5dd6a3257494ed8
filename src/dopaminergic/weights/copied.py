"""Way 1, for small models: a copy of the weights is kept while a step lasts.

Every write starts from the copy. Going back is exact to the bit and can be repeated, so that an
interruption at any moment is harmless. For example, `move` and then `restore` leave the bits that
`begin` found.
"""

from __future__ import annotations

from dopaminergic.noise import Combination, Multiple, Term
from dopaminergic.weights import footing
from dopaminergic.weights.layout import Part
from dopaminergic.weights.way import Way


class Copied(Way):
    """Weights with a copy, which the first write of a step makes."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[Part] = []
        self._combines: list[Combination] = []  # of the parts

    def arrange(self, parts: list[Part]) -> None:
        """Serve other weights from now on."""
        self._parts = parts
        self._combines = [part.combine for part in parts]

    def move(self, terms: list[Term], rounding: int) -> None:
        """See `Way`."""
        for combine in self._combines:
            combine(terms, None, self.step, rounding)

    def restore(self, step: int) -> None:
        """See `Way`.

        Copies of another step are no way back. This one was interrupted before it touched the
        weights.
        """
        for combine in self._combines:
            if combine.holds_copies_of(step):
                combine((), None, step)
                combine.forget_copies()

    def update(self, terms: list[Term], scales: list[Multiple] | None) -> None:
        """See `Way`."""
        for combine in self._combines:
            combine(terms, scales, self.step)

    def regain(self, step: int) -> list[str]:
        """Write the copies of a step to where the parameters lie now.

        Returns:
            A reason for each parameter where that cannot be done.
        """
        lost = []
        for part in self._parts:
            combine = part.combine
            if combine.holds_copies_of(step):
                pairs = zip(part.owners, combine.copies or [], strict=True)
                lost += [footing.put(p, copy) for p, copy in pairs]
                combine.forget_copies()
        return [why for why in lost if why]
