"""Changes to an arrangement of atoms that may make it more probable, and what each is expected to gain.

Expectations are linear: all other atoms give way as the last fit says. Only what is promising is worth a fit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .arrangement import HEIGHT_SPREAD, Arrangement, Array, Fitted, Patch, Place, Single
from .graph import AtomGraph

#: No host atom is nearer to a foreign one than this many host bonds (silicon to carbon: 150 pm at least); what shows
#: there is the foot of the bright column.
CLOSEST_TO_DOPANT = 1.05
#: Nearer than so many bonds few are found, and what taking one of them away gains is taken to be this at least.
SQUEEZED, UNFORESEEN = 0.97, 3.0
#: The same of faint ones: as far as silicon's bonds reach.
CLOSEST_FAINT = 1.4
#: A host column fainter than this part of its neighbours and by so many standard deviations is looked at again.
FAINT, FAINT_Z = 0.62, 2.0
#: Changes that are expected to lose more than this are not looked into; of the likeliest only so many are, and only
#: those expected to come near the best one.
PROMISING, LIKELIEST, MOST_OPTIONS, NEAR_BEST = -3.0, 10, 4, 7.0


class Moves:
    """Changes at one place.

    Parameters
    ----------
    graph : AtomGraph
        What was found.
    patch : Patch
        The counts around the place.
    place : Place
    host_nm : float
        Bond length of the host [nm].
    unit : float
        Height of a host column there [image units].
    oddness : callable
        Log-odds against the bonds of an arrangement before the counts are looked at.
    """

    def __init__(self, graph: AtomGraph, patch: Patch, place: Place, *, host_nm: float, unit: float,
                 oddness: Callable[[Arrangement], float]) -> None:
        self.patch, self.place, self.host, self.unit, self._oddness = patch, place, host_nm, unit, oddness
        self._faint = np.flatnonzero(faint(graph))

    def likeliest(self, now: Fitted, lattice: Array | None) -> list[tuple[float, Arrangement]]:
        """The most promising changes and what they are expected to gain."""
        atoms, patch = now.atoms, self.patch
        core, there = self._core(now)
        mine = np.flatnonzero(atoms.free & core & ~atoms.dopant)
        found: list[tuple[float, Arrangement]] = []
        if len(mine):
            for group in (mine[:, None], *self._neighbours(atoms, mine)):
                gain = patch.promise(now, -there[group].sum(1), group) + self._odd_height(atoms.height[group]).sum(1)
                if group.shape[1] == 1:
                    # Too near to a dopant to be there, or half of its foot: what is left then moves farther than can
                    # be foreseen.
                    gain = np.where(self._squeezed(atoms, mine), np.maximum(gain, UNFORESEEN), gain)
                best = np.argsort(-gain)[:LIKELIEST]
                found += [(float(gain[k]), atoms.without(group[k].tolist())) for k in best]
        places = []
        near = patch.yx_nm[np.hypot(*(patch.yx_nm - self.place.center).T) < self.place.radius + 0.05]
        near = near[:: max(1, len(near) // 80)]
        if len(near):
            places.append(near[int(np.argmax(patch.z_scores(now, near)))])
        if lattice is not None and len(lattice):
            places += list(lattice[np.hypot(*(lattice - self.place.center).T) < self.place.radius + 0.05])
        closest = np.where(atoms.dopant, CLOSEST_TO_DOPANT, 0.55) * self.host
        free = [p for p in places if (np.hypot(*(atoms.yx_nm - p).T) > closest).all()]
        if free:
            added = np.float32(self.unit) * patch.profile(np.array(free)) * now.root
            gain = patch.promise(now, added, np.zeros((len(free), 0), dtype=np.int64))
            found += [(float(g), atoms.with_atoms(p, self.unit)) for g, p in zip(gain, free)]
        found += self._turned(now, core, there) + self._merged(now, mine)
        found = sorted(found, key=lambda o: -o[0])[:LIKELIEST]
        odd = self._oddness(atoms)
        found = [(gain + odd - self._oddness(other), other) for gain, other in found if gain + odd > PROMISING]
        found = [option for option in found if option[0] > PROMISING]
        found = sorted(found, key=lambda o: -o[0])[:MOST_OPTIONS]
        return [option for option in found if option[0] > found[0][0] - NEAR_BEST]

    def _squeezed(self, atoms: Arrangement, mine: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which atoms are nearer to a dopant than carbon usually is, or beside one and as faint as none."""
        if not atoms.dopant.any():
            return np.zeros(len(mine), dtype=bool)
        away = cKDTree(atoms.yx_nm[atoms.dopant]).query(atoms.yx_nm[mine])[0] / self.host
        as_faint = np.isin(atoms.origin[mine], self._faint)
        return np.asarray((away < SQUEEZED) | (as_faint & (away < CLOSEST_FAINT)))

    def _neighbours(self, atoms: Arrangement, mine: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Groups of atoms that may be missing together: pairs, an atom with two of its neighbours, and with all three.

        Taken away one by one, each would have to pay for a defect of its own before the evidence is complete.
        """
        pairs = mine[cKDTree(atoms.yx_nm[mine]).query_pairs(1.32 * self.host, output_type="ndarray")].reshape(-1, 2)
        around: dict[int, list[int]] = {}
        for a, b in pairs.tolist():
            around.setdefault(a, []).append(b)
            around.setdefault(b, []).append(a)
        three = [(i, *two) for i, near in around.items() for two in combinations(near, 2)]
        four = [(i, *near) for i, near in around.items() if len(near) == 3]
        return [np.array(group, dtype=np.int64) for group in (pairs, three, four) if len(group)]

    def _odd_height(self, height: Array) -> Array:
        """Log-probability that host columns lose by their heights."""
        return 0.5 * ((height - self.unit) / (HEIGHT_SPREAD * self.unit)) ** 2

    def _turned(self, now: Fitted, core: NDArray[np.bool_], there: Single) -> list[tuple[float, Arrangement]]:
        """Bonds turned by 90 degrees."""
        atoms = now.atoms
        pairs = cKDTree(atoms.yx_nm).query_pairs(1.3 * self.host, output_type="ndarray")
        pairs = pairs[(atoms.free & ~atoms.dopant)[pairs].all(axis=1) & core[pairs].any(axis=1)]
        if len(pairs) == 0:
            return []
        a, b = atoms.yx_nm[pairs[:, 0]], atoms.yx_nm[pairs[:, 1]]
        middle, step = 0.5 * (a + b), 0.5 * (b - a)
        turned = np.stack([step[:, 1], -step[:, 0]], axis=1)
        profile = self.patch.profile
        change = (np.float32(self.unit) * (profile(middle + turned) + profile(middle - turned)) * now.root
                  - there[pairs[:, 0]] - there[pairs[:, 1]])
        gain = self.patch.promise(now, change, pairs)
        result = []
        for k in np.argsort(-gain)[:2].tolist():
            pair = [int(v) for v in pairs[k]]
            new = np.stack([middle[k] + turned[k], middle[k] - turned[k]])
            result.append((float(gain[k]), atoms.without(pair).with_atoms(new, self.unit)))
        return result

    def likeliest_turn(self, base: Fitted) -> list[Arrangement]:
        """The turned bond that is expected to lose least; none without bonds."""
        return [arrangement for _, arrangement in self._turned(base, *self._core(base))[:1]]

    def _core(self, fitted: Fitted) -> tuple[NDArray[np.bool_], Single]:
        """(N,) atoms that may be rearranged, and (N, P) what each adds to the model [standard deviations]."""
        atoms = fitted.atoms
        there = atoms.height[:, None].astype(np.float32) * self.patch.profile(atoms.yx_nm) * fitted.root
        return np.hypot(*(atoms.yx_nm - self.place.center).T) < self.place.radius, there

    def _merged(self, now: Fitted, mine: NDArray[np.int64]) -> list[tuple[float, Arrangement]]:
        """Atoms nearer to each other than atoms are, made one."""
        if len(mine) < 2:
            return []
        yx = now.atoms.yx_nm[mine]
        pairs = mine[cKDTree(yx).query_pairs(0.8 * self.host, output_type="ndarray")]
        return [(0.0, now.atoms.without(p).with_atoms(now.atoms.yx_nm[p].mean(axis=0), self.unit))
                for p in pairs.tolist()]


def faint(graph: AtomGraph) -> NDArray[np.bool_]:
    """(N,) sites whose height in the frame's fit, which leaves it free, is hardly that of a host atom."""
    intensity, sigma = graph.sites.intensity, graph.sites.intensity_sigma
    return np.asarray((intensity < FAINT) & (intensity + FAINT_Z * np.hypot(sigma, 0.08) < 1.0))
