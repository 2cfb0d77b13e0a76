"""Where the sheet is: the mean brightness around a site against what the sheet's columns add to it.

A network that has learnt lattices draws them on beyond the edge of a faint sheet. A column alone has too few counts to
be told from vacuum there; all pixels around it together have enough.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from .materials import Material
from .refine import Refined
from .sites import Sites

#: Side of the square over which brightness is averaged [nm]: two rings.
SIDE_NM = 0.26
#: Missing part of the sheet's brightness from which a doubtful site is not believed: at a straight edge half of it is
#: missing, and a tilted background takes some.
DARK = 0.6


def off_the_sheet(image: NDArray[np.float32], yx: NDArray[np.float64], sites: Sites, refined: Refined, *,
                  sure: float, material: Material, pixel_nm: float, image_pixel_nm: float) -> NDArray[np.bool_]:
    """Sites in places as dark as vacuum.

    Parameters
    ----------
    image : (h, w) float32
        The image at the model's pixel size.
    yx : (N, 2) float64
        The sites on it [px].
    sites : Sites
        The same, refined.
    refined : Refined
        Their fit, in the same order, in units of the image.
    sure : float
        Score from which on a site is believed wherever it is.
    material : Material
    pixel_nm, image_pixel_nm : float
        Pixel size of `image`, and of the raw one that was fitted [nm].

    Returns
    -------
    (N,) bool
    """
    none = np.zeros(len(sites), dtype=bool)
    doubtful = sites.score < sure
    if refined.imaging is None or len(sites) < 12 or not doubtful.any():
        return none
    side = 2 * round(0.5 * SIDE_NM / pixel_nm) + 1
    smooth = uniform_filter(image, side, mode="nearest")
    at = np.clip(np.rint(yx).astype(int), 0, np.asarray(image.shape) - 1)
    level = smooth[at[:, 0], at[:, 1]].astype(np.float64)
    column_px = np.sqrt(3.0) / 4.0 * (material.lattice_nm / image_pixel_nm) ** 2
    sheet = float(np.nanmedian(refined.amplitude)) * refined.imaging.volume_px / column_px
    if not sheet > 0:
        return none
    usual = float(np.median(level[sites.score >= np.median(sites.score)]))
    missing = (usual - level) / sheet
    return doubtful & (missing > DARK)
