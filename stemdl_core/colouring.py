"""The two colours of a honeycomb: neighbours differ; where rings of five and seven forbid it, the lattice is cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

from .planar import find_faces

#: Cosine of three times the angle between the lattice at two neighbours, below which a boundary runs between
#: them (12 degrees), and the part of such bonds that the noise of positions may cause.
_ALIGNED, _FEW_TURNED = 0.8, 0.005
#: Neighbours are within this of each other [bonds], the next ones at 1.73; parts of fewer columns have no mean.
_REACH, _SMALL_PART = 1.25, 16


def two_colour(n_sites: int, pairs: NDArray[np.int64], strain: NDArray[np.float64] | None = None
               ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Alternating colour 0/1 along bonds, and the connected part of every site.

    Parameters
    ----------
    n_sites : int
    pairs : (B, 2) int64
        Bonds.
    strain : (B,) float64, optional
        How doubtful each bond is; the most natural ones are followed first.
    """
    weight = np.ones(len(pairs)) if strain is None else 1.0 + np.asarray(strain, dtype=np.float64)
    adjacency = coo_array((weight, (pairs[:, 0], pairs[:, 1])), shape=(n_sites, n_sites)).tocsr()
    if strain is not None and len(pairs):
        adjacency = minimum_spanning_tree(adjacency)
    count, part = connected_components(adjacency, directed=False)
    colour = np.zeros(n_sites, dtype=np.int64)
    for k in np.flatnonzero(np.bincount(part, minlength=count) > 1).tolist():
        order, before = breadth_first_order(adjacency, int(np.argmax(part == k)), directed=False)
        for i in order[1:].tolist():
            colour[i] = 1 - colour[before[i]]
    return colour, part.astype(np.int64)


def coloured_parts(yx_nm: NDArray[np.float64], pairs: NDArray[np.int64]
                   ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Colours that no bond within a part contradicts, but for single wrong bonds.

    Where colours contradict each other, the bonds of rings with an odd number of sites are cut first.
    """
    if len(pairs) == 0:
        return np.zeros(len(yx_nm), dtype=np.int64), np.arange(len(yx_nm), dtype=np.int64)
    length = np.hypot(*(yx_nm[pairs[:, 0]] - yx_nm[pairs[:, 1]]).T)
    strain = np.abs(length / np.median(length) - 1.0)
    colour, part = two_colour(len(yx_nm), pairs, strain)
    turned = _turned(yx_nm, pairs)
    contradicted = bool(np.any(colour[pairs[:, 0]] == colour[pairs[:, 1]]))
    if not contradicted and np.mean(turned) < _FEW_TURNED:
        return colour, part
    keep = ~turned
    faces = find_faces(yx_nm, pairs[:, 0], pairs[:, 1])
    if len(faces):
        odd = (faces.size % 2 == 1) & (faces.area > 0) & (faces.size < 12)
        keep[np.flatnonzero(odd[faces.face]) % len(pairs)] = False
    return two_colour(len(yx_nm), pairs[keep], strain[keep])


def _turned(yx_nm: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B,) bonds across which the lattice turns.

    The three bonds of a site point 120 degrees apart, and those of its neighbours the opposite way: where they
    do not, one grain ends.
    """
    step = yx_nm[pairs[:, 1]] - yx_nm[pairs[:, 0]]
    phase = np.exp(3j * np.arctan2(step[:, 0], step[:, 1]))
    sums = np.zeros(len(yx_nm), dtype=np.complex128)
    np.add.at(sums, pairs[:, 0], phase)
    np.add.at(sums, pairs[:, 1], -phase)
    a, b = sums[pairs[:, 0]], sums[pairs[:, 1]]
    size = np.abs(a) * np.abs(b)
    return np.asarray(-(a * b.conj()).real < _ALIGNED * size)


def alike(yx_nm: NDArray[np.float64], bond_nm: float) -> NDArray[np.int64]:
    """(N,) labels of columns that should be about equally bright: those of a sublattice in one part of a lattice.

    Columns of small parts share a label. `bond_nm` is the distance of neighbours.
    """
    pairs = cKDTree(yx_nm).query_pairs(_REACH * bond_nm, output_type="ndarray").astype(np.int64)
    colour, part = coloured_parts(yx_nm, pairs)
    small = np.bincount(part)[part] < _SMALL_PART
    return np.where(small, 0, 1 + 2 * part + colour)
