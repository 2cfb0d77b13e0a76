"""How well one reading of a track fits each of the names it may have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .hostframe import HostLattice
from .linking import TrackSettings
from .materials import Material
from .observations import Observation, foreign_atoms

#: Middles of the bonds, in lattice vectors from the centre of a hexagon: where a four-fold dopant sits.
_BONDS = np.array([[0.5, 0.5], [0.5, 0.0], [0.0, 0.5]])
#: Beginning of the names of one foreign atom with so many bonds.
_STEM = re.compile(r"^([A-Z][a-z]?-[A-Z][a-z]?)\d")


@dataclass(frozen=True)
class Row:
    """A reading of a track: the observation and its position in the specimen's frame [nm]."""

    number: int
    frame: int
    time_s: float | None
    seen: Observation
    yx_nm: NDArray[np.float64]


def name_evidence(
    row: Row,
    material: Material,
    lattice: HostLattice | None,
    settings: TrackSettings,
    others: Iterable[str] = (),
) -> tuple[dict[str, float], float]:
    """Log-likelihood of a reading for each name it may have or that is among `others`, and for any other.

    A single foreign atom's place is a second witness: three-fold atoms sit on lattice sites, four-fold ones
    in the middle of the two atoms they replace, half a bond away. The host lattice tells the two apart
    without any bond.
    """
    wrong = settings.misread_probability
    # Near the border bonds of clusters are cut off.
    reach = settings.border_nm * (0.5 if row.seen.atoms < 2 else 1.2)
    weight = 0.3 if row.seen.edge or row.seen.border_nm < reach else 1.0
    # What the reading leaves to names it does not list, two of which are likely in practice.
    rest = 0.5 * max(1.0 - sum(row.seen.names.values()), 0.0)
    single = {n for n in (*row.seen.names, *others) if _one_foreign(n, material)}
    if material.kind == "honeycomb":
        stems = {m.group(1) for m in map(_STEM.match, (*row.seen.names, *others)) if m is not None}
        single |= {f"{stem}{number}" for stem in stems for number in "34" if _one_foreign(f"{stem}{number}", material)}
    place: dict[str, float] = {}
    if lattice is not None and material.kind == "honeycomb" and row.seen.atoms and single:
        # Two foreign atoms where one is: a reading whose centre is less to be trusted, too.
        width, most = (0.020, 7.0) if row.seen.atoms == 1 else (0.025, 4.0)
        site = min((lattice.distance_nm(row.yx_nm) / width) ** 2 / 2, most)
        bond = min((lattice.distance_nm(row.yx_nm, _BONDS) / width) ** 2 / 2, most)
        place = {n: -site if n.endswith("3") else -bond for n in single}
    elsewhere = -2.5 if place else 0.0
    evidence = {}
    for name in {*row.seen.names, *others, *single}:
        # 'unknown' is a reading that failed more often than a state of the specimen.
        prior = 0.01 if name == "unknown" else 0.4 if "+V" in name else 1.0
        probability = row.seen.names.get(name, rest)
        evidence[name] = weight * float(np.log((1 - wrong) * prior * probability + wrong / 8))
        count = foreign_atoms(name, material.species)
        evidence[name] += place.get(name, elsewhere if row.seen.atoms == 1 or count == 1 else 0.0)
        # An atom too many or too few is a rare reading, whatever the name says about bonds.
        evidence[name] -= 3.0 if count is not None and count != row.seen.atoms else 0.0
        # ... and no reading at all speaks for a failed one but a failed one.
        evidence[name] -= 4.0 if name == "unknown" and row.seen.name != "unknown" else 0.0
    # Any state may be misread as none of those that have a name.
    against = 1.0 if row.seen.name == "unknown" else 5.0
    return evidence, weight * float(np.log((1 - wrong) * 0.1 * rest + wrong / 8)) - against


def _one_foreign(name: str, material: Material) -> bool:
    """Whether a name is that of a single foreign atom with three or four bonds."""
    return name[-1:] in "34" and "-" in name and foreign_atoms(name, material.species) == 1
