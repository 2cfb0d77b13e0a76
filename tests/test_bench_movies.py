"""The bench of movies: known tracks get known scores, and true atoms are followed without a mistake."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stemdl_core.bench_movies import CIRCUMSTANCES, MovieScore, movies, oracle_analysis, score_movie
from stemdl_core.errors import StemdlError
from stemdl_core.simulate.movie import MovieConditions, SimulatedMovie, simulate_movie
from stemdl_core.tracking import track
from stemdl_core.trajectories import Drift, Event, Events, Tracks


def perfect(movie: SimulatedMovie, *, swapped_from: int = 10**6) -> Tracks:
    """The truth as tracks; track 1 is called 9 from a frame on."""
    truth = movie.trajectories()
    rows = {key: truth[key].tolist() for key in truth}
    rows["track_id"] = [9 if i == 1 and f >= swapped_from else i for i, f in zip(rows["track_id"], rows["frame"])]
    rows |= {"seen_as": rows["name"], "probability": [1.0] * len(truth), "deviation_deg": [0.0] * len(truth)}
    events = tuple(
        Event(e.frame, e.kind, e.track_ids, e.before, e.after, mid_frame=e.half) for e in movie.events
    )
    drift = Drift(np.arange(len(movie)), movie.drift_nm[:, 0], movie.drift_nm[:, 1])
    return Tracks.from_rows(rows, drift=drift, events=Events(events), frames=len(movie))


@pytest.fixture(scope="module")
def rotor() -> SimulatedMovie:
    return simulate_movie("rotor", frames=24, rate=0.2, rng=np.random.default_rng(3))


def test_the_truth_scores_full_marks(rotor):
    row = score_movie(rotor, perfect(rotor)).row()
    assert row["events"] >= 2
    assert (row["precision"], row["recall"], row["idf1"]) == (1.0, 1.0, 1.0)
    assert (row["switches_per_1000"], row["branch_jumps"], row["half_way_flagged"]) == (0.0, 0, 1.0)
    assert row["drift_rms_pm"] == pytest.approx(0.0, abs=1e-6)
    assert row["angle_error_deg"] == pytest.approx(0.0, abs=1e-6)


def test_every_mistake_lowers_its_own_number(rotor):
    tracks = perfect(rotor)
    swapped = score_movie(rotor, perfect(rotor, swapped_from=12)).row()
    assert swapped["idf1"] == pytest.approx(0.5)
    assert swapped["switches_per_1000"] == pytest.approx(1000 / 24)
    invented = Event(12, "hop", (1,), "Si3C6", "Si3C6")
    more = score_movie(rotor, replace(tracks, events=Events((*tracks.events.items, invented)))).row()
    assert (more["precision"] < 1.0, more["recall"]) == (True, 1.0)
    fewer = score_movie(rotor, replace(tracks, events=Events(tracks.events.items[1:]))).row()
    assert (fewer["precision"], fewer["recall"] < 1.0) == (1.0, True)
    late = tuple(replace(e, frame=e.frame + 2) for e in tracks.events.items[:1])
    assert score_movie(rotor, replace(tracks, events=Events(late))).hits == 0
    y = tracks.drift.y_nm + 0.246 * (tracks.drift.frame >= 10)
    jumped = score_movie(rotor, replace(tracks, drift=Drift(tracks.drift.frame, y, tracks.drift.x_nm))).row()
    assert jumped["branch_jumps"] == 1
    border = Event(12, "death", (1,), "Si3C6", "", where="border")
    assert score_movie(rotor, replace(tracks, events=Events((*tracks.events.items, border)))).row()["precision"] == 1.0


def test_scores_add_up():
    total = MovieScore(2, 3, 4, angles_deg=(1.0,)) + MovieScore(1, 1, 1, angles_deg=(3.0,))
    assert (total.hits, total.found, total.true, total.row()["angle_error_deg"]) == (3, 4, 5, 2.0)


@pytest.mark.parametrize("circumstance", ["usual", "fast drift"])
def test_true_atoms_are_followed_without_a_mistake(circumstance):
    taken = CIRCUMSTANCES[circumstance](MovieConditions())
    movie = simulate_movie("hopping", frames=16, rate=0.25, rng=np.random.default_rng(8), taken=taken, half_way=0)
    rng = np.random.default_rng(1)
    tracks = track(oracle_analysis(movie, index, rng=rng) for index in range(len(movie)))
    row = score_movie(movie, tracks).row()
    assert row["events"] >= 2
    assert (row["precision"], row["recall"], row["idf1"]) == (1.0, 1.0, 1.0)
    assert row["branch_jumps"] == 0
    assert row["drift_rms_pm"] < 10.0  # 15 pm asked for


def test_vacancy_in_mx2_keeps_its_place_among_metals_that_rest():
    movie = simulate_movie("mx2-vacancy", frames=14, rate=0.2, rng=np.random.default_rng(4), half_way=0)
    rng = np.random.default_rng(1)
    tracks = track(oracle_analysis(movie, index, rng=rng) for index in range(len(movie)))
    score = score_movie(movie, tracks)
    assert score.true >= 1
    assert score.hits == score.true == score.found
    assert score.branch_jumps == 0


def test_unknown_scenarios_and_circumstances_are_named():
    with pytest.raises(StemdlError, match="unknown 'spin'"):
        movies(scenarios=("spin",))
    with pytest.raises(StemdlError, match="unknown 'calm'"):
        movies(circumstances=("calm",))
