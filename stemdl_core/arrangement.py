"""How well a local arrangement of atoms explains the image: likelihood of the counts, elasticity of the sheet.

A network that has seen millions of hexagons draws one where an atom is missing, and two atoms where a bond is turned.
Whether they are there is a question to the counts. For one small part of the frame this module finds the most
probable positions and heights of a given set of atoms and says how probable the counts are then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .calibration import PixelSize
from .refine import Imaging, Refined
from .springs import Springs

Array = NDArray[np.float64]
Single = NDArray[np.float32]

#: Working pixels are at most this part of the probe's width, and no finer than they have to be.
_BIN_TO_SIGMA = 0.8
#: Spread of the heights of host columns about their local median, and of dopants' about the fitted one.
HEIGHT_SPREAD, _DOPANT_SPREAD = 0.12, 0.25
#: The same of the level under the atoms and of its slopes across the patch, over a host column's height.
_LEVEL_SPREAD = (0.10, 0.05, 0.05)
#: Longest step of an atom in one iteration, and how far one wanders at most without any reason [nm].
_LONGEST_STEP_NM, _WANDER_NM = 0.035, 0.03
#: Part of a dopant's profile that the shared probe may get wrong: it outshines the atoms beside it.
_PROFILE_ERROR = 0.04
#: The same of any column, in its own place and, by its tails, where none is: where counts abound it is not they that
#: limit what can be told.
_SHAPE_ERROR = 0.02


@dataclass(frozen=True)
class Place:
    """A place to look at: centre and radius of the part that may be rearranged [nm]."""

    center: Array
    radius: float


@dataclass(frozen=True)
class Arrangement:
    """Atoms of one part of the frame.

    Parameters
    ----------
    yx_nm : (N, 2) float64
        Positions, distortion corrected [nm].
    height : (N,) float64
        Peak heights [image units].
    dopant : (N,) bool
        Foreign atoms: their heights are their own, their bonds of any length.
    origin : (N,) int64
        Number of the site; -1 for an atom that was put there.
    free : (N,) bool
        Whether the atom may move.
    """

    yx_nm: Array
    height: Array
    dopant: NDArray[np.bool_]
    origin: NDArray[np.int64]
    free: NDArray[np.bool_]

    def part(self, index: NDArray[np.intp], *, free: NDArray[np.bool_] | None = None) -> Arrangement:
        """Some of the atoms, in the order of their indices; all as free as they are, or as said."""
        return Arrangement(self.yx_nm[index], self.height[index], self.dopant[index], self.origin[index],
                           self.free[index] if free is None else free)

    def without(self, index: int | list[int]) -> Arrangement:
        """The same less some atoms."""
        keep = np.ones(len(self.yx_nm), dtype=bool)
        keep[index] = False
        return self.part(np.flatnonzero(keep))

    def with_atoms(self, yx_nm: Array, height: float) -> Arrangement:
        """The same and some host atoms more."""
        new = np.asarray(yx_nm, dtype=np.float64).reshape(-1, 2)
        n = len(new)
        return Arrangement(np.concatenate([self.yx_nm, new]), np.append(self.height, np.full(n, height)),
                           np.append(self.dopant, np.zeros(n, bool)), np.append(self.origin, np.full(n, -1)),
                           np.append(self.free, np.ones(n, bool)))


@dataclass(frozen=True)
class Fitted:
    """An arrangement at its most probable positions.

    Attributes
    ----------
    atoms : Arrangement
    log_likelihood : float
        Of the counts in the patch, up to a constant of the patch.
    strain : float
        Log-probability lost to stretched bonds and odd heights.
    residual : (P,) float32
        Data minus model [standard deviations].
    root : (P,) float32
        One over the standard deviation of each pixel.
    slopes : (3F + 3, P) float32
        Of the model with heights, y, x of the free atoms and the level [standard deviations].
    covariance : (3F + 3, 3F + 3) float64
        Of these parameters.
    """

    atoms: Arrangement
    log_likelihood: float
    strain: float
    residual: Single
    root: Single
    slopes: Single
    covariance: Array

    @property
    def score(self) -> float:
        """Log-probability of arrangement and counts, up to a constant of the patch."""
        return self.log_likelihood - self.strain


class Counts:
    """The frame's counts as evidence.

    Parameters
    ----------
    image : (H, W) float array
        Raw image.
    valid : (H, W) bool
        Usable pixels.
    refined : Refined
        The joint fit: probe, noise, background.
    imaging : Imaging
        Its probe and noise.
    pixel_size : PixelSize
    """

    def __init__(self, image: NDArray[np.floating], valid: NDArray[np.bool_], refined: Refined, imaging: Imaging,
                 pixel_size: PixelSize) -> None:
        self.pixel_size, self.imaging = pixel_size, imaging
        self.binning = b = max(1, int(_BIN_TO_SIGMA * imaging.sigma_nm / pixel_size.nm))
        height, width = image.shape[0] // b, image.shape[1] // b
        shape = (height, b, width, b)
        raw = image[: height * b, : width * b]
        good = valid[: height * b, : width * b]
        if good.all():
            self.image = raw.reshape(shape).mean((1, 3))
            self.weight = np.ones_like(self.image)
        else:
            count = good.reshape(shape).sum((1, 3))
            self.image = np.where(good, raw, 0).reshape(shape).sum((1, 3)) / np.maximum(count, 1)
            self.weight = count / b**2
        self._tree = cKDTree(pixel_size.to_nm(np.stack([refined.y_px, refined.x_px], axis=1)))
        self._below = np.asarray(refined.background)
        # Core and tail of the probe in corrected nm, widened by the averaging of pixels.
        t = np.radians(imaging.angle_deg)
        long, short = imaging.sigma_nm * np.sqrt(imaging.ellipticity), imaging.sigma_nm / np.sqrt(imaging.ellipticity)
        axes = np.array([[np.sin(t), np.cos(t)], [np.cos(t), -np.sin(t)]]).T
        core = axes @ np.diag([long**2, short**2]) @ axes.T + (b**2 - 1) / 12.0 * pixel_size.nm**2 * np.eye(2)
        tail = core + (imaging.tail_ratio**2 - 1) * imaging.sigma_nm**2 * np.eye(2)
        turn = pixel_size.matrix / pixel_size.nm
        core, tail = turn @ core @ turn.T, turn @ tail @ turn.T
        self._core, self._tail = np.linalg.inv(core), np.linalg.inv(tail)
        ratio = float(np.sqrt(np.linalg.det(tail) / np.linalg.det(core)))
        share = imaging.tail_fraction
        # From the share of the electrons to the share of the peak.
        self._fraction = share / (share + (1 - share) * ratio)
        self.sigma_nm = imaging.sigma_nm

    def variance(self, mean: Array) -> Array:
        """Of a working pixel of the given mean [image units squared]."""
        i = self.imaging
        # The image may have any offset: only the line of the noise says what no counts are.
        top = float(np.max(mean)) if len(mean) else 0.0
        floor = max(0.03 * (i.intercept + i.gain * top), 1e-12 * (abs(i.intercept) + abs(i.gain * top)), 1e-300)
        return np.maximum(i.intercept + i.gain * mean, floor) * max(i.misfit, 1.0) / self.binning**2

    def profile(self, pixels: Array, columns: Array) -> Single:
        """(N, P) profile of peak one of every column on every pixel; positions (., 2) [nm] from a common origin."""
        return self._shapes(pixels, columns, derivatives=0)[0]

    def slopes(self, pixels: Array, columns: Array) -> tuple[Single, ...]:
        """The same, and its slopes with the column's y and x."""
        return self._shapes(pixels, columns, derivatives=2)

    def _shapes(self, pixels: Array, columns: Array, *, derivatives: int) -> tuple[Single, ...]:
        p, q = pixels.astype(np.float32), columns.astype(np.float32)
        found: list[Single] = []
        for exact, part in ((self._core, 1 - self._fraction), (self._tail, self._fraction)):
            if part <= 0.004:
                continue
            inverse = exact.astype(np.float32)
            yy, yx, xx = inverse[0, 0], inverse[0, 1], inverse[1, 1]
            half = np.float32(-0.5)
            # The exponent is a product of pixels' and columns' terms.
            lean_y, lean_x = yy * p[:, 0] + yx * p[:, 1], yx * p[:, 0] + xx * p[:, 1]
            of_pixel = np.stack([half * (lean_y * p[:, 0] + lean_x * p[:, 1]), lean_y, lean_x, np.ones_like(lean_y)])
            own_y, own_x = yy * q[:, 0] + yx * q[:, 1], yx * q[:, 0] + xx * q[:, 1]
            of_column = np.stack([np.ones_like(own_y), q[:, 0], q[:, 1], half * (own_y * q[:, 0] + own_x * q[:, 1])], 1)
            value = of_column @ of_pixel
            np.exp(value, out=value)
            value *= np.float32(part)
            parts = [value]
            if derivatives:
                parts += [value * (lean_y - own_y[:, None]), value * (lean_x - own_x[:, None])]
            found = parts if not found else [one + other for one, other in zip(found, parts)]
        return tuple(found)

    def background(self, yx_nm: Array) -> Array:
        """Level under the columns, from the nearest ones."""
        distance, near = self._tree.query(yx_nm, k=min(6, self._tree.n))
        distance, near = distance.reshape(len(yx_nm), -1), near.reshape(len(yx_nm), -1)
        weight = 1.0 / (distance**2 + 0.02)
        return np.asarray((weight * self._below[near]).sum(1) / weight.sum(1), dtype=np.float64)


class Patch:
    """Pixels around one place, and arrangements of atoms on them.

    Parameters
    ----------
    counts : Counts
    center_nm : (2,) float64
        The place [nm].
    radius_nm : float
        Pixels within this distance of it [nm].
    """

    def __init__(self, counts: Counts, center_nm: Array, radius_nm: float) -> None:
        self.counts, self.center_nm, self.radius_nm = counts, center_nm, radius_nm
        b, size = counts.binning, counts.pixel_size
        reach = radius_nm / size.nm * 1.1
        at = (size.to_px(center_nm) - 0.5 * (b - 1)) / b
        low = np.maximum(np.floor(at - reach / b).astype(int), 0)
        high = np.minimum(np.ceil(at + reach / b).astype(int) + 1, counts.image.shape)
        rows, columns = np.meshgrid(np.arange(low[0], max(high[0], low[0])),
                                    np.arange(low[1], max(high[1], low[1])), indexing="ij")
        yx = size.to_nm(np.stack([rows.ravel(), columns.ravel()], axis=1) * b + 0.5 * (b - 1))
        inside = np.hypot(*(yx - center_nm).T) < radius_nm
        self.yx_nm = yx[inside]
        self.pixels = self.yx_nm - center_nm
        r, c = rows.ravel()[inside], columns.ravel()[inside]
        self.data, self.share = counts.image[r, c], counts.weight[r, c]
        self.below = counts.background(self.yx_nm) if len(self.yx_nm) else np.zeros(0)
        self._fixed: tuple[Array, Array] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def profile(self, yx_nm: Array) -> Single:
        """(N, P) profiles of peak one of columns at (N, 2) [nm]."""
        return self.counts.profile(self.pixels, np.asarray(yx_nm, dtype=np.float64).reshape(-1, 2) - self.center_nm)

    def _still(self, atoms: Arrangement) -> Array:
        """Background and the columns that do not move, which are the same for all arrangements of a place."""
        fixed = atoms.yx_nm[~atoms.free]
        if self._fixed is None or not np.array_equal(self._fixed[0], fixed):
            self._fixed = fixed, self.below + atoms.height[~atoms.free] @ self.profile(fixed)
        return self._fixed[1]

    def fit(self, atoms: Arrangement, *, unit: float, host_nm: float, iterations: int = 4) -> Fitted:
        """Most probable positions and heights of the free atoms.

        Parameters
        ----------
        atoms : Arrangement
        unit : float
            Height of a host column here [image units].
        host_nm : float
            Bond length of the host [nm].
        iterations : int
            Gauss-Newton steps.
        """
        free = np.flatnonzero(atoms.free)
        n = len(free)
        y, h = atoms.yx_nm.copy(), atoms.height.copy()
        base = self._still(atoms)
        springs = Springs(y, atoms.dopant, atoms.free, host_nm)
        believed = np.where(atoms.dopant[free], atoms.height[free], unit)
        spread = np.where(atoms.dopant[free], _DOPANT_SPREAD * np.abs(believed), HEIGHT_SPREAD * unit)
        surface = np.concatenate([np.ones((1, len(self))), self.pixels.T / self.radius_nm])
        level, level_spread = np.zeros(3), np.array(_LEVEL_SPREAD) * unit
        doubt = np.zeros(len(self))
        if atoms.dopant.any():
            glow = atoms.height[atoms.dopant] @ self.profile(atoms.yx_nm[atoms.dopant])
            doubt = (_PROFILE_ERROR * glow) ** 2
        weight, matrix, jacobian = np.zeros(len(self)), np.zeros((0, 0)), np.zeros((0, 0), np.float32)
        diagonal = np.concatenate([1 / spread**2, np.full(2 * n, _WANDER_NM**-2), 1 / level_spread**2])
        for turn in range(iterations + 1):
            shape, slope_y, slope_x = self.counts.slopes(self.pixels, y[free] - self.center_nm)
            mean = base + h[free] @ shape + level @ surface
            if turn < 2:
                model_error = (_SHAPE_ERROR * np.maximum(mean - self.below, unit)) ** 2
                weight = self.share / (self.counts.variance(mean) + doubt + model_error)
            residual = self.data - mean
            if turn == iterations:
                break
            tall = h[free][:, None].astype(np.float32)
            jacobian = np.concatenate([shape, tall * slope_y, tall * slope_x, surface.astype(np.float32)])
            weighted = jacobian * weight.astype(np.float32)
            matrix = (weighted @ jacobian.T).astype(np.float64)
            right = (weighted @ residual.astype(np.float32)).astype(np.float64)
            stiff, pull = springs.normal(y, free)
            matrix[n:3 * n, n:3 * n] += stiff
            right[n:3 * n] += pull
            matrix[np.arange(3 * n + 3), np.arange(3 * n + 3)] += diagonal
            right[:n] += (believed - h[free]) / spread**2
            right[3 * n:] -= level / level_spread**2
            step = np.linalg.solve(matrix, right)
            move = step[n:3 * n].reshape(2, n).T
            y[free] += move * np.minimum(1.0, _LONGEST_STEP_NM / np.maximum(np.hypot(*move.T), 1e-12))[:, None]
            h[free] = np.maximum(h[free] + step[:n], 0.05 * unit)
            level = level + step[3 * n:]
        # What is bonded in the end: an atom taken away lets others meet.
        strain = Springs(y, atoms.dopant, atoms.free, host_nm).energy(y)
        strain += 0.5 * float((((h[free] - believed) / spread) ** 2).sum())
        strain += 0.5 * float(((level / level_spread) ** 2).sum())
        # Weights differ between arrangements: the likelihood has the logarithm of the variance, too.
        likelihood = -0.5 * float(weight @ residual**2) + 0.5 * float(np.log(weight[weight > 0]).sum())
        root = np.sqrt(weight)
        return Fitted(Arrangement(y, h, atoms.dopant, atoms.origin, atoms.free), likelihood, strain,
                      (residual * root).astype(np.float32), root.astype(np.float32),
                      jacobian * root.astype(np.float32), np.asarray(np.linalg.inv(matrix), np.float64))

    def gain(self, fitted: Fitted, places_nm: Array, height: float) -> Array:
        """(K,) change of the log-likelihood by a column of the given height at each place, all else as it is.

        Negative heights take a column away.
        """
        change = np.float32(height) * self.profile(places_nm) * fitted.root
        return np.asarray(change @ fitted.residual - 0.5 * (change**2).sum(1), dtype=np.float64)

    def promise(self, fitted: Fitted, change: Single, gone: NDArray[np.int64]) -> Array:
        """(K,) gain in log-probability of changes of the model after all other atoms have given way, linearised.

        Parameters
        ----------
        fitted : Fitted
        change : (K, P) float32
            What each adds to the model [standard deviations].
        gone : (K, G) int64
            Atoms that each takes away: they cannot give way.
        """
        free = np.cumsum(fitted.atoms.free) - 1
        n = int(fitted.atoms.free.sum())
        push = -(fitted.slopes @ change.T).astype(np.float64).T
        lost = (free[gone][:, :, None] + n * np.arange(3)).reshape(len(change), -1)
        np.put_along_axis(push, lost, 0.0, axis=1)
        move = push @ fitted.covariance
        gain = (push * move).sum(1)
        if lost.shape[1]:
            held = np.take_along_axis(move, lost, axis=1)
            own = fitted.covariance[lost[:, :, None], lost[:, None, :]]
            gain -= (held * np.linalg.solve(own, held[:, :, None])[:, :, 0]).sum(1)
        return np.asarray(change @ fitted.residual - 0.5 * (change**2).sum(1) + 0.5 * gain, dtype=np.float64)

    def z_scores(self, fitted: Fitted, places_nm: Array) -> Array:
        """(K,) matched filter of the residual with a column at every place [standard deviations]."""
        change = self.profile(places_nm) * fitted.root
        power = np.sqrt(np.maximum((change**2).sum(1), 1e-30))
        return np.asarray((change @ fitted.residual) / power, dtype=np.float64)
