"""What the residual says about the fit: misfit, and shifts of single scan lines; what scattered heights allow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .grid import Noise
from .model import Array, Image
from .picture import Patches, Picture, chunks

#: Fewest columns of one group whose heights say how much noise there can be.
_FEWEST = 20
#: How much of the error of a height may come from overlap, as a part of its variance over that of a lone column.
_MOST_OVERLAP = 3.0


@dataclass(frozen=True)
class Check:
    """Residual against expectation.

    Parameters
    ----------
    misfit : float
        Residual variance over the variance expected.
    jitter : float
        Standard deviation of the shift of single working lines along x [working px].
    """

    misfit: float
    jitter: float


def check_residual(residual: Image, mean: Image, noise: Noise, usable: Image, picture: Picture) -> Check:
    """Misfit and line jitter of a finished fit."""
    variance = noise.variance(mean)
    weight = usable / variance
    pixels = max(int(np.count_nonzero(usable)), 1)
    free = max(1 - 3 * len(picture.patches.index) / pixels, 0.2)
    # A ratio of sums: where next to no counts are expected, single ones make a sum of ratios run away.
    # Outliers are no reason to distrust all columns.
    squares = usable * np.minimum(residual**2, 30 * (variance + np.float32(noise.gain) ** 2))
    misfit = float(squares.sum()) / (free * max(float((usable * variance).sum()), 1e-300))
    misfit *= _correlation(residual * np.sqrt(weight))
    along_x = _line_shifts(residual, picture.columns, weight)
    along_y = _line_shifts(residual.T, picture.columns.T, weight.T)
    jitter = 0.0
    if along_x is not None and along_y is not None:
        (score, information), (score_y, information_y) = along_x, along_y
        # Nothing shifts whole columns of pixels along y: they show how much of a shift the fit has taken up.
        left = float((score_y**2).sum() / information_y.sum())
        excess = float((score**2).sum() - left * information.sum())
        error = left * np.sqrt(2 * float((information**2).sum()))
        if excess > 3 * error:
            jitter = float(np.sqrt(excess / (0.8 * float((information**2).sum()))))
    return Check(misfit, jitter)


def _correlation(white: Image) -> float:
    """By how much more noise averages over several pixels keep than independent pixels would, at least one.

    Slow detectors and images that were resampled share counts between neighbours, and the fit feels it.
    """
    clipped = np.clip(white, -4, 4)
    power = float(np.vdot(clipped, clipped))
    factor = 1.0
    for first, second in ((clipped[:, 1:], clipped[:, :-1]), (clipped[1:], clipped[:-1])):
        shared = float(np.vdot(first, second)) / max(power, 1e-300)
        # A few per cent come from the model's own small misfits.
        factor *= 1 + 2 * max(shared - 0.05, 0.0)
    return factor


def _line_shifts(residual: Image, columns: Image, weight: Image) -> tuple[Array, Array] | None:
    """Score and information of a shift along each line, for lines that have columns on them."""
    slope = np.zeros_like(columns)
    slope[:, 1:-1] = 0.5 * (columns[:, :-2] - columns[:, 2:])
    weighted = weight * slope
    score = np.einsum("yx,yx->y", weighted, residual).astype(np.float64)
    information = np.einsum("yx,yx->y", weighted, slope).astype(np.float64)
    useful = information > 0.1 * information.max()
    if useful.sum() < 10:
        return None
    return score[useful], information[useful]


def local_misfit(patches: Patches, residual: Image, mean: Image, noise: Noise, usable: Image) -> Array:
    """(N,) factor, at least one, by which the residual under each column exceeds what is usual in the frame.

    A missed neighbour, contamination or a damaged pixel shows here and not in the counts.
    """
    squares = np.minimum(usable * residual**2 / noise.variance(mean), 100).ravel()
    fraction = usable.ravel()
    n = len(patches.index)
    found, area = np.empty(n), np.empty(n)
    for which in chunks(n):
        index, core = patches.index[which], patches.core[which]
        found[which] = np.einsum("np,np->n", core, squares.take(index))
        area[which] = np.einsum("np,np->n", core, fraction.take(index))
    local = found / np.maximum(area, 1e-3)
    typical = float(np.median(local))
    spread = 1.4826 * float(np.median(np.abs(local - typical)))
    excess = local - typical - 3 * max(spread, 0.05 * typical)
    return 1 + np.maximum(excess, 0) / max(typical, 1e-3)


def most_noise(height: Array, known: NDArray[np.bool_], labels: NDArray[np.intp], *, sigma: float,
               overlap: float = 1.0) -> float:
    """Variance of a pixel at which white noise alone would scatter the heights as much as they do; infinite for few.

    Noise of variance v makes an error of sqrt(v / pi) / sigma in the height of a column that stands alone, and a larger
    one among others. What differs between columns otherwise counts as noise, too.

    Parameters
    ----------
    height : (N,) float array
        Fitted heights.
    known : (N,) bool
        Columns whose own pixels say how high they are.
    labels : (N,) int
        Groups of columns that are about equally high.
    sigma : float
        Width of a column [px].
    overlap : float
        Variance of the error of a height among the others over that of one that stands alone; within reason.
    """
    if not known.any():
        return np.inf
    alike = height[known & (labels == np.bincount(labels[known]).argmax())]
    if len(alike) < _FEWEST:
        return np.inf
    spread = 1.4826 * float(np.median(np.abs(alike - np.median(alike))))
    return float(np.pi * (sigma * spread) ** 2 / np.clip(overlap, 1.0, _MOST_OVERLAP))
