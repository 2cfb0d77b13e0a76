"""Start the real Nion Swift with an empty project, do what a user does, and take pictures of the screen.

The test that starts this reads ``report.json`` from the folder in ``STEMDL_SCREEN``.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from nion.data import Calibration, DataAndMetadata
from nion.swift import Application, Facade
from nion.swift.model import DataItem
from nion.ui import Application as ApplicationUI

FOLDER = pathlib.Path(os.environ["STEMDL_SCREEN"])


if os.environ["STEMDL_SCRIPT"] == "live":
    from nionswift_plugin.stemdl.app.main import MicroscopeApplication as Base
else:
    Base = Application.Application


class ScreenApplication(Base):
    """Opens a new project where Swift would ask for one, then follows the script."""

    def show_choose_project_dialog(self) -> None:
        reference = self.profile.create_project(FOLDER / "project", "demo")
        with self.prevent_close():
            window = self.open_project_window(reference)
        self.script = window.event_loop.create_task(follow(window))


async def follow(window: Any) -> None:
    """Run the script, write what came of it, and end the program."""
    report: dict[str, Any] = {}
    try:
        await {"annotate": annotate_undo_redo, "live": follow_the_scan}[os.environ["STEMDL_SCRIPT"]](
            window, report
        )
    except Exception:
        report["error"] = traceback.format_exc()
    (FOLDER / "report.json").write_text(json.dumps(report))
    os._exit(0)


async def annotate_undo_redo(window: Any, report: dict[str, Any]) -> None:
    """One press; picture; undo; redo; picture of the panel's reaction."""
    from swift_support import annotation, done

    from nionswift_plugin.stemdl import engine, panel

    if os.environ.get("STEMDL_STAND_IN"):
        from swift_support import stand_in

        engine.analyze = stand_in
    await asyncio.sleep(1)
    await fill_the_screen()
    for name in ("histogram-panel", "info-panel", "inspector-panel"):
        window.find_dock_panel(name).hide()
    window.find_dock_panel(panel.PANEL_ID).show()
    await asyncio.sleep(2)
    with np.load(FOLDER / "image.npz") as stored:
        image, step = stored["image"], float(stored["pixel_size_nm"])
    model = window.document_model
    item = DataItem.new_data_item(
        DataAndMetadata.new_data_and_metadata(
            image, dimensional_calibrations=[Calibration.Calibration(0, step, "nm")] * 2
        )
    )
    item.title = "Graphene with silicon"
    model.append_data_item(item)
    display_item = model.get_display_item_for_data_item(item)
    display_panel = window.workspace_controller.display_panels[0]
    display_panel.set_display_panel_display_item(display_item)
    display_panel.request_focus()
    window.selected_display_panel = display_panel
    await asyncio.sleep(2)
    wall, main = time.perf_counter(), time.thread_time()
    window.perform_action("stemdl.annotate")
    report["press_s"] = time.thread_time() - main
    while model.computations and not done(window)():
        await asyncio.sleep(0.02)
    report["wall_s"] = time.perf_counter() - wall
    overlay, table, computation = annotation(model)
    report["status"] = computation.status
    report["metadata"] = dict(table.metadata["stemdl"])
    report["overlay_shape"] = overlay.data.shape
    report["marks"] = [mark.label for mark in display_item.graphics]
    dock = window.find_dock_panel(panel.PANEL_ID)
    dock.handler.atoms.defect_index.value = 0
    await asyncio.sleep(8)  # Swift draws on threads of its own
    await picture("annotated.png")
    dock.handler.page.value = 2
    dock.handler.edit_clicked(None)
    await asyncio.sleep(4)
    await picture("correct.png")
    dock.handler.discard_clicked(None)
    dock.handler.page.value = 0
    window.handle_undo()
    await asyncio.sleep(1)
    report["after_undo"] = [len(model.data_items), len(model.computations), len(display_item.graphics)]
    window.handle_redo()
    await asyncio.sleep(2)
    report["after_redo"] = [len(model.data_items), len(model.computations), len(display_item.graphics)]


async def follow_the_scan(window: Any, report: dict[str, Any]) -> None:
    """Start the simulated microscope's scan as its panel does, press the button, wait, photograph."""
    from nion.instrumentation import HardwareSource

    from nionswift_plugin.stemdl import live, microscope, panel, session

    if os.environ.get("STEMDL_STAND_IN"):
        from swift_support import stand_in

        from nionswift_plugin.stemdl import engine

        engine.analyze = stand_in
    await asyncio.sleep(1)
    await fill_the_screen()
    report["panels"] = [p.panel_id for p in window.workspace_controller.dock_panels if p.dock_widget.visible]
    for name in ("histogram-panel", "info-panel", "data-panel", "inspector-panel"):
        window.find_dock_panel(name).hide()
    scan = HardwareSource.HardwareSourceManager().get_hardware_source_for_hardware_source_id(
        microscope.DEVICE_ID
    )
    # Slow enough for the analysis to keep up on most machines.
    parameters = scan.get_frame_parameters(0)
    parameters.pixel_time_us = 8.0
    scan.set_frame_parameters(0, parameters)
    scan.set_current_frame_parameters(parameters)
    scan.start_playing()
    model = window.document_model
    while not any(item.metadata.get("hardware_source") for item in model.data_items):
        await asyncio.sleep(0.1)
    item = model.data_items[0]
    display_panel = window.workspace_controller.display_panels[0]
    display_panel.set_display_panel_display_item(model.get_display_item_for_data_item(item))
    display_panel.request_focus()
    window.selected_display_panel = display_panel
    await asyncio.sleep(1)
    window.find_dock_panel(panel.PANEL_ID).handler.live_clicked(None)
    running = live.find(item)
    loaded = model_time = time.perf_counter()
    while running.status.analysed < 1:
        await asyncio.sleep(0.05)
        loaded = time.perf_counter()
    report["first_s"] = loaded - model_time
    first, start = running.status, time.perf_counter()
    while running.status.analysed < first.analysed + int(os.environ.get("STEMDL_FRAMES", "15")):
        await asyncio.sleep(0.05)
    status = running.status
    report["frames_per_s"] = (status.seen - first.seen) / (time.perf_counter() - start)
    report["status"] = [status.seen, status.analysed, status.dropped, status.age_s, status.error]
    report["items"] = len(model.data_items)
    dock = window.find_dock_panel(panel.PANEL_ID)
    dock.handler.atoms.defect_index.value = 0
    await asyncio.sleep(2)
    await picture("live.png")
    dock.handler.track_clicked(None)
    dock.handler.page.value = 1
    run_ = session.find(item)
    while run_.status.frames < 12:
        await asyncio.sleep(0.1)
    report["tracking"] = [run_.status.frames, run_.status.tracks, run_.status.error, len(model.data_items)]
    await asyncio.sleep(2)
    await picture("track.png")
    dock.handler.page.value = 3
    dock.handler.steer.armed.value = True
    for _ in range(60):
        await asyncio.sleep(0.1)
    report["log"] = list(dock.handler.steer.log.value)
    await picture("steer.png")
    dock.handler.steer.armed.value = False
    scan.abort_playing()


async def fill_the_screen() -> None:
    """Move Swift's window to the corner and let it take the whole screen."""
    found = await run("xdotool", "search", "--name", "Nion Swift")
    for window_id in found.split():
        await run("xdotool", "windowmove", window_id, "0", "0", "windowsize", window_id, "1600", "980")
    await asyncio.sleep(2)


async def picture(name: str) -> None:
    """Photograph the screen."""
    await run("import", "-window", "root", str(FOLDER / name))


async def run(*command: str) -> str:
    """Run a program without blocking Swift, which has to answer the window manager meanwhile."""
    loop = asyncio.get_running_loop()
    done = await loop.run_in_executor(None, lambda: subprocess.run(command, capture_output=True, text=True))
    return done.stdout


def main(args: list[Any], bootstrap_args: dict[str, Any]) -> Application.Application:
    """Called by Swift's launcher."""
    Facade.initialize()
    app = ScreenApplication(ApplicationUI.make_ui(bootstrap_args))
    app.initialize(use_root_dir=False)
    return app
