"""Pictures of the defect library: a contact sheet a class, and all classes at a glance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..library_environment import GRID_NM, GRID_PX
from ..library_kinds import DefectClass
from ..library_store import IMAGE_NM, Library
from .canvas import _FIXED, _FOREIGN, _HOST, FAINT, INK, image_axes, pixel_figure, points

_LARGE, _SMALL, _GAP, _HEAD = 300, 96, 8, 58


def contact_sheet(library: Library, chosen: DefectClass) -> Figure:
    """What a person judges a class by: average image, mean structure, and single members turned alike.

    Parameters
    ----------
    library : Library
    chosen : DefectClass
    """
    columns = 5
    rows = max(-(-len(chosen.examples) // columns), 3)
    width = 3 * _GAP + 2 * _LARGE + _GAP + columns * (_SMALL + _GAP)
    height = _HEAD + max(_LARGE + 2 * _GAP, rows * (_SMALL + _GAP) + _GAP) + 26
    figure, page = pixel_figure(width, height)
    page.text(_GAP + 2, 24, f"{chosen.id}  {library.label(chosen.id)}", fontsize=points(20), fontweight="bold",
              color=INK, va="center")
    page.text(_GAP + 2, 45, describe(library, chosen), fontsize=points(13), color=FAINT, va="center")
    average = image_axes(figure, _GAP, _HEAD, _LARGE, _LARGE)
    show_average(average, chosen.image)
    structure = image_axes(figure, 2 * _GAP + _LARGE, _HEAD, _LARGE, _LARGE)
    show_average(structure, chosen.image, faint=True)
    draw_structure(structure, chosen)
    left = 4 * _GAP + 2 * _LARGE
    for k, picture in enumerate(chosen.examples):
        row, column = divmod(k, columns)
        axes = image_axes(figure, left + column * (_SMALL + _GAP), _HEAD + row * (_SMALL + _GAP), _SMALL, _SMALL)
        show_average(axes, picture.astype(np.float32))
    foot = height - 14
    shown = len(chosen.examples)
    page.text(_GAP + 2, foot, f"average of {chosen.count}, {IMAGE_NM:.2f} nm wide", fontsize=points(12), color=FAINT,
              va="center")
    page.text(2 * _GAP + _LARGE, foot, "mean structure", fontsize=points(12), color=FAINT, va="center")
    page.text(left, foot, f"{shown} of {chosen.count} members, turned and mirrored alike", fontsize=points(12),
              color=FAINT, va="center")
    return figure


def overview(library: Library, *, most: int = 24) -> Figure:
    """All classes of a library as thumbnails with their counts, the most frequent and novel first."""
    classes = library.shown()[:most]
    side, columns = 150, min(6, max(len(classes), 1))
    rows = max(-(-len(classes) // columns), 1)
    figure, page = pixel_figure(columns * (side + _GAP) + _GAP, rows * (side + 46 + _GAP) + _GAP)
    if not classes:
        page.text(side / 2, side / 2, "no defects", fontsize=points(14), color=FAINT, ha="center")
    for k, c in enumerate(classes):
        row, column = divmod(k, columns)
        left, top = _GAP + column * (side + _GAP), _GAP + row * (side + 46 + _GAP)
        axes = image_axes(figure, left, top, side, side)
        show_average(axes, c.image)
        draw_structure(axes, c, width_px=1.2)
        page.text(left + 1, top + side + 13, f"{c.id}  {library.label(c.id)}"[:21], fontsize=points(14), va="center",
                  color=INK, fontweight="bold" if c.name else "normal")
        page.text(left + 1, top + side + 31, f"{library.count(c.id)} found, novelty {c.novelty:.2f}",
                  fontsize=points(12), va="center", color=FAINT)
    return figure


def describe(library: Library, c: DefectClass) -> str:
    """A class in one line."""
    found = ", ".join(f"{n} {name}" for name, n in c.found_as[:3])
    text = f"{library.count(c.id)} members, {c.composition}"
    if c.missing:
        text += f", {c.missing} missing"
    if c.kind != "single":
        text += f", {c.kind}"
    if c.sub_class_of:
        text += f", sub-class of {c.sub_class_of}"
    return f"{text}; found as {found}; novelty {c.novelty:.2f}"


def show_average(axes: Axes, picture: NDArray[np.floating], *, faint: bool = False) -> None:
    """An image of the library: black is the middle of a ring, grey a host column."""
    half = 0.5 * GRID_PX * GRID_NM
    finite = picture[np.isfinite(picture)]
    top = max(1.6, float(np.percentile(finite, 99.0))) if finite.size else 1.6
    values = np.where(np.isfinite(picture), picture, 0.0)
    if faint:
        values, top = 0.5 * values, top
    axes.imshow(values, cmap="gray", vmin=-0.25, vmax=top, interpolation="bilinear",
                extent=(-half, half, half, -half), origin="upper", aspect="auto")
    axes.set(xlim=(-half, half), ylim=(half, -half))


def draw_structure(axes: Axes, c: DefectClass, *, width_px: float = 2.0) -> None:
    """Atoms and bonds of the mean structure; the defect's own are larger."""
    g = c.geometry
    colors = class_colors(g.species.tolist(), g.host)
    half = 0.5 * GRID_PX * GRID_NM
    xy = g.yx_nm[:, ::-1]
    near = np.all(np.abs(xy) < 1.05 * half, axis=1)
    lines, tints = [], []
    for a, b in c.bonds.tolist():
        if near[a] or near[b]:
            lines.append(xy[[a, b]])
            foreign = [str(g.species[i]) for i in (a, b) if g.species[i] not in g.host]
            tints.append(colors[foreign[0]] if foreign else colors[g.host[0]])
    axes.add_collection(LineCollection(lines, colors=tints, linewidths=points(width_px), alpha=0.8, zorder=2))
    for species, color in colors.items():
        for own, size in ((False, 3.0), (True, 6.0)):
            chosen = near & (g.species == species) & (g.core == own)
            if species not in g.host:
                size += 3.0
            axes.plot(*xy[chosen].T, "o", ms=points(size * max(width_px, 1.2) / 2), mec="none", color=color, zorder=3,
                      alpha=1.0 if own else 0.8)


def class_colors(species: Sequence[str], host: Sequence[str]) -> dict[str, str]:
    """A colour for each species, hosts first."""
    colors = {name: _HOST[k % 2] for k, name in enumerate(host)}
    for name in sorted(set(species) - set(host)):
        fixed = _FIXED.get(name)
        colors[name] = fixed if fixed and fixed not in colors.values() else next(
            (f for f in _FOREIGN if f not in colors.values()), _FOREIGN[0])
    return colors
