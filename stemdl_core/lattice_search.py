"""Search for a hexagonal lattice in the power spectrum of an image.

A trial lattice is scored by the power at all its reciprocal vectors relative to the noise floor, against
what the structure factor and a probe of plausible size allow. Undistorted trial lattices come from a grid
of scales and rotations (faint lattices in small fields), distorted ones from pairs of spots; the best are
refined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from .harmonics import FAMILIES, HK, NORM, RINGS, STARTS, structure_factors, vectors
from .materials import Material
from .spectrum import WINDOW_CURVATURE, Flat, Spectrum, bin_image, flatten_image, spectrum

#: A lattice counts as seen above this quality: the square root of twice the log-likelihood ratio to noise,
#: without the direction that speaks loudest for it. Images without a lattice (noise, white and coloured,
#: amorphous films, stripes, edges, contamination; 100 of each) reach 5.1, mostly less than 4.
QUALITY_THRESHOLD = 5.7
#: The same where nothing is known of the scale, which multiplies the possibilities.
BLIND_QUALITY = 6.2
#: Above this, nothing else is tried.
CLEAR_QUALITY = 18.0
#: The true pixel size lies within this factor of a nominal one, either way: a nominal one that is 20 % too small
#: (1.25), a strained specimen and a margin.
NOMINAL_BAND = 1.30
#: Prior standard deviation of the scan distortion: a fit that knows less than this leaves the scan
#: undistorted.
DISTORTION_PRIOR = 0.012
#: Degrees of freedom of that prior (Student's t: badly calibrated scans are rare, not impossible), and
#: where it ends: images with 20 % between the directions exist.
_DISTORTION_FREEDOM = 3.0
_MOST_DISTORTION = 0.15
#: Binning leaves this many pixels to a lattice constant: 31 pm for graphene, enough for the {20} spots; 45
#: pm, enough for {11}, while the scale is still looked for.
FINE_CELL_PX = 8.0
COARSE_CELL_PX = 5.4
#: Side of a tile in lattice constants (5 nm for graphene).
_TILE_CELLS = 20.0
#: Probe sizes allowed for in the fall-off of the spots [nm], and powers of a {10} spot relative to the noise.
_PROBE_SIGMA_NM = np.array([0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.085])
_AMPLITUDES = np.geomspace(0.3, 3e6, 34)
#: Log-likelihood by which a super- or sublattice must be better to be called so without refinement.
_ALIAS_MARGIN = 10.0
#: A trial lattice whose likelihood ratio is below this after three steps is given up.
_HOPELESS = 6.0


@dataclass
class Candidate:
    """A trial lattice on the spectrum of a binned image.

    Parameters
    ----------
    parameters : (4,) float64
        See `vectors`; of the binned image.
    view : _View
        The image it was found in.
    llr : float
        Log-likelihood ratio to noise, less the penalty of its distortion.
    without_best : float
        The same without the direction that speaks loudest: stripes and edges have one direction, a crystal
        three.
    signal, power : (N,) float64
        Expected signal and measured power at the harmonics, relative to the noise.
    information : (4, 4) float64
        Curvature of the log-likelihood.
    """

    parameters: NDArray[np.float64]
    view: _View
    llr: float
    without_best: float
    signal: NDArray[np.float64]
    power: NDArray[np.float64]
    information: NDArray[np.float64]

    @property
    def quality(self) -> float:
        """Standard deviations above noise, see `QUALITY_THRESHOLD`."""
        return math.sqrt(2 * max(self.without_best, 0.0))

    @property
    def pixel_ratio(self) -> float:
        """Original pixels to a lattice constant."""
        return 2 / math.sqrt(3) * math.exp(-self.parameters[0]) * self.view.binning


@dataclass
class _View:
    """The image as a search for pixel sizes around a nominal one sees it."""

    center: float
    binning: int
    material: Material
    flat: Flat
    weighted: NDArray[np.float32]
    spectrum: Spectrum


def search(image: NDArray[np.float32], material: Material, nominals: list[float], *,
           cell_px: float = FINE_CELL_PX) -> Candidate | None:
    """The most likely lattice with a pixel size around one of some nominal ones [nm].

    Images are weighted for one half of clean crystal first. If nothing clear is seen and the noise varies a
    lot over the image, a little crystal in contamination and a flake in vacuum are tried.
    """
    flats = [_prepare(image, material, nominal, cell_px) for nominal in nominals]
    best: Candidate | None = None
    for attempt in range(3):
        starts: list[tuple[float, NDArray[np.float64], _View]] = []
        for item in flats:
            if item is None or attempt >= len(item[2].levels):
                continue
            center, binning, flat = item
            weighted = flat.weighted(flat.levels[attempt])
            tile = _TILE_CELLS * 2 / math.sqrt(3) * math.exp(-center)
            view = _View(center, binning, material, flat, weighted, spectrum(weighted, tile_px=tile))
            starts += [(score, start, view) for score, start in _peak_starts(view) + _grid_starts(view)]
        starts.sort(key=lambda start: -start[0])
        done: list[Candidate] = []
        for score, start, view in starts:
            if len(done) >= 6 or (done and score < 0.3 * max(d.llr for d in done)):
                break
            near = 0.7 / max(view.spectrum.tile_px)
            if any(view is d.view and _same(start, d.parameters, near) for d in done):
                continue
            found = refine(view, start)
            done.append(found)
            if abs(found.parameters[0] - view.center) > 1.02 * math.log(NOMINAL_BAND):
                continue
            if best is None or found.without_best > best.without_best:
                best = found
        if best is not None and best.quality > CLEAR_QUALITY:
            break
    return best


def _prepare(image: NDArray[np.float32], material: Material, nominal: float,
             cell_px: float) -> tuple[float, int, Flat] | None:
    """ln of the {10} frequency [cycles/binned px], binning, and the flattened image; None: not visible."""
    cell = material.lattice_nm / nominal
    if cell < 2.2 or 2 * cell > min(image.shape):
        return None
    binning = max(1, int(cell / cell_px))
    if min(image.shape) // binning < 12:
        return None
    flat = flatten_image(bin_image(image, binning), cell / binning)
    return math.log(2 * binning / (math.sqrt(3) * cell)), binning, flat


@lru_cache(maxsize=32)
def _grid(center: float, tile: tuple[int, int]) -> tuple[NDArray[np.float64], ...]:
    """Trial frequencies [log cycles/px], angles [rad], and the vectors of the rings {10}, {11}, {20}."""
    extent = float(max(tile))
    band = math.log(NOMINAL_BAND)
    step = 0.3 / (extent * math.exp(center))
    log_u = center + np.linspace(-band, band, 2 * math.ceil(band / step) + 1)
    theta = np.arange(0, np.pi / 3, (np.pi / 3) / math.ceil((np.pi / 3) / step))
    hk = HK[NORM <= 4]
    angles = theta[:, None] + np.array([0.0, np.pi / 3])
    fy = (np.sin(angles) @ hk.T)[None] * np.exp(log_u)[:, None, None]
    fx = (np.cos(angles) @ hk.T)[None] * np.exp(log_u)[:, None, None]
    return log_u, theta, fy, fx


def _grid_starts(view: _View) -> list[tuple[float, NDArray[np.float64]]]:
    """Scores and parameters of the two undistorted lattices of highest likelihood ratio on a grid."""
    spec = view.spectrum
    log_u, theta, fy, fx = _grid(round(view.center, 3), spec.tile_px)
    power = spec.look_up(fy, fx)
    score: NDArray[np.float32] = np.zeros((len(log_u), len(theta)), dtype=np.float32)
    for first in (0, 3, 6):
        score += _excess(_ring_mean(power[..., first:first + 3]))
    score *= 3 * spec.independent
    starts = []
    for _ in range(2):
        i, j = divmod(int(np.argmax(score)), score.shape[1])
        starts.append((float(score[i, j]), np.array([log_u[i], theta[j], 0.0, 0.0])))
        score[max(0, i - 5):i + 6, np.arange(j - 5, j + 6) % len(theta)] = 0
    return starts


def _excess(mean: NDArray[np.floating]) -> NDArray[np.floating]:
    """Log-likelihood ratio of an exponential distribution with this mean to one with mean 1, per value."""
    above = np.maximum(mean, 1)
    return above - 1 - np.log(above)


def _peak_starts(view: _View) -> list[tuple[float, NDArray[np.float64]]]:
    """Scores and parameters of lattices, possibly distorted, that two of the strongest {10} spots span."""
    spec, center = view.spectrum, view.center
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
    # (2, 2) maps from the ideal pair, (0, 1) and (sin 60, cos 60) in (y, x), to the spots; polar
    # decomposition.
    maps = np.swapaxes(both, 1, 2) @ np.linalg.inv(np.array([[0.0, math.sqrt(3) / 2], [1.0, 0.5]]))
    a, b, c, d = maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1]
    turn = np.arctan2(b - c, a + d)
    cos, sin = np.cos(turn), np.sin(turn)
    s00, s11 = a * cos + b * sin, d * cos - c * sin
    s01 = b * cos - a * sin
    scale = (s00 + s11) / 2
    e1, e2 = (s00 - s11) / (2 * scale), s01 / scale
    third = both[:, 1] - both[:, 0]
    around = np.array([(p / n, q / m) for p in (-1, 0, 1) for q in (-1, 0, 1)])
    near = spec.look_up(third[:, :1] + around[:, 0], third[:, 1:] + around[:, 1]).max(axis=1, initial=0)
    spans = np.concatenate([np.stack((strength[i], strength[j]), axis=1)] * 2)
    score = 3 * spec.independent * _excess(_ring_mean(np.column_stack((spans, near))))
    score -= _penalty(e1**2 + e2**2)
    score[(np.abs(np.log(np.maximum(scale, 1e-9)) - center) > math.log(NOMINAL_BAND))
          | (np.hypot(e1, e2) > _MOST_DISTORTION)] = -np.inf
    chosen: list[tuple[float, NDArray[np.float64]]] = []
    for k in np.argsort(score)[::-1]:
        if len(chosen) == 2 or not score[k] > 0:
            break
        new = np.array([math.log(scale[k]), turn[k] % (np.pi / 3), e1[k], e2[k]])
        if not any(_same(new, old, 0.03 * u) for _, old in chosen):
            chosen.append((float(score[k]), new))
    return chosen


def _same(first: NDArray[np.float64], second: NDArray[np.float64], tolerance: float) -> bool:
    """Whether the {10} vectors of two lattices, or their opposites, agree within a tolerance [cycles/px]."""
    a, b = vectors(first)[0][:3], vectors(second)[0][:3]
    apart = np.abs(np.concatenate((a, -a))[:, None] - b).max(axis=2)
    return bool(apart.min(axis=0).max() < tolerance)


def _penalty(square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the log of the prior of a distortion, whose square this is."""
    return (_DISTORTION_FREEDOM + 2) / 2 * np.log1p(square / (_DISTORTION_FREEDOM * DISTORTION_PRIOR**2))


def _ring_mean(power: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean over three symmetry-equivalent spots (last axis), none counted as more than four times the median:
    a stripe pattern of the scan has one strong spot, a crystal three."""
    a, b, c = power[..., 0], power[..., 1], power[..., 2]
    median = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return np.minimum(power, 4 * median[..., None]).mean(axis=-1)


@dataclass
class _Evidence:
    """Log-likelihood ratios as in `Candidate`, and the expected signals."""

    llr: float
    without_best: float
    signal: NDArray[np.float64]


def _likelihood(power: NDArray[np.float64], frequency: NDArray[np.float64], material: Material,
                independent: float) -> _Evidence:
    """Log-likelihood ratio of a lattice to noise, and the expected signal at each harmonic.

    The power at a spot is exponentially distributed (a complex Gaussian amplitude: the spots of a ring
    differ by astigmatism or jitter), with mean 1 + A |F|^2 exp(-(2 pi sigma q)^2); A and the probe's sigma
    are maximised over. No spot counts as more than its weaker partners allow: a stripe pattern has one
    strong spot, a crystal three.
    """
    within = frequency < 0.48
    capped = power.copy()
    for first, last in RINGS:
        ordered = np.sort(power[first:last])
        size = last - first
        limit = min(4 * ordered[size // 2], 6 * (ordered[size // 3 - 1] + 1))
        np.minimum(power[first:last], limit, out=capped[first:last])
    capped *= within
    ten = frequency[:3].mean()
    q_nm = np.sqrt(NORM) * (2 / math.sqrt(3) / material.lattice_nm)
    falloff = np.exp(-(2 * np.pi * _PROBE_SIGMA_NM[:, None])**2 * (q_nm**2 - q_nm[0]**2))
    factor, _ = structure_factors(material)
    shape = falloff * (factor / factor[0] * (within | (frequency < 1.1 * ten)))
    signal = _AMPLITUDES[:, None, None] * shape
    # Rings share their signal: the sum over harmonics is one over rings.
    ring_signal = signal[:, :, STARTS]
    counts = np.add.reduceat(within.astype(np.float64), STARTS)
    sums = np.add.reduceat(capped, STARTS)
    llr = independent * ((ring_signal / (1 + ring_signal)) @ sums - np.log1p(ring_signal) @ counts)
    i, j = np.unravel_index(int(np.argmax(llr)), llr.shape)
    expected = signal[i, j] * within
    single = independent * (capped * expected / (1 + expected) - np.log1p(expected))
    return _Evidence(float(llr[i, j]), float(llr[i, j] - (FAMILIES @ single).max()), expected)


def refine(view: _View, start: NDArray[np.float64], *, rounds: int = 9) -> Candidate:
    """Maximise the likelihood over scale, rotation and distortion by Fisher scoring."""
    spec, material = view.spectrum, view.material
    sides = np.array(spec.tile_px, dtype=np.float64)
    parameters = start.copy()
    best: Candidate | None = None
    for count in range(rounds):
        g, jacobian = vectors(parameters)
        power, gradient = spec.at(g)
        evidence = _likelihood(power, np.hypot(g[:, 0], g[:, 1]), material, spec.independent)
        square = float(parameters[2:] @ parameters[2:])
        penalty = float(_penalty(np.array(square)))
        stiffness = (_DISTORTION_FREEDOM + 2) / (_DISTORTION_FREEDOM * DISTORTION_PRIOR**2 + square)
        prior = np.diag([0.0, 0.0, stiffness, stiffness])
        weight = spec.independent * evidence.signal / (1 + evidence.signal)
        curvature = weight[:, None] * 2 * WINDOW_CURVATURE * np.maximum(power, 1.0)[:, None] * sides**2
        flat_jacobian = jacobian.reshape(-1, 4)
        information = (flat_jacobian.T * curvature.ravel()) @ flat_jacobian + prior
        if best is None or evidence.llr - penalty > best.llr:
            best = Candidate(parameters.copy(), view, evidence.llr - penalty, evidence.without_best - penalty,
                             evidence.signal, power, information)
        if count == 2 and best.llr < _HOPELESS:
            break
        slope = flat_jacobian.T @ (gradient * weight[:, None]).ravel() - prior @ parameters
        try:
            step = np.linalg.solve(information + 1e-9 * np.eye(4), slope)
        except np.linalg.LinAlgError:
            break
        shift = np.abs((jacobian[:6] @ step) * sides).max()
        parameters = parameters + step * min(1.0, 0.6 / max(shift, 1e-9))
        if shift < 2e-3 or math.hypot(parameters[2], parameters[3]) > _MOST_DISTORTION:
            break
    assert best is not None
    return best


def _aliases(best: Candidate) -> list[NDArray[np.float64]]:
    """Super- and sublattices of a lattice that its own spots could belong to."""
    log_u, theta, e1, e2 = best.parameters
    relations = ((math.sqrt(3), np.pi / 6), (1 / math.sqrt(3), np.pi / 6), (2.0, 0.0), (0.5, 0.0))
    return [np.array([log_u + math.log(factor), (theta + turn) % (np.pi / 3), e1, e2])
            for factor, turn in relations if math.exp(log_u) * factor < 0.45]


def resolve_alias(best: Candidate) -> Candidate:
    """The most likely of a lattice and its super- and sublattices."""
    for start in _aliases(best):
        other = refine(best.view, start, rounds=3)
        if other.llr > best.llr:
            best = other
    return best


def has_better_alias(found: Candidate) -> bool:
    """Whether a super- or sublattice is clearly more likely, all of them on the grid of the spectrum."""
    spec = found.view.spectrum
    scores = []
    for parameters in [found.parameters, *_aliases(found)]:
        g, _ = vectors(parameters)
        power = spec.look_up(g[:, 0], g[:, 1]).astype(np.float64)
        frequency = np.hypot(g[:, 0], g[:, 1])
        scores.append(_likelihood(power, frequency, found.view.material, spec.independent).llr)
    return max(scores[1:], default=-math.inf) > scores[0] + _ALIAS_MARGIN
