"""The picture of a set of columns: one shared probe (core and tail) and a smooth background."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from scipy.sparse import csc_matrix

Array = NDArray[np.float64]
Image = NDArray[np.float32]
_CHUNK = 128


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


def chunks(count: int) -> list[slice]:
    """Columns are worked on in groups whose patches stay in the processor's cache."""
    return [slice(a, a + _CHUNK) for a in range(0, count, _CHUNK)]


class Patches:
    """The core and tail of every column on the pixels around it, and their slopes.

    Parameters
    ----------
    y, x : (N,) float64
        Positions [working px].
    shape : Shape
        The probe.
    reach : float
        Radius of a patch [working px]; the image must have at least this margin, rounded up, beyond every column.
    width : int
        Row length of the image.
    """

    def __init__(self, y: Array, x: Array, shape: Shape, reach: float, width: int) -> None:
        ticks = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
        offset_y, offset_x = (v.ravel() for v in np.meshgrid(ticks, ticks, indexing="ij"))
        disc = offset_y**2 + offset_x**2 <= (reach + 0.5) ** 2
        offset_y, offset_x = offset_y[disc], offset_x[disc]
        iy, ix = np.rint(y).astype(np.intp), np.rint(x).astype(np.intp)
        centre = (iy * width + ix).astype(np.int32)
        self.index = centre[:, None] + (offset_y * width + offset_x).astype(np.int32)
        self.rest_y, self.rest_x = (y - iy).astype(np.float32), (x - ix).astype(np.float32)
        self._offset_y, self._offset_x = offset_y.astype(np.float32), offset_x.astype(np.float32)
        # Zeroth and first moments of a patch about its central pixel.
        self.moments = np.stack([np.ones_like(self._offset_y), self._offset_y, self._offset_x], 1)
        self._shape = shape
        self._pixels: csc_matrix | None = None
        self.core = np.empty(self.index.shape, np.float32)
        for which in chunks(len(y)):
            self.core[which] = self._gaussian(which, tail=False)

    def place(self, values: Image, size: tuple[int, int]) -> csc_matrix:
        """(H * W, N) sparse matrix with the patch values (N, P) where they belong; valid until the next call.

        One matrix lends its structure to all values: to check it takes longer than to multiply with it.
        """
        if self._pixels is None:
            n, pixels = self.index.shape
            starts = np.arange(0, n * pixels + 1, pixels, dtype=np.int32)
            self._pixels = csc_matrix((values.ravel(), self.index.ravel(), starts), shape=(size[0] * size[1], n))
        self._pixels.data = values.ravel()
        return self._pixels

    def _lean(self, which: slice, *, tail: bool) -> tuple[Image, Image]:
        """Inverse covariance times distance, its y and x part: (N, P) each."""
        yy, yx, xx = (np.float32(v) for v in self._shape.inverse(tail=tail))
        oy, ox, fy, fx = self._offset_y, self._offset_x, self.rest_y[which], self.rest_x[which]
        return ((yy * oy + yx * ox) - (yy * fy + yx * fx)[:, None],
                (yx * oy + xx * ox) - (yx * fy + xx * fx)[:, None])

    def _gaussian(self, which: slice, *, tail: bool) -> Image:
        """(N, P) Gaussian of peak one; its exponent is a product of pixels' and columns' terms."""
        yy, yx, xx = (np.float32(v) for v in self._shape.inverse(tail=tail))
        oy, ox, fy, fx = self._offset_y, self._offset_x, self.rest_y[which], self.rest_x[which]
        half = np.float32(-0.5)
        pixel = np.stack([half * (yy * oy**2 + 2 * yx * oy * ox + xx * ox**2), yy * oy + yx * ox,
                          yx * oy + xx * ox, np.ones_like(oy)])
        column = np.stack([np.ones_like(fy), fy, fx, half * (yy * fy**2 + 2 * yx * fy * fx + xx * fx**2)], 1)
        exponent = column @ pixel
        return np.exp(exponent, out=exponent)

    def slopes(self, which: slice) -> tuple[Image, Image, Image]:
        """Of some columns: profile of peak one, and its slopes with the column's y and x, (N, P) each."""
        shape = self._shape
        profile = self.core[which] * np.float32(1 - shape.fraction)
        slope_y, slope_x = self._lean(which, tail=False)
        slope_y *= profile
        slope_x *= profile
        if shape.fraction > 0:
            tail = self._gaussian(which, tail=True)
            tail *= np.float32(shape.fraction)
            more_y, more_x = self._lean(which, tail=True)
            more_y *= tail
            more_x *= tail
            profile += tail
            slope_y += more_y
            slope_x += more_x
        return profile, slope_y, slope_x


class Picture:
    """Columns drawn: patches, the sum of the cores and the sum of the tails, before any mixing.

    Parameters
    ----------
    patches : Patches
        Where the columns are.
    heights : (N,) float64
        Peak heights.
    shape : Shape
        The probe.
    size : (int, int)
        Height and width of the image [working px].
    """

    def __init__(self, patches: Patches, heights: Array, shape: Shape, size: tuple[int, int]) -> None:
        self.patches, self.shape, self.size = patches, shape, size
        self.core = (patches.place(patches.core, size) @ heights.astype(np.float32)).reshape(size)
        self.tail = widen(self.core, shape)
        self.columns = self.core + np.float32(shape.fraction) * (self.tail - self.core)

    def scaled(self, factor: float) -> Picture:
        """The same columns, all higher by a factor."""
        other = copy(self)
        by = np.float32(factor)
        other.core, other.tail, other.columns = by * self.core, by * self.tail, by * self.columns
        return other


def widen(core: Image, shape: Shape) -> Image:
    """Tails from cores: a tail is broad, so it is made at half resolution and interpolated."""
    height, width = core.shape
    even = np.pad(core, ((0, height % 2), (0, width % 2))) if (height % 2 or width % 2) else core
    rows = even[0::2] + even[1::2]
    half = np.float32(0.25) * (rows[:, 0::2] + rows[:, 1::2])
    # Averaging pairs and linear interpolation add 1/4 and 3/4 (working px^2) of variance of their own.
    variance = max(shape.spread - 1.0, 0.05) / 4
    sigma = variance**0.5
    half = _blur(_blur(half, sigma).T, sigma).T
    return np.float32(shape.peak_ratio) * _double(half)[:height, :width]


def _blur(image: Image, sigma: float) -> Image:
    """Gaussian filter along the first axis, zero beyond the image; a matrix product while small."""
    n = len(image)
    reach = max(1, int(np.ceil(3.4 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    if n > 384:
        return correlate1d(image, kernel, axis=0, mode="constant")
    profile = np.zeros(2 * n - 1, np.float32)
    inside = min(reach, n - 1)
    profile[n - 1 - inside : n + inside] = kernel[reach - inside : reach + inside + 1]
    return np.lib.stride_tricks.sliding_window_view(profile, n)[::-1] @ image


def _double(half: Image) -> Image:
    """Linear interpolation to twice the pixels; half-pixel centres."""
    for axis in (0, 1):
        near = np.moveaxis(half, axis, 0)
        edge = np.concatenate([near[:1], near, near[-1:]])
        out = np.empty((2 * len(near), *near.shape[1:]), np.float32)
        out[0::2] = 0.75 * edge[1:-1] + 0.25 * edge[:-2]
        out[1::2] = 0.75 * edge[1:-1] + 0.25 * edge[2:]
        half = np.moveaxis(out, 0, axis)
    return half
