"""Bond lengths and angles of defects against the truth, and their stated errors, in images of 100 electrons an atom."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from stemdl_core import analyze_frame, load_model
from stemdl_core.simulate import degrade
from stemdl_core.simulate.dataset import Conditions, simulate_frame
from stemdl_core.simulate.imaging import Probe
from stemdl_core.simulate.structures import random_specimen

PIXEL_PM, DOSE, PROBE_PM = 8.0, 100.0, 40.0


@pytest.fixture(scope="module")
def measured() -> dict[str, np.ndarray]:
    """Errors, and errors over their stated standard deviations, of the bonds [pm] and angles [deg] of defects."""
    model = load_model("graphene")
    rows: dict[str, list[float]] = {"bond": [], "bond_z": [], "angle": [], "angle_z": []}
    probe = Probe(1e-3 * PROBE_PM, 3e-3 * PROBE_PM, 0.1)
    conditions = Conditions(pixel_nm=1e-3 * PIXEL_PM, probe=probe, jitter_nm=0.004, ripple_nm=0.006,
                            detector=degrade.Detector(dose_e_per_atom=DOSE))
    for k in range(10):
        rng = np.random.default_rng([5, k])
        specimen = random_specimen("graphene", 3.2, rng, boundary_probability=0.0, pristine_probability=0.0)
        s = simulate_frame(specimen, conditions, rng)
        found = analyze_frame(s.frame, model)
        true = s.sites.yx_px * 1e3 * found.pixel_size.nm
        distance, j = cKDTree(true).query(found.sites.yx_px * 1e3 * found.pixel_size.nm)
        known = (distance < 50) & ~found.sites.edge
        for defect in found.defects:
            for bond in defect.bonds:
                if known[[bond.a, bond.b]].all():
                    error = bond.length_pm - np.hypot(*(true[j[bond.a]] - true[j[bond.b]]))
                    rows["bond"].append(error)
                    rows["bond_z"].append(error / bond.sigma_pm)
            for angle in defect.angles:
                if known[[angle.a, angle.at, angle.b]].all():
                    one, other = true[j[angle.a]] - true[j[angle.at]], true[j[angle.b]] - true[j[angle.at]]
                    error = angle.deg - np.degrees(np.arccos(one @ other / np.hypot(*one) / np.hypot(*other)))
                    rows["angle"].append(error)
                    rows["angle_z"].append(error / angle.sigma_deg)
    return {name: np.array(values) for name, values in rows.items()}


def test_bond_lengths_are_as_good_as_the_counts(measured: dict[str, np.ndarray]) -> None:
    # Two lone columns of this probe and dose would be known to 4 pm along one axis, their distance to 5.7 pm.
    assert len(measured["bond"]) > 30
    assert np.sqrt((measured["bond"] ** 2).mean()) < 1.2 * np.sqrt(2) * PROBE_PM / np.sqrt(DOSE)
    assert abs(measured["bond"].mean()) < 2.0


def test_angles_are_within_a_few_degrees(measured: dict[str, np.ndarray]) -> None:
    assert len(measured["angle"]) > 30
    assert np.sqrt((measured["angle"] ** 2).mean()) < 4.4


def test_stated_errors_are_honest(measured: dict[str, np.ndarray]) -> None:
    assert 0.75 < measured["bond_z"].std() < 1.25
    assert 0.75 < measured["angle_z"].std() < 1.25
