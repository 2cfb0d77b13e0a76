"""How the brightness of the sublattices of a dichalcogenide varies slowly over an image, and what that tells.

Contamination and a sloping detector dim both sublattices alike; tilt of the sheet dims the columns of two atoms alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

#: Grid on which slow variations are averaged [nm].
_CELL_NM = 0.15
#: Relative error of a local mean.
_LOCAL_NOISE = 0.025
#: Columns this far from the median, relative to it, are no host columns when slow variations are measured.
_HOST_RANGE = 0.4


def slow_gain(yx_nm: NDArray[np.float64], value: NDArray[np.float64], own: NDArray[np.int64],
              other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Slow variation of the brightness of one sublattice over the image.

    Contamination and a sloping detector dim both sublattices alike and the other one shows by how much; tilt
    dims the two-atom columns alone, so that they have to be their own reference. What makes the columns more
    alike is used, and neither where it does not.
    """
    best = np.ones(len(own))
    if len(own) < 60 or len(other) < 60:
        return best
    middle = np.median(value[own])
    scatter = 0.93 * float(np.median(np.abs(value[own] / middle - 1.0)))
    candidates = [_local_level(yx_nm, value, own, other)]
    if scatter < 0.15:  # one level: in an alloy the local median would jump from one to the other
        candidates.append(_local_level(yx_nm, value, own, own))
    for gain in candidates:
        ratio = value[own] / gain
        spread = float(np.median(np.abs(ratio / np.median(ratio) - 1.0)))
        if spread < scatter:
            best, scatter = gain, 0.97 * spread
    return best


def _local_level(yx_nm: NDArray[np.float64], value: NDArray[np.float64], at: NDArray[np.int64],
                 source: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean brightness of one sublattice around some sites, over its median: weights fall off within 0.4 nm."""
    level = float(np.median(value[source]))
    # A cluster of dopants or vacancies is no slow variation.
    host = source[np.abs(value[source] / level - 1.0) < _HOST_RANGE]
    corner = yx_nm.min(axis=0)
    cells = np.floor((yx_nm - corner) / _CELL_NM).astype(np.int64)
    shape = (int(cells[:, 0].max()) + 1, int(cells[:, 1].max()) + 1)
    flat = cells[host, 0] * shape[1] + cells[host, 1]
    size = shape[0] * shape[1]
    total = np.bincount(flat, value[host] / level, size).reshape(shape)
    count = np.bincount(flat, minlength=size).reshape(shape).astype(np.float64)
    width = 0.4 / _CELL_NM
    smooth = gaussian_filter(total, width, mode="constant") / np.maximum(
        gaussian_filter(count, width, mode="constant"), 1e-6)
    place = (yx_nm[at] - corner).T / _CELL_NM - 0.5
    result = map_coordinates(smooth, place, order=1, mode="nearest")
    return np.where(result > 1.0 - _HOST_RANGE, result, 1.0)


def smoothness(yx_nm: NDArray[np.float64], value: NDArray[np.float64],
               sides: list[NDArray[np.int64]]) -> tuple[float, float]:
    """Logarithm of the standard deviation of the smooth part of each sublattice's relative brightness.

    Columns are compared with the mean of their six nearest of the same sublattice: the covariance is free of the
    noise of single columns. Both are 0 where the image is too small to tell.
    """
    if min(len(s) for s in sides) < 150:
        return 0.0, 0.0
    relative, absolute = [], []
    for side in sides:
        v = value[side]
        middle = float(np.median(v))
        width = 1.4826 * float(np.median(np.abs(v - middle)))
        # Vacancies and dopants are not part of it.
        host = np.abs(v - middle) < 3.0 * width
        yx, deviation = yx_nm[side[host]], v[host] - middle
        if len(yx) < 100:
            return 0.0, 0.0
        deviation = deviation - deviation.mean()
        around = deviation[cKDTree(yx).query(yx, k=7)[1][:, 1:]].mean(axis=1)
        covariance = max(float(np.mean(deviation * around)), 0.0)
        relative.append(0.5 * math.log(covariance / middle**2 + 0.025**2))
        absolute.append(0.5 * math.log(covariance + (0.025 * middle) ** 2))
    # A gain varies both in proportion to their brightness, a layer on top by the same amount: what is left by
    # either explanation is the tilt.
    differences = (relative[1] - relative[0], absolute[1] - absolute[0])
    if differences[0] * differences[1] <= 0:
        return 0.0, 0.0
    least = min(differences, key=abs)
    return -0.5 * least, 0.5 * least


def loneliness(yx_nm: NDArray[np.float64], value: NDArray[np.float64], own: NDArray[np.int64],
                other: NDArray[np.int64], dim: NDArray[np.int64]) -> float:
    """Log-likelihood ratio for the dim columns of a sublattice being single chalcogens rather than light metals.

    Where tilt dims the two-atom columns, a column with one atom left keeps its brightness, while everything else
    that makes a sublattice vary acts on a dopant as on its host: the slope of the dim columns' brightness upon the
    local brightness of their sublattice, both over that of the other sublattice, is 0 for the one and 1 for the
    other.
    """
    if len(dim) < 12 or min(len(own), len(other)) < 150:
        return 0.0
    at = np.concatenate([dim, own])
    reference = _local_level(yx_nm, value, at, other)
    ratio = _local_level(yx_nm, value, at, own) / reference
    variation = math.sqrt(max(float(np.var(ratio[len(dim):])) - 2 * _LOCAL_NOISE**2, 0.0))
    if variation < 0.03:
        return 0.0
    x, y = ratio[: len(dim)], value[dim] / reference[: len(dim)]
    y = y / float(np.median(y))
    keep = np.abs(y - 1.0) < 0.6
    x, y = x[keep] - x[keep].mean(), y[keep] - y[keep].mean()
    square = float(x @ x)
    if len(x) < 12 or square <= 0:
        return 0.0
    slope = float(x @ y) / square
    width = math.hypot(math.sqrt(float(np.mean((y - slope * x) ** 2)) / square), 0.25)

    def density(expected: float) -> float:
        return math.exp(-0.5 * ((slope - expected) / width) ** 2) + 0.05

    return math.log(density(0.1) / density(0.9))
