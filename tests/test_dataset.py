"""Simulated frames: the truth is where the image says, under every disturbance."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from stemdl_core.simulate.dataset import Conditions, Ranges, draw_conditions, simulate_frame, training_pair
from stemdl_core.simulate.degrade import Detector
from stemdl_core.simulate.imaging import Probe, column_intensity
from stemdl_core.simulate.structures import add_defect, graphene, mx2, random_specimen
from stemdl_core.targets import IGNORE

CLASSES = ("background", "lattice", "dopant", "vacancy", "masked")
BRIGHT = Conditions(pixel_nm=0.01, probe=Probe(0.035, 0.1, 0.0), detector=Detector(5000.0))


def offsets_pm(simulated, pixel_nm: float) -> np.ndarray:
    """Distance from each inner carbon's stated position to the centroid of its own peak [pm]."""
    image, result = simulated.frame.image.astype(float), []
    for y, x in simulated.sites.yx_px[~simulated.sites.edge]:
        r, c = round(y), round(x)
        patch = image[r - 5:r + 6, c - 5:c + 6]
        patch = np.clip(patch - patch.min() - 0.25 * np.ptp(patch), 0, None)
        rows, columns = np.indices(patch.shape) - 5
        result.append((1e3 * pixel_nm * (r + (rows * patch).sum() / patch.sum() - y),
                       1e3 * pixel_nm * (c + (columns * patch).sum() / patch.sum() - x)))
    return np.array(result)


@pytest.mark.parametrize("changes", [
    {}, {"jitter_nm": 0.010}, {"drift_nm": (0.06, -0.05)}, {"flyback_nm": 0.012}, {"ripple_nm": 0.012},
    {"strain": ((1.02, 0.01), (-0.01, 0.98))}, {"thermal_nm": 0.006},
], ids=lambda c: next(iter(c), "still"))
def test_truth_moves_with_the_pixels(rng, changes):
    conditions = replace(BRIGHT, **changes)
    simulated = simulate_frame(graphene(fov_nm=2.5, rotation_deg=13.0), conditions, rng)
    off = offsets_pm(simulated, 0.01)
    assert len(off) > 100
    assert np.sqrt((off**2).mean()) < 5.0
    assert np.abs(off.mean(axis=0)).max() < 1.0
    assert simulated.visible.all()


def test_truth_is_never_rounded(rng):
    simulated = simulate_frame(graphene(fov_nm=2.0, rotation_deg=7.0), BRIGHT, rng)
    fraction = simulated.sites.y_px % 1
    assert np.histogram(fraction, bins=5, range=(0, 1))[0].min() > 0.1 * len(fraction)


def test_defects_are_listed_with_their_atoms(rng):
    specimen = add_defect(graphene(fov_nm=3.0), "Si-C3", (1.5, 1.5), rng=rng)
    simulated = simulate_frame(specimen, BRIGHT, rng)
    (defect,) = simulated.defects
    assert defect.name == "Si-C3"
    species = simulated.sites.species[list(defect.site_ids)]
    assert sorted(species.tolist()) == ["C", "C", "C", "Si"]
    silicon = simulated.sites.yx_px[simulated.sites.species == "Si"][0]
    assert np.hypot(*(silicon - simulated.centers_px[0])) * 0.01 < 0.03
    cell = tuple(np.round(silicon).astype(int))
    assert simulated.frame.image[cell] > 2 * np.median(simulated.frame.image[::3, ::3]) + 1
    assert json.loads(json.dumps(simulated.truth()))["defects"][0]["name"] == "Si-C3"


def test_contamination_and_vacuum_are_part_of_the_truth(rng):
    conditions = replace(BRIGHT, contamination=0.4, contamination_strength=4.0, vacuum=0.2)
    simulated = simulate_frame(graphene(fov_nm=4.0), conditions, rng)
    assert 0.1 < (simulated.hidden == 1).mean() < 0.9
    assert 0 < simulated.visible.mean() < 1
    small, target = training_pair(simulated, classes=CLASSES, model_pixel_nm=0.02, radius_nm=0.03,
                                  vacancy_radius_nm=0.045, host=("C",))
    assert small.shape == target.shape == (200, 200)
    assert (target == 4).mean() > 0.1
    assert (target == IGNORE).any()
    assert (target == 1).any()


def test_mx2_columns_hold_two_chalcogens(rng):
    simulated = simulate_frame(mx2(material="MoSe2", fov_nm=3.0), BRIGHT, rng)
    metal = simulated.sites.intensity[simulated.sites.species == "Mo"]
    pair = simulated.sites.intensity[simulated.sites.species == "Se"]
    assert len(metal) == pytest.approx(len(pair), rel=0.2)
    selenium, molybdenum = column_intensity([34, 42])
    assert np.median(pair) / np.median(metal) == pytest.approx(2 * selenium / molybdenum, rel=0.01)


def test_the_same_seed_gives_the_same_frame():
    def one(seed: int):
        rng = np.random.default_rng(seed)
        conditions = draw_conditions(rng, Ranges(pixel_nm=(0.015, 0.02)))
        return simulate_frame(random_specimen("graphene", 2.0, rng), conditions, rng)

    first, again, other = one(5), one(5), one(6)
    assert np.array_equal(first.frame.image, again.frame.image)
    assert np.array_equal(first.sites.yx_px, again.sites.yx_px)
    same_shape = first.frame.image.shape == other.frame.image.shape
    assert not (same_shape and np.array_equal(first.frame.image, other.frame.image))


def test_light_dopants_count_as_lattice_for_the_network(rng):
    specimen = add_defect(graphene(fov_nm=2.0), "N-C3", (1.0, 1.0), rng=rng)
    simulated = simulate_frame(specimen, BRIGHT, rng)
    assert "N" in simulated.sites.species
    _, target = training_pair(simulated, classes=CLASSES, model_pixel_nm=0.02, radius_nm=0.03,
                              vacancy_radius_nm=0.045, host=("C",))
    assert not (target == 2).any()
