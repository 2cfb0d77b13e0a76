"""The arrangements that a sheet of carbon can have at one place, and the most probable of them.

What was found, the perfect lattice, atoms taken away or put in, bonds turned and twins merged are fitted to the counts;
the prior is that of perfect lattice, and what the network has seen counts a little.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from .arrangement import Arrangement, Array, Counts, Fitted, Patch, Place
from .graph import AtomGraph
from .local_lattice import continued_lattice
from .moves import PROMISING, Moves
from .planar import find_faces

#: Log-odds against an odd arrangement; reached when some twelve atoms have rings other than hexagons around them. A
#: frame has a thousand atoms, of which noise makes one or two fainter by three and a half standard deviations: that
#: alone is no vacancy.
ODD, ODD_ATOMS = 12.0, 12.0
#: An arrangement that fewer log-odds are against is that of perfect lattice.
EVEN = 3.0
#: Log-odds against every bond too many, and in favour of what the network has seen.
CROWDED, SEEN = 4.0, 1.0
#: Log-odds against each change within so many host bonds of a dopant.
BESIDE, BESIDE_REACH = 2.0, 2.0
#: Rings so near to a dopant are its own: a hole beside it makes one defect, not two [host bonds].
DOPANTS_OWN = 2.3
#: By how much a changed arrangement has to be more probable than the found one.
DECISIVE = 1.5
#: Gauss-Newton steps by which options are compared, and of an arrangement that is kept.
FIRST_STEPS, ALL_STEPS = 2, 4
#: Log-odds against the perfect lattice beyond which changes to it are of no interest when what was found fits.
HOPELESS = 25.0
#: Residual variance over the expected one up to which an arrangement explains the counts of its surroundings.
GOOD_MISFIT = 1.25
#: Residual variance that a frame's fit leaves at least, over the expected one: smoothed noise, and its margin of error.
LEAST_MISFIT = 0.05
#: Log-odds against anything odd where part of the surroundings is hidden, and how much of them has to be hidden:
#: what hides the lattice goes on, thinner, beyond the place where it is noticed.
RIM, HIDDEN_SHARE = 6.0, 0.02
#: An atom that is found so far from where it was [host bonds] is refined again from there.
MOVED = 0.22
#: What comes out fainter than this part of a host column although its height is known well is no atom; log-odds
#: against each.
FAINTEST, UNSEEN = 0.5, 20.0
#: Nothing is changed where a host column stands out of the noise by less (square of its standard deviations).
FEWEST_POWER = 12.0
#: Margin added to the part that is rearranged in which atoms may follow [nm].
MARGIN_NM = 0.14
#: Most changes in a row at one place.
MOST_CHANGES = 4


def as_found(graph: AtomGraph, heights: Array) -> Arrangement:
    """All atoms of a graph, of the given heights (N,) [image units]; none of them free."""
    n = len(graph.sites)
    return Arrangement(graph.yx_nm, heights, graph.foreign, np.arange(n), np.zeros(n, dtype=bool))


class Search:
    """Arrangements at one place.

    Parameters
    ----------
    counts : Counts
    graph : AtomGraph
        What was found.
    sheet : Arrangement
        All atoms as they are thought to be now; none of them free.
    place : Place
    most_fits : int
        Arrangements fitted at most.

    Attributes
    ----------
    belief : float
        Probability that the place is not perfect lattice; NaN where that was not weighed.
    rearranged, mended : bool
        Whether something else than what was found explains the counts best; and whether it is perfect lattice, which
        what was found was not.
    empty : list of (2,) float64
        Lattice sites [nm] on which the counts show that no atom is.
    tried : dict of int to float
        Log-probability of the best arrangement of each number of atoms that was looked at.
    """

    def __init__(self, counts: Counts, graph: AtomGraph, sheet: Arrangement, place: Place, most_fits: int) -> None:
        self.graph, self.place = graph, place
        self.fits, self.most_fits = 0, most_fits
        self.belief, self.mended, self.rearranged = math.nan, False, False
        self.host = graph.scale * graph.material.bond_nm
        self.certainty = 0.5
        self.empty: list[Array] = []
        self.tried: dict[int, float] = {}
        reach = place.radius + MARGIN_NM
        self.patch = Patch(counts, place.center, reach + 2.2 * counts.sigma_nm)
        hidden = float((self.patch.share < 0.99).mean()) if len(self.patch) else 1.0
        self.rim = RIM if hidden > HIDDEN_SHARE else 0.0
        self.sheet = sheet
        away = np.hypot(*(sheet.yx_nm - place.center).T)
        self._near = np.flatnonzero(away < reach + 4.5 * counts.sigma_nm + 0.25)
        self.start = sheet.part(self._near, free=away[self._near] < reach)
        known = self.start.origin >= 0
        usual = known & ~self.start.dopant & (away[self._near] < 1.0)
        usual[known] &= graph.degree[self.start.origin[known]] == 3
        typical = self.start.height[usual]
        self.unit = float(np.median(typical if len(typical) >= 6 else sheet.height[~sheet.dopant]))
        self._moves = Moves(graph, self.patch, place, host_nm=self.host, unit=self.unit, oddness=self._oddness)

    def best(self) -> Fitted | None:
        """The most probable arrangement, None where it is the found one."""
        if len(self.patch) < 30 or self.unit <= 0 or float(self.patch.share.mean()) < 0.8:
            return None
        now = self._fit(self.start)
        lattice = continued_lattice(self.graph, self.place.center, radius_nm=self.place.radius,
                                    margin_nm=MARGIN_NM + 0.02)
        perfect = None if lattice is None else self._perfect(lattice)
        flat = None if perfect is None else self._fit(perfect)
        first = self._probability(now) + SEEN
        if float(((self.unit * self.patch.profile(self.place.center) * now.root) ** 2).sum()) < FEWEST_POWER:
            # Too faint to change anything, not too faint to doubt it.
            if flat is not None:
                self._probability(flat)
                self._believe(now, flat)
            return None
        best, top = self._climb(now, lattice)
        if flat is not None:
            its = self._probability(flat)
            if its > top - HOPELESS or self._misfit(best) > GOOD_MISFIT:
                other, reached = self._climb(flat, lattice)
                if reached > top:
                    best, top = other, reached
        if self._oddness(best.atoms) > EVEN:
            # What would be reported may be a turned bond of which one atom was overlooked: far from what was found, one
            # turn from flat, and too large a change for what it gains to be foreseen.
            for base in (now, flat):
                for turned in [] if base is None else self._moves.likeliest_turn(base):
                    fitted = self._fit(turned)
                    if self._probability(fitted) > top - HOPELESS:
                        other, reached = self._climb(fitted, lattice)
                        if reached > top:
                            best, top = other, reached
        self._note_holes(best, lattice)
        if best is now or self._advantage(best, now) < SEEN + DECISIVE:
            if flat is not None:
                self._believe(now, flat)
            # The same atoms, but not where they were found: a turned bond drawn as if it were not.
            return now if self.replaced(now).any() else None
        self.rearranged = True
        self.mended = self._oddness(best.atoms) < EVEN < self._oddness(now.atoms)
        if not self.mended:
            self._believe(best, now if flat is None else flat)
        self.certainty = 1.0 / (1.0 + math.exp(-min(top - first, 30.0)))
        return best

    def _misfit(self, fitted: Fitted) -> float:
        """Residual variance over the expected one."""
        return float((fitted.residual.astype(np.float64) ** 2).mean())

    def _advantage(self, one: Fitted, other: Fitted) -> float:
        """Log-odds of one arrangement over another; weaker where even the better one leaves more than usual."""
        usual = float(np.clip(self.patch.counts.imaging.misfit, LEAST_MISFIT, 1.0))
        doubt = max(1.0, min(self._misfit(one), self._misfit(other)) / usual)
        return (one.score - other.score) / doubt - self._oddness(one.atoms) + self._oddness(other.atoms)

    def _believe(self, best: Fitted, flat: Fitted) -> None:
        """Posterior probability that the place is not what `flat` says."""
        odds = float(np.clip(self._advantage(best, flat), -30.0, 30.0))
        self.belief = 1.0 / (1.0 + math.exp(-odds))

    def replaced(self, fitted: Fitted) -> NDArray[np.bool_]:
        """(N,) atoms that were put there, or that belong elsewhere than where they were found."""
        atoms = fitted.atoms
        known = atoms.origin >= 0
        gone = np.hypot(*(atoms.yx_nm - self.graph.yx_nm[atoms.origin]).T) > MOVED * self.host
        return ~known | (gone & atoms.free & ~atoms.dopant)

    def applied(self, found: Fitted) -> Arrangement:
        """The sheet with the found arrangement in it; atoms that were put there have no number."""
        atoms, new = found.atoms, self.replaced(found)
        rest = np.setdiff1d(np.arange(len(self.sheet.yx_nm)), self._near[self.start.free])
        old, own = self.sheet.part(rest), atoms.part(np.flatnonzero(atoms.free))
        origin = np.where(new[atoms.free], -1, own.origin)
        return Arrangement(*(np.concatenate([getattr(old, name), value]) for name, value in
                             (("yx_nm", own.yx_nm), ("height", own.height), ("dopant", own.dopant), ("origin", origin),
                              ("free", np.zeros(len(origin), dtype=bool)))))

    def around(self, found: Fitted) -> Place | None:
        """The place of all that is odd now, where this one is too small for it; else None."""
        yx = found.atoms.yx_nm[self._lacking(found.atoms)[0] > 0]
        if not len(yx):
            return None
        if np.hypot(*(yx - self.place.center).T).max() < self.place.radius:
            return None
        middle = yx.mean(axis=0)
        return Place(middle, max(self.place.radius, float(np.hypot(*(yx - middle).T).max())))

    def _fit(self, atoms: Arrangement, iterations: int = ALL_STEPS) -> Fitted:
        self.fits += 1
        return self.patch.fit(atoms, unit=self.unit, host_nm=self.host, iterations=iterations)

    def _probability(self, fitted: Fitted) -> float:
        value, count = fitted.score - self._oddness(fitted.atoms), len(fitted.atoms.yx_nm)
        self.tried[count] = max(value, self.tried.get(count, -math.inf))
        return value

    def rival(self, chosen: Fitted | None) -> tuple[float, int]:
        """By how much [log-odds] the chosen arrangement (the found one if None) is more probable than the best one of
        another number of atoms, and how many atoms more that has; (inf, 0) without any.
        """
        count = len((self.start if chosen is None else chosen.atoms).yx_nm)
        others = [(value, number) for number, value in self.tried.items() if number != count]
        if count not in self.tried or not others:
            return math.inf, 0
        value, number = max(others)
        return self.tried[count] - value, number - count

    def _oddness(self, atoms: Arrangement) -> float:
        """Log-odds against the bonds of an arrangement before the counts are looked at."""
        lacking, pairs, inner = self._lacking(atoms)
        if len(pairs) == 0:
            return ODD
        light = ~atoms.dopant[pairs].any(axis=1)
        degree = np.bincount(pairs[light].ravel(), minlength=len(inner))
        crowded = float(np.maximum(degree - 3, 0)[inner & ~atoms.dopant].sum())
        lonely = float((degree[inner & ~atoms.dopant] < 2).sum())
        # Two defects are as rare as one times one.
        linked = pairs[(lacking > 0)[pairs].all(axis=1)]
        links = coo_array((np.ones(len(linked)), linked.T), shape=(len(inner), len(inner)))
        _, part = connected_components(links, directed=False)
        odd = np.bincount(part, weights=lacking)
        rare = (ODD + self.rim) * float((1.0 - np.exp(-odd / ODD_ATOMS)).sum())
        unseen = float(np.sum(atoms.height[atoms.free & ~atoms.dopant] < FAINTEST * self.unit))
        return rare + CROWDED * crowded + 2.0 * lonely + UNSEEN * unseen + self._beside(atoms)

    def _lacking(self, atoms: Arrangement) -> tuple[Array, NDArray[np.intp], NDArray[np.bool_]]:
        """(N,) hexagons that each atom of this place lacks, (M, 2) bonds, and (N,) which atoms are of this place."""
        yx = atoms.yx_nm
        pairs = cKDTree(yx).query_pairs(1.32 * self.host, output_type="ndarray")
        inner = np.hypot(*(yx - self.place.center).T) < self.place.radius + MARGIN_NM
        if len(pairs) == 0:
            return np.zeros(len(yx)), pairs, inner
        near_dopant = np.zeros(len(yx), dtype=bool)
        if atoms.dopant.any():
            near_dopant = cKDTree(yx[atoms.dopant]).query(yx)[0] < DOPANTS_OWN * self.host
        faces = find_faces(yx, pairs[:, 0], pairs[:, 1])
        dopants_own = np.bincount(faces.face, weights=atoms.dopant[faces.start], minlength=len(faces.size)) > 0
        hexagons = np.bincount(faces.start, weights=(((faces.size == 6) | dopants_own) & (faces.area > 0))[faces.face],
                               minlength=len(yx))
        return np.where(inner & ~near_dopant, (3.0 - hexagons).clip(0), 0.0), pairs, inner

    def _beside(self, atoms: Arrangement) -> float:
        """Log-odds against changes beside a dopant, whose light covers what stands there."""
        if not atoms.dopant.any():
            return 0.0
        bright = cKDTree(self.start.yx_nm[self.start.dopant])
        gone = self.start.yx_nm[~np.isin(self.start.origin, atoms.origin)]
        changed = np.concatenate([gone, atoms.yx_nm[atoms.origin < 0]])
        return BESIDE * float((bright.query(changed)[0] < BESIDE_REACH * self.host).sum()) if len(changed) else 0.0

    def _climb(self, now: Fitted, lattice: Array | None) -> tuple[Fitted, float]:
        """Take the best single change until none improves."""
        value = self._probability(now) + (SEEN if now.atoms.origin[now.atoms.free].min(initial=0) >= 0
                                          and len(now.atoms.yx_nm) == len(self.start.yx_nm) else 0.0)
        for _ in range(MOST_CHANGES):
            moves = self._moves.likeliest(now, lattice)
            steps = ALL_STEPS if len(moves) == 1 else FIRST_STEPS
            options = []
            for _, arrangement in moves:
                if self.fits >= self.most_fits:
                    break
                fitted = self._fit(arrangement, steps)
                options.append((self._probability(fitted), fitted))
            if not options:
                break
            chance, fitted = max(options, key=lambda o: o[0])
            if steps < ALL_STEPS and chance > value + PROMISING:
                fitted = self._fit(fitted.atoms, ALL_STEPS - steps)
                chance = self._probability(fitted)
            if chance <= value + 0.1:
                break
            now, value = fitted, chance
        return now, value

    # --- the perfect lattice

    def _perfect(self, lattice: Array) -> Arrangement | None:
        """The part replaced by perfect lattice; None where foreign atoms are."""
        inside = np.hypot(*(self.start.yx_nm - self.place.center).T) < self.place.radius + 0.02
        if self.start.dopant[inside].any() or (self.start.dopant.any() and len(lattice) == 0):
            return None
        rest = self.start.without(np.flatnonzero(inside).tolist())
        old = self.start.yx_nm[inside]
        # At the rim the atom may be inside and its site outside.
        new = lattice[(np.hypot(*(lattice - self.place.center).T) < self.place.radius + 0.02)
                      | (_nearest(old, lattice) < 0.5 * self.host)]
        new = new[_nearest(rest.yx_nm, new) > 0.5 * self.host]
        if len(new) == len(old) and (_nearest(old, new) < 0.3 * self.host).all():
            return None
        # A site that is there keeps its number: only what differs is a change.
        result = rest.with_atoms(new, self.unit)
        if len(old):
            distance, which = cKDTree(old).query(new)
            origin = result.origin.copy()
            ids = self.start.origin[inside]
            same = distance < 0.45 * self.host
            origin[len(rest.yx_nm):][same] = ids[which[same]]
            result = Arrangement(result.yx_nm, result.height, result.dopant, origin, result.free)
        return result

    def _note_holes(self, best: Fitted, lattice: Array | None) -> None:
        """Lattice sites without an atom, where an atom would contradict the counts."""
        if lattice is None:
            return
        yx = best.atoms.yx_nm
        for site in lattice[np.hypot(*(lattice - self.place.center).T) < self.place.radius]:
            if np.min(np.hypot(*(yx - site).T)) > 0.6 * self.host and \
                    float(self.patch.gain(best, site[None], self.unit)[0]) < -4.0:
                self.empty.append(site)


def _nearest(points: Array, to: Array) -> Array:
    """(M,) distance of each of `to` (M, 2) to the nearest of some points (N, 2); infinite without any."""
    return np.asarray(cKDTree(points).query(to)[0]) if len(points) and len(to) else np.full(len(to), np.inf)
