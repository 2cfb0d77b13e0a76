"""Preferences: the default model, what it runs on, and a folder of models of one's own."""

from __future__ import annotations

import gettext
import pathlib
import typing

from nion.ui import Declarative, PreferencesDialog
from nion.utils import Model

from . import engine

if typing.TYPE_CHECKING:
    import asyncio

    from nion.ui import UserInterface

_ = gettext.gettext

_MODEL, _DEVICE, _FOLDER = "stemdl/model", "stemdl/device", "stemdl/model-folder"


def load(ui: UserInterface.UserInterface) -> None:
    """Take over what the user has chosen in an earlier session."""
    device = str(ui.get_persistent_string(_DEVICE, "cpu"))
    engine.models.device = device if device in engine.DEVICES else "cpu"
    engine.models.folder = str(ui.get_persistent_string(_FOLDER, ""))


def model(ui: UserInterface.UserInterface) -> str:
    """The model that the user prefers."""
    return str(ui.get_persistent_string(_MODEL, engine.DEFAULT_MODEL))


def choose_model(ui: UserInterface.UserInterface, name: str) -> None:
    """Remember the model for this and later sessions."""
    ui.set_persistent_string(_MODEL, name)


class PaneHandler(Declarative.Handler):
    """What stands in the pane of Swift's preferences."""

    def __init__(self, ui: UserInterface.UserInterface) -> None:
        super().__init__()
        self.__ui = ui
        load(ui)
        names = engine.models.names()
        chosen = model(ui)
        self.models = Model.PropertyModel[list[str]](names if chosen in names else [*names, chosen])
        self.model_index = Model.PropertyModel[int]((self.models.value or []).index(chosen))
        self.devices = list(engine.DEVICES)
        self.device_index = Model.PropertyModel[int](self.devices.index(engine.models.device))
        self.folder = Model.PropertyModel[str](engine.models.folder)
        self.note = Model.PropertyModel[str]("")
        self.model_index.on_value_changed = self.__model_chosen
        self.device_index.on_value_changed = self.__device_chosen
        self.folder.on_value_changed = self.__folder_chosen
        u = Declarative.DeclarativeUI()

        def row(label: str, content: Declarative.UIDescription) -> Declarative.UIDescription:
            return u.create_row(u.create_label(text=label, width=120), content, u.create_stretch(), spacing=8)

        self.ui_view = u.create_column(
            row(_("Default model"), u.create_combo_box(
                items_ref="@binding(models.value)", current_index="@binding(model_index.value)", width=200)),
            row(_("Run on"), u.create_combo_box(
                items=self.devices, current_index="@binding(device_index.value)", width=120)),
            row(_("Folder of models"), u.create_line_edit(
                text="@binding(folder.value)", width=300, placeholder_text=_("besides those that come along"))),
            row("", u.create_label(text="@binding(note.value)", width=400)),
            u.create_stretch(),
            spacing=8,
            margin=12,
        )  # fmt: skip

    def __model_chosen(self, index: int | None) -> None:
        names = self.models.value or []
        if index is not None and 0 <= index < len(names):
            choose_model(self.__ui, names[index])

    def __device_chosen(self, index: int | None) -> None:
        if index is not None and 0 <= index < len(self.devices):
            engine.models.device = self.devices[index]
            self.__ui.set_persistent_string(_DEVICE, self.devices[index])

    def __folder_chosen(self, folder: str | None) -> None:
        folder = (folder or "").strip()
        engine.models.folder = folder
        self.__ui.set_persistent_string(_FOLDER, folder)
        if folder and not pathlib.Path(folder).is_dir():
            self.note.value = _("there is no such folder")
            return
        self.note.value = ""
        chosen = model(self.__ui)
        names = engine.models.names()
        names = names if chosen in names else [*names, chosen]
        self.models.value = names
        self.model_index.value = names.index(chosen)


class _Pane:
    """What Swift's dialog asks for."""

    identifier = "stemdl.preferences"
    label = _("Atoms and Defects")

    def build(
        self,
        ui: UserInterface.UserInterface,
        event_loop: asyncio.AbstractEventLoop,
        **kwargs: typing.Any,
    ) -> Declarative.DeclarativeWidget:
        return Declarative.DeclarativeWidget(ui, event_loop, PaneHandler(ui))


_pane = _Pane()


def register() -> None:
    """Add the pane to Swift's preferences."""
    manager = PreferencesDialog.PreferencesManager()
    if _pane not in manager.preference_pane_delegates:
        manager.register_preference_pane(_pane)


def unregister() -> None:
    """Take it out again."""
    manager = PreferencesDialog.PreferencesManager()
    if _pane in manager.preference_pane_delegates:
        manager.unregister_preference_pane(_pane)
