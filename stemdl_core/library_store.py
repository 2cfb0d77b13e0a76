"""A defect library on disk: a folder of JSON, arrays and structures that a person can look into and scripts can read.

``library.json`` holds the classes, ``K1.npy`` the average image of a class and ``K1-examples.npy`` its first members,
``K1.xyz`` the mean structure. Names, merges and drops are decisions of a person: they survive a new build.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np

from .errors import StemdlError
from .library_environment import GRID_NM, GRID_PX
from .library_kinds import DefectClass, Member
from .library_match import Geometry
from .writers import result_folder

FILE = "library.json"


@dataclass(frozen=True, eq=False)
class Library:
    """Classes of defects found in some data.

    Attributes
    ----------
    material : str
        The host.
    classes : tuple of DefectClass
        Ranked by count and novelty.
    sources : tuple of (str, int)
        Files and the number of frames of each.
    merged : mapping of str to str
        Classes that a person declared the same as another.
    dropped : tuple of str
        Classes that a person does not want to see; what they match stays as the analysis named it.
    conditions : mapping
        Imaging conditions measured on the frames, see `imaging_conditions.measure_conditions`.
    model : str
        Model whose analyses were sorted.
    """

    material: str
    classes: tuple[DefectClass, ...] = ()
    sources: tuple[tuple[str, int], ...] = ()
    merged: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)
    model: str = ""

    def head(self, class_id: str) -> str:
        """The class that a class was merged into, or itself."""
        while class_id in self.merged:
            class_id = self.merged[class_id]
        return class_id

    def family(self, class_id: str) -> list[DefectClass]:
        """A class and those merged into it."""
        return [c for c in self.classes if self.head(c.id) == self.head(class_id)]

    def shown(self) -> list[DefectClass]:
        """The classes to look at: neither dropped nor merged into others."""
        return [c for c in self.classes if c.id not in self.merged and c.id not in self.dropped]

    def count(self, class_id: str) -> int:
        """Members of a class and of those merged into it."""
        return sum(c.count for c in self.family(class_id))

    def label(self, class_id: str) -> str:
        """What a class is called: its own or its head's given name, or what it was mostly found as."""
        head = self.find(self.head(class_id))
        return head.name or head.label

    def find(self, text: str) -> DefectClass:
        """A class by id (``K3``) or by name.

        Raises
        ------
        StemdlError
            If there is none, or the name stands for several.
        """
        wanted = text.strip()
        for c in self.classes:
            if c.id.lower() == wanted.lower():
                return c
        hits = [c for c in self.classes if c.name == wanted] or [c for c in self.shown() if c.label == wanted] \
            or [c for c in self.classes if c.label == wanted]
        if len(hits) == 1:
            return hits[0]
        known = ", ".join(c.id for c in self.classes[:12]) or "none"
        if hits:
            raise StemdlError(f"{wanted!r} stands for {', '.join(c.id for c in hits)}: give one of these")
        raise StemdlError(f"no class {wanted!r} in the library: it has {known}")

    # --- decisions of a person

    def named(self, text: str, name: str) -> Library:
        """The library with a class named; an empty name takes a name back."""
        chosen = self.find(self.head(self.find(text).id))
        name = " ".join(name.split())
        return replace(self, classes=tuple(replace(c, name=name) if c.id == chosen.id else c for c in self.classes))

    def joined(self, texts: Iterable[str]) -> Library:
        """The library with several classes declared the same; the first keeps its name."""
        ids = [self.head(self.find(t).id) for t in texts]
        if len(set(ids)) < 2:
            raise StemdlError("merging needs at least two different classes")
        name = next((n for i in ids if (n := self.find(i).name)), "")
        merged = {**self.merged, **{i: ids[0] for i in ids[1:] if i != ids[0]}}
        return replace(self, merged=merged).named(ids[0], name) if name else replace(self, merged=merged)

    def without(self, text: str) -> Library:
        """The library with a class (and those merged into it) put out of sight."""
        gone = [c.id for c in self.family(self.find(text).id)]
        return replace(self, dropped=tuple(dict.fromkeys((*self.dropped, *gone))))


def save_library(folder: Path | str, library: Library, *, extra: dict[str, bytes] | None = None) -> None:
    """Write a library, all of it or nothing; files of classes that are no more are removed.

    Parameters
    ----------
    folder : path
    library : Library
    extra : mapping of file name to content, optional
        Written along (contact sheets).

    Raises
    ------
    StemdlError
        If the folder cannot be written, or is full of other things.
    """
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()) and not (target / FILE).is_file():
        raise StemdlError(f"{target}: holds other files and no library: choose another folder")
    with result_folder(target) as temporary:
        for c in library.classes:
            np.save(temporary / f"{c.id}.npy", c.image)
            np.save(temporary / f"{c.id}-examples.npy", c.examples)
            (temporary / f"{c.id}.xyz").write_text(structure_text(c, library), encoding="utf-8")
        for name, content in (extra or {}).items():
            (temporary / name).write_bytes(content)
        (temporary / FILE).write_text(_json(library), encoding="utf-8")
        written = {p.name for p in temporary.iterdir()}
    for old in target.glob("K*"):
        if old.name not in written and old.stem.split("-")[0] not in {c.id for c in library.classes}:
            old.unlink()


def save_decisions(folder: Path | str, library: Library) -> None:
    """Write names, merges and drops only; the arrays stay as they are."""
    target = Path(folder) / FILE
    temporary = target.with_name(f".{FILE}.part")
    try:
        temporary.write_text(_json(library), encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise StemdlError(f"{target}: cannot be written ({error.strerror or error})") from None


def load_library(folder: Path | str) -> Library:
    """Read a library.

    Raises
    ------
    StemdlError
        If there is none in the folder or it is damaged.
    """
    path = Path(folder)
    try:
        data = json.loads((path / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StemdlError(f"{path}: no defect library there; make one with 'stemdl library build'") from None
    except (OSError, ValueError) as error:
        raise StemdlError(f"{path / FILE}: cannot be read ({error})") from None
    try:
        if data["schema"] != 1:
            raise StemdlError(f"{path}: made by a newer stemdl (schema {data['schema']})")
        return Library(
            material=data["material"], classes=tuple(_class(path, c) for c in data["classes"]),
            sources=tuple((str(s), int(n)) for s, n in data["sources"]), merged=dict(data["merged"]),
            dropped=tuple(data["dropped"]), conditions=data["conditions"], model=data["model"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, StemdlError):
            raise
        raise StemdlError(f"{path}: is damaged ({type(error).__name__}: {error})") from None


def _json(library: Library) -> str:
    data = {"schema": 1, "material": library.material, "model": library.model,
            "sources": [list(s) for s in library.sources], "merged": library.merged, "dropped": list(library.dropped),
            "conditions": library.conditions, "classes": [_plain(c) for c in library.classes]}
    return json.dumps(data, indent=1) + "\n"


def _plain(c: DefectClass) -> dict[str, Any]:
    g = c.geometry

    def rounded(values: Any, digits: int) -> list[Any]:
        return np.round(np.asarray(values, dtype=np.float64), digits).tolist()

    return {
        "id": c.id, "name": c.name, "found_as": [list(n) for n in c.found_as], "kind": c.kind,
        "sub_class_of": c.sub_class_of, "count": c.count, "novelty": round(c.novelty, 4), "composition": c.composition,
        "missing_atoms": c.missing, "graph": c.key, "graph_variants": c.variants, "chemistry": _nested(c.chemistry),
        "host": list(g.host), "turn_deg": round(float(np.degrees(g.turn_rad)), 4), "coherence": round(g.coherence, 4),
        "atoms": {"y_nm": rounded(g.yx_nm[:, 0], 5), "x_nm": rounded(g.yx_nm[:, 1], 5), "species": g.species.tolist(),
                  "own": g.core.astype(int).tolist(), "spread_nm": rounded(g.spread_nm, 5),
                  "occupancy": rounded(c.occupancy, 3)},
        "bonds": c.bonds.tolist(), "members": [asdict(m) for m in c.members],
    }


def _nested(value: Any) -> Any:
    return [_nested(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _class(folder: Path, data: dict[str, Any]) -> DefectClass:
    a = data["atoms"]
    geometry = Geometry(np.stack([a["y_nm"], a["x_nm"]], axis=1).astype(np.float64), np.array(a["species"], "U4"),
                        np.array(a["own"], bool), np.array(a["spread_nm"], np.float64),
                        float(np.radians(data["turn_deg"])), float(data["coherence"]), tuple(data["host"]))
    image = np.load(folder / f"{data['id']}.npy", allow_pickle=False)
    examples = np.load(folder / f"{data['id']}-examples.npy", allow_pickle=False)
    if image.shape != (GRID_PX, GRID_PX) or examples.shape[1:] != (GRID_PX, GRID_PX):
        raise ValueError(f"images of {data['id']} have another size")
    return DefectClass(
        id=data["id"], geometry=geometry, occupancy=np.array(a["occupancy"], np.float64),
        bonds=np.array(data["bonds"], np.int64).reshape(-1, 2), members=tuple(Member(**m) for m in data["members"]),
        chemistry=_tuples(data["chemistry"]), key=data["graph"], variants=int(data["graph_variants"]),
        missing=int(data["missing_atoms"]), composition=data["composition"], image=image, examples=examples,
        novelty=float(data["novelty"]), found_as=tuple((str(n), int(k)) for n, k in data["found_as"]),
        name=data["name"], kind=data["kind"], sub_class_of=data["sub_class_of"])


def class_atoms(c: DefectClass) -> ase.Atoms:
    """The mean structure of a class [Angstrom], ASE x the image's column and y its row direction.

    Arrays: ``own`` (1 for the defect's own atoms), ``spread_pm``, ``occupancy``.
    """
    g = c.geometry
    positions = 10.0 * np.stack([g.yx_nm[:, 1], g.yx_nm[:, 0], np.zeros(len(g.yx_nm))], axis=1)
    atoms = ase.Atoms(g.species.tolist(), positions=positions)
    atoms.set_array("own", g.core.astype(int))
    atoms.set_array("spread_pm", 1e3 * g.spread_nm)
    atoms.set_array("occupancy", np.asarray(c.occupancy, np.float64))
    low, high = positions.min(axis=0), positions.max(axis=0)
    atoms.set_cell(high - low + 10.0)
    atoms.positions += 5.0 - low
    atoms.info.update({"class": c.id, "name": c.name or c.label, "count": c.count})
    return atoms


def structure_text(c: DefectClass, library: Library) -> str:
    """The mean structure as extended xyz."""
    atoms = class_atoms(c)
    atoms.info["material"] = library.material
    buffer = io.StringIO()
    ase.io.write(buffer, atoms, format="extxyz")
    return buffer.getvalue()


#: Size of the images of a library [nm].
IMAGE_NM = GRID_PX * GRID_NM
