"""Chaotic series, generated here, and real ones: statsmodels' sunspots and the user's own files.

Two protocols (`quick` and `long`) differ in how and how finely a system is sampled; their figures
are never mixed. The quick one uses fixed-step integrators that are fast and fixed to the last bits;
the long one is accurate as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, reduce
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np

from dopaminergic.lab.tasks.reading import Series, read_series

__all__ = ["SYSTEMS", "Series", "System", "long_series", "quick_series", "read_series", "sunspots"]

Point = tuple[float, float, float]


@dataclass(frozen=True)
class System:
    """A chaotic system of the long protocol.

    Attributes:
        title: for headings.
        sample_time: time between two samples, in the system's units.
        lyapunov_exponent: the largest, per unit of time (measured by the method of Benettin et al.
            1980).
    """

    title: str
    sample_time: float
    lyapunov_exponent: float

    @property
    def lyapunov_time(self) -> float:
        """Units of time in which an error grows e-fold."""
        return 1 / self.lyapunov_exponent


SYSTEMS = {
    "lorenz": System("Lorenz", 0.02, 0.905),
    "rossler": System("Rössler", 0.1, 0.0714),
    "mackey-glass": System("Mackey-Glass", 1.0, 0.0055),
}


def lorenz_field(x: float, y: float, z: float) -> Point:
    """Lorenz (1963) with sigma 10, rho 28, beta 8/3."""
    return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z


def rossler_field(x: float, y: float, z: float) -> Point:
    """Rössler (1976) with a 0.2, b 0.2, c 5.7."""
    return -y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)


def runge_kutta(
    field: Callable[[float, float, float], Point],
    start: Point,
    *,
    dt: float,
    every: int,
    n: int,
    skip: int = 200,
) -> Series:
    """Samples of a flow by the classical fourth-order method, after a transient.

    Plain floats are used: for three numbers they are about thirty times as fast as arrays.

    Args:
        field: the time derivative.
        start: the state at time 0.
        dt: the step of the integrator, in units of time.
        every: integrator steps for each sample.
        n: samples to return.
        skip: samples to drop first.

    Returns:
        Shape `(n, 3)`.
    """
    x, y, z = start
    samples: list[Point] = []
    for i in range((n + skip) * every):
        a0, a1, a2 = field(x, y, z)
        b0, b1, b2 = field(x + dt / 2 * a0, y + dt / 2 * a1, z + dt / 2 * a2)
        c0, c1, c2 = field(x + dt / 2 * b0, y + dt / 2 * b1, z + dt / 2 * b2)
        d0, d1, d2 = field(x + dt * c0, y + dt * c1, z + dt * c2)
        x += dt / 6 * (a0 + 2 * b0 + 2 * c0 + d0)
        y += dt / 6 * (a1 + 2 * b1 + 2 * c1 + d1)
        z += dt / 6 * (a2 + 2 * b2 + 2 * c2 + d2)
        if i >= skip * every and i % every == 0:
            samples.append((x, y, z))
    return np.array(samples)


def _mackey_glass_euler(n: int, every: int = 60, dt: float = 0.1, delay: int = 170) -> Series:
    total = (n + 100) * every
    x = [1.2] * (delay + 1)
    for i in range(total):
        late = x[i]
        now = x[-1]
        x.append(now + dt * (0.2 * late / (1 + late**10) - 0.1 * now))
    return np.array(x[delay + 100 * every :: every][:n])[:, None]


def _iterate(
    step: Callable[[float, float], tuple[float, float]], start: tuple[float, float], n: int
) -> Series:
    points = [start]
    for _ in range(n + 200):
        points.append(step(*points[-1]))
    return np.array(points[-n:])


@cache
def quick_series(name: str, n: int = 4000) -> Series:
    """A series of the quick protocol, not normalised.

    Lorenz is sampled every 0.05 and Rössler every 0.25 (Runge–Kutta, steps 0.005 and 0.01).
    Mackey–Glass (delay 17, beta 0.2, gamma 0.1, power 10; Euler, step 0.1) is sampled every 6.
    Every iterate is kept of the map of Hénon (1976; a 1.4, b 0.3; both coordinates) and of the
    logistic map with r 3.9.

    Args:
        name: `"lorenz"`, `"rossler"`, `"mackey-glass"`, `"henon"` or `"logistic"`.
        n: samples.

    Returns:
        Shape `(n, columns)`, read-only.
    """
    make: dict[str, Callable[[], Series]] = {
        "lorenz": lambda: runge_kutta(lorenz_field, (1.0, 1.0, 20.0), dt=0.005, every=10, n=n),
        "rossler": lambda: runge_kutta(rossler_field, (1.0, 1.0, 0.0), dt=0.01, every=25, n=n),
        "mackey-glass": lambda: _mackey_glass_euler(n),
        "henon": lambda: _iterate(lambda x, y: (1 - 1.4 * x * x + y, 0.3 * x), (0.1, 0.1), n),
        "logistic": lambda: _iterate(lambda x, _: (3.9 * x * (1 - x), 0.0), (0.4, 0.0), n)[:, :1],
    }
    return _frozen(make[name]())


def _mackey_glass_steps(n: int, skip: int, per_unit: int = 20) -> Series:
    """Mackey–Glass by the method of steps.

    Over one delay the production p(t) = 0.2 x(t - 17) / (1 + x(t - 17)^10) is known at grid points.
    Between them it follows from cubic Hermite interpolation of x. The rest is linear, x' = p -
    0.1 x. It is solved by Simpson's rule in its exact exponential solution: order four, over the
    whole delay at once.
    """
    h = 1 / per_unit
    delay = 17 * per_unit
    gamma = 0.1
    decay = float(Decimal(-gamma * h).exp())  # correctly rounded everywhere, which math.exp is not
    blocks = -(-(n + skip) * per_unit // delay) + 1
    x, slope = np.full(delay + 1, 1.2), np.zeros(delay + 1)  # over [-17, 0]
    out = [x[-1:]]
    for _ in range(blocks):
        middle = (x[:-1] + x[1:]) / 2 + h / 8 * (slope[:-1] - slope[1:])
        p = _production(x)
        p_middle = _production(middle)
        gain = h / 6 * (decay * p[:-1] + 4 * math.sqrt(decay) * p_middle + p[1:])
        x = np.array(
            list(
                accumulate(
                    gain.tolist(), lambda now, more: decay * now + more, initial=float(x[-1])
                )
            )
        )
        slope = p - gamma * x
        out.append(x[1:])
    return np.concatenate(out)[skip * per_unit :: per_unit][:n, None]


def _production(x: Series) -> Series:
    # Products alone: the powers of numpy differ between processors.
    fourth = np.square(np.square(x))
    return 0.2 * x / (1 + fourth * fourth * np.square(x))


def _product(a: list[float], b: list[float]) -> float:
    """The last known Taylor coefficient of a product; the sum is exact, then rounded once."""
    return math.fsum(map(mul, a, reversed(b)))


def _lorenz_terms(x: list[float], y: list[float], z: list[float]) -> Point:
    return 10 * (y[-1] - x[-1]), 28 * x[-1] - _product(x, z) - y[-1], _product(x, y) - 8 / 3 * z[-1]


def _rossler_terms(x: list[float], y: list[float], z: list[float]) -> Point:
    constant = 0.2 if len(x) == 1 else 0.0
    return -y[-1] - z[-1], x[-1] + 0.2 * y[-1], constant + _product(x, z) - 5.7 * z[-1]


def taylor(
    terms: Callable[[list[float], list[float], list[float]], Point],
    start: Point,
    *,
    dt: float,
    n: int,
    skip: int,
    order: int = 24,
) -> Series:
    """Samples of a flow by its Taylor series, to the last bit the same on every machine.

    Automatic differentiation gives the coefficients one by one (Moore 1966; Jorba and Zou 2005).
    Only sums, products and quotients of floats are used, which IEEE 754 rounds alike everywhere.
    Numerical libraries choose their loops by processor. Chaos makes another trajectory of another
    last bit within about 37 Lyapunov times.

    Args:
        terms: takes the coefficients up to order k of the three states and returns those of order k
            of the derivative.
        start: the state at time 0.
        dt: the time between two samples and the step; must be well within the radius of
            convergence.
        n: samples to return.
        skip: samples to drop first.
        order: of the series; 24 leaves an error of one step below 1e-14 for Lorenz (0.02) and
            Rössler (0.1).

    Returns:
        Shape `(n, 3)`.
    """
    point = start
    samples = []
    for _ in range(skip + n):
        samples.append(point)
        series = [[value] for value in point]
        for k in range(1, order + 1):
            for coefficients, term in zip(series, terms(*series), strict=True):
                coefficients.append(term / k)
        x, y, z = (
            reduce(lambda sum_, c: sum_ * dt + c, reversed(coefficients)) for coefficients in series
        )
        point = x, y, z
    return np.array(samples[skip:])


@cache
def long_series(name: str, n: int = 20_000, skip: int = 1000) -> Series:
    """A series of the long protocol, not normalised, in float64.

    Lorenz is sampled every 0.02 and Rössler every 0.1, by Taylor series of order 24. Mackey–Glass
    is sampled every 1.0, by the method of steps at 20 steps a unit. Each is to the last bit the
    same on every machine.

    Args:
        name: a key of `SYSTEMS`.
        n: samples.
        skip: samples to drop first, the transient.

    Returns:
        Shape `(n, columns)`, read-only.
    """
    dt = SYSTEMS[name].sample_time
    make: dict[str, Callable[[], Series]] = {
        "lorenz": lambda: taylor(_lorenz_terms, (1.0, 1.0, 20.0), dt=dt, n=n, skip=skip),
        "rossler": lambda: taylor(_rossler_terms, (1.0, 1.0, 0.0), dt=dt, n=n, skip=skip),
        "mackey-glass": lambda: _mackey_glass_steps(n, skip),
    }
    return _frozen(make[name]())


@cache
def sunspots() -> Series:
    """Yearly sunspot numbers, 1700 to 2008, from statsmodels: shape `(309, 1)`, read-only."""
    try:
        from statsmodels.datasets import sunspots as dataset
    except ImportError as error:
        raise ImportError("the task sunspots needs statsmodels: pip install statsmodels") from error
    frame: Any = dataset.load_pandas().data
    return _frozen(frame["SUNACTIVITY"].to_numpy(dtype=np.float64)[:, None])


def _frozen(values: Series) -> Series:
    values = np.ascontiguousarray(values)
    values.flags.writeable = False
    return values
