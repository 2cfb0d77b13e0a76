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

import numpy as np
from numpy.typing import NDArray

from .calibration import PixelSize
from .errors import CalibrationError
from .harmonics import HK, structure_factors, vectors
from .lattice_search import (
    BLIND_QUALITY,
    COARSE_CELL_PX,
    NOMINAL_BAND,
    QUALITY_THRESHOLD,
    Candidate,
    has_better_alias,
    resolve_alias,
    search,
)
from .materials import Material
from .spectrum import WINDOW_VARIANCE_RATIO, waves

#: Pixel sizes looked for when none is given [nm], and fields of view in which a lattice can be expected [nm].
PIXEL_RANGE_NM = (0.0028, 0.063)
FOV_RANGE_NM = (1.2, 45.0)
#: Scans are not straighter than this, whatever the statistics say.
_SCAN_SIGMA = 0.0005
#: A nominal pixel size further off than this (and than three sigma of the fit) is corrected.
CORRECTION = 0.005
#: Quality from which the lattice of a map of atoms is believed: what a network sees in noise reaches 6, the faintest
#: lattices of which it finds half of the atoms 12. And how far off the scale may be that the map was made at: beyond,
#: the network would not have found its atoms.
MAP_QUALITY, MAP_BAND = 9.0, 0.05


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
        return np.linalg.inv(self.basis_px).T.astype(np.float64)

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
        Pixel size that is thought to be right [nm]; the true one is looked for within a factor
        `NOMINAL_BAND`. Without it, everything between `PIXEL_RANGE_NM` is tried.

    Returns
    -------
    LatticeFit or None
        None where no lattice stands out of the noise, or only one that contradicts the nominal pixel size.
    """
    image = np.asarray(image, dtype=np.float32)
    if nominal_pixel_size_nm is None:
        coarse = search(image, material, _bands(image.shape), cell_px=COARSE_CELL_PX)
        if coarse is None or coarse.quality < BLIND_QUALITY:
            return None
        nominal_pixel_size_nm = material.lattice_nm / resolve_alias(coarse).pixel_ratio
    found = search(image, material, [nominal_pixel_size_nm])
    if found is None or found.quality < QUALITY_THRESHOLD:
        return None
    if has_better_alias(found):
        return None  # {11} spots, say, that would be {10} spots if the nominal pixel size were right
    return _describe(found)


def _bands(shape: tuple[int, ...]) -> list[float]:
    """Pixel sizes [nm] around which to search so that nothing is left out."""
    low = max(PIXEL_RANGE_NM[0], FOV_RANGE_NM[0] / max(shape))
    high = min(PIXEL_RANGE_NM[1], FOV_RANGE_NM[1] / max(shape))
    if high <= low:
        return []
    count = math.ceil(math.log(high / low) / math.log(NOMINAL_BAND**2))
    return [low * (high / low)**((i + 0.5) / count) for i in range(count)]


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
            raise CalibrationError(f"pixel size is unknown and no {material.name} lattice is visible to take "
                                   "it from: give the field of view or the pixel size")
        note = (f"pixel size {1e3 * fit.pixel_size_nm:.2f} pm (field of view {width * fit.pixel_size_nm:.2f} "
                f"nm) taken from the {material.name} lattice")
        return _from_fit(fit, None), fit, (note,)
    given = nominal.nominal_nm if nominal.nominal_nm is not None else nominal.nm
    _refuse_impossible(image.shape, given, material)
    fit = fit_lattice(image, material=material, nominal_pixel_size_nm=given)
    if fit is None:
        elsewhere = fit_lattice(image, material=material)
        if elsewhere is not None and elsewhere.quality > BLIND_QUALITY:
            raise CalibrationError(
                f"field of view {width * given:.3g} nm contradicts the {material.name} lattice, "
                f"which says {width * elsewhere.pixel_size_nm:.3g} nm")
        return nominal, None, (_unchecked(material, given),)
    off = fit.pixel_size_nm / given - 1
    if abs(off) <= max(CORRECTION, 3 * fit.pixel_size_sigma_nm / given):
        return replace(nominal, distortion=_as_tuples(fit.distortion)), fit, ()
    return _from_fit(fit, given), fit, (_corrected(material, given, fit.pixel_size_nm),)


def scale_from_map(probability: NDArray[np.float32], *, material: Material, map_pixel_nm: float,
                   nominal: PixelSize) -> tuple[PixelSize, LatticeFit | None, tuple[str, ...]]:
    """Decide on the pixel size from a map of atoms, where the lattice is too faint for the image's own spectrum.

    A network that completes a faint lattice keeps its phase over the whole field; what it sees in noise does not hang
    together beyond a few atoms.

    Parameters
    ----------
    probability : (h, w) float32
        Probability of an atom, zero in masked areas.
    material : Material
        The host crystal.
    map_pixel_nm : float
        Pixel size of the map, if `nominal` is right [nm].
    nominal : PixelSize
        The pixel size that is thought to be right.

    Returns
    -------
    As `check_scale`; the fit is None where the atoms do not form the host's lattice.
    """
    fit = fit_lattice(probability, material=material, nominal_pixel_size_nm=map_pixel_nm)
    given = nominal.nominal_nm if nominal.nominal_nm is not None else nominal.nm
    ratio = 1.0 if fit is None else fit.pixel_size_nm / map_pixel_nm
    if fit is None or fit.quality < MAP_QUALITY or abs(ratio - 1) > MAP_BAND:
        return nominal, None, (_unchecked(material, given),)
    if abs(ratio - 1) <= max(CORRECTION, 3 * fit.pixel_size_sigma_nm / map_pixel_nm):
        return nominal, fit, ()
    return PixelSize(given * ratio, "lattice", given), fit, (_corrected(material, given, given * ratio),)


def _unchecked(material: Material, given: float) -> str:
    return f"no {material.name} lattice visible: the pixel size of {1e3 * given:.2f} pm is used unchecked"


def _corrected(material: Material, given: float, true: float) -> str:
    return (f"pixel size corrected from {1e3 * given:.2f} pm to {1e3 * true:.2f} pm "
            f"({100 * (true / given - 1):+.1f} %) by the {material.name} lattice")


def _refuse_impossible(shape: tuple[int, ...], pixel_nm: float, material: Material) -> None:
    """Refuse pixel sizes at which no lattice can be in the image, whatever it shows.

    Lattice planes closer than two pixels are beyond the sampling limit; fewer than two unit cells are no
    lattice.
    """
    width = shape[1] * pixel_nm
    if pixel_nm > 0.5 * (0.75**0.5 * material.lattice_nm):
        raise CalibrationError(f"field of view {width:.4g} nm is impossible: at {1e3 * pixel_nm:.4g} pm a "
                               f"pixel no {material.name} lattice can be seen")
    if min(shape) * pixel_nm < 2 * material.lattice_nm:
        raise CalibrationError(f"field of view {width:.4g} nm is impossible: it holds less than two unit "
                               f"cells of {material.name} ({2 * material.lattice_nm:.2g} nm)")


def _from_fit(fit: LatticeFit, given: float | None) -> PixelSize:
    return PixelSize(fit.pixel_size_nm, "lattice", given, _as_tuples(fit.distortion))


def _as_tuples(matrix: NDArray[np.float64]) -> tuple[tuple[float, float], tuple[float, float]]:
    (a, b), (c, d) = matrix.tolist()
    return (a, b), (c, d)


def _describe(found: Candidate) -> LatticeFit:
    """From the reciprocal lattice of the binned image to the description of the original one."""
    material = found.view.material
    reciprocal = np.linalg.lstsq(HK, vectors(found.parameters)[0], rcond=None)[0] / found.view.binning
    # Duals of vectors 60 degrees apart are 120 degrees apart: a1 and a1 + a2 are the 60 degree pair.
    dual = np.linalg.inv(reciprocal).T
    basis = np.stack((dual[0], dual[0] + dual[1]))
    a = material.lattice_nm
    ideal = a * np.array([[0.0, 1.0], [math.sqrt(3) / 2, 0.5]])
    if np.linalg.det(basis) * np.linalg.det(ideal) < 0:
        basis = basis[::-1]
    to_ideal = ideal.T @ np.linalg.inv(basis.T)
    _, singular, right = np.linalg.svd(to_ideal)
    symmetric = right.T @ np.diag(singular) @ right
    pixel = math.sqrt(float(singular[0] * singular[1]))
    # Turn the pair so that the first vector points between +x and 60 degrees towards +y.
    turn = np.array([[0, 1], [-1, 1]])
    for _ in range(6):
        if 0 <= math.atan2(basis[0, 0], basis[0, 1]) < math.pi / 3 + 1e-9:
            break
        basis = turn @ basis
    covariance = WINDOW_VARIANCE_RATIO * np.linalg.inv(found.information)
    sigma = np.sqrt(np.diag(covariance)).tolist()
    origin, sites = _origin(found, basis)
    return LatticeFit(
        basis_px=basis, pixel_size_nm=pixel, pixel_size_sigma_nm=pixel * math.hypot(sigma[0], _SCAN_SIGMA),
        distortion=symmetric / pixel, distortion_sigma=math.hypot(*sigma[2:], _SCAN_SIGMA) / math.sqrt(2),
        rotation_deg=math.degrees(math.atan2(basis[0, 0], basis[0, 1])) % 60, quality=found.quality,
        n_harmonics=int((found.power > 1 + 6 / math.sqrt(found.view.spectrum.independent)).sum()),
        origin_px=origin, sites=sites, material=material.name)


def _origin(found: Candidate, basis: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of a hexagon nearest to the middle of the image [px], and the sublattices around it."""
    binning = found.view.binning
    g, _ = vectors(found.parameters)
    h, w = found.view.weighted.shape
    y, x = (np.arange(n, dtype=np.float64) for n in (h, w))
    rows, columns = waves(g[:, 0], y), waves(g[:, 1], x)
    rows *= (np.sin(np.pi * (y + 0.5) / h)**2).astype(np.float32)
    columns *= (np.sin(np.pi * (x + 0.5) / w)**2).astype(np.float32)
    across = rows.real @ found.view.weighted + 1j * (rows.imag @ found.view.weighted)
    coefficient = np.einsum("nw,nw->n", across, columns).astype(np.complex128)
    coefficient *= found.signal / (1 + found.signal)
    # Phases relative to the centre of the original pixel (0, 0), not of the first binned one.
    edge = (binning - 1) / (2 * binning)
    coefficient *= np.exp(-2j * np.pi * edge * g.sum(axis=1))
    index = np.rint(g / binning @ basis.T)
    _, weights = structure_factors(found.view.material)
    sites = np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3]])
    best = (-math.inf, sites, coefficient)
    steps = np.arange(24) / 24
    turns = [np.exp(2j * np.pi * steps[:, None] * along) for along in index.T]
    shift = np.zeros(2)
    for order in (sites, sites[::-1]):
        motif = np.exp(-2j * np.pi * index @ order.T) @ weights
        term = motif.conj() * coefficient
        score = ((turns[0] * term) @ turns[1].T).real
        top = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[top] > best[0] * (1 + 1e-6) or best[0] == -math.inf:
            best, shift = (float(score[top]), order, term), steps[list(top)]
    for _ in range(4):
        wave = best[2] * np.exp(2j * np.pi * index @ shift)
        slope = -2 * np.pi * index.T @ wave.imag
        curvature = 4 * np.pi**2 * (index.T * np.maximum(wave.real, 0)) @ index
        shift = shift + np.clip(np.linalg.lstsq(curvature, slope, rcond=None)[0], -0.05, 0.05)
    middle = (np.array([h, w]) * binning - 1) / 2
    cells = np.rint(middle @ np.linalg.inv(basis) - shift)
    return (cells + shift) @ basis, best[1]
