"""Follows the defects through a stored movie: trajectories, a timeline, events, with progress and cancel."""

from __future__ import annotations

import gettext
import threading
import typing
from dataclasses import dataclass

from nion.swift import Undo
from nion.swift.model import DataItem
from nion.utils import Event

from . import adapters, computations, engine, plots
from .tracked import COLUMNS as COLUMNS
from .tracked import MOST_EVENTS as MOST_EVENTS
from .tracked import Results, keep, results
from .tracked import event_entry as event_entry
from .tracked import event_line as event_line
from .tracked import find_table as find_table
from .tracked import show_frame as show_frame
from .tracked import tracks_of as tracks_of

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.swift.model import Changes, DisplayItem


_ = gettext.gettext

@dataclass(frozen=True)
class Progress:
    """How far a movie has been followed.

    Parameters
    ----------
    done, total : int
        Frames.
    faults : int
        Frames that could not be used.
    state : {'running', 'finished', 'cancelled', 'failed'}
    message : str
        One line where it failed.
    """

    done: int
    total: int
    faults: int = 0
    state: str = "running"
    message: str = ""

    def __str__(self) -> str:
        if self.state == "failed":
            return self.message
        if self.state == "cancelled":
            return _("Tracking was cancelled.")
        if self.state == "finished":
            return _("Tracked {} frames").format(self.total) + self.__left_out
        return _("Tracking: frame {} of {}").format(self.done, self.total) + self.__left_out

    @property
    def __left_out(self) -> str:
        return _(", {} left out").format(self.faults) if self.faults else ""


class MovieRun:
    """One movie on its way through the analysis, on a thread of its own.

    Parameters
    ----------
    document_controller
        The window that shows the results.
    display_item : DisplayItem
        The movie.
    options : Options
        Model and dopant.
    """

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        display_item: DisplayItem.DisplayItem,
        options: computations.Options,
    ) -> None:
        source = display_item.data_item
        assert source is not None
        self.source = source
        self.options = options
        #: Fired on the main thread.
        self.progress_changed_event = Event.Event()
        self.__document_controller = document_controller
        self.__display_item = display_item
        xdata = source.xdata
        assert xdata is not None
        self.__xdata = xdata
        self.progress = Progress(0, xdata.data_shape[0])
        self.__event_loop = document_controller.event_loop
        self.__cancelled = threading.Event()
        self.__listeners = [
            source.about_to_be_removed_event.listen(self.cancel),
            source.about_to_close_event.listen(self.cancel),
        ]
        _running.append(self)
        self.__thread = threading.Thread(target=self.__work, name="stemdl-track", daemon=True)
        self.__thread.start()

    def cancel(self) -> None:
        """Stop after the frame that is in work; nothing is created."""
        self.__cancelled.set()

    def join(self, timeout_s: float = 10.0) -> None:
        """Wait until the thread has ended; for programs that end."""
        self.__thread.join(timeout_s)

    def __work(self) -> None:
        from stemdl_core.errors import StemdlError

        try:
            results = self.__follow()
        except StemdlError as error:
            self.__tell(Progress(self.progress.done, self.progress.total, 0, "failed", str(error)), None)
        except Exception as error:
            text = _("Tracking failed: {}").format(error)
            self.__tell(Progress(self.progress.done, self.progress.total, 0, "failed", text), None)
        else:
            if results is None:
                self.__tell(Progress(self.progress.done, self.progress.total, 0, "cancelled"), None)
            else:
                total = self.progress.total
                self.__tell(Progress(total, total, len(results.tracks.faults), "finished"), results)

    def __follow(self) -> Results | None:
        from stemdl_core.errors import StemdlError
        from stemdl_core.movies import MovieTracker

        options = self.options
        movie = MovieTracker(lambda frame: engine.analyze(frame, model=options.model, dopant=options.dopant))
        faults, total, first_fault, picture = 0, self.progress.total, "", None
        for index in range(total):
            if self.__cancelled.is_set():
                return None
            try:
                frame = adapters.frame_of(self.__xdata, index=index, source=self.source.title)
                update = movie.update(frame)[1]
                fault = update.fault
                picture = frame.image if picture is None and fault is None else picture
            except StemdlError as error:
                fault = str(error)
                movie.skip(index, fault)
            if fault is not None:
                faults, first_fault = faults + 1, first_fault or fault
            self.__tell(Progress(index + 1, total, faults), None)
        if picture is None:
            raise StemdlError(_("no frame of the movie can be used: {}").format(first_fault))
        return results(movie.tracker.tracks(), picture, self.__xdata, options.model)

    def __tell(self, progress: Progress, results: Results | None) -> None:
        try:
            self.__event_loop.call_soon_threadsafe(self.__publish, progress, results)
        except RuntimeError:  # the window has closed meanwhile
            self.__end()

    def __publish(self, progress: Progress, results: Results | None) -> None:
        if self.__cancelled.is_set():
            results = None
            if progress.state == "finished":
                progress = Progress(progress.done, progress.total, progress.faults, "cancelled")
        self.progress = progress
        if progress.state != "running":
            self.__end()
        if results is not None:
            command = TrackCommand(self.__document_controller, self.__display_item, results)
            command.perform()
            self.__document_controller.push_undo_command(command)
        if progress.state == "failed":
            from . import commands

            commands.notify(_("Nothing was created"), progress.message)
        self.progress_changed_event.fire()

    def __end(self) -> None:
        if self in _running:
            _running.remove(self)
        for listener in self.__listeners:
            listener.close()
        self.__listeners = []


class TrackCommand(Undo.UndoableCommand):
    """Adds trajectories, timeline and table of a movie; undo takes all back, redo restores it."""

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        display_item: DisplayItem.DisplayItem,
        results: Results,
    ) -> None:
        super().__init__(_("Track Defects"))
        self.__document_controller = document_controller
        self.__display_item: DisplayItem.DisplayItem | None = display_item
        self.__results: Results | None = results
        workspace = document_controller.workspace_controller
        self.__old_layout = workspace.deconstruct() if workspace else None
        self.__new_layout: typing.Any = None
        self.__proxy: typing.Any = None
        self.__log: Changes.UndeleteLog | None = None
        self.initialize()

    def close(self) -> None:
        if self.__proxy:
            self.__proxy.close()
        if self.__log:
            self.__log.close()
        self.__proxy = self.__log = self.__results = self.__display_item = None
        self.__document_controller = typing.cast(typing.Any, None)
        super().close()

    @property
    def __document_model(self) -> typing.Any:
        return self.__document_controller.document_model

    def _perform(self) -> None:
        from . import commands

        display_item, results = self.__display_item, self.__results
        assert display_item is not None
        assert results is not None
        source = display_item.data_item
        assert source is not None
        table = DataItem.new_data_item(results.table)
        table.title = _("{} (Trajectories)").format(source.title)
        table.source = source
        self.__document_model.append_data_item(table)
        self.__proxy = table.create_proxy()
        keep(table, results.tracks)
        # Everything else goes when the table goes, and the table when the movie goes.
        for xdata, title in ((results.overlay, _("{} (Tracks)")), (results.timeline, _("{} (Timeline)"))):
            item = DataItem.new_data_item(xdata)
            item.title = title.format(source.title)
            item.source = table
            self.__document_model.append_data_item(item)
            commands.show_beside(self.__document_controller, display_item, item)
        for title, xdata in results.lines:
            item = DataItem.new_data_item(xdata)
            item.title = title.format(source.title)
            item.source = table
            self.__document_model.append_data_item(item)
            plots.update(item, xdata)
        self.__display_item = self.__results = None

    def _undo(self) -> None:
        workspace = self.__document_controller.workspace_controller
        self.__new_layout = workspace.deconstruct() if workspace else None
        self.__log = self.__document_model.remove_data_item_with_log(self.__proxy.item, safe=True)
        if workspace and self.__old_layout is not None:
            workspace.reconstruct(self.__old_layout)

    def _redo(self) -> None:
        assert self.__log is not None
        self.__document_model.undelete_all(self.__log)
        self.__log.close()
        self.__log = None
        workspace = self.__document_controller.workspace_controller
        if workspace and self.__new_layout is not None:
            workspace.reconstruct(self.__new_layout)

    @property
    def is_undo_valid(self) -> bool:
        return self.__proxy is not None and self.__proxy.item is not None

    @property
    def is_redo_valid(self) -> bool:
        return self.__log is not None

    def _get_modified_state(self) -> typing.Any:
        return self.__document_model.modified_state

    def _set_modified_state(self, modified_state: typing.Any) -> None:
        self.__document_model.modified_state = modified_state


_running: list[MovieRun] = []


def find(data_item: DataItem.DataItem | None) -> MovieRun | None:
    """The run that works on a movie."""
    return next((run for run in _running if run.source is data_item), None)


def stop_all() -> None:
    """End everything, when the plug-in is unloaded."""
    for run in list(_running):
        run.cancel()
        run.join()
