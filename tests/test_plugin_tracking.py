"""Tracking a stored movie in Nion Swift: results, progress, cancel, undo, bad frames, the panel's events."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")

from nion.data import DataAndMetadata
from swift_support import add_image, application, image_with, lattice_stand_in, select, swift, wait_for

from nionswift_plugin.stemdl import engine, overlay, panel, tracking
from stemdl_core.trajectories import Tracks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

program = application(analyze=lattice_stand_in)
SEQUENCE = DataAndMetadata.DataDescriptor(True, 0, 2)


def movie(frames=8):
    """A silicon atom that stays where it is."""
    stack = np.stack([image_with((64, 64), size=128) for _ in range(frames)])
    stack[:, 0, 0] += np.arange(frames)  # no frame is a copy of the one before
    return stack


def finished(run):
    return lambda: run.progress.state not in ("running",) and tracking.find(run.source) is None


def start(dc):
    dc.perform_action("stemdl.track")
    (run,) = tracking._running
    return run


@pytest.mark.parametrize("descriptor", [SEQUENCE, DataAndMetadata.DataDescriptor(False, 1, 2)])
def test_a_movie_gives_tracks_timeline_and_table(descriptor):
    with swift() as dc:
        item = add_image(dc, movie(), descriptor=descriptor, scale=0.02)
        run = start(dc)
        wait_for(finished(run), dc)
        assert run.progress.state == "finished", run.progress.message
        assert len(dc.document_model.data_items) == 5
        table = tracking.find_table(dc.document_model, item)
        metadata = table.metadata["stemdl"]
        column = {name: table.data[:, i] for i, name in enumerate(metadata["columns"])}
        assert metadata["frames"] == 8
        assert metadata["tracks"] == 1
        assert column["frame"].tolist() == list(range(8))
        assert [metadata["names"][int(n)] for n in column["name"]] == ["Si-C3"] * 8
        assert column["y_px"] == pytest.approx(np.full(8, 64), abs=0.5)
        assert all(i.xdata.is_data_rgb_type for i in dc.document_model.data_items[2:4])
        lines = dc.document_model.data_items[4]
        assert lines.data.tolist() == [[1.0] * 8]
        display_item = dc.document_model.get_display_item_for_data_item(lines)
        assert display_item.used_display_type == "line_plot"
        assert [layer.label for layer in display_item.display_layers] == ["Si-C3"]
        dc.handle_undo()
        assert list(dc.document_model.data_items) == [item]
        dc.handle_redo()
        assert len(dc.document_model.data_items) == 5
        dc.document_model.remove_data_item(item)
        assert not dc.document_model.data_items


def test_frames_that_cannot_be_used_are_left_out_and_counted():
    stack = movie()
    stack[3] = 7.0
    with swift() as dc:
        add_image(dc, stack, descriptor=SEQUENCE)
        run = start(dc)
        wait_for(finished(run), dc)
        assert (run.progress.state, run.progress.faults) == ("finished", 1)
        assert str(run.progress) == "Tracked 8 frames, 1 left out"


def test_a_hopeless_movie_is_one_line_and_creates_nothing(said):
    with swift() as dc:
        add_image(dc, np.full((4, 64, 64), 3.0), descriptor=SEQUENCE)
        run = start(dc)
        wait_for(finished(run), dc)
        assert run.progress.state == "failed"
        assert len(said) == 1
        assert "no frame of the movie can be used" in said[0]
        assert len(dc.document_model.data_items) == 1


def test_images_are_not_movies(said):
    with swift() as dc:
        add_image(dc, image_with())
        dc.perform_action("stemdl.track")
        assert said == ["select a movie, a sequence of images, or a running scan"]
        assert len(dc.document_model.data_items) == 1


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_cancel_and_deleting_the_movie_create_nothing(how, monkeypatch):
    started, proceed = threading.Event(), threading.Event()

    def slow(frame, **options):
        started.set()
        proceed.wait(10)
        return lattice_stand_in(frame, **options)

    monkeypatch.setattr(engine, "analyze", slow)
    with swift() as dc:
        item = add_image(dc, movie(), descriptor=SEQUENCE)
        run = start(dc)
        assert started.wait(10)
        if how == "cancel":
            run.cancel()
        else:
            dc.document_model.remove_data_item(item)
        proceed.set()
        wait_for(finished(run), dc)
        assert run.progress.state == "cancelled"
        assert len(dc.document_model.data_items) == (1 if how == "cancel" else 0)


def test_panel_shows_progress_and_events_select_their_frame(monkeypatch):
    stack = movie(12)
    stack[6:, 64, 64] = 100.0
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            item = add_image(dc, stack, descriptor=SEQUENCE)
            assert handler.tracks.can_track.value
            handler.track_clicked(None)
            assert handler.tracks.track_label.value == "Cancel"
            (run,) = tracking._running
            wait_for(finished(run), dc)
            dc.periodic()
            select(dc, item)
            assert handler.tracks.track_label.value == "Track"
            assert handler.tracks.state.value == "1 tracks, 1 events in 12 frames"
            assert handler.tracks.events.value == ["6   death   Si-C3"]
            handler.tracks.event_index.value = 0
            display_item = dc.document_model.get_display_item_for_data_item(item)
            assert display_item.display_data_channel.sequence_index == 6
            other = add_image(dc, image_with(), title="Other")
            assert not handler.tracks.can_track.value
            assert handler.tracks.events.value == []
            dc.document_model.remove_data_item(other)
        finally:
            handler.close()


def test_pictures_of_no_tracks_and_of_many():
    image = image_with(size=128)
    none = Tracks.empty()
    assert np.array_equal(overlay.trajectories(image, none), overlay.plain(image))
    assert overlay.timeline(none).shape[2] == 3
    frame, track = (g.ravel() for g in np.meshgrid(np.arange(5), np.arange(60)))
    zero, unknown = np.zeros(300), np.full(300, np.nan)
    rows = {
        "frame": frame, "time_s": unknown, "track_id": track, "name": ["Si-C3"] * 300, "y_px": 2.0 * track,
        "x_px": 3.0 * frame, "y_nm": zero, "x_nm": zero, "orientation_deg": unknown,
        "seen_as": ["Si-C3"] * 300, "probability": zero + 1, "deviation_deg": unknown,
    }  # fmt: skip
    rows = {name: list(values) for name, values in rows.items()}
    many = Tracks.from_rows(rows, frames=5)
    assert not np.array_equal(overlay.trajectories(image, many), overlay.plain(image))
    assert len(overlay.timeline(many)) == pytest.approx(40 * 26, abs=30)


def test_event_lines():
    event = {"frame": 4, "kind": "switch", "from": "Si-C3", "to": "Si-C4", "angle_deg": None}
    assert tracking.event_line(event) == "4   switch   Si-C3 → Si-C4"
    event = {"frame": 9, "kind": "rotation", "from": "Si3C6", "to": "Si3C6", "angle_deg": -59.6}
    assert tracking.event_line(event) == "9   rotation   Si3C6   -60°"
