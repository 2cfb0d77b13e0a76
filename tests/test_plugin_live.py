"""Live annotation of a scan of the simulated microscope: complete frames, newest first, drops counted."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")
pytest.importorskip("nion.usim_device", reason="Nion's simulated instrument (extra 'swift') is not installed")

from swift_support import (
    add_image,
    application,
    image_with,
    live_image,
    press,
    select,
    simulated_instrument,
    stand_in,
    swift,
    wait_for,
)

from nionswift_plugin.stemdl import computations, engine, live, microscope, panel
from stemdl_core.errors import StemdlError

pytestmark = pytest.mark.filterwarnings("ignore")

program = application(analyze=stand_in, small_pictures=False)


def test_one_press_on_a_live_view_follows_the_scan(scan):
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        known = computations.find(dc.document_model, item)
        assert known.computation is None
        assert (known.overlay.category, known.table.category) == ("temporary", "temporary")
        running = live.find(item)
        scan.finish(image_with((20, 30), (40, 40)), 7)
        wait_for(lambda: running.status.analysed == 1, dc)
        assert known.table.metadata["stemdl"]["atoms"] == 8
        assert (running.status.frame_index, running.status.dropped, running.status.error) == (7, 0, "")
        display_item = dc.document_model.get_display_item_for_data_item(item)
        assert [g.label for g in display_item.graphics] == ["Si-C3", "Si-C3"]
        # The size of the scan changes while it runs.
        scan.finish(image_with((10, 10), size=128), 8)
        wait_for(lambda: running.status.analysed == 2, dc)
        assert known.table.metadata["stemdl"]["shape"] == [128, 128]
        assert len(dc.document_model.data_items) == 4, "frames make no items"
        dc.handle_undo()
        assert list(dc.document_model.data_items) == [item]
        assert not display_item.graphics
        assert live.find(item) is None
        dc.handle_redo()
        assert len(dc.document_model.data_items) == 4
        again = live.find(item)
        scan.finish(image_with(), 9)
        wait_for(lambda: again.status.analysed == 1, dc)
        live.stop_all()


def test_other_channels_and_partial_or_aborted_frames_are_ignored(scan):
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        scan.finish(image_with((1, 1)), 1, state="partial")
        scan.finish(image_with((1, 1)), 1, channel="b")
        scan.finish(image_with((1, 1)), 1, valid_rows=10)
        scan.is_aborted = True
        scan.finish(np.zeros((64, 64), np.float32), 1)
        scan.is_aborted = False
        scan.finish(image_with(), 2)
        running = live.find(item)
        wait_for(lambda: running.status.analysed == 1, dc)
        assert (running.status.seen, running.status.frame_index) == (1, 2)
        live.stop_all()


def test_tables_follow_less_often_than_the_overlay_and_end_with_the_last_frame(scan, monkeypatch):
    monkeypatch.setattr(live, "_TABLE_S", 0.2)
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        running = live.find(item)
        table = running.table

        def atoms():
            return table.metadata["stemdl"]["atoms"]

        scan.finish(image_with((20, 30)), 1)
        wait_for(lambda: running.status.analysed == 1, dc)
        assert atoms() == 4, "the first at once"
        scan.finish(image_with((20, 30), (40, 20)), 2)
        wait_for(lambda: running.status.analysed == 2, dc)
        wait_for(lambda: atoms() == 8, dc, seconds=20)
        monkeypatch.setattr(live, "_TABLE_S", 100.0)
        scan.finish(image_with(), 3)
        wait_for(lambda: running.status.analysed == 3, dc)
        assert atoms() == 8
        running.close()
        assert atoms() == 0
        live.stop_all()


def test_the_network_leaves_half_of_the_cores_to_swift_while_live():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(64)
    try:
        first, second = engine.HalfTheCores(), engine.HalfTheCores()
        half = max(1, (os.cpu_count() or 2) // 2)
        assert torch.get_num_threads() == half
        first.close()
        first.close()
        assert torch.get_num_threads() == half
        second.close()
        assert torch.get_num_threads() == 64
    finally:
        torch.set_num_threads(before)


def test_newest_frame_wins_and_every_frame_is_accounted_for(scan, monkeypatch):
    proceed = threading.Semaphore(0)
    analysed = []

    def slow(frame, **options):
        proceed.acquire(timeout=10)
        analysed.append(int(frame.image[0, 0]))
        return stand_in(frame, **options)

    monkeypatch.setattr(engine, "analyze", slow)
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        running = live.find(item)

        def frame(number):
            image = image_with()
            image[0, 0] = number
            return image

        scan.finish(frame(0), 0)
        wait_for(lambda: running._LiveAnnotation__newest is None, dc)  # the worker has taken it
        buffer = frame(1)
        for number in range(1, 6):
            buffer[0, 0] = number
            scan.finish(buffer, number)
        buffer[:] = 0  # the device uses its buffer again
        for _ in range(3):
            proceed.release()
        wait_for(lambda: running.status.analysed == 2, dc)
        assert analysed == [0, 5]
        status = running.status
        assert (status.seen, status.analysed, status.dropped) == (6, 2, 4)
        assert status.age_s > 0
        assert str(status).startswith("Live: frame 5, ")
        assert str(status).endswith("4 dropped")
        live.stop_all()


def test_a_bad_frame_is_said_and_the_next_one_works(scan, monkeypatch):
    def moody(frame, **options):
        if frame.image.max() > 200:
            raise StemdlError("no lattice in sight")
        return stand_in(frame, **options)

    monkeypatch.setattr(engine, "analyze", moody)
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        running = live.find(item)
        scan.finish(image_with((5, 5)), 1)
        wait_for(lambda: running.status.error == "no lattice in sight", dc)
        scan.finish(np.full((64, 64), 3.0, np.float32), 2)
        wait_for(lambda: "constant" in running.status.error, dc)
        scan.finish(image_with(), 3)
        wait_for(lambda: running.status.frame_index == 3, dc)
        assert running.status.error == ""
        live.stop_all()


def test_deleting_the_live_image_ends_it(scan):
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        running = live.find(item)
        scan.finish(image_with((5, 5)), 1)
        dc.document_model.remove_data_item(item)
        assert not running.is_running
        assert not dc.document_model.data_items
        scan.finish(image_with((5, 5)), 2)
        for _ in range(5):
            dc.periodic()
        running.join()


def test_project_closed_while_running(scan, monkeypatch):
    started = threading.Event()

    def slow(frame, **options):
        started.set()
        time.sleep(0.3)
        return stand_in(frame, **options)

    monkeypatch.setattr(engine, "analyze", slow)
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        running = live.find(item)
        scan.finish(image_with((5, 5)), 1)
        assert started.wait(10)
    live.stop_all()
    running.join()


def test_panel_switches_live_on_and_off(scan):
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            item = live_image(dc)
            other = add_image(dc, image_with(), title="Stored")
            assert not handler.atoms.is_live.value
            select(dc, item)
            assert handler.atoms.is_live.value
            assert handler.atoms.live_label.value == "Go live"
            handler.live_clicked(None)
            select(dc, item)
            assert handler.atoms.live_label.value == "Stop live"
            running = live.find(item)
            scan.finish(image_with((20, 30)), 3)
            wait_for(lambda: running.status.analysed == 1, dc)
            assert handler.atoms.state.value.startswith("Live: frame 3, ")
            assert handler.atoms.found.value == "3 C, 1 Si"
            handler.atoms.draw_names.value = False
            assert running.options.names is False
            handler.live_clicked(None)
            assert not running.is_running
            assert handler.atoms.state.value == "Live annotation is stopped."
            assert handler.atoms.live_label.value == "Go live"
            handler.live_clicked(None)
            assert live.find(item) is not None
            assert len(dc.document_model.data_items) == 5, "two images, an overlay, two tables"
            select(dc, other)
            assert not handler.atoms.is_live.value
        finally:
            live.stop_all()
            handler.close()


def test_live_on_the_simulated_microscope():
    rng = np.random.default_rng(5)
    generator = microscope.Generator(microscope.Specimen(rng=rng), rng)
    with simulated_instrument(generator, pixel_size=(128, 128), fov_nm=2.0) as context:
        dc, scan = context.document_controller, context.scan_hardware_source
        assert not scan.is_playing
        scan.start_playing()
        try:
            wait_for(lambda: any("hardware_source" in i.metadata for i in dc.document_model.data_items), dc)
            (item,) = dc.document_model.data_items
            select(dc, item)
            press(dc)
            running = live.find(item)
            wait_for(lambda: running.status.analysed >= 3, dc)
        finally:
            scan.abort_playing(sync_timeout=10)
        known = computations.find(dc.document_model, item)
        step = known.table.metadata["stemdl"]["pixel_size_nm"]
        assert step == pytest.approx(2.0 / 128)
        assert known.table.metadata["stemdl"]["pixel_size_source"] == "metadata"
        assert running.status.error == ""
        assert len(dc.document_model.data_items) == 4
        assert not scan.is_playing
        live.stop_all()
        running.join()


def test_stored_images_are_not_live():
    with swift() as dc:
        item = add_image(dc, image_with(), metadata={"hardware_source": {"hardware_source_id": "x"}})
        assert live.hardware_source_of(item) is None
        assert live.hardware_source_of(None) is None
