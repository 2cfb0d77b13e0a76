"""A picture that marks, lines and names are drawn into, in milliseconds and without a plotting library."""

from __future__ import annotations

import math

import numpy

_RIM_RGB = (10, 14, 20)


class Canvas:
    """A picture that marks are blended into, with the edges of every mark smoothed over one pixel."""

    def __init__(self, grey: numpy.ndarray) -> None:
        # Blue, green and red apart: that halves the time of everything that is done to them.
        self._planes = numpy.repeat(grey[None], 3, axis=0)
        self.shape = grey.shape

    @property
    def bgr(self) -> numpy.ndarray:
        """(h, w, 3) uint8: the picture in the order blue, green, red."""
        from PIL import Image

        return numpy.asarray(Image.merge("RGB", [Image.fromarray(plane) for plane in self._planes]))

    def fill(self, box: tuple[slice, slice], rgb: tuple[int, int, int]) -> None:
        """A rectangle of one colour."""
        for plane, value in zip(self._planes, rgb[::-1]):
            plane[box] = value

    def discs(self, yx: numpy.ndarray, radius: float, rgb: tuple[int, int, int]) -> None:
        """Discs of one colour at (N, 2) positions, with a thin dark rim."""
        if not len(yx):
            return
        side = numpy.arange(-math.ceil(radius + 2), math.ceil(radius + 2) + 1, dtype=numpy.int32)
        dy, dx = (g.ravel() for g in numpy.meshgrid(side, side, indexing="ij"))
        round_ = numpy.hypot(dy, dx) < radius + 2.3
        dy, dx = dy[round_], dx[round_]
        middle = numpy.rint(yx).astype(numpy.int32)
        rest = (middle - yx).astype(numpy.float32)
        distance = numpy.hypot(rest[:, :1] + dy, rest[:, 1:] + dx)
        height, width = self.shape
        y, x = middle[:, :1] + dy, middle[:, 1:] + dx
        seen = distance < radius + 1.5
        if not (middle.min() > len(side) and (middle.max(axis=0) < numpy.array(self.shape) - len(side)).all()):
            seen &= (y >= 0) & (y < height) & (x >= 0) & (x < width)
        index, distance = (y * width + x)[seen], distance[seen]
        # Rim and disc in one pass over the pixels. Discs meet only where two atoms are given for one.
        rim = numpy.clip(radius + 1.5 - distance, 0, 1) * 0.55
        disc = numpy.clip(radius + 0.5 - distance, 0, 1) * 0.95
        kept, rim = (1 - rim) * (1 - disc), rim * (1 - disc)
        for plane, dark, bright in zip(self._planes, _RIM_RGB[::-1], rgb[::-1]):
            pixels = plane.reshape(-1)
            pixels[index] = (pixels.take(index) * kept + (rim * dark + disc * bright + 0.5)).astype(numpy.uint8)

    def lines(
        self,
        start: numpy.ndarray,
        end: numpy.ndarray,
        half_width: float,
        rgb: tuple[int, int, int],
        opacity: float,
    ) -> None:
        """Lines from (N, 2) to (N, 2) positions."""
        if not len(start):
            return
        start, end = start.astype(numpy.float32), end.astype(numpy.float32)
        step = end - start
        length = numpy.maximum(numpy.hypot(step[:, 0], step[:, 1]), 1e-6)
        along = step / length[:, None]
        # Points on a grid that is laid along each line, dense enough to meet every pixel under it.
        t = numpy.linspace(0, 1, math.ceil(float(length.max()) / 0.8) + 1, dtype=numpy.float32)[None, :, None]
        s = numpy.arange(-half_width - 0.8, half_width + 0.81, 0.7, dtype=numpy.float32)[None, None, :]
        y0, x0 = start[:, 0, None, None], start[:, 1, None, None]
        ny, nx = -along[:, 1, None, None], along[:, 0, None, None]
        y = numpy.rint(y0 + t * step[:, 0, None, None] + s * ny)
        x = numpy.rint(x0 + t * step[:, 1, None, None] + s * nx)
        distance = numpy.abs((y - y0) * ny + (x - x0) * nx)
        inside = (distance < half_width + 0.5) & (y >= 0) & (y < self.shape[0]) & (x >= 0) & (x < self.shape[1])
        index = (y[inside] * self.shape[1] + x[inside]).astype(numpy.int32)
        self._blend(index, numpy.clip(half_width + 0.5 - distance[inside], 0, 1) * opacity, rgb)

    def outline(
        self, members: numpy.ndarray, radius: float, half_width: float, rgb: tuple[int, int, int]
    ) -> None:
        """The outer line of the union of discs around (M, 2) positions."""
        from scipy.ndimage import binary_dilation, binary_fill_holes

        height, width = self.shape
        reach = radius + half_width + 2
        top, left = numpy.maximum(numpy.floor(members.min(axis=0) - reach).astype(int), 0)
        bottom, right = numpy.ceil(members.max(axis=0) + reach).astype(int) + 1
        y = numpy.arange(top, min(bottom, height), dtype=numpy.float32)[:, None]
        x = numpy.arange(left, min(right, width), dtype=numpy.float32)[None, :]
        if not (y.size and x.size):
            return
        square = numpy.full((len(y), x.shape[1]), numpy.inf, dtype=numpy.float32)
        for my, mx in members.astype(numpy.float32):
            numpy.minimum(square, (y - my) ** 2 + (x - mx) ** 2, out=square)
        distance = numpy.abs(numpy.sqrt(square) - radius)
        if len(members) > 4:
            # A ring of atoms leaves a hole in the union of its discs: only the outer line is wanted.
            outside = ~binary_fill_holes(square <= radius**2)
            near_outside = binary_dilation(outside, iterations=math.ceil(half_width) + 2)
            distance = numpy.where(near_outside, distance, numpy.inf)
        self._mix(top, left, numpy.clip(half_width + 1.5 - distance, 0, 1) * 0.5, _RIM_RGB)
        self._mix(top, left, numpy.clip(half_width + 0.5 - distance, 0, 1), rgb)

    def texts(self, labels: list[tuple[str, float, float]], size: int, rgb: tuple[int, int, int]) -> None:
        """Names with a dark halo; each keeps inside the picture."""
        if not labels:
            return
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(size)
        height, width = self.shape
        ink, halo = Image.new("L", (width, height)), Image.new("L", (width, height))
        ink_pen, halo_pen = ImageDraw.Draw(ink), ImageDraw.Draw(halo)
        for text, y, x in labels:
            left, top, right, bottom = ink_pen.textbbox((0, 0), text, font=font)
            wide, high = right - left, bottom - top
            corner = (
                min(max(x - wide / 2, 3), width - wide - 3) - left,
                min(max(y - high, 3), height - high - 3) - top,
            )
            halo_pen.text(corner, text, fill=255, font=font, stroke_width=max(2, size // 7))
            ink_pen.text(corner, text, fill=255, font=font)
        for layer, colour, opacity in ((halo, _RIM_RGB, 0.75), (ink, rgb, 1.0)):
            box = layer.getbbox()
            if box is None:
                continue
            left, top, right, bottom = box
            alpha = numpy.asarray(layer)[top:bottom, left:right].astype(numpy.float32) * (opacity / 255)
            self._mix(top, left, alpha, colour)

    def legend(self, lines: list[tuple[str, tuple[int, int, int]]], size: int) -> None:
        """Lines of text in their colours on a dark ground in the upper left corner."""
        if not lines:
            return
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(size)
        pitch, margin = math.ceil(1.35 * size), math.ceil(0.5 * size)
        width = max(math.ceil(font.getlength(text)) for text, _ in lines) + 2 * margin
        height = len(lines) * pitch + margin
        rows, columns = min(height, self.shape[0]), min(width, self.shape[1])
        self._mix(0, 0, numpy.full((rows, columns), 0.7, dtype=numpy.float32), _RIM_RGB)
        for row, (text, rgb) in enumerate(lines):
            layer = Image.new("L", (width, height))
            ImageDraw.Draw(layer).text((margin, margin // 2 + row * pitch), text, fill=255, font=font)
            self._mix(0, 0, numpy.asarray(layer)[:rows, :columns].astype(numpy.float32) / 255, rgb)

    def _blend(self, index: numpy.ndarray, alpha: numpy.ndarray, rgb: tuple[int, int, int]) -> None:
        """Mix a colour into pixels; where marks of one call overlap, the strongest counts, not their sum."""
        if not len(index):
            return
        first = int(index.min())
        strength = numpy.zeros(int(index.max()) - first + 1, dtype=numpy.float32)
        numpy.maximum.at(strength, index - first, alpha)
        touched = numpy.flatnonzero(strength != 0)
        weight = strength.take(touched)
        touched += first
        for plane, value in zip(self._planes, rgb[::-1]):
            pixels = plane.reshape(-1)
            pixels[touched] = (pixels.take(touched) * (1 - weight) + (weight * value + 0.5)).astype(numpy.uint8)

    def _mix(self, top: int, left: int, alpha: numpy.ndarray, rgb: tuple[int, int, int]) -> None:
        """Mix a colour into a rectangle of pixels."""
        for plane, value in zip(self._planes, rgb[::-1]):
            box = plane[top : top + alpha.shape[0], left : left + alpha.shape[1]]
            box[...] = (box + (value - box.astype(numpy.float32)) * alpha + 0.5).astype(numpy.uint8)
