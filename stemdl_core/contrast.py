"""Whether the bright spots of an image can be the atoms of its host: those of an inverted one cannot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .lattice import LatticeFit
from .spectrum import flatten_image, waves

#: The cosine of the reflections' common phase is -1 for a honeycomb of bright atoms and 1 for one of dark atoms; beyond
#: this it is not noise or dirt that turned it.
DARK = 0.7
#: Reflections are at least this much stronger than the image is at frequencies beside them.
CLEAR = 4.0


def dark_atoms(image: NDArray[np.float32], fit: LatticeFit, *, shape: tuple[int, int]) -> bool:
    """Whether the honeycomb's atoms are dark, or two layers lie so that every second hexagon's middle is the brightest.

    The phases of three first reflections whose vectors add up to zero have a sum that does not depend on where the
    lattice lies: it is that of a honeycomb of bright spots, or of a triangular net of bright spots.

    Parameters
    ----------
    image : (h, w) float32
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
    one, two = fit.reciprocal * np.asarray(shape) / np.asarray(image.shape)
    flat = flatten_image(image, 1.15 / float(np.hypot(*one)))
    # Between the reflections there is noise, and what dirt there is.
    frequencies = np.array([one, two, -(one + two), 1.07 * one + 0.31 * two, 1.07 * two + 0.31 * one,
                            0.45 * one - 1.07 * two, 0.535 * one + 0.62 * two, 0.642 * one - 0.47 * two])
    down, across = (np.hanning(n + 2)[1:-1] * waves(f, np.arange(n)) for f, n in zip(frequencies.T, (height, width)))
    amplitude = ((down @ flat.weighted(flat.levels[0])) * across).sum(axis=1)
    three, beside = amplitude[:3], amplitude[3:]
    product = complex(three.prod())
    return bool(np.abs(three).min() > CLEAR * np.median(np.abs(beside)) and product.real > DARK * abs(product))
