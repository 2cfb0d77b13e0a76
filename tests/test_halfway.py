"""Changes that happen while a frame is scanned are told from those between frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stemdl_core.bench_movies import oracle_analysis
from stemdl_core.simulate.movie import MovieConditions, simulate_movie
from stemdl_core.tracking import Tracker

FRAMES = 26


def followed(scenario: str, seed: int, *, half_way: int, dose: float = 200.0):
    taken = MovieConditions(size_px=192, fov_nm=2.2)
    detector = replace(taken.conditions.detector, dose_e_per_atom=dose)
    taken = replace(taken, conditions=replace(taken.conditions, detector=detector))
    movie = simulate_movie(scenario, frames=FRAMES, rng=np.random.default_rng(seed), taken=taken, half_way=half_way)
    tracker, noise = Tracker(), np.random.default_rng([seed, 1])
    for index in range(len(movie)):
        tracker.update(oracle_analysis(movie, index, rng=noise), image=movie.frame(index))
    return movie, tracker.tracks()


@pytest.mark.parametrize(("scenario", "seed"), [("switching", 6), ("hopping", 11), ("rotor", 6)])
def test_the_half_way_frame_is_flagged_and_no_other(scenario, seed):
    movie, tracks = followed(scenario, seed, half_way=1)
    halves = [e.frame for e in movie.events if e.half and 2 <= e.frame < FRAMES - 2]
    assert halves, "the seed has to show a half-way frame well inside the movie"
    assert [e.frame for e in tracks.events if e.mid_frame] == halves
    assert len(tracks.events) == len(movie.events)
    assert all(abs(a.frame - b.frame) <= 1 for a, b in zip(tracks.events, movie.events))


@pytest.mark.parametrize("scenario", ["switching", "hopping", "rotor"])
def test_changes_between_frames_are_not_flagged(scenario):
    movie, tracks = followed(scenario, 0, half_way=0)
    assert len(tracks.events) == len(movie.events) > 0
    assert not [e.frame for e in tracks.events if e.mid_frame]
