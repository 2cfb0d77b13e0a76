"""What a live annotation tells about itself, and what may be attached to it."""

from __future__ import annotations

import gettext
import typing
from dataclasses import dataclass

if typing.TYPE_CHECKING:
    from nion.data import DataAndMetadata

    from stemdl_core.analysis import FrameAnalysis
    from stemdl_core.frames import Frame as Image

_ = gettext.gettext


@dataclass(frozen=True)
class LiveStatus:
    """How a live annotation is doing.

    Parameters
    ----------
    seen, analysed, dropped : int
        Complete frames that came, those whose result was shown, and those that a newer one overtook. The
        rest is on its way.
    frame_index : int
        The scan's own number of the frame that is shown.
    age_s : float
        From the end of that frame to its overlay [s].
    error : str
        One line where the newest frame could not be analysed.
    """

    seen: int = 0
    analysed: int = 0
    dropped: int = 0
    frame_index: int = 0
    age_s: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return self.error
        if not self.seen:
            return _("Live: waiting for a complete frame of the scan")
        return _("Live: frame {}, {:.0f} ms, {} dropped").format(
            self.frame_index, 1e3 * self.age_s, self.dropped
        )


@dataclass(frozen=True)
class LiveFrame:
    """A complete frame of a scan.

    Parameters
    ----------
    xdata
        Image with calibrations and metadata, a copy of its own.
    number : int
        How many complete frames came before it since the annotation began: never goes back.
    index : int
        The scan's own number.
    arrived_s : float
        When it was complete, on the clock of `time.perf_counter` [s].
    """

    xdata: DataAndMetadata.DataAndMetadata
    number: int
    index: int
    arrived_s: float


class Follower(typing.Protocol):
    """What may be attached to a live annotation, such as tracking or steering."""

    def frame_analysed(self, frame: LiveFrame, image: Image, analysis: FrameAnalysis) -> None:
        """Called on the worker thread, once a frame, after its overlay has been handed on."""

    def show(self) -> None:
        """Called on the main thread after each frame: puts results into data items, computes nothing."""

    def close(self) -> None:
        """The annotation has ended."""
