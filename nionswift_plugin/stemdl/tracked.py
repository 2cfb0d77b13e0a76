"""Results of tracking as data items, and back: trajectories, lines over time, events."""

from __future__ import annotations

import gettext
import typing
from dataclasses import dataclass

import numpy
from nion.data import Calibration, DataAndMetadata
from nion.swift.model import DataItem

from . import adapters, computations, plots

if typing.TYPE_CHECKING:
    from stemdl_core.trajectories import Event as TrackEvent
    from stemdl_core.trajectories import Tracks

_ = gettext.gettext

#: Columns of the trajectories table, each with its unit; ``name`` counts in the metadata's ``names``.
COLUMNS = (("frame", ""), ("time_s", "s"), ("track_id", ""), ("name", ""), ("y_px", "px"), ("x_px", "px"),
           ("y_nm", "nm"), ("x_nm", "nm"), ("orientation_deg", "deg"))  # fmt: skip
#: All that is known of the newest movies, by their tables.
_kept: dict[typing.Any, Tracks] = {}
#: Swift copies metadata often; the table of all events is exported, not stored there.
MOST_EVENTS = 500


@dataclass(frozen=True)
class Results:
    """What a movie gave, ready for data items."""

    tracks: Tracks
    overlay: DataAndMetadata.DataAndMetadata
    table: DataAndMetadata.DataAndMetadata
    timeline: DataAndMetadata.DataAndMetadata
    lines: tuple[tuple[str, DataAndMetadata.DataAndMetadata], ...] = ()


def results(
    tracks: Tracks, image: numpy.ndarray, xdata: DataAndMetadata.DataAndMetadata, model: str
) -> Results:
    """Pictures and table of a tracked movie. On a worker thread."""
    from . import overlay

    names = sorted(set(tracks.name.tolist()))
    columns = [tracks.frame, tracks.time_s, tracks.track_id, [names.index(n) for n in tracks.name.tolist()],
               tracks.y_px, tracks.x_px, tracks.y_nm, tracks.x_nm, tracks.orientation_deg]  # fmt: skip
    table = numpy.stack([numpy.asarray(c, dtype=float) for c in columns], axis=1)
    rows = len(table)
    if not rows:
        table = numpy.full((1, len(COLUMNS)), numpy.nan)
    metadata = {
        "schema": adapters.SCHEMA,
        "tracks": len(tracks.ids),
        "rows": rows,
        "frames": int(tracks.frames),
        "model": model,
        "columns": [name for name, _unit in COLUMNS],
        "units": [unit for _name, unit in COLUMNS],
        "names": names,
        "faults": [[int(frame), reason] for frame, reason in tracks.faults][:MOST_EVENTS],
        "events": [event_entry(e) for e in list(tracks.events)[:MOST_EVENTS]],
    }
    key = adapters.METADATA_KEY
    calibrations = list(xdata.dimensional_calibrations[-2:])
    zoom = overlay.zoom_for(image.shape)
    scaled = [Calibration.Calibration(c.offset, c.scale / zoom, c.units) for c in calibrations]
    counts, angles = plots.timeline_of(tracks)
    lines = [(_("{} (Defects over Time)"), counts.xdata(units=_("defects")))]
    if angles.labels:
        lines.append((_("{} (Rotor Angles)"), angles.xdata(units="\N{DEGREE SIGN}")))
    return Results(
        tracks,
        DataAndMetadata.new_data_and_metadata(
            overlay.trajectories(image, tracks),
            dimensional_calibrations=scaled,
            metadata={key: {"overlay": 1}},
        ),
        DataAndMetadata.new_data_and_metadata(table, metadata={key: metadata}),
        DataAndMetadata.new_data_and_metadata(overlay.timeline(tracks), metadata={key: {"overlay": 1}}),
        tuple(lines),
    )


def _finite(value: float) -> float | None:
    return round(float(value), 2) if numpy.isfinite(value) else None


def event_entry(event: TrackEvent) -> dict[str, typing.Any]:
    """An event as it stands in the metadata of a table."""
    return {
        "frame": int(event.frame), "kind": event.kind, "track_ids": [int(i) for i in event.track_ids],
        "from": event.before, "to": event.after, "angle_deg": _finite(event.angle_deg),
    }  # fmt: skip


def event_line(event: typing.Mapping[str, typing.Any]) -> str:
    """One event in one line."""
    names = dict.fromkeys(name for name in (event["from"], event["to"]) if name)
    line = f"{event['frame']}   {event['kind']}   " + " \N{RIGHTWARDS ARROW} ".join(names)
    if event.get("angle_deg") is not None:
        line += f"   {event['angle_deg']:.0f}\N{DEGREE SIGN}"
    return line


def keep(table: DataItem.DataItem, tracks: Tracks) -> None:
    """Remember all that is known of a movie as long as the program runs, of the newest eight."""
    _kept[table.uuid] = tracks
    while len(_kept) > 8:
        _kept.pop(next(iter(_kept)))


def find_table(document_model: typing.Any, data_item: DataItem.DataItem | None) -> DataItem.DataItem | None:
    """The newest trajectories table that a data item is the movie, a picture or the table of."""
    for item in reversed(document_model.data_items if data_item is not None else []):
        known = "tracks" in item.metadata.get(adapters.METADATA_KEY, {}) and item.source is not None
        if known and (data_item in (item, item.source) or data_item.source is item):  # type: ignore[union-attr]
            return typing.cast(DataItem.DataItem, item)
    return None


def tracks_of(table: DataItem.DataItem) -> Tracks:
    """The trajectories of a table item; of a reloaded project as far as they are stored there."""
    kept = _kept.get(table.uuid)
    if kept is not None:
        return kept
    from stemdl_core.trajectories import Event, Events, Tracks

    metadata = table.metadata[adapters.METADATA_KEY]
    rows = numpy.asarray(table.data)[: metadata["rows"]]
    column = {name: rows[:, i].tolist() for i, name in enumerate(metadata["columns"])}
    column["name"] = [metadata["names"][int(n)] for n in column["name"]]
    column["seen_as"] = column["name"]
    column["probability"] = [1.0] * len(rows)
    column["deviation_deg"] = [numpy.nan] * len(rows)
    events = tuple(
        Event(
            e["frame"], e["kind"], tuple(e["track_ids"]), e["from"], e["to"],
            angle_deg=numpy.nan if e["angle_deg"] is None else e["angle_deg"],
        )
        for e in metadata["events"]
    )  # fmt: skip
    faults = tuple((int(n), str(why)) for n, why in metadata["faults"])
    return Tracks.from_rows(column, events=Events(events), faults=faults, frames=metadata["frames"])


def show_frame(movie: DataItem.DataItem, index: int) -> None:
    """Let Swift display a frame of a movie."""
    display_item = computations.display_item_of(movie)
    channel = display_item.display_data_channel if display_item else None
    if channel is not None and movie.is_sequence:
        channel.sequence_index = index
    elif channel is not None:
        channel.collection_index = (index,)
