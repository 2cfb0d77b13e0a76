"""Specimens with exact truth: two-dimensional crystals with defects as ASE structures.

Positions in this module are (y, x) [nm] until `ase.Atoms` is made; there, ASE's x is the image column
direction and ASE's y the row direction (downwards), in Angstrom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ase
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ..errors import StemdlError
from ..materials import get_material
from .grain_boundary import boundary_sheet, fits
from .mx2_defects import populate_mx2
from .sheet import Sheet, honeycomb_sheet
from .templates import Template

#: How often each kind is drawn for graphene; 'X' is the dopant of the specimen.
GRAPHENE_MIXTURE: Mapping[str, float] = {
    "X-C3": 5.0,
    "X-C4": 4.0,
    "X-C3+V": 2.5,
    "X2C4": 0.7,
    "X2C5": 2.0,
    "X2C6": 0.7,
    "X3C6": 2.5,
    "X4C6": 1.5,
    "SV": 3.0,
    "DV(5-8-5)": 2.0,
    "DV(555-777)": 1.5,
    "V3": 1.0,
    "V4": 1.0,
    "V5": 0.5,
    "V6": 0.7,
    "SW(55-77)": 2.5,
    "N-C3": 1.0,
    "B-C3": 0.7,
}


@dataclass(frozen=True)
class TrueDefect:
    """What a defect truly is.

    Parameters
    ----------
    name : str
        As in the contract of the results: ``Si-C3``, ``SV``, ``W_Mo``...
    composition : mapping of str to int
        Foreign atoms and the host atoms bonded to them; the atoms around a hole or of the odd rings.
    center_nm : (float, float)
        Centre of mass (y, x) [nm]; the area centroid of the odd rings where no foreign atom is.
    site_ids : tuple of int
        The atoms, as indices into ``Specimen.atoms``.
    missing_atoms : int
        Host sites without any atom.
    angle_deg : float, optional
        Misorientation of a grain boundary [deg].
    """

    name: str
    composition: Mapping[str, int]
    center_nm: tuple[float, float]
    site_ids: tuple[int, ...]
    missing_atoms: int = 0
    angle_deg: float | None = None


@dataclass(frozen=True)
class Specimen:
    """Atoms and the truth about them.

    Parameters
    ----------
    atoms : ase.Atoms
        [Angstrom]; the field of view is [0, fov] in x and y, atoms a margin outside are kept.
    fov_nm : float or (float, float)
        Field of view [nm], square or (height, width).
    material : str
        Host material.
    defects : tuple of TrueDefect
        In the order in which they were made.
    vacancies_nm : (K, 2) float64
        (y, x) of missing atoms where a vacancy can be seen [nm].
    """

    atoms: ase.Atoms
    fov_nm: float | tuple[float, float]
    material: str
    defects: tuple[TrueDefect, ...] = ()
    vacancies_nm: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))

    @property
    def shape_nm(self) -> tuple[float, float]:
        """(height, width) of the field of view [nm]."""
        if isinstance(self.fov_nm, tuple):
            return self.fov_nm
        return float(self.fov_nm), float(self.fov_nm)

    @property
    def yx_nm(self) -> NDArray[np.float64]:
        """(N, 2) positions (y, x) [nm]."""
        return 0.1 * self.atoms.positions[:, 1::-1]


def _shape(fov_nm: float | tuple[float, float]) -> tuple[float, float]:
    height, width = fov_nm if isinstance(fov_nm, tuple) else (fov_nm, fov_nm)
    if not (0.2 <= height <= 500.0 and 0.2 <= width <= 500.0):
        raise StemdlError(f"field of view must be between 0.2 and 500 nm, not {fov_nm!r} nm")
    return float(height), float(width)


def _specimen(sheet: Sheet, fov_nm: float | tuple[float, float]) -> Specimen:
    height, width = _shape(fov_nm)
    index = np.cumsum(sheet.alive) - 1
    kept = np.flatnonzero(sheet.alive)
    positions = np.stack([10 * sheet.yx[kept, 1], 10 * sheet.yx[kept, 0], sheet.z[kept]], axis=1)
    atoms = ase.Atoms(numbers=sheet.numbers[kept], positions=positions,
                      cell=[10 * width, 10 * height, 20.0], pbc=False)
    defects = []
    for mark in sheet.marks:
        ids = tuple(int(index[m]) for m in mark.members if sheet.alive[m])
        if not ids and not mark.missing:
            continue
        composition: dict[str, int] = {}
        for k in sorted(ids, key=lambda k: atoms.numbers[k] in sheet.host_numbers):
            symbol = chemical_symbols[atoms.numbers[k]]
            composition[symbol] = composition.get(symbol, 0) + 1
        defects.append(TrueDefect(mark.name, composition, (float(mark.center[0]), float(mark.center[1])), ids,
                                  mark.missing, mark.angle_deg))
    vacancies = np.array(sheet.vacancies, dtype=np.float64).reshape(-1, 2)
    return Specimen(atoms, fov_nm, sheet.material.name, tuple(defects), vacancies)


def _sheet_of(specimen: Specimen) -> Sheet:
    sheet = Sheet(
        get_material(specimen.material),
        specimen.yx_nm.copy(),
        specimen.atoms.positions[:, 2].copy(),
        specimen.atoms.numbers.astype(np.int64),
    )
    for d in specimen.defects:
        ids = np.array(d.site_ids, dtype=np.int64)
        sheet.mark(d.name, ids, np.array(d.center_nm), d.missing_atoms, d.angle_deg)
        if d.angle_deg is not None:
            sheet.keep_clear = sheet.yx[ids]
    sheet.vacancies = [v for v in np.asarray(specimen.vacancies_nm)]
    return sheet


def graphene(*, fov_nm: float | tuple[float, float], rotation_deg: float = 0.0,
             offset_nm: tuple[float, float] = (0.0, 0.0), margin_nm: float = 0.5) -> Specimen:
    """Perfect graphene.

    Parameters
    ----------
    fov_nm : float or (float, float)
        Field of view [nm].
    rotation_deg : float
        Angle of a lattice vector (zigzag direction) from the image's x axis towards y [deg].
    offset_nm : (float, float)
        Position (y, x) of one atom [nm].
    margin_nm : float
        Atoms are kept this far outside the field of view [nm].

    Returns
    -------
    Specimen
    """
    return _specimen(
        honeycomb_sheet(get_material("graphene"), _shape(fov_nm), rotation_deg, offset_nm, margin_nm), fov_nm
    )


def mx2(*, material: str = "MoSe2", fov_nm: float | tuple[float, float], rotation_deg: float = 0.0,
        offset_nm: tuple[float, float] = (0.0, 0.0), margin_nm: float = 0.5) -> Specimen:
    """Perfect 1H monolayer of a dichalcogenide, seen along c; the two chalcogens of a column differ in z.

    Parameters are those of `graphene`; `offset_nm` is the position of one metal atom. A rotation by 60
    degrees exchanges the two orientations of the crystal.
    """
    if get_material(material).kind != "mx2":
        raise StemdlError(f"{material!r} is not a metal dichalcogenide; use graphene()")
    return _specimen(
        honeycomb_sheet(get_material(material), _shape(fov_nm), rotation_deg, offset_nm, margin_nm), fov_nm
    )


def add_defect(specimen: Specimen, kind: str, at_nm: tuple[float, float], *, rng: np.random.Generator,
               dopant: str = "Si") -> Specimen:
    """A specimen with one defect more, at the lattice position of the right kind nearest to `at_nm`.

    Parameters
    ----------
    specimen : Specimen
        Where `at_nm` the lattice has to be perfect.
    kind : str
        For graphene: SV, DV(5-8-5), DV(555-777), V3...V6, SW(55-77), Si-C3, Si-C4, Si-C3+V, Si2C4, Si2C5,
        Si2C6, Si3C6, Si4C6, N-C3, B-C3; 'Si' stands for `dopant`. For MX2: <element>_<metal>, V_<chalcogen>,
        V_<chalcogen>2, V_<metal>, <metal>_<chalcogen>, <metal>_<chalcogen>2, <chalcogen>_<metal>,
        <chalcogen>2_<metal>, <other chalcogen>_<chalcogen>.
    at_nm : (float, float)
        Where (y, x) [nm].
    rng : numpy.random.Generator
        Chooses the orientation and the natural bond lengths.
    dopant : str
        Foreign element for kinds with 'Si' or 'X'.

    Raises
    ------
    StemdlError
        If the kind is unknown or the lattice around `at_nm` is not perfect.
    """
    sheet = _sheet_of(specimen)
    if not sheet.add(kind, np.asarray(at_nm, dtype=np.float64), rng=rng, dopant=dopant):
        raise StemdlError(f"no room for {kind} at {tuple(at_nm)} nm: the lattice there is not perfect")
    return _specimen(sheet, specimen.fov_nm)


def add_template(
    specimen: Specimen, patch: Template, at_nm: tuple[float, float], *, rng: np.random.Generator
) -> Specimen | None:
    """A specimen with one structure of one's own more (see `found.found_template`), in a random orientation.

    Returns
    -------
    Specimen or None
        None where there is no room for it, or the lattice near `at_nm` is not perfect.
    """
    sheet = _sheet_of(specimen)
    if not sheet.insert(patch, np.asarray(at_nm, dtype=np.float64), rng=rng):
        return None
    return _specimen(sheet, specimen.fov_nm)


def random_specimen(
    material: str,
    fov_nm: float | tuple[float, float],
    rng: np.random.Generator,
    *,
    kinds: Mapping[str, float] | Sequence[str] | None = None,
    density_per_nm2: float | None = None,
    dopant: str = "Si",
    pristine_probability: float = 0.12,
    boundary_probability: float = 0.05,
    unrelaxed_probability: float = 0.0,
    margin_nm: float = 0.5,
) -> Specimen:
    """A specimen at random orientation with a realistic mixture of defects, far enough apart.

    Parameters
    ----------
    material : str
        Name of the host material.
    fov_nm : float or (float, float)
        Field of view [nm].
    rng : numpy.random.Generator
    kinds : mapping of kind to weight, or sequence of kinds, optional
        Default: all kinds of the material. 'GB(5-7)' among them turns fields into bicrystals.
    density_per_nm2 : float, optional
        Mean number of defects per area; drawn from a wide distribution when left out.
    dopant : str
        Foreign element of graphene's defects; for MX2 a light or heavy metal is drawn, this one being most
        likely.
    pristine_probability, boundary_probability : float
        How often the field has no defect, and (graphene) a grain boundary.
    unrelaxed_probability : float
        How often the host around a defect (graphene) has moved only a random part of the way to its relaxed
        places, from none to all: structures built by hand, and what the beam has just made.
    margin_nm : float
        Atoms are kept this far outside the field of view [nm].
    """
    host = get_material(material)
    shape = _shape(fov_nm)
    turn, offset = rng.uniform(0.0, 360.0), tuple(rng.uniform(0.0, host.lattice_nm, 2))
    weights = _weights(kinds, host.kind)
    if kinds is not None:
        boundary_probability = weights.get("GB(5-7)", 0.0) / max(sum(weights.values()), 1e-9)
    weights.pop("GB(5-7)", None)
    if host.kind == "honeycomb" and rng.random() < boundary_probability and fits(shape, margin_nm):
        sheet = boundary_sheet(shape, margin_nm, rng)
    else:
        sheet = honeycomb_sheet(host, shape, turn, offset, margin_nm)  # type: ignore[arg-type]
    if host.kind == "mx2":
        if rng.random() >= pristine_probability:
            populate_mx2(sheet, shape, rng, weights=weights, density_per_nm2=density_per_nm2, dopant=dopant)
        return _specimen(sheet, fov_nm)
    if weights and rng.random() >= pristine_probability:
        area = shape[0] * shape[1]
        density = density_per_nm2 if density_per_nm2 is not None else float(rng.choice([0.06, 0.15, 0.3]))
        count = rng.poisson(density * area) + (density_per_nm2 is None)
        names, chances = list(weights), np.array(list(weights.values()), dtype=np.float64)
        for kind in rng.choice(names, size=count, p=chances / chances.sum()).tolist():
            for _ in range(4):
                spread = rng.uniform(0.94, 1.06)
                if unrelaxed_probability and rng.random() < unrelaxed_probability:
                    spread = rng.uniform(0.0, 1.0)
                at = rng.uniform(-0.05, 1.05, 2) * shape
                if sheet.add(kind, at, rng=rng, dopant=dopant, spread=spread):
                    break
    return _specimen(sheet, fov_nm)


def _weights(kinds: Mapping[str, float] | Sequence[str] | None, host_kind: str) -> dict[str, float]:
    if kinds is None:
        return dict(GRAPHENE_MIXTURE) if host_kind == "honeycomb" else {}
    return dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(kinds, 1.0)


