"""Thin, smooth dirt hides nothing; rough dirt, a second layer and vacuum do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stemdl_core import Frame, analyze_frame, load_model, pipeline
from stemdl_core.in_sight import lattice_in_sight
from stemdl_core.lattice import fit_lattice
from stemdl_core.materials import get_material
from stemdl_core.simulate.dataset import Conditions, simulate_frame
from stemdl_core.simulate.degrade import Detector
from stemdl_core.simulate.structures import add_defect, graphene

PIXEL_NM = 0.014


def picture(rng, kind="V4", dose=500.0, **conditions):
    specimen = add_defect(graphene(fov_nm=4.5, rotation_deg=9.0), kind, (2.2, 2.2), rng=rng)
    return simulate_frame(specimen, Conditions(pixel_nm=PIXEL_NM, detector=Detector(dose), **conditions), rng)


def smooth_cover(image, rng, *, part=0.6):
    """Light of a layer without structure over half of the image, as electrons."""
    edge = gaussian_filter((np.arange(image.shape[1]) > 0.38 * image.shape[1]).astype(float), 12.0)
    return image + rng.poisson(np.broadcast_to(part * image.mean() * edge, image.shape))


@pytest.mark.parametrize("kind", ["V4", "DV(5-8-5)", "SW(55-77)", "Si-C4"])
def test_a_defect_under_thin_smooth_dirt_is_named(kind, rng):
    simulated = picture(rng, kind)
    image = smooth_cover(simulated.frame.image, rng)
    found = analyze_frame(Frame(image, simulated.frame.pixel_size), load_model("graphene"))
    assert [d.name for d in found.defects] == [kind]
    assert found.masked_fraction < 0.03


@pytest.mark.parametrize("conditions", [
    {"contamination": 0.4, "contamination_strength": 2.0},
    {"contamination": 0.4, "contamination_strength": 1.5, "contamination_smear_nm": 0.1},
    {"second_layer": 0.4}, {"vacuum": 0.3}])
def test_what_is_hidden_stays_hidden(conditions, monkeypatch):
    """Of all that the simulator calls hidden, and the network masks, next to nothing is taken for clear."""
    asked, cleared = 0, 0

    def watched(image, mask, fit, **rest):
        nonlocal asked, cleared
        seen = lattice_in_sight(image, mask, fit, **rest)
        rows, columns = ((np.arange(n) + 0.5) / n * full for n, full in zip(mask.shape, hidden.shape))
        there = hidden[np.ix_(rows.astype(int), columns.astype(int))]
        asked, cleared = asked + (mask & there).sum(), cleared + (seen & there).sum()
        return seen

    monkeypatch.setattr(pipeline, "lattice_in_sight", watched)
    for seed in range(3):
        simulated = picture(np.random.default_rng(seed), dose=300.0, **conditions)
        hidden = simulated.hidden == 1
        analyze_frame(simulated.frame, load_model("graphene"))
    assert asked > 1000
    assert cleared <= 0.002 * asked


def test_only_the_lattice_is_in_sight(rng):
    image = picture(rng, dose=2000.0).frame.image.astype(np.float32)
    fit = fit_lattice(image, material=get_material("graphene"), nominal_pixel_size_nm=PIXEL_NM)
    assert fit is not None
    mask = np.zeros(image.shape, bool)
    mask[:, :90] = True
    args = {"shape": image.shape, "pixel_nm": PIXEL_NM}
    assert lattice_in_sight(image, mask, fit, **args)[:, 5:85].mean() > 0.95
    rough = image.copy()
    rough[:, :100] += gaussian_filter(rng.normal(0, 8 * image.std(), image.shape), 3.5).astype(np.float32)[:, :100]
    assert not lattice_in_sight(rough, mask, fit, **args)[:, 15:75].any()
    empty = image.copy()
    empty[:, :100] = rng.normal(image.mean(), image.std(), (image.shape[0], 100))
    assert not lattice_in_sight(empty, mask, fit, **args)[:, 15:75].any()
    # Nothing to compare with, nothing asked for.
    assert not lattice_in_sight(image, np.ones_like(mask), fit, **args).any()
    assert not lattice_in_sight(image, np.zeros_like(mask), fit, **args).any()
