"""Point defects and composition of dichalcogenide monolayers, from columns that are told apart already."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .analysis import AMBIGUITY, Defect
from .geometry import bonds_of, composition_of, ring_angles
from .graph import AtomGraph


def find_mx2_defects(graph: AtomGraph, *, vacancies_px: NDArray[np.float64] | None = None) -> list[Defect]:
    """Substitutions, half and full chalcogen vacancies, antisites and missing metals.

    Parameters
    ----------
    graph : AtomGraph
        With `columns`.
    vacancies_px : (K, 2) array, optional
        Where the network sees missing columns [px].
    """
    columns = graph.columns
    if columns is None or len(graph.sites) == 0:
        return []
    metal, chalcogen = graph.material.species
    # Sites on which nothing stands, seen as a column by the tails of its neighbours alone.
    empty = {f"V_{chalcogen}2": 2, f"vac_{metal}": 1}
    found = []
    for i in np.flatnonzero((columns.kind != "") & ~graph.sites.edge).tolist():
        name = str(columns.kind[i])
        around = sorted(graph.neighbours[i])
        sites = tuple(around) if name in empty else (i, *around)
        if not sites:
            continue
        chance = float(columns.probability[i] * graph.sites.score[i]) * columns.confidence
        rivals = tuple((n, chance * p) for n, p in columns.rivals(name))
        host_chance = (1.0 - float(columns.probability[i])) * columns.confidence
        if not rivals and host_chance * AMBIGUITY >= chance:
            rivals = (("pristine", host_chance),)
        if columns.interchanged is not None:
            other = columns.interchanged
            rivals = _with(rivals, str(other.kind[i]),
                           float(other.probability[i] * graph.sites.score[i]) * other.confidence)
        pairs = [(i, j) for j in around]
        missing = {f"V_{chalcogen}": 1, **empty}.get(name, 0)
        found.append(
            Defect(
                id=0,
                name=name,
                composition=composition_of(graph, sites),
                site_ids=sites,
                center_px=(float(graph.sites.y_px[i]), float(graph.sites.x_px[i])),
                missing_atoms=missing,
                bonds=bonds_of(graph, pairs),
                angles=ring_angles(graph, [i], pairs),
                probability=chance,
                alternatives=rivals,
            )
        )
    return found + _empty_sites(graph, vacancies_px)


def _with(rivals: tuple[tuple[str, float], ...], name: str, chance: float) -> tuple[tuple[str, float], ...]:
    """Rivals and one more, or more of one of them; the most probable first."""
    its = dict(rivals)
    its[name or "pristine"] = its.get(name or "pristine", 0.0) + chance
    return tuple(sorted(its.items(), key=lambda item: -item[1]))


def empty_columns(graph: AtomGraph) -> NDArray[np.bool_]:
    """(N,) bool: sites on which nothing stands, taken for a column by the tails of its neighbours."""
    if graph.columns is None:
        return np.zeros(len(graph.sites), dtype=bool)
    metal, chalcogen = graph.material.species
    return np.isin(graph.columns.kind, (f"V_{chalcogen}2", f"vac_{metal}"))


def _empty_sites(graph: AtomGraph, vacancies_px: NDArray[np.float64] | None) -> list[Defect]:
    """Sites without a column: where at least two neighbours, short of a bond, both point."""
    assert graph.columns is not None
    bond = graph.scale * graph.material.bond_nm
    points, owners = [], []
    for i in np.flatnonzero((graph.degree < 3) & (graph.degree > 0) & ~graph.sites.edge).tolist():
        steps = graph.yx_nm[graph.neighbours[i]] - graph.yx_nm[i]
        steps /= np.hypot(steps[:, 0], steps[:, 1])[:, None]
        if len(steps) == 2:
            away = -steps.sum(axis=0)
            directions = [away / max(np.hypot(*away), 1e-9)]
        else:
            c, s = -0.5, 0.5 * math.sqrt(3.0)
            directions = [np.array([[c, s], [-s, c]]) @ steps[0], np.array([[c, -s], [s, c]]) @ steps[0]]
        for direction in directions:
            points.append(graph.yx_nm[i] + bond * direction)
            owners.append(i)
    if len(points) < 2:
        return []
    places = np.array(points)
    free = graph.tree.query(places)[0] > 0.55 * bond
    network = None if vacancies_px is None else graph.pixel_size.to_nm(vacancies_px).reshape(-1, 2)
    todo, found = set(np.flatnonzero(free).tolist()), []
    tree = cKDTree(places)
    corner = graph.pixel_size.to_nm(np.array([graph.shape[0] - 1.0, graph.shape[1] - 1.0]))
    while todo:
        seed = min(todo)
        group = [k for k in tree.query_ball_point(places[seed], 0.4 * bond) if k in todo]
        todo -= set(group)
        around = sorted({owners[k] for k in group})
        at = places[group].mean(axis=0)
        if len(around) < 2 or np.any(at < bond) or np.any(at > corner - bond):
            continue
        on_metal = bool(np.mean(graph.columns.metal[around]) < 0.5)
        metal, chalcogen = graph.material.species
        chance = 0.9
        if network is not None:
            seen = bool(len(network)) and float(np.min(np.hypot(*(network - at).T))) < 0.08
            if len(around) < 3 and not seen:
                continue  # open on one side: the rim of a hole
            chance = 0.98 if seen else 0.5
        y, x = graph.pixel_size.to_px(at)
        names = (f"vac_{metal}", f"V_{chalcogen}2")[:: 1 if on_metal else -1]
        sure = graph.columns.confidence
        found.append(
            Defect(
                id=0,
                name=names[0],
                composition=composition_of(graph, around),
                site_ids=tuple(around),
                center_px=(float(y), float(x)),
                missing_atoms=1 if on_metal else 2,
                probability=chance * sure,
                alternatives=((names[1], chance * (1.0 - sure)),) if (1.0 - sure) * AMBIGUITY >= sure else (),
            )
        )
    return found


def alloy_fractions(graph: AtomGraph) -> Mapping[str, tuple[float, float]]:
    """Fraction of every foreign element on the metal sublattice, with its standard deviation.

    The error bar joins counting (how representative so many sites are) and doubt about single columns.
    """
    columns = graph.columns
    if columns is None:
        return {}
    host = graph.material.species[0]
    on_metal = columns.metal & ~graph.sites.edge
    total = int(on_metal.sum())
    if total == 0:
        return {}
    result = {}
    for symbol in sorted(set(columns.species[on_metal].tolist()) - set(graph.material.species)):
        of = on_metal & np.char.startswith(columns.kind, f"{symbol}_{host}")
        p = np.where(of, columns.probability, 0.0)
        x = float(of.sum()) / total
        doubt = float(np.sum(p * (1.0 - p))) / total**2
        result[symbol] = (x, math.sqrt(max(x * (1.0 - x), 0.25 / total) / total + doubt))
    return result
