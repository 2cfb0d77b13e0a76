"""What is known of a track's past only afterwards: since when it was there."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .livetrack import COLUMNS, LiveTrack, Moment
from .site_field import SiteField

#: How much rarer it is that a point defect appears than that it was there when the movie began [nats].
_RARE_BIRTH = 7.0


def look_back(track: LiveTrack, past: Iterable[tuple[Moment, SiteField]], *, grace: int) -> None:
    """Begin a track in the frame from which on the site of its first reading was what the track is of.

    Parameters
    ----------
    track : LiveTrack
        Of a point defect; rows are put before its own.
    past : iterable of (Moment, SiteField)
        Good frames and what their sites say, in order.
    grace : int
        What appears up to this good frame was there when the movie began.
    """
    name, place = str(track.history.likely_name), np.array([track.rows["y_nm"][0], track.rows["x_nm"][0]])
    earlier = [(m, f) for m, f in past if m.good < track.first]
    total, best, begins = 0.0, 0.0, len(earlier)
    for k in range(len(earlier) - 1, -1, -1):
        total += earlier[k][1].at(name, place)
        if total > best:
            best, begins = total, k
    if earlier and earlier[0][0].good == 0 and total > best - _RARE_BIRTH:
        begins = 0
    rows: dict[str, list] = {key: [] for key in COLUMNS}
    for moment, field in earlier[begins:]:
        site = field.nearest(name, place)
        if site is None or site[1] <= 0:
            continue  # bridged like any frame in which it was overlooked
        values = {"frame": moment.frame, "time_s": np.nan if moment.time_s is None else moment.time_s,
                  "seen_as": "", "probability": 0.0}  # fmt: skip
        values |= dict(zip(("y_px", "x_px", "y_nm", "x_nm"), [*field.yx_px[site[0]], *field.yx_nm[site[0]]]))
        for key in COLUMNS:
            rows[key].append(values.get(key, np.nan))
    if not rows["frame"]:
        return
    for key in COLUMNS:
        track.rows[key] = rows[key] + track.rows[key]
    track.names = [name] * len(rows["frame"]) + track.names
    track.first = next(m.good for m, _ in earlier if m.frame == rows["frame"][0])
    track.born = track.born and begins > 0 and track.first > grace


def place_at(track: LiveTrack, frame: int) -> NDArray[np.float64]:
    """(2,) mean of the readings of a track around a frame, in the specimen's frame [nm]."""
    k = bisect.bisect_left(track.rows["frame"], frame)
    near = slice(max(k - 2, 0), k + 2)
    return np.asarray(np.mean([track.rows["y_nm"][near], track.rows["x_nm"][near]], axis=1))
