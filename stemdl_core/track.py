"""Defects followed through a movie, one frame at a time."""

from __future__ import annotations

import bisect
import copy
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .analysis import FrameAnalysis
from .errors import StemdlError
from .events import Change, Row, TrackHistory
from .hostframe import SpecimenFrame, host_lattice
from .linking import Linked, Target, TrackSettings, birth_costs, chemistry_costs, link, recomposition
from .materials import Material, get_material
from .observations import Observation, observe
from .trajectories import Drift, Event, Events, Tracks

#: Tracks that left the view are remembered up to this number.
_REMEMBERED = 64
#: Frames that have lost this much of this many atoms are bad; after so many in a row the specimen has.
_LATTICE_ATOMS, _REAL_LOSS = 20.0, 12
#: Good frames that the neighbours of an appearing or vanishing defect get to say whether it merged or split.
_PATIENCE = 4


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


@dataclass(eq=False)
class _Track:
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
    absorbed: list[_Track] = field(default_factory=list)
    taken_by: _Track | None = None
    part_of: bool = False
    where_alike: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    before_last: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    apart_at: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    last_border_nm: float = np.inf
    last_frame: int = 0
    lost_at: tuple[int, float | None] | None = None
    rows: dict[str, list[Any]] = field(default_factory=lambda: {k: [] for k in _COLUMNS})
    names: list[str] = field(default_factory=list)
    saved: list[Change] = field(default_factory=list)

    @property
    def atoms(self) -> int:
        return sum(self.foreign.values())


_COLUMNS = (
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


class Tracker:
    """Follows defects from frame to frame, with the same result as `track` on the whole movie.

    Time and memory per frame do not depend on how many came before; the trajectories themselves, some
    hundred bytes a defect and frame, are kept for `tracks`.

    Parameters
    ----------
    settings : TrackSettings, optional
    analyze : callable, optional
        Turns a `Frame` into a `FrameAnalysis`, so that `update` can be fed images.

    Examples
    --------
    >>> tracker = Tracker()
    >>> for analysis in analyze_sequence(sequence, model):    # doctest: +SKIP
    ...     for event in tracker.update(analysis).events:
    ...         print(event.frame, event.kind)
    """

    def __init__(
        self, *, settings: TrackSettings | None = None, analyze: Callable[[Any], FrameAnalysis] | None = None
    ) -> None:
        self.settings = settings or TrackSettings()
        self._analyze = analyze
        self._specimen = SpecimenFrame()
        self._material: Material | None = None
        self._live: list[_Track] = []
        self._away: deque[_Track] = deque(maxlen=_REMEMBERED)
        self._done: list[_Track] = []
        self._born: list[_Track] = []
        self._ended: list[_Track] = []
        self._next_id = 1
        self._shape: tuple[int, int] | None = None
        self._usual_atoms, self._lattice_lost = 0.0, 0
        self._given: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._good = 0
        self._seen = 0
        self._frames: list[int] = []
        self._drift: list[tuple[float, float]] = []
        self._times: deque[tuple[int, int, float | None]] = deque(maxlen=256)
        self._events: list[Event] = []
        self._faults: list[tuple[int, str]] = []

    # ------------------------------------------------------------------ input

    def skip(self, frame: int, fault: str) -> Update:
        """Leave out a bad frame: no track counts it as a miss."""
        self._seen += 1
        self._faults.append((int(frame), str(fault)))
        return Update(int(frame), self._specimen.drift_nm.copy(), fault=str(fault))

    def update(self, item: Any, *, drift_nm: ArrayLike | None = None, drift_sigma_nm: float = 0.04) -> Update:
        """Add the next frame.

        Parameters
        ----------
        item : FrameAnalysis, or Frame if the tracker was given `analyze`
        drift_nm : (2,) array_like, optional
            Displacement (y, x) of the specimen in the image since the first frame, from registered images
            [nm]. It chooses the branch; the phase of the lattice refines it. By default the drift comes from
            the located atoms alone.
        drift_sigma_nm : float
            Standard deviation of `drift_nm` [nm].

        Raises
        ------
        StemdlError
            If the material changes, or frames do not come in order.
        """
        if not isinstance(item, FrameAnalysis) and self._analyze is None:
            raise StemdlError("Tracker.update needs a FrameAnalysis, or a Tracker made with analyze=...")
        analysis = item if isinstance(item, FrameAnalysis) else self._analyze(item)  # type: ignore[misc]
        material = get_material(analysis.material)
        if self._material is None:
            self._material = material
        if material != self._material:
            raise StemdlError(
                f"frame {analysis.frame} is {material.name}, the frames before {self._material.name}"
            )
        if self._frames and analysis.frame <= self._frames[-1]:
            raise StemdlError(
                f"frame {analysis.frame} comes after frame {self._frames[-1]}: frames must be in order"
            )
        fault = self._fault(analysis, material)
        if fault is not None:
            return self.skip(analysis.frame, fault)
        self._seen += 1
        events: list[Event] = []
        found = observe(analysis)
        lattice = host_lattice(analysis, prior=self._specimen.current or self._specimen.reference)
        steps = analysis.frame - self._frames[-1] if self._frames else 1
        positions, targets, linked = self._place(analysis, found, lattice, steps, drift_nm, drift_sigma_nm)
        self._frames.append(analysis.frame)
        self._drift.append((float(self._specimen.drift_nm[0]), float(self._specimen.drift_nm[1])))
        self._times.append((self._good, analysis.frame, analysis.time_s))
        taken = {id(targets[i]): j for i, j in linked.pairs}
        free = set(range(len(found))) - set(taken.values())
        parts = self._revive(targets, taken, found, positions, free)
        for track in targets:
            if id(track) in taken:
                j = taken[id(track)]
                self._extend(track, analysis, found[j], positions[j], events)
            elif track in self._live and track not in parts.values():
                self._miss(track, analysis)
        for j in sorted(free):
            track = parts.get(j) or self._begin(found[j], positions[j], analysis)
            self._extend(track, analysis, found[j], positions[j], events)
        self._good += 1
        self._retire(events)
        self._settle(events, final=False)
        self._events += events
        return Update(
            analysis.frame, self._specimen.drift_nm.copy(), self._current(analysis.frame), tuple(events)
        )

    def _fault(self, analysis: FrameAnalysis, material: Material) -> str | None:
        """Why an analysis says nothing about the specimen: other size, or most of the lattice not found."""
        shape = analysis.shape
        if self._shape is not None and shape != self._shape:
            return f"different size: {shape[0]} x {shape[1]} px after {self._shape[0]} x {self._shape[1]} px"
        self._shape = shape
        atoms = float(np.isin(analysis.sites.species, material.species).sum())
        usual, self._lattice_lost = self._usual_atoms, self._lattice_lost + 1
        if usual >= _LATTICE_ATOMS and atoms < 0.4 * usual and self._lattice_lost <= _REAL_LOSS:
            return f"lattice not found: {atoms:.0f} atoms where there were {usual:.0f}"
        # A hole that stays is no bad frame: after some time what is left is the usual.
        self._usual_atoms = (
            atoms if usual == 0 or self._lattice_lost > _REAL_LOSS else 0.9 * usual + 0.1 * atoms
        )
        self._lattice_lost = 0
        return None

    # ---------------------------------------------------------------- linking

    def _place(
        self,
        analysis: FrameAnalysis,
        found: list[Observation],
        lattice: Any,
        steps: int,
        given: ArrayLike | None,
        sigma: float,
    ) -> tuple[NDArray[np.float64], list[_Track], Linked]:
        """Drift and links that are most probable together."""
        specimen, settings = self._specimen, self.settings
        centre = analysis.pixel_size.to_nm([(analysis.shape[0] - 1) / 2, (analysis.shape[1] - 1) / 2])
        size = analysis.pixel_size.to_nm([analysis.shape[0], analysis.shape[1]])
        yx = np.array([s.yx_nm for s in found]).reshape(-1, 2)
        births = birth_costs([s.border_nm for s in found], settings)
        if not self._frames:
            # The first frame defines the specimen's frame: nothing to choose.
            specimen.accept(lattice, np.zeros(2))
            self._anchor(given)
            return yx, [], Linked((), 0.0)
        if given is not None and self._given is not None:
            # The step counts, not the sum: two ways to a branch may differ once and agree ever after.
            given_then, drift_then = self._given
            expected = drift_then + np.asarray(given, dtype=float) - given_then
        else:
            expected = None
        alone = not found
        tracks = [*self._live, *self._away]
        chemistry = recomposed = None
        best: tuple[float, Any] | None = None
        reach = 0.35
        for drift, cell in specimen.candidates(lattice, centre, reach_nm=reach, given_nm=expected, steps=steps):
            prior = specimen.cost(drift, given_nm=expected, given_sigma_nm=sigma, steps=steps, alone=alone)
            if best is not None and prior - 1.2 * len(found) > best[0]:
                continue
            positions = specimen.to_specimen(yx, lattice, drift, cell)
            targets = [self._target(t, drift, size) for t in tracks]
            if chemistry is None:
                foreign = [s.foreign for s in found]
                chemistry = chemistry_costs(targets, foreign, [s.names for s in found])
                recomposed = recomposition(targets, foreign)
            linked = link(targets, positions, chemistry, recomposed, births, settings)
            total = prior + linked.cost
            if best is None or total < best[0]:
                best = (total, (drift, positions, linked))
        assert best is not None
        drift, positions, linked = best[1]
        specimen.accept(lattice, drift, steps=steps)
        self._anchor(given)
        return positions, tracks, linked

    def _anchor(self, given: ArrayLike | None) -> None:
        """Remember which drift of ours goes with one known from elsewhere."""
        if given is not None:
            self._given = (np.asarray(given, dtype=float), self._specimen.drift_nm.copy())

    def _target(self, track: _Track, drift: NDArray[np.float64], size: NDArray[np.float64]) -> Target:
        expected = track.where + drift
        inside = float(min(expected.min(), (size - expected).min()))
        away = track.lost_at is not None
        return Target(
            track.where,
            track.foreign,
            track.history.likely_name or "",
            track.missed,
            track.real,
            inside > self.settings.border_nm,
            away,
        )

    def _begin(self, seen: Observation, yx_nm: NDArray[np.float64], analysis: FrameAnalysis) -> _Track:
        assert self._material is not None
        track = _Track(
            0,
            TrackHistory(material=self._material, settings=self.settings),
            self._good,
            self._good,
            yx_nm,
            dict(seen.foreign),
        )
        # What was there when the movie began was not born; a hole may have been overlooked in one frame.
        grace = 0 if seen.atoms else 1
        track.born = self._good > grace
        track.entered = self._where(seen.border_nm, yx_nm, analysis)
        self._live.append(track)
        return track

    def _where(self, border_nm: float, yx_nm: NDArray[np.float64], analysis: FrameAnalysis) -> str:
        """Whether a defect at a distance from the border may have crossed it since the frame before."""
        if border_nm < self.settings.border_nm:
            return "border"
        if len(self._drift) > 1:
            before = yx_nm + np.asarray(self._drift[-2])
            size = analysis.pixel_size.to_nm([analysis.shape[0], analysis.shape[1]])
            if min(before.min(), (size - before).min()) < self.settings.border_nm:
                return "border"
        return "inside"

    def _revive(
        self,
        tracks: list[_Track],
        taken: dict[int, int],
        found: list[Observation],
        positions: NDArray[np.float64],
        free: set[int],
    ) -> dict[int, _Track]:
        """Tracks that had merged into a cluster which now lacks just their atoms, by detection number.

        `taken` is put right where both parts are alike: each is then the one nearer to where it was before.
        """
        parts: dict[int, _Track] = {}
        for track in tracks:
            if not track.absorbed or id(track) not in taken:
                continue
            near = [
                j
                for j in free
                if j not in parts
                and np.linalg.norm(track.where - positions[j]) < self.settings.merge_range_nm
            ]
            for other in list(track.absorbed):
                own = taken[id(track)]
                match = next(
                    (
                        j
                        for j in near
                        if dict(found[j].foreign) == other.foreign
                        and found[own].atoms + found[j].atoms == track.atoms
                    ),
                    None,
                )
                if match is None:
                    continue
                pair = np.array([positions[own], positions[match]])
                home = np.array([track.apart_at, other.where])
                if found[own].foreign == found[match].foreign and np.linalg.norm(
                    pair[::-1] - home
                ) < np.linalg.norm(pair - home):
                    taken[id(track)], match = match, own
                    free ^= {match, taken[id(track)]}
                track.absorbed.remove(other)
                other.taken_by, other.part_of, other.lost_at, other.missed = None, True, None, 0
                other.returned.append(self._good)
                other.history.settle_anew()
                other.where = positions[match]
                for group in (self._done, self._ended):
                    if other in group:
                        group.remove(other)
                if other not in self._live:
                    self._live.append(other)
                parts[match] = other
                break
        return parts

    # ------------------------------------------------------------ bookkeeping

    def _extend(
        self,
        track: _Track,
        analysis: FrameAnalysis,
        seen: Observation,
        yx_nm: NDArray[np.float64],
        events: list[Event],
    ) -> None:
        """Add a reading to a track."""
        if track.lost_at is not None and track in self._away:
            self._away.remove(track)
            self._live.append(track)
            track.lost_at = None
            if track in self._ended:
                self._ended.remove(track)
            else:
                events.append(
                    Event(
                        analysis.frame, "birth", (track.id,), "", seen.name, analysis.time_s, where="border"
                    )
                )
        if track.missed and self._good - track.last > 1:
            track.returned.append(self._good)
        row = Row(track.history.count, analysis.frame, analysis.time_s, seen, yx_nm)
        values = (
            analysis.frame,
            np.nan if analysis.time_s is None else analysis.time_s,
            *seen.yx_px.tolist(),
            *yx_nm.tolist(),
            seen.angle_deg,
            seen.name,
            seen.names[seen.name],
            seen.deviation_deg,
        )
        for key, value in zip(_COLUMNS, values):
            track.rows[key].append(value)
        names, changes = track.history.push(row, self._specimen.reference)
        track.names += names
        near = np.linalg.norm(yx_nm - track.where) < 2.5 * self.settings.position_sigma_nm
        # At rest the mean of the last readings is a better place to expect the next than the last one alone.
        track.where = track.where + 0.3 * (yx_nm - track.where) if near else yx_nm
        if dict(seen.foreign) != track.foreign:
            track.before_last = track.where_alike
        track.where_alike = track.where
        track.foreign = dict(seen.foreign)
        track.last, track.missed, track.last_frame = self._good, 0, analysis.frame
        track.last_border_nm = seen.border_nm
        track.evidence += _weight(seen)
        self._report(track, changes, events)
        if not track.real and track.evidence >= self.settings.confirm:
            self._confirm(track, events)

    def _confirm(self, track: _Track, events: list[Event]) -> None:
        track.real, track.id = True, self._next_id
        self._next_id += 1
        if track.born and not track.part_of:
            self._born.append(track)
        saved, track.saved = track.saved, []
        self._report(track, saved, events)

    def _miss(self, track: _Track, analysis: FrameAnalysis) -> None:
        size = analysis.pixel_size.to_nm([analysis.shape[0], analysis.shape[1]])
        visible = self._target(track, self._specimen.drift_nm, size).visible
        if track.missed == 0:
            track.last_border_nm = track.last_border_nm if visible else min(track.last_border_nm, 0.0)
        track.missed += 1
        if visible and not track.real:
            track.evidence -= 0.6

    def _retire(self, events: list[Event]) -> None:
        """End tracks that have been missing for too long, and forget those that were never real."""
        for track in list(self._live):
            if not track.real and (track.evidence <= 0.0 or track.missed > self.settings.memory_frames):
                self._live.remove(track)
            elif track.missed > self.settings.memory_frames:
                self._end(track, events)

    def _end(self, track: _Track, events: list[Event]) -> None:
        self._live.remove(track)
        number = track.last + 1
        frame, time_s = next(((f, t) for g, f, t in self._times if g >= number), (track.last_frame + 1, None))
        track.lost_at = (frame, time_s)
        self._ended.append(track)
        if track.last_border_nm < self.settings.border_nm and track.taken_by is None:
            if len(self._away) == self._away.maxlen:
                self._close(self._away[0])
            self._away.append(track)

    def _close(self, track: _Track) -> None:
        if track not in self._done:
            self._done.append(track)

    # ----------------------------------------------------------------- events

    def _report(self, track: _Track, changes: list[Change], events: list[Event]) -> None:
        """Turn decided changes of a track into events, with the partners of merges and splits."""
        if not track.real:
            track.saved += changes
            return
        for change in changes:
            before, after, partner = [change.before], [change.after], None
            if change.kind in ("merge", "split"):
                count_before = track.history.atoms(change.before, change.row.seen)
                count = abs(track.history.atoms(change.after, change.row.seen) - count_before)
                partner = self._partner(track, change, count)
                if partner is not None:
                    if change.kind == "merge" and 0 < partner.id < track.id and partner.atoms >= count_before:
                        self._exchange_past(track, partner, change, events)
                    names = before if change.kind == "merge" else after
                    names.append(partner.history.likely_name or "unknown")
                    if not partner.real:
                        partner.part_of = True
                        self._confirm(partner, events)
            ids = (track.id,) if partner is None else (track.id, partner.id)
            at = change.at
            events.append(
                Event(
                    at.frame,
                    change.kind,
                    ids,
                    " + ".join(before),
                    " + ".join(after),
                    at.time_s,
                    change.angle_deg,
                    change.confidence,
                    change.mixed is not None,
                    "",
                    change.step_nm,
                    change.lattice_step,
                    change.sublattice,
                )
            )

    def _exchange_past(self, track: _Track, partner: _Track, change: Change, events: list[Event]) -> None:
        """Let the older of two equal tracks that merged be the one that goes on."""
        names, changes = partner.history.flush()
        partner.names += names
        self._report(partner, changes, events)
        cut = bisect.bisect_left(track.rows["frame"], change.row.frame)
        for key in _COLUMNS:
            mine, other = track.rows[key], partner.rows[key]
            track.rows[key], partner.rows[key] = other + mine[cut:], mine[:cut]
        track.names, partner.names = partner.names + track.names[cut:], track.names[:cut]
        for name in ("id", "first", "born", "entered", "returned"):
            mine, other = getattr(track, name), getattr(partner, name)
            setattr(track, name, other)
            setattr(partner, name, mine)
        track.apart_at, partner.where = partner.where, track.apart_at

    def _partner(self, track: _Track, change: Change, count: int) -> _Track | None:
        """The track that vanished into, or came out of, a cluster whose number of foreign atoms changed."""
        number = next((g for g, f, _ in self._times if f == change.row.frame), self._good)
        near = []
        for other in [*self._live, *self._ended]:
            if other is track or other.atoms != count or other.taken_by is not None:
                continue
            distance = float(np.linalg.norm(other.where - change.row.yx_nm))
            if distance > self.settings.merge_range_nm:
                continue
            if change.kind == "merge":
                fits = (
                    number - 2 - self.settings.memory_frames <= other.last <= number and other.first < number
                )
            else:
                starts = [*other.returned[-3:], *([other.first] if other.born else [])]
                fits = any(abs(g - number) <= 1 for g in starts)
            if fits:
                near.append((distance, other))
        if not near:
            return None
        partner = min(near, key=lambda pair: pair[0])[1]
        if change.kind == "merge":
            partner.taken_by = track
            track.apart_at = track.before_last
            track.absorbed = [*track.absorbed, partner][-8:]
        else:
            partner.part_of = True
        return partner

    def _settle(self, events: list[Event], *, final: bool) -> None:
        """Report the births and deaths that no merge or split explains."""
        for track in list(self._born):
            if track.part_of:
                self._born.remove(track)
            elif final or self._good - track.first > _PATIENCE or not self._has_neighbour(track):
                self._born.remove(track)
                events.append(
                    Event(
                        track.rows["frame"][0],
                        "birth",
                        (track.id,),
                        "",
                        self._first_name(track),
                        _time(track.rows["time_s"][0]),
                        confidence=self._presence(track),
                        where=track.entered,
                    )
                )
        for track in list(self._ended):
            waited = self._good - track.last > self.settings.memory_frames + _PATIENCE
            if not (final or waited or not self._has_neighbour(track)):
                continue
            self._ended.remove(track)
            names, changes = track.history.flush() if track not in self._away else ([], [])
            track.names += names
            self._report(track, changes, events)
            if track.taken_by is None and track.lost_at is not None:
                where = "border" if track.last_border_nm < self.settings.border_nm else "inside"
                events.append(
                    Event(
                        track.lost_at[0],
                        "death",
                        (track.id,),
                        track.history.likely_name or "unknown",
                        "",
                        track.lost_at[1],
                        confidence=self._presence(track),
                        where=where,
                    )
                )
            if track not in self._away:
                self._close(track)

    def _first_name(self, track: _Track) -> str:
        return (track.names + track.history.outlook())[0]

    def _presence(self, track: _Track) -> float:
        """Probability that a track is of a real defect, from the readings it has."""
        return float(1.0 - 0.3 ** max(min(track.evidence, 30.0), 0.1))

    def _has_neighbour(self, track: _Track) -> bool:
        return any(
            o is not track
            and o.atoms
            and track.atoms
            and np.linalg.norm(o.where - track.where) < self.settings.merge_range_nm
            for o in self._live
        )

    # ----------------------------------------------------------------- output

    def _current(self, frame: int) -> tuple[Current, ...]:
        return tuple(
            Current(
                t.id,
                t.history.likely_name or "unknown",
                np.array([t.rows["y_px"][-1], t.rows["x_px"][-1]]),
                np.array([t.rows["y_nm"][-1], t.rows["x_nm"][-1]]),
                t.rows["orientation_deg"][-1],
            )
            for t in self._live
            if t.real and t.last_frame == frame
        )

    def tracks(self) -> Tracks:
        """Trajectories and events up to now, as if the movie ended here; the tracker goes on unchanged."""
        return copy.deepcopy(self)._finish() if self._analyze is None else self._snapshot()

    def _snapshot(self) -> Tracks:
        analyze, self._analyze = self._analyze, None
        try:
            return copy.deepcopy(self)._finish()
        finally:
            self._analyze = analyze

    def _finish(self) -> Tracks:
        events: list[Event] = []
        if self._good <= 3:
            # So short a movie cannot confirm by repetition: every reading above one half counts.
            for track in self._live:
                if not track.real and track.evidence >= 0.5:
                    self._confirm(track, events)
        for track in [*self._live, *self._away]:
            if track.real:
                names, changes = track.history.flush()
                track.names += names
                self._report(track, changes, events)
        for track in list(self._live):
            enough = 2 if track.atoms else 3
            if track.real and track.missed >= enough:
                self._end(track, events)
        self._settle(events, final=True)
        every = {id(t): t for t in [*self._done, *self._away, *self._live] if t.real}
        everything = sorted(self._events + events, key=lambda e: (e.frame, e.track_ids, e.kind))
        rows: dict[str, list[Any]] = {k: [] for k in (*_COLUMNS, "track_id", "name")}
        for track in every.values():
            names = track.names + track.history.outlook()
            for key in _COLUMNS:
                rows[key] += track.rows[key]
            rows["track_id"] += [track.id] * len(names)
            rows["name"] += names
        drift = np.array(self._drift).reshape(-1, 2)
        reference = self._specimen.reference
        return Tracks.from_rows(
            rows,
            drift=Drift(np.array(self._frames), drift[:, 0], drift[:, 1]),
            events=Events(tuple(everything)),
            faults=tuple(self._faults),
            lattice=None if reference is None else reference.basis_nm,
            frames=self._seen,
        )


def _weight(seen: Observation) -> float:
    """What a reading counts for a track being real."""
    if seen.atoms:
        return max(seen.score, 0.3)
    # Odd rings without a name are what noise makes of a perfect lattice.
    return 0.5 if seen.name == "unknown" else max(seen.names[seen.name], 0.3)


def _time(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def track(analyses: Iterable[FrameAnalysis], *, settings: TrackSettings | None = None) -> Tracks:
    """Follow the defects of analysed frames.

    Parameters
    ----------
    analyses : iterable of FrameAnalysis
        In order of frames; read once, one at a time.
    settings : TrackSettings, optional

    Returns
    -------
    Tracks
        Trajectories relative to the host lattice, drift, and events.
    """
    tracker = Tracker(settings=settings)
    for analysis in analyses:
        tracker.update(analysis)
    return tracker.tracks()
