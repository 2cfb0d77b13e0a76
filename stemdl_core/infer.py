"""From an image at the model's pixel size to probability maps."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from .weights import Model

#: Images are processed in tiles of this size [px of the model] so that memory stays bounded.
TILE_PX = 1024
#: Overlap of tiles: wider than half the network's field of view, so that seams do not show.
OVERLAP_PX = 96


def probability_maps(model: Model, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Class probabilities of every pixel.

    Parameters
    ----------
    model : Model
        Network and card.
    image : (h, w) float32
        Standardised image at the model's pixel size (see `preprocess.standardise`).

    Returns
    -------
    (C, h, w) float32
        Softmax output; channels as in ``model.card.classes``.
    """
    height, width = image.shape
    if max(height, width) <= TILE_PX:
        return _run(model, image)
    maps = np.empty((len(model.card.classes), height, width), dtype=np.float32)
    step = TILE_PX - 2 * OVERLAP_PX
    for top in range(0, height, step):
        for left in range(0, width, step):
            # Tiles begin on multiples of the network's coarsest grid, so that pooling sees the same cells.
            first_row, first_column = max(top - OVERLAP_PX, 0), max(left - OVERLAP_PX, 0)
            last_row, last_column = min(top + step + OVERLAP_PX, height), min(left + step + OVERLAP_PX, width)
            tile = _run(model, image[first_row:last_row, first_column:last_column])
            bottom, right = min(top + step, height), min(left + step, width)
            maps[:, top:bottom, left:right] = tile[:, top - first_row:bottom - first_row,
                                                   left - first_column:right - first_column]
    return maps


def _run(model: Model, image: NDArray[np.float32]) -> NDArray[np.float32]:
    multiple = int(model.network.multiple)  # type: ignore[arg-type]
    height, width = image.shape
    pad_rows, pad_columns = -height % multiple, -width % multiple
    x = torch.from_numpy(np.ascontiguousarray(image))[None, None].to(model.device)
    with torch.inference_mode():
        if pad_rows or pad_columns:
            x = functional.pad(x, (0, pad_columns, 0, pad_rows), mode="replicate")
        logits = model.network(x)[0, :, :height, :width]
        return torch.softmax(logits, dim=0).cpu().numpy()
