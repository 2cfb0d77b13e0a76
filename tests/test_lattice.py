"""Host lattice: scale, distortion and origin of drawn and real images, and nothing where nothing is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter

from stemdl_core.calibration import PixelSize
from stemdl_core.errors import CalibrationError
from stemdl_core.lattice import QUALITY_THRESHOLD, check_scale, fit_lattice
from stemdl_core.materials import MATERIALS, get_material

GRAPHENE = get_material("graphene")


def distortion_matrix(stretch: float, shear: float) -> np.ndarray:
    matrix = np.array([[1 + stretch, shear], [shear, 1 - stretch]])
    return matrix / math.sqrt(np.linalg.det(matrix))


def draw(rng, *, material="graphene", shape=(256, 256), pixel_nm=0.008, rotation_deg=17.0, dose=100.0,
         distortion=(0.0, 0.0), probe_nm=0.045, background=0.15):
    """Counts of a perfect lattice, seen with a probe with tails; dose is the counts of the brightest column.

    Returns the image, the site positions (N, 2) px and their sublattice (0 metal, 1 chalcogen).
    """
    crystal = get_material(material)
    a = crystal.lattice_nm
    to_px = np.linalg.inv(distortion_matrix(*distortion) * pixel_nm)
    reach = int(1.5 * max(shape) * pixel_nm / a) + 5
    cells = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    angle = np.deg2rad(rotation_deg)
    vectors = a * np.array([[math.sin(t), math.cos(t)] for t in (angle, angle + np.pi / 3)])
    offset = rng.uniform(0, a, 2)
    yx_nm = np.concatenate([(cells + f) @ vectors + offset for f in (1 / 3, 2 / 3)])
    yx = yx_nm @ to_px.T + np.array(shape) / 2
    sublattice = np.repeat([0, 1], len(cells))
    bright = np.ones(2)
    if crystal.kind == "mx2":
        bright = np.array([n * crystal.atomic_number(s)**1.7 for n, s in zip((1, 2), crystal.species)])
    near = ((yx > -0.25 / pixel_nm) & (yx < np.array(shape) + 0.25 / pixel_nm)).all(axis=1)
    yx, sublattice = yx[near], sublattice[near]
    weight = (bright / bright.max())[sublattice] * dose
    image = np.full(shape, background * dose * pixel_nm**2 / (a * a * math.sqrt(3) / 4))
    for sigma, share in ((probe_nm / pixel_nm, 0.7), (2.2 * probe_nm / pixel_nm, 0.3)):
        ey, ex = (np.exp(-0.5 * ((np.arange(n)[:, None] - p) / sigma)**2) for n, p in zip(shape, yx.T))
        image += (ey * (weight * share / (2 * np.pi * sigma**2))) @ ex.T
    inside = ((yx >= 0) & (yx <= np.array(shape) - 1)).all(axis=1)
    return rng.poisson(image).astype(np.float32), yx[inside], sublattice[inside]


@pytest.mark.parametrize(("material", "pixel_nm", "side", "dose"), [
    ("graphene", 0.004, 512, 100), ("graphene", 0.008, 256, 30), ("graphene", 0.02, 128, 50),
    ("graphene", 0.055, 128, 100), ("MoS2", 0.008, 256, 50), ("MoSe2", 0.02, 128, 50), ("WS2", 0.04, 256, 20),
    ("WSe2", 0.012, 192, 50)])
@pytest.mark.parametrize("known", [0.82, 1.2, None])
def test_pixel_size_is_recovered(rng, material, pixel_nm, side, dose, known):
    errors = []
    for rotation in (3.0, 31.0, 52.0):
        image, _, _ = draw(rng, material=material, shape=(side, side), pixel_nm=pixel_nm, dose=dose,
                           rotation_deg=rotation, distortion=(0.01, -0.015))
        fit = fit_lattice(image, material=get_material(material),
                          nominal_pixel_size_nm=None if known is None else known * pixel_nm)
        assert fit is not None
        assert fit.quality > QUALITY_THRESHOLD
        errors.append(abs(fit.pixel_size_nm / pixel_nm - 1))
        assert errors[-1] < 5 * fit.pixel_size_sigma_nm / pixel_nm + 0.002
    assert np.median(errors) <= 0.006
    assert max(errors) <= 0.015


@pytest.mark.parametrize("distortion", [(0.0, 0.0), (0.03, 0.0), (-0.01, 0.025)])
def test_distortion_and_basis(rng, distortion):
    image, _, _ = draw(rng, shape=(300, 340), pixel_nm=0.012, dose=200, distortion=distortion,
                       rotation_deg=41)
    fit = fit_lattice(image, material=GRAPHENE, nominal_pixel_size_nm=0.0125)
    assert fit is not None
    np.testing.assert_allclose(fit.distortion, distortion_matrix(*distortion), atol=0.003)
    assert np.linalg.det(fit.distortion) == pytest.approx(1, abs=1e-9)
    in_nm = fit.basis_px @ (fit.pixel_size_nm * fit.distortion).T
    np.testing.assert_allclose(np.hypot(*in_nm.T), GRAPHENE.lattice_nm, rtol=1e-6)
    assert in_nm[0] @ in_nm[1] == pytest.approx(GRAPHENE.lattice_nm**2 / 2, rel=1e-6)
    turned = math.degrees(max(map(abs, distortion)))
    assert (fit.rotation_deg - 41 + 30) % 60 - 30 == pytest.approx(0, abs=0.3 + turned)


@pytest.mark.parametrize("material", ["graphene", "MoS2", "WSe2"])
def test_nodes_fall_on_the_columns(rng, material):
    image, truth, sublattice = draw(rng, material=material, shape=(200, 260), pixel_nm=0.012, dose=200,
                                    distortion=(0.01, 0.01))
    fit = fit_lattice(image, material=get_material(material), nominal_pixel_size_nm=0.0125)
    assert fit is not None
    nodes, kind = fit.nodes(image.shape, margin_px=3)
    distance = np.linalg.norm(nodes[:, None] - truth[None], axis=2)
    assert distance.min(axis=0).max() * 12 < 25  # pm, every column has a node
    inner, _ = fit.nodes(image.shape, margin_px=-3)
    assert len(inner) <= len(truth) <= len(nodes)
    if material != "graphene":
        assert (kind[distance.argmin(axis=0)] == sublattice).all()


@pytest.mark.parametrize("nominal", [0.008, 0.03, None])
@pytest.mark.parametrize("kind", ["noise", "smooth", "denoised", "slow detector", "patches", "stripes", "edge", "hot"])
def test_nothing_is_found_where_nothing_is(rng, kind, nominal):
    y, x = np.mgrid[:256, :256]
    for _ in range(3):
        mean = np.full((256, 256), 5.0)
        if kind == "smooth":
            mean *= 1 + 0.3 * gaussian_filter(rng.normal(size=mean.shape), 6) / 0.047
        elif kind == "patches":
            mean += 20 * (gaussian_filter(rng.normal(size=mean.shape), 30) > 0)
        elif kind == "stripes":
            mean += 2 * np.sin(2 * np.pi * y * rng.uniform(0.02, 0.2)) + rng.normal(size=(256, 1))
        elif kind == "edge":
            angle = rng.uniform(0, 6)
            mean *= 0.1 + ((y - 128) * np.cos(angle) + (x - 128) * np.sin(angle) > 20)
        image = rng.poisson(np.clip(mean, 0, None)).astype(np.float32)
        if kind == "hot":
            image[rng.integers(0, 256, 60), rng.integers(0, 256, 60)] = 4000
        elif kind == "denoised":
            image = gaussian_filter(image, rng.uniform(1, 6))
        elif kind == "slow detector":
            image = lfilter([0.5], [1, -0.5], image, axis=1).astype(np.float32)
        assert fit_lattice(image, material=GRAPHENE, nominal_pixel_size_nm=nominal) is None


def test_flaws_of_the_scan_are_survived(rng):
    image, _, _ = draw(rng, shape=(300, 300), pixel_nm=0.012, dose=80)
    y, x = np.mgrid[:300, :300]
    dirt = 4 + 1.5 * np.sin(x[:, 140:] / 23) * np.cos(y[:, 140:] / 31)
    image[:, 140:] += rng.poisson(dirt)  # contamination
    image[40:43] = 0  # dead lines
    image[rng.integers(0, 300, 40), rng.integers(0, 300, 40)] = 3e4  # hot pixels
    image[200:260, 20:90] = rng.poisson(0.2, (60, 70))  # a hole
    image = np.stack([np.roll(row, round(s)) for row, s in zip(image, rng.normal(0, 0.8, 300))])  # jitter
    fit = fit_lattice(image + 0.02 * x.astype(np.float32), material=GRAPHENE, nominal_pixel_size_nm=0.011)
    assert fit is not None
    assert fit.pixel_size_nm == pytest.approx(0.012, rel=0.005)


def test_dominant_grain_of_a_boundary(rng):
    first, _, _ = draw(rng, shape=(256, 256), pixel_nm=0.014, rotation_deg=5)
    second, _, _ = draw(rng, shape=(256, 256), pixel_nm=0.014, rotation_deg=27)
    image = np.where(np.arange(256) < 100, first, second)
    fit = fit_lattice(image, material=GRAPHENE, nominal_pixel_size_nm=0.014)
    assert fit is not None
    assert fit.rotation_deg == pytest.approx(27, abs=0.6)
    assert fit.pixel_size_nm == pytest.approx(0.014, rel=0.008)


def test_check_scale_decides(rng):
    image, _, _ = draw(rng, shape=(256, 256), pixel_nm=0.008)
    right = PixelSize(0.008, "metadata", 0.008)
    size, fit, warnings = check_scale(image, GRAPHENE, right)
    assert (size.nm, size.source, warnings) == (0.008, "metadata", ())
    assert fit is not None
    size, _, warnings = check_scale(image, GRAPHENE, PixelSize(0.0088, "metadata", 0.0088))
    assert size.nm == pytest.approx(0.008, rel=0.01)
    assert (size.source, size.nominal_nm) == ("lattice", 0.0088)
    assert "corrected from 8.80 pm to" in warnings[0]
    size, _, _ = check_scale(image, GRAPHENE, None)
    assert size.nm == pytest.approx(0.008, rel=0.01)
    assert (size.source, size.nominal_nm) == ("lattice", None)
    with pytest.raises(CalibrationError, match=r"view 20 nm contradicts the graphene lattice, .* 2\.0"):
        check_scale(image, GRAPHENE, PixelSize.from_fov(20.0, 256))


@pytest.mark.parametrize("factor", [3**0.5, 3**-0.5, 2.0])
@pytest.mark.parametrize("material", ["graphene", "MoS2"])
def test_spots_of_another_order_are_not_taken_for_the_first(rng, material, factor):
    image, _, _ = draw(rng, material=material, shape=(256, 256), pixel_nm=0.012, dose=100, probe_nm=0.035)
    with pytest.raises(CalibrationError, match="contradicts"):
        check_scale(image, get_material(material), PixelSize(0.012 * factor))


def test_check_scale_without_a_lattice(rng):
    image = rng.poisson(5.0, (128, 128)).astype(np.float32)
    size, fit, warnings = check_scale(image, GRAPHENE, PixelSize(0.02))
    assert (size.nm, size.source, fit) == (0.02, "argument", None)
    assert warnings == ("no graphene lattice visible: the pixel size of 20.00 pm is used unchecked",)
    with pytest.raises(CalibrationError, match="pixel size is unknown and no graphene lattice is visible"):
        check_scale(image, GRAPHENE, None)


@pytest.mark.parametrize("off", [0.95, 1.0, 1.05, None])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_real_graphene(shared_data, index, off):
    path = shared_data / "graphene_si_haadf" / "frames.npy"
    image = np.load(path)[index].astype(np.float32)
    given = None if off is None else off * 2.0 / 256
    fit = fit_lattice(image, material=GRAPHENE, nominal_pixel_size_nm=given)
    assert fit is not None
    assert fit.pixel_size_nm == pytest.approx(7.68e-3, rel=0.01)
    assert fit.n_harmonics >= 5


@pytest.mark.parametrize(("file", "detector", "material", "nominal", "expected"), [
    ("wse2_doped/Ti_2.npz", "adf1", "WSe2", 0.0399, 0.0383),
    ("wse2_doped/Cr_9.npz", "adf2", "WSe2", 0.0266, 0.0262),
    ("mos2/v_doped_mos2.npy", None, "MoS2", 9.0 / 512, 0.0175)])
def test_real_dichalcogenides(shared_data, file, detector, material, nominal, expected):
    data = np.load(shared_data / file)
    image = (data if detector is None else data[detector]).astype(np.float32)
    for given in (nominal, None):
        fit = fit_lattice(image, material=MATERIALS[material], nominal_pixel_size_nm=given)
        assert fit is not None
        assert fit.pixel_size_nm == pytest.approx(expected, rel=0.008)
