"""The computation "Atoms and Defects": an image in; an overlay, a table and marks at the defects out."""

from __future__ import annotations

import gettext
import threading
import typing
import zlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy
from nion.data import DataAndMetadata
from nion.swift.model import DataItem, Graphics, Symbolic

from . import adapters

if typing.TYPE_CHECKING:
    from nion.swift.model import DisplayItem, DocumentModel

    from stemdl_core.analysis import FrameAnalysis
    from stemdl_core.frames import Frame

_ = gettext.gettext

#: Stored projects refer to the computation by this name: it never changes.
COMPUTATION_ID = "stemdl.annotate"
DEFAULT_MODEL = "graphene"
#: Swift resends all graphics of an image at each change of one: more than this many make it slow.
MOST_MARKS = 50
_MARK_ID = "stemdl.defect."
_MARK_COLOUR, _UNKNOWN_COLOUR = "#FFDD57", "#FF8AC4"


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


_models: dict[str, typing.Any] = {}
_models_lock = threading.Lock()


def get_model(name: str) -> typing.Any:
    """A model by name, loaded once: the first time takes seconds, since it imports the network code."""
    with _models_lock:
        if name not in _models:
            from stemdl_core.weights import load_model

            _models[name] = load_model(name)
        return _models[name]


def analyze(frame: Frame, *, model: str, dopant: str) -> FrameAnalysis:
    """All that the core finds in a frame. Never on the main thread: takes up to seconds at the first call."""
    loaded = get_model(model)
    from stemdl_core.pipeline import analyze_frame

    return analyze_frame(frame, loaded, dopant=dopant or None)


class _Recent:
    """The newest analysis of each computation: what is drawn can change without another analysis."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[typing.Any, tuple[typing.Any, FrameAnalysis]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, owner: typing.Any, frame: Frame, options: Options) -> FrameAnalysis:
        key = (
            zlib.crc32(frame.image),
            frame.shape,
            frame.index,
            frame.pixel_size,
            options.model,
            options.dopant,
        )
        with self._lock:
            found = self._items.get(owner)
        if found is not None and found[0] == key:
            return found[1]
        analysis = analyze(frame, model=options.model, dopant=options.dopant)
        with self._lock:
            self._items[owner] = (key, analysis)
            self._items.move_to_end(owner)
            while len(self._items) > self._size:
                self._items.popitem(last=False)
        return analysis

    def clear(self) -> None:
        with self._lock:
            self._items.clear()


recent = _Recent(8)


class Annotate:
    """Runs stemdl on an image and keeps its overlay, table and marks up to date with it."""

    label = _("Atoms and Defects")
    inputs: typing.ClassVar = {
        "src": {"label": _("Image")},
        "model": {"label": _("Model")},
        "dopant": {"label": _("Bright dopant (empty: the model's own)")},
        "atoms": {"label": _("Draw atoms")},
        "bonds": {"label": _("Draw bonds")},
        "defects": {"label": _("Outline defects")},
        "names": {"label": _("Name defects")},
        "min_score_percent": {"label": _("Draw atoms scored at least (%)")},
    }
    outputs: typing.ClassVar = {"overlay": {"label": _("Overlay")}, "table": {"label": _("Atoms")}}

    def __init__(self, computation: typing.Any, **kwargs: typing.Any) -> None:
        self.computation = computation
        self.__overlay: DataAndMetadata.DataAndMetadata | None = None
        self.__table: DataAndMetadata.DataAndMetadata | None = None
        self.__analysis: FrameAnalysis | None = None
        # Read here, on the main thread, with the inputs: later the user may have moved on to another frame.
        source = source_of(computation._computation)
        display_item = display_item_of(source) if source else None
        channel = display_item.display_data_channel if display_item else None
        self.__index = adapters.displayed_index(channel) if channel and channel.data_item else 0
        self.__name = source.title if source else ""

    def execute(self, *, src: typing.Any, **parameters: typing.Any) -> None:
        """Find atoms and draw them. On a worker thread."""
        xdata = src.xdata
        if xdata is None or adapters.is_partial(
            xdata.metadata, xdata.data_shape[-2] if xdata.data_shape else 0
        ):
            return
        known = Options.__dataclass_fields__
        options = Options(**{name: value for name, value in parameters.items() if name in known})
        frame = adapters.frame_of(xdata, index=self.__index, source=self.__name)
        analysis = recent.get(self.computation.uuid, frame, options)
        self.__overlay, self.__table = results(xdata, frame, analysis, options)
        self.__analysis = analysis

    def execute_task(self, context: typing.Any) -> None:
        """The same for newer versions of Swift."""
        parameters = context.parameters
        self.execute(**getattr(parameters, "parameter_map", parameters))

    def commit(self) -> None:
        """Put the results into their data items. On the main thread: nothing is computed here."""
        if self.__analysis is None or self.__overlay is None or self.__table is None:
            return
        core = self.computation._computation
        table, overlay = core.get_output("table"), core.get_output("overlay")
        source = source_of(core)
        if table is None or overlay is None or source is None:
            return
        self.computation.set_referenced_xdata("overlay", self.__overlay)
        self.computation.set_referenced_xdata("table", self.__table)
        display_item = display_item_of(source)
        if display_item is not None:
            update_marks(display_item, table, self.__analysis)


def results(
    xdata: DataAndMetadata.DataAndMetadata, frame: Frame, analysis: FrameAnalysis, options: Options
) -> tuple[DataAndMetadata.DataAndMetadata, DataAndMetadata.DataAndMetadata]:
    """Contents of the overlay item and of the table item."""
    from . import overlay

    table, metadata = adapters.table_of(analysis)
    style = overlay.Style(
        options.atoms, options.bonds, options.defects, options.names, 0.01 * options.min_score_percent
    )
    picture = overlay.render(frame.image, analysis, style)
    calibrations = adapters.overlay_calibrations(
        xdata.dimensional_calibrations[-2:], overlay.zoom_for(frame.shape), metadata
    )
    return (
        DataAndMetadata.new_data_and_metadata(
            picture,
            dimensional_calibrations=calibrations,
            metadata={adapters.METADATA_KEY: {"overlay": adapters.SCHEMA}},
        ),
        DataAndMetadata.new_data_and_metadata(table, metadata={adapters.METADATA_KEY: metadata}),
    )


def create_items(
    document_model: DocumentModel.DocumentModel, display_item: DisplayItem.DisplayItem
) -> tuple[DataItem.DataItem, DataItem.DataItem]:
    """Add an overlay item that shows the image alone, and a table item without atoms. On the main thread."""
    from . import overlay as drawing

    source = display_item.data_item
    assert source is not None
    channel = display_item.display_data_channel
    index = adapters.displayed_index(channel) if channel else 0
    frame = adapters.frame_of(source.xdata, index=index)  # type: ignore[arg-type]
    unknown = numpy.full((1, len(adapters.COLUMNS)), numpy.nan)
    metadata = {"columns": [name for name, _unit in adapters.COLUMNS], "atoms": 0, "pending": True}
    table = _new_item(unknown, {adapters.METADATA_KEY: metadata}, source.category)
    picture = _new_item(drawing.plain(frame.image), {adapters.METADATA_KEY: {"overlay": adapters.SCHEMA}},
                        source.category)  # fmt: skip
    document_model.append_data_item(table)
    document_model.append_data_item(picture)
    return picture, table


def create(
    document_model: DocumentModel.DocumentModel, display_item: DisplayItem.DisplayItem, options: Options
) -> tuple[DataItem.DataItem, DataItem.DataItem, Symbolic.Computation]:
    """Add the overlay item, the table item and the computation that fills them. On the main thread.

    Returns
    -------
    tuple
        Overlay, table, computation.
    """
    source, channel = display_item.data_item, display_item.display_data_channel
    picture, table = create_items(document_model, display_item)
    computation = document_model.create_computation()
    # A movie is bound together with its display, so that the overlay follows the frame that is shown; an
    # image is not, so that its contrast can be changed without a new run.
    movie = adapters.is_movie(source.xdata)  # type: ignore[union-attr, arg-type]
    computation.create_input_item("src", Symbolic.make_item(channel if movie and channel else source))
    kinds = Symbolic.ComputationVariableType
    computation.create_variable("model", kinds.STRING, options.model)
    computation.create_variable("dopant", kinds.STRING, options.dopant)
    for name in ("atoms", "bonds", "defects", "names"):
        computation.create_variable(name, kinds.BOOLEAN, getattr(options, name))
    computation.create_variable(
        "min_score_percent", kinds.REAL, options.min_score_percent, value_default=0.0, value_min=0.0,
        value_max=100.0, control_type="slider",
    )  # fmt: skip
    computation.create_output_item("overlay", Symbolic.make_item(picture))
    computation.create_output_item("table", Symbolic.make_item(table))
    computation.processing_id = COMPUTATION_ID
    document_model.append_computation(computation)
    return picture, table, computation


def create_live(
    document_model: DocumentModel.DocumentModel, display_item: DisplayItem.DisplayItem
) -> tuple[DataItem.DataItem, DataItem.DataItem]:
    """Add an overlay item and a table item for a live image; they go when the image goes.

    There is no computation between them: Swift would run it on half-scanned frames.
    """
    source = display_item.data_item
    assert source is not None
    picture, table = create_items(document_model, display_item)
    table.source = source
    picture.source = table
    table.title = _("{} (Atoms)").format(source.title)
    picture.title = _("{} (Overlay)").format(source.title)
    return picture, table


def _new_item(data: numpy.ndarray, metadata: dict[str, typing.Any], category: str) -> DataItem.DataItem:
    item = DataItem.new_data_item(DataAndMetadata.new_data_and_metadata(data, metadata=metadata))
    # Results of a live image are as passing as the image: nothing goes to the disk at each frame.
    item.category = category
    return item


def source_of(computation: Symbolic.Computation) -> DataItem.DataItem | None:
    """The data item that a computation reads."""
    return next((i for i in computation.direct_input_items if isinstance(i, DataItem.DataItem)), None)


def display_item_of(data_item: DataItem.DataItem) -> DisplayItem.DisplayItem | None:
    """The display item of a data item; the first where it has several."""
    document_model = data_item._document_model
    return document_model.get_best_display_item_for_data_item(data_item) if document_model else None


@dataclass(frozen=True)
class Annotation:
    """An image with its results. Without computation where the image is live."""

    source: DataItem.DataItem
    overlay: DataItem.DataItem
    table: DataItem.DataItem
    computation: Symbolic.Computation | None = None


def find(
    document_model: DocumentModel.DocumentModel, data_item: DataItem.DataItem | None
) -> Annotation | None:
    """The annotation that a data item is the image, the overlay or the table of."""
    if data_item is None:
        return None
    for computation in document_model.computations:
        if computation.processing_id == COMPUTATION_ID:
            source, outputs = source_of(computation), computation.output_items
            overlay, table = computation.get_output("overlay"), computation.get_output("table")
            if source and overlay and table and (data_item is source or data_item in outputs):
                return Annotation(source, overlay, table, computation)
    for overlay in document_model.data_items:
        table = overlay.source
        if adapters.METADATA_KEY not in overlay.metadata or table is None or table.source is None:
            continue
        atoms = "atoms" in table.metadata.get(adapters.METADATA_KEY, {})
        if atoms and data_item in (overlay, table, table.source):
            return Annotation(table.source, overlay, table)
    return None


def marks_of(display_item: DisplayItem.DisplayItem, table: DataItem.DataItem) -> list[Graphics.Graphic]:
    """The defect marks on an image that belong to a table."""
    return [
        g for g in display_item.graphics if g.source is table and (g.graphic_id or "").startswith(_MARK_ID)
    ]


def update_marks(
    display_item: DisplayItem.DisplayItem, table: DataItem.DataItem, analysis: FrameAnalysis
) -> None:
    """Circle the defects on the image, with their names. On the main thread.

    The marks that are there are moved and renamed rather than replaced, and touched only where they change:
    every change of one makes Swift send all of them. They are not results of the computation but have the
    table as their source: they go when the table goes, and deleting one deletes nothing else.
    """
    wanted = sorted(analysis.defects, key=lambda d: d.name == "unknown")[:MOST_MARKS]
    marks = marks_of(display_item, table)
    changes = []
    for defect, mark in zip(wanted, [*marks, *([None] * len(wanted))]):
        state = {
            "bounds": adapters.defect_bounds(defect, analysis),
            "label": defect.name,
            "stroke_color": _UNKNOWN_COLOUR if defect.name == "unknown" else _MARK_COLOUR,
        }
        if mark is None or any(_value(mark, name) != value for name, value in state.items()):
            changes.append((mark, state))
    surplus = marks[len(wanted) :]
    if not changes and not surplus:
        return
    document_model = table._document_model
    with document_model.item_transaction(display_item), display_item.display_item_changes():
        for mark in surplus:
            display_item.remove_graphic(mark).close()
        for mark, state in changes:
            if mark is None:
                mark = Graphics.EllipseGraphic()
                _set(mark, state)
                mark.graphic_id = f"{_MARK_ID}{len(marks_of(display_item, table))}"
                mark.is_position_locked = mark.is_shape_locked = mark.is_rotation_locked = True
                mark.source = table
                display_item.add_graphic(mark)
            else:
                _set(mark, state)


def _value(mark: Graphics.Graphic, name: str) -> typing.Any:
    value = getattr(mark, name)
    return value.as_tuple() if name == "bounds" else value


def _set(mark: Graphics.Graphic, state: typing.Mapping[str, typing.Any]) -> None:
    for name, value in state.items():
        if _value(mark, name) != value:
            setattr(mark, name, value)


def register() -> None:
    """Make Swift know the computation, for new ones and for those of stored projects."""
    Symbolic.register_computation_type(COMPUTATION_ID, Annotate)
