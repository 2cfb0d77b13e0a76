"""From a detector image to the network's input: the same code for training and for inference.

Three steps: bad pixels are mended, the image is resampled to the model's pixel size (so that cost and
appearance follow nanometres, not pixels), and intensities are brought to a scale that one bright atom, a bright
patch or a hot pixel cannot spoil. Everything depends on the one image alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from .saturation import cut_off, restored

#: A pixel is hot when it exceeds the largest of its neighbours by this many standard deviations of the noise.
HOT_SIGMAS = 8.0
#: A line is dead when its mean departs from both neighbouring lines by this many standard deviations.
LINE_SIGMAS = 12.0
#: Lines of the image at which the band that holds the lattice is looked at.
_BAND_LINES = 100


@dataclass(frozen=True)
class Mended:
    """An image without bad pixels.

    Parameters
    ----------
    image : (H, W) float32 or float64
        Bad pixels replaced from their neighbours.
    valid : (H, W) bool
        False where a pixel was replaced: it carries no information of its own.
    cut_off : float
        Part of the pixels that were cut off at the top.
    """

    image: NDArray[np.floating]
    valid: NDArray[np.bool_]
    cut_off: float = 0.0


def mend(image: NDArray[np.float32]) -> Mended:
    """Replace hot pixels and missing lines, and give round tops to what was cut off.

    Parameters
    ----------
    image : (H, W) float32
        Detector image.
    """
    valid = np.ones(image.shape, dtype=bool)
    mended = image
    dead = _dead_lines(image)
    if dead.any():
        mended = image.copy()
        good = np.flatnonzero(~dead)
        for row in np.flatnonzero(dead):
            below, above = good[good < row], good[good > row]
            neighbours = [r[k] for r, k in ((below, -1), (above, 0)) if len(r)]
            mended[row] = np.mean([image[r] for r in neighbours], axis=0)
        valid[dead] = False
    hot = _hot_pixels(mended)
    if len(hot):
        if mended is image:
            mended = image.copy()
        for row, column in hot:
            valid[row, column] = False
        for row, column in hot:
            r, c = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
            good = valid[r, c]
            mended[row, column] = np.median(mended[r, c][good]) if good.any() else np.median(mended)
    cut = cut_off(mended)
    if cut is None:
        return Mended(mended, valid)
    return Mended(restored(mended, cut), valid & ~cut, float(cut.mean()))


def _hot_pixels(image: NDArray[np.float32]) -> NDArray[np.int64]:
    """(K, 2) pixels (row, column) that stand out from all eight neighbours as no column of atoms can."""
    step = np.diff(image, axis=1)
    sample = np.abs(step[::8])
    noise = 1.0484 * float(np.median(sample))
    if noise == 0.0:  # sparse counts: most differences vanish
        noise = float(sample.mean()) or float(image.std())
    limit = HOT_SIGMAS * noise
    # Comparing along the line first leaves only a handful of pixels for the full test. Beyond the border the image is
    # its own reflection.
    up = np.concatenate([step[:, :1] < -limit, step > limit], axis=1)
    down = np.concatenate([step < -limit, step[:, -1:] > limit], axis=1)
    rows, columns = np.nonzero(up & down)
    if len(rows) == 0:
        return np.empty((0, 2), dtype=np.int64)
    height, width = image.shape
    around = [image[_reflected(rows + dr, height), _reflected(columns + dc, width)]
              for dr in (-1, 0, 1) for dc in (-1, 0, 1) if dr or dc]
    largest = np.max(around, axis=0)
    excess = image[rows, columns] - largest
    level = float(np.median(image[::8, ::3]))
    # Poisson noise grows with the signal: on top of a bright atom the excess has to beat that too.
    hot = (excess > limit) & (excess > 0.5 * np.abs(largest - level))
    # In sparse images single electrons stand out everywhere: hot is only what is far beyond the many.
    many = max(10, image.size // 2000)
    if hot.sum() > many:
        hot &= excess > 3.0 * np.partition(excess, -many)[-many]
    return np.stack([rows[hot], columns[hot]], axis=1)


def _reflected(index: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Index of a pixel just beyond a border, mirrored at the pixel on it."""
    index = np.abs(index)
    return np.where(index < count, index, 2 * (count - 1) - index)


def _dead_lines(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(H,) bool: lines that are constant, or far from both their neighbours."""
    mean = image.mean(axis=1, dtype=np.float64)
    constant = np.ptp(image, axis=1) == 0
    step = np.diff(mean)
    spread = 1.4826 * float(np.median(np.abs(step - np.median(step)))) or float(np.std(step)) or 1.0
    before = np.concatenate([[step[0]], step])
    after = np.concatenate([-step, [-step[-1]]])
    outlier = (np.minimum(np.abs(before), np.abs(after)) > LINE_SIGMAS * spread) & (before * after > 0)
    dead = constant | outlier
    # An image in which many lines look dead has another problem: leave it to the later checks.
    return dead if dead.mean() < 0.2 else np.zeros_like(dead)


def resample(image: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Resample to (h, w) over the same field of view, averaging where pixels get coarser.

    Positions map as ``x_in = (x_out + 0.5) * W / w - 0.5``.
    """
    if image.shape == shape:
        return np.array(image)
    with torch.no_grad():
        source = torch.from_numpy(np.array(image, dtype=np.float32))[None, None]
        finer = shape[0] > image.shape[0] or shape[1] > image.shape[1]
        result = functional.interpolate(source, size=shape, mode="bicubic" if finer else "bilinear",
                                        align_corners=False, antialias=not finer)
    return result[0, 0].numpy()


def model_shape(shape: tuple[int, int], pixel_nm: float, model_pixel_nm: float) -> tuple[int, int]:
    """Size of the resampled image [px]."""
    factor = pixel_nm / model_pixel_nm
    return max(int(round(shape[0] * factor)), 1), max(int(round(shape[1] * factor)), 1)


def to_model_px(yx_px: NDArray[np.float64], shape: tuple[int, int], small: tuple[int, int]) -> NDArray[np.float64]:
    """Positions (N, 2) on an image of `shape` as positions on the resampled image of shape `small`."""
    factor = np.asarray(small, dtype=np.float64) / np.asarray(shape, dtype=np.float64)
    return (np.asarray(yx_px, dtype=np.float64) + 0.5) * factor - 0.5


def from_model_px(yx_px: NDArray[np.float64], shape: tuple[int, int], small: tuple[int, int]) -> NDArray[np.float64]:
    """Inverse of `to_model_px`."""
    factor = np.asarray(shape, dtype=np.float64) / np.asarray(small, dtype=np.float64)
    return (np.asarray(yx_px, dtype=np.float64) + 0.5) * factor - 0.5


def standardise(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring intensities to the network's scale.

    The zero is the median; the unit is the robust spread of the band that holds the lattice (differences of
    Gaussians between one and six pixels of the model's grid), so neither a slow gradient nor a few bright atoms
    change it. The inverse hyperbolic sine keeps the lattice linear and compresses what is far brighter.

    Parameters
    ----------
    image : (h, w) float32
        Image at the model's pixel size.

    Returns
    -------
    (h, w) float32
    """
    x = np.asarray(image, dtype=np.float32)
    x = x - _median(x)
    # One number from the whole band: some ten thousand of its pixels, evenly spread, know it.
    rows, columns = (max(1, n // _BAND_LINES) for n in x.shape)
    band = _blurred(x, 1.0, rows, columns) - _blurred(x, 6.0, rows, columns)
    spread = 1.4826 * float(_median(np.abs(band - _median(band))))
    if not spread > 0:
        spread = float(band.std()) or 1.0
    return np.asarray(np.arcsinh(x / np.float32(2.0 * spread)), dtype=np.float32)


def _median(values: NDArray[np.float32]) -> np.float32:
    """The middle value, the lower one of two."""
    middle = (values.size - 1) // 2
    return np.partition(values, middle, axis=None)[middle]


def _blurred(image: NDArray[np.float32], sigma: float, rows: int, columns: int) -> NDArray[np.float32]:
    """Gaussian blur at every so many rows and columns, borders normalised by the weight inside the image."""
    down = _blur_matrix(image.shape[0], sigma, rows) @ image
    return np.asarray(down @ _blur_matrix(image.shape[1], sigma, columns).T, dtype=np.float32)


@lru_cache(maxsize=16)
def _blur_matrix(n: int, sigma: float, step: int) -> NDArray[np.float32]:
    """(m, n) blur along one axis, at every `step` pixels."""
    away = np.arange(n) - np.arange(0, n, step)[:, None]
    kernel = np.where(np.abs(away) <= np.ceil(2.5 * sigma), np.exp(-0.5 * (away / sigma) ** 2), 0.0)
    matrix = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
    matrix.flags.writeable = False
    return matrix
