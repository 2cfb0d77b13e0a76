"""How much more noise there is at the scale of a column than between neighbouring pixels.

The noise of single counts is white. Images that were smoothed, enlarged or read by a slow detector keep little of it
from pixel to pixel and nearly all of it over the width of a column, where a fit takes it for structure.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import minimum_filter

from .grid import average, filled

#: The largest wave number over the inverse width of a column (2 pi k sigma) at which the noise is looked at, also as a
#: part of what the pixels can show; and two bands below it. Even a bright column has no power there (exp(-9) at most).
_LARGEST, _NYQUIST = 5.5, 0.95
_BANDS = ((0.60, 0.79), (0.79, 1.0))
#: Fewest Fourier components of a band, and the wave number that positions and heights are told by.
_FEWEST, _COLUMN = 60, 1.0
#: Less is within the errors of the finest structure's own level.
_WHITE = 0.15
#: A part of the image is enough [px].
_SIDE = 320


@lru_cache(maxsize=8)
def _frequency(height: int, width: int) -> NDArray[np.float32]:
    """(height, width // 2 + 1) frequency of each component of a real transform [cycles/px]."""
    return np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)).astype(np.float32)


def noise_colour(image: NDArray[np.floating], usable: NDArray[np.bool_], expected: NDArray[np.floating], *,
                 binning: int, sigma_px: float) -> float:
    """Power of the noise at the scale of a column over that of white noise of the expected variance; at least one.

    Parameters
    ----------
    image : (H, W) float array
        Raw image.
    usable : (H, W) bool
        Pixels that may be used.
    expected : (H // binning, W // binning) float array
        Variance of raw pixels if their noise were white, one value for each working pixel [image units squared].
    binning : int
        Raw pixels per working pixel along one axis.
    sigma_px : float
        Width of a column [raw px].

    Notes
    -----
    Smoothing by a Gaussian makes the logarithm of the power a straight line in the square of the wave number. Two bands
    beyond the columns' own give it, and it is continued to where the columns are.
    """
    height, width = (min(n, _SIDE) // binning * binning for n in image.shape)
    top, left = ((n - m) // 2 for n, m in zip(image.shape, (height, width), strict=True))
    part = image[top : top + height, left : left + width].astype(np.float32)
    good = usable[top : top + height, left : left + width]
    if min(part.shape) < 5 * binning:
        return 1.0
    if not good.any():
        return 1.0
    part = filled(part, good)
    window = np.hanning(height)[:, None].astype(np.float32) * np.hanning(width).astype(np.float32)
    seen, share = average(window, binning), average(good.astype(np.float32), binning)
    # At the rim of what is left out the expected variance is that of something else.
    weight = seen**2 * (minimum_filter(share, 3) > 0.999)
    if not weight.any():
        return 1.0
    rows, columns = (slice(n // binning, (n + m) // binning) for n, m in zip((top, left), part.shape, strict=True))
    # What is left out is taken to be as noisy as the rest.
    white = float((weight * expected[rows, columns]).sum() / weight.sum() * (window**2).sum())
    if not white > 0:
        return 1.0
    # A few zeros more, and the transform has no large prime factor.
    padded = fft.next_fast_len(height, real=True), fft.next_fast_len(width, real=True)
    transform = fft.rfft2(window * part, s=padded)
    wave = np.float32(2 * np.pi * sigma_px) * _frequency(*padded)
    largest = min(_LARGEST, _NYQUIST * np.pi * sigma_px)
    found, square, error = [], [], []
    for low, high in _BANDS:
        chosen = (wave >= low * largest) & (wave < high * largest)
        count = int(chosen.sum())
        if count < _FEWEST:
            return 1.0
        # The median of an exponential distribution: peaks of the lattice and waves of the scan do not count.
        power = np.abs(transform[chosen]) ** 2
        found.append(max(float(np.median(power)) / (np.log(2) * white), 1e-6))
        square.append(float((wave[chosen] ** 2).mean()))
        # Of the median's logarithm; the window makes neighbouring components one and a half times less independent.
        error.append(1.5 / (np.log(2) * np.sqrt(count)))
    fall = float(np.log(found[0] / found[1]))
    if fall > 3 * np.hypot(*error):
        colour = found[0] * float(np.exp(fall * (square[0] - _COLUMN**2) / (square[1] - square[0])))
    else:
        colour = found[1] if found[1] > 1 + 3 * error[1] else 1.0
    return colour if colour > 1 + _WHITE else 1.0
