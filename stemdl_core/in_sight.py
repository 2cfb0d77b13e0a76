"""Where the lattice can be seen although the network takes the place for hidden.

The network learned that what lies on the sheet is rough. A thin layer that is smooth adds light and hides nothing: the
lattice is there as it is beside it, and a microscopist would count the atoms. Whether it is there is a question to the
image, which the network need not answer: how strong the host's reflections are in a small surrounding, and how much of
the structure at the scale of atoms is theirs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_opening, gaussian_filter, label, median

from .harmonics import HK, NORM
from .lattice import LatticeFit
from .spectrum import waves

#: Width of the surroundings that are looked at [nm].
SURROUNDINGS_NM = 0.28
#: Structure between these scales is that of atoms [distance of the first lattice planes].
_FINE, _COARSE = 0.16, 0.75
#: Part of that structure that is the host's, over that of the clean image and at all, for it to be in sight. A second
#: layer, or rough dirt, has structure of its own.
LEAST_SHARE, LEAST_PURITY = 0.85, 0.4
#: Power of the host's reflections, and amplitude of the weakest, over those of the clean image.
POWER, LEAST_AMPLITUDE = (0.75, 1.25), 0.8
#: The same of a whole masked region, at most, in the median: two layers in step are stronger than one.
MOST_POWER = 1.25
#: What is in sight is at least this wide [nm].
NARROWEST_NM = 0.30
#: Beside what is in sight a defect, too, takes coherence from the lattice: so near to it these limits are enough [nm].
BESIDE_NM, BESIDE_SHARE = 0.35, 0.35
#: Less of a masked region in sight than this is chance: two layers that happen to fall on each other.
LEAST_PART = 0.25
#: Structure brighter than this is a foreign atom's, which hides as little [standard deviations of the clean image].
_BRIGHTEST = 2.5
#: What stays masked beside it is at least this wide [nm].
NARROWEST_MASK_NM = 0.24
#: Part of the image that has to be clean for anything to be compared with.
LEAST_CLEAN = 0.1


def lattice_in_sight(image: NDArray[np.float32], mask: NDArray[np.bool_], fit: LatticeFit, *,
                     shape: tuple[int, int], pixel_nm: float) -> NDArray[np.bool_]:
    """Masked pixels in which the lattice is as clear as outside.

    Parameters
    ----------
    image : (h, w) float32
        The image on the model's grid.
    mask : (h, w) bool
        What the network takes for hidden.
    fit : LatticeFit
        The host lattice of the image as recorded.
    shape : (int, int)
        (H, W) of that image.
    pixel_nm : float
        Pixel size of the model's grid [nm].

    Returns
    -------
    (h, w) bool
    """
    nothing = np.zeros_like(mask)
    if not mask.any() or 1 - mask.mean() < LEAST_CLEAN:
        return nothing
    reflections = HK[NORM == 1] @ (fit.reciprocal * np.asarray(shape) / np.asarray(image.shape))
    planes = 1.0 / float(np.hypot(*reflections.T).mean())
    structure = gaussian_filter(image, _FINE * planes) - gaussian_filter(image, _COARSE * planes)
    clean = ~mask
    most = _BRIGHTEST * float(structure[clean].std())
    structure = np.clip(structure, -most, most)
    around = SURROUNDINGS_NM / pixel_nm
    along = [waves(f, np.arange(length)) for f, length in zip(reflections.T, image.shape)]
    amplitudes = [np.abs(gaussian_filter(structure * np.outer(y, x), around)) for y, x in zip(*along)]
    weakest = np.min(amplitudes, axis=0)
    power = 2 * np.sum(np.square(amplitudes), axis=0)
    purity = power / np.maximum(gaussian_filter(structure**2, around), np.float32(1e-12))
    usual = {name: float(np.median(value[clean]))
             for name, value in (("purity", purity), ("power", power), ("weakest", weakest))}
    seen = (mask & (purity > max(LEAST_SHARE * usual["purity"], LEAST_PURITY))
            & (power > POWER[0] * usual["power"]) & (power < POWER[1] * usual["power"])
            & (weakest > LEAST_AMPLITUDE * usual["weakest"]))
    if not seen.any():
        return nothing
    seen &= binary_opening(seen | clean, _disc(0.5 * NARROWEST_NM / pixel_nm))
    region, count = label(mask)
    part = np.bincount(region[seen], minlength=count + 1) / np.bincount(region.ravel(), minlength=count + 1)
    strong = np.array([False, *(median(power, region, range(1, count + 1)) > MOST_POWER * usual["power"])])
    seen &= (part > LEAST_PART)[region] & ~strong[region]
    if not seen.any():
        return nothing
    beside = binary_dilation(seen, _disc(BESIDE_NM / pixel_nm)) & mask
    seen |= beside & (purity > BESIDE_SHARE * usual["purity"])
    # Slivers that are left would cut rings.
    left = mask & ~seen
    return np.asarray(seen | (left & beside & ~binary_opening(left, _disc(0.5 * NARROWEST_MASK_NM / pixel_nm))))


def _disc(radius_px: float) -> NDArray[np.bool_]:
    radius = max(1, round(radius_px))
    y, x = np.mgrid[-radius:radius + 1, -radius:radius + 1]
    return np.asarray(y * y + x * x <= radius * radius)
