"""The tables of accuracy: disturbances come one at a time, numbers repeat, and files appear."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from stemdl_core import bench_accuracy
from stemdl_core.bench_accuracy import (
    ALWAYS_DRAWN,
    DISTURBANCES,
    accuracy_frames,
    columns_in_view,
    disturbed,
    laplacian_parabola,
    positions,
)
from stemdl_core.cli import main
from stemdl_core.simulate.dataset import Conditions

#: Drawn for every frame, disturbed or not.
USUAL = {"pixel_nm", "probe", "detector", "exponent", "dopant_gain", "thermal_nm", "strain", *ALWAYS_DRAWN}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_disturbance_comes_alone(name: str) -> None:
    taken = disturbed(np.random.default_rng(3), [name], pixel_nm=0.01, dose_e_per_atom=(100.0, 200.0))
    plain = Conditions()
    on = {f.name for f in fields(Conditions) if getattr(taken, f.name) != getattr(plain, f.name)}
    assert on & set(DISTURBANCES[name])
    assert on - USUAL <= set(DISTURBANCES[name])
    quiet = taken.detector.readout_e == 0 and taken.detector.background_e_per_px == 0
    assert quiet == (name != "background and readout")


def test_frames_depend_on_seed_and_number_alone() -> None:
    several = [s.frame.image for s in accuracy_frames("graphene", 2, seed=5, disturbance="none")]
    again = [s.frame.image for s in accuracy_frames("graphene", 1, seed=5, disturbance="none")]
    np.testing.assert_array_equal(several[0], again[0])
    assert several[0].shape != several[1].shape or (several[0] != several[1]).any()


def test_laplacian_finds_the_summit_of_a_lone_column() -> None:
    yx, shape = columns_in_view("isolated", pixel_nm=0.02)
    rows, columns = np.indices(shape)
    image = sum(np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 2.25**2)) for y, x in yx)
    found = laplacian_parabola(image, np.rint(yx) + 1, pixel_nm=0.02)
    assert np.abs(found - yx).max() < 0.1


def test_positions_meet_their_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_accuracy, "POSITION_DOSES", (100.0,))
    monkeypatch.setattr(bench_accuracy, "POSITION_PIXELS_NM", (0.02,))
    table = positions("graphene", frames=3)
    assert list(table["arrangement"]) == ["isolated", "lattice"]
    assert table["within_bars"].all()
    assert (table["rms/bound"] < table["LoG+parabola/bound"]).all()
    lattice = table[table["arrangement"] == "lattice"].iloc[0]
    assert lattice["rms/bound"] < lattice["network/bound"]


@pytest.mark.slow
def test_command_writes_tables_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_accuracy, "DOSES", ((100.0, 200.0), (200.0, 500.0)))
    monkeypatch.setattr(bench_accuracy, "PIXELS_NM", ((0.012, 0.018),))
    monkeypatch.setattr(bench_accuracy, "DISTURBANCES", {"drift": DISTURBANCES["drift"]})
    monkeypatch.setattr(bench_accuracy, "POSITION_DOSES", (100.0,))
    monkeypatch.setattr(bench_accuracy, "POSITION_PIXELS_NM", (0.02,))
    out = tmp_path / "accuracy"
    assert main(["bench", "--accuracy", "--model", "graphene", "--frames", "1", "--out", str(out), "--quiet"]) == 0
    names = {p.name for p in out.iterdir()}
    assert names == {"accuracy.md", "dose.csv", "pixel.csv", "nuisance.csv", "material.csv", "positions.csv",
                     "reliability.png", "dose.png", "positions.png"}
    assert "## positions" in (out / "accuracy.md").read_text(encoding="utf-8")


def test_a_table_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert main(["bench", "speed", "--accuracy"]) == 2
    assert "--accuracy" in capsys.readouterr().err
