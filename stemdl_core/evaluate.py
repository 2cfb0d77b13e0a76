"""Measures against truth: how many sites are found, how many are false, how far they are off.

Used for choosing a model's thresholds after training, and for the tables of ``stemdl bench``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree


def match(found_px: NDArray[np.float64], true_px: NDArray[np.float64], *, within_px: float) -> NDArray[np.int64]:
    """One-to-one assignment of found to true positions with the least total distance.

    Parameters
    ----------
    found_px, true_px : (N, 2), (M, 2) float64
        Positions [px].
    within_px : float
        Farthest distance of a match [px].

    Returns
    -------
    (K, 2) int64
        Pairs (index of found, index of true).
    """
    if len(found_px) == 0 or len(true_px) == 0:
        return np.empty((0, 2), dtype=np.int64)
    sparse = cKDTree(found_px).sparse_distance_matrix(cKDTree(true_px), within_px, output_type="coo_matrix")
    if sparse.nnz == 0:
        return np.empty((0, 2), dtype=np.int64)
    n, m = len(found_px), len(true_px)
    links = coo_matrix((np.ones(sparse.nnz), (sparse.row, sparse.col + n)), shape=(n + m, n + m))
    label = connected_components(links, directed=False)[1]
    pairs: list[tuple[int, int]] = []
    # Matches decompose into small groups of mutually reachable positions: each is solved exactly.
    order = np.argsort(label[sparse.row], kind="stable")
    rows, columns, distance = sparse.row[order], sparse.col[order], sparse.data[order]
    starts = np.flatnonzero(np.diff(label[rows], prepend=-1))
    for begin, end in zip(starts, [*starts[1:], len(rows)]):
        if end - begin == 1:
            pairs.append((int(rows[begin]), int(columns[begin])))
            continue
        fs, row = np.unique(rows[begin:end], return_inverse=True)
        ts, column = np.unique(columns[begin:end], return_inverse=True)
        cost = np.full((len(fs), len(ts)), 1e3 * within_px)
        cost[row, column] = distance[begin:end]
        for a, b in zip(*linear_sum_assignment(cost)):
            if cost[a, b] <= within_px:
                pairs.append((int(fs[a]), int(ts[b])))
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class SiteCounts:
    """True positives, false positives and false negatives; counts of several frames can be added."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    def __add__(self, other: SiteCounts) -> SiteCounts:
        return SiteCounts(self.hits + other.hits, self.false + other.false, self.missed + other.missed)

    @property
    def precision(self) -> float:
        """Part of the found that is true; 1 where nothing was found."""
        return self.hits / (self.hits + self.false) if self.hits + self.false else 1.0

    @property
    def recall(self) -> float:
        """Part of the true that was found; 1 where there was nothing to find."""
        return self.hits / (self.hits + self.missed) if self.hits + self.missed else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = 2 * self.hits + self.false + self.missed
        return 2 * self.hits / total if total else 1.0


@dataclass(frozen=True)
class SiteMatch:
    """Comparison of the sites of one frame with the truth.

    Attributes
    ----------
    counts : SiteCounts
        Sites in regions whose truth is undefined, and sites within half a bond of the border, count neither way.
    pairs : (K, 2) int64
        Matches (found, true) that count.
    false : (F,) int64
        Found sites that are false.
    missed : (M,) int64
        True sites that were missed.
    """

    counts: SiteCounts
    pairs: NDArray[np.int64]
    false: NDArray[np.int64]
    missed: NDArray[np.int64]


def compare_sites(found_px: NDArray[np.float64], true_px: NDArray[np.float64], *, counted: NDArray[np.bool_],
                  undefined: NDArray[np.bool_], within_px: float, border_px: float) -> SiteMatch:
    """Match found sites with the truth of a simulated frame.

    Parameters
    ----------
    found_px, true_px : (N, 2), (M, 2) float64
        Positions [px].
    counted : (M,) bool
        True sites that have to be found (not hidden).
    undefined : (H, W) bool
        Image region in which a site is neither right nor wrong.
    within_px, border_px : float
        Tolerance of a match, and width of the frame's border that does not count [px].
    """
    pairs = match(found_px, true_px, within_px=within_px)
    limit = np.asarray(undefined.shape) - 1 - border_px

    def inner(p: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.all((p >= border_px) & (p <= limit), axis=1)

    cell = np.clip(np.round(found_px).astype(int), 0, np.asarray(undefined.shape) - 1)
    judged = inner(found_px) & ~undefined[cell[:, 0], cell[:, 1]] if len(found_px) else np.zeros(0, bool)
    needed = counted & inner(true_px) if len(true_px) else np.zeros(0, bool)
    matched_found, matched_true = np.zeros(len(found_px), bool), np.zeros(len(true_px), bool)
    matched_found[pairs[:, 0]], matched_true[pairs[:, 1]] = True, True
    false = np.flatnonzero(judged & ~matched_found)
    missed = np.flatnonzero(needed & ~matched_true)
    good = pairs[needed[pairs[:, 1]]]
    return SiteMatch(SiteCounts(len(good), len(false), len(missed)), good, false, missed)


def rand_index(one: Sequence[object], other: Sequence[object]) -> float:
    """Adjusted Rand index of two partitions: 1 where they are the same, about 0 where one says nothing of the other.

    Parameters
    ----------
    one, other : sequence of labels
        The class of every element in either partition.

    References
    ----------
    Hubert & Arabie, J. Classification 2, 193 (1985).
    """
    a, b = np.unique(np.asarray(one), return_inverse=True)[1], np.unique(np.asarray(other), return_inverse=True)[1]
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    pairs = [0.5 * float((n * (n - 1)).sum()) for n in (table, table.sum(1), table.sum(0))]
    expected = pairs[1] * pairs[2] / (0.5 * len(a) * (len(a) - 1))
    return (pairs[0] - expected) / (0.5 * (pairs[1] + pairs[2]) - expected)
