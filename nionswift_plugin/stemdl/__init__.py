"""stemdl in Nion Swift: atoms and defects of the image that is shown, at one press."""

from __future__ import annotations

import typing

from . import actions, computations, export, library_panel, live, panel, preferences, session, steering, tracking


class StemdlExtension:
    """Made by Swift when it loads its plug-ins: makes known what this one has, and takes it away again."""

    extension_id = "stemdl.atoms-and-defects"

    def __init__(self, api_broker: typing.Any) -> None:
        api_broker.get_api(version="~1.0", ui_version="~1.0")
        from nion.swift import Application

        computations.register()
        actions.register()
        panel.register()
        library_panel.register()
        preferences.register()
        self.__app = getattr(Application, "app", None)
        if self.__app is not None:
            self.__app.register_menu_handler(actions.build_menu)

    def close(self) -> None:
        """Called when Swift unloads its plug-ins."""
        for part in (steering, session, live, tracking, export):
            part.stop_all()
        if self.__app is not None:
            self.__app.unregister_menu_handler(actions.build_menu)
            self.__app = None
        preferences.unregister()
        library_panel.unregister()
        panel.unregister()
        actions.unregister()
