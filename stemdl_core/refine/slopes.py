"""Sums over pixels of products of columns' slopes, from moments of the products of their Gaussians.

The slope of a Gaussian with its position is the Gaussian itself times the inverse covariance times the distance
(dy, dx). So whatever is summed over a column's slopes is a sum over the Gaussian, with the terms 1, dy, dx.
"""

from __future__ import annotations

import numpy as np

from .model import Array, Image, Shape


def lean(shape: Shape, *, tail: bool) -> Array:
    """(3, 3) slopes of a Gaussian with height, y and x (rows) as multiples of 1, dy and dx (columns) of it."""
    yy, yx, xx = shape.inverse(tail=tail)
    return np.array([[1, 0, 0], [0, yy, yx], [0, yx, xx]])


def centred(moments: Image, first: tuple[Image, Image], second: tuple[Image, Image]) -> Array:
    """(3, 3, M) sums times (1, dy, dx) of one column (rows) and of another, or the same, one.

    Parameters
    ----------
    moments : (M, 6) float32
        Sums times 1, v, u, v^2, v u, u^2 of the pixels (v, u) of a patch.
    first, second : ((M,), (M,)) float32
        Where on the patch the columns are (v, u).
    """
    one, v, u, vv, vu, uu = moments.T.astype(np.float64)
    (fv, fu), (gv, gu) = first, second
    out = np.empty((3, 3, len(moments)))
    (a, y, x), second_row, third_row = out
    a[:], y[:], x[:] = one, v - gv * one, u - gu * one
    second_row[0], second_row[1], second_row[2] = v - fv * one, vv - gv * v - fv * y, vu - gu * v - fv * x
    third_row[0], third_row[1], third_row[2] = u - fu * one, vu - gv * u - fu * y, uu - gu * u - fu * x
    return out


def between(left: Array, sums: Array, right: Array) -> Array:
    """(3, 3, M) left @ sums @ right^T for sums (3, 3, M)."""
    return np.matmul(right, (left @ sums.reshape(3, -1)).reshape(sums.shape))
