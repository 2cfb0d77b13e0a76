"""Branches of the drift that only the whole movie can tell."""

from __future__ import annotations

import numpy as np
import pytest

from stemdl_core.branches import Correction, corrected, find_corrections, settle_blind, straightened
from stemdl_core.bridging import Shown
from stemdl_core.trajectories import Event

BASIS = 0.246 * np.array([[np.sin(t), np.cos(t)] for t in np.radians([7.0, 67.0])])
FRAMES = 24
SPEED = np.array([0.05, 0.16])


def shown_of(drift: np.ndarray, *, blind: tuple[int, ...] = (), sheared: bool = True) -> list[Shown]:
    within = np.zeros(2) if sheared else None
    return [
        Shown(t, 0.5 * t, d, np.zeros(2), np.eye(2) / 0.01, t in blind, within) for t, d in enumerate(drift)
    ]


def rows_of(path: np.ndarray) -> dict[str, list]:
    return {"frame": list(range(len(path))), "y_nm": path[:, 0].tolist(), "x_nm": path[:, 1].tolist()}


def hopping(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Drift and path of a defect that hops to a next site at frame 9."""
    drift = np.arange(FRAMES)[:, None] * SPEED + rng.normal(0, 0.01, (FRAMES, 2))
    bond = BASIS.sum(axis=0) / 3
    path = np.array([1.0, 1.0]) + np.where(np.arange(FRAMES)[:, None] >= 9, bond, 0.0)
    return drift, path


@pytest.mark.parametrize("sheared", [True, False])
def test_a_lone_hop_on_the_wrong_branch_is_put_right(rng, sheared):
    drift, path = hopping(rng)
    late = np.arange(FRAMES)[:, None] >= 9
    rows = rows_of(path - late * BASIS[0])
    taken = shown_of(drift + late * BASIS[0], sheared=sheared)
    found = find_corrections(taken, BASIS, [rows])
    assert [(c.frame, c.cell) for c in found] == [(9, (-1, 0))]
    hop = Event(9, "hop", (1,), "Si-C3", "Si-C3", step_nm=tuple(path[9] - path[8] - BASIS[0]), lattice_step="-2/3 1/3")
    right, events = corrected(found, taken, [rows], [hop])
    assert np.allclose([s.drift_nm for s in right], drift)
    assert np.allclose(np.stack([rows["y_nm"], rows["x_nm"]], axis=1), path)
    assert events[0].lattice_step == "1/3 1/3"
    assert np.allclose(events[0].step_nm, path[9] - path[8])


def test_a_defect_at_rest_holds_its_branch(rng):
    # The view really jumped by a lattice vector: the defect that did not move says so.
    drift, path = hopping(rng)
    drift[9:] += BASIS[0]
    path[:] = path[0]
    assert find_corrections(shown_of(drift), BASIS, [rows_of(path)]) == []
    # Nor is anything changed where the drift cannot be predicted, or the movie is short.
    wild = np.cumsum(rng.normal(0, 0.15, (FRAMES, 2)), axis=0)
    assert find_corrections(shown_of(wild, sheared=False), BASIS, [rows_of(hopping(rng)[1])]) == []
    assert find_corrections(shown_of(drift[:5]), BASIS, [rows_of(path[:5])]) == []


def test_frames_of_bare_lattice_follow_those_around_them(rng):
    drift, _ = hopping(rng)
    taken = drift.copy()
    taken[12] += BASIS[1]
    taken[13] -= BASIS[0]
    settled = settle_blind(shown_of(taken, blind=(12, 13)), BASIS)
    assert np.allclose([s.drift_nm for s in settled], drift)
    assert settle_blind(shown_of(taken), BASIS)[12].drift_nm == pytest.approx(taken[12])


def test_straightened_coordinates_keep_the_middle():
    matrix = np.array([[1.02, 0.01], [0.0, 1.0]])
    rows = {"y_nm": [1.0, 2.0], "x_nm": [1.0, 1.0]}
    hop = Event(1, "hop", (1,), "", "", step_nm=(1.0, 0.0))
    drift, events = straightened(matrix, np.ones(2), rows, shown_of(np.ones((2, 2))), [hop])
    assert (rows["y_nm"], rows["x_nm"]) == (pytest.approx([1.0, 2.02]), pytest.approx([1.0, 1.01]))
    assert drift == pytest.approx(np.array([[1.02, 1.01]] * 2))
    assert events[0].step_nm == pytest.approx((1.02, 0.01))


def test_a_correction_leaves_other_events_alone():
    death = Event(9, "death", (1,), "Si-C3", "")
    one = Correction(9, (1, 0), BASIS[0])
    assert corrected([one], [], [], [death])[1] == [death]
