"""Relaxed patches of graphene around one defect, made once and put into any sheet."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ..planar import find_faces
from .defect_shapes import BOND_PM, GRAPHENE_KINDS, SQRT3, Blueprint, Point
from .relax import BENDING, neighbour_angles, relax

#: Different drawings kept for every kind: natural bond lengths differ by a few percent between them.
VARIANTS = 8
#: The patch and its part that may move [bond lengths]: strain of a point defect has decayed at 1.1 nm.
_PATCH, _FREE = 9.6, 7.8


@dataclass(frozen=True)
class Template:
    """A relaxed defect in units of the host bond length, anchor at the origin, points (y, x).

    Parameters
    ----------
    name, anchor, missing
        As in the blueprint.
    host : (M, 2) float64
        Perfect positions of the host atoms that stay.
    shift : (M, 2) float64
        How far each of them moves.
    turned : (M, 2) float64
        The part of the shift that makes the defect (turned bonds); the rest is relaxation.
    removed : (R, 2) float64
        Perfect positions of the host atoms taken out.
    numbers, added, height : (K,), (K, 2), (K,)
        Foreign atoms: atomic number, position, z [Angstrom].
    members : (S,) int64
        Atoms of the defect: numbers into host, then added.
    center : (2,) float64
        Centre of mass of the members; of the non-hexagonal rings where no foreign atom is.
    holes : (V, 2) float64
        Where a vacancy is seen.
    extent : float
        Greatest distance of a member from the anchor.
    """

    name: str
    anchor: str
    missing: int
    host: NDArray[np.float64]
    shift: NDArray[np.float64]
    turned: NDArray[np.float64]
    removed: NDArray[np.float64]
    numbers: NDArray[np.int64]
    added: NDArray[np.float64]
    height: NDArray[np.float64]
    members: NDArray[np.int64]
    center: NDArray[np.float64]
    holes: NDArray[np.float64]
    extent: float


def honeycomb_patch(anchor: str, radius: float) -> NDArray[np.float64]:
    """(N, 2) perfect sheet within `radius` of the anchor, in bond lengths."""
    n = int(radius) + 2
    i, j = np.meshgrid(np.arange(-n, n + 1), np.arange(-n, n + 1), indexing="ij")
    y, x = 1.5 * (i + j).ravel(), 0.5 * SQRT3 * (i - j).ravel()
    points = np.concatenate([np.stack([y, x], 1), np.stack([y + 1.0, x], 1)])
    if anchor == "bond":
        points = (points - np.array([0.5, 0.0]))[:, ::-1]
    elif anchor == "ring":
        points = points + np.array([1.0, 0.0])
    return points[np.hypot(points[:, 0], points[:, 1]) < radius]


class _Network:
    """Nodes, bonds and their natural lengths while a blueprint is carried out."""

    def __init__(self, plan: Blueprint) -> None:
        patch = honeycomb_patch(plan.anchor, _PATCH)
        gone = np.zeros(len(patch), bool)
        for point in plan.remove:
            gone[self._nearest(patch, point)] = True
        self.perfect = patch[~gone]
        self.removed = patch[gone]
        self.start = np.concatenate([self.perfect, np.array([p for _, p, _ in plan.add]).reshape(-1, 2)])
        self.foreign = np.arange(len(self.start)) >= len(self.perfect)
        self.bonds: dict[tuple[int, int], tuple[float, float]] = {}
        for a, b in cKDTree(self.perfect).query_pairs(1.2):
            self.bonds[a, b] = (1.0, 1.0)
        for link in plan.links:
            self.bonds[self._pair(link.a, link.b)] = (link.length_pm / BOND_PM, link.stiffness)
        self.apart = [(*self._pair(k.a, k.b), k.length_pm / BOND_PM) for k in plan.apart]
        for one, two in plan.rotate:
            self._rotate(one, two)

    @staticmethod
    def _nearest(points: NDArray[np.float64], point: Point) -> int:
        distance = np.hypot(points[:, 0] - point[0], points[:, 1] - point[1])
        nearest = int(np.argmin(distance))
        if distance[nearest] > 0.05:
            raise ValueError(f"no atom at {point} (nearest is {distance[nearest]:.2f} bond lengths away)")
        return nearest

    def _pair(self, one: Point, two: Point) -> tuple[int, int]:
        a, b = self._nearest(self.start, one), self._nearest(self.start, two)
        return (a, b) if a < b else (b, a)

    def _rotate(self, one: Point, two: Point) -> None:
        """Turn a bond by 90 degrees and give each end the two outer neighbours that are now nearest."""
        pair = self._pair(one, two)
        outer = [
            n for end in pair for key in self.bonds if end in key and key != pair for n in key if n != end
        ]
        self.bonds = {key: v for key, v in self.bonds.items() if not set(key) & set(pair) or key == pair}
        middle = self.start[list(pair)].mean(axis=0)
        step = self.start[pair[1]] - self.start[pair[0]]
        turned = 0.47 * np.array([step[1], -step[0]])
        self.start[pair[0]], self.start[pair[1]] = middle + turned, middle - turned
        side = np.array([(self.start[n] - middle) @ turned for n in outer])
        for rank, k in enumerate(np.argsort(-side).tolist()):
            end = pair[0] if rank < 2 else pair[1]
            self.bonds[min(end, outer[k]), max(end, outer[k])] = (1.0, 1.0)

    def relaxed(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Relaxed positions and the bonds."""
        a = np.array([k[0] for k in self.bonds])
        b = np.array([k[1] for k in self.bonds])
        springs = np.array(list(self.bonds.values()))
        angles, degree = neighbour_angles(len(self.start), a, b, self.start)
        odd = self.foreign[angles[:, 1]]
        cosine = np.where(degree == 4, 0.0, -0.5)
        bending = np.where(odd, 0.03, np.where(degree == 2, 0.5, 1.0) * BENDING)
        apart = np.array([k[:2] for k in self.apart], dtype=np.int64).reshape(-1, 2)
        free = np.hypot(self.start[:, 0], self.start[:, 1]) < _FREE
        yx = relax(self.start, a=a, b=b, length=springs[:, 0], stiffness=springs[:, 1], angles=angles,
                   angle_cos=cosine, angle_stiffness=bending, apart=apart,
                   apart_length=np.array([k[2] for k in self.apart]), free=free)
        return yx, a, b


def odd_rings(yx: NDArray[np.float64], a: NDArray[np.int64], b: NDArray[np.int64],
              within: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Atoms and area centroid of the rings that are not hexagons and lie within a distance of the origin."""
    faces = find_faces(yx, a, b)
    members: set[int] = set()
    weight, moment = 0.0, np.zeros(2)
    for k in np.flatnonzero((faces.size != 6) & (faces.area > 0)):
        ring = faces.nodes(int(k))
        if np.max(np.hypot(*yx[ring].T)) < within:
            members |= set(ring)
            area, centroid = polygon_centroid(yx[ring])
            weight, moment = weight + area, moment + area * centroid
    return np.array(sorted(members), dtype=np.int64), moment / max(weight, 1e-12)


def polygon_centroid(yx: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Signed area and centroid of a polygon (N, 2)."""
    p, q = yx, np.roll(yx, -1, axis=0)
    cross = p[:, 1] * q[:, 0] - q[:, 1] * p[:, 0]
    area = 0.5 * float(cross.sum())
    return area, ((p + q) * cross[:, None]).sum(axis=0) / (6.0 * area)


@lru_cache(maxsize=4096)
def template(kind: str, symbol: str, variant: int) -> Template:
    """A relaxed defect of one of `GRAPHENE_KINDS`; the same arguments give the same drawing."""
    rng = np.random.default_rng([zlib.crc32(f"{kind}/{symbol}".encode()), variant])
    plan = GRAPHENE_KINDS[kind](symbol, rng)
    network = _Network(plan)
    yx, a, b = network.relaxed()
    n_host = len(network.perfect)
    numbers = np.array([atomic_numbers[s] for s, _, _ in plan.add], dtype=np.int64)
    if len(numbers):
        touching = network.foreign[a] | network.foreign[b]
        members = np.unique(np.concatenate([a[touching], b[touching]]))
        mass = np.concatenate([np.full(n_host, atomic_masses[6]), atomic_masses[numbers]])[members]
        center = (yx[members] * mass[:, None]).sum(axis=0) / mass.sum()
    else:
        members, center = odd_rings(yx, a, b, _FREE)
    moved = np.hypot(*(yx[:n_host] - network.perfect).T) > 2e-4
    keep = moved | np.isin(np.arange(n_host), members)
    renumber = np.cumsum(keep) - 1
    members = np.where(
        members < n_host, renumber[np.minimum(members, n_host - 1)], members - n_host + keep.sum()
    )
    everything = np.concatenate([yx[:n_host][keep], yx[n_host:]])
    return Template(
        name=plan.name,
        anchor=plan.anchor,
        missing=plan.missing,
        host=network.perfect[keep],
        shift=(yx[:n_host] - network.perfect)[keep],
        turned=(network.start[:n_host] - network.perfect)[keep],
        removed=network.removed,
        numbers=numbers,
        added=yx[n_host:],
        height=np.array([z for _, _, z in plan.add], dtype=np.float64),
        members=members,
        center=center,
        holes=np.array(plan.holes, dtype=np.float64).reshape(-1, 2),
        extent=float(np.max(np.hypot(*everything[members].T))),
    )
