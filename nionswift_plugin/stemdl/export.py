"""Export from the panel: tables as CSV, atoms as extended xyz, pictures and an animation, on a thread of its own."""

from __future__ import annotations

import gettext
import pathlib
import re
import threading
import typing

import numpy

from . import adapters, commands, computations, engine, live, session, tracking

if typing.TYPE_CHECKING:
    from collections.abc import Callable

    from nion.swift import DocumentController
    from nion.swift.model import DataItem

    from stemdl_core.trajectories import Tracks

_ = gettext.gettext

_FOLDER_SETTING = "stemdl/export-folder"
_threads: list[threading.Thread] = []


def ask_and_export(
    document_controller: DocumentController.DocumentController, data_item: DataItem.DataItem | None
) -> None:
    """Ask for a folder, and write there all that is known about an image, movie or scan."""
    ui = document_controller.ui
    last = str(ui.get_persistent_string(_FOLDER_SETTING, str(pathlib.Path.home())))
    folder, _directory = ui.get_existing_directory_dialog(_("Folder for the Results"), last)
    if folder:
        ui.set_persistent_string(_FOLDER_SETTING, folder)
        export(document_controller, data_item, pathlib.Path(folder))


def export(
    document_controller: DocumentController.DocumentController,
    data_item: DataItem.DataItem | None,
    folder: pathlib.Path,
) -> threading.Thread | None:
    """Write the results of a data item into ``folder/<title>-stemdl``; one line is shown when that is done."""
    jobs = [*_frame_jobs(document_controller, data_item), *_movie_jobs(document_controller, data_item)]
    if not jobs or data_item is None:
        commands.notify(_("Nothing was exported"), _("select an image with results first"))
        return None
    title = re.sub(r"[^\w+-]+", "_", _source(document_controller, data_item).title).strip("_") or "image"
    target = folder / f"{title}-stemdl"
    event_loop = document_controller.event_loop

    def work() -> None:
        from stemdl_core.errors import StemdlError

        try:
            target.mkdir(parents=True, exist_ok=True)
            for job in jobs:
                job(target)
            line = (_("Exported"), str(target))
        except (StemdlError, OSError) as error:
            line = (_("Nothing was exported"), str(error))
        _threads.remove(threading.current_thread())
        try:
            event_loop.call_soon_threadsafe(commands.notify, *line)
        except RuntimeError:  # the window has closed meanwhile
            return

    thread = threading.Thread(target=work, name="stemdl-export", daemon=True)
    _threads.append(thread)
    thread.start()
    return thread


def _source(document_controller: DocumentController.DocumentController, item: DataItem.DataItem) -> typing.Any:
    known = computations.find(document_controller.document_model, item)
    table = tracking.find_table(document_controller.document_model, item)
    return known.source if known else table.source if table is not None else item


def _frame_jobs(
    document_controller: DocumentController.DocumentController, data_item: DataItem.DataItem | None
) -> list[Callable[[pathlib.Path], None]]:
    """One frame: analysis.json, sites.csv, defects.csv, structure.xyz, overlay.png; and the corrections."""
    known = computations.find(document_controller.document_model, data_item)
    if known is None:
        return []
    running = live.find(known.table)
    corrections = adapters.corrections_of(known.source.metadata)
    if known.computation is None:
        latest = running.latest if running is not None else None
        if latest is None:
            return []
        return [lambda folder: _write_frame(folder, *latest, ())]
    xdata, owner = known.source.xdata, known.computation.uuid
    display_item = computations.display_item_of(known.source)
    channel = display_item.display_data_channel if display_item else None
    index = adapters.displayed_index(channel) if channel else 0
    fields = engine.Options.__dataclass_fields__
    values = {v.name: v.value for v in known.computation.variables if v.name in fields}
    options, title = engine.Options(**values), known.source.title

    def job(folder: pathlib.Path) -> None:
        frame = adapters.frame_of(xdata, index=index, source=title)  # type: ignore[arg-type]
        analysis = engine.recent.get(owner, frame, options, corrections)
        _write_frame(folder, frame, analysis, corrections)

    return [job]


def _write_frame(folder: pathlib.Path, frame: typing.Any, analysis: typing.Any, corrections: typing.Any) -> None:
    from stemdl_core.results import write_frame_results

    for _part in write_frame_results(folder, analysis, frame):
        pass
    if corrections:
        from stemdl_core.corrections import write_corrections

        write_corrections(folder / "corrections.csv", corrections)


def _movie_jobs(
    document_controller: DocumentController.DocumentController, data_item: DataItem.DataItem | None
) -> list[Callable[[pathlib.Path], None]]:
    """A movie or a session: trajectories.csv, events.csv, drift.csv, overlay.gif."""
    table = tracking.find_table(document_controller.document_model, data_item)
    if table is None:
        return []
    run = session.find(table)
    if run is not None:
        return [lambda folder: _write_tracks(folder, run.tracks(), list(run.thumbnails))]
    tracks = tracking.tracks_of(table)
    xdata = table.source.xdata if table.source is not None else None

    def job(folder: pathlib.Path) -> None:
        from stemdl_core.figures import animation_frames, track_picture

        pictures: typing.Iterable[typing.Any] = ()
        if xdata is not None and adapters.is_movie(xdata):
            bad = {number for number, _reason in tracks.faults}
            shown = [n for n in animation_frames(len(xdata.data)) if n not in bad]
            pictures = (track_picture(adapters.frame_of(xdata, index=n), tracks) for n in shown)
        _write_tracks(folder, tracks, pictures)

    return [job]


def _write_tracks(folder: pathlib.Path, tracks: Tracks, pictures: typing.Iterable[numpy.ndarray]) -> None:
    from stemdl_core.figures import save_animation
    from stemdl_core.writers import write_csv

    write_csv(folder / "trajectories.csv", tracks.to_dataframe())
    write_csv(folder / "events.csv", tracks.events.to_dataframe())
    write_csv(folder / "drift.csv", tracks.drift.to_dataframe())
    frames = iter(pictures)
    first = next(frames, None)
    if first is not None:
        def every() -> typing.Iterator[numpy.ndarray]:
            yield first
            yield from frames

        save_animation(folder / "overlay.gif", every())


def stop_all() -> None:
    """Wait for what is being written, when the plug-in is unloaded."""
    for thread in list(_threads):
        thread.join(30.0)
