"""How defects move on the lattice: mean squared displacement, diffusion, occupancy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .errors import StemdlError
from .rates import Rate, frame_time, poisson_rate, table_of, time_unit
from .trajectories import Tracks


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
    table = table_of(
        rows, {"name": object, "y_nm": "float64", "x_nm": "float64", "time": "float64", "fraction": "float64"}
    )
    return table.sort_values("time", ascending=False, kind="stable", ignore_index=True)
