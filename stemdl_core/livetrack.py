"""What is known of one track while the movie runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .events import Change, TrackHistory
from .observations import Observation
from .trajectories import Event

#: What is kept of every reading.
COLUMNS: tuple[str, ...] = (
    "frame",
    "time_s",
    "y_px",
    "x_px",
    "y_nm",
    "x_nm",
    "orientation_deg",
    "seen_as",
    "probability",
    "deviation_deg",
)


@dataclass(eq=False)
class LiveTrack:
    """State of one track while the movie runs."""

    id: int
    history: TrackHistory
    first: int  # number of good frames before the first reading
    last: int
    where: NDArray[np.float64]
    foreign: dict[str, int]
    evidence: float = 0.0
    missed: int = 0
    real: bool = False
    entered: str = "inside"
    born: bool = True
    returned: list[int] = field(default_factory=list)
    absorbed: list[LiveTrack] = field(default_factory=list)
    taken_by: LiveTrack | None = None
    merged: list[int] = field(default_factory=list)  # frames in which it became part of a cluster
    part_of: bool = False
    where_alike: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    before_last: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    apart_at: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    had: int = 0
    fell: int = -99
    last_border_nm: float = np.inf
    last_frame: int = 0
    lost_at: tuple[int, float | None] | None = None
    rows: dict[str, list[Any]] = field(default_factory=lambda: {k: [] for k in COLUMNS})
    names: list[str] = field(default_factory=list)
    saved: list[Change] = field(default_factory=list)

    @property
    def atoms(self) -> int:
        return sum(self.foreign.values())


@dataclass(frozen=True)
class Moment:
    """A good frame: its number among the good ones, its number in the movie, and its time [s]."""

    good: int
    frame: int
    time_s: float | None


def weight(seen: Observation) -> float:
    """What a reading counts for a track being real."""
    if np.isfinite(seen.evidence):
        return float(np.clip(0.25 * seen.evidence, -0.6, 1.0))
    if seen.atoms:
        return max(seen.score, 0.3)
    # Odd rings without a name are what noise makes of a perfect lattice.
    return 0.5 if seen.name == "unknown" else max(seen.names[seen.name], 0.3)


def presence(track: LiveTrack) -> float:
    """Probability that a track is of a real defect, from the readings it has."""
    return float(1.0 - 0.3 ** max(min(track.evidence, 30.0), 0.1))


def time_of(value: float) -> float | None:
    """A time of the table [s]; None where it is not known."""
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True)
class Current:
    """A track as the newest frame shows it.

    Parameters
    ----------
    track_id : int
    name : str
        Most probable type given the frames up to now.
    yx_px, yx_nm : (2,) float64
        Position in the image [px] and in the specimen's frame [nm].
    orientation_deg : float
    """

    track_id: int
    name: str
    yx_px: NDArray[np.float64]
    yx_nm: NDArray[np.float64]
    orientation_deg: float


def current(tracks: Iterable[LiveTrack], frame: int) -> tuple[Current, ...]:
    """The real ones of some tracks that were seen in a frame."""
    return tuple(
        Current(
            t.id,
            t.history.likely_name or "unknown",
            np.array([t.rows["y_px"][-1], t.rows["x_px"][-1]]),
            np.array([t.rows["y_nm"][-1], t.rows["x_nm"][-1]]),
            t.rows["orientation_deg"][-1],
        )
        for t in tracks
        if t.real and t.last_frame == frame
    )


@dataclass(frozen=True)
class Update:
    """What one frame brought.

    Parameters
    ----------
    frame : int
    drift_nm : (2,) float64
        Displacement of the specimen since the first frame (y, x) [nm].
    tracks : tuple of Current
        Tracks seen in this frame.
    events : tuple of Event
        Events that this frame decided; they may have happened some frames earlier.
    fault : str or None
        Why the frame was not used.
    """

    frame: int
    drift_nm: NDArray[np.float64]
    tracks: tuple[Current, ...] = ()
    events: tuple[Event, ...] = ()
    fault: str | None = None
