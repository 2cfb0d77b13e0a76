"""What the picture of a set of columns is made of: one shared probe (core and tail) and a smooth background."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Column profile with peak height one: (1 - f) core + f tail, both Gaussian.

    The tail is the core widened by a round Gaussian: source size and aberrations act on the same beam.

    Parameters
    ----------
    cyy, cyx, cxx : float
        Covariance of the core [working px^2].
    fraction : float
        Share of the tail in the peak height.
    spread : float
        Variance the tail has on top of the core, per axis [working px^2].
    """

    cyy: float
    cyx: float
    cxx: float
    fraction: float
    spread: float

    @property
    def sigma(self) -> float:
        """Geometric mean width of the core [working px]."""
        return (self.cyy * self.cxx - self.cyx**2) ** 0.25

    @property
    def peak_ratio(self) -> float:
        """Integral of the tail over that of the core, for equal peaks."""
        wide = (self.cyy + self.spread) * (self.cxx + self.spread) - self.cyx**2
        return (wide / (self.cyy * self.cxx - self.cyx**2)) ** 0.5

    @property
    def volume(self) -> float:
        """Integral of the profile of peak one [working px^2]."""
        core = 2 * np.pi * self.sigma**2
        return float(core * (1 - self.fraction + self.fraction * self.peak_ratio))

    def inverse(self, *, tail: bool) -> tuple[float, float, float]:
        """(yy, yx, xx) of the inverse covariance."""
        more = self.spread if tail else 0.0
        a, b, c = self.cyy + more, self.cyx, self.cxx + more
        det = a * c - b * b
        return c / det, -b / det, a / det

    def widened(self, variance: float) -> Shape:
        """The shape with `variance` added to the core, per axis."""
        return replace(self, cyy=self.cyy + variance, cxx=self.cxx + variance)


def round_shape(sigma: float, fraction: float = 0.12, tail_ratio: float = 2.2) -> Shape:
    """A round probe: core sigma [working px], share of the tail, tail width over core width."""
    return Shape(sigma**2, 0.0, sigma**2, fraction, (tail_ratio**2 - 1) * sigma**2)


@dataclass(frozen=True)
class _Axis:
    """Hat functions of evenly spaced nodes along one axis."""

    start: float
    step: float
    hats: NDArray[np.float32]

    @classmethod
    def spanning(cls, length: int, pad: int, spacing: float) -> _Axis:
        inner = length - 2 * pad
        count = max(2, round(inner / spacing) + 1)
        step = max(inner - 1, 1) / (count - 1)
        position = (np.arange(length) - pad) / step
        hats = np.clip(1 - np.abs(position[:, None] - np.arange(count)), 0, None)
        return cls(float(pad), step, hats.astype(np.float32))

    def bands(self) -> NDArray[np.float32]:
        """(length, 2 n - 1): products of each hat with itself, then with the next one."""
        return np.concatenate([self.hats**2, self.hats[:, :-1] * self.hats[:, 1:]], axis=1)

    def band_index(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        first = np.arange(self.hats.shape[1])
        return np.concatenate([first, first[:-1]]), np.concatenate([first, first[1:]])

    def locate(self, at: Array) -> tuple[NDArray[np.intp], Array, Array]:
        """Left node (N,), values (N, 2) and slopes (N, 2) of the two hats around each coordinate."""
        u = (at - self.start) / self.step
        left = np.clip(np.floor(u), 0, self.hats.shape[1] - 2).astype(np.intp)
        t = u - left
        slope = np.full(len(at), 1 / self.step)
        return left, np.stack([1 - t, t], 1), np.stack([-slope, slope], 1)

    def locate_blurred(self, at: Array, sigma: Array) -> tuple[NDArray[np.intp], Array, Array]:
        """First of three nodes (N,), and the means (N, 3) of their hats and slopes over a Gaussian around each point.

        A hat is the second difference of a ramp, whose mean is known.
        """
        nodes, u, blur = self.hats.shape[1], (at - self.start) / self.step, sigma / self.step
        first = np.clip(np.rint(u) - 1, 0, max(nodes - 3, 0)).astype(np.intp)
        ramp_at = (u - first)[:, None] + np.arange(1, -4, -1)
        z = ramp_at / blur[:, None]
        rise = ndtr(z)
        ramp = ramp_at * rise + blur[:, None] * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        hats, slopes = (v[:, :-2] - 2 * v[:, 1:-1] + v[:, 2:] for v in (ramp, rise))
        return first, hats[:, :nodes], slopes[:, :nodes] / self.step


class Background:
    """Bilinear surface over coarse nodes: bends with contamination, cannot follow an atom."""

    def __init__(self, shape: tuple[int, int], pad: int, spacing: float) -> None:
        self._y, self._x = _Axis.spanning(shape[0], pad, spacing), _Axis.spanning(shape[1], pad, spacing)
        self.shape = (self._y.hats.shape[1], self._x.hats.shape[1])
        self.size = self.shape[0] * self.shape[1]
        self.pixels = shape

    def image(self, nodes: Array) -> Image:
        """(H, W) surface of the node heights."""
        return self._y.hats @ (nodes.reshape(self.shape).astype(np.float32) @ self._x.hats.T)

    def project(self, image: Image) -> Array:
        """(n,) sums of the image times each node's hat."""
        return (self._y.hats.T @ (image @ self._x.hats)).astype(np.float64).ravel()

    def gram(self, weight: Image) -> Array:
        """(n, n) weighted products of the hats: only a hat and its next neighbours overlap."""
        bands = (self._y.bands().T @ (weight @ self._x.bands())).astype(np.float64)
        (ya, yb), (xa, xb) = self._y.band_index(), self._x.band_index()
        full = np.zeros((self.shape[0], self.shape[1]) * 2)
        for p, q in ((ya, yb), (yb, ya)):
            for r, s in ((xa, xb), (xb, xa)):
                full[p[:, None], r, q[:, None], s] = bands
        return full.reshape(self.size, self.size)

    def stiffness(self) -> Array:
        """(n, n) matrix of the sum of squared differences between neighbouring nodes."""
        index = np.arange(self.size).reshape(self.shape)
        total = np.zeros((self.size, self.size))
        for first, second in ((index[1:], index[:-1]), (index[:, 1:], index[:, :-1])):
            i, j = first.ravel(), second.ravel()
            np.add.at(total, (i, i), 1.0)
            np.add.at(total, (j, j), 1.0)
            total[i, j] -= 1
            total[j, i] -= 1
        return total

    def at(self, y: Array, x: Array) -> tuple[NDArray[np.intp], Array, Array, Array]:
        """The four nodes around each point: index, hat value and slopes along y and x, each (N, 4)."""
        (iy, vy, sy), (ix, vx, sx) = self._y.locate(y), self._x.locate(x)
        index = (iy[:, None, None] + np.array([[0], [1]])) * self.shape[1]
        index = index + ix[:, None, None] + np.array([0, 1])

        def outer(p: Array, q: Array) -> Array:
            return (p[:, :, None] * q[:, None, :]).reshape(-1, 4)

        return index.reshape(-1, 4), outer(vy, vx), outer(sy, vx), outer(vy, sx)


    def blurred_at(self, y: Array, x: Array, sigma_y: Array, sigma_x: Array,
                   ) -> tuple[NDArray[np.intp], Array, Array, Array]:
        """As `at`, of up to nine nodes, in the mean over a column's own width: a hat has kinks."""
        (iy, vy, sy), (ix, vx, sx) = self._y.locate_blurred(y, sigma_y), self._x.locate_blurred(x, sigma_x)
        index = (iy[:, None, None] + np.arange(vy.shape[1])[:, None]) * self.shape[1]
        index = index + ix[:, None, None] + np.arange(vx.shape[1])

        def outer(p: Array, q: Array) -> Array:
            return (p[:, :, None] * q[:, None, :]).reshape(len(p), -1)

        return index.reshape(len(y), -1), outer(vy, vx), outer(sy, vx), outer(vy, sx)
