"""Synthetic columns with known positions, and two usual ways to locate them, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_laplace
from scipy.optimize import least_squares

from stemdl_core.refine.bound import column_profile, cramer_rao_pm

#: Probe of the scenes: core width [nm], share of the electrons in the tail.
SIGMA_NM, TAIL = 0.045, 0.2


@dataclass(frozen=True)
class Scene:
    """Columns on an image: positions (N, 2) [nm], electrons, groups, which to judge (N,), expected counts."""

    points_nm: np.ndarray
    electrons: np.ndarray
    groups: np.ndarray
    judged: np.ndarray
    mean: np.ndarray
    pixel_nm: float
    background: float

    @property
    def yx_px(self) -> np.ndarray:
        """(2, N) positions [px]."""
        return self.points_nm.T / self.pixel_nm

    def image(self, rng: np.random.Generator, *, gain: float = 37.0, offset: float = -100.0) -> np.ndarray:
        """One frame: counted electrons behind a linear detector."""
        return (gain * rng.poisson(self.mean) + offset).astype(np.float32)

    def start(self, rng: np.random.Generator, error_pm: float) -> np.ndarray:
        """(2, N) positions [px] with an error along each axis."""
        return self.yx_px + rng.normal(0, 1e-3 * error_pm / self.pixel_nm, self.yx_px.shape)

    def errors_pm(self, y_px: np.ndarray, x_px: np.ndarray) -> np.ndarray:
        """(M, 2) errors of the judged columns [pm]."""
        return 1e3 * self.pixel_nm * (np.stack([y_px, x_px]) - self.yx_px).T[self.judged]

    def bound_pm(self) -> float:
        """Cramer-Rao bound of the judged columns, root mean square over them [pm]."""
        y, x = self.yx_px
        bound = cramer_rao_pm(y, x, self.electrons, shape=self.mean.shape, pixel_size_nm=self.pixel_nm,
                              sigma_probe_nm=SIGMA_NM, background=self.background, tail_fraction=TAIL)
        return float(np.sqrt(np.mean(bound[self.judged] ** 2)))


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


def scene(kind: str, dose: float, pixel_nm: float, *, rotation: float = 0.3, fov_nm: float = 1.8) -> Scene:
    """Columns of `dose` electrons each, silicon four times as many.

    Kinds: 'lattice', 'isolated' (0.6 nm apart), 'silicon' (substitutional, its neighbourhood judged) and
    'trimer' (three silicon atoms 0.19 nm apart in a hole of the lattice).
    """
    if kind == "isolated":
        at = np.arange(0.4, fov_nm - 0.2, 0.6)
        points = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
        points = points + 0.07 * np.sin(np.arange(len(points)))[:, None]
    else:
        points = honeycomb(fov_nm, rotation)
    judged = (np.abs(points - fov_nm / 2) < fov_nm / 2 - 0.2).all(1)
    groups = np.full(len(points), "C ")
    away = np.hypot(*(points - fov_nm / 2).T)
    if kind == "silicon":
        groups[away == away.min()] = "Si"
        judged = np.hypot(*(points - points[away.argmin()]).T) < 0.26
    elif kind == "trimer":
        centre = points[away.argmin()]
        angles = 0.3 + 2 * np.pi / 3 * np.arange(3)
        trimer = centre + 0.11 * np.stack([np.sin(angles), np.cos(angles)], 1)
        gap = np.hypot(*(points[:, None] - trimer).transpose(2, 0, 1)).min(1)
        points = points[(gap > 0.13) & (np.hypot(*(points - centre).T) > 0.16)]
        groups = np.r_[np.full(len(points), "C "), np.full(3, "Si")]
        points = np.concatenate([points, trimer])
        judged = np.hypot(*(points - centre).T) < 0.35
    electrons = dose * np.where(groups == "Si", 4.0, 1.0)
    size = round(fov_nm / pixel_nm)
    background = 0.03 * dose * pixel_nm**2 / 0.0262
    mean = np.full((size, size), background)
    grid = np.arange(size)
    reach = 6 * 2.2 * SIGMA_NM / pixel_nm
    for (y, x), count in zip(points / pixel_nm, electrons, strict=True):
        rows, columns = (grid[np.abs(grid - v) < reach] for v in (y, x))
        mean[np.ix_(rows, columns)] += count * column_profile(rows[:, None] - y, columns[None, :] - x,
                                                              SIGMA_NM / pixel_nm, TAIL, 2.2)[0]
    return Scene(points, electrons, groups, judged, mean, pixel_nm, background)


def fit_one_by_one(image: np.ndarray, y_px: np.ndarray, x_px: np.ndarray, *, pixel_nm: float,
                   window_nm: float = 0.08) -> np.ndarray:
    """(2, N) positions from a Gaussian and a constant fitted to a small window around each start."""
    radius = max(2, round(window_nm / pixel_nm))
    found = []
    for y, x in zip(y_px, x_px, strict=True):
        rows = np.arange(max(0, round(y) - radius), min(image.shape[0], round(y) + radius + 1))[:, None]
        columns = np.arange(max(0, round(x) - radius), min(image.shape[1], round(x) + radius + 1))[None, :]
        part = image[rows, columns].astype(float)
        sigma = SIGMA_NM / pixel_nm
        scale = np.ptp(part) + 1e-9

        def misfit(p: np.ndarray, rows: np.ndarray = rows, columns: np.ndarray = columns,
                   part: np.ndarray = part, scale: float = scale) -> np.ndarray:
            square = (rows - p[0]) ** 2 + (columns - p[1]) ** 2
            return (p[3] + p[2] * np.exp(-0.5 * square / p[4] ** 2) - part / scale).ravel()

        first = [y, x, 0.6, part.min() / scale, sigma]
        low = [y - radius, x - radius, 0.0, -np.inf, 0.4 * sigma]
        high = [y + radius, x + radius, np.inf, np.inf, 2.5 * sigma]
        found.append(least_squares(misfit, first, bounds=(low, high), max_nfev=30).x[:2])
    return np.array(found).T


def laplacian_parabola(image: np.ndarray, y_px: np.ndarray, x_px: np.ndarray, *,
                       pixel_nm: float) -> np.ndarray:
    """(2, N) positions of the Laplacian-of-Gaussian maximum nearest to each start, refined by a parabola."""
    response = -gaussian_laplace(image.astype(float), SIGMA_NM / pixel_nm)
    found = []
    for y, x in zip(y_px, x_px, strict=True):
        at = np.clip(np.rint([y, x]).astype(int), 1, np.array(image.shape) - 2)
        for _ in range(round(0.06 / pixel_nm)):
            part = response[at[0] - 1 : at[0] + 2, at[1] - 1 : at[1] + 2]
            step = np.array(np.unravel_index(part.argmax(), (3, 3))) - 1
            at = np.clip(at + step, 1, np.array(image.shape) - 2)
            if not step.any():
                break
        centre = response[at[0], at[1]]
        shift = []
        for dy, dx in ((1, 0), (0, 1)):
            before, after = response[at[0] - dy, at[1] - dx], response[at[0] + dy, at[1] + dx]
            curve = before + after - 2 * centre
            shift.append(float(np.clip(0.5 * (before - after) / curve, -1, 1)) if curve < 0 else 0.0)
        found.append(at + np.array(shift))
    return np.array(found).T
