"""What an instrument does to the ideal image: dose, detector, scan disturbances, contamination, bad pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from .imaging import Scan


@dataclass(frozen=True)
class Detector:
    """Noise of the detector chain.

    Parameters
    ----------
    dose_e_per_atom : float
        Electrons detected, on average, from one isolated reference column (carbon, or the lighter host column).
    background_e_per_px : float
        Mean number of further detected electrons a pixel (substrate, stray scattering).
    readout_e : float
        Standard deviation of the amplifier noise, in electrons.
    gain, offset : float
        Detector units per electron, and their value without electrons.
    afterglow : float
        Part of each pixel's signal that leaks into the next of the line (scintillator decay), 0 to 0.5.
    integer : bool
        Whether the values are rounded and clipped at zero, as analogue-digital converters do.
    """

    dose_e_per_atom: float = 200.0
    background_e_per_px: float = 0.0
    readout_e: float = 0.0
    gain: float = 1.0
    offset: float = 0.0
    afterglow: float = 0.0
    integer: bool = False


def expose(density: NDArray[np.float64], *, pixel_nm: float, detector: Detector,
           rng: np.random.Generator) -> NDArray[np.float32]:
    """Count electrons.

    Parameters
    ----------
    density : (H, W) float64
        Noise-free intensity per nm^2, 1 being one reference column (as `render` gives it).
    pixel_nm : float
        Pixel size [nm].
    detector : Detector
        Dose and noise.
    rng : numpy.random.Generator
        Source of the noise.

    Returns
    -------
    (H, W) float32
        Image in detector units.
    """
    mean = np.clip(density, 0, None) * (pixel_nm**2 * detector.dose_e_per_atom) + detector.background_e_per_px
    counts = rng.poisson(mean).astype(np.float64)
    if detector.afterglow > 0:
        late = np.zeros_like(counts)
        late[:, 1:] = counts[:, :-1]
        counts = (1 - detector.afterglow) * counts + detector.afterglow * late
    if detector.readout_e > 0:
        counts += rng.normal(0, detector.readout_e, counts.shape)
    image = detector.offset + detector.gain * counts
    if detector.integer:
        image = np.clip(np.round(image), 0, None)
    return image.astype(np.float32)


def disturbed_scan(shape: tuple[int, int], pixel_nm: float, *, rng: np.random.Generator,
                   jitter_nm: float = 0.0, flyback_nm: float = 0.0, drift_nm: tuple[float, float] = (0.0, 0.0),
                   origin_nm: tuple[float, float] | None = None) -> Scan:
    """A scan with line jitter, low-frequency pickup and drift.

    Parameters
    ----------
    shape : (int, int)
        (H, W) [px].
    pixel_nm : float
        Pixel size [nm].
    rng : numpy.random.Generator
        Source of the jitter.
    jitter_nm : float
        Standard deviation of the independent displacement of each line, along x; half of it along y [nm].
    flyback_nm : float
        Amplitude of the displacement along x that swings slowly from line to line (mains pickup at the start
        of the lines) [nm].
    drift_nm : (float, float)
        Drift (y, x) of the specimen between the first and the last line [nm].
    origin_nm : (float, float), optional
        See `Scan`.
    """
    scan = Scan.regular(shape, pixel_nm, origin_nm)
    lines = np.arange(shape[0])
    progress = lines / max(shape[0] - 1, 1) - 0.5
    dy = drift_nm[0] * progress + rng.normal(0, 0.5 * jitter_nm, shape[0])
    dx = drift_nm[1] * progress + rng.normal(0, jitter_nm, shape[0])
    if flyback_nm > 0:
        dx = dx + flyback_nm * np.sin(2 * np.pi * lines * rng.uniform(0.01, 0.2) + rng.uniform(0, 2 * np.pi))
    return Scan(scan.shape, pixel_nm, scan.origin_nm, dy, dx)


def smooth_field(shape: tuple[int, int], scale_px: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(H, W) Gaussian random field of unit variance with a correlation length of about `scale_px` pixels."""
    step = max(scale_px / 4.0, 1.0)
    coarse = tuple(int(np.ceil(n / step)) + 2 for n in shape)
    field = gaussian_filter(rng.standard_normal(coarse), scale_px / step, mode="wrap")
    field = zoom(field, (shape[0] / coarse[0], shape[1] / coarse[1]), order=1, grid_mode=True, mode="nearest")
    field = field[:shape[0], :shape[1]] - field.mean()
    return field / max(float(field.std()), 1e-12)


def blobs(fov_nm: tuple[float, float], *, coverage: float, scale_nm: float,
          rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """A patchy thickness field: zero over most of the image, rising to about one inside patches.

    Returns
    -------
    field : (h, w) float64
        Thickness in arbitrary units on a grid of `pitch` nm that covers the field of view.
    pitch : float
        Grid spacing [nm].
    """
    pitch = max(min(scale_nm / 5.0, 0.1), max(fov_nm) / 400.0)
    shape = (max(int(np.ceil(fov_nm[0] / pitch)), 4), max(int(np.ceil(fov_nm[1] / pitch)), 4))
    field = smooth_field(shape, scale_nm / pitch, rng)
    level = np.quantile(field, 1.0 - coverage)
    return np.clip((field - level) / 0.7, 0.0, None), pitch


def amorphous_atoms(thickness: NDArray[np.float64], pitch: float, *, atoms_per_nm2: float,
                    rng: np.random.Generator) -> NDArray[np.float64]:
    """(K, 2) random positions (y, x) [nm] of the atoms of an amorphous layer, density following `thickness`."""
    expected = thickness * (atoms_per_nm2 * pitch**2)
    counts = rng.poisson(expected)
    rows, columns = np.nonzero(counts)
    repeat = counts[rows, columns]
    cells = np.stack([np.repeat(rows, repeat), np.repeat(columns, repeat)], axis=1).astype(np.float64)
    return (cells + rng.random(cells.shape)) * pitch


def sample_field(field: NDArray[np.float64], pitch: float, yx_nm: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) values of a gridded field at positions (N, 2) [nm] (bilinear, edge values outside)."""
    place = yx_nm / pitch - 0.5
    row, column = (np.clip(place[:, k], 0, field.shape[k] - 1.001) for k in (0, 1))
    r, c = row.astype(int), column.astype(int)
    fr, fc = row - r, column - c
    return ((1 - fr) * ((1 - fc) * field[r, c] + fc * field[r, c + 1])
            + fr * ((1 - fc) * field[r + 1, c] + fc * field[r + 1, c + 1]))


def bad_pixels(image: NDArray[np.float32], *, hot: int, dead_lines: int,
               rng: np.random.Generator) -> NDArray[np.float32]:
    """A copy with some hot pixels and some lines missing (zero, or the line's start value held)."""
    damaged = image.copy()
    height, width = image.shape
    if hot:
        rows, columns = rng.integers(0, height, hot), rng.integers(0, width, hot)
        damaged[rows, columns] = image.max() * rng.uniform(1.5, 8.0, hot)
    for row in rng.integers(0, height, dead_lines):
        damaged[row] = 0.0 if rng.random() < 0.7 else damaged[row, 0]
    return damaged
