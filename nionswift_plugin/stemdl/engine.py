"""The analysis as the plug-in runs it: which model, on which device, and the newest result of each image."""

from __future__ import annotations

import logging
import os
import pathlib
import sys
import threading
import typing
import zlib
from collections import OrderedDict
from dataclasses import dataclass

if typing.TYPE_CHECKING:
    from stemdl_core.analysis import FrameAnalysis
    from stemdl_core.corrections import Correction
    from stemdl_core.frames import Frame

DEFAULT_MODEL = "graphene"
#: What a model can run on, as the core names it.
DEVICES = ("cpu", "cuda", "mps", "auto")


@dataclass(frozen=True)
class Options:
    """What the user can choose; the same names are the computation's parameters.

    Parameters
    ----------
    model : str
        Name or folder of a model.
    dopant : str
        Element of the bright foreign atoms; empty: the model's own.
    atoms, bonds, defects, names : bool
        What to draw into the overlay.
    min_score_percent : float
        Atoms of a lower score are not drawn [%].
    """

    model: str = DEFAULT_MODEL
    dopant: str = ""
    atoms: bool = True
    bonds: bool = True
    defects: bool = True
    names: bool = True
    min_score_percent: float = 0.0


class _Models:
    """Models that are loaded, and where to look for and run them."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str], typing.Any] = {}
        self._lock = threading.Lock()
        #: One of `DEVICES`, and the user's own folder of models (empty: none); see the preferences.
        self.device = "cpu"
        self.folder = ""

    def names(self) -> list[str]:
        """Names of the models that can be chosen, found without loading any of the network code."""
        from stemdl_core._paths import weights_folders

        folders = [*weights_folders(), *([pathlib.Path(self.folder)] if self.folder else [])]
        names = {card.parent.name for folder in folders for card in folder.glob("*/model.json")}
        return sorted(names | {DEFAULT_MODEL})

    def where(self, name: str) -> str:
        """Folder of a model in the user's own folder; the name itself where it is not there."""
        own = pathlib.Path(self.folder) / name if self.folder else None
        return str(own) if own is not None and (own / "model.json").is_file() else name

    def get(self, name: str) -> typing.Any:
        """A model by name, loaded once: the first time takes seconds, since it imports the network code."""
        where = self.where(name)
        key = (where, self.device)
        with self._lock:
            if key not in self._loaded:
                from stemdl_core.weights import load_model

                self._loaded[key] = load_model(where, device=self.device)
            return self._loaded[key]

    def clear(self) -> None:
        """Forget the loaded models."""
        with self._lock:
            self._loaded.clear()


models = _Models()


def analyze(frame: Frame, *, model: str, dopant: str) -> FrameAnalysis:
    """All that the core finds in a frame. Never on the main thread: takes up to seconds at the first call."""
    loaded = models.get(model)
    from stemdl_core.library import with_users_names
    from stemdl_core.pipeline import analyze_frame

    return with_users_names(analyze_frame(frame, loaded, dopant=dopant or None))


class Apart:
    """Analyses the frames of a running scan in a process of its own, or in this one where that cannot be had.

    Threads of one process wait for each other: beside a scan and Swift's drawing an analysis takes three times as
    long here as there. ``STEMDL_IN_PROCESS=1`` in the environment keeps it here.
    """

    def __init__(self) -> None:
        self.__analyst: typing.Any = None
        self.__here = os.environ.get("STEMDL_IN_PROCESS", "") not in ("", "0")
        self.__closed = False
        self.__lock = threading.Lock()

    def analyze(self, frame: Frame, *, model: str, dopant: str) -> FrameAnalysis:
        """As `analyze`. Never on the main thread."""
        if not self.__here:
            from stemdl_core.analyst import AnalystError
            from stemdl_core.library import with_users_names

            try:
                found = self.__other().analyze(
                    frame, model=models.where(model), device=models.device, dopant=dopant or None
                )
                return with_users_names(found)
            except AnalystError as error:
                if self.__closed:
                    raise
                logging.getLogger(__name__).warning("live frames are analysed in Swift's own process: %s", error)
                self.__here = True
        return analyze(frame, model=model, dopant=dopant)

    def __other(self) -> typing.Any:
        from stemdl_core.analyst import Analyst, AnalystError

        with self.__lock:
            if self.__closed:
                raise AnalystError("closed")
            if self.__analyst is None:
                self.__analyst = Analyst(threads=max(1, (os.cpu_count() or 2) // 2))
            return self.__analyst

    def close(self) -> None:
        """End the process; an analysis that is under way fails."""
        with self.__lock:
            self.__closed, analyst, self.__analyst = True, self.__analyst, None
        if analyst is not None:
            analyst.close()


class HalfTheCores:
    """Lets the network run on half of the cores while a scan is running: Swift draws with the others.

    Threads that wait for a core keep all the others of the network waiting: on a busy machine, more of them
    are slower than one. Made after the first analysis, which loads the network code.
    """

    _holders: typing.ClassVar[int] = 0
    _before: typing.ClassVar[int] = 0
    _lock: typing.ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self.__torch = sys.modules.get("torch")
        if self.__torch is None:
            return
        with HalfTheCores._lock:
            if not HalfTheCores._holders:
                HalfTheCores._before = self.__torch.get_num_threads()
            HalfTheCores._holders += 1
            self.__torch.set_num_threads(max(1, min(HalfTheCores._before, (os.cpu_count() or 2) // 2)))

    def close(self) -> None:
        """All of them again, when no other scan is annotated."""
        torch, self.__torch = self.__torch, None
        if torch is None:
            return
        with HalfTheCores._lock:
            HalfTheCores._holders -= 1
            if not HalfTheCores._holders:
                torch.set_num_threads(HalfTheCores._before)


class _Recent:
    """The newest analysis of each owner: what is drawn can change without another analysis."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[typing.Any, tuple[typing.Any, FrameAnalysis]] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        owner: typing.Any,
        frame: Frame,
        options: Options,
        corrections: typing.Sequence[Correction] = (),
    ) -> FrameAnalysis:
        """What the model found in a frame, as a person has corrected it."""
        key = (
            zlib.crc32(frame.image),
            frame.shape,
            frame.index,
            frame.pixel_size,
            options.model,
            options.dopant,
            models.device,
        )
        with self._lock:
            found = self._items.get(owner)
        if found is not None and found[0] == key:
            analysis = found[1]
        else:
            analysis = analyze(frame, model=options.model, dopant=options.dopant)
            with self._lock:
                self._items[owner] = (key, analysis)
                self._items.move_to_end(owner)
                while len(self._items) > self._size:
                    self._items.popitem(last=False)
        if corrections:
            from stemdl_core.corrections import apply_corrections

            analysis = apply_corrections(analysis, corrections)
        return analysis

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._items.clear()


recent = _Recent(8)
