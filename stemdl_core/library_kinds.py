"""What a class of defects is: its mean structure, its members, its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .library_environment import Environment
from .library_match import Geometry


@dataclass(frozen=True, eq=False)
class DefectClass:
    """Defects that are the same but for rotation, mirror and noise.

    Parameters
    ----------
    id : str
        ``K1``, ``K2``, ...: the most frequent and novel first.
    geometry : Geometry
        Mean positions, their spread, species.
    occupancy : (N,) float64
        Part of the members that have the atom.
    bonds : (B, 2) int64
        Bonds that most members have.
    members : tuple of Member
    chemistry : tuple
        See `Environment.chemistry`.
    key : str
        Hash of the most frequent graph.
    variants : int
        Number of different graphs among the members.
    missing : int
        Host atoms missing, as most members say.
    composition : str
        Of the defect's own atoms.
    image : (GRID_PX, GRID_PX) float32
        Average image; NaN where no member has any.
    examples : (E, GRID_PX, GRID_PX) float16
        Images of the first members, turned as the average is.
    novelty : float
        Between 0 (each member has a usual name, surely) and 1.
    found_as : tuple of (str, int)
        What the members were called by the analysis, most frequent first.
    name : str
        Given by a person; empty before.
    kind : {'single', 'agglomeration', 'mixture'}
        One defect, several of one class that touch, or of different classes.
    sub_class_of : str
        Class with the same graph and another geometry; empty where there is none.
    """

    id: str
    geometry: Geometry
    occupancy: NDArray[np.float64]
    bonds: NDArray[np.int64]
    members: tuple[Member, ...]
    chemistry: tuple[object, ...]
    key: str
    variants: int
    missing: int
    composition: str
    image: NDArray[np.float32] = field(repr=False)
    examples: NDArray[np.float16] = field(repr=False)
    novelty: float = 0.0
    found_as: tuple[tuple[str, int], ...] = ()
    name: str = ""
    kind: str = "single"
    sub_class_of: str = ""

    @property
    def count(self) -> int:
        """Number of members."""
        return len(self.members)

    @property
    def label(self) -> str:
        """The given name, or what the class was mostly found as."""
        return self.name or (self.found_as[0][0] if self.found_as else "unknown")


@dataclass(frozen=True)
class Member:
    """One defect of a class: where it is, and how it lies over the class's geometry.

    ``rotation_deg`` turns it (from +x towards +y) after the mirror (y to -y) if ``mirrored``.
    """

    source: str
    frame: int
    y_px: float
    x_px: float
    found_as: str
    excess: float
    rotation_deg: float
    mirrored: bool
    pixel_nm: float


def novelty(e: Environment) -> float:
    """How little the known names say about an environment, from 0 to 1."""
    if len(e.names) > 1 or e.names[0] == "unknown":
        return 1.0
    return float(1.0 - e.probability)


def ranked(classes: Sequence[DefectClass]) -> list[DefectClass]:
    """Frequent and novel first, numbered, sub-classes told: same graph, other geometry."""
    ordered = sorted(classes, key=lambda c: (-c.count * (0.25 + c.novelty), c.label))
    first: dict[tuple[str, tuple[object, ...]], str] = {}
    result = []
    for k, c in enumerate(ordered, start=1):
        parent = first.setdefault((c.key, c.chemistry), f"K{k}")
        result.append(replace(c, id=f"K{k}", sub_class_of="" if parent == f"K{k}" else parent))
    return result
