"""The ablation: each training lacks one ingredient and no other, and every model is measured on the same frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stemdl_core import bench_ablation
from stemdl_core.bench_ablation import SMALL, ablation, disturbed_frames, variants
from stemdl_core.recipes import RECIPES, Recipe, training_example
from stemdl_core.simulate.dataset import Ranges, draw_conditions, simulate_frame
from stemdl_core.simulate.structures import graphene
from stemdl_core.tuning import simulated_frames

TINY = replace(SMALL, filters=(8, 16), crop_px=64, n_train=16, n_validation=4, epochs=2, batch=8)


def test_without_tails_and_without_what_hides_nothing_else_is_missing() -> None:
    plain = variants(SMALL)
    assert next(iter(plain)) == "everything"
    ranges = [r.ranges for r in plain.values()]
    rng = np.random.default_rng(1)
    usual, tailless, clean = ([draw_conditions(rng, ranges[k]) for _ in range(60)] for k in (0, 2, 3))
    assert any(c.probe.tail_fraction for c in usual)
    assert not any(c.probe.tail_fraction for c in tailless)
    assert any(c.contamination or c.vacuum for c in tailless)
    assert not any(c.contamination or c.vacuum or c.second_layer for c in clean)
    assert any(c.jitter_nm for c in clean)


def test_labels_that_stay_show_the_same_image_with_other_labels() -> None:
    moved = variants(replace(SMALL, crop_px=64))["everything"]
    still = replace(moved, labels_move=False)
    different = 0
    for k in range(6):
        (image, label), (same, other) = training_example(moved, k), training_example(still, k)
        np.testing.assert_array_equal(image, same)
        different += int((label != other).any())
    assert different >= 2


def test_truth_that_stays_is_where_an_undisturbed_scan_shows_it() -> None:
    conditions = replace(draw_conditions(np.random.default_rng(0), Ranges(nuisance=0.0)), pixel_nm=0.02,
                         thermal_nm=0.0)
    drifting = replace(conditions, drift_nm=(0.0, 0.08))
    specimen = graphene(fov_nm=1.6)
    seen = [simulate_frame(specimen, c, np.random.default_rng(2), shape=(80, 80), truth_moves=moves).sites.yx_px
            for c, moves in ((conditions, True), (drifting, False), (drifting, True))]
    np.testing.assert_allclose(seen[1], seen[0])
    rms = np.sqrt(np.mean((seen[2][:50] - seen[0][:50]) ** 2))
    assert rms > 0.3


def test_recipes_say_what_was_left_out_and_nothing_where_nothing_was() -> None:
    assert "hiding" not in RECIPES["graphene"].to_dict()["ranges"]
    assert "labels_move" not in RECIPES["graphene"].to_dict()
    for recipe in variants(SMALL).values():
        assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_test_frames_are_the_same_for_all_models() -> None:
    one, other = (next(disturbed_frames(SMALL, 1)) for _ in range(2))
    np.testing.assert_array_equal(one.frame.image, other.frame.image)


@pytest.mark.slow
def test_table_has_both_kinds_of_positions_and_models_are_kept(tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    # Thresholds of a network that has learned nothing: there is none to choose.
    monkeypatch.setattr(bench_ablation, "finish_model", lambda folder, **_: None)
    monkeypatch.setattr(bench_ablation, "disturbed_frames", lambda recipe, count: simulated_frames(
        recipe.materials, count, seed=5, fov_nm=(1.5, 1.6), dose_e_per_atom=(200.0, 300.0)))
    told: list[int] = []
    settings = {"frames": 1, "recipe": TINY, "folder": tmp_path, "names": ["everything"], "workers": 1}
    table = ablation(progress=told.append, **settings)
    assert told == [1, 2]
    assert list(table["positions"]) == ["network", "refined"]
    assert table["site_F1"].between(0, 1).all()
    # Nothing is trained twice, and the same models give the same table.
    again = ablation(progress=told.append, **settings)
    assert told == [1, 2]
    assert again.equals(table)
