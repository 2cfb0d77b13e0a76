"""What is installed: the core, the plugin as a namespace package, the models, the command."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="not run from a checkout")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the sources, so that building leaves no trace in the checkout, with one model for certain."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("stemdl_core", "nionswift_plugin"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    (folder / "weights" / "example").mkdir(parents=True)
    (folder / "weights" / "example" / "model.json").write_text("{}")
    (folder / "weights" / "example" / "model.safetensors").write_bytes(b"weights")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_nothing.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            "--quiet",
            "--wheel-dir",
            str(folder),
            str(source),
        ],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("stemdl-*.whl"))


def test_wheel_holds_core_plugin_and_models(source, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "stemdl_core/__init__.py",
        "stemdl_core/cli.py",
        "stemdl_core/simulate/__init__.py",
        "stemdl_core/figures/__init__.py",
        "stemdl_core/py.typed",
    } <= names
    assert {"stemdl_weights/example/model.json", "stemdl_weights/example/model.safetensors"} <= names
    assert "nionswift_plugin/stemdl/__init__.py" in names
    sources = {str(p.relative_to(source)) for p in (source / "stemdl_core").rglob("*.py")}
    assert sources <= names


def test_plugin_shares_its_namespace(wheel):
    """Nion Swift walks all `nionswift_plugin` folders: a package file there would hide the other plugins."""
    assert "nionswift_plugin/__init__.py" not in zipfile.ZipFile(wheel).namelist()


def test_wheel_brings_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "stemdl_core",
        "stemdl_weights",
        "nionswift_plugin",
    }


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    read = {Path(n).name: archive.read(n).decode() for n in archive.namelist() if ".dist-info/" in n}
    metadata = Parser().parsestr(read["METADATA"])
    assert metadata["Name"] == "stemdl"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) >= {"swift", "test", "video", "multislice", "all"}
    assert "stemdl = stemdl_core.cli:main" in read["entry_points.txt"]
    assert "LICENSE" in {Path(n).name for n in archive.namelist()}


def test_torch_is_not_newer_than_tested(wheel):
    from packaging.requirements import Requirement

    archive = zipfile.ZipFile(wheel)
    metadata = Parser().parsestr(
        archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    )
    torch = next(r for r in map(Requirement, metadata.get_all("Requires-Dist")) if r.name == "torch")
    assert torch.specifier.contains("2.13.0")
    assert torch.specifier.contains("2.13.0+cpu")
    assert not torch.specifier.contains("2.13.1")
    assert not torch.specifier.contains("2.14.0")


def test_installed_models_are_found(wheel, tmp_path):
    """From the unpacked wheel, in a process that cannot see the checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from stemdl_core._paths import weights_folders; print(*weights_folders())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )
    assert result.stdout.strip() == str(tmp_path / "stemdl_weights")


def test_models_of_a_checkout_are_found(source):
    code = "from stemdl_core._paths import weights_folders; print(*weights_folders())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(source), "PATH": ""},
    )
    assert result.stdout.strip() == str(source / "weights")


def test_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    """The sdist carries the models and all that setup.py reads, without a manifest file."""
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)],
        cwd=copy,
        check=True,
        capture_output=True,
    )
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        # The filter is not in the first releases of Python 3.11; without it the newest ones warn.
        archive.extractall(tmp_path / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = next((tmp_path / "unpacked").iterdir())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            "--quiet",
            "--wheel-dir",
            str(tmp_path),
            str(unpacked),
        ],
        check=True,
        capture_output=True,
    )
    again = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    assert set(again.namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_editable_install_is_visible_to_swift(source, tmp_path):
    """An editable wheel is a plain path entry, not an import hook that Swift's walk does not see."""
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    code = (
        "from setuptools.build_meta import __legacy__ as build; "
        f"print(build.build_editable({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    archive = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    paths = [archive.read(n).decode().strip() for n in archive.namelist() if n.endswith(".pth")]
    assert paths == [str(copy)]
    assert not [n for n in archive.namelist() if n.endswith("_finder.py")]
