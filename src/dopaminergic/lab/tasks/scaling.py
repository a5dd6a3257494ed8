"""Columns in units of their training part, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dopaminergic.lab.tasks.cells import place, tail

Series = NDArray[np.float64]


class Scaling(NamedTuple):
    """The unit of each column: (values 2^-exponent - mean) / deviation.

    Huge and tiny values are multiplied by a power of two first. That changes no digit.

    Attributes:
        exponents: whole numbers, 0 where squares of the values neither overflow nor vanish.
        means: of the training part.
        deviations: standard deviations of the training part.
    """

    exponents: NDArray[np.int64]
    means: Series
    deviations: Series

    @classmethod
    def of(cls, train: Series) -> Scaling:
        """The scaling by these rows, shape `(rows, columns)`."""
        _, exponents = np.frexp(np.abs(train).max(0))
        exponents = np.where(np.abs(exponents) > 400, exponents, 0)
        scaled = np.ldexp(train, -exponents)
        return cls(exponents.astype(np.int64), scaled.mean(0), scaled.std(0))

    def applied(self, values: Series) -> Series:
        """Values of all columns in units of the training part."""
        return (np.ldexp(values, -self.exponents) - self.means) / self.deviations

    def undone(self, values: Series) -> Series:
        """Values of the first columns in their own units again, shape `(..., columns)`."""
        count = values.shape[-1]
        own = values * self.deviations[:count] + self.means[:count]
        return np.ldexp(own, self.exponents[:count])

    def undone_differences(self, values: Series) -> Series:
        """Differences of the first columns in their own units again."""
        count = values.shape[-1]
        return np.ldexp(values * self.deviations[:count], self.exponents[:count])


def normalised(path: str | Path, names: Sequence[str], values: Series, scaling: Scaling) -> Series:
    """The values in units of the training part.

    Raises:
        ValueError: a value is so far out that a network could not be shown it.
    """
    result = scaling.applied(values)
    wild = ~(np.abs(result) < 1e9)
    if wild.any():
        row, column = (int(index) for index in np.argwhere(wild)[0])
        raise ValueError(
            f"{tail(path)}: column {names[column][:60]!r} is {values[row, column]:g} in "
            f"{place(row, None)}, over 10^9 "
            "standard deviations of the training part away; correct it, or forecast its logarithm"
        )
    return result
