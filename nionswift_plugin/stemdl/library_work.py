"""What the panel "Defect Library" has done on a thread of its own: collecting classes, and retraining."""

from __future__ import annotations

import contextlib
import pathlib
import threading
import typing
from dataclasses import dataclass

import numpy

from . import adapters, computations, engine

if typing.TYPE_CHECKING:
    from nion.swift.model import DocumentModel

    from stemdl_core.analysis import FrameAnalysis
    from stemdl_core.corrections import Correction
    from stemdl_core.frames import Frame
    from stemdl_core.library_store import Library

#: At most so many frames of a movie are looked at, evenly spread.
MOST_FRAMES = 60
#: Sides of the pictures of classes [px], in two rows.
THUMBNAIL_PX, COLUMNS, ROWS = 64, 4, 2

_threads: list[Work] = []


@dataclass(frozen=True)
class Source:
    """An image or movie of the document, read on the main thread: what threads may use."""

    title: str
    xdata: typing.Any
    corrections: tuple[Correction, ...]

    def frames(self) -> list[int]:
        """Numbers of the frames to look at."""
        if not adapters.is_movie(self.xdata):
            return [0]
        count = self.xdata.data_shape[0]
        chosen = numpy.unique(numpy.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int))
        return [int(k) for k in chosen]


def sources(document_model: DocumentModel.DocumentModel) -> list[Source]:
    """The annotated images and movies of a document."""
    found = {}
    for item in document_model.data_items:
        known = computations.find(document_model, item)
        if known is not None and known.source is item and item.xdata is not None:
            found[item.uuid] = Source(item.title, item.xdata, adapters.corrections_of(item.metadata))
    return list(found.values())


class Stopped(Exception):
    """The user has pressed Stop."""


class Work:
    """One job on its thread; tells its progress through a callable that may be called from any thread.

    Parameters
    ----------
    run : callable
        ``run(work) -> line``: the work itself, returning what to say at the end.
    told : callable
        ``told(text, fraction, finished)``; called on the thread.
    """

    def __init__(
        self,
        run: typing.Callable[[Work], str],
        told: typing.Callable[[str, float, bool], None],
    ) -> None:
        self.__run, self.__told = run, told
        self.__stop = threading.Event()
        self.thread = threading.Thread(target=self.__work, name="stemdl-library", daemon=True)
        _threads.append(self)
        self.thread.start()

    def stop(self) -> None:
        """Ask it to end soon."""
        self.__stop.set()

    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self.__stop.is_set()

    def tell(self, text: str, done: int, total: int) -> None:
        """Say how far the work is."""
        if self.stopped():
            raise Stopped
        self.__told(text, done / max(total, 1), False)

    def __work(self) -> None:
        from stemdl_core.errors import StemdlError

        try:
            text = self.__run(self)
        except Stopped:
            text = "Stopped: the same button continues"
        except (StemdlError, OSError) as error:
            text = str(error)
        except Exception as error:  # a thread has no one else to tell
            text = f"internal error: {type(error).__name__}: {error}"
        _threads.remove(self)
        self.__told(text, 0.0, True)


def stop_all() -> None:
    """End everything that still runs, and wait for it."""
    for work in list(_threads):
        work.stop()
        work.thread.join(20.0)


def collect(folder: pathlib.Path, chosen: typing.Sequence[Source], options: engine.Options) -> typing.Any:
    """Work that sorts the defects of some images into a library and writes it."""

    def run(work: Work) -> str:
        from dataclasses import replace

        from stemdl_core.corrections import apply_corrections
        from stemdl_core.errors import StemdlError
        from stemdl_core.imaging_conditions import measure_conditions
        from stemdl_core.library import build_library
        from stemdl_core.library_store import FILE, load_library, save_library

        todo = [(s, k) for s in chosen for k in s.frames()]
        kept: list[tuple[Frame, FrameAnalysis]] = []

        def items() -> typing.Iterator[tuple[str, Frame, FrameAnalysis]]:
            for n, (source, k) in enumerate(todo):
                work.tell(f"Looking at {source.title}", n, len(todo))
                try:
                    frame = adapters.frame_of(source.xdata, index=k, source=source.title)
                    found = engine.analyze(frame, model=options.model, dopant=options.dopant)
                except StemdlError:
                    continue
                found = apply_corrections(found, source.corrections)
                if len(kept) < 12:
                    kept.append((frame, found))
                yield source.title, frame, found

        previous = load_library(folder) if (folder / FILE).is_file() else None
        library = build_library(
            items(), previous=previous, progress=lambda done, total: work.tell("Sorting", done, total)
        )
        with contextlib.suppress(StemdlError):
            library = replace(library, conditions=measure_conditions(kept).to_dict())
        from stemdl_core.commands_library import sheets

        save_library(folder, library, extra=sheets(library))
        return f"{len(library.classes)} classes of {sum(c.count for c in library.classes)} defects"

    return run


def teach(
    folder: pathlib.Path, chosen: typing.Sequence[Source], options: engine.Options
) -> typing.Callable[[Work], str]:
    """Work that makes a new version of a model from the named classes and the corrections of a document."""

    def run(work: Work) -> str:
        from dataclasses import replace

        from stemdl_core._paths import user_models_folder
        from stemdl_core.library_store import FILE, load_library
        from stemdl_core.retrain import next_version, retrain
        from stemdl_core.weights import list_models, model_folder, read_card

        work.tell("Preparing", 0, 1)
        parent = model_folder(options.model)
        by_title = {s.title: s for s in chosen}
        corrections = [replace(c, source=s.title) for s in chosen for c in s.corrections]

        def frame_of(title: str, number: int) -> tuple[Frame, FrameAnalysis]:
            frame = adapters.frame_of(by_title[title].xdata, index=number, source=title)
            return frame, engine.analyze(frame, model=options.model, dopant=options.dopant)

        library: Library | None = load_library(folder) if (folder / FILE).is_file() else None
        name = next_version(read_card(parent).name, list_models())
        stages = {"simulate": "Simulating", "train": "Training", "compare": "Comparing"}
        outcome = retrain(
            parent, user_models_folder() / name, library=library, corrections=corrections, frame_of=frame_of,
            progress=lambda stage, done, total: work.tell(stages[stage], done, total), stop=work.stopped,
        )  # fmt: skip
        if outcome is None:
            raise Stopped
        if outcome.folder is None:
            return f"Not kept: {outcome.verdict.reason}"
        return f"{name} is kept: {outcome.verdict.reason}"

    return run


def thumbnails(library: Library | None, chosen: int | None) -> numpy.ndarray:
    """(h, w) uint32 BGRA: average images of the first classes, the chosen one framed.

    Parameters
    ----------
    library : Library, optional
    chosen : int, optional
        Number of a class in the order of ``library.shown()``; the page that holds it is drawn.
    """
    side, gap = THUMBNAIL_PX, 2
    cell = side + gap
    grey = numpy.full((ROWS * cell, COLUMNS * cell, 3), 30, numpy.uint8)
    classes = [] if library is None else library.shown()
    first = 0 if chosen is None else chosen // (ROWS * COLUMNS) * ROWS * COLUMNS
    for k, c in enumerate(classes[first : first + ROWS * COLUMNS]):
        row, column = divmod(k, COLUMNS)
        middle = (len(c.image) - side) // 2
        picture = numpy.nan_to_num(c.image[middle : middle + side, middle : middle + side], nan=0.0)
        top = max(1.6, float(numpy.percentile(picture, 99.0)))
        level = numpy.clip(255 * (picture + 0.25) / (top + 0.25), 0, 255).astype(numpy.uint8)
        area = grey[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        if first + k == chosen:
            area[:] = (19, 106, 255)
        area[gap : gap + side, gap : gap + side] = level[..., None]
    pixels = numpy.empty((*grey.shape[:2], 4), numpy.uint8)
    pixels[..., :3], pixels[..., 3] = grey, 255
    return pixels.view(numpy.uint32)[..., 0]
