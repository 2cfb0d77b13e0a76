"""Normal equations of all columns at once: height, y and x of each, and the background under them.

Neighbouring columns overlap, so their parameters are correlated and have to be found together. Only near neighbours
couple: the matrix is sparse, and preconditioned conjugate gradients solve it in a handful of products.

References
----------
S. Van Aert et al., J. Struct. Biol. 138 (2002) 21; A. De Backer et al., Ultramicroscopy 171 (2016) 104 (StatSTEM).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import bsr_matrix, csr_matrix
from scipy.spatial import cKDTree

from .model import Array, Background, Image, Patches, Shape


@dataclass(frozen=True)
class Pairs:
    """Columns close enough to overlap: each pair once, with what it takes to place its blocks in a matrix."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    order: NDArray[np.intp]
    columns: NDArray[np.int32]
    starts: NDArray[np.int32]

    @classmethod
    def within(cls, y: Array, x: Array, distance: float) -> Pairs:
        """All pairs of columns nearer than `distance`."""
        n = len(y)
        pairs = cKDTree(np.stack([y, x], 1)).query_pairs(distance, output_type="ndarray")
        i, j = pairs[:, 0].astype(np.intp), pairs[:, 1].astype(np.intp)
        # Row blocks of the symmetric matrix: the diagonal, then (i, j), then (j, i).
        rows = np.concatenate([np.arange(n), i, j])
        columns = np.concatenate([np.arange(n), j, i])
        order = np.lexsort((columns, rows))
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
        return cls(i, j, order, columns[order].astype(np.int32), starts.astype(np.int32))

    def matrix(self, diagonal: Array, coupling: Array) -> bsr_matrix:
        """Symmetric block matrix from (N, 3, 3) diagonal blocks and (P, 3, 3) blocks of the pairs."""
        n = len(diagonal)
        blocks = np.concatenate([diagonal, coupling, coupling.transpose(0, 2, 1)])[self.order]
        return bsr_matrix((blocks, self.columns, self.starts), shape=(3 * n, 3 * n))


@dataclass(frozen=True)
class Clusters:
    """Each column with its nearest neighbours, and where the blocks that couple them are."""

    members: NDArray[np.intp]
    block: NDArray[np.intp]

    @classmethod
    def nearest(cls, y: Array, x: Array, pairs: Pairs, neighbours: int = 4) -> Clusters:
        """Column 0 of `members` (N, K) is the column itself; `block` (N, K, K) counts pairs, their transposes,
        and last an empty block."""
        n, p = len(y), len(pairs.first)
        points = np.stack([y, x], 1)
        members = cKDTree(points).query(points, k=min(neighbours + 1, n))[1].reshape(n, -1)
        # Coincident columns may come in either order.
        swap = members[:, 0] != np.arange(n)
        for row in np.flatnonzero(swap):
            others = members[row][members[row] != row]
            members[row] = np.r_[row, others[: members.shape[1] - 1]]
        number = np.arange(1, p + 1)
        table = csr_matrix((np.concatenate([number, p + number]), (np.concatenate([pairs.first, pairs.second]),
                            np.concatenate([pairs.second, pairs.first]))), shape=(n, n))
        k = members.shape[1]
        rows, columns = np.repeat(members, k, axis=1).ravel(), np.tile(members, k).ravel()
        block = np.asarray(table[rows, columns]).reshape(n, k, k) - 1
        return cls(members, np.where(block < 0, 2 * p, block))


@dataclass(frozen=True)
class Normal:
    """Weighted least squares around the current model, parameters (height, y, x) per column and background nodes.

    Parameters
    ----------
    diagonal : (N, 3, 3) float64
        Information of each column about itself, priors not included.
    coupling : (P, 3, 3) float64
        Information shared by the columns of a pair.
    pairs : Pairs
    border : (3 N, n) sparse
        Columns against background nodes.
    nodes : (n, n) float64
        Background nodes, with their smoothness.
    border_index, border_blocks : (N, 4) int, (N, 3, 4) float64
        The same border by column: the four nodes around it.
    lumped : (N,) float64
        Height information shared with columns beyond the pairs (the tails reach far), moved to the diagonal:
        the matrix then bounds the true one from above, which keeps every step safe.
    """

    diagonal: Array
    coupling: Array
    pairs: Pairs
    border: csr_matrix
    nodes: Array
    border_index: NDArray[np.intp]
    border_blocks: Array
    lumped: Array

    def lift(self, inverse: Array) -> csr_matrix:
        """(3 N, n) how columns, each on its own, answer to the background nodes."""
        lean = np.matmul(inverse, self.border_blocks)
        return csr_matrix((lean.ravel(), self.border.indices, self.border.indptr), shape=self.border.shape)

    def nodes_inverse(self, inverse: Array) -> Array:
        """(n, n) covariance of the background nodes when columns answer each on its own."""
        schur = self.nodes - (self.border.T @ self.lift(inverse)).toarray()
        schur = 0.5 * (schur + schur.T)
        # Nodes that see hardly any pixels of their own lean on the smoothness.
        schur[np.diag_indices_from(schur)] += 1e-3 * np.diag(self.nodes).max()
        try:
            root = np.linalg.inv(np.linalg.cholesky(schur))
            return root.T @ root
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(schur)
            return (vectors / np.maximum(values, 1e-3 * np.abs(values).max() + 1e-300)) @ vectors.T


def _quadrature(y: Array, x: Array, heights: Array, pairs: Pairs, shape: Shape, weight: Image) -> Array:
    """(P, 3, 3) sums over pixels of weight times the slopes of both columns of each pair.

    The product of two Gaussians is a narrower Gaussian at the midpoint; the trapezoid rule on a grid of step
    sigma converges to 1e-4 there, with 25 points in place of some hundred pixels.
    """
    i, j = pairs.first, pairs.second
    if not len(i):
        return np.zeros((0, 3, 3))
    step = max(1.0, shape.sigma)
    ticks = step * np.arange(-2, 3)
    my, mx = 0.5 * (y[i] + y[j]), 0.5 * (x[i] + x[j])
    qy, qx = (my[:, None] + np.repeat(ticks, 5)), (mx[:, None] + np.tile(ticks, 5))
    at = np.rint(qy).astype(np.int32) * weight.shape[1] + np.rint(qx).astype(np.int32)
    w = weight.ravel()[at] * np.float32(step**2)
    slopes = [_slopes(qy - y[k][:, None], qx - x[k][:, None], heights[k], shape) for k in (i, j)]
    return np.matmul(slopes[0] * w[:, None], slopes[1].transpose(0, 2, 1)).astype(np.float64)


def _slopes(dy: Array, dx: Array, heights: Array, shape: Shape) -> Image:
    """(P, 3, Q) slopes with height, y and x of columns at offsets (dy, dx) of the points."""
    dy, dx = dy.astype(np.float32), dx.astype(np.float32)
    out = np.zeros((len(dy), 3, dy.shape[1]), np.float32)
    for tail, share in ((False, 1 - shape.fraction), (True, shape.fraction)):
        if share == 0:
            continue
        yy, yx, xx = (np.float32(v) for v in shape.inverse(tail=tail))
        uy, ux = yy * dy + yx * dx, yx * dy + xx * dx
        value = np.float32(share) * np.exp(np.float32(-0.5) * (uy * dy + ux * dx))
        out[:, 0] += value
        value *= heights[:, None].astype(np.float32)
        out[:, 1] += value * uy
        out[:, 2] += value * ux
    return out


def assemble(patches: Patches, slopes: Image, y: Array, x: Array, heights: Array, shape: Shape, weight: Image,
             columns_image: Image, background: Background, pairs: Pairs, smoothness: Array) -> Normal:
    """Normal matrix at the current model. `slopes` (3, N, S * S) has the heights multiplied in."""
    n = len(y)
    weighted = slopes * weight.ravel().take(patches.index)
    diagonal = np.empty((n, 3, 3))
    for a in range(3):
        for b in range(a, 3):
            diagonal[:, a, b] = diagonal[:, b, a] = np.einsum("np,np->n", weighted[a], slopes[b])
    coupling = _quadrature(y, x, heights, pairs, shape, weight)
    unit = columns_image.ravel().take(patches.index)
    reach = np.einsum("np,np->n", weighted[0], unit) / np.median(heights) - diagonal[:, 0, 0]
    for near in (pairs.first, pairs.second):
        reach -= np.bincount(near, coupling[:, 0, 0], minlength=n)
    lumped = np.maximum(reach, 0)
    # A hat is linear around a column, so its sum needs the patch's zeroth and first moments only.
    moments = (weighted.reshape(3 * n, -1) @ patches.moments).astype(np.float64).reshape(3, n, 3)
    total = moments[..., 0]
    along_y = moments[..., 1] - total * patches.rest_y
    along_x = moments[..., 2] - total * patches.rest_x
    index, value, slope_y, slope_x = background.at(y, x)
    blocks = (total.T[:, :, None] * value[:, None] + along_y.T[:, :, None] * slope_y[:, None]
              + along_x.T[:, :, None] * slope_x[:, None])
    columns_of = np.repeat(index[:, None], 3, axis=1).reshape(-1, 4)
    border = csr_matrix((blocks.ravel(), columns_of.ravel(), np.arange(0, 12 * n + 1, 4)),
                        shape=(3 * n, background.size))
    return Normal(diagonal, coupling, pairs, border, background.gram(weight) + smoothness, index, blocks, lumped)


def solve(normal: Normal, prior: Array, gradient: Array, gradient_nodes: Array, *, tolerance: float = 1e-3,
          most: int = 40) -> tuple[Array, Array]:
    """Step of columns (N, 3) and background nodes (n,) from conjugate gradients.

    `prior` (N, 3) is the precision added to the diagonal. The preconditioner treats every column as alone, but
    knows how they all lean on the background: heights and background trade against each other.
    """
    n = len(normal.diagonal)
    diagonal = normal.diagonal + prior[:, :, None] * np.eye(3)
    diagonal[:, 0, 0] += normal.lumped
    matrix = normal.pairs.matrix(diagonal, normal.coupling)
    inverse = np.linalg.inv(diagonal)
    lift = normal.lift(inverse)
    schur_inverse = normal.nodes_inverse(inverse)
    border_t, lift_t = normal.border.T.tocsr(), lift.T.tocsr()

    def apply(u: Array, v: Array) -> tuple[Array, Array]:
        return matrix @ u + normal.border @ v, border_t @ u + normal.nodes @ v

    def precondition(u: Array, v: Array) -> tuple[Array, Array]:
        z = schur_inverse @ (v - lift_t @ u)
        own = np.einsum("nab,nb->na", inverse, u.reshape(n, 3)).ravel()
        return own - lift @ z, z

    ru, rv = gradient.ravel().copy(), gradient_nodes.copy()
    u, v = np.zeros_like(ru), np.zeros_like(rv)
    zu, zv = precondition(ru, rv)
    pu, pv = zu, zv
    rho = start = float(ru @ zu + rv @ zv)
    for _ in range(most):
        if not rho > tolerance**2 * start:
            break
        qu, qv = apply(pu, pv)
        curvature = float(pu @ qu + pv @ qv)
        if not curvature > 0:
            break
        alpha = rho / curvature
        u, v = u + alpha * pu, v + alpha * pv
        ru, rv = ru - alpha * qu, rv - alpha * qv
        zu, zv = precondition(ru, rv)
        previous, rho = rho, float(ru @ zu + rv @ zv)
        pu, pv = zu + (rho / previous) * pu, zv + (rho / previous) * pv
    return u.reshape(n, 3), v


def covariance(normal: Normal, prior: Array, clusters: Clusters) -> Array:
    """(N, 3, 3) covariance of height, y and x of each column, its neighbours and the background unknown.

    The inverse of the whole matrix would cost seconds; that of each column with its nearest neighbours gives the
    same standard deviation to 1 % in a lattice.
    """
    diagonal = normal.diagonal + prior[:, :, None] * np.eye(3)
    n, k = clusters.members.shape
    blocks = np.concatenate([normal.coupling, normal.coupling.transpose(0, 2, 1), np.zeros((1, 3, 3))])
    local = blocks[clusters.block]
    slots = np.arange(k)
    local[:, slots, slots] = diagonal[clusters.members]
    dense = local.transpose(0, 1, 3, 2, 4).reshape(n, 3 * k, 3 * k)
    own = np.linalg.solve(dense, np.broadcast_to(np.eye(3 * k, 3), (n, 3 * k, 3)))[:, :3]
    # What not knowing the background adds.
    lean = np.matmul(own, normal.border_blocks)
    nodes = normal.nodes_inverse(np.linalg.inv(diagonal + normal.lumped[:, None, None] * np.eye(3)[0]))
    shared = nodes[normal.border_index[:, :, None], normal.border_index[:, None, :]]
    return own + np.matmul(np.matmul(lean, shared), lean.transpose(0, 2, 1))
