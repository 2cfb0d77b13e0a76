"""Before the fit: working pixels, a first noise, and the probe that all columns share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from .fit import REACH, Fit, State
from .grid import BIN_TO_SIGMA, MANY, MANY_BIN_TO_SIGMA, Grid, Noise, estimate_noise, make_grid
from .model import Array, Background, round_shape
from .picture import Picture

#: Widths of the probe that are tried where none is given [pm]: 60 kV corrected to 200 kV uncorrected
#: instruments.
TRIAL_SIGMA_PM = (32.0, 44.0, 60.0, 82.0)
#: Spacing of the background's nodes [pm]: several columns each, so that it cannot follow one.
_NODE_SPACING_PM = 600.0
#: Columns of the window that the probe is fitted on: 1 % of its width at ten electrons each.
_WINDOW_COLUMNS = 180


class Work:
    """Working pixels of the frame, a window of it for what all columns share, and a first state."""

    def __init__(self, image: NDArray[np.floating], usable: NDArray[np.bool_], y_px: Array, x_px: Array, *,
                 pixel_pm: float, sigma_pm: float | None,
                 noise_line: tuple[float, float] | None = None, finest_pm: float = 0.0) -> None:
        self.state: State | None = None
        self.finest_pm = finest_pm
        self.image, self.usable = image, usable
        self.noise_line = noise_line
        trials = TRIAL_SIGMA_PM if sigma_pm is None else tuple(f * sigma_pm for f in (0.72, 1.0, 1.4))
        guess = 45.0 if sigma_pm is None else sigma_pm
        for _ in range(2):
            fraction = BIN_TO_SIGMA if len(y_px) < MANY else MANY_BIN_TO_SIGMA
            binning = max(1, min(int(fraction * guess / pixel_pm), min(image.shape) // 8))
            widths = np.maximum(np.array(trials) / (pixel_pm * binning), 0.6)
            margin = int(np.ceil(REACH * widths.max())) + 2
            grid = make_grid(image, usable, pixel_size_pm=pixel_pm, binning=binning, pad=margin)
            if grid is None:
                return
            self._start(grid, grid.to_grid(y_px), grid.to_grid(x_px), widths)
            assert self.state is not None
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
            noise = estimate_noise(grid.image, smooth, grid.usable, finest=self.finest_pm / grid.step_pm)
            # Damaged pixels hide each other: they spoil the noise that they are told by.
            mended = _without_spikes(grid, noise)
            if mended is grid:
                break
            grid = mended
        if self.noise_line is not None:
            noise = grid.noise(*self.noise_line, top=float(smooth.max()))
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
        nodes = np.full(self.window.background.size, floor)

        def trial(width: float) -> tuple[float, State, Picture]:
            state = State(y[self._chosen] - rows.start, x[self._chosen] - columns.start, height[self._chosen],
                          nodes, round_shape(width), noise)
            state, picture, misfit = self.window.scale_step(state, self.window.draw(state), window_weight)
            return misfit, state, picture

        # The misfit has one minimum over the width: wider as long as that is better, else sharper.
        tried = [trial(float(widths[1])), trial(float(widths[2]))]
        wider = tried[1][0] < tried[0][0]
        for width in widths[3:] if wider else widths[:1]:
            tried.append(trial(float(width)))
        _, state, picture = min(tried, key=lambda t: t[0])
        self.start_shape = state.shape
        state = self.window.probe_step(state, picture, window_weight, start=self.start_shape)
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
        rows, columns = (slice(a - pad, b + pad) for a, b in inner)
        self._window = (rows, columns)
        usable = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        core = tuple(slice(pad, -pad) for _ in range(2))
        usable[core] = self.grid.usable[rows, columns][core]
        grid = replace(self.grid, image=self.grid.image[rows, columns], usable=usable)
        # Columns just outside reach into the window.
        (y0, y1), (x0, x1) = inner
        near = 0.9 * pad
        self._chosen = np.flatnonzero((y > y0 - near) & (y < y1 + near) & (x > x0 - near) & (x < x1 + near))
        self.window = Fit(grid, Background(grid.image.shape, pad, _NODE_SPACING_PM / grid.step_pm))

    def unspoilt(self) -> NDArray[np.bool_]:
        """(H, W) raw pixels that may be used and are no spikes."""
        pad, b = self.grid.pad, self.grid.binning
        whole = self.grid.usable[pad:-pad, pad:-pad] > 0
        if whole.all():
            return self.usable
        result = self.usable.copy()
        result[: b * whole.shape[0], : b * whole.shape[1]] &= whole.repeat(b, 0).repeat(b, 1)
        return result

    def probe_step(self, state: State, variance: Array) -> State:
        """The state with a better probe, and heights that go with it.

        Fitted positions follow the counts they are fitted to, which makes the probe look sharper than it is
        by their `variance` (N, 2): the sample variance and its lost degree of freedom, column by column.
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
        wide = found.shape.cyy + float(lost[0]), found.shape.cxx + float(lost[1])
        shape = replace(found.shape, cyy=wide[0], cxx=wide[1])
        return replace(state, shape=shape, height=factor * state.height)


def _without_spikes(grid: Grid, noise: Noise) -> Grid:
    """The grid without single pixels that stand out of their surroundings as no probe can make them."""
    image = grid.image
    ring = (9 * uniform_filter(image, 3, mode="nearest") - image) / 8
    # A column's own summit over its surroundings: at most this for the sharpest probe. The valleys between columns are
    # as sharp.
    low, high = np.percentile(ring[grid.usable > 0][::17], (5, 95))
    height = np.maximum(ring - low, np.where(image < ring, 0.5 * (high - low), 0))
    summit = 1.3 * (grid.step_pm / TRIAL_SIGMA_PM[0]) ** 2 * height
    spike = np.abs(image - ring) > 5 * np.sqrt(noise.variance(ring)) + 4 * noise.gain + summit
    spike &= grid.usable > 0
    if not spike.any():
        return grid
    return replace(grid, usable=grid.usable * ~spike, image=np.where(spike, ring, image))
