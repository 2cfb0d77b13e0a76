"""Result files: tables, extended xyz, HDF5, in folders that are complete or not there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .alloy import local_composition
from .analysis import FrameAnalysis
from .errors import StemdlError
from .frames import Frame

#: Positions to 0.1 thousandth of a pixel, lengths to 0.1 fm: more digits than any measurement has.
_FLOAT_FORMAT = "%.9g"
#: Thickness of the cell of a sheet in ``structure.xyz`` [angstrom]; nothing is periodic.
_CELL_HEIGHT = 20.0


@contextlib.contextmanager
def result_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder whose files appear together at the end, or not at all.

    Files are written into a temporary folder beside the final one, which also shows at once, before any work
    is done, whether there is permission to write. At the end a new folder is put in place by one rename; in
    an existing one the files of the same name are replaced one by one and others are left alone. After an
    exception (Ctrl-C is one) nothing is left, and folders made on the way are removed again.

    Parameters
    ----------
    folder : path
        The final folder; its parents are made as needed.

    Yields
    ------
    Path
        The folder to write into.

    Raises
    ------
    StemdlError
        If the folder cannot be written.
    """
    final = Path(folder)
    made: list[Path] = []
    temporary: Path | None = None
    try:
        try:
            made = _make_parents(final.absolute().parent)
            if final.exists() and not final.is_dir():
                raise StemdlError(f"{final}: is a file, not a folder: choose another with --out")
            if final.is_dir() and not os.access(final, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
            # Named before it is made: an interrupt just after must find what to remove.
            temporary = final.absolute().parent / f".{final.name[:40]}-{secrets.token_hex(6)}"
            temporary.mkdir(mode=0o700)
        except OSError as error:
            raise StemdlError(f"{final}: cannot be written ({error.strerror or error})") from None
        yield temporary
        try:
            _publish(temporary, final)
        except OSError as error:
            raise StemdlError(f"{final}: cannot be written ({error.strerror or error})") from None
        made = []
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder and what is missing above it; those that were made, outermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()][::-1]
    made: list[Path] = []
    try:
        for path in missing:
            path.mkdir()
            made.append(path)
    except OSError:
        for path in reversed(made):
            path.rmdir()
        raise
    if not folder.is_dir():
        raise NotADirectoryError(20, f"{folder} is not a folder")
    return made


def _publish(temporary: Path, final: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    if not final.exists():
        temporary.chmod(0o777 & ~umask)  # temporary folders are private, results are not
        temporary.rename(final)
        return
    files = sorted(p for p in temporary.rglob("*") if p.is_file())
    for file in files:  # before the first is replaced
        target = final / file.relative_to(temporary)
        if target.is_dir():
            raise IsADirectoryError(21, f"{target} is a folder")
    for file in files:
        target = final / file.relative_to(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """JSON as its standard has it: what is not finite becomes null, numpy numbers become numbers."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def analysis_json(analysis: FrameAnalysis) -> str:
    """``analysis.json``: lists with one line a site, bond or defect, so that files compare line by line."""
    parts = []
    for name, value in analysis.to_dict().items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            rows = ",\n  ".join(strict_json(row) for row in value)
            parts.append(f" {json.dumps(name)}: [\n  {rows}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {strict_json(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write_csv(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """A table with a header, full precision, empty fields for what is not known."""
    table.to_csv(
        path, index=False, float_format=_FLOAT_FORMAT, quoting=csv.QUOTE_MINIMAL, lineterminator="\n"
    )


def sites_table(analysis: FrameAnalysis) -> pd.DataFrame:
    """``sites.csv``: one row a site, with its position in the image also in nm.

    Of alloys also ``local_<element>`` and ``local_<element>_sigma``: x of each foreign metal within 1 nm of the site.
    """
    table = analysis.sites.to_dataframe()
    yx_nm = analysis.pixel_size.to_nm(analysis.sites.yx_px)
    table.insert(3, "y_nm", yx_nm[:, 0])
    table.insert(4, "x_nm", yx_nm[:, 1])
    for element in analysis.alloy:
        local = local_composition(analysis, element)
        table[f"local_{element}"], table[f"local_{element}_sigma"] = local.fraction, local.sigma
    return table


def to_atoms(analysis: FrameAnalysis) -> Any:
    """The sites as ASE Atoms [angstrom]: x along the rows of the image, y down its columns, z = 0.

    Arrays ``id``, ``score``, ``sigma`` [angstrom] and ``edge`` stand beside species and positions; the cell
    is the image.
    """
    from ase import Atoms
    from ase.data import atomic_numbers

    sites, pixel_size = analysis.sites, analysis.pixel_size
    yx = 10.0 * pixel_size.to_nm(sites.yx_px)
    height, width = analysis.shape
    rows, columns = 10.0 * pixel_size.to_nm([[height, 0.0], [0.0, width]])
    cell = [[columns[1], columns[0], 0.0], [rows[1], rows[0], 0.0], [0.0, 0.0, _CELL_HEIGHT]]
    symbols = [s if s in atomic_numbers else "X" for s in sites.species.tolist()]
    atoms = Atoms(
        symbols, positions=np.column_stack([yx[:, 1], yx[:, 0], np.zeros(len(sites))]), cell=cell, pbc=False
    )
    atoms.set_array("id", np.arange(len(sites)))
    atoms.set_array("score", np.array(sites.score))
    atoms.set_array("sigma", np.array(sites.sigma_pm) / 100.0)
    atoms.set_array("edge", np.array(sites.edge))
    atoms.info.update(
        {
            "material": analysis.material,
            "model": analysis.model,
            "pixel_size_nm": pixel_size.nm,
            "frame": analysis.frame,
        }
    )
    return atoms


def write_xyz(path: str | os.PathLike[str], analysis: FrameAnalysis) -> None:
    """``structure.xyz``: extended xyz of the sites, as ASE, OVITO and others read it."""
    import ase.io

    text = io.StringIO()
    ase.io.write(
        text,
        to_atoms(analysis),
        format="extxyz",
        columns=["symbols", "positions", "id", "score", "sigma", "edge"],
    )
    Path(path).write_text(text.getvalue(), encoding="utf-8")


def write_graph(path: str | os.PathLike[str], analysis: FrameAnalysis) -> None:
    """``graph.graphml``: atoms, bonds and vacancies, as networkx, Gephi and Cytoscape read them."""
    import networkx as nx

    nx.write_graphml(analysis.to_networkx(), path)


def write_tables(folder: str | os.PathLike[str], analysis: FrameAnalysis) -> None:
    """``analysis.json``, ``sites.csv``, ``defects.csv`` and ``structure.xyz`` of one frame."""
    folder = Path(folder)
    (folder / "analysis.json").write_text(analysis_json(analysis), encoding="utf-8")
    write_csv(folder / "sites.csv", sites_table(analysis))
    write_csv(folder / "defects.csv", analysis.defects.to_dataframe())
    write_xyz(folder / "structure.xyz", analysis)


def write_hdf5(path: str | os.PathLike[str], analysis: FrameAnalysis, frame: Frame | None = None) -> None:
    """Image, tables and mask in one HDF5 file, which `read_frame` also reads as an image.

    ``/image`` with attribute ``pixel_size_nm``; ``/sites/<column>``, ``/bonds/<column>`` and ``/defects/<column>``;
    ``/mask``; the whole of ``analysis.json`` in attribute ``analysis`` of the root.
    """
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["analysis"] = strict_json(analysis.to_dict())
        file.attrs["schema"] = 1
        if frame is not None:
            image = file.create_dataset("image", data=frame.image, compression="gzip", shuffle=True)
            image.attrs["pixel_size_nm"] = analysis.pixel_size.nm
        tables = {"sites": sites_table(analysis), "bonds": analysis.bonds.to_dataframe(),
                  "defects": analysis.defects.to_dataframe()}
        for name, table in tables.items():
            group = file.create_group(name)
            for column in table.columns:
                values = table[column].to_numpy()
                text = values.dtype.kind not in "biuf"
                group.create_dataset(column, data=values.astype(object) if text else values,
                                     dtype=h5py.string_dtype() if text else values.dtype)
        if analysis.mask is not None:
            file.create_dataset("mask", data=analysis.mask, compression="gzip")
