"""The panel's page "Correct": atoms moved, added, deleted and relabelled on the image; defects renamed."""

from __future__ import annotations

import gettext
import typing

from nion.utils import Model

from . import adapters, commands, editing
from .panel_atoms import AtomsSection, line

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.ui import Declarative

_ = gettext.gettext

SPECIES = ("C", "Si", "N", "B", "O", "P", "Mo", "Se", "W", "S")


class EditSection:
    """Corrections of the selected image by hand."""

    callbacks = ("edit_clicked", "apply_clicked", "discard_clicked", "rename_clicked")

    def __init__(
        self, document_controller: DocumentController.DocumentController, atoms: AtomsSection
    ) -> None:
        self.__document_controller = document_controller
        self.__atoms = atoms
        self.__editor: editing.Editor | None = None
        self.species = list(SPECIES)
        self.species_index = Model.PropertyModel[int](0)
        self.name = Model.PropertyModel[str]("")
        self.can_edit = Model.PropertyModel[bool](False)
        self.is_editing = Model.PropertyModel[bool](False)
        self.state = Model.PropertyModel[str]("")

    def view(self, u: Declarative.DeclarativeUI) -> Declarative.UIDescription:
        """The page."""

        def button(text: str, clicked: str, enabled: str, tip: str) -> Declarative.UIDescription:
            return u.create_push_button(
                text=text, on_clicked=clicked, enabled=f"@binding(edit.{enabled}.value)", width=84, tool_tip=tip
            )

        return u.create_column(
            line(u, _("Choose a defect in Found, then press Edit atoms. Drag a point to move its atom, delete it, or "
                      "change its label; with Swift's point tool, add one. Then press Apply.")),
            u.create_row(
                button(_("Edit atoms"), "edit_clicked", "can_edit", _("Show the atoms around the defect as points")),
                button(_("Apply"), "apply_clicked", "is_editing", _("Keep the changes; the tables follow")),
                button(_("Discard"), "discard_clicked", "is_editing", _("Take the points away")),
                u.create_stretch(),
                spacing=6,
            ),
            u.create_row(
                u.create_label(text=_("New atoms are")),
                u.create_combo_box(items=self.species, current_index="@binding(edit.species_index.value)", width=70),
                u.create_stretch(),
                spacing=8,
            ),
            u.create_row(
                u.create_line_edit(text="@binding(edit.name.value)", width=166,
                                   placeholder_text=_("Right name of the defect")),
                button(_("Rename"), "rename_clicked", "can_edit", _("Give the chosen defect this name")),
                u.create_stretch(),
                spacing=8,
            ),
            line(u, "@binding(edit.state.value)"),
            u.create_stretch(),
            spacing=8,
            margin=6,
        )  # fmt: skip

    def close(self) -> None:
        """Forget the points."""
        self.__editor = None
        self.__document_controller = typing.cast(typing.Any, None)
        self.__atoms = typing.cast(typing.Any, None)

    def follow(self) -> None:
        """Another image, or another result of it."""
        known = self.__atoms.known
        if self.__editor is not None and (known is None or known.source is not self.__editor.known.source):
            self.__end(apply=False)
        self.can_edit.value = bool(
            known is not None and known.computation is not None and self.__atoms.has_result.value
        )
        self.__count()

    def __count(self) -> None:
        known = self.__atoms.known
        count = len(adapters.corrections_of(known.source.metadata)) if known is not None else 0
        self.state.value = _("{} corrections are kept with this image.").format(count) if count else ""

    def edit_clicked(self, widget: Declarative.UIWidget) -> None:
        """Show points at the atoms around the chosen defect, or around the middle of the image."""
        known, metadata = self.__atoms.known, self.__atoms.metadata
        if known is None or known.computation is None or not metadata:
            return
        index, defects = self.__atoms.defect_index.value, metadata["defects"]
        height, width = metadata["shape"]
        center = (height / 2, width / 2)
        if index is not None and 0 <= index < len(defects):
            center = tuple(defects[index]["center_px"])
        self.__editor = editing.Editor(self.__document_controller, known, center)
        self.is_editing.value = True

    def apply_clicked(self, widget: Declarative.UIWidget) -> None:
        """Keep what was changed."""
        self.__end(apply=True)

    def discard_clicked(self, widget: Declarative.UIWidget) -> None:
        """Take the points away."""
        self.__end(apply=False)

    def __end(self, *, apply: bool) -> None:
        from stemdl_core.errors import StemdlError

        if self.__editor is None:
            return
        try:
            self.__editor.finish(apply=apply, new_species=self.species[self.species_index.value or 0])
        except StemdlError as error:
            commands.notify(_("Nothing was changed"), str(error))
            return
        self.__editor = None
        self.is_editing.value = False
        self.__count()

    def rename_clicked(self, widget: Declarative.UIWidget) -> None:
        """Give the chosen defect another name."""
        known, index, name = self.__atoms.known, self.__atoms.defect_index.value, (self.name.value or "").strip()
        if known is None or index is None or not name:
            commands.notify(_("Nothing was changed"), _("choose a defect in Found and write its right name"))
            return
        editing.rename(self.__document_controller, known, index, name)
        self.__count()
