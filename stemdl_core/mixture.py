"""Mixtures of Gaussians for the brightness of columns, with as many components as the data support."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Spread of the intensities of equal columns beyond counting noise: scan distortion, residue, thermal motion.
_INTRINSIC_WIDTH = 0.05


@dataclass(frozen=True)
class Mixture:
    """Gaussian components of one sublattice: weight, mean, extra width, and the posterior."""

    weight: NDArray[np.float64]
    mean: NDArray[np.float64]
    width: float
    posterior: NDArray[np.float64]


def fit_mixture(value: NDArray[np.float64], sigma: NDArray[np.float64], *, most: int = 3) -> Mixture:
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
    near = value[np.abs(value - middle) < 3.0 * max(1.4826 * float(np.median(np.abs(value - middle))), 0.02)]
    centre = float(np.mean(near)) if len(near) else middle
    low, high = float(value.min()), float(value.max())
    starts: list[list[float]] = [[centre]]
    if most > 1:
        # From every level met in practice: traces of a light or a heavy element, halves, and the extremes.
        starts += [[centre, m] for m in (low, high, *(centre * f for f in (0.3, 0.5, 0.7, 1.5, 2.0, 2.6)))]
        starts += [[centre, *np.quantile(value, [q])] for q in (0.2, 0.8)]
    if most > 2:
        starts += [[centre, low, high], [centre, 0.5 * centre, high], [centre, low, 1.3 * centre]]
    for means in starts:
        mixture, likelihood = _expectation_maximisation(value, sigma, np.array(means))
        parameters = 2 * len(means)
        score = -2.0 * likelihood + parameters * math.log(max(n, 2))
        gaps = np.diff(np.sort(mixture.mean))
        scale = math.hypot(mixture.width * centre, float(np.median(sigma)))
        if len(means) > 1 and (
            np.any(gaps < max(2.5 * scale, 0.12 * centre)) or np.any(mixture.weight * n < 0.6)
        ):
            continue
        if best is None or score < best[0] - 1e-9:
            best = (score, mixture)
    assert best is not None
    return best[1]


def _expectation_maximisation(value: NDArray[np.float64], sigma: NDArray[np.float64],
                              mean: NDArray[np.float64]) -> tuple[Mixture, float]:
    k = len(mean)
    weight = np.full(k, 0.1 / max(k - 1, 1))
    weight[0] = 0.9 if k > 1 else 1.0
    width = 1.5 * _INTRINSIC_WIDTH
    likelihood = 0.0
    for _ in range(60):
        variance = sigma[:, None] ** 2 + (width * np.maximum(mean, 0.3)) ** 2
        log_p = (
            np.log(weight + 1e-12) - 0.5 * (value[:, None] - mean) ** 2 / variance - 0.5 * np.log(variance)
        )
        top = log_p.max(axis=1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(log_p - top).sum(axis=1))
        posterior = np.exp(log_p - total[:, None])
        previous, likelihood = likelihood, float(total.sum()) - 0.5 * len(value) * math.log(2 * math.pi)
        weight = posterior.mean(axis=0)
        share = posterior / variance
        mean = np.where(weight * len(value) > 0.3, (share * value[:, None]).sum(axis=0)
                        / np.maximum(share.sum(axis=0), 1e-9), mean)
        # The common width takes what the stated uncertainties leave unexplained, within what is plausible.
        excess = (value[:, None] - mean) ** 2 - sigma[:, None] ** 2
        square = np.maximum(mean, 0.3) ** 2
        width = float(
            np.sqrt(np.clip((posterior * excess).sum() / (posterior * square).sum(), 0.02**2, 0.15**2))
        )
        if abs(likelihood - previous) < 1e-3 * (1 + abs(likelihood)) * 1e-2:
            break
    return Mixture(weight, mean, width, posterior), likelihood
