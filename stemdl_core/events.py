"""What happened to one defect: its name, place and orientation decided frame by frame, and their changes.

Names are decided first. Only frames in which the defect shows as many foreign atoms as its name says then
tell its place, and its orientation if it is a cluster: a frame that missed an atom of a trimer has another
centre and no triangle, but nothing moved.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chains import Move, PlaceChain, Weigh
from .decode import Decided, OnlineViterbi, Places
from .evidence import Row, name_evidence
from .hostframe import MOTIF, HostLattice, lattice_step
from .linking import TrackSettings
from .materials import Material
from .observations import Observation, foreign_atoms
from .site_field import SiteField, moved_since, on_one_site

#: A triangle of foreign atoms at most this far from equilateral is whole [deg].
_EVEN_DEG = 8.0
#: Rows on either side that a change is judged by.
_JUDGED = 5


@dataclass(frozen=True)
class Change:
    """A decided change of a track; `row` is the first row of the new state, `mixed` a row that shows both."""

    kind: str
    row: Row
    before: str
    after: str
    confidence: float
    mixed: Row | None = None
    angle_deg: float = float("nan")
    step_nm: tuple[float, float] = (float("nan"), float("nan"))
    lattice_step: str = ""
    sublattice: str = ""

    @property
    def at(self) -> Row:
        """The row whose frame is the first to show something of the new state."""
        return self.row if self.mixed is None else self.mixed


def _sigmoid(value: float) -> float:
    return float(1.0 / (1.0 + np.exp(-np.clip(value, -40, 40))))


class TrackHistory:
    """Decides the states of one track as its rows arrive.

    Parameters
    ----------
    material : Material
    settings : TrackSettings
    """

    def __init__(self, *, material: Material, settings: TrackSettings) -> None:
        self.material, self.settings = material, settings
        self.cost = float(-np.log(settings.change_probability))
        self._names = OnlineViterbi(change_cost=self.cost, extra_cost=self._atoms_cost)
        self._open: dict[int, Row] = {}
        self._fields: dict[int, SiteField] = {}
        #: Recent frames, and what their sites say about point defects.
        self.past: Sequence[tuple[Any, SiteField]] = ()
        self._last_hop = -1
        #: Rows decided to be at another place than they were read at, and that place.
        self.elsewhere: list[tuple[Row, NDArray[np.float64]]] = []
        self.lattice: HostLattice | None = None
        self.name: str | None = None
        self.decided_rows = self.count = 0
        self._before: deque[tuple[Row, str, Mapping]] = deque(maxlen=_JUDGED)
        self._position = self._new_position_chain()
        self._angle: PlaceChain | None = None
        self._skipped: deque[Row] = deque(maxlen=64)
        self._faint: deque[Row] = deque(maxlen=64)
        self._brightness = float("nan")
        self._switches: deque[int] = deque(maxlen=64)
        self._changes = self._moves = 0
        self._count: int | None = None

    def _new_position_chain(self) -> PlaceChain:
        sigma = self.settings.position_sigma_nm
        return PlaceChain(
            places=Places(sigma=sigma, apart=2.2 * sigma),
            change_cost=self.cost,
            span=0.3,
            longest=1.3 * self.material.bond_nm,
        )

    def atoms(self, name: str | None, seen: Observation) -> int:
        """Foreign atoms of a named state; of the reading itself where the name does not say."""
        count = None if name is None else foreign_atoms(name, self.material.species)
        return seen.atoms if count is None else count

    @property
    def likely_name(self) -> str | None:
        """The most probable name now."""
        return self._names.best or self.name  # type: ignore[return-value]

    def push(
        self, row: Row, lattice: HostLattice | None, field: SiteField | None = None
    ) -> tuple[list[str], list[Change]]:
        """Add a row; returns the names decided for the next rows in order, and the changes decided.

        `field` is what all sites of the frame say about point defects.
        """
        self.lattice = lattice
        if field is not None:
            self._fields[row.number] = field
        evidence, floor = name_evidence(row, self.material, lattice, self.settings, self._names.states)
        if row.number == 0:
            # A reading without a past is contradicted by one change only: it should not weigh as much.
            evidence, floor = {n: 0.6 * e for n, e in evidence.items()}, 0.6 * floor
        self._open[row.number] = row
        self.count += 1
        self._compare_brightness(row)
        return self._consume(self._names.push(row.number, evidence, floor=floor))

    def _atoms_cost(self, a: Hashable, b: Hashable) -> float:
        """Foreign atoms come and go more rarely than bonds change, and seldom for one frame."""
        one, two = (foreign_atoms(str(n), self.material.species) for n in (a, b))
        return 0.0 if one is None or two is None else 4.0 * min(abs(one - two), 2)

    def _compare_brightness(self, row: Row) -> None:
        """Remember readings in which an atom was there for a part of its scan lines only."""
        if self.name is not None and row.seen.atoms != self.atoms(self.name, row.seen):
            return  # an atom seen twice is faint both times
        value, usual = row.seen.intensity, self._brightness
        if not np.isfinite(value) or value <= 0:
            return
        if not np.isfinite(usual):
            self._brightness = value
            return
        if usual - value > max(0.14 * usual, 3.0 * row.seen.intensity_sigma):
            self._faint.append(row)
        self._brightness += 0.15 * float(np.clip(value - usual, -0.15 * usual, 0.15 * usual))

    def _learn(self) -> None:
        """Let the rate of changes follow what the track does: the prior counts as one change."""
        prior = self.settings.change_probability
        rate = (1.0 + self._changes) / (1.0 / prior + self.decided_rows)
        self._names.change_cost = float(-np.log(np.clip(rate, prior / 3, 4 * prior)))
        rate = (1.0 + self._moves) / (1.0 / prior + self.decided_rows)
        for chain in (self._position, self._angle):
            if chain is not None:
                chain.chain.change_cost = float(-np.log(np.clip(rate, prior / 3, 4 * prior)))

    def settle_anew(self) -> None:
        """Forget places and orientation: what comes next is not compared with what was before."""
        self._position, self._angle = self._new_position_chain(), None

    def outlook(self) -> list[str]:
        """Names of the rows not decided yet, as they stand now."""
        return [d.state for d in self._names.outlook()]  # type: ignore[misc]

    def flush(self) -> tuple[list[str], list[Change]]:
        """Decide everything that is left."""
        names, changes = self._consume(self._names.flush())
        return names, changes + self._close_chains()

    def _consume(self, decided: list[Decided]) -> tuple[list[str], list[Change]]:
        names, changes = [], []
        for position, item in enumerate(decided):
            row, name = self._open.pop(item.frame), str(item.state)
            later = decided[position:] + self._names.outlook()
            if self.name is not None and name != self.name:
                changes += self._rename(row, name, later)
            self.name = name
            names.append(name)
            changes += self._locate(row, name)
            self._fields.pop(row.number, None)
            self._before.append((row, name, item.evidence))
        self.decided_rows += len(decided)
        self._learn()
        return names, changes

    def _rename(self, row: Row, name: str, later: list[Decided]) -> list[Change]:
        old = str(self.name)
        earlier = self._before[-1][0] if self._before else row
        count_old = self.atoms(old, earlier.seen) if old != "unknown" or self._count is None else self._count
        count_new = self.atoms(name, row.seen)
        if name == "unknown":
            # What failed to be read tells nothing about its atoms: they are compared when it is read again.
            self._count = count_new = count_old
        elif old == "unknown":
            self._count = None
        gains = []
        after = [d.evidence for d in itertools.takewhile(lambda d: d.state == name, later)][:_JUDGED]
        before = [e for _, s, e in itertools.takewhile(lambda b: b[1] == old, reversed(self._before))]
        for new, lost, rows in ((name, old, after), (old, name, before)):
            gains.append(sum(e.get(new, -5.0) - e.get(lost, -5.0) for e in rows))
        near = ((earlier, before[0]), (row, after[0])) if before else ((row, after[0]),)
        mixed = next((r for r, e in near if _undecided(e, old, name)), None) or self._between(row)
        kind = "switch" if count_new == count_old else "merge" if count_new > count_old else "split"
        closing = self._close_chains() if kind != "switch" else []
        self._changes += 1
        if kind != "switch":
            self.settle_anew()
        else:
            self._switches.append(row.number)
        step = row.yx_nm - earlier.yx_nm
        change = Change(
            kind,
            row,
            old,
            name,
            _sigmoid(min(gains) - self.cost),
            mixed,
            step_nm=(float(step[0]), float(step[1])),
        )
        return [*closing, change]

    def _locate(self, row: Row, name: str) -> list[Change]:
        seen = row.seen
        count = self.atoms(name, seen)
        if seen.atoms != count or (seen.edge and seen.atoms > 1):
            # A trimer with one atom seen twice still has its triangle.
            if (count, seen.atoms) == (3, 4) and seen.deviation_deg < _EVEN_DEG:
                return self._orient(row)
            self._skipped.append(row)
            return []
        stray = float(np.clip(0.1 * (1.0 - seen.score), 0.002, 0.05))
        if seen.faint:
            # One such reading alone makes no hop there and back: the faintest of many atoms may be one by chance.
            stray = float(np.clip(1.0 - seen.score, 0.1, 0.4))
        elif seen.names.get(name, 0.0) < 0.2:
            stray = max(stray, 0.05)
        self._position.recent.append(row)
        weigh = self._weigher(row, name)
        changes = self._hops(self._position.push(row, row.yx_nm, stray, weigh, seen.name != name))
        if weigh is not None:
            self.elsewhere += self._position.elsewhere
        self._position.elsewhere = []
        if seen.atoms >= 2:
            changes += self._orient(row)
        return changes

    def _weigher(self, row: Row, name: str) -> Weigh | None:
        """How likely a point defect is at every place, by all sites of the frame."""
        field = self._fields.pop(row.number, None)
        if field is None or not on_one_site(name, self.material):
            return None
        if row.seen.name == name and field.nearest(name, row.yx_nm) is None:
            return None
        reach = self.settings.search_range_nm
        return lambda places: field.weigh(name, places, row.yx_nm, reach)

    def _orient(self, row: Row) -> list[Change]:
        """Rotations that the orientation of a cluster decides."""
        seen = row.seen
        if seen.fold < 2 or not np.isfinite(seen.angle_deg):
            return []
        period, sigma = 360.0 / seen.fold, self.settings.angle_sigma_deg
        if self._angle is None:
            self._angle = PlaceChain(
                places=Places(sigma=sigma, apart=3 * sigma, period=period),
                change_cost=self.cost,
                span=period,
                longest=period,
            )
        if self._angle.places.period != period:
            return []
        doubt = 0.005 if seen.fold == 2 else 0.001 * np.exp(0.4 * max(seen.deviation_deg - 8.0, 0.0))
        self._angle.recent.append(row)
        return self._turns(self._angle.push(row, np.array([seen.angle_deg]), float(min(doubt, 0.5))))

    def _between(self, row: Row) -> Row | None:
        """The reading at or just before `row` that shows another number of foreign atoms, or faint ones."""
        before = next((r for r in self._skipped if r.frame == row.frame - 1), None)
        return before or next((r for r in self._faint if row.frame - 1 <= r.frame <= row.frame), None)

    def _close_chains(self) -> list[Change]:
        changes = self._hops(self._position.flush())
        if self._angle is not None:
            changes += self._turns(self._angle.flush())
        return changes

    def _hops(self, moves: list[Move]) -> list[Change]:
        found, chain = [], self._position
        for row, start, end, mixed in moves:
            centers = chain.places.centers
            if end not in centers or start not in centers or chain.settled is None:
                continue
            with_switch = sum(abs(row.number - switch) <= 1 for switch in self._switches)
            step = centers[end] - (centers[start] if with_switch else chain.settled)
            if with_switch:
                # Every change between three and four bonds moves the atom by half a bond by itself.
                limit = (0.35 + 0.5 * with_switch) * self.material.bond_nm
            else:
                limit = self.settings.hop_bonds * self.material.bond_nm
            if not with_switch and np.linalg.norm(step) <= limit:
                # Small steps may add up to a hop, but the place of a misread frame is no start of one.
                last = centers[end] - centers[start]
                step = last if np.linalg.norm(last) > limit else step
            if np.linalg.norm(step) > limit:
                row = self._first(row, centers[end] - step, centers[end])
                if on_one_site(self.name, self.material):
                    mixed = None  # a point defect that is overlooked, or read elsewhere, for a frame is nothing special
                else:
                    mixed = mixed or self._between(row) or chain.on_the_way(row, centers[end] - step, centers[end])
                chain.settled = centers[end].copy()
                # The middle of odd rings that fit no name wanders with every ring that is read differently.
                if row.seen.atoms or self.name != "unknown":
                    self._moves += 1
                    found.append(self._hop(row, centers[end] - step, centers[end], mixed))
            elif with_switch:
                chain.settled = centers[end].copy()
        return found

    def _first(self, row: Row, start: NDArray[np.float64], end: NDArray[np.float64]) -> Row:
        """The row of a hop, put back to the frame from which on the sites themselves show the new place."""
        name = str(self.name)
        if not on_one_site(name, self.material):
            return row
        moment = moved_since(name, start, end, self.past, after=self._last_hop, before=row.frame)
        first = row if moment is None else replace(row, frame=moment.frame, time_s=moment.time_s)
        self._last_hop = first.frame
        return first

    def _hop(self, row: Row, start: NDArray[np.float64], end: NDArray[np.float64], mixed: Row | None) -> Change:
        step, name = end - start, str(self.name)
        text = sublattice = ""
        if self.lattice is not None:
            ends = self.lattice.fractional(np.stack([start, end]))
            sites, motif = self.lattice.nearest(ends)
            off = np.linalg.norm((sites - ends) @ self.lattice.basis_nm, axis=1)
            if (off < 0.35 * self.material.bond_nm).all():
                text = lattice_step(sites[1] - sites[0])
                sublattice = ">".join("AB"[int(m)] for m in motif)
        sigma = np.sqrt(2.0) * self.settings.position_sigma_nm
        confidence = _sigmoid(min((float(np.linalg.norm(step)) / sigma) ** 2 / 2, 12.0) - self.cost)
        return Change(
            "hop",
            row,
            name,
            name,
            confidence * row.seen.score,
            mixed,
            step_nm=(float(step[0]), float(step[1])),
            lattice_step=text,
            sublattice=sublattice,
        )

    def _turns(self, moves: list[Move]) -> list[Change]:
        found, chain = [], self._angle
        assert chain is not None
        assert chain.places.period is not None
        period = chain.places.period
        for row, start, end, mixed in moves:
            centers = chain.places.centers
            if end not in centers or start not in centers or chain.settled is None:
                continue
            angle = float(chain.places.difference(centers[end], chain.settled)[0])
            if abs(angle) < self.settings.rotation_deg:
                continue
            # Half a period either way is the same rotation: written as the positive one.
            if angle < -period / 3:
                angle += period
            mixed = mixed or self._between(row)
            if mixed is None:
                near = [r for r in chain.recent if row.number - 1 <= r.number <= row.number]
                bent = [r for r in near if r.seen.deviation_deg > self.settings.mixed_deviation_deg]
                mixed = max(bent, key=lambda r: r.seen.deviation_deg) if bent else None
            self._moves += 1
            gain = min((angle / (np.sqrt(2.0) * self.settings.angle_sigma_deg)) ** 2 / 2, 12.0)
            found.append(
                Change(
                    "rotation",
                    row,
                    str(self.name),
                    str(self.name),
                    _sigmoid(gain - self.cost) * row.seen.score,
                    mixed,
                    angle_deg=angle,
                )
            )
            chain.settled = centers[end].copy()
        return found


def _undecided(evidence: Mapping, old: str, new: str) -> bool:
    """Whether a reading belongs to neither of two states clearly, or to a third."""
    both = (evidence.get(old, -9.0), evidence.get(new, -9.0))
    third = max((e for n, e in evidence.items() if n not in (old, new)), default=-9.0)
    return abs(both[0] - both[1]) < 1.0 or third > max(both) + 1.0


__all__ = ["MOTIF", "Change", "Row", "TrackHistory", "lattice_step", "name_evidence"]
