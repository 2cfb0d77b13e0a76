"""From known positions to the class map that the network learns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

#: Pixels of this class do not count in loss and accuracy: their truth is not defined.
IGNORE = 255


def class_map(yx_px: NDArray[np.float64], labels: NDArray[np.int64], *, shape: tuple[int, int],
              radius_px: NDArray[np.float64] | float) -> NDArray[np.uint8]:
    """Discs of class labels around sub-pixel positions.

    A pixel gets the label of the nearest position whose disc covers its centre, and 0 (background) elsewhere.
    Positions are never rounded: which pixels a disc covers depends on the fraction of a pixel.

    Parameters
    ----------
    yx_px : (N, 2) float64
        Positions (y, x) [px].
    labels : (N,) int
        Class of each position, 1 or more.
    shape : (int, int)
        (h, w) [px].
    radius_px : float or (N,) float64
        Radius of the discs [px].

    Returns
    -------
    (h, w) uint8
    """
    target = np.zeros(shape, dtype=np.uint8)
    if len(yx_px) == 0:
        return target
    radius = np.broadcast_to(np.asarray(radius_px, dtype=np.float64), (len(yx_px),))
    grid = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), axis=-1).reshape(-1, 2)
    distance, nearest = cKDTree(yx_px).query(grid, distance_upper_bound=float(radius.max()) + 1e-9)
    hit = np.flatnonzero(np.isfinite(distance))
    hit = hit[distance[hit] <= radius[nearest[hit]]]
    target.reshape(-1)[hit] = labels[nearest[hit]]
    return target
