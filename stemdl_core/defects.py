"""Named defects: connected parts of the graph that depart from the host lattice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .analysis import Defect, Defects
from .coordination import Reading, contacts, coordination, readings, usual, weigh_fourth
from .geometry import angle_between, bonds_of, center_of_mass, composition_of, ring_angles
from .graph import AtomGraph
from .light import light_substitutions
from .materials import bond_length_pm
from .mx2 import find_mx2_defects
from .rings import Cluster, describe, dopant_faces, group_faces, misorientation_deg

#: Readings whose probability is within this factor of the best are listed.
AMBIGUITY = 3.0
#: More foreign atoms than this in one piece are residue on the sheet, not a defect of it.
LARGEST_CLUSTER = 8
#: A dopant beside a vacancy has one angle of 150-165 deg between its three bonds, an undisturbed one 120.
DISTORTED_DEG = 137.0
#: Where positions are less certain than this [pm] the detector misses atoms, too.
NOISY_HOLE_PM = 7.0
#: Defects of the rings that are less probable than not are not reported.
LEAST = 0.5
#: How often atoms are truly missing or turned, against which an overlooked one is weighed.
HOLES = 0.02
#: Log-odds that a ring defect is what its name says where something of another number of atoms is as probable, and what
#: each log-odd of its advantage adds: arrangements that were not looked at are rivals, too (measured on simulated
#: frames of 50-120 electrons an atom).
NAME_ODDS, NAME_SLOPE = 1.0, 0.11
#: What was weighed within this of a defect's centre was the defect [nm].
WEIGHED_NM = 0.2
#: 5-7 pairs nearer than this belong to one boundary [nm]: at 11 degrees dislocations are 1.3 nm apart.
CHAIN_REACH_NM = 1.3
#: Odd rings between two of them, which are in opposite directions from there, belong to the boundary, too [nm, deg].
BETWEEN_NM, BETWEEN_DEG = 1.6, 125.0
#: Two grains differ by at least this [deg]; below it a single dislocation has no boundary to belong to.
SMALLEST_MISORIENTATION_DEG = 4.0
#: Readings of a cluster of rings that say no more than that it is odd, or a piece of something larger.
UNNAMED = ("5-7", "unknown")


def find_defects(graph: AtomGraph, *, vacancies_px: NDArray[np.float64] | None = None,
                 weighed: NDArray[np.float64] | None = None) -> Defects:
    """Find and name the defects of one frame.

    Parameters
    ----------
    graph : AtomGraph
    vacancies_px : (K, 2) array, optional
        Where the network sees missing atoms (y, x) [px]. With it, a hole that only the graph shows (one atom
        was perhaps overlooked) is less probable.
    weighed : (W, 5) float64, optional
        Places (y, x) [nm] at which the counts were weighed, and what was found, see `Revision.weighed`.

    Returns
    -------
    Defects
        In the order of their centres, top to bottom; empty for a perfect lattice.
    """
    if graph.material.kind == "mx2":
        return _numbered(find_mx2_defects(graph, vacancies_px=vacancies_px))
    if len(graph.sites) == 0:
        return Defects()
    holes = None if vacancies_px is None else graph.pixel_size.to_nm(vacancies_px).reshape(-1, 2)
    dopants = np.flatnonzero(graph.foreign)
    found = [
        d
        for group in _dopant_groups(graph, dopants)
        if (d := _dopant_defect(graph, group, holes)) is not None
    ]
    found += _weigh(graph, _ring_defects(graph, dopants, holes), weighed)
    found += [
        _light_defect(graph, site, symbol, chance) for site, symbol, chance in light_substitutions(graph)
    ]
    return _numbered(found)


def _weigh(graph: AtomGraph, found: list[Defect], weighed: NDArray[np.float64] | None) -> list[Defect]:
    """Ring defects that are more probable than not, with the probability of their names.

    The counts say both where they were weighed. Elsewhere an odd ring may be an atom that was overlooked, which the
    scores of the frame's sites say how often is.
    """
    inner = ~graph.sites.edge & ~graph.foreign
    doubt = 1.0 - float(np.mean(graph.sites.score[inner])) if inner.any() else 0.0
    unweighed = HOLES / (HOLES + doubt)
    places = np.zeros((0, 5)) if weighed is None else weighed
    result = []
    for defect in found:
        there, margin, more = unweighed, math.inf, 0
        if len(places):
            distance = np.hypot(*(places[:, :2] - graph.pixel_size.to_nm(np.array(defect.center_px))).T)
            nearest = int(np.argmin(distance))
            if distance[nearest] < WEIGHED_NM:
                there, margin, more = float(places[nearest, 2]), float(places[nearest, 3]), int(places[nearest, 4])
        chance = defect.probability * there
        if chance < LEAST:
            continue
        named = 1.0 / (1.0 + math.exp(-min(NAME_ODDS + NAME_SLOPE * max(margin, 0.0), 30.0)))
        other = _of_missing(defect.missing_atoms - more)
        alternatives = defect.alternatives
        if (1.0 - named) * AMBIGUITY >= named and other != defect.name:
            alternatives = (*alternatives, (other, chance * (1.0 - named)))
        result.append(replace(defect, probability=chance * named, alternatives=alternatives))
    return result


def _of_missing(count: int) -> str:
    """What a defect that lacks so many atoms usually is."""
    return {0: "pristine", 1: "SV", 2: "DV(5-8-5)"}.get(count, f"V{count}" if count > 2 else "unknown")


def _numbered(found: Iterable[Defect]) -> Defects:
    ordered = sorted(found, key=lambda d: d.center_px)
    return Defects(tuple(replace(d, id=k) for k, d in enumerate(ordered)))


# --- foreign atoms
# ---------------------------------------------------------------------------------------------


def _dopant_groups(graph: AtomGraph, dopants: NDArray[np.int64]) -> list[list[int]]:
    """Foreign atoms connected by a bond or through a host atom that both are bonded to."""
    label = {int(i): int(i) for i in dopants}

    def root(i: int) -> int:
        while label[i] != i:
            i = label[i]
        return i

    owner: dict[int, int] = {}
    for i in label:
        for j in graph.neighbours[i]:
            other = j if j in label else owner.setdefault(j, i)
            one, two = sorted((root(i), root(other)))
            label[two] = one
    groups: dict[int, list[int]] = {}
    for i in label:
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _in_view(graph: AtomGraph, site: int) -> bool:
    """All bonds of the atom can be seen: far from the border, or within rings that are all inside."""
    if not graph.sites.edge[site]:
        return True
    around = dopant_faces(graph, [site])
    return bool(around) and all(graph.inside[f] for f in around)


@dataclass(frozen=True)
class _Region:
    """What the rings around a group of dopants tell.

    Missing host sites, None where they are not all in view; whether the network sees a hole in the largest
    ring.
    """

    missing: int | None
    seen_hole: bool


def _region(graph: AtomGraph, group: list[int], holes_nm: NDArray[np.float64] | None) -> _Region:
    faces = dopant_faces(graph, group)
    if not faces or not all(graph.inside[f] for f in faces):
        return _Region(None, False)
    largest = max(faces, key=lambda f: int(graph.faces.size[f]))
    seen = False
    if holes_nm is not None and len(holes_nm) and graph.faces.size[largest] >= 8:
        middle = graph.yx_nm[graph.faces.nodes(largest)].mean(axis=0)
        seen = bool(np.min(np.hypot(*(holes_nm - middle).T)) < 0.15)
    return _Region(describe(graph, faces).missing, seen)


def _widest_deg(graph: AtomGraph, at: int, others: set[int]) -> float:
    """Widest angle between neighbouring bonds of an atom [deg]: 120 if threefold, 150-165 by a vacancy."""
    steps = graph.yx_nm[sorted(others)] - graph.yx_nm[at]
    angle = np.sort(np.degrees(np.arctan2(steps[:, 0], steps[:, 1])))
    return float(np.max(np.diff(np.append(angle, angle[0] + 360.0))))


def _dopant_name(graph: AtomGraph, group: list[int], reading: Reading, region: _Region) -> str:
    """Name of one reading."""
    species = Counter(str(graph.sites.species[i]) for i in group)
    hosts = {j for _, j in reading.bonds if not graph.foreign[j]}
    if len(group) == 1:
        symbol, n = next(iter(species)), len(hosts)
        if n == 4:
            return f"{symbol}-C4"
        if n == 3:
            # The rings may lack an atom that was merely overlooked: the dopant's own distortion has to agree,
            # or the network has to see the hole.
            widest = _widest_deg(graph, group[0], hosts)
            if region.missing is None:
                vacant = widest > DISTORTED_DEG + 10.0 or region.seen_hole
            else:
                vacant = region.missing >= 1 and (widest > DISTORTED_DEG or region.seen_hole)
            return f"{symbol}-C3+V" if vacant else f"{symbol}-C3"
        return "unknown"
    joined = {i for bond in reading.bonds for i in bond}
    if not hosts or not set(group) <= joined or len(group) > LARGEST_CLUSTER:
        return "unknown"
    dopants = "".join(f"{s}{n if n > 1 else ''}" for s, n in sorted(species.items()))
    return f"{dopants}C{len(hosts)}"


def _dopant_defect(graph: AtomGraph, group: list[int], holes_nm: NDArray[np.float64] | None) -> Defect | None:
    visible = [i for i in group if _in_view(graph, i)]
    if not visible:
        return None
    items = contacts(graph, group)
    if len(group) == 1:
        radii = bond_length_pm(str(graph.sites.species[group[0]]), graph.material.species[0])
        items = weigh_fourth(graph, items, radii * graph.scale)
    region = _region(graph, group, holes_nm)
    by_name: dict[str, list[Reading]] = {}
    ways = readings(items)
    for reading in usual(ways) if len(group) == 1 else ways:
        by_name.setdefault(_dopant_name(graph, group, reading, region), []).append(reading)
    chances = {name: sum(r.probability for r in several) for name, several in by_name.items()}
    total = sum(chances.values()) or 1.0
    ranked = sorted(((name, p / total) for name, p in chances.items()), key=lambda item: -item[1])
    name, chance = ranked[0]
    best = by_name[name][0]
    if len(visible) < len(group):
        # Part of the cluster may lie beyond the border: what is seen is kept, without a claim to be all of
        # it.
        name = "unknown"
    hosts = sorted({j for _, j in best.bonds if not graph.foreign[j]})
    sites = (*sorted(group), *hosts)
    found = np.sqrt(np.prod(graph.sites.score[list(sites)])) if len(sites) else 1.0
    return Defect(
        id=0,
        name=name,
        composition=composition_of(graph, sites),
        site_ids=sites,
        center_px=center_of_mass(graph, sites),
        missing_atoms=max(0, region.missing or 0),
        bonds=bonds_of(graph, best.bonds),
        angles=ring_angles(graph, group, best.bonds),
        probability=float(chance * found),
        alternatives=tuple((n, float(p * found)) for n, p in ranked[1:] if p * AMBIGUITY >= chance),
        coordination=coordination(items, sorted(group)),
    )


def _light_defect(graph: AtomGraph, site: int, symbol: str, chance: float) -> Defect:
    bonds = frozenset((site, j) for j in graph.neighbours[site])
    sites = (site, *sorted(graph.neighbours[site]))
    return Defect(
        id=0,
        name=f"{symbol}-C3",
        composition={symbol: 1, "C": len(bonds)},
        site_ids=sites,
        center_px=center_of_mass(graph, sites),
        bonds=bonds_of(graph, bonds),
        angles=ring_angles(graph, [site], bonds),
        probability=chance,
        alternatives=((("pristine", 1.0 - chance),) if (1.0 - chance) * AMBIGUITY >= chance else ()),
        coordination={site: {len(bonds): 1.0}},
    )


# --- rings and holes
# -------------------------------------------------------------------------------------------


def _ring_defects(
    graph: AtomGraph, dopants: NDArray[np.int64], holes_nm: NDArray[np.float64] | None
) -> list[Defect]:
    odd = graph.inside & (graph.faces.size != 6)
    odd[list(dopant_faces(graph, dopants.tolist()))] = False
    clusters = [c for group in group_faces(graph, np.flatnonzero(odd).tolist()) for c in _clusters(graph, group)]
    found, pieces, unclear = [], [], []
    for cluster in clusters:
        reading = ring_name(cluster)
        if reading is None:
            continue
        name, chance = reading
        if name == "5-7":
            pieces.append(cluster)
        elif not (name == "unknown" and cluster.cut):
            chance *= _hole_chance(graph, cluster, holes_nm)
            if chance > 0.0:
                if name == "unknown":
                    unclear.append((cluster, chance))
                else:
                    found.append(_ring_defect(graph, name, [cluster], chance))
    links = [cluster for cluster, _ in unclear if _between(cluster, pieces)]
    found += [_ring_defect(graph, "unknown", [cluster], chance) for cluster, chance in unclear if cluster not in links]
    pieces += links
    for chain in _chains(graph, pieces):
        atoms = {a for c in chain for a in c.atoms}
        turn = misorientation_deg(graph, atoms)
        rings = sum(len(c.sizes) for c in chain)
        whole = not any(c.cut for c in chain)
        if turn >= SMALLEST_MISORIENTATION_DEG or (math.isnan(turn) and whole and rings >= 4):
            found.append(_ring_defect(graph, "GB(5-7)", chain, 0.95 if rings >= 3 else 0.7))
        elif whole:
            found.append(_ring_defect(graph, "unknown", chain, 0.5))
    return found


def _clusters(graph: AtomGraph, group: tuple[int, ...]) -> list[Cluster]:
    """The cluster; or, where it has no name of its own, what has one of it without its rings at the border.

    Beside the border an atom is easily missed or misplaced, and an odd ring there may touch a defect that is whole.
    """
    whole = describe(graph, group)
    reading = ring_name(whole)
    if reading is None or reading[0] not in UNNAMED:
        return [whole]
    inner = [f for f in group if not graph.sites.edge[graph.faces.nodes(f)].any()]
    parts = [describe(graph, part) for part in group_faces(graph, inner)]
    named = [c for c in parts if (its := ring_name(c)) is not None and its[0] not in UNNAMED]
    return named if named and len(inner) < len(group) else [whole]


def ring_name(cluster: Cluster) -> tuple[str, float] | None:
    """Name of a cluster of odd rings and its probability: '5-7' for a piece of a boundary, None if no defect.

    A face that lacks no atom (two hexagons that lost the bond between them to noise) is no defect. A defect
    that lost one bond to noise is recognised by what is left of its rings.
    """
    sizes, missing = cluster.sizes, cluster.missing
    if missing is None:
        return ("5-7", 0.95) if set(sizes) <= {5, 7, 8} else ("unknown", 0.9)
    if missing == 0:
        if sizes in ((5, 5, 7, 7),):
            return "SW(55-77)", 0.97
        if sizes in ((5, 5, 12), (5, 7, 10), (5, 7, 7, 9), (5, 5, 7, 11)):
            return "SW(55-77)", 0.7
        return None if all(s % 2 == 0 for s in sizes) else ("unknown", 0.9)
    if missing == 1:
        return "SV", 0.97
    if missing == 2:
        if sizes == (5, 5, 5, 7, 7, 7):
            return "DV(555-777)", 0.97
        if sizes in ((5, 5, 8), (5, 11), (14,)):
            return "DV(5-8-5)", 0.97
        if len(sizes) >= 5 and sizes.count(7) <= 3:
            return "DV(555-777)", 0.7
        return ("DV(5-8-5)", 0.7) if max(sizes) >= 8 else ("unknown", 0.9)
    if missing >= 3:
        return f"V{missing}", 0.97
    return "unknown", 0.9


def _hole_chance(graph: AtomGraph, cluster: Cluster, holes_nm: NDArray[np.float64] | None) -> float:
    """Probability that a hole is one, rather than atoms that were overlooked; 0 where that is nearly certain.

    The network sees an empty place as a class of its own. Where it sees none, one or two atoms were missed by
    the detector far more often than they are missing; all the more when positions are poor.
    """
    if holes_nm is None or not cluster.missing or max(cluster.sizes) < 8:
        return 1.0
    near = np.hypot(*(holes_nm - np.asarray(cluster.center_nm)).T) if len(holes_nm) else np.array([np.inf])
    reach = 0.1 * math.sqrt(max(1, cluster.missing))
    if np.min(near) < reach + 0.05:
        return 1.0
    sigma = graph.sites.sigma_pm[list(cluster.atoms)]
    noisy = bool(np.isfinite(sigma).any() and np.nanmedian(sigma) > NOISY_HOLE_PM)
    return 0.0 if noisy and cluster.missing <= 2 else 0.6


def _between(cluster: Cluster, pieces: list[Cluster]) -> bool:
    """Whether odd rings lie between two pieces of a boundary: part of it, with an atom overlooked or one too many."""
    steps = [np.subtract(piece.center_nm, cluster.center_nm) for piece in pieces]
    near = [step / np.hypot(*step) for step in steps if 0 < np.hypot(*step) < BETWEEN_NM]
    return any(float(one @ other) < math.cos(math.radians(BETWEEN_DEG)) for one, other in combinations(near, 2))


def _chains(graph: AtomGraph, pieces: list[Cluster]) -> list[list[Cluster]]:
    """Clusters joined where they are near each other."""
    todo, chains = list(range(len(pieces))), []
    while todo:
        chain, queue = [], [todo.pop(0)]
        while queue:
            k = queue.pop()
            chain.append(pieces[k])
            here = graph.yx_nm[list(pieces[k].atoms)]
            near = [
                m
                for m in todo
                if cKDTree(here).query(graph.yx_nm[list(pieces[m].atoms)])[0].min() < CHAIN_REACH_NM - 0.3
            ]
            todo = [m for m in todo if m not in near]
            queue += near
        chains.append(chain)
    return chains


def _ring_defect(graph: AtomGraph, name: str, clusters: list[Cluster], chance: float) -> Defect:
    atoms = tuple(sorted({a for c in clusters for a in c.atoms}))
    inside = np.isin(graph.bonds.a, atoms) & np.isin(graph.bonds.b, atoms)
    pairs = list(zip(graph.bonds.a[inside].tolist(), graph.bonds.b[inside].tolist()))
    if name.startswith("GB") or len(clusters) > 1:
        center = graph.yx_nm[list(atoms)].mean(axis=0)
    else:
        center = np.asarray(clusters[0].center_nm)
    y, x = graph.pixel_size.to_px(center)
    rings = [graph.faces.nodes(f) for c in clusters for f in c.faces if graph.faces.size[f] <= 9]
    angles = [angle_between(graph, ring[i - 1], ring[i], ring[(i + 1) % len(ring)])
              for ring in rings for i in range(len(ring))]
    return Defect(id=0, name=name, composition=composition_of(graph, atoms), site_ids=atoms,
                  center_px=(float(y), float(x)), missing_atoms=max(0, sum(c.missing or 0 for c in clusters)),
                  bonds=bonds_of(graph, pairs), angles=tuple(angles), probability=chance)
