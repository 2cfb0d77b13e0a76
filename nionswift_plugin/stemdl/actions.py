"""What the user can start from menus, keys and the panel, with undo."""

from __future__ import annotations

import dataclasses
import gettext
import typing

from nion.ui import Window

from . import adapters, commands, computations, live, preferences, session, tracking
from .commands import notify as notify

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.swift.model import DataItem, DisplayItem, Symbolic

_ = gettext.gettext

ANNOTATE_ID = "stemdl.annotate"
TRACK_ID = "stemdl.track"
#: Free in Nion Swift and its instrument panels.
ANNOTATE_KEYS = "Ctrl+Shift+A"


def annotate(
    document_controller: DocumentController.DocumentController,
    display_items: typing.Sequence[DisplayItem.DisplayItem],
) -> None:
    """Annotate the selected images. One line is shown for those that cannot be."""
    from stemdl_core.errors import StemdlError

    document_model = document_controller.document_model
    options = computations.Options(model=chosen_model(document_controller))
    if not display_items:
        notify(_("Nothing was created"), _("select an image: nothing is selected"))
    ready = []
    for display_item in display_items:
        known = computations.find(document_model, display_item.data_item)
        if known is not None:
            _again(document_controller, known, options)
            continue
        try:
            data_item = display_item.data_item
            xdata = data_item.xdata if data_item else None
            adapters.check_selection(xdata)
            # Reads the pixels once, so that an image without contrast or with NaN is refused before
            # anything is made.
            channel = display_item.display_data_channel
            index = adapters.displayed_index(channel) if channel else 0
            adapters.frame_of(xdata, index=index)  # type: ignore[arg-type]
            ready.append(display_item)
        except StemdlError as error:
            notify(_("Nothing was created"), str(error))
    if ready:
        command = commands.AnnotateCommand(document_controller, ready, options)
        command.perform()
        document_controller.push_undo_command(command)


def track(
    document_controller: DocumentController.DocumentController, display_item: DisplayItem.DisplayItem | None
) -> tracking.MovieRun | session.LiveTracking | None:
    """Follow the defects through a stored movie or a running scan. One line is shown where that cannot be."""
    from stemdl_core.errors import StemdlError

    data_item = display_item.data_item if display_item else None
    try:
        known = computations.find(document_controller.document_model, data_item)
        scan = known.source if known else data_item
        if scan is not None and live.hardware_source_of(scan) is not None:
            return _track_live(document_controller, scan)
        xdata = data_item.xdata if data_item else None
        adapters.check_selection(xdata)
        if data_item is None or display_item is None or xdata is None or not adapters.is_movie(xdata):
            raise StemdlError(_("select a movie, a sequence of images, or a running scan"))
        if tracking.find(data_item) is not None:
            raise StemdlError(_("this movie is being tracked already"))
        return tracking.MovieRun(
            document_controller, display_item, computations.Options(model=chosen_model(document_controller))
        )
    except StemdlError as error:
        notify(_("Nothing was created"), str(error))
    return None


def _track_live(
    document_controller: DocumentController.DocumentController, scan: DataItem.DataItem
) -> session.LiveTracking | None:
    """Follow the defects of a running scan; it is annotated as well, since tracking needs what that finds."""
    known = session.find(scan)
    if known is not None:
        known.pause(False)
        return known
    if live.find(scan) is None:
        display_item = computations.display_item_of(scan)
        annotate(document_controller, [display_item] if display_item else [])
    annotation = live.find(scan)
    return session.start(document_controller, annotation) if annotation is not None else None


def _again(
    document_controller: DocumentController.DocumentController,
    known: computations.Annotation,
    options: computations.Options,
) -> None:
    """The image has been annotated before: show the result and use the model that is chosen now."""
    display_item = computations.display_item_of(known.source)
    workspace = document_controller.workspace_controller
    shown = [p.data_item for p in workspace.display_panels] if workspace else []
    if display_item is not None and known.overlay not in shown:
        commands.show_beside(document_controller, display_item, known.overlay)
    if known.computation is None:
        commands.start_live(document_controller, known.table, options)
    else:
        set_parameter(document_controller, known, "model", options.model)


def set_parameter(
    document_controller: DocumentController.DocumentController,
    known: computations.Annotation,
    name: str,
    value: typing.Any,
) -> None:
    """Change what is drawn, or the model: of a computation with undo, of a live one from its next frame."""
    running = live.find(known.table)
    if running is not None:
        running.options = dataclasses.replace(running.options, **{name: value})
    elif known.computation is not None:
        for variable in known.computation.variables:
            if variable.name == name:
                set_variable(document_controller, known.computation, variable, value)


def set_variable(
    document_controller: DocumentController.DocumentController,
    computation: Symbolic.Computation,
    variable: Symbolic.ComputationVariable,
    value: typing.Any,
) -> None:
    """Change a parameter as the inspector does, with undo."""
    from nion.swift import Inspector

    if variable.value != value:
        command = Inspector.ChangeComputationVariableCommand(
            document_controller.document_model, computation, variable, value=value
        )
        command.perform()
        document_controller.push_undo_command(command)


def chosen_model(document_controller: DocumentController.DocumentController) -> str:
    """The model that the user prefers."""
    return preferences.model(document_controller.ui)


def choose_model(document_controller: DocumentController.DocumentController, name: str) -> None:
    """Remember the model for this and later sessions."""
    preferences.choose_model(document_controller.ui, name)


class AnnotateAction(Window.Action):
    """Annotate the selected images or live views."""

    action_id = ANNOTATE_ID
    action_name = _("Annotate Atoms and Defects")

    def execute(self, context: Window.ActionContext) -> Window.ActionResult:
        document_controller = typing.cast(typing.Any, context).window
        annotate(document_controller, typing.cast(typing.Any, context).display_items)
        return Window.ActionResult(Window.ActionStatus.FINISHED)


class TrackAction(Window.Action):
    """Follow the defects through the selected movie or running scan."""

    action_id = TRACK_ID
    action_name = _("Track Defects")

    def execute(self, context: Window.ActionContext) -> Window.ActionResult:
        track(typing.cast(typing.Any, context).window, typing.cast(typing.Any, context).display_item)
        return Window.ActionResult(Window.ActionStatus.FINISHED)


_ACTIONS = (AnnotateAction, TrackAction)


def register() -> None:
    """Register the actions and their keys; harmless when they are registered already."""
    for action in _ACTIONS:
        if action.action_id not in Window.actions:
            Window.register_action(action())
    Window.add_action_shortcut(ANNOTATE_ID, "window", ANNOTATE_KEYS)


def unregister() -> None:
    """Take the actions out again."""
    for action in _ACTIONS:
        typing.cast(dict, Window.actions).pop(action.action_id, None)


def build_menu(document_controller: DocumentController.DocumentController) -> None:
    """Add the menu "Atoms" to a window."""
    preferences.load(document_controller.ui)
    document_model = getattr(document_controller, "document_model", None)
    if document_model is not None:
        # Not before the window is there: the first thing that it shows must not wait for this.
        document_controller.queue_task(lambda: computations.renew(document_model))
    menu = document_controller.get_or_create_menu("stemdl_menu", _("Atoms"), "window_menu")
    for action in _ACTIONS:
        keys = Window.action_shortcuts.get(action.action_id, {}).get("window")
        menu.add_menu_item(
            action.action_name,
            _perform(document_controller, action.action_id),
            key_sequence=keys,
            action_id=action.action_id,
        )


def _perform(
    document_controller: DocumentController.DocumentController, action_id: str
) -> typing.Callable[[], None]:
    return lambda: document_controller.perform_action(action_id)
