"""Simulated movies with exact truth: defects switch, hop, rotate, merge, enter and leave while the sheet drifts.

A movie is a list of states of the specimen, one a frame, rendered when a frame is asked for. A change may
fall inside a frame: the rows scanned before it show the old state, those after it the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..calibration import PixelSize
from ..errors import StemdlError
from ..frames import Frame, FrameSequence
from ..materials import get_material
from .dataset import Conditions, simulate_frame
from .degrade import Detector
from .structures import Specimen, add_defect, graphene

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


def _usual_conditions() -> Conditions:
    return Conditions(detector=Detector(dose_e_per_atom=300.0), thermal_nm=0.003, jitter_nm=0.004)


@dataclass(frozen=True)
class MovieConditions:
    """How a movie is taken.

    Parameters
    ----------
    fov_nm : float
        Width of the square field of view [nm].
    size_px : int
        Side of a frame [px].
    frame_time_s : float
        Time from frame to frame [s].
    drift_nm : float
        Total drift over the movie, in a random direction [nm].
    drift_jitter_nm : float
        Standard deviation of an additional displacement of every frame, per axis [nm].
    conditions : Conditions
        Probe, dose, scan disturbances of each frame; its pixel size is replaced.
    rotation_deg : float
        Direction of a lattice vector [deg].
    """

    fov_nm: float = 2.6
    size_px: int = 256
    frame_time_s: float = 0.5
    drift_nm: float = 0.4
    drift_jitter_nm: float = 0.02
    conditions: Conditions = field(default_factory=_usual_conditions)
    rotation_deg: float = 12.0


class SimulatedMovie:
    """A movie and its truth; frames are rendered on demand, the same every time.

    Parameters
    ----------
    states : sequence of tuples of Placed
        What is there in each frame (after the change, if one falls inside the frame).
    events : sequence of TrueEvent
    taken : MovieConditions
    seed : int
        Of noise, drift and disturbances.
    """

    def __init__(
        self, states: list[tuple[Placed, ...]], events: list[TrueEvent], taken: MovieConditions, *, seed: int
    ) -> None:
        self.states, self.taken, self.seed = states, taken, seed
        self.events = sorted(events, key=lambda e: (e.frame, e.track_ids))
        rng = np.random.default_rng([seed, 1])
        count = len(states)
        heading = rng.uniform(0, 2 * np.pi)
        path = np.linspace(0, taken.drift_nm, count)[:, None] * [np.sin(heading), np.cos(heading)]
        path = path + rng.normal(0, taken.drift_jitter_nm, (count, 2)) if taken.drift_jitter_nm else path
        #: (T, 2) float64: displacement (y, x) of the specimen in the image since the first frame [nm].
        self.drift_nm: NDArray[np.float64] = path - path[0]
        self._build = lru_cache(maxsize=16)(self._specimen)

    def __len__(self) -> int:
        return len(self.states)

    @property
    def pixel_nm(self) -> float:
        """Pixel size [nm]."""
        return self.taken.fov_nm / self.taken.size_px

    def _specimen(self, state: tuple[Placed, ...]) -> Specimen:
        margin = 0.6 + float(np.abs(self.drift_nm).max())
        specimen = graphene(fov_nm=self.taken.fov_nm, rotation_deg=self.taken.rotation_deg, margin_nm=margin)
        for placed in state:
            specimen = add_defect(specimen, placed.kind, placed.at_nm, rng=np.random.default_rng(placed.seed))
        return specimen

    def specimen(self, index: int) -> Specimen:
        """The specimen of a frame as it stands in the image, drift included."""
        return moved(self._build(self.states[index]), self.drift_nm[index])

    def image(self, index: int) -> NDArray[np.float32]:
        """(H, W) image of one frame."""
        shape = (self.taken.size_px,) * 2
        conditions = replace(self.taken.conditions, pixel_nm=self.pixel_nm)

        def take(state: tuple[Placed, ...]) -> NDArray[np.float32]:
            rng = np.random.default_rng([self.seed, 2, index])
            specimen = moved(self._build(state), self.drift_nm[index])
            return simulate_frame(specimen, conditions, rng, shape=shape).frame.image

        after = take(self.states[index])
        halved = [e for e in self.events if e.half and e.frame == index]
        if not halved or index == 0:
            return after
        place = next(p for p in self.states[index] if p.track_id == halved[0].track_ids[0])
        row = int(round((self._center(index, place)[0] + self.drift_nm[index][0]) / self.pixel_nm))
        image = take(self.states[index - 1]).copy()
        image[max(row, 0) :] = after[max(row, 0) :]
        return image

    def sequence(self, *, calibrated: bool = True) -> FrameSequence:
        """The frames, rendered as they are read."""
        pixel = PixelSize(self.pixel_nm, "metadata", self.pixel_nm) if calibrated else None
        return FrameSequence(len(self), self.image, pixel, self.taken.frame_time_s, "simulated movie")

    def frame(self, index: int) -> Frame:
        """One frame."""
        return self.sequence()[index]

    def _center(self, index: int, placed: Placed) -> NDArray[np.float64]:
        specimen = self._build(self.states[index])
        number = self.states[index].index(placed)
        return position(specimen, number)

    def trajectories(self) -> pd.DataFrame:
        """Truth as in ``trajectories.csv``: defects whose position is inside the image."""
        rows: dict[str, list[Any]] = {
            k: [] for k in ("frame", "time_s", "track_id", "name", "y_px", "x_px", "y_nm", "x_nm")
        }
        for index, state in enumerate(self.states):
            specimen = self._build(state)
            for number, placed in enumerate(state):
                yx = position(specimen, number)
                # The image's pixel (0, 0) has its centre half a pixel inside the field of view.
                px = (yx + self.drift_nm[index]) / self.pixel_nm - 0.5
                if px.min() < 0 or px.max() > self.taken.size_px - 1:
                    continue
                values = (
                    index,
                    index * self.taken.frame_time_s,
                    placed.track_id,
                    specimen.defects[number].name,
                    *px.tolist(),
                    *(px * self.pixel_nm - self.drift_nm[index]).tolist(),
                )
                for key, value in zip(rows, values):
                    rows[key].append(value)
        return pd.DataFrame(rows)

    def event_table(self) -> pd.DataFrame:
        """Truth as in ``events.csv``."""
        return pd.DataFrame(
            {
                "frame": [e.frame for e in self.events],
                "time_s": [e.frame * self.taken.frame_time_s for e in self.events],
                "kind": [e.kind for e in self.events],
                "track_ids": [" ".join(map(str, e.track_ids)) for e in self.events],
                "from": [e.before for e in self.events],
                "to": [e.after for e in self.events],
                "angle_deg": [e.angle_deg for e in self.events],
                "half": [e.half for e in self.events],
            }
        )

    def drift_table(self) -> pd.DataFrame:
        """Truth as in ``drift.csv``."""
        return pd.DataFrame({"frame": np.arange(len(self)), "y_nm": self.drift_nm[:, 0], "x_nm": self.drift_nm[:, 1]})


def moved(specimen: Specimen, by_nm: NDArray[np.float64]) -> Specimen:
    """A specimen displaced within its field of view by (y, x) [nm]."""
    atoms = specimen.atoms.copy()
    atoms.positions[:, :2] += 10.0 * np.asarray(by_nm)[::-1]
    defects = tuple(
        replace(d, center_nm=(d.center_nm[0] + float(by_nm[0]), d.center_nm[1] + float(by_nm[1])))
        for d in specimen.defects
    )
    return replace(specimen, atoms=atoms, defects=defects, vacancies_nm=specimen.vacancies_nm + by_nm)


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
    fours = [_drawn(base, 1, "Si-C4", (home + n) / 2, _beside((home + n) / 2)) for n in _neighbours(base, home)]
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
    states = [(resident, *(g for g, (a, b) in zip(guests, spans) if a <= t < b)) for t in range(frames)]
    return states, events


#: What `simulate_movie` can show.
SCENARIOS: dict[str, Callable[..., Any]] = {
    "switching": _switching,
    "hopping": _wandering("Si-C3"),
    "rotor": _rotor,
    "dimer": _dimer,
    "vacancy": _wandering("SV"),
    "visitors": _visitors,
}


def simulate_movie(
    scenario: str,
    *,
    frames: int = 72,
    rate: float = 0.08,
    rng: np.random.Generator,
    taken: MovieConditions | None = None,
    half_way: int = 1,
) -> SimulatedMovie:
    """A movie of silicon in graphene with known events.

    Parameters
    ----------
    scenario : str
        'switching' (Si-C3 and Si-C4), 'hopping' (Si-C3 from site to site), 'rotor' (Si3C6 turning by 60 degrees),
        'dimer' (two atoms join and part), 'vacancy' (SV migrating), 'visitors' (two atoms come and go).
    frames : int
        Number of frames.
    rate : float
        Probability of a change per frame.
    rng : numpy.random.Generator
    taken : MovieConditions, optional
        Field of view, dose, drift.
    half_way : int
        So many of the changes (switches, hops, rotations) fall inside a frame.

    Raises
    ------
    StemdlError
        If there is no such scenario, or no room for it.
    """
    taken = taken or MovieConditions()
    if scenario not in SCENARIOS:
        raise StemdlError(f"unknown scenario {scenario!r}: choose one of {', '.join(SCENARIOS)}")
    if frames < 1 or not 0 <= rate <= 1:
        raise StemdlError(f"a movie needs at least one frame (not {frames}) and a rate between 0 and 1 (not {rate})")
    base = graphene(fov_nm=taken.fov_nm, rotation_deg=taken.rotation_deg)
    states, events = SCENARIOS[scenario](base, frames, rate, rng)
    alone = [
        i
        for i, e in enumerate(events)
        if e.kind in ("switch", "hop", "rotation") and all(abs(e.frame - o.frame) > 1 for o in events if o is not e)
    ]
    for i in rng.permutation(alone)[:half_way].tolist():
        events[i] = replace(events[i], half=True)
    return SimulatedMovie(states, events, taken, seed=int(rng.integers(2**31)))
