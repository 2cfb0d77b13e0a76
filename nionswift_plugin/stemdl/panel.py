"""The panel "Atoms and Defects": start, choose what to draw, and read what was found. No numerics."""

from __future__ import annotations

import dataclasses
import gettext
import typing

from nion.swift import Panel, Workspace
from nion.ui import Declarative
from nion.utils import Model

from . import actions, adapters, computations, engine, live, marks, tracking
from .summary import alloy_summary, chemistry, defect_lines, defect_summary, headline

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.swift.model import DataItem, DisplayItem

_ = gettext.gettext

PANEL_ID = "stemdl-panel"
_WIDTH = 300
_DRAWN = (("atoms", _("Atoms")), ("bonds", _("Bonds")), ("defects", _("Outlines")), ("names", _("Names")))


class PanelHandler(Declarative.Handler):
    """What stands in the panel, kept in step with the selected image and its results."""

    def __init__(self, document_controller: DocumentController.DocumentController) -> None:
        super().__init__()
        self.__document_controller = document_controller
        self.__known: computations.Annotation | None = None
        self.__running: live.LiveAnnotation | None = None
        self.__run: tracking.MovieRun | None = None
        self.__run_listener: typing.Any = None
        self.__tracks: DataItem.DataItem | None = None
        self.__result_listeners: list[typing.Any] = []
        self.__metadata: typing.Mapping[str, typing.Any] = {}
        self.__showing = False

        names = engine.models.names()
        chosen = actions.chosen_model(document_controller)
        self.models = Model.PropertyModel[list[str]](names if chosen in names else [*names, chosen])
        self.model_index = Model.PropertyModel[int]((self.models.value or []).index(chosen))
        self.state = Model.PropertyModel[str]("")
        self.found = Model.PropertyModel[str]("")
        self.names = Model.PropertyModel[str]("")
        self.scale = Model.PropertyModel[str]("")
        self.warnings = Model.PropertyModel[str]("")
        self.defects = Model.PropertyModel[list[str]]([])
        self.defect_index = Model.PropertyModel[int](None)
        self.detail = Model.PropertyModel[str]("")
        self.is_movie = Model.PropertyModel[bool](False)
        self.track_label = Model.PropertyModel[str](_("Track"))
        self.track_state = Model.PropertyModel[str]("")
        self.events = Model.PropertyModel[list[str]]([])
        self.event_index = Model.PropertyModel[int](None)
        self.is_live = Model.PropertyModel[bool](False)
        self.live_label = Model.PropertyModel[str](_("Go live"))
        self.has_result = Model.PropertyModel[bool](False)
        self.drawn = {name: Model.PropertyModel[bool](True) for name, _label in _DRAWN}
        self.draw_atoms, self.draw_bonds, self.draw_defects, self.draw_names = self.drawn.values()

        self.model_index.on_value_changed = self.__model_chosen
        self.defect_index.on_value_changed = self.__defect_chosen
        self.event_index.on_value_changed = self.__event_chosen
        for name, model in self.drawn.items():
            model.on_value_changed = self.__drawing_chosen(name)

        document_model = document_controller.document_model
        self.__listeners = [
            document_controller.focused_display_item_changed_event.listen(self.__focus_changed),
            document_model.item_inserted_event.listen(self.__item_inserted),
            document_model.item_removed_event.listen(self.__item_removed),
        ]
        self.ui_view = self.__build()
        self.__focus_changed(document_controller.focused_display_item)

    def close(self) -> None:
        for listener in (*self.__listeners, *self.__result_listeners):
            listener.close()
        if self.__run_listener:
            self.__run_listener.close()
        self.__listeners, self.__result_listeners, self.__run_listener = [], [], None
        self.__known = self.__running = self.__run = self.__tracks = None
        self.__document_controller = typing.cast(typing.Any, None)
        super().close()

    def __build(self) -> Declarative.UIDescription:
        u = Declarative.DeclarativeUI()

        def line(text: str, **properties: typing.Any) -> Declarative.UIDescription:
            return u.create_row(
                u.create_label(text=text, width=_WIDTH, word_wrap=True, **properties), u.create_stretch()
            )

        checks = [
            u.create_check_box(
                text=label, checked=f"@binding(draw_{name}.value)", enabled="@binding(has_result.value)"
            )
            for name, label in _DRAWN
        ]
        column = u.create_column(
            u.create_row(
                u.create_label(text=_("Model")),
                u.create_combo_box(
                    items_ref="@binding(models.value)", current_index="@binding(model_index.value)", width=170
                ),
                u.create_stretch(),
                spacing=8,
            ),
            u.create_row(
                u.create_push_button(
                    text=_("Annotate"),
                    on_clicked="annotate_clicked",
                    width=140,
                    tool_tip=f"{actions.AnnotateAction.action_name} ({actions.ANNOTATE_KEYS})",
                ),
                u.create_push_button(
                    text="@binding(live_label.value)",
                    on_clicked="live_clicked",
                    enabled="@binding(is_live.value)",
                    width=100,
                    tool_tip=_("Annotate each complete frame of the running scan; starts no scan"),
                ),
                u.create_stretch(),
                spacing=8,
            ),
            line("@binding(state.value)"),
            line("@binding(found.value)", font="bold"),
            line("@binding(names.value)"),
            line("@binding(scale.value)"),
            line("@binding(warnings.value)", color="#B35900"),
            u.create_row(*checks, u.create_stretch(), spacing=8),
            u.create_list_box(
                items_ref="@binding(defects.value)",
                current_index="@binding(defect_index.value)",
                height=110,
                min_width=_WIDTH,
            ),
            line("@binding(detail.value)"),
            u.create_row(
                u.create_push_button(
                    text="@binding(track_label.value)",
                    on_clicked="track_clicked",
                    enabled="@binding(is_movie.value)",
                    width=140,
                    tool_tip=_("Follow the defects through the selected movie"),
                ),
                u.create_stretch(),
                spacing=8,
            ),
            line("@binding(track_state.value)"),
            u.create_list_box(
                items_ref="@binding(events.value)",
                current_index="@binding(event_index.value)",
                height=90,
                min_width=_WIDTH,
            ),
            u.create_stretch(),
            spacing=6,
            margin=8,
        )
        return u.create_scroll_area(column)

    def annotate_clicked(self, widget: Declarative.UIWidget) -> None:
        """The button does what the menu does."""
        self.__document_controller.perform_action(actions.ANNOTATE_ID)

    def __model_chosen(self, index: int | None) -> None:
        names = self.models.value or []
        if self.__showing or index is None or not 0 <= index < len(names):
            return
        actions.choose_model(self.__document_controller, names[index])
        self.__set_parameter("model", names[index])

    def __drawing_chosen(self, name: str) -> typing.Callable[[bool | None], None]:
        return lambda value: None if self.__showing else self.__set_parameter(name, bool(value))

    def __defect_chosen(self, index: int | None) -> None:
        self.detail.value = chemistry(self.__metadata, index)
        display_item = computations.display_item_of(self.__known.source) if self.__known else None
        if self.__showing or index is None or display_item is None or self.__known is None:
            return
        defects = self.__metadata.get("defects", ())
        if not 0 <= index < len(defects):
            return
        center = adapters.to_relative(defects[index]["center_px"], self.__metadata["shape"])
        for mark in marks.marks_of(display_item, self.__known.table):
            if abs(mark.center.y - center[0]) < 1e-6 and abs(mark.center.x - center[1]) < 1e-6:
                display_item.graphic_selection.set(display_item.graphics.index(mark))

    def live_clicked(self, widget: Declarative.UIWidget) -> None:
        """Follow the scan, or stop following it; the scan itself is left alone."""
        running = live.find(self.__focused())
        if running is not None:
            running.close()
        else:
            self.annotate_clicked(widget)
        self.__focus_changed(self.__document_controller.focused_display_item)

    def track_clicked(self, widget: Declarative.UIWidget) -> None:
        """Begin to follow the movie, or stop."""
        run = tracking.find(self.__focused())
        if run is not None:
            run.cancel()
        else:
            self.__watch(
                actions.track(self.__document_controller, self.__document_controller.focused_display_item)
            )
        self.__show_tracking()

    def __watch(self, run: tracking.MovieRun | None) -> None:
        if run is not self.__run and run is not None:
            if self.__run_listener:
                self.__run_listener.close()
            self.__run = run
            self.__run_listener = run.progress_changed_event.listen(self.__show_tracking)

    def __show_tracking(self) -> None:
        data_item = self.__focused()
        document_model = self.__document_controller.document_model
        self.__watch(tracking.find(data_item))
        run = self.__run if self.__run and self.__run.source is data_item else None
        busy = run is not None and run.progress.state == "running"
        xdata = data_item.xdata if data_item and not busy else None
        self.is_movie.value = busy or (
            xdata is not None and adapters.is_movie(xdata) and not xdata.is_data_rgb_type
        )
        self.track_label.value = _("Cancel") if busy else _("Track")
        self.__tracks = tracking.find_table(document_model, data_item)
        known = self.__tracks.metadata[adapters.METADATA_KEY] if self.__tracks else {}
        if run is not None and run.progress.state != "finished":
            self.track_state.value = str(run.progress)
        elif known:
            self.track_state.value = _("{} tracks, {} events in {} frames").format(
                known["tracks"], len(known["events"]), known["frames"]
            )
        else:
            self.track_state.value = ""
        lines = [tracking.event_line(event) for event in known.get("events", ())]
        if lines != self.events.value:
            self.event_index.value = None
            self.events.value = lines

    def __event_chosen(self, index: int | None) -> None:
        events = self.__tracks.metadata[adapters.METADATA_KEY]["events"] if self.__tracks else []
        if index is not None and self.__tracks and 0 <= index < len(events):
            tracking.show_frame(self.__tracks.source, events[index]["frame"])

    def __set_parameter(self, name: str, value: typing.Any) -> None:
        if self.__known:
            actions.set_parameter(self.__document_controller, self.__known, name, value)

    def __focused(self) -> DataItem.DataItem | None:
        display_item = self.__document_controller.focused_display_item
        return display_item.data_item if display_item else None

    def __focus_changed(self, display_item: DisplayItem.DisplayItem | None) -> None:
        data_item = display_item.data_item if display_item else None
        known = computations.find(self.__document_controller.document_model, data_item)
        self.is_live.value = live.hardware_source_of(known.source if known else data_item) is not None
        self.__follow(known)
        self.__show_tracking()

    def __item_inserted(self, key: str, value: typing.Any, index: int) -> None:
        if key in ("computations", "data_items"):
            self.__focus_changed(self.__document_controller.focused_display_item)

    def __item_removed(self, key: str, value: typing.Any, index: int) -> None:
        if self.__known and value in (self.__known.computation, self.__known.table):
            self.__follow(None)
        if value is self.__tracks and value is not None:
            self.__tracks = None
            self.events.value = []
            self.track_state.value = ""

    def __follow(self, known: computations.Annotation | None) -> None:
        running = live.find(known.table) if known else None
        if known != self.__known or running is not self.__running:
            for listener in self.__result_listeners:
                listener.close()
            self.__result_listeners = []
            self.__known, self.__running = known, running
            events = []
            if known:
                events.append(known.table.data_item_changed_event.listen(self.__show))
            if known and known.computation:
                events.append(known.computation.property_changed_event.listen(self.__computation_changed))
                for variable in known.computation.variables:
                    events.append(variable.property_changed_event.listen(self.__computation_changed))
            if running:
                events.append(running.status_changed_event.listen(self.__live_changed))
            self.__result_listeners = events
        self.__show()

    def __live_changed(self) -> None:
        if self.__running and not self.__running.is_running:
            self.__follow(self.__known)
        else:
            self.__show()

    def __computation_changed(self, name: str) -> None:
        if name in ("status", "error_text", "value"):
            self.__show()

    def __show(self) -> None:
        # Setting a model below would otherwise be taken for a choice of the user.
        self.__showing = True
        try:
            self.__fill()
        finally:
            self.__showing = False

    def __fill(self) -> None:
        computation = self.__known.computation if self.__known else None
        table = self.__known.table if self.__known else None
        known = (table.metadata if table else {}).get(adapters.METADATA_KEY, {})
        ready = bool(known) and not known.get("pending")
        self.__metadata = known if ready else {}
        self.has_result.value = ready
        error = computation.error_text if computation else None
        self.live_label.value = _("Stop live") if self.__running else _("Go live")
        if error:
            self.state.value = error
        elif self.__running:
            self.state.value = str(self.__running.status)
        elif self.__known and computation is None:
            self.state.value = _("Live annotation is stopped.")
        elif computation is None:
            self.state.value = _("Select an image and press Annotate.")
        elif not ready:
            self.state.value = _("Finding atoms. The first time, the model is loaded as well.")
        else:
            self.state.value = ""
        self.found.value = headline(known) if ready else ""
        self.names.value = (
            "; ".join(filter(None, (defect_summary(known), alloy_summary(known)))) if ready else ""
        )
        self.scale.value = adapters.calibration_statement(known) if ready else ""
        self.warnings.value = "\n".join(known.get("warnings", ())) if ready else ""
        lines = defect_lines(known) if ready else []
        if lines != self.defects.value:
            self.defect_index.value = None
            self.defects.value = lines
        self.detail.value = chemistry(self.__metadata, self.defect_index.value)
        values = {variable.name: variable.value for variable in computation.variables} if computation else {}
        if self.__running:
            values = dataclasses.asdict(self.__running.options)
        for name, model in self.drawn.items():
            model.value = bool(values.get(name, True))
        names = self.models.value or []
        if values.get("model") and values["model"] not in names:
            self.models.value = names = [*names, values["model"]]
        if values.get("model"):
            self.model_index.value = names.index(values["model"])


class AtomsPanel(Panel.Panel):
    """The dock panel."""

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        panel_id: str,
        properties: typing.Mapping[str, typing.Any],
    ) -> None:
        super().__init__(document_controller, panel_id, "stemdl")
        self.handler = PanelHandler(document_controller)
        column = document_controller.ui.create_column_widget(properties=dict(properties))
        column.add(
            Declarative.DeclarativeWidget(
                document_controller.ui, document_controller.event_loop, self.handler
            )
        )
        self.widget = column


def register() -> None:
    """Add the panel to Swift's Window menu."""
    Workspace.WorkspaceManager().register_panel(
        AtomsPanel,
        PANEL_ID,
        _("Atoms and Defects"),
        ["left", "right"],
        "right",
        {"min-width": 320, "min-height": 380},
    )


def unregister() -> None:
    """Take the panel out again."""
    Workspace.WorkspaceManager().unregister_panel(PANEL_ID)
