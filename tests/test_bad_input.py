"""Bad input: one clear line on stderr, exit code 2, nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from microscope_files import swift_properties, write_dm, write_ndata
from PIL import Image

from stemdl_core.cli import main
from stemdl_core.network import build_network
from stemdl_core.weights import ModelCard, save_model

GOOD = np.random.default_rng(3).normal(100, 10, (64, 64)).astype("f4")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A network that was never trained: bad input is found out before its opinion matters."""
    classes = ("background", "lattice", "dopant", "vacancy", "masked")
    folder = tmp_path_factory.mktemp("model") / "untrained"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build_network("unet", len(classes), (2, 4, 4))
    save_model(
        folder,
        network,
        ModelCard(
            name="untrained",
            materials=("graphene",),
            architecture="unet",
            filters=(2, 4, 4),
            classes=classes,
            pixel_size_nm=0.02,
            radius_nm=0.03,
            dopant="Si",
        ),
    )
    return folder


def npy(array: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "bad.npy", array, allow_pickle=True)
        return folder / "bad.npy"

    return make


def huge_npy(folder: Path) -> Path:
    """20000 x 20000 float64: a file with holes, that takes no space on the disk."""
    path = folder / "bad.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (20000, 20000)}
        )
        file.truncate(file.tell() + 20000 * 20000 * 8)
    return path


def huge_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "bad.h5", "w") as file:
        file.create_dataset("image", (20000, 20000), "f4", chunks=(256, 256))
    return folder / "bad.h5"


def content(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def truncated(name: str, write: Callable[[Path], object], keep: float = 0.6) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        write(path)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        return path

    return make


def _h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["image"] = GOOD


def picture(array: np.ndarray, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        Image.fromarray(array).save(folder / name)
        return folder / name

    return make


def rgb_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "bad.tif", np.zeros((32, 32, 3), "u1"), photometric="rgb")
    return folder / "bad.tif"


def with_pixel(value: float) -> np.ndarray:
    image = GOOD.copy()
    image[5, 7] = value
    return image


TEXT = b"This is not a micrograph.\n" * 40
RGB = np.zeros((32, 32, 3), "u1")

#: What is wrong, how to make it, what the message has to say.
BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty array": (npy(np.zeros((0, 0))), "empty"),
    "empty row": (npy(np.zeros((0, 64))), "empty"),
    "constant": (npy(np.full((64, 64), 7.0)), "constant"),
    "nan": (npy(with_pixel(np.nan)), "NaN"),
    "infinite": (npy(with_pixel(np.inf)), "infinite"),
    "all nan": (npy(np.full((64, 64), np.nan)), "NaN"),
    "0-d": (npy(np.array(3.0)), "0 dimensions"),
    "1-d": (npy(np.arange(4096.0)), "1 dimension "),
    "4-d": (npy(np.zeros((2, 3, 32, 32))), "4 dimensions"),
    "rgb array": (npy(RGB), "colour"),
    "rgb png": (picture(RGB, "bad.png"), "colour"),
    "rgba png": (picture(np.zeros((32, 32, 4), "u1"), "bad.png"), "colour"),
    "rgb tiff": (rgb_tiff, "colour"),
    "complex": (npy(GOOD.astype("c8")), "complex"),
    "complex dm4": (
        lambda f: write_dm(f / "bad.dm4", GOOD.astype("c8"), [(0.01, "nm")] * 2, version=4),
        "complex",
    ),
    "objects": (npy(np.array([["a", None]], dtype=object)), "bject"),
    "text array": (npy(np.array([["a", "b"]])), "no numbers"),
    "records": (npy(np.zeros((32, 32), [("a", "f4"), ("b", "f4")])), "colour|numbers"),
    "1 x 1": (npy(np.ones((1, 1))), "too small"),
    "one line": (npy(np.random.default_rng(1).random((1, 4096))), "too small"),
    "20000 x 20000": (huge_npy, "20000 x 20000"),
    "20000 x 20000 hdf5": (huge_hdf5, "20000 x 20000"),
    "sequence": (npy(np.stack([GOOD] * 3)), "3 frames.*--frame"),
    "diffraction pattern": (
        lambda f: write_dm(f / "bad.dm3", GOOD, [(0.1, "1/nm")] * 2, version=3),
        "diffraction",
    ),
    "spectrum image": (
        lambda f: write_ndata(
            f / "bad.ndata1",
            np.zeros((32, 32, 64), "f4"),
            swift_properties((32, 32, 64), (False, 2, 1), [(1.0, "nm")] * 3),
        ),
        "not an image",
    ),
    "text as npy": (content("bad.npy", TEXT), "npy"),
    "text as npz": (content("bad.npz", TEXT), "npz"),
    "text as tif": (content("bad.tif", TEXT), "tif"),
    "text as png": (content("bad.png", TEXT), "png"),
    "text as dm3": (content("bad.dm3", TEXT), "not a Digital Micrograph"),
    "text as dm4": (content("bad.dm4", TEXT), "not a Digital Micrograph"),
    "text as emd": (content("bad.emd", TEXT), "emd"),
    "text as h5": (content("bad.h5", TEXT), "h5"),
    "text as ndata": (content("bad.ndata", TEXT), "ndata"),
    "text as ndata1": (content("bad.ndata1", TEXT), "ndata1"),
    "text as nhdf": (content("bad.nhdf", TEXT), "nhdf"),
    "header of dm3 only": (content("bad.dm3", b"\x00\x00\x00\x03" + TEXT), "dm3"),
    "truncated npy": (truncated("bad.npy", lambda p: np.save(p, GOOD)), "truncated"),
    "truncated npy header": (truncated("bad.npy", lambda p: np.save(p, GOOD), 0.002), "truncated"),
    "truncated npz": (truncated("bad.npz", lambda p: np.savez(p, GOOD)), "truncated"),
    "truncated tif": (truncated("bad.tif", lambda p: tifffile.imwrite(p, GOOD)), "truncated"),
    "truncated png": (
        truncated("bad.png", lambda p: Image.fromarray(GOOD.astype("u1")).save(p)),
        "truncated",
    ),
    "truncated dm3": (
        truncated("bad.dm3", lambda p: write_dm(p, GOOD, [(1.0, "nm")] * 2, version=3)),
        "truncated",
    ),
    "truncated dm4": (
        truncated("bad.dm4", lambda p: write_dm(p, GOOD, [(1.0, "nm")] * 2, version=4)),
        "truncated",
    ),
    "truncated h5": (truncated("bad.h5", _h5), "truncated"),
    "truncated emd": (truncated("bad.emd", _h5), "truncated"),
    "truncated ndata1": (truncated("bad.ndata1", lambda p: write_ndata(p, GOOD, {})), "truncated"),
    "empty file": (content("bad.dm4", b""), "empty file"),
    "unknown extension": (content("bad.xyzzy", TEXT), "unknown kind"),
    "no extension": (content("bad", TEXT), "unknown kind"),
    "no array in npz": (
        lambda f: (np.savez(f / "bad.npz", a=np.arange(3), b=np.arange(4)), f / "bad.npz")[1],
        "no array|dimension",
    ),
    "missing file": (lambda f: f / "absent.npy", "no such file"),
    "folder": (lambda f: (f / "folder.npy").mkdir() or f / "folder.npy", "folder"),
}


def run(argv: list[str], capsys) -> tuple[int, str]:
    code = main(argv)
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


def assert_one_line(text: str) -> None:
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    assert len(text) < 500


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, tmp_path, capsys, model, monkeypatch):
    make, says = BAD_FILES[case]
    source = make(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    code, error = run(["annotate", str(source), "--model", str(model)], capsys)
    assert code == 2
    assert_one_line(error)
    assert re.search(says, error), error
    assert source.name in error
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    "case", ["1-d", "4-d", "complex", "text as dm3", "truncated npy", "missing file", "empty array"]
)
def test_bad_movies(case, tmp_path, capsys, model, monkeypatch):
    source = BAD_FILES[case][0](tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    code, error = run(["track", str(source), "--model", str(model)], capsys)
    assert code == 2
    assert_one_line(error)
    assert not list(work.iterdir())


ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "zero field of view": (["--fov-nm", "0"], "fov-nm.*positive"),
    "negative field of view": (["--fov-nm", "-3"], "fov-nm.*positive"),
    "nan field of view": (["--fov-nm", "nan"], "fov-nm.*positive"),
    "infinite field of view": (["--fov-nm", "inf"], "fov-nm.*positive"),
    "field of view in words": (["--fov-nm", "two"], "'two'"),
    "zero pixel size": (["--pixel-size-nm", "0"], "pixel-size-nm.*positive"),
    "both": (["--fov-nm", "2", "--pixel-size-nm", "0.1"], "not allowed with"),
    "impossible field of view": (["--fov-nm", "4000"], "nm|pm"),
    "tiny field of view": (["--fov-nm", "0.0004"], "nm|pm"),
    "unknown model": (["--model", "graphite"], "unknown model 'graphite'"),
    "folder without model": (["--model", "."], "model"),
    "unknown element": (["--dopant", "Xx"], "unknown element 'Xx'"),
    "unknown material": (["--material", "cheese"], "unknown material 'cheese'"),
    "unknown option": (["--colour", "red"], "--colour"),
    "unknown device": (["--device", "abacus"], "abacus"),
    "frame of an image": (["--frame", "3"], "no frame 3"),
    "negative frame": (["--frame", "-1"], "frame"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments(case, tmp_path, capsys, model, monkeypatch):
    arguments, says = ARGUMENTS[case]
    source = tmp_path / "good.npy"
    np.save(source, GOOD)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    chosen = [] if "--model" in arguments else ["--model", str(model)]
    code, error = run(["annotate", str(source), *arguments, *chosen], capsys)
    assert code == 2
    assert_one_line(error)
    assert re.search(says, error), error
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["frobnicate"],
        ["annotate"],
        ["track"],
        ["simulate", "--fov-nm", "0"],
        ["simulate", "--material", "cheese"],
        ["simulate", "--defects", "Unobtainium"],
        ["simulate", "--size-px", "100000"],
        ["simulate", "--seed", "-1"],
        ["train", "nothing"],
        ["train", "absent.json"],
        ["models", "absent"],
        ["bench"],
        ["bench", "speed", "--model", "absent"],
        ["demo", "--model", "absent"],
    ],
)
def test_bad_commands(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, error = run(argv, capsys)
    assert code == 2
    assert_one_line(error)
    assert not list(tmp_path.iterdir())


def unwritable(kind: str, folder: Path) -> Path:
    if kind == "below a file":
        (folder / "file").write_text("x")
        return folder / "file" / "out"
    if kind == "a file":
        (folder / "file").write_text("x")
        return folder / "file"
    if kind == "kernel's":
        if not Path("/proc/self").exists():
            pytest.skip("no /proc on this system")
        return Path("/proc/out/deep")
    locked = folder / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    return locked if kind == "locked" else locked / "out"


@pytest.mark.parametrize("kind", ["below a file", "a file", "kernel's", "locked", "in a locked one"])
def test_unwritable_folder(kind, tmp_path, capsys, model):
    source = tmp_path / "good.npy"
    np.save(source, GOOD)
    out = unwritable(kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, error = run(
        ["annotate", str(source), "--fov-nm", "1", "--model", str(model), "--out", str(out)], capsys
    )
    assert code == 2
    assert_one_line(error)
    assert str(out) in error
    assert sorted(tmp_path.rglob("*")) == before


def test_parents_made_on_the_way_are_removed(tmp_path, capsys, model):
    source = tmp_path / "flat.npy"
    np.save(source, GOOD)
    code, _ = run(
        ["annotate", str(source), "--model", "absent", "--out", str(tmp_path / "a" / "b" / "c")], capsys
    )
    assert code == 2
    assert not (tmp_path / "a").exists()


def test_earlier_results_stay_when_a_new_run_fails(tmp_path, capsys, model):
    source = tmp_path / "good.npy"
    np.save(source, GOOD)
    out = tmp_path / "out"
    out.mkdir()
    (out / "analysis.json").write_text("earlier")
    code, _ = run(["annotate", str(source), "--model", "absent", "--out", str(out)], capsys)
    assert code == 2
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("analysis.json", "earlier")]


@pytest.mark.parametrize("case", ["text as dm3", "truncated tif", "20000 x 20000"])
def test_the_real_program(case, tmp_path):
    """In a process of its own: nothing else reaches stderr, neither warnings nor other libraries' logs."""
    source = BAD_FILES[case][0](tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    result = subprocess.run(
        [sys.executable, "-m", "stemdl_core.cli", "annotate", str(source)],
        cwd=work,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert_one_line(result.stderr)
    assert not list(work.iterdir())
