"""Rows for frames in which a defect was overlooked although it was there before and after, at the same place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A defect that is found again within this distance was there all the time [nm].
SAME_PLACE_NM = 0.1


@dataclass(frozen=True)
class Shown:
    """A good frame and how the specimen lies in it.

    Parameters
    ----------
    frame : int
    time_s : float
        NaN where not known.
    drift_nm : (2,) float64
        Displacement since the first frame [nm].
    aside_nm : (2,) float64
        What was added to positions in the image to make the middle of all images the same point [nm].
    px_per_nm : (2, 2) float64
        Matrix that turns positions (y, x) as rows from nm into pixels.
    blind : bool
        Nothing in the frame told on which branch of the lattice the drift is, but the steps before.
    within_nm : (2,) float64, optional
        Drift from the first to the last line, relative to that in the first frame [nm]; None where not known.
    """

    frame: int
    time_s: float
    drift_nm: NDArray[np.float64]
    aside_nm: NDArray[np.float64]
    px_per_nm: NDArray[np.float64]
    blind: bool = False
    within_nm: NDArray[np.float64] | None = None

    def px(self, yx_nm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Position in the image [px] of a point of the specimen [nm]."""
        return (yx_nm + self.drift_nm - self.aside_nm) @ self.px_per_nm


def bridge(
    rows: dict[str, list[Any]], names: list[str], shown: dict[int, Shown], order: dict[int, int], *, longest: int
) -> tuple[dict[str, list[Any]], list[str]]:
    """The rows of one track, and those of at most `longest` good frames in which it was overlooked.

    A bridged row has the place between those before and after it, no orientation, the name of the row before, an
    empty ``seen_as`` and the probability 0.

    Parameters
    ----------
    rows : dict of lists
        Columns of the track as in `roster.COLUMNS`.
    names : list of str
        Its decided names.
    shown : dict
        Good frames by their numbers.
    order : dict
        Number of each good frame among the good ones.
    longest : int
        Longest gap that is bridged [good frames].
    """
    frames = rows["frame"]
    numbers = [order[f] for f in frames]
    if all(b - a == 1 for a, b in zip(numbers, numbers[1:])):
        return rows, names
    by_number = sorted(shown)
    full: dict[str, list[Any]] = {key: [] for key in rows}
    titles: list[str] = []
    for k, number in enumerate(numbers):
        if k and 1 < number - numbers[k - 1] <= longest + 1:
            start = np.array([rows["y_nm"][k - 1], rows["x_nm"][k - 1]])
            end = np.array([rows["y_nm"][k], rows["x_nm"][k]])
            if np.linalg.norm(end - start) < SAME_PLACE_NM:
                for between in range(numbers[k - 1] + 1, number):
                    frame = shown[by_number[between]]
                    part = (between - numbers[k - 1]) / (number - numbers[k - 1])
                    _add(full, frame, start + part * (end - start))
                    titles.append(names[k - 1])
        for key in rows:
            full[key].append(rows[key][k])
        titles.append(names[k])
    return full, titles


def _add(full: dict[str, list[Any]], frame: Shown, place: NDArray[np.float64]) -> None:
    y_px, x_px = frame.px(place).tolist()
    values = {"frame": frame.frame, "time_s": frame.time_s, "y_px": y_px, "x_px": x_px, "y_nm": float(place[0]),
              "x_nm": float(place[1]), "seen_as": "", "probability": 0.0}  # fmt: skip
    for key in full:
        full[key].append(values.get(key, float("nan")))
