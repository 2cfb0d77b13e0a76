"""Joint refinement reaches the Cramer-Rao bound and knows its own errors."""

from __future__ import annotations

import numpy as np

from stemdl_core.refine import cramer_rao_pm, refine_sites
from stemdl_core.refine.bound import column_profile

SIGMA_NM, TAIL = 0.045, 0.2


def honeycomb(fov_nm: float, rotation: float, a_nm: float = 0.246) -> np.ndarray:
    """(N, 2) positions [nm] of graphene's atoms inside a square field."""
    n = int(2 * fov_nm / a_nm) + 6
    i, j = (v.ravel() for v in np.meshgrid(np.arange(-n, n), np.arange(-n, n)))
    first, second = np.array([a_nm, 0.0]), np.array([a_nm / 2, a_nm * 3**0.5 / 2])
    points = i[:, None] * first + j[:, None] * second
    points = np.concatenate([points, points + (first + second) / 3])
    c, s = np.cos(rotation), np.sin(rotation)
    points = points @ np.array([[c, s], [-s, c]]) + fov_nm / 2 + 0.013
    return points[((points > 0) & (points < fov_nm)).all(1)]


def expected(y: np.ndarray, x: np.ndarray, electrons: np.ndarray, shape: tuple[int, int], sigma_px: float,
             background: float = 0.0, tail: float = TAIL) -> np.ndarray:
    """Expected electrons per pixel of columns with core and tail."""
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    mean = np.full(shape, float(background))
    for at_y, at_x, count in zip(y, x, electrons, strict=True):
        mean += count * column_profile(rows - at_y, columns - at_x, sigma_px, tail, 2.2)[0]
    return mean


def test_lattice_reaches_the_bound_at_high_dose(rng: np.random.Generator) -> None:
    pixel_nm, dose, fov = 0.016, 1000.0, 1.6
    points = honeycomb(fov, 0.3) / pixel_nm
    y, x = points.T
    size = round(fov / pixel_nm)
    background = 0.05 * dose * pixel_nm**2 / 0.0262
    mean = expected(y, x, np.full(len(y), dose), (size, size), SIGMA_NM / pixel_nm, background)
    bound = cramer_rao_pm(y, x, dose, shape=mean.shape, pixel_size_nm=pixel_nm, sigma_probe_nm=SIGMA_NM,
                          background=background, tail_fraction=TAIL)
    inner = (np.abs(points * pixel_nm - fov / 2) < fov / 2 - 0.15).all(1)
    errors, scores = [], []
    for _ in range(4):
        image = (37.0 * rng.poisson(mean) - 100.0).astype(np.float32)
        start = rng.normal(0, 15e-3 / pixel_nm, (2, len(y)))
        found = refine_sites(image, y + start[0], x + start[1], pixel_size_nm=pixel_nm)
        error = 1e3 * pixel_nm * np.stack([found.y_px - y, found.x_px - x], 1)[inner]
        errors.append(error)
        scores.append(error / found.sigma_pm[inner, None])
    rms = float(np.sqrt(np.mean(np.square(errors))))
    assert rms < 1.15 * float(np.sqrt(np.mean(bound[inner] ** 2)))
    assert 0.85 < float(np.std(scores)) < 1.15
