"""The panel "Defect Library": kinds of defects in the document, their names, and what the network learns from them."""

from __future__ import annotations

import functools
import gettext
import pathlib
import typing

import numpy
from nion.swift import Workspace
from nion.swift.model import Graphics
from nion.ui import Declarative
from nion.utils import Model

from . import actions, adapters, dock, engine, library_work

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController

    from stemdl_core.library_kinds import DefectClass
    from stemdl_core.library_store import Library

_ = gettext.gettext

PANEL_ID = "stemdl-library"
_MARK_ID = "stemdl.where"
_WIDTH = 268


class LibraryHandler(Declarative.Handler):
    """The panel's state: the library on disk, the chosen class, and the work that runs."""

    def __init__(
        self, document_controller: DocumentController.DocumentController, folder: pathlib.Path | None = None
    ) -> None:
        super().__init__()
        self.__document_controller = document_controller
        self.__folder = folder
        self.__library: Library | None = None
        self.__shown: list[DefectClass] = []
        self.__next = 0
        self.__work: library_work.Work | None = None
        self.classes = Model.PropertyModel[list[str]]([])
        self.class_index = Model.PropertyModel[int](None)
        self.picture = Model.PropertyModel[typing.Any](
            library_work.thumbnails(None, None), typing.cast(typing.Any, numpy.array_equal)
        )
        self.detail = Model.PropertyModel[str]("")
        self.name = Model.PropertyModel[str]("")
        self.state = Model.PropertyModel[str]("")
        self.progress = Model.PropertyModel[int](0)
        self.teach_label = Model.PropertyModel[str](_("Use corrections to retrain"))
        self.collect_label = Model.PropertyModel[str](_("Collect from annotated images"))
        self.models = Model.PropertyModel[list[str]]([])
        self.model_index = Model.PropertyModel[int](0)
        self.class_index.on_value_changed = self.__class_chosen
        self.model_index.on_value_changed = self.__model_chosen
        self.ui_view = self.__build()
        self.__list_models()
        self.reload()

    def close(self) -> None:
        if self.__work is not None:
            self.__work.stop()
        self.__document_controller = typing.cast(typing.Any, None)
        super().close()

    @staticmethod
    def __build() -> Declarative.UIDescription:
        u = Declarative.DeclarativeUI()

        def text(binding: str) -> Declarative.UIDescription:
            return u.create_row(u.create_label(text=binding, width=_WIDTH, word_wrap=True), u.create_stretch())

        rows, columns = library_work.ROWS, library_work.COLUMNS
        side = library_work.THUMBNAIL_PX + 2
        return u.create_scroll_area(
            u.create_column(
                u.create_row(
                    u.create_push_button(
                        text="@binding(collect_label.value)",
                        on_clicked="collect_clicked",
                        min_height=28,
                        tool_tip=_("Sort the defects of all annotated images of this project into classes"),
                    ),
                    u.create_stretch(),
                ),
                u.create_row(
                    u.create_image(image="@binding(picture.value)", width=columns * side, height=rows * side),
                    u.create_stretch(),
                ),
                u.create_list_box(
                    items_ref="@binding(classes.value)",
                    current_index="@binding(class_index.value)",
                    height=130,
                    min_width=_WIDTH,
                ),
                text("@binding(detail.value)"),
                u.create_row(
                    u.create_line_edit(text="@binding(name.value)", width=150, placeholder_text=_("name of the class")),
                    u.create_push_button(text=_("Rename"), on_clicked="rename_clicked", width=90),
                    u.create_stretch(),
                    spacing=6,
                ),
                u.create_row(
                    u.create_push_button(
                        text=_("Show where"),
                        on_clicked="where_clicked",
                        width=110,
                        tool_tip=_("Show the next member of the class in its image"),
                    ),
                    u.create_push_button(text=_("Drop"), on_clicked="drop_clicked", width=70),
                    u.create_stretch(),
                    spacing=6,
                ),
                u.create_row(
                    u.create_push_button(
                        text="@binding(teach_label.value)",
                        on_clicked="teach_clicked",
                        min_height=28,
                        tool_tip=_("Teach the network the named classes and all corrections of this project; "
                                   "the new version is kept only if it is better"),
                    ),
                    u.create_stretch(),
                ),
                u.create_row(
                    u.create_progress_bar(value="@binding(progress.value)", minimum=0, maximum=100, width=_WIDTH),
                    u.create_stretch(),
                ),
                text("@binding(state.value)"),
                u.create_row(
                    u.create_label(text=_("Version")),
                    u.create_combo_box(
                        items_ref="@binding(models.value)", current_index="@binding(model_index.value)", width=190
                    ),
                    u.create_stretch(),
                    spacing=8,
                ),
                u.create_stretch(),
                spacing=6,
                margin=6,
            )
        )  # fmt: skip

    @property
    def folder(self) -> pathlib.Path:
        """Where the library is: the user's own."""
        if self.__folder is None:
            from stemdl_core.library import default_library_folder

            self.__folder = default_library_folder()
        return self.__folder

    @property
    def working(self) -> bool:
        """Whether something runs on its thread."""
        return self.__work is not None

    def reload(self) -> None:
        """Read the library again."""
        keep = self.class_index.value
        self.__library, self.__shown = None, []
        if (self.folder / "library.json").is_file():
            from stemdl_core.errors import StemdlError
            from stemdl_core.library_store import load_library

            try:
                self.__library = load_library(self.folder)
                self.__shown = self.__library.shown()
            except StemdlError as error:
                self.state.value = str(error)
        lines = []
        for c in self.__shown:
            assert self.__library is not None
            lines.append(f"{c.id}   {self.__library.label(c.id)}   {self.__library.count(c.id)}"
                         + ("" if c.name else "   " + _("(no name)")))
        self.classes.value = lines
        self.class_index.value = keep if keep is not None and keep < len(lines) else (0 if lines else None)
        self.__class_chosen(self.class_index.value)

    def __chosen(self) -> DefectClass | None:
        index = self.class_index.value
        return self.__shown[index] if index is not None and 0 <= index < len(self.__shown) else None

    def __class_chosen(self, index: int | None) -> None:
        c = self.__chosen()
        self.__next = 0
        self.picture.value = library_work.thumbnails(self.__library, index)
        if c is None:
            self.detail.value, self.name.value = "", ""
            return
        found = ", ".join(f"{n} {name}" for name, n in c.found_as[:3])
        missing = f", {c.missing} missing" if c.missing else ""
        kind = "" if c.kind == "single" else f", {c.kind}"
        self.detail.value = f"{c.composition}{missing}{kind}; found as {found}"
        self.name.value = c.name

    # --- buttons

    def rename_clicked(self, widget: Declarative.UIWidget) -> None:
        """Give the chosen class the name in the field; later annotations use it."""
        self.__decide(lambda library, c: library.named(c.id, self.name.value or ""))

    def drop_clicked(self, widget: Declarative.UIWidget) -> None:
        """Put the chosen class out of sight."""
        self.__decide(lambda library, c: library.without(c.id))

    def __decide(self, change: typing.Callable[[Library, DefectClass], Library]) -> None:
        c = self.__chosen()
        if c is None or self.__library is None:
            self.state.value = _("Choose a class first")
            return
        from stemdl_core.errors import StemdlError
        from stemdl_core.library_store import save_decisions

        try:
            save_decisions(self.folder, change(self.__library, c))
        except StemdlError as error:
            self.state.value = str(error)
            return
        self.reload()

    def where_clicked(self, widget: Declarative.UIWidget) -> None:
        """Show the next member of the chosen class in its image, with a mark around it."""
        c = self.__chosen()
        if c is None:
            return
        dc = self.__document_controller
        titles = {item.title: item for item in dc.document_model.data_items if item.xdata is not None}
        here = [m for m in c.members if m.source in titles]
        if not here:
            self.state.value = _("The images of this class are not in this project")
            return
        member = here[self.__next % len(here)]
        self.__next += 1
        data_item = titles[member.source]
        display_item: typing.Any = dc.document_model.get_display_item_for_data_item(data_item)
        for other in dc.document_model.display_items:
            for graphic in [g for g in other.graphics if g.graphic_id == _MARK_ID]:
                other.remove_graphic(graphic).close()
        xdata: typing.Any = data_item.xdata
        shape = typing.cast(tuple[int, int], xdata.datum_dimension_shape)
        if adapters.is_movie(xdata):
            display_item.display_data_channels[0].sequence_index = member.frame
        mark = Graphics.EllipseGraphic()
        mark.graphic_id = _MARK_ID
        size = 2 * 0.45 / member.pixel_nm
        center = adapters.to_relative(numpy.array([[member.y_px, member.x_px]]), shape)[0]
        extent = size / numpy.array(shape)
        mark.bounds = tuple(center - extent / 2), tuple(extent)
        mark.color = "#FF6A13"
        mark.label = f"{c.id} {c.label}"
        display_item.add_graphic(mark)
        workspace = dc.workspace_controller
        if workspace and workspace.display_panels:
            panel = dc.selected_display_panel or workspace.display_panels[0]
            panel.set_display_panel_display_item(display_item)
        self.state.value = f"{(self.__next - 1) % len(here) + 1} of {len(here)}: {member.source}, frame {member.frame}"

    def collect_clicked(self, widget: Declarative.UIWidget) -> None:
        """Sort the defects of the annotated images; a second press stops."""
        self.__start(library_work.collect)

    def teach_clicked(self, widget: Declarative.UIWidget) -> None:
        """Retrain with the named classes and the corrections; a second press stops, a third continues."""
        self.__start(library_work.teach)

    def __start(self, job: typing.Callable[..., typing.Any]) -> None:
        if self.__work is not None:
            self.__work.stop()
            self.state.value = _("Stopping")
            return
        chosen = library_work.sources(self.__document_controller.document_model)
        if not chosen and job is library_work.collect:
            self.state.value = _("Annotate some images first")
            return
        names = self.models.value or [engine.DEFAULT_MODEL]
        options = engine.Options(model=names[self.model_index.value or 0])
        self.collect_label.value = self.teach_label.value = _("Stop")
        event_loop = self.__document_controller.event_loop

        def told(text: str, fraction: float, finished: bool) -> None:
            try:
                event_loop.call_soon_threadsafe(functools.partial(self.__told, text, fraction, finished))
            except RuntimeError:  # the window has closed meanwhile
                return

        self.__work = library_work.Work(job(self.folder, chosen, options), told)

    def __told(self, text: str, fraction: float, finished: bool) -> None:
        if self.__document_controller is None:
            return
        self.state.value, self.progress.value = text, round(100 * fraction)
        if finished:
            self.__work = None
            self.collect_label.value = _("Collect from annotated images")
            self.teach_label.value = _("Use corrections to retrain")
            self.__list_models()
            self.reload()

    # --- versions

    def __list_models(self) -> None:
        names = engine.models.names()
        chosen = actions.chosen_model(self.__document_controller)
        self.models.value = names if chosen in names else [*names, chosen]
        self.model_index.value = self.models.value.index(chosen)

    def __model_chosen(self, index: int | None) -> None:
        names = self.models.value or []
        if index is not None and 0 <= index < len(names):
            actions.choose_model(self.__document_controller, names[index])


class LibraryPanel(dock.DockPanel):
    """The dock panel."""

    name = "stemdl library"
    make_handler = staticmethod(LibraryHandler)


def register() -> None:
    """Add the panel to Swift's Window menu."""
    Workspace.WorkspaceManager().register_panel(
        LibraryPanel, PANEL_ID, _("Defect Library"), ["left", "right"], "right", {"min-width": 320, "min-height": 380}
    )


def unregister() -> None:
    """Take the panel out again."""
    library_work.stop_all()
    Workspace.WorkspaceManager().unregister_panel(PANEL_ID)
