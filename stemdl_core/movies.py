"""A movie from its frames to its tracks: bad frames left out, drift from images and atoms, resumable.

Every frame that has been analysed is written to a journal at once. After an interruption the frames in the
journal are not analysed again; the tracker is fed with what they say and goes on, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .ahead import Ahead
from .analysis import FrameAnalysis
from .drift import DriftTracker
from .errors import StemdlError
from .faults import Look, frame_fault, look
from .frames import Frame, FrameSequence
from .journal import (
    Journal,
    analysis_from_dict,
    journal_entry,
    kept_when_interrupted,
    known_from,
    movie_identity,
    unfinished,
)
from .lattice import fit_lattice
from .linking import TrackSettings
from .materials import get_material
from .tracking import Tracker, Update
from .trajectories import Tracks
from .writers import strict_json

__all__ = [
    "HOPELESS_FRAMES",
    "Journal",
    "MovieTracker",
    "analysis_from_dict",
    "follow_movie",
    "kept_when_interrupted",
    "movie_identity",
    "unfinished",
]

#: A movie of which so many frames at the beginning cannot be used is not followed further.
HOPELESS_FRAMES = 12
#: The drift from images counts where its branch is at least this probable; its standard deviation there [nm].
_SURE, _DRIFT_SIGMA_NM = 0.9, 0.04
#: So many defects do not all move alike.
_SEVERAL = 3


class MovieTracker:
    """Frames in, tracks out: bad frames are recognised, the drift comes from images and located atoms together.

    Parameters
    ----------
    analyze : callable
        ``analyze(frame)``, normally `analyze_frame` with its model.
    settings : TrackSettings, optional

    Examples
    --------
    >>> movie = MovieTracker(lambda frame: analyze_frame(frame, model))    # doctest: +SKIP
    >>> for frame in camera:
    ...     analysis, update = movie.update(frame)
    ...     for defect in update.tracks:
    ...         print(defect.track_id, defect.name, defect.yx_px)
    >>> movie.tracks().to_dataframe()
    """

    def __init__(self, analyze: Callable[[Frame], FrameAnalysis], *, settings: TrackSettings | None = None) -> None:
        self.analyze = analyze
        self.tracker = Tracker(settings=settings)
        self._last: Look | None = None
        self._drift: DriftTracker | None = None
        self._bad_in_a_row = 0
        #: Pixel size of the newest frame that was analysed [nm].
        self.pixel_nm: float | None = None

    def update(self, frame: Frame, *, known: FrameAnalysis | str | None = None) -> tuple[FrameAnalysis | None, Update]:
        """Analyse and follow the next frame.

        Parameters
        ----------
        frame : Frame
        known : FrameAnalysis or str, optional
            What an earlier run found in it, or why it could not analyse it.

        Returns
        -------
        analysis : FrameAnalysis or None
            None where the frame cannot be used.
        update : Update
        """
        now, analysis = look(frame), None
        fault = frame_fault(frame, self._last, now=now)
        if fault is not None and fault.startswith("out of focus") and self._bad_in_a_row > 8:
            fault = None  # so long out of focus is how this movie goes on
        if fault is None and isinstance(known, str):
            fault = known
        elif fault is None:
            try:
                analysis = known if isinstance(known, FrameAnalysis) else self.analyze(frame)
            except StemdlError as error:
                fault = str(error)
        if analysis is None:
            return None, self.skip(frame.index, str(fault))
        self.pixel_nm = analysis.pixel_size.nm
        drift, sigma = self.drift(frame, analysis)
        update = self.tracker.update(analysis, drift_nm=drift, drift_sigma_nm=sigma, image=frame)
        if update.fault is None:
            self._bad_in_a_row = 0
            self._last = now
        else:
            self._bad_in_a_row += 1
        return analysis, update

    def tracks(self) -> Tracks:
        """Trajectories, drift and events up to now, as if the movie ended here; the tracker goes on unchanged."""
        return self.tracker.tracks()

    def skip(self, index: int, fault: str) -> Update:
        """Leave out a frame."""
        self._bad_in_a_row += 1
        if self._drift is not None:
            self._drift.skip()
        return self.tracker.skip(index, fault)

    def drift(self, frame: Frame, analysis: FrameAnalysis) -> tuple[tuple[float, float] | None, float]:
        """Drift of a frame from its image (y, x) [nm], None where there is none, and its sigma [nm].

        The sigma is infinite where the branch is in doubt, or where defects tell it better.
        """
        material = get_material(analysis.material)
        if self._drift is None:
            fit = fit_lattice(frame.image, material=material, nominal_pixel_size_nm=analysis.pixel_size.nm)
            if fit is None:
                return None, _DRIFT_SIGMA_NM
            self._drift = DriftTracker(fit=fit, shape=frame.shape, pixel_size=analysis.pixel_size)
        host = np.isin(analysis.sites.species, material.species)
        centers = np.array([d.center_px for d in analysis.defects], dtype=float).reshape(-1, 2)
        try:
            step = self._drift.update(frame.image, analysis.sites.yx_px[host], centers)
        except StemdlError:
            return None, _DRIFT_SIGMA_NM
        # One or two defects tell the branch better when they are linked than when they are compared as blots: where
        # they go, the image seems to go. Several do not all go the same way.
        told = step.branch_confidence < _SURE or 0 < len(analysis.defects) < _SEVERAL
        return (step.dy_nm, step.dx_nm), np.inf if told else max(_DRIFT_SIGMA_NM, step.sigma_nm)


def follow_movie(
    sequence: FrameSequence,
    analyze: Callable[[Frame], FrameAnalysis],
    *,
    settings: TrackSettings | None = None,
    journal: Journal | None = None,
    hopeless_frames: int = HOPELESS_FRAMES,
    workers: int = 1,
) -> Iterator[tuple[str, MovieTracker]]:
    """Analyse and follow a movie frame by frame.

    Parameters
    ----------
    sequence : FrameSequence
    analyze : callable
        ``analyze(frame)``, normally `analyze_frame` with its model.
    settings : TrackSettings, optional
    journal : Journal, optional
        Frames in it are not analysed again; new ones are added.
    hopeless_frames : int
        Give up if none of so many frames at the beginning can be used.
    workers : int
        Processes that analyse frames ahead of the tracking, where the system has them; the result is the same.

    Yields
    ------
    line : str
        The frame's line of ``analysis.jsonl``.
    movie : MovieTracker
        Its ``tracker`` has all frames up to this one.

    Raises
    ------
    StemdlError
        If none of the first frames can be used; the message is that of the first.
    """
    movie = MovieTracker(analyze, settings=settings)
    done = journal.entries() if journal is not None else iter(())
    known = 0 if journal is None else journal.count
    good, first_fault = 0, ""
    with Ahead(sequence, analyze, first=known, workers=workers) as ahead:
        for number in range(len(sequence)):
            entry = next(done, None)
            if entry is not None:
                record, _ = _advance(movie, number, partial(sequence.__getitem__, number), known_from(entry))
            else:
                frame, found = ahead.get(number)
                record, analysis = _advance(movie, number, frame, found)
                if journal is not None:
                    journal.add(journal_entry(number, record, analysis))
            good += "fault" not in record
            first_fault = first_fault or (f"frame {number}: {record['fault']}" if "fault" in record else "")
            if not good and number + 1 >= min(len(sequence), hopeless_frames):
                raise StemdlError(f"{sequence.source}: no frame can be used; {first_fault}")
            yield strict_json(record), movie


def _advance(
    movie: MovieTracker, number: int, read: Callable[[], Frame], known: FrameAnalysis | str | None
) -> tuple[dict[str, Any], FrameAnalysis | None]:
    """The record of a frame and its analysis."""
    try:
        frame = read()
    except StemdlError as error:
        return _fault(number, movie.skip(number, str(error)).fault), None
    analysis, update = movie.update(frame, known=known)
    if analysis is None:
        return _fault(number, update.fault), None
    record = analysis.to_dict(with_frame=True)
    if update.fault is not None:
        record["fault"] = update.fault
    return record, analysis


def _fault(number: int, fault: str | None) -> dict[str, Any]:
    return {
        "schema": 1,
        "frame": number,
        "fault": fault,
        "sites": [],
        "bonds": [],
        "defects": [],
        "rings": {},
    }
