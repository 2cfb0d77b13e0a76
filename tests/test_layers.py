"""The order of the modules: each imports only from those before it; the core knows nothing of Nion Swift."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parent.parent / "stemdl_core"


def module_name(path: Path) -> str:
    """Name below `stemdl_core`; a package's `__init__` has the package's."""
    parts = list(path.relative_to(CORE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(CORE.rglob("*.py"))}


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Absolute names of what a file imports; imports inside functions too, unless told otherwise."""
    package = ("stemdl_core", *path.relative_to(CORE).parts[:-1])
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            name = ".".join(part for part in (base, node.module or "") if part)
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)
        elif (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)) or (
            at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ):
            continue
        pending.extend(ast.iter_child_nodes(node))


def dependencies(module: str) -> set[str]:
    """Modules of the core that a module imports while it is itself being imported."""
    found = set()
    for name in imports(FILES[module], at_import_time=True):
        below = name.removeprefix("stemdl_core").removeprefix(".") if name.startswith("stemdl_core") else None
        if below and below in FILES and below != module:
            found.add(below)
    return found


#: The data flow of the design: what a stage may not import is every later one.
STAGES = (
    *(
        "errors",
        "calibration",
        "frames",
        "sites",
        "materials",
        "analysis",
        "io",
        "writers",
        "targets",
        "preprocess",
    ),
    *("simulate", "network", "weights", "infer", "refine", "peaks", "lattice", "graph", "defects", "tracking"),
    *("corrections", "library_environment", "library_match", "library_kinds", "library_classes", "library_store"),
    "library",
    *("completion", "brightness", "pipeline"),
    *("imaging_conditions", "retrain_data", "finetune", "compare_models", "retrain", "explain"),
    *("figures", "results", "cli"),
)


def reachable(module: str) -> set[str]:
    """Everything that importing a module imports from the core."""
    seen: set[str] = set()
    pending = [m for m in FILES if m == module or m.startswith(module + ".")]
    while pending:
        for name in dependencies(pending.pop()) - seen:
            seen.add(name)
            pending.append(name)
    return {name for name in seen if name != module and not name.startswith(module + ".")}


def test_no_module_imports_itself_in_a_circle():
    """Modules can be put in an order in which each imports only earlier ones."""
    left = {m: dependencies(m) - {"", m.rpartition(".")[0]} for m in FILES}
    packages = {m for m in FILES if any(n.startswith(m + ".") for n in FILES)}
    for module in left:
        left[module] = {d for d in left[module] if d in packages or d in FILES}
    while left:
        free = [m for m, needs in left.items() if not needs & (set(left) - {m})]
        assert free, f"circle among {sorted(left)}"
        for module in free:
            del left[module]


@pytest.mark.parametrize("stage", [s for s in STAGES if s in FILES])
def test_stages_import_earlier_ones_only(stage):
    later = {m for s in STAGES[STAGES.index(stage) + 1 :] for m in FILES if m == s or m.startswith(s + ".")}
    assert not reachable(stage) & later


@pytest.mark.parametrize("module", FILES)
def test_core_never_imports_swift(module):
    for name in imports(FILES[module]):
        if name == "nion" or name.startswith("nion."):
            assert name.startswith(("nion.data", "nion.utils"))
        assert not name.startswith(("nionswift_plugin", "nionui", "nion.swift"))


@pytest.mark.parametrize("module", [m for m in FILES if not m.startswith("figures")])
def test_only_figures_import_matplotlib(module):
    assert not [name for name in imports(FILES[module]) if name.split(".")[0] == "matplotlib"]


@pytest.mark.parametrize("module", FILES)
def test_no_module_uses_pyplot(module):
    assert not [name for name in imports(FILES[module]) if name.startswith(("matplotlib.pyplot", "pylab"))]


def test_importing_the_package_is_cheap():
    """Nothing heavy is loaded before it is needed: Swift's start-up and `stemdl --help` stay quick."""
    code = (
        "import sys, stemdl_core, stemdl_core.cli; stemdl_core.cli.build_parser(); "
        "print([m for m in ('torch', 'scipy', 'pandas', 'matplotlib', 'skimage', 'ase') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CORE.parent
    )
    assert result.stdout.strip() == "[]"


def test_public_names_stay_what_they_are_after_modules_are_loaded():
    """A module of the same name as a public function would replace it as soon as it is imported."""
    import importlib

    import stemdl_core

    for name, home in stemdl_core._HOME.items():
        module = importlib.import_module(f"stemdl_core.{home}")
        assert getattr(stemdl_core, name) is getattr(module, name)
    assert callable(stemdl_core.track)
