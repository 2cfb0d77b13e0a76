"""How the brightness of columns varies over an image: dirt is speckled and lies in patches, a detector slopes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import ndtri

#: Part of the columns around that departs by less than what is taken for typical.
TYPICAL = 0.8
#: Columns with this part of the excess of the one that they surround may be of its own kind, and do not count.
OWN_KIND = 0.8
#: A slope is taken out where that makes columns more alike by this factor; smaller groups of columns do not count.
LESS_SCATTER, SMALLEST_GROUP = 0.85, 8
#: Columns farther than this from a sloping level, in standard deviations, are of another kind.
_OTHER_KIND = 3.0


def scatter_around(at_nm: NDArray[np.float64], yx_nm: NDArray[np.float64], size: NDArray[np.float64], *,
                   crowd: int) -> NDArray[np.float64]:
    """Standard deviation of the columns around some places.

    Parameters
    ----------
    at_nm : (M, 2) float64
        The places (y, x) [nm].
    yx_nm : (N, 2) float64
        The columns [nm].
    size : (N,) float64
        How far each departs from what is usual, without its sign.
    crowd : int
        Nearest columns that count.

    Returns
    -------
    (M,) float64
        As of a normal distribution, from a quantile: a few foreign atoms among the columns do not widen it.
    """
    near = cKDTree(yx_nm).query(at_nm, k=min(crowd, len(size)))[1]
    # Of a normal distribution this part lies within so many standard deviations.
    reach = float(ndtri(0.5 + 0.5 * TYPICAL))
    return np.asarray(np.quantile(size[near], TYPICAL, axis=1) / reach)


def excess_around(sites: NDArray[np.intp], yx: NDArray[np.float64], excess: NDArray[np.float64],
                  sigma: NDArray[np.float64], usable: NDArray[np.bool_], *, crowd: int) -> NDArray[np.float64]:
    """By how much the columns around some are brighter than they should be: dirt, an atom here and an atom there.

    Parameters
    ----------
    sites : (M,) int
        The columns whose surroundings are looked at.
    yx : (N, 2) float64
        Positions, in any unit.
    excess, sigma : (N,) float64
        Brightness less that of a host column, and its standard error; NaN where unknown.
    usable : (N,) bool
        Columns that count.
    crowd : int
        Nearest of them that do.

    Returns
    -------
    (M,) float64
        Root mean square of what is above zero, beyond what the errors explain, in the unit of `excess`.
    """
    among = np.flatnonzero(usable & np.isfinite(excess) & np.isfinite(sigma))
    if len(among) <= crowd:
        return np.zeros(len(sites))
    near = among[cKDTree(yx[among]).query(yx[sites], k=crowd + 1)[1]]
    counts = (near != sites[:, None]) & (excess[near] < OWN_KIND * excess[sites, None])
    square = np.where(counts, np.clip(excess[near], 0, None) ** 2, 0.0).sum(axis=1)
    # Half of the errors are upwards.
    square = square / np.maximum(counts.sum(axis=1), 1) - 0.5 * np.median(sigma[near], axis=1) ** 2
    return np.sqrt(np.clip(square, 0, None))


def sloping_gain(yx_nm: NDArray[np.float64], value: NDArray[np.float64],
                 group: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) gain of a detector or a beam that slopes over the image, relative to its middle.

    The logarithm of the brightness is a plane, at one level for every group of equal columns.

    Parameters
    ----------
    yx_nm : (N, 2) float64
        Positions [nm].
    value : (N,) float64
        Brightness; NaN where unknown.
    group : (N,) int
        Columns that would be equally bright on an even detector.
    """
    known = np.isfinite(value) & (value > 0)
    sizes = np.bincount(group[known], minlength=int(group.max()) + 1)
    index = np.flatnonzero(known & (sizes[group] >= SMALLEST_GROUP))
    if len(index) < 4 * SMALLEST_GROUP:
        return np.ones(len(value))
    _, own = np.unique(group[index], return_inverse=True)
    member = np.equal.outer(own, np.arange(own.max() + 1))
    middle = yx_nm[index].mean(axis=0)
    design, log = np.column_stack([yx_nm[index] - middle, member]), np.log(value[index])
    level = np.array([np.median(log[own == g]) for g in range(own.max() + 1)])
    before = rest = log - level[own]
    slope = np.zeros(2)
    for _ in range(5):
        width = 1.4826 * float(np.median(np.abs(rest)))
        kept = np.abs(rest) < _OTHER_KIND * max(width, 1e-3)
        fitted = np.linalg.lstsq(design[kept], log[kept], rcond=None)[0]
        rest, slope = log - design @ fitted, fitted[:2]
    if np.median(np.abs(rest)) > LESS_SCATTER * np.median(np.abs(before)):
        return np.ones(len(value))
    return np.asarray(np.exp((yx_nm - middle) @ slope))
