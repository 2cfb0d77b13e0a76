"""A sheet of atoms that defects are put into, and how they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ..materials import Material
from .defect_shapes import resolve_kind
from .mx2_defects import add_mx2
from .templates import VARIANTS, Template, template

#: Half the distance of the two chalcogens of a column [Angstrom] (Rasmussen & Thygesen, J. Phys. Chem. C
#: 2015).
CHALCOGEN_HEIGHT = {"S": 1.56, "Se": 1.67, "Te": 1.80}
#: Nearest centres of two point defects [nm].
SEPARATION_NM = 0.8


@dataclass(frozen=True)
class Mark:
    """The truth about one defect of a sheet under construction; members are indices into the sheet."""

    name: str
    members: NDArray[np.int64]
    center: NDArray[np.float64]
    missing: int
    angle_deg: float | None
    extent: float


class Sheet:
    """Atoms as growing columns: position (y, x) [nm], height [Angstrom], atomic number, presence."""

    def __init__(self, material: Material, yx: NDArray[np.float64], z: NDArray[np.float64],
                 numbers: NDArray[np.int64]) -> None:
        self.material = material
        self.yx, self.z, self.numbers = yx, z, numbers
        self.alive = np.ones(len(yx), dtype=bool)
        self.marks: list[Mark] = []
        self.vacancies: list[NDArray[np.float64]] = []
        self.host_numbers = {atomic_numbers[s] for s in material.species}
        #: Where the atoms were before any defect moved them: what templates are matched to.
        self.perfect = yx.copy()
        #: Atoms of a grain boundary: no point defect near them.
        self.keep_clear = np.zeros((0, 2))
        self._tree: cKDTree | None = None

    @property
    def tree(self) -> cKDTree:
        """Search tree over the perfect positions."""
        if self._tree is None:
            self._tree = cKDTree(self.perfect)
        return self._tree

    def mark(self, name: str, members: NDArray[np.int64], center: NDArray[np.float64], missing: int,
             angle_deg: float | None = None, extent: float | None = None) -> None:
        """Write down the truth about one defect."""
        if extent is None:
            extent = float(np.max(np.hypot(*(self.yx[members] - center).T))) if len(members) else 0.2
        self.marks.append(Mark(name, members, center, missing, angle_deg, extent))

    def has_room(self, at: NDArray[np.float64], extent: float) -> bool:
        """Whether a defect of this size [nm] keeps its distance from all others."""
        if len(self.keep_clear) and np.min(np.hypot(*(self.keep_clear - at).T)) < extent + 0.35:
            return False
        for other in self.marks:
            if other.angle_deg is None and \
                    math.dist(at, other.center) < max(SEPARATION_NM, extent + other.extent + 0.2):
                return False
        return True

    def add(self, kind: str, at: NDArray[np.float64], *, rng: np.random.Generator, dopant: str,
            spread: float = 1.0) -> bool:
        """Put a defect near `at`; False where there is no room or the lattice is not perfect."""
        if self.material.kind == "mx2":
            return add_mx2(self, kind, at, rng)
        general, symbol = resolve_kind(kind, dopant)
        return self._insert(template(general, symbol, int(rng.integers(VARIANTS))), at, rng, spread)

    def insert(self, patch: Template, at: NDArray[np.float64], *, rng: np.random.Generator) -> bool:
        """Put a patch of one's own near `at`; False where there is no room or the lattice is not perfect."""
        return self._insert(patch, at, rng, 1.0)

    def _insert(
        self, patch: Template, at: NDArray[np.float64], rng: np.random.Generator, spread: float
    ) -> bool:
        bond = self.material.bond_nm
        distance, near = self.tree.query(at, k=6)
        if distance[0] > bond:
            return False
        origin = int(near[0])
        around = np.array(
            [i for i in self.tree.query_ball_point(self.perfect[origin], 1.2 * bond) if i != origin]
        )
        if len(around) != 3:
            return False
        anchor, drawn_at = self.perfect[origin], 90.0
        toward = self.perfect[int(rng.choice(around))] - anchor
        if patch.anchor == "bond":
            anchor, drawn_at = anchor + 0.5 * toward, 0.0
        elif patch.anchor == "ring":
            # The ring opposite to a bond; of the three around the atom, the one nearest to where it is
            # wanted.
            outward = self.perfect[around] - anchor
            toward = outward[int(np.hypot(*(anchor - outward - at).T).argmin())]
            anchor = anchor - toward
            angle = math.radians(60.0) * int(rng.integers(6))
            c, s = math.cos(angle), math.sin(angle)
            toward = np.array([[c, s], [-s, c]]) @ toward
        if not self.has_room(anchor, patch.extent * bond):
            return False
        turn = math.atan2(toward[0], toward[1]) - math.radians(drawn_at)
        c, s = math.cos(turn), math.sin(turn)
        # The axis along the bond is a mirror of the lattice: half of the drawings are reflected in it.
        mirror = rng.choice((-1.0, 1.0))
        flip = np.diag((1.0, mirror)) if drawn_at == 90.0 else np.diag((mirror, 1.0))
        matrix = bond * np.array([[c, s], [-s, c]]) @ flip
        place = anchor + patch.host @ matrix.T
        gap, index = self.tree.query(place, distance_upper_bound=0.35 * bond)
        found = np.isfinite(gap)
        gone_gap, gone = self.tree.query(anchor + patch.removed @ matrix.T, distance_upper_bound=0.35 * bond)
        matched = np.where(found, index, -1)
        ids = np.concatenate([matched, len(self.yx) + np.arange(len(patch.added))])[patch.members]
        if np.any(ids < 0) or not np.all(np.isfinite(gone_gap)) or not np.all(self.alive[gone]):
            return False
        shift = (patch.turned + spread * (patch.shift - patch.turned)) @ matrix.T
        self.yx[index[found]] += shift[found]
        self.alive[gone] = False
        center = anchor + spread_points(patch.center, matrix)
        if len(patch.added):
            self._append(anchor + patch.added @ matrix.T, patch.height, patch.numbers)
            mass = atomic_masses[self.numbers[ids]]
            center = (self.yx[ids] * mass[:, None]).sum(axis=0) / mass.sum()
        self.mark(patch.name, ids, center, patch.missing, extent=patch.extent * bond)
        self.vacancies += list(anchor + patch.holes @ matrix.T)
        return True

    def _append(self, yx: NDArray[np.float64], z: NDArray[np.float64], numbers: NDArray[np.int64]) -> None:
        self.yx = np.concatenate([self.yx, yx])
        # Foreign atoms are no place to put the next defect: out of reach of the search tree.
        self.z = np.concatenate([self.z, z])
        self.numbers = np.concatenate([self.numbers, numbers])
        self.alive = np.concatenate([self.alive, np.ones(len(yx), dtype=bool)])


def spread_points(points: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of a template in the sheet, relative to the anchor."""
    return points @ matrix.T


def honeycomb_sheet(material: Material, shape_nm: tuple[float, float], rotation_deg: float,
                    offset_nm: tuple[float, float], margin_nm: float) -> Sheet:
    """A perfect sheet that covers the field of view and a margin."""
    a = material.lattice_nm
    angle = math.radians(rotation_deg)
    c, s = math.cos(angle), math.sin(angle)
    # Lattice vectors at 0 and 60 degrees, turned; rows (y, x).
    basis = a * np.array([[s, c], [0.5 * s + 0.5 * math.sqrt(3) * c, 0.5 * c - 0.5 * math.sqrt(3) * s]])
    low, high = np.full(2, -margin_nm), np.asarray(shape_nm) + margin_nm
    corners = (
        np.array([[low[0], low[1]], [low[0], high[1]], [high[0], low[1]], [high[0], high[1]]]) - offset_nm
    )
    span = corners @ np.linalg.inv(basis)
    first, last = np.floor(span.min(axis=0)) - 1, np.ceil(span.max(axis=0)) + 1
    i, j = np.meshgrid(np.arange(first[0], last[0] + 1), np.arange(first[1], last[1] + 1), indexing="ij")
    metal = np.stack([i.ravel(), j.ravel()], axis=1) @ basis + offset_nm
    other = metal + (basis[0] + basis[1]) / 3.0

    def cut(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return points[np.all((points >= low) & (points <= high), axis=1)]

    metal, other = cut(metal), cut(other)
    if material.kind == "honeycomb":
        yx = np.concatenate([metal, other])
        return Sheet(material, yx, np.zeros(len(yx)), np.full(len(yx), atomic_numbers[material.species[0]]))
    height = CHALCOGEN_HEIGHT[material.species[1]]
    yx = np.concatenate([metal, other, other])
    z = np.concatenate([np.zeros(len(metal)), np.full(len(other), height), np.full(len(other), -height)])
    numbers = np.repeat([atomic_numbers[s] for s in material.species], [len(metal), 2 * len(other)])
    return Sheet(material, yx, z, numbers)
