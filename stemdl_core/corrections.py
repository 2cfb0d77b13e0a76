"""What a person corrects: atoms added, moved, deleted, relabelled, defects renamed, each with where it comes from.

A correction names places on the image, not numbers of sites: it holds for whatever a later model finds there.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .analysis import Defects, FrameAnalysis
from .errors import StemdlError
from .materials import element, get_material
from .sites import Sites

#: What can be done to an atom (the first four) or to a defect's name.
ACTIONS = ("add", "move", "delete", "species", "rename")
#: An atom is meant within this distance of the place that was clicked [host bonds]: half-way to its neighbour.
REACH_BONDS = 0.5
#: A defect is meant within this distance of its centre [nm]: the radius of a hexavacancy.
DEFECT_REACH_NM = 0.4
_NUMBERS = ("y_px", "x_px", "to_y_px", "to_x_px")


@dataclass(frozen=True)
class Correction:
    """One thing a person says about one frame.

    Parameters
    ----------
    source : str
        File (or data item) that the frame is from.
    frame : int
        Its number in the sequence; 0 for a single image.
    action : {'add', 'move', 'delete', 'species', 'rename'}
        'add' an atom of `species` at (y_px, x_px); 'move' the atom there to (to_y_px, to_x_px); 'delete' it;
        give it another 'species'; 'rename' the defect there to `name`.
    y_px, x_px : float
        Where [px].
    to_y_px, to_x_px : float, optional
        Where to, for 'move' [px].
    species : str
        Chemical symbol, for 'add' and 'species'.
    name : str
        Name of the defect, for 'rename'.
    who, when, model : str
        Provenance: person, time (ISO 8601), and the model whose result was corrected.

    Raises
    ------
    StemdlError
        Unknown action or element, a place that is not a number, or an entry that the action needs and lacks.
    """

    source: str
    frame: int
    action: str
    y_px: float
    x_px: float
    to_y_px: float | None = None
    to_x_px: float | None = None
    species: str = ""
    name: str = ""
    who: str = ""
    when: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise StemdlError(f"unknown correction {self.action!r}: choose one of {', '.join(ACTIONS)}")
        if isinstance(self.frame, bool) or int(self.frame) != self.frame or self.frame < 0:
            raise StemdlError(f"frame of a correction must be a whole number from 0, not {self.frame!r}")
        object.__setattr__(self, "frame", int(self.frame))
        for key in _NUMBERS:
            value = getattr(self, key)
            if value is None:
                if key in ("y_px", "x_px") or self.action == "move":
                    raise StemdlError(f"correction {self.action!r} needs {key}")
            elif not math.isfinite(float(value)):
                raise StemdlError(f"{key} of correction {self.action!r} must be a number of pixels, not {value!r}")
            else:
                object.__setattr__(self, key, float(value))
        if self.action in ("add", "species"):
            if not self.species:
                raise StemdlError(f"correction {self.action!r} needs a species, such as Si")
            element(self.species)
        if self.action == "rename" and not self.name.strip():
            raise StemdlError("correction 'rename' needs a name")

    @property
    def yx_px(self) -> tuple[float, float]:
        """Where (y, x) [px]."""
        return self.y_px, self.x_px

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Correction:
        """A correction from JSON data or a row of a table; empty entries count as left out.

        Raises
        ------
        StemdlError
            Unknown or missing entries, or values that are no correction.
        """
        known = {f.name for f in fields(cls)}
        unknown = set(data) - known
        if unknown:
            raise StemdlError(f"correction has unknown entries {sorted(map(str, unknown))}")
        values: dict[str, Any] = {k: v for k, v in data.items() if v is not None and v != ""}
        missing = [k for k in ("source", "frame", "action", "y_px", "x_px") if k not in values]
        if missing == ["source"]:
            values["source"] = ""
        elif missing:
            raise StemdlError(f"correction lacks {', '.join(missing)}")
        try:
            for key in _NUMBERS:
                if key in values:
                    values[key] = float(values[key])
            values["frame"] = float(values["frame"])
        except (TypeError, ValueError):
            raise StemdlError(f"correction has a place or frame that is no number: {data}") from None
        typed: dict[str, Any] = {k: v if k in (*_NUMBERS, "frame") else str(v) for k, v in values.items()}
        return cls(**typed)


def write_corrections(path: str | os.PathLike[str], corrections: Iterable[Correction]) -> None:
    """Write corrections as JSON (``.json``) or CSV (any other name); the file appears whole or not at all.

    Raises
    ------
    StemdlError
        If the file cannot be written.
    """
    target = Path(path)
    rows = [c.to_dict() for c in corrections]
    if target.suffix.lower() == ".json":
        text = json.dumps({"schema": 1, "corrections": rows}, indent=1) + "\n"
    else:
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, [f.name for f in fields(Correction)], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        text = buffer.getvalue()
    temporary = target.with_name(f".{target.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise StemdlError(f"{target}: cannot be written ({error.strerror or error})") from None


def read_corrections(path: str | os.PathLike[str]) -> list[Correction]:
    """Corrections from a JSON or CSV file.

    Raises
    ------
    StemdlError
        If the file cannot be read or a line of it is no correction; the message says which.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StemdlError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        if source.suffix.lower() == ".json":
            data = json.loads(text)
            rows = data.get("corrections") if isinstance(data, dict) else data
            if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
                raise StemdlError("is not a list of corrections")
        else:
            table = csv.DictReader(io.StringIO(text))
            rows = list(table)
            if text.strip() and "action" not in (table.fieldnames or ()):
                raise StemdlError("has no column 'action': " + ",".join(f.name for f in fields(Correction)))
            if any(None in row for row in rows):
                raise StemdlError("has lines with more entries than the first line has columns")
    except (ValueError, csv.Error) as error:
        raise StemdlError(f"{source}: {error}") from None
    found = []
    for k, row in enumerate(rows, start=1):
        try:
            found.append(Correction.from_dict(row))
        except StemdlError as error:
            raise StemdlError(f"{source}: correction {k}: {error}") from None
    return found


def by_frame(corrections: Iterable[Correction]) -> Iterator[tuple[tuple[str, int], list[Correction]]]:
    """Corrections of each (source, frame), in the order in which the frames are first named."""
    groups: dict[tuple[str, int], list[Correction]] = {}
    for c in corrections:
        groups.setdefault((c.source, c.frame), []).append(c)
    yield from groups.items()


def correct_sites(sites: Sites, corrections: Sequence[Correction], *,
                  within_px: float) -> tuple[Sites, tuple[Correction, ...]]:
    """Sites after the corrections of one frame, in their order.

    Parameters
    ----------
    sites : Sites
    corrections : sequence of Correction
        All of this frame; renamings are passed over.
    within_px : float
        How near to the given place an atom has to be to be meant [px].

    Returns
    -------
    Sites
        Corrected and added atoms have score 1 (a person has seen them) and no measured intensity.
    tuple of Correction
        Those that found no atom at their place, or found one where they would add it: they change nothing.
    """
    table: dict[str, list[Any]] = {f.name: getattr(sites, f.name).tolist() for f in fields(Sites)}
    unused = []

    def nearest(y: float, x: float) -> int | None:
        if not table["y_px"]:
            return None
        distance = np.hypot(np.asarray(table["y_px"]) - y, np.asarray(table["x_px"]) - x)
        best = int(np.argmin(distance))
        return best if distance[best] <= within_px else None

    def put(row: int, values: dict[str, Any]) -> None:
        for key, value in values.items():
            table[key][row] = value

    for c in corrections:
        if c.action == "rename":
            continue
        row = nearest(c.y_px, c.x_px)
        if (row is None) != (c.action == "add"):
            unused.append(c)
        elif c.action == "add":
            fresh = {"y_px": c.y_px, "x_px": c.x_px, "species": c.species, "score": 1.0, "edge": False}
            for key, column in table.items():
                column.append(fresh.get(key, math.nan))
        elif c.action == "delete" and row is not None:
            for column in table.values():
                del column[row]
        elif c.action == "move" and row is not None:
            put(row, {"y_px": c.to_y_px, "x_px": c.to_x_px, "score": 1.0, "sigma_pm": math.nan})
        elif c.action == "species" and row is not None:
            # The measured intensity stays: it is what the image shows, whatever the atom is called.
            put(row, {"species": c.species, "score": 1.0})
    return Sites(**{key: np.asarray(column) for key, column in table.items()}), tuple(unused)


def apply_corrections(analysis: FrameAnalysis, corrections: Iterable[Correction]) -> FrameAnalysis:
    """An analysis with the atoms as corrected, and bonds, rings, defects and names that follow from them.

    Parameters
    ----------
    analysis : FrameAnalysis
    corrections : iterable of Correction
        Those of other frames of the sequence are left out; `source` is not compared, the caller has chosen.

    Returns
    -------
    FrameAnalysis
        Corrections that met no atom or defect are named in `warnings`.
    """
    from .defects import find_defects
    from .graph import build_graph

    mine = [c for c in corrections if c.frame == analysis.frame]
    if not mine:
        return analysis
    host = get_material(analysis.material)
    within = REACH_BONDS * host.bond_nm / analysis.pixel_size.nm
    sites, unused = correct_sites(analysis.sites, mine, within_px=within)
    result = analysis
    if any(c.action != "rename" for c in mine if c not in unused):
        graph = build_graph(sites, material=host, pixel_size=analysis.pixel_size, shape=analysis.shape,
                            mask=analysis.mask)
        result = replace(analysis, sites=graph.sites, bonds=graph.bonds, defects=find_defects(graph),
                         rings=graph.rings)
    items = list(result.defects)
    for c in mine:
        if c.action != "rename":
            continue
        hit = nearest_defect(result, c.yx_px)
        if hit is None:
            unused = (*unused, c)
        else:
            items[hit] = replace(items[hit], name=c.name.strip(), probability=1.0, alternatives=())
    notes = tuple(f"correction {c.action!r} at y {c.y_px:.1f}, x {c.x_px:.1f} px changes nothing: "
                  + ("an atom is there already" if c.action == "add" else "nothing is there") for c in unused)
    return replace(result, defects=Defects(tuple(items)), warnings=(*result.warnings, *notes))


def nearest_defect(analysis: FrameAnalysis, yx_px: tuple[float, float] | NDArray[np.float64], *,
                   within_nm: float = DEFECT_REACH_NM) -> int | None:
    """Number of the defect whose centre or atom is nearest to a place, None if none is within `within_nm`."""
    best, least = None, within_nm
    for defect in analysis.defects:
        points = np.concatenate([[defect.center_px], analysis.sites.yx_px[list(defect.site_ids)]])
        steps = analysis.pixel_size.to_nm(points - np.asarray(yx_px, dtype=np.float64))
        # The centre decides between neighbours; an atom at the rim of a large defect still means that defect.
        distance = float(min(np.hypot(*steps[0]), 0.5 * within_nm + np.min(np.hypot(*steps.T))))
        if distance <= least:
            best, least = defect.id, distance
    return best
