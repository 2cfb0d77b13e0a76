"""Bicrystals of graphene whose boundary is a chain of 5-7 pairs.

The centres of the rings of graphene form a triangular lattice. Two such lattices, tilted against each other
and joined along a line, are triangulated (Delaunay); every triangle is a carbon atom. Points with five and
seven neighbours are then pentagons and heptagons: the dislocations that make up the boundary.

References
----------
Yazyev & Louie, Phys. Rev. B 81, 195420 (2010): LAGB I is the symmetric 21.8 degree (sigma 7) boundary.
Ophus et al., Phys. Rev. B 92, 205402 (2015): large-scale experimental and simulated graphene boundaries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, cKDTree

from ..materials import get_material
from ..planar import find_faces
from .defect_shapes import SQRT3
from .relax import BENDING, neighbour_angles, relax
from .sheet import Sheet

#: Misorientations drawn [deg]: 21.79 is sigma 7, 13.17 sigma 19, 32.20 sigma 13, 27.80 sigma 13 seen from 60.
ANGLES_DEG = (21.79, 21.79, 13.17, 32.20, 27.80, 17.9, 24.5, 36.0)
#: Half width of the relaxed strip, of the part of it that may move, and half its length [bond lengths].
_STRIP, _FREE, _HALF_LENGTH = 11.0, 8.5, 44.0


@dataclass(frozen=True)
class Boundary:
    """A relaxed strip along a boundary on the y axis, in bond lengths.

    Parameters
    ----------
    yx : (N, 2) float64
        Atoms of the strip.
    rings : tuple of tuple of int
        The pentagons and heptagons.
    left, right : (2, 2) float64
        Lattice vectors (rows) of the ring centres of both grains.
    left_origin, right_origin : (2,) float64
        A ring centre of each.
    angle_deg : float
        Misorientation.
    """

    yx: NDArray[np.float64]
    rings: tuple[tuple[int, ...], ...]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    left_origin: NDArray[np.float64]
    right_origin: NDArray[np.float64]
    angle_deg: float


def _grain_basis(tilt_deg: float) -> NDArray[np.float64]:
    """Lattice vectors whose sum (the armchair direction) is `tilt_deg` away from the y axis."""
    rows = []
    for degrees in (60.0, 120.0):
        angle = math.radians(degrees + tilt_deg)
        rows.append([SQRT3 * math.sin(angle), SQRT3 * math.cos(angle)])
    return np.array(rows)


def _fill(basis: NDArray[np.float64], origin: NDArray[np.float64], low: NDArray[np.float64],
          high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lattice points within a box."""
    corners = np.array([[low[0], low[1]], [low[0], high[1]], [high[0], low[1]], [high[0], high[1]]]) - origin
    span = corners @ np.linalg.inv(basis)
    first, last = np.floor(span.min(axis=0)), np.ceil(span.max(axis=0))
    i, j = np.meshgrid(np.arange(first[0], last[0] + 1), np.arange(first[1], last[1] + 1), indexing="ij")
    points = np.stack([i.ravel(), j.ravel()], axis=1) @ basis + origin
    return points[np.all((points >= low) & (points <= high), axis=1)]


def _join(left: NDArray[np.float64], right: NDArray[np.float64], nearest: float) -> NDArray[np.float64]:
    """Both sets of points with pairs nearer than `nearest` replaced by their middle."""
    points = np.concatenate([left, right])
    while True:
        pairs = cKDTree(points).query_pairs(nearest, output_type="ndarray")
        if len(pairs) == 0:
            return points
        gap = np.hypot(*(points[pairs[:, 0]] - points[pairs[:, 1]]).T)
        used: set[int] = set()
        middles = []
        for k in np.argsort(gap, kind="stable"):
            i, j = (int(v) for v in pairs[k])
            if not {i, j} & used:
                used |= {i, j}
                middles.append(0.5 * (points[i] + points[j]))
        points = np.concatenate([np.delete(points, list(used), axis=0), middles])


def _even_out(points: NDArray[np.float64], steps: int = 16) -> NDArray[np.float64]:
    """Let ring centres near the boundary push each other to the lattice's distance."""
    points = points.copy()
    near = np.abs(points[:, 1]) < 3.0 * SQRT3
    for _ in range(steps):
        simplices = Delaunay(points).simplices
        edges = np.unique(
            np.sort(
                np.concatenate([simplices[:, [0, 1]], simplices[:, [1, 2]], simplices[:, [2, 0]]]), axis=1
            ),
            axis=0,
        )
        step = points[edges[:, 1]] - points[edges[:, 0]]
        d = np.hypot(step[:, 0], step[:, 1])
        keep = d < 1.7 * SQRT3
        edges, step, d = edges[keep], step[keep], d[keep]
        pull = (0.12 * (d - SQRT3) / d)[:, None] * step
        move = np.zeros_like(points)
        np.add.at(move, edges[:, 0], pull)
        np.add.at(move, edges[:, 1], -pull)
        points[near] += move[near]
        if np.max(np.abs(move[near])) < 0.01:
            break
    return points


def _carbon(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Atoms at the triangles' centroids and bonds between triangles that share a side."""
    mesh = Delaunay(points)
    yx = points[mesh.simplices].mean(axis=1)
    a, b = np.repeat(np.arange(len(yx)), 3), mesh.neighbors.ravel()
    once = b > a
    return yx, a[once].astype(np.int64), b[once].astype(np.int64)


def _settle(yx: NDArray[np.float64], a: NDArray[np.int64], b: NDArray[np.int64], angles: NDArray[np.int64],
            free: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The atoms of a network of carbon at rest, those that are not free left where they are."""
    return relax(yx, a=a, b=b, length=np.ones(len(a)), stiffness=np.ones(len(a)), angles=angles,
                 angle_cos=np.full(len(angles), -0.5), angle_stiffness=np.full(len(angles), BENDING),
                 apart=np.zeros((0, 2), dtype=np.int64), apart_length=np.zeros(0), free=free)


@lru_cache(maxsize=32)
def boundary(variant: int) -> Boundary:
    """A relaxed boundary; the variants differ in misorientation and in how the grains meet."""
    rng = np.random.default_rng([57, variant])
    angle = ANGLES_DEG[variant % len(ANGLES_DEG)]
    left, right = _grain_basis(0.5 * angle), _grain_basis(-0.5 * angle)
    margin = 4.0
    best: tuple[float, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None = None
    for _ in range(7):
        left_origin, right_origin = rng.uniform(0.0, SQRT3, 2), rng.uniform(0.0, SQRT3, 2)
        if rng.random() < 0.5:
            # Mirror images that share a point on the boundary: the coincidence-site arrangement.
            right_origin = left_origin = np.array([left_origin[0], 0.0])
        box = np.array([_HALF_LENGTH + margin, _STRIP + margin])
        points = _join(
            _fill(left, left_origin, -box, np.array([box[0], 0.0])),
            _fill(right, right_origin, np.array([-box[0], 0.0]), box),
            rng.uniform(0.6, 0.8) * SQRT3,
        )
        points = _even_out(points)
        mesh = Delaunay(points)
        degree = np.bincount(mesh.simplices.ravel(), minlength=len(points))
        inside = np.all(np.abs(points) < box - 3.0, axis=1)
        odd = degree[inside]
        penalty = float(np.sum(odd != 6)) + 50.0 * float(np.sum((odd < 5) | (odd > 7)))
        if best is None or penalty < best[0]:
            best = (penalty, points, left_origin, right_origin)
    assert best is not None
    _, points, left_origin, right_origin = best
    yx, a, b = _carbon(points)
    keep = np.all(np.abs(yx) < [_HALF_LENGTH + 2.0, _STRIP + 2.0], axis=1)
    number = np.cumsum(keep) - 1
    both = keep[a] & keep[b]
    yx, a, b = yx[keep], number[a[both]], number[b[both]]
    angles, degree = neighbour_angles(len(yx), a, b, yx)
    start, outer = yx, np.abs(yx[:, 1]) >= _FREE
    # First everything is free, so that the grains take the distance at which they do not pull at each other; then they
    # are perfect and rigid at that distance, and what lies between them settles.
    yx = _settle(yx, a, b, angles, np.ones(len(yx), dtype=bool))
    left_shift, right_shift = ((yx - start)[outer & side].mean(axis=0) for side in (start[:, 1] < 0, start[:, 1] > 0))
    yx[outer] = start[outer] + np.where(start[outer, 1:] < 0, left_shift, right_shift)
    yx = _settle(yx, a, b, angles, np.all(np.abs(start) < [_HALF_LENGTH + 1.0, _FREE], axis=1))
    faces = find_faces(yx, a, b)
    rings = []
    for k in np.flatnonzero((faces.area > 0) & (faces.size != 6)):
        nodes = faces.nodes(int(k))
        if np.all(np.abs(yx[nodes]) < [_HALF_LENGTH - 1.0, _FREE]):
            rings.append(tuple(nodes))
    return Boundary(yx, tuple(rings), left, right, left_origin + left_shift, right_origin + right_shift, angle)


def fits(shape_nm: tuple[float, float], margin_nm: float) -> bool:
    """Whether a boundary is long enough to cross a field of view and its margin in any direction."""
    return (
        0.5 * math.hypot(*shape_nm) + 1.5 * margin_nm < _HALF_LENGTH * get_material("graphene").bond_nm - 0.4
    )


def boundary_sheet(shape_nm: tuple[float, float], margin_nm: float, rng: np.random.Generator, *,
                   variant: int | None = None) -> Sheet:
    """A bicrystal that covers the field of view (see `fits`) and a margin.

    Parameters
    ----------
    shape_nm : (float, float)
        (height, width) of the field of view [nm].
    margin_nm : float
        Atoms are kept this far outside [nm].
    rng : numpy.random.Generator
        Draws the boundary, its direction and place.
    variant : int, optional
        A given boundary of `boundary`.
    """
    material = get_material("graphene")
    bond = material.bond_nm
    part = boundary(int(rng.integers(2 * len(ANGLES_DEG))) if variant is None else variant)
    reach = 0.5 * math.hypot(*shape_nm) + 1.5 * margin_nm
    turn = rng.uniform(0.0, 2 * math.pi)
    c, s = math.cos(turn), math.sin(turn)
    matrix = bond * np.array([[c, s], [-s, c]])
    slack = max(0.0, _HALF_LENGTH * bond - 1.0 - reach)
    local = np.array([rng.uniform(-1, 1) * slack / bond, rng.uniform(-0.25, 0.25) * min(shape_nm) / bond])
    centre = 0.5 * np.asarray(shape_nm) - local @ matrix.T

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return centre + points @ matrix.T

    box = reach / bond + 2.0
    cut = _FREE + 1.0
    grains = []
    for basis, origin, low, high in (
            (part.left, part.left_origin, np.array([-box, -box]), np.array([box, -cut - local[1]])),
            (part.right, part.right_origin, np.array([-box, cut - local[1]]), np.array([box, box]))):
        low, high = low + local, high + local
        if np.any(high <= low):
            continue
        rim = np.array([2.0, 2.0])
        for third in ((basis[0] + basis[1]) / 3.0, 2.0 * (basis[0] + basis[1]) / 3.0):
            points = _fill(basis, origin + third, low - rim, high + rim)
            grains.append(points[np.all((points >= low) & (points < high), axis=1)])
    strip = np.flatnonzero((part.yx[:, 1] >= -cut) & (part.yx[:, 1] < cut))
    number = np.full(len(part.yx), -1)
    number[strip] = np.arange(len(strip))
    yx = place(np.concatenate([part.yx[strip], *grains]))
    low_nm, high_nm = np.full(2, -margin_nm), np.asarray(shape_nm) + margin_nm
    keep = np.all((yx >= low_nm) & (yx <= high_nm), axis=1)
    index = np.where(keep, np.cumsum(keep) - 1, -1)
    yx = yx[keep]
    sheet = Sheet(material, yx, np.zeros(len(yx)), np.full(len(yx), 6))
    inside = np.all((yx >= 0) & (yx <= np.asarray(shape_nm)), axis=1)
    members: set[int] = set()
    crossing: set[int] = set()
    for ring in part.rings:
        nodes = index[number[list(ring)]]
        crossing |= {int(n) for n in nodes if n >= 0}
        if np.all(nodes >= 0) and np.all(inside[nodes]):
            members |= {int(n) for n in nodes}
    sheet.keep_clear = yx[sorted(crossing)]
    if members:
        ids = np.array(sorted(members), dtype=np.int64)
        sheet.mark("GB(5-7)", ids, yx[ids].mean(axis=0), 0, part.angle_deg)
    return sheet
