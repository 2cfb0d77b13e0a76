"""Correcting by hand in Nion Swift: points on the image become corrections, the tables follow, with undo."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")

from nion.data import DataAndMetadata
from nion.swift.model import Graphics, Notification
from nion.swift.test import TestContext
from swift_support import (
    add_image,
    annotation,
    application,
    done,
    image_with,
    press,
    stand_in,
    swift,
    wait_for,
)

from nionswift_plugin.stemdl import adapters, computations, editing, panel
from stemdl_core.corrections import Correction

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

program = application(analyze=stand_in)


def atoms(table):
    """(y, x, Z) of each atom of a table, sorted."""
    names = table.metadata["stemdl"]["columns"]
    columns = [table.data[:, names.index(name)] for name in ("y_px", "x_px", "Z")]
    return sorted(zip(*(np.round(c, 2).tolist() for c in columns)))


def point_at(display_item, y, x):
    """The editing point nearest to a pixel."""
    points = [g for g in display_item.graphics if (g.graphic_id or "").startswith("stemdl.atom.")]
    place = adapters.to_relative((y, x), (64, 64))
    return min(points, key=lambda g: np.hypot(g.position[0] - place[0], g.position[1] - place[1]))


def test_points_moved_deleted_added_and_relabelled_become_corrections():
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            image = add_image(dc, image_with((20, 30)))
            display_item = dc.document_model.get_display_item_for_data_item(image)
            press(dc)
            wait_for(done(dc), dc)
            _, table, _ = annotation(dc.document_model)
            assert not handler.edit.is_editing.value
            handler.atoms.defect_index.value = 0
            handler.edit_clicked(None)
            assert handler.edit.is_editing.value
            labels = [g.label for g in display_item.graphics if isinstance(g, Graphics.PointGraphic)]
            assert sorted(label or "" for label in labels) == ["", "", "", "Si"], "labels would cover atoms"
            carbons = [(y, x) for y, x, z in atoms(table) if z == 6]
            moved, deleted, renamed = carbons
            point = point_at(display_item, *moved)
            y, x = adapters.to_relative((moved[0] + 1.5, moved[1]), (64, 64))
            point.position = float(y), float(x)
            display_item.remove_graphic(point_at(display_item, *deleted)).close()
            point_at(display_item, *renamed).label = "N"
            new = Graphics.PointGraphic()
            y, x = adapters.to_relative((50, 50), (64, 64))
            new.position = float(y), float(x)
            display_item.add_graphic(new)
            handler.apply_clicked(None)
            assert not [g for g in display_item.graphics if isinstance(g, Graphics.PointGraphic)]
            stored = image.metadata[adapters.CORRECTIONS_KEY]["corrections"]
            assert sorted(c["action"] for c in stored) == ["add", "delete", "move", "species"]
            assert all(c["when"] and c["model"] == "stand-in" and c["source"] == "Graphene" for c in stored)
            wait_for(lambda: table.metadata["stemdl"].get("corrections") == 4, dc)
            expected = sorted(
                [
                    (20.0, 30.0, 14.0), (50.0, 50.0, 6.0),
                    (round(moved[0] + 1.5, 2), moved[1], 6.0), (*renamed, 7.0),
                ]
            )  # fmt: skip
            assert np.allclose(atoms(table), expected, atol=0.02)
            assert handler.edit.state.value == "4 corrections are kept with this image."
            dc.handle_undo()
            assert adapters.CORRECTIONS_KEY not in image.metadata
            wait_for(lambda: "corrections" not in table.metadata["stemdl"], dc)
            assert len(atoms(table)) == 4
            dc.handle_redo()
            wait_for(lambda: table.metadata["stemdl"].get("corrections") == 4, dc)
        finally:
            handler.close()


def test_nothing_done_is_no_correction_and_a_shaky_hand_neither():
    with swift() as dc:
        image = add_image(dc, image_with((20, 30)))
        display_item = dc.document_model.get_display_item_for_data_item(image)
        press(dc)
        wait_for(done(dc), dc)
        own = Graphics.PointGraphic()
        own.position = 0.1, 0.1
        display_item.add_graphic(own)
        known = computations.find(dc.document_model, image)
        editor = editing.Editor(dc, known, (20.0, 30.0))
        point = point_at(display_item, 20, 30)
        point.position = point.position[0] + 0.002, point.position[1]
        assert editor.finish(apply=True) == 0
        assert adapters.CORRECTIONS_KEY not in image.metadata
        assert own in display_item.graphics, "the user's own points stay"
        assert dc.last_undo_command is not None
        assert dc.last_undo_command.title != "Correct Atoms and Defects"


def test_renamed_defects_keep_their_names_in_marks_and_tables():
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            image = add_image(dc, image_with((20, 30), (50, 50)))
            display_item = dc.document_model.get_display_item_for_data_item(image)
            press(dc)
            wait_for(done(dc), dc)
            _, table, computation = annotation(dc.document_model)
            handler.atoms.defect_index.value = 1
            handler.edit.name.value = "Ge-C3"
            handler.rename_clicked(None)
            wait_for(lambda: [m.label for m in display_item.graphics] == ["Si-C3", "Ge-C3"], dc)
            assert [d["name"] for d in table.metadata["stemdl"]["defects"]] == ["Si-C3", "Ge-C3"]
            defects = computation.get_output("defect_table")
            assert defects.metadata["stemdl"]["names"] == ["Ge-C3", "Si-C3"]
            assert defects.data[:, 1].tolist() == [1.0, 0.0]
            # On the image itself: another label of a mark, while editing.
            handler.edit_clicked(None)
            next(m for m in display_item.graphics if m.label == "Si-C3").label = "P-C3"
            handler.apply_clicked(None)
            wait_for(lambda: table.metadata["stemdl"].get("corrections") == 2, dc)
            assert [d["name"] for d in table.metadata["stemdl"]["defects"]] == ["P-C3", "Ge-C3"]
        finally:
            handler.close()


def test_a_label_that_is_no_element_is_one_line_and_changes_nothing(monkeypatch):
    said = []
    monkeypatch.setattr(Notification, "notify", lambda n: said.append(n.text))
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            image = add_image(dc, image_with((20, 30)))
            display_item = dc.document_model.get_display_item_for_data_item(image)
            press(dc)
            wait_for(done(dc), dc)
            handler.atoms.defect_index.value = 0
            handler.edit_clicked(None)
            point_at(display_item, 20, 30).label = "Xyz"
            handler.apply_clicked(None)
            assert len(said) == 1
            assert "Xyz" in said[0]
            assert handler.edit.is_editing.value, "the points stay, to be put right"
            handler.discard_clicked(None)
            assert not [g for g in display_item.graphics if isinstance(g, Graphics.PointGraphic)]
            assert adapters.CORRECTIONS_KEY not in image.metadata
        finally:
            handler.close()


def test_corrections_of_a_movie_belong_to_their_frame():
    stack = np.stack([image_with((20, 10 + i)) for i in range(3)])
    with swift() as dc:
        item = add_image(dc, stack, descriptor=DataAndMetadata.DataDescriptor(True, 0, 2))
        channel = dc.document_model.get_display_item_for_data_item(item).display_data_channel
        channel.sequence_index = 1
        press(dc)
        wait_for(done(dc), dc)
        _, table, _ = annotation(dc.document_model)
        correction = Correction(source="x", frame=1, action="delete", y_px=20, x_px=11)
        editing.correct(dc, item, [correction])
        wait_for(lambda: table.metadata["stemdl"]["atoms"] == 3, dc)
        channel.sequence_index = 2
        wait_for(lambda: table.metadata["stemdl"]["frame"] == 2, dc)
        assert table.metadata["stemdl"]["atoms"] == 4


def test_corrections_outlive_the_results_and_the_session(monkeypatch):
    with TestContext.create_memory_context() as context:
        with contextlib.closing(context.create_document_controller(auto_close=False)) as dc:
            image = add_image(dc, image_with((20, 30)))
            press(dc)
            wait_for(done(dc), dc)
            _, table, _ = annotation(dc.document_model)
            editing.correct(dc, image, [Correction(source="x", frame=0, action="delete", y_px=20, x_px=30)])
            wait_for(lambda: table.metadata["stemdl"]["atoms"] == 3, dc)
            dc.document_model.remove_data_item(table)
        with contextlib.closing(context.create_document_controller(auto_close=False)) as dc:
            (image,) = dc.document_model.data_items
            (kept,) = adapters.corrections_of(image.metadata)
            assert (kept.action, kept.y_px, kept.x_px) == ("delete", 20.0, 30.0)
            from swift_support import select

            select(dc, image)
            press(dc)
            wait_for(done(dc), dc)
            assert annotation(dc.document_model)[1].metadata["stemdl"]["atoms"] == 3
