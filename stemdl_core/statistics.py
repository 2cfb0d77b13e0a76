"""Dwell times, rates, transitions, diffusion and occupancy of tracked defects, with honest confidence intervals.

Times are in seconds where the movie has a frame time, else in frames (``unit`` says which). A frame stands for
the time from its beginning to that of the next. Bad frames count as time in the state around them.

References
----------
F. Garwood, Biometrika 28, 437 (1936): exact intervals for a Poisson mean.
X. Michalet & A. Berglund, Phys. Rev. E 85, 061916 (2012): localisation error in mean squared displacements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

from .errors import StemdlError
from .trajectories import Tracks


@dataclass(frozen=True)
class Rate:
    """Events per time with an exact confidence interval.

    Parameters
    ----------
    events : int
    time : float
        Time observed [s or frames].
    value, low, high : float
        Rate and its interval [1/s or 1/frame].
    """

    events: int
    time: float
    value: float
    low: float
    high: float


def poisson_rate(events: int, time: float, *, confidence: float = 0.95) -> Rate:
    """Rate of a Poisson process and its exact (Garwood) interval.

    Parameters
    ----------
    events : int
        Number of events observed.
    time : float
        Time of observation, including that which ended without an event.
    confidence : float

    Raises
    ------
    StemdlError
        If the confidence is not between 0 and 1, or the time negative.
    """
    if not 0 < confidence < 1:
        raise StemdlError(f"confidence must be between 0 and 1, not {confidence}")
    if events < 0 or time < 0:
        raise StemdlError(f"events ({events}) and time ({time}) cannot be negative")
    if time == 0:
        return Rate(events, time, float("nan"), 0.0, float("inf"))
    tail = (1 - confidence) / 2
    low = chi2.ppf(tail, 2 * events) / 2 if events else 0.0
    return Rate(
        events, time, events / time, float(low / time), float(chi2.isf(tail, 2 * events + 2) / 2 / time)
    )


def time_unit(tracks: Tracks) -> str:
    """'s' if every row has a time, else 'frames'."""
    return "s" if len(tracks) and bool(np.isfinite(tracks.time_s).all()) else "frames"


def frame_time(tracks: Tracks) -> float:
    """Time of a frame in `time_unit`: from the first and last rows, so that gaps do not matter."""
    if time_unit(tracks) == "frames":
        return 1.0
    first, last = tracks.frame.argmin(), tracks.frame.argmax()
    frames = tracks.frame[last] - tracks.frame[first]
    return float((tracks.time_s[last] - tracks.time_s[first]) / frames) if frames else 1.0


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
    return _table(
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
    return _table(
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


def mean_squared_displacement(
    tracks: Tracks, *, track_id: int | None = None, max_lag: int | None = None
) -> pd.DataFrame:
    """Mean squared displacement relative to the host lattice, over all pairs of frames and tracks.

    Parameters
    ----------
    tracks : Tracks
    track_id : int, optional
        One track only.
    max_lag : int, optional
        Largest lag [frames]; a quarter of the movie by default, beyond which pairs repeat the same few paths.

    Returns
    -------
    DataFrame
        ``lag`` [frames], ``time`` [`time_unit`], ``msd_nm2``, ``sigma_nm2`` (standard error from the number of
        independent stretches), ``pairs``.
    """
    ids = tracks.ids if track_id is None else np.array([track_id])
    longest = int(tracks.frame.max() - tracks.frame.min()) if len(tracks) else 0
    limit = max(1, longest // 4) if max_lag is None else max_lag
    total, squares, pairs = np.zeros(limit + 1), np.zeros(limit + 1), np.zeros(limit + 1, dtype=np.int64)
    for number in ids:
        mine = tracks.track_id == number
        frames, yx = tracks.frame[mine], tracks.yx_nm[mine]
        if len(frames) < 2:
            continue
        path = np.full((frames[-1] - frames[0] + 1, 2), np.nan)
        path[frames - frames[0]] = yx
        for lag in range(1, min(limit, len(path) - 1) + 1):
            step = ((path[lag:] - path[:-lag]) ** 2).sum(axis=1)
            step = step[np.isfinite(step)]
            total[lag] += step.sum()
            squares[lag] += (step**2).sum()
            pairs[lag] += len(step)
    lags = np.flatnonzero(pairs)
    mean = total[lags] / pairs[lags]
    variance = np.maximum(squares[lags] / pairs[lags] - mean**2, 0.0)
    return pd.DataFrame(
        {
            "lag": lags.astype(np.int64),
            "time": lags * frame_time(tracks),
            "msd_nm2": mean,
            "sigma_nm2": np.sqrt(variance / np.maximum(pairs[lags] / lags, 1.0)),
            "pairs": pairs[lags],
        }
    )


@dataclass(frozen=True)
class Diffusion:
    """Diffusion on the lattice.

    Parameters
    ----------
    hops : Rate
        Hops per time of all tracks.
    mean_square_step_nm2 : float
        Mean squared length of a hop [nm^2].
    coefficient, low, high : float
        D = (rate x mean squared step) / 4 and its interval [nm^2 per `unit`].
    from_msd : float
        D from the slope of the mean squared displacement, for comparison; the localisation error is the
        intercept. NaN with fewer than two lags.
    unit : str
        's' or 'frames'.
    """

    hops: Rate
    mean_square_step_nm2: float
    coefficient: float
    low: float
    high: float
    from_msd: float
    unit: str


def diffusion(tracks: Tracks, *, confidence: float = 0.95, lattice_nm: float = 0.246) -> Diffusion:
    """Diffusion coefficient of uncorrelated hops on the lattice, from the number and length of the hops.

    Parameters
    ----------
    tracks : Tracks
    confidence : float
    lattice_nm : float
        Lattice constant of the host [nm]: without any hop, the interval's upper end is that of hops to
        nearest sites.
    """
    steps = np.array([e.step_nm for e in tracks.events.of_kind("hop")], dtype=float).reshape(-1, 2)
    time = len(tracks) * frame_time(tracks)
    rate = poisson_rate(len(steps), time, confidence=confidence)
    square = float((steps**2).sum(axis=1).mean()) if len(steps) else float("nan")
    scale = (square if len(steps) else lattice_nm**2 / 3) / 4
    curve = mean_squared_displacement(tracks)
    slope = float("nan")
    if len(curve) >= 2:
        first = curve.iloc[: max(2, min(8, len(curve)))]
        weight = 1.0 / np.maximum(first["sigma_nm2"].to_numpy(), 1e-9)
        slope = float(np.polyfit(first["time"], first["msd_nm2"], 1, w=weight)[0]) / 4
    return Diffusion(
        rate, square, rate.value * scale, rate.low * scale, rate.high * scale, slope, time_unit(tracks)
    )


@dataclass(frozen=True)
class Occupancy:
    """How long defects were where.

    Parameters
    ----------
    time : (H, W) float64
        Time spent in each cell of the map [`time_unit`].
    origin_nm : (float, float)
        Position (y, x) of the outer corner of cell (0, 0) in the specimen's frame [nm].
    pixel_nm : float
        Side of a cell [nm].
    """

    time: NDArray[np.float64]
    origin_nm: tuple[float, float]
    pixel_nm: float


def occupancy(
    tracks: Tracks, *, pixel_nm: float = 0.02, name: str | None = None, track_id: int | None = None
) -> Occupancy:
    """Map of the time that defects spent at each place of the specimen.

    Parameters
    ----------
    tracks : Tracks
    pixel_nm : float
        Side of a cell [nm].
    name, track_id : optional
        Only this type, only this track.
    """
    if not pixel_nm > 0:
        raise StemdlError(f"pixel_nm must be positive, not {pixel_nm}")
    keep = np.ones(len(tracks), bool)
    if name is not None:
        keep &= tracks.name == name
    if track_id is not None:
        keep &= tracks.track_id == track_id
    yx = tracks.yx_nm[keep]
    if not len(yx):
        return Occupancy(np.zeros((0, 0)), (0.0, 0.0), pixel_nm)
    low = np.floor(yx.min(axis=0) / pixel_nm) * pixel_nm
    cells = np.floor((yx - low) / pixel_nm + 1e-9).astype(int)
    grid = np.zeros(cells.max(axis=0) + 1)
    np.add.at(grid, (cells[:, 0], cells[:, 1]), frame_time(tracks))
    return Occupancy(grid, (float(low[0]), float(low[1])), pixel_nm)


def site_occupancy(tracks: Tracks, *, apart_nm: float = 0.07) -> pd.DataFrame:
    """Time spent at each resting place, per type of defect.

    Parameters
    ----------
    apart_nm : float
        Readings within this distance of each other belong to one place [nm].

    Returns
    -------
    DataFrame
        ``name, y_nm, x_nm, time, fraction``, most visited first.
    """
    step, rows = frame_time(tracks), []
    for name in sorted(set(tracks.name.tolist())):
        yx = tracks.yx_nm[tracks.name == name]
        left, total = np.ones(len(yx), bool), len(yx)
        while left.any():
            near = np.linalg.norm(yx[left][:, None] - yx[left][None, :2000], axis=-1) < apart_nm
            best = near.sum(axis=1).argmax()
            members = left & (np.linalg.norm(yx - yx[left][best], axis=1) < apart_nm)
            center = np.median(yx[members], axis=0)
            members = left & ((np.linalg.norm(yx - center, axis=1) < apart_nm) | members)
            rows.append(
                (name, float(center[0]), float(center[1]), members.sum() * step, members.sum() / total)
            )
            left &= ~members
    table = _table(
        rows, {"name": object, "y_nm": "float64", "x_nm": "float64", "time": "float64", "fraction": "float64"}
    )
    return table.sort_values("time", ascending=False, kind="stable", ignore_index=True)


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


def _table(rows: list[tuple], columns: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)
