"""What outlives what: projects without the plugin, the plugin unloaded, models missing, preferences, export."""

from __future__ import annotations

import contextlib
import json
import threading

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")

from nion.data import DataAndMetadata
from nion.swift.model import Symbolic
from nion.swift.test import TestContext
from nion.ui import PreferencesDialog, Window
from swift_support import (
    FakeScan,
    add_image,
    annotation,
    application,
    done,
    image_with,
    lattice_stand_in,
    live_image,
    press,
    select,
    stand_in,
    swift,
    wait_for,
)

import nionswift_plugin.stemdl as plugin
from nionswift_plugin.stemdl import (
    actions,
    adapters,
    computations,
    engine,
    export,
    live,
    panel,
    portrait,
    preferences,
    session,
    steering,
    tracking,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

program = application(analyze=stand_in)
REAL_ANALYSIS = engine.analyze


def keep_settings(monkeypatch):
    """Swift's user interface for tests forgets what it is to remember; this one does not."""
    from nion.ui import TestUI

    kept: dict[str, str] = {}
    interface = TestUI.UserInterface
    monkeypatch.setattr(interface, "get_persistent_string", lambda self, key, default="": kept.get(key, default))
    monkeypatch.setattr(interface, "set_persistent_string", lambda self, key, value: kept.update({key: value}))


def test_results_stay_where_the_plugin_is_missing(monkeypatch):
    with TestContext.create_memory_context() as context:
        with contextlib.closing(context.create_document_controller(auto_close=False)) as dc:
            image = add_image(dc, image_with((20, 30)))
            press(dc)
            wait_for(done(dc), dc)
        monkeypatch.delitem(Symbolic._computation_types, computations.COMPUTATION_ID)
        with contextlib.closing(context.create_document_controller(auto_close=False)) as dc:
            model = dc.document_model
            model.recompute_all()
            overlay, table, computation = annotation(model)
            defects = computation.get_output("defect_table")
            assert not computation.error_text
            assert overlay.xdata.is_data_rgb_type
            assert table.metadata["stemdl"]["atoms"] == 4
            assert defects.metadata["stemdl"]["defect_rows"] == 1
            names = defects.metadata["stemdl"]["columns"]
            assert defects.data[0, names.index("mean_bond_pm")] == 160.0
            image = computations.source_of(computation)
            assert [m.label for m in model.get_display_item_for_data_item(image).graphics] == ["Si-C3"]
            image.set_data(image_with((20, 30), (50, 50)))
            model.recompute_all()
            assert table.metadata["stemdl"]["atoms"] == 4, "nothing is computed, nothing is lost"
            assert len(model.data_items) == 4
            assert "Missing computation" in computation.error_text
        computations.register()
        with contextlib.closing(context.create_document_controller(auto_close=False)) as dc:
            model = dc.document_model
            _, table, computation = annotation(model)
            # As a window does that opens with the plug-in there.
            actions.build_menu(dc)
            assert computation.error_text
            dc.periodic()
            model.recompute_all()
            assert table.metadata["stemdl"]["atoms"] == 8, "the image has changed meanwhile"
            assert not computation.error_text
            computations.source_of(computation).set_data(image_with((20, 30), (50, 50), (10, 10)))
            model.recompute_all()
            assert table.metadata["stemdl"]["atoms"] == 12


def test_results_of_an_earlier_version_without_a_table_of_defects_are_kept_up(monkeypatch):
    with swift() as dc:
        image = add_image(dc, image_with((20, 30)))
        press(dc)
        wait_for(done(dc), dc)
        _, table, computation = annotation(dc.document_model)
        defects = computation.get_output("defect_table")
        get = type(computation).get_output
        monkeypatch.setattr(
            type(computation), "get_output", lambda self, name: None if name == "defect_table" else get(self, name)
        )
        image.set_data(image_with((20, 30), (50, 50)))
        wait_for(lambda: table.metadata["stemdl"]["atoms"] == 8, dc)
        assert defects.metadata["stemdl"]["defect_rows"] == 1
        assert not computation.error_text


def test_a_missing_model_file_is_one_line_and_leaves_nothing(said, monkeypatch, tmp_path):
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    card = {"name": "mine", "materials": ["graphene"], "architecture": "unet", "filters": [8],
            "classes": ["background", "C"], "pixel_size_nm": 0.02, "radius_nm": 0.05, "sha256": "0"}  # fmt: skip
    (folder / "model.json").write_text(json.dumps(card))
    monkeypatch.setattr(engine, "analyze", REAL_ANALYSIS)
    monkeypatch.setattr(engine.models, "folder", str(tmp_path / "models"))
    keep_settings(monkeypatch)
    assert "mine" in engine.models.names()
    with swift() as dc:
        actions.choose_model(dc, "mine")
        add_image(dc, image_with((20, 30)))
        press(dc)
        wait_for(lambda: said, dc)
        wait_for(lambda: not dc.document_model.computations, dc)
        assert "model.safetensors is missing" in said[0]
        assert len(dc.document_model.data_items) == 1


def test_unloading_the_plugin_ends_what_runs_and_takes_its_registrations_along(monkeypatch):
    started, proceed = threading.Event(), threading.Event()

    def slow(frame, **options):
        started.set()
        proceed.wait(5)
        return lattice_stand_in(frame, **options)

    fake = FakeScan()
    monkeypatch.setattr(
        live, "hardware_source_of", lambda item: (fake, "a") if item and item.category == "temporary" else None
    )
    monkeypatch.setattr(engine, "analyze", slow)
    broker = type("Broker", (), {"get_api": lambda self, **_: None})()
    extension = plugin.StemdlExtension(broker)
    panes = PreferencesDialog.PreferencesManager().preference_pane_delegates
    assert [p.identifier for p in panes].count("stemdl.preferences") == 1
    with swift() as dc:
        movie = np.stack([image_with((64, 64), size=128) + n for n in range(4)])
        item = live_image(dc, 128)
        select(dc, item)
        run = actions.track(dc, dc.document_model.get_display_item_for_data_item(item))
        driver = steering.Steering(live.find(item))
        driver.arm()
        stored = add_image(dc, movie, descriptor=DataAndMetadata.DataDescriptor(True, 0, 2), title="Movie")
        dc.perform_action("stemdl.track")
        fake.finish(image_with(size=128), 1)
        assert started.wait(10)
        proceed.set()
        extension.close()
        assert live.find(item) is None
        assert session.find(item) is None
        assert not run.is_running
        assert not driver.is_armed
        fake.finish(image_with(size=128), 2)
        wait_for(lambda: tracking.find(stored) is None, dc)
        assert "stemdl.annotate" not in Window.actions
        assert "stemdl.preferences" not in [p.identifier for p in panes]
    actions.register()


def test_preferences_are_kept_and_used(tmp_path, monkeypatch):
    keep_settings(monkeypatch)
    preferences.register()
    preferences.register()
    try:
        with swift() as dc:
            pane = preferences.PaneHandler(dc.ui)
            assert pane.devices[pane.device_index.value] == "cpu"
            pane.device_index.value = pane.devices.index("auto")
            assert engine.models.device == "auto"
            own = tmp_path / "own" / "sulphide"
            own.mkdir(parents=True)
            (own / "model.json").write_text("{}")
            pane.folder.value = str(tmp_path / "nowhere")
            assert pane.note.value == "there is no such folder"
            pane.folder.value = str(tmp_path / "own")
            assert pane.note.value == ""
            assert "sulphide" in pane.models.value
            pane.model_index.value = pane.models.value.index("sulphide")
            assert preferences.model(dc.ui) == "sulphide"
            engine.models.device, engine.models.folder = "cpu", ""
            preferences.load(dc.ui)
            assert (engine.models.device, engine.models.folder) == ("auto", str(tmp_path / "own"))
            widget = preferences._pane.build(dc.ui, dc.event_loop)
            widget.close()
    finally:
        engine.models.device, engine.models.folder = "cpu", ""
        preferences.unregister()


def test_export_of_an_annotated_image_and_of_a_movie(tmp_path, said, monkeypatch):
    monkeypatch.setattr(engine, "analyze", lattice_stand_in)
    with swift() as dc:
        image = add_image(dc, image_with((64, 64), size=128), title="My image/1")
        press(dc)
        wait_for(done(dc), dc)
        export.export(dc, image, tmp_path).join(60)
        folder = tmp_path / "My_image_1-stemdl"
        assert {"analysis.json", "sites.csv", "defects.csv", "structure.xyz", "overlay.png"} <= {
            p.name for p in folder.iterdir()
        }
        assert json.loads((folder / "analysis.json").read_text())["defects"][0]["name"] == "Si-C3"
        stack = np.stack([image_with((64, 64), size=128) for _ in range(5)])
        stack[:, 0, 0] += np.arange(5)
        movie = add_image(dc, stack, descriptor=DataAndMetadata.DataDescriptor(True, 0, 2), title="Movie")
        dc.perform_action("stemdl.track")
        wait_for(lambda: tracking.find(movie) is None, dc)
        select(dc, movie)
        table = tracking.find_table(dc.document_model, movie)
        before = tracking.tracks_of(table)
        from nionswift_plugin.stemdl import tracked

        tracked._kept.clear()  # as in a reloaded project
        after = tracking.tracks_of(table)
        assert before.to_dataframe().equals(after.to_dataframe())
        export.export(dc, movie, tmp_path).join(60)
        folder = tmp_path / "Movie-stemdl"
        assert {p.name for p in folder.iterdir()} == {"trajectories.csv", "events.csv", "drift.csv", "overlay.gif"}
        assert len((folder / "trajectories.csv").read_text().splitlines()) == 6
        wait_for(lambda: len([line for line in said if str(tmp_path) in line]) == 2, dc)
        nothing = add_image(dc, image_with(), title="Nothing")
        assert export.export(dc, nothing, tmp_path) is None
        assert said[-1] == "select an image with results first"


def test_portrait_of_a_defect():
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            add_image(dc, image_with((20, 30)))
            empty = handler.atoms.picture.value
            assert empty.shape == portrait.SIZE_PX
            assert empty.dtype == np.uint32
            press(dc)
            wait_for(done(dc), dc)
            dc.periodic()
            handler.atoms.defect_index.value = 0
            picture = handler.atoms.picture.value
            assert picture.shape == empty.shape
            colours = np.unique(picture.view(np.uint8).reshape(-1, 4)[:, :3], axis=0)
            for rgb in ((255, 159, 28), (86, 180, 233)):
                near = np.abs(colours.astype(int) - np.array(rgb[::-1])).max(axis=1)
                assert near.min() <= 20, "silicon and carbon are drawn"
            handler.atoms.defect_index.value = None
            assert np.array_equal(handler.atoms.picture.value, empty)
        finally:
            handler.close()


def test_defects_are_a_table_too():
    with swift() as dc:
        image = add_image(dc, image_with((20, 30), (40, 10)))
        press(dc)
        wait_for(done(dc), dc)
        _, table, computation = annotation(dc.document_model)
        defects = computation.get_output("defect_table")
        metadata = defects.metadata["stemdl"]
        column = {name: defects.data[:, i] for i, name in enumerate(metadata["columns"])}
        assert metadata["names"] == ["Si-C3"]
        assert sorted(zip(column["y_px"], column["x_px"])) == [(20, 30), (40, 10)]
        step = table.metadata["stemdl"]["pixel_size_nm"]
        assert column["y_nm"] == pytest.approx(step * (column["y_px"] + 0.5), abs=0.02)
        assert column["atoms"].tolist() == [4, 4]
        image.set_data(image_with())
        wait_for(lambda: defects.metadata["stemdl"]["defect_rows"] == 0, dc)
        assert defects.data.shape == (1, len(adapters.DEFECT_COLUMNS))
        assert computations.find(dc.document_model, defects).source is image
