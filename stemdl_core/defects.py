"""Named defects: connected parts of the graph that depart from the host lattice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .analysis import AMBIGUITY, Defect, Defects
from .coordination import Reading, contacts, coordination, readings, usual, weigh_fourth
from .geometry import bonds_of, center_of_mass, composition_of, ring_angles
from .graph import ALL_ROUND_DEG, AtomGraph, widest_gap_deg
from .light import light_substitutions
from .materials import bond_length_pm
from .mx2 import find_mx2_defects
from .ring_defects import ring_defects
from .rings import describe, dopant_faces

#: More foreign atoms than this in one piece are residue on the sheet, not a defect of it.
LARGEST_CLUSTER = 8


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
    found += ring_defects(graph, dopants.tolist(), holes, weighed)
    found += [
        _light_defect(graph, site, symbol, chance) for site, symbol, chance in light_substitutions(graph)
    ]
    return _numbered(found)


def _numbered(found: Iterable[Defect]) -> Defects:
    ordered = sorted(found, key=lambda d: d.center_px)
    return Defects(tuple(replace(d, id=k) for k, d in enumerate(ordered)))


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
            widest = widest_gap_deg(graph.yx_nm[sorted(hosts)] - graph.yx_nm[group[0]])
            if region.missing is None:
                vacant = widest > ALL_ROUND_DEG + 10.0 or region.seen_hole
            else:
                vacant = region.missing >= 1 and (widest > ALL_ROUND_DEG or region.seen_hole)
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
