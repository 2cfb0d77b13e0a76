"""Whether the bright spots of an image can be the atoms of its host: those of an inverted one cannot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from .lattice import LatticeFit
from .spectrum import waves

#: The cosine of the reflections' common phase is -1 for a honeycomb of bright atoms and 1 for one of dark atoms; beyond
#: this it is not noise or dirt that turned it.
DARK = 0.7
#: Reflections are at least this much stronger than the image is at frequencies beside them.
CLEAR = 4.0


def dark_atoms(image: NDArray[np.floating], fit: LatticeFit, *, shape: tuple[int, int]) -> bool:
    """Whether the honeycomb's atoms are dark, or two layers lie so that every second hexagon's middle is the brightest.

    The phases of three first reflections whose vectors add up to zero have a sum that does not depend on where the
    lattice lies: it is that of a honeycomb of bright spots, or of a triangular net of bright spots.

    Parameters
    ----------
    image : (h, w) float array
        The image on any grid.
    fit : LatticeFit
        The host lattice of the image as recorded.
    shape : (int, int)
        (H, W) of that image.

    References
    ----------
    Triplet phase invariants: H. Hauptman & J. Karle, "Solution of the phase problem" (1953).
    """
    height, width = image.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    one, two = fit.reciprocal * np.asarray(shape) / np.asarray(image.shape)
    flat = image - uniform_filter(image, round(2.5 / float(np.hypot(*one))), mode="nearest")
    # What is brighter or darker than the lattice says nothing of it.
    flat = np.clip(flat, *np.quantile(flat[::3, ::3], (0.02, 0.98))) * window

    def amplitude(frequency: NDArray[np.float64]) -> complex:
        y, x = (waves(np.array([f]), np.arange(n))[0] for f, n in zip(frequency, flat.shape))
        return complex(y @ flat @ x)

    three = [amplitude(g) for g in (one, two, -(one + two))]
    # Between the reflections there is noise, and what dirt there is.
    beside = [abs(amplitude(1.07 * a + b)) for a, b in ((one, 0.31 * two), (two, 0.31 * one), (-two, 0.45 * one),
                                                         (0.5 * one, 0.62 * two), (0.6 * one, -0.47 * two))]
    product = three[0] * three[1] * three[2]
    return bool(min(map(abs, three)) > CLEAR * float(np.median(beside)) and product.real > DARK * abs(product))
