"""The steps of the fit: probe and background from many columns, then every column, in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .coupling import Couplings
from .grid import Grid, Noise
from .joint import Normal
from .model import Array, Background, Image, Shape
from .picture import Patches, Picture

#: A patch reaches this many sigma of the core.
REACH = 3.0
#: Columns of one kind are about equally bright: least and most spread that is believed, relative to their
#: mean.
_LEAST_SPREAD, _MOST_SPREAD = 0.06, 0.35


@dataclass(frozen=True)
class State:
    """Everything that is fitted, in working pixels and scaled intensity."""

    y: Array
    x: Array
    height: Array
    nodes: Array
    shape: Shape
    noise: Noise


@dataclass(frozen=True)
class Prior:
    """What is believed before looking: mean and precision of (height, y, x) per column, each (N, 3)."""

    mean: Array
    precision: Array


class Fit:
    """One frame's, or one window's, least squares.

    Parameters
    ----------
    grid : Grid
        Working pixels.
    background : Background
        The surface under the columns.
    """

    def __init__(self, grid: Grid, background: Background) -> None:
        self.grid, self.background = grid, background
        self.usable = grid.usable
        self.size = (grid.image.shape[0], grid.image.shape[1])
        self._stiffness = background.stiffness()

    def draw(self, state: State) -> Picture:
        """The state's columns."""
        reach = min(REACH * state.shape.sigma, self.grid.pad)
        radius = math.ceil(reach)
        # A column that left the image by more than the padding is drawn at its rim; it has no pixels there.
        y, x = (np.clip(v, radius, n - 1 - radius)
                for v, n in zip((state.y, state.x), self.size, strict=True))
        return Picture(Patches(y, x, state.shape, reach, self.size[1]), state.height, state.shape, self.size)

    def mean(self, state: State, picture: Picture) -> Image:
        """(H, W) expected image."""
        return picture.columns + self.background.image(state.nodes)

    def weight(self, noise: Noise, mean: Image) -> Image:
        """Information per working pixel: an average over fewer raw pixels knows less."""
        return self.usable / noise.variance(mean)

    def scale_step(self, state: State, picture: Picture, weight: Image) -> tuple[State, Picture, float]:
        """Common factor of all heights, and the background, for a given probe; and chi2 per pixel."""
        values, chi2 = self._shared(weight, self.grid.image, [picture.columns], np.zeros(1), np.zeros(1))
        factor = max(float(values[0]), 1e-3)
        return replace(state, height=factor * state.height, nodes=values[1:]), picture.scaled(factor), chi2

    def _smoothness(self, height: float) -> Array:
        """Weak pull of neighbouring background nodes towards each other, for nodes without pixels."""
        return self._stiffness / (2 * height) ** 2

    def _shared(self, weight: Image, target: Image, images: list[Image], pull: Array, precision: Array,
                ) -> tuple[Array, float]:
        """Weighted least squares of `target` on a few images and the background; chi2 per pixel."""
        k, n = len(images), self.background.size
        matrix, right = np.empty((k + n, k + n)), np.empty(k + n)
        weighted = [weight * image for image in images]
        for a in range(k):
            for b in range(a, k):
                matrix[a, b] = matrix[b, a] = float(np.vdot(weighted[a], images[b]))
            matrix[a, k:] = matrix[k:, a] = self.background.project(weighted[a])
            right[a] = float(np.vdot(weighted[a], target))
        matrix[k:, k:] = self.background.gram(weight) + self._smoothness(1.0)
        wt = weight * target
        right[k:] = self.background.project(wt)
        matrix[np.arange(k), np.arange(k)] += precision
        right[:k] += precision * pull
        scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
        matrix = matrix * np.outer(scale, scale) + 1e-7 * np.eye(k + n)
        solution = scale * np.linalg.solve(matrix, right * scale)
        chi2 = float(np.vdot(wt, target)) - float(solution @ right)
        return solution, chi2 / max(float(np.count_nonzero(weight)), 1.0)

    def probe_step(self, state: State, picture: Picture, weight: Image, *, start: Shape) -> State:
        """Gauss-Newton step of the probe, the common height and the background; columns stay in place."""
        shape = state.shape
        now = np.array([shape.cyy, shape.cyx, shape.cxx, shape.fraction, shape.spread])
        # Probes are nearly round and their tails alike; the image overrules both where it can.
        s2 = shape.sigma**2
        middle = 0.5 * (now[0] + now[2])
        mean = np.array([middle, 0.0, middle, start.fraction, start.spread * s2 / start.sigma**2])
        precision = 1 / np.array([0.25 * s2, 0.15 * s2, 0.25 * s2, 0.12, 0.3 * mean[4]]) ** 2
        step, _ = self._shared(weight, self.grid.image - picture.columns,
                               [picture.columns, *_probe_slopes(picture)],
                               np.r_[0, mean - now], np.r_[0, precision])
        limit = np.array([0.35 * s2, 0.2 * s2, 0.35 * s2, 0.1, 0.35 * shape.spread])
        new = now + np.clip(step[1:6], -limit, limit)
        new[3] = np.clip(new[3], 0.0, 0.6)
        new[4] = np.clip(new[4], 2.0 * s2, 7.0 * s2)
        new[1] = np.clip(new[1], -0.4 * s2, 0.4 * s2)
        scale = float(np.clip(1 + step[0], 0.5, 2.0))
        return replace(state, shape=Shape(*map(float, new)), height=scale * state.height, nodes=step[6:])

    def column_step(self, state: State, picture: Picture, prior: Prior, *, longest: float,
                    weight: Image | None = None, tolerance: float = 0.02,
                    couplings: Couplings | None = None) -> tuple[State, Normal]:
        """Gauss-Newton step of every column's height and position with the background, all coupled.

        `couplings` are those of a step before, if it was small.
        Returns the new state, and the least squares problem of the old one.
        """
        mean = self.mean(state, picture)
        if weight is None:
            weight = self.weight(state.noise, mean)
        typical = float(np.median(state.height))
        smooth = self._smoothness(typical)
        normal = Normal(picture.patches, state.y, state.x, state.height, weight, self.grid.image - mean,
                        self.background, smooth, prior.precision, couplings)
        now = np.stack([state.height, state.y, state.x], 1)
        step, surface = normal.solve(prior.precision * (prior.mean - now), -smooth @ state.nodes,
                                     tolerance=tolerance)
        length = np.hypot(step[:, 1], step[:, 2])
        step[:, 1:] *= np.minimum(1, longest / np.maximum(length, 1e-12))[:, None]
        least = np.maximum(0.4 * state.height, 0.02 * typical)
        height = np.clip(state.height + step[:, 0], least, np.maximum(2.5 * state.height, least))
        return (replace(state, y=state.y + step[:, 1], x=state.x + step[:, 2], height=height,
                        nodes=state.nodes + surface), normal)


def _second_derivatives(image: Image) -> tuple[Image, Image, Image]:
    """(yy, yx, xx) by finite differences; zero at the rim, which is padding."""
    yy, yx, xx = (np.zeros_like(image) for _ in range(3))
    centre = 2 * image[1:-1, 1:-1]
    yy[1:-1, 1:-1] = image[2:, 1:-1] + image[:-2, 1:-1] - centre
    xx[1:-1, 1:-1] = image[1:-1, 2:] + image[1:-1, :-2] - centre
    yx[1:-1, 1:-1] = 0.25 * (image[2:, 2:] - image[2:, :-2] - image[:-2, 2:] + image[:-2, :-2])
    return yy, yx, xx


def _probe_slopes(picture: Picture) -> list[Image]:
    """Slopes of the picture with cyy, cyx, cxx, fraction and spread.

    A Gaussian of unit volume obeys the heat equation: its slope with the covariance is half its second
    derivative. Ours keeps its peak instead, which adds half the inverse covariance.
    """
    shape = picture.shape
    f = np.float32(shape.fraction)
    half = np.float32(0.5)
    parts = []
    for image, is_tail in ((picture.core, False), (picture.tail, True)):
        yy, yx, xx = (np.float32(v) for v in shape.inverse(tail=is_tail))
        dyy, dyx, dxx = _second_derivatives(image)
        parts.append((half * (dyy + yy * image), dyx + yx * image, half * (dxx + xx * image)))
    slopes = [a + f * (b - a) for a, b in zip(*parts, strict=True)]
    slopes.append(picture.tail - picture.core)
    # Without a tail its width has no effect; a little slope lets it start from nothing.
    slopes.append(max(f, np.float32(0.02)) * (parts[1][0] + parts[1][2]))
    return slopes


def height_prior(height: Array, variance: Array, labels: NDArray[np.intp]) -> tuple[Array, Array]:
    """Mean and precision of the heights of each group of columns, from the group itself (empirical Bayes).

    The spread beyond what the counts explain is the group's own; columns far outside it are left free, so
    that an atom of another kind among them keeps its height.
    """
    mean, precision = height.copy(), np.zeros_like(height)
    for label in np.unique(labels):
        own = labels == label
        if own.sum() < 8:
            continue
        values, noise = height[own], variance[own]
        centre = np.median(values)
        for _ in range(2):
            spread = np.clip(np.sqrt(max(_robust_variance(values) - np.median(noise), 0)),
                             _LEAST_SPREAD * centre, _MOST_SPREAD * centre)
            total = noise + spread**2
            off = (values - centre) ** 2 / total
            weight = np.where(off < 9, 1 / total, 0)
            if weight.sum() > 0:
                centre = (weight * values).sum() / weight.sum()
        mean[own] = centre
        precision[own] = np.where(off < 9, 1 / spread**2, 0)
    return mean, precision


def _robust_variance(values: Array) -> float:
    """Variance of the inner part, as of a normal distribution."""
    return float((1.4826 * np.median(np.abs(values - np.median(values)))) ** 2)
