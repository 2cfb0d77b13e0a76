"""The panel's page "Found": what to draw, what was found, and the chemistry of the chosen defect."""

from __future__ import annotations

import dataclasses
import gettext
import time
import typing

import numpy
from nion.utils import Model

from . import actions, adapters, computations, engine, live, marks, portrait
from .summary import alloy_summary, chemistry, defect_lines, defect_summary, headline

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController
    from nion.ui import Declarative

_ = gettext.gettext

#: Width of what stands on the pages, for a panel of 320 px with its borders and a scroll bar.
WIDTH = 262
#: What was found in a running scan is listed anew at most this often [s].
LIVE_S = 0.4
DRAWN = (("atoms", _("Atoms")), ("bonds", _("Bonds")), ("defects", _("Outlines")), ("names", _("Names")))


def line(u: Declarative.DeclarativeUI, text: str, **properties: typing.Any) -> typing.Any:
    """A label that wraps within the panel."""
    return u.create_row(u.create_label(text=text, width=WIDTH, word_wrap=True, **properties), u.create_stretch())


class AtomsSection:
    """What was found in the selected image, kept in step with its results."""

    #: Buttons of this page: names of methods.
    callbacks = ("annotate_clicked", "live_clicked")

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        refocus: typing.Callable[[], None],
    ) -> None:
        self.__document_controller = document_controller
        self.__refocus = refocus
        self.known: computations.Annotation | None = None
        self.__running: live.LiveAnnotation | None = None
        self.__listeners: list[typing.Any] = []
        self.metadata: typing.Mapping[str, typing.Any] = {}
        self.__table = numpy.zeros((0, len(adapters.COLUMNS)))
        self.__showing = False
        self.__shown_s = -1e9
        self.__later: typing.Any = None

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
        self.picture = Model.PropertyModel[typing.Any](portrait.empty(), numpy.array_equal)
        self.has_picture = Model.PropertyModel[bool](False)
        self.is_live = Model.PropertyModel[bool](False)
        self.live_label = Model.PropertyModel[str](_("Go live"))
        self.has_result = Model.PropertyModel[bool](False)
        self.drawn = {name: Model.PropertyModel[bool](True) for name, _label in DRAWN}
        self.draw_atoms, self.draw_bonds, self.draw_defects, self.draw_names = self.drawn.values()
        self.model_index.on_value_changed = self.__model_chosen
        self.defect_index.on_value_changed = self.__defect_chosen
        for name, model in self.drawn.items():
            model.on_value_changed = self.__drawing_chosen(name)

    def view(self, u: Declarative.DeclarativeUI) -> Declarative.UIDescription:
        """The page."""
        checks = [
            u.create_check_box(
                text=label, checked=f"@binding(atoms.draw_{name}.value)", enabled="@binding(atoms.has_result.value)"
            )
            for name, label in DRAWN
        ]
        return u.create_column(
            line(u, "@binding(atoms.found.value)", font="bold"),
            line(u, "@binding(atoms.names.value)"),
            line(u, "@binding(atoms.scale.value)"),
            line(u, "@binding(atoms.warnings.value)", color="#B35900"),
            u.create_row(*checks, u.create_stretch(), spacing=4),
            u.create_list_box(
                items_ref="@binding(atoms.defects.value)",
                current_index="@binding(atoms.defect_index.value)",
                height=104,
                min_width=WIDTH,
            ),
            line(u, "@binding(atoms.detail.value)"),
            u.create_row(u.create_image(image="@binding(atoms.picture.value)", width=262, height=172,
                                        visible="@binding(atoms.has_picture.value)"),
                         u.create_stretch()),
            u.create_stretch(),
            spacing=6,
            margin=6,
        )  # fmt: skip

    def close(self) -> None:
        """Forget all that is listened to."""
        for listener in self.__listeners:
            listener.close()
        self.__listeners = []
        if self.__later is not None:
            self.__later.cancel()
        self.known = self.__running = self.__later = None
        self.__document_controller = typing.cast(typing.Any, None)
        self.__refocus = typing.cast(typing.Any, None)

    def annotate_clicked(self, widget: Declarative.UIWidget) -> None:
        """The button does what the menu does."""
        self.__document_controller.perform_action(actions.ANNOTATE_ID)

    def live_clicked(self, widget: Declarative.UIWidget) -> None:
        """Follow the scan, or stop following it; the scan itself is left alone."""
        display_item = self.__document_controller.focused_display_item
        running = live.find(display_item.data_item if display_item else None)
        if running is not None:
            running.close()
        else:
            self.annotate_clicked(widget)
        self.__refocus()

    def __model_chosen(self, index: int | None) -> None:
        names = self.models.value or []
        if self.__showing or index is None or not 0 <= index < len(names):
            return
        actions.choose_model(self.__document_controller, names[index])
        self.__set_parameter("model", names[index])

    def __drawing_chosen(self, name: str) -> typing.Callable[[bool | None], None]:
        return lambda value: None if self.__showing else self.__set_parameter(name, bool(value))

    def __set_parameter(self, name: str, value: typing.Any) -> None:
        if self.known:
            actions.set_parameter(self.__document_controller, self.known, name, value)

    def __defect_chosen(self, index: int | None) -> None:
        self.__show_chosen()
        display_item = computations.display_item_of(self.known.source) if self.known else None
        if self.__showing or index is None or display_item is None or self.known is None:
            return
        defects = self.metadata.get("defects", ())
        if not 0 <= index < len(defects):
            return
        center = adapters.to_relative(defects[index]["center_px"], self.metadata["shape"])
        for mark in marks.marks_of(display_item, self.known.table):
            if abs(mark.center.y - center[0]) < 0.02 and abs(mark.center.x - center[1]) < 0.02:
                display_item.graphic_selection.set(display_item.graphics.index(mark))
                return

    def __show_chosen(self) -> None:
        index = self.defect_index.value
        self.detail.value = chemistry(self.metadata, index)
        self.picture.value = portrait.draw(self.metadata, self.__table, index)
        self.has_picture.value = index is not None and 0 <= index < len(self.metadata.get("defects", ()))

    def follow(self, known: computations.Annotation | None) -> None:
        """Show the results of another image."""
        running = live.find(known.table) if known else None
        if known != self.known or running is not self.__running:
            for listener in self.__listeners:
                listener.close()
            self.known, self.__running = known, running
            events = []
            if known:
                events.append(known.table.data_item_changed_event.listen(self.__table_changed))
            if known and known.computation:
                events.append(known.computation.property_changed_event.listen(self.__computation_changed))
                for variable in known.computation.variables:
                    events.append(variable.property_changed_event.listen(self.__computation_changed))
            if running:
                events.append(running.status_changed_event.listen(self.__live_changed))
            self.__listeners = events
        self.__show()

    def __table_changed(self) -> None:
        # Of a running scan, nobody reads every frame's list; the last one is shown in any case.
        hurried = self.__running is not None and bool(self.has_result.value)
        wait_s = self.__shown_s + LIVE_S - time.perf_counter() if hurried else 0.0
        if wait_s <= 0:
            self.__show()
        elif self.__later is None:
            self.__later = self.__document_controller.event_loop.call_later(wait_s, self.__show)

    def __live_changed(self) -> None:
        if self.__running and not self.__running.is_running:
            self.follow(self.known)
        elif self.__running:
            self.state.value = str(self.__running.status)

    def __computation_changed(self, name: str) -> None:
        if name in (*adapters.RUN_PROPERTIES, "value"):
            self.__show()

    def __show(self) -> None:
        if self.__later is not None:
            self.__later.cancel()
        self.__later, self.__shown_s = None, time.perf_counter()
        # Setting a model below would otherwise be taken for a choice of the user.
        self.__showing = True
        try:
            self.__fill()
        finally:
            self.__showing = False

    def __state(self, error: str | None, ready: bool) -> str:
        if error:
            return error
        if self.__running:
            return str(self.__running.status)
        if self.known is None:
            return _("Select an image and press Annotate.")
        if self.known.computation is None:
            return _("Live annotation is stopped.")
        return "" if ready else _("Finding atoms. The first time, the model is loaded as well.")

    def __fill(self) -> None:
        computation = self.known.computation if self.known else None
        table = self.known.table if self.known else None
        known = (table.metadata if table else {}).get(adapters.METADATA_KEY, {})
        # A project that is being closed has taken the data away already.
        rows = table.data if table else None
        ready = bool(known) and not known.get("pending") and rows is not None
        self.metadata = known if ready else {}
        if ready:
            self.__table = numpy.asarray(rows)[: known["atoms"]]
        self.has_result.value = ready
        self.live_label.value = _("Stop live") if self.__running else _("Go live")
        self.state.value = self.__state(computation.error_text if computation else None, ready)
        self.found.value = headline(known) if ready else ""
        self.names.value = (
            "; ".join(filter(None, (defect_summary(known), alloy_summary(known)))) if ready else ""
        )
        self.scale.value = adapters.calibration_statement(known) if ready else ""
        self.warnings.value = "\n".join(adapters.other_warnings(known)) if ready else ""
        lines = defect_lines(known) if ready else []
        if lines != self.defects.value:
            # The list is long in a live scan: the chosen line stays chosen as long as there is one.
            index = self.defect_index.value
            self.defects.value = lines
            keep = self.__running is not None and index is not None and index < len(lines)
            self.defect_index.value = index if keep else None
        self.__show_chosen()
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
