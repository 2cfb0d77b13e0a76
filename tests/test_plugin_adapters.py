"""The plugin's conversions: coordinates, calibrations, tables; and what loading it costs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nion.data", reason="Nion Swift (extra 'swift') is not installed")

from nion.data import Calibration, DataAndMetadata
from swift_support import image_with, stand_in

from nionswift_plugin.stemdl import adapters, overlay
from stemdl_core.analysis import Bonds, Defect, Defects, FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.crowding import NAMED_MOST
from stemdl_core.errors import StemdlError
from stemdl_core.frames import Frame
from stemdl_core.sites import Sites

ROOT = Path(__file__).resolve().parents[1]
sizes = st.integers(16, 4096)


@given(st.tuples(sizes, sizes), st.lists(st.tuples(st.floats(-1, 5000), st.floats(-1, 5000)), max_size=20))
def test_relative_positions_round_trip(shape, positions):
    yx = np.array(positions, dtype=float).reshape(-1, 2)
    back = adapters.from_relative(adapters.to_relative(yx, shape), shape)
    assert np.allclose(back, yx, atol=1e-9, rtol=1e-12)


@given(st.tuples(sizes, sizes))
def test_relative_positions_are_edge_based(shape):
    first, last = adapters.to_relative([(0, 0), (shape[0] - 1, shape[1] - 1)], shape)
    assert first == pytest.approx(0.5 / np.array(shape))
    assert last == pytest.approx(1 - 0.5 / np.array(shape))


@pytest.mark.parametrize(
    ("units", "scale", "nm"),
    [
        ("nm", 0.02, 0.02),
        ("pm", 20.0, 0.02),
        ("A", 0.2, 0.02),
        ("\N{ANGSTROM SIGN}", 0.2, 0.02),
        ("\u00c5", 0.2, 0.02),
        ("um", 2e-5, 0.02),
        ("\u00b5m", 2e-5, 0.02),
        ("\u03bcm", 2e-5, 0.02),
        ("m", 2e-11, 0.02),
        (" nm ", -0.02, 0.02),
    ],
)
def test_units_of_length(units, scale, nm):
    size = adapters.pixel_size_of([Calibration.Calibration(0, scale, units)] * 2)
    assert size.nm == pytest.approx(nm)
    assert size.nominal_nm == size.nm
    assert size.source == "metadata"


@pytest.mark.parametrize("units", ["", "px", "pixels", "?"])
def test_unknown_units_leave_it_to_the_lattice(units):
    assert adapters.pixel_size_of([Calibration.Calibration(0, 1, units)] * 2) is None


def test_half_calibrated_and_impossible_scales_are_not_calibrated():
    assert (
        adapters.pixel_size_of([Calibration.Calibration(0, 0.1, "nm"), Calibration.Calibration(0, 1, "")])
        is None
    )
    assert adapters.pixel_size_of([Calibration.Calibration(0, float("nan"), "nm")] * 2) is None


@pytest.mark.parametrize("units", ["1/nm", "1/A", "mrad", "eV"])
def test_axes_that_are_not_lengths_are_refused(units):
    with pytest.raises(StemdlError, match="not in nm"):
        adapters.pixel_size_of([Calibration.Calibration(0, 1, units)] * 2)


def test_anisotropic_calibration_keeps_both_scales():
    size = adapters.pixel_size_of(
        [Calibration.Calibration(0, 0.02, "nm"), Calibration.Calibration(0, 30, "pm")]
    )
    assert np.allclose(size.to_nm([[1, 0], [0, 1]]), [[0.02, 0], [0, 0.03]])
    assert np.linalg.det(size.distortion) == pytest.approx(1)


@pytest.mark.parametrize(
    "descriptor", [DataAndMetadata.DataDescriptor(True, 0, 2), DataAndMetadata.DataDescriptor(False, 1, 2)]
)
def test_one_frame_of_a_movie(descriptor):
    stack = np.random.default_rng(0).random((3, 32, 48))
    xdata = DataAndMetadata.new_data_and_metadata(
        stack,
        data_descriptor=descriptor,
        dimensional_calibrations=[
            Calibration.Calibration(0, 0.2, "s"),
            *[Calibration.Calibration(0, 1, "pm")] * 2,
        ],
    )
    frame = adapters.frame_of(xdata, index=1, source="film")
    assert np.array_equal(frame.image, stack[1].astype(np.float32))
    assert (frame.index, frame.source, frame.pixel_size.nm) == (1, "film", pytest.approx(1e-3))
    assert adapters.frame_of(xdata, index=99).index == 2


def test_results_are_refused_as_images():
    xdata = DataAndMetadata.new_data_and_metadata(
        np.random.default_rng(0).random((32, 32)), metadata={"stemdl": {"schema": 1}}
    )
    with pytest.raises(StemdlError, match="already a result"):
        adapters.check_selection(xdata)


def test_partial_frames_are_known_by_their_valid_rows():
    assert adapters.is_partial({"hardware_source": {"valid_rows": 100}}, 256)
    assert not adapters.is_partial({"hardware_source": {"valid_rows": 256}}, 256)
    assert not adapters.is_partial({}, 256)


def test_table_holds_what_was_found_and_its_metadata_is_json():
    frame = Frame(image_with((20, 30), (40, 10)), PixelSize(0.02, "metadata"))
    analysis = stand_in(frame)
    table, metadata = adapters.table_of(analysis)
    assert table.shape == (8, len(adapters.COLUMNS))
    assert json.loads(json.dumps(metadata)) == metadata
    column = dict(zip(metadata["columns"], table.T))
    assert np.array_equal(column["y_px"], analysis.sites.y_px)
    assert column["y_nm"] == pytest.approx(analysis.sites.y_px * 0.02)
    assert column["defect"].tolist() == [0] * 4 + [1] * 4
    assert [metadata["species"][str(int(z))] for z in column["Z"]] == analysis.sites.species.tolist()
    assert metadata["defects"][1]["bonds"] == [[4, 5, 160.0], [4, 6, 160.0], [4, 7, 160.0]]


def test_whose_pixel_size_is_said_once():
    warnings = ["pixel size 20.00 pm taken from the graphene lattice", "half of the image is dirt"]
    entry = {"warnings": warnings, "pixel_size_source": "lattice"}
    assert adapters.other_warnings(entry) == ("half of the image is dirt",)
    assert adapters.other_warnings({**entry, "pixel_size_source": "metadata"}) == tuple(warnings)
    assert adapters.other_warnings({}) == ()


def test_defect_circle_surrounds_its_atoms():
    frame = Frame(image_with((20, 30), size=100)[:64], PixelSize(0.02, "metadata"))
    analysis = stand_in(frame)
    (top, left), (height, width) = adapters.defect_bounds(analysis.defects[0], analysis)
    assert height * 64 == pytest.approx(width * 100), "a circle in pixels, though the image is not square"
    inside = adapters.to_relative(analysis.sites.yx_px, analysis.shape)
    assert (inside > (top, left)).all()
    assert (inside < (top + height, left + width)).all()
    assert (top + height / 2, left + width / 2) == pytest.approx(
        adapters.to_relative((20, 30), analysis.shape)
    )


def test_the_mark_of_a_boundary_stays_in_the_image():
    """A circle around a line of atoms across the whole field would be larger than the field."""
    frame = Frame(image_with((20, 30), size=100), PixelSize(0.04, "metadata"))
    analysis = stand_in(frame)
    line = Sites.from_columns(y_px=np.arange(4.0, 96.0, 3.0), x_px=np.full(31, 40.0), species=np.full(31, "C"))
    defect = dataclasses.replace(analysis.defects[0], site_ids=tuple(range(31)), center_px=(49.0, 40.0))
    analysis = dataclasses.replace(analysis, sites=line)
    (top, left), (height, width) = adapters.defect_bounds(defect, analysis)
    assert 0 <= top < 0.05
    assert 0.95 < top + height <= 1.0
    assert width < 0.2
    assert left + 0.5 * width == pytest.approx(0.405)


class TestOverlay:
    """What is drawn is where the atoms are."""

    @staticmethod
    def analysis(shape, positions, pixel_nm=0.02):
        yx = np.array(positions, dtype=float).reshape(-1, 2)
        sites = Sites.from_columns(y_px=yx[:, 0], x_px=yx[:, 1], species=np.full(len(yx), "C"))
        return FrameAnalysis("m", "graphene", shape, PixelSize(pixel_nm), sites, Bonds.empty(), Defects(), {})

    @pytest.mark.parametrize("shape", [(64, 64), (256, 300), (512, 512), (1024, 700), (4096, 3000)])
    def test_discs_are_centred_on_the_atoms(self, shape):
        image = np.zeros(shape, np.float32)
        image[0, 0] = 1
        y, x = 0.7 * shape[0] + 0.25, 0.3 * shape[1] - 0.4
        picture = overlay.render(image, self.analysis(shape, [(y, x)]), overlay.Style())
        zoom = overlay.zoom_for(shape)
        assert picture.dtype == np.uint8
        assert abs(max(picture.shape) - max(shape) * zoom) < 1
        weight = picture[..., 0].astype(float)  # the blue of carbon
        weight[:40, :40] = 0  # the one bright pixel that gives the image contrast
        yy, xx = np.indices(weight.shape)
        found = (np.array([(yy * weight).sum(), (xx * weight).sum()]) / weight.sum() + 0.5) / zoom - 0.5
        assert found == pytest.approx((y, x), abs=0.1 / zoom)

    def test_order_is_blue_green_red(self):
        image = image_with(size=256)
        picture = overlay.render(image, self.analysis((256, 256), [(128, 128)]), overlay.Style())
        at = int(128.5 * 4)
        assert tuple(picture[at, at]) == pytest.approx(overlay.SPECIES_RGB["C"][::-1], abs=20)

    def test_switches_and_score(self):
        frame = Frame(image_with((30, 30)), PixelSize(0.02))
        analysis = stand_in(frame)
        nothing = overlay.render(frame.image, analysis, overlay.Style(False, False, False, False))
        assert np.array_equal(nothing, overlay.plain(frame.image))
        for style in (
            overlay.Style(True, False, False, False),
            overlay.Style(False, True, False, False),
            overlay.Style(False, False, True, False),
            overlay.Style(False, False, False, True),
        ):
            assert not np.array_equal(overlay.render(frame.image, analysis, style), nothing)
        unsure = FrameAnalysis(
            **{**analysis.__dict__, "sites": analysis.sites.replace(score=np.full(4, 0.4))}
        )
        hidden = overlay.render(frame.image, unsure, overlay.Style(True, False, False, False, min_score=0.5))
        assert np.array_equal(hidden, nothing)

    def test_marks_at_and_beyond_the_border(self):
        frame = Frame(image_with(), PixelSize(0.02))
        analysis = self.analysis((64, 64), [(-3, -3), (0, 0), (63, 63), (70, 30)])
        defect = Defect(0, "a very long name of a defect", {"C": 1}, (1,), (0.0, 0.0))
        analysis = FrameAnalysis(
            **{
                **analysis.__dict__,
                "defects": Defects((defect,)),
                "bonds": Bonds(np.array([0, 2]), np.array([1, 3]), np.full(2, 142.0), np.full(2, 1.0)),
            }
        )
        picture = overlay.render(frame.image, analysis, overlay.Style())
        assert picture.shape == (1024, 1024, 3)

    def test_too_many_defects_for_names_have_colours_and_a_legend(self):
        places = [(60.0 + 25 * (k // 6), 60.0 + 25 * (k % 6)) for k in range(NAMED_MOST + 1)]
        analysis = self.analysis((256, 256), places)
        names = ["V_Se" if k % 3 else "W_Mo" for k in range(len(places))]
        image, style = image_with(size=256), overlay.Style(False, False, True, True)

        def drawn(count):
            defects = tuple(Defect(k, names[k], {}, (k,), places[k]) for k in range(count))
            return overlay.render(image, dataclasses.replace(analysis, defects=Defects(defects)), style)

        few, many = drawn(NAMED_MOST), drawn(len(places))
        plain = overlay.plain(image)
        # The legend's corner is dark and no name stands elsewhere: only the rings do.
        assert many[5:60, 5:60].mean() < 0.6 * plain[5:60, 5:60].mean()
        assert np.array_equal(few[5:60, 5:60], plain[5:60, 5:60])
        assert (many != plain)[250:].any(axis=-1).sum() < 0.7 * (few != plain)[250:].any(axis=-1).sum()
        radius = 0.72 * adapters.bond_px(analysis) * 4
        for (y, x), name in zip(places, names):
            middle = (np.array([y, x]) + 0.5) * 4 - 0.5
            ring = many[int(round(middle[0])), int(round(middle[1] + radius))]
            assert ring == pytest.approx(overlay._KIND_RGB[0 if name == "V_Se" else 1][::-1], abs=60)

    def test_one_bright_atom_does_not_darken_the_lattice(self):
        image = np.random.default_rng(0).normal(100, 10, (256, 256)).astype(np.float32)
        image[10, 10] = 1e6
        assert 60 < overlay.background(image, 1).mean() < 200


HEAVY = ("torch", "scipy", "skimage", "pandas", "matplotlib", "ase", "networkx", "PIL.Image", "h5py")


def test_loading_the_plugin_is_light(tmp_path):
    # What Swift itself has loaded by then does not count: only what the plugin adds. CPU time, since the
    # machine may be busy, and at a second start, when the modules have been compiled. When the collector of garbage
    # goes through all that Swift has made is no matter of the plugin's.
    code = (
        "import gc, sys, time, warnings; warnings.simplefilter('ignore'); gc.disable()\n"
        "from nion.swift import Application, DocumentController, Facade, Workspace, Panel, Inspector, Undo\n"
        "from nion.ui import Declarative, Window\n"
        "before = set(sys.modules); t = time.process_time()\n"
        "import nionswift_plugin.stemdl\n"
        "ms = 1e3 * (time.process_time() - t)\n"
        f"print(ms); print(*[m for m in {HEAVY!r} if m in set(sys.modules) - before])\n"
    )
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    milliseconds, modules = [], ""
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=env
        )
        first, modules = result.stdout.split("\n")[:2]
        milliseconds.append(float(first))
        assert not modules, f"loading the plugin loads {modules}"
        if min(milliseconds) < 50:
            break
    assert min(milliseconds) < 50


def test_a_built_wheel_is_found_by_swift(tmp_path):
    pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")
    if not (ROOT / "setup.py").exists():
        pytest.skip("no setup.py to build a wheel from")
    source = tmp_path / "source"
    copy_project(source)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-build-isolation",
            "--no-deps",
            "-w",
            str(tmp_path),
            str(source),
        ],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert not (site / "nionswift_plugin" / "__init__.py").exists()
    # Swift loads plug-ins at its start: a fresh interpreter, with nothing of the checkout on its path.
    code = (
        "import logging, sys, warnings; warnings.simplefilter('ignore'); logging.disable()\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "import nionswift_plugin, nion.swift.Facade as Facade\n"
        "from nion.swift.model import PlugInManager, Symbolic\n"
        "nionswift_plugin.__path__ = [p for p in nionswift_plugin.__path__ if p.startswith(sys.argv[1])]\n"
        "Facade.initialize()\n"
        "PlugInManager.load_plug_ins(None, None, None)\n"
        "from nion.ui import Window\n"
        "print([type(e).extension_id for e in PlugInManager.extensions])\n"
        "print('stemdl.annotate' in Window.actions, 'stemdl.annotate' in Symbolic._computation_types)\n"
        "PlugInManager.unload_plug_ins()\n"
        "print('stemdl.annotate' in Window.actions)\n"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, str(site)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert result.stdout.split("\n")[:3] == ["['stemdl.atoms-and-defects']", "True True", "False"]


def copy_project(to: Path) -> None:
    """The files that a wheel is built from, so that the build leaves nothing in the checkout."""
    import shutil

    to.mkdir()
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, to)
    for name in ("nionswift_plugin", "stemdl_core", "weights"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
