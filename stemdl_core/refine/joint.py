"""Least squares of all columns at once: height, y and x of each, and the background under them.

Neighbouring columns overlap, so their parameters are correlated and have to be found together. The normal
matrix is never formed: conjugate gradients need only its products, which are a drawing and a comparison of
images.

References
----------
S. Van Aert et al., J. Struct. Biol. 138 (2002) 21; A. De Backer et al., Ultramicroscopy 171 (2016) 104
(StatSTEM).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from .model import Array, Background, Image, Patches, Shape, chunks


class Normal:
    """Weighted least squares around the current model: (height, y, x) per column, background nodes.

    Parameters
    ----------
    patches : Patches
        The columns.
    heights : (N,) float64
        Their heights.
    weight, residual : (H, W) float32
        Information per pixel; data minus model.
    background : Background
        The surface.
    smoothness : (n, n) float64
        Prior precision of its nodes.
    precision : (N, 3) float64
        Prior precision of the columns' parameters.
    unit : (H, W) float32
        Sum of all columns' profiles, each of peak one.
    """

    def __init__(self, patches: Patches, y: Array, x: Array, heights: Array, weight: Image, residual: Image,
                 background: Background, smoothness: Array, precision: Array, unit: Image) -> None:
        n, size = len(heights), (weight.shape[0], weight.shape[1])
        slopes = np.empty((3, *patches.index.shape), np.float32)
        gradient, diagonal, moments = np.empty((n, 3)), np.empty((n, 3, 3)), np.empty((n, 3, 3))
        flat_weight, flat_residual = weight.ravel(), (weight * residual).ravel()
        flat_unit, together = unit.ravel(), np.empty(n)
        narrow = heights.astype(np.float32)[:, None]
        for which in chunks(n):
            index = patches.index[which]
            w, r = flat_weight.take(index), flat_residual.take(index)
            for a, slope in enumerate(patches.slopes(which)):
                np.multiply(slope, narrow[which] if a else np.float32(1), out=slopes[a, which])
            for a in range(3):
                gradient[which, a] = np.einsum("np,np->n", slopes[a, which], r)
                weighted = slopes[a, which] * w
                moments[which, a] = weighted @ patches.moments
                if a == 0:
                    together[which] = np.einsum("np,np->n", weighted, flat_unit.take(index))
                for b in range(a, 3):
                    shared = np.einsum("np,np->n", weighted, slopes[b, which])
                    diagonal[which, a, b] = diagonal[which, b, a] = shared
        self.gradient, self.diagonal = gradient, diagonal
        self.gradient_nodes = background.project(flat_residual.reshape(size))
        self._precision, self._smoothness = precision, smoothness
        self._weight, self._background = flat_weight, background
        self._values, self._patches, self._ones = slopes, patches, np.ones(n, np.float32)
        # Rows of the transposed drawing are the columns' patches: same numbers, read the other way.
        self._sums = patches.place(slopes[0], size).T
        # A background hat is linear around a column, so its sum needs the zeroth and first moments only.
        self.near, value, slope_y, slope_x = background.at(y, x)
        total = moments[..., 0]
        along_y = moments[..., 1] - total * patches.rest_y[:, None]
        along_x = moments[..., 2] - total * patches.rest_x[:, None]
        self.border = (total[:, :, None] * value[:, None] + along_y[:, :, None] * slope_y[:, None]
                       + along_x[:, :, None] * slope_x[:, None])
        self._nodes = background.gram(weight) + smoothness
        self._own = diagonal + precision[:, :, None] * np.eye(3)
        self._inverse = np.linalg.inv(self._own)
        # How columns answer to the background: it changes slowly, so all around change their heights
        # together, and each needs to do the less.
        shared = self._own.copy()
        shared[:, 0, 0] += np.maximum(together - diagonal[:, 0, 0], 0)
        self._answer = np.matmul(np.linalg.inv(shared), self.border)

    def _sparse(self, blocks: Array) -> csr_matrix:
        """(3 N, n) matrix of blocks (N, 3, K) against the nodes near each column."""
        n, _, k = blocks.shape
        columns = np.repeat(self.near[:, None], 3, axis=1)
        return csr_matrix((blocks.ravel(), columns.ravel(), np.arange(0, 3 * n * k + 1, k)),
                          shape=(3 * n, self._background.size))

    @cached_property
    def nodes_covariance(self) -> Array:
        """(n, n) covariance of the background nodes, the columns unknown."""
        lift = self._sparse(self._answer)
        schur = self._nodes - (self._sparse(self.border).T @ lift).toarray()
        schur = 0.5 * (schur + schur.T)
        # Nodes that see hardly any pixels of their own lean on the smoothness.
        schur += np.diag(0.02 * np.diag(self._nodes) + 1e-3 * np.diag(self._nodes).max())
        try:
            root = np.linalg.inv(np.linalg.cholesky(schur))
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(schur)
            root = (vectors / np.sqrt(np.maximum(values, 1e-2 * np.abs(values).max()))).T
        return root.T @ root

    def _apply(self, columns: Array, nodes: Array) -> tuple[Array, Array]:
        """The normal matrix times a step."""
        values = np.einsum("anp,na->np", self._values, columns.astype(np.float32))
        image = self._patches.place(values, self._background.pixels) @ self._ones
        image = (image + self._background.image(nodes).ravel()) * self._weight
        out = self._precision * columns
        for a in range(3):
            self._sums.data = self._values[a].ravel()
            out[:, a] += self._sums @ image
        shape = self._background.pixels
        return out, self._background.project(image.reshape(shape)) + self._smoothness @ nodes

    def solve(self, pull: Array, pull_nodes: Array, *, tolerance: float,
              most: int = 25) -> tuple[Array, Array]:
        """Step of columns (N, 3) and nodes (n,) by preconditioned conjugate gradients.

        `pull` and `pull_nodes` are the priors' part of the gradient. The preconditioner treats every column
        as alone, but knows how they all lean on the background: heights and background trade against each
        other.
        """
        nodes_inverse = self.nodes_covariance
        lift = self._answer
        near = self.near
        count = self._background.size

        def precondition(u: Array, v: Array) -> tuple[Array, Array]:
            own = np.einsum("nab,nb->na", self._inverse, u)
            leaned = np.bincount(near.ravel(), np.einsum("nak,na->nk", lift, u).ravel(), minlength=count)
            z = nodes_inverse @ (v - leaned)
            return own - np.einsum("nak,nk->na", lift, z[near]), z

        ru, rv = self.gradient + pull, self.gradient_nodes + pull_nodes
        u, v = np.zeros_like(ru), np.zeros_like(rv)
        zu, zv = precondition(ru, rv)
        pu, pv = zu, zv
        rho = start = float(np.vdot(ru, zu) + rv @ zv)
        for _ in range(most):
            if not rho > tolerance**2 * start:
                break
            qu, qv = self._apply(pu, pv)
            alpha = rho / float(np.vdot(pu, qu) + pv @ qv)
            u, v = u + alpha * pu, v + alpha * pv
            ru, rv = ru - alpha * qu, rv - alpha * qv
            zu, zv = precondition(ru, rv)
            previous, rho = rho, float(np.vdot(ru, zu) + rv @ zv)
            pu, pv = zu + (rho / previous) * pu, zv + (rho / previous) * pv
        return u, v

    def covariance(self, y: Array, x: Array, heights: Array, shape: Shape, *, neighbours: int = 4,
                   ) -> tuple[Array, Array]:
        """(N, 3, 3) covariance of height, y and x of each column, its neighbours unknown; and what not
        knowing the background adds.

        The inverse of the whole matrix would cost seconds; that of each column with its nearest neighbours
        gives the same standard deviation to 1 % in a lattice.
        """
        n = len(y)
        points = np.stack([y, x], 1)
        distance, members = cKDTree(points).query(points, k=min(neighbours + 1, n))
        distance, members = distance.reshape(n, -1), members.reshape(n, -1)
        members[:, 0] = np.arange(n)
        k = members.shape[1]
        local = np.zeros((n, k, k, 3, 3))
        slots = np.arange(k)
        local[:, slots, slots] = self._own[members]
        first, second = np.triu_indices(k, 1)
        i, j = members[:, first], members[:, second]
        gap = np.hypot(y[i] - y[j], x[i] - x[j])
        # Each overlapping pair once, however many clusters it is in.
        close = (gap < 4.6 * shape.sigma) & (i != j)
        low, high = np.minimum(i, j)[close], np.maximum(i, j)[close]
        pairs, back = np.unique(low * n + high, return_inverse=True)
        weight = self._weight.reshape(self._background.pixels)
        coupling = _coupling(y, x, heights, pairs // n, pairs % n, shape, weight)
        blocks = np.zeros((*close.shape, 3, 3))
        ordered = coupling[back.ravel()]
        flip = (i > j)[close]
        ordered[flip] = ordered[flip].transpose(0, 2, 1)
        # Two sites on one column: the sums above are good to a few per cent, and must not promise more.
        ordered[gap[close] < shape.sigma] *= 0.95
        blocks[close] = ordered
        local[:, first, second] = blocks
        local[:, second, first] = blocks.transpose(0, 1, 3, 2)
        dense = local.transpose(0, 1, 3, 2, 4).reshape(n, 3 * k, 3 * k)
        own = np.linalg.solve(dense, np.broadcast_to(np.eye(3 * k, 3), (n, 3 * k, 3)))[:, :3]
        lean = self._answer
        nodes = self.nodes_covariance
        shared = nodes[self.near[:, :, None], self.near[:, None, :]]
        return own, np.matmul(np.matmul(lean, shared), lean.transpose(0, 2, 1))


def _coupling(y: Array, x: Array, heights: Array, i: NDArray[np.intp], j: NDArray[np.intp], shape: Shape,
              weight: Image) -> Array:
    """(P, 3, 3) sums over pixels of weight times the slopes of both columns of each pair.

    The product of two Gaussians is a narrower Gaussian at the midpoint; every other pixel around it is
    enough.
    """
    if not len(i):
        return np.zeros((0, 3, 3))
    step = max(1, round(0.9 * shape.sigma))
    ticks = step * np.arange(-2, 3)
    my, mx = np.rint(0.5 * (y[i] + y[j])), np.rint(0.5 * (x[i] + x[j]))
    qy, qx = my[:, None] + np.repeat(ticks, 5), mx[:, None] + np.tile(ticks, 5)
    rows, columns = (np.clip(q, 0, m - 1).astype(np.intp)
                     for q, m in zip((qy, qx), weight.shape, strict=True))
    w = weight[rows, columns] * np.float32(step**2)
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
