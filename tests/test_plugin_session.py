"""Tracking in session: start, pause, stop on a running scan; lines that grow, events, constant memory."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")

from swift_support import (
    add_image,
    application,
    image_with,
    lattice_stand_in,
    live_image,
    select,
    swift,
    wait_for,
)

from nionswift_plugin.stemdl import (
    actions,
    export,
    live,
    panel,
    plots,
    scanning,
    session,
)
from stemdl_core.tracking import Tracker

pytestmark = pytest.mark.filterwarnings("ignore")

program = application(analyze=lattice_stand_in)
FOV = {"fov_nm": 128 * 0.02}


@pytest.fixture(autouse=True)
def every_frame_is_drawn(monkeypatch):
    monkeypatch.setattr(session, "_PICTURE_S", 0.0)


@pytest.fixture
def scan(scan):
    """With the field of view of the test images."""
    scan.parameters.fov_nm = FOV["fov_nm"]
    return scan



def lines_of(item):
    """The lines of a plot, without the room at their end."""
    return [row[np.isfinite(row)].tolist() for row in np.asarray(item.data)]


class Beam:
    """Sends frames and waits until each has been followed or let pass."""

    def __init__(self, dc, scan, item) -> None:
        self.dc, self.scan, self.item, self.index, self.followed = dc, scan, item, 0, 0

    def frames(self, count, *bright, size=128) -> None:
        for _ in range(count):
            image = image_with(*bright, size=size)
            image[0, 0] += self.index  # no frame is the same as the one before
            self.scan.finish(image, self.index)
            self.index += 1
            wait_for(lambda: live.find(self.item).status.analysed == self.index, self.dc)
            run = session.find(self.item)
            if run is not None and not run.is_paused:
                self.followed += 1
                wait_for(lambda: session.find(self.item).status.frames == self.followed, self.dc)


def test_start_pause_go_on_stop_from_the_panel(scan):
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            item = live_image(dc, 128)
            select(dc, item)
            handler.refocus()
            assert handler.tracks.can_track.value
            assert handler.tracks.track_label.value == "Track"
            handler.track_clicked(None)
            run = session.find(item)
            assert live.find(item) is not None, "a scan that is tracked is annotated"
            select(dc, item)
            handler.refocus()
            assert handler.tracks.track_label.value == "Pause"
            beam = Beam(dc, scan, item)
            beam.frames(6, (64, 64))
            wait_for(lambda: run.status.frames == 6, dc)
            assert run.status.tracks == 1
            assert str(run.status) == "Tracking: frames 6, defects 1, events 0"
            assert handler.tracks.state.value == str(run.status)
            items = len(dc.document_model.data_items)
            assert items == 4 + 4, "overlay and two tables; trajectories, tracks and two lines"
            assert {i.category for i in dc.document_model.data_items} == {"temporary"}
            assert lines_of(run.counts) == [[0.0] + [1.0] * 5], "a second reading confirms it"
            assert run.counts.data.shape == (1, plots.LEAST_POINTS), "a growing plot keeps its shape"
            display_item = dc.document_model.get_display_item_for_data_item(run.counts)
            assert display_item.used_display_type == "line_plot"

            handler.track_clicked(None)
            assert run.is_paused
            assert handler.tracks.track_label.value == "Go on"
            beam.frames(3, (64, 64))
            assert run.status.frames == 6
            handler.track_clicked(None)
            assert not run.is_paused
            beam.frames(8)
            wait_for(lambda: run.status.frames == 14, dc)
            (line,) = lines_of(run.counts)
            assert (len(line), line[-1]) == (14, 0.0)
            assert [e["kind"] for e in run.table.metadata["stemdl"]["events"]] == ["death"]
            assert handler.tracks.events.value[0].endswith("death   Si-C3")
            frame = run.table.metadata["stemdl"]["events"][0]["frame"]
            handler.tracks.event_index.value = 0
            assert handler.tracks.event_note.value == f"Frame {frame}:"
            assert len(np.unique(handler.tracks.picture.value)) > 10, "a small picture of that frame"
            run.thumbnails.clear()
            run._LiveTracking__thumbnail_frames.clear()
            handler.tracks.event_index.value = None
            handler.tracks.event_index.value = 0
            assert handler.tracks.event_note.value.startswith(f"Frame {frame} is gone: of a scan, only")
            assert len(np.unique(handler.tracks.picture.value)) == 1
            assert len(dc.document_model.data_items) == items, "frames make no items"

            handler.stop_clicked(None)
            assert not run.is_running
            assert session.find(item) is None
            assert live.find(item) is not None, "the annotation goes on"
            assert handler.tracks.track_label.value == "Track"
            dc.document_model.remove_data_item(item)
            assert not dc.document_model.data_items
        finally:
            handler.close()


def test_a_scan_that_is_moved_is_no_drift_and_another_scale_begins_anew(scan):
    from nion.utils import Geometry

    with swift() as dc:
        item = live_image(dc, 128)
        select(dc, item)
        run = actions.track(dc, dc.document_model.get_display_item_for_data_item(item))
        beam = Beam(dc, scan, item)
        beam.frames(4, (64, 64))
        # The centre moves by two lattice vectors along x: the atom appears 0.492 nm further left.
        scan.parameters.center_nm = Geometry.FloatPoint(y=0.0, x=0.492)
        beam.frames(4, (64, 39))
        wait_for(lambda: run.status.frames == 8, dc)
        tracks = run.tracks()
        assert len(tracks.ids) == 1
        assert np.ptp(tracks.x_nm) < 0.05
        assert not len(tracks.events)
        scan.parameters.fov_nm = 2 * FOV["fov_nm"]
        beam.frames(3, (64, 64))
        wait_for(lambda: run.status.frames == 11, dc)
        assert [len(line) for line in lines_of(run.counts)] == [3], "lines begin anew"
        session.stop_all()
        live.stop_all()


def test_export_of_a_session(scan, tmp_path):
    with swift() as dc:
        item = live_image(dc, 128)
        select(dc, item)
        run = actions.track(dc, dc.document_model.get_display_item_for_data_item(item))
        Beam(dc, scan, item).frames(4, (64, 64))
        wait_for(lambda: run.status.frames == 4, dc)
        thread = export.export(dc, item, tmp_path / "out")
        thread.join(60)
        folder = tmp_path / "out" / "Scan-stemdl"
        names = {p.name for p in folder.iterdir()}
        assert {"trajectories.csv", "events.csv", "overlay.gif", "structure.xyz", "sites.csv"} <= names
        assert len((folder / "trajectories.csv").read_text().splitlines()) == 5
        dc.periodic()
        session.stop_all()
        live.stop_all()


def test_deleting_the_results_ends_the_tracking(scan):
    with swift() as dc:
        item = live_image(dc, 128)
        select(dc, item)
        run = actions.track(dc, dc.document_model.get_display_item_for_data_item(item))
        beam = Beam(dc, scan, item)
        beam.frames(2, (64, 64))
        dc.document_model.remove_data_item(run.table)
        assert not run.is_running
        assert live.find(item) is not None
        assert len(dc.document_model.data_items) == 4
        live.stop_all()


class TestSeries:
    """Lines of bounded length."""

    def test_lines_grow_and_older_points_are_forgotten(self):
        series = plots.Series(most=10, missing=0.0)
        for n in range(3):
            series.append({"a": n})
        series.append({"b": 5.0})
        assert series.labels == ["a", "b"]
        assert series.values().tolist() == [[0, 1, 2, 0], [0, 0, 0, 5]]
        for n in range(500):
            series.append({"a": n})
        values = series.values()
        assert values.shape == (2, 10)
        assert values[0].tolist() == list(range(490, 500))
        assert series.xdata(units="x").dimensional_calibrations[-1].offset == 504 - 10

    def test_many_types_share_the_last_line(self):
        series = plots.Series(most=10, missing=0.0)
        series.append({f"V{n}": 1.0 for n in range(20)})
        assert len(series.labels) == plots.MOST_LINES
        assert series.labels[-1] == plots.OTHERS
        assert series.values()[:, 0].sum() == 20

    def test_no_line_is_still_data(self):
        assert plots.Series(most=10, missing=float("nan")).xdata(units="x").data_shape == (1, 1)

    def test_room_at_the_end_doubles_when_it_is_used_up(self):
        series, lengths = plots.Series(most=300, missing=0.0), []
        for n in range(1000):
            series.append({"a": n})
            lengths.append(series.xdata(units="x", padded=True).data_shape[1])
        assert sorted(set(lengths)) == [64, 128, 256, 300]
        assert lengths == sorted(lengths)
        data = series.xdata(units="x", padded=True).data
        assert data[0].tolist() == list(range(700, 1000))

    def test_lines_with_gaps_have_axis_limits(self):
        """Swift itself finds none where a value is missing."""
        with swift() as dc:
            item = add_image(dc, np.zeros((4, 4), np.float32), title="Lines")
            series = plots.Series(most=10, missing=float("nan"))
            series.append({"a": 100.0})
            series.append({"b": 131.0})
            plots.update(item, series.xdata(units="\N{DEGREE SIGN}", padded=True))
            display_item = dc.document_model.get_display_item_for_data_item(item)
            low, high = (display_item.get_display_property(n) for n in ("y_min", "y_max"))
            assert low <= 100 < 131 < high <= 150
            assert display_item.get_display_property("legend_position") == "top-right"

    def test_angles_go_on_past_their_symmetry(self):
        unwrapped = plots.Unwrapped()
        assert [round(unwrapped.next(1, "Si3C6", a)) for a in (100, 5, 30, 110)] == [100, 125, 150, 110]
        assert plots.is_rotor("Si3C6", 10.0)
        assert not plots.is_rotor("Si-C3", 10.0)
        assert not plots.is_rotor("Si3C6", float("nan"))


def test_a_tracker_forgets_and_goes_on_alike():
    """What is forgotten changes nothing of what comes."""
    from stemdl_core.calibration import PixelSize
    from stemdl_core.frames import Frame

    plain, bounded = Tracker(), Tracker()
    image = image_with((64, 64), size=128)
    once = lattice_stand_in(Frame(image, PixelSize(0.02, "metadata", 0.02), 0, 0.0, ""))
    gone = lattice_stand_in(Frame(image_with(size=128), PixelSize(0.02, "metadata", 0.02), 0, 0.0, ""))
    for number in range(200):
        analysis = dataclasses.replace(gone if 100 <= number < 130 else once, frame=number, time_s=0.1 * number)
        first, second = plain.update(analysis), bounded.update(analysis)
        scanning.forget(bounded, keep=24)
        assert [e.kind for e in first.events] == [e.kind for e in second.events]
        assert [(t.track_id, t.name) for t in first.tracks] == [(t.track_id, t.name) for t in second.tracks]
    rows = bounded.tracks()
    assert 24 <= len(rows) <= 24 + 64 + 24
    assert rows.frame.max() == 199
    assert len(plain.tracks()) > len(rows)


def test_numbers_of_a_scan_that_does_not_tell_where_it_is():
    xdata = types.SimpleNamespace(metadata={}, data_shape=(64, 64))
    geometry = scanning.Geometry.of(xdata, 0.02)
    assert geometry.center_nm == (0.0, 0.0)
    assert geometry.fov_nm == pytest.approx(1.28)
