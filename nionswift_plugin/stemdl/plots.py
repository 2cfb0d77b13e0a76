"""Line plots that grow: how many defects of each type there are, and the angles of the rotors, over time."""

from __future__ import annotations

import math
import typing

import numpy
from nion.data import Calibration, DataAndMetadata

from . import adapters, publish

if typing.TYPE_CHECKING:
    from nion.swift.model import DataItem, DisplayItem

    from stemdl_core.trajectories import Tracks

#: Lines of a plot at most: Swift draws no more than sixteen, and a reader tells no more than eight apart.
MOST_LINES = 8
#: Frames that a growing plot has room for at the beginning.
LEAST_POINTS = 64
OTHERS = "others"
#: Okabe & Ito's palette: apart for colour-blind eyes, and visible on Swift's white plots.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#666666")


class Series:
    """Lines over a common axis of frames, the newest `most` of them kept.

    Parameters
    ----------
    most : int
        Points kept; older ones are forgotten, so that memory stays constant.
    missing : float
        Value where a line has none.
    """

    def __init__(self, *, most: int, missing: float) -> None:
        self.labels: list[str] = []
        self.first = 0
        self._most, self._missing = most, missing
        self._count = 0
        self._values = numpy.full((MOST_LINES, 2 * most), missing, dtype=numpy.float32)

    def __len__(self) -> int:
        return self._count

    def append(self, values: typing.Mapping[str, float]) -> None:
        """Add a point to every line; lines that are not named have none. Too many lines share the last."""
        if self._count == self._values.shape[1]:
            kept = self._values[:, self._most :].copy()
            self._values[:] = self._missing
            self._values[:, : self._most] = kept
            self._count, self.first = self._most, self.first + self._most
        for label, value in values.items():
            row = self._row(label)
            old = self._values[row, self._count]
            shared = self.labels[row] == OTHERS and old == old and self._missing == 0
            self._values[row, self._count] = old + value if shared else value
        self._count += 1

    def _row(self, label: str) -> int:
        if label not in self.labels:
            if len(self.labels) < MOST_LINES - 1:
                self.labels.append(label)
            else:
                label = OTHERS
                if OTHERS not in self.labels:
                    self.labels.append(OTHERS)
        return self.labels.index(label)

    def values(self) -> numpy.ndarray:
        """(lines, points) float32, a copy; at least one line and one point."""
        lines, points = max(len(self.labels), 1), max(self._count, 1)
        return self._values[:lines, max(0, points - self._most) : points].copy()

    def xdata(self, *, units: str, padded: bool = False) -> DataAndMetadata.DataAndMetadata:
        """The lines as Swift's data: one row a line, frames along it.

        Padded lines keep their length, with nothing at the end, until that is used up and doubles: Swift
        builds the whole inspector anew whenever the shape of the selected item changes.
        """
        values = self.values()
        shown = max(self._count, 1) - values.shape[1]
        if padded:
            length = min(max(LEAST_POINTS, 2 ** math.ceil(math.log2(values.shape[1]))), self._most)
            padding = numpy.full((len(values), max(length - values.shape[1], 0)), numpy.nan, numpy.float32)
            values = numpy.concatenate([values, padding], axis=1)
        return DataAndMetadata.new_data_and_metadata(
            values,
            intensity_calibration=Calibration.Calibration(0.0, 1.0, units),
            dimensional_calibrations=[
                Calibration.Calibration(),
                Calibration.Calibration(float(self.first + shown), 1.0, "frames"),
            ],
            # Rows of a two-dimensional datum become lines of one plot; of a collection, Swift shows one alone.
            data_descriptor=DataAndMetadata.DataDescriptor(False, 0, 2),
            metadata={adapters.METADATA_KEY: {"plot": adapters.SCHEMA, "labels": list(self.labels)}},
        )


def counts_of(names: typing.Iterable[str]) -> dict[str, float]:
    """How often each name occurs."""
    counts: dict[str, float] = {}
    for name in names:
        counts[name] = counts.get(name, 0.0) + 1.0
    return counts


class Unwrapped:
    """Angles that go on growing when a rotor turns past its symmetry."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def next(self, track_id: int, name: str, angle_deg: float) -> float:
        """The angle nearest to the one before among those that the symmetry makes alike [deg]."""
        fold = 180.0 if name.endswith(("2C4", "2C5", "2C6")) else 120.0
        last = self._last.get(track_id)
        if last is not None:
            angle_deg += fold * round((last - angle_deg) / fold)
        self._last[track_id] = angle_deg
        if len(self._last) > 200:
            self._last.pop(next(iter(self._last)))
        return angle_deg


def is_rotor(name: str, angle_deg: float) -> bool:
    """Whether a defect's angle is worth a line: clusters turn, single substitutions only wobble."""
    atoms = name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    return angle_deg == angle_deg and atoms[:1] in ("2", "3", "4")


def timeline_of(tracks: Tracks) -> tuple[Series, Series]:
    """Numbers of defects by type, and rotor angles, of a movie that has been followed to its end."""
    frames = max(int(tracks.frames), int(tracks.frame.max(initial=0)) + 1, 1)
    counts, angles = Series(most=frames, missing=0.0), Series(most=frames, missing=float("nan"))
    unwrapped = Unwrapped()
    order = numpy.argsort(tracks.frame, kind="stable")
    bounds = numpy.searchsorted(tracks.frame[order], numpy.arange(frames + 1))
    for frame in range(frames):
        rows = order[bounds[frame] : bounds[frame + 1]]
        counts.append(counts_of(tracks.name[rows].tolist()))
        now = zip(
            tracks.track_id[rows].tolist(), tracks.name[rows].tolist(), tracks.orientation_deg[rows].tolist()
        )
        angles.append(
            {f"{n} #{i}": unwrapped.next(i, n, a) for i, n, a in now if is_rotor(n, a)}
        )
    return counts, angles


def show_as_lines(display_item: DisplayItem.DisplayItem, labels: typing.Sequence[str]) -> None:
    """Let Swift draw an item as one line a row, with a legend. On the main thread; quick where it is so."""
    wanted = max(len(labels), 1)
    data_item = display_item.data_item
    if data_item is None or data_item.xdata is None or data_item.xdata.data_shape[0] != wanted:
        return
    if display_item.display_type != "line_plot" or len(display_item.display_layers) != wanted:
        display_item.display_type = None
        display_item.display_type = "line_plot"
    low, high = _limits(data_item.xdata.data)
    wanted_look = {"y_min": low, "y_max": high, "legend_position": "top-right" if labels else None}
    for name, value in wanted_look.items():
        if display_item.get_display_property(name) != value:
            display_item.set_display_property(name, value)
    for index, label in enumerate(labels[: len(display_item.display_layers)]):
        colour = COLOURS[index % len(COLOURS)]
        for name, value in (("label", label), ("stroke_color", colour), ("fill_color", None)):
            if display_item.get_display_layer_property(index, name) != value:
                display_item._set_display_layer_property(index, name, value)


def _limits(values: numpy.ndarray) -> tuple[float, float]:
    """Axis limits for lines with gaps, for which Swift finds none; coarse, so that they change seldom."""
    known = values[numpy.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    low = 0.0 if 0 < low < 0.5 * high else low
    step = 10.0 ** math.floor(math.log10(max(high - low, 1.0)))
    return step * math.floor(low / step), step * (math.floor(high / step) + 1)


def update(
    item: DataItem.DataItem, xdata: DataAndMetadata.DataAndMetadata, *, keep_date: bool = False
) -> None:
    """Put new lines into an item and let Swift draw all of them. On the main thread."""
    publish.put(item, xdata, keep_date=keep_date)
    display_item = item._document_model.get_display_item_for_data_item(item) if item._document_model else None
    if display_item is not None:
        show_as_lines(display_item, xdata.metadata[adapters.METADATA_KEY]["labels"])
