"""The first step to the self-driving microscope: rules, limits, arming; a silicon atom followed under drift."""

from __future__ import annotations

import os
import time
import zlib

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")
pytest.importorskip("nion.usim_device", reason="Nion's simulated instrument (extra 'swift') is not installed")

from swift_support import FakeScan, application, live_image, press, select, simulated_instrument, swift, wait_for

from nionswift_plugin.stemdl import (
    engine,
    live,
    microscope,
    panel,
    rules,
    scanning,
    specimens,
    steering,
)
from stemdl_core.analysis import Bonds, Defect, Defects, FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.sites import Sites

pytestmark = pytest.mark.filterwarnings("ignore")

program = application()


class Truthful:
    """A microscope whose images are "analysed" by looking up the truth."""

    def __init__(self, **options) -> None:
        rng = np.random.default_rng(11)
        specimen = specimens.Specimen(rng=rng, switching=False, size_nm=14.0, silicon=9, **options)
        self.generator = microscope.Generator(specimen, rng)
        self.truths: dict[int, microscope.Truth] = {}

    def generate_scan_data(self, instrument, parameters):
        image = self.generator.generate_scan_data(instrument, parameters)
        self.truths[zlib.crc32(np.ascontiguousarray(image, dtype=np.float32))] = self.generator.truth
        return image

    def image(self, scan: FakeScan, size: int = 64):
        p = scan.parameters
        p.size, p.pixel_size = (size, size), (size, size)
        return self.generate_scan_data(None, p)

    def analyze(self, frame, **_):
        truth = self.truths[zlib.crc32(np.ascontiguousarray(frame.image, dtype=np.float32))]
        sites = Sites.from_columns(y_px=truth.y_px, x_px=truth.x_px, species=truth.species)
        silicon = np.flatnonzero(truth.species == "Si")
        defects = tuple(
            Defect(k, "Si-C3", {"Si": 1}, (int(i),), (float(truth.y_px[i]), float(truth.x_px[i])))
            for k, i in enumerate(silicon)
        )
        return FrameAnalysis(
            "truth", "graphene", frame.shape, frame.pixel_size or PixelSize(0.03), sites, Bonds.empty(),
            Defects(defects), {}, frame=frame.index,
        )  # fmt: skip


def found(name, y, x):
    return rules.Found(name, (y, x), float(np.hypot(y, x)))


def situation(number, *defects):
    return rules.Situation(number, None, tuple(defects), None, 1e6)


class TestRule:
    def test_the_nearest_fitting_defect_is_chosen_and_kept(self):
        rule = rules.Rule("Si*")
        move = rule(situation(0, found("V_Se", 0, 0.1), found("Si-C3", 1, 1), found("Si-C4", 0.3, 0.4)))
        assert (move.action, move.yx_nm) == ("centre", (0.3, 0.4))
        # Another one nearer to the middle is not the one that was chosen.
        move = rule(situation(1, found("Si-C3", 0.05, 0.05), found("Si-C4", 0.32, 0.4)))
        assert move.yx_nm[0] == pytest.approx(0.32, abs=0.01)

    def test_a_lost_defect_is_waited_for_before_another_is_chosen(self):
        rule = rules.Rule("Si*", patience=3)
        rule(situation(0, found("Si-C3", 0, 0.3)))
        moves = [rule(situation(n, found("Si-C3", 1.5, 0))) for n in range(1, 5)]
        assert moves[:3] == [None] * 3
        assert moves[3].yx_nm == (1.5, 0)

    def test_nothing_fitting_moves_nothing(self):
        assert rules.Rule("Si*")(situation(0, found("SV", 0, 0.3))) is None
        assert rules.Rule("Si*")(situation(0)) is None

    def test_a_defect_in_the_middle_moves_nothing(self):
        assert rules.Rule("Si*", dead_nm=0.05)(situation(0, found("Si-C3", 0.03, 0.0))) is None

    def test_drift_is_followed_ahead(self):
        rule = rules.Rule("Si*")
        for n in range(60):
            move = rule(situation(n, found("Si-C3", 0.3 + 0.01 * n, 0.5)))
        assert move.yx_nm[0] == pytest.approx(0.3 + 0.01 * 60, abs=0.003)


def test_positions_in_the_scans_coordinates():
    """Both ways, with rotation, as Nion's scan device turns the offset of a sub-scan."""
    from nion.utils import Geometry

    turn = 0.7
    step = scanning.to_scan((0.2, -0.3), turn)
    reference = Geometry.FloatPoint(y=0.2, x=-0.3).rotate(turn)
    assert step == pytest.approx((reference.y, reference.x))
    assert scanning.to_image(step, turn) == pytest.approx((0.2, -0.3))
    geometry = scanning.Geometry((64, 64), 2.0, turn, (1.0, 2.0))
    assert geometry.position_nm((31.5, 31.5)) == pytest.approx((1.0, 2.0))
    assert geometry.position_nm((31.5 + 6.4, 31.5 - 9.6)) == pytest.approx(np.add((1.0, 2.0), step))


@pytest.mark.parametrize(("rotation", "frames"), [(0.0, 200), (0.5, 40)])
def test_a_silicon_atom_stays_in_the_middle_for_200_frames_under_drift(scan, monkeypatch, rotation, frames):
    now = [0.0]
    sample = Truthful(drift_nm_per_s=(0.012, -0.009), clock=lambda: now[0])
    monkeypatch.setattr(engine, "analyze", sample.analyze)
    scan.parameters.rotation_rad = rotation
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        driver = steering.Steering(live.find(item), limits=rules.Limits(range_nm=4.0, dose_e_per_nm2=1e12))
        scan.finish(sample.image(scan), 0)
        wait_for(lambda: live.find(item).status.analysed == 1, dc)
        assert scan.parameters.center_nm.as_tuple() == (0.0, 0.0), "off by default"
        driver.arm()
        off = []
        for index in range(1, frames + 1):
            now[0] += 1.0
            scan.finish(sample.image(scan), index)
            truth = sample.generator.truth
            silicon = truth.species == "Si"
            middle = np.hypot(truth.y_px[silicon] - 31.5, truth.x_px[silicon] - 31.5) * 2.0 / 64
            off.append(middle.min())
            wait_for(lambda n=index: live.find(item).status.analysed == n + 1, dc)
            wait_for(lambda: not driver._Steering__next, dc)
        moved = np.hypot(*scan.parameters.center_nm.as_tuple())
        assert moved > 0.012 * frames, "200 frames drift by more than the field of view"
        assert max(off) < 0.3
        assert np.median(off) < 0.05
        assert scan.threads == {"stemdl-steering"}
        assert driver.is_armed
        assert any("centre" in line for line in driver.log)


def test_limits_of_range_step_and_dose_disarm(scan, monkeypatch):
    sample = Truthful(drift_nm_per_s=(0.0, 0.0), clock=lambda: 0.0)
    monkeypatch.setattr(engine, "analyze", sample.analyze)
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        annotation = live.find(item)
        index = 1

        def run(decide, limits):
            nonlocal index
            driver = steering.Steering(annotation, decide, limits=limits)
            driver.arm()
            before = scan.parameters.center_nm.as_tuple()
            for _ in range(3):
                scan.finish(sample.image(scan), index)
                wait_for(lambda n=index: annotation.status.frame_index == n, dc)
                index += 1
                time.sleep(0.02)
            moved = scan.parameters.center_nm.as_tuple() != before
            last = driver.log[-1]
            armed = driver.is_armed
            driver.close()
            driver.join()
            return moved, armed, last

        far = lambda s: steering.Move("centre", (9.0, 0.0), "far")  # noqa: E731
        moved, armed, last = run(far, rules.Limits(range_nm=5.0, step_nm=20.0))
        assert (moved, armed) == (False, False)
        assert "range of 5 nm" in last
        moved, armed, last = run(far, rules.Limits(range_nm=20.0, step_nm=1.0))
        assert (moved, armed) == (False, False)
        assert "a step of 9.00 nm would exceed 1 nm" in last
        moved, armed, last = run(rules.Rule(), rules.Limits(dose_e_per_nm2=1e5))
        assert not armed
        assert "dose" in last
        moved, armed, last = run(lambda s: steering.Move("jump", (0.1, 0.0)), rules.Limits())
        assert (moved, armed) == (False, False)
        assert "unknown action 'jump'" in last
        moved, armed, last = run(lambda s: 1 / 0, rules.Limits())
        assert (moved, armed) == (False, False)
        assert "the rule failed: division by zero" in last


@pytest.mark.parametrize("action", ["zoom", "probe"])
def test_zoom_and_probe_are_done_once(scan, monkeypatch, action):
    sample = Truthful(drift_nm_per_s=(0.0, 0.0), clock=lambda: 0.0)
    monkeypatch.setattr(engine, "analyze", sample.analyze)
    with swift() as dc:
        item = live_image(dc)
        press(dc)
        driver = steering.Steering(live.find(item), rules.Rule("Si-C3", action, size_nm=0.8))
        driver.arm()
        scan.finish(sample.image(scan), 0)
        wait_for(lambda: not driver.is_armed, dc)
        truth = sample.generator.truth
        silicon = np.flatnonzero(truth.species == "Si")[0]
        place = (np.array([truth.y_px[silicon], truth.x_px[silicon]]) + 0.5) / 64
        if action == "probe":
            assert (scan.probe_position.y, scan.probe_position.x) == pytest.approx(tuple(place), abs=1e-6)
        else:
            assert scan.subscan_enabled
            region = scan.subscan_region
            assert (region.height, region.width) == pytest.approx((0.4, 0.4))
            assert (region.center.y, region.center.x) == pytest.approx(tuple(place), abs=1e-6)
        assert driver.log[-1].endswith("disarmed: done")


def test_the_panel_arms_and_disarms(scan, monkeypatch):
    sample = Truthful(drift_nm_per_s=(0.0, 0.0), clock=lambda: 0.0)
    monkeypatch.setattr(engine, "analyze", sample.analyze)
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            item = live_image(dc)
            select(dc, item)
            handler.refocus()
            assert not handler.steer.can_arm.value
            handler.live_clicked(None)
            select(dc, item)
            handler.refocus()
            assert handler.steer.can_arm.value
            assert handler.steer.armed.value is False
            handler.steer.range_nm.value = "many"
            handler.steer.armed.value = True
            assert handler.steer.armed.value is False, "range must be a number"
            handler.steer.range_nm.value = "2"
            handler.steer.armed.value = True
            driver = steering.find(item)
            assert driver.is_armed
            assert driver.limits.range_nm == 2.0
            assert handler.steer.state.value.startswith("ARMED")
            scan.finish(sample.image(scan), 0)
            wait_for(lambda: driver.dose_e_per_nm2 > 0, dc)
            handler.steer.armed.value = False
            assert not driver.is_armed
            assert handler.steer.log.value[0].endswith("disarmed: by hand")
            live.find(item).close()
            assert steering.find(item) is None
            driver.join()
        finally:
            handler.close()


@pytest.mark.slow
def test_a_silicon_atom_is_followed_through_swifts_own_scan(monkeypatch):
    """The same behind the real scan hardware source; ``STEMDL_SOAK`` follows 200 frames, otherwise 12."""
    frames = 200 if os.environ.get("STEMDL_SOAK") else 12
    sample = Truthful(drift_nm_per_s=(0.02, 0.015))
    monkeypatch.setattr(engine, "analyze", sample.analyze)
    with simulated_instrument(sample, pixel_size=(96, 96), fov_nm=2.0) as context:
        dc, scan = context.document_controller, context.scan_hardware_source
        scan.start_playing()
        try:
            wait_for(lambda: any("hardware_source" in i.metadata for i in dc.document_model.data_items), dc)
            (item,) = dc.document_model.data_items
            select(dc, item)
            press(dc)
            running = live.find(item)
            wait_for(lambda: running.status.analysed >= 1, dc)
            driver = steering.Steering(running, limits=rules.Limits(range_nm=8.0, dose_e_per_nm2=1e14))
            driver.arm()
            off = []
            while len(off) < frames:
                seen = running.status.analysed
                wait_for(lambda n=seen: running.status.analysed > n, dc)
                analysis = running.latest[1]
                centers = np.array([d.center_px for d in analysis.defects])
                off.append(np.hypot(*(centers - 47.5).T).min() * 2.0 / 96)
        finally:
            scan.abort_playing(sync_timeout=10)
        assert np.hypot(*scan.get_current_frame_parameters().center_nm.as_tuple()) > 0.0
        assert max(off[2:]) < 0.3, f"{max(off):.2f} nm"
        assert driver.is_armed, driver.log
        driver.close()
        driver.join()
        live.stop_all()
        running.join()
