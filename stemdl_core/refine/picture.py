"""The picture of a set of columns: every column on the pixels around it, and their sum."""

from __future__ import annotations

import math
from copy import copy

import numpy as np
from scipy.ndimage import correlate1d
from scipy.sparse import csc_matrix

from .model import Array, Image, Shape

_CHUNK = 128


def chunks(count: int) -> list[slice]:
    """Columns are worked on in groups whose patches stay in the processor's cache."""
    return [slice(a, a + _CHUNK) for a in range(0, count, _CHUNK)]


class Stencil:
    """The pixels of a patch, and the probe on them.

    Parameters
    ----------
    v, u : (P,) float32
        Pixels relative to the middle one, along y and x.
    shape : Shape
        The probe.
    square : float
        Squared radius of a patch [working px^2].
    """

    def __init__(self, v: Image, u: Image, shape: Shape, square: float) -> None:
        self.shape = shape
        self.kinds = (False, True) if shape.fraction > 0 else (False,)
        self._v, self._u, self._square = v, u, np.float32(square)
        one = np.ones_like(v)
        #: (P, 6) factors of the moments of a patch about its middle pixel.
        self.moments = np.stack([one, v, u, v * v, v * u, u * u], 1)
        self._terms = {}
        for tail in self.kinds:
            yy, yx, xx = (np.float32(k) for k in shape.inverse(tail=tail))
            self._terms[tail] = np.stack([np.float32(-0.5) * (yy * v * v + 2 * yx * v * u + xx * u * u),
                                          yy * v + yx * u, yx * v + xx * u, one])

    def gaussian(self, dy: Image, dx: Image, *, tail: bool) -> Image:
        """(M, P) Gaussian of peak one, its centre (dy, dx) off the middle pixel.

        The exponent is a product of pixels' and columns' terms.
        """
        yy, yx, xx = (np.float32(k) for k in self.shape.inverse(tail=tail))
        column = np.empty((len(dy), 4), np.float32)
        column[:, 0], column[:, 1], column[:, 2] = 1, dy, dx
        column[:, 3] = np.float32(-0.5) * (yy * dy * dy + 2 * yx * dy * dx + xx * dx * dx)
        exponent = column @ self._terms[tail]
        return np.exp(exponent, out=exponent)

    def profiles(self, dy: Image, dx: Image, *, core: Image | None = None) -> list[Image]:
        """The core's and the tail's part of columns of peak one, (M, P) each; `core` where it is known."""
        fraction = np.float32(self.shape.fraction)
        if core is None:
            core = self.gaussian(dy, dx, tail=False)
        parts = [core * (1 - fraction)]
        if fraction > 0:
            tail = self.gaussian(dy, dx, tail=True)
            parts.append(np.multiply(tail, fraction, out=tail))
        return parts

    def shared(self, dy: Image, dx: Image) -> Image:
        """(M, P) pixels that are on another patch, too, whose middle is (dy, dx) pixels away: 1, else 0."""
        v, u = self._v, self._u
        column = np.stack([np.ones_like(dy), dy, dx, dy * dy + dx * dx], 1)
        square = column @ np.stack([v * v + u * u, -2 * v, -2 * u, np.ones_like(v)])
        return np.less_equal(square, self._square, out=square)


class Patches:
    """The core of every column on the pixels around it.

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
        square = (reach + 0.5) ** 2
        disc = offset_y**2 + offset_x**2 <= square
        offset_y, offset_x = offset_y[disc], offset_x[disc]
        self.stencil = Stencil(offset_y.astype(np.float32), offset_x.astype(np.float32), shape, square)
        iy, ix = np.rint(y).astype(np.intp), np.rint(x).astype(np.intp)
        self.index = (iy * width + ix).astype(np.int32)[:, None] + (offset_y * width + offset_x).astype(np.int32)
        self.middle_y, self.middle_x = iy.astype(np.float32), ix.astype(np.float32)
        self.rest_y, self.rest_x = (y - iy).astype(np.float32), (x - ix).astype(np.float32)
        self._pixels: csc_matrix | None = None
        self.core = np.empty(self.index.shape, np.float32)
        for which in chunks(len(y)):
            self.core[which] = self.stencil.gaussian(self.rest_y[which], self.rest_x[which], tail=False)

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
