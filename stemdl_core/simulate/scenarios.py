"""What simulated movies show: states of the specimen, one a frame, and the changes between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StemdlError
from ..materials import get_material
from .structures import Specimen, add_defect

#: Drawings tried for the one that has the wanted orientation.
_TRIES = 24


@dataclass(frozen=True)
class Placed:
    """One defect of a state: its track, kind, place (y, x) in the first frame [nm], and drawing."""

    track_id: int
    kind: str
    at_nm: tuple[float, float]
    seed: int


@dataclass(frozen=True)
class TrueEvent:
    """A change at a frame: kind as in ``events.csv``; `half` if it happened half-way through that frame."""

    frame: int
    kind: str
    track_ids: tuple[int, ...]
    before: str
    after: str
    half: bool = False
    angle_deg: float = float("nan")


def position(specimen: Specimen, number: int) -> NDArray[np.float64]:
    """Mean position of a defect's foreign atoms (y, x) [nm], or its centre where there are none."""
    defect = specimen.defects[number]
    foreign = foreign_of(specimen, number)
    if not len(foreign):
        return np.asarray(defect.center_nm, dtype=np.float64)
    return specimen.yx_nm[foreign].mean(axis=0)


def foreign_of(specimen: Specimen, number: int) -> NDArray[np.int64]:
    """Foreign atoms of a defect, as indices into the specimen's atoms."""
    host = [get_material(specimen.material).atomic_number(s) for s in get_material(specimen.material).species]
    ids = np.asarray(specimen.defects[number].site_ids, dtype=np.int64)
    return ids[~np.isin(specimen.atoms.numbers[ids], host)]


def _drawn(
    base: Specimen,
    track_id: int,
    kind: str,
    at: NDArray[np.float64],
    badness: Callable[[Specimen], float] | None = None,
) -> Placed:
    """The drawing of a defect that suits best, of the orientations it can have."""
    best: tuple[float, int] | None = None
    for seed in range(_TRIES if badness else 1):
        try:
            value = (
                0.0
                if badness is None
                else badness(add_defect(base, kind, (float(at[0]), float(at[1])), rng=np.random.default_rng(seed)))
            )
        except StemdlError:
            continue
        if best is None or value < best[0]:
            best = (value, seed)
    if best is None:
        raise StemdlError(f"no room for {kind} in the simulated movie: enlarge the field of view")
    return Placed(track_id, kind, (float(at[0]), float(at[1])), best[1])


def _bridge(base: Specimen, track_id: int, a: NDArray[np.float64], b: NDArray[np.float64]) -> Placed:
    """A four-fold atom in the place of two neighbouring host atoms."""
    middle = (a + b) / 2
    drawn = [_drawn(base, track_id, "Si-C4", at, _beside(middle)) for at in (middle, a, b)]

    def off(placed: Placed) -> float:
        specimen = add_defect(base, placed.kind, placed.at_nm, rng=np.random.default_rng(placed.seed))
        return float(np.linalg.norm(_at(specimen) - middle))

    return min(drawn, key=off)


def _at(specimen: Specimen) -> NDArray[np.float64]:
    return position(specimen, len(specimen.defects) - 1)


def _beside(place: NDArray[np.float64]) -> Callable[[Specimen], float]:
    """How far the newest defect is from a place [nm]."""
    return lambda specimen: float(np.linalg.norm(_at(specimen) - place))


def _neighbours(base: Specimen, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions of the lattice sites next to the one at `at`."""
    distance = np.linalg.norm(base.yx_nm - at, axis=1)
    bond = get_material(base.material).bond_nm
    return base.yx_nm[(distance > 0.5 * bond) & (distance < 1.2 * bond)]


def _site(base: Specimen, at: NDArray[np.float64]) -> NDArray[np.float64]:
    return base.yx_nm[np.linalg.norm(base.yx_nm - at, axis=1).argmin()]


def _changes(frames: int, rate: float, rng: np.random.Generator) -> list[int]:
    """Frames at which something happens: a Poisson process, never in the first frame."""
    return [t for t in range(1, frames) if rng.random() < rate]


def _switching(base: Specimen, frames: int, rate: float, rng: np.random.Generator) -> Any:
    home = _site(base, np.asarray(base.shape_nm) / 2)
    three = _drawn(base, 1, "Si-C3", home)
    fours = [_bridge(base, 1, home, n) for n in _neighbours(base, home)]
    states, events, now = [], [], three
    times = set(_changes(frames, rate, rng))
    for t in range(frames):
        if t in times:
            after = fours[int(rng.integers(len(fours)))] if now is three else three
            events.append(TrueEvent(t, "switch", (1,), now.kind, after.kind))
            now = after
        states.append((now,))
    return states, events


def _wandering(kind: str) -> Callable[..., Any]:
    def scenario(base: Specimen, frames: int, rate: float, rng: np.random.Generator) -> Any:
        middle = np.asarray(base.shape_nm) / 2
        reach = 0.2 * min(base.shape_nm)
        at = _site(base, middle)
        states, events, now = [], [], _drawn(base, 1, kind, at)
        times = set(_changes(frames, rate, rng))
        for t in range(frames):
            if t in times:
                options = [n for n in _neighbours(base, at) if np.linalg.norm(n - middle) < reach]
                if options:
                    at = options[int(rng.integers(len(options)))]
                    now = _drawn(base, 1, kind, at)
                    events.append(TrueEvent(t, "hop", (1,), kind, kind))
            states.append((now,))
        return states, events

    return scenario


def _rotor(base: Specimen, frames: int, rate: float, rng: np.random.Generator) -> Any:
    home = _site(base, np.asarray(base.shape_nm) / 2)

    def angle(specimen: Specimen) -> float:
        corners = specimen.yx_nm[foreign_of(specimen, len(specimen.defects) - 1)]
        y, x = (corners - corners.mean(axis=0)).T
        return float(np.degrees(np.angle(np.exp(3j * np.arctan2(y, x)).sum())) / 3)

    first = _drawn(base, 1, "Si3C6", home)
    placed = add_defect(base, first.kind, first.at_nm, rng=np.random.default_rng(first.seed))
    start, home = angle(placed), _at(placed)

    def off(wanted: float) -> Callable[[Specimen], float]:
        return lambda s: abs((angle(s) - wanted + 60) % 120 - 60) + 100 * float(np.linalg.norm(_at(s) - home))

    two = (first, _drawn(base, 1, "Si3C6", home, off(start + 60.0)))
    other = add_defect(base, two[1].kind, two[1].at_nm, rng=np.random.default_rng(two[1].seed))
    turn = angle(other) - start
    turns = [(t + 40.0) % 120.0 - 40.0 for t in (-turn, turn)]  # half a period either way is written as +60
    states, events, side = [], [], 0
    times = set(_changes(frames, rate, rng))
    for t in range(frames):
        if t in times:
            side = 1 - side
            events.append(TrueEvent(t, "rotation", (1,), "Si3C6", "Si3C6", angle_deg=turns[side]))
        states.append((two[side],))
    return states, events


def _dimer(base: Specimen, frames: int, rate: float, rng: np.random.Generator) -> Any:
    middle = np.asarray(base.shape_nm) / 2
    stays = _drawn(base, 1, "Si-C3", _site(base, middle - [0.0, 0.1]))
    comes = _drawn(base, 2, "Si-C3", _site(base, middle + [0.1, 0.75]))
    pair = _drawn(base, 1, "Si2C5", _site(base, middle), lambda s: float(np.linalg.norm(_at(s) - middle)))
    states, events, merged, last = [], [], False, -10
    times = set(_changes(frames, rate, rng)) or {frames // 2}
    for t in range(frames):
        if t in times and t - last > 2:
            merged, last = not merged, t
            names = ("Si-C3 + Si-C3", "Si2C5")
            events.append(TrueEvent(t, "merge" if merged else "split", (1, 2), *(names if merged else names[::-1])))
        states.append((pair,) if merged else (stays, comes))
    return states, events


def _visitors(base: Specimen, frames: int, rate: float, rng: np.random.Generator) -> Any:
    height, width = base.shape_nm
    resident = _drawn(base, 1, "Si-C3", _site(base, np.array([0.5 * height, 0.3 * width])))
    events, spans, guests = [], [], []
    for k, (spot, kind) in enumerate((((0.3, 0.72), "Si-C3"), ((0.75, 0.7), "Si-C4"))):
        start = int(rng.integers(max(2, frames // 8), max(3, frames // 3)))
        end = int(rng.integers(2 * frames // 3, max(2 * frames // 3 + 1, frames - 8)))
        guests.append(_drawn(base, 2 + k, kind, _site(base, np.array(spot) * (height, width))))
        spans.append((start, end))
        events += [TrueEvent(start, "birth", (2 + k,), "", kind), TrueEvent(end, "death", (2 + k,), kind, "")]
    # The four-fold atom is drawn first: its direction must not depend on who else is there.
    states = [(*(g for g, (a, b) in reversed(list(zip(guests, spans))) if a <= t < b), resident) for t in range(frames)]
    return states, events


def _vacancy_in_mx2(base: Specimen, frames: int, rate: float, rng: np.random.Generator) -> Any:
    """One chalcogen missing, migrating among the columns of chalcogen, between heavier metal atoms that rest."""
    size = np.asarray(base.shape_nm)
    metal, chalcogen = get_material(base.material).species
    marks = [
        _drawn(base, k + 2, f"W_{metal}", size * spot)
        for k, spot in enumerate(((0.22, 0.25), (0.3, 0.8), (0.8, 0.35)))
    ]
    numbers = base.atoms.numbers == get_material(base.material).atomic_number(chalcogen)
    columns = np.unique(np.round(base.yx_nm[numbers], 6), axis=0)
    rest = np.array([add_defect(base, m.kind, m.at_nm, rng=np.random.default_rng(m.seed)).defects[-1].center_nm
                     for m in marks])  # fmt: skip
    far = np.linalg.norm(columns[:, None] - rest, axis=2).min(axis=1) > 0.85
    inner = (np.abs(columns - size / 2) < 0.3 * size).all(axis=1)
    free = columns[far & inner]
    at = free[np.linalg.norm(free - size / 2, axis=1).argmin()]
    kind = f"V_{chalcogen}"
    states, events, now = [], [], _drawn(base, 1, kind, at)
    times = set(_changes(frames, rate, rng))
    for t in range(frames):
        if t in times:
            step = np.linalg.norm(free - at, axis=1)
            options = free[(step > 0.01) & (step < 1.1 * get_material(base.material).lattice_nm)]
            if len(options):
                at = options[int(rng.integers(len(options)))]
                now = _drawn(base, 1, kind, at)
                events.append(TrueEvent(t, "hop", (1,), kind, kind))
        states.append((now, *marks))
    return states, events


#: What `simulate_movie` can show.
SCENARIOS: dict[str, Callable[..., Any]] = {
    "switching": _switching,
    "hopping": _wandering("Si-C3"),
    "rotor": _rotor,
    "dimer": _dimer,
    "vacancy": _wandering("SV"),
    "visitors": _visitors,
    "mx2-vacancy": _vacancy_in_mx2,
}
#: Host of a scenario that is not of graphene.
HOSTS = {"mx2-vacancy": "MoSe2"}
