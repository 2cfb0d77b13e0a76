"""One defect as a graph: the image beside atoms, bond lengths and angles (figures 4 and 6 of the paper)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle
from numpy.typing import NDArray

from ..analysis import Defect, DefectAngle, FrameAnalysis
from ..frames import Frame
from . import canvas

_PANEL_PX, _TEXT_PX = 640, 17.0
#: Of a defect with more bonds than this neither lengths nor elements are written onto the graph: they would cover it.
_MOST_LENGTHS = 60
#: The surroundings shown around a defect's outer atoms, and the least half-width of the picture [nm].
_SURROUNDINGS_NM, _LEAST_HALF_NM = 0.19, 0.36


def defect_graph(frame: Frame, analysis: FrameAnalysis, defect: Defect) -> Figure:
    """Picture of one defect: the image with its atoms, and the graph with bond lengths [pm] and angles [deg].

    Parameters
    ----------
    frame : Frame
        The image.
    analysis : FrameAnalysis
        What was found in it.
    defect : Defect
        One of `analysis.defects`.

    Returns
    -------
    Figure
        To be written with `save_figure`.
    """
    lines = _caption(defect)
    gap, top = 14, 2.6 * _TEXT_PX
    bottom = (0.8 + 1.4 * len(lines)) * _TEXT_PX + 6
    figure, page = canvas.pixel_figure(2 * _PANEL_PX + 3 * gap, round(top + _PANEL_PX + bottom))
    left = canvas.image_axes(figure, gap, round(top), _PANEL_PX, _PANEL_PX)
    right = canvas.image_axes(figure, 2 * gap + _PANEL_PX, round(top), _PANEL_PX, _PANEL_PX)

    center, half = _view(analysis, defect)
    canvas.show_image(left, frame, analysis)
    canvas.draw_bonds(left, analysis, width_px=2.0)
    canvas.draw_sites(left, analysis, ring_px=2.2, scale=0.8)
    _draw_graph(right, analysis, defect, center, half)
    for axes in (left, right):
        axes.set(xlim=(center[1] - half, center[1] + half), ylim=(center[0] + half, center[0] - half))
    left.set_facecolor("#dddddd")
    bar = canvas.scale_bar_nm(1.3 * 2 * half * analysis.pixel_size.nm)
    length = bar / analysis.pixel_size.nm / (2 * half) * _PANEL_PX
    y = top + _PANEL_PX - 16
    for color, width in (("#000000", 7.0), ("#ffffff", 4.0)):
        page.plot(
            [gap + 16, gap + 16 + length],
            [y, y],
            color=color,
            linewidth=canvas.points(width),
            solid_capstyle="butt",
        )
    page.text(
        gap + 16,
        y - 8,
        canvas.length_text(bar),
        color="#ffffff",
        fontsize=canvas.points(_TEXT_PX),
        va="bottom",
        bbox={"facecolor": "#000000", "alpha": 0.45, "edgecolor": "none", "pad": 1.5},
    )
    page.text(
        gap,
        0.5 * top,
        f"{defect.name}",
        fontsize=canvas.points(1.35 * _TEXT_PX),
        fontweight="bold",
        color=canvas.INK,
        va="center",
    )
    page.text(
        2 * _PANEL_PX + 2 * gap,
        0.5 * top,
        _origin(frame, analysis, defect),
        ha="right",
        va="center",
        fontsize=canvas.points(0.9 * _TEXT_PX),
        color=canvas.FAINT,
    )
    for i, line in enumerate(lines):
        page.text(
            gap,
            top + _PANEL_PX + (1.1 + 1.4 * i) * _TEXT_PX,
            line,
            fontsize=canvas.points(_TEXT_PX),
            color=canvas.INK,
            va="center",
        )
    return figure


def _caption(defect: Defect) -> list[str]:
    """Composition and probability; other readings; mean bond length."""
    parts = ["".join(f"{k}{v if v > 1 else ''}" for k, v in defect.composition.items())]
    if defect.missing_atoms:
        parts.append(f"{defect.missing_atoms} missing atom{'s' * (defect.missing_atoms > 1)}")
    if np.isfinite(defect.misorientation_deg):
        parts.append(f"grains turned by {defect.misorientation_deg:.1f}°")
    parts.append(f"probability {defect.probability:.2f}")
    if defect.alternatives:
        parts.append("or " + ", ".join(f"{name} ({p:.2f})" for name, p in defect.alternatives))
    lines = ["   ·   ".join(p for p in parts if p)]
    if defect.bonds:
        lengths = np.array([b.length_pm for b in defect.bonds])
        text = f"{len(lengths)} bond{'s' * (len(lengths) > 1)}, mean {lengths.mean():.0f} pm"
        sigmas = np.array([b.sigma_pm for b in defect.bonds])
        if np.isfinite(sigmas).all():
            text += f" (± {np.sqrt((sigmas**2).mean()):.0f} pm each)"
        lines.append(text)
    return lines


def _origin(frame: Frame, analysis: FrameAnalysis, defect: Defect) -> str:
    y, x = analysis.pixel_size.to_nm(defect.center_px)
    return f"{analysis.material}, defect {defect.id} at x = {x:.2f} nm, y = {y:.2f} nm"


def _view(analysis: FrameAnalysis, defect: Defect) -> tuple[NDArray[np.float64], float]:
    """Centre (y, x) and half-width [px] of what is shown."""
    yx = analysis.sites.yx_px[list(defect.site_ids)] if defect.site_ids else np.array([defect.center_px])
    center = 0.5 * (yx.min(axis=0) + yx.max(axis=0))
    nm = analysis.pixel_size.nm
    half = max(float(np.abs(yx - center).max()) + _SURROUNDINGS_NM / nm, _LEAST_HALF_NM / nm)
    return center, half


def _draw_graph(
    axes: Axes, analysis: FrameAnalysis, defect: Defect, center: NDArray[np.float64], half: float
) -> None:
    sites, colors = analysis.sites, canvas.species_colors(analysis)
    nm = analysis.pixel_size.nm
    members = set(defect.site_ids)
    near = np.flatnonzero(np.abs(sites.yx_px - center).max(axis=1) < half * 1.2)
    shown = set(near.tolist()) | members
    for a, b in zip(analysis.bonds.a.tolist(), analysis.bonds.b.tolist()):
        if a in shown and b in shown:
            inside = a in members and b in members
            axes.plot(
                sites.x_px[[a, b]],
                sites.y_px[[a, b]],
                color="#9a9a9a" if inside else "#d9d9d9",
                zorder=1,
                linewidth=canvas.points(5.0 if inside else 3.0),
                solid_capstyle="round",
            )
    for bond in defect.bonds:
        axes.plot(
            sites.x_px[[bond.a, bond.b]],
            sites.y_px[[bond.a, bond.b]],
            color="#4a4a4a",
            linewidth=canvas.points(6.0),
            solid_capstyle="round",
            zorder=1.5,
        )
    small = len(members) > 10
    text = _TEXT_PX * (0.72 if small else 0.95)
    for i in sorted(shown):
        inside = i in members
        radius = (0.026 if inside else 0.014) / nm
        xy = (float(sites.x_px[i]), float(sites.y_px[i]))
        axes.add_patch(
            Circle(
                xy,
                radius,
                facecolor=colors[str(sites.species[i])] if inside else "#e6e6e6",
                edgecolor=canvas.INK if inside else "#c4c4c4",
                linewidth=canvas.points(1.4),
                zorder=3,
            )
        )
        if inside and len(defect.bonds) <= _MOST_LENGTHS:
            axes.text(
                *xy,
                str(sites.species[i]),
                fontsize=canvas.points(text),
                fontweight="bold",
                ha="center",
                va="center",
                color=canvas.INK,
                zorder=4,
                clip_on=True,
            )
    angles = [angle for angle in defect.angles if _is_neighbouring(analysis, defect, angle)]
    for angle in angles if len(angles) <= 24 else ():
        _draw_angle(axes, analysis, angle, text)
    # Of a boundary across the whole field the numbers would hide the bonds; `analysis.json` has them.
    for bond in defect.bonds if len(defect.bonds) <= _MOST_LENGTHS else ():
        p, q = sites.yx_px[bond.a], sites.yx_px[bond.b]
        step = q - p
        turn = float(np.degrees(np.arctan2(-step[0], step[1])))
        turn = (turn + 90) % 180 - 90  # upright
        axes.text(
            0.5 * (p[1] + q[1]),
            0.5 * (p[0] + q[0]),
            f"{bond.length_pm:.0f}",
            fontsize=canvas.points(text),
            rotation=turn,
            rotation_mode="anchor",
            ha="center",
            va="center",
            color=canvas.INK,
            zorder=5,
            clip_on=True,
            bbox={"facecolor": canvas.PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
        )


def _is_neighbouring(analysis: FrameAnalysis, defect: Defect, angle: DefectAngle) -> bool:
    """Whether no other bond of the atom lies within the angle; the other angles are sums of such ones."""
    yx = analysis.sites.yx_px
    at = yx[angle.at]
    others = [b.b if b.a == angle.at else b.a for b in defect.bonds if angle.at in (b.a, b.b)]
    first, second = (_direction(yx[i] - at) for i in (angle.a, angle.b))
    span = (second - first + 180) % 360 - 180
    for i in others:
        if i in (angle.a, angle.b):
            continue
        turn = (_direction(yx[i] - at) - first + 180) % 360 - 180
        if turn * span > 0 and abs(turn) < abs(span):
            return False
    return True


def _direction(step: NDArray[np.float64]) -> float:
    return float(np.degrees(np.arctan2(step[0], step[1])))


def _draw_angle(axes: Axes, analysis: FrameAnalysis, angle: DefectAngle, text: float) -> None:
    """An arc between two bonds, and its size in degrees."""
    yx, nm = analysis.sites.yx_px, analysis.pixel_size.nm
    at = yx[angle.at]
    first, second = (_direction(yx[i] - at) for i in (angle.a, angle.b))
    span = (second - first + 180) % 360 - 180
    start, stop = (first, first + span) if span > 0 else (first + span, first)
    radius = 0.045 / nm
    # The axis of rows points down: angles measured in data coordinates are drawn as they are.
    axes.add_patch(
        Arc(
            (float(at[1]), float(at[0])),
            2 * radius,
            2 * radius,
            theta1=start,
            theta2=stop,
            color="#c43b00",
            linewidth=canvas.points(1.8),
            zorder=2,
        )
    )
    middle = np.radians(0.5 * (start + stop))
    place = at + 0.066 / nm * np.array([np.sin(middle), np.cos(middle)])
    axes.text(
        place[1],
        place[0],
        f"{angle.deg:.0f}°",
        fontsize=canvas.points(text),
        ha="center",
        va="center",
        color="#c43b00",
        zorder=5,
        clip_on=True,
    )
