"""Local composition of an alloy as a map over the image."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial import cKDTree

from ..alloy import SURROUNDINGS_NM, local_composition
from ..analysis import FrameAnalysis
from ..frames import Frame
from . import canvas

_SIDE_PX, _HEAD, _FOOT, _BAR = 900.0, 52, 44, 120
#: Points of the map along the longer side.
_GRID = 220


def composition_map(frame: Frame, analysis: FrameAnalysis, element: str) -> Figure:
    """The image, tinted by how much of the metal around each place is of one element, whose atoms are marked.

    Parameters
    ----------
    frame : Frame
    analysis : FrameAnalysis
        Of a dichalcogenide.
    element : str
        A foreign metal, a key of ``analysis.alloy``.
    """
    height, width = frame.shape
    zoom = _SIDE_PX / max(height, width)
    size = max(round(width * zoom), 240), max(round(height * zoom), 1)
    figure, page = canvas.pixel_figure(size[0] + _BAR + 16, _HEAD + size[1] + _FOOT)
    axes = canvas.image_axes(figure, 8, _HEAD, *size)
    canvas.show_image(axes, frame, analysis)
    local = local_composition(analysis, element)
    seen = local.count > 0
    top = max(float(local.fraction[seen].max(initial=0.0)), 0.05)
    if seen.any():
        yx = analysis.sites.yx_px[seen]
        rows, columns = np.linspace(0, height - 1, _GRID), np.linspace(0, width - 1, _GRID)
        grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
        away, nearest = cKDTree(yx).query(grid)
        value = np.where(away * analysis.pixel_size.nm < 0.4, local.fraction[seen][nearest], np.nan)
        tint = axes.imshow(value, cmap="viridis", vmin=0.0, vmax=top, alpha=0.5, interpolation="bilinear",
                           extent=(-0.5, width - 0.5, height - 0.5, -0.5), aspect="auto", zorder=1.5)
        _colour_bar(figure, tint, size)
    own = analysis.sites.yx_px[analysis.sites.species == element]
    axes.plot(own[:, 1], own[:, 0], "o", color=canvas.species_colors(analysis)[element] if len(own) else "k",
              markersize=canvas.points(7), markeredgecolor="#000000", markeredgewidth=0.6, zorder=3)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    _texts(page, analysis, element, size, local.sigma[seen], zoom)
    return figure


def _colour_bar(figure: Figure, tint: object, size: tuple[int, int]) -> None:
    full_width, full_height = figure.get_size_inches() * canvas.DPI
    place = ((size[0] + 26) / full_width, 1 - (_HEAD + size[1]) / full_height, 22 / full_width, size[1] / full_height)
    bar = figure.colorbar(tint, cax=figure.add_axes(place, zorder=6))  # type: ignore[arg-type]
    bar.ax.tick_params(labelsize=canvas.points(15), colors=canvas.INK)


def _texts(page: Axes, analysis: FrameAnalysis, element: str, size: tuple[int, int], sigma: np.ndarray,
           zoom: float) -> None:
    host = analysis.host_species[0]
    title = f"{element} on the {host} sublattice"
    if element in analysis.alloy:
        title += ": x = {:.3f} ± {:.3f}".format(*analysis.alloy[element])
    page.text(8, _HEAD / 2, title, fontsize=canvas.points(21), fontweight="bold", color=canvas.INK, va="center")
    note = f"      local x within {SURROUNDINGS_NM:g} nm"
    if len(sigma):
        note += f", ± {float(np.median(sigma)):.3f} from counting"
    canvas.draw_scale_bar(page, 8, _HEAD + size[1] + _FOOT / 2, width_px=size[0],
                          px_per_nm=zoom / analysis.pixel_size.nm, text=15.0, more=note)
