"""Dichalcogenides: sublattices, elements by a mixture model, vacancies, composition."""

from __future__ import annotations

import numpy as np
import pytest
from specimen_sites import PIXEL_NM, graph_of, observed

from stemdl_core.columns import name_component
from stemdl_core.defects import find_defects
from stemdl_core.materials import get_material
from stemdl_core.mixture import fit_mixture
from stemdl_core.mx2 import alloy_fractions, local_composition
from stemdl_core.simulate.structures import add_defect, mx2, random_specimen


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


def test_local_composition_sees_a_cluster(rng):
    specimen = mx2(material="MoSe2", fov_nm=6.0)
    numbers = specimen.atoms.numbers
    near = np.hypot(*(specimen.yx_nm - 3.0).T) < 0.8
    numbers[near & (numbers == 42)] = 74
    specimen.atoms.numbers = numbers
    sites, shape = observed(specimen, rng, intensity_noise=0.05)
    graph = graph_of(sites, shape, "MoSe2")
    fraction = local_composition(graph, "W", radius_nm=0.6)
    middle = np.hypot(*((sites.yx_px + 0.5) * PIXEL_NM - 3.0).T)
    assert fraction[middle < 0.2].min() == 1.0
    assert fraction[middle > 1.6].max() == 0.0
