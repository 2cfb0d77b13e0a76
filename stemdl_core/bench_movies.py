"""How well movies are followed: events, identities, drift and rotor angles against the truth of simulated movies.

A movie is followed as `stemdl track` does it, or (``oracle``) from its true atoms with noise on their positions,
which separates what tracking gets wrong from what detection does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from .analysis import FrameAnalysis
from .calibration import PixelSize
from .defects import find_defects
from .errors import StemdlError
from .frames import Frame
from .graph import build_graph
from .materials import get_material
from .movies import MovieTracker
from .pipeline import analyze_frame
from .simulate.movie import MovieConditions, SimulatedMovie, simulate_movie
from .simulate.scenarios import HOSTS, SCENARIOS, TrueEvent
from .trajectories import Event, Tracks
from .weights import load_model

Progress = Callable[[int], None]
#: Doses of the table [electrons an atom].
MOVIE_DOSES = (50.0, 100.0, 200.0, 500.0)
#: Seed of the movies of the table.
MOVIE_SEED = 20171113
#: A defect is found within this distance of the true one; true ones this near to the border do not count [nm].
_NEAR_NM, _BORDER_NM = 0.12, 0.2
#: An error of the drift that changes by more from one frame to the next is a step to another branch [nm].
_BRANCH_NM = 0.12


@dataclass(frozen=True)
class MovieScore:
    """Counts of one movie, or of several added up.

    Parameters
    ----------
    hits, found, true : int
        Events of the right kind within one frame of the true one, events reported, events that happened.
    identity, rows_found, rows_true : int
        Readings with the right identity under the best assignment of tracks to true defects, readings, and true
        defects times frames: IDF1 = 2 identity / (rows_found + rows_true).
    matched, switches : int
        Readings at the place of a true defect, and how often its track changed.
    drift_nm2, frames, branch_jumps : float, int, int
        Sum of squared drift errors (both axes), frames, and steps to another branch of the lattice.
    angles_deg : tuple of float
        Errors of rotor angles in frames without a change inside.
    half_way, flagged, flagged_wrongly : int
        Changes half-way through a frame, those of them that were reported as such, and other changes that were.
    """

    hits: int = 0
    found: int = 0
    true: int = 0
    identity: int = 0
    rows_found: int = 0
    rows_true: int = 0
    matched: int = 0
    switches: int = 0
    drift_nm2: float = 0.0
    frames: int = 0
    branch_jumps: int = 0
    angles_deg: tuple[float, ...] = ()
    half_way: int = 0
    flagged: int = 0
    flagged_wrongly: int = 0

    def __add__(self, other: MovieScore) -> MovieScore:
        return MovieScore(*(getattr(self, k) + getattr(other, k) for k in self.__dataclass_fields__))

    def row(self) -> dict[str, float]:
        """The numbers of the table."""

        def part(a: float, b: float) -> float:
            return a / b if b else float("nan")

        return {
            "events": self.true,
            "precision": part(self.hits, self.found),
            "recall": part(self.hits, self.true),
            "idf1": part(2 * self.identity, self.rows_found + self.rows_true),
            "switches_per_1000": part(1000 * self.switches, self.matched),
            "drift_rms_pm": 1e3 * float(np.sqrt(part(self.drift_nm2, self.frames))),
            "branch_jumps": self.branch_jumps,
            "angle_error_deg": float(np.median(self.angles_deg)) if self.angles_deg else float("nan"),
            "half_way_flagged": part(self.flagged, self.half_way),
            "flagged_wrongly": self.flagged_wrongly,
        }


def score_movie(movie: SimulatedMovie, tracks: Tracks) -> MovieScore:
    """Compare tracks with the truth of the movie that they are of."""
    true = _in_view(movie)
    every = _match_events(list(tracks.events), movie.events)
    pairs = [(event, found) for event, found in every if event in true]
    # Drift carries defects over the border, which is no event, and what happens at the border may be seen or not.
    taken, aside = ({id(f) for e, f in every if (e in true) == inside} for inside in (True, False))
    reported = [e for e in tracks.events if id(e) in taken or (e.where != "border" and id(e) not in aside)]
    halves = [e for e in true if e.half]
    drift = np.stack([tracks.drift.y_nm, tracks.drift.x_nm], axis=1)
    off = drift - movie.drift_nm[tracks.drift.frame]
    off = off - np.median(off[:3], axis=0) if len(off) else off
    jumps = int((np.linalg.norm(np.diff(off, axis=0), axis=1) > _BRANCH_NM).sum()) if len(off) > 1 else 0
    return MovieScore(
        len(pairs),
        len(reported),
        len(true),
        *_identities(movie, tracks),
        float((off**2).sum()),
        len(off),
        jumps,
        _angle_errors(movie, tracks),
        len(halves),
        sum(found.mid_frame for event, found in pairs if event.half),
        sum(found.mid_frame for event, found in pairs if not event.half),
    )


def _in_view(movie: SimulatedMovie) -> list[TrueEvent]:
    """The events of defects that are well inside the image at the time."""
    truth, size = movie.trajectories(), movie.taken.fov_nm
    px = truth[["y_px", "x_px"]].to_numpy() * movie.pixel_nm
    inside = truth[(px.min(axis=1) > _BORDER_NM) & (px.max(axis=1) < size - _BORDER_NM)]
    seen = set(zip(inside["frame"].tolist(), inside["track_id"].tolist()))

    def visible(event: TrueEvent) -> bool:
        frames = {"birth": (0,), "death": (-1,)}.get(event.kind, (-1, 0))
        return all(any((event.frame + f, k) in seen for k in event.track_ids) for f in frames)

    return [e for e in movie.events if visible(e)]


def _match_events(found: Sequence[Event], truth: Sequence[TrueEvent]) -> list[tuple[TrueEvent, Event]]:
    """Pairs (true, found) of events of one kind within one frame, each used once."""
    left, pairs = list(found), []
    for true in truth:
        near = [e for e in left if e.kind == true.kind and abs(e.frame - true.frame) <= 1]
        if near:
            best = min(near, key=lambda e: abs(e.frame - true.frame))
            left.remove(best)
            pairs.append((true, best))
    return pairs


def _identities(movie: SimulatedMovie, tracks: Tracks) -> tuple[int, int, int, int, int]:
    """Identity hits, readings, true readings, matched readings, identity switches (Ristani et al., ECCV 2016)."""
    truth, nm = movie.trajectories(), movie.pixel_nm
    size = (movie.taken.size_px - 1) * nm
    hits: dict[tuple[int, int], int] = {}
    last: dict[int, int] = {}
    rows_true = matched = switches = ignored = 0
    skipped = {frame for frame, _ in tracks.faults}
    px = np.stack([tracks.y_px, tracks.x_px], axis=1) * nm
    for frame, now in truth.groupby("frame"):
        if frame in skipped:
            continue
        rows = np.flatnonzero(tracks.frame == frame)
        yx = now[["y_px", "x_px"]].to_numpy() * nm
        distance = np.linalg.norm(px[rows][:, None] - yx[None], axis=2)
        near = np.where(distance < _NEAR_NM, distance, 1e3)
        counted = (yx.min(axis=1) > _BORDER_NM) & (size - yx.max(axis=1) > _BORDER_NM)
        rows_true += int(counted.sum())
        for i, j in zip(*linear_sum_assignment(near)):
            if near[i, j] >= 1e3:
                continue
            if not counted[j]:
                ignored += 1
                continue
            true, found = int(now["track_id"].iloc[j]), int(tracks.track_id[rows[i]])
            hits[true, found] = hits.get((true, found), 0) + 1
            matched += 1
            switches += last.get(true, found) != found
            last[true] = found
    true_ids, found_ids = sorted({a for a, _ in hits}), sorted({b for _, b in hits})
    table = np.zeros((len(true_ids), len(found_ids)))
    for (a, b), count in hits.items():
        table[true_ids.index(a), found_ids.index(b)] = count
    best = int(table[linear_sum_assignment(-table)].sum())
    return best, len(tracks) - ignored, rows_true, matched, switches


def _angle_errors(movie: SimulatedMovie, tracks: Tracks) -> tuple[float, ...]:
    truth = movie.trajectories()
    truth = truth[np.isfinite(truth["orientation_deg"])]
    if not len(truth):
        return ()
    halves = [e.frame for e in movie.events if e.half]
    found = tracks.to_dataframe().merge(truth, on="frame", suffixes=("", "_true"))
    found = found[~found["frame"].isin(halves) & np.isfinite(found["orientation_deg"])]
    off = (found["orientation_deg"] - found["orientation_deg_true"] + 60.0) % 120.0 - 60.0
    return tuple(np.abs(off).tolist())


def oracle_analysis(movie: SimulatedMovie, index: int, *, rng: np.random.Generator, noise_nm: float = 0.012,
                    lost: float = 0.0) -> FrameAnalysis:  # fmt: skip
    """The analysis of a frame whose atoms are known, with noise on their positions.

    Parameters
    ----------
    movie : SimulatedMovie
    index : int
        Number of the frame.
    rng : numpy.random.Generator
    noise_nm : float
        Standard deviation of a position along an axis [nm].
    lost : float
        Probability that a host atom is overlooked.
    """
    after = movie.simulated(index)
    sites, row = after.sites, movie.divided(index)
    if row is not None:
        before = movie.simulated(index, movie.states[index - 1]).sites
        upper, lower = before.select(before.y_px < row), sites.select(sites.y_px >= row)
        columns = ("y_px", "x_px", "species", "intensity")
        sites = type(sites).from_columns(**{k: np.concatenate([getattr(upper, k), getattr(lower, k)])
                                            for k in columns})  # fmt: skip
    material = get_material(movie.material)
    keep = (rng.random(len(sites)) >= lost) | ~np.isin(sites.species, material.species)
    noise = rng.normal(0.0, noise_nm / movie.pixel_nm, (2, len(sites)))
    sites = sites.replace(y_px=sites.y_px + noise[0], x_px=sites.x_px + noise[1],
                          sigma_pm=np.full(len(sites), 1e3 * noise_nm)).select(keep)  # fmt: skip
    pixel = PixelSize(movie.pixel_nm, "metadata", movie.pixel_nm)
    graph = build_graph(sites, material=material, pixel_size=pixel, shape=(movie.taken.size_px,) * 2)
    defects = find_defects(graph, vacancies_px=after.vacancies_px)
    return FrameAnalysis(model="oracle", material=material.name, shape=(movie.taken.size_px,) * 2, pixel_size=pixel,
                         sites=graph.sites, bonds=graph.bonds, defects=defects, rings=graph.rings, frame=index,
                         time_s=index * movie.taken.frame_time_s)  # fmt: skip


def follow(movie: SimulatedMovie, analyze: Callable[[Frame], FrameAnalysis],
           progress: Progress | None = None) -> Tracks:  # fmt: skip
    """Tracks of a simulated movie, the frames taken one at a time."""
    tracker = MovieTracker(analyze)
    for index in range(len(movie)):
        tracker.update(movie.frame(index))
        if progress is not None:
            progress(1)
    return tracker.tracker.tracks()


def harder(taken: MovieConditions) -> MovieConditions:
    """Frames that differ in focus, dose, scan and contamination, a winding drift, two jumps of the view."""
    return replace(taken, drift_nm=0.6, drift_step_nm=0.06, scan_fraction=0.9, nuisance=1.0, jumps=2, jump_nm=0.4)


def fast(taken: MovieConditions) -> MovieConditions:
    """Drift of 0.2 nm a frame on a winding path of up to 1 nm."""
    return replace(taken, drift_nm=1.0, drift_step_nm=0.2, scan_fraction=0.9, fov_nm=3.2)


#: How movies of the table are taken.
CIRCUMSTANCES: dict[str, Callable[[MovieConditions], MovieConditions]] = {
    "usual": lambda taken: taken,
    "fast drift": fast,
    "harder": harder,
}


def movies(
    model: str = "graphene",
    *,
    scenarios: Sequence[str] = tuple(SCENARIOS),
    doses: Sequence[float] = MOVIE_DOSES,
    circumstances: Sequence[str] = ("usual",),
    seeds: int = 1,
    frames: int = 72,
    oracle: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Follow simulated movies and compare with their truth: a row for every scenario, circumstance and dose.

    Parameters
    ----------
    model : str
        Model for scenarios in graphene; those in MX2 use 'mx2'.
    scenarios, doses, circumstances : sequences
        Of `SCENARIOS`, electrons an atom, and `CIRCUMSTANCES`.
    seeds : int
        Movies for each row.
    frames : int
        Frames of a movie.
    oracle : bool
        From true atoms, with noise that falls with the dose, instead of from images.
    progress : callable, optional
        Called with the number of frames done so far.

    Raises
    ------
    StemdlError
        For an unknown scenario or circumstance.
    """
    unknown = [n for n in scenarios if n not in SCENARIOS] + [c for c in circumstances if c not in CIRCUMSTANCES]
    if unknown:
        raise StemdlError(f"unknown {unknown[0]!r}: choose from {', '.join((*SCENARIOS, *CIRCUMSTANCES))}")
    rows, done, total = [], 0, MovieScore()

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done)

    for circumstance in circumstances:
        for scenario in scenarios:
            for dose in doses:
                score = MovieScore()
                for seed in range(seeds):
                    score = score + _score(scenario, circumstance, dose, seed, frames, model, oracle, count)
                rows.append({"scenario": scenario, "circumstance": circumstance, "dose": dose, **score.row()})
                total = total + score
    rows.append({"scenario": "all", "circumstance": "", "dose": float("nan"), **total.row()})
    return pd.DataFrame(rows)


def _score(scenario: str, circumstance: str, dose: float, seed: int, frames: int, model: str, oracle: bool,
           count: Progress) -> MovieScore:  # fmt: skip
    taken = CIRCUMSTANCES[circumstance](MovieConditions())
    detector = replace(taken.conditions.detector, dose_e_per_atom=dose)
    taken = replace(taken, conditions=replace(taken.conditions, detector=detector))
    key = [MOVIE_SEED, seed, sorted(SCENARIOS).index(scenario)]
    movie = simulate_movie(scenario, frames=frames, rng=np.random.default_rng(key), taken=taken)
    if oracle:
        noise: np.random.Generator = np.random.default_rng([*key, 1])
        spread = 0.006 + 0.08 / np.sqrt(dose)

        def analyze(frame: Frame) -> FrameAnalysis:
            return oracle_analysis(movie, frame.index, rng=noise, noise_nm=spread)

    else:
        network = load_model("mx2" if HOSTS.get(scenario, "graphene") != "graphene" else model)

        def analyze(frame: Frame) -> FrameAnalysis:
            return analyze_frame(frame, network, material=movie.material)

    return score_movie(movie, follow(movie, analyze, count))
