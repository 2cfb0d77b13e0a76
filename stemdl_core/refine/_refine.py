"""The refinement itself: what is fitted in which order, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter

from ..errors import StemdlError
from .fit import REACH, Fit, Prior, State, first_state, height_prior
from .grid import BIN_TO_SIGMA, Grid, Noise, estimate_noise, make_grid
from .joint import Clusters, Pairs, covariance
from .model import Array, Background

#: Widths of the probe that are tried where none is given [pm]: 60 kV corrected to 200 kV uncorrected instruments.
_TRIAL_SIGMA_PM = (30.0, 38.0, 48.0, 60.0, 76.0, 96.0)
#: Spacing of the background's nodes [pm]: several columns each, so that it cannot follow one.
_NODE_SPACING_PM = 600.0


@dataclass(frozen=True)
class Imaging:
    """How the frame was imaged, as the fit sees it.

    Parameters
    ----------
    sigma_nm : float
        Width (one standard deviation) of the core of a column [nm].
    ellipticity, angle_deg : float
        Long axis over short axis of the core, and direction of the long axis from +x towards +y [degrees].
    tail_fraction, tail_ratio : float
        Share of a column's electrons in the tail, and width of the tail over that of the core.
    volume_px : float
        Integral of a column's profile of peak height one [raw px].
    gain, intercept : float
        Variance of a raw pixel = intercept + gain * mean, in image units. With a linear counting detector `gain`
        is the image units one electron adds, and -intercept / gain the reading of a dark pixel.
    electrons_per_atom : float
        Electrons under the profile of the median host column; NaN where the noise shows no gain.
    background : float
        Median height of the background [image units].
    misfit : float
        Residual variance over the variance expected, 1 where the model holds.
    jitter_pm : float
        Standard deviation of the shift of single scan lines along x [pm].
    """

    sigma_nm: float
    ellipticity: float
    angle_deg: float
    tail_fraction: float
    tail_ratio: float
    volume_px: float
    gain: float
    intercept: float
    electrons_per_atom: float
    background: float
    misfit: float
    jitter_pm: float


@dataclass(frozen=True)
class Refined:
    """Refined columns, in the order of the start positions.

    Parameters
    ----------
    y_px, x_px : (N,) float64
        Position [raw px], pixel centres at integers.
    amplitude, amplitude_sigma : (N,) float64
        Peak height over the background and its standard deviation [image units].
    sigma_pm : (N,) float64
        Standard deviation of the position along one axis [pm].
    background : (N,) float64
        Height of the background under the column [image units].
    converged : (N,) bool
        False where the fit ran away or saw no column: the start position is kept there.
    imaging : Imaging or None
        The probe and the noise that were found; None where nothing could be fitted.
    """

    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    amplitude_sigma: NDArray[np.float64]
    sigma_pm: NDArray[np.float64]
    background: NDArray[np.float64]
    converged: NDArray[np.bool_]
    imaging: Imaging | None

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name != "imaging":
                column = np.array(getattr(self, f.name), dtype=bool if f.name == "converged" else np.float64)
                column.flags.writeable = False
                object.__setattr__(self, f.name, column)

    def __len__(self) -> int:
        return len(self.y_px)


def refine_sites(image: NDArray[np.floating], y_px: ArrayLike, x_px: ArrayLike, *, pixel_size_nm: float,
                 groups: ArrayLike | None = None, sigma_probe_nm: float | None = None,
                 valid: NDArray[np.bool_] | None = None, prior_sigma_pm: float = 25.0,
                 longest_step_pm: float = 60.0) -> Refined:
    """Refine column positions jointly on the raw image.

    Parameters
    ----------
    image : (H, W) float array
        Raw detector image; any gain and offset.
    y_px, x_px : (N,) float
        Start positions [px], within some 40 pm of the columns.
    pixel_size_nm : float
        Pixel size [nm/px].
    groups : (N,) labels, optional
        Columns with the same label (the species) are expected to be about equally bright; without it all are
        one group. Columns that clearly differ from their group are left free.
    sigma_probe_nm : float, optional
        Width of a column to start from [nm]; found from the image where not given.
    valid : (H, W) bool, optional
        Pixels that may be used: dead lines, hot pixels and contamination are False.
    prior_sigma_pm : float
        Accuracy of the start positions along one axis [pm]: keeps the fit stable where the counts say little and
        is without effect where they say much.
    longest_step_pm : float
        A column that moves farther than this is put back and marked as not converged [pm].

    Returns
    -------
    Refined
        Columns in the order of the start positions.

    Raises
    ------
    StemdlError
        If shapes do not fit or the pixel size is not positive.
    """
    image = np.asarray(image)
    y0, x0 = (np.asarray(v, np.float64).ravel() for v in (y_px, x_px))
    usable = _check(image, y0, x0, pixel_size_nm, groups, valid)
    labels = np.zeros(len(y0), np.intp) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    if not len(y0):
        return _unrefined(y0, x0, prior_sigma_pm)
    pixel_pm = 1e3 * pixel_size_nm
    guess = 45.0 if sigma_probe_nm is None else 1e3 * sigma_probe_nm
    for _ in range(2):
        prepared = _prepare(image, usable, y0, x0, pixel_pm, guess, trials=sigma_probe_nm is None)
        if prepared is None:
            return _unrefined(y0, x0, prior_sigma_pm)
        fit, state, weight = prepared
        found = state.shape.sigma * fit.grid.step_pm
        if fit.grid.binning == 1 or found > 0.75 * guess:
            break
        # A probe much sharper than expected: average fewer pixels.
        guess = found
    return _refine(fit, state, weight, labels, prior_sigma_pm, longest_step_pm)


def _check(image: NDArray[np.floating], y: Array, x: Array, pixel_size_nm: float, groups: ArrayLike | None,
           valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """The pixels that may be used; raises on arguments that do not fit together."""
    if image.ndim != 2:
        raise StemdlError(f"image must have two axes, not shape {image.shape}")
    if not (np.isfinite(pixel_size_nm) and pixel_size_nm > 0):
        raise StemdlError(f"pixel_size_nm must be a positive number of nm, not {pixel_size_nm!r}")
    if y.shape != x.shape or not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise StemdlError("y_px and x_px must be finite and of equal length")
    if groups is not None and np.shape(groups) != y.shape:
        raise StemdlError(f"groups has shape {np.shape(groups)}, expected {y.shape}")
    usable = np.isfinite(image)
    if valid is not None:
        if np.shape(valid) != image.shape:
            raise StemdlError(f"valid has shape {np.shape(valid)}, expected {image.shape}")
        usable &= np.asarray(valid, bool)
    return usable


def _unrefined(y: Array, x: Array, prior_sigma_pm: float) -> Refined:
    """The start positions, where there is nothing to fit."""
    nan = np.full(len(y), np.nan)
    return Refined(y, x, nan, nan, np.full(len(y), prior_sigma_pm), nan, np.zeros(len(y), bool), None)


def _prepare(image: NDArray[np.floating], usable: NDArray[np.bool_], y_px: Array, x_px: Array, pixel_pm: float,
             sigma_pm: float, *, trials: bool) -> tuple[Fit, State, Image] | None:
    """Working pixels, and a state with the noise, a first probe, heights and background."""
    binning = max(1, min(int(BIN_TO_SIGMA * sigma_pm / pixel_pm), min(image.shape) // 8))
    widths = np.array(_TRIAL_SIGMA_PM if trials else [0.8 * sigma_pm, sigma_pm, 1.25 * sigma_pm])
    widths = np.hypot(widths, 0.0) / (pixel_pm * binning)
    widths = np.maximum(widths, 0.6)
    largest = float(widths.max()) if trials else 1.3 * float(widths.max())
    margin = int(np.ceil(REACH * largest)) + 2
    grid = make_grid(image, usable, pixel_size_pm=pixel_pm, binning=binning, pad=margin)
    if grid is None:
        return None
    y, x = grid.to_grid(y_px), grid.to_grid(x_px)
    smooth = uniform_filter(grid.image, 3, mode="nearest")
    noise = estimate_noise(grid.image, smooth, grid.usable)
    grid = _without_spikes(grid, noise)
    background = Background(grid.image.shape, grid.pad, _NODE_SPACING_PM / grid.step_pm)
    # One weight for all trials, from the image itself, so that their misfits compare.
    weight = grid.usable / noise.variance(smooth)
    weight = np.minimum(weight, 4 * weight[grid.usable > 0].mean())
    best: tuple[float, State] | None = None
    for width in widths:
        fit = Fit(grid, background, int(np.ceil(REACH * width)))
        state, misfit = fit.scale_step(first_state(grid, y, x, background, float(width), noise, smooth), weight)
        if best is None or misfit < best[0]:
            best = (misfit, state)
    assert best is not None
    state = best[1]
    start = state.shape
    for _ in range(2):
        fit = Fit(grid, background, min(int(np.ceil(REACH * state.shape.sigma)), margin - 2))
        state = fit.probe_step(state, start=start, weight=weight)
    return fit, state, weight


def _without_spikes(grid: Grid, noise: Noise) -> Grid:
    """The grid without single pixels that stand out of their surroundings as no probe can make them."""
    image = grid.image
    ring = (9 * uniform_filter(image, 3, mode="nearest") - image) / 8
    variance = noise.variance(ring)
    spike = np.abs(image - ring) > 7 * np.sqrt(variance) + 6 * noise.gain
    if not spike.any():
        return grid
    return replace(grid, usable=grid.usable * ~spike, image=np.where(spike, ring, image))


def _refine(fit: Fit, state: State, first_weight: Image, labels: NDArray[np.intp], prior_sigma_pm: float,
            longest_step_pm: float) -> Refined:
    """Columns, noise and probe in turn, then the covariance."""
    grid = fit.grid
    step_pm = grid.step_pm
    start = np.stack([state.height, state.y, state.x], 1)
    n = len(start)
    precision = np.zeros((n, 3))
    precision[:, 1:] = (step_pm / prior_sigma_pm) ** 2
    precision[:, 0] = 1 / (0.5 * state.height) ** 2
    prior = Prior(start, precision)
    pairs = Pairs.within(state.y, state.x, 4.3 * state.shape.sigma)
    clusters = Clusters.nearest(state.y, state.x, pairs)
    longest = 30.0 / step_pm
    first_shape = state.shape
    for turn in range(3):
        state, normal, mean = fit.column_step(state, prior, longest=longest, normal=None, pairs=pairs,
                                              weight=first_weight if turn == 0 else None)
        cov = covariance(normal, prior.precision, clusters)
        centre, weight = height_prior(state.height, cov[:, 0, 0], labels)
        own_mean, own_precision = prior.mean.copy(), prior.precision.copy()
        own_mean[:, 0], own_precision[:, 0] = np.where(weight > 0, centre, state.height), weight
        prior = Prior(own_mean, own_precision)
        patches = fit.patches(state)
        mean = fit.columns(state, patches) + fit.background.image(state.nodes)
        noise = estimate_noise(grid.image - mean, mean, grid.usable, previous=state.noise)
        state = replace(state, noise=noise)
        if turn < 2:
            state = fit.probe_step(state, start=first_shape)
    state, normal, mean = fit.column_step(state, prior, longest=longest, normal=None, pairs=pairs, keep=True)
    cov = covariance(normal, prior.precision, clusters)
    sigma = step_pm * np.sqrt(0.5 * (cov[:, 1, 1] + cov[:, 2, 2]))
    moved = step_pm * np.hypot(state.y - start[:, 1], state.x - start[:, 2])
    ok = moved < longest_step_pm
    y, x = np.where(ok, state.y, start[:, 1]), np.where(ok, state.x, start[:, 2])
    index, value, _, _ = fit.background.at(y, x)
    below = (state.nodes[index] * value).sum(1) * grid.scale + grid.offset
    imaging = _imaging(fit, state, below)
    return Refined(grid.to_raw(y), grid.to_raw(x), state.height * grid.scale, np.sqrt(cov[:, 0, 0]) * grid.scale,
                   np.where(ok, sigma, prior_sigma_pm), below, ok, imaging)


def _imaging(fit: Fit, state: State, below: Array) -> Imaging:
    """The probe and the noise in units of the raw image."""
    grid, shape = fit.grid, state.shape
    pixels = grid.binning**2
    # Averaging b pixels widens a column by (b^2 - 1) / 12 raw px^2, which is not the probe's.
    box = (1 - 1 / pixels) / 12
    core = np.array([[shape.cyy, shape.cyx], [shape.cyx, shape.cxx]]) - box * np.eye(2)
    values, vectors = np.linalg.eigh(core)
    values = np.maximum(values, 1e-3)
    sigma = float(np.prod(values) ** 0.25)
    wide = shape.fraction * shape.peak_ratio
    gain = state.noise.gain * grid.scale * pixels
    intercept = state.noise.intercept * grid.scale**2 * pixels - gain * grid.offset
    volume = shape.volume * pixels
    counted = gain > 0
    electrons = float(np.median(state.height)) * grid.scale * volume / gain if counted else np.nan
    return Imaging(sigma_nm=1e-3 * sigma * grid.step_pm,
                   ellipticity=float((values[1] / values[0]) ** 0.5),
                   angle_deg=float(np.degrees(np.arctan2(vectors[0, 1], vectors[1, 1])) % 180),
                   tail_fraction=float(wide / (1 - shape.fraction + wide)),
                   tail_ratio=float(np.sqrt(1 + shape.spread / sigma**2)),
                   volume_px=volume, gain=float(gain), intercept=float(intercept), electrons_per_atom=electrons,
                   background=float(np.median(below)), misfit=1.0, jitter_pm=0.0)


def estimate_imaging(image: NDArray[np.floating], refined: Refined, *, pixel_size_nm: float,
                     valid: NDArray[np.bool_] | None = None) -> Imaging | None:
    """Probe, noise and dose of a frame whose columns are known.

    The refinement's own result where there is one; otherwise the frame is fitted again from the given positions.
    None where nothing can be fitted.
    """
    if refined.imaging is not None or not len(refined):
        return refined.imaging
    again = refine_sites(image, refined.y_px, refined.x_px, pixel_size_nm=pixel_size_nm, valid=valid)
    return again.imaging
