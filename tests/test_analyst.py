"""The analysis in a process of its own: the same result, the same errors, and no process left behind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from stemdl_core import analyze_frame, load_model
from stemdl_core.analyst import Analyst, AnalystError, interpreter
from stemdl_core.calibration import PixelSize
from stemdl_core.errors import StemdlError
from stemdl_core.frames import Frame
from stemdl_core.simulate.dataset import Conditions, simulate_frame
from stemdl_core.simulate.structures import add_defect, graphene


@pytest.fixture
def analyst() -> Iterator[Analyst]:
    other = Analyst()
    yield other
    other.close()


def test_the_result_is_that_of_this_process(analyst: Analyst, rng: np.random.Generator) -> None:
    specimen = add_defect(graphene(fov_nm=2.4, rotation_deg=11.0), "Si-C3", (1.2, 1.2), rng=rng)
    frame = simulate_frame(specimen, Conditions(pixel_nm=0.012), rng).frame
    here = analyze_frame(frame, load_model("graphene"))
    for _ in range(2):
        there = analyst.analyze(frame, model="graphene")
        assert [d.name for d in there.defects] == [d.name for d in here.defects] == ["Si-C3"]
        # Sums are in another order with another number of threads.
        assert np.allclose(there.sites.yx_px, here.sites.yx_px, atol=0.02)


def test_errors_are_those_of_the_analysis_and_the_next_frame_is_analysed(analyst: Analyst) -> None:
    noise = Frame(np.random.default_rng(0).normal(0, 1, (64, 64)).astype(np.float32), PixelSize(0.02, "argument", 0.02))
    with pytest.raises(StemdlError, match="no-such-model"):
        analyst.analyze(noise, model="no-such-model")
    with pytest.raises(StemdlError, match="Xx"):
        analyst.analyze(noise, model="graphene", dopant="Xx")
    assert len(analyst.analyze(noise, model="graphene").defects) == 0


def test_a_process_that_is_gone_is_said_to_be(analyst: Analyst) -> None:
    analyst._process.kill()
    frame = Frame(np.eye(32, dtype=np.float32), PixelSize(0.02, "argument", 0.02))
    with pytest.raises(AnalystError):
        analyst.analyze(frame, model="graphene")


def test_nothing_is_left_behind() -> None:
    assert interpreter() is not None
    other = Analyst()
    other.close()
    assert other._process.poll() is not None
