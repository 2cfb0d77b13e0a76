"""The host lattice in an image: its basis, and from it the true pixel size, anisotropy and shear of the scan.

A basis is fitted, not the strongest spot: every trial lattice is scored by the power at all its reciprocal
vectors relative to the noise, against what the structure factor and a probe of plausible size allow. So a
hexagonal {11} spot is not taken for a {10} spot, and a lattice too faint to show single spots is still found.

References
----------
Welch, IEEE Trans. Audio Electroacoust. 15, 70 (1967): averaged periodograms.
Hytch, Snoeck & Kilaas, Ultramicroscopy 74, 131 (1998): lattice phases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from .calibration import PixelSize
from .errors import CalibrationError
from .materials import Material
from .spectrum import WINDOW_CURVATURE, WINDOW_VARIANCE_RATIO, Spectrum, bin_image, flatten_image, spectrum

#: A lattice counts as seen above this quality (square root of twice the log-likelihood ratio to noise: standard
#: deviations, before the look-elsewhere effect, which is what makes the threshold this high).
QUALITY_THRESHOLD = 6.0
#: The true pixel size lies within this factor of a nominal one, either way.
NOMINAL_BAND = 1.25
#: Pixel sizes looked for when none is given [nm], and fields of view in which a lattice can be expected [nm].
PIXEL_RANGE_NM = (0.0025, 0.075)
FOV_RANGE_NM = (1.2, 45.0)
#: A nominal pixel size further off than this (and than three sigma of the fit) is corrected.
CORRECTION = 0.005
#: Prior standard deviation of the scan distortion: a fit that knows less than this leaves the scan undistorted.
DISTORTION_PRIOR = 0.012
#: Binning leaves this many pixels to a lattice constant (31 pm for graphene: enough for the {20} spots).
_PX_PER_CELL = 8.0
_TILE_NM_PER_CELL = 20.0
#: Gaussian probe sizes allowed for in the fall-off of the spots [nm].
_PROBE_SIGMA_NM = np.array([0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.085])
_AMPLITUDES = np.geomspace(0.3, 3e6, 34)
#: Degrees of freedom of the distortion's prior (Student's t: a badly calibrated scan is rare, not impossible), and
#: where it ends: images with 20 % between the directions exist.
_DISTORTION_FREEDOM = 3.0
_MOST_DISTORTION = 0.15


@dataclass(frozen=True)
class LatticeFit:
    """A hexagonal lattice found in an image.

    Parameters
    ----------
    basis_px : (2, 2) float64
        Rows are the real-space lattice vectors (y, x) [px], 60 degrees apart in the undistorted crystal.
    pixel_size_nm, pixel_size_sigma_nm : float
        True pixel size (geometric mean over directions) and its standard error [nm].
    distortion : (2, 2) float64
        Symmetric, determinant 1, acting on (y, x): ``pixel_size_nm * distortion @ step_px`` is free of the
        scan's anisotropy and shear. Shrunk towards the identity by a prior of `DISTORTION_PRIOR`.
    distortion_sigma : float
        Standard error of its elements.
    rotation_deg : float
        Direction of the first lattice vector, from +x towards +y, in [0, 60).
    quality : float
        Sqrt(2 log-likelihood ratio) against noise; above `QUALITY_THRESHOLD` in every fit that is returned.
    n_harmonics : int
        Reciprocal vectors (of opposite pairs, one) that stand out of the noise.
    origin_px : (2,) float64
        A centre of a hexagon (y, x) [px].
    sites : (2, 2) float64
        Fractional coordinates of the two sublattices relative to the origin; for MX2 the metal is first.
    material : str
        Name of the material the scale follows from.
    """

    basis_px: NDArray[np.float64]
    pixel_size_nm: float
    pixel_size_sigma_nm: float
    distortion: NDArray[np.float64]
    distortion_sigma: float
    rotation_deg: float
    quality: float
    n_harmonics: int
    origin_px: NDArray[np.float64]
    sites: NDArray[np.float64]
    material: str

    @property
    def reciprocal(self) -> NDArray[np.float64]:
        """(2, 2) float64: rows are the reciprocal vectors (fy, fx) [cycles/px] dual to `basis_px`."""
        return np.linalg.inv(self.basis_px).T

    def nodes(self, shape: tuple[int, int], *, margin_px: float = 0.0) -> tuple[NDArray[np.float64],
                                                                                NDArray[np.intp]]:
        """Ideal sites in an image.

        Parameters
        ----------
        shape : (H, W)
            Image size [px].
        margin_px : float
            Sites up to this far outside are included (inside, if negative) [px].

        Returns
        -------
        yx_px : (N, 2) float64
            Positions (y, x) [px].
        sublattice : (N,) int
            0 or 1.
        """
        low = np.array([-margin_px, -margin_px])
        high = np.array([shape[0] - 1 + margin_px, shape[1] - 1 + margin_px])
        corners = np.array([[a, b] for a in (low[0], high[0]) for b in (low[1], high[1])])
        fractional = (corners - self.origin_px) @ np.linalg.inv(self.basis_px)
        first, last = np.floor(fractional.min(axis=0)) - 1, np.ceil(fractional.max(axis=0)) + 1
        i, j = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(first, last)), indexing="ij")
        cells = np.stack((i.ravel(), j.ravel()), axis=1)
        yx = np.concatenate([self.origin_px + (cells + site) @ self.basis_px for site in self.sites])
        sublattice = np.repeat(np.arange(2), len(cells))
        inside = ((yx >= low) & (yx <= high)).all(axis=1)
        return yx[inside], sublattice[inside]


def fit_lattice(image: NDArray[np.float32], *, material: Material,
                nominal_pixel_size_nm: float | None = None) -> LatticeFit | None:
    """Find the host lattice in an image.

    Parameters
    ----------
    image : (H, W) float32
        Intensities, bright atoms.
    material : Material
        The host crystal: gives the scale.
    nominal_pixel_size_nm : float, optional
        Pixel size that is thought to be right [nm]; the true one is looked for within a factor `NOMINAL_BAND`.
        Without it, everything between `PIXEL_RANGE_NM` is tried.

    Returns
    -------
    LatticeFit or None
        None where no lattice stands out of the noise.
    """
    image = np.asarray(image, dtype=np.float32)
    best: _Candidate | None = None
    for nominal in _bands(image.shape, nominal_pixel_size_nm):
        found = _search(image, material, nominal)
        if found is not None and (best is None or found.llr > best.llr):
            best = found
    if best is None:
        return None
    if nominal_pixel_size_nm is None:
        best = _resolve_alias(best, material)
    if best.quality < QUALITY_THRESHOLD:
        return None
    return _finish(best, material)


def check_scale(image: NDArray[np.float32], material: Material,
                nominal: PixelSize | None) -> tuple[PixelSize, LatticeFit | None, tuple[str, ...]]:
    """Decide on the pixel size of an image.

    Parameters
    ----------
    image : (H, W) float32
        Intensities.
    material : Material
        The host crystal.
    nominal : PixelSize or None
        What the file or the user says.

    Returns
    -------
    pixel_size : PixelSize
        The one to use; ``source`` is 'lattice' where the lattice decided.
    fit : LatticeFit or None
        The lattice, if one is visible.
    warnings : tuple of str
        One line each, for the user.

    Raises
    ------
    CalibrationError
        No nominal pixel size and no lattice, or the two contradict each other.
    """
    width = image.shape[1]
    if nominal is None:
        fit = fit_lattice(image, material=material)
        if fit is None:
            raise CalibrationError(f"pixel size is unknown and no {material.name} lattice is visible to take it from: "
                                   "give the field of view or the pixel size")
        note = (f"pixel size {1e3 * fit.pixel_size_nm:.2f} pm (field of view {width * fit.pixel_size_nm:.2f} nm) "
                f"taken from the {material.name} lattice")
        return _from_fit(fit, None), fit, (note,)
    given = nominal.nominal_nm if nominal.nominal_nm is not None else nominal.nm
    _refuse_impossible(image.shape, given, material)
    fit = fit_lattice(image, material=material, nominal_pixel_size_nm=given)
    if fit is None:
        elsewhere = fit_lattice(image, material=material)
        if elsewhere is not None and elsewhere.quality > 1.15 * QUALITY_THRESHOLD:
            raise CalibrationError(
                f"field of view {width * given:.3g} nm contradicts the {material.name} lattice, "
                f"which says {width * elsewhere.pixel_size_nm:.3g} nm")
        return nominal, None, (f"no {material.name} lattice visible: the pixel size of {1e3 * given:.2f} pm "
                               "is used unchecked",)
    off = fit.pixel_size_nm / given - 1
    if abs(off) <= max(CORRECTION, 3 * fit.pixel_size_sigma_nm / given):
        return replace(nominal, distortion=_as_tuples(fit.distortion)), fit, ()
    note = (f"pixel size corrected from {1e3 * given:.2f} pm to {1e3 * fit.pixel_size_nm:.2f} pm ({100 * off:+.1f} %) "
            f"by the {material.name} lattice")
    return _from_fit(fit, given), fit, (note,)


def _refuse_impossible(shape: tuple[int, ...], pixel_nm: float, material: Material) -> None:
    """Refuse pixel sizes at which no lattice can be in the image, whatever it shows.

    Lattice planes closer than two pixels are beyond the sampling limit; fewer than two unit cells are no lattice.
    """
    width = shape[1] * pixel_nm
    if pixel_nm > 0.5 * (0.75**0.5 * material.lattice_nm):
        raise CalibrationError(f"field of view {width:.4g} nm is impossible: at {1e3 * pixel_nm:.4g} pm a pixel no "
                               f"{material.name} lattice can be seen")
    if min(shape) * pixel_nm < 2 * material.lattice_nm:
        raise CalibrationError(f"field of view {width:.4g} nm is impossible: it holds less than two unit cells of "
                               f"{material.name} ({2 * material.lattice_nm:.2g} nm)")


def _from_fit(fit: LatticeFit, given: float | None) -> PixelSize:
    return PixelSize(fit.pixel_size_nm, "lattice", given, _as_tuples(fit.distortion))


def _as_tuples(matrix: NDArray[np.float64]) -> tuple[tuple[float, float], tuple[float, float]]:
    (a, b), (c, d) = matrix.tolist()
    return (a, b), (c, d)


# ---------------------------------------------------------------------------------------------- trial lattices


def _list_harmonics() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (h, k) of the reciprocal vectors, one of each opposite pair, and N = h^2 + hk + k^2 of each."""
    found = [(h * h + h * k + k * k, h, k) for h in range(-4, 5) for k in range(-4, 5) if k > 0 or (k == 0 and h > 0)]
    table = np.array(sorted(t for t in found if t[0] in (1, 3, 4, 7, 9, 12)))
    return table[:, 1:], table[:, 0]


_HK, _NORM = _list_harmonics()
#: First and last (exclusive) index of the rings of equivalent vectors, and the members of each direction.
_RINGS = [(int(np.flatnonzero(_NORM == n)[0]), int(np.flatnonzero(_NORM == n)[-1]) + 1) for n in np.unique(_NORM)]
_FAMILIES = [np.flatnonzero(_HK[:, 0] * k == _HK[:, 1] * h) for h, k in _HK[np.isin(_NORM, (1, 3, 7))]]


@lru_cache(maxsize=16)
def _structure_factors(material: Material) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|F|^2 of each harmonic relative to {11}, and the intensities of the two sublattices.

    An annular dark-field detector sees about Z^1.7 (Krivanek et al., Nature 464, 571 (2010)); the chalcogen
    column holds two atoms. {11}-type vectors have both sublattices in phase, the others 120 degrees apart.
    """
    if material.kind == "honeycomb":
        first = second = 1.0
    else:
        first, second = (n * material.atomic_number(s)**1.7 for n, s in zip((1, 2), material.species))
    total = first + second
    first, second = first / total, second / total
    apart = first**2 + second**2 - first * second
    return np.where(_NORM % 3 == 0, 1.0, apart), np.array([first, second])


def _vectors(parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reciprocal vectors of all harmonics and their derivatives.

    Parameters
    ----------
    parameters : (4,) float64
        ln of the {10} frequency [cycles/px], rotation [rad], elongation and shear of the reciprocal lattice.

    Returns
    -------
    g : (N, 2) float64
        (fy, fx) [cycles/px].
    jacobian : (N, 2, 4) float64
    """
    log_u, theta, e1, e2 = parameters
    angles = theta + np.array([0.0, np.pi / 3])
    ideal = math.exp(log_u) * (_HK @ np.stack((np.sin(angles), np.cos(angles)), axis=1))
    turned = math.exp(log_u) * (_HK @ np.stack((np.cos(angles), -np.sin(angles)), axis=1))
    strain = np.array([[1 + e1, e2], [e2, 1 - e1]])
    g = ideal @ strain.T
    jacobian = np.stack((g, turned @ strain.T, ideal * np.array([1.0, -1.0]), ideal[:, ::-1]), axis=2)
    return g, jacobian


@dataclass
class _Evidence:
    """Log-likelihood ratio of a lattice to noise, the same without the direction that speaks loudest for it
    (stripes and edges have one direction, a crystal three), and the signal expected at each harmonic."""

    llr: float
    without_best: float
    signal: NDArray[np.float64]


@dataclass
class _Candidate:
    """A trial lattice on a spectrum of the binned image."""

    parameters: NDArray[np.float64]
    flat: NDArray[np.float32]
    spectrum: Spectrum
    binning: int
    llr: float
    without_best: float
    signal: NDArray[np.float64]
    power: NDArray[np.float64]
    information: NDArray[np.float64]

    @property
    def quality(self) -> float:
        return math.sqrt(2 * max(self.without_best, 0.0))


def _bands(shape: tuple[int, ...], nominal: float | None) -> list[float]:
    """Centres of the pixel size bands to search [nm]."""
    if nominal is not None:
        return [nominal]
    low = max(PIXEL_RANGE_NM[0], FOV_RANGE_NM[0] / max(shape))
    high = min(PIXEL_RANGE_NM[1], FOV_RANGE_NM[1] / max(shape))
    count = max(1, math.ceil(math.log(high / low) / math.log(NOMINAL_BAND**2)))
    return [low * (high / low)**((i + 0.5) / count) for i in range(count)]


def _search(image: NDArray[np.float32], material: Material, nominal: float) -> _Candidate | None:
    """The most likely lattice with a pixel size around a nominal one."""
    a_px = material.lattice_nm / nominal
    if a_px < 2.2 or a_px > 0.5 * min(image.shape):
        return None
    binning = max(1, int(a_px / _PX_PER_CELL))
    binned = bin_image(image, binning)
    cell = a_px / binning
    if min(binned.shape) < 12:
        return None
    flat = flatten_image(binned, cell)
    spec = spectrum(flat, tile_px=_TILE_NM_PER_CELL * cell)
    best: _Candidate | None = None
    center = math.log(2 / (math.sqrt(3) * cell))
    for start in _grid_candidates(spec, center, most=2) + _peak_candidates(spec, center, most=2):
        found = _refine(flat, spec, start, material, binning)
        if abs(found.parameters[0] - center) > 1.02 * math.log(NOMINAL_BAND):
            continue
        if best is None or found.llr > best.llr:
            best = found
    return best


@lru_cache(maxsize=32)
def _grid(center: float, tile: tuple[int, int]) -> tuple[NDArray[np.float64], ...]:
    """Trial frequencies [log cycles/px], angles [rad], and the vectors of the rings {10}, {11}, {20}."""
    extent = float(max(tile))
    band = math.log(NOMINAL_BAND)
    step = 0.3 / (extent * math.exp(center))
    log_u = center + np.linspace(-band, band, 2 * math.ceil(band / step) + 1)
    theta = np.arange(0, np.pi / 3, (np.pi / 3) / math.ceil((np.pi / 3) / step))
    hk = _HK[_NORM <= 4]
    angles = theta[:, None] + np.array([0.0, np.pi / 3])
    fy = (np.sin(angles) @ hk.T)[None] * np.exp(log_u)[:, None, None]
    fx = (np.cos(angles) @ hk.T)[None] * np.exp(log_u)[:, None, None]
    return log_u, theta, fy, fx


def _grid_candidates(spec: Spectrum, center: float, *, most: int) -> list[NDArray[np.float64]]:
    """Undistorted lattices of highest likelihood ratio on a grid of scales and rotations."""
    log_u, theta, fy, fx = _grid(round(center, 3), spec.tile_px)
    power = spec.look_up(fy, fx)
    score = np.zeros(power.shape[:2], dtype=np.float32)
    for first in (0, 3, 6):
        mean = _ring_mean(power[..., first:first + 3])
        score += np.where(mean > 1, mean - 1 - np.log(np.maximum(mean, 1)), 0)
    candidates = []
    for _ in range(most):
        i, j = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[i, j] <= 0:
            break
        candidates.append(np.array([log_u[i], theta[j], 0.0, 0.0]))
        columns = np.arange(j - 5, j + 6) % score.shape[1]
        score[max(0, i - 5):i + 6, columns] = -1
    return candidates


def _peak_candidates(spec: Spectrum, center: float, *, most: int) -> list[NDArray[np.float64]]:
    """Lattices, possibly distorted, spanned by two of the strongest spots at {10} frequencies."""
    n, m = spec.grid
    u = math.exp(center)
    widest = 1.15 * NOMINAL_BAND * u
    rows, columns = min(n // 2 - 1, math.ceil(widest * n)), min(m // 2 - 1, math.ceil(widest * m))
    part = spec.power[np.arange(-rows, rows + 1) % n, : columns + 1]
    fy = np.arange(-rows, rows + 1)[:, None] / n
    fx = np.arange(columns + 1)[None, :] / m
    radius = np.hypot(fy, fx)
    ring = (radius > u / (1.15 * NOMINAL_BAND)) & (radius < widest) & ((fx > 0) | (fy > 0))
    top = (part >= maximum_filter(part, 5, mode="constant")) & ring
    iy, ix = np.nonzero(top)
    strongest = np.argsort(part[iy, ix])[::-1][:10]
    spots = np.stack((fy[iy[strongest], 0], fx[0, ix[strongest]]), axis=1)
    strength = part[iy[strongest], ix[strongest]]
    i, j = np.triu_indices(len(spots), 1)
    both = np.stack((np.concatenate((spots[i], spots[i])), np.concatenate((spots[j], -spots[j]))), axis=1)
    cross = both[:, 0, 1] * both[:, 1, 0] - both[:, 0, 0] * both[:, 1, 1]
    both[cross < 0] = both[cross < 0][:, ::-1]
    # (2, 2) maps from the ideal pair, (0, 1) and (sin 60, cos 60) in (y, x), to the spots; polar decomposition.
    maps = np.swapaxes(both, 1, 2) @ np.linalg.inv(np.array([[0.0, math.sqrt(3) / 2], [1.0, 0.5]]))
    a, b, c, d = maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1]
    turn = np.arctan2(b - c, a + d)
    cos, sin = np.cos(turn), np.sin(turn)
    s00, s11 = a * cos + b * sin, d * cos - c * sin
    s01 = b * cos - a * sin
    scale = (s00 + s11) / 2
    e1, e2 = (s00 - s11) / (2 * scale), s01 / scale
    third = both[:, 1] - both[:, 0]
    near = np.max([spec.look_up(third[:, 0] + p / n, third[:, 1] + q / m) for p in (-1, 0, 1) for q in (-1, 0, 1)],
                  axis=0)
    spans = np.concatenate([np.stack((strength[i], strength[j]), axis=1)] * 2)
    mean = np.maximum(_ring_mean(np.column_stack((spans, near))), 1)
    score = 3 * spec.independent * (mean - 1 - np.log(mean)) - _penalty(e1**2 + e2**2)
    score[(np.abs(np.log(np.maximum(scale, 1e-9)) - center) > math.log(NOMINAL_BAND))
          | (np.hypot(e1, e2) > _MOST_DISTORTION)] = -np.inf
    chosen: list[NDArray[np.float64]] = []
    for k in np.argsort(score)[::-1]:
        if len(chosen) == most or not score[k] > 0:
            break
        new = np.array([math.log(scale[k]), turn[k] % (np.pi / 3), e1[k], e2[k]])
        if all(np.abs(_vectors(new)[0][:, None] - _vectors(old)[0][:3]).sum(axis=2).min(axis=0).max() > 0.03 * u
               for old in chosen):
            chosen.append(new)
    return chosen


def _penalty(square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the log of the prior of a distortion, whose square this is."""
    return (_DISTORTION_FREEDOM + 2) / 2 * np.log1p(square / (_DISTORTION_FREEDOM * DISTORTION_PRIOR**2))


def _ring_mean(power: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean over three symmetry-equivalent spots (last axis), none counted as more than four times the median:
    a stripe pattern of the scan has one strong spot, a crystal three."""
    a, b, c = power[..., 0], power[..., 1], power[..., 2]
    median = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return np.minimum(power, 4 * median[..., None]).mean(axis=-1)


def _likelihood(power: NDArray[np.float64], frequency: NDArray[np.float64], pixel_nm: float, material: Material,
                independent: float) -> _Evidence:
    """Log-likelihood ratio of a lattice to noise, and the expected signal at each harmonic.

    The power at a spot is exponentially distributed (complex Gaussian amplitude: spots of a ring differ, by
    astigmatism or jitter), with mean 1 + A |F|^2 exp(-(2 pi sigma q)^2); A and the probe's sigma are maximised over.
    """
    factor, _ = _structure_factors(material)
    within = frequency < 0.48
    capped = power.copy()
    for first, last in _RINGS:
        ring = power[first:last]
        ordered = np.sort(ring)
        middle, lowest = ordered[len(ring) // 2], ordered[len(ring) // 3 - 1]
        capped[first:last] = np.minimum(ring, min(4 * middle, 6 * (lowest + 1)))
    q_nm = frequency / pixel_nm
    q_ten = q_nm[:3].mean()
    falloff = np.exp(-(2 * np.pi * _PROBE_SIGMA_NM[:, None])**2 * np.maximum(q_nm**2 - q_ten**2, 0))
    shape = (falloff * (factor / factor[0]))[:, within]
    signal = _AMPLITUDES[:, None, None] * shape
    llr = (signal / (1 + signal)) @ (capped[within] * independent) - independent * np.log1p(signal).sum(axis=2)
    i, j = np.unravel_index(int(np.argmax(llr)), llr.shape)
    expected = np.zeros(len(power))
    expected[within] = signal[i, j]
    single = independent * (capped * expected / (1 + expected) - np.log1p(expected))
    without = llr[i, j] - max(float(single[family].sum()) for family in _FAMILIES)
    return _Evidence(float(llr[i, j]), float(without), expected)


def _refine(flat: NDArray[np.float32], spec: Spectrum, start: NDArray[np.float64], material: Material,
            binning: int, *, rounds: int = 7) -> _Candidate:
    """Maximise the likelihood over scale, rotation and distortion by Fisher scoring."""
    sides = np.array(spec.tile_px, dtype=np.float64)
    parameters = start.copy()
    best: _Candidate | None = None
    for _ in range(rounds):
        g, jacobian = _vectors(parameters)
        frequency = np.hypot(g[:, 0], g[:, 1])
        power, gradient = spec.at(g)
        pixel_nm = math.exp(parameters[0]) * math.sqrt(3) / 2 * material.lattice_nm
        evidence = _likelihood(power, frequency, pixel_nm, material, spec.independent)
        square = float(parameters[2:] @ parameters[2:])
        penalty = float(_penalty(np.array(square)))
        stiffness = (_DISTORTION_FREEDOM + 2) / (_DISTORTION_FREEDOM * DISTORTION_PRIOR**2 + square)
        prior = np.diag([0.0, 0.0, stiffness, stiffness])
        weight = spec.independent * evidence.signal / (1 + evidence.signal)
        curvature = weight[:, None] * 2 * WINDOW_CURVATURE * np.maximum(power, 1.0)[:, None] * sides**2
        information = np.einsum("nip,ni,niq->pq", jacobian, curvature, jacobian)
        if best is None or evidence.llr - penalty > best.llr:
            best = _Candidate(parameters.copy(), flat, spec, binning, evidence.llr - penalty,
                              evidence.without_best - penalty, evidence.signal, power, information + prior)
        slope = np.einsum("nip,ni,n->p", jacobian, gradient, weight) - prior @ parameters
        try:
            step = np.linalg.solve(information + prior, slope)
        except np.linalg.LinAlgError:
            break
        shift = np.abs(jacobian[:6] @ step * sides).max()
        step *= min(1.0, 0.6 / max(shift, 1e-9))
        parameters = parameters + step
        if math.hypot(parameters[2], parameters[3]) > _MOST_DISTORTION:
            break
        if shift < 2e-3:
            break
    assert best is not None
    return best


def _resolve_alias(best: _Candidate, material: Material) -> _Candidate:
    """Compare a lattice with its super- and sublattices on the same spectrum."""
    log_u, theta, e1, e2 = best.parameters
    for factor, turn in ((math.sqrt(3), np.pi / 6), (1 / math.sqrt(3), np.pi / 6), (2.0, 0.0), (0.5, 0.0)):
        if math.exp(log_u) * factor > 0.45:
            continue
        start = np.array([log_u + math.log(factor), (theta + turn) % (np.pi / 3), e1, e2])
        other = _refine(best.flat, best.spectrum, start, material, best.binning, rounds=3)
        if other.llr > best.llr:
            best = other
    return best


# --------------------------------------------------------------------------------------------------- the result


def _finish(found: _Candidate, material: Material) -> LatticeFit:
    """From the reciprocal lattice of the binned image to the description of the original one."""
    g, _ = _vectors(found.parameters)
    ten = [int(np.flatnonzero((_HK == pair).all(axis=1))[0]) for pair in ((1, 0), (0, 1))]
    reciprocal = g[ten] / found.binning
    # Duals of vectors 60 degrees apart are 120 degrees apart: a1 and a1 + a2 are the 60 degree pair.
    dual = np.linalg.inv(reciprocal).T
    basis = np.stack((dual[0], dual[0] + dual[1]))
    a = material.lattice_nm
    ideal = a * np.array([[0.0, 1.0], [math.sqrt(3) / 2, 0.5]])
    if np.linalg.det(basis) * np.linalg.det(ideal) < 0:
        basis = basis[::-1]
    to_ideal = ideal.T @ np.linalg.inv(basis.T)
    left, singular, right = np.linalg.svd(to_ideal)
    symmetric = right.T @ np.diag(singular) @ right
    pixel = math.sqrt(float(singular[0] * singular[1]))
    # Turn the pair so that the first vector points between +x and 60 degrees towards +y.
    turn = np.array([[0, 1], [-1, 1]])
    for _ in range(6):
        if 0 <= math.atan2(basis[0, 0], basis[0, 1]) < math.pi / 3 + 1e-9:
            break
        basis = turn @ basis
    covariance = WINDOW_VARIANCE_RATIO * np.linalg.inv(found.information)
    origin, sites = _origin(found, basis, material)
    return LatticeFit(
        basis_px=basis, pixel_size_nm=pixel, pixel_size_sigma_nm=pixel * math.sqrt(float(covariance[0, 0])),
        distortion=symmetric / pixel, distortion_sigma=math.sqrt(float(covariance[2, 2] + covariance[3, 3]) / 2),
        rotation_deg=math.degrees(math.atan2(basis[0, 0], basis[0, 1])) % 60, quality=found.quality,
        n_harmonics=int((found.power * found.spectrum.independent > 6 + found.spectrum.independent).sum()),
        origin_px=origin, sites=sites, material=material.name)


def _origin(found: _Candidate, basis: NDArray[np.float64],
            material: Material) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of a hexagon nearest to the middle of the image [px], and the sublattices around it."""
    g, _ = _vectors(found.parameters)
    h, w = found.flat.shape
    y, x = np.arange(h), np.arange(w)
    windowed = found.flat * np.outer(np.sin(np.pi * (y + 0.5) / h)**2, np.sin(np.pi * (x + 0.5) / w)**2)
    coefficient = np.einsum("nw,nw->n", np.exp(-2j * np.pi * g[:, :1] * y) @ windowed,
                            np.exp(-2j * np.pi * g[:, 1:] * x))
    coefficient *= found.signal / (1 + found.signal)
    # Phases relative to the centre of the original pixel (0, 0), not of the first binned one.
    edge = (found.binning - 1) / (2 * found.binning)
    coefficient *= np.exp(-2j * np.pi * edge * g.sum(axis=1))
    index = np.rint(g / found.binning @ basis.T)
    _, weights = _structure_factors(material)
    sites = np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3]])
    best = (-math.inf, sites, coefficient)
    steps = np.stack(np.meshgrid(*[np.arange(24) / 24] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    turns = np.exp(2j * np.pi * steps @ index.T)
    shift = np.zeros(2)
    for order in (sites, sites[::-1]):
        motif = np.exp(-2j * np.pi * index @ order.T) @ weights
        term = motif.conj() * coefficient
        score = (turns @ term).real
        top = int(np.argmax(score))
        if score[top] > best[0] * (1 + 1e-6) or best[0] == -math.inf:
            best, shift = (float(score[top]), order, term), steps[top]
    for _ in range(4):
        wave = best[2] * np.exp(2j * np.pi * index @ shift)
        slope = -2 * np.pi * index.T @ wave.imag
        curvature = 4 * np.pi**2 * (index.T * np.maximum(wave.real, 0)) @ index
        shift = shift + np.clip(np.linalg.lstsq(curvature, slope, rcond=None)[0], -0.05, 0.05)
    middle = (np.array(found.flat.shape) * found.binning - 1) / 2
    cells = np.rint(middle @ np.linalg.inv(basis) - shift)
    return (cells + shift) @ basis, best[1]
