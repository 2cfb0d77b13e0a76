"""Where a frame was scanned, in the scan's coordinates; and what a tracker may forget of a long session."""

from __future__ import annotations

import typing
from dataclasses import dataclass

import numpy

if typing.TYPE_CHECKING:
    from nion.data import DataAndMetadata

    from stemdl_core.tracking import Tracker


@dataclass(frozen=True)
class Geometry:
    """Where and how a frame was scanned: what must not change between frames that are compared."""

    shape: tuple[int, int]
    fov_nm: float
    rotation_rad: float
    center_nm: tuple[float, float]

    @classmethod
    def of(cls, xdata: DataAndMetadata.DataAndMetadata, pixel_nm: float) -> Geometry:
        """From the metadata of a live frame; the centre is (0, 0) where the device does not tell it."""
        scan = xdata.metadata.get("scan", {})
        height, width = (int(n) for n in xdata.data_shape[-2:])
        fov_nm = pixel_nm * max(height, width)
        center = numpy.array([float(scan.get("center_y_nm", 0.0)), float(scan.get("center_x_nm", 0.0))])
        rotation = float(scan.get("rotation", 0.0) or 0.0)
        if scan.get("subscan_fractional_center"):
            offset = (numpy.asarray(scan["subscan_fractional_center"], dtype=float) - 0.5) * float(scan["fov_nm"])
            center = center + to_scan(offset, rotation)
            rotation -= float(scan.get("subscan_rotation", 0.0) or 0.0)
        return cls((height, width), round(fov_nm, 6), rotation, (float(center[0]), float(center[1])))

    def moved_from(self, start: Geometry) -> numpy.ndarray:
        """(y, x) displacement of the specimen in the image since `start`, from the scan's centre alone [nm]."""
        step = numpy.subtract(start.center_nm, self.center_nm)
        return to_image(step, self.rotation_rad)

    def position_nm(self, yx_px: typing.Any) -> numpy.ndarray:
        """Where a pixel (y, x) of the image lies in the scan's coordinates [nm]."""
        middle = (numpy.asarray(self.shape, dtype=float) - 1) / 2
        step = (numpy.asarray(yx_px, dtype=float) - middle) * self.fov_nm / max(self.shape)
        return numpy.asarray(self.center_nm) + to_scan(step, self.rotation_rad)

    def same_scale(self, other: Geometry) -> bool:
        """Whether positions in nm can be compared."""
        return (self.shape, self.fov_nm, self.rotation_rad) == (other.shape, other.fov_nm, other.rotation_rad)


def to_image(step_nm: typing.Any, rotation_rad: float) -> numpy.ndarray:
    """A step (y, x) in the scan's coordinates, along the axes of an image taken at that rotation.

    The sense is that of Nion's scan device, which turns the offset of a sub-scan from the axes of the image
    to those of the scan by ``FloatPoint.rotate(rotation_rad)``.
    """
    c, s = numpy.cos(rotation_rad), numpy.sin(rotation_rad)
    return numpy.asarray(step_nm, dtype=float) @ numpy.array([[c, s], [-s, c]])


def to_scan(step_nm: typing.Any, rotation_rad: float) -> numpy.ndarray:
    """The reverse of `to_image`."""
    return to_image(step_nm, -rotation_rad)


def forget(tracker: Tracker, *, keep: int) -> None:
    """Drop what a tracker remembers of more than `keep` rows a track: a session may last all day.

    Only rows whose names are decided go; what the tracker decides with is not touched. Its drift, some
    hundred bytes a frame, stays.
    """
    roster = tracker._roster
    if roster is None or len(tracker._frames) <= keep or len(tracker._frames) % 64:
        return
    first = tracker._frames[-keep]
    for track in (*roster.live, *roster.away):
        surplus = min(len(track.rows["frame"]) - keep, len(track.names))
        if surplus > 0:
            for column in track.rows.values():
                del column[:surplus]
            del track.names[:surplus]
    roster.done[:] = [t for t in roster.done if t.rows["frame"] and t.rows["frame"][-1] >= first]
    del roster.events[: max(0, len(roster.events) - keep)]
