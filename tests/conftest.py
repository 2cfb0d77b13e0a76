"""Fixtures common to all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

matplotlib.use("Agg")

# A library or models of whoever runs the tests must not change what they find.
os.environ["STEMDL_LIBRARY"] = os.environ["STEMDL_MODELS"] = str(Path(__file__).parent / "nowhere")

# How quick the machine is decides nothing about right or wrong.
settings.register_profile("stemdl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stemdl")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed: every test sees the same numbers in every run."""
    return np.random.default_rng(20171112)


@pytest.fixture
def shared_data() -> Path:
    """Folder of real images that are not part of the project; the test skips where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("STEMDL_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("real images (../shared/data or $STEMDL_SHARED_DATA) are not here")
    return folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that Nion Swift shows to the user."""
    from nion.swift.model import Notification

    lines: list[str] = []
    monkeypatch.setattr(Notification, "notify", lambda n: lines.append(n.text))
    return lines


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A scan under the test's control, which every temporary image in Nion Swift comes from."""
    from swift_support import FakeScan

    from nionswift_plugin.stemdl import live

    fake = FakeScan()
    monkeypatch.setattr(
        live, "hardware_source_of", lambda item: (fake, "a") if item and item.category == "temporary" else None
    )
    return fake
