"""Strips of frames around the events of a movie: what one looks at to believe them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..errors import StemdlError
from ..frames import FrameSequence
from ..trajectories import Event, Tracks
from . import canvas

#: Side of a cut-out on the specimen [nm] and in the figure [px]; frames shown before and after the event's.
CUT_NM, CUT_PX, AROUND = 1.3, 150, 2
#: Events shown, the most certain first if there are more.
MOST_EVENTS = 12


def event_strips(sequence: FrameSequence, tracks: Tracks, *, pixel_nm: float) -> Figure | None:
    """One row an event: the frames around it, cut out about the defect, drift followed.

    Parameters
    ----------
    sequence : FrameSequence
        The movie.
    tracks : Tracks
        Its tracks.
    pixel_nm : float
        Pixel size [nm].

    Returns
    -------
    Figure or None
        None where there are no events.
    """
    events = list(tracks.events)
    if len(events) > MOST_EVENTS:
        certain = sorted(events, key=lambda e: -e.confidence)[:MOST_EVENTS]
        events = [e for e in events if e in certain]
    if not events:
        return None
    left, line, gap = 190, CUT_PX + 26, 6
    columns = 2 * AROUND + 1
    figure, page = canvas.pixel_figure(left + columns * (CUT_PX + gap) + gap, len(events) * line + 10)
    for row, event in enumerate(events):
        top = 6 + row * line
        page.text(
            12, top + CUT_PX / 2, _caption(event), fontsize=canvas.points(14), va="center", color=canvas.INK
        )
        for column in range(columns):
            number = event.frame - AROUND + column
            x = left + column * (CUT_PX + gap)
            cut = _cut(sequence, tracks, event, number, pixel_nm)
            if cut is not None:
                axes = canvas.image_axes(figure, x, top, CUT_PX, CUT_PX)
                low, high = np.percentile(cut, (1.0, 99.7))
                axes.imshow(
                    cut, cmap="gray", vmin=low, vmax=high if high > low else low + 1, interpolation="bilinear"
                )
            inside = 0 <= number < len(sequence)
            here = number == event.frame
            page.text(x + CUT_PX / 2, top + CUT_PX + 4, f"frame {number}" if inside else "", ha="center", va="top",
                      fontsize=canvas.points(12), color="#c92a2a" if here else canvas.FAINT,
                      fontweight="bold" if here else "normal")  # fmt: skip
    return figure


def _caption(event: Event) -> str:
    change = (
        event.before
        if event.before == event.after
        else f"{event.before or 'none'}\n→ {event.after or 'none'}"
    )
    lines = [f"{event.kind}, track {' '.join(map(str, event.track_ids))}", change]
    if np.isfinite(event.angle_deg):
        lines.append(f"by {event.angle_deg:.0f}°")
    if event.kind == "hop" and event.sublattice:
        lines.append(f"sublattice {event.sublattice}")
    if event.mid_frame:
        lines.append("half-way in the frame")
    return "\n".join(lines)


def _cut(sequence: FrameSequence, tracks: Tracks, event: Event, number: int,
         pixel_nm: float) -> NDArray[np.float32] | None:  # fmt: skip
    """A frame around the place of the event, the lattice at rest; None outside the movie or for bad frames."""
    place = _place(tracks, event)
    if place is None or not 0 <= number < len(sequence) or number not in tracks.drift.frame:
        return None
    try:
        image = sequence[number].image
    except StemdlError:
        return None
    k = int(np.flatnonzero(tracks.drift.frame == number)[0])
    center = (place + [tracks.drift.y_nm[k], tracks.drift.x_nm[k]]) / pixel_nm
    half = max(4, round(0.5 * CUT_NM / pixel_nm))
    y, x = np.round(center).astype(int)
    padded = np.pad(image, half, mode="constant", constant_values=float(np.median(image)))
    if not (0 <= y < image.shape[0] and 0 <= x < image.shape[1]):
        return None
    return gaussian_filter(
        padded[y : y + 2 * half + 1, x : x + 2 * half + 1], canvas.DISPLAY_SIGMA_NM / pixel_nm
    )


def _place(tracks: Tracks, event: Event) -> NDArray[np.float64] | None:
    """Where the event's first track is at its frame, or nearest in time, in the specimen's frame [nm]."""
    rows = np.flatnonzero(tracks.track_id == event.track_ids[0])
    if not len(rows):
        return None
    return tracks.yx_nm[rows[np.argmin(np.abs(tracks.frame[rows] - event.frame))]]
