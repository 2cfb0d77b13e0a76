"""Smoothing undone: what a Gaussian blur took from fine structure is given back, as far as it is above the rounding.

An image that was smoothed has lost next to no information: columns and noise fell together. But a fit that takes the
noise for white, of the level that it has at the scale of a column, weighs the finer structure that tells neighbours
apart as if it were noisier than it is. With the blur known from the noise itself, the image as it was taken is had
back, and its noise is white again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.optimize import least_squares

from .grid import filled

#: Wave numbers [1/nm] between which the noise is looked at: below, what lies on the sheet is as strong.
_SMALLEST, _LARGEST = 55.0, 170.0
#: Bands of wave numbers, and fewest components of each.
_BANDS, _FEWEST = 14, 60
#: A weaker blur than this is not worth undoing [nm], and one wider than that is not believed.
_LEAST_NM, _MOST_NM = 0.006, 0.07
#: Fall of the noise's power from the first band to the last by which a blur shows [nepers].
_LEAST_FALL = 0.8
#: Part of the fall by which the law may be off.
_LEAKAGE = 0.005
#: The same where its width is found, and fewest bands in which what was blurred has to stand above the floor.
_ENDS, _BLURRED = 0.015, 3
#: Residual of the law [standard deviations of a band, root mean square over those above the floor] up to which the blur
#: is taken for a Gaussian one: 0.4-0.7 up to 30 pm, 1.2-1.6 at 45 pm, 1.8-2.8 for filters of other shapes as wide.
_WORST_FIT = 1.75
#: Wave numbers up to which structure is given back [1/nm]: columns have none beyond the first, next to none beyond the
#: last. The largest is taken at which the borders stay quiet.
_LIMITS = (115.0, 98.0, 84.0, 72.0, 62.0, 54.0, 47.0)
#: Finest structure along a border over that inside beyond which the border was not blurred like the rest.
_BORDER = 2.0
#: Least side of the parts whose noise is looked at where something hides the rest: fewer lattice constants blur its
#: peaks into all wave numbers [px, nm].
_PART_PX, _PART_NM = 64, 1.5
#: Dirt as bright as this is part of the picture that was smoothed [standard deviations].
_BRIGHTEST = 300.0
#: Half the side of the part that stands for the inside [px].
_CORE = 100


class Unblurred(NamedTuple):
    """An image before a blur.

    Parameters
    ----------
    image : (H, W) float64
        With its fine structure.
    variance : float
        Of a pixel, if its noise were as strong at all wave numbers as it is at those of columns [image units squared].
    finest_nm : float
        Inverse of the largest wave number up to which structure was given back [nm].
    blurred : float
        Variance of the noise of a pixel of the image as it was given [image units squared].
    """

    image: NDArray[np.float64]
    variance: float
    finest_nm: float
    blurred: float


def undo_smoothing(image: NDArray[np.floating], usable: NDArray[np.bool_], *, pixel_nm: float) -> Unblurred | None:
    """The image before a Gaussian blur that its own noise shows, and the variance of its noise.

    Parameters
    ----------
    image : (H, W) float array
        Raw image.
    usable : (H, W) bool
        Pixels that may be used.
    pixel_nm : float
        Pixel size [nm/px].

    Returns
    -------
    Unblurred, or None where there is no such blur.

    Notes
    -----
    White noise after a Gaussian blur of width s has the power A exp(-k^2 s^2), over a floor F of rounding and readout.
    Both are fitted to the medians of bands of wave numbers (the lattice's peaks are few among all components); the
    filter is that of Wiener, exp(k^2 s^2 / 2) / (1 + F / A exp(k^2 s^2)), in cosines: their mirrored borders are
    those of most blurs.
    """
    if min(image.shape) < 64 or not usable.any():
        return None
    # What is masked is part of the picture that was smoothed: anything else in its place would make edges that ring.
    level = float(image[usable].mean())
    values = filled(image.astype(np.float64), usable, brightest=_BRIGHTEST)
    height, width = values.shape
    power, k2, scale = _spectra(values, usable, pixel_nm)
    law = _law(power, k2, 0.95 * np.pi / pixel_nm)
    if law is None:
        return None
    top, s2, floor = law
    waves = fft.dctn(values, norm="ortho")
    k2 = (np.pi / pixel_nm) ** 2 * ((np.arange(height) / height)[:, None] ** 2 + (np.arange(width) / width) ** 2)
    blur = np.exp(np.minimum(k2 * s2, 60.0))
    gain = np.sqrt(blur) / (1 + floor * blur)
    for limit in _LIMITS:
        # Half a Gaussian beyond the limit: a sharp edge would ring.
        beyond = np.maximum(np.sqrt(k2) / limit - 1, 0)
        sharp = fft.idctn(waves * gain * np.exp(-0.5 * (beyond / 0.15) ** 2 - beyond * limit**2 * s2), norm="ortho")
        if _quiet_borders(sharp, usable):
            return Unblurred(sharp + level, top / scale, 1.0 / limit, top / scale * float(np.mean(1 / blur)))
    return None


def _spectra(values: NDArray[np.floating], usable: NDArray[np.bool_],
             pixel_nm: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Powers (T, h, w) of parts of the image, their squared wave numbers (h, w) [1/nm^2], and the power of noise of
    variance one.

    The whole image is one part where all of it may be used; else parts without gaps, if there are any: the flanks of
    bright dirt are no noise.
    """
    size, parts = values.shape, [(0, 0)]
    if not usable.all():
        side = min(max(_PART_PX, round(_PART_NM / pixel_nm)), *values.shape)
        starts = [np.unique(np.linspace(0, n - side, max(1, 2 * (n - side) // side + 1)).astype(int)) for n in size]
        whole = [(y, x) for y in starts[0] for x in starts[1] if usable[y:y + side, x:x + side].all()]
        if whole:
            size, parts = (side, side), whole
    height, width = size
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.stack([np.abs(fft.rfft2(window * values[y:y + height, x:x + width])) ** 2 for y, x in parts])
    k2 = (2 * np.pi / pixel_nm) ** 2 * (fft.fftfreq(height)[:, None] ** 2 + fft.rfftfreq(width) ** 2)
    return power, k2, float((window**2).sum())


def _law(power: NDArray[np.float64], k2: NDArray[np.float64], nyquist: float) -> tuple[float, float, float] | None:
    """(A, s^2 [nm^2], F / A) of the noise's power A (exp(-k^2 s^2) + F / A); None where there is no such blur."""
    edges = np.linspace(_SMALLEST, min(_LARGEST, nyquist), _BANDS + 1) ** 2
    at, log, error = [], [], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        chosen = power[:, (k2 >= low) & (k2 < high)].ravel()
        if len(chosen) >= _FEWEST and np.median(chosen) > 0:
            at.append(0.5 * (low + high))
            # The median of an exponential distribution.
            log.append(float(np.log(np.median(chosen) / np.log(2))))
            error.append(1.5 / np.sqrt(len(chosen)) + 0.03)
    if len(at) < 4 or at[-1] < 1.5 * at[0]:
        return None
    x, y = np.array(at), np.array(log)
    # What is left far down comes from the flanks of a window, too.
    sigma = np.array(error) + _LEAKAGE * np.maximum(y[0] - y, 0.0)
    if y[0] - y[-1] < _LEAST_FALL:
        return None

    def off(p: NDArray[np.float64], sigma: NDArray[np.float64] = sigma) -> NDArray[np.float64]:
        return np.asarray((p[0] + np.logaddexp(-p[1] * x, p[2]) - y) / sigma)

    # The floor makes several minima: the best of a grid is improved.
    blurs, floors = np.meshgrid(np.linspace(_LEAST_NM, _MOST_NM, 61) ** 2, np.arange(-40.0, 0.0, 1.0))
    blurs, floors = blurs.ravel(), floors.ravel()
    shape = np.logaddexp(-blurs[:, None] * x, floors[:, None])
    tops = np.median(y - shape, axis=1)
    cost = np.sqrt(1 + ((tops[:, None] + shape - y) / sigma) ** 2).sum(1)
    best = int(np.argmin(cost))
    steps, bounds = [1.0, 1e-4, 3.0], ([-np.inf, 0.0, -60.0], [np.inf, 1.1 * _MOST_NM**2, 0.0])
    found = least_squares(off, [tops[best], blurs[best], floors[best]], loss="soft_l1", x_scale=steps, bounds=bounds)
    if found.x[1] < _LEAST_NM**2:
        return None
    # Filters end somewhere, which shows far down only: what is near says how wide they are.
    wide = sigma + _ENDS * np.maximum(y[0] - y, 0.0)
    found = least_squares(off, found.x, x_scale=steps, bounds=bounds, kwargs={"sigma": wide})
    blurred = -found.x[1] * x > found.x[2]
    if np.count_nonzero(blurred) < _BLURRED:
        # Two bands are soon as strong for another reason: in a small part of an image the lattice's peaks are wide.
        return None
    if float(np.sqrt(np.mean(off(found.x, wide)[blurred] ** 2))) > _WORST_FIT:
        return None
    return float(np.exp(found.x[0])), float(found.x[1]), float(np.exp(found.x[2]))


def _quiet_borders(sharp: NDArray[np.float64], usable: NDArray[np.bool_]) -> bool:
    """Whether the finest structure along all borders is hardly stronger than inside."""
    def fine(rows: slice, columns: slice) -> NDArray[np.float64]:
        part = sharp[rows, columns]
        cross = part[:-2, 1:-1] + part[2:, 1:-1] + part[1:-1, :-2] + part[1:-1, 2:]
        return np.asarray((cross - 4 * part[1:-1, 1:-1]) ** 2)[usable[rows, columns][1:-1, 1:-1]]

    height, width = sharp.shape
    rim, every = max(4, min(sharp.shape) // 20), slice(None)
    # A part from the middle is enough.
    core = [slice(max(2 * rim, n // 2 - _CORE), min(n - 2 * rim, n // 2 + _CORE)) for n in (height, width)]
    inner = fine(*core)
    if not len(inner):
        return False
    sides = ((slice(0, rim + 1), every), (slice(height - rim - 1, height), every),
             (every, slice(0, rim + 1)), (every, slice(width - rim - 1, width)))
    strips = [fine(*side) for side in sides]
    return all(float(np.median(strip)) < _BORDER * float(np.median(inner)) for strip in strips if len(strip))
