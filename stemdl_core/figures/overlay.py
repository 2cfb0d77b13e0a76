"""The overlay: image, atoms by species, bonds, and the defects named beside the image."""

from __future__ import annotations

from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from scipy.ndimage import binary_dilation, binary_fill_holes
from scipy.spatial import ConvexHull, cKDTree
from skimage.measure import find_contours

from .. import crowding
from ..analysis import Defect, FrameAnalysis
from ..calibration import beyond_pixel_size
from ..frames import Frame
from . import canvas

#: Pixels of the figure per nanometre (a bond of graphene is then 20 px long), side that a small field is
#: enlarged to, and side that a large one may have [px].
_PX_PER_NM, _SIDE_PX, _LONGEST_PX = 140.0, 1000.0, 4000.0
#: A defect's outline stays this far from its outer atoms [nm].
_OUTLINE_NM = 0.075
#: A ring that would be wider than this [nm] gives way to a line around the defect's own atoms, this far from them: a
#: boundary is long and narrow.
_WIDEST_RING_NM, _AROUND_NM = 0.6, 0.14
_DEFECT_COLOR = "#ffffff"
#: Where there are too many defects for names, compact ones get a ring of this radius [nm], and kinds these colours,
#: commonest first.
_SMALL_RING_NM = 0.10
_KIND_COLORS = ("#ff6a13", "#d55ec2", "#00c389", "#f0e442", "#ff2d55", "#ffffff", "#9ad13c", "#b39ddb")
_MASK_RGBA = (1.0, 0.55, 0.0, 0.22)


def overlay(frame: Frame, analysis: FrameAnalysis) -> Figure:
    """Picture of an analysed frame at a size that shows every atom.

    Nothing is written onto the image itself: the defects' names and bond lengths stand beside it, joined to
    their defects by thin lines, the scale bar and the legend below.

    Parameters
    ----------
    frame : Frame
        The image.
    analysis : FrameAnalysis
        What was found in it.

    Returns
    -------
    Figure
        To be written with `save_figure`.
    """
    height, width = frame.shape
    nm = analysis.pixel_size.nm
    px_per_nm = max(_PX_PER_NM, _SIDE_PX / (max(height, width) * nm))
    zoom = min(px_per_nm * nm, _LONGEST_PX / max(height, width))
    image_width, image_height = max(round(width * zoom), 1), max(round(height * zoom), 1)
    text = 15.0 * max(1.0, max(image_width, image_height) / 1400) ** 0.7

    kinds = {name: (_kind_line(analysis, name, count), color)
             for name, (count, color) in crowding.kinds(analysis.defects, _KIND_COLORS).items()}
    left, right = ([], []) if kinds else _sides(analysis, width)
    host = analysis.host_species
    probe = Figure(dpi=canvas.DPI)
    canvas.FigureCanvasAgg(probe)
    margins = [_label_width(probe, side, host, text) + 3.2 * text if side else text for side in (left, right)]
    if kinds:
        margins[1] = 4.0 * text + max(canvas.text_width(probe, line, text, weight="bold") for line, _ in kinds.values())
    top = 2.4 * text
    footer = _footer_lines(analysis)
    bottom = (3.2 + 1.35 * len(footer)) * text
    # A narrow image still has to carry the title and the legend.
    needed = (
        max(canvas.text_width(probe, line, text) for line in [_title(analysis), *footer, "m" * 36]) + 2 * text
    )
    spare = max(0.0, needed - (margins[0] + image_width + margins[1])) / 2
    margins = [m + spare for m in margins]
    figure, page = canvas.pixel_figure(
        round(margins[0] + image_width + margins[1]), round(top + image_height + bottom)
    )
    origin = (round(margins[0]), round(top))
    axes = canvas.image_axes(figure, *origin, image_width, image_height)
    canvas.show_image(axes, frame, analysis)
    _draw_mask(axes, analysis, (height, width))
    bond_px = zoom * 0.142 / nm  # the figure's pixels to a bond set the strength of lines
    canvas.draw_bonds(axes, analysis, width_px=float(np.clip(bond_px / 22, 0.9, 3.0)))
    canvas.draw_sites(axes, analysis, ring_px=float(np.clip(bond_px / 22, 1.0, 2.5)))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))

    scale = (image_width / width, image_height / height)
    for side, defects in (("left", left), ("right", right)):
        _draw_labels(page, analysis, defects, side, origin, (image_width, image_height), scale, text)
    if kinds:
        _draw_kinds(page, analysis, kinds, origin, image_width, scale, text)
    _draw_frame_texts(figure, page, analysis, origin, (image_width, image_height), scale, text, footer)
    return figure


def _sides(analysis: FrameAnalysis, width: int) -> tuple[list[Defect], list[Defect]]:
    """Defects by the side of the image where their names stand, from top to bottom; about as many on each."""
    by_x = sorted(analysis.defects, key=lambda d: d.center_px[1])
    n_left = sum(d.center_px[1] < 0.5 * width for d in by_x)
    n_left = int(np.clip(n_left, 0.3 * len(by_x), np.ceil(0.7 * len(by_x)))) if len(by_x) > 3 else n_left
    return (
        sorted(by_x[:n_left], key=lambda d: d.center_px[0]),
        sorted(by_x[n_left:], key=lambda d: d.center_px[0]),
    )


def _kind_line(analysis: FrameAnalysis, name: str, count: int) -> str:
    """A kind of defect in the legend: how many, and how probable where there is doubt."""
    chance = float(np.median([d.probability for d in analysis.defects if d.name == name]))
    return f"{name}  × {count}" + ("" if chance > 0.9 else f"  ({100 * chance:.0f} %)")


def _draw_kinds(page: Axes, analysis: FrameAnalysis, kinds: dict[str, tuple[str, str]], origin: tuple[int, int],
                image_width: int, scale: tuple[float, float], text: float) -> None:
    """Rings in the colour of their kind, and what the colours are beside the image."""
    small = _SMALL_RING_NM * scale[0] / analysis.pixel_size.nm
    for defect in analysis.defects:
        _draw_outline(page, analysis, defect, origin, scale, text, color=kinds[defect.name][1], small=small)
    x = origin[0] + image_width + 1.4 * text
    for row, (line, color) in enumerate(kinds.values()):
        y = origin[1] + (1.0 + 1.7 * row) * text
        page.add_patch(Circle((x, y), 0.55 * text, facecolor="#4d4d4d", edgecolor="none"))
        page.add_patch(Circle((x, y), 0.42 * text, fill=False, edgecolor=color, linewidth=canvas.points(0.16 * text)))
        page.text(x + 1.1 * text, y, line, fontsize=canvas.points(text), fontweight="bold", color=canvas.INK,
                  va="center")


def _label(defect: Defect, host: tuple[str, ...]) -> tuple[str, str]:
    """A defect's name (with its probability where there is doubt), and the bond lengths of foreign atoms."""
    name = defect.name if defect.probability > 0.9 else f"{defect.name}  {100 * defect.probability:.0f} %"
    if np.isfinite(defect.misorientation_deg):
        return name, f"grains turned by {defect.misorientation_deg:.1f}°"
    lengths = [f"{b.length_pm:.0f}" for b in defect.bonds]
    if not lengths or set(defect.composition) <= set(host):
        return name, ""
    shown = " ".join(lengths[:6]) + (" ..." if len(lengths) > 6 else "")
    return name, f"{shown} pm"


def _label_width(figure: Figure, defects: list[Defect], host: tuple[str, ...], text: float) -> float:
    return max(
        max(
            canvas.text_width(figure, name, text, weight="bold"),
            canvas.text_width(figure, lengths, 0.8 * text),
        )
        for name, lengths in (_label(d, host) for d in defects)
    )


def _draw_mask(axes: Axes, analysis: FrameAnalysis, shape: tuple[int, int]) -> None:
    """Tint what was not analysed."""
    if analysis.mask is None or not analysis.mask.any():
        return
    tint = np.zeros((*analysis.mask.shape, 4), np.float32)
    tint[analysis.mask] = _MASK_RGBA
    axes.imshow(
        tint,
        extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5),
        origin="upper",
        aspect="auto",
        interpolation="nearest",
        zorder=1,
    )


def _draw_labels(
    page: Axes,
    analysis: FrameAnalysis,
    defects: list[Defect],
    side: str,
    origin: tuple[int, int],
    size: tuple[int, int],
    scale: tuple[float, float],
    text: float,
) -> None:
    """Outlines on the image, names beside it, and a line from one to the other."""
    if not defects:
        return
    host = analysis.host_species
    two_lines = any(_label(d, host)[1] for d in defects)
    pitch = (2.5 if two_lines else 1.5) * text
    half = 0.5 * pitch
    wanted = [origin[1] + (d.center_px[0] + 0.5) * scale[1] for d in defects]
    rows = canvas.spread(wanted, pitch, origin[1] + half, max(origin[1] + size[1] - half, origin[1] + half))
    crowded = len(rows) > 1 and rows[1] - rows[0] < 0.6 * pitch
    outward = -1.0 if side == "left" else 1.0
    border = origin[0] if side == "left" else origin[0] + size[0]
    x_text = border + outward * 1.6 * text
    for defect, row in zip(defects, rows):
        outline = _draw_outline(page, analysis, defect, origin, scale, text)
        elbow = border + outward * 0.7 * text
        start = outline[int(np.argmin(np.hypot(*(outline - [elbow, row]).T)))]
        for color, extra in (
            ("#000000", 1.4),
            (_DEFECT_COLOR, 0.0),
        ):  # white with a dark edge shows on any grey
            page.plot(
                [start[0], elbow],
                [start[1], row],
                color=color,
                linewidth=canvas.points(1.2 + extra),
                alpha=0.55 if extra else 0.9,
                solid_capstyle="butt",
                zorder=3 - 0.1 * extra,
            )
        page.plot(
            [elbow, x_text - outward * 0.3 * text],
            [row, row],
            color=canvas.FAINT,
            linewidth=canvas.points(1.2),
        )
        name, lengths = _label(defect, host)
        align = "right" if side == "left" else "left"
        offset = 0.62 * text if lengths and not crowded else 0.0
        page.text(
            x_text,
            row - offset,
            name,
            fontsize=canvas.points(text),
            fontweight="bold",
            color=canvas.INK,
            ha=align,
            va="center",
            zorder=4,
        )
        if lengths and not crowded:
            page.text(
                x_text,
                row + 0.62 * text,
                lengths,
                fontsize=canvas.points(0.8 * text),
                color=canvas.FAINT,
                ha=align,
                va="center",
                zorder=4,
            )


def _draw_outline(
    page: Axes,
    analysis: FrameAnalysis,
    defect: Defect,
    origin: tuple[int, int],
    scale: tuple[float, float],
    text: float,
    *,
    color: str = _DEFECT_COLOR,
    small: float = 0.0,
) -> np.ndarray:
    """A line around the defect's atoms (or a `small` ring around its middle), a filled hole; points (x, y) of the line
    [px of the page].
    """
    ids = [i for i in defect.site_ids if 0 <= i < len(analysis.sites)]
    yx = analysis.sites.yx_px[ids] if ids else np.array([defect.center_px], dtype=float)
    xy = (yx[:, ::-1] + 0.5) * np.array(scale) + np.array(origin)
    px_per_nm = scale[0] / analysis.pixel_size.nm
    hole = defect.missing_atoms > 0 and set(defect.composition) <= set(analysis.host_species)
    if hole and len(xy) > 2:
        # Not all of a defect's atoms are on its rim.
        rim = xy[ConvexHull(xy).vertices]
        page.add_patch(
            Polygon(rim, closed=True, facecolor="#d55ec2", edgecolor="none", alpha=0.30, zorder=2)
        )
    center = 0.5 * (xy.min(axis=0) + xy.max(axis=0))
    reach = float(np.hypot(*(xy - center).T).max()) + _OUTLINE_NM * px_per_nm
    if small and reach < _WIDEST_RING_NM * px_per_nm and crowding.compact(defect):
        center, reach = (np.array(defect.center_px)[::-1] + 0.5) * np.array(scale) + np.array(origin), small
    if reach > _WIDEST_RING_NM * px_per_nm:
        lines = _around(xy, _AROUND_NM * px_per_nm)
    else:
        turn = np.linspace(0.0, 2.0 * np.pi, 120, endpoint=False)
        lines = [center + reach * np.stack([np.cos(turn), np.sin(turn)], axis=1)]
    thick = max(1.0, text / 18)
    for ink, width, alpha in (("#000000", 2.8, 0.45), (color, 1.3, 0.95)):
        for line in lines:
            page.add_patch(
                Polygon(
                    line,
                    closed=True,
                    fill=False,
                    edgecolor=ink,
                    alpha=alpha,
                    linewidth=canvas.points(width * thick),
                    zorder=2.5,
                )
            )
    return np.concatenate(lines)


def _around(xy: np.ndarray, distance: float) -> list[np.ndarray]:
    """The outer lines of the union of discs around positions."""
    step = distance / 10
    low = xy.min(axis=0) - 2 * distance
    x, y = (np.arange(a, b, step) for a, b in zip(low, xy.max(axis=0) + 2 * distance))
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    away = cKDTree(xy).query(grid)[0]
    covered = binary_fill_holes(away < distance)
    # Inside of what is covered only its rim counts: rings leave gaps between their discs.
    away = np.where(covered, np.minimum(away, distance), np.maximum(away, distance))
    away[covered & ~binary_dilation(~covered, iterations=2)] = 0.0
    return [low + step * line[:, ::-1] for line in find_contours(away, 0.999 * distance)]


def _title(analysis: FrameAnalysis) -> str:
    counts = Counter(analysis.sites.species.tolist())
    atoms = ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "no atoms"
    names = Counter(d.name for d in analysis.defects)
    defects = ", ".join(name if n == 1 else f"{n} × {name}" for name, n in names.most_common(6))
    if len(names) > 6:
        defects += ", ..."
    return "   ·   ".join([analysis.material, atoms, defects or "no defects"])


def _footer_lines(analysis: FrameAnalysis) -> list[str]:
    source = {"lattice": "from the lattice", "metadata": "from the file", "argument": "as given"}
    pixel = analysis.pixel_size
    line = f"{1e3 * pixel.nm:.4g} pm/px {source[pixel.source]}"
    if pixel.nominal_nm is not None and abs(pixel.nominal_nm / pixel.nm - 1) > 5e-4:
        line += f" (nominal {1e3 * pixel.nominal_nm:.4g})"
    lines = [f"{line}   ·   model {analysis.model}"]
    if analysis.masked_fraction > 0.005:
        lines[0] += f"   ·   {100 * analysis.masked_fraction:.0f} % not analysed (tinted)"
    notes = beyond_pixel_size(analysis.warnings, pixel.source)
    shown = [w if len(w) <= 110 else w[:107] + "..." for w in notes[:3]]
    return lines + [f"Note: {w}" for w in shown]


def _draw_frame_texts(
    figure: Figure,
    page: Axes,
    analysis: FrameAnalysis,
    origin: tuple[int, int],
    size: tuple[int, int],
    scale: tuple[float, float],
    text: float,
    footer: list[str],
) -> None:
    """Title above; scale bar, legend and footer below."""
    full_width = page.get_xlim()[1]
    page.text(
        0.5 * full_width,
        0.5 * origin[1],
        _title(analysis),
        fontsize=canvas.points(text),
        color=canvas.INK,
        ha="center",
        va="center",
    )
    below = origin[1] + size[1]
    y = below + 1.2 * text
    canvas.draw_scale_bar(page, origin[0], y, width_px=size[0], px_per_nm=scale[0] / analysis.pixel_size.nm, text=text)
    counts = Counter(analysis.sites.species.tolist())
    host = analysis.host_species
    x = float(origin[0] + size[0])
    for name, color in reversed(
        [(n, c) for n, c in canvas.species_colors(analysis).items() if counts.get(n)]
    ):
        caption = f"{name}  {counts[name]}"
        x -= canvas.text_width(figure, caption, text)
        page.text(x, y, caption, fontsize=canvas.points(text), color=canvas.INK, va="center")
        x -= 0.9 * text
        radius = 0.32 * text if name in host else 0.42 * text
        page.add_patch(
            Circle((x, y), radius, facecolor=color, edgecolor=canvas.INK, linewidth=canvas.points(0.8))
        )
        x -= 1.6 * text
    for i, line in enumerate(footer):
        page.text(
            0.5 * full_width,
            below + (2.75 + 1.35 * i) * text,
            line,
            fontsize=canvas.points(0.85 * text),
            color=canvas.FAINT,
            ha="center",
            va="center",
        )
