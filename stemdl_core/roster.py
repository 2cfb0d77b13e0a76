"""The tracks of a movie while it runs: their beginnings and ends, merges and splits, and the events they report."""

from __future__ import annotations

import bisect
from collections import deque

import numpy as np
from numpy.typing import NDArray

from .events import Change, Row, TrackHistory
from .hindsight import look_back, place_at
from .hostframe import HostLattice
from .linking import TrackSettings
from .livetrack import COLUMNS, LiveTrack, Moment, presence, time_of, weight
from .materials import Material
from .observations import Observation
from .site_field import Levels, SiteField, on_one_site
from .trajectories import Event

#: Tracks that left the view are remembered up to this number.
_REMEMBERED = 64
#: Good frames that the neighbours of an appearing or vanishing defect get to say whether it merged or split.
_PATIENCE = 4
#: What appears up to this good frame was there when the movie began; frames that are searched for the beginning of a
#: point defect which single frames do not show.
_GRACE, _LOOK_BACK = 1, 40


class Roster:
    """All tracks of a movie.

    Of tracks that merge, the one with more atoms, of equal ones the older, goes on as the cluster. The others have no
    place of their own until it splits: each part is then the one that is nearer to where it was before.

    Parameters
    ----------
    material : Material
    settings : TrackSettings
    """

    def __init__(self, *, material: Material, settings: TrackSettings) -> None:
        self.material, self.settings = material, settings
        self.live: list[LiveTrack] = []
        self.away: deque[LiveTrack] = deque(maxlen=_REMEMBERED)
        self.done: list[LiveTrack] = []
        self.events: list[Event] = []
        self.now = Moment(0, 0, None)
        self.levels = Levels(material)
        self.field: SiteField | None = None
        self._before: deque[tuple[Moment, SiteField]] = deque(maxlen=_LOOK_BACK)
        self._born: list[LiveTrack] = []
        self._ended: list[LiveTrack] = []
        self._moments: deque[Moment] = deque(maxlen=256)
        self._next_id = 1

    @property
    def kinds(self) -> set[str]:
        """Point defects that are known to occur."""
        names = {t.history.likely_name or "" for t in (*self.live, *self.away) if t.real}
        return {n for n in names if on_one_site(n, self.material)}

    def next_frame(self, moment: Moment) -> None:
        """Begin a good frame."""
        self.now = moment
        self._moments.append(moment)
        if self.field is not None:
            self._before.append((moment, self.field))

    def begin(self, seen: Observation, yx_nm: NDArray[np.float64], *, entered: str) -> LiveTrack:
        """A new track, real when more readings confirm it."""
        track = LiveTrack(
            0,
            TrackHistory(material=self.material, settings=self.settings),
            self.now.good,
            self.now.good,
            yx_nm,
            dict(seen.foreign),
        )
        track.history.past = self._before
        # What was there when the movie began was not born, though it may have been overlooked at first.
        track.born = self.now.good > (_GRACE if seen.atoms else _GRACE + 1)
        track.entered = entered
        self.live.append(track)
        return track

    def revive(
        self,
        tracks: list[LiveTrack],
        taken: dict[int, int],
        found: list[Observation],
        positions: NDArray[np.float64],
        free: set[int],
    ) -> dict[int, LiveTrack]:
        """Tracks that had merged into a cluster which now lacks just their atoms, by detection number.

        `taken` is put right where both parts are alike: each is then the one nearer to where it was before.
        """
        parts: dict[int, LiveTrack] = {}
        for track in tracks:
            if not track.absorbed or id(track) not in taken:
                continue
            near = [
                j
                for j in free
                if j not in parts and np.linalg.norm(track.where - positions[j]) < self.settings.merge_range_nm
            ]
            for other in list(track.absorbed):
                own = taken[id(track)]
                # The other part may be overlooked in the first frames after the split.
                recently = self.now.good - track.fell <= self.settings.memory_frames
                whole = {track.atoms, track.had} if recently else {track.atoms}
                fits = [j for j in near if found[j].foreign == other.foreign]
                match = next((j for j in fits if found[own].atoms + found[j].atoms in whole), None)
                if match is None:
                    continue
                at_once = found[own].atoms + found[match].atoms == track.atoms
                pair = np.array([positions[own], positions[match]])
                home = np.array([track.apart_at, other.where])
                alike = at_once and found[own].foreign == found[match].foreign
                if alike and np.linalg.norm(pair[::-1] - home) < np.linalg.norm(pair - home):
                    taken[id(track)], match = match, own
                    free ^= {match, taken[id(track)]}
                track.absorbed.remove(other)
                other.taken_by, other.part_of, other.lost_at, other.missed = None, True, None, 0
                other.returned.append(self.now.good)
                other.history.settle_anew()
                other.where = positions[match]
                for group in (self.done, self._ended):
                    if other in group:
                        group.remove(other)
                if other not in self.live:
                    self.live.append(other)
                parts[match] = other
                break
        return parts

    def extend(
        self, track: LiveTrack, seen: Observation, yx_nm: NDArray[np.float64], lattice: HostLattice | None
    ) -> None:
        """Add a reading to a track."""
        if track.lost_at is not None and track in self.away:
            self.away.remove(track)
            self.live.append(track)
            track.lost_at = None
            if track in self._ended:
                self._ended.remove(track)
            else:
                self.events.append(
                    Event(self.now.frame, "birth", (track.id,), "", seen.name, self.now.time_s, where="border")
                )
        if track.taken_by is not None:
            # Seen again after a few frames: it has left the cluster, whose atoms will be counted anew.
            track.taken_by.absorbed = [t for t in track.taken_by.absorbed if t is not track]
            track.taken_by = None
        if track.missed and self.now.good - track.last > 1:
            track.returned.append(self.now.good)
        row = Row(track.history.count, self.now.frame, self.now.time_s, seen, yx_nm)
        values = (
            self.now.frame,
            np.nan if self.now.time_s is None else self.now.time_s,
            *seen.yx_px.tolist(),
            *yx_nm.tolist(),
            seen.angle_deg,
            seen.name,
            seen.names[seen.name],
            seen.deviation_deg,
        )
        for key, value in zip(COLUMNS, values):
            track.rows[key].append(value)
        names, changes = track.history.push(row, lattice, self.field)
        self._learn(track, seen)
        track.names += names
        near = np.linalg.norm(yx_nm - track.where) < 2.5 * self.settings.position_sigma_nm
        # At rest the mean of the last readings is a better place to expect the next than the last one alone.
        track.where = track.where + 0.3 * (yx_nm - track.where) if near else yx_nm
        if dict(seen.foreign) != track.foreign:
            track.before_last = track.where_alike
            if seen.atoms < track.atoms:
                track.had, track.fell = track.atoms, self.now.good
        track.where_alike = track.where
        track.foreign = dict(seen.foreign)
        track.last, track.missed, track.last_frame = self.now.good, 0, self.now.frame
        track.last_border_nm = seen.border_nm
        track.evidence += weight(seen)
        self.report(track, changes)
        enough = self.settings.confirm_later if track.born else self.settings.confirm
        if not track.real and track.evidence >= enough:
            self.confirm(track)

    def _learn(self, track: LiveTrack, seen: Observation) -> None:
        """Let the levels of point defects follow those that are certain."""
        if (track.real or not seen.faint) and np.isfinite(seen.evidence) and seen.name == track.history.likely_name:
            self.levels.learn(seen.name, seen.intensity)

    def confirm(self, track: LiveTrack) -> None:
        """Give a track its number: it is real."""
        track.real, track.id = True, self._next_id
        self._next_id += 1
        if on_one_site(track.history.likely_name, self.material):
            look_back(track, self._before, grace=_GRACE)
        if track.born and not track.part_of:
            self._born.append(track)
        saved, track.saved = track.saved, []
        self.report(track, saved)

    def miss(self, track: LiveTrack, *, visible: bool) -> None:
        """Note that a track was not found, though it may be `visible`."""
        if track.missed == 0:
            track.last_border_nm = track.last_border_nm if visible else min(track.last_border_nm, 0.0)
        track.missed += 1
        if visible and not track.real:
            track.evidence -= 0.6

    def retire(self) -> None:
        """End tracks that have been missing for too long, and forget those that were never real."""
        for track in list(self.live):
            if not track.real and (track.evidence <= 0.0 or track.missed > self.settings.memory_frames):
                self.live.remove(track)
            elif track.missed > self.settings.memory_frames:
                self.end(track)

    def end(self, track: LiveTrack) -> None:
        """End a track after its last reading; at the border it is remembered."""
        self.live.remove(track)
        number = track.last + 1
        frame, time_s = next(
            ((m.frame, m.time_s) for m in self._moments if m.good >= number), (track.last_frame + 1, None)
        )
        track.lost_at = (frame, time_s)
        self._ended.append(track)
        if track.last_border_nm < self.settings.border_nm and track.taken_by is None:
            if len(self.away) == self.away.maxlen:
                self._close(self.away[0])
            self.away.append(track)

    def _close(self, track: LiveTrack) -> None:
        if track not in self.done:
            self.done.append(track)

    def report(self, track: LiveTrack, changes: list[Change]) -> None:
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
                        self._exchange_past(track, partner, change)
                    names = before if change.kind == "merge" else after
                    names.append(partner.history.likely_name or "unknown")
                    if not partner.real:
                        partner.part_of = True
                        self.confirm(partner)
            ids = (track.id,) if partner is None else (track.id, partner.id)
            at = change.at
            self.events.append(
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

    def _exchange_past(self, track: LiveTrack, partner: LiveTrack, change: Change) -> None:
        """Let the older of two equal tracks that merged be the one that goes on."""
        names, changes = partner.history.flush()
        partner.names += names
        self.report(partner, changes)
        cut = bisect.bisect_left(track.rows["frame"], change.row.frame)
        for key in COLUMNS:
            mine, other = track.rows[key], partner.rows[key]
            track.rows[key], partner.rows[key] = other + mine[cut:], mine[:cut]
        track.names, partner.names = partner.names + track.names[cut:], track.names[:cut]
        for name in ("id", "first", "born", "entered", "returned"):
            mine, other = getattr(track, name), getattr(partner, name)
            setattr(track, name, other)
            setattr(partner, name, mine)
        track.apart_at, partner.where = partner.where, track.apart_at

    def _partner(self, track: LiveTrack, change: Change, count: int) -> LiveTrack | None:
        """The track that vanished into, or came out of, a cluster whose number of foreign atoms changed."""
        number = next((m.good for m in self._moments if m.frame == change.row.frame), self.now.good)
        near = []
        for other in [*self.live, *self._ended]:
            if other is track or other.atoms != count or other.taken_by is not None:
                continue
            distance = float(np.linalg.norm(other.where - change.row.yx_nm))
            if distance > self.settings.merge_range_nm:
                continue
            if change.kind == "merge":
                fits = number - 2 - self.settings.memory_frames <= other.last <= number and other.first < number
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
            partner.merged.append(change.row.frame)
            track.apart_at = track.before_last
            track.absorbed = [*track.absorbed, partner][-8:]
        else:
            partner.part_of = True
        return partner

    def settle(self, *, final: bool) -> None:
        """Report the births and deaths that no merge or split explains."""
        for track in list(self._born):
            if track.part_of:
                self._born.remove(track)
            elif final or self.now.good - track.first > _PATIENCE or not self._has_neighbour(track):
                self._born.remove(track)
                self.events.append(
                    Event(
                        track.rows["frame"][0],
                        "birth",
                        (track.id,),
                        "",
                        self._first_name(track),
                        time_of(track.rows["time_s"][0]),
                        confidence=presence(track),
                        where=track.entered,
                    )
                )
        for track in list(self._ended):
            waited = self.now.good - track.last > self.settings.memory_frames + _PATIENCE
            if not (final or waited or not self._has_neighbour(track)):
                continue
            self._ended.remove(track)
            names, changes = track.history.flush() if track not in self.away else ([], [])
            track.names += names
            self.report(track, changes)
            if track.taken_by is None and track.lost_at is not None:
                where = "border" if track.last_border_nm < self.settings.border_nm else "inside"
                self.events.append(
                    Event(
                        track.lost_at[0],
                        "death",
                        (track.id,),
                        track.history.likely_name or "unknown",
                        "",
                        track.lost_at[1],
                        confidence=presence(track),
                        where=where,
                    )
                )
            if track not in self.away:
                self._close(track)

    def finish(self) -> list[LiveTrack]:
        """Decide everything that is open: there are no more frames. Returns all real tracks."""
        if self.now.good < 3:
            # So short a movie cannot confirm by repetition: every reading above one half counts.
            for track in self.live:
                if not track.real and track.evidence >= 0.5:
                    self.confirm(track)
        for track in [*self.live, *self.away]:
            if track.real:
                names, changes = track.history.flush()
                track.names += names
                self.report(track, changes)
        for track in list(self.live):
            # So near the end a loss cannot be told from being overlooked unless it lasts.
            enough = 3 if track.atoms else 4
            if track.real and track.missed >= enough:
                self.end(track)
        self.settle(final=True)
        every = {id(t): t for t in [*self.done, *self.away, *self.live] if t.real}
        return list(every.values())

    def place(self, event: Event) -> NDArray[np.float64] | None:
        """Where in the specimen's frame an event happened [nm]."""
        track = next((t for t in [*self.live, *self.done, *self.away] if t.id == event.track_ids[0]), None)
        return None if track is None else place_at(track, event.frame)

    def _first_name(self, track: LiveTrack) -> str:
        return (track.names + track.history.outlook())[0]

    def _has_neighbour(self, track: LiveTrack) -> bool:
        return any(
            o is not track
            and o.atoms
            and track.atoms
            and np.linalg.norm(o.where - track.where) < self.settings.merge_range_nm
            for o in self.live
        )
