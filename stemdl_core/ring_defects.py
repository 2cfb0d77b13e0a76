"""Defects of the host's own rings: vacancies, turned bonds, dislocations and the boundaries they form."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .analysis import AMBIGUITY, Defect
from .geometry import angle_between, bonds_of, composition_of
from .graph import AtomGraph
from .rings import (
    Cluster,
    describe,
    dopant_faces,
    group_faces,
    least_share,
    misorientation_deg,
    orientations_deg,
    turned_deg,
)

#: Where positions are less certain than this [pm] the detector misses atoms, too.
NOISY_HOLE_PM = 7.0
#: Defects of the rings that are less probable than not are not reported.
LEAST = 0.5
#: How often atoms are truly missing or turned, against which an overlooked one is weighed.
HOLES = 0.02
#: Log-odds that there is a defect, over those that the rings and the counts state: of those stated at 0.5-0.75 two
#: in five are there, of those at 0.9 nine in ten (measured as below).
THERE_ODDS, THERE_SLOPE = -1.0, 1.3
#: Log-odds that a ring defect is what its name says where something of another number of atoms is as probable, and what
#: each log-odd of its advantage adds: arrangements that were not looked at are rivals, too (measured on simulated
#: frames of 50-120 electrons an atom).
NAME_ODDS, NAME_SLOPE = 0.2, 0.25
#: What was weighed within this of a defect's centre was the defect [nm].
WEIGHED_NM = 0.2
#: 5-7 pairs nearer than this belong to one boundary [nm]: at 11 degrees dislocations are 1.3 nm apart.
CHAIN_REACH_NM = 1.3
#: Odd rings between two of them, which are in opposite directions from there, belong to the boundary, too [nm, deg].
BETWEEN_NM, BETWEEN_DEG = 1.6, 125.0
#: Two grains differ by at least this [deg]; below it a single dislocation has no boundary to belong to.
SMALLEST_MISORIENTATION_DEG = 4.0
#: So many odd rings in one piece can be a boundary, with atoms overlooked or too many.
MANY_RINGS = 5
#: Pieces with grains on their sides that are turned by less than the first against each other's, and nearer than the
#: second [deg, nm], are one boundary.
SAME_GRAIN_DEG, WIDEST_GAP_NM = 3.0, 4.0
#: Odd rings around which less of the bonds than this belong to the second grain are inside the first, and no part of
#: the boundary (simulated: 0.33-0.5 on boundaries, five in a hundred lower; 0-0.13 off them).
OTHER_GRAIN = 0.18
#: Readings of a cluster of rings that say no more than that it is odd, or a piece of something larger.
UNNAMED = ("5-7", "unknown")


def ring_defects(graph: AtomGraph, dopants: list[int], holes_nm: NDArray[np.float64] | None,
                 weighed: NDArray[np.float64] | None) -> list[Defect]:
    """Defects of the host's rings, away from foreign atoms.

    Parameters
    ----------
    graph : AtomGraph
    dopants : list of int
        The foreign atoms, whose rings are theirs.
    holes_nm : (K, 2) float64 or None
        Where the network sees missing atoms (y, x) [nm].
    weighed : (W, 5) float64 or None
        Places at which the counts were weighed, see `Revision.weighed`.

    Returns
    -------
    list of Defect
        Those that are more probable than not, with the probability of their names, in no order.
    """
    return _weigh(graph, _of_rings(graph, dopants, holes_nm), weighed)


def _of_rings(graph: AtomGraph, dopants: list[int], holes_nm: NDArray[np.float64] | None) -> list[Defect]:
    odd = graph.inside & (graph.faces.size != 6)
    odd[list(dopant_faces(graph, dopants))] = False
    clusters = [c for group in group_faces(graph, np.flatnonzero(odd).tolist()) for c in _clusters(graph, group)]
    found, pieces, unclear = [], [], []
    for cluster in clusters:
        reading = ring_name(cluster)
        if reading is None:
            continue
        name, chance = reading
        if name == "5-7":
            pieces.append(cluster)
        elif name == "unknown" and cluster.cut:
            # What the border cuts is nothing of its own; it may be the end of a boundary.
            unclear.append((cluster, 0.0))
        else:
            chance *= _hole_chance(graph, cluster, holes_nm)
            if chance > 0.0:
                if name == "unknown":
                    unclear.append((cluster, chance))
                else:
                    found.append(_ring_defect(graph, name, [cluster], chance))
    links = [cluster for cluster, _ in unclear if _between(cluster, pieces) or _divides(graph, cluster)]
    pieces += links
    todo, boundaries = _chains(graph, pieces), []
    while todo:
        chain = todo.pop()
        turn = misorientation_deg(graph, _atoms_of(chain))
        rings = sum(len(c.sizes) for c in chain)
        inner = [c for c in chain if not c.cut]
        if turn >= SMALLEST_MISORIENTATION_DEG or (math.isnan(turn) and inner == chain and rings >= 4):
            astray = [c for c in chain if not _on_boundary(graph, chain, c)]
            if 0 < len(astray) < len(chain):
                # Neighbours of the boundary: what is left of it is looked at again, its grains are clearer now.
                todo += _chains(graph, astray) + _chains(graph, [c for c in chain if c not in astray])
            else:
                boundaries.append(chain)
        elif inner == chain:
            found.append(_ring_defect(graph, "unknown", chain, 0.5))
        else:
            # At the border an odd ring is easily one of noise, and leads the line of the others astray.
            todo += _chains(graph, inner)
    joined = _joined(graph, boundaries)
    for cluster, chance in ((c, p) for c, p in unclear if c not in links):
        beside = [chain for chain in joined if _continues(graph, chain, cluster)]
        if beside:
            beside[0].append(cluster)
        elif chance > 0.0:
            found.append(_ring_defect(graph, "unknown", [cluster], chance))
    for chain in _joined(graph, joined):
        found.append(_ring_defect(graph, "GB(5-7)", chain, 0.95 if sum(len(c.sizes) for c in chain) >= 3 else 0.7))
    return found


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
        distance = np.hypot(*(places[:, :2] - graph.pixel_size.to_nm(np.array(defect.center_px))).T)
        nearest = int(np.argmin(distance)) if len(places) else -1
        looked_at = nearest >= 0 and bool(distance[nearest] < WEIGHED_NM)
        if looked_at:
            there, margin, more = float(places[nearest, 2]), float(places[nearest, 3]), int(places[nearest, 4])
        chance = defect.probability * there
        if looked_at:
            chance = _recalibrated(chance)
        if chance < LEAST:
            continue
        named = 1.0 / (1.0 + math.exp(-min(NAME_ODDS + NAME_SLOPE * max(margin, 0.0), 30.0)))
        other = _of_missing(defect.missing_atoms - more)
        alternatives = defect.alternatives
        if (1.0 - named) * AMBIGUITY >= named and other != defect.name:
            alternatives = (*alternatives, (other, chance * (1.0 - named)))
        result.append(replace(defect, probability=chance * named, alternatives=alternatives))
    return result


def _recalibrated(stated: float) -> float:
    """How often defects are there whose rings and counts state this probability."""
    p = min(max(stated, 1e-6), 1.0 - 1e-6)
    return 1.0 / (1.0 + math.exp(-THERE_ODDS - THERE_SLOPE * math.log(p / (1.0 - p))))


def _of_missing(count: int) -> str:
    """What a defect that lacks so many atoms usually is."""
    return {0: "pristine", 1: "SV", 2: "DV(5-8-5)"}.get(count, f"V{count}" if count > 2 else "unknown")


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


def _divides(graph: AtomGraph, cluster: Cluster) -> bool:
    """Whether many odd rings in one piece have lattices on their sides that are turned against each other."""
    return (len(cluster.sizes) >= MANY_RINGS
            and misorientation_deg(graph, cluster.atoms) >= 2.0 * SMALLEST_MISORIENTATION_DEG)


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


def _atoms_of(chain: list[Cluster]) -> list[int]:
    return sorted({a for c in chain for a in c.atoms})


def _same_grains(graph: AtomGraph, one: list[Cluster], other: list[Cluster]) -> bool:
    """Whether two chains of rings have the same two grains on their sides."""
    here, there = (orientations_deg(graph, _atoms_of(chain)) for chain in (one, other))
    return any(max(abs(turned_deg(p, q)) for p, q in zip(here, pair)) < SAME_GRAIN_DEG
               for pair in (there, there[::-1]))


def _apart_nm(graph: AtomGraph, one: list[Cluster], other: list[Cluster]) -> float:
    here, there = (graph.yx_nm[_atoms_of(chain)] for chain in (one, other))
    return float(cKDTree(here).query(there)[0].min())


def _joined(graph: AtomGraph, boundaries: list[list[Cluster]]) -> list[list[Cluster]]:
    """Pieces of boundaries, those between the same two grains together: noise, dirt and holes cut one into several."""
    pieces = nx.Graph()
    pieces.add_nodes_from(range(len(boundaries)))
    pieces.add_edges_from(
        (j, k) for j, k in combinations(range(len(boundaries)), 2)
        if _apart_nm(graph, boundaries[j], boundaries[k]) < WIDEST_GAP_NM
        and _same_grains(graph, boundaries[j], boundaries[k]))
    return [[c for k in sorted(group) for c in boundaries[k]] for group in nx.connected_components(pieces)]


def _continues(graph: AtomGraph, chain: list[Cluster], cluster: Cluster) -> bool:
    """Whether odd rings without a name go on with a boundary: near it, and with its grains on their sides."""
    return (_apart_nm(graph, chain, [cluster]) < CHAIN_REACH_NM - 0.3
            and _same_grains(graph, chain, [*chain, cluster]) and _on_boundary(graph, chain, cluster))


def _on_boundary(graph: AtomGraph, chain: list[Cluster], cluster: Cluster) -> bool:
    """Whether both grains of a boundary lie around a cluster, or too little is seen of them to say."""
    share = least_share(graph, cluster.atoms, orientations_deg(graph, _atoms_of(chain)))
    return not share < OTHER_GRAIN


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
                  bonds=bonds_of(graph, pairs), angles=tuple(angles), probability=chance,
                  misorientation_deg=misorientation_deg(graph, atoms) if name.startswith("GB") else math.nan)
