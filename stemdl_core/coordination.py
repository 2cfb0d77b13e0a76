"""How many bonds a dopant has, as probabilities from measured lengths and their uncertainty.

Every host atom with a bond to spare near a dopant is bonded or not. Bonded ones lie within a known range of
projected lengths, those left alone at the distance that the hole dictates; the measured length, with its
uncertainty, weighs the two. All readings of a cluster are then enumerated, so that a name carries its
probability and its rivals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .bonding import DOPANT_HOST_LIMIT, DOPANT_PAIR_LIMIT
from .graph import DEFAULT_SIGMA_PM, AtomGraph
from .materials import bond_length_pm

#: Widths (standard deviation) of the lengths of bonds and of contacts that are none, over the sum of covalent
#: radii: Si-C bonds spread from 150 to 200 pm, contacts from 235 pm up; the readings balance at the graph's
#: limits.
_BONDED_WIDTH, _APART_WIDTH = 0.085, 0.085
_BONDED_REACH = 0.17
#: Log-odds in favour of a bond where a host atom would otherwise lack one: beside a cluster carbon hardly
#: ever keeps a dangling bond; beside a single dopant it may (the vacancy-silicon complex).
_LACKING_CLUSTER, _LACKING_SINGLE = 3.0, 0.0
#: A single dopant in a divacancy, over the sum of covalent radii: by how much the farthest of the four carbon atoms is
#: farther than the mean of the others, and how far the dopant is from the middle of the hole, away from that atom (the
#: next host atoms around say where the middle is: none of them moves by much); means and spreads of both, when bonded
#: (4-fold) and when left alone (vacancy complex). 4-fold is the more common.
_HOLE_BONDED, _HOLE_ALONE = ((0.02, 0.01), (0.04, 0.03)), ((0.35, 0.20), (0.08, 0.05))
_FOURFOLD_PRIOR = 0.7
#: How usual fewer than three, or more than four, bonds of a single dopant in a sheet are, beside three or four.
_UNUSUAL = 0.03
#: The same for light dopants.
LIGHT_LIMIT = 1.35
#: More ambiguous contacts than this are not enumerated: the most certain ones are taken as they are.
_MOST_AMBIGUOUS = 7


@dataclass(frozen=True)
class Contact:
    """A possible bond of a dopant: sites, length [pm], probability of being a bond."""

    dopant: int
    other: int
    length_pm: float
    sigma_pm: float
    probability: float


@dataclass(frozen=True)
class Reading:
    """One way to read a cluster: its bonds (dopant, other) and its probability."""

    bonds: frozenset[tuple[int, int]]
    probability: float


def position_sigma(graph: AtomGraph, site: int) -> float:
    """Position uncertainty along one axis [pm], the default where none was measured."""
    sigma = float(graph.sites.sigma_pm[site])
    return sigma if np.isfinite(sigma) else DEFAULT_SIGMA_PM


def contacts(graph: AtomGraph, dopants: Iterable[int]) -> list[Contact]:
    """Possible bonds of the dopants: what the graph bonds, and host atoms nearby with a bond to spare."""
    members = sorted(dopants)
    found: dict[tuple[int, int], Contact] = {}
    for i in members:
        bonded = set(graph.neighbours[i])
        for j in graph.tree.query_ball_point(graph.yx_nm[i], 0.29 * graph.scale):
            if j == i or (graph.foreign[j] and (j not in members or j < i)):
                continue
            host = not graph.foreign[j]
            if j not in bonded and (graph.degree[j] >= 3 if host else True) and not _close_pair(graph, i, j):
                continue
            found[i, j] = _contact(graph, i, j, j in bonded, _prior(graph, i, j, members))
    return list(found.values())


def _prior(graph: AtomGraph, i: int, j: int, members: list[int]) -> float:
    """Log-odds of a bond before its length is looked at."""
    if graph.foreign[j] or graph.sites.edge[j]:
        return 0.0
    others = sum(1 for k in graph.neighbours[j] if k not in members)
    if others != 2:
        return 0.0
    if len(members) == 1:
        return _LACKING_SINGLE
    distance = np.hypot(*(graph.yx_nm[members] - graph.yx_nm[j]).T)
    return _LACKING_CLUSTER if members[int(distance.argmin())] == i else 0.0


def _close_pair(graph: AtomGraph, i: int, j: int) -> bool:
    """Two dopants that are near each other and were not ruled out by one between them."""
    if not graph.foreign[j]:
        return False
    return not any(k in graph.neighbours[j] and graph.foreign[k] for k in graph.neighbours[i])


def _contact(graph: AtomGraph, i: int, j: int, bonded: bool, prior: float) -> Contact:
    pair = bond_length_pm(str(graph.sites.species[i]), str(graph.sites.species[j])) * graph.scale
    limit = DOPANT_PAIR_LIMIT if graph.foreign[j] else DOPANT_HOST_LIMIT
    if pair < 165.0 * graph.scale:
        # Nitrogen and boron sit in the plane like carbon: their neighbours but one are 1.6 times as far.
        limit = LIGHT_LIMIT
    length = 1e3 * float(np.hypot(*(graph.yx_nm[i] - graph.yx_nm[j])))
    sigma = math.hypot(position_sigma(graph, i), position_sigma(graph, j))
    ratio, blur = length / pair, sigma / pair
    # One-sided: shorter than the usual bond is no less a bond, farther than the usual contact no less apart.
    longer = max(0.0, ratio - (limit - _BONDED_REACH)) / math.hypot(_BONDED_WIDTH, blur)
    shorter = max(0.0, (limit + _BONDED_REACH) - ratio) / math.hypot(_APART_WIDTH, blur)
    odds = 0.5 * (shorter**2 - longer**2) + prior
    probability = 1.0 / (1.0 + math.exp(-min(max(odds, -30.0), 30.0)))
    if not bonded and ratio < limit:
        # Ruled out by valence, angle or another atom rather than by its length.
        probability = min(probability, 0.1)
    return Contact(i, j, length, sigma, probability)


def weigh_fourth(graph: AtomGraph, items: list[Contact], pair_pm: float) -> list[Contact]:
    """Judge the farthest of a single dopant's four contacts by the shape of all four, not by its length.

    A dopant that leaves one carbon atom alone moves away from it and towards the others: the difference
    between the farthest contact and the mean of the rest, and the way from the middle of the hole, carry more than its
    length, and the first is free of errors of scale.
    """
    if len(items) != 4:
        return items
    near, far = sorted(items, key=lambda c: c.length_pm)[:3], max(items, key=lambda c: c.length_pm)
    own = position_sigma(graph, far.dopant)
    other = math.sqrt(max(far.sigma_pm**2 - own**2, 0.0))
    # The dopant's own error enters the far contact once and the opposite one with the other sign.
    shape = [far.length_pm - sum(c.length_pm for c in near) / 3.0]
    noise = [[(4 / 3 * own) ** 2 + 4 / 3 * other**2]]
    four = [c.other for c in items]
    around = [k for j in four for k in graph.neighbours[j] if k not in four and not graph.foreign[k]]
    if len(around) == 8:
        way = graph.yx_nm[[c.other for c in near]].mean(axis=0) - graph.yx_nm[far.other]
        off = (graph.yx_nm[far.dopant] - graph.yx_nm[around].mean(axis=0)) @ way / max(float(np.hypot(*way)), 1e-9)
        shape.append(1e3 * float(off))
        noise[0].append(4 / 3 * own**2)
        noise.append([noise[0][1], own**2 + sum(position_sigma(graph, k) ** 2 for k in around) / 64])
    odds = _FOURFOLD_PRIOR + _shape_odds(np.array(shape) / pair_pm, np.array(noise) / pair_pm**2)
    probability = 1.0 / (1.0 + math.exp(-min(max(odds, -30.0), 30.0)))
    return [replace(c, probability=probability) if c is far else c for c in items]


def _shape_odds(shape: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    """Log-odds of four bonds over three from measures that are smaller with four, and the covariance of their errors.

    What is beyond the usual, on either side, speaks for neither more than the usual does.
    """
    n = len(shape)
    (four, four_spread), (three, three_spread) = (np.array(v)[:, :n] for v in (_HOLE_BONDED, _HOLE_ALONE))
    # The farthest of four equal ones lies one standard deviation out by selection.
    four = four + np.array([0.8 * math.sqrt(noise[0, 0]), 0.0])[:n]
    value = np.clip(shape, np.minimum(four, three), three)
    odds = 0.0
    for sign, mean, spread in ((1.0, four, four_spread), (-1.0, three, three_spread)):
        covariance = noise + np.diag(spread**2)
        away = value - mean
        odds -= sign * 0.5 * float(away @ np.linalg.solve(covariance, away) + np.log(np.linalg.det(covariance)))
    return odds


def readings(items: list[Contact]) -> list[Reading]:
    """All ways to read a list of contacts, most probable first."""
    doubt = sorted(items, key=lambda c: -min(c.probability, 1.0 - c.probability))
    open_ones = [c for c in doubt[:_MOST_AMBIGUOUS] if 0.01 < c.probability < 0.99]
    fixed = [c for c in items if c not in open_ones]
    base = frozenset((c.dopant, c.other) for c in fixed if c.probability >= 0.5)
    weight = math.prod(max(c.probability, 1.0 - c.probability) for c in fixed)
    result = []
    for choice in itertools.product((True, False), repeat=len(open_ones)):
        bonds = base | {(c.dopant, c.other) for c, take in zip(open_ones, choice) if take}
        chance = weight * math.prod(c.probability if take else 1.0 - c.probability
                                    for c, take in zip(open_ones, choice))
        result.append(Reading(bonds, chance))
    return sorted(result, key=lambda r: -r.probability)


def usual(several: list[Reading]) -> list[Reading]:
    """The readings of a single dopant's contacts, weighed by how usual their number of bonds is."""
    return sorted((replace(r, probability=r.probability * (1.0 if len(r.bonds) in (3, 4) else _UNUSUAL))
                   for r in several), key=lambda r: -r.probability)


def coordination(items: list[Contact], dopants: Iterable[int]) -> Mapping[int, Mapping[int, float]]:
    """For every dopant, the probability of each number of bonds (Poisson binomial)."""
    result: dict[int, dict[int, float]] = {}
    for i in dopants:
        chance = np.ones(1)
        for c in items:
            if i in (c.dopant, c.other):
                chance = np.convolve(chance, [1.0 - c.probability, c.probability])
        result[int(i)] = {n: float(p) for n, p in enumerate(chance) if p >= 1e-3}
    return result
