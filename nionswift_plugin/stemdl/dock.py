"""A dock panel around a declarative handler."""

from __future__ import annotations

import typing

from nion.swift import Panel
from nion.ui import Declarative

if typing.TYPE_CHECKING:
    from nion.swift import DocumentController


class DockPanel(Panel.Panel):
    """What Swift opens from its Window menu; subclasses say whose widgets are in it."""

    #: Swift's internal name of the panel.
    name: typing.ClassVar[str]

    def __init__(
        self,
        document_controller: DocumentController.DocumentController,
        panel_id: str,
        properties: typing.Mapping[str, typing.Any],
    ) -> None:
        super().__init__(document_controller, panel_id, self.name)
        self.handler = self.make_handler(document_controller)
        column = document_controller.ui.create_column_widget(properties=dict(properties))
        column.add(
            Declarative.DeclarativeWidget(document_controller.ui, document_controller.event_loop, self.handler)
        )
        self.widget = column

    @staticmethod
    def make_handler(document_controller: DocumentController.DocumentController) -> typing.Any:
        """The handler, whose `ui_view` describes the widgets."""
        raise NotImplementedError
