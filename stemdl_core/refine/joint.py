"""Least squares of all columns at once: height, y and x of each, and the background under them.

Neighbouring columns overlap, so their parameters are correlated and have to be found together. The gradient comes
from the pixels; the normal matrix is sparse, since a column overlaps with its neighbours only.

References
----------
S. Van Aert et al., J. Struct. Biol. 138 (2002) 21; A. De Backer et al., Ultramicroscopy 171 (2016) 104
(StatSTEM).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from .coupling import Couplings, inverse
from .model import Array, Background, Image
from .picture import Patches, chunks
from .slopes import between, centred, lean

#: Background nodes are taken to be known better than they are by this part.
_STIFFER = 0.02


class Normal:
    """Weighted least squares around the current model: (height, y, x) per column, background nodes.

    Parameters
    ----------
    patches : Patches
        The columns.
    y, x, heights : (N,) float64
        Their positions and heights.
    weight, residual : (H, W) float32
        Information per pixel; data minus model.
    background : Background
        The surface.
    smoothness : (n, n) float64
        Prior precision of its nodes.
    precision : (N, 3) float64
        Prior precision of the columns' parameters.
    couplings : Couplings, optional
        Those of the same columns in nearly the same places.
    """

    def __init__(self, patches: Patches, y: Array, x: Array, heights: Array, weight: Image, residual: Image,
                 background: Background, smoothness: Array, precision: Array,
                 couplings: Couplings | None = None) -> None:
        n, stencil, size = len(heights), patches.stencil, (weight.shape[0], weight.shape[1])
        kinds = range(len(stencil.kinds))
        pairs = [(a, b) for a in kinds for b in kinds[: a + 1]]
        flat_weight, weighted_residual = weight.ravel(), weight * residual
        flat_residual = weighted_residual.ravel()
        total = np.empty(patches.index.shape, np.float32)
        weighted = [np.empty_like(total) for _ in kinds]
        pulls, singles = np.empty((2, len(kinds), n, 6), np.float32)
        doubles = np.empty((len(pairs), n, 6), np.float32)
        for which in chunks(n):
            index = patches.index[which]
            w, r = flat_weight.take(index), flat_residual.take(index)
            profiles = stencil.profiles(patches.rest_y[which], patches.rest_x[which], core=patches.core[which])
            total[which] = sum(profiles[1:], profiles[0])
            for a, profile in enumerate(profiles):
                own = np.multiply(profile, w, out=weighted[a][which])
                pulls[a, which] = (profile * r) @ stencil.moments
                singles[a, which] = own @ stencil.moments
            for k, (a, b) in enumerate(pairs):
                doubles[k, which] = (weighted[a][which] * profiles[b]) @ stencil.moments
        at = patches.rest_y, patches.rest_x
        leans = [lean(stencil.shape, tail=tail) for tail in stencil.kinds]
        scale = np.stack([np.ones(n), heights, heights])
        self.gradient = (scale * sum(leans[a] @ centred(pulls[a], at, at)[:, 0] for a in kinds)).T
        plain = [centred(moments, at, at) for moments in singles]
        self.diagonal = np.zeros((3, 3, n))
        for k, (a, b) in enumerate(pairs):
            product = between(leans[a], centred(doubles[k], at, at), leans[b])
            self.diagonal += product if a == b else product + product.transpose(1, 0, 2)
        self.diagonal = np.ascontiguousarray((self.diagonal * scale[:, None] * scale).transpose(2, 0, 1))
        self.gradient_nodes = background.project(weighted_residual)
        # Slopes times (1, dy, dx): the background is linear around a column, but for its kinks.
        linear = scale[:, None] * sum((leans[a] @ plain[a].reshape(3, -1)).reshape(3, 3, n) for a in kinds)
        whole = sum(plain[1:], plain[0])
        sigma_y, sigma_x = (np.sqrt(np.maximum(whole[k, k] / (whole[0, 0] + 1e-300), 0.1)) for k in (1, 2))
        self.near, *hats = background.blurred_at(y, x, sigma_y, sigma_x)
        self.border = np.matmul(linear.transpose(2, 0, 1), np.stack(hats, 1))
        self._size, nodes = background.size, background.gram(weight) + smoothness
        # What columns and nodes share is known to 1 %. Where nearly all light is the columns', the background must
        # not seem to be free for that.
        self._nodes = nodes + np.diag(_STIFFER * np.diag(nodes))
        self._own = self.diagonal + precision[:, :, None] * np.eye(3)
        self._inverse = inverse(self._own)
        # Rows of the transposed drawing are the columns' patches: same numbers, read the other way.
        drawing = patches.place(total, size)
        self._together = drawing.T @ (flat_weight * (drawing @ np.ones(n, np.float32))) - self.diagonal[:, 0, 0]
        # How columns answer to the background: it changes slowly, so all around change their heights
        # together, and each needs to do the less.
        shared = self._own.copy()
        shared[:, 0, 0] += np.maximum(self._together, 0)
        self._answer = np.matmul(inverse(shared), self.border)
        self._border, self._lift = self._sparse(self.border), self._sparse(self._answer)
        # A column of hardly any height leaves the rounding errors of its moments, of either sign.
        root = np.sqrt(np.maximum(np.einsum("naa->na", self.diagonal), 0.0))
        self.couplings = couplings or Couplings(patches, weighted, y, x, root / scale.T)
        self.couplings.set_scale(root)

    def _sparse(self, blocks: Array) -> csr_matrix:
        """(3 N, n) matrix of blocks (N, 3, K) against the nodes near each column."""
        n, _, k = blocks.shape
        columns = np.repeat(self.near.astype(np.int32)[:, None], 3, axis=1)
        starts = np.arange(0, 3 * n * k + 1, k, dtype=np.int32)
        return csr_matrix((blocks.ravel(), columns.ravel(), starts), shape=(3 * n, self._size))

    @cached_property
    def nodes_covariance(self) -> Array:
        """(n, n) covariance of the background nodes, the columns unknown."""
        schur = self._nodes - (self._border.T @ self._lift).toarray()
        schur = 0.5 * (schur + schur.T)
        # Nodes that see hardly any pixels of their own lean on the smoothness.
        schur += np.diag(0.02 * np.diag(self._nodes) + 1e-3 * np.diag(self._nodes).max())
        try:
            root = np.linalg.inv(np.linalg.cholesky(schur))
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(schur)
            root = (vectors / np.sqrt(np.maximum(values, 1e-2 * np.abs(values).max()))).T
        return root.T @ root

    def solve(self, pull: Array, pull_nodes: Array, *, tolerance: float,
              most: int = 150) -> tuple[Array, Array]:
        """Step of columns (N, 3) and nodes (n,) by preconditioned conjugate gradients.

        `pull` and `pull_nodes` are the priors' part of the gradient. The preconditioner treats every column
        as alone, but knows how they all lean on the background: heights and background trade against each
        other.
        """
        nodes, nodes_inverse, own_inverse = self._nodes, self.nodes_covariance, self._inverse
        columns, border, lift = self.couplings.matrix(self._own, self._together), self._border, self._lift
        from_columns, unlift = border.T, lift.T

        def precondition(u: Array, v: Array) -> tuple[Array, Array]:
            z = nodes_inverse @ (v - unlift @ u)
            return np.einsum("nab,nb->na", own_inverse, u.reshape(-1, 3)).ravel() - lift @ z, z

        ru, rv = (self.gradient + pull).ravel(), self.gradient_nodes + pull_nodes
        u, v = np.zeros_like(ru), np.zeros_like(rv)
        zu, zv = precondition(ru, rv)
        pu, pv = zu, zv
        rho = start = float(ru @ zu + rv @ zv)
        for _ in range(most):
            if not rho > tolerance**2 * start:
                break
            qu, qv = columns @ pu + border @ pv, from_columns @ pu + nodes @ pv
            curvature = float(pu @ qu + pv @ qv)
            # Sites on one spot: what was found so far is as much as the matrix is good for.
            if not curvature > 0:
                break
            alpha = rho / curvature
            u, v = u + alpha * pu, v + alpha * pv
            ru, rv = ru - alpha * qu, rv - alpha * qv
            zu, zv = precondition(ru, rv)
            previous, rho = rho, float(ru @ zu + rv @ zv)
            pu, pv = zu + (rho / previous) * pu, zv + (rho / previous) * pv
        return u.reshape(-1, 3), v

    def covariance(self) -> tuple[Array, Array]:
        """(N, 3, 3) covariance of height, y and x of each column, its neighbours unknown; and what not
        knowing the background adds.
        """
        shared = self.nodes_covariance[self.near[:, :, None], self.near[:, None, :]]
        more = np.matmul(np.matmul(self._answer, shared), self._answer.transpose(0, 2, 1))
        return self.couplings.covariance(self._own), more
