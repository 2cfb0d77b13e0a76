"""Correcting by hand: atoms as points that are moved, deleted, added and relabelled on the image itself.

What differs when the user presses "Apply" becomes corrections. They stand in the metadata of the image, so that
they outlive every result; the tables follow, and the learning loop can use them as training examples.
"""

from __future__ import annotations

import datetime
import getpass
import gettext
import typing
from dataclasses import dataclass

import numpy
from nion.swift import Undo
from nion.swift.model import Graphics

from . import adapters, computations, marks

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.swift.model import DataItem, DisplayItem

    from stemdl_core.corrections import Correction

_ = gettext.gettext

#: Points that are offered at once: Swift resends all graphics of an image at each change of one.
MOST_POINTS = 40
_POINT_ID = "stemdl.atom."
#: Atoms within this distance of the chosen defect are offered [nm]; a smaller shift is a shaky hand [nm].
_AROUND_NM, _SHAKY_NM = 0.45, 0.008
_POINT_COLOUR = "#7CFC9A"


class CorrectCommand(Undo.UndoableCommand):
    """Writes the corrections of an image into its metadata; undo takes them back."""

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        data_item: DataItem.DataItem,
        corrections: typing.Sequence[Correction],
    ) -> None:
        super().__init__(_("Correct Atoms and Defects"))
        self.__document_model: typing.Any = document_controller.document_model
        self.__proxy: typing.Any = data_item.create_proxy()
        self.__new: list[dict[str, typing.Any]] = [c.to_dict() for c in corrections]
        self.__old: list[dict[str, typing.Any]] = []
        self.initialize()

    def close(self) -> None:
        self.__proxy.close()
        self.__proxy = self.__document_model = None
        super().close()

    def _perform(self) -> None:
        item = self.__proxy.item
        known = item.metadata.get(adapters.CORRECTIONS_KEY, {}).get("corrections", [])
        self.__old = [dict(entry) for entry in known]
        write(item, self.__new)

    def _undo(self) -> None:
        self.__swap()

    def _redo(self) -> None:
        self.__swap()

    def __swap(self) -> None:
        self.__old, self.__new = self.__new, self.__old
        write(self.__proxy.item, self.__new)

    @property
    def is_undo_valid(self) -> bool:
        # The tables follow by a computation, which changes the document after the command.
        return self.__proxy is not None and self.__proxy.item is not None

    is_redo_valid = is_undo_valid

    def _get_modified_state(self) -> typing.Any:
        return self.__document_model.modified_state

    def _set_modified_state(self, modified_state: typing.Any) -> None:
        self.__document_model.modified_state = modified_state


def write(data_item: DataItem.DataItem, entries: typing.Sequence[typing.Mapping[str, typing.Any]]) -> None:
    """Put corrections into the metadata of an image, and let its results follow. On the main thread."""
    metadata = dict(data_item.metadata)
    metadata.pop(adapters.CORRECTIONS_KEY, None)
    if entries:
        metadata[adapters.CORRECTIONS_KEY] = {"schema": 1, "corrections": [dict(e) for e in entries]}
    data_item.metadata = metadata
    known = computations.find(data_item._document_model, data_item)
    if known is not None and known.computation is not None:
        # A movie is bound through its display, which metadata do not change.
        known.computation.needs_update = True
        known.computation.computation_mutated_event.fire()


@dataclass(frozen=True)
class _Atom:
    y_px: float
    x_px: float
    species: str


class Editor:
    """Points at the atoms around a place, and what the user does to them.

    Parameters
    ----------
    document_controller
        The window.
    known : Annotation
        A stored image with results; live images pass by too quickly to be corrected.
    center_px : (float, float)
        Around which atoms are offered (y, x) [px].
    """

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        known: computations.Annotation,
        center_px: tuple[float, float],
    ) -> None:
        self.known = known
        self.__document_controller = document_controller
        table, metadata = known.table, known.table.metadata[adapters.METADATA_KEY]
        self.__shape = tuple(metadata["shape"])
        self.__pixel_nm = float(metadata["pixel_size_nm"])
        self.frame = int(metadata.get("frame", 0))
        self.__defects = [
            (d["name"], tuple(d["center_px"])) for d in metadata.get("defects", ())
        ]
        self.__model = str(metadata.get("model", ""))
        rows = numpy.asarray(table.data)[: metadata["atoms"]]
        column = {name: rows[:, i] for i, name in enumerate(metadata["columns"])}
        distance = numpy.hypot(column["y_px"] - center_px[0], column["x_px"] - center_px[1]) * self.__pixel_nm
        near = numpy.argsort(distance)[: int(min((distance < _AROUND_NM).sum(), MOST_POINTS))]
        self.__atoms = {
            f"{_POINT_ID}{int(column['id'][i])}": _Atom(
                float(column["y_px"][i]),
                float(column["x_px"][i]),
                metadata["species"].get(str(int(column["Z"][i])), "C"),
            )
            for i in near
        }
        counts = metadata.get("counts", {})
        #: Swift's labels cover the atoms: those that nearly all atoms would have are left out.
        self.__common = {symbol for symbol, n in counts.items() if n > 0.3 * sum(counts.values())}
        self.__own_before: set[Graphics.Graphic] = set()
        self.__show()

    @property
    def __display_item(self) -> DisplayItem.DisplayItem | None:
        return computations.display_item_of(self.known.source)

    def __show(self) -> None:
        display_item = self.__display_item
        if display_item is None:
            return
        self.__remove_points(display_item)
        self.__own_before = {g for g in display_item.graphics if isinstance(g, Graphics.PointGraphic)}
        model = self.__document_controller.document_model
        with model.item_transaction(display_item), display_item.display_item_changes():
            for name, atom in self.__atoms.items():
                point = Graphics.PointGraphic()
                y, x = adapters.to_relative((atom.y_px, atom.x_px), self.__shape)
                point.position = float(y), float(x)
                point.label = None if atom.species in self.__common else atom.species
                point.graphic_id = name
                point.stroke_color = _POINT_COLOUR
                display_item.add_graphic(point)

    @staticmethod
    def __remove_points(display_item: DisplayItem.DisplayItem) -> None:
        for graphic in list(display_item.graphics):
            if (graphic.graphic_id or "").startswith(_POINT_ID):
                display_item.remove_graphic(graphic).close()

    def corrections(self, new_species: str) -> list[Correction]:
        """What the user has done, in the order: atoms moved and relabelled, deleted, added; defects renamed."""
        from stemdl_core.corrections import Correction

        display_item = self.__display_item
        if display_item is None:
            return []
        stamp = {
            "source": self.known.source.title, "frame": self.frame, "who": _user(), "model": self.__model,
            "when": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }  # fmt: skip
        points = [g for g in display_item.graphics if isinstance(g, Graphics.PointGraphic)]
        mine = {g.graphic_id: g for g in points if (g.graphic_id or "") in self.__atoms}
        found: list[Correction] = []
        for name, atom in self.__atoms.items():
            place = {"y_px": atom.y_px, "x_px": atom.x_px}
            if name not in mine:
                found.append(Correction(action="delete", **place, **stamp))  # type: ignore[arg-type]
                continue
            y, x = adapters.from_relative(mine[name].position, self.__shape)
            label = (mine[name].label or "").strip()
            if label and label != atom.species:
                found.append(Correction(action="species", species=label, **place, **stamp))  # type: ignore[arg-type]
            if numpy.hypot(y - atom.y_px, x - atom.x_px) * self.__pixel_nm > _SHAKY_NM:
                there = {"to_y_px": float(y), "to_x_px": float(x)}
                found.append(Correction(action="move", **there, **place, **stamp))  # type: ignore[arg-type]
        for graphic in points:
            if graphic.graphic_id in mine or graphic in self.__own_before:
                continue
            y, x = adapters.from_relative(graphic.position, self.__shape)
            species = (graphic.label or "").strip() or new_species
            place = {"y_px": float(y), "x_px": float(x)}
            found.append(Correction(action="add", species=species, **place, **stamp))  # type: ignore[arg-type]
        for (old, center), mark in zip(self.__in_marks(), marks.marks_of(display_item, self.known.table)):
            label = (mark.label or "").strip()
            if label and label != old:
                place = {"y_px": float(center[0]), "x_px": float(center[1])}
                found.append(Correction(action="rename", name=label, **place, **stamp))  # type: ignore[arg-type]
        return found

    def __in_marks(self) -> list[tuple[str, tuple[float, ...]]]:
        return sorted(self.__defects, key=lambda d: d[0] == "unknown")[: marks.MOST_MARKS]

    def finish(self, *, apply: bool, new_species: str = "C") -> int:
        """Take the points away; with `apply`, what was done to them becomes corrections.

        Returns
        -------
        int
            Number of corrections.

        Raises
        ------
        StemdlError
            If a label is no chemical element; then the points stay.
        """
        display_item = self.__display_item
        if display_item is None:
            return 0
        found = self.corrections(new_species) if apply else []
        self.__remove_points(display_item)
        for graphic in list(display_item.graphics):
            fresh = isinstance(graphic, Graphics.PointGraphic) and graphic not in self.__own_before
            if apply and fresh:
                display_item.remove_graphic(graphic).close()
        if found:
            correct(self.__document_controller, self.known.source, found)
        return len(found)


def correct(
    document_controller: DocumentController.DocumentController,
    data_item: DataItem.DataItem,
    corrections: typing.Sequence[Correction],
) -> None:
    """Add corrections to an image, with undo; its results follow."""
    every = (*adapters.corrections_of(data_item.metadata), *corrections)
    command = CorrectCommand(document_controller, data_item, every)
    command.perform()
    document_controller.push_undo_command(command)


def rename(
    document_controller: DocumentController.DocumentController,
    known: computations.Annotation,
    index: int,
    name: str,
) -> None:
    """Give a defect another name."""
    from stemdl_core.corrections import Correction

    metadata = known.table.metadata[adapters.METADATA_KEY]
    defect = metadata["defects"][index]
    y, x = defect["center_px"]
    when = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    correction = Correction(
        source=known.source.title, frame=int(metadata.get("frame", 0)), action="rename", y_px=y, x_px=x,
        name=name, who=_user(), when=when, model=str(metadata.get("model", "")),
    )  # fmt: skip
    correct(document_controller, known.source, [correction])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
