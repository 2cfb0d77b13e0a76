"""The defect library: what a set of frames contains that departs from the host, named or not.

Build it from any number of analysed frames, look at the classes, give them names; from then on `name_defects` gives
these names to whatever later frames contain, without any training.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from .analysis import Defect, Defects, FrameAnalysis
from .errors import StemdlError
from .frames import Frame
from .library_classes import best_class, classify
from .library_environment import Environment, environments
from .library_kinds import DefectClass
from .library_match import Fit
from .library_store import FILE, Library, load_library

#: Where `annotate` and `track` look for the user's own library when none is given.
ENVIRONMENT_VARIABLE = "STEMDL_LIBRARY"


def default_library_folder() -> Path:
    """The user's own library: $STEMDL_LIBRARY, or ``stemdl/library`` in the folder for settings."""
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("APPDATA") or os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "stemdl" / "library"


def users_library() -> Library | None:
    """The user's own library, None where there is none or it cannot be read; read again when it has changed."""
    path = default_library_folder() / FILE
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return None
    return _read(path.parent, stamp)


@lru_cache(maxsize=2)
def _read(folder: Path, stamp: int) -> Library | None:
    try:
        return load_library(folder)
    except StemdlError as error:
        # Nobody asked for it by name: annotating goes on without.
        logging.getLogger(__name__).warning("%s", error)
        return None


def with_users_names(analysis: FrameAnalysis) -> FrameAnalysis:
    """An analysis with the names of the user's own library, where there is one."""
    library = users_library()
    return analysis if library is None else name_defects(analysis, library)


def build_library(items: Iterable[tuple[str, Frame | None, FrameAnalysis]], *, previous: Library | None = None,
                  progress: Callable[[int, int], None] | None = None) -> Library:
    """Sort the defects of many frames into classes.

    Parameters
    ----------
    items : iterable of (source, Frame or None, FrameAnalysis)
        One frame at a time; without the frame there is no average image.
    previous : Library, optional
        Names, merges and drops of its classes are kept for the classes that fit their geometry.
    progress : callable, optional
        ``progress(done, total)`` while sorting.

    Returns
    -------
    Library
    """
    found: list[Environment] = []
    sources: Counter[str] = Counter()
    material = model = ""
    for source, frame, analysis in items:
        material, model = analysis.material, analysis.model
        found += environments(analysis, frame, source=source)
        sources[source] += 1
    classes = classify(found, progress=progress)
    library = Library(material=material or (previous.material if previous else "graphene"), classes=tuple(classes),
                      sources=tuple(sources.items()), model=model)
    return library if previous is None else with_decisions(library, previous)


def with_decisions(library: Library, previous: Library) -> Library:
    """A new library with the names, merges and drops of an earlier one."""
    if previous.material != library.material:
        return library
    new_of: dict[str, str] = {}
    for old in previous.classes:
        hit = match_class(class_environment(old), library.classes)
        if hit is not None:
            new_of[old.id] = hit[0].id
    names = {new_of[c.id]: c.name for c in previous.classes if c.name and c.id in new_of}
    merged = {new_of[a]: new_of[b] for a, b in previous.merged.items()
              if a in new_of and b in new_of and new_of[a] != new_of[b]}
    merged = {a: b for a, b in merged.items() if merged.get(b) != a or a > b}
    dropped = tuple(new_of[d] for d in previous.dropped if d in new_of and new_of[d] not in names)
    return replace(library, classes=tuple(replace(c, name=names.get(c.id, c.name)) for c in library.classes),
                   merged=merged, dropped=dropped)


def class_environment(c: DefectClass) -> Environment:
    """A class as if it were one defect: for laying it over others."""
    g = c.geometry
    return Environment("", 0, (0,), (c.label,), 1.0, (0.0, 0.0), g.yx_nm, g.species, g.core,
                       np.maximum(g.spread_nm, 0.002), c.bonds, (), 9.0, g.turn_rad, g.coherence, c.missing, g.host,
                       0.01)


def match_class(e: Environment, classes: Sequence[DefectClass]) -> tuple[DefectClass, Fit] | None:
    """The class of a library that an environment belongs to, None if to none."""
    best = best_class(e, [(c.geometry, c.chemistry) for c in classes])
    return None if best is None else (classes[best[0]], best[1])


def name_defects(analysis: FrameAnalysis, library: Library) -> FrameAnalysis:
    """An analysis in which defects bear the names that a person gave to their classes.

    Parameters
    ----------
    analysis : FrameAnalysis
    library : Library
        Of another host, it changes nothing.

    Returns
    -------
    FrameAnalysis
        Defects of classes without a given name stay as they are; those of a named class that consists of several
        touching defects become one.
    """
    named = {c.id for c in library.classes if library.find(library.head(c.id)).name and c.id not in library.dropped}
    if not named or library.material != analysis.material or len(analysis.defects) == 0:
        return analysis
    change: dict[int, Defect | None] = {}
    for e in environments(analysis):
        hit = match_class(e, library.classes)
        if hit is None or hit[0].id not in named:
            continue
        parts = [analysis.defects[k] for k in e.defect_ids]
        change.update({p.id: None for p in parts[1:]})
        change[parts[0].id] = replace(_joined(parts), name=library.label(hit[0].id))
    if not change:
        return analysis
    items = [change.get(d.id, d) for d in analysis.defects]
    kept = [d for d in items if d is not None]
    return replace(analysis, defects=Defects(tuple(replace(d, id=k) for k, d in enumerate(kept))))


def _joined(parts: Sequence[Defect]) -> Defect:
    """Several touching defects as one."""
    if len(parts) == 1:
        return parts[0]
    composition: Counter[str] = Counter()
    for p in parts:
        composition.update(p.composition)
    ids = tuple(dict.fromkeys(i for p in parts for i in p.site_ids))
    y, x = np.mean([p.center_px for p in parts], axis=0)
    return replace(parts[0], composition=dict(composition), site_ids=ids, center_px=(float(y), float(x)),
                   missing_atoms=sum(p.missing_atoms for p in parts),
                   bonds=tuple(dict.fromkeys(b for p in parts for b in p.bonds)),
                   angles=tuple(dict.fromkeys(a for p in parts for a in p.angles)),
                   probability=min(p.probability for p in parts), alternatives=(),
                   coordination={k: v for p in parts for k, v in p.coordination.items()})


__all__ = ["Library", "build_library", "default_library_folder", "load_library", "match_class",
           "name_defects", "users_library", "with_decisions", "with_users_names"]
