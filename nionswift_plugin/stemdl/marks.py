"""Marks at the defects on the image: at most fifty circles with names, moved rather than made anew."""

from __future__ import annotations

import typing

from nion.swift.model import Graphics

from . import adapters

if typing.TYPE_CHECKING:
    from nion.swift.model import DataItem, DisplayItem

    from stemdl_core.analysis import FrameAnalysis

#: Swift resends all graphics of an image at each change of one: more than this many make it slow.
MOST_MARKS = 50
#: The same for a live image, where most of them move at each frame and the main thread pays for each.
MOST_LIVE_MARKS = 24
_MARK_ID = "stemdl.defect."
_MARK_COLOUR, _UNKNOWN_COLOUR = "#FFDD57", "#FF8AC4"


def marks_of(display_item: DisplayItem.DisplayItem, table: DataItem.DataItem) -> list[Graphics.Graphic]:
    """The defect marks on an image that belong to a table."""
    return [
        g for g in display_item.graphics if g.source is table and (g.graphic_id or "").startswith(_MARK_ID)
    ]


def is_mark(graphic: Graphics.Graphic) -> bool:
    """Whether a graphic is one of the marks, and not one of the user's own."""
    return (graphic.graphic_id or "").startswith(_MARK_ID)


def update_marks(
    display_item: DisplayItem.DisplayItem,
    table: DataItem.DataItem,
    analysis: FrameAnalysis,
    *,
    most: int = MOST_MARKS,
) -> None:
    """Circle the defects on the image, with their names. On the main thread.

    The marks that are there are moved and renamed rather than replaced, and touched only where they change:
    every change of one makes Swift send all of them. They are not results of the computation but have the
    table as their source: they go when the table goes, and deleting one deletes nothing else.
    """
    wanted = sorted(analysis.defects, key=lambda d: d.name == "unknown")[:most]
    marks = marks_of(display_item, table)
    changes, bond = [], adapters.bond_px(analysis)
    for defect, mark in zip(wanted, [*marks, *([None] * len(wanted))]):
        state = {
            "bounds": adapters.defect_bounds(defect, analysis, bond),
            "label": defect.name,
            "stroke_color": _UNKNOWN_COLOUR if defect.name == "unknown" else _MARK_COLOUR,
        }
        if mark is None or any(_value(mark, name) != value for name, value in state.items()):
            changes.append((mark, state))
    surplus = marks[len(wanted) :]
    if not changes and not surplus:
        return
    document_model = table._document_model
    with document_model.item_transaction(display_item), display_item.display_item_changes():
        for mark in surplus:
            display_item.remove_graphic(mark).close()
        for mark, state in changes:
            if mark is None:
                mark = Graphics.EllipseGraphic()
                _set(mark, state)
                mark.graphic_id = f"{_MARK_ID}{len(marks_of(display_item, table))}"
                mark.is_position_locked = mark.is_shape_locked = mark.is_rotation_locked = True
                mark.source = table
                display_item.add_graphic(mark)
            else:
                _set(mark, state)


def _value(mark: Graphics.Graphic, name: str) -> typing.Any:
    value = getattr(mark, name)
    return value.as_tuple() if name == "bounds" else value


def _set(mark: Graphics.Graphic, state: typing.Mapping[str, typing.Any]) -> None:
    for name, value in state.items():
        if _value(mark, name) != value:
            setattr(mark, name, value)
