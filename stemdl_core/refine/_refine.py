"""The refinement itself: what is fitted in which order, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from ..errors import StemdlError
from ..threads import one_blas_thread
from .beyond import columns_beyond
from .check import Check, check_residual, local_misfit, most_noise
from .colour import noise_colour
from .fit import Fit, Prior, State, height_prior
from .grid import estimate_noise
from .model import Array
from .result import Imaging, Refined, unrefined
from .sharpen import Unblurred, undo_smoothing
from .work import Work

#: Gauss-Newton steps of the columns, and how exactly each is solved: the error of a start within 40 pm falls
#: below that of the counts in three.
_TOLERANCES = (0.1, 0.05, 0.002)
#: A step that is this small beside the columns' own uncertainty is the last one. Positions would allow twice as much,
#: but the probe's tails are not found by then, and electrons an atom come out a fifth too low.
_SMALL_STEP = 0.25

#: Square of a step over the columns' own variance, and over that of the step before, beyond which it is none towards a
#: solution.
_RUNAWAY, _GROWING = 1.0, 2.5

#: Width of the probe over the distance of neighbouring columns beyond which overlaps are worked out anew in each step:
#: little is left there that tells columns apart.
_CROWDED = 0.36

#: Part of the noise on a column that has to be its own for electrons to be counted by it, where pixels share their
#: noise or a blur was undone: little is left there that tells how the noise grows.
_SHOWS = 0.25

#: Part of what is known about a height that has to come from the column's own pixels for it to be told from its group.
LEAST_SHARE = 0.02

#: Error of the model of a column, over its height.
_MODEL_ERROR = 0.02

#: No two columns are this close in projection [pm].
COLLAPSED_PM = 65.0

#: How much more noise than the scatter of the heights allows may be assumed, and how much more a blur may claim before
#: it is not believed: without noise, what the specimen shows falls off like blurred noise. Nor is it believed if the
#: fit leaves less than this part of the noise, though it takes much of what is no finer than columns.
_ALLOWED, _CLAIMED, _LEFT = 1.2, 50.0, 0.03

#: Residual variance over the expected one above which the noise is taken to be shared between pixels.
CORRELATED = 1.6


class Noisiness(NamedTuple):
    """What a fit says about the noise.

    Parameters
    ----------
    excess : float
        By how much its variance exceeds what was assumed.
    most : float
        Largest variance of a raw pixel's white noise that the heights allow [image units squared].
    left : float
        Variance of a working pixel that the fit leaves [image units squared].
    """

    excess: float
    most: float
    left: float


def refine_sites(image: NDArray[np.floating], y_px: ArrayLike, x_px: ArrayLike, *, pixel_size_nm: float,
                 groups: ArrayLike | None = None, sigma_probe_nm: float | None = None,
                 valid: NDArray[np.bool_] | None = None, prior_sigma_pm: float = 18.0,
                 longest_step_pm: float = 65.0, whole: Imaging | None = None) -> Refined:
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
        Accuracy of the start positions along one axis, at best [pm]: keeps the fit stable where the counts
        say little and is without effect where they say much. Raised when the image shows the start to be
        worse.
    longest_step_pm : float
        A column that moves farther than this is put back and marked as not converged [pm].
    whole : Imaging, optional
        What was found for the frame that the image is a part of: its noise is taken from there.

    Returns
    -------
    Refined
        Columns in the order of the start positions.

    Raises
    ------
    StemdlError
        If shapes do not fit or the pixel size is not positive.
    """
    # Within a frame's analysis this is so anyway; more threads only wait for each other on matrices this small.
    with one_blas_thread():
        return _refine_sites(np.asarray(image), y_px, x_px, pixel_size_nm, groups, sigma_probe_nm, valid,
                             prior_sigma_pm, longest_step_pm, whole)


def _refine_sites(image: NDArray[np.floating], y_px: ArrayLike, x_px: ArrayLike, pixel_size_nm: float,
                  groups: ArrayLike | None, sigma_probe_nm: float | None, valid: NDArray[np.bool_] | None,
                  prior_sigma_pm: float, longest_step_pm: float, whole: Imaging | None) -> Refined:
    """As `refine_sites`."""
    y0, x0 = (np.asarray(v, np.float64).ravel() for v in (y_px, x_px))
    usable = _check(image, y0, x0, pixel_size_nm, groups, valid)
    labels = np.zeros(len(y0), np.intp)
    if groups is not None:
        labels = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if not len(y0):
        return unrefined(y0, x0, prior_sigma_pm)
    # Left out, the light of the columns just out of view pulls those at the rim by twice their own uncertainty.
    beyond, like = columns_beyond(np.stack([y0, x0], 1), (image.shape[0], image.shape[1]),
                                  pixel_size_nm=pixel_size_nm)
    asked = len(y0)
    y0, x0 = np.r_[y0, beyond[:, 0]], np.r_[x0, beyond[:, 1]]
    # Groups of their own: where the specimen ends at the border, they find that there is nothing.
    labels = np.r_[labels, labels[like] + labels.max() + 1]

    def fitted(image: NDArray[np.floating], noise_line: tuple[float, float] | None = None,
               undone: Unblurred | None = None) -> tuple[Refined, Noisiness]:
        work = Work(image, usable, y0, x0, pixel_pm=1e3 * pixel_size_nm, noise_line=noise_line,
                    sigma_pm=None if sigma_probe_nm is None else 1e3 * sigma_probe_nm,
                    finest_pm=0.0 if undone is None else 1e3 * undone.finest_nm)
        if work.state is None:
            return unrefined(y0, x0, prior_sigma_pm), Noisiness(1.0, np.inf, np.inf)
        return _refine(work, labels, prior_sigma_pm, longest_step_pm, undone)

    refined, noise = fitted(image, None if whole is None else (whole.gain, whole.intercept))
    sharp = None
    # Smoothed, enlarged or slowly detected images share their noise between pixels. What a pixel alone shows of it is
    # far too little: the fit would follow the noise, away from good start positions.
    if noise.excess > CORRELATED and whole is None:
        undone = undo_smoothing(image, usable, pixel_nm=pixel_size_nm)
        if undone is not None and undone.variance < _CLAIMED * noise.most and undone.blurred * _LEFT < noise.left:
            sharp = undone.image
            refined, noise = fitted(sharp, undone=undone)
        if noise.excess > CORRELATED and (found := refined.imaging) is not None:
            # Once more with the noise that was seen, and only that: the finest structure of a stiffer fit is another.
            level = max(found.misfit, 1.0)
            line = level * found.gain, level * found.intercept
            refined, *_ = fitted(image, line) if sharp is None else fitted(sharp, line, undone)
    return replace(refined.first(asked), sharpened=sharp)


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


def _refine(work: Work, labels: NDArray[np.intp], prior_sigma_pm: float, longest_step_pm: float,
            undone: Unblurred | None) -> tuple[Refined, Noisiness]:
    """Columns, noise and probe in turn, then the covariance; and what the fit says about how much noise there is.

    `undone` is given where the image is one before a blur.
    """
    fit, grid, state, picture = work.fit, work.grid, work.state, work.picture
    assert state is not None
    step_pm = grid.step_pm
    start = np.stack([state.height, state.y, state.x], 1)
    precision = np.full((len(start), 3), (step_pm / prior_sigma_pm) ** 2)
    precision[:, 0] = 1 / (0.5 * state.height) ** 2
    prior = Prior(start, precision)
    longest = 30.0 / step_pm
    reference, couplings, length, usual = 1.0, None, np.inf, np.inf
    near = cKDTree(start[:, 1:]).query(start[:, 1:], k=2)[0][:, 1] if len(start) > 1 else np.full(1, np.inf)
    crowded = state.shape.sigma > _CROWDED * float(np.median(near))
    for turn in range(len(_TOLERANCES)):
        if turn:
            picture = fit.draw(state)
            # A new probe goes with a new balance of columns and background, and the group's height moves
            # along.
            weight = fit.weight(state.noise, fit.mean(state, picture))
            state, picture, _ = fit.scale_step(state, picture, weight)
            prior.mean[:, 0] *= state.height[0] / reference
            mean = fit.mean(state, picture)
            if work.noise_line is None:
                noise = estimate_noise(grid.image - mean, mean, grid.usable, previous=state.noise,
                                       finest=work.finest_pm / step_pm)
                # No model is more exact than this, however little noise there is.
                floor = (_MODEL_ERROR * float(np.median(state.height))) ** 2
                noise = replace(noise, intercept=noise.intercept + floor, least=noise.least + floor)
                state = replace(state, noise=noise)
        before = state
        state, normal = fit.column_step(before, picture, prior, longest=longest, tolerance=_TOLERANCES[turn],
                                        weight=None if turn else work.first_weight, couplings=couplings)
        steps = _steps_in_sigma(before, state, normal.diagonal, prior)
        length, previous = float(np.sqrt(steps.mean())), length
        if couplings is not None and length > previous:
            # Overlaps from a step before were not good enough: steps that grow lead away.
            state, normal = fit.column_step(before, picture, prior, longest=longest, tolerance=_TOLERANCES[turn])
            steps = _steps_in_sigma(before, state, normal.diagonal, prior)
            length = float(np.sqrt(steps.mean()))
        usual, last = float(np.median(steps)), usual
        if usual > max(_GROWING * last, _RUNAWAY):
            # What columns share is known to half a per cent. Where they overlap so much that less than that tells them
            # apart, the exact solution runs away, and what was found before is as good as it gets.
            state, length = before, 0.0
        # The first step is the longest: only later ones leave neighbours as they overlapped before.
        couplings = normal.couplings if turn and not crowded else None
        if turn and length < _SMALL_STEP:
            break
        if turn < len(_TOLERANCES) - 1:
            variance = 1.2 / (normal.diagonal[:, 0, 0] + 1e-300)
            centre, own = height_prior(state.height, variance, labels)
            loose = (0.1 / np.median(state.height)) ** 2
            prior = Prior(np.column_stack([np.where(own > 0, centre, state.height), start[:, 1:]]),
                          np.column_stack([np.maximum(own, loose), precision[:, 1:]]))
            information = normal.diagonal[:, (1, 2), (1, 2)] + precision[:, 1:]
            precision[:, 1:] = _start_precision(state, start, information, precision[:, 1:], step_pm)
            reference = state.height[0]
            state = work.probe_step(state, 1.2 / information)
    # The picture before the last step, which is small, is as good a judge as one more drawing.
    residual = grid.image - mean
    check = check_residual(residual, mean, state.noise, grid.usable, picture)
    own_cov, more = normal.covariance()
    # A site without pixels knows what was believed before, and no more.
    believed = 1 / prior.precision
    variances = np.einsum("naa->na", own_cov)
    bad = ~(np.isfinite(variances) & (variances > 0) & (variances <= believed)).all(1)
    own_cov[bad] = believed[bad, :, None] * np.eye(3)
    cov = own_cov + more
    local = local_misfit(picture.patches, residual, mean, state.noise, grid.usable)
    # The group's share taken out of the height again: what the column itself says, its neighbours being
    # typical.
    alone = own_cov[:, 0, 0]
    share = 1 - prior.precision[:, 0] * alone
    # Where hardly anything comes from the column itself, taking the rest out leaves rounding errors: it is then as
    # bright as its group for all that is known, which is little.
    own = np.where(share > LEAST_SHARE, share, 1.0)
    height = prior.mean[:, 0] + (state.height - prior.mean[:, 0]) / own
    free = alone / np.maximum(share, LEAST_SHARE)
    free = free + more[:, 0, 0] * (free / alone) ** 2
    seen = normal.diagonal[:, 0, 0] * np.median(state.height) ** 2 > 1
    squares = residual[grid.usable > 0] ** 2
    left = grid.scale**2 * float(np.minimum(squares, 20 * np.median(squares)).mean())
    colour, raw = 1.0, (grid.scale * grid.binning) ** 2
    known = seen & (share > LEAST_SHARE)
    assumed = float(state.noise.variance(mean)[grid.usable > 0].mean())
    overlap = np.pi * state.shape.sigma**2 * float(np.median(free[known])) / assumed if known.any() else 1.0
    most = raw * most_noise(height, known, labels, sigma=state.shape.sigma, overlap=overlap)
    if work.noise_line is None:
        inner = (slice(grid.pad, -grid.pad),) * 2
        expected = raw * state.noise.variance(mean[inner])
        typical = float(expected[grid.usable[inner] > 0].mean())
        if undone is not None:
            colour = undone.variance / typical
        else:
            colour = noise_colour(work.image, work.unspoilt(), expected, binning=grid.binning,
                                  sigma_px=state.shape.sigma * grid.binning)
        colour = max(1.0, min(colour, _ALLOWED * most / typical))
    excess = max(1.0, check.misfit, colour)
    inflation = excess * local
    along_y, along_x = cov[:, 1, 1] * inflation, cov[:, 2, 2] * inflation
    # A column is some lines high, and averages their shifts.
    along_x = along_x + check.jitter**2 / (np.sqrt(2 * np.pi * state.shape.cyy))
    sigma = step_pm * np.sqrt(0.5 * (along_y + along_x))
    moved = step_pm * np.hypot(state.y - start[:, 1], state.x - start[:, 2])
    ok = (moved < longest_step_pm) & seen
    # Two columns on one spot share one column's light in any proportion: neither position nor height means anything.
    places = np.stack([state.y, state.x], 1)
    fallen = cKDTree(places).query_pairs(COLLAPSED_PM / step_pm, output_type="ndarray")
    fallen = fallen[np.hypot(*(start[fallen[:, 0], 1:] - start[fallen[:, 1], 1:]).T) > COLLAPSED_PM / step_pm]
    ok[fallen] = False
    height[fallen] = np.nan
    y, x = np.where(ok, state.y, start[:, 1]), np.where(ok, state.x, start[:, 2])
    index, value, _, _ = fit.background.at(y, x)
    below = (state.nodes[index] * value).sum(1) * grid.scale + grid.offset
    white = undone is None and work.noise_line is None and colour == 1.0
    imaging = _imaging(fit, state, below, check, colour, 0.0 if white else _SHOWS)
    height_sigma = np.sqrt(free * inflation)
    # Where the fit ran away, the start is in doubt as well.
    doubt = np.maximum(prior_sigma_pm, 0.5 * np.minimum(moved, longest_step_pm))
    return Refined(grid.to_raw(y), grid.to_raw(x), height * grid.scale, height_sigma * grid.scale,
                   np.where(ok, sigma, doubt), below, ok, imaging), Noisiness(excess, most, left)


def _steps_in_sigma(before: State, after: State, information: Array, prior: Prior) -> Array:
    """(N,) squared steps along one axis over the variance of a column alone."""
    step = np.stack([after.y - before.y, after.x - before.x], 1)
    precision = information[:, (1, 2), (1, 2)] + prior.precision[:, 1:]
    return np.asarray((step**2 * precision).mean(axis=1))


def _start_precision(state: State, start: Array, information: Array, precision: Array,
                     step_pm: float) -> Array:
    """Precision of the start positions, lowered where the columns moved farther than it allows.

    Only ever lowered: a start that was found on the same counts agrees with them better than it should.
    """
    moved = np.stack([state.y, state.x], 1) - start[:, 1:]
    # Moves of a fit that is pulled back: what they would be without the pull, less what the counts' noise
    # adds.
    kept = information / np.maximum(information - precision, 0.2 * information)
    free = np.median((kept * moved) ** 2) / 0.455
    noise = np.median(kept / information) * 1.2
    most = (40.0 / step_pm) ** 2
    return np.minimum(precision, 1 / np.clip(free - noise, 1e-6, most))


def _imaging(fit: Fit, state: State, below: Array, check: Check, colour: float, least: float) -> Imaging:
    """The probe and the noise in units of the raw image.

    Electrons are counted where a column adds more than the share `least` to the noise on it.
    """
    grid, shape = fit.grid, state.shape
    pixels = grid.binning**2
    # Averaging b pixels widens a column by (b^2 - 1) / 12 raw px^2, which is not the probe's.
    box = (1 - 1 / pixels) / 12
    core = np.array([[shape.cyy, shape.cyx], [shape.cyx, shape.cxx]]) - box * np.eye(2)
    values, vectors = np.linalg.eigh(core)
    values = np.maximum(values, 1e-3)
    sigma = float(np.prod(values) ** 0.25)
    wide = shape.fraction * shape.peak_ratio
    gain, intercept = (colour * v for v in _raw_noise(fit, state))
    volume = shape.volume * pixels
    height = float(np.median(state.height)) * grid.scale
    counted = gain * height > max(least * (intercept + gain * (float(np.median(below)) + height)), 0.0)
    electrons = height * volume / gain if counted else np.nan
    return Imaging(sigma_nm=1e-3 * sigma * grid.step_pm,
                   ellipticity=float((values[1] / values[0]) ** 0.5),
                   angle_deg=float(np.degrees(np.arctan2(vectors[0, 1], vectors[1, 1])) % 180),
                   tail_fraction=float(wide / (1 - shape.fraction + wide)),
                   tail_ratio=float(np.sqrt(1 + shape.spread / sigma**2)),
                   volume_px=volume, gain=float(gain), intercept=float(intercept),
                   electrons_per_atom=float(electrons),
                   background=float(np.median(below)), misfit=check.misfit / colour,
                   jitter_pm=check.jitter * grid.step_pm * grid.binning**0.5)


def _raw_noise(fit: Fit, state: State) -> tuple[float, float]:
    """Gain and intercept of the variance of a raw pixel [image units]."""
    grid = fit.grid
    gain = state.noise.gain * grid.scale * grid.binning**2
    return gain, state.noise.intercept * grid.scale**2 * grid.binning**2 - gain * grid.offset


def estimate_imaging(image: NDArray[np.floating], refined: Refined, *, pixel_size_nm: float,
                     valid: NDArray[np.bool_] | None = None) -> Imaging | None:
    """Probe, noise and dose of a frame whose columns are known.

    The refinement's own result where there is one; otherwise the frame is fitted again from the given
    positions. None where nothing can be fitted.
    """
    if refined.imaging is not None or not len(refined):
        return refined.imaging
    again = refine_sites(image, refined.y_px, refined.x_px, pixel_size_nm=pixel_size_nm, valid=valid)
    return again.imaging
