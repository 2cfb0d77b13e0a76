"""Inverted and cut off images: seen, said, and where possible put right."""

from __future__ import annotations

import numpy as np
import pytest

from stemdl_core import Frame, analyze_frame, load_model
from stemdl_core.contrast import dark_atoms
from stemdl_core.lattice import fit_lattice
from stemdl_core.materials import get_material
from stemdl_core.preprocess import mend
from stemdl_core.saturation import cut_off, restored
from stemdl_core.simulate.dataset import Conditions, simulate_frame
from stemdl_core.simulate.degrade import Detector
from stemdl_core.simulate.imaging import Probe, Scan, render
from stemdl_core.simulate.structures import add_defect, graphene

PIXEL_NM = 0.012
GRAPHENE = get_material("graphene")


def picture(rng, kind="Si3C6", dose=400.0, turn=9.0):
    specimen = add_defect(graphene(fov_nm=2.8, rotation_deg=turn), kind, (1.4, 1.4), rng=rng)
    return simulate_frame(specimen, Conditions(pixel_nm=PIXEL_NM, detector=Detector(dose)), rng)


def seen_dark(image) -> bool:
    fit = fit_lattice(image, material=GRAPHENE, nominal_pixel_size_nm=PIXEL_NM)
    assert fit is not None
    return dark_atoms(image, fit, shape=image.shape)


@pytest.mark.parametrize("kind", ["Si3C6", "V4", "DV(5-8-5)"])
def test_dark_atoms_are_told_from_bright_ones(kind):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        image = picture(rng, kind, turn=float(rng.uniform(0, 60))).frame.image
        assert not seen_dark(image)
        assert seen_dark(-image)


def test_two_layers_in_bernal_stacking_are_no_honeycomb(rng):
    """Every second atom of one layer lies over one of the other: bright spots in a triangular net."""
    yx = graphene(fov_nm=2.8, rotation_deg=9.0).yx_nm
    middle = int(np.argmin(np.hypot(*(yx - 1.4).T)))
    bond = yx[np.argsort(np.hypot(*(yx - yx[middle]).T))[1]] - yx[middle]
    both = np.concatenate([yx, yx + bond])
    side = int(2.8 / PIXEL_NM)
    density = render(both, np.ones(len(both)), scan=Scan.regular((side, side), PIXEL_NM), probe=Probe())
    assert seen_dark(rng.poisson(density * PIXEL_NM**2 * 400).astype(np.float32))


def test_an_inverted_image_is_said_to_be_one(rng):
    frame = picture(rng).frame
    model = load_model("graphene")
    found = analyze_frame(Frame(-frame.image, frame.pixel_size), model)
    assert sum("inverted" in w for w in found.warnings) == 1
    assert not any("inverted" in w for w in analyze_frame(frame, model).warnings)


@pytest.mark.parametrize(("kind", "percent"), [("Si-C3", 99.7), ("Si-C4", 99.5), ("Si3C6", 99.0), ("Si3C6", 98.0),
                                               ("Si2C6", 98.5)])
def test_defects_keep_their_names_where_the_image_is_cut_off(kind, percent):
    model = load_model("graphene")
    for seed in range(3):
        s = picture(np.random.default_rng(seed), kind)
        image = np.minimum(s.frame.image, np.percentile(s.frame.image, percent))
        found = analyze_frame(Frame(image, s.frame.pixel_size), model)
        assert [d.name for d in found.defects] == [kind]
        assert any("cut off" in w for w in found.warnings)
        silicon = s.sites.yx_px[s.sites.species == "Si"]
        placed = found.sites.yx_px[found.sites.species == "Si"]
        off = np.hypot(*(placed[:, None] - silicon).transpose(2, 0, 1)).min(axis=0) * PIXEL_NM
        assert off.max() < (0.02 if percent >= 99 else 0.05)


def test_ordinary_images_are_not_cut_off(rng):
    assert cut_off(rng.poisson(0.4, (128, 128)).astype(np.float32)) is None  # few counts: many pixels share the highest
    assert cut_off(rng.normal(size=(128, 128)).astype(np.float32)) is None
    for dose in (20.0, 400.0):
        image = picture(rng, dose=dose).frame.image
        assert cut_off(image) is None
        assert mend(image).cut_off == 0.0
    assert cut_off(np.minimum(rng.normal(size=(64, 64)), -1.0)) is None  # nearly all of it: no image that was cut off


def test_round_tops_rise_above_the_rest_and_keep_apart():
    y, x = np.mgrid[:60, :60]
    spots = np.exp(-((y - 30) ** 2 + (x - 20) ** 2) / 60) + np.exp(-((y - 30) ** 2 + (x - 38) ** 2) / 60)
    flat = np.minimum(spots, 0.5).astype(np.float32)
    cut = cut_off(flat)
    assert cut is not None
    assert cut[30, 20]
    assert cut[30, 38]
    assert not cut[5, 5]
    image = restored(flat, cut)
    assert np.array_equal(image[~cut], flat[~cut])
    tops = image[30, 15:44]
    assert abs(int(np.argmax(tops[:14])) + 15 - 20) <= 1
    assert abs(int(np.argmax(tops[14:])) + 29 - 38) <= 1
    assert image[30, 29] < 0.9 * image[30, 20]
    assert image.max() < 2.1 * flat.max()
