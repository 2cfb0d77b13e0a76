"""What the user can start from menus, keys and the panel, with undo."""

from __future__ import annotations

import dataclasses
import gettext
import typing

from nion.swift import Undo
from nion.swift.model import Notification
from nion.ui import Window

from . import adapters, computations, live, tracking

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.swift.model import Changes, DisplayItem, Persistence, Symbolic
    from nion.utils import Event

_ = gettext.gettext

ANNOTATE_ID = "stemdl.annotate"
TRACK_ID = "stemdl.track"
#: Free in Nion Swift and its instrument panels.
ANNOTATE_KEYS = "Ctrl+Shift+A"
_MODEL_SETTING = "stemdl/model"


def notify(title: str, text: str) -> None:
    """Show one line to the user, in Swift's own notification window."""
    Notification.notify(Notification.Notification("stemdl", _("Atoms and Defects"), title, text))


class AnnotateCommand(Undo.UndoableCommand):
    """Adds the results of some images: overlay, table, computation. Undo takes all back, redo restores it."""

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        display_items: typing.Sequence[DisplayItem.DisplayItem],
        options: computations.Options,
    ) -> None:
        super().__init__(_("Annotate Atoms and Defects"))
        self.__document_controller = document_controller
        self.__display_items = list(display_items)
        self.__options = options
        workspace = document_controller.workspace_controller
        self.__old_layout: Persistence.PersistentDictType | None = (
            workspace.deconstruct() if workspace else None
        )
        self.__new_layout: Persistence.PersistentDictType | None = None
        self.__proxies: list[typing.Any] = []
        self.__logs: list[Changes.UndeleteLog] = []
        self.initialize()

    def close(self) -> None:
        for thing in (*self.__proxies, *self.__logs):
            thing.close()
        self.__proxies, self.__logs, self.__display_items = [], [], []
        self.__document_controller = typing.cast(typing.Any, None)
        self.__old_layout = self.__new_layout = None
        super().close()

    @property
    def __document_model(self) -> typing.Any:
        return self.__document_controller.document_model

    @property
    def tables(self) -> list[typing.Any]:
        """The table items that are still there."""
        return [proxy.item for proxy in self.__proxies if proxy.item is not None]

    def _perform(self) -> None:
        for display_item in self.__display_items:
            if live.hardware_source_of(display_item.data_item) is not None:
                picture, table = computations.create_live(self.__document_model, display_item)
                self.__proxies.append(table.create_proxy())
                start_live(self.__document_controller, table, self.__options)
            else:
                picture, table, computation = computations.create(
                    self.__document_model, display_item, self.__options
                )
                self.__proxies.append(table.create_proxy())
                _FirstRun(self.__document_controller, computation, self)
            show_beside(self.__document_controller, display_item, picture)
        self.__display_items = []

    def _undo(self) -> None:
        workspace = self.__document_controller.workspace_controller
        self.__new_layout = workspace.deconstruct() if workspace else None
        document_model = self.__document_model
        for table in reversed(self.tables):
            known = computations.find(document_model, table)
            if known is not None and known.computation is not None:
                # Overlay, table and marks go with the computation. The other way round would have to wait
                # until the computation has ended, which newer versions of Swift do without a record for the
                # redo.
                log = document_model.remove_computation_with_log(known.computation, safe=True)
            else:
                log = document_model.remove_data_item_with_log(table, safe=True)
            self.__logs.append(log)
        if workspace and self.__old_layout is not None:
            workspace.reconstruct(self.__old_layout)

    def _redo(self) -> None:
        while self.__logs:
            log = self.__logs.pop()
            self.__document_model.undelete_all(log)
            log.close()
        for table in self.tables:
            start_live(self.__document_controller, table, self.__options)
        workspace = self.__document_controller.workspace_controller
        if workspace and self.__new_layout is not None:
            workspace.reconstruct(self.__new_layout)

    @property
    def is_undo_valid(self) -> bool:
        # The computation changes the document after the command, which must not stop the undo; that the
        # user has deleted the results by hand must.
        return bool(self.tables)

    @property
    def is_redo_valid(self) -> bool:
        return bool(self.__logs)

    def _get_modified_state(self) -> typing.Any:
        return self.__document_model.modified_state

    def _set_modified_state(self, modified_state: typing.Any) -> None:
        self.__document_model.modified_state = modified_state


class _FirstRun:
    """Waits for the first result: a failure is said in one line and leaves nothing behind."""

    _waiting: typing.ClassVar[set[_FirstRun]] = set()

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        computation: Symbolic.Computation,
        command: AnnotateCommand,
    ) -> None:
        self.__document_controller = document_controller
        self.__computation = computation
        self.__command = command
        self.__listeners: list[Event.EventListener] = [
            computation.property_changed_event.listen(self.__changed),
            computation.about_to_close_event.listen(self.__close),
        ]
        self._waiting.add(self)

    def __close(self) -> None:
        for listener in self.__listeners:
            listener.close()
        self.__listeners.clear()
        self._waiting.discard(self)

    def __changed(self, name: str) -> None:
        if name != "status" or not self.__listeners:
            return
        table = self.__computation.get_output("table")
        metadata = (table.metadata if table else {}).get(adapters.METADATA_KEY, {})
        error = self.__computation.error_text
        if error:
            self.__close()
            # Swift is in the middle of this computation: it can be removed when that is over.
            self.__document_controller.queue_task(lambda: self.__fail(error))
        elif not metadata.get("pending"):
            self.__close()
            for line in (*_calibration_lines(metadata), *metadata.get("warnings", ())):
                notify(_("Please check"), line)

    def __fail(self, error: str) -> None:
        computation, document_controller = self.__computation, self.__document_controller
        notify(_("Nothing was created"), error)
        if computation._closed:
            return
        computation.error_text = None
        if document_controller.last_undo_command is self.__command and len(self.__command.tables) == 1:
            self.__command.undo()
            document_controller.pop_undo_command()
        else:
            document_controller.document_model.remove_computation(computation)


def _calibration_lines(metadata: typing.Mapping[str, typing.Any]) -> tuple[str, ...]:
    if metadata.get("pixel_size_source") != "lattice":
        return ()
    return (adapters.calibration_statement(metadata),)


def show_beside(
    document_controller: DocumentController.DocumentController,
    display_item: DisplayItem.DisplayItem,
    picture: typing.Any,
) -> None:
    """Show the overlay in an empty display panel, or in a new one to the right of the image."""
    shown = document_controller.document_model.get_display_item_for_data_item(picture)
    workspace = document_controller.workspace_controller
    if shown is None or workspace is None:
        return
    panel = document_controller.next_result_display_panel()
    if panel is not None:
        panel.set_display_panel_display_item(shown)
        return
    beside = next((p for p in workspace.display_panels if p.display_item is display_item), None)
    beside = beside or document_controller.selected_display_panel
    if beside is not None:
        workspace.insert_display_panel(beside, "right", shown).close()


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
        command = AnnotateCommand(document_controller, ready, options)
        command.perform()
        document_controller.push_undo_command(command)


def track(
    document_controller: DocumentController.DocumentController, display_item: DisplayItem.DisplayItem | None
) -> tracking.MovieRun | None:
    """Follow the defects through a stored movie. One line is shown where that cannot be done."""
    from stemdl_core.errors import StemdlError

    data_item = display_item.data_item if display_item else None
    try:
        xdata = data_item.xdata if data_item else None
        adapters.check_selection(xdata)
        if data_item is None or display_item is None or xdata is None or not adapters.is_movie(xdata):
            raise StemdlError(_("select a movie: a sequence of images"))
        if tracking.find(data_item) is not None:
            raise StemdlError(_("this movie is being tracked already"))
        return tracking.MovieRun(
            document_controller, display_item, computations.Options(model=chosen_model(document_controller))
        )
    except StemdlError as error:
        notify(_("Nothing was created"), str(error))
    return None


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
        show_beside(document_controller, display_item, known.overlay)
    if known.computation is None:
        start_live(document_controller, known.table, options)
    else:
        set_parameter(document_controller, known, "model", options.model)


def start_live(
    document_controller: DocumentController.DocumentController,
    table: typing.Any,
    options: computations.Options,
) -> None:
    """Let the results of a live image follow it from now on; nothing happens where the image is not live."""
    known = computations.find(document_controller.document_model, table)
    if known is None or known.computation is not None or live.hardware_source_of(known.source) is None:
        return
    if live.find(table) is None:
        live.start(document_controller, known.source, known.overlay, known.table, options)


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
    return str(document_controller.ui.get_persistent_string(_MODEL_SETTING, computations.DEFAULT_MODEL))


def choose_model(document_controller: DocumentController.DocumentController, name: str) -> None:
    """Remember the model for this and later sessions."""
    document_controller.ui.set_persistent_string(_MODEL_SETTING, name)


class AnnotateAction(Window.Action):
    """Annotate the selected images or live views."""

    action_id = ANNOTATE_ID
    action_name = _("Annotate Atoms and Defects")

    def execute(self, context: Window.ActionContext) -> Window.ActionResult:
        document_controller = typing.cast(typing.Any, context).window
        annotate(document_controller, typing.cast(typing.Any, context).display_items)
        return Window.ActionResult(Window.ActionStatus.FINISHED)


class TrackAction(Window.Action):
    """Follow the defects through the selected movie."""

    action_id = TRACK_ID
    action_name = _("Track Defects through the Movie")

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
