"""Simulated movies with exact truth: defects switch, hop, rotate, merge, enter and leave while the sheet drifts.

A movie is a list of states of the specimen, one a frame, rendered when a frame is asked for. A change may
fall inside a frame: the rows scanned before it show the old state, those after it the new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..calibration import PixelSize
from ..errors import StemdlError
from ..frames import Frame, FrameSequence
from .dataset import Conditions, SimulatedFrame, simulate_frame
from .degrade import Detector
from .scenarios import HOSTS, SCENARIOS, Placed, TrueEvent, foreign_of, position
from .structures import Specimen, add_defect, graphene, mx2


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
        Total drift over the movie, in a random direction; how far it goes at most if it wanders [nm].
    drift_jitter_nm : float
        Standard deviation of an additional displacement of every frame, per axis [nm].
    conditions : Conditions
        Probe, dose, scan disturbances of each frame; its pixel size is replaced.
    rotation_deg : float
        Direction of a lattice vector [deg].
    drift_step_nm : float
        If not 0, the specimen wanders on a winding path with steps of this length from frame to frame [nm].
    scan_fraction : float
        Part of the time from frame to frame that the scan takes: so much of the drift shows as shear.
    jumps, jump_nm : int, float
        Number of times that the field of view jumps, and by how much [nm].
    nuisance : float
        From 0 to 1: how much focus, dose, scan and moving contamination vary from frame to frame.
    """

    fov_nm: float = 2.6
    size_px: int = 256
    frame_time_s: float = 0.5
    drift_nm: float = 0.4
    drift_jitter_nm: float = 0.02
    conditions: Conditions = field(default_factory=_usual_conditions)
    rotation_deg: float = 12.0
    drift_step_nm: float = 0.0
    scan_fraction: float = 0.0
    jumps: int = 0
    jump_nm: float = 0.6
    nuisance: float = 0.0


def drift_path(taken: MovieConditions, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(T, 2) displacement (y, x) of the specimen since the first frame, without jitter and jumps [nm]."""
    heading = rng.uniform(0, 2 * np.pi)
    if not taken.drift_step_nm:
        return np.linspace(0, taken.drift_nm, count)[:, None] * [np.sin(heading), np.cos(heading)]
    path = np.zeros((count, 2))
    for t in range(1, count):
        heading += rng.normal(0, 0.25)
        # Turned back softly where it would leave the allowed circle.
        for _ in range(24):
            ahead = path[t - 1] + 2.5 * taken.drift_step_nm * np.array([np.sin(heading), np.cos(heading)])
            if np.linalg.norm(ahead) <= taken.drift_nm:
                break
            heading += 0.3
        path[t] = path[t - 1] + taken.drift_step_nm * np.array([np.sin(heading), np.cos(heading)])
    return path


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
    material : str
        Host.
    """

    def __init__(self, states: list[tuple[Placed, ...]], events: list[TrueEvent], taken: MovieConditions, *,
                 seed: int, material: str = "graphene") -> None:  # fmt: skip
        self.states, self.taken, self.seed, self.material = states, taken, seed, material
        self.events = sorted(events, key=lambda e: (e.frame, e.track_ids))
        rng = np.random.default_rng([seed, 1])
        count = len(states)
        path = drift_path(taken, count, rng)
        #: (T, 2) float64: drift while each frame is scanned [nm].
        self.within_nm: NDArray[np.float64] = (
            taken.scan_fraction * np.gradient(path, axis=0) if count > 1 else np.zeros((count, 2))
        )
        path = path + rng.normal(0, taken.drift_jitter_nm, (count, 2)) if taken.drift_jitter_nm else path
        for at in rng.choice(np.arange(1, max(count, 2)), min(taken.jumps, max(count - 1, 0)), replace=False):
            angle = rng.uniform(0, 2 * np.pi)
            path[at:] += taken.jump_nm * np.array([np.sin(angle), np.cos(angle)])
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
        specimen = perfect(self.material, self.taken)
        for placed in state:
            specimen = add_defect(specimen, placed.kind, placed.at_nm, rng=np.random.default_rng(placed.seed))
        return specimen

    def specimen(self, index: int) -> Specimen:
        """The specimen of a frame as it stands in the middle of its scan, drift included."""
        return moved(self._build(self.states[index]), self.drift_nm[index])

    def conditions(self, index: int) -> Conditions:
        """How one frame is taken."""
        usual, wild = self.taken.conditions, self.taken.nuisance
        # A specimen that drifts one way shows like a probe that is displaced the other way.
        within = -self.within_nm[index]
        now = replace(usual, pixel_nm=self.pixel_nm, drift_nm=(float(within[0]), float(within[1])))
        if not wild:
            return now
        rng = np.random.default_rng([self.seed, 3, index])
        dose = usual.detector.dose_e_per_atom * float(np.exp(rng.normal(0, 0.25 * wild)))
        return replace(
            now,
            detector=replace(usual.detector, dose_e_per_atom=dose),
            probe=replace(usual.probe, sigma_nm=usual.probe.sigma_nm * float(1 + wild * rng.uniform(-0.05, 0.25))),
            jitter_nm=usual.jitter_nm + wild * rng.uniform(0.0, 0.006),
            flyback_nm=wild * rng.uniform(0.0, 0.012),
            line_noise=wild * rng.uniform(0.0, 0.04),
            gradient=wild * rng.uniform(-0.2, 0.2),
            contamination=wild * rng.uniform(0.05, 0.25),
            contamination_strength=rng.uniform(0.1, 0.5) * wild,
            contamination_smear_nm=rng.uniform(0.05, 0.15),
        )

    def simulated(self, index: int, state: tuple[Placed, ...] | None = None) -> SimulatedFrame:
        """One frame with the truth about its atoms; of a given state instead of the frame's own."""
        rng = np.random.default_rng([self.seed, 2, index])
        specimen = moved(self._build(self.states[index] if state is None else state), self.drift_nm[index])
        return simulate_frame(specimen, self.conditions(index), rng, shape=(self.taken.size_px,) * 2)

    def divided(self, index: int) -> int | None:
        """Row of a frame before which it shows the state of the frame before; None for whole frames."""
        halved = [e for e in self.events if e.half and e.frame == index]
        if not halved or index == 0:
            return None
        place = next(p for p in self.states[index] if p.track_id == halved[0].track_ids[0])
        center = self._in_image(position(self._build(self.states[index]), self.states[index].index(place)), index)
        return max(int(round(float(center[0]) / self.pixel_nm)), 0)

    def image(self, index: int) -> NDArray[np.float32]:
        """(H, W) image of one frame."""
        after = self.simulated(index).frame.image
        row = self.divided(index)
        if row is None:
            return after
        image = self.simulated(index, self.states[index - 1]).frame.image.copy()
        image[row:] = after[row:]
        return image

    def sequence(self, *, calibrated: bool = True) -> FrameSequence:
        """The frames, rendered as they are read."""
        pixel = PixelSize(self.pixel_nm, "metadata", self.pixel_nm) if calibrated else None
        return FrameSequence(len(self), self.image, pixel, self.taken.frame_time_s, "simulated movie")

    def frame(self, index: int) -> Frame:
        """One frame."""
        return self.sequence()[index]

    def _in_image(self, yx_nm: NDArray[np.float64], index: int) -> NDArray[np.float64]:
        """Where a point of the specimen is scanned, from the outer corner of the image [nm]."""
        place = yx_nm + self.drift_nm[index]
        # The line on which it is met depends on how far it has gone by then.
        for _ in range(3):
            progress = float(np.clip(place[0] / self.taken.fov_nm, 0, 1)) - 0.5
            place = yx_nm + self.drift_nm[index] + progress * self.within_nm[index]
        return place

    def trajectories(self) -> pd.DataFrame:
        """Truth as in ``trajectories.csv``: defects whose position is inside the image."""
        rows: dict[str, list[Any]] = {
            k: [] for k in ("frame", "time_s", "track_id", "name", "y_px", "x_px", "y_nm", "x_nm", "orientation_deg")
        }
        for index, state in enumerate(self.states):
            specimen = self._build(state)
            for number, placed in enumerate(state):
                yx = position(specimen, number)
                # The image's pixel (0, 0) has its centre half a pixel inside the field of view.
                px = self._in_image(yx, index) / self.pixel_nm - 0.5
                if px.min() < 0 or px.max() > self.taken.size_px - 1:
                    continue
                values = (
                    index,
                    index * self.taken.frame_time_s,
                    placed.track_id,
                    specimen.defects[number].name,
                    *px.tolist(),
                    *(yx - 0.5 * self.pixel_nm).tolist(),
                    triangle_deg(specimen, number),
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


def perfect(material: str, taken: MovieConditions) -> Specimen:
    """The host of a movie without defects, with all that drift may bring into view.

    How a defect turns out depends on the numbers of the atoms around it, so that a scenario has to draw it on the
    same sheet as the movie does.
    """
    far = taken.drift_nm + 8 * taken.drift_jitter_nm + 3 * taken.drift_step_nm + taken.jumps * taken.jump_nm
    if material == "graphene":
        return graphene(fov_nm=taken.fov_nm, rotation_deg=taken.rotation_deg, margin_nm=0.6 + far)
    return mx2(material=material, fov_nm=taken.fov_nm, rotation_deg=taken.rotation_deg, margin_nm=0.6 + far)


def triangle_deg(specimen: Specimen, number: int) -> float:
    """Direction of a triangle of foreign atoms, from +x towards +y, modulo 120 degrees; NaN for other defects."""
    corners = specimen.yx_nm[foreign_of(specimen, number)]
    if len(corners) != 3:
        return float("nan")
    y, x = (corners - corners.mean(axis=0)).T
    return float(np.degrees(np.angle(np.exp(3j * np.arctan2(y, x)).sum())) / 3 % 120.0)


def moved(specimen: Specimen, by_nm: NDArray[np.float64]) -> Specimen:
    """A specimen displaced within its field of view by (y, x) [nm]."""
    atoms = specimen.atoms.copy()
    atoms.positions[:, :2] += 10.0 * np.asarray(by_nm)[::-1]
    defects = tuple(
        replace(d, center_nm=(d.center_nm[0] + float(by_nm[0]), d.center_nm[1] + float(by_nm[1])))
        for d in specimen.defects
    )
    return replace(specimen, atoms=atoms, defects=defects, vacancies_nm=specimen.vacancies_nm + by_nm)


def simulate_movie(
    scenario: str,
    *,
    frames: int = 72,
    rate: float = 0.08,
    rng: np.random.Generator,
    taken: MovieConditions | None = None,
    half_way: int = 1,
) -> SimulatedMovie:
    """A movie of defects with known events.

    Parameters
    ----------
    scenario : str
        'switching' (Si-C3 and Si-C4), 'hopping' (Si-C3 from site to site), 'rotor' (Si3C6 turning by 60 degrees),
        'dimer' (two atoms join and part), 'vacancy' (SV migrating), 'visitors' (two atoms come and go), 'mx2-vacancy'
        (V_Se migrating in MoSe2 between tungsten atoms).
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
    material = HOSTS.get(scenario, "graphene")
    base = perfect(material, taken)
    states, events = SCENARIOS[scenario](base, frames, rate, rng)
    alone = [
        i
        for i, e in enumerate(events)
        if e.kind in ("switch", "hop", "rotation") and all(abs(e.frame - o.frame) > 1 for o in events if o is not e)
    ]
    for i in rng.permutation(alone)[:half_way].tolist():
        events[i] = replace(events[i], half=True)
    return SimulatedMovie(states, events, taken, seed=int(rng.integers(2**31)), material=material)
