"""What the network looks at: the maps point to the atom that was asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stemdl_core.cli import main
from stemdl_core.errors import StemdlError
from stemdl_core.explain import explain
from stemdl_core.simulate.dataset import Conditions, simulate_frame
from stemdl_core.simulate.degrade import Detector
from stemdl_core.simulate.structures import add_defect, graphene
from stemdl_core.weights import load_model


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(3)
    specimen = add_defect(graphene(fov_nm=2.4, rotation_deg=20.0), "Si-C3", (1.2, 1.2), rng=rng)
    return simulate_frame(specimen, Conditions(pixel_nm=2.4 / 160, detector=Detector(dose_e_per_atom=400.0)), rng,
                          shape=(160, 160))


def test_a_silicon_atom_is_seen_by_its_own_light(simulated):
    silicon = simulated.sites.yx_px[simulated.sites.species == "Si"][0]
    seen: list[int] = []
    result = explain(simulated.frame, load_model("graphene"), tuple(silicon + 3.0),
                     progress=lambda done, of: seen.append(done))
    assert (result.title, result.classes) == ("Si-C3", ("dopant",))
    assert result.probability > 0.6
    assert np.hypot(*(result.targets_px[0] - silicon)) < 2.0
    for values in (result.occlusion, result.saliency):
        row, column = np.unravel_index(np.argmax(values), values.shape)
        top, bottom, left, right = result.extent_px
        at = (top + (row + 0.5) / len(values) * (bottom - top), left + (column + 0.5) / len(values) * (right - left))
        # Within one and a half spots of the atom.
        assert np.hypot(*(np.array(at) - silicon)) * simulated.conditions.pixel_nm < 0.08
    assert result.half_radius_nm < 0.15
    assert seen == sorted(seen)
    json.dumps(result.to_dict())


def test_a_hole_is_explained_where_the_network_sees_it():
    rng = np.random.default_rng(8)
    specimen = add_defect(graphene(fov_nm=2.4, rotation_deg=20.0), "SV", (1.2, 1.2), rng=rng)
    s = simulate_frame(specimen, Conditions(pixel_nm=0.015, detector=Detector(dose_e_per_atom=400.0)), rng,
                       shape=(160, 160))
    result = explain(s.frame, load_model("graphene"), tuple(s.vacancies_px[0]))
    assert (result.title, result.classes) == ("SV", ("vacancy",))
    assert np.hypot(*(result.targets_px[0] - s.vacancies_px[0])) * 0.015 < 0.05


def test_places_without_anything_are_refused(simulated):
    model = load_model("graphene")
    with pytest.raises(StemdlError, match="not on the image"):
        explain(simulated.frame, model, (1.0, 500.0))
    with pytest.raises(StemdlError, match="not on the image"):
        explain(simulated.frame, model, (float("nan"), 1.0))


def test_the_command_writes_a_picture(simulated, tmp_path, capsys):
    np.save(tmp_path / "a.npy", simulated.frame.image)
    y, x = simulated.sites.yx_px[simulated.sites.species == "C"][60]
    arguments = ["explain", str(tmp_path / "a.npy"), "--fov-nm", "2.4", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--at", f"{y:.1f},{x:.1f}"]) == 0
    assert "half of what decides lies within" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"explain.png", "explain.json", "occlusion.npy",
                                                              "saliency.npy"}
    assert main([*arguments[:-1], str(tmp_path / "no"), "--at", "here"]) == 2
