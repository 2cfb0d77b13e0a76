"""Figures: every mark lies on its pixel, one bright atom blackens nothing, names cover no atom."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from stemdl_core.analysis import Bonds, Defect, DefectAngle, DefectBond, Defects, FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.crowding import NAMED_MOST
from stemdl_core.figures import canvas, defect_graph, overlay, save_figure
from stemdl_core.figures.overlay import _KIND_COLORS, _SMALL_RING_NM, _around
from stemdl_core.frames import Frame
from stemdl_core.sites import Sites


def analysis_of(
    yx, species, *, shape=(64, 80), pixel_nm=0.02, defects=(), bonds=None, mask=None
) -> FrameAnalysis:
    yx = np.reshape(np.asarray(yx, dtype=float), (-1, 2))
    return FrameAnalysis(
        "test",
        "graphene",
        shape,
        PixelSize(pixel_nm, "lattice", 1.03 * pixel_nm),
        Sites.from_columns(y_px=yx[:, 0], x_px=yx[:, 1], species=species),
        Bonds.empty() if bonds is None else bonds,
        Defects(tuple(defects)),
        {6: 0},
        mask=mask,
    )


def silicon(number: int = 0, center=(30.0, 30.0), radius: float = 8.0) -> tuple[np.ndarray, Defect]:
    """A threefold silicon: positions of Si and C, and the defect over them."""
    angles = np.radians([0, 120, 240])
    yx = np.array([center, *(np.array(center) + radius * np.stack([np.sin(angles), np.cos(angles)], 1))])
    ids = tuple(range(4 * number, 4 * number + 4))
    return yx, Defect(
        number,
        "Si-C3",
        {"Si": 1, "C": 3},
        ids,
        center,
        bonds=tuple(DefectBond(ids[0], i, 173.0, 4.0) for i in ids[1:]),
        angles=tuple(DefectAngle(ids[i], ids[0], ids[j], 120.0) for i, j in ((1, 2), (2, 3), (1, 3))),
    )


def pixels(figure) -> np.ndarray:
    """(H, W, 3) what the figure looks like."""
    figure.canvas.draw()
    assert isinstance(figure.canvas, FigureCanvasAgg)
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)


def image_box(figure) -> tuple[float, float, float, float]:
    """(left, top, width, height) of the image within the figure [px]."""
    axes = next(a for a in figure.axes if a.images)
    box = axes.get_position()
    width, height = figure.get_size_inches() * canvas.DPI
    return box.x0 * width, (1 - box.y1) * height, box.width * width, box.height * height


@pytest.mark.parametrize("shape", [(64, 80), (96, 50), (37, 37)])
def test_marks_lie_on_their_pixels(shape):
    """A single bright pixel and the dot of the site on it have the same centre, to a tenth of the pixel."""
    y, x = shape[0] // 3, shape[1] - 7
    image = np.zeros(shape, np.float32)
    image[y, x] = 1.0
    frame = Frame(image, PixelSize(0.02))
    bare = pixels(overlay(frame, analysis_of([], [], shape=shape)))
    left, top, width, height = image_box(overlay(frame, analysis_of([], [], shape=shape)))
    inside = bare[round(top) : round(top + height), round(left) : round(left + width)].mean(axis=2)
    rows, columns = np.nonzero(inside > 0.5 * inside.max())
    bright = np.array([rows.mean() + 0.5, columns.mean() + 0.5]) * [shape[0] / height, shape[1] / width] - 0.5
    np.testing.assert_allclose(bright, (y, x), atol=0.1)

    marked = pixels(overlay(frame, analysis_of([(y, x)], ["C"], shape=shape)))
    inside = marked[round(top) : round(top + height), round(left) : round(left + width)]
    coloured = (inside.max(axis=2) - inside.min(axis=2)) > 60
    rows, columns = np.nonzero(coloured)
    dot = np.array([rows.mean() + 0.5, columns.mean() + 0.5]) * [shape[0] / height, shape[1] / width] - 0.5
    np.testing.assert_allclose(dot, (y, x), atol=0.1)


def test_a_long_defect_is_outlined_along_its_atoms():
    """A boundary is a line: a ring around it would hold half of the image and leave it."""
    atoms = [(y, 64.0) for y in range(4, 126, 6)] + [(y, 20.0) for y in range(4, 126, 12)]
    base = analysis_of(atoms, ["C"] * len(atoms), shape=(128, 128))
    boundary = Defect(0, "GB(5-7)", {"C": 21}, tuple(range(21)), (64.0, 64.0))
    analysis = dataclasses.replace(base, defects=Defects((boundary,)))
    lines = _around(np.array(atoms[:21])[:, ::-1], 7.0)
    (line,) = lines
    assert np.abs(line[:, 0] - 64.0).max() == pytest.approx(7.0, abs=0.1)
    assert (line[:, 1].min(), line[:, 1].max()) == pytest.approx((4 - 7.0, 124 + 7.0), abs=0.1)
    # A hole in the middle of a ring of atoms is no second line.
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    assert len(_around(30 * np.stack([np.cos(turn), np.sin(turn)], axis=1), 7.0)) == 1
    frame = Frame(np.eye(128, dtype=np.float32), PixelSize(0.02))
    seen = []
    for analysed in (analysis, base):
        left, top, width, height = (round(v) for v in image_box(overlay(frame, analysed)))
        seen.append(pixels(overlay(frame, analysed))[top:top + height, left:left + width])
    assert seen[0].shape == seen[1].shape
    # Away from the name's line.
    rows = slice(round(0.75 * height), round(0.9 * height))
    changed = np.flatnonzero((np.abs(seen[0] - seen[1]).sum(axis=2) > 20)[rows].any(axis=0)) * 128 / width
    assert len(changed)
    assert np.abs(changed - 64.5).max() < 9.0


def test_one_bright_atom_does_not_blacken_the_others():
    """The carbons keep their grey when a silicon 25 times brighter appears."""
    yy, xx = np.mgrid[:64, :80]
    carbons = [(y, x) for y in range(8, 60, 7) for x in range(8, 76, 7)]
    image = sum(np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 8) for y, x in carbons).astype(np.float32)
    species = ["C"] * len(carbons)
    plain = analysis_of(carbons, species)
    species[40] = "Si"
    y, x = carbons[40]
    with_silicon = image + 25 * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 8).astype(np.float32)
    greys = []
    for data, analysis in ((image, plain), (with_silicon, analysis_of(carbons, species))):
        figure = overlay(Frame(data, PixelSize(0.02)), analysis)
        norm = next(a for a in figure.axes if a.images).images[0].norm
        greys.append(float(norm(data[8, 8])))
    assert greys[0] > 0.9
    assert greys[1] > 0.6  # some room above is left for the silicon


def test_every_atom_is_large_enough_to_see():
    for pixel_nm, shape in ((0.008, (128, 128)), (0.02, (800, 800)), (0.03, (64, 400))):
        frame = Frame(np.eye(*shape, dtype=np.float32), PixelSize(pixel_nm))
        _, _, width, _ = image_box(
            overlay(frame, analysis_of([(5, 5)], ["C"], shape=shape, pixel_nm=pixel_nm))
        )
        assert width / (shape[1] * pixel_nm) >= 119  # pixels per nm


def test_size_of_large_fields_is_limited():
    frame = Frame(np.eye(2048, dtype=np.float32), PixelSize(0.05))
    figure = overlay(frame, analysis_of([(5, 5)], ["C"], shape=(2048, 2048), pixel_nm=0.05))
    assert max(figure.get_size_inches()) * canvas.DPI < 4600


def test_names_stand_beside_the_image_and_apart():
    """No text lies on the image or on another name, even for many defects close together."""
    parts = [silicon(i, (12.0 + 4 * (i // 2), 20.0 + 40 * (i % 2))) for i in range(14)]
    yx = np.concatenate([p for p, _ in parts])
    analysis = analysis_of(yx, ["Si", "C", "C", "C"] * len(parts), defects=[d for _, d in parts])
    figure = overlay(Frame(np.eye(64, 80, dtype=np.float32), PixelSize(0.02)), analysis)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    left, top, width, height = image_box(figure)
    names = []
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent(renderer)
            y0, y1 = figure.bbox.height - box.y1, figure.bbox.height - box.y0
            assert box.x1 <= left + 1 or box.x0 >= left + width - 1 or y1 <= top + 1 or y0 >= top + height - 1
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.width + 1
            if text.get_text() == "Si-C3":
                names.append((box.x0 < left, y0, y1))
    assert len(names) == 14
    for side in (True, False):
        rows = sorted((y0, y1) for is_left, y0, y1 in names if is_left is side)
        assert all(above[1] <= below[0] + 1 for above, below in itertools.pairwise(rows))


def test_too_many_names_to_read_become_colours():
    """Every ring is about its defect in the colour of its kind, and each kind stands once beside the image."""
    shape = (400, 400)
    parts = [silicon(i, (30.0 + 50 * (i // 7), 30.0 + 50 * (i % 7))) for i in range(NAMED_MOST + 6)]
    defects = [dataclasses.replace(d, name="Si-C3" if i % 3 else "Si-C4", probability=0.99 if i % 3 else 0.6)
               for i, (_, d) in enumerate(parts)]
    analysis = analysis_of(np.concatenate([p for p, _ in parts]), ["Si", "C", "C", "C"] * len(parts), shape=shape,
                           defects=defects)
    figure = overlay(Frame(np.eye(*shape, dtype=np.float32), PixelSize(0.02)), analysis)
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    kinds = [t for t in texts if "Si-C" in t and "·" not in t]
    assert kinds == ["Si-C3  × 28", "Si-C4  × 14  (60 %)"]
    left, top, width, _ = image_box(figure)
    picture, zoom = pixels(figure), width / shape[1]
    ring = _SMALL_RING_NM / 0.02 * zoom
    turn = np.linspace(0, 2 * np.pi, 200)
    for defect in defects:
        y, x = (np.array(defect.center_px) + 0.5) * zoom + (top, left)
        around = picture[np.round(y + ring * np.sin(turn)).astype(int), np.round(x + ring * np.cos(turn)).astype(int)]
        # Thin lines are mixed with the black around them: the hue tells.
        own, other = (np.array(to_rgb(c)) for c in _KIND_COLORS[:2][:: 1 if defect.name == "Si-C3" else -1])
        hue = around / np.maximum(np.linalg.norm(around, axis=1, keepdims=True), 1.0)
        alike = [np.median(hue @ c / np.linalg.norm(c)) for c in (own, other)]
        assert alike[0] > max(0.98, alike[1] + 0.05)
    assert picture.shape[1] - (left + width) < 0.4 * width


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0.1, 8))
def test_spread_keeps_order_distance_and_limits(wishes, pitch):
    wishes = sorted(wishes)
    rows = canvas.spread(wishes, pitch, 0, 100)
    fits = pitch * (len(wishes) - 1) <= 100
    least = pitch if fits else 100 / (len(wishes) - 1)
    assert np.all(np.diff(rows) >= least - 1e-6)
    assert rows[0] >= -1e-6
    assert rows[-1] <= 100 + 1e-6
    if np.all(np.diff(wishes) >= pitch):
        np.testing.assert_allclose(rows, wishes, atol=1e-6)


@given(st.floats(1e-3, 1e4))
def test_scale_bar_is_round_and_fits(field):
    length = canvas.scale_bar_nm(field)
    assert field / 13 < length <= field / 5 * 1.001
    assert f"{length:.0e}"[0] in "125"


def test_empty_frame_and_mask():
    mask = np.zeros((16, 20), bool)
    mask[:8] = True
    frame = Frame(np.random.default_rng(1).normal(size=(64, 80)), PixelSize(0.02))
    with_mask = overlay(frame, analysis_of([], [], mask=mask))
    left, top, width, height = image_box(with_mask)
    colours = pixels(with_mask)
    upper, lower = (
        colours[round(top + f * height), round(left + 0.3 * width) : round(left + 0.6 * width)]
        for f in (0.25, 0.75)
    )
    assert (upper[:, 0] - upper[:, 2]).mean() > 10  # tinted
    assert abs(lower[:, 0] - lower[:, 2]).max() == 0  # grey


def test_defect_graph_states_lengths_and_angles(tmp_path):
    yx, defect = silicon()
    bonds = Bonds([0, 0, 0], [1, 2, 3], [173.0] * 3, [4.0] * 3)
    frame = Frame(np.random.default_rng(1).normal(size=(64, 80)), PixelSize(0.02))
    figure = defect_graph(
        frame, analysis_of(yx, ["Si", "C", "C", "C"], defects=[defect], bonds=bonds), defect
    )
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    assert texts.count("173") == 3
    assert texts.count("120°") == 3
    assert "Si-C3" in texts
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_are_reproducible(tmp_path):
    yx, defect = silicon()
    frame = Frame(np.random.default_rng(1).normal(size=(64, 80)), PixelSize(0.02))
    analysis = analysis_of(yx, ["Si", "C", "C", "C"], defects=[defect])
    for name in "ab":
        save_figure(overlay(frame, analysis), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_animation_and_timeline(tmp_path):
    """The animation has a frame for each frame, and its marks lie on the defects."""
    from PIL import Image

    from stemdl_core.figures import animation_frames, save_animation, timeline, track_picture
    from stemdl_core.trajectories import Tracks

    frames = [
        Frame(np.random.default_rng(i).normal(size=(48, 60)), PixelSize(0.02), i, 0.5 * i) for i in range(3)
    ]
    rows = {
        "frame": [0, 1, 2],
        "time_s": [0.0, 0.5, 1.0],
        "track_id": [1, 1, 1],
        "name": ["Si-C3", "Si-C4", "Si-C4"],
        "y_px": [12.0] * 3,
        "x_px": [40.0, 41.0, 42.0],
        "y_nm": [0.2] * 3,
        "x_nm": [0.8] * 3,
        "orientation_deg": [0.0] * 3,
        "seen_as": ["Si-C3"] * 3,
        "probability": [1.0] * 3,
        "deviation_deg": [0.0] * 3,
    }
    tracks = Tracks.from_rows(rows, frames=3)
    pictures = [track_picture(frame, tracks) for frame in frames]
    empty = track_picture(frames[0], Tracks.empty()).astype(int)
    changed = np.argwhere(np.abs(pictures[0].astype(int) - empty).max(axis=2) > 40)
    zoom = 480 / 60
    assert np.abs(changed - np.array([12.5, 40.5]) * zoom).max(axis=1).min() < 12
    save_animation(tmp_path / "a.gif", iter(pictures))
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 3
        assert picture.size == (480, 384)
    save_figure(timeline(tracks), tmp_path / "a.png")
    save_figure(timeline(Tracks.empty()), tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > (tmp_path / "b.png").stat().st_size
    assert animation_frames(5) == [0, 1, 2, 3, 4]
    assert len(animation_frames(10_000)) <= 240


def test_no_global_state_of_matplotlib():
    """Notebooks keep their figures and settings: pyplot is never imported."""
    code = "import sys, stemdl_core.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
