"""Point defects and alloys of metal dichalcogenide monolayers.

Names are Kroger-Vink style, species_site: ``W_Mo`` a metal substitution, ``V_Se`` one chalcogen of a column
missing, ``V_Se2`` both, ``V_Mo`` a missing metal, ``Mo_Se`` / ``Mo_Se2`` a metal in place of one / both
chalcogens of a column, ``Se_Mo`` / ``Se2_Mo`` one / two chalcogens on a metal site, ``S_Se`` one chalcogen
exchanged.

References
----------
Zhou et al., Nano Lett. 13, 2615 (2013); Hong et al., Nat. Commun. 6, 6293 (2015): point defects of MoS2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ..errors import StemdlError

if TYPE_CHECKING:
    from .sheet import Sheet

#: Metals found as dopants of dichalcogenides, and how often they are drawn.
METAL_DOPANTS = {"W": 4.0, "Mo": 4.0, "V": 1.5, "Nb": 1.5, "Ti": 1.0, "Cr": 1.0, "Re": 1.5, "Ta": 1.0,
                 "Mn": 0.7, "Fe": 0.7, "Co": 0.7}
CHALCOGENS = ("S", "Se", "Te")
#: Metals around an empty chalcogen column move this far away from it [nm].
_VACANCY_RELAXATION_NM = 0.005


class _Columns:
    """Metal sites and chalcogen columns of a perfect sheet with their neighbours."""

    def __init__(self, sheet: Sheet) -> None:
        metal, chalcogen = (atomic_numbers[s] for s in sheet.material.species)
        # A column is known by its upper chalcogen; the lower one follows half the list later.
        self.metal = np.flatnonzero(sheet.numbers == metal)
        both = np.flatnonzero(sheet.numbers == chalcogen)
        self.upper, self.lower = both[: len(both) // 2], both[len(both) // 2:]
        reach = 1.15 * sheet.material.bond_nm
        self._metals, self._uppers = cKDTree(sheet.yx[self.metal]), cKDTree(sheet.yx[self.upper])
        self.of_metal = [self.upper[k] for k in self._uppers.query_ball_point(sheet.yx[self.metal], reach)]
        self.of_column = [self.metal[k] for k in self._metals.query_ball_point(sheet.yx[self.upper], reach)]

    def nearest(self, at: NDArray[np.float64], *, on_metal: bool) -> int:
        """Number of the metal or the column nearest to a point."""
        return int((self._metals if on_metal else self._uppers).query(at)[1])


def parse_kind(kind: str, metal: str, chalcogen: str) -> tuple[str, int, str, int]:
    """Split a name into incoming species (none: vacancy), how many, site species, how many taken away.

    Vanadium on a metal site is written ``V_<metal>``, as is a metal vacancy; the substitution is far more
    common and is meant, and the missing metal is ``vac_<metal>``.

    Raises
    ------
    StemdlError
        If the kind is not a defect of this material.
    """
    match = re.fullmatch(r"(vac|[A-Z][a-z]?)(2?)_([A-Z][a-z]?)(2?)", kind)
    if not match or match[3] not in (metal, chalcogen) or (match[3] == metal and match[4]) \
            or (match[1] != "vac" and match[1] not in atomic_numbers):
        raise StemdlError(
            f"unknown defect kind {kind!r}: for this material <element>_{metal}, V_{chalcogen}, "
            f"V_{chalcogen}2, vac_{metal}, {metal}_{chalcogen}, {metal}_{chalcogen}2, "
            f"{chalcogen}_{metal}, {chalcogen}2_{metal}"
        )
    incoming = match[1]
    if incoming == "vac" or (incoming == "V" and match[3] == chalcogen):
        incoming = ""
    return incoming, 2 if match[2] else 1, match[3], 2 if match[4] else 1


def _apply(sheet: Sheet, columns: _Columns, kind: str, number: int) -> None:
    """Carry out one defect on metal or column `number`."""
    metal, chalcogen = sheet.material.species
    incoming, count, site, taken = parse_kind(kind, metal, chalcogen)
    if site == metal:
        atom = int(columns.metal[number])
        around, place = columns.of_metal[number], sheet.yx[atom].copy()
        if not incoming:
            sheet.alive[atom] = False
            sheet.vacancies.append(place)
            sheet.mark(kind, around, place, 1, extent=0.0)
            return
        members = np.concatenate([[atom], around])
        sheet.numbers[atom] = atomic_numbers[incoming]
        if count == 2:
            height = abs(sheet.z[columns.upper[0]])
            sheet.z[atom] = height
            sheet._append(place[None], np.array([-height]), np.array([atomic_numbers[incoming]]))
        sheet.mark(kind, members, place, 0, extent=0.0)
        return
    up, low = int(columns.upper[number]), int(columns.lower[number])
    around, place = columns.of_column[number], sheet.yx[up].copy()
    if not incoming:
        sheet.alive[low] = False
        if taken == 2:
            sheet.alive[up] = False
            away = sheet.yx[around] - place
            sheet.yx[around] += _VACANCY_RELAXATION_NM * away / np.linalg.norm(away, axis=1, keepdims=True)
            sheet.vacancies.append(place)
            sheet.mark(kind, around, place, 2, extent=0.0)
        else:
            sheet.mark(kind, np.concatenate([[up], around]), place, 1, extent=0.0)
        return
    sheet.numbers[up] = atomic_numbers[incoming]
    if taken == 2 and count == 1:
        sheet.alive[low], sheet.z[up] = False, 0.0
    if count == 2:
        sheet.numbers[low] = atomic_numbers[incoming]
    sheet.mark(kind, np.concatenate([[up], around]), place, int(taken > count), extent=0.0)


def add_mx2(sheet: Sheet, kind: str, at: NDArray[np.float64], rng: np.random.Generator) -> bool:
    """Put one defect at the metal or column nearest to `at`; False if it is taken already."""
    metal, chalcogen = sheet.material.species
    *_, site, _ = parse_kind(kind, metal, chalcogen)
    numbers = {atomic_numbers[metal], atomic_numbers[chalcogen]}
    pristine = np.isin(sheet.numbers, list(numbers)) & sheet.alive
    z = sheet.z[sheet.numbers == atomic_numbers[chalcogen]]
    if len(sheet.marks) == 0 and np.sum(z > 0) == np.sum(z < 0) and np.all(pristine):
        columns = _Columns(sheet)
        _apply(sheet, columns, kind, columns.nearest(at, on_metal=site == metal))
        return True
    return _add_among_others(sheet, kind, at, on_metal=site == metal)


def _add_among_others(sheet: Sheet, kind: str, at: NDArray[np.float64], *, on_metal: bool) -> bool:
    """Put a defect into a sheet that has some: columns are told by position, not by their order."""
    metal, chalcogen = (atomic_numbers[s] for s in sheet.material.species)
    reach = 1.15 * sheet.material.bond_nm
    metals = np.flatnonzero((sheet.numbers == metal) & sheet.alive)
    uppers = np.flatnonzero((sheet.numbers == chalcogen) & sheet.alive & (sheet.z > 0.1))
    lowers = np.flatnonzero((sheet.numbers == chalcogen) & sheet.alive & (sheet.z < -0.1))
    candidates = metals if on_metal else uppers
    target = int(candidates[np.argmin(np.hypot(*(sheet.yx[candidates] - at).T))])
    place = sheet.yx[target]
    if any(math.dist(place, m.center) < 0.05 for m in sheet.marks) or math.dist(place, at) > 2 * reach:
        return False
    below = lowers[np.hypot(*(sheet.yx[lowers] - place).T) < 0.02]
    if not on_metal and len(below) == 0:
        return False
    everything = np.flatnonzero(sheet.alive & (sheet.z > -0.1))
    ring = np.hypot(*(sheet.yx[everything] - place).T)
    around = everything[(ring > 0.05) & (ring < reach)]
    columns = object.__new__(_Columns)
    columns.metal, columns.upper, columns.lower = np.array([target]), np.array([target]), below
    columns.of_metal = columns.of_column = [around]
    if on_metal:
        columns.upper = uppers
    _apply(sheet, columns, kind, 0)
    return True


def populate_mx2(sheet: Sheet, shape_nm: tuple[float, float], rng: np.random.Generator, *,
                 weights: Mapping[str, float], density_per_nm2: float | None, dopant: str) -> None:
    """Alloy and point defects at random: no two on the same column."""
    metal, chalcogen = sheet.material.species
    columns = _Columns(sheet)
    inside_metal = np.array([len(a) == 3 for a in columns.of_metal])
    inside_column = np.array([len(a) == 3 for a in columns.of_column])
    metals = rng.permutation(np.flatnonzero(inside_metal)).tolist()
    tops = rng.permutation(np.flatnonzero(inside_column)).tolist()
    if weights:
        density = density_per_nm2 if density_per_nm2 is not None else float(rng.uniform(0.1, 1.0))
        names, chances = list(weights), np.array(list(weights.values()), dtype=np.float64)
        drawn = rng.choice(
            names, size=rng.poisson(density * shape_nm[0] * shape_nm[1]), p=chances / chances.sum()
        )
        plan = {str(k): int(n) for k, n in zip(*np.unique(drawn, return_counts=True))}
    else:
        plan = _mixture(rng, metal, chalcogen, dopant, len(metals), len(tops), density_per_nm2, shape_nm)
    for kind, count in plan.items():
        pool = metals if parse_kind(kind, metal, chalcogen)[2] == metal else tops
        for _ in range(min(count, len(pool))):
            _apply(sheet, columns, kind, pool.pop())


def _mixture(rng: np.random.Generator, metal: str, chalcogen: str, dopant: str, n_metals: int, n_tops: int,
             density_per_nm2: float | None, shape_nm: tuple[float, float]) -> dict[str, int]:
    """How many of each kind: alloys from traces to a half, vacancies up to several percent of the columns."""
    choices = {k: v for k, v in METAL_DOPANTS.items() if k != metal}
    if dopant in choices:
        choices[dopant] += 4.0
    chances = np.array(list(choices.values()))
    guest = str(rng.choice(list(choices), p=chances / chances.sum()))
    if density_per_nm2 is not None:
        total = int(rng.poisson(density_per_nm2 * shape_nm[0] * shape_nm[1]))
        parts = rng.multinomial(total, [0.5, 0.35, 0.1, 0.05]).tolist()
    else:
        x = float(rng.choice([0.0, 0.01, 0.05, 0.2, 0.5], p=[0.2, 0.2, 0.25, 0.25, 0.1])) * rng.uniform(
            0.5, 1.0
        )
        single = float(rng.choice([0.0, 0.01, 0.04, 0.1])) * rng.uniform(0.3, 1.0)
        pair = float(rng.choice([0.0, 0.005, 0.02])) * rng.uniform(0.3, 1.0)
        parts = [rng.binomial(n_metals, x), rng.binomial(n_tops, single), rng.binomial(n_tops, pair),
                 rng.poisson(0.4) if rng.random() < 0.3 else 0]
    plan = {
        f"{guest}_{metal}": int(parts[0]),
        f"V_{chalcogen}": int(parts[1]),
        f"V_{chalcogen}2": int(parts[2]),
    }
    rare = [f"{metal}_{chalcogen}", f"{metal}_{chalcogen}2", f"{chalcogen}_{metal}", f"{chalcogen}2_{metal}",
            f"vac_{metal}"]
    for kind in rng.choice(rare, size=int(parts[3])).tolist():
        plan[kind] = plan.get(kind, 0) + 1
    return plan
