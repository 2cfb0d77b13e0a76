"""Dichalcogenides: sublattices, elements by a mixture model, vacancies, composition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specimen_sites import PIXEL_NM, graph_of, observed

from stemdl_core.calibration import PixelSize
from stemdl_core.colouring import alike, coloured_parts, two_colour
from stemdl_core.columns import name_component
from stemdl_core.defects import find_defects
from stemdl_core.detectors import all_detectors
from stemdl_core.graph import AtomGraph, build_graph
from stemdl_core.materials import get_material
from stemdl_core.mixture import fit_mixture
from stemdl_core.mx2 import alloy_fractions
from stemdl_core.refine import refine_sites
from stemdl_core.simulate.imaging import Probe, Scan, render
from stemdl_core.simulate.structures import add_defect, mx2, random_specimen
from stemdl_core.sites import Sites


def test_mixture_finds_the_number_of_components_and_a_single_odd_column(rng):
    sigma = np.full(300, 0.05)
    one = fit_mixture(1.0 + rng.normal(0, 0.07, 300), sigma)
    assert len(one.mean) == 1
    value = np.concatenate([rng.normal(1.0, 0.06, 240), rng.normal(2.4, 0.08, 60)])
    two = fit_mixture(value, sigma)
    assert len(two.mean) == 2
    assert sorted(two.weight) == pytest.approx([0.2, 0.8], abs=0.02)
    single = np.append(rng.normal(1.0, 0.05, 299), 0.5)
    rare = fit_mixture(single, sigma)
    assert len(rare.mean) == 2
    assert rare.posterior.argmax(axis=1)[-1] == rare.mean.argmin()


def test_components_are_named_by_their_brightness():
    host = get_material("MoSe2")
    assert name_component(2.5, host, on_metal=True, dopant=None)[0] == "W_Mo"
    assert name_component(0.37, host, on_metal=True, dopant="V")[0] == "V_Mo"
    assert name_component(0.5, host, on_metal=False, dopant=None)[0] == "V_Se"
    # Contrast alone does not tell titanium from vanadium: the rival is listed.
    name, _, rivals = name_component(0.36, host, on_metal=True, dopant="")
    assert {name, *(n for n, _ in rivals)} >= {"V_Mo", "Ti_Mo"}
    assert name_component(9.0, host, on_metal=True, dopant=None)[0] == "unknown"


def test_speckled_dirt_makes_few_elements():
    """Dirt adds to columns of both sublattices; elements and vacancies make one of them scatter."""
    false = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        specimen = random_specimen("MoS2", 6.0, rng, kinds={"V_S": 1.0}, density_per_nm2=0.25)
        sites, shape = observed(specimen, rng, intensity_noise=0.06)
        yx = np.stack([sites.y_px, sites.x_px], axis=1) * PIXEL_NM
        patch = np.hypot(*(yx - 2.0).T) < 0.9
        dirt = np.where(patch, np.abs(rng.normal(0, 0.3 * np.median(sites.intensity), len(sites))), 0.0)
        found = find_defects(graph_of(sites.replace(intensity=sites.intensity + dirt), shape, "MoS2"))
        false += sum(d.name != "V_S" for d in found)
    # Some eighty, if every column is taken by itself.
    assert false < 42


@pytest.mark.parametrize("kind", ["W_Mo", "V_Se", "V_Se2", "Se2_Mo"])
def test_single_defects_of_mose2(kind, rng):
    specimen = add_defect(mx2(material="MoSe2", fov_nm=5.0, rotation_deg=11.0), kind, (2.5, 2.5), rng=rng)
    sites, shape = observed(specimen, rng, noise_pm=8.0, intensity_noise=0.05)
    (found,) = find_defects(graph_of(sites, shape, "MoSe2"))
    listed = {found.name, *(n for n, _ in found.alternatives)}
    assert kind in listed
    truth = specimen.defects[0]
    assert np.hypot(*((np.array(found.center_px) + 0.5) * PIXEL_NM - truth.center_nm)) < 0.03
    if found.name == kind:
        assert dict(found.composition) == dict(truth.composition)
        assert found.missing_atoms == truth.missing_atoms


def test_pristine_monolayers_have_no_defect(rng):
    for material in ("MoS2", "MoSe2", "WS2", "WSe2"):
        for k in range(4):
            sites, shape = observed(
                mx2(material=material, fov_nm=5.0, rotation_deg=17.0 * k),
                rng,
                noise_pm=8.0,
                intensity_noise=0.07,
            )
            assert len(find_defects(graph_of(sites, shape, material))) == 0


def test_alloy_fraction_with_its_error_bar():
    """x about 0.18 of tungsten in MoSe2, as in Mo(1-x)W(x)Se2 of the paper."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(12):
        specimen = mx2(material="MoSe2", fov_nm=6.0, rotation_deg=float(rng.uniform(0, 60)))
        numbers = specimen.atoms.numbers
        metal = np.flatnonzero(numbers == 42)
        numbers[rng.permutation(metal)[: round(0.18 * len(metal))]] = 74
        specimen.atoms.numbers = numbers
        sites, shape = observed(specimen, rng, noise_pm=8.0, intensity_noise=0.08)
        x, sigma = alloy_fractions(graph_of(sites, shape, "MoSe2"))["W"]
        assert 0.01 < sigma < 0.05
        inside += abs(x - 0.18) < 2 * sigma
    assert inside >= 10


def test_random_alloys_with_a_named_dopant():
    rng = np.random.default_rng(4)
    hits = false = missed = 0
    for _ in range(10):
        specimen = random_specimen(
            "MoSe2",
            5.0,
            rng,
            kinds={"W_Mo": 6, "V_Se": 3, "V_Se2": 1},
            density_per_nm2=1.0,
            pristine_probability=0.0,
        )
        sites, shape = observed(specimen, rng, noise_pm=8.0, intensity_noise=0.07)
        found = [(d.name, (np.array(d.center_px) + 0.5) * PIXEL_NM)
                 for d in find_defects(graph_of(sites, shape, "MoSe2"))]
        inside = [d for d in specimen.defects if min(d.center_nm) > 0.3 and max(d.center_nm) < 4.7]
        got = [any(n == d.name and np.hypot(*(at - d.center_nm)) < 0.1 for n, at in found) for d in inside]
        hits, missed = hits + sum(got), missed + len(got) - sum(got)
        false += sum(1 for n, at in found if not any(n == d.name and np.hypot(*(at - d.center_nm)) < 0.1
                                                     for d in specimen.defects))
    assert hits > 100
    assert hits / (hits + missed) >= 0.97
    assert hits / (hits + false) >= 0.97


def lattice(side_nm: float, angle: float = 0.0, mirror: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Columns of a selenide around the origin: positions (N, 2) [nm] and which are metal (N,)."""
    a, n = 0.3287, int(2 * side_nm / 0.3287)
    i, j = (v.ravel() for v in np.meshgrid(np.arange(-n, n), np.arange(-n, n)))
    metal = np.stack([j * a * 3**0.5 / 2, i * a + j * a / 2], axis=1)
    yx = np.concatenate([metal, metal + [a / (2 * 3**0.5), a / 2]])
    if mirror:
        yx = yx * [-1.0, 1.0]
    c, s = np.cos(angle), np.sin(angle)
    yx = yx @ np.array([[c, -s], [s, c]])
    keep = np.all(np.abs(yx) < side_nm / 2, axis=1)
    return yx[keep], np.repeat([True, False], len(metal))[keep]


def selenide(yx: np.ndarray, intensity: np.ndarray, material: str, rng: np.random.Generator, *,
             noise: float = 0.07) -> AtomGraph:
    """Graph of columns of given brightness, measured with an error."""
    pixel, corner = 0.01, yx.min(axis=0)
    measured = intensity * (1 + noise * rng.standard_normal(len(yx)))
    px = (yx - corner + rng.normal(0, 0.006, yx.shape)) / pixel
    host = get_material(material)
    sites = Sites.from_columns(y_px=px[:, 0], x_px=px[:, 1], species=np.full(len(yx), host.species[0]),
                               intensity=measured, intensity_sigma=np.full(len(yx), noise))
    shape = tuple(int(v) for v in np.ceil(px.max(axis=0)) + 1)
    return build_graph(sites, material=host, pixel_size=PixelSize(pixel), shape=shape)


def low_angle_wse2(rng: np.random.Generator, *, tilt: float) -> tuple[np.ndarray, ...]:
    """Se2 1.14 times as bright as W, one Se 0.31 of Se2, a light dopant 0.3 of W; tilt dims the pairs alone."""
    yx, metal = lattice(8.0, 0.3)
    wave = 1 + tilt * np.sin(2 * np.pi * yx[:, 0] / 5.0) * np.cos(2 * np.pi * yx[:, 1] / 6.0)
    intensity = np.where(metal, 1.0, 1.14 * wave)
    lone = ~metal & (rng.random(len(yx)) < 0.05)
    dopant = metal & (rng.random(len(yx)) < 0.012)
    intensity[lone], intensity[dopant] = 0.31 * 1.14, 0.30
    return yx, metal, intensity, lone, dopant


def test_selenium_pairs_brighter_than_tungsten_are_still_selenium(rng):
    for tilt in (0.12, 0.18):
        yx, metal, intensity, lone, dopant = low_angle_wse2(rng, tilt=tilt)
        graph = selenide(yx, intensity, "WSe2", rng)
        columns = graph.columns
        assert np.array_equal(columns.metal, metal)
        assert columns.confidence > 0.75
        found = columns.kind == "V_Se"
        assert np.mean(found[lone]) > 0.95
        assert np.sum(found & ~lone) <= 0.05 * lone.sum()
        assert np.all(columns.kind[dopant] != "")
        assert np.all(np.char.endswith(columns.kind[dopant], "_W"))


def test_the_columns_of_each_sublattice_are_a_group_of_the_fit(rng):
    """A column's height is surer where its neighbours are known to be typical, each of its own sublattice."""
    yx, metal = lattice(4.0, 0.3)
    yx = yx - yx.min(axis=0) + 0.3
    groups = alike(yx, 0.19)
    assert len(np.unique(groups)) == 2
    assert np.array_equal(groups == groups[np.flatnonzero(metal)[0]], metal)
    assert len(np.unique(alike(np.concatenate([yx, yx + [9.0, 0.0], [[30.0, 30.0]]]), 0.19))) == 5
    pixel = 0.01
    shape = tuple(int((yx[:, k].max() + 0.3) / pixel) for k in (0, 1))
    dose = np.where(metal, 250.0, 120.0)
    mean = pixel**2 * render(yx, dose, scan=Scan.regular(shape, pixel), probe=Probe(0.05, 0.11, 0.35))
    inner = np.all((yx > 0.6) & (yx < np.array(shape) * pixel - 0.3), axis=1) & ~metal
    spread = []
    for labels in (None, groups):
        found = [refine_sites(np.random.default_rng(k).poisson(mean).astype(np.float32), *(yx / pixel - 0.5).T,
                              pixel_size_nm=pixel, groups=labels).amplitude[inner] for k in range(3)]
        spread.append(np.mean([np.std(a) / np.mean(a) for a in found]))
    assert spread[1] < 0.93 * spread[0]


def test_a_sloping_detector_makes_no_alloy_of_a_small_torn_sheet(rng):
    """Half as bright again from left to right, two pieces of fifty columns a sublattice: too few for local means."""
    yx, metal = lattice(3.4, 0.2)
    keep = np.abs(yx[:, 0]) > 0.35
    yx, metal = yx[keep], metal[keep]
    slope = 1 + 0.25 * yx[:, 1] / 1.7
    even = selenide(yx, np.where(metal, 0.71, 1.0), "MoSe2", rng, noise=0.03)
    pieces = np.bincount(coloured_parts(yx, np.stack([even.bonds.a, even.bonds.b], 1))[1])
    assert (pieces > 60).sum() == 2
    sloping = selenide(yx, np.where(metal, 0.71, 1.0) * slope, "MoSe2", rng, noise=0.03)
    for graph in (even, sloping):
        assert np.array_equal(graph.columns.metal, metal)
        assert np.all(graph.columns.kind == "")
    # An alloy on the one side and a slope are not the same: one sublattice differs, or both.
    tungsten = metal & (yx[:, 1] > 0.4)
    mixed = selenide(yx, np.where(metal, 0.71, 1.0) * np.where(tungsten, 1.85, 1.0), "MoSe2", rng, noise=0.03)
    assert np.array_equal(mixed.columns.kind == "W_Mo", tungsten)


def test_atoms_of_dirt_on_most_of_a_sheet_are_no_elements_and_hide_none():
    """Single atoms beside columns: brighter, and off their sites. Tungsten is on its site, and found all the same."""
    false = found = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        specimen = mx2(material="MoS2", fov_nm=6.0)
        for place in rng.uniform(0.8, 5.2, (3, 2)):
            specimen = add_defect(specimen, "W_Mo", tuple(place), rng=rng)
        sites, shape = observed(specimen, rng, intensity_noise=0.06)
        yx = (sites.yx_px + 0.5) * PIXEL_NM
        bright = 0.55 * float(np.median(sites.intensity))
        hit = (rng.random(len(sites)) < 0.35) & (yx[:, 0] < 3.6)
        offset = rng.normal(0, 0.05, (len(sites), 2)) * hit[:, None]
        more = np.where(hit, bright * np.exp(-0.5 * (np.hypot(*offset.T) / 0.07) ** 2), 0.0)
        moved = sites.yx_px + offset / PIXEL_NM * (more / (more + sites.intensity))[:, None]
        dirty = sites.replace(y_px=moved[:, 0], x_px=moved[:, 1], intensity=sites.intensity + more)
        named = find_defects(graph_of(dirty, shape, "MoS2"))
        true = [np.array(d.center_nm) for d in specimen.defects]
        right = [any(d.name == "W_Mo" and np.hypot(*((np.array(d.center_px) + 0.5) * PIXEL_NM - c)) < 0.1
                     for d in named) for c in true]
        found += sum(right)
        false += len(named) - sum(right)
    assert found >= 10
    # Of 700 columns with dirt; where position and surroundings are not looked at, 190 of them have a name.
    assert false <= 60


@pytest.mark.parametrize(("material", "ratio"), [("WSe2", 1.73), ("MoSe2", 0.71), ("MoS2", 2.5), ("WS2", 6.0)])
def test_pristine_sheets_follow_the_usual_detector(material, ratio, rng):
    yx, metal = lattice(5.0, 0.2)
    graph = selenide(yx, np.where(metal, ratio, 1.0), material, rng)
    assert np.array_equal(graph.columns.metal, metal)
    assert not graph.columns.warnings
    assert np.all(graph.columns.kind == "")


def test_where_nothing_tells_the_sublattices_apart_the_user_is_told(rng):
    yx, metal = lattice(5.0, 0.2)
    graph = selenide(yx, np.where(metal, 1.0, 1.0), "WSe2", rng)
    assert graph.columns.confidence < 0.75
    assert any("interchanged" in line for line in graph.columns.warnings)


@pytest.mark.parametrize(("ratio", "doubtful"), [(0.9, True), (1.73, False)])
def test_what_a_defect_is_if_the_sublattices_are_interchanged_is_listed_where_they_may_be(ratio, doubtful, rng):
    yx, metal = lattice(5.0, 0.2)
    intensity = np.where(metal, ratio, 1.0)
    inner = np.flatnonzero(np.hypot(*(yx - yx.mean(axis=0)).T) < 1.5)
    faint, missing = inner[~metal[inner]][0], inner[~metal[inner]][-1]
    intensity[faint] = 0.5
    keep = np.arange(len(yx)) != missing
    graph = selenide(yx[keep], intensity[keep], "WSe2", rng)
    found = {d.name: d for d in find_defects(graph)}
    if doubtful:
        (one,) = [d for d in found.values() if d.missing_atoms < 2 and not d.name.startswith("vac")]
        (gone,) = [d for d in found.values() if d is not one]
        assert {one.name, *dict(one.alternatives)} == {"V_Se", "Mo_W"}
        assert {gone.name, *dict(gone.alternatives)} == {"V_Se2", "vac_W"}
        for defect in (one, gone):
            assert defect.probability < 0.75
            assert 0.15 < sum(dict(defect.alternatives).values()) < defect.probability
    else:
        assert set(found) == {"V_Se", "V_Se2"}
        assert not any(d.alternatives for d in found.values())
        assert min(d.probability for d in found.values()) > 0.8


def test_half_alloyed_selenide_and_missing_pairs_do_not_turn_the_sublattices(rng):
    yx, metal = lattice(6.0, 0.1)
    intensity = np.where(metal, 0.71, 1.0)
    intensity[metal & (rng.random(len(yx)) < 0.5)] = 1.8
    keep = metal | (rng.random(len(yx)) > 0.04)
    graph = selenide(yx[keep], intensity[keep], "MoSe2", rng)
    assert np.array_equal(graph.columns.metal, metal[keep])
    assert 0.4 < alloy_fractions(graph)["W"][0] < 0.6


@pytest.mark.parametrize("angle_deg", [60.0, 18.0])
def test_both_grains_of_a_boundary_are_assigned(angle_deg, rng):
    upper, metal_upper = lattice(12.0)
    lower, metal_lower = lattice(12.0, np.radians(angle_deg))
    lower = lower + [0.02, 0.1]
    one, two = np.all(np.abs(upper) < 3.0, axis=1) & (upper[:, 0] < 0), np.all(np.abs(lower) < 3.0, axis=1)
    two &= lower[:, 0] > 0.08
    yx, metal = np.concatenate([upper[one], lower[two]]), np.concatenate([metal_upper[one], metal_lower[two]])
    graph = selenide(yx, np.where(metal, 0.71, 1.0), "MoSe2", rng)
    far = np.abs(yx[:, 0]) > 0.4
    assert np.mean(graph.columns.metal[far] == metal[far]) >= 0.99


@settings(max_examples=12, deadline=None)
@given(st.floats(0.2, 5.0), st.booleans())
def test_brightness_unit_and_order_of_sites_change_nothing(gain, backwards):
    rng = np.random.default_rng(3)
    yx, metal = lattice(3.0, 0.4)
    order = np.arange(len(yx))[::-1] if backwards else np.arange(len(yx))
    plain = selenide(yx, np.where(metal, 0.71, 1.0), "MoSe2", rng, noise=0.0)
    sites = plain.sites.select(order)
    sites = sites.replace(intensity=sites.intensity * gain, species=np.full(len(sites), "Mo"))
    other = build_graph(sites, material=plain.material, pixel_size=plain.pixel_size, shape=plain.shape)
    assert np.array_equal(other.columns.metal, plain.columns.metal[order])


def test_detectors_cover_what_is_measured():
    """Se2 over W from 0.6 (usual) to 1.9 (low angles), one Se from a half to less than a third of Se2."""
    d = all_detectors()
    ratio, single = d.pair("Se") / d.one("W"), d.one("Se") / d.pair("Se")
    assert ratio.min() < 0.6 < 1.4 < ratio.max()
    assert single.min() < 0.32
    assert single.max() < 0.58
    assert d.prior.sum() == pytest.approx(1.0)


def test_colours_alternate_along_the_most_natural_bonds():
    pairs = np.array([[0, 1], [1, 2], [2, 3], [0, 2]])
    colour, part = two_colour(4, pairs, np.array([0.0, 0.0, 0.0, 1.0]))
    assert colour.tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert np.all(part == 0)
