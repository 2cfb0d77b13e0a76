"""Frames that cannot be used are told from those that can."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stemdl_core.calibration import PixelSize
from stemdl_core.faults import frame_fault, lattice_spots, look
from stemdl_core.frames import Frame

PIXEL = PixelSize(0.01)


def lattice_image(rng: np.random.Generator, *, dose: float, shift: float = 0.0) -> np.ndarray:
    """Shot noise on a hexagonal pattern of graphene's spacing; `dose` electrons a pixel."""
    y, x = np.mgrid[:192, :192] * PIXEL.nm
    waves = [
        np.cos(2 * np.pi * ((x + shift) * np.cos(t) + y * np.sin(t)) / 0.213)
        for t in np.radians([5, 65, 125])
    ]
    return rng.poisson(dose * (1 + 0.25 * np.sum(waves, axis=0))).astype(np.float32)


@pytest.fixture(params=[1.0, 20.0])
def frames(rng, request) -> tuple[Frame, np.ndarray]:
    return Frame(lattice_image(rng, dose=request.param), PIXEL), lattice_image(
        rng, dose=request.param, shift=0.05
    )


def test_good_frames_have_no_fault(frames):
    before, image = frames
    assert frame_fault(Frame(image, PIXEL)) is None
    assert frame_fault(Frame(image, PIXEL), before) is None
    assert frame_fault(Frame(image, PIXEL), look(before)) is None
    assert frame_fault(Frame(3.0 * image + 100.0, PIXEL), before) is None  # gain and offset are free


def test_bad_frames_are_named(frames, rng):
    before, image = frames
    half = image.copy()
    half[120:] = 0.0
    late = image.copy()
    late[:40] = image.mean()
    little = np.full_like(image, 7.0)
    little[:15] = image[:15]
    blurred = gaussian_filter(image, 12) + rng.normal(0, image.std(), image.shape)
    faults = {
        "half-scanned": (half, late, little),
        "duplicate": (before.image,),
        "different size": (image[:100],),
        "black": (image * 0.01,),
        "out of focus": (blurred,),
    }
    for name, images in faults.items():
        for bad in images:
            assert str(frame_fault(Frame(bad, PIXEL), before)).startswith(name)


def test_saturation_needs_more_than_a_bright_atom(frames, rng):
    before, image = frames
    atom = image.copy()
    atom[90:96, 90:96] = image.max() * 3
    assert frame_fault(Frame(atom, PIXEL), before) is None
    clipped = np.minimum(rng.normal(50, 10, (128, 128)), 55)
    assert "saturated: 3" in str(frame_fault(Frame(clipped, PIXEL)))


def test_noise_has_no_lattice_spots(rng, frames):
    before, _ = frames
    noise = [lattice_spots(Frame(rng.normal(size=(192, 192)), PIXEL)) for _ in range(5)]
    assert np.abs(noise).max() < 5
    assert lattice_spots(before) > 20
    assert np.isnan(lattice_spots(Frame(before.image)))
