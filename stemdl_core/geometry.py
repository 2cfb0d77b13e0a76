"""Measures of a defect: composition, centre, bond lengths and angles with their uncertainties."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from ase.data import atomic_masses

from .analysis import DefectAngle, DefectBond
from .graph import AtomGraph
from .materials import element


def composition_of(graph: AtomGraph, sites: Iterable[int]) -> Mapping[str, int]:
    """Number of atoms of each element."""
    return dict(Counter(str(graph.sites.species[i]) for i in sites))


def center_of_mass(graph: AtomGraph, sites: Iterable[int]) -> tuple[float, float]:
    """Centre of mass (y, x) [px]."""
    index = list(sites)
    mass = np.array([atomic_masses[element(str(graph.sites.species[i]))] for i in index])
    y, x = (graph.sites.yx_px[index] * mass[:, None]).sum(axis=0) / mass.sum()
    return float(y), float(x)


def bonds_of(graph: AtomGraph, pairs: Iterable[tuple[int, int]]) -> tuple[DefectBond, ...]:
    """Bonds with their lengths and uncertainties, sorted."""
    ends = np.array(sorted((min(p), max(p)) for p in pairs), dtype=np.int64).reshape(-1, 2)
    a, b = ends.T
    length = 1e3 * np.hypot(*(graph.yx_nm[a] - graph.yx_nm[b]).T)
    sigma = np.hypot(graph.sites.sigma_pm[a], graph.sites.sigma_pm[b])
    return tuple(DefectBond(*row) for row in zip(a.tolist(), b.tolist(), length.tolist(), sigma.tolist()))


def ring_angles(graph: AtomGraph, at_sites: Iterable[int],
                pairs: Iterable[tuple[int, int]]) -> tuple[DefectAngle, ...]:
    """Angles between neighbouring bonds at the given atoms, in order around each."""
    around: dict[int, set[int]] = {}
    for a, b in pairs:
        around.setdefault(a, set()).add(b)
        around.setdefault(b, set()).add(a)
    result = []
    for at in sorted(at_sites):
        others = sorted(around.get(at, ()))
        if len(others) < 2:
            continue
        steps = graph.yx_nm[others] - graph.yx_nm[at]
        order = np.argsort(np.arctan2(steps[:, 0], steps[:, 1])).tolist()
        turns = list(zip(order, order[1:] + order[:1])) if len(order) > 2 else [(order[0], order[1])]
        result += [angle_between(graph, others[i], at, others[j]) for i, j in turns]
    return tuple(result)


def angle_between(graph: AtomGraph, a: int, at: int, b: int) -> DefectAngle:
    """The angle a-at-b with its standard deviation, propagated from those of the three positions."""
    u, v = graph.yx_nm[a] - graph.yx_nm[at], graph.yx_nm[b] - graph.yx_nm[at]
    nu, nv = float(np.hypot(*u)), float(np.hypot(*v))
    cosine = min(1.0, max(-1.0, float(u @ v) / (nu * nv)))
    across_u, across_v = np.array([-u[1], u[0]]) / nu**2, np.array([-v[1], v[0]]) / nv**2
    sigma = [1e-3 * float(graph.sites.sigma_pm[i]) for i in (a, at, b)]
    variance = (
        (sigma[0] / nu) ** 2
        + (sigma[2] / nv) ** 2
        + sigma[1] ** 2 * float(np.sum((across_u - across_v) ** 2))
    )
    return DefectAngle(a, at, b, math.degrees(math.acos(cosine)), math.degrees(math.sqrt(variance)))
