"""Readings and what they say: names, orientations, evidence, changes inside a frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_movies import Movie, Thing, site

from stemdl_core.analysis import Defect
from stemdl_core.events import Row, TrackHistory, lattice_step, name_evidence
from stemdl_core.hostframe import host_lattice
from stemdl_core.linking import TrackSettings
from stemdl_core.materials import get_material
from stemdl_core.observations import Observation, foreign_atoms, observe, orientation, triangle_deviation
from stemdl_core.trajectories import Event, Events

GRAPHENE = get_material("graphene")
CENTER = np.array([1.0, 1.0])


def reading(
    name: str = "Si-C3",
    *,
    yx: np.ndarray = CENTER,
    probability: float = 0.95,
    atoms: int = 1,
    angle: float = float("nan"),
    fold: int = 3,
    deviation: float = float("nan"),
    intensity: float = float("nan"),
) -> Observation:
    return Observation(
        100 * yx,
        yx,
        {"Si": atoms} if atoms else {},
        {name: probability},
        0.97,
        angle,
        fold,
        deviation,
        1.0,
        intensity=intensity,
        intensity_sigma=0.05,
    )


def changes_of(readings: list[Observation]) -> list:
    history = TrackHistory(material=GRAPHENE, settings=TrackSettings())
    found = []
    for number, seen in enumerate(readings):
        found += history.push(Row(number, number, None, seen, seen.yx_nm), None)[1]
    return found + history.flush()[1]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Si-C3", 1),
        ("Si-C4", 1),
        ("Si2C5", 2),
        ("Si4C6", 4),
        ("N-C3", 1),
        ("Si-C3+V", 1),
        ("SV", 0),
        ("V4", 0),
        ("DV(5-8-5)", 0),
        ("SW(55-77)", 0),
        ("GB(5-7)", 0),
        ("unknown", None),
        ("C3", 0),
    ],
)
def test_number_of_foreign_atoms_in_a_name(name, count):
    assert foreign_atoms(name, ("C",)) == count


@pytest.mark.parametrize(
    ("name", "count"), [("W_Mo", 1), ("V_Se", 0), ("V_Se2", 0), ("S_Se", 1), ("Mo_Se2", 0)]
)
def test_number_of_foreign_atoms_in_a_dichalcogenide(name, count):
    assert foreign_atoms(name, ("Mo", "Se")) == count


@settings(max_examples=60, deadline=None)
@given(
    angle=st.floats(0, 360),
    fold=st.sampled_from([2, 3]),
    y=st.floats(-5, 5),
    x=st.floats(-5, 5),
    radius=st.floats(0.05, 1.0),
)
def test_orientation_follows_the_polygon(angle, fold, y, x, radius):
    turns = np.radians(angle + 360.0 / fold * np.arange(fold))
    points = np.array([y, x]) + radius * np.stack([np.sin(turns), np.cos(turns)], axis=1)
    period = 360.0 / fold
    off = (orientation(points, fold) - angle + period / 2) % period - period / 2
    assert abs(off) < 1e-6
    if fold == 3:
        assert triangle_deviation(points) < 1e-5


def test_deviation_of_a_right_triangle():
    assert triangle_deviation(np.array([[0, 0], [0, 1], [1, 0]])) == pytest.approx(30.0)


def test_a_switch_needs_evidence():
    once = [reading("Si-C3")] * 10 + [reading("Si-C4")] + [reading("Si-C3")] * 10
    assert changes_of(once) == []
    stays = [reading("Si-C3")] * 10 + [reading("Si-C4")] * 10
    (change,) = changes_of(stays)
    assert (change.kind, change.row.frame, change.before, change.after) == ("switch", 10, "Si-C3", "Si-C4")
    assert change.confidence > 0.95
    assert change.mixed is None


def test_an_atom_more_is_a_merge_and_one_less_a_split():
    changes = changes_of([reading("Si-C3")] * 6 + [reading("Si2C5", atoms=2)] * 6 + [reading("Si-C3")] * 6)
    assert [(c.kind, c.row.frame) for c in changes] == [("merge", 6), ("split", 12)]


def test_an_undecided_reading_marks_the_change_as_half_way():
    changes = changes_of(
        [reading("Si-C3")] * 8 + [reading("unknown", probability=0.6)] + [reading("Si-C4")] * 8
    )
    (change,) = changes
    assert change.mixed is not None
    assert change.at.frame == 8


def test_hops_are_whole_bonds_and_half_way_places_are_not_hops(rng):
    step = 0.142 * np.array([0.6, 0.8])

    def at(fraction: float, **options: float) -> Observation:
        return reading(yx=CENTER + fraction * step + rng.normal(0, 0.008, 2), **options)

    (hop,) = changes_of([at(0) for _ in range(10)] + [at(1) for _ in range(10)])
    assert hop.kind == "hop"
    assert hop.row.frame == 10
    assert np.hypot(*hop.step_nm) == pytest.approx(0.142, abs=0.01)
    (half,) = changes_of([at(0) for _ in range(10)] + [at(0.5)] + [at(1) for _ in range(10)])
    assert half.mixed is not None
    assert half.at.frame == 10
    assert changes_of([at(0) for _ in range(10)] + [at(0.5) for _ in range(10)]) == []


def test_an_atom_scanned_in_part_marks_the_hop(rng):
    step = np.array([0.0, 0.142])
    readings = [reading(yx=CENTER + rng.normal(0, 0.006, 2), intensity=4.0) for _ in range(8)]
    readings[-1] = reading(yx=CENTER, intensity=2.6)
    readings += [reading(yx=CENTER + step + rng.normal(0, 0.006, 2), intensity=4.1) for _ in range(8)]
    (hop,) = changes_of(readings)
    assert hop.mixed is not None
    assert hop.at.frame == 7


def test_rotations_of_consecutive_frames_are_all_found(rng):
    angles = [20.0] * 6 + [80.0] + [20.0] * 5 + [80.0] * 8
    readings = [reading("Si3C6", atoms=3, angle=(a + rng.normal(0, 2)) % 120, deviation=2.0) for a in angles]
    changes = changes_of(readings)
    assert [(c.kind, c.row.frame) for c in changes] == [("rotation", 6), ("rotation", 7), ("rotation", 12)]
    assert [c.angle_deg for c in changes] == pytest.approx([60.0] * 3, abs=8)


def test_a_bent_triangle_is_no_orientation(rng):
    angles = [20.0] * 6 + [50.0] + [20.0] * 6
    readings = [reading("Si3C6", atoms=3, angle=a, deviation=35.0 if a == 50 else 3.0) for a in angles]
    assert changes_of(readings) == []
    flip = [
        reading("Si3C6", atoms=3, angle=a, deviation=35.0 if a == 50 else 3.0)
        for a in [20.0] * 6 + [50.0] + [80.0] * 6
    ]
    (change,) = changes_of(flip)
    assert change.kind == "rotation"
    assert change.at.frame == 6
    assert change.mixed is not None


def test_a_cluster_that_lost_an_atom_for_one_frame_did_nothing(rng):
    readings = [reading("Si3C6", atoms=3, angle=20.0, deviation=3.0) for _ in range(12)]
    readings[5] = reading("Si2C5", atoms=2, fold=2, angle=40.0, yx=CENTER + [0.0, 0.12])
    assert changes_of(readings) == []


def test_the_place_on_the_lattice_speaks_for_the_number_of_bonds(rng):
    movie = Movie(
        [[Thing(1, "Si-C3", site(0, 0, 0))]], np.zeros((1, 2)), noise_nm=0.005, lost=0.0, invented=0.0
    )
    analysis = next(iter(movie.analyses(rng)))
    lattice = host_lattice(analysis)
    (seen,) = observe(analysis)
    settings = TrackSettings()
    on_site, _ = name_evidence(Row(0, 0, None, seen, seen.yx_nm), GRAPHENE, lattice, settings)
    beside = seen.yx_nm + (site(0, 0, 1) - site(0, 0, 0)) / 2
    on_bond, _ = name_evidence(Row(0, 0, None, seen, beside), GRAPHENE, lattice, settings)
    assert on_site["Si-C3"] - on_site["Si-C4"] > 5
    assert on_bond["Si-C3"] - on_bond["Si-C4"] < on_site["Si-C3"] - on_site["Si-C4"] - 6


def test_lattice_steps_are_written_in_thirds():
    assert lattice_step(np.array([0.34, -0.66])) == "1/3 -2/3"
    assert lattice_step(np.array([-1.01, 0.02])) == "-1 0"


def test_a_defect_known_by_name_only_is_observed(rng):
    movie = Movie([[]], np.zeros((1, 2)), lost=0.0, invented=0.0)
    analysis = next(iter(movie.analyses(rng)))
    defect = Defect(0, "SV", {"C": 3}, (), (128.0, 120.0), probability=0.8)
    from dataclasses import replace

    from stemdl_core.analysis import Defects

    (seen,) = observe(replace(analysis, defects=Defects((defect,))))
    assert seen.atoms == 0
    assert seen.yx_px == pytest.approx([128.0, 120.0])


def test_events_are_a_table_of_the_contract():
    table = Events(
        (Event(3, "switch", (1,), "Si-C3", "Si-C4", 1.5), Event(5, "merge", (1, 2), "a + b", "c"))
    ).to_dataframe()
    assert list(table.columns[:7]) == ["frame", "time_s", "kind", "track_ids", "from", "to", "angle_deg"]
    assert table["track_ids"].tolist() == ["1", "1 2"]
    with pytest.raises(ValueError, match="kind"):
        Event(0, "explosion", (1,), "", "")
