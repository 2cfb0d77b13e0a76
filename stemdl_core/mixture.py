"""Mixtures of Gaussians for the brightness of columns, with as many components as the data support."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
_MANY, _BIN = 120, 0.02


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
    for mixture in _from_starts(x, s, count, starts):
        parameters = 2 * len(mixture.mean)
        score = -2.0 * mixture.log_likelihood + parameters * math.log(max(n, 2))
        gaps = np.diff(np.sort(mixture.mean))
        scale = math.hypot(mixture.width * centre, float(np.median(s)))
        if len(mixture.mean) > 1 and (
            np.any(gaps < max(_APART * scale, _LEAST_GAP * centre)) or np.any(mixture.weight * n < 0.6)
        ):
            continue
        if best is None or score < best[0] - 1e-9:
            best = (score, mixture)
    assert best is not None
    if n <= _MANY:
        return best[1]
    (final,) = _from_starts(value, sigma, np.ones(n), [best[1].mean.tolist()], first=best[1])
    return final


def _binned(value: NDArray[np.float64], sigma: NDArray[np.float64]
            ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Histogram: mean value, root mean square uncertainty and number of every occupied bin."""
    _, bins = np.unique(np.floor(value / _BIN).astype(np.int64), return_inverse=True)
    count = np.bincount(bins).astype(np.float64)
    return (np.bincount(bins, value) / count, np.sqrt(np.bincount(bins, sigma**2) / count), count)


def _variance(sigma: NDArray[np.float64], width: float | NDArray[np.float64],
              mean: NDArray[np.float64]) -> NDArray[np.float64]:
    return sigma[:, None] ** 2 + (width * np.maximum(mean, 0.3)) ** 2


def _log_terms(value: NDArray[np.float64], weight: NDArray[np.float64], mean: NDArray[np.float64],
               variance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(weight + 1e-12) - 0.5 * (value[:, None] - mean) ** 2 / variance - 0.5 * np.log(variance)


def _total(log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    top = log_p.max(axis=-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log(np.exp(log_p - top).sum(axis=-1)))


def _from_starts(value: NDArray[np.float64], sigma: NDArray[np.float64], count: NDArray[np.float64],
                 starts: Sequence[Sequence[float]], *, first: Mixture | None = None) -> list[Mixture]:
    """Expectation maximisation from several starts at once (axes: start, value, component); `r` are those that go on.

    Starts of fewer components than the largest one have further ones of no weight. What has converged stays as it is.
    """
    n, most = float(count.sum()), max(map(len, starts))
    there = np.array([np.arange(most) < len(m) for m in starts])[:, None]
    mean = np.array([[[*m, *[m[0]] * (most - len(m))]] for m in starts])
    rare = np.where(there, 0.1 / np.maximum(there.sum(-1, keepdims=True) - 1, 1), 0.0)
    weight = np.where(np.arange(most) == 0, 1.0 - rare[..., 1:].sum(-1, keepdims=True), rare)
    width = np.full((len(starts), 1, 1), 1.5 * _INTRINSIC_WIDTH)
    if first is not None:
        weight[:], width[:] = first.weight, first.width
    likelihood, posterior = np.zeros(len(starts)), np.zeros((len(starts), len(value), most))
    r = np.arange(len(starts))
    for _ in range(60):
        variance = _variance(sigma, width[r], mean[r])
        log_p = np.where(there[r], _log_terms(value, weight[r], mean[r], variance), -np.inf)
        total = _total(log_p)
        posterior[r] = np.exp(log_p - total[..., None])
        previous = likelihood[r]
        likelihood[r] = total @ count - 0.5 * n * math.log(2 * math.pi)
        members = posterior[r] * count[:, None]
        number = members.sum(axis=1, keepdims=True)
        share = members / variance
        middle = (share * value[:, None]).sum(1, keepdims=True) / np.maximum(share.sum(1, keepdims=True), 1e-9)
        weight[r], mean[r] = number / n, np.where(number > 0.3, middle, mean[r])
        # The common width takes what the stated uncertainties leave unexplained, within what is plausible.
        excess = (members * ((value[:, None] - mean[r]) ** 2 - sigma[:, None] ** 2)).sum((1, 2), keepdims=True)
        square = (number * np.maximum(mean[r], 0.3) ** 2).sum((1, 2), keepdims=True)
        width[r] = np.sqrt(np.clip(excess / square, 0.02**2, 0.15**2))
        r = r[np.abs(likelihood[r] - previous) >= 1e-5 * (1 + np.abs(likelihood[r]))]
        if not len(r):
            break
    return [Mixture(weight[k, 0, t], mean[k, 0, t], float(width[k, 0, 0]), posterior[k][:, t], float(likelihood[k]))
            for k, t in enumerate(there[:, 0])]
