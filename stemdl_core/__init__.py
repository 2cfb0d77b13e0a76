"""stemdl core: from an atomically resolved STEM image to atoms, bonds, defects and their movements.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .analysis import Bonds, Defect, Defects, FrameAnalysis
    from .calibration import PixelSize
    from .errors import StemdlError
    from .frames import Frame, FrameSequence
    from .io import read_frame, read_sequence
    from .movies import MovieTracker
    from .pipeline import analyze_frame, analyze_sequence
    from .sites import Sites
    from .tracking import Tracker, Tracks, track
    from .weights import Model, ModelCard, list_models, load_model

_HOME = {
    "Bonds": "analysis", "Defect": "analysis", "Defects": "analysis", "FrameAnalysis": "analysis",
    "PixelSize": "calibration", "StemdlError": "errors", "Frame": "frames", "FrameSequence": "frames",
    "read_frame": "io", "read_sequence": "io", "analyze_frame": "pipeline", "analyze_sequence": "pipeline",
    "MovieTracker": "movies", "Sites": "sites", "Tracker": "tracking", "Tracks": "tracking", "track": "tracking",
    "Model": "weights", "ModelCard": "weights", "list_models": "weights", "load_model": "weights",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
