"""Starts the real Nion Swift with the simulated microscope: what ``stemdl swift`` does.

Nothing of Swift is imported, only started as a program of its own, so that the command can say what to
install where Swift is missing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import StemdlError

#: Swift's launcher starts Python and calls ``main`` in the module ``main`` of this package.
APP_PACKAGE = "nionswift_plugin.stemdl.app"
INSTALL = 'pip install "stemdl[swift]"'


def missing() -> str | None:
    """One line that says what to install; None where everything is there."""
    for module, package in (
        ("nion.swift", "nionswift"),
        ("nionui_app.nionswift", "nionswift-tool"),
        ("nion.instrumentation", "nionswift-instrumentation"),
        ("nion.usim_device", "nionswift-usim"),
    ):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"Nion Swift is not complete: {package} is missing. Install it with: {INSTALL}"
    if program() is None:
        return f"the program 'nionswift' (package nionswift-tool) is missing. Install it with: {INSTALL}"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no screen: set DISPLAY, or start this from a desktop"
    return None


def program() -> str | None:
    """Path of Swift's launcher, first that of this Python."""
    return shutil.which("nionswift", path=str(Path(sys.executable).parent)) or shutil.which("nionswift")


def command() -> list[str]:
    """The command line that starts Swift with the simulated microscope."""
    return [str(program()), "--app", APP_PACKAGE]


def main(argv: Sequence[str] = ()) -> int:
    """Start Swift and wait until the user ends it.

    Parameters
    ----------
    argv : sequence of str
        Passed on to Swift.

    Returns
    -------
    int
        Swift's exit code.

    Raises
    ------
    StemdlError
        One line that says what to install, where Swift or a part of it is missing.
    """
    problem = missing()
    if problem is not None:
        raise StemdlError(problem)
    # Swift starts its own Python: it has to find this installation, whether it is a wheel or a checkout.
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run([*command(), *argv], env={**os.environ, "PYTHONPATH": path}, check=False)
    return done.returncode
