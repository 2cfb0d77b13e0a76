"""Drift of the specimen between the frames of a movie, and within a frame, from the images alone.

The phase of the host lattice tells the drift to a few picometres, but only modulo a lattice vector; once it
exceeds half a spacing between frames, plain cross-correlation locks onto the next vector. Which branch is
meant follows from what breaks the translation symmetry (foreign atoms, vacancies, edges, contamination),
compared with a running average in the specimen's frame, and from the smoothness of the drift. Several
branches are followed side by side until one is far more probable than the others (Viterbi decoding, cut to
a beam), so that one frame cannot throw the movie off by a lattice vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft
from scipy.ndimage import map_coordinates, shift, uniform_filter

from .calibration import PixelSize
from .errors import StemdlError
from .lattice import LatticeFit
from .lattice_phase import LatticePhase, Offset
from .spectrum import bin_image

#: Pixels to a lattice constant for comparing features (50 pm for graphene).
_FEATURE_CELL_PX = 5.0
#: Branches followed at a time, and the log-probability below the best at which one is dropped.
_BEAM = 24
_DROP = 14.0
#: Frames averaged for comparison: features that move are forgotten.
_MEMORY_FRAMES = 10.0
#: An average must differ from zero by this many standard deviations to count as a feature.
_FEATURE_SIGMAS = 3.5
_FEATURE_LIMIT = 6.0
#: Part of the features' log-likelihood that is believed (pixels are not quite independent), and the most
#: one frame can say against a branch: a foreign atom that hops must not overrule all the others.
_TRUST = 0.5
_MOST_AGAINST = 10.0


@dataclass(frozen=True)
class DriftStep:
    """Drift at one frame: a point of the specimen is at its position in the first frame plus the drift.

    Parameters
    ----------
    dy_nm, dx_nm : float
        Drift since the first frame [nm].
    sigma_nm : float
        Standard error along an axis, the branch being right [nm].
    branch_confidence : float
        Probability that the branch (the multiple of lattice vectors) is right.
    within_nm : tuple of float
        Drift (y, x) from the first to the last line of this frame, relative to the movie's lattice fit [nm].
    lattice_seen : bool
        False where the drift had to be bridged by features and history alone.
    """

    dy_nm: float
    dx_nm: float
    sigma_nm: float
    branch_confidence: float
    within_nm: tuple[float, float] = (0.0, 0.0)
    lattice_seen: bool = True


@dataclass
class _Branch:
    """One history of the drift [nm] and what the specimen looks like under it."""

    drift: NDArray[np.float64]
    #: Mean of recent steps, and of what steps have more than the drift within their frames [nm].
    velocity: NDArray[np.float64]
    excess: NDArray[np.float64]
    #: Root mean square of what these two predictions missed along an axis [nm].
    spread: float
    excess_spread: float
    score: float
    canvas: NDArray[np.float64]
    weight: NDArray[np.float64]
    anchor: NDArray[np.intp]
    defects: NDArray[np.float64]
    path: tuple | None


class DriftTracker:
    """Drift, one frame at a time, in constant time and memory.

    Parameters
    ----------
    fit : LatticeFit
        Lattice of the movie, from one good frame of it or from their average.
    shape : (H, W)
        Size of the frames [px].
    pixel_size : PixelSize, optional
        Turns pixels into nm; by default the fit's.
    keep_history : bool
        Remember the paths for `history`, at some hundred bytes a frame.
    """

    def __init__(self, *, fit: LatticeFit, shape: tuple[int, int], pixel_size: PixelSize | None = None,
                 keep_history: bool = False) -> None:
        self._shape = (int(shape[0]), int(shape[1]))
        self._to_nm = fit.pixel_size_nm * fit.distortion if pixel_size is None else pixel_size.matrix
        self._basis_nm = fit.basis_px @ self._to_nm.T
        cell = float(np.mean(np.hypot(*fit.basis_px.T)))
        self._phase = LatticePhase(fit, self._shape, self._basis_nm)
        self._coarse = max(1, round(cell / _FEATURE_CELL_PX))
        self._cell = cell
        self._g_px = _TEN_AND_ELEVEN @ fit.reciprocal
        self._gap = 1
        #: Probability that the true branch is still followed.
        self._mass = 1.0
        self._branches: list[_Branch] = []
        self._keep = keep_history
        h, w = (n // self._coarse for n in self._shape)
        self._margin = math.ceil(4.5 * cell / self._coarse)
        self._canvas_shape = (h + 2 * self._margin, w + 2 * self._margin)
        self._fft_shape = tuple(fft.next_fast_len(n, real=True) for n in self._canvas_shape)

    @property
    def drift_nm(self) -> NDArray[np.float64]:
        """(2,) float64: drift (y, x) at the newest frame [nm]."""
        return self._branches[0].drift.copy() if self._branches else np.zeros(2)

    def skip(self) -> None:
        """Pass over a bad frame: the next one may have drifted twice as far."""
        self._gap += 1

    def update(self, image: NDArray[np.floating], sites_px: ArrayLike | None = None,
               defect_px: ArrayLike | None = None) -> DriftStep:
        """Take the next frame.

        Parameters
        ----------
        image : (H, W) array
            Intensities.
        sites_px : (N, 2) array_like, optional
            Located host atoms (y, x) [px]; where they are known they give the phase of the lattice.
        defect_px : (D, 2) array_like, optional
            Located defects (y, x) [px]; they help to choose the branch.

        Returns
        -------
        DriftStep
            Of the branch that is the most probable so far.
        """
        image = np.asarray(image, dtype=np.float32)
        if image.shape != self._shape:
            raise StemdlError(f"frame of {image.shape} px in a movie of {self._shape} px")
        found = self._phase.coefficients(image, sites_px)
        residual, noise = self._residual(image)
        defects = np.empty((0, 2)) if defect_px is None else self._nm(defect_px)
        if not self._branches:
            self._phase.learn(found, np.zeros(2))
            self._start(residual, defects)
            return self._step(0.0, np.zeros(2))
        offset = self._phase.offset(found)
        options = self._extend(offset, residual, noise, defects)
        kept: list[_Branch] = []
        options = _distinct(options)
        for option in options:
            if option.score < options[0].score - _DROP or len(kept) == _BEAM:
                break
            kept.append(option)
        scores = np.exp([option.score - options[0].score for option in options])
        self._mass *= float(scores[:len(kept)].sum() / scores.sum())
        # What shows no lattice may not be the specimen at all: it is not remembered.
        self._branches = [self._paint(b, residual, defects) for b in kept] if offset.seen else kept
        self._gap = 1
        if not offset.seen:
            return self._step(kept[0].spread, np.zeros(2), seen=False)
        self._phase.learn(found, kept[0].drift)
        return self._step(offset.sigma_nm, offset.within_nm)

    def history(self) -> NDArray[np.float64]:
        """(T, 2) float64: drift (y, x) of every frame on the branch that is the best by now [nm]."""
        node = self._branches[0].path if self._branches else None
        drifts = []
        while node is not None:
            drifts.append(node[0])
            node = node[1]
        return np.array(drifts[::-1], dtype=np.float64).reshape(-1, 2)

    def _residual(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
        """What is neither lattice nor slow background, on coarse pixels, and the noise in it."""
        binned = bin_image(image, self._coarse).astype(np.float64)
        size = 2 * round(1.5 * self._cell / self._coarse) + 1
        low, high = np.quantile(binned, (0.001, 0.999))
        rest = np.clip(binned, low, high)
        rest -= uniform_filter(uniform_filter(rest, size, mode="nearest"), size, mode="nearest")
        h, w = rest.shape
        y = np.arange(h) * self._coarse + (self._coarse - 1) / 2
        x = np.arange(w) * self._coarse + (self._coarse - 1) / 2
        clipped = np.clip(rest, *np.quantile(rest, (0.03, 0.97)))
        g = self._g_px[np.hypot(*(self._g_px * self._coarse).T) < 0.5]
        ey, ex = np.exp(-2j * np.pi * g[:, :1] * y), np.exp(-2j * np.pi * g[:, 1:] * x)
        amplitude = 2 * np.einsum("nw,nw->n", ey @ clipped, ex) / rest.size
        rest -= ((ey.conj().T * amplitude) @ ex.conj()).real
        noise = 1.4826 * float(np.median(np.abs(rest - np.median(rest)))) or float(rest.std()) or 1.0
        return rest, noise

    def _evidence(self, branch: _Branch, frame: tuple[NDArray[np.complex128], NDArray[np.complex128]],
                  noise: float, drifts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-likelihood ratio of drifts (K, 2) [nm] to a specimen without features; NaN without overlap.

        `frame` holds the transforms (conjugate) of the frame's residual and of its extent.
        """
        sigma = noise / np.sqrt(np.maximum(branch.weight, 0.1))
        shown = uniform_filter(branch.canvas, 3)
        real = (np.abs(shown) > _FEATURE_SIGMAS * sigma / 3) & (branch.weight > 0.5)
        features = np.where(real, branch.canvas, 0.0)
        if not features.any():
            return np.zeros(len(drifts))
        limit = _FEATURE_LIMIT * noise
        features = np.clip(features, -limit, limit)
        both = fft.rfft2(features, self._fft_shape) * frame[0]
        both -= 0.5 * fft.rfft2(features**2, self._fft_shape) * frame[1]
        surface = fft.irfft2(both, self._fft_shape)
        at = self._margin - branch.anchor - self._coarse_px(drifts)
        values = map_coordinates(surface, at.T, order=1, mode="grid-wrap")
        outside = ((at < 0) | (at > 2 * self._margin)).any(axis=1)
        return np.where(outside, np.nan, _TRUST * values)

    def _extend(self, offset: Offset, residual: NDArray[np.float64], noise: float,
                defects: NDArray[np.float64]) -> list[_Branch]:
        """All branches continued to every drift that is possible now, the most probable first."""
        pieces = []
        within = offset.within_nm if offset.seen else np.zeros(2)
        limit = _FEATURE_LIMIT * noise
        shown = (fft.rfft2(np.clip(residual, -limit, limit), self._fft_shape).conj() / noise**2,
                 fft.rfft2(np.ones(residual.shape), self._fft_shape).conj() / noise**2)
        for branch in self._branches:
            step, width = branch.velocity, branch.spread
            if branch.excess_spread < branch.spread:
                step, width = branch.excess + within, branch.excess_spread
            predicted = branch.drift + self._gap * step
            width *= math.sqrt(self._gap)
            if offset.seen:
                near = np.rint((predicted - offset.shift_nm) @ np.linalg.inv(self._basis_nm))
                drifts = offset.shift_nm + (near + _CELLS) @ self._basis_nm
            else:
                drifts = predicted + 0.5 * width * _OFFSETS
            miss = drifts - predicted
            # The tail is heavier than a Gaussian's (Student, 8 degrees of freedom): stages do not drift
            # evenly.
            prior = -5 * np.log1p((miss**2).sum(axis=1) / (8 * width**2)) - 2 * math.log(width)
            likely = prior > prior.max() - _DROP
            drifts, prior = drifts[likely], prior[likely]
            features = self._evidence(branch, shown, noise, drifts)
            if len(defects) and len(branch.defects):
                prior = prior + self._defect_evidence(branch, defects, drifts)
            pieces.append((branch, drifts, prior, features))
        values = np.concatenate([piece[3] for piece in pieces])
        best = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
        continued = []
        for branch, drifts, prior, features in pieces:
            # Where nothing overlaps, nothing speaks for the drift; and a frame can say only so much against
            # one.
            against = np.maximum(np.nan_to_num(features, nan=-np.inf) - best, -_MOST_AGAINST)
            score = prior + against
            for k in np.argsort(-score)[:_BEAM]:
                step = (drifts[k] - branch.drift) / self._gap
                continued.append(replace(
                    branch, drift=drifts[k], velocity=0.6 * branch.velocity + 0.4 * step,
                    excess=0.8 * branch.excess + 0.2 * (step - within),
                    spread=_running(branch.spread, step - branch.velocity),
                    excess_spread=_running(branch.excess_spread, step - branch.excess - within),
                    score=branch.score + float(score[k]),
                    path=((float(drifts[k][0]), float(drifts[k][1])), branch.path) if self._keep else None))
        return sorted(continued, key=lambda option: -option.score)

    @staticmethod
    def _defect_evidence(branch: _Branch, defects: NDArray[np.float64],
                         drifts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-likelihood of drifts from defects that rest, or else are anywhere."""
        place = defects[None, :, None] - drifts[:, None, None]
        square = ((place - branch.defects[None, None])**2).sum(axis=3).min(axis=2)
        return np.log(0.85 * np.exp(-0.5 * square / 0.04**2) + 0.02).sum(axis=1)

    def _paint(self, branch: _Branch, residual: NDArray[np.float64], defects: NDArray[np.float64]) -> _Branch:
        """The branch with this frame added to its picture of the specimen."""
        canvas, weight, anchor = branch.canvas, branch.weight, branch.anchor
        at = self._margin - anchor - self._coarse_px(branch.drift)
        if (at < 1).any() or (at > 2 * self._margin - 1).any():
            move = np.rint(self._margin - at).astype(np.intp)
            canvas, weight = _moved(canvas, move), _moved(weight, move)
            anchor = anchor - move
            at = at + move
        whole = np.floor(at).astype(int)
        moved = shift(residual, at - whole, order=1, mode="nearest")
        canvas, weight = canvas.copy(), weight.copy()
        h, w = residual.shape
        # The outermost pixels were interpolated from beyond the border.
        window = (slice(whole[0] + 1, whole[0] + h), slice(whole[1] + 1, whole[1] + w))
        count = weight[window]
        total = np.minimum(count, _MEMORY_FRAMES - 1) + 1
        canvas[window] += (moved[1:, 1:] - canvas[window]) / total
        weight[window] = total
        return replace(branch, canvas=canvas, weight=weight, anchor=anchor,
                       defects=defects - branch.drift if len(defects) else branch.defects)

    def _start(self, residual: NDArray[np.float64], defects: NDArray[np.float64]) -> None:
        """The first frame is the origin."""
        branch = _Branch(np.zeros(2), np.zeros(2), np.zeros(2), 0.07, 0.12, 0.0, np.zeros(self._canvas_shape),
                         np.zeros(self._canvas_shape), np.zeros(2, dtype=np.intp), defects,
                         ((0.0, 0.0), None) if self._keep else None)
        self._branches = [self._paint(branch, residual, defects)]

    def _step(self, sigma: float, within: NDArray[np.float64], *, seen: bool = True) -> DriftStep:
        """The newest drift, and the scores brought back to 0: only their differences count."""
        scores = np.array([b.score for b in self._branches])
        confidence = self._mass / float(np.exp(scores - scores[0]).sum())
        for branch in self._branches:
            branch.score -= scores[0]
        y, x = self._branches[0].drift.tolist()
        return DriftStep(y, x, sigma, confidence, (float(within[0]), float(within[1])), seen)

    def _nm(self, yx_px: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(yx_px, dtype=np.float64).reshape(-1, 2) @ self._to_nm.T

    def _coarse_px(self, step_nm: NDArray[np.float64]) -> NDArray[np.float64]:
        return step_nm @ np.linalg.inv(self._to_nm).T / self._coarse


#: Lattice subtracted before features are compared.
_TEN_AND_ELEVEN = np.array([(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2)], dtype=np.float64)
_CELLS = np.stack(np.meshgrid(*[np.arange(-3.0, 4.0)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
_OFFSETS = np.stack(np.meshgrid(*[np.arange(-4.0, 5.0)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)


def _running(spread: float, miss: NDArray[np.float64]) -> float:
    """Running root mean square along an axis."""
    mean = math.sqrt(0.9 * spread**2 + 0.1 * float(miss @ miss) / 2)
    return min(max(mean, 0.015), 0.12)


def _distinct(options: list[_Branch]) -> list[_Branch]:
    """The best of the branches that are at the same place, which have the same future but for their speed."""
    kept: list[_Branch] = []
    places = np.empty((0, 2))
    for option in options[:200]:
        if not (np.hypot(*(places - option.drift).T) < 0.06).any():
            kept.append(option)
            places = np.vstack([places, option.drift])
    return kept


def _moved(array: NDArray[np.float64], move: NDArray[np.intp]) -> NDArray[np.float64]:
    """The array moved by whole pixels, zeros behind it."""
    out = np.zeros_like(array)
    h, w = array.shape
    dy, dx = int(np.clip(move[0], -h, h)), int(np.clip(move[1], -w, w))
    out[max(dy, 0):h + min(dy, 0), max(dx, 0):w + min(dx, 0)] = (
        array[max(-dy, 0):h + min(-dy, 0), max(-dx, 0):w + min(-dx, 0)])
    return out


def register(images: Iterable[NDArray[np.floating]], *, fit: LatticeFit, pixel_size: PixelSize | None = None,
             ) -> tuple[NDArray[np.float64], list[DriftStep]]:
    """Drift of all frames of a movie, branches chosen over the whole sequence.

    Parameters
    ----------
    images : iterable of (H, W) arrays
        Frames of equal size.
    fit : LatticeFit
        Lattice of the movie.
    pixel_size : PixelSize, optional
        By default the fit's.

    Returns
    -------
    drift_nm : (T, 2) float64
        Drift (y, x) since the first frame [nm].
    steps : list of DriftStep
        What was known at each frame from it and those before.
    """
    tracker: DriftTracker | None = None
    steps = []
    for image in images:
        if tracker is None:
            tracker = DriftTracker(fit=fit, shape=np.shape(image), pixel_size=pixel_size, keep_history=True)
        steps.append(tracker.update(image))
    return (np.zeros((0, 2)) if tracker is None else tracker.history()), steps
