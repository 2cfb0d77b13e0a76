"""Result files: the contract's keys, strict JSON, structures that ASE reads, folders whole or absent."""

from __future__ import annotations

import csv
import json
import os
import stat

import ase.io
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemdl_core.analysis import Bonds, Defect, DefectAngle, DefectBond, Defects, FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.errors import StemdlError
from stemdl_core.frames import Frame
from stemdl_core.io import read_frame
from stemdl_core.results import file_part, write_analysis
from stemdl_core.sites import Sites
from stemdl_core.writers import result_folder, strict_json, to_atoms, write_hdf5, write_tables

FILES = {"analysis.json", "sites.csv", "defects.csv", "structure.xyz", "overlay.png"}


@pytest.fixture
def frame() -> Frame:
    return Frame(np.random.default_rng(5).normal(size=(40, 50)), PixelSize(0.02, "metadata", 0.02))


@pytest.fixture
def analysis() -> FrameAnalysis:
    """A silicon with three carbons; several numbers are not known."""
    nan = float("nan")
    sites = Sites.from_columns(
        y_px=[20.0, 20.25, 12.0, 28.0],
        x_px=[20.0, 28.5, 16.0, 16.0],
        species=["Si", "C", "C", "C"],
        score=[1.0, 0.9, 0.8, 0.7],
        sigma_pm=[3.0, nan, 5.0, 6.0],
        edge=[False, False, True, False],
    )
    defect = Defect(
        0,
        "Si-C3",
        {"Si": 1, "C": 3},
        (0, 1, 2, 3),
        (20.0, 20.0),
        bonds=(DefectBond(0, 1, 170.0, nan), DefectBond(0, 2, 171.0, 4.0)),
        angles=(DefectAngle(1, 0, 2, 119.0),),
        probability=0.8,
        alternatives=(("Si-C4", 0.2),),
        coordination={0: {3: 0.8, 4: 0.2}},
    )
    return FrameAnalysis(
        "graphene",
        "graphene",
        (40, 50),
        PixelSize(0.02, "lattice", None),
        sites,
        Bonds([0, 0], [1, 2], [170.0, 171.0], [nan, 4.0]),
        Defects((defect,)),
        {6: 3},
    )


@pytest.fixture
def nothing() -> FrameAnalysis:
    return FrameAnalysis(
        "graphene", "graphene", (40, 50), PixelSize(0.02), Sites.empty(), Bonds.empty(), Defects(), {}
    )


def strictly(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def test_analysis_json_follows_the_contract(tmp_path, analysis):
    write_tables(tmp_path, analysis)
    data = strictly((tmp_path / "analysis.json").read_text())
    assert data["schema"] == 1
    assert data["model"] == "graphene"
    assert {"shape", "pixel_size_nm", "nominal_pixel_size_nm", "pixel_size_source"} <= set(data["image"])
    assert data["image"]["shape"] == [40, 50]
    assert data["image"]["nominal_pixel_size_nm"] is None
    assert data["image"]["pixel_size_source"] == "lattice"
    assert {"id", "y_px", "x_px", "species", "score", "sigma_pm", "edge"} <= set(data["sites"][0])
    assert data["sites"][1]["sigma_pm"] is None
    assert data["sites"][2]["edge"] is True
    assert data["bonds"][0] == {"a": 0, "b": 1, "length_pm": 170.0, "sigma_pm": None}
    defect = data["defects"][0]
    assert defect["composition"] == {"Si": 1, "C": 3}
    assert defect["site_ids"] == [0, 1, 2, 3]
    assert {"a", "at", "b", "deg"} <= set(defect["angles"][0])
    assert data["rings"] == {"5": 0, "6": 3, "7": 0}


def test_tables(tmp_path, analysis):
    write_tables(tmp_path, analysis)
    with (tmp_path / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["species"] for r in rows] == ["Si", "C", "C", "C"]
    assert float(rows[1]["x_px"]) == 28.5
    assert float(rows[1]["x_nm"]) == pytest.approx(0.57)
    assert rows[1]["sigma_pm"] == ""
    with (tmp_path / "defects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["name"] == "Si-C3"
    assert rows[0]["bonds_pm"] == "170.0 171.0"
    assert rows[0]["bonds_sigma_pm"] == "nan 4.0"
    assert rows[0]["angles_sigma_deg"] == "nan"
    assert rows[0]["coordination"] == "0=3:0.800/4:0.200"


def test_structure_is_read_by_ase(tmp_path, analysis):
    write_tables(tmp_path, analysis)
    atoms = ase.io.read(tmp_path / "structure.xyz")
    assert atoms.get_chemical_symbols() == ["Si", "C", "C", "C"]
    np.testing.assert_allclose(atoms.positions[1], [5.7, 4.05, 0.0], atol=1e-8)  # x is the column
    np.testing.assert_allclose(np.diag(atoms.cell.array)[:2], [10.0, 8.0], atol=1e-8)
    assert not atoms.pbc.any()
    np.testing.assert_array_equal(atoms.arrays["id"], [0, 1, 2, 3])
    np.testing.assert_allclose(atoms.arrays["score"], analysis.sites.score)
    np.testing.assert_allclose(atoms.arrays["sigma"][[0, 2]], [0.03, 0.05])
    assert np.isnan(atoms.arrays["sigma"][1])
    assert atoms.info["material"] == "graphene"


def test_nothing_found_has_the_same_columns(tmp_path, analysis, nothing):
    for name, result in (("some", analysis), ("none", nothing)):
        (tmp_path / name).mkdir()
        write_tables(tmp_path / name, result)
    for table in ("sites.csv", "defects.csv"):
        some, none = ((tmp_path / n / table).read_text().splitlines() for n in ("some", "none"))
        assert none == some[:1]
    assert strictly((tmp_path / "none" / "analysis.json").read_text())["sites"] == []
    assert len(to_atoms(nothing)) == 0


def test_hdf5_holds_everything_and_is_an_image_again(tmp_path, analysis, frame):
    path = tmp_path / "analysis.h5"
    write_hdf5(path, analysis, frame)
    with h5py.File(path) as file:
        np.testing.assert_allclose(file["sites/y_px"][()], analysis.sites.y_px)
        assert file["sites/species"][0] == b"Si"
        np.testing.assert_allclose(file["bonds/length_pm"][()], [170.0, 171.0])
        assert strictly(file.attrs["analysis"])["defects"][0]["name"] == "Si-C3"
    again = read_frame(path)
    np.testing.assert_array_equal(again.image, frame.image)
    assert again.pixel_size.nm == pytest.approx(0.02)


@given(
    st.recursive(
        st.floats() | st.integers() | st.text() | st.none() | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_json_is_strict_whatever_comes(value):
    json.loads(strict_json(value), parse_constant=lambda constant: pytest.fail(constant))


def test_everything_is_written(tmp_path, analysis, frame):
    out = write_analysis(tmp_path / "a" / "out", analysis, frame, report=True, hdf5=True)
    assert {p.name for p in out.iterdir()} == FILES | {"analysis.h5", "defect-0-Si-C3.png"}
    assert os.listdir(tmp_path / "a") == ["out"]
    if os.name == "posix":  # results are for everyone whom the umask admits, unlike temporary folders
        (tmp_path / "plain").mkdir()
        assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_existing_folder_keeps_other_files(tmp_path, analysis, frame):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "analysis.json").write_text("old")
    write_analysis(out, analysis, frame)
    assert {p.name for p in out.iterdir()} == FILES | {"notes.txt"}
    assert (out / "notes.txt").read_text() == "mine"
    assert strictly((out / "analysis.json").read_text())["schema"] == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("existing", [False, True])
def test_nothing_is_left_after_a_failure(tmp_path, error, existing):
    out = tmp_path / "deep" / "out"
    if existing:
        out.mkdir(parents=True)
        (out / "analysis.json").write_text("old")
    with pytest.raises(error), result_folder(out) as folder:  # noqa: PT012
        (folder / "analysis.json").write_text("half")
        raise error
    if existing:
        assert [(p.name, p.read_text()) for p in out.iterdir()] == [("analysis.json", "old")]
        assert os.listdir(tmp_path / "deep") == ["out"]
    else:
        assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_of_a_file_changes_nothing(tmp_path):
    out = tmp_path / "out"
    (out / "b.txt").mkdir(parents=True)
    (out / "a.txt").write_text("old")
    with pytest.raises(StemdlError, match="is a folder"), result_folder(out) as folder:  # noqa: PT012
        (folder / "a.txt").write_text("new")
        (folder / "b.txt").write_text("new")
    assert (out / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("DV(5-8-5)", "DV_5-8-5"),
        ("Si-C3+V", "Si-C3+V"),
        ("", "unknown"),
        ("../../etc", "etc"),
        ("V_Se2", "V_Se2"),
    ],
)
def test_names_as_parts_of_file_names(name, part):
    assert file_part(name) == part
