"""The steps of the fit: probe and background from all columns, then every column, in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .grid import Grid, Noise
from .joint import Normal, Pairs, assemble, solve
from .model import Array, Background, Image, Patches, Shape, draw, round_shape, widen

#: A patch reaches this many sigma of the core.
REACH = 3.2
#: Columns of one kind are about equally bright: least and most spread that is believed, relative to their mean.
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


def second_derivatives(image: Image) -> tuple[Image, Image, Image]:
    """(yy, yx, xx) by finite differences; zero at the rim, which is padding."""
    yy, yx, xx = (np.zeros_like(image) for _ in range(3))
    centre = 2 * image[1:-1, 1:-1]
    yy[1:-1, 1:-1] = image[2:, 1:-1] + image[:-2, 1:-1] - centre
    xx[1:-1, 1:-1] = image[1:-1, 2:] + image[1:-1, :-2] - centre
    yx[1:-1, 1:-1] = 0.25 * (image[2:, 2:] - image[2:, :-2] - image[:-2, 2:] + image[:-2, :-2])
    return yy, yx, xx


class Fit:
    """One frame's fit.

    Parameters
    ----------
    grid : Grid
        Working pixels.
    background : Background
        The surface under the columns.
    radius : int
        Half width of a patch [working px].
    """

    def __init__(self, grid: Grid, background: Background, radius: int) -> None:
        self.grid, self.background, self.radius = grid, background, radius
        self.usable = grid.usable
        self.size = grid.image.shape
        self.stiffness = background.stiffness()

    def patches(self, state: State) -> Patches:
        """Patches at the state's positions."""
        limit_y, limit_x = self.size[0] - 1 - self.radius, self.size[1] - 1 - self.radius
        y, x = np.clip(state.y, self.radius, limit_y), np.clip(state.x, self.radius, limit_x)
        return Patches(y, x, state.shape, self.radius, self.size[1])

    def columns(self, state: State, patches: Patches) -> Image:
        """(H, W) picture of the columns alone."""
        core, tail = draw(patches, state.height, state.shape, self.size)
        f = np.float32(state.shape.fraction)
        return core + f * (tail - core) if f else core

    def weight(self, noise: Noise, mean: Image) -> Image:
        """Information per working pixel: an average over fewer raw pixels knows less."""
        return self.usable / noise.variance(mean)

    def smoothness(self, height: float) -> Array:
        """Weak pull of neighbouring background nodes towards each other, for nodes without pixels."""
        return self.stiffness / (2 * height) ** 2

    def scale_step(self, state: State, weight: Image) -> tuple[State, float]:
        """Common factor of all heights and the background for a given probe; and the misfit left, per pixel."""
        columns = self.columns(state, self.patches(state))
        values, chi2 = self._border_solve(weight, self.grid.image, [columns], np.zeros(1), np.zeros(1), 1.0)
        factor = max(float(values[0]), 1e-3)
        return replace(state, height=factor * state.height, nodes=values[1:]), chi2

    def _border_solve(self, weight: Image, target: Image, images: list[Image], pull: Array, precision: Array,
                      height: float) -> tuple[Array, float]:
        """Weighted least squares of `target` on a few images and the background; chi2 per pixel."""
        k, n = len(images), self.background.size
        weighted = [weight * image for image in images]
        matrix = np.empty((k + n, k + n))
        right = np.empty(k + n)
        flat = np.stack([image.ravel() for image in images])
        matrix[:k, :k] = np.stack([w.ravel() for w in weighted]) @ flat.T
        for a in range(k):
            matrix[a, k:] = matrix[k:, a] = self.background.project(weighted[a])
            right[a] = float(weighted[a].ravel() @ target.ravel())
        matrix[k:, k:] = self.background.gram(weight) + self.smoothness(height)
        wt = weight * target
        right[k:] = self.background.project(wt)
        chi2 = float(wt.ravel() @ target.ravel()) - 0.0
        matrix[np.arange(k), np.arange(k)] += precision
        right[:k] += precision * pull
        scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
        solution = scale * np.linalg.lstsq(matrix * np.outer(scale, scale), right * scale, rcond=1e-9)[0]
        return solution, (chi2 - float(solution @ right)) / max(float((weight > 0).sum()), 1.0)

    def probe_step(self, state: State, *, start: Shape, weight: Image | None = None) -> State:
        """Gauss-Newton step of the probe, the common height and the background; columns stay where they are."""
        shape = state.shape
        core, tail = draw(self.patches(state), state.height, shape, self.size)
        if shape.fraction == 0:
            tail = widen(core, shape)
        f = np.float32(shape.fraction)
        columns = core + f * (tail - core)
        if weight is None:
            weight = self.weight(state.noise, columns + self.background.image(state.nodes))
        images = self._probe_slopes(shape, core, tail)
        now = np.array([shape.cyy, shape.cyx, shape.cxx, shape.fraction, shape.spread])
        # Probes are nearly round and their tails alike; the image overrules both where it can.
        s2 = shape.sigma**2
        mean = np.array([0.5 * (now[0] + now[2]), 0.0, 0.5 * (now[0] + now[2]), start.fraction,
                         start.spread * s2 / start.sigma**2])
        precision = 1 / np.array([0.25 * s2, 0.15 * s2, 0.25 * s2, 0.12, 0.3 * mean[4]]) ** 2
        residual = self.grid.image - columns
        step, _ = self._border_solve(weight, residual, [columns, *images], np.r_[0, mean - now],
                                     np.r_[0, precision], 1.0)
        limit = np.array([0.35 * s2, 0.2 * s2, 0.35 * s2, 0.1, 0.35 * shape.spread])
        new = now + np.clip(step[1:6], -limit, limit)
        new[3] = np.clip(new[3], 0.0, 0.6)
        new[4] = np.clip(new[4], 2.0 * s2, 7.0 * s2)
        new[1] = np.clip(new[1], -0.4 * s2, 0.4 * s2)
        scale = float(np.clip(1 + step[0], 0.5, 2.0))
        return replace(state, shape=Shape(*map(float, new)), height=scale * state.height, nodes=step[6:])

    @staticmethod
    def _probe_slopes(shape: Shape, core: Image, tail: Image) -> list[Image]:
        """Slopes of the picture with cyy, cyx, cxx, fraction and spread.

        A Gaussian of unit volume obeys the heat equation: its slope with the covariance is half its second
        derivative. Ours keeps its peak instead, which adds half the inverse covariance.
        """
        f = np.float32(shape.fraction)
        slopes = []
        parts = []
        for image, is_tail in ((core, False), (tail, True)):
            yy, yx, xx = (np.float32(v) for v in shape.inverse(tail=is_tail))
            dyy, dyx, dxx = second_derivatives(image)
            half = np.float32(0.5)
            parts.append((half * (dyy + yy * image), dyx + yx * image, half * (dxx + xx * image)))
        for a, b in zip(*parts, strict=True):
            slopes.append(a + f * (b - a))
        slopes.append(tail - core)
        slopes.append(max(f, np.float32(0.02)) * (parts[1][0] + parts[1][2]))
        return slopes

    def column_step(self, state: State, prior: Prior, *, longest: float, normal: Normal | None, pairs: Pairs,
                    weight: Image | None = None, keep: bool = False) -> tuple[State, Normal, Image]:
        """Gauss-Newton step of every column's height and position with the background, all coupled.

        The gradient is exact in every step; the matrix may be the one of the step before, since it only
        steers. Returns the new state, the matrix, and the picture before the step.
        """
        patches = self.patches(state)
        columns = self.columns(state, patches)
        mean = columns + self.background.image(state.nodes)
        if weight is None:
            weight = self.weight(state.noise, mean)
        slopes = patches.jacobian()
        heights = np.maximum(state.height, 1e-3 * np.median(np.abs(state.height)))
        slopes[1:] *= heights.astype(np.float32)[:, None]
        smooth = self.smoothness(float(np.median(heights)))
        if normal is None:
            normal = assemble(patches, slopes, state.y, state.x, heights, state.shape, weight, columns,
                              self.background, pairs, smooth)
        residual = weight * (self.grid.image - mean)
        gradient = np.einsum("anp,np->na", slopes, residual.ravel()[patches.index]).astype(np.float64)
        now = np.stack([state.height, state.y, state.x], 1)
        gradient += prior.precision * (prior.mean - now)
        nodes = self.background.project(residual) - smooth @ state.nodes
        if keep:
            return state, normal, mean
        step, surface = solve(normal, prior.precision, gradient, nodes)
        length = np.hypot(step[:, 1], step[:, 2])
        step[:, 1:] *= np.minimum(1, longest / np.maximum(length, 1e-12))[:, None]
        least = np.maximum(0.4 * heights, 0.02 * np.median(heights))
        height = np.clip(state.height + step[:, 0], least, 2.5 * heights)
        return (replace(state, y=state.y + step[:, 1], x=state.x + step[:, 2], height=height,
                        nodes=state.nodes + surface), normal, mean)


def height_prior(height: Array, variance: Array, labels: NDArray[np.intp]) -> tuple[Array, Array]:
    """Mean and precision of the heights of each group of columns, from the group itself (empirical Bayes).

    The spread beyond what the counts explain is the group's own; columns far outside it are left free, so that
    an atom of another kind among them keeps its height.
    """
    mean, precision = height.copy(), np.zeros_like(height)
    for label in np.unique(labels):
        own = labels == label
        if own.sum() < 8:
            continue
        values, noise = height[own], variance[own]
        centre = np.median(values)
        for _ in range(2):
            spread = np.clip(np.sqrt(max(_robust_variance(values - centre) - np.median(noise), 0)),
                             _LEAST_SPREAD * centre, _MOST_SPREAD * centre)
            total = noise + spread**2
            off = (values - centre) ** 2 / total
            weight = np.where(off < 9, 1 / total, 0)
            if weight.sum() > 0:
                centre = (weight * values).sum() / weight.sum()
        mean[own] = centre
        precision[own] = np.where(off < 9, 1 / spread**2, 0)
    return mean, precision


def _robust_variance(deviation: Array) -> float:
    """Variance of the inner part, as of a normal distribution."""
    return float((1.4826 * np.median(np.abs(deviation - np.median(deviation)))) ** 2)


def first_state(grid: Grid, y: Array, x: Array, background: Background, sigma: float, noise: Noise,
                smooth: Image) -> State:
    """Heights and background read off a smoothed image."""
    inside = grid.usable > 0
    floor = float(np.percentile(smooth[inside][::7], 5))
    height = smooth[np.clip(np.rint(y).astype(int), 0, smooth.shape[0] - 1),
                    np.clip(np.rint(x).astype(int), 0, smooth.shape[1] - 1)].astype(np.float64) - floor
    typical = max(float(np.median(height)), 0.02)
    return State(y, x, np.maximum(height, 0.3 * typical), np.full(background.size, floor), round_shape(sigma), noise)
