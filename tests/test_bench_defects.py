"""The bench of defects: what is counted, and that the whole program earns its numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stemdl_core.analysis import Defects
from stemdl_core.bench_defects import BACKGROUND, Scored, composition, defects, parts, score
from stemdl_core.calibration import PixelSize
from stemdl_core.cli import main
from stemdl_core.errors import StemdlError
from stemdl_core.evaluate import SiteCounts
from stemdl_core.frames import Frame
from stemdl_core.pipeline import analyze_frame
from stemdl_core.simulate import degrade
from stemdl_core.simulate.dataset import Conditions, simulate_frame
from stemdl_core.simulate.structures import add_defect, graphene
from stemdl_core.weights import load_model


@pytest.fixture(scope="module")
def trimer():
    rng = np.random.default_rng(5)
    specimen = add_defect(graphene(fov_nm=3.0, rotation_deg=12.0), "Si3C6", (1.5, 1.5), rng=rng)
    detector = degrade.Detector(dose_e_per_atom=400.0, background_e_per_px=0.3)
    return simulate_frame(specimen, Conditions(pixel_nm=0.01, detector=detector), rng)


def test_a_frame_is_scored_by_name_place_and_composition(trimer):
    model = load_model("graphene")
    result = score(model, trimer)
    assert result.counts == SiteCounts(1, 0, 0)
    assert result.composition == (1, 1)
    assert result.dose == 400.0
    # 0.0262 nm2 an atom, 1e-4 nm2 a pixel.
    assert result.background == pytest.approx(0.3 * 262 / 400, rel=0.01)
    found = analyze_frame(trimer.frame, model)
    (right,) = found.defects
    poorer = replace(right, composition={"Si": 3, "C": 5})
    assert composition(replace(found, defects=Defects((poorer,))), trimer) == (0, 1)
    assert composition(replace(found, defects=Defects()), trimer) == (0, 1)
    elsewhere = replace(right, center_px=(right.center_px[0] + 15.0, right.center_px[1]))
    assert composition(replace(found, defects=Defects((elsewhere,))), trimer) == (0, 1)


def test_a_refused_frame_has_missed_all(trimer):
    model, wrong = load_model("graphene"), PixelSize(0.02, "metadata", 0.02)
    doubled = replace(trimer, frame=Frame(trimer.frame.image, wrong))
    with pytest.raises(StemdlError):
        analyze_frame(doubled.frame, model)
    assert score(model, doubled).counts == SiteCounts(0, 0, 1)


def test_parts_are_by_background_and_dose():
    frames = [Scored(SiteCounts(1, 0, 0), dose, background)
              for dose in (50.0, 99.0, 150.0, 1000.0) for background in (0.0, BACKGROUND, 2.0)]
    sizes = {title: len(part) for title, part in parts(frames)}
    assert sizes == {"no stray background": 4, "stray background of 10-300 %": 8, "50-100 e": 6, "100-200 e": 3,
                     "200-1000 e": 3}


def test_the_table_counts_every_test_set():
    done = []
    table = defects(["graphene", "mx2"], frames=3, seed=11, progress=done.append)
    assert done == list(range(1, 16))
    assert table["frames_are"].tolist().count("disturbed") == 2
    whole = table[table["frames_are"] == "disturbed"].set_index("model")
    title = table["frames_are"].str
    split = table[title.startswith("disturbed, ") & ~title.endswith("without defects")]
    assert (split.groupby("model")["defects"].sum() == 2 * whole["defects"]).all()
    clean = table[table["frames_are"] == "undisturbed"]
    assert (clean["defects"] > 0).all()
    assert (clean["recall"] > 0.5).all()
    pristine = table[table["frames_are"] == "disturbed, without defects"]
    assert pristine["defects"].tolist() == [0]
    assert pristine["false_per_100_frames"].tolist() == [0.0]


def test_the_command_writes_the_table(tmp_path):
    out = tmp_path / "defects"
    assert main(["bench", "defects", "--model", "graphene", "--frames", "1", "--out", str(out), "--quiet"]) == 0
    assert len(pd.read_csv(out / "defects.csv")) == 8
