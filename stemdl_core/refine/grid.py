"""The pixels a refinement works on: binned, scaled to order one, padded; and their noise.

Nothing is resampled. Whole groups of pixels are averaged where they are much finer than the probe, which
keeps every count and costs no precision: box averaging widens a Gaussian of width sigma only by sqrt(1 + b^2
/ (12 sigma^2)), 1 % at b = sigma / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_laplace, uniform_filter

#: Pixels are averaged up to this fraction of the probe's sigma; farther in frames of many columns, where 2 % of
#: precision buy half of the time.
BIN_TO_SIGMA, MANY_BIN_TO_SIGMA, MANY = 0.47, 0.68, 400


@dataclass(frozen=True)
class Grid:
    """Working pixels of one frame.

    Parameters
    ----------
    image : (H, W) float32
        Averaged, shifted and scaled intensity, zero in the padding.
    usable : (H, W) float32
        Fraction of the raw pixels behind each working pixel that may be used; 0 in the padding.
    binning, pad : int
        Raw pixels per working pixel along one axis; margin on each side [working px].
    scale, offset : float
        raw intensity = offset + scale * image.
    step_pm : float
        Working pixel [pm].
    """

    image: NDArray[np.float32]
    usable: NDArray[np.float32]
    binning: int
    pad: int
    scale: float
    offset: float
    step_pm: float

    def to_grid(self, raw_px: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw pixel coordinate to working pixel coordinate."""
        return (raw_px - 0.5 * (self.binning - 1)) / self.binning + self.pad

    def to_raw(self, grid_px: NDArray[np.float64]) -> NDArray[np.float64]:
        """Working pixel coordinate to raw pixel coordinate."""
        return (grid_px - self.pad) * self.binning + 0.5 * (self.binning - 1)

    def noise(self, gain: float, intercept: float, *, top: float) -> Noise:
        """Noise of working pixels where raw ones have the variance intercept + gain * mean, the brightest at `top`."""
        pixels = self.binning**2
        slope = gain / (self.scale * pixels)
        level = (intercept + gain * self.offset) / (self.scale**2 * pixels)
        return Noise(slope, level, max(0.03 * (level + slope * top), 1e-14))


def average(values: NDArray[np.floating], binning: int) -> NDArray[np.floating]:
    """Means of `binning` x `binning` pixels; both sides are multiples of it."""
    height, width = (n // binning for n in values.shape)
    # Two passes (rows, then columns by a matrix product) read the large array once.
    rows = values.reshape(height, binning, width * binning).sum(1)
    return np.asarray(rows.reshape(height, width, binning) @ np.full(binning, binning**-2.0, values.dtype))


def make_grid(image: NDArray[np.floating], usable: NDArray[np.bool_], *, pixel_size_pm: float, binning: int,
              pad: int) -> Grid | None:
    """Average `binning` x `binning` raw pixels and bring the intensity to order one.

    Returns None where no contrast is left to work on.
    """
    height, width = (n // binning for n in image.shape)
    rows, columns = height * binning, width * binning
    all_good = bool(usable.all())
    if image.dtype.kind != "f":
        image = image.astype(np.float64 if image.dtype.itemsize > 2 else np.float32)
    if binning == 1:
        mean, count = image if all_good else np.where(usable, image, 0), usable.astype(np.float32)
    else:
        mean = average(image[:rows, :columns] if all_good else np.where(usable, image, 0)[:rows, :columns], binning)
        if all_good:
            count = np.ones((height, width), np.float32)
        else:
            count = average(usable[:rows, :columns].astype(np.float32), binning)
            mean = mean / np.maximum(count, np.float32(1 / binning**2))
    good = mean if all_good else mean[count > 0]
    if good.size < 16:
        return None
    sample = good.ravel()[:: max(1, good.size // 20000)]
    low, middle, high = np.percentile(sample, (1, 50, 99)).astype(float)
    scale = high - low
    if scale == 0:
        # Nearly all pixels read the same: few electrons, far apart.
        apart = np.abs(good - middle)
        scale = 4 * float(np.median(apart[apart > 0])) if (apart > 0).any() else 0.0
    if not (np.isfinite(scale) and scale > 1e-6 * max(abs(low), abs(high))):
        return None
    padded = np.zeros((height + 2 * pad, width + 2 * pad), np.float32)
    weight = np.zeros_like(padded)
    inside = (slice(pad, pad + height), slice(pad, pad + width))
    padded[inside] = (mean - middle) / scale
    weight[inside] = count
    if not all_good:
        padded *= weight > 0
    return Grid(padded, weight, binning, pad, scale, middle, pixel_size_pm * binning)


def filled(image: NDArray[np.floating], usable: NDArray[np.bool_], *, brightest: float = 30.0) -> NDArray[np.floating]:
    """The image less its mean without the spikes and gaps of single bad pixels and lines, for spectra.

    Whole areas that are left out stay as they are: their edges would have power at all wave numbers, and of smoothed
    noise there is a millionth at the largest. Only what is darker than any specimen, or brighter than `brightest`
    standard deviations, is flattened.
    """
    level, spread = float(image[usable].mean()), float(image[usable].std())
    rest = image - level
    if usable.all():
        return rest
    rest[~usable & ~((rest > -30 * spread) & (rest < brightest * spread))] = np.nan
    share = uniform_filter(usable.astype(np.float32), 5, mode="nearest")
    lone = ~usable & (share > 0.5)
    around = uniform_filter(np.where(usable, rest, 0), 5, mode="nearest")[lone] / share[lone]
    rest[lone] = np.where(np.abs(rest[lone] - around) < 6 * spread, rest[lone], around)
    return np.where(np.isfinite(rest), rest, 0)


#: Width of the filter that looks at the finest structure there is over the length below which there is none.
_LAPLACE = 2.0


@dataclass(frozen=True)
class Noise:
    """Variance of a working pixel: max(intercept + gain * mean, least).

    Counting noise behind a linear detector is a straight line in the mean whatever its gain and offset are,
    and readout noise only adds to the intercept.
    """

    gain: float
    intercept: float
    least: float

    def variance(self, mean: NDArray[np.float32]) -> NDArray[np.float32]:
        """Variance at expected value `mean`."""
        return np.maximum(np.float32(self.intercept) + np.float32(self.gain) * mean, np.float32(self.least))


def box3(image: NDArray[np.float32], side: float, centre: float) -> NDArray[np.float32]:
    """Separable 3 x 3 filter (side, centre, side) of the inner pixels: (H - 2, W - 2)."""
    a, b = np.float32(side), np.float32(centre)
    rows = a * (image[:-2] + image[2:]) + b * image[1:-1]
    return np.asarray(a * (rows[:, :-2] + rows[:, 2:]) + b * rows[:, 1:-1], np.float32)


@lru_cache(maxsize=16)
def _laplace_gain(width: float) -> float:
    """What the Laplacian of a Gaussian makes of white noise of standard deviation one."""
    side = 2 * int(6 * width) + 9
    point = np.zeros((side, side))
    point[side // 2, side // 2] = 1.0
    return float(np.sqrt((gaussian_laplace(point, width) ** 2).sum()))


def estimate_noise(residual: NDArray[np.float32], mean: NDArray[np.float32], usable: NDArray[np.float32], *,
                   previous: Noise | None = None, finest: float = 0.0) -> Noise:
    """Noise line from the finest structure of the image.

    The filter (1, -2, 1) x (1, -2, 1) / 6 has unit noise gain and is blind to anything as smooth as the
    probe, so neither the atoms nor the parameters fitted to them bias the estimate (Immerkaer, 1996).

    Where there is no structure below a length of `finest` [working px] (the inverse of a wave number), a Laplacian of a
    Gaussian takes its place, which looks at what is just above.
    """
    if finest > 0:
        width = round(_LAPLACE * finest, 2)
        fine = np.float32(6 / _laplace_gain(width)) * gaussian_laplace(residual, width)[1:-1, 1:-1]
    else:
        fine = box3(residual, 1.0, -2.0)
    full = usable >= np.float32(0.999)
    rows = full[:-2] & full[1:-1] & full[2:]
    inner = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    # Some ten thousand pixels, evenly spread, know two numbers well enough; an odd stride meets all columns.
    stride = inner.size // 25000 | 1
    chosen = inner.ravel()[::stride]
    squares = fine.ravel()[::stride][chosen] ** 2 / np.float32(36)
    level = box3(mean, 1 / 6, 4 / 6).ravel()[::stride][chosen]
    if len(squares) < 50:
        variance = float(np.mean(residual[usable > 0] ** 2)) if (usable > 0).any() else 1.0
        return Noise(0.0, max(variance, 1e-12), max(variance, 1e-12))
    top = float(np.partition(level, int(0.995 * len(level)))[int(0.995 * len(level))])
    centre, spread = float(level.mean()), float(level.std()) + 1e-12
    gain, at_centre = 0.0, max(float(squares.mean()), 1e-14)
    if previous is not None:
        gain, at_centre = previous.gain, previous.intercept + previous.gain * centre
    u = level - np.float32(centre)
    for turn in range(3):
        expected = np.maximum(np.float32(at_centre) + np.float32(gain) * u, np.float32(0.3 * at_centre))
        # A few counts per pixel are skewed: the clip must leave single electrons alone and stop hot pixels.
        clipped = squares
        if turn or previous is not None:
            clipped = np.minimum(squares, 40 * expected + np.float32(40 * gain * gain))
        # Relative to the centre: single precision must hold the squares.
        weight = (np.float32(at_centre) / expected) ** 2
        tilted = weight * u
        s0, s1, s2 = float(weight.sum()), float(tilted.sum()), float(tilted @ u)
        t0, t1 = float(weight @ clipped), float(tilted @ clipped)
        det = s0 * s2 - s1 * s1
        if det > 1e-9 * s0 * s0 * spread**2:
            gain = max((s0 * t1 - s1 * t0) / det, 0.0)
        at_centre = max((t0 - gain * s1) / s0, 1e-14)
    intercept = at_centre - gain * centre
    # Pixels with next to no counts must not outweigh all others on the word of a slightly wrong line.
    least = max(0.03 * (intercept + gain * top), 0.03 * at_centre, 1e-14)
    return Noise(gain, intercept, least)
