"""Odd rings: clusters of faces that are not hexagons, and how many atoms they lack.

The number of missing atoms follows from the rim of a cluster alone. Walked along the rim, a perfect honeycomb
turns by 60 degrees to one side where an atom's third bond points out of the cluster and to the other side
where it points in (or is missing). The walk, drawn in a perfect sheet, encloses a known number of sites:
those that are not there are missing. If the drawn walk does not close, the cluster holds a dislocation (its
Burgers vector is the gap): a piece of a grain boundary. Distances play no part, so distortion and scale
change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .graph import AtomGraph


@dataclass(frozen=True)
class Cluster:
    """Connected faces and what their rim tells.

    Parameters
    ----------
    faces : tuple of int
        Face numbers.
    sizes : tuple of int
        Their sizes, sorted.
    atoms : tuple of int
        All atoms of the faces, sorted.
    missing : int or None
        Sites of the perfect sheet without an atom; negative: too many atoms; None where the rim does not
        close.
    closed : bool
        Whether the rim closes in the perfect sheet (no dislocation).
    cut : bool
        Whether a face beyond the rim is not wholly inside the image.
    center_nm : (float, float)
        Area centroid (y, x) [nm].
    """

    faces: tuple[int, ...]
    sizes: tuple[int, ...]
    atoms: tuple[int, ...]
    missing: int | None
    closed: bool
    cut: bool
    center_nm: tuple[float, float]


def twin(graph: AtomGraph, half_edge: int) -> int:
    """The half-edge in the other direction."""
    return int((half_edge + len(graph.bonds)) % (2 * len(graph.bonds)))


def group_faces(graph: AtomGraph, faces: Iterable[int]) -> list[tuple[int, ...]]:
    """Faces grouped by common bonds."""
    todo = set(faces)
    groups = []
    while todo:
        seed = min(todo)
        todo.discard(seed)
        group, queue = [seed], [seed]
        while queue:
            for h in graph.faces.edges(queue.pop()):
                other = int(graph.faces.face[twin(graph, h)])
                if other in todo:
                    todo.discard(other)
                    group.append(other)
                    queue.append(other)
        groups.append(tuple(sorted(group)))
    return groups


def _rims(graph: AtomGraph, inside: set[int]) -> list[list[tuple[int, int]]]:
    """Closed walks along the rim of a set of faces: (atom, its bonds inside the set) at every step."""
    faces = graph.faces
    rim = {h for f in inside for h in faces.edges(f) if int(faces.face[twin(graph, h)]) not in inside}
    walks = []
    while rim:
        first = min(rim)
        h, walk = first, []
        while True:
            rim.discard(h)
            step, inner = int(faces.following[h]), 0
            while int(faces.face[twin(graph, step)]) in inside:
                step, inner = int(faces.following[twin(graph, step)]), inner + 1
            walk.append((int(faces.end[h]), inner))
            h = step
            if h == first:
                break
        walks.append(walk)
    return walks


def describe(graph: AtomGraph, group: Iterable[int]) -> Cluster:
    """What a set of faces lacks or has too much of."""
    faces = graph.faces
    inside = set(group)
    walks = _rims(graph, inside)
    # Islands of ordinary rings within the cluster belong to it: take everything within the outermost rim.
    for _ in range(3):
        if len(walks) < 2:
            break
        outer = max(walks, key=lambda w: abs(_area(graph.yx_nm[[v for v, _ in w]])))
        grown = set(inside)
        for walk in walks:
            if walk is outer:
                continue
            nodes = {v for v, _ in walk}
            for f in {int(faces.face[h]) for h in range(2 * len(graph.bonds))
                      if int(faces.start[h]) in nodes and int(faces.end[h]) in nodes}:
                if graph.inside[f]:
                    grown.add(f)
        if grown == inside or len(grown) > len(inside) + 12:
            break
        inside = grown
        walks = _rims(graph, inside)
    sizes = tuple(sorted(int(faces.size[f]) for f in inside))
    atoms = sorted({n for f in inside for n in faces.nodes(f)})
    cut = any(not graph.inside[int(faces.face[twin(graph, h)])] for f in inside for h in faces.edges(f)
              if int(faces.face[twin(graph, h)]) not in inside)
    center = _centroid(graph, inside)
    missing, closed = None, False
    if len(walks) == 1:
        missing = _missing(graph, walks[0], len(atoms))
        closed = missing is not None
    return Cluster(tuple(sorted(inside)), sizes, tuple(atoms), missing, closed, cut, center)


def _missing(graph: AtomGraph, walk: list[tuple[int, int]], n_atoms: int) -> int | None:
    """Sites that the walk encloses in a perfect sheet less those there; None if it does not close."""
    direction, at = 0, np.zeros(2)
    corners = []
    rim = graph.yx_nm[[atom for atom, _ in walk]]
    turns = np.sign(_cross(rim - np.roll(rim, 1, axis=0), np.roll(rim, -1, axis=0) - rim))
    for k, (atom, inner) in enumerate(walk):
        corners.append(at.copy())
        outward = int(graph.degree[atom]) - 2 - inner
        if outward > 1 or (outward == 1 and inner > 1):
            return None
        # The third bond outward: convex corner; inward or absent: concave. Near the border the third bond may
        # lie out of view: there the corner itself tells.
        convex = outward == 1
        if outward == 0 and inner == 0 and graph.sites.edge[atom]:
            convex = turns[k] > 0
        direction += 1 if convex else -1
        angle = direction * math.pi / 3.0
        at = at + np.array([math.sin(angle), math.cos(angle)])
    if direction != 6 or np.hypot(*at) > 0.1:
        return None
    hexagons = abs(_area(np.array(corners))) / (1.5 * math.sqrt(3.0))
    enclosed = 1.0 + 2.0 * hexagons - 0.5 * len(walk)
    return round(enclosed) - (n_atoms - len({v for v, _ in walk}))


def _cross(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """z component of the product of vectors (y, x), positive where the walk keeps its face inside a corner."""
    return u[:, 1] * v[:, 0] - u[:, 0] * v[:, 1]


def _area(yx: NDArray[np.float64]) -> float:
    q = np.roll(yx, -1, axis=0)
    return 0.5 * float(np.sum(yx[:, 1] * q[:, 0] - q[:, 1] * yx[:, 0]))


def _centroid(graph: AtomGraph, faces: set[int]) -> tuple[float, float]:
    weight, moment = 0.0, np.zeros(2)
    for f in faces:
        yx = graph.yx_nm[graph.faces.nodes(f)]
        q = np.roll(yx, -1, axis=0)
        cross = yx[:, 1] * q[:, 0] - q[:, 1] * yx[:, 0]
        weight += 0.5 * float(cross.sum())
        moment += ((yx + q) * cross[:, None]).sum(axis=0) / 6.0
    y, x = moment / weight if weight else graph.yx_nm[graph.faces.nodes(next(iter(faces)))].mean(axis=0)
    return float(y), float(x)


def dopant_faces(graph: AtomGraph, dopants: Iterable[int]) -> set[int]:
    """The faces around a set of atoms."""
    atoms = set(dopants)
    touching = np.isin(graph.faces.start, list(atoms))
    return {int(f) for f in np.unique(graph.faces.face[touching])}


def misorientation_deg(graph: AtomGraph, atoms: Iterable[int], *, reach_nm: float = 1.6) -> float:
    """Angle between the lattices on both sides of a chain of rings [deg], 0-30; NaN where it cannot be told."""
    one, other = orientations_deg(graph, atoms, reach_nm=reach_nm)
    return abs(turned_deg(one, other))


def turned_deg(one: float, other: float) -> float:
    """Smallest turn from one orientation of a hexagonal lattice to another [deg], -30 to 30."""
    return (one - other + 30.0) % 60.0 - 30.0


def orientations_deg(graph: AtomGraph, atoms: Iterable[int], *, reach_nm: float = 1.6) -> tuple[float, float]:
    """Orientations of the lattices on both sides of a chain of rings [deg], modulo 60; NaN where they cannot be told.

    The chain's principal axis divides the surroundings; on each side the directions of the bonds are averaged
    with their threefold bond symmetry (sixfold, not knowing the sublattice).
    """
    chain = graph.yx_nm[sorted(atoms)]
    if len(chain) < 3:
        return math.nan, math.nan
    middle = chain.mean(axis=0)
    _, _, axes = np.linalg.svd(chain - middle, full_matrices=False)
    a, b = graph.bonds.a, graph.bonds.b
    centre = 0.5 * (graph.yx_nm[a] + graph.yx_nm[b]) - middle
    step = graph.yx_nm[b] - graph.yx_nm[a]
    phase = np.exp(6j * np.arctan2(step[:, 0], step[:, 1]))
    across, along = centre @ axes[1], centre @ axes[0]
    spread = np.max(np.abs((chain - middle) @ axes[0])) + 0.3
    near = (np.abs(along) < spread) & (np.abs(across) > 0.35) & (np.abs(across) < reach_nm)
    left, right = phase[near & (across < 0)], phase[near & (across > 0)]
    if len(left) < 10 or len(right) < 10:
        return math.nan, math.nan
    return float(np.degrees(np.angle(left.mean()))) / 6.0, float(np.degrees(np.angle(right.mean()))) / 6.0


def least_share(graph: AtomGraph, atoms: Iterable[int], grains: tuple[float, float], *, reach_nm: float = 0.7) -> float:
    """Part of the bonds around some atoms that belongs to the rarer one of two grains; NaN where that is unknown.

    Parameters
    ----------
    graph : AtomGraph
    atoms : iterable of int
    grains : (float, float)
        Orientations of the lattices [deg].
    reach_nm : float
        Bonds count whose middle is nearer to one of the atoms than this, and no bond between two of them.

    Returns
    -------
    float
        0 inside a grain, up to 0.5 on a boundary.
    """
    chosen = np.array(sorted(atoms))
    a, b = graph.bonds.a, graph.bonds.b
    ends = graph.yx_nm[a], graph.yx_nm[b]
    near = cKDTree(graph.yx_nm[chosen]).query(0.5 * (ends[0] + ends[1]))[0] < reach_nm
    near &= ~(np.isin(a, chosen) & np.isin(b, chosen))
    if near.sum() < 10 or any(map(math.isnan, grains)):
        return math.nan
    step = (ends[1] - ends[0])[near]
    direction = np.degrees(np.arctan2(step[:, 0], step[:, 1]))
    off = [np.abs((direction - turn + 30.0) % 60.0 - 30.0) for turn in grains]
    share = float(np.mean(off[0] < off[1]))
    return min(share, 1.0 - share)
