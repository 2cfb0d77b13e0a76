"""Faint lattices: where the counts cannot place each atom, the lattice that they show together does.

With ten to thirty electrons an atom a network sees columns where there are none, beside where they are, and none
where there are some; the spectrum of the whole frame shows the same lattice beyond doubt. Its nodes, bent as the sites
around them say, are then the better start, and the more probable atoms. Nothing is changed where the sites that are
certain do not follow the lattice: at boundaries, holes and other grains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Array = NDArray[np.float64]

#: Median score of the sites above which the counts are enough: dirt lowers some, few counts lower all.
ENOUGH = 0.994
#: Fewer sites show no lattice.
FEWEST = 12
#: Over this distance sites agree on how the lattice is bent and on whether it is there [host bonds].
AROUND = 4.0
#: A site belongs to a node within this, and takes its place from it beyond that [host bonds].
MINE, NEAR = 0.45, 0.30
#: Part of the nodes around that have a site, and of the certain sites that have a node, for a node to be believed.
#: By chance, it is a third.
LEAST_SUPPORT, LEAST_ORDER = 0.45, 0.60
#: Part of the sites that are usual around a node of the frame for an atom to be put there.
INSIDE = 0.50
#: The whole frame counts as much as so many sites around.
ALL = 8.0
#: Score of a site from which on it is certain, and least distance between two atoms [host bonds].
CERTAIN, APART = 0.95, 0.60


@dataclass(frozen=True)
class Completed:
    """Sites after the lattice was asked.

    Attributes
    ----------
    yx_px : (N, 2) float64
        Start positions [px].
    origin : (N,) int64
        The site each was; -1 for an atom that only the lattice shows.
    score : (N,) float64
        Probability that there is a column.
    """

    yx_px: Array
    origin: NDArray[np.int64]
    score: Array


def faint(score: Array) -> bool:
    """Whether the sites of a frame are doubtful enough, and enough, for its lattice to be asked."""
    return len(score) >= FEWEST and float(np.median(score)) <= ENOUGH


def complete(yx_px: Array, score: Array, dopant: NDArray[np.bool_], nodes_px: Array, *, bond_px: float,
             holes_px: Array) -> Completed:
    """Sites that follow the lattice where there are too few counts for more.

    Parameters
    ----------
    yx_px : (N, 2) float64
        Sites that were found [px].
    score : (N,) float64
        Their probabilities.
    dopant : (N,) bool
        Foreign atoms: they stay where they are.
    nodes_px : (M, 2) float64
        Ideal sites of the frame's lattice where sites are looked for [px].
    bond_px : float
        Host bond [px].
    holes_px : (K, 2) float64
        Where the network sees a missing atom [px].
    """
    same = Completed(yx_px, np.arange(len(yx_px)), score)
    if len(nodes_px) < FEWEST or not faint(score):
        return same
    nodes, mine = _bent(yx_px, score, nodes_px, bond_px), MINE * bond_px
    tree = cKDTree(nodes)
    around = tree.query_ball_point(nodes, AROUND * bond_px)
    reach = np.array([len(a) for a in around])
    flat, owner = np.concatenate([np.asarray(a) for a in around]), np.repeat(np.arange(len(nodes)), reach)
    distance, nearest = tree.query(yx_px)
    occupied = np.zeros(len(nodes), dtype=bool)
    occupied[nearest[distance < mine]] = True
    there = np.bincount(owner, occupied[flat], len(nodes))
    support = (there + ALL * occupied.mean()) / (reach + ALL)
    # Of the sites around that can be relied upon, how many have a node.
    weight, good = np.zeros(len(nodes)), np.zeros(len(nodes))
    np.add.at(weight, nearest, score**4)
    np.add.at(good, nearest, score**4 * (distance < NEAR * bond_px))
    overall = float(good.sum() / max(weight.sum(), 1e-9))
    order = ((np.bincount(owner, good[flat], len(nodes)) + ALL * overall)
             / (np.bincount(owner, weight[flat], len(nodes)) + ALL))
    believed = (support > LEAST_SUPPORT) & (order > LEAST_ORDER)
    if not believed.any():
        return same
    keep = dopant | ~believed[nearest] | (score > CERTAIN)
    taken = np.zeros(len(nodes), dtype=bool)
    place, new_score = yx_px.copy(), score.copy()
    # A site that is a node's: the one closest to it.
    for i in np.argsort(distance).tolist():
        k = int(nearest[i])
        if believed[k] and not taken[k] and distance[i] < mine and not dopant[i]:
            taken[k] = keep[i] = True
            share = score[i] ** 2 if distance[i] < NEAR * bond_px else 0.0
            place[i] = share * yx_px[i] + (1 - share) * nodes[k]
            new_score[i] = max(score[i], order[k])
    # Beside a hole, half of the nodes around are not there, and those next to them need not be.
    free = believed & ~taken & (there > INSIDE * occupied.mean() * reach)
    if len(holes_px):
        free &= cKDTree(holes_px).query(nodes)[0] > MINE * bond_px
    if keep.any():
        free &= cKDTree(place[keep]).query(nodes)[0] > APART * bond_px
    origin = np.r_[np.flatnonzero(keep), np.full(int(free.sum()), -1)]
    return Completed(np.concatenate([place[keep], nodes[free]]), origin,
                     np.r_[new_score[keep], 0.5 * (order + support)[free]])


def _bent(yx_px: Array, score: Array, nodes_px: Array, bond_px: float) -> Array:
    """The nodes moved along with the sites around them."""
    nodes = nodes_px
    for _ in range(3):
        distance, nearest = cKDTree(nodes).query(yx_px)
        use = np.flatnonzero(distance < MINE * bond_px)
        if len(use) < 6:
            break
        shift = yx_px[use] - nodes_px[nearest[use]]
        gap, index = cKDTree(yx_px[use]).query(nodes, k=min(24, len(use)))
        weight = np.exp(-0.5 * (gap / (0.6 * AROUND * bond_px)) ** 2) * score[use][index] ** 2
        mean = _mean(shift[index], weight)
        # Sites that are some other noise pull by half a bond at most; once more without the farthest.
        off = np.hypot(*(shift[index] - mean[:, None]).transpose(2, 0, 1))
        nodes = nodes_px + _mean(shift[index], weight * (off < NEAR * bond_px))
    return nodes


def _mean(shift: Array, weight: Array) -> Array:
    """(M, 2) weighted means of (M, K, 2) shifts."""
    return np.asarray((weight[:, :, None] * shift).sum(1) / np.maximum(weight.sum(1, keepdims=True), 1e-12))
