"""Movies from images: truth of the simulated ones, bad frames, interruption and continuation."""

from __future__ import annotations

from dataclasses import replace

import movie_scenes as scenes
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from synthetic_movies import Movie, smooth_drift

from stemdl_core.analysis import FrameAnalysis
from stemdl_core.bench_movies import oracle_analysis
from stemdl_core.calibration import PixelSize
from stemdl_core.errors import StemdlError
from stemdl_core.figures import event_strips, timeline
from stemdl_core.frames import Frame, FrameSequence
from stemdl_core.movies import (
    Journal,
    MovieTracker,
    analysis_from_dict,
    follow_movie,
    kept_when_interrupted,
    movie_identity,
    unfinished,
)
from stemdl_core.simulate.degrade import Detector
from stemdl_core.simulate.movie import SCENARIOS, MovieConditions, simulate_movie
from stemdl_core.tracking import track
from stemdl_core.writers import strict_json


class Known:
    """A movie of noise whose analyses are known: the frames say which one they are."""

    def __init__(self, rng: np.random.Generator, frames: int = 30) -> None:
        scene, self.events = scenes.switching(rng, frames=frames, rate=0.1)
        self.movie = Movie(scene, smooth_drift(frames, rng, total=0.2), lost=0.0, invented=0.0, misread=0.0)
        self.analyses = list(self.movie.analyses(rng))
        self.images = rng.normal(size=(frames, 64, 64)).astype(np.float32)
        self.sequence = FrameSequence.from_array(self.images, frame_time_s=0.5, source="known movie")
        self.asked: list[int] = []

    def analyze(self, frame: Frame) -> FrameAnalysis:
        self.asked.append(frame.index)
        return self.analyses[frame.index]


def test_movie_of_known_analyses_equals_tracking_them(rng):
    known = Known(rng)
    lines, movies = zip(*follow_movie(known.sequence, known.analyze))
    tracks = movies[-1].tracker.tracks()
    whole = track(known.analyses)
    assert tracks.to_dataframe().equals(whole.to_dataframe())
    assert tracks.events.to_dataframe().equals(whole.events.to_dataframe())
    assert len(lines) == 30
    assert known.asked == list(range(30))


def test_an_interrupted_run_continues_with_the_same_result(rng, tmp_path):
    known = Known(rng)
    known.images[7] = 0.0  # a black frame is refused before it is analysed
    whole_lines, movies = zip(*follow_movie(known.sequence, known.analyze))
    whole = movies[-1].tracker.tracks()
    known.asked.clear()
    path, identity = unfinished(tmp_path / "out"), movie_identity(known.sequence, model="a")

    def run_until(stop: int) -> None:
        with kept_when_interrupted(path, identity) as journal:
            for number, _ in enumerate(follow_movie(known.sequence, known.analyze, journal=journal)):
                if number == stop:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_until(11)
    with path.open("a") as file:
        file.write('{"frame": 12, "record": {"cut o')
    assert len(known.asked) == 11
    with kept_when_interrupted(path, identity) as journal:
        assert journal.count == 12
        lines, movies = zip(*follow_movie(known.sequence, known.analyze, journal=journal))
    assert sorted(known.asked) == [n for n in range(30) if n != 7]
    tracks = movies[-1].tracker.tracks()
    assert lines == whole_lines
    assert tracks.details().equals(whole.details())
    assert tracks.events.to_dataframe().equals(whole.events.to_dataframe())
    assert tracks.faults == whole.faults
    assert list(tmp_path.iterdir()) == []  # the journal is gone when the movie is done


def test_an_interrupted_run_continues_in_several_processes(rng, tmp_path):
    known = Known(rng)
    whole_lines, movies = zip(*follow_movie(known.sequence, known.analyze))
    whole = movies[-1].tracker.tracks()
    path, identity = unfinished(tmp_path / "out"), movie_identity(known.sequence, model="a")

    def run_until(stop: int) -> None:
        with kept_when_interrupted(path, identity) as journal:
            for number, _ in enumerate(follow_movie(known.sequence, known.analyze, journal=journal, workers=2)):
                if number == stop:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_until(9)
    with kept_when_interrupted(path, identity) as journal:
        assert journal.count == 10
        lines, movies = zip(*follow_movie(known.sequence, known.analyze, journal=journal, workers=2))
    assert lines == whole_lines
    assert movies[-1].tracker.tracks().details().equals(whole.details())
    assert movies[-1].tracker.tracks().events.to_dataframe().equals(whole.events.to_dataframe())


def _spoilt(image: np.ndarray, before: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    late = image.copy()
    late[len(image) // 2 :] = 0.0
    return {
        "black": 0.001 * image,
        "saturated": np.minimum(image, np.quantile(image, 0.6)),
        "half-scanned": late,
        "duplicate": before,
        "different size": image[: len(image) // 2],
        "out of focus": gaussian_filter(image, 12) + rng.normal(0, image.std(), image.shape).astype(np.float32),
    }


@pytest.mark.parametrize("kind", ["black", "saturated", "half-scanned", "duplicate", "different size", "out of focus"])
def test_a_bad_frame_is_reported_and_bridged_and_breaks_no_track(kind, rng):
    taken = MovieConditions(fov_nm=2.2, size_px=192)
    movie = simulate_movie("rotor", frames=12, rate=0.0, rng=np.random.default_rng(4), taken=taken)
    tracker = MovieTracker(lambda frame: oracle_analysis(movie, frame.index, rng=rng))
    for index in range(len(movie)):
        frame = movie.frame(index)
        if index == 6:
            image = _spoilt(frame.image, movie.frame(5).image, rng)[kind]
            frame = Frame(image, frame.pixel_size, index=index, time_s=frame.time_s)
        tracker.update(frame)
    tracks = tracker.tracks()
    (fault,) = tracks.faults
    assert fault[0] == 6
    assert fault[1].startswith(kind)
    assert len(tracks.events) == 0
    assert tracks.ids.tolist() == [1]
    assert tracks.frame.tolist() == [n for n in range(12) if n != 6]


def test_another_movie_or_model_starts_anew(rng, tmp_path):
    known = Known(rng, frames=4)
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, identity=movie_identity(known.sequence, model="a"))
    assert len(list(follow_movie(known.sequence, known.analyze, journal=journal))) == 4
    journal.close()
    again = Journal(path, identity=movie_identity(known.sequence, model="a"))
    assert again.count == 4
    again.close()
    other = Journal(path, identity=movie_identity(known.sequence, model="b"))
    assert other.count == 0
    other.close()


def test_an_error_leaves_no_journal(rng, tmp_path):
    known = Known(rng, frames=3)
    known.images[:] = 1.0
    path = unfinished(tmp_path / "out")
    with pytest.raises(StemdlError, match=r"no frame can be used; frame 0: .*constant"), \
            kept_when_interrupted(path, {}) as journal:  # fmt: skip
        list(follow_movie(known.sequence, known.analyze, journal=journal))
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_survives_its_record(rng):
    analysis = Known(rng, frames=1).analyses[0]
    record = analysis.to_dict(with_frame=True)
    again = analysis_from_dict(record)
    assert strict_json(again.to_dict(with_frame=True)) == strict_json(record)
    with pytest.raises(StemdlError, match="schema 1"):
        analysis_from_dict({"sites": []})


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_truth_of_simulated_movies_is_where_the_atoms_are(scenario):
    taken = MovieConditions(drift_nm=0.3, fov_nm=3.0)
    bright = replace(taken.conditions, detector=Detector(dose_e_per_atom=3000.0), jitter_nm=0.0, thermal_nm=0.0)
    movie = simulate_movie(scenario, frames=12, rate=0.3, rng=np.random.default_rng(5), half_way=0,
                           taken=replace(taken, conditions=bright))  # fmt: skip
    truth, events = movie.trajectories(), movie.event_table()
    assert set(events["kind"]) <= {"switch", "hop", "rotation", "merge", "split", "birth", "death"}
    assert len(events) >= 1
    assert events["frame"].between(1, 11).all()
    for index in (0, 11):
        image, rows = movie.image(index), truth[truth["frame"] == index]
        for row in rows[rows["name"].isin(["Si-C3", "Si-C4"])].itertuples():
            y, x = round(row.y_px), round(row.x_px)
            window = image[y - 2 : y + 3, x - 2 : x + 3].mean()
            assert window > np.percentile(image, 99)  # silicon is brighter than all carbon
    assert np.allclose(movie.image(3), movie.image(3))
    moved = truth["y_px"] * movie.pixel_nm - truth["y_nm"]
    assert np.allclose(moved, movie.drift_nm[truth["frame"], 0])


def test_half_way_frames_show_both_states():
    movie = simulate_movie("hopping", frames=30, rate=0.15, rng=np.random.default_rng(2), half_way=1)
    (event,) = [e for e in movie.events if e.half]
    whole = simulate_movie("hopping", frames=30, rate=0.15, rng=np.random.default_rng(2), half_way=0)
    whole.seed, whole.drift_nm = movie.seed, movie.drift_nm
    mixed, after = movie.image(event.frame), whole.image(event.frame)
    same = (mixed == after).all(axis=1)
    assert same[-1]
    assert not same[0]
    assert np.flatnonzero(np.diff(same.astype(int))).size == 1  # one line divides before from after


def test_wrong_scenarios_are_refused(rng):
    with pytest.raises(StemdlError, match="unknown scenario 'spin'"):
        simulate_movie("spin", rng=rng)
    with pytest.raises(StemdlError, match="at least one frame"):
        simulate_movie("rotor", frames=0, rng=rng)


def test_registered_images_lead_a_movie_without_defects(rng):
    movie = Movie([[] for _ in range(4)], np.zeros((4, 2)), invented=0.0)
    analyses = list(movie.analyses(rng))
    follower = MovieTracker(lambda frame: analyses[frame.index])
    for t in range(4):
        frame = Frame(rng.normal(size=(256, 256)), PixelSize(movie.fov_nm / 256), t)
        _, update = follower.update(frame)
        assert update.fault is None
        assert np.abs(update.drift_nm).max() < 0.01


def test_pictures_of_a_movie_show_its_events(rng):
    scene, _ = scenes.rotor(rng, frames=16, flips=(4, 9))
    tracks = track(Movie(scene, smooth_drift(16, rng, total=0.1), lost=0.0, invented=0.0).analyses(rng))
    figure = timeline(tracks)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert any("angle" in label for label in labels)
    assert any("equilateral" in label for label in labels)
    sequence = FrameSequence.from_array(rng.normal(size=(16, 256, 256)).astype("f4"))
    strips = event_strips(sequence, tracks, pixel_nm=2.0 / 256)
    assert strips is not None
    assert len(strips.axes) > 2 * 5
    assert event_strips(sequence, track([]), pixel_nm=0.01) is None
    assert len(timeline(track([])).axes) == 3
