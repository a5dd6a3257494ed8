"""Way 2, for large float32 and float64 models: a displacement is taken back, at no memory.

| directions | going back                                                    |
|------------|---------------------------------------------------------------|
| Rademacher | exact to the bit for |w| < 2^17 sigma                         |
| Gaussian   | to a unit in the last place of the weight, for each direction |

For signs, sigma is rounded to 6 significant bits and the weights lie on its grid, see `noise`. The
first step brings them there, by at most half a unit in the last place of |w| + sigma. An update
leaves them there. The trial step of VectorDopamine is taken back like Gaussian directions. Signals
wait while the arithmetic runs, since it must not be done twice.
"""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from dopaminergic.noise import Combination, Multiple, Term
from dopaminergic.noise.terms import along_one, difference, equal, negative, nonzero, scaled
from dopaminergic.weights import footing
from dopaminergic.weights.interruption import uninterrupted
from dopaminergic.weights.layout import Part
from dopaminergic.weights.sharding import local
from dopaminergic.weights.way import Way

# So few bits give a large range of exact weights, and sigma is within 1.6 % of the given one.
SIGMA_BITS = 6

Displacement = tuple[list[Term], list[Multiple] | None]
AT_HOME: Displacement = ([], None)


@dataclasses.dataclass(slots=True)
class Piece:
    """Weights of one block.

    Each block has a displacement of its own, since an exception may come between two of them.

    Attributes:
        combine: writes to these weights.
        owners: the parameters that own the memory.
        displacement: terms and scales by which they differ from the weights at `begin`.
        waiting: terms that are still to be added, before all else.
    """

    combine: Combination
    owners: list[Tensor]
    displacement: Displacement = AT_HOME
    waiting: list[Term] = dataclasses.field(default_factory=list)

    @property
    def displaced(self) -> bool:
        """Whether they are anywhere else than at `begin`."""
        terms, scales = self.displacement
        return bool(self.waiting or terms) or scales is not None


class InPlace(Way):
    """Weights that are displaced where they lie.

    Attributes:
        pieces: the weights, in blocks.
        readers: lists to which `move` appends its terms, and `restore` an empty list. Such writes
            are not undone to the bit, so that a replay must do them too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Piece] = []
        self.readers: list[list[list[Term]]] = []
        # The weights lie on the grid of these sigmas; None: on no grid.
        self._grids: list[float] | None = None
        # Torch counts the writes to each tensor in its version.
        self._versions: list[float] = []
        self._untold = False  # torch counts no versions of some

    def arrange(self, parts: list[Part], grids: list[float] | None, *, untold: bool) -> None:
        """Serve other weights from now on, none of which are displaced."""
        self.pieces = [Piece(part.combine, part.owners) for part in parts]
        self._grids = grids
        self._versions = []
        self._untold = untold

    @property
    def displaced(self) -> bool:
        """Whether any weights are displaced at the moment."""
        return any(piece.displaced for piece in self.pieces)

    @property
    def terms(self) -> list[Term] | None:
        """The terms by which weights are displaced; None if they are not."""
        return next((piece.displacement[0] for piece in self.pieces if piece.displacement[0]), None)

    def begin(self, step: int) -> None:
        """See `Way`; weights that do not lie on the grid of sigma are brought onto it."""
        self.step = step
        if self._grids is None:
            self._versions = self._version_numbers()
        elif self._versions != self._version_numbers():
            with uninterrupted():
                self._write([], None, always=True)

    def move(self, terms: list[Term], rounding: int) -> None:
        """See `Way`; nothing is rounded at random here."""
        with uninterrupted():
            self._write(terms, None, onto_grid=False)
            self._tell(terms)

    def restore(self, step: int) -> None:
        """See `Way`; to be called while signals are held back, as all below."""
        if self.displaced:
            self._write([], None)
            self._tell([])

    def update(self, terms: list[Term], scales: list[Multiple] | None) -> None:
        """See `Way`; until `settle` the update can be taken back."""
        if self.displaced or terms or scales is not None:
            self._write(terms, scales)

    def settle(self) -> None:
        """Make the weights of the last update those at which all moves begin."""
        for piece in self.pieces:
            piece.displacement = AT_HOME

    def repeat(self, traces: list[list[Term]]) -> None:
        """Write as a recorded step wrote, together with the `update` or `restore` that follows.

        Nobody looks at the weights in between, so that sums along one direction draw it once.
        """
        for terms in traces:
            self._write(terms, None, onto_grid=not terms, wait=True)

    def is_written_to(self) -> bool:
        """Whether others have written to the weights, as far as torch tells."""
        return not self._untold and self._versions != self._version_numbers()

    def regain(self) -> list[str]:
        """Undo the displacement in the memory that was displaced, and copy it to the parameters.

        The memory is another than theirs where they were moved.

        Returns:
            A reason for each parameter where that cannot be done.
        """
        if not self.displaced:
            return []
        lost = []
        moved = []
        for piece in self.pieces:
            there = [footing.has_memory(t) for t in piece.combine.targets]
            pairs = list(zip(piece.owners, there, strict=True))
            gone = [tuple(p.shape) for p, found in pairs if not found]
            lost += [f"a parameter of shape {shape} has no memory any more" for shape in gone]
            if any(there):
                piece.combine = piece.combine.moved(there)
                piece.owners = [p for p, found in pairs if found]
                moved.append(piece)
            else:
                piece.displacement = AT_HOME
                piece.waiting = []
        self._grids = None  # a write brings weights back here, and not onto a grid
        self._write([], None)
        self._tell([])
        for piece in moved:
            for p, t in zip(piece.owners, piece.combine.targets, strict=True):
                if local(p).data_ptr() != t.data_ptr():
                    lost.append(footing.put(p, t))
        return [why for why in lost if why]

    def _tell(self, terms: list[Term]) -> None:
        for reader in self.readers:
            reader.append(terms)

    def _write(
        self,
        terms: list[Term],
        scales: list[Multiple] | None,
        *,
        onto_grid: bool = True,
        always: bool = False,
        wait: bool = False,
    ) -> None:
        """Weights <- scale * (weights at `begin`) + terms, block by block.

        Args:
            terms: the steps along each direction.
            scales: of the groups; None for ones.
            onto_grid: bring the weights onto the grid of sigma, if they have one.
            always: also where nothing is displaced.
            wait: write together with the next write, where that is possible.
        """
        grids = self._grids if onto_grid else None
        written = False
        for piece in self.pieces:
            undo, moves, factors = _way_there(piece.displacement, terms, scales, grids)
            undo = [*piece.waiting, *undo]
            to_grid = grids is not None and bool(piece.displacement[0] or always)
            if wait and factors is None and grids is None:
                piece.waiting = undo + nonzero(moves)
            elif moves or undo or factors is not None or to_grid:
                piece.combine(nonzero(moves), factors, self.step, undo=undo, grids=grids)
                piece.waiting = []
                written = True
            piece.displacement = terms, scales
        if written:
            self._versions = self._version_numbers()

    def _version_numbers(self) -> list[float]:
        if self._untold:
            return [
                float("nan")
            ]  # it equals no other, so each step brings the weights onto the grid
        return [t._version for piece in self.pieces for t in piece.combine.targets]


def _way_there(
    here: Displacement,
    terms: list[Term],
    scales: list[Multiple] | None,
    grids: list[float] | None,
) -> tuple[list[Term], list[Term], list[Multiple] | None]:
    """The terms and factors that lead from one displacement to another.

    Returns:
        Terms to undo, terms to add, and factors that come in between.
    """
    displaced, shrunk = here
    if shrunk is not None:
        # Restore, after an update that failed between two blocks: (w - terms) / scale.
        factors = [1.0 / s for s in shrunk]
        return [], negative(scaled(displaced, factors)), factors
    if scales is None and equal(terms, displaced):  # a trial step that is accepted
        return [], [], None
    if scales is None and grids is None and along_one(terms, displaced):  # to its other side
        return [], difference(terms, displaced), None
    return negative(displaced[::-1]), terms, scales


def representable(sigma: float) -> float:
    """The nearest number of `SIGMA_BITS` significant bits."""
    fraction, exponent = math.frexp(sigma)
    return math.ldexp(round(fraction * 2**SIGMA_BITS), exponent - SIGMA_BITS)
