"""Reciprocal vectors of a hexagonal lattice: which there are, how strong, and where."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .materials import Material


def _list_harmonics() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (h, k) of the reciprocal vectors, one of each opposite pair, and N = h^2 + hk + k^2 of each."""
    pairs = [(h, k) for h in range(-4, 5) for k in range(5) if k > 0 or h > 0]
    found = [(h * h + h * k + k * k, h, k) for h, k in pairs]
    table = np.array(sorted(t for t in found if t[0] in (1, 3, 4, 7, 9, 12)))
    return table[:, 1:], table[:, 0]


HK, NORM = _list_harmonics()
#: First and last (exclusive) index of the rings of equivalent vectors.
STARTS = np.flatnonzero(np.diff(NORM, prepend=0))
RINGS = list(zip(STARTS, np.append(STARTS[1:], len(NORM))))
#: Which vectors are along each direction.
FAMILIES = np.array(
    [HK[:, 0] * k == HK[:, 1] * h for h, k in HK[np.isin(NORM, (1, 3, 7))]]).astype(np.float64)


@lru_cache(maxsize=16)
def structure_factors(material: Material) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|F|^2 of each harmonic relative to {11}, and the intensities of the two sublattices.

    An annular dark-field detector sees about Z^1.7 (Krivanek et al., Nature 464, 571 (2010)); the chalcogen
    column holds two atoms. {11}-type vectors have both sublattices in phase, the others 120 degrees apart.
    """
    if material.kind == "honeycomb":
        first = second = 1.0
    else:
        first, second = (n * material.atomic_number(s)**1.7 for n, s in zip((1, 2), material.species))
    total = first + second
    first, second = first / total, second / total
    apart = first**2 + second**2 - first * second
    return np.where(NORM % 3 == 0, 1.0, apart), np.array([first, second])


def vectors(parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reciprocal vectors of all harmonics and their derivatives.

    Parameters
    ----------
    parameters : (4,) float64
        ln of the {10} frequency [cycles/px], rotation [rad], elongation and shear of the reciprocal lattice.

    Returns
    -------
    g : (N, 2) float64
        (fy, fx) [cycles/px].
    jacobian : (N, 2, 4) float64
    """
    log_u, theta, e1, e2 = parameters.tolist()
    u, cos, sin = math.exp(log_u), math.cos(theta), math.sin(theta)
    ideal = HK @ (u * np.array([[sin, cos], [sin / 2 + cos * 0.75**0.5, cos / 2 - sin * 0.75**0.5]]))
    strain = np.array([[1 + e1, e2], [e2, 1 - e1]])
    g = ideal @ strain
    jacobian = np.empty((len(HK), 2, 4))
    jacobian[:, :, 0] = g
    jacobian[:, :, 1] = (ideal[:, ::-1] * (1.0, -1.0)) @ strain
    jacobian[:, :, 2] = ideal * (1.0, -1.0)
    jacobian[:, :, 3] = ideal[:, ::-1]
    return g, jacobian
