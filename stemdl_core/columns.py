"""Columns of a dichalcogenide: which sublattice, and what stands on each site, by intensity.

No fixed threshold: every image has its own detector, dose and contamination. On each sublattice a mixture model
with as many components as the data support separates host, dopant and vacancy, and which element a component
is follows from its mean under the detectors that the image is consistent with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .analysis import AMBIGUITY
from .colouring import coloured_parts
from .detectors import Z_EXPONENT, Reading, all_detectors, chalcogen_readings, intensity_of, metal_readings
from .materials import Material
from .rarities import rarities
from .scatter import excess_around
from .sites import Sites
from .sublattice import (
    DIMMEST,
    FEWEST,
    Sublattices,
    assign_sublattices,
    component_odds,
    tolerances,
)

__all__ = ["Z_EXPONENT", "Columns", "classify_columns", "intensity_of", "name_component"]

#: Spread of what the tails of neighbours leave on an empty site, as part of a host column.
_EMPTY_SPREAD = 0.06
#: A component farther than this from everything known, in tolerances, has no name.
_FARTHEST = 3.5
#: Columns brighter than the host's by this part may be host columns with dirt on them. Dirt comes in patches, on both
#: sublattices: so many columns of either are looked at.
_BRIGHTER, _AROUND = 1.1, 20
#: A foreign atom stands on its site, an atom of dirt anywhere: a column is called dirty where it is farther than the
#: first number from the middle of its three neighbours, over the typical distance, and its excess less than the second
#: number of times that of the columns around it.
_DIRTY = ((2.5, 25.0), (1.3, 12.0), (0.0, 8.0))


@dataclass(frozen=True)
class Columns:
    """What every column is.

    Parameters
    ----------
    species : (N,) str
        Element that names the column.
    metal : (N,) bool
        On the metal sublattice.
    kind : (N,) str
        Name of the defect that the column is, '' for a host column.
    probability : (N,) float64
        Of `kind` (or of being a host column).
    alternatives : tuple of tuple of (str, float)
        For every defect kind that occurs, in the order of `kinds`: other readings of the same component.
    kinds : tuple of str
    confidence : float
        Probability that metal and chalcogen are not interchanged.
    warnings : tuple of str
        What the user has to know, one line each.
    interchanged : Columns, optional
        What the columns are if metal and chalcogen are interchanged, where that is nearly as probable.
    """

    species: NDArray[np.str_]
    metal: NDArray[np.bool_]
    kind: NDArray[np.str_]
    probability: NDArray[np.float64]
    alternatives: tuple[tuple[tuple[str, float], ...], ...]
    kinds: tuple[str, ...]
    confidence: float = 1.0
    warnings: tuple[str, ...] = ()
    interchanged: Columns | None = None

    def rivals(self, kind: str) -> tuple[tuple[str, float], ...]:
        """Other names for a kind, with the probability relative to all readings."""
        return self.alternatives[self.kinds.index(kind)] if kind in self.kinds else ()


def classify_columns(yx_nm: NDArray[np.float64], sites: Sites, pairs: NDArray[np.int64], material: Material,
                     dopant: str | None) -> Columns:
    """Sublattice, element and defect of every column.

    Parameters
    ----------
    yx_nm : (N, 2) float64
        Positions [nm].
    sites : Sites
        With `intensity`, in any common unit.
    pairs : (B, 2) int64
        Bonds between neighbouring columns.
    material : Material
    dopant : str, optional
        The element expected on metal sites; the material's by default.
    """
    n = len(sites)
    metal_symbol, chalcogen = material.species
    both = assign_sublattices(yx_nm, sites, pairs, material, dopant)
    if both is None:
        metal = _by_brightness(yx_nm, sites, pairs, material)
        return Columns(np.where(metal, metal_symbol, chalcogen).astype("U4"), metal, np.full(n, "", dtype="U12"),
                       np.ones(n), (), (), 0.5 if n else 1.0)
    found, reverse = both
    read = _read(found, yx_nm, sites, pairs, material, dopant)
    chance = 1.0 / (1.0 + math.exp(-min(found.log_odds, 50.0)))
    if chance >= AMBIGUITY / (1.0 + AMBIGUITY):
        return replace(read, confidence=chance)
    warning = (f"the brightness of the two sublattices hardly tells {metal_symbol} from {chalcogen} (probability "
               f"{chance:.2f}): they may be interchanged")
    other = replace(_read(reverse, yx_nm, sites, pairs, material, dopant), confidence=1.0 - chance)
    return replace(read, confidence=chance, warnings=(warning,), interchanged=other)


def _read(found: Sublattices, yx_nm: NDArray[np.float64], sites: Sites, pairs: NDArray[np.int64], material: Material,
          dopant: str | None) -> Columns:
    """What every column is, on sublattices that are told apart."""
    n = len(sites)
    metal_symbol, chalcogen = material.species
    metal = found.metal
    kind, probability = np.full(n, "", dtype="U12"), np.ones(n)
    species = np.where(metal, metal_symbol, chalcogen).astype("U4")
    names: dict[str, dict[str, float]] = {}
    noise = _counting(sites)
    expected = {*material.species, material.dopant if dopant is None else dopant}
    for on_metal in (True, False):
        index = np.flatnonzero((metal == on_metal) & np.isfinite(found.value))
        if len(index) < FEWEST:
            continue
        mixture, host, unit = found.mixtures[on_metal], found.host[on_metal], found.unit[on_metal]
        posterior = mixture.membership(found.value[index] / unit, found.sigma[index] / unit)
        component = posterior.argmax(axis=1)
        readings = metal_readings(material, dopant) if on_metal else chalcogen_readings(material)
        for k in range(len(mixture.mean)):
            members, mine = index[component == k], posterior[component == k, k]
            if k == host:
                probability[members] = mine
                continue
            odds = _odds(float(mixture.mean[k] / mixture.mean[host]), float(mixture.weight[k]), len(index),
                         mixture.width, readings, found.detector)
            name = max(odds, key=lambda r: odds[r]) if odds else "unknown"
            kind[members] = name
            species[members] = next((r.element for r in readings if r.name == name), species[members][:1])
            probability[members] = mine * (odds[name] if odds else 1.0)
            names.setdefault(name, odds)
        plain, level = index[kind[index] == ""], unit * float(mixture.mean[host])
        left = [r for r in readings if not np.any(kind[index] == r.name)]
        rare = rarities(found.value[plain] / level, found.sigma[plain] / level, noise / level, mixture.width, left,
                        found.detector, expected)
        for k, reading, its in zip(plain[rare.index].tolist(), rare.reading, rare.probability.tolist()):
            kind[k], species[k], probability[k] = reading.name, reading.element, its
        _empty_sites(index, found.value / level, found.sigma / level, mixture.width, readings, kind, species,
                     probability)
    bright = np.flatnonzero((kind != "") & (found.value > _BRIGHTER * found.level))
    dirty = bright[_dirt_on(bright, yx_nm, pairs, metal, found.value - found.level, sites.intensity_sigma)]
    # A chalcogen nobody expects, most of whose columns are dirty, is dirt.
    for name in {r.name for r in chalcogen_readings(material) if r.element not in expected}:
        its = np.flatnonzero(kind == name)
        if 2 * np.isin(its, dirty).sum() >= len(its):
            dirty = np.union1d(dirty, its)
    kind[dirty], species[dirty] = "", np.where(metal[dirty], metal_symbol, chalcogen)
    names = {name: odds for name, odds in names.items() if np.any(kind == name)}
    for name in np.unique(kind[kind != ""]).tolist():
        names.setdefault(name, {name: 1.0})
    return Columns(species, metal, kind, probability, tuple(_rivals(name, odds) for name, odds in names.items()),
                   tuple(names))


def _counting(sites: Sites) -> float:
    """By how much the square of the error of an intensity grows with it."""
    known = np.isfinite(sites.intensity) & np.isfinite(sites.intensity_sigma)
    if known.sum() < 2 * FEWEST:
        return 0.0
    x, y = sites.intensity[known], sites.intensity_sigma[known] ** 2
    keep = y <= 4.0 * np.median(y)
    return max(float(np.polyfit(x[keep], y[keep], 1)[0]), 0.0) if np.ptp(x[keep]) > 0 else 0.0


def _dirt_on(bright: NDArray[np.intp], yx_nm: NDArray[np.float64], pairs: NDArray[np.int64], metal: NDArray[np.bool_],
             excess: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(K,) whether bright columns may be host columns with atoms of dirt on them.

    `excess` (N,) is the brightness above the host's, `sigma` (N,) its standard error.
    """
    three = np.bincount(pairs.ravel(), minlength=len(yx_nm)) == 3
    if len(bright) == 0 or not three.any():
        return np.zeros(len(bright), dtype=bool)
    total = np.stack([np.bincount(pairs[:, 0], yx_nm[pairs[:, 1], k], len(yx_nm))
                      + np.bincount(pairs[:, 1], yx_nm[pairs[:, 0], k], len(yx_nm)) for k in (0, 1)], axis=1)
    apart = np.where(three, np.hypot(*(yx_nm - total / 3).T), 0.0)
    apart = apart[bright] / float(np.median(apart[three]))
    around = np.minimum(*(excess_around(bright, yx_nm, excess, sigma, side, crowd=_AROUND) for side in (metal, ~metal)))
    return np.any([(apart > far) & (excess[bright] < times * around) for far, times in _DIRTY], axis=0)


def _empty_sites(index: NDArray[np.int64], value: NDArray[np.float64], sigma: NDArray[np.float64], width: float,
                 readings: list[Reading], kind: NDArray[np.str_], species: NDArray[np.str_],
                 probability: NDArray[np.float64]) -> None:
    """Tell an empty site from a dim column, one by one: rare kinds share a component, their levels differ.

    `value` and `sigma` are in units of the host column. Changes `kind`, `species` and `probability` in place.
    """
    empty = next(r for r in readings if float(r.ratio[0]) < 0.11 and r.name.startswith(("vac_", "V_")))
    foreign = index[kind[index] != ""]
    dim = foreign[value[foreign] < 0.7]
    if len(dim) == 0:
        return
    # The level of what stands there: of the clear cases, else as the usual detector says.
    clear = dim[(kind[dim] != empty.name) & (kind[dim] != "unknown") & (value[dim] > 0.15)]
    if len(clear) == 0:
        return
    common = str(max(set(kind[clear].tolist()), key=kind[clear].tolist().count))
    level = float(np.median(value[clear[kind[clear] == common]]))
    element = species[clear[kind[clear] == common]][0]
    prior = empty.prior * empty.usual / next((r.prior * r.usual for r in readings if r.name == common), 1.0)

    def density(at: float) -> NDArray[np.float64]:
        scale = np.hypot(sigma[dim], max(width * at, _EMPTY_SPREAD))
        return np.asarray(np.exp(-0.5 * ((value[dim] - at) / scale) ** 2) / scale)

    nothing, something = prior * density(float(empty.ratio[0])), density(level)
    chance = nothing / (nothing + something + 1e-300)
    gone = (kind[dim] == common) & (chance > 0.5)
    back = (kind[dim] == empty.name) & (chance < 0.5)
    kind[dim[gone]], species[dim[gone]] = empty.name, empty.element
    kind[dim[back]], species[dim[back]] = common, element
    changed = gone | back
    probability[dim[changed]] *= np.maximum(chance, 1.0 - chance)[changed]


def _by_brightness(yx_nm: NDArray[np.float64], sites: Sites, pairs: NDArray[np.int64],
                   material: Material) -> NDArray[np.bool_]:
    """Metal sites among too few columns for more than a look at which of two sublattices is the brighter."""
    colour, _ = coloured_parts(yx_nm, pairs)
    metal = np.zeros(len(sites), dtype=bool)
    value = [sites.intensity[(colour == c) & np.isfinite(sites.intensity)] for c in (0, 1)]
    if len(sites) < 2:
        return metal
    level = [float(np.median(v)) if len(v) else 0.0 for v in value]
    brighter = intensity_of(material.species[0]) > 2.0 * intensity_of(material.species[1])
    return np.asarray(colour == (0 if (level[0] >= level[1]) == brighter else 1))


def _odds(ratio: float, share: float, count: int, width: float, readings: list[Reading],
          detector: NDArray[np.float64]) -> dict[str, float]:
    """Probability of every reading of a component; empty where none is near."""
    density = component_odds(ratio, share, count, width, readings) + np.log(detector + 1e-12)
    likely = detector > 0.05 * detector.max()
    expected = np.array([r.ratio[likely] for r in readings])
    if np.all(np.abs(np.log(max(ratio, DIMMEST) / expected)) > _FARTHEST * tolerances(expected)):
        return {}
    total = np.exp(density - density.max()).sum(axis=1)
    return {r.name: float(p) for r, p in zip(readings, total / total.sum())}


def _rivals(name: str, odds: dict[str, float]) -> tuple[tuple[str, float], ...]:
    """The readings within a factor of three of the best, relative to it, most probable first."""
    if not odds:
        return ()
    near = ((r, p / odds[name]) for r, p in odds.items() if r != name and p * AMBIGUITY >= odds[name])
    return tuple(sorted(near, key=lambda item: -item[1]))


def name_component(ratio: float, material: Material, *, on_metal: bool, dopant: str | None,
                   share: float = 0.02) -> tuple[str, str, tuple[tuple[str, float], ...]]:
    """Name and element of columns `ratio` times as bright as the host's, on a detector nothing is known about.

    Parameters
    ----------
    ratio : float
    material : Material
    on_metal : bool
        On the metal sublattice.
    dopant : str, optional
        The element expected on metal sites; the material's by default.
    share : float
        Part of the sublattice that they make up.

    Returns
    -------
    (name, element, rivals)
        Rivals are within a factor of three of the best reading. 'unknown' where no reading is near.
    """
    readings = metal_readings(material, dopant) if on_metal else chalcogen_readings(material)
    odds = _odds(ratio, share, 1000, 0.05, readings, all_detectors().prior)
    if not odds:
        return "unknown", material.species[0 if on_metal else 1], ()
    name = max(odds, key=lambda r: odds[r])
    return name, next(r.element for r in readings if r.name == name), _rivals(name, odds)
