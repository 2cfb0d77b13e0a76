"""How far the columns around a place scatter: dirt is speckled, and it lies in patches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import ndtri

#: Part of the columns around that departs by less than what is taken for typical.
TYPICAL = 0.8


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
