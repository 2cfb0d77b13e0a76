"""The refinement itself: what is fitted in which order, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter

from ..errors import StemdlError
from .check import Check, check_residual, local_misfit
from .fit import REACH, Fit, Prior, State, height_prior
from .grid import BIN_TO_SIGMA, Grid, Noise, estimate_noise, make_grid
from .model import Array, Background, round_shape

#: Widths of the probe that are tried where none is given [pm]: 60 kV corrected to 200 kV uncorrected instruments.
_TRIAL_SIGMA_PM = (32.0, 44.0, 60.0, 82.0)
#: Spacing of the background's nodes [pm]: several columns each, so that it cannot follow one.
_NODE_SPACING_PM = 600.0
#: Columns of the window that the probe is fitted on: 1 % of its width at ten electrons each.
_WINDOW_COLUMNS = 220
#: Gauss-Newton steps of the columns: the error of a start within 40 pm falls below the counts' in three.
_TURNS = 3


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
                 valid: NDArray[np.bool_] | None = None, prior_sigma_pm: float = 18.0,
                 longest_step_pm: float = 65.0) -> Refined:
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
        Accuracy of the start positions along one axis, at best [pm]: keeps the fit stable where the counts say
        little and is without effect where they say much. Raised when the image shows the start to be worse.
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
    work = _Work(image, usable, y0, x0, pixel_pm=1e3 * pixel_size_nm,
                 sigma_pm=None if sigma_probe_nm is None else 1e3 * sigma_probe_nm)
    if work.state is None:
        return _unrefined(y0, x0, prior_sigma_pm)
    return _refine(work, labels, prior_sigma_pm, longest_step_pm)


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


class _Work:
    """Working pixels of the frame, a window of it for what all columns share, and a first state."""

    def __init__(self, image: NDArray[np.floating], usable: NDArray[np.bool_], y_px: Array, x_px: Array, *,
                 pixel_pm: float, sigma_pm: float | None) -> None:
        self.state: State | None = None
        trials = _TRIAL_SIGMA_PM if sigma_pm is None else tuple(f * sigma_pm for f in (0.72, 1.0, 1.4))
        guess = 45.0 if sigma_pm is None else sigma_pm
        for _ in range(2):
            binning = max(1, min(int(BIN_TO_SIGMA * guess / pixel_pm), min(image.shape) // 8))
            widths = np.maximum(np.array(trials) / (pixel_pm * binning), 0.6)
            margin = int(np.ceil(REACH * widths.max())) + 2
            grid = make_grid(image, usable, pixel_size_pm=pixel_pm, binning=binning, pad=margin)
            if grid is None:
                return
            self._start(grid, grid.to_grid(y_px), grid.to_grid(x_px), widths)
            found = self.state.shape.sigma * grid.step_pm
            if binning == 1 or found > 0.75 * guess:
                return
            # A probe much sharper than expected: average fewer pixels.
            guess = found

    def _start(self, grid: Grid, y: Array, x: Array, widths: Array) -> None:
        # The level of a pixel, known from more counts than its own.
        side = 2 * round(0.6 * float(np.median(widths))) + 1
        for _ in range(4):
            smooth = uniform_filter(grid.image, max(side, 3), mode="nearest")
            noise = estimate_noise(grid.image, smooth, grid.usable)
            # Damaged pixels hide each other: they spoil the noise that they are told by.
            mended = _without_spikes(grid, noise)
            if mended is grid:
                break
            grid = mended
        # Weights from the image itself: the first model is too poor to say where the counts are.
        weight = grid.usable / noise.variance(smooth)
        self.first_weight = np.minimum(weight, 4 * weight[grid.usable > 0].mean())
        inside = smooth[grid.usable > 0]
        floor = float(np.percentile(inside[:: max(1, len(inside) // 10000)], 5))
        at = (np.clip(np.rint(v).astype(int), 0, n - 1) for v, n in zip((y, x), smooth.shape, strict=True))
        height = smooth[tuple(at)].astype(np.float64) - floor
        typical = max(float(np.median(height)), 0.02)
        # All alike, but for the clearly bright: single heights are mostly noise at this stage.
        height = np.where(height > 1.7 * typical, height, typical)
        self.grid = grid
        self.fit = Fit(grid, Background(grid.image.shape, grid.pad, _NODE_SPACING_PM / grid.step_pm))
        self._open_window(y, x)
        rows, columns = self._window
        window_weight = self.first_weight[rows, columns] * (self.window.usable > 0)
        best: tuple[float, State] | None = None
        nodes = np.full(self.window.background.size, floor)
        for width in widths:
            state = State(y[self._chosen] - rows.start, x[self._chosen] - columns.start, height[self._chosen],
                          nodes, round_shape(float(width)), noise)
            state, _, misfit = self.window.scale_step(state, self.window.draw(state), window_weight)
            if best is None or misfit < best[0]:
                best = (misfit, state)
        assert best is not None
        state = best[1]
        self.start_shape = state.shape
        for _ in range(2):
            state = self.window.probe_step(state, self.window.draw(state), window_weight, start=self.start_shape)
        nodes = np.full(self.fit.background.size, floor)
        whole = State(y, x, height, nodes, state.shape, noise)
        self.state, self.picture, _ = self.fit.scale_step(whole, self.fit.draw(whole), self.first_weight)

    def _open_window(self, y: Array, x: Array) -> None:
        """A part of the frame with enough columns to know the probe by: all of a small frame."""
        height, width = self.grid.image.shape
        pad = self.grid.pad
        if len(y) <= 1.3 * _WINDOW_COLUMNS:
            self._window = (slice(0, height), slice(0, width))
            self._chosen = np.arange(len(y))
            self.window = self.fit
            return
        middle_y, middle_x = np.median(y), np.median(x)
        away = np.maximum(np.abs(y - middle_y), np.abs(x - middle_x))
        half = float(np.partition(away, _WINDOW_COLUMNS)[_WINDOW_COLUMNS])
        inner = [(max(pad, int(m - half)), min(n - pad, int(m + half) + 1))
                 for m, n in ((middle_y, height), (middle_x, width))]
        self._window = tuple(slice(a - pad, b + pad) for a, b in inner)
        rows, columns = self._window
        usable = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        core = tuple(slice(pad, -pad) for _ in range(2))
        usable[core] = self.grid.usable[rows, columns][core]
        grid = replace(self.grid, image=self.grid.image[rows, columns], usable=usable)
        # Columns just outside reach into the window.
        (y0, y1), (x0, x1) = inner
        near = 0.9 * pad
        self._chosen = np.flatnonzero((y > y0 - near) & (y < y1 + near) & (x > x0 - near) & (x < x1 + near))
        self.window = Fit(grid, Background(grid.image.shape, pad, _NODE_SPACING_PM / grid.step_pm))

    def probe_step(self, state: State, variance: Array) -> State:
        """The state with a better probe, and heights that go with it.

        Fitted positions follow the counts they are fitted to, which makes the probe look sharper than it is by
        their `variance` (N, 2): the sample variance and its lost degree of freedom, column by column.
        """
        rows, columns = self._window
        k = self._chosen
        part = replace(state, y=state.y[k] - rows.start, x=state.x[k] - columns.start, height=state.height[k])
        picture = self.window.draw(part)
        surface = self.fit.background.image(state.nodes)[rows, columns]
        weight = self.window.weight(state.noise, picture.columns + surface)
        found = self.window.probe_step(part, picture, weight, start=self.start_shape)
        factor = float(found.height[0] / part.height[0])
        lost = np.minimum(variance[k].mean(0), 0.3 * found.shape.sigma**2)
        shape = replace(found.shape, cyy=found.shape.cyy + float(lost[0]), cxx=found.shape.cxx + float(lost[1]))
        return replace(state, shape=shape, height=factor * state.height)


def _without_spikes(grid: Grid, noise: Noise) -> Grid:
    """The grid without single pixels that stand out of their surroundings as no probe can make them."""
    image = grid.image
    ring = (9 * uniform_filter(image, 3, mode="nearest") - image) / 8
    # A column's own summit over its surroundings: at most this for the sharpest probe.
    low = np.percentile(ring[grid.usable > 0][::17], 5)
    summit = 1.3 * (grid.step_pm / _TRIAL_SIGMA_PM[0]) ** 2 * np.maximum(ring - low, 0)
    spike = np.abs(image - ring) > 5 * np.sqrt(noise.variance(ring)) + 4 * noise.gain + summit
    spike &= grid.usable > 0
    if not spike.any():
        return grid
    return replace(grid, usable=grid.usable * ~spike, image=np.where(spike, ring, image))


def _refine(work: _Work, labels: NDArray[np.intp], prior_sigma_pm: float, longest_step_pm: float) -> Refined:
    """Columns, noise and probe in turn, then the covariance."""
    fit, grid, state, picture = work.fit, work.grid, work.state, work.picture
    assert state is not None
    step_pm = grid.step_pm
    start = np.stack([state.height, state.y, state.x], 1)
    precision = np.full((len(start), 3), (step_pm / prior_sigma_pm) ** 2)
    precision[:, 0] = 1 / (0.5 * state.height) ** 2
    prior = Prior(start, precision)
    longest = 30.0 / step_pm
    reference = 1.0
    for turn in range(_TURNS):
        if turn:
            picture = fit.draw(state)
            # A new probe goes with a new balance of columns and background, and the group's height moves along.
            state, picture, _ = fit.scale_step(state, picture, fit.weight(state.noise, fit.mean(state, picture)))
            prior.mean[:, 0] *= state.height[0] / reference
            mean = fit.mean(state, picture)
            noise = estimate_noise(grid.image - mean, mean, grid.usable, previous=state.noise)
            state = replace(state, noise=noise)
        state, normal = fit.column_step(state, picture, prior, longest=longest,
                                        weight=None if turn else work.first_weight)
        if turn < _TURNS - 1:
            variance = 1.2 / (normal.diagonal[:, 0, 0] + 1e-300)
            centre, own = height_prior(state.height, variance, labels)
            prior = Prior(np.column_stack([np.where(own > 0, centre, state.height), start[:, 1:]]),
                          np.column_stack([own, precision[:, 1:]]))
            information = normal.diagonal[:, (1, 2), (1, 2)] + precision[:, 1:]
            precision[:, 1:] = _start_precision(state, start, information, precision[:, 1:], step_pm)
            reference = state.height[0]
            state = work.probe_step(state, 1.2 / information)
    picture = fit.draw(state)
    mean = fit.mean(state, picture)
    residual = grid.image - mean
    check = check_residual(residual, mean, state.noise, grid.usable, picture)
    own_cov, more = normal.covariance(state.y, state.x, state.height, state.shape)
    cov = own_cov + more
    inflation = max(1.0, check.misfit) * local_misfit(picture.patches, residual, mean, state.noise, grid.usable)
    along_y, along_x = cov[:, 1, 1] * inflation, cov[:, 2, 2] * inflation
    # A column is some lines high, and averages their shifts.
    along_x = along_x + check.jitter**2 / (np.sqrt(2 * np.pi * state.shape.cyy))
    sigma = step_pm * np.sqrt(0.5 * (along_y + along_x))
    # The group's share taken out of the height again: what the column itself says, its neighbours being typical.
    alone = own_cov[:, 0, 0]
    free = 1 / np.maximum(1 / alone - prior.precision[:, 0], 1e-6 / alone)
    height = free * (state.height / alone - prior.precision[:, 0] * prior.mean[:, 0])
    free = free + more[:, 0, 0] * (free / alone) ** 2
    moved = step_pm * np.hypot(state.y - start[:, 1], state.x - start[:, 2])
    seen = normal.diagonal[:, 0, 0] * np.median(state.height) ** 2 > 1
    ok = (moved < longest_step_pm) & seen
    y, x = np.where(ok, state.y, start[:, 1]), np.where(ok, state.x, start[:, 2])
    index, value, _, _ = fit.background.at(y, x)
    below = (state.nodes[index] * value).sum(1) * grid.scale + grid.offset
    imaging = _imaging(fit, state, below, check)
    return Refined(grid.to_raw(y), grid.to_raw(x), height * grid.scale, np.sqrt(free * inflation) * grid.scale,
                   np.where(ok, sigma, prior_sigma_pm), below, ok, imaging)


def _start_precision(state: State, start: Array, information: Array, precision: Array, step_pm: float) -> Array:
    """Precision of the start positions, lowered where the columns moved farther than it allows.

    Only ever lowered: a start that was found on the same counts agrees with them better than it should.
    """
    moved = np.stack([state.y, state.x], 1) - start[:, 1:]
    # Moves of a fit that is pulled back: what they would be without the pull, less what the counts' noise adds.
    kept = information / np.maximum(information - precision, 0.2 * information)
    free = np.median((kept * moved) ** 2) / 0.455
    noise = np.median(kept / information) * 1.2
    most = (40.0 / step_pm) ** 2
    return np.minimum(precision, 1 / np.clip(free - noise, 1e-6, most))


def _imaging(fit: Fit, state: State, below: Array, check: Check) -> Imaging:
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
                   background=float(np.median(below)), misfit=check.misfit,
                   jitter_pm=check.jitter * grid.step_pm * grid.binning**0.5)


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
