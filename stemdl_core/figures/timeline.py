"""What happened in a movie, against time: types of defects, positions, rotor angles, drift, with the events marked."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..trajectories import Event, Tracks
from . import canvas

TRACK_COLORS = ("#d9480f", "#087f5b", "#1864ab", "#a61e4d", "#5f3dc4", "#2b8a3e", "#b08900", "#495057")
_NAME_COLORS = ("#ff6a13", "#56b4e9", "#00c389", "#d55ec2", "#e0c000", "#c9a26b", "#9ad13c", "#ff2d55")
MARKERS = {
    "switch": ("o", "#000000"),
    "hop": (">", "#0072b2"),
    "rotation": ("D", "#cc4f00"),
    "merge": ("v", "#7a0177"),
    "split": ("^", "#7a0177"),
    "birth": ("P", "#2b8a3e"),
    "death": ("X", "#c92a2a"),
}
#: Most tracks with a lane of their own, and with a line in the plots of position and angle.
_LANES, _LINES = 60, 8


class _Clock:
    """Times of frames, or their numbers where the movie has no frame time."""

    def __init__(self, tracks: Tracks) -> None:
        self.timed = len(tracks) > 0 and bool(np.isfinite(tracks.time_s).all())
        self._frame, first = np.unique(tracks.frame, return_index=True)
        self._time = tracks.time_s[first]

    @property
    def label(self) -> str:
        """Label of the axis."""
        return "time [s]" if self.timed else "frame"

    def __call__(self, frames: NDArray[np.int64] | float) -> NDArray[np.float64]:
        numbers = np.asarray(frames, dtype=np.float64)
        if not self.timed or len(self._frame) < 2:
            return numbers
        slope = (self._time[-1] - self._time[0]) / (self._frame[-1] - self._frame[0])
        return self._time[0] + (numbers - self._frame[0]) * slope


def timeline(tracks: Tracks) -> Figure:
    """Types of defects, their positions and orientations, and the drift, over time.

    The panel of the rotors appears where clusters of three or four foreign atoms were seen: their angle modulo
    120 degrees and the largest deviation of the triangle from equilateral, as in figure 8 of the paper.
    """
    ids = tracks.ids[:_LANES]
    rotors = [int(t) for t in ids if np.isfinite(tracks.deviation_deg[tracks.track_id == t]).sum() >= 3][:_LINES]
    heights = [26 * max(len(ids), 2) + 40, 150, *([170, 100] if rotors else []), 110]
    tall = sum(heights) + 22 * (len(heights) - 1) + 34 + 56
    figure, page = canvas.pixel_figure(1200, tall)
    page.remove()
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    gap = 22 * len(heights) / sum(heights)
    figure.subplots_adjust(left=0.09, right=0.80, top=1 - 34 / tall, bottom=56 / tall, hspace=gap)
    clock = _Clock(tracks)
    _draw_lanes(panels[0], tracks, ids, clock)
    _draw_positions(panels[1], tracks, ids[:_LINES], clock)
    if rotors:
        _draw_rotors(panels[2], panels[3], tracks, rotors, clock)
    _draw_drift(panels[-1], tracks, clock)
    bad = len(tracks.faults)
    panels[0].set_title(
        f"{_count(len(tracks.ids), 'track')}, {_count(len(tracks.events), 'event')} in {_count(tracks.frames, 'frame')}"
        + (f", {bad} of them not usable" if bad else ""),
        fontsize=10,
    )
    for axes in panels:
        axes.grid(axis="x", alpha=0.3)
        for frame, _ in tracks.faults[:200]:
            axes.axvline(float(clock(frame)), color="#adb5bd", linewidth=0.6, linestyle=":", zorder=0)
    panels[-1].set_xlabel(clock.label)
    return figure


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _legend(axes: Axes, handles: list[Line2D]) -> None:
    if handles:
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)


def _mark(axes: Axes, event: Event, x: float, y: float) -> None:
    """An event's mark: hollow where it happened half-way through a frame."""
    marker, ink = MARKERS[event.kind]
    fill = "#ffffff" if event.mid_frame else ink
    axes.plot([x], [y], marker, color=ink, markersize=7, markerfacecolor=fill, markeredgewidth=1.3, zorder=4)


def _draw_lanes(axes: Axes, tracks: Tracks, ids: NDArray[np.int64], clock: _Clock) -> None:
    names = sorted(set(tracks.name.tolist()))
    color = {name: _NAME_COLORS[i % len(_NAME_COLORS)] for i, name in enumerate(names)}
    lane = {int(t): i for i, t in enumerate(ids)}
    for track_id, i in lane.items():
        rows = np.flatnonzero(tracks.track_id == track_id)
        frames = tracks.frame[rows]
        cuts = (tracks.name[rows][1:] != tracks.name[rows][:-1]) | (np.diff(frames) > 1)
        starts = np.flatnonzero(np.r_[True, cuts])
        for a, b in zip(starts, np.r_[starts[1:], len(rows)]):
            ends = clock(np.array([frames[a], frames[b - 1] + 1]))
            axes.plot(ends, [i, i], linewidth=8, solid_capstyle="butt", color=color[tracks.name[rows[a]]])
    shown, half = set(), False
    for event in tracks.events:
        for track_id in event.track_ids:
            if track_id in lane:
                _mark(axes, event, float(clock(event.frame)), lane[track_id])
                shown.add(event.kind)
                half |= event.mid_frame
    axes.set(yticks=range(len(lane)), yticklabels=[f"#{t}" for t in lane], ylim=(max(len(lane), 1) - 0.4, -0.6))
    handles = [Line2D([], [], color=color[n], linewidth=7, label=n) for n in names[:12]]
    handles += [
        Line2D([], [], color=ink, marker=marker, linestyle="none", label=kind)
        for kind, (marker, ink) in MARKERS.items()
        if kind in shown
    ]
    if half:
        hollow: dict[str, Any] = {"markerfacecolor": "#ffffff", "linestyle": "none", "color": "#000000"}
        handles.append(Line2D([], [], marker="o", label="half-way in a frame", **hollow))
    _legend(axes, handles)


def _draw_positions(axes: Axes, tracks: Tracks, ids: NDArray[np.int64], clock: _Clock) -> None:
    handles = []
    for k, track_id in enumerate(ids):
        rows = np.flatnonzero(tracks.track_id == track_id)
        yx = 1e3 * (tracks.yx_nm[rows] - np.median(tracks.yx_nm[rows[:5]], axis=0))
        color, when = TRACK_COLORS[k % len(TRACK_COLORS)], clock(tracks.frame[rows])
        # No line through frames in which it was part of another defect or out of view.
        gaps = np.flatnonzero(np.diff(tracks.frame[rows]) > 1) + 1
        when, yx = np.insert(when, gaps, np.nan), np.insert(yx, gaps, np.nan, axis=0)
        axes.plot(when, yx[:, 1], "-", color=color, linewidth=1.0)
        axes.plot(when, yx[:, 0], "--", color=color, linewidth=1.0)
        handles.append(Line2D([], [], color=color, label=f"#{track_id}"))
    for line, name in (("solid", "x"), ("dashed", "y")):
        style: dict[str, Any] = {"linestyle": line, "color": "#000000", "label": name}
        handles += [Line2D([], [], **style)] if handles else []
    axes.set_ylabel("position on the\nlattice [pm]", fontsize=8)
    _legend(axes, handles)


def _draw_rotors(angle: Axes, bend: Axes, tracks: Tracks, rotors: list[int], clock: _Clock) -> None:
    handles = []
    for k, track_id in enumerate(rotors):
        rows = np.flatnonzero((tracks.track_id == track_id) & np.isfinite(tracks.deviation_deg))
        color, when = TRACK_COLORS[k % len(TRACK_COLORS)], clock(tracks.frame[rows])
        style: dict[str, Any] = {"color": color, "linewidth": 0.8, "marker": "o", "markersize": 3}
        angle.plot(when, tracks.orientation_deg[rows], **style)
        bend.plot(when, tracks.deviation_deg[rows], **style)
        handles.append(Line2D([], [], label=f"#{track_id}", **style))
    for event in tracks.events.of_kind("rotation"):
        if event.track_ids[0] in rotors:
            for axes in (angle, bend):
                axes.axvline(float(clock(event.frame)), color="#cc4f00", linewidth=0.9, alpha=0.6,
                             linestyle=":" if event.mid_frame else "-", zorder=0)  # fmt: skip
            _mark(angle, event, float(clock(event.frame)), 116.0)
    angle.set(ylim=(0, 120), yticks=range(0, 121, 30))
    angle.set_ylabel("angle modulo\n120 deg [deg]", fontsize=8)
    bend.set_ylabel("deviation from\nequilateral [deg]", fontsize=8)
    bend.set_ylim(bottom=0)
    _legend(angle, handles)


def _draw_drift(axes: Axes, tracks: Tracks, clock: _Clock) -> None:
    when = clock(tracks.drift.frame)
    for column, color, name in ((tracks.drift.x_nm, "#0072b2", "x"), (tracks.drift.y_nm, "#d55e00", "y")):
        axes.plot(when, 1e3 * column, color=color, label=name, linewidth=1.0)
    axes.set_ylabel("drift [pm]", fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
