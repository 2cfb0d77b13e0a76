"""What is believed about the distances in a sheet of carbon, before its counts are looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Array = NDArray[np.float64]

#: Spread of bond lengths and second-neighbour distances [host bonds] in relaxed defects: 130-185 and 210-290 pm.
_BOND_SPREAD, _SECOND_SPREAD = 0.06, 0.18
#: The same of bonds that are longer than usual.
_STRETCHED = 0.09
#: A foreign atom (silicon: 150 pm seen from above, at least) pushes host atoms away up to this distance [host bonds].
_PUSHED = 1.12
#: Degrees of freedom of the distributions (Student's): what is odd by many spreads is something else.
_FREEDOM = 8.0
#: Atoms nearer than this are bonded [host bonds].
_BONDED = 1.30


class Springs:
    """Bonds and second neighbours of an arrangement, those of its free atoms.

    Parameters
    ----------
    yx : (N, 2) float64
        Positions by which atoms are bonded [nm].
    dopant, free : (N,) bool
        Foreign atoms, whose bonds are of any length but not too short; atoms that may move.
    host : float
        Bond length of the host [nm].
    """

    def __init__(self, yx: Array, dopant: NDArray[np.bool_], free: NDArray[np.bool_], host: float) -> None:
        pairs = np.zeros((0, 2), np.intp)
        if len(yx) > 1:
            pairs = cKDTree(yx).query_pairs(_BONDED * host, output_type="ndarray")
        foreign = pairs[dopant[pairs].sum(axis=1) == 1]
        pairs = pairs[~dopant[pairs].any(axis=1)]
        bond = np.zeros((len(yx), len(yx)), dtype=np.float32)
        bond[pairs[:, 0], pairs[:, 1]] = bond[pairs[:, 1], pairs[:, 0]] = 1.0
        second = np.argwhere(np.triu((bond @ bond > 0) & (bond == 0), 1))
        links = np.concatenate([pairs, second, foreign])
        kind = np.repeat([0, 1, 2], [len(pairs), len(second), len(foreign)])
        use = free[links].any(axis=1)
        self._a, self._b = links[use].T
        kind = kind[use]
        self._natural = np.array([1.0, np.sqrt(3.0), _PUSHED])[kind] * host
        self._spread = np.array([_BOND_SPREAD, _SECOND_SPREAD, _BOND_SPREAD])[kind] * host
        self._one_sided, self._bond = kind == 2, kind == 0
        self._reach = np.zeros((len(self._a), len(yx)))
        rows = np.arange(len(self._a))
        self._reach[rows, self._a], self._reach[rows, self._b] = -1.0, 1.0

    def _excess(self, yx: Array) -> tuple[Array, Array]:
        step = yx[self._b] - yx[self._a]
        length = np.maximum(np.hypot(*step.T), 1e-9)
        excess = length - self._natural
        return np.where(self._one_sided, np.minimum(excess, 0.0), excess), step / length[:, None]

    def energy(self, yx: Array) -> float:
        """Log-probability that positions (N, 2) [nm] lose by their distances."""
        excess, _ = self._excess(yx)
        spread = self._spread_of(excess)
        return float(0.5 * (_FREEDOM + 1) * np.log1p((excess / spread) ** 2 / _FREEDOM).sum())

    def _spread_of(self, excess: Array) -> Array:
        """Bonds are stretched more easily than squeezed."""
        return np.where(self._bond & (excess > 0), self._spread * (_STRETCHED / _BOND_SPREAD), self._spread)

    def normal(self, yx: Array, free: NDArray[np.int64]) -> tuple[Array, Array]:
        """Stiffness (2F, 2F) and pull (2F,) of the free atoms, all y first."""
        excess, unit = self._excess(yx)
        spread = self._spread_of(excess)
        weight = (_FREEDOM + 1) / _FREEDOM / spread**2 / (1.0 + (excess / spread) ** 2 / _FREEDOM)
        weight = np.where(self._one_sided & (excess >= 0.0), 0.0, weight)
        reach = self._reach[:, free]
        both = np.concatenate([reach * unit[:, :1], reach * unit[:, 1:]], axis=1)
        return (both * weight[:, None]).T @ both, -both.T @ (weight * excess)
