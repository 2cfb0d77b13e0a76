"""Mending, resampling and scaling: one bad pixel or bright atom changes nothing elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemdl_core.preprocess import from_model_px, mend, model_shape, resample, standardise, to_model_px
from stemdl_core.simulate.imaging import Probe, Scan, render


def lattice_image(rng: np.random.Generator, side: int = 200, pixel: float = 0.012) -> np.ndarray:
    step = 0.142 * 1.5
    grid = np.stack(np.meshgrid(np.arange(0, side * pixel, step), np.arange(0, side * pixel, step)), -1).reshape(-1, 2)
    density = render(grid, np.ones(len(grid)), scan=Scan.regular((side, side), pixel), probe=Probe())
    return rng.poisson(density * pixel**2 * 200).astype(np.float32)


def test_a_hot_pixel_is_mended_and_nothing_else_is(rng):
    image = lattice_image(rng)
    hot = image.copy()
    hot[77, 91] = 40 * image.max()
    mended = mend(hot)
    assert not mended.valid[77, 91]
    assert mended.valid.sum() == mended.valid.size - 1
    untouched = np.ones(image.shape, bool)
    untouched[77, 91] = False
    assert np.array_equal(mended.image[untouched], image[untouched])
    assert abs(mended.image[77, 91] - image[75:80, 89:94].mean()) < 6 * image[75:80, 89:94].std()


@pytest.mark.parametrize("row", [0, 60, 199])
def test_a_dead_line_is_mended(rng, row):
    image = lattice_image(rng)
    broken = image.copy()
    broken[row] = 0
    mended = mend(broken)
    assert not mended.valid[row].any()
    assert mended.valid.sum() == mended.valid.size - 200
    assert abs(mended.image[row].mean() - image[row].mean()) < 0.35 * image.mean()


def test_clean_images_are_left_alone(rng):
    for mean in (0.05, 0.3, 1.0, 5.0, 200.0):
        image = rng.poisson(mean, (256, 256)).astype(np.float32)
        assert (~mend(image).valid).mean() < 3e-4
    image = lattice_image(rng)
    assert mend(image).valid.all()


def test_a_narrow_bright_atom_is_no_hot_pixel(rng):
    pixel = 0.025
    density = render([[1.2, 1.2]], [60.0], scan=Scan.regular((96, 96), pixel), probe=Probe(0.03, 0.1, 0.0))
    image = rng.poisson(5 + density * pixel**2 * 300).astype(np.float32)
    assert mend(image).valid.all()


@given(y=st.floats(0, 255), x=st.floats(0, 383), factor=st.floats(0.2, 3.0))
@settings(max_examples=50, deadline=None)
def test_positions_survive_the_way_to_the_model_grid_and_back(y, x, factor):
    shape = (256, 384)
    small = model_shape(shape, 0.02 * factor, 0.02)
    there = to_model_px(np.array([[y, x]]), shape, small)
    assert np.allclose(from_model_px(there, shape, small), [[y, x]], atol=1e-9)


@pytest.mark.parametrize("small", [(50, 80), (77, 123), (256, 400), (300, 450)])
def test_resampling_moves_nothing(small):
    rows, columns = np.indices((200, 320))
    at = np.array([88.3, 151.7])
    image = np.exp(-0.5 * ((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / 8.0**2).astype(np.float32)
    result = resample(image, small)
    assert result.shape == small
    r, c = np.indices(small)
    found = np.array([(r * result).sum(), (c * result).sum()]) / result.sum()
    assert np.allclose(found, to_model_px(at[None], image.shape, small)[0], atol=0.03)


def test_scaling_does_not_depend_on_gain_or_on_one_bright_atom(rng):
    image = lattice_image(rng)
    reference = standardise(image)
    assert np.allclose(standardise(image * 370.0 - 1234.0), reference, atol=1e-3)
    bright = image.copy()
    bright[90:96, 90:96] += 30 * image.max()
    away = np.ones(image.shape, bool)
    away[85:101, 85:101] = False
    assert np.abs(standardise(bright) - reference)[away].max() < 0.03
    assert np.isfinite(standardise(bright)).all()
