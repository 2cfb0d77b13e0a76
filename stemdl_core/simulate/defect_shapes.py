"""Blueprints of defects in graphene: what is removed, added and bonded, in units of the C-C bond length.

A blueprint is drawn in a perfect sheet around an anchor at the origin: an atom with neighbours at 90, 210 and
330 degrees, the middle of a bond along x, or the middle of a ring.

References
----------
Banhart, Kotakoski, Krasheninnikov, ACS Nano 5, 26 (2011): structural defects in graphene.
Ramasse et al., Nano Lett. 13, 4989 (2013): 3-fold buckled and 4-fold planar silicon.
Ziatdinov et al., ACS Nano 11, 12742 (2017): projected geometry of silicon defects, dimers and rotors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from ..errors import StemdlError

#: Graphene's bond length [pm]; blueprints are drawn in this unit.
BOND_PM = 142.03
SQRT3 = math.sqrt(3.0)
Point = tuple[float, float]
ORIGIN: Point = (0.0, 0.0)


def polar(radius: float, degrees: float) -> Point:
    """Point (y, x) at an angle from the x axis."""
    return radius * math.sin(math.radians(degrees)), radius * math.cos(math.radians(degrees))


@dataclass(frozen=True)
class Link:
    """A bond that the perfect sheet does not have, or whose natural length differs [pm]."""

    a: Point
    b: Point
    length_pm: float
    stiffness: float = 0.5


@dataclass(frozen=True)
class Blueprint:
    """A defect before relaxation; all points (y, x) in units of the host bond length.

    Parameters
    ----------
    name : str
        Name of the truth.
    anchor : {'atom', 'bond', 'ring'}
        What lies at the origin.
    remove : tuple of points
        Host atoms taken out.
    add : tuple of (symbol, point, z in Angstrom)
        Foreign atoms.
    links : tuple of Link
        Bonds of the foreign atoms, and reconstructed ones.
    apart : tuple of Link
        Pairs kept at least this far apart (no bond).
    rotate : tuple of (point, point)
        Bonds turned by 90 degrees (Stone-Wales), in turn.
    missing : int
        Host sites without any atom.
    holes : tuple of points
        Where a vacancy is seen.
    """

    name: str
    anchor: str
    remove: tuple[Point, ...] = ()
    add: tuple[tuple[str, Point, float], ...] = ()
    links: tuple[Link, ...] = ()
    apart: tuple[Link, ...] = ()
    rotate: tuple[tuple[Point, Point], ...] = ()
    missing: int = 0
    holes: tuple[Point, ...] = ()


def _radius_pm(symbol: str) -> float:
    return 100.0 * float(covalent_radii[atomic_numbers[symbol]])


def _three_fold_pm(symbol: str) -> float:
    """Projected X-C length of a substitution: light ones lie in the plane, heavy ones stand out of it."""
    radius = _radius_pm(symbol)
    if atomic_numbers[symbol] < 11:
        return {"N": 141.0, "B": 148.0, "O": 145.0}.get(symbol, radius + 72.0)
    return 153.0 + 0.3 * (radius - 111.0)


def _four_fold_pm(symbol: str) -> float:
    """Planar X-C length in a divacancy (silicon 178 pm)."""
    return _radius_pm(symbol) + 59.0 if atomic_numbers[symbol] >= 11 else _radius_pm(symbol) + 85.0


NEIGHBOURS = tuple(polar(1.0, d) for d in (90.0, 210.0, 330.0))
SECOND = tuple(polar(SQRT3, d) for d in (60.0, 120.0, 180.0, 240.0, 300.0, 0.0))


def substitution(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X-C3: one foreign atom on a carbon site."""
    length = _three_fold_pm(symbol)
    height = 0.0 if atomic_numbers[symbol] < 11 else 1.0
    links = tuple(Link(ORIGIN, n, length * rng.normal(1.0, 0.012), 0.7) for n in NEIGHBOURS)
    return Blueprint(f"{symbol}-C3", "atom", (ORIGIN,), ((symbol, ORIGIN, height),), links)


PAIR = ((0.0, -0.5), (0.0, 0.5))
PAIR_CORNERS = ((SQRT3 / 2, -1.0), (SQRT3 / 2, 1.0), (-SQRT3 / 2, 1.0), (-SQRT3 / 2, -1.0))


def four_fold(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X-C4: one foreign atom in a divacancy, in the plane."""
    links = tuple(Link(ORIGIN, c, _four_fold_pm(symbol) * rng.normal(1.0, 0.012), 0.6) for c in PAIR_CORNERS)
    return Blueprint(f"{symbol}-C4", "bond", PAIR, ((symbol, ORIGIN, 0.0),), links, missing=1)


def with_vacancy(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X-C3+V: in a divacancy, bonded to three of the four carbon atoms, the fourth one left alone."""
    length = _four_fold_pm(symbol)
    start = (0.18, -0.16)
    links = tuple(Link(start, c, length * f * rng.normal(1.0, 0.02), 0.5)
                  for c, f in zip((PAIR_CORNERS[0], PAIR_CORNERS[1], PAIR_CORNERS[3]), (0.95, 1.0, 1.0)))
    apart = (Link(start, PAIR_CORNERS[2], 255.0 * rng.normal(1.0, 0.02), 1.0),)
    return Blueprint(f"{symbol}-C3+V", "bond", PAIR, ((symbol, start, 0.4),), links, apart, missing=1,
                     holes=((-0.35, 0.5),))


def _dimer_in_trivacancy(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X2C5, the 3/4 dimer: two bonded atoms in a trivacancy, one with two and one with three carbons."""
    gone = (NEIGHBOURS[1], ORIGIN, NEIGHBOURS[2])
    left, right = polar(1.02, 207.0), polar(0.62, 330.0)
    base = 175.0 + 0.8 * (_radius_pm(symbol) - 111.0)
    links = [Link(left, right, 2.02 * _radius_pm(symbol) * rng.normal(1.0, 0.015), 0.5)]
    links += [Link(left, c, base * rng.normal(1.0, 0.015)) for c in (SECOND[2], SECOND[3])]
    links += [Link(right, c, base * rng.normal(1.0, 0.015)) for c in (SECOND[4], SECOND[5], NEIGHBOURS[0])]
    apart = (Link(left, NEIGHBOURS[0], 245.0, 1.0), Link(left, SECOND[1], 240.0, 1.0))
    return Blueprint(
        f"{symbol}2C5",
        "atom",
        gone,
        ((symbol, left, 0.3), (symbol, right, 0.3)),
        tuple(links),
        apart,
        missing=1,
    )


def _dimer_sharing(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X2C5 with two substitutions that share one carbon atom."""
    ends = (NEIGHBOURS[1], NEIGHBOURS[2])
    links = []
    for end in ends:
        for step in NEIGHBOURS:
            c = (end[0] - step[0], end[1] - step[1])
            links.append(Link(end, c, 1.02 * _three_fold_pm(symbol) * rng.normal(1.0, 0.015), 0.6))
    return Blueprint(f"{symbol}2C5", "atom", ends, tuple((symbol, e, 0.9) for e in ends), tuple(links))


def dimer5(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X2C5 in its two forms; the one in a trivacancy is the paper's."""
    return (_dimer_in_trivacancy if rng.random() < 0.7 else _dimer_sharing)(symbol, rng)


def dimer4(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X2C4: two foreign atoms on neighbouring carbon sites, bonded to each other."""
    half = 0.72
    one, two = (0.0, -half), (0.0, half)
    base = 168.0 + 0.6 * (_radius_pm(symbol) - 111.0)
    links = [Link(one, two, 2.12 * _radius_pm(symbol) * rng.normal(1.0, 0.015), 1.0)]
    links += [Link(one, c, base * rng.normal(1.0, 0.015)) for c in (PAIR_CORNERS[0], PAIR_CORNERS[3])]
    links += [Link(two, c, base * rng.normal(1.0, 0.015)) for c in (PAIR_CORNERS[1], PAIR_CORNERS[2])]
    return Blueprint(f"{symbol}2C4", "bond", PAIR, ((symbol, one, 0.6), (symbol, two, 0.6)), tuple(links))


def dimer6(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X2C6: two atoms in a tetravacancy (a bond and one neighbour on each side), three carbons each."""
    gone = (*PAIR, PAIR_CORNERS[0], PAIR_CORNERS[2])
    # Carbon left around the hole, by the end of the zigzag of four removed atoms that it belongs to.
    y, x = PAIR_CORNERS[0]
    upper = ((y, x - 1.0), (y + SQRT3 / 2, x + 0.5), PAIR_CORNERS[3])
    lower = tuple((-p[0], -p[1]) for p in upper)
    one, two = (0.62, -0.62), (-0.62, 0.62)
    base = 178.0 + 0.8 * (_radius_pm(symbol) - 111.0)
    links = [Link(one, two, 2.02 * _radius_pm(symbol), 0.4)]
    links += [Link(one, c, base * rng.normal(1.0, 0.015)) for c in upper]
    links += [Link(two, c, base * rng.normal(1.0, 0.015)) for c in lower]
    return Blueprint(
        f"{symbol}2C6", "bond", gone, ((symbol, one, 0.3), (symbol, two, 0.3)), tuple(links), missing=2
    )


#: A ring of six atoms around the origin and the six atoms outside that are left with two bonds when it is
#: removed.
RING = tuple(polar(1.0, d) for d in (30.0, 90.0, 150.0, 210.0, 270.0, 330.0))
OUTER = tuple(polar(2.0, d) for d in (30.0, 90.0, 150.0, 210.0, 270.0, 330.0))


def _rotor_corners(radius: float, turn: int) -> tuple[list[Point], list[tuple[Point, Point]]]:
    """Three corners between neighbouring outer atoms, and the two outer atoms of each."""
    corners = [polar(radius, 60.0 + 60.0 * turn + 120.0 * i) for i in range(3)]
    pairs = [(OUTER[(turn + 2 * i) % 6], OUTER[(turn + 2 * i + 1) % 6]) for i in range(3)]
    return corners, pairs


def rotor(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X3C6, the trimer rotor: a triangle in a hexavacancy, either way round.

    The six carbon atoms around a missing ring form a regular hexagon, so that the two orientations, 60
    degrees apart, are equivalent; in experimental images of the rotor the triangle takes six sites and its
    six bonded carbon atoms sit 275 pm from the centre (284 pm unrelaxed).
    """
    corners, pairs = _rotor_corners(0.9, int(rng.integers(2)))
    base = 186.0 + 0.8 * (_radius_pm(symbol) - 111.0)
    links = [Link(corners[i], corners[(i + 1) % 3], 1.97 * _radius_pm(symbol) * rng.normal(1.0, 0.012), 1.0)
             for i in range(3)]
    for corner, pair in zip(corners, pairs):
        links += [Link(corner, c, base * rng.normal(1.0, 0.02), 0.7) for c in pair]
    return Blueprint(
        f"{symbol}3C6", "ring", RING, tuple((symbol, c, 0.2) for c in corners), tuple(links), missing=3
    )


def centred_rotor(symbol: str, rng: np.random.Generator) -> Blueprint:
    """X4C6: the rotor with a fourth atom at its centre, out of plane; its corners are not bonded."""
    corners, pairs = _rotor_corners(1.13, int(rng.integers(2)))
    scale = _radius_pm(symbol) / 111.0
    base = 172.0 + 0.8 * (_radius_pm(symbol) - 111.0)
    links = [Link(ORIGIN, c, 154.0 * scale * rng.normal(1.0, 0.012), 1.2) for c in corners]
    apart = tuple(Link(corners[i], corners[(i + 1) % 3], 280.0 * scale, 1.0) for i in range(3))
    for corner, pair in zip(corners, pairs):
        links += [Link(corner, c, base * rng.normal(1.0, 0.02), 0.7) for c in pair]
    add = ((symbol, ORIGIN, 1.6), *((symbol, c, 0.2) for c in corners))
    return Blueprint(f"{symbol}4C6", "ring", RING, add, tuple(links), apart, missing=2)


def single_vacancy(symbol: str, rng: np.random.Generator) -> Blueprint:
    """SV, with (5-9, Jahn-Teller) or without the weak bond across the hole."""
    links: tuple[Link, ...] = ()
    if rng.random() < 0.6:
        links = (Link(NEIGHBOURS[1], NEIGHBOURS[2], rng.uniform(185.0, 205.0), 0.25),)
    return Blueprint("SV", "atom", (ORIGIN,), links=links, missing=1, holes=(ORIGIN,))


def _reconstruction(length_pm: float) -> tuple[Link, ...]:
    return tuple(Link(PAIR_CORNERS[i], PAIR_CORNERS[j], length_pm, 0.6) for i, j in ((0, 3), (1, 2)))


def divacancy_585(symbol: str, rng: np.random.Generator) -> Blueprint:
    """DV(5-8-5): two pentagons beside an octagon."""
    return Blueprint("DV(5-8-5)", "bond", PAIR, links=_reconstruction(172.0), missing=2, holes=PAIR)


def divacancy_555777(symbol: str, rng: np.random.Generator) -> Blueprint:
    """DV(555-777): the former with one bond of the octagon turned."""
    return Blueprint("DV(555-777)", "bond", PAIR, links=_reconstruction(147.0), missing=2,
                     rotate=(((SQRT3, -0.5), (SQRT3, 0.5)),))


def stone_wales(symbol: str, rng: np.random.Generator) -> Blueprint:
    """SW(55-77): one bond turned by 90 degrees."""
    return Blueprint("SW(55-77)", "bond", rotate=(PAIR,))


def _neighbours(site: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    i, j, s = site
    sign = 1 if s == 0 else -1
    return ((i, j, 1 - s), (i - sign, j, 1 - s), (i, j - sign, 1 - s))


def _site_point(site: tuple[int, int, int]) -> Point:
    """Point of a honeycomb site; sublattice 0 at the origin has neighbours at 90, 210, 330 degrees."""
    i, j, s = site
    y, x = 1.5 * (i + j), 0.5 * SQRT3 * (i - j)
    return (y, x) if s == 0 else (y + 1.0, x)


def hole(size: int) -> Callable[[str, np.random.Generator], Blueprint]:
    """V<n>: a compact hole of n atoms that leaves every carbon at least two bonds."""

    def draw(symbol: str, rng: np.random.Generator) -> Blueprint:
        while True:
            gone = {(0, 0, 0)}
            while len(gone) < size:
                rim = sorted({n for site in gone for n in _neighbours(site)} - gone)
                weight = np.array([sum(n in gone for n in _neighbours(site)) for site in rim], float) ** 3
                gone.add(rim[int(rng.choice(len(rim), p=weight / weight.sum()))])
            rim = sorted({n for site in gone for n in _neighbours(site)} - gone)
            if all(sum(n in gone for n in _neighbours(site)) == 1 for site in rim):
                break
        dangling = [_site_point(site) for site in rim]
        links: list[Link] = []
        used: set[int] = set()
        if rng.random() < 0.5:
            for a in rng.permutation(len(rim)).tolist():
                for b in range(len(rim)):
                    near = math.dist(dangling[a], dangling[b])
                    if a != b and not {a, b} & used and abs(near - SQRT3) < 0.1 and rng.random() < 0.6:
                        links.append(Link(dangling[a], dangling[b], rng.uniform(160.0, 185.0), 0.4))
                        used |= {a, b}
        points = tuple(_site_point(site) for site in sorted(gone))
        return Blueprint(f"V{size}", "atom", points, links=tuple(links), missing=size, holes=points)

    return draw


#: Kinds of graphene defects by the form of their name with silicon as the dopant.
GRAPHENE_KINDS: dict[str, Callable[[str, np.random.Generator], Blueprint]] = {
    "SV": single_vacancy, "DV(5-8-5)": divacancy_585, "DV(555-777)": divacancy_555777,
    "V3": hole(3), "V4": hole(4), "V5": hole(5), "V6": hole(6), "SW(55-77)": stone_wales,
    "X-C3": substitution, "X-C4": four_fold, "X-C3+V": with_vacancy,
    "X2C4": dimer4, "X2C5": dimer5, "X2C6": dimer6, "X3C6": rotor, "X4C6": centred_rotor,
}


def resolve_kind(kind: str, dopant: str) -> tuple[str, str]:
    """Split a name into its general form and its foreign element: 'N-C3' -> ('X-C3', 'N').

    'Si' in a name stands for `dopant`, so that ``kind='Si-C3', dopant='P'`` is the phosphorus defect.

    Raises
    ------
    StemdlError
        If there is no such kind.
    """
    if kind in GRAPHENE_KINDS:
        return kind, dopant
    match = re.fullmatch(r"(X|[A-Z][a-z]?)(\d?-?C\d(?:\+V)?)", kind)
    if match and f"X{match[2]}" in GRAPHENE_KINDS:
        symbol = dopant if match[1] in ("X", "Si") else match[1]
        if symbol not in atomic_numbers:
            raise StemdlError(f"unknown element {symbol!r} in defect kind {kind!r}")
        return f"X{match[2]}", symbol
    known = ", ".join(k.replace("X", "Si") for k in GRAPHENE_KINDS)
    raise StemdlError(
        f"unknown defect kind {kind!r} for graphene: choose one of {known}, N-C3, B-C3, GB(5-7)"
    )
