"""Defects with their surroundings, and whether two of them are the same but for rotation, mirror and noise.

The graph alone is a brittle key: one atom overlooked at the rim makes another graph. Positions are not: a defect
laid over a mean geometry in one of the twelve orientations that the host allows either fits within the measured
uncertainties, atom by atom, or does not, and an atom that only one side has costs what overlooking one is worth.

References
----------
Besl, McKay, IEEE Trans. Pattern Anal. Mach. Intell. 14, 239 (1992): registration of point sets by closest points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .library_environment import COMPARED_NM, GRID_NM, GRID_PX, Environment

#: Atoms farther apart than this are not the same one [nm]: half a bond.
PAIR_NM = 0.07
#: What an atom without a partner costs, in units of half a squared standard deviation: -log of the chance (about
#: 1e-4) that the detector overlooks or invents one just there.
UNPAIRED = 9.0
#: Positions of the same defect in two places differ, beyond what was measured, by this [nm], and by this part of
#: the distance from the middle: ripples, strain, bonds that differ.
SCATTER_NM, STRAIN = 0.006, 0.015
#: Foreign atoms lie deep in the defect and sway more than the host [nm].
FOREIGN_NM = 0.006


@dataclass(frozen=True)
class Geometry:
    """A mean structure to lay environments over; units and columns as in `Environment`."""

    yx_nm: NDArray[np.float64]
    species: NDArray[np.str_]
    core: NDArray[np.bool_]
    spread_nm: NDArray[np.float64]
    turn_rad: float
    coherence: float
    host: tuple[str, ...]

    @property
    def radius_nm(self) -> float:
        """Atoms up to here are compared [nm]."""
        return float(np.max(np.hypot(*self.yx_nm[self.core].T), initial=0.1)) + COMPARED_NM

    @classmethod
    def of(cls, e: Environment) -> Geometry:
        """A single environment as a geometry, with its own uncertainty as spread."""
        return cls(e.yx_nm, e.species, e.core, e.sigma_nm, e.turn_rad, e.coherence, e.host)


@dataclass(frozen=True)
class Fit:
    """An environment laid over a geometry.

    Attributes
    ----------
    cost : float
        Sum over atoms of half the squared deviation in standard deviations, at most `UNPAIRED` each.
    atoms : int
        Atoms of the geometry that were compared.
    lone : int
        Atoms of either side without a partner.
    rotation, shift_nm
        ``rotation @ yx + shift`` brings the environment into the geometry's frame.
    pairs : (K, 2) int64
        (atom of the geometry, atom of the environment).
    worst_foreign : float
        Largest deviation of a foreign atom, in standard deviations.
    """

    cost: float
    atoms: int
    lone: int
    rotation: NDArray[np.float64]
    shift_nm: NDArray[np.float64]
    pairs: NDArray[np.int64]
    worst_foreign: float = 0.0

    @property
    def excess(self) -> float:
        """Cost beyond what noise makes of the same structure, in standard deviations of that."""
        n = max(self.atoms, 1)
        return (self.cost - n) / float(np.sqrt(n))

    def place(self, yx_nm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions of the environment in the geometry's frame."""
        return yx_nm @ self.rotation.T + self.shift_nm


_HEXAGON = np.stack([np.sin(np.radians(np.arange(0, 360, 60))), np.cos(np.radians(np.arange(0, 360, 60)))], axis=1)


def lay_over(geometry: Geometry, e: Environment) -> Fit:
    """The best of all rotations, reflections and small shifts."""
    radius = geometry.radius_nm
    inner = np.flatnonzero(np.hypot(*geometry.yx_nm.T) <= radius)
    target = geometry.yx_nm[inner]
    near = np.flatnonzero(np.hypot(*e.yx_nm.T) <= radius + 0.22)
    own, rotations = e.yx_nm[near], _starts(geometry, e)
    foreign_t, foreign_e = (~np.isin(s, geometry.host) for s in (geometry.species[inner], e.species[near]))
    shifts = np.zeros((1, 2))
    if not foreign_e.any():
        # The middle of a hole or of odd rings moves by half a bond when one atom of the rim is overlooked.
        shifts = np.concatenate([shifts, 0.075 * _HEXAGON, 0.14 * _HEXAGON])
    unlike = foreign_t[:, None] != foreign_e[None, :]
    if foreign_t.any() and foreign_e.any():
        either = foreign_t[:, None] | foreign_e[None, :]
        unlike |= either & (geometry.species[inner][:, None] != e.species[near][None, :])
    far = np.where(unlike, 1.0, 0.0)
    laid = np.einsum("kij,nj->kni", rotations, own)
    placed = (laid[:, None] + shifts[None, :, None]).reshape(-1, len(own), 2)
    which = np.repeat(np.arange(len(rotations)), len(shifts))
    nearest = _squared(target, placed).__iadd__(far).min(axis=2)
    first = np.minimum(nearest, PAIR_NM**2).sum(axis=1)
    best: Fit | None = None
    for k in np.argsort(first)[:5].tolist():
        fit = _iterate(geometry, inner, e, near, rotations[which[k]], shifts[k % len(shifts)], far)
        if best is None or fit.cost < best.cost:
            best = fit
    assert best is not None
    return best


def _starts(geometry: Geometry, e: Environment) -> NDArray[np.float64]:
    """(K, 2, 2) rotations and reflections that lay one host lattice over the other."""
    step = 60.0 if min(geometry.coherence, e.coherence) > 0.5 else 10.0
    turns = np.radians(np.arange(0.0, 360.0, step))
    result = []
    for mirror in (1.0, -1.0):
        for angle in geometry.turn_rad - mirror * e.turn_rad + turns:
            c, s = np.cos(angle), np.sin(angle)
            result.append(np.array([[c, s], [-s, c]]) @ np.diag([mirror, 1.0]))
    return np.array(result)


def _squared(target: NDArray[np.float64], placed: NDArray[np.float64]) -> NDArray[np.float64]:
    cross = np.einsum("ni,kmi->knm", target, placed)
    return (target**2).sum(1)[None, :, None] + (placed**2).sum(2)[:, None, :] - 2.0 * cross


def _iterate(geometry: Geometry, inner: NDArray[np.int64], e: Environment, near: NDArray[np.int64],
             rotation: NDArray[np.float64], shift: NDArray[np.float64], far: NDArray[np.float64]) -> Fit:
    target, yx, sigma = geometry.yx_nm[inner], e.yx_nm[near], e.sigma_nm[near]
    wide = SCATTER_NM**2 + (STRAIN * np.hypot(*target.T)) ** 2 + geometry.spread_nm[inner] ** 2
    for turn in range(4):
        placed = yx @ rotation.T + shift
        squared = _squared(target, placed[None])[0] + far
        own, other = squared.argmin(axis=1), squared.argmin(axis=0)
        n = np.flatnonzero((other[own] == np.arange(len(target))) & (squared.min(axis=1) < PAIR_NM**2))
        m = own[n]
        if turn == 3 or len(n) < 4:
            break
        weight = 1.0 / (wide[n] + sigma[m] ** 2 + 0.1 * squared[n, m])
        weight = weight / weight.sum()
        middle_t, middle_e = weight @ target[n], weight @ yx[m]
        u, _, vt = np.linalg.svd((weight[:, None] * (target[n] - middle_t)).T @ (yx[m] - middle_e))
        # A rotation stays a rotation, a reflection a reflection.
        sign = np.sign(np.linalg.det(rotation)) * np.sign(np.linalg.det(u @ vt))
        rotation = u @ np.diag([1.0, sign]) @ vt
        shift = middle_t - rotation @ middle_e
    distance = squared[n, m]
    paired = np.minimum(0.5 * distance / (wide[n] + sigma[m] ** 2), UNPAIRED)
    # What lies beyond the border of the image cannot be missed.
    seen = np.hypot(*((target - shift) @ rotation).T) < e.reach_nm - 0.03
    lone_t = seen.copy()
    lone_t[n] = False
    lone_e = np.hypot(*placed.T) < geometry.radius_nm - 0.04
    lone_e[m] = False
    lone = int(lone_t.sum() + lone_e.sum())
    pairs = np.stack([inner[n], near[m]], axis=1)
    foreign = ~np.isin(geometry.species[inner[n]], geometry.host)
    variance = wide[n] + sigma[m] ** 2 + FOREIGN_NM**2
    worst = float(np.sqrt(np.max(distance[foreign] / variance[foreign], initial=0.0)))
    cost = float(paired.sum() + UNPAIRED * lone)
    return Fit(cost, len(n) + int(lone_t.sum()), lone, rotation, shift, pairs, worst)


def level(image: NDArray[np.floating], yx_nm: NDArray[np.float64]) -> float:
    """Level of an average image at a place, over 30 pm; NaN beyond the image."""
    steps = (np.arange(GRID_PX) - (GRID_PX - 1) / 2) * GRID_NM
    near = (steps[:, None] - yx_nm[0]) ** 2 + (steps[None, :] - yx_nm[1]) ** 2 < 0.03**2
    values = image[near]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def mean_image(fits: Mapping[int, Fit], found: Sequence[Environment]) -> NDArray[np.float32] | None:
    """Average of the members' images, each turned and mirrored into the common frame."""
    total, count = np.zeros((GRID_PX, GRID_PX)), np.zeros((GRID_PX, GRID_PX))
    for k, fit in fits.items():
        picture = found[k].image
        if picture is None:
            continue
        laid = turned(picture, fit)
        good = np.isfinite(laid)
        total[good] += laid[good]
        count[good] += 1
    if not count.any():
        return None
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def turned(picture: NDArray[np.float32], fit: Fit) -> NDArray[np.float64]:
    """An environment's image in the frame of the class."""
    from scipy.ndimage import map_coordinates

    steps = (np.arange(GRID_PX) - (GRID_PX - 1) / 2) * GRID_NM
    grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1)
    place = (grid - fit.shift_nm) @ fit.rotation / GRID_NM + (GRID_PX - 1) / 2
    return map_coordinates(np.asarray(picture, np.float64), np.moveaxis(place, -1, 0), order=1, mode="constant",
                           cval=np.nan)
