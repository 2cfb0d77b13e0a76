"""Rows for frames in which a defect was overlooked although it was there before and after, at the same place."""

from __future__ import annotations

from collections.abc import Sequence
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
    rows: dict[str, list[Any]],
    names: list[str],
    shown: dict[int, Shown],
    order: dict[int, int],
    *,
    longest: int,
    merged: Sequence[int] = (),
    moved: Sequence[int] = (),
) -> tuple[dict[str, list[Any]], list[str]]:
    """The rows of one track, and those of at most `longest` good frames in which it was overlooked.

    A bridged row has the place between those before and after it, or that of the nearer one if it moved in between
    in a frame that is known, no orientation, the name of the row before, an
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
    merged : sequence of int
        Frames in which it became part of a cluster: until it is found again it has no place of its own.
    moved : sequence of int
        Frames from which on it is known to be at another place.
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
            since = [m for m in moved if frames[k - 1] < m <= frames[k]]
            rests = float(np.linalg.norm(end - start)) < SAME_PLACE_NM
            part_of = any(frames[k - 1] < m <= frames[k] for m in merged)
            if not part_of and (rests or len(since) == 1):
                for between in range(numbers[k - 1] + 1, number):
                    frame = shown[by_number[between]]
                    part = (between - numbers[k - 1]) / (number - numbers[k - 1])
                    after = bool(since) and frame.frame >= since[0]
                    _add(full, frame, start + part * (end - start) if rests else end if after else start)
                    titles.append(names[k] if after else names[k - 1])
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


def put_right(rows: dict[str, list[Any]], shown: Sequence[Shown], places: dict[int, NDArray[np.float64]]) -> None:
    """Move rows to the places at which the defect was decided to be in those frames, in place.

    Parameters
    ----------
    rows : dict of lists
        Columns of the track.
    shown : sequence of Shown
        Good frames.
    places : dict
        Positions in the specimen's frame [nm] by frame.
    """
    if not places:
        return
    by_number = {s.frame: s for s in shown}
    for k, number in enumerate(rows["frame"]):
        if number in places:
            y_px, x_px = by_number[number].px(places[number]).tolist()
            rows["y_px"][k], rows["x_px"][k] = y_px, x_px
            rows["y_nm"][k], rows["x_nm"][k] = places[number].tolist()
            rows["seen_as"][k], rows["probability"][k] = "", 0.0
