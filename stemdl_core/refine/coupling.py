"""How columns that overlap depend on each other: their part of the normal matrix, and what it costs in precision.

References
----------
Y. Weiss and W. T. Freeman, Neural Comput. 13 (2001) 2173: covariances by passing messages between neighbours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import bsr_matrix
from scipy.spatial import cKDTree

from .model import Array, Image
from .picture import Patches, chunks
from .slopes import between, centred, lean

#: Columns farther apart than this many sigma of the core share next to nothing: exp(-(4.6 / 2)^2) = 0.5 %.
_FARTHEST = 4.6
#: What is left out must not make the matrix indefinite: columns are taken to be known better than they are by this.
_STIFFER = 0.005


class Couplings:
    """Off-diagonal blocks of the normal matrix: sums over pixels of weight times the slopes of two columns.

    They are kept relative to the diagonal, as correlations: these hardly change with the last, small steps.

    Parameters
    ----------
    patches : Patches
        The columns.
    weighted : list of (N, P) float32
        Core and tail of each on its patch, times the information per pixel.
    y, x : (N,) float64
        Positions [working px].
    scale : (N, 3) float64
        Square root of the diagonal of the normal matrix, for columns of height one.
    """

    def __init__(self, patches: Patches, weighted: list[Image], y: Array, x: Array, scale: Array) -> None:
        pairs = cKDTree(np.stack([y, x], 1)).query_pairs(_FARTHEST * patches.stencil.shape.sigma, output_type="ndarray")
        # In the order of the first column, so that its patch is still at hand for the next pair.
        i, j = pairs[np.argsort(pairs[:, 0], kind="stable")].T
        blocks = _overlap(patches, weighted, i, j)
        blocks /= scale[i][:, :, None] * scale[j][:, None, :] + 1e-300
        # No correlation is larger; what is, is a quotient of rounding errors.
        np.clip(blocks, -1.0, 1.0, out=blocks)
        # Both directions, in the order of the first column of each pair.
        order = np.argsort(np.concatenate([i, j]), kind="stable")
        self.first, self.second = np.concatenate([i, j])[order], np.concatenate([j, i])[order]
        self._correlations = np.concatenate([blocks, blocks.transpose(0, 2, 1)])[order]
        # Where the same pair stands the other way round.
        place = np.empty(len(order), np.intp)
        place[order] = np.arange(len(order))
        self._reverse = np.roll(place, len(i))[order]
        self._blocks = self._correlations

    def set_scale(self, scale: Array) -> None:
        """Take the correlations for those around other columns' states, with this root of the diagonal (N, 3)."""
        self._blocks = self._correlations * (scale[self.first][:, :, None] * scale[self.second][:, None, :])

    def matrix(self, own: Array, heights_together: Array) -> bsr_matrix:
        """(3 N, 3 N) normal matrix of the columns with their `own` blocks (N, 3, 3).

        What many distant neighbours share with a column is little, but all with one sign: without it, the heights of
        all columns together would seem to know less than the background under them does. It is added to the
        column itself, which makes the matrix stiffer and never softer. `heights_together` (N,) is the sum of a row
        of the complete matrix over all heights.
        """
        n = len(own)
        kept = np.bincount(self.first, self._blocks[:, 0, 0], minlength=n)
        own = own * (1 + _STIFFER * np.eye(3))
        own[:, 0, 0] += np.maximum(heights_together - kept, 0)
        # A row begins with its own block.
        starts = np.searchsorted(self.first, np.arange(n + 1)) + np.arange(n + 1)
        others = np.arange(len(self.first)) + self.first + 1
        blocks, columns = np.empty((starts[-1], 3, 3)), np.empty(starts[-1], np.int32)
        blocks[starts[:-1]], columns[starts[:-1]] = own, np.arange(n)
        blocks[others], columns[others] = self._blocks, self.second
        return bsr_matrix((blocks, columns, starts.astype(np.int32)), shape=(3 * n, 3 * n))

    def covariance(self, own: Array) -> Array:
        """(N, 3, 3) diagonal blocks of the inverse of the normal matrix.

        What a column knows of itself is lowered by each neighbour that is not known either, and such a neighbour
        is known the better, the more its other neighbours are. The inverse of the whole matrix would cost
        seconds; this agrees with its standard deviations to 1 % in a lattice.
        """
        blocks = np.ascontiguousarray(self._blocks.transpose(1, 2, 0))
        columns = np.ascontiguousarray(own.transpose(1, 2, 0))
        lost = _lost(blocks, columns[:, :, self.second])
        total = self._total(lost, len(own))
        # A neighbour's knowledge without what the column itself takes from it.
        others = (columns - total)[:, :, self.second] + lost[:, :, self._reverse]
        return inverse(own - self._total(_lost(blocks, others), len(own)).transpose(2, 0, 1))

    def _total(self, lost: Array, count: int) -> Array:
        """(3, 3, N) sum over each column's pairs."""
        sums = [np.bincount(self.first, values, minlength=count) for values in lost.reshape(9, -1)]
        return np.array(sums, dtype=np.float64).reshape(3, 3, count)


def _lost(blocks: Array, known: Array) -> Array:
    """(3, 3, M) information lost through each coupling to a neighbour of which so much is known."""
    through = np.einsum("abm,bcm->acm", blocks, _inverse(known))
    return np.einsum("acm,dcm->adm", through, blocks)


def inverse(blocks: Array) -> Array:
    """(N, 3, 3) inverses of symmetric blocks."""
    return np.ascontiguousarray(_inverse(blocks.transpose(1, 2, 0)).transpose(2, 0, 1))


def _inverse(blocks: Array) -> Array:
    """(3, 3, N) inverses of symmetric matrices by their cofactors: several times as fast as one by one."""
    (a, b, c), (d, e), f = blocks[0], blocks[1, 1:], blocks[2, 2]
    aa, ab, ac = d * f - e * e, c * e - b * f, b * e - c * d
    bb, bc, cc = a * f - c * c, b * c - a * e, a * d - b * b
    return np.stack([aa, ab, ac, ab, bb, bc, ac, bc, cc]).reshape(3, 3, -1) / (a * aa + b * ab + c * ac)


def _overlap(patches: Patches, weighted: list[Image], i: NDArray[np.intp], j: NDArray[np.intp]) -> Array:
    """(M, 3, 3) sums of weight times the slopes of columns i and j of height one, over the pixels of both patches."""
    stencil = patches.stencil
    own_at = patches.rest_y[i], patches.rest_x[i]
    # The second column, from the first one's middle pixel.
    away_y, away_x = patches.middle_y[j] - patches.middle_y[i], patches.middle_x[j] - patches.middle_x[i]
    other_at = away_y + patches.rest_y[j], away_x + patches.rest_x[j]
    kinds = range(len(stencil.kinds))
    moments = np.empty((len(kinds), len(kinds), len(i), 6), np.float32)
    for which in chunks(len(i)):
        others = stencil.profiles(other_at[0][which], other_at[1][which])
        both = stencil.shared(away_y[which], away_x[which])
        for a in kinds:
            own = weighted[a][i[which]] * both
            for b in kinds:
                moments[a, b, which] = (own * others[b]) @ stencil.moments
    leans = [lean(stencil.shape, tail=tail) for tail in stencil.kinds]
    total = np.zeros((3, 3, len(i)))
    for a in kinds:
        for b in kinds:
            total += between(leans[a], centred(moments[a, b], own_at, other_at), leans[b])
    return np.ascontiguousarray(total.transpose(2, 0, 1))
