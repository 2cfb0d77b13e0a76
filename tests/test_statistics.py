"""Rates and dwell times against known processes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import poisson

from stemdl_core.errors import StemdlError
from stemdl_core.statistics import (
    diffusion,
    dwell_times,
    dwells,
    mean_squared_displacement,
    occupancy,
    poisson_rate,
    site_occupancy,
    transition_matrix,
    transition_rates,
)
from stemdl_core.trajectories import Event, Events, Tracks


def tracks_of(
    names: list[str],
    yx: np.ndarray | None = None,
    *,
    time_s: float = 0.5,
    events: tuple = (),
    missing: tuple[int, ...] = (),
) -> Tracks:
    frames = [t for t in range(len(names)) if t not in missing]
    yx = np.zeros((len(names), 2)) if yx is None else yx
    rows = {
        "frame": frames,
        "time_s": [t * time_s for t in frames],
        "track_id": [1] * len(frames),
        "name": [names[t] for t in frames],
        "y_px": [0.0] * len(frames),
        "x_px": [0.0] * len(frames),
        "y_nm": [yx[t, 0] for t in frames],
        "x_nm": [yx[t, 1] for t in frames],
        "orientation_deg": [np.nan] * len(frames),
        "seen_as": [names[t] for t in frames],
        "probability": [1.0] * len(frames),
        "deviation_deg": [np.nan] * len(frames),
    }
    return Tracks.from_rows(rows, events=Events(tuple(events)), frames=len(names))


def test_garwood_interval_covers_at_least_as_often_as_it_says():
    for mean in (0.5, 2.0, 7.3):
        counts = np.arange(60)
        inside = [poisson_rate(int(n), 1.0).low <= mean <= poisson_rate(int(n), 1.0).high for n in counts]
        assert poisson.pmf(counts, mean)[inside].sum() >= 0.95
    # Textbook values: no event in 10 s excludes rates above 0.3689/s; five events give 1.6235 ... 11.6683.
    assert poisson_rate(0, 10.0).high == pytest.approx(0.36889, abs=1e-5)
    assert (poisson_rate(5, 1.0).low, poisson_rate(5, 1.0).high) == pytest.approx(
        (1.62349, 11.66833), abs=1e-4
    )


def test_rate_of_impossible_observation_is_refused():
    with pytest.raises(StemdlError, match="confidence"):
        poisson_rate(1, 1.0, confidence=1.5)
    with pytest.raises(StemdlError, match="negative"):
        poisson_rate(-1, 1.0)


def test_dwells_are_censored_at_the_ends_and_bridge_missing_frames():
    tracks = tracks_of(["a"] * 4 + ["b"] * 3 + ["a"] * 5, missing=(5,))
    table = dwells(tracks)
    assert table["name"].tolist() == ["a", "b", "a"]
    assert table["duration"].tolist() == [2.0, 1.5, 2.5]
    assert table["censored_start"].tolist() == [True, False, False]
    assert table["censored_end"].tolist() == [False, False, True]
    assert transition_matrix(tracks).loc["a", "b"] == 1
    means = dwell_times(tracks).set_index("name")
    assert means.loc["a", "mean"] == pytest.approx(4.5)  # 4.5 s in two stays, one of them completed
    assert means.loc["a", "low"] < 4.5 < means.loc["a", "high"]


def test_known_rates_are_recovered_from_a_long_movie(rng):
    leave, state, names = {"a": 0.05, "b": 0.12}, "a", []
    for _ in range(6000):
        if rng.random() < leave[state]:
            state = "b" if state == "a" else "a"
        names.append(state)
    rates = transition_rates(tracks_of(names, time_s=1.0)).set_index(["from", "to"])
    for pair, true in ((("a", "b"), 0.05), (("b", "a"), 0.12)):
        row = rates.loc[pair]
        assert row["rate"] == pytest.approx(true, rel=0.15)
        assert row["low"] < true < row["high"]


def test_diffusion_of_a_walk_on_the_lattice(rng):
    moves = rng.random(5000) < 0.1
    steps = (
        0.142 * np.stack([np.sin(a := rng.uniform(0, 2 * np.pi, 5000)), np.cos(a)], axis=1) * moves[:, None]
    )
    path = np.cumsum(steps, axis=0) + rng.normal(0, 0.01, (5000, 2))
    events = tuple(
        Event(int(t), "hop", (1,), "a", "a", step_nm=tuple(steps[t])) for t in np.flatnonzero(moves)
    )
    tracks = tracks_of(["a"] * 5000, path, time_s=1.0, events=events)
    true = 0.1 * 0.142**2 / 4
    result = diffusion(tracks)
    assert result.low < true < result.high
    assert result.from_msd == pytest.approx(true, rel=0.25)
    curve = mean_squared_displacement(tracks, max_lag=3)
    # One step of the walk, and twice the localisation error in two dimensions.
    assert curve["msd_nm2"][0] == pytest.approx(4 * true + 4 * 0.01**2, rel=0.15)


def test_no_hop_still_bounds_the_diffusion():
    result = diffusion(tracks_of(["a"] * 100, time_s=1.0))
    assert result.coefficient == 0.0
    assert result.high == pytest.approx(3.689 / 100 * 0.246**2 / 3 / 4, rel=1e-3)


def test_occupancy_counts_the_time_at_each_place(rng):
    yx = np.where(np.arange(40)[:, None] < 30, [[0.0, 0.0]], [[0.1, 0.1]]) + rng.normal(0, 0.005, (40, 2))
    tracks = tracks_of(["a"] * 40, yx)
    table = site_occupancy(tracks)
    assert table["time"].tolist() == [15.0, 5.0]
    assert occupancy(tracks).time.sum() == pytest.approx(20.0)


def test_no_tracks_give_empty_tables_of_the_same_columns():
    empty, full = Tracks.empty(), tracks_of(["a", "b"])
    for make in (dwells, dwell_times, transition_rates, site_occupancy, mean_squared_displacement):
        assert list(make(empty).columns) == list(make(full).columns)
        assert (make(empty).dtypes == make(full).dtypes).all()
        assert len(make(empty)) == 0
    assert diffusion(empty).hops.events == 0
    assert occupancy(empty).time.size == 0


def test_statistics_are_drawn(rng):
    from stemdl_core.figures import statistics_figure

    names = ["Si-C3"] * 6 + ["Si-C4"] * 5 + ["Si-C3"] * 9
    figure = statistics_figure(tracks_of(names, rng.normal(0, 0.01, (20, 2))))
    dwell, spread, places, *_ = figure.axes
    assert [t.get_text().split("\n")[0] for t in dwell.get_yticklabels()] == ["Si-C4", "Si-C3"]
    assert "[s]" in spread.get_xlabel()
    assert places.images[0].get_array().sum() == pytest.approx(10.0)  # 20 frames of half a second
    assert statistics_figure(Tracks.empty()) is None
