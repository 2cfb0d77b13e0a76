"""Faint frames: the lattice completes what single atoms cannot show, and nothing where there is no sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from stemdl_core import analyze_frame, load_model
from stemdl_core.completion import complete
from stemdl_core.evaluate import match
from stemdl_core.simulate import degrade
from stemdl_core.simulate.dataset import Conditions, SimulatedFrame, simulate_frame
from stemdl_core.simulate.structures import graphene

BOND = 14.2
NONE = np.zeros((0, 2))


def honeycomb(side_px: float = 300.0) -> np.ndarray:
    """Nodes of a honeycomb with bonds of `BOND` pixels."""
    a, b = BOND * np.sqrt(3) * np.array([1.0, 0.0]), BOND * np.sqrt(3) * np.array([0.5, np.sqrt(0.75)])
    i, j = (v.ravel() for v in np.meshgrid(np.arange(-40, 40), np.arange(-40, 40)))
    cells = i[:, None] * a + j[:, None] * b
    yx = np.concatenate([cells + (a + b) / 3, cells + 2 * (a + b) / 3])
    return yx[((yx > 0) & (yx < side_px)).all(axis=1)]


def doubtful(nodes: np.ndarray, rng: np.random.Generator, *, lost: float = 0.2,
             wrong: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Sites as a network finds them in noise: some lost, some somewhere else, and their scores."""
    yx = nodes[rng.random(len(nodes)) > lost] + 0.0
    yx += rng.normal(0, 0.1 * BOND, yx.shape)
    false = rng.random(len(yx)) < wrong
    yx[false] += rng.uniform(-0.7, 0.7, (int(false.sum()), 2)) * BOND
    return yx, np.where(false, 0.75, rng.uniform(0.85, 0.99, len(yx)))


def right(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Precision and recall within a third of a bond."""
    hits = len(match(found, true, within_px=BOND / 3))
    return hits / max(len(found), 1), hits / len(true)


def test_lost_and_displaced_sites_are_set_right(rng: np.random.Generator) -> None:
    true = honeycomb()
    # Bent by drift: the nodes are half a bond off at the far end.
    nodes = true + 0.5 * BOND * (true / 300.0) ** 2
    yx, score = doubtful(true, rng)
    done = complete(yx, score, np.zeros(len(yx), bool), nodes, bond_px=BOND, holes_px=NONE)
    before, after = right(yx, true), right(done.yx_px, true)
    assert max(before) < 0.93
    assert min(after) > 0.97
    assert (done.score[done.origin < 0] < 1).all()


def test_holes_dopants_and_other_grains_stay(rng: np.random.Generator) -> None:
    nodes = honeycomb()
    hole = nodes[np.argmin(np.hypot(*(nodes - 80).T))]
    silicon = nodes[np.argmin(np.hypot(*(nodes - 200).T))] + 0.2 * BOND
    turned = (nodes - 150) @ np.array([[0.866, 0.5], [-0.5, 0.866]]) + 150
    left = nodes[(nodes[:, 1] < 150) & (np.hypot(*(nodes - hole).T) > 1)]
    grain = turned[(turned[:, 1] > 165) & (turned < 300).all(axis=1) & (np.hypot(*(turned - silicon).T) > 0.8 * BOND)]
    yx, score = doubtful(np.concatenate([left, grain]), rng, lost=0.0, wrong=0.0)
    yx, score = np.concatenate([yx, silicon[None]]), np.append(score, 0.97)
    dopant = np.zeros(len(yx), bool)
    dopant[-1] = True
    done = complete(yx, score, dopant, nodes, bond_px=BOND, holes_px=hole[None])
    tree = cKDTree(done.yx_px)
    assert tree.query(hole)[0] > 0.5 * BOND
    assert tree.query(silicon)[0] == 0.0
    far = grain[grain[:, 1] > 150 + 6 * BOND]
    assert right(done.yx_px[done.yx_px[:, 1] > 150 + 6 * BOND], far)[0] > 0.95


def test_enough_counts_are_left_alone(rng: np.random.Generator) -> None:
    nodes = honeycomb()
    yx, _ = doubtful(nodes, rng)
    done = complete(yx, np.full(len(yx), 0.998), np.zeros(len(yx), bool), nodes, bond_px=BOND, holes_px=NONE)
    assert np.array_equal(done.yx_px, yx)


def faint_frame(rng: np.random.Generator, *, dose: float, vacuum: float = 0.0) -> SimulatedFrame:
    conditions = Conditions(pixel_nm=0.014, vacuum=vacuum, detector=degrade.Detector(
        dose_e_per_atom=dose, background_e_per_px=0.1, readout_e=0.3))
    return simulate_frame(graphene(fov_nm=4.2, rotation_deg=9.0), conditions, rng)


def test_the_lattice_of_a_faint_frame_is_whole(rng: np.random.Generator) -> None:
    s = faint_frame(rng, dose=16.0)
    found = analyze_frame(s.frame, load_model("graphene"))
    inner = np.flatnonzero(s.visible & ~s.sites.edge)
    hits = {j for _, j in match(found.sites.yx_px, s.sites.yx_px, within_px=0.05 / 0.014)}
    assert sum(int(j in hits) for j in inner) > 0.97 * len(inner)
    assert len(found.sites) < 1.03 * len(s.sites)


@pytest.mark.parametrize("dose", [30.0, 150.0])
def test_nothing_is_drawn_on_into_vacuum(dose: float, rng: np.random.Generator) -> None:
    s = faint_frame(rng, dose=dose, vacuum=0.45)
    found = analyze_frame(s.frame, load_model("graphene"))
    off = cKDTree(s.sites.yx_px).query(found.sites.yx_px)[0] * 0.014
    assert len(found.sites) > 0.8 * len(s.sites)
    assert (off > 0.25).mean() < 0.02


def test_real_frames_do_not_ask_the_lattice(shared_data: Path) -> None:
    from stemdl_core import read_sequence
    from stemdl_core.completion import faint

    for frame in read_sequence(shared_data / "graphene_si_haadf" / "frames.npy", fov_nm=2.0):
        assert not faint(analyze_frame(frame, load_model("graphene")).sites.score)
