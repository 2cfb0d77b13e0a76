"""Which pairs of atoms are bonded: candidates from a neighbour search, decided in the order of chemistry."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from .materials import Material, bond_length_pm
from .sites import Sites

Point = tuple[float, float]

#: Longest bonds between two dopants over the sum of covalent radii: Si-Si is 225 pm in the trimer rotor
#: (ratio 1.01), up to 250 pm in dimers, and 275-285 pm between the no longer bonded corners around a fourth
#: atom (1.25).
DOPANT_PAIR_LIMIT = 1.18
#: The same for dopant and host: Si-C is 150-200 pm when bonded (up to 1.07); the carbon that a silicon next
#: to a vacancy leaves alone is 240-260 pm away (1.3).
DOPANT_HOST_LIMIT = 1.17
#: Host atoms that lack a bond may close a ring over this distance [host bonds]: the pentagons of a relaxed
#: divacancy have one bond of 175-185 pm, measured with 10-20 pm of noise; the gap left by a missing atom is
#: 246 pm. (Closing that one by mistake changes no name: the rim of the hole stays the same.)
RECONSTRUCTION_LIMIT = 1.52
#: Smallest angle between two bonds [deg]: sp2 carbon shows 108-130; a triangle of dopants 60.
SMALLEST_ANGLE_HOST_DEG = 68.0
SMALLEST_ANGLE_DOPANT_DEG = 42.0


def mx2_pairs(yx: NDArray[np.float64], host: float) -> NDArray[np.int64]:
    """Bonds of a dichalcogenide: nearest neighbours on the projected honeycomb, whatever the species.

    Columns of both sublattices are a/sqrt(3) apart and those of the same one a; what stands on a site is told
    later, by intensity.
    """
    pairs = _candidates(yx, 1.32 * host)
    keep, _ = _resolve(yx, pairs, np.full(len(yx), 3), np.full(len(yx), SMALLEST_ANGLE_HOST_DEG),
                       _lengths(yx, pairs) / host)
    return pairs[keep]


def _candidates(yx: NDArray[np.float64], reach: float) -> NDArray[np.int64]:
    if len(yx) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    return cKDTree(yx).query_pairs(reach, output_type="ndarray").astype(np.int64).reshape(-1, 2)


def _lengths(yx: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.hypot(*(yx[pairs[:, 0]] - yx[pairs[:, 1]]).T)


def _resolve(
    yx: NDArray[np.float64],
    pairs: NDArray[np.int64],
    most: NDArray[np.int64],
    smallest_deg: NDArray[np.float64],
    strain: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], bool]:
    """Which candidate bonds stay: none beyond an atom's number, none too near in angle to a better one.

    `strain` is the length over the natural length: of two bonds in conflict the more strained one goes, and
    of two alike the one whose other end has bonds to spare. Only atoms in conflict are looked at one by one.
    """
    keep = np.ones(len(pairs), dtype=bool)
    if len(pairs) == 0:
        return keep, False
    n = len(yx)
    start = np.concatenate([pairs[:, 0], pairs[:, 1]])
    end = np.concatenate([pairs[:, 1], pairs[:, 0]])
    bond = np.tile(np.arange(len(pairs)), 2)
    step = yx[end] - yx[start]
    angle = np.arctan2(step[:, 0], step[:, 1])
    order = np.lexsort((angle, start))
    s, t, bond = start[order], angle[order], bond[order]
    degree = np.bincount(s, minlength=n)
    begin = np.concatenate([[0], np.cumsum(degree)[:-1]])
    place = np.arange(len(s)) - begin[s]
    follower = begin[s] + (place + 1) % degree[s]
    gap = np.mod(t[follower] - t, 2 * np.pi)
    gap[degree[s] == 1] = 2 * np.pi
    tight = np.minimum(gap, 2 * np.pi - gap) < np.radians(smallest_deg)[s]
    conflict = np.flatnonzero((degree > most) | (np.bincount(s, weights=tight, minlength=n) > 0))
    # The most crowded atoms first: an atom put where none is (in the middle of a ring) has more candidates
    # than any of its neighbours, and loses all of its bonds rather than make them lose theirs.
    spare = degree - most
    for i in conflict[np.argsort(-spare[conflict], kind="stable")].tolist():
        mine = [(int(bond[k]), float(t[k])) for k in range(begin[i], begin[i] + degree[i]) if keep[bond[k]]]
        if spare[i] >= 2 and len(mine) >= most[i] + 2:
            for b, _ in mine:
                keep[b] = False
            spare[pairs[[b for b, _ in mine]].ravel()] -= 1
            continue
        cost = {b: strain[b] + 0.05 * max(0, spare[pairs[b, 0]], spare[pairs[b, 1]]) for b, _ in mine}
        accepted: list[tuple[int, float]] = []
        for b, direction in sorted(mine, key=lambda m: cost[m[0]]):
            turned = [abs((direction - other + np.pi) % (2 * np.pi) - np.pi) for _, other in accepted]
            if len(accepted) < most[i] and all(v >= np.radians(smallest_deg[i]) for v in turned):
                accepted.append((b, direction))
            else:
                keep[b] = False
                spare[pairs[b]] -= 1
    return keep, len(conflict) > 0


class Bonding:
    """Bonds of graphene with dopants, in the order in which chemistry decides them."""

    def __init__(self, yx: NDArray[np.float64], sites: Sites, foreign: NDArray[np.bool_], material: Material,
                 host: float) -> None:
        self.yx, self.foreign, self.host = yx, foreign, host
        self.tree = cKDTree(yx)
        self.points: list[Point] = [(y, x) for y, x in yx.tolist()]
        self.smallest_cosine = (math.cos(math.radians(SMALLEST_ANGLE_DOPANT_DEG)), math.cos(math.radians(55.0)))
        self.species = sites.species
        self.material = material
        self.scale = host / material.bond_nm
        self.most = np.full(len(yx), 3)
        for symbol in np.unique(sites.species).tolist():
            self.most[sites.species == symbol] = material.most_bonds(symbol)

    def pairs(self) -> NDArray[np.int64]:
        """All bonds (B, 2), a < b."""
        yx = self.yx
        near = _candidates(yx, 1.25 * self.host)
        # Atoms of the second row and beyond are larger than carbon and get their own rules; nitrogen and
        # boron sit where a carbon atom would.
        heavy = np.array([self.foreign[i] and bond_length_pm(str(self.species[i]), "C") > 165.0
                          for i in range(len(yx))], dtype=bool) if self.foreign.any() else self.foreign
        lattice = near[~(heavy[near[:, 0]] | heavy[near[:, 1]])]
        keep, _ = _resolve(yx, lattice, self.most, np.full(len(yx), SMALLEST_ANGLE_HOST_DEG),
                           _lengths(yx, lattice) / self.host)
        lattice = lattice[keep]
        degree = np.bincount(lattice.ravel(), minlength=len(yx))
        dopant = self._dopant_bonds(np.flatnonzero(heavy), lattice, degree) if heavy.any() else lattice[:0]
        bonds = np.concatenate([lattice, dopant])
        bonds = np.concatenate([bonds, self._closing_bonds(bonds, heavy)])
        return np.sort(bonds, axis=1)

    def limit_nm(self, a: int, b: int) -> float:
        """Longest bond between two atoms of which at least one is a dopant [nm]."""
        one, two = str(self.species[a]), str(self.species[b])
        factor = DOPANT_PAIR_LIMIT if self.foreign[a] and self.foreign[b] else DOPANT_HOST_LIMIT
        return 1e-3 * factor * self.scale * bond_length_pm(one, two)

    def _dopant_bonds(self, dopants: NDArray[np.int64], lattice: NDArray[np.int64],
                      degree: NDArray[np.int64]) -> NDArray[np.int64]:
        """Dopant bonds, least strained first, as far as valence, angle and the flat sheet allow."""
        yx = self.yx
        tree = self.tree
        heavy = set(dopants.tolist())
        around: dict[int, list[int]] = {}
        for a, b in lattice[np.isin(lattice, self._reach(tree, dopants)).any(axis=1)].tolist():
            around.setdefault(a, []).append(b)
            around.setdefault(b, []).append(a)
        count = degree.copy()
        queue = []
        for i in dopants.tolist():
            for j in tree.query_ball_point(yx[i], 0.30 * self.scale):
                if j == i or (j in heavy and j < i):
                    continue
                d = float(np.hypot(*(yx[i] - yx[j])))
                if d < self.limit_nm(i, j):
                    natural = 1e-3 * self.scale * bond_length_pm(str(self.species[i]), str(self.species[j]))
                    queue.append((d / natural, i, j))
        accepted: list[tuple[int, int]] = []
        for strain, i, j in sorted(queue):
            if count[i] >= self.most[i] or count[j] >= self.most[j]:
                continue
            if j in heavy and self._bridged(i, j, around, strain):
                continue
            if self._too_near(i, j, around) or self._too_near(j, i, around) or self._crosses(i, j, around):
                continue
            accepted.append((min(i, j), max(i, j)))
            around.setdefault(i, []).append(j)
            around.setdefault(j, []).append(i)
            count[i] += 1
            count[j] += 1
        return np.array(accepted, dtype=np.int64).reshape(-1, 2)

    def _reach(self, tree: cKDTree, dopants: NDArray[np.int64]) -> NDArray[np.int64]:
        lists = tree.query_ball_point(self.yx[dopants], 0.45 * self.scale)
        return np.unique(np.concatenate([np.asarray(v, dtype=np.int64) for v in lists]))

    def _bridged(self, i: int, j: int, around: Mapping[int, list[int]], strain: float) -> bool:
        """Two dopants on a common dopant that is much nearer to both: the middle one holds them together."""
        common = [k for k in around.get(i, []) if k in around.get(j, []) and self.foreign[k]]
        d = np.hypot(*(self.yx[i] - self.yx[j]))
        return any(d > 1.28 * max(np.hypot(*(self.yx[i] - self.yx[k])), np.hypot(*(self.yx[j] - self.yx[k])))
                   for k in common) and strain > 1.05

    def _too_near(self, at: int, other: int, around: Mapping[int, list[int]]) -> bool:
        """Whether a bond at -> other makes too small an angle with one that is there."""
        limit = self.smallest_cosine[0] if self.foreign[at] else self.smallest_cosine[1]
        y, x = self.points[at]
        uy, ux = self.points[other][0] - y, self.points[other][1] - x
        for k in around.get(at, []):
            if k == other:
                return True
            vy, vx = self.points[k][0] - y, self.points[k][1] - x
            if uy * vy + ux * vx > limit * math.hypot(uy, ux) * math.hypot(vy, vx):
                return True
        return False

    def _crosses(self, i: int, j: int, around: Mapping[int, list[int]]) -> bool:
        """Whether the segment i-j crosses a bond that is there, or runs through another atom."""
        p, q = self.points[i], self.points[j]
        dy, dx = q[0] - p[0], q[1] - p[1]
        length = math.hypot(dy, dx)
        for k in self.tree.query_ball_point(p, 0.45 * self.scale):
            others = around.get(k)
            if others is None or k in (i, j):
                continue
            r = self.points[k]
            along = ((r[0] - p[0]) * dy + (r[1] - p[1]) * dx) / length
            beside = abs(dx * (r[0] - p[0]) - dy * (r[1] - p[1])) / length
            if 0.25 * length < along < 0.75 * length and beside < 0.035 * self.scale:
                return True
            for m in others:
                if m > k and m not in (i, j) and _segments_cross(p, q, r, self.points[m]):
                    return True
        return False

    def _closing_bonds(self, bonds: NDArray[np.int64], heavy: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Long bonds between host atoms that lack some: closed pentagons of vacancies, bonds lost to noise."""
        degree = np.bincount(bonds.ravel(), minlength=len(self.yx))
        # An atom without any bond is a stray one: it gets none here either.
        lacking = np.flatnonzero((degree > 0) & (degree < 3) & ~heavy)
        if len(lacking) < 2:
            return bonds[:0]
        pairs = lacking[_candidates(self.yx[lacking], RECONSTRUCTION_LIMIT * self.host)]
        if len(pairs) == 0:
            return bonds[:0]
        around: dict[int, list[int]] = {}
        near = np.zeros(len(self.yx), dtype=bool)
        near[pairs.ravel()] = True
        # Two bonds outward, to see what a new one might cross.
        for _ in range(2):
            near[bonds[near[bonds].any(axis=1)].ravel()] = True
        for a, b in bonds[near[bonds].any(axis=1)].tolist():
            around.setdefault(a, []).append(b)
            around.setdefault(b, []).append(a)
        accepted = []
        for k in np.argsort(_lengths(self.yx, pairs), kind="stable").tolist():
            i, j = (int(v) for v in pairs[k])
            if (
                max(degree[i], degree[j]) > 2
                or j in around.get(i, [])
                or self._too_near(i, j, around)
                or self._too_near(j, i, around)
                or self._crosses(i, j, around)
            ):
                continue
            degree[[i, j]] += 1
            around.setdefault(i, []).append(j)
            around.setdefault(j, []).append(i)
            accepted.append((i, j))
        return np.array(accepted, dtype=np.int64).reshape(-1, 2)


def _segments_cross(p: Point, q: Point, r: Point, s: Point) -> bool:
    """Whether the open segments p-q and r-s intersect."""

    def side(a: Point, b: Point, c: Point) -> float:
        return (b[1] - a[1]) * (c[0] - a[0]) - (b[0] - a[0]) * (c[1] - a[1])

    return side(p, q, r) * side(p, q, s) < 0 and side(r, s, p) * side(r, s, q) < 0


#: Spread of bond lengths and of second-neighbour distances in real sheets [host bonds]: strain, ripples and
#: defects.
_BOND_SPREAD, _SECOND_SPREAD = 0.05, 0.12


def regularised(
    yx: NDArray[np.float64],
    sigma: NDArray[np.float64],
    pairs: NDArray[np.int64],
    foreign: NDArray[np.bool_],
    host: float,
) -> NDArray[np.float64]:
    """Most probable positions given the measured ones and what host bonds are like.

    Bonds pull towards the host's length and second neighbours towards their distance at 120 degrees, each as
    strongly as real sheets keep to them; measurements pull as strongly as they are certain. Linearised twice,
    solved by conjugate gradients. For deciding on bonds only: reported lengths are the measured ones.

    Parameters
    ----------
    yx : (N, 2) float64
        Measured positions.
    sigma : (N,) float64
        Their standard deviation, in the same unit.
    pairs : (B, 2) int64
        Tentative bonds.
    foreign : (N,) bool
        Atoms about whose bonds nothing is known.
    host : float
        Bond length of the host, in the same unit.
    """
    bonds = pairs[~foreign[pairs].any(axis=1)]
    if len(bonds) == 0:
        return yx
    n = len(yx)
    start, end = np.concatenate([bonds, bonds[:, ::-1]]).T
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    degree = np.bincount(start, minlength=n)
    first = np.concatenate([[0], np.cumsum(degree)[:-1]])
    second = [np.stack([end[first[degree > k] + j], end[first[degree > k] + k]], axis=1)
              for k in (1, 2) for j in range(k)]
    links = np.concatenate([bonds, *second])
    natural = np.where(np.arange(len(links)) < len(bonds), host, np.sqrt(3.0) * host)
    spread = np.where(np.arange(len(links)) < len(bonds), _BOND_SPREAD, _SECOND_SPREAD) * host
    a, b = links.T
    trust = 1.0 / np.maximum(sigma, 0.02 * host) ** 2
    ends = np.stack([2 * b, 2 * b + 1, 2 * a, 2 * a + 1], axis=1).ravel()

    now = yx
    for _ in range(2):
        step = now[b] - now[a]
        length = np.hypot(step[:, 0], step[:, 1])
        unit = step / length[:, None]
        excess = length - natural
        # What departs by many spreads is something else than a host bond (Cauchy weight).
        weight = 1.0 / spread**2 / (1.0 + (excess / (4.0 * spread)) ** 2)
        # How much moves (y0, x0, y1, x1, ...) stretch each link.
        stretch = csr_array((np.hstack([unit, -unit]).ravel(), ends, np.arange(0, 4 * len(links) + 1, 4)),
                            shape=(len(links), 2 * n))
        pull = stretch.T.tocsr()
        x = np.zeros(2 * n)
        residual = (trust[:, None] * (yx - now)).ravel() - pull @ (weight * excess)
        diagonal = np.repeat(trust + 0.5 * (np.bincount(a, weight, n) + np.bincount(b, weight, n)), 2)
        firmness = np.repeat(trust, 2)
        z = residual / diagonal
        direction, product = z, float(residual @ z)
        for _ in range(12):
            image = firmness * direction + pull @ (weight * (stretch @ direction))
            alpha = product / max(float(direction @ image), 1e-30)
            x, residual = x + alpha * direction, residual - alpha * image
            z = residual / diagonal
            new = float(residual @ z)
            if new < 1e-4 * product and new < 1e-8 * n:
                break
            direction, product = z + (new / product) * direction, new
        now = now + x.reshape(-1, 2)
    return now
