"""Marks at the defects on the image: at most fifty circles with names, moved rather than made anew."""

from __future__ import annotations

import contextlib
import typing

import numpy
from nion.swift.model import Graphics

from . import adapters

if typing.TYPE_CHECKING:
    from nion.swift.model import DataItem, DisplayItem

    from stemdl_core.analysis import FrameAnalysis

#: Swift resends all graphics of an image at each change of one: more than this many make it slow.
MOST_MARKS = 50
#: The same for a live image, where most of them move at each frame and the main thread pays for each.
MOST_LIVE_MARKS = 24
#: On a live image, noise moves every defect a little: that is no reason to send all marks to the screen.
LIVE_STEADINESS = 0.08
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
    steadiness: float = 0.0,
) -> None:
    """Circle the defects on the image, with their names. On the main thread.

    The marks that are there are moved and renamed rather than replaced, each to the defect that it is at, and
    touched only where they change: every change of one makes Swift send all of them. They are not results of
    the computation but have the table as their source: they go when the table goes, and deleting one deletes
    nothing else.

    Parameters
    ----------
    display_item, table, analysis
        The image, the table item that the marks belong to, and what was found.
    most : int
        Marks at most; defects of known names come first.
    steadiness : float
        A mark stays where it is while its defect is within this part of its radius.
    """
    wanted = sorted(analysis.defects, key=lambda d: d.name == "unknown")[:most]
    marks = marks_of(display_item, table)
    bond = adapters.bond_px(analysis)
    states = [
        {
            "bounds": adapters.defect_bounds(defect, analysis, bond),
            "label": defect.name,
            "stroke_color": _UNKNOWN_COLOUR if defect.name == "unknown" else _MARK_COLOUR,
        }
        for defect in wanted
    ]
    taken, changes = _nearest(marks, states), []
    for mark, state in zip(taken, states):
        if mark is not None and _is_near(mark, state["bounds"], steadiness):
            state["bounds"] = _value(mark, "bounds")
        if mark is None or any(_value(mark, name) != value for name, value in state.items()):
            changes.append((mark, state))
    surplus = [mark for mark in marks if mark not in taken]
    if not changes and not surplus:
        return
    with _transaction(display_item, table), display_item.display_item_changes():
        for mark in surplus:
            display_item.remove_graphic(mark).close()
        moved = [(mark, state) for mark, state in changes if mark is not None]
        for mark, state in moved[:-1]:
            with _silent(mark, display_item):
                _set(mark, state)
        for mark, state in [*moved[-1:], *(c for c in changes if c[0] is None)]:
            if mark is None:
                mark = Graphics.EllipseGraphic()
                _set(mark, state)
                mark.graphic_id = f"{_MARK_ID}{len(marks_of(display_item, table))}"
                mark.is_position_locked = mark.is_shape_locked = mark.is_rotation_locked = True
                mark.source = table
                display_item.add_graphic(mark)
            else:
                _set(mark, state)


def _nearest(
    marks: list[Graphics.Graphic], states: list[dict[str, typing.Any]]
) -> list[Graphics.Graphic | None]:
    """For each wanted state the mark that is to take it: of the same name and nearest where there is one."""
    if not marks or not states:
        return [None] * len(states)
    places = numpy.array([_value(m, "bounds") for m in marks])
    goals = numpy.array([s["bounds"] for s in states])
    step = (goals[:, 0] + goals[:, 1] / 2)[:, None] - (places[:, 0] + places[:, 1] / 2)[None]
    cost = numpy.hypot(step[..., 0], step[..., 1])
    cost += [[m.label != s["label"] for m in marks] for s in states]
    chosen: list[Graphics.Graphic | None] = [None] * len(states)
    for _pair in range(min(cost.shape)):
        row, column = numpy.unravel_index(int(cost.argmin()), cost.shape)
        chosen[row] = marks[column]
        cost[row], cost[:, column] = numpy.inf, numpy.inf
    return chosen


def _is_near(mark: Graphics.Graphic, bounds: typing.Any, steadiness: float) -> bool:
    (top, left), (height, width) = _value(mark, "bounds")
    (y, x), (h, w) = bounds
    slack = 0.5 * steadiness
    return bool(
        abs(y + h / 2 - top - height / 2) < slack * h
        and abs(x + w / 2 - left - width / 2) < slack * w
        and abs(h - height) < 4 * slack * h
        and abs(w - width) < 4 * slack * w
    )


def _transaction(display_item: DisplayItem.DisplayItem, table: DataItem.DataItem) -> typing.Any:
    """What keeps the marks off the disk until all are set; nothing where the scan itself does so already."""
    document_model = table._document_model
    if document_model.is_in_transaction_state(display_item):
        return contextlib.nullcontext()
    return document_model.item_transaction(display_item)


@contextlib.contextmanager
def _silent(mark: Graphics.Graphic, display_item: DisplayItem.DisplayItem) -> typing.Iterator[None]:
    """A mark that changes without a word: the one that changes last makes Swift draw all.

    Each word makes Swift send all marks to the screen, three times for one that moves. A selected mark is
    read by the inspector, too, and speaks.
    """
    if mark in display_item.selected_graphics:
        yield
        return
    mark.notify_property_changed = lambda key: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del mark.notify_property_changed


def _value(mark: Graphics.Graphic, name: str) -> typing.Any:
    value = getattr(mark, name)
    return value.as_tuple() if name == "bounds" else value


def _set(mark: Graphics.Graphic, state: typing.Mapping[str, typing.Any]) -> None:
    for name, value in state.items():
        if _value(mark, name) != value:
            setattr(mark, name, value)
