"""Defects followed through a movie, one frame at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .analysis import FrameAnalysis
from .branches import corrected, find_corrections, settle_blind, stayed, straightened
from .bridging import Shown, bridge, put_right
from .errors import StemdlError
from .frames import Frame
from .halfway import KINDS, PATIENCE, HalfWay
from .hostframe import HostLattice, SpecimenFrame, host_lattice
from .linking import Linked, Target, TrackSettings, birth_costs, chemistry_costs, link
from .livetrack import Current, Update, current
from .materials import Material, get_material
from .observations import Observation, observe
from .roster import COLUMNS, LiveTrack, Moment, Roster
from .site_field import BEGINS, on_one_site, site_field
from .trajectories import Drift, Event, Events, Tracks

__all__ = ["Current", "Tracker", "Tracks", "Update", "track"]

#: Frames that have lost this much of this many atoms are bad; after so many in a row the specimen has.
_LATTICE_ATOMS, _REAL_LOSS = 20.0, 12
#: Host atoms that show the shear of a frame well enough, and tracks beyond which far branches are not tried.
_SHEAR_SITES, _CROWD = 40, 30


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
        self._roster: Roster | None = None
        self._shape: tuple[int, int] | None = None
        self._usual_atoms, self._lattice_lost = 0.0, 0
        self._basis_px: NDArray[np.float64] | None = None
        self._basis_sum, self._basis_count = np.zeros((2, 2)), 0
        self._middle: NDArray[np.float64] | None = None
        self._given: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._seen = 0
        self._frames: list[int] = []
        self._shown: list[Shown] = []
        self._faults: list[tuple[int, str]] = []
        self._halves, self._judged = HalfWay(), 0

    # ------------------------------------------------------------------ input

    def skip(self, frame: int, fault: str) -> Update:
        """Leave out a bad frame: no track counts it as a miss."""
        self._seen += 1
        self._faults.append((int(frame), str(fault)))
        return Update(int(frame), self._specimen.drift_nm.copy(), fault=str(fault))

    def update(
        self,
        item: Any,
        *,
        drift_nm: ArrayLike | None = None,
        drift_sigma_nm: float = 0.04,
        image: Frame | None = None,
    ) -> Update:
        """Add the next frame.

        Parameters
        ----------
        item : FrameAnalysis, or Frame if the tracker was given `analyze`
        drift_nm : (2,) array_like, optional
            Displacement (y, x) of the specimen in the image since the first frame, from registered images
            [nm]. It chooses the branch; the phase of the lattice refines it. By default the drift comes from
            the located atoms alone.
        drift_sigma_nm : float
            Standard deviation of `drift_nm` [nm]. If it is infinite, this drift only tells what the steps of the
            next ones are counted from.
        image : Frame, optional
            The frame itself, which tells changes that happened inside it from those between frames.

        Raises
        ------
        StemdlError
            If the material changes, or frames do not come in order.
        """
        if not isinstance(item, FrameAnalysis) and self._analyze is None:
            raise StemdlError("Tracker.update needs a FrameAnalysis, or a Tracker made with analyze=...")
        analysis = item if isinstance(item, FrameAnalysis) else self._analyze(item)  # type: ignore[misc]
        material = get_material(analysis.material)
        roster = self._roster = self._roster or Roster(material=material, settings=self.settings)
        if material != roster.material:
            raise StemdlError(f"frame {analysis.frame} is {material.name}, the frames before {roster.material.name}")
        if self._frames and analysis.frame <= self._frames[-1]:
            raise StemdlError(f"frame {analysis.frame} comes after frame {self._frames[-1]}: frames must be in order")
        fault = self._fault(analysis, material)
        if fault is not None:
            return self.skip(analysis.frame, fault)
        self._seen += 1
        # The pixel size of every frame is checked against its lattice, which drift within the frame bends: the
        # middle of the image stays where it is all the same.
        middle = analysis.pixel_size.to_nm([(n - 1) / 2 for n in analysis.shape])
        if self._middle is None:
            self._middle = middle
        aside = self._middle - middle
        lattice = host_lattice(analysis, prior=self._specimen.current or self._specimen.reference)
        field = site_field(analysis, lattice, roster.levels)
        certain = field.weighed(observe(analysis))
        # Point defects of the frames before may be among the faint or bright atoms of this one.
        expected: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in roster.kinds}
        ahead = self._specimen.drift_nm + self._specimen.step_nm - aside
        for one in roster.live:
            if on_one_site(one.history.likely_name, material):
                expected.setdefault(str(one.history.likely_name), []).append(one.where + ahead)
        found = certain + field.offered(expected, certain, self.settings.search_range_nm)
        found = [replace(s, yx_nm=s.yx_nm + aside) for s in found]
        if lattice is not None:
            lattice = replace(lattice, origin_nm=lattice.origin_nm + aside)
        steps = analysis.frame - self._frames[-1] if self._frames else 1
        blind = drift_nm is None or np.isinf(drift_sigma_nm)
        positions, targets, linked, cell = self._place(analysis, found, lattice, steps, drift_nm, drift_sigma_nm)
        placed = self._specimen.to_specimen(field.yx_nm + aside, lattice, self._specimen.drift_nm, cell)
        roster.field = replace(field, yx_nm=placed)
        roster.next_frame(Moment(len(self._frames), analysis.frame, analysis.time_s))
        self._frames.append(analysis.frame)
        time_s = float("nan") if analysis.time_s is None else analysis.time_s
        matrix = np.linalg.inv(analysis.pixel_size.matrix).T
        blind = blind and not certain and not linked.pairs
        at = self._specimen.drift_nm.copy()
        self._shown.append(Shown(analysis.frame, time_s, at, aside, matrix, blind, self._specimen.within_nm))
        if image is None and isinstance(item, Frame):
            image = item
        if image is not None:
            self._halves.add(image, self._shown[-1])
        told = len(roster.events)
        taken = {id(targets[i]): j for i, j in linked.pairs}
        free = {j for j, s in enumerate(found) if not s.faint or (s.faint > BEGINS and material.kind != "honeycomb")}
        free -= set(taken.values())
        parts = roster.revive(targets, taken, found, positions, free)
        size = analysis.pixel_size.to_nm([analysis.shape[0], analysis.shape[1]])
        reference = self._specimen.reference
        for track in targets:
            if id(track) in taken:
                roster.extend(track, found[taken[id(track)]], positions[taken[id(track)]], reference)
            elif track in roster.live and track not in parts.values():
                roster.miss(track, visible=self._target(track, self._specimen.drift_nm, size).visible)
        for j in sorted(free):
            entered = self._where(found[j].border_nm, positions[j], size)
            track = parts.get(j) or roster.begin(found[j], positions[j], entered=entered)
            roster.extend(track, found[j], positions[j], reference)
        roster.retire()
        roster.settle(final=False)
        self._judge(roster, before=analysis.frame - PATIENCE)
        shown = current(roster.live, analysis.frame)
        return Update(analysis.frame, self._specimen.drift_nm.copy(), shown, tuple(roster.events[told:]))

    def _judge(self, roster: Roster, *, before: int | None = None) -> None:
        """See which events happened inside a frame, when enough frames have come after them."""
        while self._judged < len(roster.events):
            event = roster.events[self._judged]
            if before is not None and event.frame > before:
                return
            place = roster.place(event) if event.kind in KINDS else None
            if place is not None:
                roster.events[self._judged] = self._halves.judged(event, place, roster.events)
            self._judged += 1

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
        self._usual_atoms = atoms if usual == 0 or self._lattice_lost > _REAL_LOSS else 0.9 * usual + 0.1 * atoms
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
    ) -> tuple[NDArray[np.float64], list[LiveTrack], Linked, NDArray[np.float64]]:
        """Drift and links that are most probable together, and the lattice vectors that the drift counts."""
        specimen, settings = self._specimen, self.settings
        assert self._roster is not None
        material = self._roster.material
        # Chalcogen vacancies go from column to column of their sublattice, atoms of graphene from bond to bond.
        hop_nm = material.bond_nm if material.kind == "honeycomb" else material.lattice_nm
        assert self._middle is not None
        specimen.look(self._within(analysis, lattice))
        centre = self._middle
        size = analysis.pixel_size.to_nm([analysis.shape[0], analysis.shape[1]])
        yx = np.array([s.yx_nm for s in found]).reshape(-1, 2)
        births = birth_costs([s.border_nm for s in found], settings)
        if not self._frames:
            # The first frame defines the specimen's frame: nothing to choose.
            specimen.accept(lattice, np.zeros(2))
            self._anchor(given)
            return yx, [], Linked((), 0.0), np.zeros(2)
        if given is not None and self._given is not None and np.isfinite(sigma):
            # The step counts, not the sum: two ways to a branch may differ once and agree ever after.
            given_then, drift_then = self._given
            expected = drift_then + np.asarray(given, dtype=float) - given_then
        else:
            expected = None
        faint, evidence = (np.array([getattr(s, k) for s in found]) for k in ("faint", "evidence"))
        names = [s.names for s in found]
        alone = not (faint == 0).any()
        tracks = [*self._roster.live, *self._roster.away]
        foreign = [s.foreign for s in found]
        # What the tracks are does not depend on where they are.
        known = [self._target(t, specimen.drift_nm, size) for t in tracks]
        chemistry = chemistry_costs(known, foreign, names)
        # No assignment costs less than this, wherever the defects are.
        least = float(np.minimum(chemistry.min(axis=1), 0.0).sum()) - 5.0 if chemistry.size else 0.0
        least -= float(np.nanmax(evidence)) * len(known) if np.isfinite(evidence).any() else 0.0
        best: tuple[float, Any] | None = None
        # With many defects a jump that all of them follow is found from those that are near by chance, too late.
        reach = 0.35 if len(tracks) > _CROWD else 0.8
        for drift, cell in specimen.candidates(lattice, centre, reach_nm=reach, given_nm=expected, steps=steps):
            prior = specimen.cost(drift, given_nm=expected, given_sigma_nm=sigma, steps=steps, alone=alone)
            if best is not None and prior + least > best[0]:
                continue
            positions = specimen.to_specimen(yx, lattice, drift, cell)
            targets = [self._target(t, drift, size) for t in tracks]
            linked = link(
                targets, positions, chemistry, foreign, births, settings,
                hop_nm=hop_nm, faint=faint, evidence=evidence, names=names,
            )  # fmt: skip
            total = prior + linked.cost
            if best is None or total < best[0]:
                best = (total, (drift, positions, linked, cell))
        assert best is not None
        drift, positions, linked, cell = best[1]
        specimen.accept(lattice, drift, steps=steps)
        self._anchor(given)
        return positions, tracks, linked, cell

    def _within(self, analysis: FrameAnalysis, lattice: HostLattice | None) -> NDArray[np.float64] | None:
        """Drift from the first to the last line of a frame (y, x) [nm], relative to that in the first frame."""
        if lattice is None or lattice.sites < _SHEAR_SITES:
            return None
        pixel = analysis.pixel_size
        basis_px = pixel.to_px(lattice.basis_nm)
        if self._basis_px is None:
            self._basis_px = basis_px
        self._basis_sum += lattice.basis_nm
        self._basis_count += 1
        bent = np.linalg.inv(self._basis_px) @ basis_px
        return analysis.shape[0] * pixel.nm * np.array([bent[0, 0] - 1.0, bent[0, 1]])

    def _anchor(self, given: ArrayLike | None) -> None:
        """Remember which drift of ours goes with one known from elsewhere."""
        if given is not None:
            self._given = (np.asarray(given, dtype=float), self._specimen.drift_nm.copy())

    def _target(self, track: LiveTrack, drift: NDArray[np.float64], size: NDArray[np.float64]) -> Target:
        expected = track.where + drift
        inside = float(min(expected.min(), (size - expected).min()))
        away = track.lost_at is not None
        assert self._roster is not None
        heavy = track.atoms > 1 or (track.atoms == 1 and self._roster.material.kind != "honeycomb")
        return Target(
            track.where,
            track.foreign,
            track.history.likely_name or "",
            track.missed,
            track.real,
            inside > self.settings.border_nm,
            away,
            heavy,
        )

    def _where(self, border_nm: float, yx_nm: NDArray[np.float64], size: NDArray[np.float64]) -> str:
        """Whether a defect at a distance from the border may have crossed it since the frame before."""
        if border_nm < self.settings.border_nm:
            return "border"
        if len(self._shown) > 1:
            before = yx_nm + self._shown[-2].drift_nm
            if min(before.min(), (size - before).min()) < self.settings.border_nm:
                return "border"
        return "inside"

    # ----------------------------------------------------------------- output

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
        every, events = list[LiveTrack](), list[Event]()
        if self._roster is not None:
            every, events = self._roster.finish(), self._roster.events
            self._judge(self._roster)
        rows: dict[str, list[Any]] = {k: [] for k in (*COLUMNS, "track_id", "name")}
        if self._specimen.reference is not None:
            basis = self._specimen.reference.basis_nm
            self._shown = settle_blind(self._shown, basis)
            for one in every:
                put_right(one.rows, self._shown, {r.frame: place for r, place in one.history.elsewhere})
            tables = [t.rows for t in every]
            wrong = find_corrections(self._shown, basis, tables)
            self._shown, events = corrected(wrong, self._shown, tables, events)
            if wrong:
                # A defect that was out of sight when the branch changed seemed to have hopped when it came back.
                at_rest = {(t.id, e.frame) for t in every for e in events if stayed(t.rows, e.frame)}
                events = [e for e in events if e.kind != "hop" or (e.track_ids[0], e.frame) not in at_rest]
        shown = {s.frame: s for s in self._shown}
        order = {s.frame: k for k, s in enumerate(self._shown)}
        for track in every:
            columns, names = bridge(
                track.rows,
                track.names + track.history.outlook(),
                shown,
                order,
                longest=self.settings.memory_frames,
                merged=track.merged,
                moved=[e.frame for e in events if e.kind in ("hop", "switch") and track.id in e.track_ids],
            )
            for key in COLUMNS:
                rows[key] += columns[key]
            rows["track_id"] += [track.id] * len(names)
            rows["name"] += names
        reference = self._specimen.reference
        straight, middle = np.eye(2), np.zeros(2)
        if reference is not None and self._basis_count and self._middle is not None:
            # The first frame may be sheared by drift within it: the mean of all frames is the better measure.
            straight = np.linalg.inv(reference.basis_nm) @ (self._basis_sum / self._basis_count)
            middle = self._middle
        drift, events = straightened(straight, middle, rows, self._shown, events)
        return Tracks.from_rows(
            rows,
            drift=Drift(np.array(self._frames), drift[:, 0], drift[:, 1]),
            events=Events(tuple(sorted(events, key=lambda e: (e.frame, e.track_ids, e.kind)))),
            faults=tuple(self._faults),
            lattice=None if reference is None else reference.basis_nm @ straight,
            frames=self._seen,
        )


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
