"""Tracking in session: follows the defects of a running scan, with start, pause and stop.

It takes the frames that the live annotation analyses, so that nothing is analysed twice, no scan is started,
and the newest frame wins. What it keeps is bounded: rows of the newest frames, lines of fixed length.
"""

from __future__ import annotations

import gettext
import threading
import time
import typing
from collections import deque
from dataclasses import dataclass

import numpy
from nion.data import DataAndMetadata
from nion.swift.model import DataItem
from nion.utils import Event

from . import adapters, commands, computations, live, plots, publish, tracking
from .scanning import Geometry, forget

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController

    from stemdl_core.analysis import FrameAnalysis
    from stemdl_core.frames import Frame
    from stemdl_core.tracking import Tracker, Update

_ = gettext.gettext

#: Frames of which rows are kept for the tables and the export, and over which the lines run.
KEPT_FRAMES = 2000
#: Rows of all defects together: with many of them, fewer frames are kept.
KEPT_ROWS = 20_000
#: Small pictures that are kept for an animation.
THUMBNAILS = 48
#: Positions of the trail that is drawn behind each defect.
TRAIL = 60
#: The scan's centre is known this well after it has been moved [nm].
_CENTRE_SIGMA_NM = 0.06
#: Pictures, lines and tables are renewed at most this often [s]: nobody reads faster.
_PICTURE_S = 0.4


@dataclass(frozen=True)
class Status:
    """How the tracking is doing: state is 'running', 'paused' or 'stopped'."""

    state: str = "running"
    frames: int = 0
    left_out: int = 0
    tracks: int = 0
    events: int = 0
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return self.error
        states = {"running": _("Tracking"), "paused": _("Paused"), "stopped": _("Stopped")}
        text = _("{}: frames {}, defects {}, events {}").format(
            states[self.state], self.frames, self.tracks, self.events
        )
        return text + (_(", {} left out").format(self.left_out) if self.left_out else "")


@dataclass(frozen=True)
class _Pictures:
    overlay: DataAndMetadata.DataAndMetadata
    counts: DataAndMetadata.DataAndMetadata
    angles: DataAndMetadata.DataAndMetadata
    table: DataAndMetadata.DataAndMetadata


class LiveTracking:
    """Follows the defects of a live annotation, and fills pictures, lines and a table.

    Parameters
    ----------
    document_controller
        The window in which the results are shown.
    annotation : LiveAnnotation
        Whose frames are followed.
    """

    def __init__(
        self, document_controller: DocumentController.DocumentController, annotation: live.LiveAnnotation
    ) -> None:
        self.annotation = annotation
        self.source = annotation.source
        self.status = Status()
        #: Fired on the main thread.
        self.status_changed_event = Event.Event()
        self.__lock = threading.Lock()
        self.__tracker: Tracker | None = None
        self.__start: Geometry | None = None
        self.__began_s: float | None = None
        self.__paused = self.__stopped = False
        self.__frames = self.__left_out = 0
        #: Small pictures of the newest frames, for an animation.
        self.thumbnails: deque[numpy.ndarray] = deque(maxlen=THUMBNAILS)
        self.__thumbnail_frames: deque[int] = deque(maxlen=THUMBNAILS)
        self.__model = annotation.options.model
        self.__fresh()
        self.__pictures: _Pictures | None = None
        self.__drawn_s = -1e9
        self.__make_items(document_controller)
        self.__unwritten = publish.Unwritten((self.table, self.picture, self.counts, self.angles))
        self.__removed_listener = self.table.about_to_be_removed_event.listen(self.__end)
        annotation.attach(self)

    def __fresh(self) -> None:
        self.__counts = plots.Series(most=KEPT_FRAMES, missing=0.0)
        self.__angles = plots.Series(most=KEPT_FRAMES, missing=float("nan"))
        self.__unwrapped = plots.Unwrapped()
        self.__trails: dict[int, deque[numpy.ndarray]] = {}
        self.__names: dict[int, str] = {}
        self.__events: deque[dict[str, typing.Any]] = deque(maxlen=tracking.MOST_EVENTS)
        self.__event_count = 0

    def __make_items(self, document_controller: DocumentController.DocumentController) -> None:
        document_model = document_controller.document_model
        title = self.source.title
        key = adapters.METADATA_KEY
        entry = {"tracks": 0, "rows": 0, "frames": 0, "events": [], "names": [], "live": True}
        empty = DataAndMetadata.new_data_and_metadata(
            numpy.full((1, len(tracking.COLUMNS)), numpy.nan), metadata={key: entry}
        )
        self.table = self.__item(document_model, empty, _("{} (Trajectories)").format(title), self.source)
        picture = DataAndMetadata.new_data_and_metadata(
            numpy.array(self.annotation.overlay.data), metadata={key: {"overlay": adapters.SCHEMA}}
        )
        self.picture = self.__item(document_model, picture, _("{} (Tracks)").format(title), self.table)
        lines = (
            (self.__counts, _("{} (Defects over Time)"), _("defects")),
            (self.__angles, _("{} (Rotor Angles)"), "\N{DEGREE SIGN}"),
        )
        self.counts, self.angles = (
            self.__item(document_model, s.xdata(units=units, padded=True), name.format(title), self.table)
            for s, name, units in lines
        )
        display_item = computations.display_item_of(self.source)
        selected = document_controller.selected_display_panel
        if display_item is not None:
            # The tracks come below the scan, the lines below its overlay.
            overlay = computations.display_item_of(self.annotation.overlay) or display_item
            for item, above in ((self.picture, display_item), (self.counts, overlay)):
                commands.show_beside(document_controller, above, item, side="bottom")
            # The scan stays in the user's hands: what is shown beside it takes neither keys nor buttons.
            document_controller.selected_display_panel = selected

    def __item(self, document_model: typing.Any, xdata: typing.Any, title: str, source: typing.Any) -> typing.Any:
        item = DataItem.new_data_item(xdata)
        item.title = title
        # As passing as the scan itself: nothing is written to the disk at each frame.
        item.category = self.source.category
        item.source = source
        document_model.append_data_item(item)
        return item

    # ------------------------------------------------------- on the worker thread

    def frame_analysed(self, frame: live.LiveFrame, image: Frame, analysis: FrameAnalysis) -> None:
        """Follow the defects into the next frame."""
        from stemdl_core.tracking import Tracker

        if self.__paused or self.__stopped:
            return
        geometry = Geometry.of(frame.xdata, analysis.pixel_size.nm)
        with self.__lock:
            if self.__start is None or not geometry.same_scale(self.__start):
                # Another field of view, size or rotation: positions of before mean nothing any more.
                self.__tracker, self.__start = Tracker(), geometry
                self.__fresh()
            assert self.__tracker is not None
            self.__began_s = frame.arrived_s if self.__began_s is None else self.__began_s
            numbered = _numbered(analysis, frame.number, frame.arrived_s - self.__began_s)
            moved = geometry.moved_from(self.__start)
            update = self.__tracker.update(numbered, drift_nm=moved, drift_sigma_nm=_CENTRE_SIGMA_NM)
            self.__frames += 1
            self.__take(update)
            forget(self.__tracker, keep=max(200, min(KEPT_FRAMES, KEPT_ROWS // max(len(update.tracks), 1))))
        now = time.perf_counter()
        if now - self.__drawn_s >= _PICTURE_S or update.events:
            self.__drawn_s = now
            self.__draw(frame, image, update.drift_nm / analysis.pixel_size.nm)

    def __take(self, update: Update) -> None:
        if update.fault is not None:
            self.__left_out += 1
            return
        self.__counts.append(plots.counts_of(t.name for t in update.tracks))
        turning = [t for t in update.tracks if plots.is_rotor(t.name, t.orientation_deg)]
        self.__angles.append(
            {
                f"{t.name} #{t.track_id}": self.__unwrapped.next(t.track_id, t.name, t.orientation_deg)
                for t in turning
            }
        )
        assert self.__start is not None
        pixel_nm = self.__start.fov_nm / max(self.__start.shape)
        seen = {t.track_id for t in update.tracks}
        for track in update.tracks:
            trail = self.__trails.setdefault(track.track_id, deque(maxlen=TRAIL))
            trail.append(numpy.asarray(track.yx_px) - update.drift_nm / pixel_nm)
            self.__names[track.track_id] = track.name
        for number in [n for n in self.__trails if n not in seen][: max(0, len(self.__trails) - 100)]:
            del self.__trails[number], self.__names[number]
        for event in update.events:
            self.__events.append(tracking.event_entry(event))
            self.__event_count += 1

    def __draw(self, frame: live.LiveFrame, frame_image: Frame, drift_px: numpy.ndarray) -> None:
        from . import overlay

        paths = {
            number: (numpy.array(trail) + drift_px, self.__names[number])
            for number, trail in self.__trails.items()
        }
        image = frame_image.image
        zoom = overlay.zoom_for(image.shape)
        calibrations = adapters.overlay_calibrations(
            frame.xdata.dimensional_calibrations[-2:],
            zoom,
            {"pixel_size_nm": self.__start.fov_nm / max(self.__start.shape)} if self.__start else {},
        )
        key = adapters.METADATA_KEY
        picture = overlay.paths(image, paths)
        step = max(1, max(picture.shape) // 340)
        with self.__lock:
            self.thumbnails.append(picture[::step, ::step, ::-1].copy())
            self.__thumbnail_frames.append(frame.number)
        pictures = _Pictures(
            DataAndMetadata.new_data_and_metadata(
                picture,
                dimensional_calibrations=calibrations,
                metadata={key: {"overlay": adapters.SCHEMA}},
            ),
            self.__counts.xdata(units=_("defects"), padded=True),
            self.__angles.xdata(units="\N{DEGREE SIGN}", padded=True),
            self.__table(frame.number, drift_px),
        )
        with self.__lock:
            self.__pictures = pictures

    def __table(self, number: int, drift_px: numpy.ndarray) -> DataAndMetadata.DataAndMetadata:
        """The newest position of each defect; all rows are in `tracks`, which takes too long for each frame."""
        names = sorted(set(self.__names.values()))
        pixel_nm = self.__start.fov_nm / max(self.__start.shape) if self.__start else 1.0
        rows = [
            (number, numpy.nan, i, names.index(self.__names[i]), *(t[-1] + drift_px), *(t[-1] * pixel_nm),
             numpy.nan)
            for i, t in self.__trails.items()
        ]
        entry = {
            "schema": adapters.SCHEMA,
            "live": True,
            "tracks": len(self.__trails),
            "rows": len(rows),
            "frames": self.__frames,
            "model": self.__model,
            "columns": [name for name, _unit in tracking.COLUMNS],
            "units": [unit for _name, unit in tracking.COLUMNS],
            "names": names,
            "faults": [],
            "events": list(self.__events),
        }
        table = numpy.array(rows or numpy.full((1, len(tracking.COLUMNS)), numpy.nan), dtype=float)
        return DataAndMetadata.new_data_and_metadata(table, metadata={adapters.METADATA_KEY: entry})

    # --------------------------------------------------------- on the main thread

    def show(self) -> None:
        """Put the newest pictures into their items."""
        with self.__lock:
            pictures, self.__pictures = self.__pictures, None
        if pictures is not None and not self.__stopped and not self.table._closed:
            publish.put(self.picture, pictures.overlay, keep_date=True)
            plots.update(self.counts, pictures.counts, keep_date=True)
            plots.update(self.angles, pictures.angles, keep_date=True)
            publish.put(self.table, pictures.table, keep_date=True)
        self.__tell()

    def __tell(self) -> None:
        state = "stopped" if self.__stopped else "paused" if self.__paused else "running"
        status = Status(state, self.__frames, self.__left_out, len(self.__trails), self.__event_count)
        if status != self.status:
            self.status = status
            self.status_changed_event.fire()

    @property
    def is_running(self) -> bool:
        """Whether it has not been stopped; a pause is no stop."""
        return not self.__stopped

    @property
    def is_paused(self) -> bool:
        """Whether frames pass by unfollowed."""
        return self.__paused

    def pause(self, paused: bool = True) -> None:
        """Let frames pass by, or go on: the defects are then looked for where they may have drifted to."""
        self.__paused = paused
        self.__tell()

    def stop(self) -> None:
        """End; the results stay as long as the scan's image."""
        if not self.__stopped:
            publish.date((self.table, self.picture, self.counts, self.angles))
            self.__end()

    def __end(self) -> None:
        if self.__stopped:
            return
        self.__stopped = True
        self.annotation.detach(self)
        self.__removed_listener.close()
        self.__removed_listener = typing.cast(typing.Any, None)
        if self in _running:
            _running.remove(self)
        self.__unwritten.close()
        self.__tell()

    close = stop

    def picture_of(self, frame: int) -> numpy.ndarray | None:
        """(h, w, 3) small picture (red, green, blue) of a frame of this session, as long as it is kept."""
        with self.__lock:
            if frame in self.__thumbnail_frames:
                return self.thumbnails[self.__thumbnail_frames.index(frame)]
        return None

    def tracks(self) -> typing.Any:
        """Trajectories and events of the newest frames, as `stemdl_core.Tracks`; takes up to a second."""
        with self.__lock:
            if self.__tracker is None:
                from stemdl_core.trajectories import Tracks

                return Tracks.empty()
            return self.__tracker.tracks()


def _numbered(analysis: FrameAnalysis, number: int, time_s: float) -> FrameAnalysis:
    """The analysis with the frame's place in this session: the scan's own numbers begin anew with each scan."""
    import dataclasses

    return dataclasses.replace(analysis, frame=number, time_s=time_s)


_running: list[LiveTracking] = []


def start(
    document_controller: DocumentController.DocumentController, annotation: live.LiveAnnotation
) -> LiveTracking:
    """Begin to follow the defects of a live annotation."""
    run = LiveTracking(document_controller, annotation)
    _running.append(run)
    return run


def find(data_item: DataItem.DataItem | None) -> LiveTracking | None:
    """The tracking that a data item is the live image or a result of."""
    for run in _running:
        parts = (run.source, run.table, run.picture, run.counts, run.angles, run.annotation.overlay,
                 run.annotation.table)  # fmt: skip
        if data_item is not None and data_item in parts:
            return run
    return None


def stop_all() -> None:
    """End everything, when the plug-in is unloaded."""
    for run in list(_running):
        run.stop()
