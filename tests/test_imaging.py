"""The fast image model: intensities, sub-pixel positions, and truth that moves with the scan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemdl_core.simulate.degrade import Detector, bad_pixels, disturbed_scan, expose, smooth_field
from stemdl_core.simulate.imaging import Probe, Scan, column_intensity, render


def centroid(image: np.ndarray) -> tuple[float, float]:
    rows, columns = np.indices(image.shape)
    return float((rows * image).sum() / image.sum()), float((columns * image).sum() / image.sum())


def test_silicon_is_brighter_than_carbon_by_the_power_law():
    ratio = column_intensity([14], 1.5)[0] / column_intensity([6], 1.5)[0]
    assert ratio == pytest.approx((14 / 6) ** 1.5, rel=0.03)
    assert column_intensity([6])[0] == 1.0
    assert 3.4 < column_intensity([14], 1.5)[0] < column_intensity([14], 1.8)[0] < 4.7
    # Tungsten saturates: multislice at 60 kV gives 1.85 times molybdenum.
    assert column_intensity([74])[0] / column_intensity([42])[0] == pytest.approx(1.85, rel=0.1)


@given(y=st.floats(0.4, 1.2), x=st.floats(0.4, 1.2), pixel=st.floats(0.006, 0.02))
@settings(max_examples=25, deadline=None)
def test_a_column_keeps_its_intensity_and_its_sub_pixel_position(y: float, x: float, pixel: float):
    side = int(1.6 / pixel)
    scan = Scan.regular((side, side), pixel)
    probe = Probe(0.05, 0.08, 0.3)
    image = render([[y, x]], [2.5], scan=scan, probe=probe)
    assert image.sum() * pixel**2 == pytest.approx(2.5, rel=2e-3)
    expected = scan.apparent_px([[y, x]], 0.05)[0]
    assert np.allclose(centroid(image), expected, atol=0.02)
    assert np.allclose(expected, (np.array([y, x]) / pixel) - 0.5)


def test_jitter_and_drift_move_the_truth_with_the_pixels(rng):
    pixel, truth = 0.008, np.array([[1.0, 1.0]])
    errors = []
    for _ in range(12):
        scan = disturbed_scan((256, 256), pixel, rng=rng, jitter_nm=0.02, drift_nm=(0.05, -0.08))
        image = render(truth, [1.0], scan=scan, probe=Probe(0.05, 0.1, 0.0))
        apparent = scan.apparent_px(truth, 0.05)[0]
        errors.append(np.subtract(centroid(image), apparent) * pixel * 1e3)
        still = Scan.regular((256, 256), pixel).apparent_px(truth, 0.05)[0]
        assert np.hypot(*(apparent - still)) * pixel > 0.0005
    # Centroid and least-squares position weigh lines differently: agreement to a few pm, not to none.
    assert np.sqrt(np.mean(np.square(errors))) < 4.0


def test_a_shift_of_all_lines_is_a_shift_of_the_image():
    pixel = 0.01
    atoms, weights = [[0.7, 0.8], [0.7, 0.95]], [1.0, 4.0]
    base = Scan.regular((140, 150), pixel)
    moved = Scan((140, 150), pixel, base.origin_nm, np.full(140, 0.03), np.full(140, -0.025))
    image = render(atoms, weights, scan=moved, probe=Probe())
    direct = render(np.array(atoms) + [-0.03, 0.025], weights, scan=base, probe=Probe())
    assert np.abs(image - direct).max() < 1e-3 * direct.max()


def test_dose_is_electrons_per_atom(rng):
    pixel = 0.01
    density = render([[0.8, 0.8]], [1.0], scan=Scan.regular((160, 160), pixel), probe=Probe(0.05, 0.1, 0.2))
    totals = [float(expose(density, pixel_nm=pixel, detector=Detector(300.0), rng=rng).sum()) for _ in range(60)]
    assert np.mean(totals) == pytest.approx(300, abs=4 * np.sqrt(300 / 60))
    assert np.std(totals) == pytest.approx(np.sqrt(300), rel=0.35)


def test_detector_gain_offset_and_clipping(rng):
    flat = np.full((64, 64), 1.0)
    plain = Detector(dose_e_per_atom=400.0, gain=3.0, offset=7.0)
    image = expose(flat, pixel_nm=0.1, detector=plain, rng=rng)
    assert image.mean() == pytest.approx(7 + 3 * 4.0, abs=0.5)
    assert image.var() == pytest.approx(9 * 4.0, rel=0.15)
    digital = expose(flat, pixel_nm=0.1, detector=Detector(100.0, offset=-2.0, integer=True), rng=rng)
    assert digital.min() == 0.0
    assert np.array_equal(digital, np.round(digital))


def test_bad_pixels_change_only_what_they_hit(rng):
    image = rng.normal(10, 1, (80, 90)).astype(np.float32)
    damaged = bad_pixels(image, hot=5, dead_lines=2, rng=rng)
    changed_rows = np.flatnonzero((damaged != image).any(axis=1))
    assert 1 <= len(changed_rows) <= 7
    assert damaged.max() > image.max()


def test_smooth_field_has_unit_variance_and_is_smooth(rng):
    field = smooth_field((200, 300), 20.0, rng)
    assert field.shape == (200, 300)
    assert field.std() == pytest.approx(1.0, rel=1e-6)
    assert np.abs(np.diff(field, axis=0)).max() < 0.6


def test_probe_refuses_impossible_values():
    with pytest.raises(ValueError, match="positive"):
        Probe(sigma_nm=0.0)
    with pytest.raises(ValueError, match="tail"):
        Probe(tail_fraction=1.0)
