"""The result folders of `annotate` and `track`: tables and pictures together, complete or not there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .analysis import FrameAnalysis
from .cutout import defect_cutout, write_cutout
from .figures import (
    animation_frames,
    composition_map,
    defect_graph,
    event_strips,
    overlay,
    save_animation,
    save_figure,
    statistics_figure,
    timeline,
    track_picture,
)
from .frames import Frame, FrameSequence
from .linking import TrackSettings
from .movies import Journal, follow_movie
from .statistics import statistics
from .trajectories import Tracks
from .writers import result_folder, strict_json, write_csv, write_graph, write_hdf5, write_tables


def write_frame_results(
    folder: Path, analysis: FrameAnalysis, frame: Frame, *, report: bool = False, hdf5: bool = False,
    cutouts: bool = False, graph: bool = False,
) -> Iterator[str]:
    """Write the files of one frame into an existing folder, yielding the name of each part when it is done.

    Parameters
    ----------
    folder : Path
        Normally the temporary one of `result_folder`.
    analysis, frame
        What was found, and in which image.
    report : bool
        Also one figure a defect, ``defect-<id>-<name>.png``, and of alloys ``composition-<element>.png``.
    hdf5 : bool
        Also ``analysis.h5``.
    cutouts : bool
        Also each defect with its surroundings, ``defect-<id>-<name>.vasp`` (POSCAR) and ``.cif``.
    graph : bool
        Also ``graph.graphml``, atoms, bonds and vacancies.
    """
    write_tables(folder, analysis)
    yield "tables"
    if hdf5:
        write_hdf5(folder / "analysis.h5", analysis, frame)
        yield "analysis.h5"
    if graph:
        write_graph(folder / "graph.graphml", analysis)
        yield "graph.graphml"
    save_figure(overlay(frame, analysis), folder / "overlay.png")
    yield "overlay.png"
    for element in analysis.alloy if report else ():
        save_figure(composition_map(frame, analysis, element), folder / f"composition-{element}.png")
        yield f"composition-{element}.png"
    for defect in analysis.defects if report else ():
        name = f"defect-{defect.id}-{file_part(defect.name)}.png"
        save_figure(defect_graph(frame, analysis, defect), folder / name)
        yield name
    for defect in analysis.defects if cutouts else ():
        atoms = defect_cutout(analysis, defect.id)
        for ending in (".vasp", ".cif"):
            name = f"defect-{defect.id}-{file_part(defect.name)}{ending}"
            write_cutout(folder / name, atoms)
            yield name


def write_analysis(
    folder: str | os.PathLike[str],
    analysis: FrameAnalysis,
    frame: Frame,
    *,
    report: bool = False,
    hdf5: bool = False,
) -> Path:
    """All result files of one frame; made if needed, files of the same name are replaced.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    StemdlError
        If the folder cannot be written.
    """
    with result_folder(folder) as temporary:
        _exhaust(write_frame_results(temporary, analysis, frame, report=report, hdf5=hdf5))
    return Path(folder)


def write_track_results(
    folder: Path,
    sequence: FrameSequence,
    analyze: Callable[[Frame], FrameAnalysis],
    *,
    settings: TrackSettings | None = None,
    journal: Journal | None = None,
    workers: int = 1,
    progress: Callable[[str], None] = lambda stage: None,
) -> Tracks:
    """Analyse and follow a movie frame by frame, writing its files into an existing folder.

    Frames that cannot be used (blank, half-scanned, no lattice) are noted in ``analysis.jsonl`` and left out.

    Parameters
    ----------
    folder : Path
        Normally the temporary one of `result_folder`.
    sequence : FrameSequence
        The movie; each frame is read once for the analysis and once for the animation.
    analyze : callable
        ``analyze(frame)``, normally `analyze_frame` with its model.
    settings : TrackSettings, optional
        Of the tracker.
    journal : Journal, optional
        Of an earlier run that was interrupted: its frames are not analysed again.
    workers : int
        Processes that analyse frames ahead of the tracking; the result does not depend on it.
    progress : callable
        ``progress(stage)`` after each frame that was analysed or drawn.

    Returns
    -------
    Tracks

    Raises
    ------
    StemdlError
        If none of the first frames can be used; the message is that of the first.
    """
    tracker, pixel_nm = None, None
    with (folder / "analysis.jsonl").open("w", encoding="utf-8") as file:
        for line, movie in follow_movie(sequence, analyze, settings=settings, journal=journal, workers=workers):
            file.write(line + "\n")
            tracker, pixel_nm = movie.tracker, movie.pixel_nm
            progress("analyse")
    tracks = Tracks.empty() if tracker is None else tracker.tracks()
    write_csv(folder / "trajectories.csv", tracks.to_dataframe())
    write_csv(folder / "events.csv", tracks.events.to_dataframe())
    write_csv(folder / "drift.csv", tracks.drift.to_dataframe())
    (folder / "statistics.json").write_text(strict_json(statistics(tracks), indent=1) + "\n", encoding="utf-8")
    save_figure(timeline(tracks), folder / "timeline.png")
    numbers = statistics_figure(tracks)
    if numbers is not None:
        save_figure(numbers, folder / "statistics.png")
    strips = None if pixel_nm is None else event_strips(sequence, tracks, pixel_nm=pixel_nm)
    if strips is not None:
        save_figure(strips, folder / "events.png")
    unusable = {number for number, _ in tracks.faults}

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for number in animation_frames(len(sequence)):
            if number not in unusable:
                yield track_picture(sequence[number], tracks)
            progress("draw")

    save_animation(folder / "overlay.gif", pictures())
    return tracks


def file_part(name: str) -> str:
    """A defect's name as part of a file name on every system: ``DV(5-8-5)`` becomes ``DV_5-8-5``."""
    return re.sub(r"[^A-Za-z0-9+-]+", "_", name).strip("_") or "unknown"


def _exhaust(parts: Iterable[str]) -> None:
    for _ in parts:
        pass
