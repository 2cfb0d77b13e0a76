"""The computation "Atoms and Defects": an image in; an overlay, two tables and marks at the defects out."""

from __future__ import annotations

import gettext
import typing
from dataclasses import dataclass

import numpy
from nion.data import DataAndMetadata
from nion.swift.model import DataItem, Symbolic

from . import adapters, engine, marks
from .engine import DEFAULT_MODEL as DEFAULT_MODEL
from .engine import Options as Options

if typing.TYPE_CHECKING:
    from nion.swift.model import DisplayItem, DocumentModel

    from stemdl_core.analysis import FrameAnalysis
    from stemdl_core.frames import Frame

_ = gettext.gettext

#: Stored projects refer to the computation by this name: it never changes.
COMPUTATION_ID = "stemdl.annotate"


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
    outputs: typing.ClassVar = {
        "overlay": {"label": _("Overlay")},
        "table": {"label": _("Atoms")},
        "defect_table": {"label": _("Defects")},
    }

    def __init__(self, computation: typing.Any, **kwargs: typing.Any) -> None:
        self.computation = computation
        self.__results: Results | None = None
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
        corrections = adapters.corrections_of(xdata.metadata)
        analysis = engine.recent.get(self.computation.uuid, frame, options, corrections)
        self.__results = results(xdata, frame, analysis, options)

    def execute_task(self, context: typing.Any) -> None:
        """The same for newer versions of Swift."""
        parameters = context.parameters
        self.execute(**getattr(parameters, "parameter_map", parameters))

    def commit(self) -> None:
        """Put the results into their data items. On the main thread: nothing is computed here."""
        if self.__results is None:
            return
        core = self.computation._computation
        table, overlay = core.get_output("table"), core.get_output("overlay")
        source = source_of(core)
        if table is None or overlay is None or source is None:
            return
        self.computation.set_referenced_xdata("overlay", self.__results.overlay)
        self.computation.set_referenced_xdata("table", self.__results.table)
        # Projects of earlier versions have no table of defects.
        if core.get_output("defect_table") is not None:
            self.computation.set_referenced_xdata("defect_table", self.__results.defect_table)
        display_item = display_item_of(source)
        if display_item is not None:
            marks.update_marks(display_item, table, self.__results.analysis)


@dataclass(frozen=True)
class Results:
    """What one frame gave, ready for data items: overlay, tables of atoms and of defects."""

    analysis: FrameAnalysis
    overlay: DataAndMetadata.DataAndMetadata
    table: DataAndMetadata.DataAndMetadata
    defect_table: DataAndMetadata.DataAndMetadata


def results(
    xdata: DataAndMetadata.DataAndMetadata,
    frame: Frame,
    analysis: FrameAnalysis,
    options: Options,
    *,
    with_geometry: int = adapters.MOST_DEFECTS_WITH_GEOMETRY,
) -> Results:
    """Contents of the overlay item and of the table items."""
    from . import overlay

    table, metadata = adapters.table_of(analysis, with_geometry=with_geometry)
    corrections = adapters.corrections_of(xdata.metadata)
    if corrections:
        metadata["corrections"] = sum(c.frame == analysis.frame for c in corrections)
    defects, defect_metadata = adapters.defect_table_of(analysis)
    style = overlay.Style(
        options.atoms, options.bonds, options.defects, options.names, 0.01 * options.min_score_percent
    )
    picture = overlay.render(frame.image, analysis, style)
    calibrations = adapters.overlay_calibrations(
        xdata.dimensional_calibrations[-2:], overlay.zoom_for(frame.shape), metadata
    )
    key = adapters.METADATA_KEY
    return Results(
        analysis,
        DataAndMetadata.new_data_and_metadata(
            picture,
            dimensional_calibrations=calibrations,
            metadata={key: {"overlay": adapters.SCHEMA}},
        ),
        DataAndMetadata.new_data_and_metadata(table, metadata={key: metadata}),
        DataAndMetadata.new_data_and_metadata(defects, metadata={key: defect_metadata}),
    )


def create_items(
    document_model: DocumentModel.DocumentModel, display_item: DisplayItem.DisplayItem
) -> Items:
    """Add an overlay item that shows the image alone, and tables without rows. On the main thread."""
    from . import overlay as drawing

    source = display_item.data_item
    assert source is not None
    channel = display_item.display_data_channel
    index = adapters.displayed_index(channel) if channel else 0
    frame = adapters.frame_of(source.xdata, index=index)  # type: ignore[arg-type]
    key = adapters.METADATA_KEY
    tables = []
    for columns, entry in ((adapters.COLUMNS, "atoms"), (adapters.DEFECT_COLUMNS, "defect_rows")):
        metadata = {"columns": [name for name, _unit in columns], entry: 0, "pending": True}
        tables.append(
            _new_item(numpy.full((1, len(columns)), numpy.nan), {key: metadata}, source.category)
        )
    picture = _new_item(
        drawing.plain(frame.image), {key: {"overlay": adapters.SCHEMA}}, source.category
    )
    titles = (_("{} (Atoms)"), _("{} (Defects)"), _("{} (Overlay)"))
    for item, title in zip((*tables, picture), titles):
        item.title = title.format(source.title)
        document_model.append_data_item(item)
    return Items(picture, *tables)


def create(
    document_model: DocumentModel.DocumentModel, display_item: DisplayItem.DisplayItem, options: Options
) -> tuple[Items, Symbolic.Computation]:
    """Add the overlay item, the table items and the computation that fills them. On the main thread."""
    source, channel = display_item.data_item, display_item.display_data_channel
    items = create_items(document_model, display_item)
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
    computation.create_output_item("overlay", Symbolic.make_item(items.overlay))
    computation.create_output_item("table", Symbolic.make_item(items.table))
    computation.create_output_item("defect_table", Symbolic.make_item(items.defect_table))
    computation.processing_id = COMPUTATION_ID
    document_model.append_computation(computation)
    return items, computation


def create_live(document_model: DocumentModel.DocumentModel, display_item: DisplayItem.DisplayItem) -> Items:
    """Add an overlay item and table items for a live image; they go when the image goes.

    There is no computation between them: Swift would run it on half-scanned frames.
    """
    items = create_items(document_model, display_item)
    items.table.source = display_item.data_item
    items.overlay.source = items.table
    items.defect_table.source = items.table
    return items


@dataclass(frozen=True)
class Items:
    """The data items that an annotation fills."""

    overlay: DataItem.DataItem
    table: DataItem.DataItem
    defect_table: DataItem.DataItem


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
    defect_table: DataItem.DataItem | None = None


def find(
    document_model: DocumentModel.DocumentModel, data_item: DataItem.DataItem | None
) -> Annotation | None:
    """The annotation that a data item is the image, the overlay or a table of."""
    if data_item is None:
        return None
    for computation in document_model.computations:
        if computation.processing_id == COMPUTATION_ID:
            source, outputs = source_of(computation), computation.output_items
            overlay, table = computation.get_output("overlay"), computation.get_output("table")
            if source and overlay and table and (data_item is source or data_item in outputs):
                return Annotation(
                    source, overlay, table, computation, computation.get_output("defect_table")
                )
    key = adapters.METADATA_KEY
    for overlay in document_model.data_items:
        table = overlay.source
        if "overlay" not in overlay.metadata.get(key, {}) or table is None or table.source is None:
            continue
        parts = [item for item in document_model.data_items if item.source is table]
        atoms = "atoms" in table.metadata.get(key, {})
        if atoms and data_item in (table, table.source, *parts):
            defects = next((i for i in parts if "defect_rows" in i.metadata.get(key, {})), None)
            return Annotation(table.source, overlay, table, None, defects)
    return None


def renew(document_model: DocumentModel.DocumentModel) -> None:
    """Run again what could not be run while the plug-in was missing. On the main thread.

    Swift stores the error with the project, and does not try again before the image changes once more.
    """
    for computation in document_model.computations:
        if computation.processing_id == COMPUTATION_ID and computation.error_text:
            computation.needs_update = True
            computation.computation_mutated_event.fire()


def register() -> None:
    """Make Swift know the computation, for new ones and for those of stored projects."""
    Symbolic.register_computation_type(COMPUTATION_ID, Annotate)
