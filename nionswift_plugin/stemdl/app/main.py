"""Nion Swift with the simulated microscope beside its own instruments, and the panel open."""

from __future__ import annotations

import typing
import warnings

from nion.swift import Application, Facade
from nion.ui import Application as ApplicationUI


class MicroscopeApplication(Application.Application):
    """Swift as it is, with one more scan device."""

    def initialize(self, **options: typing.Any) -> None:
        super().initialize(**options)
        from nionswift_plugin.stemdl import microscope

        #: Knows the truth of the newest scan; None where there is no simulated instrument.
        self.generator = microscope.connect()

    def open_project_window(self, *args: typing.Any, **options: typing.Any) -> typing.Any:
        from nionswift_plugin.stemdl import panel

        window = super().open_project_window(*args, **options)
        for name in (panel.PANEL_ID, *scan_panels()):
            dock = window.find_dock_panel(name)
            if dock is not None:
                dock.show()
        return window


def scan_panels() -> list[str]:
    """Names of the control panels of the simulated microscope."""
    from nion.swift import Panel

    from nionswift_plugin.stemdl import microscope

    return [name for name in Panel.PanelManager().panel_ids if microscope.DEVICE_ID in name]


def main(args: list[typing.Any], bootstrap_args: dict[str, typing.Any]) -> Application.Application:
    """Called by Swift's launcher."""
    warnings.simplefilter("always", RuntimeWarning)
    Facade.initialize()
    app = MicroscopeApplication(ApplicationUI.make_ui(bootstrap_args))
    app.initialize(use_root_dir=False)
    Facade.start_server()
    return app
