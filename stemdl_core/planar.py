"""Faces of a planar straight-line graph, vectorised: the rings of a two-dimensional crystal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Faces:
    """Faces of a planar graph as closed walks along half-edges.

    Half-edge h < E runs from ``a[h]`` to ``b[h]`` of the bond list, half-edge h + E back. Every half-edge has
    exactly one face on its right-hand side (in y-down image coordinates); the outer contour of a connected
    part is a face too, with negative area.

    Parameters
    ----------
    start, end : (2E,) int64
        Nodes of every half-edge.
    following : (2E,) int64
        The next half-edge along the same face.
    face : (2E,) int64
        Face number of every half-edge.
    size : (F,) int64
        Number of half-edges in every face.
    area : (F,) float64
        Signed area in squared units of the positions; inner faces are positive.
    first : (F,) int64
        One half-edge of every face.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    following: NDArray[np.int64]
    face: NDArray[np.int64]
    size: NDArray[np.int64]
    area: NDArray[np.float64]
    first: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.size)

    def nodes(self, face: int) -> list[int]:
        """The nodes of one face, in order."""
        edges = self.edges(face)
        return [int(n) for n in self.start[edges]]

    def edges(self, face: int) -> list[int]:
        """The half-edges of one face, in order."""
        h = int(self.first[face])
        walk = []
        for _ in range(int(self.size[face])):
            walk.append(h)
            h = int(self.following[h])
        return walk


def find_faces(yx: ArrayLike, a: ArrayLike, b: ArrayLike) -> Faces:
    """Faces of the graph with nodes at `yx` and undirected bonds `a`-`b` that do not cross.

    Parameters
    ----------
    yx : (N, 2) float
        Positions.
    a, b : (E,) int
        Bonds, each once.

    Returns
    -------
    Faces
        Inner faces have positive area.
    """
    points = np.asarray(yx, dtype=np.float64).reshape(-1, 2)
    a, b = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    n_bonds = len(a)
    start, end = np.concatenate([a, b]), np.concatenate([b, a])
    if n_bonds == 0:
        none = np.zeros(0, dtype=np.int64)
        return Faces(none, none, none, none, none, np.zeros(0), none)
    step = points[end] - points[start]
    angle = np.arctan2(step[:, 0], step[:, 1])
    order = np.lexsort((angle, start))
    rank = np.empty_like(order)
    rank[order] = np.arange(2 * n_bonds)
    counts = np.bincount(start, minlength=len(points))
    begin = np.concatenate([[0], np.cumsum(counts)[:-1]])
    # After arriving along h at its end node, leave along the bond just before the way back, in angular order:
    # the tightest turn keeps the same face on the same side.
    twin = (np.arange(2 * n_bonds) + n_bonds) % (2 * n_bonds)
    place = rank[twin] - begin[end]
    following = order[begin[end] + (place - 1) % counts[end]]
    # The faces are the cycles of the permutation `following`: the smallest member, spread by pointer
    # doubling.
    label = np.arange(2 * n_bonds)
    jump = following
    while True:
        spread = np.minimum(label, label[jump])
        # Doubling may stall before a long cycle is covered; one single step tells.
        if np.array_equal(spread, label) and np.array_equal(label[following], label):
            break
        label, jump = spread, jump[jump]
    first, face = np.unique(label, return_inverse=True)
    size = np.bincount(face, minlength=len(first))
    p, q = points[start], points[end]
    cross = p[:, 1] * q[:, 0] - q[:, 1] * p[:, 0]
    area = 0.5 * np.bincount(face, weights=cross, minlength=len(first))
    return Faces(start, end, following, face.astype(np.int64), size, area.astype(np.float64), first)
