"""The plugin in the real program on a virtual screen. Pictures are kept to be looked at, not compared."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("Xvfb", "openbox", "xdotool", "import")
#: Swift on a busy machine takes a minute to start.
PATIENCE_S = 300

pytestmark = [pytest.mark.screen, pytest.mark.slow]


@pytest.fixture
def screen() -> Iterator[str]:
    """A virtual screen with a window manager; its name for DISPLAY."""
    pytest.importorskip(
        "nionui_app.nionswift", reason="Nion Swift's launcher (nionswift-tool) is not installed"
    )
    if launcher() is None:
        pytest.skip("the program 'nionswift' (package nionswift-tool) is not installed")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"the program {program!r} is not installed")
    with contextlib.ExitStack() as stack:
        read, write = os.pipe()
        xvfb = subprocess.Popen(
            ["Xvfb", "-displayfd", str(write), "-screen", "0", "1600x1000x24"],
            pass_fds=[write],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(end, xvfb)
        os.close(write)
        with os.fdopen(read) as answer:
            display = f":{answer.readline().strip()}"
        openbox = subprocess.Popen(
            ["openbox"],
            env={**os.environ, "DISPLAY": display},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(end, openbox)
        yield display


def launcher() -> str | None:
    """Path of the ``nionswift`` program that belongs to this Python."""
    return shutil.which(
        "nionswift", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )


def end(process: subprocess.Popen) -> None:
    """End a program that this test started."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def folder_for(tmp_path: Path) -> Path:
    """Where the pictures stay: ``STEMDL_ARTEFACTS`` or pytest's temporary folder."""
    folder = Path(os.environ.get("STEMDL_ARTEFACTS", tmp_path)).resolve() / tmp_path.name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "project").mkdir(parents=True)
    (folder / "home" / "Documents").mkdir(parents=True)
    return folder


def start(folder: Path, display: str, *, script: str) -> dict[str, Any]:
    """Run a script of `screen_app` in the real program; returns its report."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    env = {
        **os.environ, "DISPLAY": display, "HOME": str(folder / "home"), "STEMDL_SCREEN": str(folder),
        "STEMDL_SCRIPT": script, "PYTHONPATH": path, "STEMDL_STAND_IN": "" if has_model() else "1",
    }  # fmt: skip
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        env.pop(name, None)
    with open(folder / "output.txt", "w+") as output:
        command = [str(launcher()), "--app", "screen_app"]
        program = subprocess.Popen(
            command, env=env, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            while program.poll() is None and time.monotonic() < deadline:
                time.sleep(0.5)
        finally:
            if program.poll() is None:
                os.killpg(program.pid, 9)
                program.wait(10)
        output.seek(0)
        assert (folder / "report.json").exists(), output.read()
    report = json.loads((folder / "report.json").read_text())
    assert "error" not in report, report["error"]
    return report


def test_one_press_in_the_real_program(screen, tmp_path):
    folder = folder_for(tmp_path)
    image, pixel_size_nm, truth = simulated()
    np.savez(folder / "image.npz", image=image, pixel_size_nm=pixel_size_nm)
    report = start(folder, screen, script="annotate")
    assert (folder / "annotated.png").stat().st_size > 20_000
    assert report["after_undo"] == [1, 0, 0]
    assert report["after_redo"][:2] == [4, 1]
    assert report["overlay_shape"][2] == 3
    # The press must not be felt. The machine may be busy: the main thread's own clock counts.
    assert report["press_s"] < 0.5
    if has_model():
        assert set(truth) <= set(report["marks"])


def test_live_on_the_simulated_microscope_in_the_real_program(screen, tmp_path):
    folder = folder_for(tmp_path)
    report = start(folder, screen, script="live")
    assert (folder / "live.png").stat().st_size > 20_000
    assert {"stemdl-panel", "scan-control-panel-stemdl_scan_device"} <= set(report["panels"])
    seen, analysed, dropped, age_s, error = report["status"]
    assert error == ""
    assert analysed >= 16
    # Each complete frame is shown, counted as dropped, or on its way: one in work, one waiting.
    assert 0 <= seen - analysed - dropped <= 2
    assert 0 < age_s < 60
    assert report["items"] == 4
    frames, tracks, error, items = report["tracking"]
    assert error == ""
    assert frames >= 12
    assert tracks >= 1 or not has_model()
    assert items == 8
    assert any("armed" in line for line in report["log"])
    assert (folder / "track.png").stat().st_size > 20_000


def has_model() -> bool:
    """Whether there is a trained model to run."""
    return (ROOT / "weights" / "graphene" / "model.safetensors").exists()


def simulated() -> tuple[np.ndarray, float, list[str]]:
    """A simulated image of graphene with two silicon atoms, its pixel size [nm], and the names of both."""
    from stemdl_core.simulate import dataset, degrade, structures

    rng = np.random.default_rng(3)
    specimen = structures.graphene(fov_nm=4.0, rotation_deg=11.0)
    specimen = structures.add_defect(specimen, "Si-C3", (1.2, 1.3), rng=rng)
    specimen = structures.add_defect(specimen, "Si-C4", (2.8, 2.6), rng=rng)
    conditions = dataset.Conditions(pixel_nm=4.0 / 512, detector=degrade.Detector(dose_e_per_atom=600.0))
    simulated = dataset.simulate_frame(specimen, conditions, rng)
    return simulated.frame.image, conditions.pixel_nm, [d.name for d in simulated.defects]
