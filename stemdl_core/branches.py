"""Branches of the drift chosen anew when the whole movie is known.

While a movie runs, the branch of a frame is chosen from the frames before it. What comes after may tell better: how
fast the specimen drifted all the time, and where it was when a defect was seen again.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bridging import Shown
from .trajectories import Event

#: Lattice vectors by which a branch may be wrong.
_CELLS = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
#: Steps that the rest of the movie is compared with, at least; and what the drift may miss of them to be called
#: predictable [nm].
_ENOUGH_STEPS, _PREDICTABLE_NM = 10, 0.045
#: How much better another branch has to fit the other steps [nats].
_GAIN = 7.0
#: How much longer than before hops may become on another branch [nm].
_LONGER_NM = 0.03
#: A hop that is left with less than this was none [nm].
_NO_HOP_NM = 0.05


def settle_blind(shown: list[Shown], basis_nm: NDArray[np.float64]) -> list[Shown]:
    """Frames that show nothing but lattice, on the branch nearest to the way between the frames around them."""
    settled, sighted = list(shown), [k for k, s in enumerate(shown) if not s.blind]
    for a, b in zip(sighted, sighted[1:]):
        for k in range(a + 1, b):
            way = (shown[k].frame - shown[a].frame) / (shown[b].frame - shown[a].frame)
            expected = shown[a].drift_nm + way * (shown[b].drift_nm - shown[a].drift_nm)
            left = shown[k].drift_nm - expected - _CELLS @ basis_nm
            settled[k] = replace(shown[k], drift_nm=expected + left[np.linalg.norm(left, axis=1).argmin()])
    return settled


@dataclass(frozen=True)
class Correction:
    """From a frame on, the drift was larger by so many lattice vectors than it was taken for."""

    frame: int
    cell: tuple[int, int]
    by_nm: NDArray[np.float64]


def find_corrections(
    shown: Sequence[Shown], basis_nm: NDArray[np.float64], tracks: Sequence[dict[str, list[Any]]]
) -> list[Correction]:
    """Steps of the drift that fit all the others only with a lattice vector more or less.

    That is believed where all defects moved in that step, and would have moved as well and no farther on the other
    branch: the place of a lone defect that hops tells its sublattice, but not to which of the next sites it went.
    """
    steps = np.array([s.drift_nm for s in shown]).reshape(-1, 2)
    if len(steps) < _ENOUGH_STEPS + 1:
        return []
    gaps = np.diff([s.frame for s in shown]).astype(float)[:, None]
    rates = np.diff(steps, axis=0) / gaps
    sheared = [
        np.full(2, np.nan) if a.within_nm is None or b.within_nm is None else 0.5 * (a.within_nm + b.within_nm)
        for a, b in zip(shown, shown[1:])
    ]
    best: tuple[float, NDArray[np.float64]] | None = None
    for expected in (np.array(sheared), _around(rates)):
        off = rates - expected
        off = off - np.nanmedian(off, axis=0) if np.isfinite(off).any() else off
        known = np.isfinite(off).all(axis=1)
        if known.sum() < _ENOUGH_STEPS:
            continue
        spread = 1.4826 * float(np.median(np.abs(off[known])))
        if best is None or spread < best[0]:
            best = spread, off
    if best is None or best[0] > _PREDICTABLE_NM:
        return []
    spread, off = best
    found = []
    for k in np.flatnonzero(np.isfinite(off).all(axis=1) & (gaps[:, 0] == 1)).tolist():
        left = np.linalg.norm(off[k] - _CELLS @ basis_nm, axis=1)
        choice = int(left.argmin())
        by = -_CELLS[choice] @ basis_nm
        sigma = max(spread, 0.015)
        gain = (float(off[k] @ off[k]) - left[choice] ** 2) / (2 * sigma**2)
        if not _CELLS[choice].any() or left[choice] > 3.0 * sigma or gain < _GAIN:
            continue
        moves = _moves(tracks, shown[k].frame, shown[k + 1].frame)
        before, after = np.linalg.norm(moves, axis=1), np.linalg.norm(moves - by, axis=1)
        if len(moves) and (before > 0.08).all() and (after < before + _LONGER_NM).all():
            cell = -_CELLS[choice]
            found.append(Correction(shown[k + 1].frame, (int(cell[0]), int(cell[1])), by))
    return found


def _around(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of the steps around each, itself left out."""
    expected = np.full_like(rates, np.nan)
    for k in range(len(rates)):
        near = [j for j in range(k - 4, k + 5) if j != k and 0 <= j < len(rates)]
        expected[k] = np.median(rates[near], axis=0)
    return expected


def _moves(tracks: Sequence[dict[str, list[Any]]], before: int, after: int) -> NDArray[np.float64]:
    """(N, 2) displacements of the tracks that have readings in both frames [nm]."""
    moves = []
    for rows in tracks:
        if before in rows["frame"] and after in rows["frame"]:
            i, j = rows["frame"].index(before), rows["frame"].index(after)
            moves.append((rows["y_nm"][j] - rows["y_nm"][i], rows["x_nm"][j] - rows["x_nm"][i]))
    return np.array(moves).reshape(-1, 2)


def corrected(
    corrections: Sequence[Correction], shown: list[Shown], tracks: Sequence[dict[str, list[Any]]], events: list[Event]
) -> tuple[list[Shown], list[Event]]:
    """Frames and events with corrections applied; the positions of `tracks` are changed in place."""
    for one in corrections:
        shown = [replace(s, drift_nm=s.drift_nm + one.by_nm) if s.frame >= one.frame else s for s in shown]
        for rows in tracks:
            for key, shift in zip(("y_nm", "x_nm"), one.by_nm):
                rows[key] = [v - shift if f >= one.frame else v for f, v in zip(rows["frame"], rows[key])]
        events = [_other_hop(e, one) if e.kind == "hop" and abs(e.frame - one.frame) <= 1 else e for e in events]
        # What was a step of the drift was no hop.
        events = [e for e in events if e.kind != "hop" or float(np.linalg.norm(e.step_nm)) > _NO_HOP_NM]
    return shown, events


def stayed(rows: dict[str, list[Any]], frame: int) -> bool:
    """Whether a track is at the same place before and from a frame on, after corrections."""
    at = bisect.bisect_left(rows["frame"], frame)
    yx = np.stack([rows["y_nm"], rows["x_nm"]], axis=1)
    before, after = yx[max(at - 3, 0) : at], yx[at : at + 3]
    if not len(before) or not len(after):
        return False
    return float(np.linalg.norm(np.median(after, axis=0) - np.median(before, axis=0))) < _NO_HOP_NM


def _other_hop(event: Event, one: Correction) -> Event:
    step = np.array(event.step_nm) - one.by_nm
    words = [str(Fraction(w) - n) for w, n in zip(event.lattice_step.split(), one.cell)]
    return replace(event, step_nm=(float(step[0]), float(step[1])), lattice_step=" ".join(words))


def straightened(
    matrix: NDArray[np.float64],
    middle_nm: NDArray[np.float64],
    rows: dict[str, list[Any]],
    shown: Sequence[Shown],
    events: Sequence[Event],
) -> tuple[NDArray[np.float64], list[Event]]:
    """Drift (T, 2) [nm] and events in coordinates about the middle of the image that a matrix sets right.

    The positions in `rows` are changed in place.
    """
    if rows["y_nm"]:
        places = middle_nm + (np.stack([rows["y_nm"], rows["x_nm"]], axis=1) - middle_nm) @ matrix
        rows["y_nm"], rows["x_nm"] = places.T.tolist()
    steps = [np.array(e.step_nm) @ matrix for e in events]
    right = [replace(e, step_nm=(float(y), float(x))) for e, (y, x) in zip(events, steps)]
    return np.array([s.drift_nm for s in shown]).reshape(-1, 2) @ matrix, right
