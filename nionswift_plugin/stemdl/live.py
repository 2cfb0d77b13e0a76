"""Annotation of a running scan: complete frames only, the newest first, never in the way of the acquisition.

The acquisition thread only copies the frame and goes on. One worker analyses the newest frame that is
complete; frames that came and went meanwhile are dropped and counted. The main thread only puts finished
results into their data items. No scan is ever started from here: that would put dose on the specimen that
nobody asked for.
"""

from __future__ import annotations

import gettext
import logging
import threading
import time
import typing
from dataclasses import dataclass

import numpy
from nion.data import DataAndMetadata
from nion.utils import Event

from . import adapters, computations, engine, marks, publish
from .live_status import Follower as Follower
from .live_status import LiveFrame as LiveFrame
from .live_status import LiveStatus as LiveStatus

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.swift.model import DataItem

    from stemdl_core.analysis import FrameAnalysis
    from stemdl_core.frames import Frame as Image

_ = gettext.gettext


#: The tables are filled at most this often [s]: nobody reads faster, and Swift draws each of them anew.
_TABLE_S = 0.4
#: Freed memory is returned to the system this often.
_FRAMES_BETWEEN_TRIMS = 50


@dataclass(frozen=True)
class _Result:
    frame: LiveFrame
    contents: computations.Results | None = None
    error: str = ""


def hardware_source_of(data_item: DataItem.DataItem | None) -> tuple[typing.Any, str | None] | None:
    """The acquisition device that fills a data item, and its channel; None for stored images."""
    metadata = (data_item.metadata if data_item else {}).get("hardware_source", {})
    device_id = metadata.get("hardware_source_id")
    if data_item is None or not device_id or data_item.category != "temporary":
        return None
    try:
        from nion.instrumentation import HardwareSource
    except ImportError:
        return None
    device = HardwareSource.HardwareSourceManager().get_hardware_source_for_hardware_source_id(device_id)
    return (device, metadata.get("channel_id")) if device is not None else None


class LiveAnnotation:
    """Keeps an overlay, a table and marks in step with a live image.

    Parameters
    ----------
    document_controller
        The window whose event loop carries the results to the main thread.
    source, overlay, table, defect_table : DataItem
        The live image and the items to fill.
    options : Options
        Model and drawing; may be replaced at any time.
    """

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        source: DataItem.DataItem,
        overlay: DataItem.DataItem,
        table: DataItem.DataItem,
        defect_table: DataItem.DataItem | None,
        options: computations.Options,
    ) -> None:
        device = hardware_source_of(source)
        if device is None:
            raise ValueError("not a live image")
        self.source, self.overlay, self.table, self.defect_table = source, overlay, table, defect_table
        self.options = options
        #: The newest frame that was analysed, and what was found in it.
        self.latest: tuple[Image, FrameAnalysis] | None = None
        #: What else works on each analysed frame; see `attach`.
        self.followers: tuple[Follower, ...] = ()
        self.status = LiveStatus()
        #: Fired on the main thread after each result.
        self.status_changed_event = Event.Event()
        self.__hardware_source, self.__channel_id = device
        self.__event_loop = document_controller.event_loop
        self.__condition = threading.Condition()
        self.__newest: LiveFrame | None = None
        self.__result: _Result | None = None
        self.__publishing = False
        self.__closed = False
        self.__follower_error = ""
        self.__seen = self.__dropped = self.__analysed = 0
        self.__unlisted: computations.Results | None = None
        self.__later: typing.Any = None
        self.__listed_s = -1e9
        self.__apart = engine.Apart()
        self.__thread = threading.Thread(target=self.__work, name="stemdl-live", daemon=True)
        self.__thread.start()
        self.__unwritten = publish.Unwritten((overlay, table, defect_table))
        self.__end_listeners = [
            table.about_to_be_removed_event.listen(self.__end),
            document_controller.document_model.about_to_close_event.listen(self.__end),
        ]
        self.__collector: publish.CalmCollector | None = None
        self.__listener = self.__hardware_source.data_channel_updated_event.listen(self.__frame_changed)

    @property
    def is_running(self) -> bool:
        """Whether frames are still being taken."""
        return not self.__closed

    def attach(self, follower: Follower) -> None:
        """Let something else work on each frame that is analysed. On the main thread."""
        self.followers = (*self.followers, follower)

    def detach(self, follower: Follower) -> None:
        """End that; the follower is not closed. On the main thread."""
        self.followers = tuple(f for f in self.followers if f is not follower)

    def close(self) -> None:
        """Stop; the results stay. On the main thread."""
        if not self.__closed:
            self.__list()
            publish.date((self.overlay, self.table, self.defect_table))
            self.__end()

    def __end(self) -> None:
        if self.__closed:
            return
        self.__listener.close()
        for listener in self.__end_listeners:
            listener.close()
        self.__listener, self.__end_listeners = typing.cast(typing.Any, None), []
        if self.__later is not None:
            self.__later.cancel()
        self.__later = self.__unlisted = None
        if self.__collector is not None:
            self.__collector.close()
        with self.__condition:
            self.__closed = True
            self.__newest = self.__result = None
            self.__condition.notify_all()
        self.__apart.close()
        if self in _running:
            _running.remove(self)
        followers, self.followers = self.followers, ()
        for follower in followers:
            follower.close()
        self.__unwritten.close()
        self.status_changed_event.fire()

    def join(self, timeout_s: float = 10.0) -> None:
        """Wait until the worker has ended; for programs that end."""
        self.__thread.join(timeout_s)

    def __frame_changed(self, args: typing.Any, xdata: DataAndMetadata.DataAndMetadata) -> None:
        # On the acquisition thread: copy, since the buffer is used again for the next frame, and leave.
        if args.state != "complete" or args.channel_id != self.__channel_id:
            return
        arrived_s = time.perf_counter()
        if self.__hardware_source.is_aborted:
            # The frame that was being scanned when the user broke off: its lower rows are empty.
            return
        metadata = xdata.metadata
        if xdata.data_shape and adapters.is_partial(metadata, xdata.data_shape[-2]):
            return
        copied = DataAndMetadata.new_data_and_metadata(
            numpy.copy(xdata.data),
            dimensional_calibrations=xdata.dimensional_calibrations,
            data_descriptor=xdata.data_descriptor,
            metadata=metadata,
        )
        index = int(metadata.get("hardware_source", {}).get("frame_index", 0))
        with self.__condition:
            if self.__closed:
                return
            self.__seen += 1
            if self.__newest is not None:
                self.__dropped += 1
            self.__newest = LiveFrame(copied, self.__seen - 1, index, arrived_s)
            self.__condition.notify()

    def __work(self) -> None:
        cores: engine.HalfTheCores | None = None
        try:
            while not self.__closed:
                self.__next_frame()
                cores = cores or engine.HalfTheCores()
        finally:
            if cores is not None:
                cores.close()

    def __next_frame(self) -> None:
        with self.__condition:
            self.__condition.wait_for(lambda: self.__closed or self.__newest is not None)
            if self.__closed:
                return
            frame, self.__newest = self.__newest, None
        assert frame is not None
        image, result = self.__analyse(frame)
        if image is not None and result.contents is not None:
            self.latest = image, result.contents.analysis
        with self.__condition:
            # One finished result at most waits for the main thread: the display never lags by more than
            # one.
            self.__condition.wait_for(lambda: self.__closed or self.__result is None)
            if self.__closed:
                return
            self.__result = result
        try:
            self.__event_loop.call_soon_threadsafe(self.__publish)
        except RuntimeError:  # the window has closed meanwhile
            return
        if image is not None and result.contents is not None and self.followers:
            self.__hand_on(frame, image, result.contents.analysis)
        if frame.number % _FRAMES_BETWEEN_TRIMS == _FRAMES_BETWEEN_TRIMS - 1:
            publish.give_back_memory()

    def __hand_on(self, frame: LiveFrame, image: Image, analysis: FrameAnalysis) -> None:
        # After the overlay is on its way: what the followers take does not delay what the user sees.
        for follower in self.followers:
            try:
                follower.frame_analysed(frame, image, analysis)
            except Exception as error:
                logging.getLogger(__name__).exception("a follower of the live analysis failed")
                self.__follower_error = _("Live: {}").format(error)
        try:
            self.__event_loop.call_soon_threadsafe(self.__show_followers)
        except RuntimeError:  # the window has closed meanwhile
            return

    def __show_followers(self) -> None:
        if not self.__closed:
            for follower in self.followers:
                follower.show()

    def __analyse(self, frame: LiveFrame) -> tuple[Image | None, _Result]:
        from stemdl_core.errors import StemdlError

        options = self.options
        try:
            image = adapters.frame_of(frame.xdata, source=_("live"))
            analysis = self.__apart.analyze(image, model=options.model, dopant=options.dopant)
            contents = computations.results(
                frame.xdata, image, analysis, options,
                with_geometry=adapters.MOST_LIVE_DEFECTS_WITH_GEOMETRY,
            )  # fmt: skip
            return image, _Result(frame, contents)
        except StemdlError as error:
            return None, _Result(frame, error=str(error))
        except Exception as error:
            # Whatever goes wrong with one frame, the next one gets its chance; the user reads why.
            return None, _Result(frame, error=_("Live analysis failed: {}").format(error))

    def __publish(self) -> None:
        with self.__condition:
            result, self.__result = self.__result, None
            self.__condition.notify()
            if result is None or self.__closed:
                return
            self.__analysed += 1
        # After the first result, when everything has been loaded.
        self.__collector = self.__collector or publish.CalmCollector()
        contents, shown_s = result.contents, time.perf_counter()
        if contents is not None and not (self.overlay._closed or self.table._closed):
            publish.put(self.overlay, contents.overlay, keep_date=True)
            shown_s = time.perf_counter()
            self.__unlisted = contents
            wait_s = self.__listed_s + _TABLE_S - shown_s
            if wait_s <= 0:
                self.__list()
            elif self.__later is None:
                self.__later = self.__event_loop.call_later(wait_s, self.__list)
            display_item = computations.display_item_of(self.source)
            if display_item is not None:
                marks.update_marks(
                    display_item, self.table, contents.analysis, most=marks.MOST_LIVE_MARKS,
                    steadiness=marks.LIVE_STEADINESS,
                )  # fmt: skip
        with self.__condition:
            seen, dropped = self.__seen, self.__dropped
        error, self.__follower_error = result.error or self.__follower_error, ""
        self.status = LiveStatus(seen, self.__analysed, dropped, result.frame.index,
                                 shown_s - result.frame.arrived_s, error)  # fmt: skip
        self.status_changed_event.fire()


    def __list(self) -> None:
        """Put the newest result into the tables."""
        if self.__later is not None:
            self.__later.cancel()
        self.__later, contents, self.__unlisted = None, self.__unlisted, None
        self.__listed_s = time.perf_counter()
        if contents is not None and not self.table._closed:
            publish.put(self.table, contents.table, keep_date=True)
            if self.defect_table is not None and not self.defect_table._closed:
                publish.put(self.defect_table, contents.defect_table, keep_date=True)


_running: list[LiveAnnotation] = []


def start(
    document_controller: DocumentController.DocumentController,
    known: computations.Annotation,
    options: computations.Options,
) -> LiveAnnotation:
    """Begin to annotate a live image."""
    annotation = LiveAnnotation(
        document_controller, known.source, known.overlay, known.table, known.defect_table, options
    )
    _running.append(annotation)
    return annotation


def find(data_item: DataItem.DataItem | None) -> LiveAnnotation | None:
    """The running annotation that a data item is the image, the overlay or the table of."""
    for annotation in _running:
        parts = (annotation.source, annotation.overlay, annotation.table, annotation.defect_table)
        if data_item is not None and data_item in parts:
            return annotation
    return None


def stop_all() -> None:
    """End everything, when the plug-in is unloaded."""
    for annotation in list(_running):
        annotation.close()
        annotation.join()
