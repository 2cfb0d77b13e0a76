"""Joint refinement reaches the Cramer-Rao bound, knows its own errors, and survives real detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from column_scenes import SIGMA_NM, Scene, fit_one_by_one, honeycomb, laplacian_parabola, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_laplace, maximum_filter
from scipy.spatial import cKDTree

from stemdl_core.errors import StemdlError
from stemdl_core.refine import cramer_rao_pm, estimate_imaging, refine_sites
from stemdl_core.refine.beyond import columns_beyond
from stemdl_core.simulate.dataset import Conditions, simulate_frame
from stemdl_core.simulate.degrade import Detector
from stemdl_core.simulate.imaging import Probe
from stemdl_core.simulate.structures import add_defect, graphene


def refined_errors(world: Scene, rng: np.random.Generator, *, repeats: int = 3,
                   start_pm: float = 15.0) -> tuple[np.ndarray, np.ndarray]:
    """Errors [pm] and errors over sigma of the judged columns, (M, 2) each."""
    errors, scores = [], []
    for _ in range(repeats):
        found = refine_sites(world.image(rng), *world.start(rng, start_pm), pixel_size_nm=world.pixel_nm,
                             groups=world.groups)
        error = world.errors_pm(found.y_px, found.x_px)
        errors.append(error)
        scores.append(error / found.sigma_pm[world.judged, None])
    return np.concatenate(errors), np.concatenate(scores)


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def test_bound_of_a_lone_column_without_background() -> None:
    bound = cramer_rao_pm([40.0], [40.0], 400.0, shape=(81, 81), pixel_size_nm=0.01, sigma_probe_nm=0.05,
                          free_background=False)
    # Known width, nothing else in view: sigma / sqrt(N).
    assert bound[0] == pytest.approx(50 / 20, rel=0.01)


def test_bound_grows_with_neighbours_and_background() -> None:
    kwargs = {"shape": (81, 81), "pixel_size_nm": 0.01, "sigma_probe_nm": 0.05}
    alone = cramer_rao_pm([40.0], [40.0], 400.0, **kwargs)[0]
    paired = cramer_rao_pm([40.0, 40.0], [40.0, 52.0], 400.0, **kwargs)[0]
    buried = cramer_rao_pm([40.0], [40.0], 400.0, background=1.0, **kwargs)[0]
    assert alone < 0.95 * paired
    assert alone < 0.95 * buried


@pytest.mark.parametrize(("kind", "repeats"),
                         [("lattice", 2), ("isolated", 8), ("silicon", 8), ("trimer", 4)])
@pytest.mark.parametrize(("dose", "pixel_nm"), [(10, 0.02), (100, 0.02), (1000, 0.02), (100, 0.01)])
def test_errors_reach_the_bound_and_sigma_tells_them(kind: str, repeats: int, dose: int, pixel_nm: float,
                                                     rng: np.random.Generator) -> None:
    world = scene(kind, dose, pixel_nm)
    errors, scores = refined_errors(world, rng, repeats=repeats)
    bound = scene(kind, dose, 0.02).bound_pm()
    # The margin above 1.2 is the scatter of a few hundred numbers, no more.
    count = errors.size
    assert rms(errors) < 1.2 * bound * (1 + 2 / np.sqrt(2 * count))
    assert 0.85 - 2 / np.sqrt(2 * count) < scores.std() < 1.15 + 2 / np.sqrt(2 * count)
    assert np.all(np.abs(errors.mean(0)) < 0.3 * bound + 3 * errors.std() / np.sqrt(count / 2))


@pytest.mark.parametrize(("dose", "pixel_nm"), [(10, 0.02), (100, 0.01), (1000, 0.02)])
def test_better_than_fits_one_by_one_and_than_laplacian_maxima(dose: int, pixel_nm: float,
                                                               rng: np.random.Generator) -> None:
    world = scene("lattice", dose, pixel_nm)
    image, start = world.image(rng), world.start(rng, 15.0)
    found = refine_sites(image, *start, pixel_size_nm=pixel_nm)
    ours = rms(world.errors_pm(found.y_px, found.x_px))
    assert ours < 0.95 * rms(world.errors_pm(*fit_one_by_one(image, *start, pixel_nm=pixel_nm)))
    assert ours < 0.95 * rms(world.errors_pm(*laplacian_parabola(image, *start, pixel_nm=pixel_nm)))


@settings(max_examples=8, deadline=None)
@given(st.floats(-3, 6), st.floats(-1e3, 1e3))
def test_positions_do_not_depend_on_gain_and_offset(power: float, offset: float) -> None:
    world = scene("lattice", 100, 0.02, fov_nm=1.0)
    counts = np.random.default_rng(3).poisson(world.mean)
    start = world.start(np.random.default_rng(4), 10.0)
    plain = refine_sites(counts.astype(np.float64), *start, pixel_size_nm=0.02)
    gain = 10.0**power
    other = refine_sites(gain * (counts + offset), *start, pixel_size_nm=0.02)
    np.testing.assert_allclose(other.y_px, plain.y_px, atol=2e-3)
    np.testing.assert_allclose(other.sigma_pm, plain.sigma_pm, rtol=1e-2)
    assert other.imaging is not None
    assert plain.imaging is not None
    assert other.imaging.gain == pytest.approx(gain * plain.imaging.gain, rel=1e-2)


def test_imaging_finds_probe_dose_and_gain(rng: np.random.Generator) -> None:
    # Columns beyond the border, and beyond what is seen of them: a lattice goes on.
    fov_nm, pixel_nm = 3.6, 0.02
    wide = scene("lattice", 200, pixel_nm, fov_nm=fov_nm + 1.2)
    cut = slice(30, -30)
    counts = rng.poisson(wide.mean[cut, cut])
    start = wide.start(rng, 15.0) - 30
    seen = ((start > -0.5) & (start < len(counts) - 0.5)).all(0)
    image = (37.0 * counts - 100).astype(np.float32)
    found = refine_sites(image, *start[:, seen], pixel_size_nm=pixel_nm)
    imaging = estimate_imaging(image, found, pixel_size_nm=pixel_nm)
    assert imaging is found.imaging
    assert imaging is not None
    assert imaging.sigma_nm == pytest.approx(SIGMA_NM, rel=0.04)
    assert imaging.gain == pytest.approx(37.0, rel=0.1)
    assert imaging.electrons_per_atom == pytest.approx(200, rel=0.2)
    assert imaging.ellipticity < 1.08
    assert imaging.misfit == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("sigma_nm", [0.030, 0.070])
def test_a_wrong_first_probe_is_forgotten(sigma_nm: float, rng: np.random.Generator) -> None:
    world = scene("lattice", 200, 0.02)
    image, start = world.image(rng), world.start(rng, 15.0)
    found = refine_sites(image, *start, pixel_size_nm=0.02, sigma_probe_nm=sigma_nm)
    best = refine_sites(image, *start, pixel_size_nm=0.02)
    assert rms(world.errors_pm(found.y_px, found.x_px)) < 1.1 * rms(world.errors_pm(best.y_px, best.x_px))


def test_hot_pixels_and_masked_lines_cost_little(rng: np.random.Generator) -> None:
    world = scene("lattice", 200, 0.01)
    image, start = world.image(rng), world.start(rng, 15.0)
    clean = refine_sites(image, *start, pixel_size_nm=0.01)
    damaged = image.copy()
    damaged.flat[rng.integers(0, image.size, 60)] = 20 * image.max()
    damaged[::19] = np.nan
    valid = np.ones(image.shape, bool)
    valid[5::23] = False
    damaged[~valid] = 1e9
    found = refine_sites(damaged, *start, pixel_size_nm=0.01, valid=valid)
    assert rms(world.errors_pm(found.y_px, found.x_px)) < 1.25 * rms(world.errors_pm(clean.y_px, clean.x_px))


def test_brightness_tells_silicon_from_carbon(rng: np.random.Generator) -> None:
    world = scene("silicon", 100, 0.02)
    found = refine_sites(world.image(rng), *world.start(rng, 10.0), pixel_size_nm=0.02)
    relative = found.amplitude / np.median(found.amplitude)
    silicon = world.groups == "Si"
    inner = (np.abs(world.points_nm - 0.9) < 0.7).all(1)
    assert relative[silicon][0] == pytest.approx(4.0, rel=0.2)
    assert relative[~silicon & inner].max() < 2
    carbon = ~silicon & inner
    scores = (relative[carbon] - 1) / (found.amplitude_sigma[carbon] / np.median(found.amplitude))
    assert 0.75 < scores.std() < 1.25


@pytest.mark.parametrize("seed", range(4))
def test_probes_as_wide_as_columns_are_apart_leave_carbon_as_bright_as_carbon(seed: int) -> None:
    """What tells neighbours apart is then little, and takes an exact solution of the normal equations."""
    rng = np.random.default_rng(seed)
    conditions = Conditions(pixel_nm=0.0113, probe=Probe(0.062, 0.105, 0.13), vacuum=0.3, flyback_nm=0.006,
                            detector=Detector(1000.0, afterglow=0.08))
    specimen = add_defect(graphene(fov_nm=4.0, rotation_deg=11.0 + 7 * seed), "SW(55-77)", (2.0, 2.0), rng=rng)
    s = simulate_frame(specimen, conditions, rng)
    start = s.sites.yx_px + rng.normal(0, 0.02 / 0.0113, s.sites.yx_px.shape)
    found = refine_sites(s.frame.image, *start.T, pixel_size_nm=0.0113)
    judged = ~s.sites.edge & s.visible
    relative = found.amplitude[judged] / np.median(found.amplitude[judged])
    assert relative.max() < 2.0
    scores = (relative - 1) * np.median(found.amplitude[judged]) / found.amplitude_sigma[judged]
    assert 0.7 < scores.std() < 1.6


def test_steps_that_grow_are_taken_back() -> None:
    """Half under strong dirt, with a wide probe: the exact solution of nearly singular equations is no better start."""
    rng = np.random.default_rng(2)
    specimen = graphene(fov_nm=2.6, rotation_deg=20.0)
    conditions = Conditions(pixel_nm=0.0077, probe=Probe(0.054, 0.24, 0.23), contamination=0.5,
                            contamination_strength=3.7, contamination_smear_nm=0.115,
                            detector=Detector(990.0, readout_e=0.36))
    s = simulate_frame(specimen, conditions, rng)
    clear = s.hidden == 0
    yx = s.sites.yx_px
    at = np.clip(np.rint(yx).astype(int), 0, np.array(clear.shape) - 1)
    yx = yx[clear[tuple(at.T)] & (yx > 0).all(axis=1) & (yx < np.array(clear.shape) - 1).all(axis=1)]
    start = yx + rng.normal(0, 0.004 / 0.0077, yx.shape)
    found = refine_sites(s.frame.image, *start.T, pixel_size_nm=0.0077, valid=clear)
    error_pm = 7.7 * np.sqrt(np.mean((np.stack([found.y_px, found.x_px], axis=1) - yx) ** 2))
    assert error_pm < 13.0


def test_line_jitter_widens_sigma(rng: np.random.Generator) -> None:
    world = scene("lattice", 1000, 0.01)
    columns = np.arange(world.mean.shape[1])
    shaken = np.stack([np.interp(columns - rng.normal(0, 1.0), columns, line) for line in world.mean])
    image = rng.poisson(shaken).astype(np.float32)
    found = refine_sites(image, *world.start(rng, 10.0), pixel_size_nm=0.01)
    assert found.imaging is not None
    assert found.imaging.jitter_pm == pytest.approx(10.0, rel=0.35)
    scores = world.errors_pm(found.y_px, found.x_px) / found.sigma_pm[world.judged, None]
    assert 0.8 < scores.std() < 1.2


def test_a_start_far_off_is_kept_and_marked(rng: np.random.Generator) -> None:
    world = scene("isolated", 1000, 0.02)
    start = world.start(rng, 5.0)
    start[0, 0] += 5.0
    found = refine_sites(world.image(rng), *start, pixel_size_nm=0.02)
    assert not found.converged[0]
    assert found.y_px[0] == start[0, 0]
    assert found.converged[1:].all()


def lattice_that_goes_on(pixel_nm: float, fov_nm: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) columns in view [px] and the expected image, (H, W), of a lattice that does not end where it does."""
    side = round(fov_nm / pixel_nm)
    points = honeycomb(fov_nm + 0.6, 0.3) - 0.3
    points = points / pixel_nm + rng.normal(0, 0.003 / pixel_nm, points.shape)
    seen = ((points > -0.5) & (points < side - 0.5)).all(1)
    return points[seen], expected_image(side, points, pixel_nm)


def expected_image(side: int, points: np.ndarray, pixel_nm: float) -> np.ndarray:
    """(H, W) 1,000 electrons a column, on little background."""
    rows = np.arange(side)[:, None]
    width = SIGMA_NM / pixel_nm
    along = [np.exp(-0.5 * ((rows - p) / width) ** 2) / (width * np.sqrt(2 * np.pi)) for p in points.T]
    return 1000 * along[0] @ along[1].T + 0.2


def test_columns_at_the_rim_are_not_pulled_by_those_beyond(rng: np.random.Generator) -> None:
    pixel_nm = 0.02
    errors, scores = [], []
    for _ in range(4):
        true, mean = lattice_that_goes_on(pixel_nm, 1.8, rng)
        start = true + rng.normal(0, 0.010 / pixel_nm, true.shape)
        found = refine_sites(rng.poisson(mean).astype(np.float32), *start.T, pixel_size_nm=pixel_nm)
        assert len(found) == len(true)
        rim = np.minimum(true, len(mean) - 1 - true).min(1) < 0.15 / pixel_nm
        error = 1e3 * pixel_nm * (np.stack([found.y_px, found.x_px], 1) - true)[rim]
        errors.append(error)
        scores.append(error / found.sigma_pm[rim, None])
    # Without what lies beyond it is 6 pm, twice what sigma says.
    assert rms(np.concatenate(errors)) < 4.0
    assert np.concatenate(scores).std() < 1.4


def test_a_lattice_goes_on_beyond_the_border_and_a_lone_column_does_not(rng: np.random.Generator) -> None:
    points = honeycomb(2.6, 0.3) / 0.02 - 20
    inside = ((points > -0.5) & (points < 89.5)).all(1)
    beyond, like = columns_beyond(points[inside], (90, 90), pixel_size_nm=0.02)
    reach = 0.12 / 0.02
    due = points[~inside & ((points > -0.5 - 0.9 * reach) & (points < 89.5 + 0.9 * reach)).all(1)]
    away = cKDTree(beyond).query(due)[0]
    assert (away < 0.5).mean() > 0.9
    assert like.max() < inside.sum()
    assert cKDTree(points).query(beyond)[0].max() < 0.5
    assert len(columns_beyond(rng.uniform(30, 60, (5, 2)), (90, 90), pixel_size_nm=0.02)[0]) == 0


def test_nothing_to_fit_gives_the_start_back() -> None:
    empty = refine_sites(np.ones((40, 40), np.float32), [], [], pixel_size_nm=0.02)
    assert len(empty) == 0
    assert empty.y_px.dtype == np.float64
    flat = refine_sites(np.ones((40, 40), np.float32), [20.0], [21.0], pixel_size_nm=0.02)
    assert flat.y_px[0] == 20.0
    assert not flat.converged[0]
    assert flat.imaging is None


def test_sites_without_pixels_or_on_one_another(rng: np.random.Generator) -> None:
    world = scene("lattice", 100, 0.02, fov_nm=1.0)
    image = world.image(rng)
    valid = np.ones(image.shape, bool)
    valid[:25, :25] = False
    y, x = world.start(rng, 5.0)
    y, x = np.r_[y, -6.0, 10.0, y[0], y[0]], np.r_[x, 400.0, 10.0, x[0], x[0]]
    found = refine_sites(image, y, x, pixel_size_nm=0.02, valid=valid)
    assert np.isfinite(found.sigma_pm).all()
    assert not found.converged[len(world.electrons) : len(world.electrons) + 2].any()


@pytest.mark.parametrize(("change", "word"), [
    ({"pixel_size_nm": 0.0}, "pixel_size_nm"), ({"groups": ["C", "C"]}, "groups"),
    ({"valid": np.ones((3, 3), bool)}, "valid"), ({"image": np.ones((2, 3, 4))}, "image"),
])
def test_bad_arguments_are_named(change: dict, word: str) -> None:
    arguments = {"image": np.ones((20, 20)), "y_px": [5.0], "x_px": [5.0], "pixel_size_nm": 0.02} | change
    with pytest.raises(StemdlError, match=word):
        refine_sites(**arguments)


def test_real_graphene_scatters_as_sigma_says(shared_data: Path) -> None:
    frames = np.load(shared_data / "graphene_si_haadf" / "frames.npy")
    pixel_nm = 0.0078125
    for number in (0, 2):
        image = frames[number].astype(np.float32)
        response = -gaussian_laplace(image, 6.5)
        summit = maximum_filter(response, 13) == response
        y, x = np.nonzero(summit & (response > np.percentile(response, 55)))
        found = refine_sites(image, y, x, pixel_size_nm=pixel_nm)
        points = np.stack([found.y_px, found.x_px], 1)
        gaps = cKDTree(points).query(points, k=4)[0][:, 1:] * 1e3 * pixel_nm
        gaps = gaps[(np.abs(points - 128) < 105).all(1)].ravel()
        gaps = gaps[(gaps > 90) & (gaps < 190)]
        scatter = 1.4826 * np.median(np.abs(gaps - np.median(gaps)))
        # Bond lengths of a perfect sheet are all alike: what they scatter by is the positions' error.
        assert 0.75 < scatter / (np.sqrt(2) * np.median(found.sigma_pm)) < 1.3
