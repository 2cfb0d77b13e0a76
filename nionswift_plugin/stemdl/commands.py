"""The one command behind the button Annotate, with undo, and the wait for its first result."""

from __future__ import annotations

import gettext
import typing

from nion.swift import Undo
from nion.swift.model import Notification

from . import adapters, computations, live

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.swift.model import Changes, DisplayItem, Persistence, Symbolic
    from nion.utils import Event

_ = gettext.gettext


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
                items = computations.create_live(self.__document_model, display_item)
                self.__proxies.append(items.table.create_proxy())
                start_live(self.__document_controller, items.table, self.__options)
            else:
                items, computation = computations.create(
                    self.__document_model, display_item, self.__options
                )
                self.__proxies.append(items.table.create_proxy())
                _FirstRun(self.__document_controller, computation, self)
            show_beside(self.__document_controller, display_item, items.overlay)
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
        if name not in adapters.RUN_PROPERTIES or not self.__listeners:
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
            for line in (*_calibration_lines(metadata), *adapters.other_warnings(metadata)):
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
    *,
    side: str = "right",
) -> None:
    """Show a result in an empty display panel, or in a new one at a side of the image."""
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
        workspace.insert_display_panel(beside, side, shown).close()


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
        live.start(document_controller, known, options)
