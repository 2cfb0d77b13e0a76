"""Calculated images: hardly any noise, a probe that is no Gaussian, columns whose heights the sampling spoils."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft
from scipy.signal import resample

from stemdl_core import analyze_frame, load_model
from stemdl_core.calibration import PixelSize
from stemdl_core.frames import Frame
from stemdl_core.refine import refine_sites
from stemdl_core.refine.check import most_noise
from stemdl_core.simulate.structures import Specimen, add_defect, graphene, mx2

#: Place and kind of the defects of the field.
FIELD = (("SV", (0.9, 2.9)), ("SW(55-77)", (2.9, 2.9)), ("Si-C3", (0.9, 0.9)), ("DV(5-8-5)", (2.9, 1.0)),
         ("V4", (1.95, 1.95)))
NAMES = ["DV(5-8-5)", "SV", "SW(55-77)", "Si-C3", "V4"]


def calculated(specimen: Specimen, *, pixel_nm: float, source_pm: float = 60.0, aperture_mrad: float = 31.0,
               wavelength_pm: float = 4.87, uneven: float = 0.1, exponent: float = 1.7) -> np.ndarray:
    """(H, W) incoherent image of point-like atoms through an ideal lens, one carbon atom having the sum one.

    The transfer function is that of a round aperture (the autocorrelation of its disc). As usual, the probe is scanned
    in steps that just resolve it, and the image is interpolated by Fourier transforms, which rings at its borders; a
    potential sampled too coarsely makes heights depend on where between its pixels an atom is, by the share `uneven`.
    """
    margin, step = 0.6, 0.033
    side = round((float(specimen.shape_nm[0]) + 2 * margin) / step)
    k = 2 * np.pi * fft.fftfreq(side, step)
    atoms = specimen.atoms
    xy = atoms.positions[:, :2] / 10.0 + margin
    inside = ((xy > 0) & (xy < side * step)).all(axis=1)
    xy, z = xy[inside], atoms.numbers[inside]
    grid = 2 * np.pi * (xy / 0.009)
    height = (z / 6.0) ** exponent * (1 + uneven * 0.5 * (np.cos(grid[:, 0]) + np.cos(grid[:, 1])))
    spectrum = (np.exp(-1j * np.outer(k, xy[:, 1])) * height) @ np.exp(-1j * np.outer(xy[:, 0], k))
    q = np.hypot(k[:, None], k) / (2 * np.pi * 2 * aperture_mrad / wavelength_pm)
    q = np.minimum(q, 1.0)
    transfer = 2 / np.pi * (np.arccos(q) - q * np.sqrt(1 - q**2))
    source = np.exp(-0.5 * (source_pm / 2355.0) ** 2 * (k[:, None] ** 2 + k**2))
    image = fft.ifft2(spectrum * transfer * source).real
    cut = round(margin / step)
    image = image[cut:side - cut, cut:side - cut]
    size = round(len(image) * step / pixel_nm)
    return np.clip(resample(resample(image, size, axis=0), size, axis=1) * (len(image) / size) ** 2, 0, None)


@pytest.fixture(scope="module")
def field() -> Specimen:
    rng = np.random.default_rng(20171112)
    specimen = graphene(fov_nm=3.8, rotation_deg=13.0)
    for kind, at in FIELD:
        specimen = add_defect(specimen, kind, at, rng=rng)
    return specimen


def poisson(image: np.ndarray, electrons: float) -> np.ndarray:
    """Counts of so many electrons per carbon atom; the image itself if there is no end of them."""
    if np.isfinite(electrons):
        image = np.random.default_rng(1).poisson(electrons * image)
    return image.astype(np.float32)


@pytest.mark.parametrize(("electrons", "pixel_nm", "source_pm", "aperture_mrad"), [
    (np.inf, 0.006, 10.0, 31.0), (np.inf, 0.02, 90.0, 31.0), (1e7, 0.01, 30.0, 25.0), (1e6, 0.012, 50.0, 31.0),
    (1e6, 0.008, 70.0, 38.0), (1e5, 0.01, 40.0, 25.0), (1e5, 0.01, 40.0, 38.0), (1e4, 0.012, 60.0, 31.0),
])
def test_defects_of_calculated_images_are_found(field: Specimen, electrons: float, pixel_nm: float, source_pm: float,
                                                aperture_mrad: float) -> None:
    image = calculated(field, pixel_nm=pixel_nm, source_pm=source_pm, aperture_mrad=aperture_mrad)
    found = analyze_frame(Frame(poisson(image, electrons), PixelSize(pixel_nm, "metadata", pixel_nm)),
                          load_model("graphene"))
    assert sorted(d.name for d in found.defects) == NAMES
    assert all(d.probability > 0.9 for d in found.defects)


@pytest.mark.parametrize("uneven", [0.1, 0.4])
@pytest.mark.parametrize("electrons", [1e3, 1e4, 1e5])
def test_many_electrons_are_counted(field: Specimen, electrons: float, uneven: float) -> None:
    """What the specimen shows, falling off with the wave number, is neither blurred noise nor damaged pixels."""
    image = poisson(calculated(field, pixel_nm=0.01, source_pm=40.0, aperture_mrad=38.0, uneven=uneven), electrons)
    xy = field.atoms.positions[:, :2] / 10.0 / 0.01
    xy = xy[((xy > -0.5) & (xy < len(image) - 0.5)).all(axis=1)]
    imaging = refine_sites(image, xy[:, 1], xy[:, 0], pixel_size_nm=0.01).imaging
    assert imaging is not None
    assert 0.4 * electrons < imaging.electrons_per_atom < 1.5 * electrons
    assert imaging.misfit < 1.6


def test_scattered_heights_bound_the_noise(rng: np.random.Generator) -> None:
    # An isolated column's height is known to sqrt(v / pi) / sigma (Cramer-Rao).
    sigma, variance = 3.0, 0.04
    height = 1.0 + np.sqrt(variance / np.pi) / sigma * rng.standard_normal(4000)
    labels = np.zeros(4000, dtype=np.intp)
    everything = np.ones(4000, dtype=bool)
    assert most_noise(height, everything, labels, sigma=sigma) == pytest.approx(variance, rel=0.1)
    # A second group of other heights says nothing about the noise, nor do columns that know only what the group is.
    height[:1000] += 3.0
    labels[:1000] = 1
    assert most_noise(height, everything, labels, sigma=sigma) == pytest.approx(variance, rel=0.1)
    height[1000:1500] = 1.0
    assert most_noise(height, np.arange(4000) >= 1500, labels, sigma=sigma) == pytest.approx(variance, rel=0.1)
    assert most_noise(height[:10], everything[:10], labels[:10], sigma=sigma) == np.inf


def test_what_is_faint_is_put_into_no_hole(field: Specimen) -> None:
    """With electrons without end any light in a hole is significant: it is no atom as long as it is not as bright."""
    image = calculated(field, pixel_nm=0.01, source_pm=40.0)
    found = analyze_frame(Frame(poisson(image, 1e6), PixelSize(0.01, "metadata", 0.01)), load_model("graphene"))
    assert np.min(found.sites.intensity) > 0.5


def test_uneven_metal_columns_are_no_dopants() -> None:
    """Heights that depend on where between the pixels of a potential a column stands have two peaks."""
    specimen = mx2(material="MoS2", fov_nm=3.2, rotation_deg=3.0)
    image = calculated(specimen, pixel_nm=0.012, aperture_mrad=25.0, wavelength_pm=4.18, uneven=0.2)
    found = analyze_frame(Frame(poisson(image, 1e5), PixelSize(0.012, "metadata", 0.012)), load_model("mx2"),
                          material="MoS2")
    assert not found.defects
