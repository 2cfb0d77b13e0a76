"""Images that were cut off at the top: where, and what stands there instead.

A detector at its limit, or a picture saved with a stretched contrast, shows bright atoms as flat discs. What is cut off
carries no information, and what is not cut off among it is too dark by selection; the flanks around tell where the
atoms are and how bright.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, distance_transform_edt, maximum_filter, uniform_filter

#: Fewer pixels of the highest value are chance; and so they are where hardly more than the tail of a distribution has
#: it: this part of those within one standard deviation of the noise below.
FEWEST_PX, PILED_UP = 20, 0.25
#: More of an image than this is not cut off: it is another kind of picture.
MOST = 0.2
#: Where more than this part of the pixels around has the highest value, what has not is selected for being dark.
SELECTED = 0.15


def cut_off(image: NDArray[np.floating]) -> NDArray[np.bool_] | None:
    """Pixels that do not show how bright they were; None where the image is not cut off.

    Parameters
    ----------
    image : (H, W) float array

    Returns
    -------
    (H, W) bool or None
    """
    highest = float(image.max())
    top = image == highest
    count = int(np.count_nonzero(top))
    if not FEWEST_PX <= count <= MOST * image.size:
        return None
    # Neighbouring pixels differ by the noise of both.
    noise = 1.0484 * float(np.median(np.abs(np.diff(image[::4], axis=1))))
    below = image[~top]
    if count < PILED_UP * np.count_nonzero(below >= min(highest - noise, below.max())):
        return None
    wide = uniform_filter(top.astype(np.float32), 5, mode="nearest") > SELECTED
    cut = np.asarray(binary_dilation(top & wide) | wide)
    return cut if np.count_nonzero(cut) >= FEWEST_PX else None


def restored(image: NDArray[np.floating], cut: NDArray[np.bool_]) -> NDArray[np.floating]:
    """The image with round tops where it was cut off: a picture for the eye and for the network, not for measuring.

    Each part rises from its rim to twice as high above the image's median, as high as it is wide: parts that grew
    together keep a valley between them.
    """
    result = image.copy()
    level = float(np.median(image))
    top = float(image.max()) - level
    depth = distance_transform_edt(cut)
    # The depth of the nearest middle: that of a lobe, not of all that has grown together.
    widest = float(depth.max())
    own = maximum_filter(depth, size=2 * int(np.ceil(widest)) + 1)[cut]
    part = depth[cut] / np.maximum(own, 1.0)
    result[cut] = level + top * (1.0 + part * (2.0 - part))
    return result
