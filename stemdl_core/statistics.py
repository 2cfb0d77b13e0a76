"""Dwell times, rates, transitions, diffusion and occupancy of tracked defects, with honest confidence intervals.

Times are in seconds where the movie has a frame time, else in frames (``unit`` says which). A frame stands for
the time from its beginning to that of the next. Bad frames count as time in the state around them.

References
----------
F. Garwood, Biometrika 28, 437 (1936): exact intervals for a Poisson mean.
X. Michalet & A. Berglund, Phys. Rev. E 85, 061916 (2012): localisation error in mean squared displacements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .motion import (
    Diffusion,
    Occupancy,
    diffusion,
    mean_squared_displacement,
    occupancy,
    site_occupancy,
)
from .rates import Rate, frame_time, poisson_rate, table_of, time_unit
from .trajectories import Tracks

__all__ = [
    "Diffusion",
    "Occupancy",
    "Rate",
    "diffusion",
    "dwell_times",
    "dwells",
    "frame_time",
    "mean_squared_displacement",
    "occupancy",
    "poisson_rate",
    "site_occupancy",
    "statistics",
    "time_unit",
    "transition_matrix",
    "transition_rates",
]


def dwells(tracks: Tracks) -> pd.DataFrame:
    """Stays in one state: a row each.

    Returns
    -------
    DataFrame
        ``track_id, name, first, last`` (frames), ``duration`` [`time_unit`], ``censored_start`` and
        ``censored_end`` (the stay began before, or went on after, what was seen), ``next`` (name, or '').
    """
    step = frame_time(tracks)
    rows = []
    for track_id in tracks.ids:
        mine = np.flatnonzero(tracks.track_id == track_id)
        names, frames = tracks.name[mine], tracks.frame[mine]
        cuts = np.r_[0, np.flatnonzero(names[1:] != names[:-1]) + 1, len(mine)]
        ended = {
            e.frame for e in tracks.events.of_kind("death") if track_id in e.track_ids and e.where == "inside"
        }
        born = {
            e.frame for e in tracks.events.of_kind("birth") if track_id in e.track_ids and e.where == "inside"
        }
        for k in range(len(cuts) - 1):
            begin, end = int(frames[cuts[k]]), int(frames[cuts[k + 1] - 1])
            last = k == len(cuts) - 2
            until = end + 1 if last else int(frames[cuts[k + 1]])
            rows.append(
                (
                    int(track_id),
                    str(names[cuts[k]]),
                    begin,
                    end,
                    (until - begin) * step,
                    k == 0 and begin not in born,
                    last and not any(end < f <= end + 2 for f in ended),
                    "" if last else str(names[cuts[k + 1]]),
                )
            )
    table = pd.DataFrame(
        rows,
        columns=["track_id", "name", "first", "last", "duration", "censored_start", "censored_end", "next"],
    )
    dtypes = {
        "track_id": "int64",
        "name": object,
        "first": "int64",
        "last": "int64",
        "duration": "float64",
        "censored_start": bool,
        "censored_end": bool,
        "next": object,
    }
    return table.astype(dtypes)


def dwell_times(tracks: Tracks, *, confidence: float = 0.95) -> pd.DataFrame:
    """Mean dwell time of every type of defect with its exact interval.

    A memoryless state leaves at one rate whatever came before, so the time of all stays counts, also of those
    that were cut off by the beginning or end of the movie; only completed ones count as events.

    Returns
    -------
    DataFrame
        ``name, stays, completed, time, mean, low, high`` [`time_unit`]; ``mean`` is infinite where no stay
        ended.
    """
    table = dwells(tracks)
    rows = []
    for name in sorted(set(table["name"])):
        mine = table[table["name"] == name]
        done = int((~mine["censored_end"]).sum())
        rate = poisson_rate(done, float(mine["duration"].sum()), confidence=confidence)
        rows.append(
            (
                name,
                len(mine),
                done,
                rate.time,
                1 / rate.value if done else float("inf"),
                1 / rate.high,
                1 / rate.low if done else float("inf"),
            )
        )
    return table_of(
        rows,
        {
            "name": object,
            "stays": "int64",
            "completed": "int64",
            "time": "float64",
            "mean": "float64",
            "low": "float64",
            "high": "float64",
        },
    )


def transition_rates(tracks: Tracks, *, confidence: float = 0.95) -> pd.DataFrame:
    """Rates between types of defect with exact intervals, also for transitions within view that never happened.

    Returns
    -------
    DataFrame
        ``from, to, count, time, rate, low, high`` [1/`time_unit`].
    """
    table = dwells(tracks)
    names = sorted(set(table["name"]))
    rows = []
    for a in names:
        mine = table[table["name"] == a]
        time = float(mine["duration"].sum())
        for b in names:
            if a != b:
                rate = poisson_rate(int((mine["next"] == b).sum()), time, confidence=confidence)
                rows.append((a, b, rate.events, time, rate.value, rate.low, rate.high))
    return table_of(
        rows,
        {
            "from": object,
            "to": object,
            "count": "int64",
            "time": "float64",
            "rate": "float64",
            "low": "float64",
            "high": "float64",
        },
    )


def transition_matrix(tracks: Tracks) -> pd.DataFrame:
    """(K, K) numbers of transitions from the row's type of defect to the column's."""
    table = dwells(tracks)
    names = sorted(set(table["name"]))
    matrix = pd.DataFrame(
        0, index=pd.Index(names, name="from"), columns=pd.Index(names, name="to"), dtype="int64"
    )
    for a, b in table.loc[table["next"] != "", ["name", "next"]].itertuples(index=False):
        matrix.loc[a, b] += 1
    return matrix


def statistics(tracks: Tracks, *, confidence: float = 0.95) -> dict[str, Any]:
    """Dwell times, rates, diffusion and resting places as plain data, for JSON."""
    moves = diffusion(tracks, confidence=confidence)
    return {
        "unit": time_unit(tracks),
        "frame_time": frame_time(tracks),
        "confidence": confidence,
        "dwell_times": dwell_times(tracks, confidence=confidence).to_dict("records"),
        "transitions": transition_rates(tracks, confidence=confidence).to_dict("records"),
        "diffusion_nm2_per_unit": {
            "hops": moves.hops.events,
            "time": moves.hops.time,
            "coefficient": moves.coefficient,
            "low": moves.low,
            "high": moves.high,
            "from_msd": moves.from_msd,
        },
        "msd": mean_squared_displacement(tracks).to_dict("records"),
        "places": site_occupancy(tracks).head(50).to_dict("records"),
    }
