"""Columns beyond the border: out of view themselves, they shine into the image beside the columns at its rim."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from .model import Array

#: How far out columns still matter [nm]: some two and a half widths of a usual probe.
REACH_NM = 0.12
#: Neighbours up to the second shell of a honeycomb (1.73 of its bonds) show where the lattice goes on; and how well
#: three columns in a row have to be evenly spaced. Both in distances of nearest neighbours.
_FARTHEST, _EVEN = 1.95, 0.55
#: Fewer columns than this show no lattice.
_FEWEST = 12


def columns_beyond(yx: Array, shape: tuple[int, int], *, pixel_size_nm: float) -> tuple[Array, NDArray[np.intp]]:
    """Where a lattice goes on just outside the image.

    Two columns in a row predict the next, provided that the one before them is there too: along a bond of a
    honeycomb it is not. Nothing is predicted where columns do not repeat.

    Parameters
    ----------
    yx : (N, 2) float64
        Columns [px].
    shape : (int, int)
        (H, W) of the image [px].
    pixel_size_nm : float
        Pixel size [nm/px].

    Returns
    -------
    beyond : (M, 2) float64
        Columns out of view, within `REACH_NM` of the image [px].
    like : (M,) intp
        For each, a column of `yx` that it should be like.
    """
    nothing = np.empty((0, 2)), np.empty(0, np.intp)
    if len(yx) < _FEWEST:
        return nothing
    tree = cKDTree(yx)
    spacing = float(np.median(tree.query(yx[:: max(1, len(yx) // 200)], k=2)[0][:, 1]))
    reach = REACH_NM / pixel_size_nm
    low, high = np.full(2, -0.5), np.asarray(shape) - 0.5
    away = np.minimum(yx - low, high - yx).min(axis=1)
    rim = np.flatnonzero((away < _FARTHEST * spacing) & (away > -reach))
    if not len(rim) or not spacing > 0:
        return nothing
    distance, other = tree.query(yx[rim], k=min(14, len(yx)), distance_upper_bound=_FARTHEST * spacing)
    source, column = np.nonzero(np.isfinite(distance[:, 1:]))
    last, middle = rim[source], other[source, column + 1]
    following = 2 * yx[last] - yx[middle]
    outside = np.maximum(low - following, following - high).max(axis=1)
    chosen = (outside > -0.3 * spacing) & (outside < reach + 0.3 * spacing)
    last, middle = last[chosen], middle[chosen]
    if not len(last):
        return nothing
    off, first = tree.query(2 * yx[middle] - yx[last])
    # The straight line through three columns; two alone say too little.
    following = (4 * yx[last] + yx[middle] - 2 * yx[first]) / 3
    outside = np.maximum(low - following, following - high).max(axis=1)
    free = tree.query(following)[0] > 0.65 * spacing
    good = (off < _EVEN * spacing) & free & (outside > -0.25 * spacing) & (outside < reach)
    last, following = last[good], following[good]
    if not len(last):
        return nothing
    # The same column, predicted along several rows.
    pairs = cKDTree(following).query_pairs(0.5 * spacing, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(last), len(last)))
    number, group = connected_components(links, directed=False)
    members = np.bincount(group, minlength=number)
    beyond = np.stack([np.bincount(group, following[:, k], number) / members for k in (0, 1)], axis=1)
    like = np.empty(number, np.intp)
    like[group] = last
    return beyond, like
