"""Specimens: the truth agrees with the atoms, the geometry with what is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from stemdl_core.errors import StemdlError
from stemdl_core.planar import find_faces
from stemdl_core.simulate.grain_boundary import boundary, boundary_sheet
from stemdl_core.simulate.structures import GRAPHENE_MIXTURE, add_defect, graphene, mx2, random_specimen

KINDS = [k.replace("X", "Si") for k in GRAPHENE_MIXTURE]


def distances_pm(specimen, a, b):
    return 1e3 * np.hypot(*(specimen.yx_nm[a] - specimen.yx_nm[b]).T)


def test_graphene_has_the_density_and_bonds_of_graphene():
    sheet = graphene(fov_nm=(3.0, 4.0), rotation_deg=17.0, offset_nm=(0.03, 0.1))
    inside = np.all((sheet.yx_nm >= 0) & (sheet.yx_nm < [3.0, 4.0]), axis=1)
    assert inside.sum() == pytest.approx(12.0 / (0.2460**2 * np.sqrt(3) / 4), rel=0.03)
    nearest = cKDTree(sheet.yx_nm).query(sheet.yx_nm[inside], k=4)[0][:, 1:]
    np.testing.assert_allclose(nearest, 0.14203, atol=1e-4)
    assert np.min(np.hypot(*(sheet.yx_nm - [0.03, 0.1]).T)) < 1e-9


def test_rotation_turns_the_zigzag_direction_from_x_towards_y():
    sheet = graphene(fov_nm=3.0, rotation_deg=10.0, offset_nm=(1.5, 1.5))
    wanted = np.array([1.5, 1.5]) + 0.246 * np.array([np.sin(np.radians(10.0)), np.cos(np.radians(10.0))])
    assert np.min(np.hypot(*(sheet.yx_nm - wanted).T)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_truth_counts_the_atoms(kind, rng):
    perfect = graphene(fov_nm=3.0, rotation_deg=33.0)
    specimen = add_defect(perfect, kind, (1.5, 1.5), rng=rng)
    (truth,) = specimen.defects
    assert truth.name == kind
    symbols = [specimen.atoms.symbols[i] for i in truth.site_ids]
    assert {s: symbols.count(s) for s in set(symbols)} == dict(truth.composition)
    assert len(perfect.atoms) - len(specimen.atoms) == truth.missing_atoms
    assert np.hypot(*(np.array(truth.center_nm) - 1.5)) < 0.3
    assert cKDTree(specimen.yx_nm).query(specimen.yx_nm, k=2)[0][:, 1].min() > 0.12


@pytest.mark.parametrize(("kind", "rings"), [
    ("SW(55-77)", {5: 2, 7: 2}), ("DV(555-777)", {5: 3, 7: 3}), ("Si-C3", {}), ("Si-C4", {}), ("N-C3", {}),
])
def test_rings_are_those_of_the_name(kind, rings, rng):
    specimen = add_defect(graphene(fov_nm=3.0), kind, (1.5, 1.5), rng=rng)
    yx = specimen.yx_nm
    foreign = specimen.atoms.numbers != 6
    pairs = cKDTree(yx).query_pairs(0.2, output_type="ndarray")
    length = np.hypot(*(yx[pairs[:, 0]] - yx[pairs[:, 1]]).T)
    pairs = pairs[(length < 0.175) | foreign[pairs].any(axis=1)]
    faces = find_faces(yx, pairs[:, 0], pairs[:, 1])
    around = faces.size[(faces.area > 0) & (faces.size < 12)]
    found = {n: int(np.sum(around == n)) for n in (5, 7) if np.any(around == n)}
    expected = {5: 2} if kind == "Si-C4" else rings
    assert found == expected


def test_projected_silicon_geometry(rng):
    def silicon(kind):
        s = add_defect(graphene(fov_nm=3.0), kind, (1.5, 1.5), rng=rng)
        ids = np.array(s.defects[0].site_ids)
        return s, ids[s.atoms.numbers[ids] == 14], ids[s.atoms.numbers[ids] == 6]

    s, si, c = silicon("Si-C3")
    np.testing.assert_allclose(distances_pm(s, si, c), 150.0, atol=8.0)
    s, si, c = silicon("Si-C4")
    np.testing.assert_allclose(distances_pm(s, si, c), 177.0, atol=7.0)
    s, si, c = silicon("Si3C6")
    np.testing.assert_allclose(distances_pm(s, si, np.roll(si, 1)), 217.0, atol=10.0)
    between = 1e3 * cKDTree(s.yx_nm[c]).query(s.yx_nm[si], k=3)[0]
    assert np.all((between[:, :2] > 165) & (between[:, :2] < 205))
    assert np.all(between[:, 2] > 260)
    s, si, c = silicon("Si4C6")
    middle = si[np.argmin(np.hypot(*(s.yx_nm[si] - s.yx_nm[si].mean(axis=0)).T))]
    corners = si[si != middle]
    np.testing.assert_allclose(distances_pm(s, middle, corners), 153.0, atol=8.0)
    assert np.all(distances_pm(s, corners, np.roll(corners, 1)) > 255.0)


def test_silicon_beside_a_vacancy_is_distorted_as_in_the_paper(rng):
    s = add_defect(graphene(fov_nm=3.0), "Si-C3+V", (1.5, 1.5), rng=rng)
    ids = np.array(s.defects[0].site_ids)
    si, c = ids[s.atoms.numbers[ids] == 14], ids[s.atoms.numbers[ids] == 6]
    steps = s.yx_nm[c] - s.yx_nm[si]
    angle = np.sort(np.degrees(np.arctan2(steps[:, 0], steps[:, 1])))
    between = np.sort(np.diff(np.append(angle, angle[0] + 360.0)))
    np.testing.assert_allclose(between, [94.0, 108.0, 158.0], atol=9.0)


def test_both_rotor_orientations_leave_the_carbon_in_place():
    bright = []
    for seed in range(8):
        s = add_defect(graphene(fov_nm=3.0), "Si3C6", (1.5, 1.5), rng=np.random.default_rng(seed))
        si = s.yx_nm[s.atoms.numbers == 14]
        step = si - si.mean(axis=0)
        bright.append(np.angle(np.exp(3j * np.arctan2(step[:, 0], step[:, 1])).mean()))
    difference = np.abs(np.angle(np.exp(1j * (np.array(bright) - bright[0]))))
    assert np.any(difference > 2.8)
    assert np.all((difference < 0.3) | (difference > 2.8))


def test_dopant_replaces_silicon_in_the_name(rng):
    s = add_defect(graphene(fov_nm=2.0), "Si-C3", (1.0, 1.0), rng=rng, dopant="P")
    assert s.defects[0].name == "P-C3"
    assert dict(s.defects[0].composition) == {"P": 1, "C": 3}


def test_unknown_kinds_and_full_places_are_refused(rng):
    sheet = graphene(fov_nm=2.0)
    with pytest.raises(StemdlError, match="unknown defect kind 'Si9C9'"):
        add_defect(sheet, "Si9C9", (1.0, 1.0), rng=rng)
    taken = add_defect(sheet, "SV", (1.0, 1.0), rng=rng)
    with pytest.raises(StemdlError, match="no room"):
        add_defect(taken, "SV", (1.0, 1.0), rng=rng)
    with pytest.raises(StemdlError, match=r"between 0\.2 and 500 nm"):
        graphene(fov_nm=-1.0)


def test_mx2_columns_and_defects(rng):
    sheet = mx2(material="MoSe2", fov_nm=3.0, rotation_deg=5.0)
    z = sheet.atoms.positions[:, 2]
    assert np.sum(z > 1) == np.sum(z < -1) > 0
    for kind, composition, lost in (
        ("W_Mo", {"W": 1, "Se": 3}, 0),
        ("V_Se", {"Se": 1, "Mo": 3}, 1),
        ("V_Se2", {"Mo": 3}, 2),
        ("Mo_Se2", {"Mo": 4}, 1),
        ("Se2_Mo", {"Se": 4}, -1),
    ):
        s = add_defect(sheet, kind, (1.5, 1.5), rng=rng)
        assert s.defects[0].name == kind
        assert dict(s.defects[0].composition) == composition
        assert len(sheet.atoms) - len(s.atoms) == lost
    with pytest.raises(StemdlError, match="unknown defect kind"):
        add_defect(sheet, "V_S", (1.5, 1.5), rng=rng)


def test_grain_boundary_is_fully_bonded_and_made_of_pentagons_and_heptagons(rng):
    sheet = boundary_sheet((4.0, 4.0), 0.5, rng, variant=0)
    pairs = cKDTree(sheet.yx).query_pairs(0.175, output_type="ndarray")
    inside = np.all((sheet.yx > 0) & (sheet.yx < 4.0), axis=1)
    assert set(np.bincount(pairs.ravel())[inside].tolist()) == {3}
    faces = find_faces(sheet.yx, pairs[:, 0], pairs[:, 1])
    sizes = faces.size[(faces.area > 0)]
    assert set(sizes.tolist()) == {5, 6, 7}
    assert abs(int(np.sum(sizes == 5)) - int(np.sum(sizes == 7))) <= 1
    assert sheet.marks[0].angle_deg == pytest.approx(21.79)


@pytest.mark.parametrize("variant", range(16))
def test_grains_are_not_strained_by_their_boundary(variant):
    """Grains take the distance at which they do not pull at each other: their lattice constant is graphene's."""
    strip = boundary(variant)
    bonds = cKDTree(strip.yx).query(strip.yx, k=4)[0][:, 1:].mean(axis=1)
    beside = (np.abs(strip.yx[:, 1]) > 4.0) & (np.abs(strip.yx[:, 1]) < 8.0) & (np.abs(strip.yx[:, 0]) < 38.0)
    assert bonds[beside].mean() == pytest.approx(1.0, abs=0.003)


def test_random_specimens_keep_their_distance_and_repeat(rng):
    for material in ("graphene", "WS2"):
        one = random_specimen(material, 4.0, np.random.default_rng(5))
        two = random_specimen(material, 4.0, np.random.default_rng(5))
        np.testing.assert_array_equal(one.atoms.positions, two.atoms.positions)
    several = random_specimen("graphene", 6.0, rng, density_per_nm2=0.4, pristine_probability=0.0,
                              boundary_probability=0.0)
    centers = np.array([d.center_nm for d in several.defects])
    assert len(centers) > 5
    assert cKDTree(centers).query(centers, k=2)[0][:, 1].min() > 0.7
    assert (
        random_specimen("graphene", 3.0, rng, pristine_probability=1.0, boundary_probability=0.0).defects
        == ()
    )
    only = random_specimen("graphene", 5.0, rng, kinds=["SV"], density_per_nm2=0.3, pristine_probability=0.0)
    assert {d.name for d in only.defects} == {"SV"}
