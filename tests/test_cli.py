"""The command: files of the contract, what it says, exit codes, interruption."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch

from stemdl_core.analysis import Bonds, Defect, DefectBond, Defects, FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.cli import build_parser, main
from stemdl_core.frames import Frame
from stemdl_core.io import read_frame, read_sequence
from stemdl_core.network import build_network
from stemdl_core.sites import Sites
from stemdl_core.weights import ModelCard, save_model

FILES = {"analysis.json", "sites.csv", "defects.csv", "structure.xyz", "overlay.png"}
TRACK_FILES = {"analysis.jsonl", "trajectories.csv", "events.csv", "drift.csv", "overlay.gif", "timeline.png",
               "statistics.json", "statistics.png"}
COMMANDS = ("annotate", "track", "simulate", "train", "models", "bench", "demo", "swift")


@pytest.fixture
def model(tmp_path_factory) -> Path:
    """A network that was never trained, in a folder."""
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


def fake_analysis(
    frame: Frame, model: object = None, *, dopant: str | None = None, material: str | None = None
) -> FrameAnalysis:
    """A threefold silicon that moves to the right with the frames, whatever the image shows."""
    pixel = frame.pixel_size or PixelSize(0.02, "lattice")
    x = 30.0 + 0.1 * frame.index
    sites = Sites.from_columns(
        y_px=[30.0, 30.0, 24.0, 36.0],
        x_px=[x, x + 8, x - 4, x - 4],
        species=[dopant or "Si", "C", "C", "C"],
        sigma_pm=[3.0] * 4,
        intensity=[4.0, 1, 1, 1],
    )
    bonds = tuple(DefectBond(0, i, 160.0, 4.0) for i in (1, 2, 3))
    defect = Defect(0, "Si-C3", {"Si": 1, "C": 3}, (0, 1, 2, 3), (30.0, x), bonds=bonds)
    return FrameAnalysis(
        "fake",
        "graphene",
        frame.shape,
        pixel,
        sites,
        Bonds([0, 0, 0], [1, 2, 3], [160.0] * 3, [4.0] * 3),
        Defects((defect,)),
        {6: 1},
        frame.index,
        frame.time_s,
    )


@pytest.fixture
def fake(monkeypatch) -> None:
    """Analyses at once, without a network."""
    monkeypatch.setattr("stemdl_core.pipeline.analyze_frame", fake_analysis)
    card = ModelCard("fake", ("graphene",), "unet", (2, 4), ("background", "lattice"), 0.02, 0.03)
    monkeypatch.setattr("stemdl_core.weights.load_model",
                        lambda name, *, device="cpu": SimpleNamespace(card=card, name="fake"))


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "graphene.npy"
    np.save(path, np.random.default_rng(1).normal(size=(64, 72)))
    return path


def test_annotate_writes_the_contract(tmp_path, image, fake, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["annotate", "graphene.npy", "--fov-nm", "1.44"]) == 0
    out = tmp_path / "graphene-stemdl"
    assert {p.name for p in out.iterdir()} == FILES
    data = json.loads((out / "analysis.json").read_text())
    assert data["image"]["pixel_size_nm"] == pytest.approx(0.02)
    assert data["image"]["pixel_size_source"] == "argument"
    said, error = capsys.readouterr()
    assert error == ""
    for text in ("3 C, 1 Si", "1 Si-C3", "160 160 160 pm", "20 pm as given", "graphene-stemdl"):
        assert text in said


def test_annotate_options(tmp_path, image, fake, capsys):
    out = tmp_path / "deep" / "out"
    assert (
        main(
            [
                "annotate",
                str(image),
                "--pixel-size-nm",
                "0.02",
                "--out",
                str(out),
                "--report",
                "--hdf5",
                "--quiet",
                "--dopant",
                "P",
            ]
        )
        == 0
    )
    assert {p.name for p in out.iterdir()} == FILES | {"analysis.h5", "defect-0-Si-C3.png"}
    assert json.loads((out / "analysis.json").read_text())["sites"][0]["species"] == "P"
    assert capsys.readouterr() == ("", "")


def test_annotate_twice_gives_the_same_files(tmp_path, image, fake):
    for name in "ab":
        assert main(["annotate", str(image), "--out", str(tmp_path / name), "--quiet"]) == 0
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_annotate_with_a_real_network(tmp_path, image, model, capsys):
    assert (
        main(
            ["annotate", str(image), "--fov-nm", "1.4", "--model", str(model), "--out", str(tmp_path / "out")]
        )
        == 0
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    assert "model untrained" in capsys.readouterr().out


def test_track_writes_the_contract(tmp_path, fake, capsys):
    movie = tmp_path / "movie.npy"
    np.save(movie, np.random.default_rng(1).normal(size=(12, 64, 72)).astype("f4"))
    out = tmp_path / "out"
    assert main(["track", str(movie), "--fov-nm", "1.44", "--frame-time-s", "0.5", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == TRACK_FILES
    lines = [json.loads(line) for line in (out / "analysis.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(12))
    header = (out / "trajectories.csv").read_text().splitlines()[0]
    assert header == "frame,time_s,track_id,name,y_px,x_px,y_nm,x_nm,orientation_deg"
    assert (out / "events.csv").read_text().startswith("frame,time_s,kind,track_ids,from,to,angle_deg")
    assert (out / "drift.csv").read_text().startswith("frame,y_nm,x_nm")
    assert "12" in capsys.readouterr().out


def test_track_leaves_bad_frames_out(tmp_path, fake, capsys):
    movie = np.random.default_rng(1).normal(size=(8, 64, 72)).astype("f4")
    movie[0, 3, 3] = np.nan
    movie[4] = 7.0
    np.save(tmp_path / "movie.npy", movie)
    out = tmp_path / "out"
    assert main(["track", str(tmp_path / "movie.npy"), "--fov-nm", "1.44", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "analysis.jsonl").read_text().splitlines()]
    assert [i for i, line in enumerate(lines) if "fault" in line] == [0, 4]
    assert "2 not usable" in capsys.readouterr().out


def test_track_of_nothing_but_bad_frames(tmp_path, fake, capsys):
    np.save(tmp_path / "movie.npy", np.zeros((30, 64, 72), "f4"))
    assert (
        main(["track", str(tmp_path / "movie.npy"), "--fov-nm", "1.44", "--out", str(tmp_path / "out")]) == 2
    )
    assert "constant" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["movie.npy"]


def test_track_of_a_single_image(image, capsys, tmp_path):
    assert main(["track", str(image), "--out", str(tmp_path / "out")]) == 2
    assert "stemdl annotate" in capsys.readouterr().err


def test_simulated_image_comes_with_its_truth(tmp_path, capsys):
    out = tmp_path / "sim"
    arguments = [
        "simulate",
        "--defects",
        "Si-C3,SV",
        "--fov-nm",
        "3",
        "--size-px",
        "150",
        "--seed",
        "5",
        "--out",
    ]
    assert main([*arguments, str(out)]) == 0
    frame = read_frame(out / "image.tif")
    assert frame.shape == (150, 150)
    assert frame.pixel_size.nm == pytest.approx(0.02, rel=1e-5)
    truth = json.loads((out / "truth.json").read_text())
    assert sorted(d["name"] for d in truth["defects"]) == ["SV", "Si-C3"]
    silicon = next(s for s in truth["sites"] if s["species"] == "Si")
    carbons = [
        s
        for s in truth["sites"]
        if s["species"] == "C" and min(s["y_px"], s["x_px"]) > 5 and max(s["y_px"], s["x_px"]) < 144
    ]

    def brightness(site: dict) -> float:
        y, x = round(site["y_px"]), round(site["x_px"])
        return float(frame.image[y - 1 : y + 2, x - 1 : x + 2].mean())

    assert brightness(silicon) > 1.5 * np.mean([brightness(s) for s in carbons])
    assert main([*arguments, str(tmp_path / "again"), "--quiet"]) == 0
    assert (tmp_path / "again" / "image.tif").read_bytes() == (out / "image.tif").read_bytes()


def test_simulate_draws_what_was_asked(tmp_path):
    out = tmp_path / "sim"
    assert (
        main(
            [
                "simulate",
                "--material",
                "WSe2",
                "--density",
                "0.4",
                "--nuisance",
                "--seed",
                "2",
                "--out",
                str(out),
                "--quiet",
            ]
        )
        == 0
    )
    truth = json.loads((out / "truth.json").read_text())
    assert {"W", "Se"} <= {s["species"] for s in truth["sites"]}


def test_simulated_movie_comes_with_its_truth(tmp_path, capsys):
    out = tmp_path / "sim"
    assert (
        main(
            [
                "simulate",
                "--movie",
                "switching",
                "--frames",
                "6",
                "--fov-nm",
                "2.6",
                "--size-px",
                "96",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert "6 frames" in capsys.readouterr().out
    movie = read_sequence(out / "movie.tif")
    assert len(movie) == 6
    assert movie[3].shape == (96, 96)
    assert movie[3].time_s == pytest.approx(1.5)
    assert movie.pixel_size.nm == pytest.approx(2.6 / 96, rel=1e-5)
    true = (out / "true-trajectories.csv").read_text().splitlines()
    assert true[0].startswith("frame,time_s,track_id,name,y_px,x_px,y_nm,x_nm")
    assert len(true) > 6
    assert main(["simulate", "--movie", "tango", "--out", str(tmp_path / "other")]) == 2
    assert os.listdir(tmp_path) == ["sim"]


def test_demo(tmp_path, fake, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    assert {p.name for p in (tmp_path / "demo-stemdl").iterdir()} == FILES | {"image.tif", "truth.json"}
    said = capsys.readouterr().out
    assert "demo-stemdl" in said
    assert "overlay.png" in said
    assert "Si-C3" in said
    assert tifffile.imread(tmp_path / "demo-stemdl" / "image.tif").shape == (400, 400)


def test_models_lists_cards(model, monkeypatch, capsys):
    monkeypatch.setattr("stemdl_core.commands_models.list_models", lambda: {"untrained": model})
    assert main(["models"]) == 0
    assert "graphene" in capsys.readouterr().out
    assert main(["models", str(model)]) == 0
    assert json.loads(capsys.readouterr().out)["classes"][1] == "lattice"


def test_train_a_little(tmp_path, capsys):
    """A run of one epoch on a handful of images: all files are there, and a second overwrites nothing."""
    recipe = {
        **{"name": "small", "materials": ["graphene"], "filters": [4, 4, 8], "dopant": "Si", "crop_px": 64},
        **{"classes": ["background", "lattice", "dopant", "vacancy", "masked"]},
        **{"n_train": 8, "n_validation": 4, "epochs": 1, "batch": 8},
    }
    (tmp_path / "small.json").write_text(json.dumps(recipe))
    out = tmp_path / "model"
    arguments = [
        "train",
        str(tmp_path / "small.json"),
        "--workers",
        "1",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    assert {"model.json", "model.safetensors", "log.json", "curves.png"} <= {p.name for p in out.iterdir()}
    capsys.readouterr()
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"stemdl {command}" in said.split("example:")[1]


def test_help_names_every_command_and_version(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("stemdl ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_carried_out_somewhere(command):
    from stemdl_core.cli import _HOMES

    assert callable(getattr(importlib.import_module(f"stemdl_core.{_HOMES[command]}"), command))
    assert build_parser().prog == "stemdl"


def test_interruption_leaves_nothing(tmp_path, image, fake, monkeypatch, capsys):
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stemdl_core.results.overlay", interrupt)
    assert main(["annotate", str(image), "--out", str(tmp_path / "a" / "out")]) == 130
    assert capsys.readouterr().err == "stemdl: interrupted, nothing was written\n"
    assert os.listdir(tmp_path) == ["graphene.npy"]


def test_faults_of_our_own_are_told_apart(image, fake, monkeypatch, capsys, tmp_path):
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("stemdl_core.results.overlay", fail)
    assert main(["annotate", str(image), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: surprise" in error
    assert error.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "annotate", str(image), "--out", str(tmp_path / "out")])
    assert os.listdir(tmp_path) == ["graphene.npy"]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_real_program(tmp_path, number):
    """Ctrl-C (and a polite kill) while it works: 130, one line, nothing left."""
    np.save(tmp_path / "big.npy", np.random.default_rng(1).normal(size=(3000, 3000)).astype("f4"))
    root = str(Path(__file__).resolve().parent.parent)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "stemdl_core.cli",
            "annotate",
            "big.npy",
            "--fov-nm",
            "60",
            "--model",
            "absent-or-not",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    while process.poll() is None and not [p for p in tmp_path.iterdir() if p.name.startswith(".big-stemdl")]:
        time.sleep(0.005)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    # It may have noticed the unknown model first; either way one line and no trace.
    assert process.returncode in (130, 2)
    assert error.count("\n") == 1, error
    assert os.listdir(tmp_path) == ["big.npy"]
