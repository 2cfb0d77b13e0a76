"""A defect with its surroundings as a structure for first-principles calculations."""

from __future__ import annotations

import io
from pathlib import Path

import ase
import ase.io
import numpy as np

from .analysis import FrameAnalysis
from .errors import StemdlError
from .materials import get_material

#: Formats by the end of the file's name; ASE's names.
FORMATS = {".vasp": "vasp", ".poscar": "vasp", ".cif": "cif", ".xyz": "extxyz"}
#: Half the distance of the two chalcogens of a column [Angstrom] (Rasmussen & Thygesen, J. Phys. Chem. C
#: 2015).
CHALCOGEN_HEIGHT = {"S": 1.56, "Se": 1.67, "Te": 1.80}
#: Start heights of foreign atoms of the second row and beyond in graphene [Angstrom]: a flat start is a
#: saddle point, from which no relaxation finds the buckled 3-fold site.
THREE_FOLD_HEIGHT = 0.9


def defect_cutout(analysis: FrameAnalysis, defect_id: int, *, radius_nm: float = 1.0,
                  vacuum_nm: float = 1.5, relative_to_host: bool = True) -> ase.Atoms:
    """The atoms around a defect in a cell with vacuum on all sides.

    Parameters
    ----------
    analysis : FrameAnalysis
    defect_id : int
        Which defect.
    radius_nm : float
        Atoms up to this far from the defect's own atoms are kept [nm].
    vacuum_nm : float
        Empty space between the cut-out and its periodic images, also along z [nm].
    relative_to_host : bool
        Scale positions so that the host's mean bond is the material's: what remains of a calibration error
        must not strain the calculation.

    Returns
    -------
    ase.Atoms
        z is the height above the sheet, an estimate (images show projections); the array ``defect`` is 1 for
        the defect's own atoms; ``info`` says what it is. Carbon at the rim wants saturating with hydrogen.

    Raises
    ------
    StemdlError
        If there is no such defect.
    """
    if not 0 <= defect_id < len(analysis.defects):
        raise StemdlError(f"no defect {defect_id}: this frame has {len(analysis.defects)}")
    if not radius_nm > 0 or not vacuum_nm > 0:
        raise StemdlError(f"radius and vacuum must be positive, not {radius_nm!r} and {vacuum_nm!r} nm")
    defect = analysis.defects[defect_id]
    host = get_material(analysis.material)
    yx = analysis.pixel_size.to_nm(analysis.sites.yx_px)
    own = np.array(defect.site_ids, dtype=np.int64)
    centers = yx[own] if len(own) else analysis.pixel_size.to_nm(np.array([defect.center_px]))
    distance = np.min(np.hypot(*(yx[:, None, :] - centers[None]).transpose(2, 0, 1)), axis=1)
    kept = np.flatnonzero(distance <= radius_nm)
    if relative_to_host:
        inside = ~np.isin(analysis.bonds.a, own) & ~np.isin(analysis.bonds.b, own)
        if np.sum(inside) > 20:
            yx = yx * (1e3 * host.bond_nm / float(np.median(analysis.bonds.length_pm[inside])))
    symbols = analysis.sites.species[kept].tolist()
    z = np.zeros(len(kept))
    members = np.isin(kept, own).astype(int)
    if host.kind == "honeycomb":
        three_fold = {i for i, n in defect.coordination.items() if max(n, key=lambda k: n[k], default=0) == 3}
        z = np.array([THREE_FOLD_HEIGHT if k in three_fold and s not in ("B", "N", "C") else 0.0
                      for k, s in zip(kept.tolist(), symbols)])
    positions = np.stack([10 * yx[kept, 1], 10 * yx[kept, 0], z], axis=1)
    if host.kind == "mx2":
        positions, symbols, members = _both_chalcogens(analysis, positions, symbols, members, kept)
    atoms = ase.Atoms(symbols, positions=positions)
    atoms.set_array("defect", np.asarray(members))
    low, high = positions.min(axis=0), positions.max(axis=0)
    gap = 10 * vacuum_nm
    atoms.set_cell(high - low + gap)
    atoms.positions += 0.5 * gap - low
    atoms.pbc = True
    atoms.info.update(
        {
            "defect": defect.name,
            "frame": analysis.frame,
            "center_px": list(map(float, defect.center_px)),
            "probability": float(defect.probability),
        }
    )
    return atoms


def _both_chalcogens(analysis: FrameAnalysis, positions: np.ndarray, symbols: list[str], members: np.ndarray,
                     kept: np.ndarray) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Chalcogen columns as two atoms, or one where the column is half empty."""
    single = {d.site_ids[0] for d in analysis.defects if d.name in ("V_S", "V_Se", "V_Te")}
    rows, names, flags = [], [], []
    for k, (row, symbol, flag) in enumerate(zip(positions, symbols, members)):
        height = CHALCOGEN_HEIGHT.get(symbol)
        for sign in ((0.0,) if height is None else (1.0,) if int(kept[k]) in single else (1.0, -1.0)):
            rows.append([row[0], row[1], sign * (height or 0.0)])
            names.append(symbol)
            flags.append(int(flag))
    return np.array(rows), names, np.array(flags)


def write_cutout(path: Path | str, atoms: ase.Atoms) -> None:
    """Write a cut-out as POSCAR (.vasp, .poscar or a name that starts with POSCAR), CIF or extended xyz.

    Raises
    ------
    StemdlError
        If the name ends in something else.
    """
    target = Path(path)
    kind = "vasp" if target.name.upper().startswith("POSCAR") else FORMATS.get(target.suffix.lower())
    if kind is None:
        raise StemdlError(
            f"cannot write {target.name}: a cut-out's name ends in {', '.join(FORMATS)} or is POSCAR"
        )
    text: io.StringIO | io.BytesIO
    if kind == "vasp":
        text = io.StringIO()
        ase.io.write(text, atoms, format=kind, direct=False, sort=True, vasp5=True)
        content = text.getvalue()
    elif kind == "cif":
        text = io.BytesIO()
        ase.io.write(text, atoms, format=kind)
        content = text.getvalue().decode()
    else:
        text = io.StringIO()
        ase.io.write(text, atoms, format=kind)
        content = text.getvalue()
    temporary = target.with_name(f".{target.name}.part")
    temporary.write_text(content)
    temporary.replace(target)
