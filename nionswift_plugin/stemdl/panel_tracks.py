"""The panel's page "Tracks": movies and running scans followed, their events, and export."""

from __future__ import annotations

import gettext
import typing

import numpy
from nion.utils import Model

from . import actions, adapters, computations, export, live, portrait, session, tracking
from .panel_atoms import WIDTH, line

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.swift.model import DataItem
    from nion.ui import Declarative

_ = gettext.gettext

Run = tracking.MovieRun | session.LiveTracking


class TracksSection:
    """Tracking of the selected movie or scan."""

    callbacks = ("track_clicked", "stop_clicked", "export_clicked")

    def __init__(self, document_controller: DocumentController.DocumentController) -> None:
        self.__document_controller = document_controller
        self.__run: Run | None = None
        self.__listener: typing.Any = None
        self.__table: DataItem.DataItem | None = None
        self.__data_item: DataItem.DataItem | None = None
        self.can_track = Model.PropertyModel[bool](False)
        self.can_stop = Model.PropertyModel[bool](False)
        self.track_label = Model.PropertyModel[str](_("Track"))
        self.state = Model.PropertyModel[str]("")
        self.events = Model.PropertyModel[list[str]]([])
        self.event_index = Model.PropertyModel[int](None)
        self.event_note = Model.PropertyModel[str]("")
        self.picture = Model.PropertyModel[typing.Any](portrait.empty(), numpy.array_equal)
        self.has_picture = Model.PropertyModel[bool](False)
        self.event_index.on_value_changed = self.__event_chosen
        self.__listing = False
        self.__listed: typing.Any = None

    def view(self, u: Declarative.DeclarativeUI) -> Declarative.UIDescription:
        """The page."""
        return u.create_column(
            u.create_row(
                u.create_push_button(
                    text=_("Stop"),
                    on_clicked="stop_clicked",
                    enabled="@binding(tracks.can_stop.value)",
                    width=96,
                    tool_tip=_("End the tracking; the scan itself is left alone"),
                ),
                u.create_stretch(),
                spacing=8,
            ),
            u.create_label(text=_("Events: a click shows the frame")),
            u.create_list_box(
                items_ref="@binding(tracks.events.value)",
                current_index="@binding(tracks.event_index.value)",
                height=150,
                min_width=WIDTH,
            ),
            line(u, "@binding(tracks.event_note.value)"),
            u.create_row(
                u.create_image(
                    image="@binding(tracks.picture.value)", width=262, height=172,
                    visible="@binding(tracks.has_picture.value)",
                ),
                u.create_stretch(),
            ),
            u.create_stretch(),
            spacing=6,
            margin=6,
        )

    def close(self) -> None:
        """Forget all that is listened to."""
        self.__watch(None)
        self.__table = self.__data_item = None
        self.__document_controller = typing.cast(typing.Any, None)

    def track_clicked(self, widget: Declarative.UIWidget) -> None:
        """Begin to follow; or cancel a movie; or pause and go on with a scan."""
        run = self.__find()
        if isinstance(run, tracking.MovieRun):
            run.cancel()
        elif run is not None:
            run.pause(not run.is_paused)
        else:
            display_item = self.__document_controller.focused_display_item
            self.__watch(actions.track(self.__document_controller, display_item))
        self.show()

    def stop_clicked(self, widget: Declarative.UIWidget) -> None:
        """End the tracking of a scan, or cancel that of a movie."""
        run = self.__find()
        if isinstance(run, tracking.MovieRun):
            run.cancel()
        elif run is not None:
            run.stop()
        self.show()

    def export_clicked(self, widget: Declarative.UIWidget) -> None:
        """Write tables and pictures of what is selected into a folder."""
        export.ask_and_export(self.__document_controller, self.__data_item)

    def __find(self) -> Run | None:
        return tracking.find(self.__data_item) or session.find(self.__data_item)

    def __watch(self, run: Run | None) -> None:
        if run is self.__run:
            return
        if self.__listener:
            self.__listener.close()
        self.__run, self.__listener = run, None
        if isinstance(run, tracking.MovieRun):
            self.__listener = run.progress_changed_event.listen(self.show)
        elif run is not None:
            self.__listener = run.status_changed_event.listen(self.show)

    def follow(self, data_item: DataItem.DataItem | None) -> None:
        """Show another movie or scan."""
        self.__data_item = data_item
        self.show()

    def forget(self, item: typing.Any) -> None:
        """An item has been removed."""
        if item is self.__data_item and item is not None:
            self.__data_item = None
        if item is self.__table and item is not None:
            self.__table = None
            self.events.value = []
            self.state.value = ""

    def show(self) -> None:
        """Fill the page."""
        data_item = self.__data_item
        document_model = self.__document_controller.document_model
        found = self.__find()
        if found is not None:
            self.__watch(found)
        elif self.__run is not None and self.__run.source is not data_item:
            self.__watch(None)
        run = self.__run
        busy = isinstance(run, tracking.MovieRun) and run.progress.state == "running"
        session_run = run if isinstance(run, session.LiveTracking) and run.is_running else None
        self.can_track.value = busy or session_run is not None or self.__trackable(data_item)
        self.can_stop.value = busy or session_run is not None
        self.track_label.value = (
            _("Cancel") if busy
            else _("Track") if session_run is None
            else _("Go on") if session_run.is_paused
            else _("Pause")
        )  # fmt: skip
        if session_run is not None:
            # At every frame of the scan: looks through no items, and lists events only where there are new ones.
            self.state.value = str(session_run.status)
            listed = (session_run.table, session_run.status.events, session_run.status.frames == 0)
            if listed != self.__listed and not session_run.table._closed:
                self.__listed, self.__table = listed, session_run.table
                self.__list(session_run.table.metadata[adapters.METADATA_KEY])
            return
        self.__listed = None
        known_atoms = computations.find(document_model, data_item)
        self.__table = tracking.find_table(document_model, data_item) or tracking.find_table(
            document_model, known_atoms.source if known_atoms else None
        )
        known = self.__table.metadata[adapters.METADATA_KEY] if self.__table else {}
        if isinstance(run, session.LiveTracking):
            self.state.value = str(run.status)
        elif run is not None and run.progress.state != "finished":
            self.state.value = str(run.progress)
        elif known:
            self.state.value = _("{} tracks, {} events in {} frames").format(
                known["tracks"], len(known["events"]), known["frames"]
            )
        else:
            self.state.value = ""
        self.__list(known)

    def __list(self, known: typing.Mapping[str, typing.Any]) -> None:
        lines, old = [tracking.event_line(event) for event in known.get("events", ())], self.events.value or []
        if lines == old:
            return
        # A chosen event stays chosen while others are added.
        index = self.event_index.value if old and lines[: len(old)] == old else None
        self.__listing = True
        try:
            self.events.value = lines
            self.event_index.value = index
        finally:
            self.__listing = False
        if index is None:
            self.__show_picture("", None)

    def __trackable(self, data_item: DataItem.DataItem | None) -> bool:
        if data_item is None:
            return False
        known = computations.find(self.__document_controller.document_model, data_item)
        if live.hardware_source_of(known.source if known else data_item) is not None:
            return True
        xdata = data_item.xdata
        return xdata is not None and adapters.is_movie(xdata) and not xdata.is_data_rgb_type

    def __show_picture(self, note: str, rgb: numpy.ndarray | None) -> None:
        self.event_note.value, self.picture.value = note, portrait.fitted(rgb)
        self.has_picture.value = rgb is not None

    def __event_chosen(self, index: int | None) -> None:
        if self.__listing or index is None or self.__table is None or self.__table._closed:
            return
        known = self.__table.metadata[adapters.METADATA_KEY]
        events = known.get("events", ())
        if not 0 <= index < len(events):
            return
        frame = int(events[index]["frame"])
        if not known.get("live"):
            tracking.show_frame(self.__table.source, frame)
            self.__show_picture(_("Frame {} is shown.").format(frame), None)
            return
        # The frames of a scan pass by: what is left of the newest ones are small pictures.
        picture = self.__run.picture_of(frame) if isinstance(self.__run, session.LiveTracking) else None
        if picture is not None:
            self.__show_picture(_("Frame {}:").format(frame), picture)
        else:
            self.__show_picture(
                _("Frame {} is gone: of a scan, only pictures of the newest {} are kept.").format(
                    frame, session.THUMBNAILS
                ),
                None,
            )
