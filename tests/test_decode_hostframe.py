"""Decoding of states, and the lattice through located atoms."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from stemdl_core.decode import OnlineViterbi, Places
from stemdl_core.hostframe import HostLattice, SpecimenFrame, fit_host_lattice
from stemdl_core.materials import get_material


def best_path(evidence: np.ndarray, cost: float) -> list[int]:
    """Viterbi on the whole table at once."""
    score, back = evidence[0].copy(), []
    for row in evidence[1:]:
        options = score[:, None] - cost * (1 - np.eye(len(score)))
        back.append(options.argmax(axis=0))
        score = row + options.max(axis=0)
    path = [int(score.argmax())]
    for step in back[::-1]:
        path.append(int(step[path[-1]]))
    return path[::-1]


def test_deciding_online_equals_the_whole_sequence(rng):
    for cost in (1.0, 3.0, 6.0):
        evidence = rng.normal(0, 2.5, (200, 3))
        chain, states = OnlineViterbi(change_cost=cost, max_lag=60), []
        for t, row in enumerate(evidence):
            states += [d.state for d in chain.push(t, dict(enumerate(row)), floor=-50.0)]
            assert len(chain._pending) <= 61
        states += [d.state for d in chain.flush()]
        assert states == best_path(evidence, cost)


def test_a_wrong_reading_is_ignored_and_a_short_state_with_evidence_is_kept():
    chain, states = OnlineViterbi(change_cost=3.5), []
    for t in range(30):
        gain = {5: 5.0, 15: 4.0, 16: 4.0}.get(t)  # one weak reading of b, later two that agree
        evidence = {"a": -4.0, "b": gain - 4.0} if gain else {"a": 0.0, "b": -4.0}
        states += [d.state for d in chain.push(t, evidence, floor=-9.0)]
    states += [d.state for d in chain.flush()]
    assert [t for t, s in enumerate(states) if s == "b"] == [15, 16]


def test_a_state_named_late_may_have_been_there_all_along():
    chain = OnlineViterbi(change_cost=6.0)
    states = [d.state for d in chain.push(0, {"a": -1.0}, floor=-4.0)]
    for t in range(1, 8):
        states += [d.state for d in copy.deepcopy(chain).flush()][:0]  # looking ahead changes nothing
        states += [d.state for d in chain.push(t, {"b": -0.1}, floor=-4.0)]
    states += [d.state for d in copy.deepcopy(chain).flush()]
    assert states == ["b"] * 8


def test_places_are_found_and_forgotten_and_angles_wrap(rng):
    places = Places(sigma=5.0, apart=15.0, period=120.0, keep=3)
    for value in (1.0, 119.0, 2.0, 61.0, 58.0):
        places.visit(np.array([value]))
    assert len(places.centers) == 2
    assert abs(places.difference(places.centers[0], np.array([0.7]))[0]) < 2
    for value in (20.0, 40.0, 80.0, 100.0):
        places.visit(np.array([value]))
        places.forget(set())
    assert len(places.centers) == 3


def honeycomb(
    rng: np.random.Generator, turn: float, offset: np.ndarray, scale: float = 1.0, size: float = 2.0
) -> np.ndarray:
    angles = np.radians([turn, turn + 60])
    basis = 0.246 * scale * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    cells = np.stack(np.meshgrid(np.arange(-25, 25), np.arange(-25, 25), indexing="ij"), -1).reshape(-1, 2)
    yx = np.concatenate([(cells + m) @ basis + offset for m in (1 / 3, 2 / 3)])
    return yx[((yx > 0) & (yx < size)).all(axis=1)] + 0.0 * rng.normal()


@pytest.mark.parametrize("turn", [0.0, 13.0, 29.9, 45.0])
def test_lattice_is_found_to_picometres(rng, turn):
    offset = rng.uniform(0, 0.3, 2)
    yx = honeycomb(rng, turn, offset, scale=1.015)
    yx = yx[np.linalg.norm(yx - 1.0, axis=1) > 0.2] + 0.0
    yx = yx + rng.normal(0, 0.01, yx.shape)
    lattice = fit_host_lattice(yx, material=get_material("graphene"))
    assert lattice is not None
    assert np.linalg.norm(lattice.basis_nm, axis=1) == pytest.approx([0.246 * 1.015] * 2, rel=4e-3)
    away = lattice.fractional(offset)
    assert np.linalg.norm((away - np.round(away)) @ lattice.basis_nm) < 0.004
    assert lattice.rms_nm == pytest.approx(0.01, rel=0.3)


def test_points_without_a_lattice_have_none(rng):
    graphene = get_material("graphene")
    assert fit_host_lattice(rng.uniform(0, 2, (150, 2)), material=graphene) is None
    assert fit_host_lattice(np.zeros((0, 2)), material=graphene) is None
    assert fit_host_lattice(rng.uniform(0, 2, (4, 2)), material=graphene) is None


def test_sublattices_of_a_dichalcogenide_are_told_by_species(rng):
    material = get_material("MoSe2")
    for turn in (0.0, 60.0):
        yx = honeycomb(rng, turn, np.zeros(2), scale=material.lattice_nm / 0.246, size=3.0)
        angles = np.radians([turn, turn + 60])
        basis = material.lattice_nm * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        fraction = (yx @ np.linalg.inv(basis)) % 1.0
        metal = np.abs(fraction - 1 / 3).max(axis=1) < 0.05
        lattice = fit_host_lattice(yx, material=material, first_species=metal)
        assert lattice is not None
        _, motif = lattice.nearest(lattice.fractional(yx))
        assert ((motif == 0) == metal).all()


def test_branches_of_the_drift_are_lattice_vectors_apart():
    basis = 0.246 * np.array([[0.0, 1.0], [np.sqrt(3) / 2, 0.5]])
    frame = SpecimenFrame()
    frame.accept(HostLattice(np.array([1.0, 1.0]), basis), np.zeros(2))
    moved = HostLattice(np.array([1.02, 1.05]), basis)
    options = frame.candidates(moved, np.array([1.0, 1.0]), reach_nm=0.4)
    assert options[0][0] == pytest.approx([0.02, 0.05], abs=1e-9)
    steps = np.array([d - options[0][0] for d, _ in options]) @ np.linalg.inv(basis)
    assert np.abs(steps - np.round(steps)).max() < 1e-9
    assert len(options) >= 7
    costs = [frame.cost(d) for d, _ in options]
    assert costs == sorted(costs)
    specimen = [frame.to_specimen(np.array([1.3, 1.2]), moved, d, c) for d, c in options[:2]]
    assert specimen[0] == pytest.approx([1.28, 1.15], abs=1e-9)
    assert np.linalg.norm(specimen[1] - specimen[0]) == pytest.approx(0.246, abs=1e-6)
