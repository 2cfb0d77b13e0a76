"""The Cramer-Rao bound: how well positions can be known at all, from the counts alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def column_profile(dy: NDArray[np.float64], dx: NDArray[np.float64], sigma: float, tail_fraction: float,
                   tail_ratio: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Profile of unit volume at offsets (dy, dx), and its slope over distance: d(profile)/d(y0) = slope * dy.

    `tail_fraction` is the share of the volume in a Gaussian `tail_ratio` times wider.
    """
    square = dy**2 + dx**2
    value = np.zeros_like(square)
    slope = np.zeros_like(square)
    for share, width in ((1 - tail_fraction, sigma), (tail_fraction, tail_ratio * sigma)):
        part = share / (2 * np.pi * width**2) * np.exp(-0.5 * square / width**2)
        value += part
        slope += part / width**2
    return value, slope


def cramer_rao_pm(y_px: ArrayLike, x_px: ArrayLike, electrons: ArrayLike, *, shape: tuple[int, int],
                  pixel_size_nm: float, sigma_probe_nm: float, background: float = 0.0,
                  tail_fraction: float = 0.0, tail_ratio: float = 2.2, readout: float = 0.0,
                  free_heights: bool = True, free_background: bool = True) -> NDArray[np.float64]:
    """Smallest standard deviation of each column's position that an unbiased estimator can have.

    Fisher information of the whole picture: positions and heights of all columns and a constant background
    unknown together, independent counts.

    Parameters
    ----------
    y_px, x_px : (N,) float64
        Positions [px].
    electrons : (N,) float64
        Electrons detected under each column's profile.
    shape : (int, int)
        Image height and width [px].
    pixel_size_nm, sigma_probe_nm : float
        Pixel size [nm/px]; width of the core of the profile [nm].
    background : float
        Electrons per pixel between the columns.
    tail_fraction, tail_ratio : float
        Share of a column's electrons in a Gaussian tail, and its width over the core's.
    readout : float
        Standard deviation of readout noise [electrons].
    free_heights, free_background : bool
        Whether they are unknown too.

    Returns
    -------
    (N,) float64
        Root mean square over both axes [pm].
    """
    y, x = (np.asarray(v, np.float64).ravel() for v in (y_px, x_px))
    counts = np.broadcast_to(np.asarray(electrons, np.float64), y.shape)
    if not len(y):
        return np.zeros(0)
    sigma = sigma_probe_nm / pixel_size_nm
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    pixels = shape[0] * shape[1]
    n = len(y)
    mean = np.full(shape, float(background))
    slopes = np.zeros((3 * n + 1, pixels), np.float32)
    for k in range(n):
        dy, dx = rows - y[k], columns - x[k]
        value, slope = column_profile(dy, dx, sigma, tail_fraction, tail_ratio)
        mean += counts[k] * value
        slopes[3 * k] = value.ravel()
        slopes[3 * k + 1] = (counts[k] * slope * dy).ravel()
        slopes[3 * k + 2] = (counts[k] * slope * dx).ravel()
    slopes[-1] = 1
    # A dark pixel still carries the information of its expected counts, however few.
    variance = np.maximum(mean + readout**2, 1e-9 * (mean.max() + readout**2)).ravel()
    weighted = slopes / np.sqrt(variance).astype(np.float32)
    keep = np.ones(3 * n + 1, bool)
    if not free_heights:
        keep[0:-1:3] = False
    keep[-1] = free_background
    weighted = weighted[keep]
    information = (weighted @ weighted.T).astype(np.float64)
    scale = 1 / np.sqrt(np.diag(information))
    inverse = np.linalg.inv(information * np.outer(scale, scale)) * np.outer(scale, scale)
    variances = np.full(3 * n + 1, np.nan)
    variances[keep] = np.diag(inverse)
    return 1e3 * pixel_size_nm * np.sqrt(0.5 * (variances[1:-1:3] + variances[2:-1:3]))
