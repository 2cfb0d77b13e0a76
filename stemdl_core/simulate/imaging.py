"""From atoms to a noise-free scanned image: Z-contrast columns under a probe with tails, sampled line by line.

The image of a thin specimen in high-angle annular dark field is the incoherent sum of its columns, each of
intensity Z^n (n = 1.5-1.8 depending on the detector's angles), convolved with the probe [1]_ [2]_. A STEM pixel
is a *point sample* of that sum at the position where the probe stood, so a scan that is displaced line by line
(jitter, drift) moves the sampling points, and with them the apparent position of every atom.

References
----------
.. [1] Krivanek et al., Nature 2010, 464, 571.
.. [2] Ziatdinov et al., ACS Nano 2017, 11, 12742.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Probe:
    """The intensity profile of a column: a sum of two round Gaussians.

    Parameters
    ----------
    sigma_nm : float
        Standard deviation of the core (probe, source size and thermal motion together) [nm].
    tail_sigma_nm : float
        Standard deviation of the tail that residual aberrations and the source leave [nm].
    tail_fraction : float
        Part of the electrons that is in the tail (0 to 1).
    """

    sigma_nm: float = 0.050
    tail_sigma_nm: float = 0.150
    tail_fraction: float = 0.25

    def __post_init__(self) -> None:
        if not (self.sigma_nm > 0 and self.tail_sigma_nm > 0 and 0 <= self.tail_fraction < 1):
            raise ValueError(f"probe needs positive widths and a tail fraction in [0, 1), not {self}")

    @property
    def components(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((weight, sigma_nm), (weight, sigma_nm)), the weights adding up to one."""
        return (1.0 - self.tail_fraction, self.sigma_nm), (self.tail_fraction, self.tail_sigma_nm)


@dataclass(frozen=True)
class Scan:
    """Where the probe stood: a raster whose lines may be displaced.

    Parameters
    ----------
    shape : (int, int)
        (H, W) [px].
    pixel_nm : float
        Pixel size [nm].
    origin_nm : (float, float)
        Specimen position (y, x) of the centre of pixel (0, 0) [nm].
    line_dy_nm, line_dx_nm : (H,) float64
        Displacement of the probe from its nominal position in every line [nm]. Slow drift makes them ramps,
        jitter makes them random.
    """

    shape: tuple[int, int]
    pixel_nm: float
    origin_nm: tuple[float, float]
    line_dy_nm: NDArray[np.float64]
    line_dx_nm: NDArray[np.float64]

    @classmethod
    def regular(cls, shape: tuple[int, int], pixel_nm: float,
                origin_nm: tuple[float, float] | None = None) -> Scan:
        """An undisturbed raster; by default the field of view starts at (0, 0) with half a pixel inside."""
        if origin_nm is None:
            origin_nm = (0.5 * pixel_nm, 0.5 * pixel_nm)
        return cls(shape, pixel_nm, origin_nm, np.zeros(shape[0]), np.zeros(shape[0]))

    @property
    def line_y_nm(self) -> NDArray[np.float64]:
        """(H,) specimen position y of every line [nm]."""
        return self.origin_nm[0] + self.pixel_nm * np.arange(self.shape[0]) + self.line_dy_nm

    def apparent_px(self, yx_nm: ArrayLike, width_nm: float) -> NDArray[np.float64]:
        """Where atoms appear in the image, with the distortions of the scan in it.

        The apparent position is that of the centroid of the column's scanned profile: every line near the
        atom counts with the column's own profile in y.

        Parameters
        ----------
        yx_nm : (N, 2) array_like
            Positions on the specimen (y, x) [nm].
        width_nm : float
            Standard deviation of the column's profile [nm].

        Returns
        -------
        (N, 2) float64
            Apparent positions (y, x) [px].
        """
        yx = np.asarray(yx_nm, dtype=np.float64).reshape(-1, 2)
        nominal = (yx - np.asarray(self.origin_nm)) / self.pixel_nm
        if not (self.line_dy_nm.any() or self.line_dx_nm.any()):
            return nominal
        rows = np.arange(self.shape[0])
        # Square of the profile: the weight with which a line enters a least-squares position.
        weight = np.exp(-((self.line_y_nm[None, :] - yx[:, :1]) / width_nm) ** 2)
        norm = weight.sum(axis=1)
        seen = norm > 1e-6
        apparent = nominal.copy()
        weight = weight[seen] / norm[seen, None]
        # A line that was displaced by +dy shows at its nominal row what lies at +dy: the atom appears higher up.
        apparent[seen, 0] -= weight @ self.line_dy_nm / self.pixel_nm
        apparent[seen, 1] -= weight @ self.line_dx_nm / self.pixel_nm
        apparent[~seen, 0] -= np.interp(nominal[~seen, 0], rows, self.line_dy_nm) / self.pixel_nm
        apparent[~seen, 1] -= np.interp(nominal[~seen, 0], rows, self.line_dx_nm) / self.pixel_nm
        return apparent


#: Atomic number at which an atom is half as bright as the power law of light atoms says.
SATURATION_Z = 84.0


def column_intensity(atomic_numbers: ArrayLike, exponent: float = 1.64) -> NDArray[np.float64]:
    """Relative HAADF intensity of single atoms (N,), carbon = 1: Z^n, saturating for heavy atoms.

    Strong scatterers fall behind the power law: tungsten is 1.8 to 1.9 times as bright as molybdenum, not 2.5.
    Z^n / (1 + (Z / 84)^2) with n between 1.55 and 1.95 is within 8 % of multislice calculations at 60 kV and
    32 mrad for C, N, Si, S, Se, Mo and W on detectors from 50-180 to 80-200 mrad (`tests/test_multislice.py`).

    References
    ----------
    Krivanek et al., Nature 2010, 464, 571 (n = 1.64 for light atoms at 60 kV, 58-200 mrad).
    """
    ratio = np.asarray(atomic_numbers, dtype=np.float64) / SATURATION_Z
    carbon = 6.0 / SATURATION_Z
    return (ratio / carbon) ** exponent * (1 + carbon**2) / (1 + ratio**2)


#: Side of the tiles that an image is rendered in [px].
_TILE_PX = 128


def render(yx_nm: ArrayLike, intensity: ArrayLike, *, scan: Scan, probe: Probe) -> NDArray[np.float64]:
    """Noise-free image of columns under a probe.

    Parameters
    ----------
    yx_nm : (N, 2) array_like
        Column positions (y, x) [nm], sub-pixel.
    intensity : (N,) array_like
        Integrated intensity of each column.
    scan : Scan
        Where the probe stood.
    probe : Probe
        Profile of a column.

    Returns
    -------
    (H, W) float64
        Intensity per nm^2: an isolated column sums to ``intensity / pixel_nm**2``.
    """
    yx = np.asarray(yx_nm, dtype=np.float64).reshape(-1, 2)
    weights: NDArray[np.float64] = np.asarray(intensity, dtype=np.float64).reshape(-1)
    height, width = scan.shape
    jittered = bool(scan.line_dx_nm.any())
    # Lines are displaced along x after rendering, by a Fourier shift of each line: exact for a band-limited
    # image; the margin keeps the periodic continuation out of the field of view.
    margin = int(np.ceil(np.abs(scan.line_dx_nm).max() / scan.pixel_nm)) + 8 if jittered else 0
    line_y = scan.line_y_nm
    column_x = scan.origin_nm[1] + scan.pixel_nm * np.arange(-margin, width + margin)
    image = np.zeros((height, width + 2 * margin))
    for share, sigma in probe.components:
        if share <= 0:
            continue
        _add_gaussians(image, line_y, column_x, yx, weights * (share / (2 * np.pi * sigma**2)), sigma)
    if not jittered:
        return image
    frequency = np.fft.rfftfreq(image.shape[1])
    phase = np.exp(2j * np.pi * frequency[None, :] * (scan.line_dx_nm / scan.pixel_nm)[:, None])
    shifted = np.fft.irfft(np.fft.rfft(image, axis=1) * phase, n=image.shape[1], axis=1)
    return shifted[:, margin:margin + width]


def _add_gaussians(image: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.floating],
                   yx: NDArray[np.float64], height: NDArray[np.float64], sigma: float) -> None:
    """Add round Gaussians of given heights to an image whose rows and columns lie at `y` and `x`.

    They are separable: a tile of the image is one matrix product, over the columns near it alone. Beyond six
    standard deviations a Gaussian is 1.5e-8 of its height.
    """
    reach = 6 * sigma
    near = np.flatnonzero((yx[:, 0] > y.min() - reach) & (yx[:, 0] < y.max() + reach)
                          & (yx[:, 1] > x.min() - reach) & (yx[:, 1] < x.max() + reach))
    near = near[np.argsort(yx[near, 0], kind="stable")]
    yx, height = yx[near], height[near]
    profile_x = np.exp(-0.5 * ((x[None, :] - yx[:, 1, None]) / sigma) ** 2)
    for top in range(0, len(y), _TILE_PX):
        lines = y[top : top + _TILE_PX]
        first, last = np.searchsorted(yx[:, 0], (lines.min() - reach, lines.max() + reach))
        band = slice(int(first), int(last))
        profile_y = np.exp(-0.5 * ((lines[None, :] - yx[band, 0, None]) / sigma) ** 2) * height[band, None]
        for left in range(0, len(x), _TILE_PX):
            pixels = slice(left, left + _TILE_PX)
            beside = np.flatnonzero(np.abs(yx[band, 1] - 0.5 * (x[pixels].min() + x[pixels].max()))
                                    < reach + 0.5 * np.ptp(x[pixels]))
            if len(beside):
                image[top : top + _TILE_PX, pixels] += profile_y[beside].T @ profile_x[band, pixels][beside]
