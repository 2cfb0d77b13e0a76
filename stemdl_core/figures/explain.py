"""The picture of `stemdl explain`: the image, what speaks for and against the finding, and the gradient."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..explain import Explanation
from ..frames import Frame
from .canvas import FAINT, INK, displayed, image_axes, pixel_figure, points

_SIDE, _GAP, _HEAD, _FOOT = 320, 8, 36, 30


def explanation(frame: Frame, result: Explanation) -> Figure:
    """Three panels of the same part of the image: as it is, with the occlusion map, with the saliency map."""
    figure, page = pixel_figure(3 * (_SIDE + _GAP) + _GAP, _HEAD + _SIDE + _FOOT)
    page.text(_GAP + 2, _HEAD / 2, f"{result.title}: the network says {', '.join(sorted(set(result.classes)))} "
              f"({100 * result.probability:.0f} %)", fontsize=points(17), fontweight="bold", color=INK, va="center")
    texts = ("the image", "red speaks for it, blue against (occlusion)", "where changes matter (gradient)")
    for k, text in enumerate(texts):
        left = _GAP + k * (_SIDE + _GAP)
        axes = image_axes(figure, left, _HEAD, _SIDE, _SIDE)
        _background(axes, frame, result)
        if k == 1:
            top = float(np.max(np.abs(result.occlusion))) or 1.0
            _overlay(axes, result, result.occlusion, "RdBu_r", -top, np.abs(result.occlusion) / top)
        elif k == 2:
            top = float(result.saliency.max()) or 1.0
            _overlay(axes, result, result.saliency, "inferno", 0.0, result.saliency / top)
        axes.plot(*result.targets_px[:, ::-1].T, "+", color="#00c389", ms=points(13), mew=points(2.0))
        page.text(left + 1, _HEAD + _SIDE + _FOOT / 2, text, fontsize=points(13), color=FAINT, va="center")
    return figure


def _background(axes: Axes, frame: Frame, result: Explanation) -> None:
    top, bottom, left, right = result.extent_px
    image = displayed(frame.image, result.pixel_nm)
    rows = slice(max(int(top), 0), int(bottom) + 2)
    part = image[rows, max(int(left), 0):int(right) + 2]
    low, high = np.percentile(part, (1.0, 99.7))
    height, width = image.shape
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), interpolation="bilinear", aspect="auto",
                extent=(-0.5, width - 0.5, height - 0.5, -0.5), origin="upper")
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_facecolor("#202020")


def _overlay(axes: Axes, result: Explanation, values: NDArray[np.float32], colors: str, low: float,
             strength: NDArray[np.floating]) -> None:
    top, bottom, left, right = result.extent_px
    axes.imshow(values, cmap=colors, vmin=low, vmax=float(np.max(np.abs(values))) or 1.0, interpolation="bilinear",
                alpha=np.clip(1.6 * strength, 0.0, 0.75), extent=(left, right, bottom, top), origin="upper",
                aspect="auto", zorder=2)
    axes.set(xlim=(left, right), ylim=(bottom, top))
