"""Starting Nion Swift: what is said where it is missing, and what is started where it is there."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from stemdl_core import swift_launch
from stemdl_core.errors import StemdlError


@pytest.fixture
def complete(monkeypatch):
    """A machine with all of Swift and a screen."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(swift_launch.shutil, "which", lambda name, path=None: "/there/nionswift")
    monkeypatch.setenv("DISPLAY", ":5")


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("nion.swift", "nionswift"),
        ("nionui_app.nionswift", "nionswift-tool"),
        ("nion.instrumentation", "nionswift-instrumentation"),
        ("nion.usim_device", "nionswift-usim"),
    ],
)
def test_missing_parts_are_named_with_the_way_to_install_them(complete, monkeypatch, module, package):
    def find(name):
        if name == module:
            raise ModuleNotFoundError(name)
        return object()

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(
        StemdlError, match=rf'{package} is missing. Install it with: pip install "stemdl\[swift\]"'
    ):
        swift_launch.main()


def test_missing_launcher(complete, monkeypatch):
    monkeypatch.setattr(swift_launch.shutil, "which", lambda name, path=None: None)
    assert "'nionswift'" in swift_launch.missing()


@pytest.mark.skipif(swift_launch.sys.platform != "linux", reason="only Linux needs DISPLAY")
def test_missing_screen(complete, monkeypatch):
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "DISPLAY" in swift_launch.missing()


def test_swift_is_started_with_the_microscope_and_finds_this_installation(complete, monkeypatch):
    started = {}

    def run(command, *, env, check):
        started.update(command=command, path=env["PYTHONPATH"])
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    assert swift_launch.missing() is None
    assert swift_launch.main(["--flag"]) == 3
    assert started["command"] == ["/there/nionswift", "--app", "nionswift_plugin.stemdl.app", "--flag"]
    root = Path(started["path"].split(swift_launch.os.pathsep)[0])
    assert (root / "nionswift_plugin" / "stemdl" / "app" / "main.py").is_file()
