"""Columns of a dichalcogenide: which sublattice, and what stands on each site, by intensity.

No fixed threshold: every image has its own detector, dose and contamination. The two sublattices follow from
the bond graph (neighbours alternate), their order from the ratio of their typical intensities, and on each
sublattice a mixture model with as many components as the data support separates host, dopant and vacancy.
Which element a component is, is a matter of its mean: intensity goes as the atomic number to a power of about
1.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

from .materials import Material
from .mixture import Mixture, fit_mixture
from .sites import Sites

#: Annular dark-field intensity goes as the atomic number to about this power (Krivanek et al., Nature 464,
#: 571 (2010)); between detectors it varies by a tenth, which is the tolerance on the logarithm of a ratio
#: below.
Z_EXPONENT = 1.64
_RATIO_TOLERANCE = 0.16
#: Elements met as dopants on metal sites, with how common they are.
_METALS = {"Mo": 3.0, "W": 3.0, "V": 2.0, "Nb": 2.0, "Re": 1.5, "Ti": 1.0, "Cr": 1.0, "Ta": 1.0, "Fe": 0.5}
#: How much more likely the element is that the user (or the material's table) names.
_NAMED_DOPANT = 30.0


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
    """

    species: NDArray[np.str_]
    metal: NDArray[np.bool_]
    kind: NDArray[np.str_]
    probability: NDArray[np.float64]
    alternatives: tuple[tuple[tuple[str, float], ...], ...]
    kinds: tuple[str, ...]

    def rivals(self, kind: str) -> tuple[tuple[str, float], ...]:
        """Other names for a kind, with the probability relative to all readings."""
        return self.alternatives[self.kinds.index(kind)] if kind in self.kinds else ()


def intensity_of(symbol: str) -> float:
    """Relative intensity of one atom."""
    return float(atomic_numbers[symbol]) ** Z_EXPONENT


def two_colour(n_sites: int, pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Alternating colour 0/1 along bonds, and the connected part of every site."""
    ones = np.ones(len(pairs), dtype=np.int8)
    adjacency = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(n_sites, n_sites)).tocsr()
    count, part = connected_components(adjacency, directed=False)
    colour = np.zeros(n_sites, dtype=np.int64)
    for k in range(count):
        members = np.flatnonzero(part == k)
        if len(members) < 2:
            continue
        order, before = breadth_first_order(adjacency, int(members[0]), directed=False)
        for i in order[1:].tolist():
            colour[i] = 1 - colour[before[i]]
    return colour, part.astype(np.int64)


@dataclass(frozen=True)
class _Levels:
    """One reading of a set of columns as a sublattice: its host component and how plausible that is."""

    host: int
    mean: float
    log_odds: float


def _read_as(mixture: Mixture, material: Material, *, on_metal: bool, dopant: str | None) -> list[_Levels]:
    """Every component frequent enough to be the host, with the plausibility of the others beside it."""
    result = []
    for host in np.flatnonzero(mixture.weight > 0.25).tolist():
        log_odds = math.log(float(mixture.weight[host]))
        for k in range(len(mixture.mean)):
            if k == host:
                continue
            ratio = max(float(mixture.mean[k] / mixture.mean[host]), 0.02)
            best = max(
                math.log(prior) - 0.5 * min(9.0, math.log(ratio / expected) / _RATIO_TOLERANCE) ** 2
                for expected, prior, _ in _possible(material, on_metal=on_metal, dopant=dopant).values()
            )
            # A frequent component needs a better reason than a few odd columns.
            log_odds += (best - math.log(_NAMED_DOPANT)) * (1.0 if mixture.weight[k] > 0.03 else 0.3)
        result.append(_Levels(host, float(mixture.mean[host]), log_odds))
    return result


def _metal_sublattice(colour: NDArray[np.int64], part: NDArray[np.int64], sites: Sites, material: Material,
                      dopant: str | None) -> NDArray[np.bool_]:
    """Which sites are on the metal sublattice: by the network's species where it tells, else by intensity.

    Both assignments of the two colours are read through the mixture of each: the ratio of the host levels,
    and whether the other components are defects that this sublattice is known for (bright ones are metals on
    metal sites, halves are chalcogen vacancies).
    """
    metal, chalcogen = material.species
    sizes = np.bincount(part) if len(part) else np.zeros(0, dtype=np.int64)
    result = np.zeros(len(colour), dtype=bool)
    if len(sizes) == 0:
        return result
    main = part == int(sizes.argmax())
    sides = [main & (colour == c) for c in (0, 1)]
    if np.isin(chalcogen, sites.species) and np.isin(metal, sites.species):
        votes = [np.sum(s & (sites.species == metal)) + np.sum(~s & main & (sites.species == chalcogen))
                 for s in sides]
        metal_side = 0 if votes[0] >= votes[1] else 1
    else:
        metal_side = _brighter_reading(sides, sites, material, dopant)
    result |= sides[metal_side]
    level = [_typical(sites.intensity[sides[metal_side]]), _typical(sites.intensity[sides[1 - metal_side]])]
    for k in np.flatnonzero(sizes).tolist():
        here = part == k
        if main[here][0]:
            continue
        # A stray piece: nearest levels, by intensity.
        own = [_typical(sites.intensity[here & (colour == c)]) for c in (0, 1)]
        cost = [abs(own[c] - level[0]) for c in (0, 1)]
        cost = [cost[c] + abs(own[1 - c] - level[1]) if np.isfinite(own[1 - c]) else cost[c] for c in (0, 1)]
        if np.isfinite(cost[0]) and (not np.isfinite(cost[1]) or cost[0] <= cost[1]):
            result |= here & (colour == 0)
        elif np.isfinite(cost[1]):
            result |= here & (colour == 1)
    return result


def _brighter_reading(
    sides: list[NDArray[np.bool_]], sites: Sites, material: Material, dopant: str | None
) -> int:
    """Which of two sets of columns is the metal sublattice, by intensity alone."""
    metal, chalcogen = material.species
    expected = math.log(intensity_of(metal) / (2.0 * intensity_of(chalcogen)))
    mixtures = []
    for side in sides:
        value, sigma = sites.intensity[side], sites.intensity_sigma[side]
        value, sigma = value[np.isfinite(value)], sigma[np.isfinite(value)]
        if len(value) < 8 or _typical(value) <= 0:
            return 0
        unit = _typical(value)
        mixtures.append(
            (unit, fit_mixture(value / unit, np.where(np.isfinite(sigma), sigma, 0.1 * unit) / unit))
        )
    score = []
    for m in (0, 1):
        (unit_m, mix_m), (unit_c, mix_c) = mixtures[m], mixtures[1 - m]
        score.append(
            max(
                one.log_odds
                + two.log_odds
                - 0.5
                * min(
                    6.0,
                    abs(math.log(max(unit_m * one.mean, 1e-6) / max(unit_c * two.mean, 1e-6)) - expected)
                    / _RATIO_TOLERANCE,
                )
                ** 2
                for one in _read_as(mix_m, material, on_metal=True, dopant=dopant)
                for two in _read_as(mix_c, material, on_metal=False, dopant=dopant)
            )
        )
    return 0 if score[0] >= score[1] else 1


def _typical(values: NDArray[np.float64]) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")


def _gain(
    yx: NDArray[np.float64], value: NDArray[np.float64], reference: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Slow variation of brightness over the image, from the sublattice that is least alloyed."""
    index = np.flatnonzero(reference & np.isfinite(value))
    if len(index) < 40:
        return np.ones(len(yx))
    near = cKDTree(yx[index]).query(yx, k=19)[1]
    local = np.median(value[index][near], axis=1)
    return np.clip(local / np.median(value[index]), 0.5, 2.0)


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
    colour, part = two_colour(n, pairs)
    metal = _metal_sublattice(colour, part, sites, material, dopant)
    species = np.where(metal, metal_symbol, chalcogen).astype("U4")
    kind = np.full(n, "", dtype="U12")
    probability = np.ones(n)
    kinds: list[str] = []
    rivals: list[tuple[tuple[str, float], ...]] = []
    value, sigma = sites.intensity, sites.intensity_sigma
    if n and np.sum(np.isfinite(value)) > 20:
        value = value / _gain(yx_nm, value, ~metal)
        for on_metal in (True, False):
            index = np.flatnonzero((metal == on_metal) & np.isfinite(value))
            if len(index) < 8:
                continue
            unit = _typical(value[index])
            error = np.where(np.isfinite(sigma[index]), sigma[index], 0.1 * unit)
            mixture = fit_mixture(value[index] / unit, error / unit)
            if on_metal:
                host = _host_component(mixture, material, unit, value, metal, dopant)
            else:
                host = max(
                    _read_as(mixture, material, on_metal=False, dopant=dopant), key=lambda r: r.log_odds
                ).host
            component = mixture.posterior.argmax(axis=1)
            for k in range(len(mixture.mean)):
                members = index[component == k]
                if k == host:
                    probability[members] = mixture.posterior[component == k, k]
                    continue
                ratio = float(mixture.mean[k] / mixture.mean[host])
                name, symbol, others = name_component(ratio, material, on_metal=on_metal, dopant=dopant)
                kind[members] = name
                species[members] = symbol
                chance = 1.0 / (1.0 + sum(p for _, p in others))
                probability[members] = mixture.posterior[component == k, k] * (
                    chance if name != "unknown" else 1.0
                )
                if name not in kinds:
                    kinds.append(name)
                    rivals.append(others)
    return Columns(species, metal, kind, probability, tuple(rivals), tuple(kinds))


def _host_component(mixture: Mixture, material: Material, unit: float, value: NDArray[np.float64],
                    metal: NDArray[np.bool_], dopant: str | None) -> int:
    """The host among the components of the metal sublattice.

    In an alloy near one half the more frequent one need not be the host; the level of the chalcogen
    sublattice tells.
    """
    level = _typical(value[~metal])
    expected = math.log(intensity_of(material.species[0]) / (2.0 * intensity_of(material.species[1])))

    def odds(reading: _Levels) -> float:
        if not np.isfinite(level) or level <= 0:
            return reading.log_odds
        ratio = math.log(max(unit * reading.mean, 1e-6) / level)
        return reading.log_odds - 0.5 * min(6.0, abs(ratio - expected) / (2.0 * _RATIO_TOLERANCE)) ** 2

    return max(_read_as(mixture, material, on_metal=True, dopant=dopant), key=odds).host


def _possible(
    material: Material, *, on_metal: bool, dopant: str | None
) -> dict[str, tuple[float, float, str]]:
    """Everything that may stand on a site: name -> (intensity over the host's, how common, element)."""
    metal, chalcogen = material.species
    one, two = intensity_of(chalcogen), 2.0 * intensity_of(chalcogen)
    readings: dict[str, tuple[float, float, str]] = {}
    if on_metal:
        base = intensity_of(metal)
        named = material.dopant if dopant is None else dopant
        for symbol, common in {**_METALS, **({named: 1.0} if named and named != metal else {})}.items():
            if symbol == metal:
                continue
            prior = common * (_NAMED_DOPANT if symbol == named else 1.0)
            readings[f"{symbol}_{metal}"] = (intensity_of(symbol) / base, prior, symbol)
        readings[f"{chalcogen}2_{metal}"] = (two / base, 0.1, chalcogen)
        readings[f"{chalcogen}_{metal}"] = (one / base, 0.1, chalcogen)
    else:
        readings[f"V_{chalcogen}"] = (0.5, 10.0, chalcogen)
        readings[f"V_{chalcogen}2"] = (0.08, 1.0, chalcogen)
        readings[f"{metal}_{chalcogen}2"] = (intensity_of(metal) / two, 0.2, metal)
        readings[f"{metal}_{chalcogen}"] = ((intensity_of(metal) + one) / two, 0.2, metal)
        for other in ("S", "Se", "Te"):
            if other != chalcogen:
                readings[f"{other}_{chalcogen}"] = ((one + intensity_of(other)) / two, 0.1, other)
    return readings


def name_component(ratio: float, material: Material, *, on_metal: bool,
                   dopant: str | None) -> tuple[str, str, tuple[tuple[str, float], ...]]:
    """Name and element of columns `ratio` times as bright as the host's, and rival names with relative odds.

    Returns
    -------
    (name, element, rivals)
        Rivals are within a factor of three of the best reading. 'unknown' where no reading is near.
    """
    readings = _possible(material, on_metal=on_metal, dopant=dopant)
    metal, chalcogen = material.species
    log_ratio = math.log(max(ratio, 0.02))
    odds = {name: prior * math.exp(-0.5 * ((log_ratio - math.log(expected)) / _RATIO_TOLERANCE) ** 2)
            for name, (expected, prior, _) in readings.items()}
    best = max(odds, key=lambda k: odds[k])
    if abs(log_ratio - math.log(readings[best][0])) > 3.5 * _RATIO_TOLERANCE:
        return "unknown", metal if on_metal else chalcogen, ()
    rivals = tuple(
        sorted(
            ((k, v / odds[best]) for k, v in odds.items() if k != best and v * 3.0 >= odds[best]),
            key=lambda item: -item[1],
        )
    )
    return best, readings[best][2], rivals
