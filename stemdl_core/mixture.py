"""Mixtures of Gaussians for the brightness of columns, with as many components as the data support."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Spread of the intensities of equal columns beyond counting noise: scan distortion, residue, thermal motion.
_INTRINSIC_WIDTH = 0.05
#: What a column may measure, over the typical value; beyond is an accident.
_ASTRAY = np.array([-0.5, 6.0])
#: Means of two components are at least this many widths apart (a skewed peak is not two levels), and this part of
#: the host's level.
_APART, _LEAST_GAP = 2.0, 0.20
#: Above this many columns the starts are compared on a histogram of this bin width [typical value].
_MANY, _BIN = 300, 0.015


@dataclass(frozen=True)
class Mixture:
    """Gaussian components of one sublattice: weight, mean, extra width, posterior and logarithmic likelihood."""

    weight: NDArray[np.float64]
    mean: NDArray[np.float64]
    width: float
    posterior: NDArray[np.float64]
    log_likelihood: float = 0.0

    def membership(self, value: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, K) probability of every component for measured values."""
        log_p = _log_terms(value, self.weight, self.mean, _variance(sigma, self.width, self.mean))
        return np.asarray(np.exp(log_p - _total(log_p)[:, None]))

    def log_density(self, value: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) logarithm of the probability density of measured values."""
        variance = _variance(sigma, self.width, self.mean)
        return _total(_log_terms(value, self.weight, self.mean, variance)) - 0.5 * math.log(2 * math.pi)


def fit_mixture(value: NDArray[np.float64], sigma: NDArray[np.float64], *, most: int = 4) -> Mixture:
    """Mixture of Gaussians with a common relative width, as many as the Bayesian criterion supports.

    Parameters
    ----------
    value, sigma : (N,) float64
        Intensities and their measurement uncertainty; the typical value is 1.
    most : int
        Largest number of components.
    """
    best: tuple[float, Mixture] | None = None
    n = len(value)
    middle = float(np.median(value))
    # Fits gone astray are no component of anything.
    value = np.clip(value, *(_ASTRAY * np.abs(middle)))
    near = value[np.abs(value - middle) < 3.0 * max(1.4826 * float(np.median(np.abs(value - middle))), 0.02)]
    centre = float(np.mean(near)) if len(near) else middle
    low, high = float(value.min()), float(value.max())
    starts: list[list[float]] = [[centre]]
    if most > 1:
        # From every level met in practice: traces of a light or a heavy element, halves, and the extremes.
        starts += [[centre, m] for m in (low, high, *(centre * f for f in (0.3, 0.5, 0.7, 1.5, 2.0, 2.6)))]
        starts += [[centre, *np.quantile(value, [q])] for q in (0.2, 0.8)]
    if most > 2:
        starts += [[centre, low, high], [centre, 0.5 * centre, high], [centre, low, 1.3 * centre],
                   [centre, low, 0.45 * centre]]
    if most > 3:
        starts += [[centre, low, 0.45 * centre, high]]
    x, s, count = _binned(value, sigma) if n > _MANY else (value, sigma, np.ones(n))
    for means in starts:
        mixture = _expectation_maximisation(x, s, count, np.array(means))
        parameters = 2 * len(means)
        score = -2.0 * mixture.log_likelihood + parameters * math.log(max(n, 2))
        gaps = np.diff(np.sort(mixture.mean))
        scale = math.hypot(mixture.width * centre, float(np.median(s)))
        if len(means) > 1 and (
            np.any(gaps < max(_APART * scale, _LEAST_GAP * centre)) or np.any(mixture.weight * n < 0.6)
        ):
            continue
        if best is None or score < best[0] - 1e-9:
            best = (score, mixture)
    assert best is not None
    if n <= _MANY:
        return best[1]
    return _expectation_maximisation(value, sigma, np.ones(n), best[1].mean, first=best[1])


def _binned(value: NDArray[np.float64], sigma: NDArray[np.float64]
            ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Histogram: mean value, root mean square uncertainty and number of every occupied bin."""
    _, bins = np.unique(np.floor(value / _BIN).astype(np.int64), return_inverse=True)
    count = np.bincount(bins).astype(np.float64)
    return (np.bincount(bins, value) / count, np.sqrt(np.bincount(bins, sigma**2) / count), count)


def _variance(sigma: NDArray[np.float64], width: float, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    return sigma[:, None] ** 2 + (width * np.maximum(mean, 0.3)) ** 2


def _log_terms(value: NDArray[np.float64], weight: NDArray[np.float64], mean: NDArray[np.float64],
               variance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(weight + 1e-12) - 0.5 * (value[:, None] - mean) ** 2 / variance - 0.5 * np.log(variance)


def _total(log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    top = log_p.max(axis=1, keepdims=True)
    return top[:, 0] + np.log(np.exp(log_p - top).sum(axis=1))


def _expectation_maximisation(value: NDArray[np.float64], sigma: NDArray[np.float64],
                              count: NDArray[np.float64], mean: NDArray[np.float64], *,
                              first: Mixture | None = None) -> Mixture:
    k, n = len(mean), float(count.sum())
    weight = np.full(k, 0.1 / max(k - 1, 1))
    weight[0] = 0.9 if k > 1 else 1.0
    width = 1.5 * _INTRINSIC_WIDTH
    if first is not None:
        weight, width = first.weight, first.width
    likelihood = 0.0
    for _ in range(60):
        variance = _variance(sigma, width, mean)
        log_p = _log_terms(value, weight, mean, variance)
        total = _total(log_p)
        posterior = np.exp(log_p - total[:, None])
        previous, likelihood = likelihood, float(total @ count) - 0.5 * n * math.log(2 * math.pi)
        members = posterior * count[:, None]
        weight = members.sum(axis=0) / n
        share = members / variance
        mean = np.where(weight * n > 0.3, (share * value[:, None]).sum(axis=0)
                        / np.maximum(share.sum(axis=0), 1e-9), mean)
        # The common width takes what the stated uncertainties leave unexplained, within what is plausible.
        excess = (value[:, None] - mean) ** 2 - sigma[:, None] ** 2
        square = np.maximum(mean, 0.3) ** 2
        width = float(
            np.sqrt(np.clip((members * excess).sum() / (members * square).sum(), 0.02**2, 0.15**2))
        )
        if abs(likelihood - previous) < 1e-3 * (1 + abs(likelihood)) * 1e-2:
            break
    return Mixture(weight, mean, width, posterior, likelihood)
