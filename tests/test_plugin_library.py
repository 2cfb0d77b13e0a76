"""The panel "Defect Library" without a screen: collect, name, show where, switch the version, retrain."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")

from swift_support import add_image, application, done, image_with, lattice_stand_in, press, swift, wait_for

from nionswift_plugin.stemdl import (
    actions,
    adapters,
    editing,
    library_panel,
)
from stemdl_core.corrections import Correction
from stemdl_core.library_store import load_library

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

program = application(analyze=lattice_stand_in)


@pytest.fixture(autouse=True)
def models_folder(monkeypatch, tmp_path):
    """Models of the test's own."""
    monkeypatch.setenv("STEMDL_MODELS", str(tmp_path / "models"))


def collected(dc, folder):
    """A panel whose library was collected from one annotated image with two silicon atoms."""
    image = add_image(dc, image_with((60, 60), (60, 110), size=160), scale=0.02, title="Sheet")
    press(dc)
    wait_for(done(dc), dc)
    handler = library_panel.LibraryHandler(dc, folder)
    handler.collect_clicked(None)
    assert handler.working
    wait_for(lambda: not handler.working, dc)
    return handler, image


def test_collect_name_and_show_where(tmp_path):
    with swift() as dc:
        handler, image = collected(dc, tmp_path / "L")
        assert handler.state.value == "1 classes of 2 defects"
        assert handler.classes.value == ["K1   Si-C3   2   (no name)"]
        assert (np.asarray(handler.picture.value) != handler.picture.value[0, 0]).any()
        handler.name.value = "my silicon"
        handler.rename_clicked(None)
        assert handler.classes.value == ["K1   my silicon   2"]
        assert load_library(tmp_path / "L").find("my silicon").count == 2
        display_item = dc.document_model.get_display_item_for_data_item(image)
        places = []
        for turn in (1, 2):
            handler.where_clicked(None)
            assert handler.state.value.startswith(f"{turn} of 2: Sheet")
            (mark,) = [g for g in display_item.graphics if g.graphic_id == "stemdl.where"]
            (top, left), (height, width) = mark.bounds
            places.append((round(160 * (top + height / 2)), round(160 * (left + width / 2))))
        assert all(min(np.hypot(y - 60, x - a) for a in (60, 110)) < 8 for y, x in places)
        assert places[0] != places[1]
        handler.drop_clicked(None)
        assert handler.classes.value == []
        handler.drop_clicked(None)
        assert handler.state.value == "Choose a class first"
        handler.close()


def test_nothing_to_collect_from_is_said(tmp_path):
    with swift() as dc:
        handler = library_panel.LibraryHandler(dc, tmp_path / "L")
        handler.collect_clicked(None)
        assert handler.state.value == "Annotate some images first"
        assert not handler.working
        handler.close()


def test_retraining_shows_progress_stops_and_says_why(tmp_path, monkeypatch):
    import stemdl_core.retrain as core

    seen = {}

    def slow(parent, folder, *, library, corrections, frame_of, progress, stop, **_):
        seen.update(folder=folder, names=[c.name for c in library.classes], corrections=corrections)
        seen["frame"] = frame_of(corrections[0].source, 0)[0].shape
        k = 0
        while not stop():
            progress("train", k := k + 1, 10_000)
        return None

    monkeypatch.setattr(core, "retrain", slow)
    with swift() as dc:
        handler, image = collected(dc, tmp_path / "L")
        handler.name.value = "mine"
        handler.rename_clicked(None)
        editing.write(image, [Correction("Sheet", 0, "delete", 20, 20).to_dict()])
        assert adapters.corrections_of(image.metadata)
        handler.teach_clicked(None)
        wait_for(lambda: handler.state.value == "Training", dc)
        assert handler.teach_label.value == "Stop"
        handler.teach_clicked(None)
        wait_for(lambda: not handler.working, dc)
        assert handler.state.value.startswith("Stopped")
        assert seen["names"] == ["mine"]
        assert seen["folder"].name == "graphene@2"
        assert seen["frame"] == (160, 160)

        def refuse(*_, **__):
            raise core.StemdlError("nothing to learn from")

        monkeypatch.setattr(core, "retrain", refuse)
        handler.teach_clicked(None)
        wait_for(lambda: not handler.working, dc)
        assert handler.state.value == "nothing to learn from"
        handler.close()


def test_another_version_is_chosen(tmp_path, monkeypatch):
    chosen: list[str] = []
    monkeypatch.setattr(actions, "choose_model", lambda dc, name: chosen.append(name))
    with swift() as dc:
        handler = library_panel.LibraryHandler(dc, tmp_path / "L")
        names = handler.models.value
        assert names[handler.model_index.value] == "graphene"
        handler.model_index.value = names.index("mx2")
        assert chosen[-1] == "mx2"
        handler.close()
