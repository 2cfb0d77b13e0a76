"""Averaged power spectra of noisy lattice images, flat in the absence of a lattice.

The image is binned, flattened and clipped so that no single bright atom, hot pixel or contamination patch can
outweigh the crystal, cut into overlapping tiles of a few nanometres (Welch's method: scan distortion moves a
spot by less than its width within a tile), and divided by the noise floor at each spatial frequency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import uniform_filter, uniform_filter1d
from scipy.special import gammaincinv

#: Quantile of the power in an annulus from which the noise floor follows; below the median, because in a
#: field of 2 nm the lattice spots themselves cover a third of their annulus.
_FLOOR_QUANTILE = 0.35
#: Zero padding of the search spectrum: without it a spot between two bins loses half its power.
_PADDING = 1.5
#: Flattened intensities are clipped at this many local standard deviations.
_CLIP_SIGMAS = 3.0
#: The floor ends this far below its largest value: a smoothed image has no noise to compare with at high
#: frequency.
_FLOOR_RANGE = 1e-3
#: Range of a direction's noise relative to the mean over directions. Never less than the mean: where a smoothed
#: image has no noise at all, the floor would follow it down.
_DIRECTION_RANGE = (1.0, 30.0)
#: The window is half a cosine in each direction: a spot's position comes out with half the variance a Hann
#: window would leave, and the side lobes of a spot are below 1e-4 at its neighbours (7 bins away in a field
#: of 1.5 nm). From its moments: the curvature of the power around a spot, P = P0 (1 - c (T df)^2), and the
#: ratio of the variance of the maximum's position to the inverse of 2 c P0 T^2 / floor.
_FIRST, _SECOND = 1 / 4 - 2 / math.pi**2, 1 / 12 - 1 / (2 * math.pi**2)
WINDOW_CURVATURE = 4 * math.pi**2 * _FIRST
WINDOW_VARIANCE_RATIO = _SECOND / _FIRST


def bin_image(image: NDArray[np.floating], factor: int) -> NDArray[np.float32]:
    """Mean of blocks of (factor, factor) pixels; a rest at the lower and right border is dropped."""
    if factor <= 1:
        return np.ascontiguousarray(image, dtype=np.float32)
    h, w = image.shape[0] // factor, image.shape[1] // factor
    rows = image[: h * factor, : w * factor].reshape(h, factor, w * factor).sum(axis=1, dtype=np.float32)
    return np.einsum("hwf->hw", rows.reshape(h, w, factor)) * np.float32(1 / factor**2)


def waves(frequency: NDArray[np.float64], at: NDArray[np.floating]) -> NDArray[np.complex64]:
    """(N, M) values exp(-2 pi i f x) of frequencies (N,) [cycles/px] at positions (M,) [px]."""
    turns = frequency[:, None] * at
    # Whole turns taken off in double precision; the rest is exact enough in single.
    angle = (-2 * np.pi * (turns - np.rint(turns))).astype(np.float32)
    out = np.empty(angle.shape, np.complex64)
    out.real, out.imag = np.cos(angle), np.sin(angle)
    return out


@dataclass(frozen=True)
class Flat:
    """An image without what is slower than the lattice.

    Parameters
    ----------
    rest : (H, W) float32
        Intensities relative to their surroundings.
    variance : (H, W) float32
        Local variance of the rest.
    levels : tuple of float
        Variances below which all pixels get the same weight, in the order in which they should be tried.
        The median: half of the image is clean crystal. A low one: contamination covers most of it. A high
        one: holes do. Only one where the variance is the same all over.
    """

    rest: NDArray[np.float32]
    variance: NDArray[np.float32]
    levels: tuple[float, ...]

    def weighted(self, level: float) -> NDArray[np.float32]:
        """The rest over its local variance, as shot noise calls for: clean parts outweigh others."""
        weighted = self.rest * (np.float32(math.sqrt(level)) / np.maximum(self.variance, np.float32(level)))
        return np.clip(weighted, -_CLIP_SIGMAS, _CLIP_SIGMAS)


def flatten_image(image: NDArray[np.float32], period_px: float) -> Flat:
    """Remove what is slower than the lattice and limit what is brighter.

    Parameters
    ----------
    image : (H, W) float32
        Intensities.
    period_px : float
        The lattice constant [px], roughly.
    """
    # One hot pixel would weigh down everything within a lattice constant of it: first a limit for all.
    stride = 1 + image.size // 12000
    dark, middle, bright = np.quantile(image.ravel()[::stride | 1], (0.02, 0.5, 0.98))
    image = np.clip(image, dark - 1.5 * (middle - dark), bright + 1.5 * (bright - middle))
    size = max(3, 2 * round(0.65 * period_px) + 1)
    slow = uniform_filter(uniform_filter(image, size, mode="nearest"), size, mode="nearest")
    rest = image - slow
    variance = uniform_filter(rest * rest, size, mode="nearest")
    np.maximum(variance, 0, out=variance)
    sample = variance.ravel()[::stride | 1]
    low, middle, loud, high = np.quantile(sample, (0.15, 0.5, 0.75, 0.85)).tolist()
    least = 0.003 * loud or float(variance.mean()) or 1.0
    levels = [max(middle, least)]
    levels += [max(low, least)] if low < 0.4 * middle else []
    levels += [high] if high > 2.5 * levels[0] else []
    return Flat(rest, variance, tuple(levels))


@dataclass(frozen=True)
class Spectrum:
    """Whitened power spectrum of an image, on a grid and (by `at`) at any frequency.

    Parameters
    ----------
    tiles : (K, h, w) float32
        Windowed tiles.
    power : (n, m // 2 + 1) float32
        Power on the half plane fx >= 0 relative to the noise floor: mean 1 where there is no signal.
    grid : (n, m)
        Padded size of the transform.
    floor_f, floor_log : (R,) float64
        Radial frequency [cycles/px] and logarithm of the mean noise floor there.
    floor_y, floor_x : (n // 2 + 1,), (m // 2 + 1,) float64
        Logarithm of what the floor has more at a vertical or horizontal frequency than in the mean over
        directions: a slow detector smears the noise along the lines, the flyback adds noise between them.
    independent : float
        Number of independent spectra averaged.
    """

    tiles: NDArray[np.float32]
    power: NDArray[np.float32]
    grid: tuple[int, int]
    floor_f: NDArray[np.float64]
    floor_log: NDArray[np.float64]
    floor_y: NDArray[np.float64]
    floor_x: NDArray[np.float64]
    independent: float

    @property
    def tile_px(self) -> tuple[int, int]:
        """(height, width) of a tile [px]."""
        return self.tiles.shape[1], self.tiles.shape[2]

    def look_up(self, fy: NDArray[np.float64], fx: NDArray[np.float64]) -> NDArray[np.float32]:
        """Power at the grid points nearest to frequencies [cycles/px] of any shape; 0 beyond Nyquist."""
        n, m = self.grid
        sign = np.where(fx < 0, -1.0, 1.0)
        iy = np.rint(fy * sign * n).astype(np.intp)
        ix = np.rint(fx * sign * m).astype(np.intp)
        inside = (np.abs(iy) < n // 2) & (ix < m // 2)
        value = self.power[np.where(inside, iy, 0) % n, np.where(inside, ix, 0)]
        return np.where(inside, value, np.float32(0))

    def floor(self, g: NDArray[np.float64]) -> NDArray[np.float64]:
        """Noise floor at frequencies (N, 2) [cycles/px]."""
        fy, fx = np.abs(g).T
        log = np.interp(np.hypot(fy, fx), self.floor_f, self.floor_log)
        log += np.interp(fy * self.grid[0], np.arange(len(self.floor_y)), self.floor_y)
        log += np.interp(fx * self.grid[1], np.arange(len(self.floor_x)), self.floor_x)
        return np.exp(log)

    def at(self, g: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Whitened power and its gradient at any frequency.

        Parameters
        ----------
        g : (N, 2) float64
            Frequencies (fy, fx) [cycles/px].

        Returns
        -------
        power : (N,) float64
        gradient : (N, 2) float64
            Derivative of the power with respect to fy and fx [px].
        """
        k, h, w = self.tiles.shape
        n = len(g)
        y = np.arange(h) - (h - 1) / 2
        x = np.arange(w) - (w - 1) / 2
        ey, ex = waves(g[:, 0], y), waves(g[:, 1], x)
        left = np.concatenate((ey.real, ey.imag, ey.real * y, ey.imag * y), dtype=np.float32)
        part = np.matmul(left, self.tiles).reshape(k, 4, n, w)
        plain = part[:, 0] + 1j * part[:, 1]
        slope = part[:, 2] + 1j * part[:, 3]
        value = np.einsum("knw,nw->kn", plain, ex)
        dy = -2j * np.pi * np.einsum("knw,nw->kn", slope, ex)
        dx = -2j * np.pi * np.einsum("knw,nw->kn", plain, ex * x.astype(np.float32))
        scale = 1.0 / (k * self.floor(g))
        power = scale * (np.abs(value) ** 2).sum(axis=0)
        gradient = 2 * scale[:, None] * np.stack(
            [(value.conj() * d).real.sum(axis=0) for d in (dy, dx)], axis=1)
        return power.astype(np.float64), gradient.astype(np.float64)


def spectrum(flat: NDArray[np.float32], *, tile_px: float, most_tiles: int = 4) -> Spectrum:
    """Averaged and whitened spectrum of a flattened image.

    Parameters
    ----------
    flat : (H, W) float32
        From `flatten_image`.
    tile_px : float
        Largest side of a tile that is wanted [px].
    most_tiles : int
        Most tiles along an axis; with more the tiles are spread out evenly and no longer overlap.
    """
    starts, sides = zip(*(_cuts(length, tile_px, most_tiles) for length in flat.shape))
    h, w = sides
    window = _window(h, w)
    tiles = np.stack([flat[a:a + h, b:b + w] * window for a in starts[0] for b in starts[1]])
    n, m = (fft.next_fast_len(math.ceil(_PADDING * s / 2), real=True) * 2 for s in sides)
    transform = fft.rfft2(tiles, s=(n, m))
    power = np.einsum("knm,knm->nm", transform.real, transform.real)
    power += np.einsum("knm,knm->nm", transform.imag, transform.imag)
    power /= len(tiles)
    independent = math.prod(_independent(a, side) for a, side in zip(starts, sides))
    radius, order, spans, centers = _annuli(n, m, h, w)
    expected = float(gammaincinv(independent, _FLOOR_QUANTILE)) / independent
    flat_power = power.ravel()[order]
    ranks = [int(_FLOOR_QUANTILE * (b - a)) for a, b in spans]
    floor = np.array([np.partition(flat_power[a:b], k)[k] for (a, b), k in zip(spans, ranks)]) / expected
    floor_log = np.log(np.maximum(floor, max(_FLOOR_RANGE * float(floor.max()), 1e-30)))
    whitened = power * np.exp(-np.interp(radius, centers, floor_log)).astype(np.float32)
    floor_x = _excess_log(whitened, expected)
    whitened *= np.exp(-floor_x).astype(np.float32)
    # Rows of opposite frequency share a floor.
    folded = np.concatenate((whitened[: n // 2 + 1], whitened[(-np.arange(n // 2 + 1)) % n]), axis=1)
    floor_y = _excess_log(folded.T, expected)
    whitened *= np.exp(-floor_y[np.minimum(np.arange(n), n - np.arange(n))]).astype(np.float32)[:, None]
    return Spectrum(tiles, whitened, (n, m), centers, floor_log, floor_y, floor_x, independent)


def _excess_log(whitened: NDArray[np.float32], expected: float) -> NDArray[np.float64]:
    """Logarithm of the noise in each column relative to the mean; spots are too few to matter in a column."""
    rank = int(_FLOOR_QUANTILE * len(whitened))
    level = np.partition(whitened, rank, axis=0)[rank].astype(np.float64) / expected
    return uniform_filter1d(np.log(np.clip(level, *_DIRECTION_RANGE)), 3, mode="nearest")


def _cuts(length: int, wanted: float, most: int) -> tuple[list[int], int]:
    """Starts of the tiles along an axis, and their side."""
    if length <= 1.35 * wanted:
        return [0], length
    side = max(8, int(wanted))
    count = min(most, math.ceil((length - side) / (side / 2)) + 1)
    return [round(i * (length - side) / (count - 1)) for i in range(count)], side


def _independent(starts: list[int], side: int) -> float:
    """Number of independent spectra that overlapping tiles amount to, along one axis."""
    shift = np.minimum(np.abs(np.subtract.outer(starts, starts)) / side, 1.0)
    overlap = (1 - shift) * np.cos(np.pi * shift) + np.sin(np.pi * shift) / np.pi
    return len(starts)**2 / float((overlap**2).sum())


@lru_cache(maxsize=64)
def _window(h: int, w: int) -> NDArray[np.float32]:
    """Cosine window with unit power, so that white noise of variance 1 has a spectrum of 1."""
    window = np.outer(np.sin(np.pi * (np.arange(h) + 0.5) / h), np.sin(np.pi * (np.arange(w) + 0.5) / w))
    return (window / np.sqrt((window**2).sum())).astype(np.float32)


@lru_cache(maxsize=32)
def _annuli(n: int, m: int, h: int, w: int):  # type: ignore[no-untyped-def]
    """Radial frequency of each cell, cells in its order, and overlapping spans of them: annuli."""
    fy = np.abs(np.fft.fftfreq(n))[:, None]
    fx = np.arange(m // 2 + 1)[None, :] / m
    radius = np.hypot(fy, fx)
    flat = radius.ravel()
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    step = 1.0 / min(h, w)
    centers, spans = [], []
    center = 1.5 * step
    while center < 0.5:
        half = max(1.5 * step, 0.06 * center)
        a, b = np.searchsorted(ordered, (center - half, center + half))
        if b - a >= 12:
            centers.append(center)
            spans.append((int(a), int(b)))
        center += half
    if not spans:
        centers, spans = [0.25], [(0, len(order))]
    return radius.astype(np.float32), order, spans, np.array(centers)
