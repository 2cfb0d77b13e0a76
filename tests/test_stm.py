"""Pictures of tunnelling microscopes: what is in them, and that a network can be trained on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stemdl_core.cli import main
from stemdl_core.errors import StemdlError
from stemdl_core.evaluate import compare_sites
from stemdl_core.recipes import Recipe
from stemdl_core.simulate.stm import StmConditions, random_stm, simulate_stm
from stemdl_core.simulate.structures import add_defect, graphene, mx2
from stemdl_core.tuning import network_positions
from stemdl_core.weights import load_model

QUIET = {"white": 0.0, "pink": 0.0, "tilt": 0.0}


def height_at(image: np.ndarray, yx: np.ndarray) -> np.ndarray:
    cell = np.round(yx).astype(int)
    return image[cell[:, 0], cell[:, 1]]


def test_protrusions_are_high_and_vacancies_low(rng: np.random.Generator) -> None:
    specimen = add_defect(graphene(fov_nm=3.0, rotation_deg=7.0), "N-C3", (0.8, 0.8), rng=rng)
    specimen = add_defect(specimen, "SV", (2.2, 2.2), rng=rng)
    taken = simulate_stm(specimen, StmConditions(scattering=0.0, **QUIET), rng)
    image, sites = taken.frame.image, taken.sites
    host = sites.species == "C"
    usual = np.median(height_at(image, sites.yx_px[host]))
    spread = np.std(height_at(image, sites.yx_px[host & ~sites.edge]))
    assert height_at(image, sites.yx_px[~host])[0] > usual + 2 * spread
    assert height_at(image, taken.vacancies_px)[0] < usual - 2 * spread
    assert [d.name for d in taken.defects] == ["N-C3", "SV"]


def test_superstructure_has_three_times_the_cell(rng: np.random.Generator) -> None:
    turn = 11.0
    specimen = add_defect(graphene(fov_nm=6.0, rotation_deg=turn), "N-C3", (3.0, 3.0), rng=rng)

    def power(scattering: float) -> float:
        conditions = StmConditions(scattering=scattering, decay_nm=1.0, protrusion=0.0, **QUIET)
        image = simulate_stm(specimen, conditions, np.random.default_rng(1)).frame.image.astype(float)
        image = (image - image.mean()) / image.std()
        y, x = (conditions.pixel_nm * v for v in np.indices(image.shape))
        # Along the zigzag direction, at 1 / sqrt(3) of the lattice's own wave vector.
        wave = 2 / (3 * 0.246)
        angle = np.radians(turn)
        return abs((image * np.exp(-2j * np.pi * wave * (np.sin(angle) * y + np.cos(angle) * x))).mean())

    assert power(0.4) > 8 * power(0.0)


def test_noise_is_stronger_between_lines_than_along_them() -> None:
    specimen = graphene(fov_nm=3.0)
    calm = simulate_stm(specimen, StmConditions(**QUIET), np.random.default_rng(2)).frame.image
    conditions = StmConditions(white=0.0, pink=0.5, tilt=0.0)
    noise = simulate_stm(specimen, conditions, np.random.default_rng(2)).frame.image.astype(float)
    clean = (calm - calm.mean()) / calm.std()
    noise = (noise - noise.mean()) / noise.std()
    rest = noise - clean * (noise * clean).mean()
    assert np.diff(rest, axis=0).std() > 1.5 * np.diff(rest, axis=1).std()


def test_the_same_seed_gives_the_same_picture() -> None:
    first, second = (random_stm(2.5, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first.frame.image, second.frame.image)
    with pytest.raises(StemdlError, match="MoSe2"):
        simulate_stm(mx2(material="MoSe2", fov_nm=2.0), StmConditions(), np.random.default_rng(0))


def test_recipe_names_its_imaging_only_where_it_differs() -> None:
    plain = Recipe("x", ("graphene",), ("background", "lattice"))
    assert "imaging" not in plain.to_dict()
    other = Recipe.from_dict(plain.to_dict() | {"imaging": "stm"})
    assert Recipe.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    with pytest.raises(StemdlError, match="'stem' or 'stm'"):
        Recipe.from_dict(plain.to_dict() | {"imaging": "afm"})


def test_a_quickly_trained_network_finds_the_atoms(tmp_path: Path) -> None:
    recipe = {"name": "small", "materials": ["graphene"], "classes": ["background", "lattice", "dopant", "vacancy"],
              "architecture": "unet", "filters": [8, 12, 16], "crop_px": 64, "n_train": 240, "n_validation": 12,
              "epochs": 4, "batch": 8, "learning_rate": 1e-2, "class_weights": []}
    path = tmp_path / "small.json"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    folder = tmp_path / "model"
    assert main(["train", str(path), "--imaging", "stm", "--out", str(folder), "--quiet", "--workers", "1"]) == 0
    model = load_model(folder)
    assert model.card.recipe["imaging"] == "stm"
    hits = false = missed = 0
    for seed in range(6):
        taken = random_stm(2.5, np.random.default_rng([77, seed]))
        pixel = taken.conditions.pixel_nm
        found, _ = network_positions(model, taken.frame, pixel, lowest=model.card.thresholds["site"])
        counts = compare_sites(found, taken.sites.yx_px, counted=taken.visible, undefined=taken.hidden == 2,
                               within_px=0.06 / pixel, border_px=0.07 / pixel).counts
        hits, false, missed = hits + counts.hits, false + counts.false, missed + counts.missed
    assert 2 * hits / (2 * hits + false + missed) > 0.9
