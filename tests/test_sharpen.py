"""Smoothed images: the blur is read from the noise and undone; positions and errors are those of the raw image."""

from __future__ import annotations

import numpy as np
import pytest
from column_scenes import scene
from scipy.ndimage import gaussian_filter, median_filter, uniform_filter, zoom
from scipy.spatial import cKDTree

from stemdl_core import Frame, PixelSize, analyze_frame, load_model
from stemdl_core.materials import get_material
from stemdl_core.pipeline import detect
from stemdl_core.refine import refine_sites
from stemdl_core.refine.sharpen import undo_smoothing
from stemdl_core.simulate import degrade
from stemdl_core.simulate.dataset import Conditions, simulate_frame
from stemdl_core.simulate.imaging import Probe
from stemdl_core.simulate.structures import add_defect, graphene, mx2

PIXEL_NM = 0.015


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


@pytest.mark.parametrize("dose", [50, 1000])
@pytest.mark.parametrize("smoothing_pm", [16, 30])
def test_positions_and_errors_of_a_smoothed_image_are_those_of_the_raw_one(dose: float, smoothing_pm: float) -> None:
    raw_errors, errors, scores = [], [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        world = scene("lattice", dose, PIXEL_NM)
        image, start = world.image(rng), world.start(rng, 10.0)
        smooth = gaussian_filter(image.astype(np.float32), 1e-3 * smoothing_pm / PIXEL_NM)
        raw, found = (refine_sites(i, *start, pixel_size_nm=PIXEL_NM) for i in (image, smooth))
        assert raw.sharpened is None
        assert found.sharpened is not None
        raw_errors.append(world.errors_pm(raw.y_px, raw.x_px))
        errors.append(world.errors_pm(found.y_px, found.x_px))
        scores.append(errors[-1] / found.sigma_pm[world.judged, None])
    assert rms(np.array(errors)) < 1.12 * rms(np.array(raw_errors))
    assert 0.75 < rms(np.array(scores)) < 1.25


@pytest.mark.parametrize("how", ["reflect", "nearest", "cropped", "integer"])
def test_any_border_and_rounding(how: str, rng: np.random.Generator) -> None:
    world = scene("lattice", 200, PIXEL_NM)
    image, start = world.image(rng).astype(np.float64), world.start(rng, 10.0)
    width = 0.03 / PIXEL_NM
    if how == "cropped":
        smooth = gaussian_filter(np.pad(image, 15, mode="wrap"), width)[15:-15, 15:-15]
    else:
        smooth = gaussian_filter(image, width, mode="nearest" if how == "nearest" else "reflect")
    if how == "integer":
        smooth = np.round(4000 * (smooth - smooth.min()) / np.ptp(smooth))
    raw, found = (refine_sites(i, *start, pixel_size_nm=PIXEL_NM) for i in (image, smooth))
    errors = world.errors_pm(found.y_px, found.x_px)
    assert rms(errors) < 1.35 * rms(world.errors_pm(raw.y_px, raw.x_px))
    assert 0.65 < rms(errors / found.sigma_pm[world.judged, None]) < 1.3


@pytest.mark.parametrize("smoothing_nm", [0.015, 0.03])
def test_the_image_before_the_blur_is_had_back(smoothing_nm: float, rng: np.random.Generator) -> None:
    world = scene("lattice", 300, PIXEL_NM)
    image = world.image(rng).astype(np.float64)
    undone = undo_smoothing(gaussian_filter(image, smoothing_nm / PIXEL_NM), np.ones(image.shape, bool),
                            pixel_nm=PIXEL_NM)
    assert undone is not None
    # As a probe of 40 pm would see both: what is finer was given up.
    blurred, expected = (gaussian_filter(i, 0.04 / PIXEL_NM)[12:-12, 12:-12] for i in (undone.image, image))
    assert np.std(blurred - expected) < 0.05 * np.std(expected)
    # The variance that is stated is that of the raw image.
    assert undone.variance == pytest.approx(float(np.var(image - world.mean)), rel=0.35)


def test_an_image_that_was_not_smoothed_is_left_alone(rng: np.random.Generator) -> None:
    image = scene("lattice", 100, PIXEL_NM).image(rng)
    assert undo_smoothing(image, np.ones(image.shape, bool), pixel_nm=PIXEL_NM) is None


def sharp_and_small(rng: np.random.Generator, *, dose: float) -> Frame:
    """Two nanometres of a sharp image, whose lattice has wide peaks, from a slow detector that lost a line."""
    specimen = add_defect(graphene(fov_nm=2.0, rotation_deg=11.0), "SW(55-77)", (0.75, 1.1), rng=rng)
    detector = degrade.Detector(dose_e_per_atom=dose, afterglow=0.2)
    conditions = Conditions(pixel_nm=0.0157, detector=detector, probe=Probe(sigma_nm=0.035), dead_lines=1)
    return simulate_frame(specimen, conditions, rng).frame


@pytest.mark.parametrize("dose", [150.0, 400.0, 900.0])
def test_wide_peaks_of_a_small_lattice_are_no_blur(dose: float) -> None:
    for seed in range(3):
        frame = sharp_and_small(np.random.default_rng(seed), dose=dose)
        found = detect(frame, load_model("graphene"), material=get_material("graphene"), dopant="Si")
        assert found.refined is not None
        assert found.refined.sharpened is None
        # Were the lattice's own power taken for noise, ten to fifty times fewer.
        assert 0.6 * dose < found.refined.imaging.electrons_per_atom < 1.6 * dose
        assert [d.name for d in analyze_frame(frame, load_model("graphene")).defects] == ["SW(55-77)"]


@pytest.mark.parametrize("smoothing_nm", [0.016, 0.024, 0.032, 0.04])
def test_electrons_are_counted_in_smoothed_images(smoothing_nm: float) -> None:
    """Above the finest structure there is nothing, and its noise says nothing of how noise grows with brightness."""
    ratios = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        conditions = Conditions(pixel_nm=0.012, detector=degrade.Detector(dose_e_per_atom=200.0),
                                smoothing_px=smoothing_nm / 0.012)
        frame = simulate_frame(graphene(fov_nm=3.6, rotation_deg=11.0), conditions, rng).frame
        found = detect(frame, load_model("graphene"), material=get_material("graphene"), dopant="Si")
        assert found.refined is not None
        assert found.refined.sharpened is not None
        ratios.append(found.refined.imaging.electrons_per_atom / 200.0)
    known = [r for r in ratios if np.isfinite(r)]
    # The widest blur leaves too little to tell in some images, which then say nothing instead of ten times too many.
    assert smoothing_nm > 0.03 or len(known) == 4
    assert all(0.5 < r < (2.0 if smoothing_nm < 0.03 else 3.2) for r in known)


def test_pixels_left_out_do_not_spoil_the_blur(rng: np.random.Generator) -> None:
    world = scene("lattice", 200, PIXEL_NM)
    image = world.image(rng).astype(np.float64)
    # A bright and noisy patch of dirt, and a line that was lost afterwards.
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    patch = (rows - 30) ** 2 + (columns - 40) ** 2 < 20**2
    clean = float(np.var(image))
    image[patch] += image.std() * rng.normal(6.0, 1.5, int(patch.sum()))
    smooth = gaussian_filter(image, 0.03 / PIXEL_NM)
    smooth[70] = 0.0
    valid = ~patch
    valid[70] = False
    undone = undo_smoothing(smooth, valid, pixel_nm=PIXEL_NM)
    assert undone is not None
    assert 0.5 * clean < undone.variance < 2.0 * clean


def test_a_wide_blur_is_seen_beside_bright_dirt(rng: np.random.Generator) -> None:
    """Its flanks have power at all wave numbers, and the picture must not be changed under it."""
    conditions = Conditions(pixel_nm=0.02, detector=degrade.Detector(dose_e_per_atom=100.0))
    image = simulate_frame(graphene(fov_nm=4.8, rotation_deg=11.0), conditions, rng).frame.image.astype(np.float64)
    # Pixels of the noise that is to be found again.
    clean = float(np.mean(image))
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    away = np.hypot((rows - 120) / 2.5, columns - 150)
    image += rng.poisson(8.0 * clean * np.exp(-0.5 * (away / 12.0) ** 8))
    undone = undo_smoothing(gaussian_filter(image, 0.043 / 0.02, mode="nearest"), away > 22, pixel_nm=0.02)
    assert undone is not None
    sharp = undone.image
    assert 0.6 * clean < undone.variance < 1.6 * clean
    # No ringing: as quiet beside the dirt as far from it.
    assert sharp[(away > 22) & (away < 30)].std() < 1.3 * sharp[away > 40].std()


@pytest.mark.parametrize("kind", ["SV", "SW(55-77)"])
def test_defects_of_a_smoothed_image_are_named(kind: str, rng: np.random.Generator) -> None:
    specimen = add_defect(graphene(fov_nm=3.2, rotation_deg=11.0), kind, (1.6, 1.6), rng=rng)
    conditions = Conditions(pixel_nm=0.018, detector=degrade.Detector(dose_e_per_atom=200.0, readout_e=1.0),
                            smoothing_px=2.0)
    found = analyze_frame(simulate_frame(specimen, conditions, rng).frame, load_model("graphene"))
    assert [d.name for d in found.defects] == [kind]


def test_a_smoothed_dichalcogenide_keeps_its_vacancy_and_its_dopant(rng: np.random.Generator) -> None:
    specimen = mx2(material="MoSe2", fov_nm=4.0, rotation_deg=11.0)
    for kind, at in (("V_Se", (1.4, 1.5)), ("W_Mo", (2.6, 2.5))):
        specimen = add_defect(specimen, kind, at, rng=rng)
    conditions = Conditions(pixel_nm=0.018, detector=degrade.Detector(dose_e_per_atom=300.0, readout_e=1.0),
                            smoothing_px=2.0)
    found = analyze_frame(simulate_frame(specimen, conditions, rng).frame, load_model("mx2"), material="MoSe2")
    assert sorted(d.name for d in found.defects) == ["V_Se", "W_Mo"]


def low_pass(image: np.ndarray, pixel_nm: float) -> np.ndarray:
    """A Butterworth filter at 60 / nm."""
    frequency = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1]))
    return np.fft.irfft2(np.fft.rfft2(image) / (1 + (2 * np.pi * frequency / pixel_nm / 60.0) ** 8), s=image.shape)


@pytest.mark.parametrize("how", ["linear x 2", "cubic x 4", "box", "median", "Butterworth"])
def test_enlarged_and_filtered_images_keep_their_defects(how: str, rng: np.random.Generator) -> None:
    pixel, factor = 0.02, 1
    specimen = add_defect(graphene(fov_nm=3.2, rotation_deg=11.0), "SV", (1.6, 1.6), rng=rng)
    conditions = Conditions(pixel_nm=pixel, detector=degrade.Detector(dose_e_per_atom=200.0, readout_e=0.5))
    truth = simulate_frame(specimen, conditions, rng)
    image = truth.frame.image.astype(np.float64)
    if "x" in how.split():
        factor = int(how[-1])
        image = zoom(image, factor, order=1 if how.startswith("linear") else 3, grid_mode=True, mode="nearest")
    elif how == "Butterworth":
        image = low_pass(image, pixel)
    else:
        image = uniform_filter(image, 3) if how == "box" else median_filter(image, 3)
    size = PixelSize(pixel / factor, "metadata", pixel / factor)
    found = analyze_frame(Frame(image.astype(np.float32), size), load_model("graphene"))
    assert [d.name for d in found.defects] == ["SV"]
    yx = (truth.sites.yx_px + 0.5) * factor - 0.5
    distance, nearest = cKDTree(yx).query(found.sites.yx_px)
    error_pm = 1e3 * size.nm * (found.sites.yx_px - yx[nearest])
    judged = (1e3 * size.nm * distance < 50) & ~found.sites.edge
    assert 0.35 < 1.4826 * float(np.median(np.abs(error_pm / found.sites.sigma_pm[:, None])[judged])) < 1.4
