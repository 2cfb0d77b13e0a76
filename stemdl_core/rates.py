"""Rates of rare events with exact confidence intervals, and the clock of a movie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
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


def table_of(rows: list[tuple], columns: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)
