"""The Nion Swift plugin without a screen: one press, undo, reload, bad selections, no leaks."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")

from nion.data import DataAndMetadata
from nion.swift.test import TestContext
from nion.ui import Window
from swift_support import (
    add_image,
    annotation,
    application,
    done,
    image_with,
    press,
    select,
    stand_in,
    swift,
    wait_for,
)

from nionswift_plugin.stemdl import actions, adapters, computations, engine, marks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

program = application(analyze=stand_in, small_pictures=False)


def test_one_press_makes_overlay_table_and_marks():
    with swift() as dc:
        image = add_image(dc, image_with((20, 30), (40, 10)))
        display_item = dc.document_model.get_display_item_for_data_item(image)
        press(dc)
        wait_for(done(dc), dc)
        overlay, table, _computation = annotation(dc.document_model)

        assert overlay.xdata.is_data_rgb_type
        assert overlay.data.shape == (1024, 1024, 3)
        assert overlay.xdata.dimensional_calibrations[0].units == "nm"
        assert overlay.xdata.dimensional_calibrations[0].scale == pytest.approx(0.02 * 64 / 1024)
        metadata = table.metadata["stemdl"]
        column = {name: table.data[:, i] for i, name in enumerate(metadata["columns"])}
        assert metadata["atoms"] == len(table.data) == 8
        silicon = column["Z"] == 14
        assert sorted(zip(column["y_px"][silicon], column["x_px"][silicon])) == [(20, 30), (40, 10)]
        assert metadata["species"] == {"14": "Si", "6": "C"}
        assert [d["name"] for d in metadata["defects"]] == ["Si-C3", "Si-C3"]
        marks = display_item.graphics
        assert [mark.label for mark in marks] == ["Si-C3", "Si-C3"]
        assert all(mark.source is table for mark in marks)
        assert marks[0].center.as_tuple() == pytest.approx((20.5 / 64, 30.5 / 64))
        # Next to the image, which stays where it was.
        shown = [p.data_item for p in dc.workspace_controller.display_panels]
        assert shown == [image, overlay]


def test_one_undo_takes_it_all_back_and_redo_restores_it():
    with swift() as dc:
        model = dc.document_model
        image = add_image(dc, image_with((20, 30)))
        display_item = model.get_display_item_for_data_item(image)
        layout = dc.workspace_controller.deconstruct()
        press(dc)
        wait_for(done(dc), dc)
        dc.handle_undo()
        assert list(model.data_items) == [image]
        assert not model.computations
        assert not display_item.graphics
        assert not model.data_structures
        assert dc.workspace_controller.deconstruct() == layout
        dc.handle_redo()
        overlay, table, computation = annotation(model)
        assert len(model.data_items) == 4
        assert [g.label for g in display_item.graphics] == ["Si-C3"]
        assert display_item.graphics[0].source is table
        assert overlay.xdata.is_data_rgb_type
        assert table.metadata["stemdl"]["atoms"] == 4
        # It works on after the redo.
        image.set_data(image_with((20, 30), (50, 50)))
        wait_for(lambda: table.metadata["stemdl"]["atoms"] == 8, dc)
        assert not computation.error_text
        dc.handle_undo()
        assert list(model.data_items) == [image]


def test_results_follow_the_image_and_empty_is_a_normal_result():
    with swift() as dc:
        image = add_image(dc, image_with((20, 30)))
        display_item = dc.document_model.get_display_item_for_data_item(image)
        press(dc)
        wait_for(done(dc), dc)
        overlay, table, _ = annotation(dc.document_model)
        first = display_item.graphics[0]
        image.set_data(image_with((22, 31), (50, 50)))
        wait_for(lambda: len(display_item.graphics) == 2, dc)
        assert display_item.graphics[0] is first, "marks are moved, not replaced"
        assert first.center.as_tuple() == pytest.approx((22.5 / 64, 31.5 / 64))
        image.set_data(image_with())
        wait_for(lambda: table.metadata["stemdl"]["atoms"] == 0, dc)
        assert not display_item.graphics
        assert table.data.shape == (1, len(adapters.COLUMNS))
        assert np.isnan(table.data).all()
        assert overlay.data.shape == (1024, 1024, 3)


def test_deleting_a_mark_deletes_nothing_else():
    with swift() as dc:
        image = add_image(dc, image_with((20, 30), (40, 40)))
        display_item = dc.document_model.get_display_item_for_data_item(image)
        press(dc)
        wait_for(done(dc), dc)
        display_item.remove_graphic(display_item.graphics[0]).close()
        assert len(dc.document_model.data_items) == 4
        assert len(display_item.graphics) == 1
        assert len(dc.document_model.computations) == 1


@pytest.mark.parametrize("which", ["image", "overlay", "table"])
def test_deleting_one_end_deletes_the_results(which):
    with swift() as dc:
        model = dc.document_model
        image = add_image(dc, image_with((20, 30)))
        display_item = model.get_display_item_for_data_item(image)
        press(dc)
        wait_for(done(dc), dc)
        overlay, table, _ = annotation(model)
        model.remove_data_item({"image": image, "overlay": overlay, "table": table}[which])
        # Newer versions of Swift let a computation end before they delete it.
        left = [] if which == "image" else [image]
        wait_for(lambda: list(model.data_items) == left and not model.computations, dc)
        if which != "image":
            assert not display_item.graphics
        # The command can no longer be undone, and does not fail when asked.
        dc.handle_undo()


def test_source_deleted_while_running(monkeypatch):
    import threading

    started, proceed = threading.Event(), threading.Event()

    def slow(frame, **options):
        started.set()
        proceed.wait(10)
        return stand_in(frame, **options)

    monkeypatch.setattr(engine, "analyze", slow)
    with swift() as dc:
        image = add_image(dc, image_with((20, 30)))
        press(dc)
        wait_for(started.is_set, dc)
        dc.document_model.remove_data_item(image)
        proceed.set()
        for _ in range(20):
            dc.periodic()
        assert not dc.document_model.data_items


@pytest.mark.parametrize(
    ("data", "descriptor", "line"),
    [
        (np.zeros((32, 32, 3), np.uint8), None, "colour"),
        (np.arange(64.0), None, "line plot or spectrum"),
        (np.arange(1024.0).reshape(32, 32) * 1j, None, "complex"),
        (np.random.default_rng(1).random((4, 4, 32, 32)), DataAndMetadata.DataDescriptor(False, 2, 2), "4D"),
        (
            np.random.default_rng(1).random((4, 4, 32)),
            DataAndMetadata.DataDescriptor(False, 2, 1),
            "spectrum",
        ),
        (np.full((32, 32), 3.0), None, "constant"),
        (np.full((32, 32), np.nan), None, "NaN"),
        (np.random.default_rng(1).random((4, 4)), None, "too small"),
    ],
)
def test_bad_selection_is_one_line_and_creates_nothing(said, data, descriptor, line):
    with swift() as dc:
        add_image(dc, data, descriptor=descriptor)
        press(dc)
        dc.periodic()
        assert len(dc.document_model.data_items) == 1
        assert not dc.document_model.computations
        assert len(said) == 1
        assert line in said[0]
        assert "\n" not in said[0]
        assert dc.last_undo_command is None


def test_nothing_selected(said):
    with swift() as dc:
        press(dc)
        assert said == ["select an image: nothing is selected"]


def test_reciprocal_axes_are_refused(said):
    with swift() as dc:
        add_image(dc, image_with(), units="1/nm")
        press(dc)
        assert len(dc.document_model.data_items) == 1
        assert "1/nm" in said[0]


def test_a_failing_analysis_is_one_line_and_leaves_nothing(said, monkeypatch):
    from stemdl_core.errors import ModelError

    def fail(frame, **options):
        raise ModelError("unknown model 'x': choose one of graphene")

    monkeypatch.setattr(engine, "analyze", fail)
    with swift() as dc:
        image = add_image(dc, image_with((20, 30)))
        layout = dc.workspace_controller.deconstruct()
        press(dc)
        wait_for(lambda: "unknown model 'x': choose one of graphene" in said, dc)
        wait_for(lambda: not dc.document_model.computations, dc)
        assert list(dc.document_model.data_items) == [image]
        assert dc.workspace_controller.deconstruct() == layout
        assert dc.last_undo_command is None


def test_a_later_failure_keeps_the_results(said, monkeypatch):
    with swift() as dc:
        image = add_image(dc, image_with((20, 30)))
        press(dc)
        wait_for(done(dc), dc)
        overlay, table, computation = annotation(dc.document_model)
        image.set_data(np.full((64, 64), 5.0))
        wait_for(lambda: computation.error_text, dc)
        assert "constant" in computation.error_text
        assert table.metadata["stemdl"]["atoms"] == 4
        image.set_data(image_with((20, 31)))
        wait_for(lambda: not computation.error_text, dc)
        assert overlay in dc.document_model.data_items


def test_uncalibrated_image_is_told_whose_pixel_size_it_has(said):
    with swift() as dc:
        add_image(dc, image_with((20, 30)), units="", scale=1.0)
        press(dc)
        wait_for(done(dc), dc)
        wait_for(lambda: said, dc)
        overlay, table, _ = annotation(dc.document_model)
        assert said == ["20.00 pm/px, from the lattice: the image has no calibration"]
        assert table.metadata["stemdl"]["pixel_size_source"] == "lattice"
        assert overlay.xdata.dimensional_calibrations[0].scale == pytest.approx(0.02 / 16)


@pytest.mark.parametrize(
    "descriptor", [DataAndMetadata.DataDescriptor(True, 0, 2), DataAndMetadata.DataDescriptor(False, 1, 2)]
)
def test_a_movie_is_annotated_at_the_frame_that_is_shown(descriptor, monkeypatch):
    runs = []

    def counted(frame, **options):
        runs.append(frame.index)
        return stand_in(frame, **options)

    monkeypatch.setattr(engine, "analyze", counted)
    stack = np.stack([image_with((20, 10 + i)) for i in range(5)])
    with swift() as dc:
        item = add_image(dc, stack, descriptor=descriptor)
        channel = dc.document_model.get_display_item_for_data_item(item).display_data_channel

        def show(index):
            if descriptor.is_sequence:
                channel.sequence_index = index
            else:
                channel.collection_index = (index,)

        show(2)
        press(dc)
        wait_for(done(dc), dc)
        _, table, _ = annotation(dc.document_model)
        assert table.metadata["stemdl"]["frame"] == 2
        assert table.data[0, 1:3].tolist() == [20, 12]
        show(4)
        wait_for(lambda: table.metadata["stemdl"]["frame"] == 4, dc)
        assert table.data[0, 1:3].tolist() == [20, 14]
        for _ in range(40):
            dc.periodic()
        assert runs == [2, 4], "marks on the image must not start another analysis"


def test_half_scanned_frames_are_skipped():
    with swift() as dc:
        image = add_image(dc, image_with((20, 30)))
        press(dc)
        wait_for(done(dc), dc)
        _, table, _computation = annotation(dc.document_model)

        def scan(data, valid_rows):
            metadata = {"hardware_source": {"valid_rows": valid_rows}}
            image.set_xdata(DataAndMetadata.new_data_and_metadata(data, metadata=metadata))
            dc.document_model.recompute_all()

        scan(image_with((20, 30), (40, 40)), 30)
        assert table.metadata["stemdl"]["atoms"] == 4
        scan(image_with((20, 30), (40, 40)), 64)
        assert table.metadata["stemdl"]["atoms"] == 8


def test_live_results_are_temporary():
    with swift() as dc:
        image = add_image(dc, image_with((20, 30)))
        image.category = "temporary"
        press(dc)
        wait_for(done(dc), dc)
        overlay, table, _ = annotation(dc.document_model)
        assert (overlay.category, table.category) == ("temporary", "temporary")


def test_parameters_change_the_drawing_without_a_new_analysis(monkeypatch):
    runs = []

    def counted(frame, **options):
        runs.append(options["model"])
        return stand_in(frame, **options)

    monkeypatch.setattr(engine, "analyze", counted)
    with swift() as dc:
        add_image(dc, image_with((20, 30)))
        press(dc)
        wait_for(done(dc), dc)
        overlay, _, computation = annotation(dc.document_model)
        before = overlay.data.copy()
        variables = {v.name: v for v in computation.variables}
        actions.set_variable(dc, computation, variables["defects"], False)
        wait_for(lambda: not np.array_equal(overlay.data, before), dc)
        assert len(runs) == 1
        dc.handle_undo()
        wait_for(lambda: np.array_equal(overlay.data, before), dc)
        actions.set_variable(dc, computation, variables["model"], "other")
        wait_for(lambda: len(runs) == 2, dc)
        assert runs[1] == "other"


def test_results_survive_reload_without_running_again(monkeypatch):
    with TestContext.create_memory_context() as context:
        with contextlib.closing(context.create_document_controller(auto_close=False)) as dc:
            add_image(dc, image_with((20, 30)))
            press(dc)
            wait_for(done(dc), dc)
        monkeypatch.setattr(engine, "analyze", None)
        with contextlib.closing(context.create_document_controller(auto_close=False)) as dc:
            model = dc.document_model
            overlay, table, computation = annotation(model)
            model.recompute_all()
            assert not computation.error_text
            image = computations.source_of(computation)
            marks = model.get_display_item_for_data_item(image).graphics
            assert [(m.label, m.source is table) for m in marks] == [("Si-C3", True)]
            assert overlay.xdata.is_data_rgb_type
            assert table.metadata["stemdl"]["columns"][:3] == ["id", "y_px", "x_px"]
            monkeypatch.setattr(engine, "analyze", stand_in)
            image.set_data(image_with((20, 30), (50, 50)))
            wait_for(lambda: table.metadata["stemdl"]["atoms"] == 8, dc)
            assert len(model.get_display_item_for_data_item(image).graphics) == 2


def test_several_images_at_a_time_are_one_undo():
    with swift() as dc:
        first, second = (add_image(dc, image_with((20, x)), title=str(x)) for x in (10, 30))
        items = [dc.document_model.get_display_item_for_data_item(i) for i in (first, second)]
        actions.annotate(dc, items)
        wait_for(lambda: all(len(i.graphics) == 1 for i in items), dc)
        assert len(dc.document_model.data_items) == 8
        dc.handle_undo()
        assert list(dc.document_model.data_items) == [first, second]
        dc.handle_redo()
        assert len(dc.document_model.data_items) == 8


def test_pressing_again_adds_no_second_result():
    with swift() as dc:
        add_image(dc, image_with((20, 30)))
        press(dc)
        wait_for(done(dc), dc)
        overlay, _, _ = annotation(dc.document_model)
        select(dc, overlay)
        press(dc)
        dc.periodic()
        assert len(dc.document_model.data_items) == 4


def test_at_most_fifty_marks():
    with swift() as dc:
        spots = [(y, x) for y in range(4, 64, 8) for x in range(4, 64, 8)]
        image = add_image(dc, image_with(*spots))
        press(dc)
        wait_for(done(dc), dc)
        _, table, _ = annotation(dc.document_model)
        assert len(table.metadata["stemdl"]["defects"]) == 64
        assert (
            len(dc.document_model.get_display_item_for_data_item(image).graphics) == marks.MOST_MARKS
        )


def test_action_is_registered_once_with_a_free_key():
    actions.register()
    assert Window.actions["stemdl.annotate"].action_name
    mine = Window.action_shortcuts["stemdl.annotate"]["window"]
    others = [
        keys
        for action, d in Window.action_shortcuts.items()
        if action != "stemdl.annotate"
        for keys in d.values()
    ]
    assert mine not in others
    assert all(mine not in keys for keys in others if isinstance(keys, list))
