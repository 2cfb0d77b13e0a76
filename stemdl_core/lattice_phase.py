"""Phase of the host lattice: where it is in a frame, modulo a lattice vector, and how it moves within it.

References
----------
Hytch, Snoeck & Kilaas, Ultramicroscopy 74, 131 (1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .lattice import LatticeFit
from .spectrum import bin_image, flatten_image

#: Pixels to a lattice constant after binning.
_CELL_PX = 8.0
#: The lattice counts as seen where its phase is known better than this [nm] ...
_VISIBLE_NM = 0.035
#: ... and agrees with the lattice of the frames before by this many standard deviations; the best of all
#: shifts of pure noise reaches 4.
_VISIBLE_SIGMAS = 5.0
#: With fewer located atoms the image is used.
_ENOUGH_SITES = 12
#: Scatter of located atoms lowers their structure factors; this part of its full size remains as noise.
_SITE_NOISE = 0.4
#: Parts of the frame: the whole, the upper and the lower half.
_PARTS = ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))
_GRID = np.stack(np.meshgrid(*[np.arange(16) / 16] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
#: {10}, {11} and {20} of lattice vectors 60 degrees apart (the reciprocal ones are 120 degrees apart).
_INDEX = np.array([(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, 0), (0, 2), (2, 2)], dtype=np.float64)


@dataclass(frozen=True)
class Coefficients:
    """Fourier coefficients (3, N) of the lattice in the whole frame and its halves, and their noise power."""

    values: NDArray[np.complex128]
    noise: NDArray[np.float64]


@dataclass(frozen=True)
class Offset:
    """Shift of the lattice against the reference.

    Parameters
    ----------
    shift_nm : (2,) float64
        (y, x), modulo a lattice vector [nm].
    within_nm : (2,) float64
        Shift from the first to the last line of the frame, relative to the lattice fit [nm].
    sigma_nm : float
        Standard error of `shift_nm` along an axis [nm].
    seen : bool
        Whether there is a lattice.
    """

    shift_nm: NDArray[np.float64]
    within_nm: NDArray[np.float64]
    sigma_nm: float
    seen: bool


class LatticePhase:
    """Measures shifts of one lattice against the mean of the frames before.

    Parameters
    ----------
    fit : LatticeFit
        Lattice of the movie.
    shape : (H, W)
        Size of the frames [px].
    basis_nm : (2, 2) float64
        Its lattice vectors as rows (y, x) [nm].
    """

    def __init__(self, fit: LatticeFit, shape: tuple[int, int], basis_nm: NDArray[np.float64]) -> None:
        self._shape = shape
        self._cell = float(np.mean(np.hypot(*fit.basis_px.T)))
        self._binning = max(1, int(self._cell / _CELL_PX))
        g_px = _INDEX @ fit.reciprocal
        inside = np.hypot(*g_px.T) * self._binning < 0.45
        self._index, self._g_px = _INDEX[inside], g_px[inside]
        self._basis_nm = basis_nm
        self._g_nm = self._index @ np.linalg.inv(basis_nm).T
        self._turns = np.exp(2j * np.pi * _GRID @ self._index.T)
        self._reference: NDArray[np.complex128] | None = None
        self._frames = 0

    def coefficients(self, image: NDArray[np.float32], sites_px: ArrayLike | None = None) -> Coefficients:
        """Fourier coefficients about the centre of the image; of located atoms (N, 2) [px], if enough."""
        if sites_px is not None:
            yx = np.asarray(sites_px, dtype=np.float64).reshape(-1, 2)
            if len(yx) >= _ENOUGH_SITES:
                return self._of_sites(yx)
        g, (height, width) = self._g_px, self._shape
        flat = flatten_image(bin_image(image, self._binning), self._cell / self._binning)
        weighted = flat.weighted(flat.levels[0])
        y, x = (np.arange(n) * self._binning + (self._binning - 1) / 2 for n in weighted.shape)
        # Frequencies next to the spots, off by 2.7 widths of the window, show the noise.
        beside = np.array([(a, b) for a in (-1, 1) for b in (-1, 1)]) * 2.7 / np.array(self._shape)
        probed = np.concatenate([g, (g[:, None] + beside).reshape(-1, 2)])
        wave_x = np.exp(-2j * np.pi * probed[:, 1:] * (x - (width - 1) / 2)) * _taper(x, 0, width)
        wave_y = np.exp(-2j * np.pi * probed[:, :1] * (y - (height - 1) / 2))
        across = (weighted @ wave_x.T.astype(np.complex64)).T
        tapers = [_taper(y, a * height, b * height) for a, b in _PARTS]
        values = np.array([(wave_y * taper * across).sum(axis=1) for taper in tapers])
        noise = (np.abs(values[:, len(g):])**2).reshape(len(_PARTS), len(g), 4).mean(axis=2)
        # Four values are few: the mean over all spots steadies them.
        noise = 0.5 * noise + 0.5 * noise.mean(axis=1, keepdims=True) + 1e-12
        return Coefficients(values[:, :len(g)], noise)

    def _of_sites(self, yx: NDArray[np.float64]) -> Coefficients:
        """Structure factors of located atoms."""
        height, width = self._shape
        wave = np.exp(-2j * np.pi * self._g_px @ (yx - (np.array(self._shape) - 1) / 2).T)
        tapers = [_taper(yx[:, 0], a * height, b * height) * _taper(yx[:, 1], 0, width) for a, b in _PARTS]
        values = np.array([wave @ taper for taper in tapers])
        noise = np.array([_SITE_NOISE * float((taper**2).sum()) + 1e-12 for taper in tapers])
        return Coefficients(values, np.repeat(noise[:, None], len(wave), axis=1))

    def offset(self, found: Coefficients) -> Offset:
        """Shift of a frame against the reference; the first frame has none."""
        if self._reference is None:
            return Offset(np.zeros(2), np.zeros(2), 0.0, True)
        term = self._reference.conj() * found.values[0] / found.noise[0]
        whole = self._climb(term, _GRID[int(np.argmax((self._turns @ term).real))])
        strength = 2 * np.maximum(np.abs(found.values[0])**2 / found.noise[0] - 1, 0.02)
        information = 4 * np.pi**2 * (self._g_nm.T * strength) @ self._g_nm
        sigma = math.sqrt(0.5 * float(np.trace(np.linalg.inv(information))))
        agreement = float((term * np.exp(2j * np.pi * self._index @ whole)).real.sum())
        scatter = math.sqrt(0.5 * float((np.abs(self._reference)**2 / found.noise[0]).sum()))
        upper, lower = (self._climb(self._reference.conj() * found.values[k] / found.noise[k], whole)
                        for k in (1, 2))
        # Half a frame lies between the middles of its halves.
        within = 2 * (lower - upper) @ self._basis_nm
        return Offset(whole @ self._basis_nm, within, sigma,
                      sigma < _VISIBLE_NM and agreement > _VISIBLE_SIGMAS * scatter)

    def _climb(self, term: NDArray[np.complex128], start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Nearest maximum of the correlation, in lattice vectors."""
        offset = start
        for _ in range(4):
            wave = term * np.exp(2j * np.pi * self._index @ offset)
            slope = -2 * np.pi * self._index.T @ wave.imag
            stiffness = np.maximum(wave.real, 1e-9 * np.abs(wave))
            curvature = 4 * np.pi**2 * (self._index.T * stiffness) @ self._index
            offset = offset + np.clip(np.linalg.lstsq(curvature, slope, rcond=None)[0], -0.05, 0.05)
        return offset

    def learn(self, found: Coefficients, drift_nm: NDArray[np.float64]) -> None:
        """Add a frame, its drift removed, to the reference."""
        aligned = found.values[0] * np.exp(2j * np.pi * self._g_nm @ drift_nm)
        share = max(1 / (self._frames + 1), 0.02)
        self._reference = aligned if self._reference is None else (
            (1 - share) * self._reference + share * aligned)
        self._frames += 1


def _taper(y: NDArray[np.floating], low: float, high: float) -> NDArray[np.float64]:
    """Hann window from low to high [px], 0 elsewhere."""
    inside = (y >= low - 0.5) & (y < high - 0.5)
    return np.where(inside, np.sin(np.pi * (y + 0.5 - low) / (high - low))**2, 0.0)
