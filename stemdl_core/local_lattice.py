"""The perfect lattice at a place, continued from its surroundings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .colouring import two_colour
from .graph import AtomGraph

Array = NDArray[np.float64]


def continued_lattice(graph: AtomGraph, center: Array, *, radius_nm: float, margin_nm: float) -> Array | None:
    """Sites of the perfect sheet at one place, continued from the hexagons around it.

    Parameters
    ----------
    graph : AtomGraph
        Of a one-element honeycomb.
    center : (2,) float64
        The place (y, x) [nm].
    radius_nm, margin_nm : float
        Its radius, and how far beyond it sites are wanted [nm].

    Returns
    -------
    (N, 2) float64 or None
        Sites [nm]; None where too few hexagons are around, or where they are not of one lattice.
    """
    host = graph.scale * graph.material.bond_nm
    faces = graph.faces
    hexagons = np.bincount(faces.start, weights=(graph.inside & (faces.size == 6))[faces.face],
                           minlength=len(graph.sites))
    near = np.array(graph.tree.query_ball_point(center, radius_nm + 0.55), dtype=np.int64)
    calm = near[(hexagons[near] >= 2) & (graph.degree[near] == 3) & ~graph.foreign[near]]
    if len(calm) < 8:
        return None
    number = np.full(len(graph.sites), -1)
    number[calm] = np.arange(len(calm))
    a, b = number[graph.bonds.a], number[graph.bonds.b]
    use = (a >= 0) & (b >= 0)
    pairs = np.stack([a[use], b[use]], axis=1)
    if len(pairs) < 8:
        return None
    colour, part = two_colour(len(calm), pairs)
    largest = int(np.bincount(part).argmax())
    yx = graph.yx_nm[calm]
    start = np.where(colour[pairs[:, 0]] == 0, pairs[:, 0], pairs[:, 1])
    end = pairs.sum(axis=1) - start
    use = part[start] == largest
    step = (yx[end] - yx[start])[use]
    turn = np.angle(np.exp(3j * np.arctan2(step[:, 0], step[:, 1])).mean()) / 3.0
    kind = np.round((np.arctan2(step[:, 0], step[:, 1]) - turn) / (2 * np.pi / 3)).astype(int) % 3
    if len(np.unique(kind)) < 3:
        return None
    d = np.array([step[kind == k].mean(axis=0) for k in range(3)])
    basis = np.stack([d[0] - d[1], d[0] - d[2]])
    members = np.flatnonzero(part == largest)
    anchor = members[int(np.argmin(np.hypot(*(yx[members] - center).T)))]
    origin = yx[anchor] - colour[anchor] * d[0]
    place = (yx[members] - origin - colour[members][:, None] * d[0]) @ np.linalg.inv(basis)
    index = np.round(place)
    design = np.column_stack([np.ones(len(members)), index, colour[members]])
    solution, *_ = np.linalg.lstsq(design, yx[members], rcond=None)
    error = yx[members] - design @ solution
    if np.sqrt((error**2).sum(1).mean()) > 0.25 * host:
        return None
    reach = int(np.ceil((radius_nm + 0.9) / (1.7 * host))) + 1
    middle = np.round((center - solution[0]) @ np.linalg.inv(solution[1:3])).astype(int)
    i, j, s = (v.ravel() for v in np.meshgrid(middle[0] + np.arange(-reach, reach + 1),
                                              middle[1] + np.arange(-reach, reach + 1), (0, 1), indexing="ij"))
    sites = np.column_stack([np.ones(len(i)), i, j, s]) @ solution
    return sites[np.hypot(*(sites - center).T) < radius_nm + margin_nm]
