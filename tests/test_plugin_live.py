"""Live annotation of a scan of the simulated microscope: complete frames, newest first, drops counted."""

from __future__ import annotations

import os
import threading
import time
import unittest
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")
pytest.importorskip("nion.usim_device", reason="Nion's simulated instrument (extra 'swift') is not installed")

from nion.instrumentation.test import AcquisitionTestContext
from nion.swift import Facade
from nion.swift.test import TestContext
from nion.usim_device import DeviceConfiguration
from swift_support import FakeScan, add_image, image_with, live_image, press, select, stand_in, swift, wait_for

from nionswift_plugin.stemdl import actions, computations, engine, live, marks, microscope, panel
from stemdl_core.errors import StemdlError

pytestmark = pytest.mark.filterwarnings("ignore")

Facade.initialize()


@pytest.fixture(autouse=True)
def program(monkeypatch, tmp_path):
    """A test application in an empty folder: Nion's test instrument deletes ./test_data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "analyze", stand_in)
    engine.recent.clear()
    computations.register()
    actions.register()
    TestContext.begin_leaks()
    setup = TestContext.TestSetup(set_global=True)
    yield setup
    live.stop_all()
    TestContext.end_leaks(unittest.TestCase())


@pytest.fixture
def scan(monkeypatch):
    """A scan under the test's control, which every temporary image comes from."""
    fake = FakeScan()
    monkeypatch.setattr(
        live,
        "hardware_source_of",
        lambda item: (fake, "a") if item and item.category == "temporary" else None,
    )
    return fake


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


def test_other_channels_and_partial_frames_are_ignored(scan):
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        scan.finish(image_with((1, 1)), 1, state="partial")
        scan.finish(image_with((1, 1)), 1, channel="b")
        scan.finish(image_with((1, 1)), 1, valid_rows=10)
        scan.finish(image_with(), 2)
        running = live.find(item)
        wait_for(lambda: running.status.analysed == 1, dc)
        assert (running.status.seen, running.status.frame_index) == (1, 2)
        live.stop_all()


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
            assert len(dc.document_model.data_items) == 4
            select(dc, other)
            assert not handler.atoms.is_live.value
        finally:
            live.stop_all()
            handler.close()


class Configuration(DeviceConfiguration.AcquisitionContextConfiguration):
    """Nion's simulated instrument with atoms under its scan."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        self.generator = microscope.Generator(microscope.Specimen(rng=rng), rng)
        self.scan_module = microscope.scan_module(self.instrument, self.generator)


def test_live_on_the_simulated_microscope():
    configuration = Configuration()
    with AcquisitionTestContext.AcquisitionTestContext(configuration, is_app=True) as context:
        dc, scan = context.document_controller, context.scan_hardware_source
        parameters = scan.get_frame_parameters(0)
        parameters.pixel_size = (128, 128)
        parameters.fov_nm = 2.0
        scan.set_current_frame_parameters(parameters)
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


class TestMicroscope:
    """The specimen and its truth."""

    @staticmethod
    def scan(generator, *, size=256, fov=4.0, center=(0.0, 0.0), rotation=0.0, time_us=4.0):
        parameters = SimpleNamespace(
            size=(size, size), fov_nm=fov, center_nm=center, rotation_rad=rotation, pixel_time_us=time_us
        )
        return generator.generate_scan_data(None, parameters)

    @staticmethod
    def generator(drift=(0.0, 0.0), now=None):
        rng = np.random.default_rng(1)
        clock = (lambda: now[0]) if now else (lambda: 0.0)
        return microscope.Generator(microscope.Specimen(rng=rng, drift_nm_per_s=drift, clock=clock), rng)

    def test_lattice_is_graphene(self):
        specimen = microscope.Specimen(rng=np.random.default_rng(0), silicon=1)
        yx, species = specimen.atoms()
        middle = yx[(np.abs(yx) < 4).all(axis=1) & (np.hypot(*yx.T) > 1)]
        distance = np.sort(np.hypot(*(middle[:, None] - yx[None]).transpose(2, 0, 1)), axis=1)
        assert distance[:, 1:4] == pytest.approx(np.full((len(middle), 3), 0.142), abs=1e-6)
        assert distance[:, 4].min() > 0.24
        assert (species == "Si").sum() == 1
        silicon = yx[species == "Si"][0]
        assert np.sort(np.hypot(*(yx - silicon).T))[1:4] == pytest.approx([0.16] * 3)

    def test_truth_is_where_the_image_is_bright(self):
        generator = self.generator()
        image = self.scan(generator)
        (silicon,) = np.flatnonzero(generator.truth.species == "Si")[:1]
        y, x = generator.truth.y_px[silicon], generator.truth.x_px[silicon]
        patch = image[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
        assert patch.mean() > 2.5 * image.mean()

    @pytest.mark.parametrize(
        "change", [{"center": (0.3, -0.2)}, {"rotation": 0.7}, {"fov": 5.0}, {"size": 200}]
    )
    def test_scan_settings_are_honoured(self, change):
        generator = self.generator()
        self.scan(generator)
        before = generator.truth
        self.scan(generator, **change)
        after = generator.truth
        size, fov, turn = change.get("size", 256), change.get("fov", 4.0), change.get("rotation", 0.0)
        center = np.array(change.get("center", (0.0, 0.0)))
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        in_nm = (np.stack([before.y_px, before.x_px], 1) - 127.5) * 4.0 / 256
        expected = (in_nm - center) @ rotation / (fov / size) + (size - 1) / 2
        visible = ((expected > 5) & (expected < size - 6)).all(axis=1)
        found = np.stack([after.y_px, after.x_px], 1)
        distance = np.hypot(*(expected[visible][:, None] - found[None]).transpose(2, 0, 1)).min(axis=1)
        assert distance.max() < 1e-6

    def test_drift_moves_the_sheet(self):
        now = [0.0]
        generator = self.generator((0.01, -0.02), now)
        self.scan(generator)
        before = generator.truth
        now[0] = 3.0
        self.scan(generator)
        moved = np.array([before.y_px + 0.03 * 64, before.x_px - 0.06 * 64]).T
        inside = ((moved > 3) & (moved < 252)).all(axis=1)
        found = np.stack([generator.truth.y_px, generator.truth.x_px], 1)
        assert np.hypot(*(moved[inside][:, None] - found[None]).transpose(2, 0, 1)).min(axis=1).max() < 1e-6

    def test_noise_follows_the_dose(self):
        generator = self.generator()
        short, long = (self.scan(generator, time_us=t) for t in (1.0, 16.0))
        background = 5.0
        assert long.mean() - background == pytest.approx(16 * (short.mean() - background), rel=0.1)
        assert long.std() / long.mean() < short.std() / short.mean()

    def test_hops_follow_the_dose_and_keep_the_silicon(self):
        specimen = self.generator().specimen
        everywhere = lambda yx: np.ones(len(yx), bool)  # noqa: E731
        start = specimen.atoms()
        specimen.expose(0.0, everywhere)
        assert np.array_equal(specimen.atoms()[1], start[1])
        specimen.expose(50 * microscope.HOP_DOSE_E_PER_NM2, everywhere)
        yx, species = specimen.atoms()
        assert not np.array_equal(species, start[1])
        assert (species == "Si").sum() == (start[1] == "Si").sum()
        before, after = start[0][start[1] == "Si"], yx[species == "Si"]
        step = np.hypot(*(before[:, None] - after[None]).transpose(2, 0, 1)).min(axis=1)
        assert step.max() < 0.2, "each goes to a neighbouring site"


def test_stored_images_are_not_live():
    with swift() as dc:
        item = add_image(dc, image_with(), metadata={"hardware_source": {"hardware_source_id": "x"}})
        assert live.hardware_source_of(item) is None
        assert live.hardware_source_of(None) is None


def rss_mb() -> float:
    """Memory of this process [MB]."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="memory is read from /proc, which only Linux has"
)
def test_soak(scan, monkeypatch):
    """Many frames with many atoms: nothing grows, and the main thread's steps stay short."""
    frames = [image_with(*[(12 + 24 * i, 14 + 96 * j + k) for i in range(20) for j in range(5)], size=512)
              for k in range(3)]  # fmt: skip
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        running = live.find(item)
        memory, steps = [], []
        for index in range(60):
            scan.finish(frames[index % 3], index)
            while running.status.analysed <= index:
                start = time.thread_time()
                dc.periodic()
                steps.append(time.thread_time() - start)
                time.sleep(0.002)
            if index % 15 == 14:
                memory.append(rss_mb())
        known = computations.find(dc.document_model, item)
        assert known.table.metadata["stemdl"]["atoms"] == 400
        assert len(dc.document_model.get_display_item_for_data_item(item).graphics) == marks.MOST_MARKS
        assert len(dc.document_model.data_items) == 4
        assert running.status.dropped == 0
        assert memory[-1] - memory[0] < 30
        # The first step makes the marks; each later one moves them.
        assert np.percentile(steps, 99) < 0.1, f"{max(steps):.3f} s"
        live.stop_all()
