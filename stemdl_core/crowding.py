"""Images with more defects than names fit on: how they are told apart, the same in every picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .analysis import Defect, Defects

#: More defects than this have colours by kind instead of a name at each: so many names, or lines to them, would hide
#: the image.
NAMED_MOST = 36
#: Those of no more atoms than this get a ring around their middle then.
COMPACT_ATOMS = 5

Colour = TypeVar("Colour")


def kinds(defects: Defects, palette: Sequence[Colour]) -> dict[str, tuple[int, Colour]]:
    """How many there are of each kind, commonest first, and its colour; nothing where names can stand at each.

    Parameters
    ----------
    defects : Defects
    palette : sequence
        Colours in the order in which they are given away; all further kinds get the last one.
    """
    if len(defects) <= NAMED_MOST:
        return {}
    counts = Counter(d.name for d in defects).most_common()
    return {name: (count, palette[min(k, len(palette) - 1)]) for k, (name, count) in enumerate(counts)}


def compact(defect: Defect) -> bool:
    """Whether a ring around its middle says where it is."""
    return len(defect.site_ids) <= COMPACT_ATOMS
