"""Planar valence-force relaxation of a known bond network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

#: Angle bending over bond stretching, both per dimensionless strain: graphene's 8 eV/rad^2 against
#: 36 eV/Angstrom^2 times the squared bond length (Perebeinos & Tersoff, Phys. Rev. B 79, 241409 (2009)).
BENDING = 0.14


def neighbour_angles(n_nodes: int, a: NDArray[np.int64], b: NDArray[np.int64],
                     yx: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Triples (i, at, k) of bonds next to each other around every node, and the number of bonds at the node.

    Opposite bonds of an atom with four are left out: only angles between neighbouring bonds are chemistry.
    """
    neighbours: list[list[int]] = [[] for _ in range(n_nodes)]
    for i, j in zip(a.tolist(), b.tolist()):
        neighbours[i].append(j)
        neighbours[j].append(i)
    triples, degree = [], []
    for at, around in enumerate(neighbours):
        if len(around) < 2:
            continue
        steps = yx[around] - yx[at]
        ordered = [around[k] for k in np.argsort(np.arctan2(steps[:, 0], steps[:, 1]))]
        pairs = (
            [(ordered[0], ordered[1])] if len(ordered) == 2 else list(zip(ordered, ordered[1:] + ordered[:1]))
        )
        triples += [(i, at, k) for i, k in pairs]
        degree += [len(ordered)] * len(pairs)
    return np.array(triples, dtype=np.int64).reshape(-1, 3), np.array(degree, dtype=np.int64)


def relax(yx: NDArray[np.float64], *, a: NDArray[np.int64], b: NDArray[np.int64], length: NDArray[np.float64],
          stiffness: NDArray[np.float64], angles: NDArray[np.int64], angle_cos: NDArray[np.float64],
          angle_stiffness: NDArray[np.float64], apart: NDArray[np.int64], apart_length: NDArray[np.float64],
          free: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Positions of least valence-force energy.

    Parameters
    ----------
    yx : (N, 2) float64
        Start, in units of the host bond length.
    a, b, length, stiffness : (B,)
        Bonds with their natural length and stiffness.
    angles, angle_cos, angle_stiffness : (A, 3), (A,), (A,)
        Triples (i, at, k), natural cosine, stiffness.
    apart, apart_length : (R, 2), (R,)
        Pairs that repel each other when nearer than the length.
    free : (N,) bool
        Nodes that may move.

    Returns
    -------
    (N, 2) float64
    """
    moving = np.flatnonzero(free)
    n_nodes = len(yx)

    def scatter(index: NDArray[np.int64], force: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([np.bincount(index, weights=force[:, k], minlength=n_nodes) for k in (0, 1)], axis=1)

    def energy(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        p = yx.copy()
        p[moving] = flat.reshape(-1, 2)
        step = p[b] - p[a]
        d = np.hypot(step[:, 0], step[:, 1])
        excess = d - length
        total = 0.5 * np.sum(stiffness * excess**2)
        pull = (stiffness * excess / d)[:, None] * step
        gradient = scatter(b, pull) - scatter(a, pull)
        if len(apart):
            step = p[apart[:, 1]] - p[apart[:, 0]]
            d = np.hypot(step[:, 0], step[:, 1])
            short = np.minimum(d - apart_length, 0.0)
            total += 0.25 * np.sum(short**2)
            pull = (0.5 * short / d)[:, None] * step
            gradient += scatter(apart[:, 1], pull) - scatter(apart[:, 0], pull)
        u, v = p[angles[:, 0]] - p[angles[:, 1]], p[angles[:, 2]] - p[angles[:, 1]]
        nu, nv = np.hypot(u[:, 0], u[:, 1]), np.hypot(v[:, 0], v[:, 1])
        u, v = u / nu[:, None], v / nv[:, None]
        cos = np.sum(u * v, axis=1)
        bend = angle_stiffness * (cos - angle_cos)
        total += 0.5 * np.sum(bend * (cos - angle_cos))
        on_u = (bend / nu)[:, None] * (v - cos[:, None] * u)
        on_v = (bend / nv)[:, None] * (u - cos[:, None] * v)
        gradient += (
            scatter(angles[:, 0], on_u) + scatter(angles[:, 2], on_v) - scatter(angles[:, 1], on_u + on_v)
        )
        return float(total), gradient[moving].ravel()

    result = minimize(energy, yx[moving].ravel(), jac=True, method="L-BFGS-B",
                      options={"maxiter": 300, "ftol": 1e-9, "gtol": 1e-5})
    relaxed = yx.copy()
    relaxed[moving] = result.x.reshape(-1, 2)
    return relaxed
