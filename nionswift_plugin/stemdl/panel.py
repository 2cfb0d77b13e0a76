"""The panel "Atoms and Defects": start, watch, read, correct, steer, export. No numerics."""

from __future__ import annotations

import gettext
import typing

from nion.swift import Workspace
from nion.ui import Declarative
from nion.utils import Model

from . import actions, computations, dock, live, preferences
from .panel_atoms import AtomsSection, line
from .panel_edit import EditSection
from .panel_steering import SteeringSection
from .panel_tracks import TracksSection

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.swift.model import DisplayItem

_ = gettext.gettext

PANEL_ID = "stemdl-panel"


class PanelHandler(Declarative.Handler):
    """The panel's pages, told when another image is selected or something is added or removed."""

    def __init__(self, document_controller: DocumentController.DocumentController) -> None:
        super().__init__()
        self.__document_controller = document_controller
        preferences.load(document_controller.ui)
        self.atoms = AtomsSection(document_controller, self.refocus)
        self.tracks = TracksSection(document_controller)
        self.edit = EditSection(document_controller, self.atoms)
        self.steer = SteeringSection()
        #: The page in front.
        self.page = Model.PropertyModel[int](0)
        for section in (self.atoms, self.tracks, self.edit, self.steer):
            for name in section.callbacks:
                setattr(self, name, getattr(section, name))
        document_model = document_controller.document_model
        self.__listeners = [
            document_controller.focused_display_item_changed_event.listen(self.__focus_changed),
            document_model.item_inserted_event.listen(self.__item_inserted),
            document_model.item_removed_event.listen(self.__item_removed),
            self.atoms.has_result.property_changed_event.listen(lambda name: self.edit.follow()),
        ]
        self.ui_view = self.__build()
        self.refocus()

    def close(self) -> None:
        for listener in self.__listeners:
            listener.close()
        self.__listeners = []
        sections = (self.steer, self.edit, self.tracks, self.atoms)
        for section in sections:
            for name in section.callbacks:
                delattr(self, name)
            section.close()
        self.__document_controller = typing.cast(typing.Any, None)
        super().close()

    def __build(self) -> Declarative.UIDescription:
        u = Declarative.DeclarativeUI()

        def button(text: str, clicked: str, tip: str, **properties: typing.Any) -> Declarative.UIDescription:
            return u.create_push_button(
                text=text, on_clicked=clicked, width=92, min_height=30, tool_tip=tip, **properties
            )

        column = u.create_column(
            u.create_row(
                u.create_label(text=_("Model")),
                u.create_combo_box(
                    items_ref="@binding(atoms.models.value)",
                    current_index="@binding(atoms.model_index.value)",
                    width=170,
                ),
                u.create_stretch(),
                spacing=8,
            ),
            u.create_row(
                button(
                    _("Annotate"),
                    "annotate_clicked",
                    f"{actions.AnnotateAction.action_name} ({actions.ANNOTATE_KEYS})",
                ),
                button(
                    "@binding(tracks.track_label.value)",
                    "track_clicked",
                    _("Follow the defects through the selected movie or running scan"),
                    enabled="@binding(tracks.can_track.value)",
                ),
                button(
                    "@binding(atoms.live_label.value)",
                    "live_clicked",
                    _("Annotate each complete frame of the running scan; starts no scan"),
                    enabled="@binding(atoms.is_live.value)",
                ),
                u.create_stretch(),
                spacing=6,
            ),
            line(u, "@binding(atoms.state.value)"),
            line(u, "@binding(tracks.state.value)"),
            u.create_tabs(
                u.create_tab(_("Found"), self.atoms.view(u)),
                u.create_tab(_("Tracks"), self.tracks.view(u)),
                u.create_tab(_("Correct"), self.edit.view(u)),
                u.create_tab(_("Steer"), self.steer.view(u)),
                current_index="@binding(page.value)",
            ),
            u.create_row(
                u.create_push_button(
                    text=_("Export\N{HORIZONTAL ELLIPSIS}"),
                    on_clicked="export_clicked",
                    width=96,
                    tool_tip=_("Tables (CSV), atoms (xyz), pictures and an animation (GIF) into a folder"),
                ),
                u.create_stretch(),
            ),
            spacing=6,
            margin=4,
        )
        return u.create_scroll_area(column)

    def refocus(self) -> None:
        """Look again at what is selected."""
        self.__focus_changed(self.__document_controller.focused_display_item)

    def __focus_changed(self, display_item: DisplayItem.DisplayItem | None) -> None:
        data_item = display_item.data_item if display_item else None
        known = computations.find(self.__document_controller.document_model, data_item)
        scan = known.source if known else data_item
        self.atoms.is_live.value = live.hardware_source_of(scan) is not None
        self.atoms.follow(known)
        self.tracks.follow(data_item)
        self.edit.follow()
        self.steer.follow(data_item)

    def __item_inserted(self, key: str, value: typing.Any, index: int) -> None:
        if key in ("computations", "data_items"):
            self.refocus()

    def __item_removed(self, key: str, value: typing.Any, index: int) -> None:
        known = self.atoms.known
        if known and value in (known.computation, known.table):
            self.atoms.follow(None)
            self.edit.follow()
        self.tracks.forget(value)


class AtomsPanel(dock.DockPanel):
    """The dock panel."""

    name = "stemdl"
    make_handler = staticmethod(PanelHandler)


def register() -> None:
    """Add the panel to Swift's Window menu."""
    Workspace.WorkspaceManager().register_panel(
        AtomsPanel,
        PANEL_ID,
        _("Atoms and Defects"),
        ["left", "right"],
        "right",
        {"min-width": 320, "min-height": 380},
    )


def unregister() -> None:
    """Take the panel out again."""
    Workspace.WorkspaceManager().unregister_panel(PANEL_ID)
