"""Structures that were found in images, as patches that can be put into any sheet of the same host."""

from __future__ import annotations

from collections import Counter

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from ..errors import StemdlError
from ..materials import Material
from .relax import BENDING, neighbour_angles, relax
from .templates import Template, honeycomb_patch

#: Host atoms of the found structure within this distance of a perfect site are that site, displaced [bonds].
_SAME = 0.45
#: Perfect sites without an atom are holes where no atom is nearer than this [bonds].
_EMPTY = 0.80
#: Atoms nearer than this are no structure [bonds].
_NEAREST = 0.72
#: Bonds between host atoms shorter than this were not measured well [bonds]: strained ones keep nine tenths.
_SHORT = 0.84
#: Beyond the defect's own atoms, displacements fade to nothing over this distance [bonds]: there they are noise.
_FADE = 1.8


def found_template(name: str, yx_nm: NDArray[np.float64], species: NDArray[np.str_], core: NDArray[np.bool_], *,
                   turn_rad: float, material: Material, missing: int,
                   bonds: NDArray[np.int64] | None = None) -> Template:
    """A mean structure as a patch for a sheet.

    Parameters
    ----------
    name : str
        What the truth will call it.
    yx_nm : (N, 2) float64
        Positions about the defect's centre [nm].
    species : (N,) str
    core : (N,) bool
        The defect's own atoms.
    turn_rad : float
        Direction of the host's bonds, modulo 60 degrees.
    material : Material
        The host, a honeycomb.
    missing : int
        Host atoms missing.
    bonds : (B, 2) int64, optional
        With them, a structure whose host atoms were measured too near each other is relaxed: neighbours that the probe
        hardly separates pull each other in a fit.

    Returns
    -------
    Template

    Raises
    ------
    StemdlError
        If the structure cannot be laid onto the host lattice (a grain boundary, or another host).
    """
    if material.kind != "honeycomb":
        raise StemdlError(f"structures found in {material.name} are rebuilt by their names, not by their geometry")
    bond = material.bond_nm
    angle = np.radians(90.0) - turn_rad
    c, s = np.cos(angle), np.sin(angle)
    yx = (yx_nm / bond) @ np.array([[c, s], [-s, c]]).T
    reach = float(np.max(np.hypot(*yx[core].T), initial=0.5))
    if bonds is not None and len(bonds):
        yx = _relaxed(yx, np.isin(species, material.species), bonds, reach)
    sheet = honeycomb_patch("atom", reach + 6.0)
    host = np.isin(species, material.species)
    yx = yx + _onto(sheet, yx, host & ~core, reach)
    middle = yx[core].mean(axis=0) if core.any() else np.zeros(2)
    # The origin is an atom of the sublattice whose neighbours lie at 90, 210 and 330 degrees, the nearest one.
    own = sheet[_first_sublattice(sheet)]
    origin = own[int(np.argmin(np.hypot(*(own - middle).T)))]
    yx, sheet, middle = yx - origin, sheet - origin, middle - origin
    inner = reach + 0.6
    near = np.flatnonzero(np.hypot(*(sheet - middle).T) < inner + _FADE)
    atoms = np.flatnonzero(host & (np.hypot(*(yx - middle).T) < inner + _FADE + 0.5))
    pairs = _pairs(sheet[near], yx[atoms])
    at_site = {int(near[i]): int(atoms[j]) for i, j in pairs}
    within = np.hypot(*(sheet - middle).T) < inner
    removed = np.array([k for k in np.flatnonzero(within).tolist() if k not in at_site], dtype=np.int64)
    kept = np.array(sorted(at_site), dtype=np.int64)
    fade = np.clip((inner + _FADE - np.hypot(*(sheet[kept] - middle).T)) / _FADE, 0.0, 1.0)
    shift = fade[:, None] * (yx[[at_site[k] for k in kept.tolist()]] - sheet[kept])
    taken = set(at_site.values())
    extra = [j for j in range(len(yx)) if j not in taken and np.hypot(*(yx[j] - middle)) < inner]
    added = yx[extra].reshape(-1, 2)
    placed = np.concatenate([sheet[kept] + shift, added])
    if len(placed) > 1 and float(cKDTree(placed).query(placed, k=2)[0][:, 1].min()) < _NEAREST:
        raise StemdlError(f"{name}: atoms of the mean structure are nearer than atoms can be: its members differ")
    source = [at_site[k] for k in kept.tolist()] + extra
    members = np.array([n for n, j in enumerate(source) if core[j]], dtype=np.int64)
    holes = np.array([sheet[k] for k in removed.tolist() if np.min(np.hypot(*(placed - sheet[k]).T)) > _EMPTY])
    if len(members) == 0 or len(removed) - sum(1 for j in extra if host[j]) > missing + 8:
        raise StemdlError(f"{name}: the structure does not fit onto the lattice of {material.name}")
    return Template(
        name=name, anchor="atom", missing=missing, host=sheet[kept], shift=shift, removed=sheet[removed].reshape(-1, 2),
        numbers=np.array([atomic_numbers[str(species[j])] for j in extra], dtype=np.int64), added=added,
        height=np.zeros(len(extra)), members=members, center=placed[members].mean(axis=0), turned=shift,
        holes=holes.reshape(-1, 2), extent=float(np.max(np.hypot(*placed[members].T))))


def _relaxed(yx: NDArray[np.float64], host: NDArray[np.bool_], bonds: NDArray[np.int64],
             reach: float) -> NDArray[np.float64]:
    """Host bonds at their natural length where some are far too short; bonds of foreign atoms stay as measured."""
    a, b = bonds.T
    length = np.hypot(*(yx[a] - yx[b]).T)
    plain = host[a] & host[b]
    if not np.any(plain & (length < _SHORT)):
        return yx
    angles, degree = neighbour_angles(len(yx), a, b, yx)
    odd = ~host[angles[:, 1]]
    bending = np.where(odd, 0.03, np.where(degree == 2, 0.5, 1.0) * BENDING)
    none = np.zeros((0, 2), dtype=np.int64)
    # Only atoms with all their bonds known may move; the others hold the patch in place.
    full = np.bincount(bonds.ravel(), minlength=len(yx)) >= 3
    return relax(yx, a=a, b=b, length=np.where(plain, 1.0, length), stiffness=np.where(plain, 1.0, 0.5), angles=angles,
                 angle_cos=np.where(degree == 4, 0.0, -0.5), angle_stiffness=bending, apart=none,
                 apart_length=np.zeros(0), free=(full | ~host) & (np.hypot(*yx.T) < reach + 1.0))


def _first_sublattice(sheet: NDArray[np.float64]) -> NDArray[np.int64]:
    """Sites of `honeycomb_patch` that have a neighbour straight below (y + 1)."""
    # Sublattice 0 is at y = 1.5 n, the other at y = 1.5 n + 1.
    return np.flatnonzero(np.abs(sheet[:, 0] / 1.5 - np.round(sheet[:, 0] / 1.5)) < 0.1)


def _onto(sheet: NDArray[np.float64], yx: NDArray[np.float64], outer: NDArray[np.bool_],
          reach: float) -> NDArray[np.float64]:
    """The shift that lays the surroundings onto the perfect sheet."""
    ring = np.flatnonzero(outer & (np.hypot(*yx.T) < reach + 3.2))
    if len(ring) < 6:
        raise StemdlError("too few host atoms around the structure to lay it onto the lattice")
    points = yx[ring]
    # Well away from the defect the host is least strained: those atoms decide.
    weight = 1.0 / (1.0 + np.exp(-(np.hypot(*points.T) - reach - 0.4) / 0.3))
    steps = np.linspace(-0.5, 0.5, 13)
    a, b = np.array([1.5, np.sqrt(3.0) / 2]), np.array([1.5, -np.sqrt(3.0) / 2])
    best, least = np.zeros(2), np.inf
    for u in steps:
        for v in steps:
            shift = u * a + v * b
            for _ in range(3):
                squared = ((points[:, None] + shift - sheet[None]) ** 2).sum(axis=2)
                index = squared.argmin(axis=1)
                away = np.minimum(squared[np.arange(len(points)), index], 0.25)
                good = weight * (away < 0.25)
                if good.sum() < 1e-6:
                    break
                shift = shift + (good[:, None] * (sheet[index] - points - shift)).sum(axis=0) / good.sum()
            cost = float((weight * away).sum())
            if cost < least - 1e-9:
                best, least = shift, cost
    if least / weight.sum() > 0.06:
        raise StemdlError("the structure's surroundings are no piece of the host lattice")
    return best


def _pairs(sites: NDArray[np.float64], atoms: NDArray[np.float64]) -> list[tuple[int, int]]:
    if len(sites) == 0 or len(atoms) == 0:
        return []
    distance = np.hypot(*(sites[:, None] - atoms[None]).transpose(2, 0, 1))
    cost = np.where(distance < _SAME, distance**2, 1e3)
    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(cost)) if distance[i, j] < _SAME]


def composition(template: Template, host: str) -> dict[str, int]:
    """Number of atoms of each element among a template's members."""
    from ase.data import chemical_symbols

    n_host = len(template.host)
    return dict(Counter(host if m < n_host else chemical_symbols[int(template.numbers[m - n_host])]
                        for m in template.members.tolist()))
