"""The rules of the house, read from the source: layers, lazy imports, sizes, and what may lie where."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "platform"
PACKAGE = SOURCE / "trimtab"

# From left to right: a module imports only from groups to its left.
LAYERS = (
    ("data", "files"),
    ("config", "console", "host", "proxy"),
    ("cluster", "lease", "near_duplicates", "schemas", "safety", "stats", "stores"),
    ("artifacts",),
    ("registry",),
    ("models", "chat", "sources"),
    ("engine",),
    ("judging", "html"),
    ("synthesis", "training", "evaluation", "policy"),
    ("serving",),
    ("pipeline",),
    ("cli",),
)
LEVEL = {name: number for number, group in enumerate(LAYERS) for name in group}
HEAVY = ("torch", "vllm", "trl", "transformers", "deepspeed", "ray")
LAZY = (*HEAVY, "scipy", "openai", "peft", "statsmodels", "sklearn", "datasets", "matplotlib", "upath", "fsspec",
        "lm_eval", "inspect_ai")  # fmt: skip
# Modules that only exist inside a worker, behind a lazy import of their own package, or loaded by a library itself.
LATE_MODULES = {"training/policy.py", "training/trainer.py", "training/callbacks.py", "training/pairwise_trainer.py",
                "evaluation/inspect_task.py", "engine/nucleus.py", "serving/replica.py"}  # fmt: skip
TOP = {"platform", "jobs", "serve", "tests", "cluster.yaml", "pyproject.toml", "README.md", "Makefile", "LICENSE",
       "CHANGELOG.md"}  # fmt: skip
WRITTEN_BY_RUNS = {"build", "dist", "runs"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def _part(path: Path) -> str:
    """The layer's name of a file: its module, or the package that it is in."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of all modules that are imported anywhere, ``from x import y`` as x.y."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _top_level(tree: ast.Module) -> Iterator[str]:
    """Imports that run when the module is loaded: none of those inside functions or ``if TYPE_CHECKING``."""
    for node in tree.body:
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not guarded and not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield from _imports(node)


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _own_imports(path: Path) -> set[str]:
    """The layers' names that a file imports from."""
    found = {name.split(".")[1] for name in _imports(_parse(path)) if name.startswith("trimtab.")}
    return {name for name in found if not name.startswith("__")}


def test_every_module_has_a_layer() -> None:
    assert {_part(path) for path in MODULES} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", [path for path in MODULES if _part(path) != "__init__"], ids=_name)
def test_imports_point_to_the_left(path: Path) -> None:
    own = _part(path)
    wrong = [name for name in _own_imports(path) if name != own and LEVEL[name] >= LEVEL[own]]
    assert wrong == [], f"{own} (layer {LEVEL[own]}) may not import {', '.join(wrong)}"


def test_package_root_imports_nothing_of_its_own() -> None:
    assert _own_imports(PACKAGE / "__init__.py") == set()


def test_policy_knows_no_ray() -> None:
    for path in (PACKAGE / "policy").glob("*.py"):
        assert not [name for name in _imports(_parse(path)) if name.split(".")[0] == "ray"]


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_heavy_libraries_are_imported_inside_functions(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix() in LATE_MODULES:
        return
    assert [name for name in _top_level(_parse(path)) if name.split(".")[0] in LAZY] == []


def test_entry_points_import_the_package_alone() -> None:
    allowed = {"jobs": {"cli"}, "serve": {"serving"}}
    for folder, layers in allowed.items():
        for path in (ROOT / folder).glob("*.py"):
            assert _own_imports(path) <= layers, path.name
    assert len((ROOT / "serve" / "app.py").read_text(encoding="utf-8").splitlines()) <= 30


def _python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)


def test_command_line_loads_no_heavy_library() -> None:
    modules = ["trimtab.cli", "trimtab.training.run", "trimtab.synthesis.run", "trimtab.serving", "trimtab.engine"]
    loaded = _python(f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})").stdout
    assert set(loaded.split()) & set(HEAVY) == set()
    light = _python("import sys, trimtab.cli; print(*sys.modules)").stdout.split()
    assert {name for name in light if name.startswith("trimtab")} == {"trimtab", "trimtab.cli", "trimtab.cli.keys"}


def test_help_answers_at_once() -> None:
    times = []
    for _ in range(3):  # the best of three: other programs may hold the cores
        started = time.monotonic()
        assert "synthesize" in _python("from trimtab.cli import main; main(['--help'])").stdout
        times.append(time.monotonic() - started)
    assert min(times) < 2


def test_source_root_is_no_package() -> None:
    assert not (SOURCE / "__init__.py").exists()
    assert {path.name for path in SOURCE.iterdir() if path.is_dir() and path.suffix != ".egg-info"} <= {
        "trimtab", "images", "__pycache__",
    }  # fmt: skip


def test_top_level_holds_only_what_the_tree_names() -> None:
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    assert found - WRITTEN_BY_RUNS <= TOP
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert all(f"/{name}/" in ignored for name in WRITTEN_BY_RUNS)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "jobs").glob("*.py")), ROOT / "serve" / "app.py"], ids=lambda path: path.name
)
def test_files_and_functions_are_small_and_described(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = _parse(path)
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(tree), "a module says what it owns"
    for function in _functions(tree):
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        assert length <= 60, f"{function.name} has {length} lines"


def _texts() -> Iterator[Path]:
    pictures = {".png", ".jpg", ".gif", ".webp", ".ico"}
    folders = (ROOT / name for name in ("platform", "jobs", "serve", "tests", ".ci", ".github"))
    for path in [*ROOT.iterdir(), *(file for folder in folders for file in folder.rglob("*"))]:
        generated = "__pycache__" in path.parts or path.suffix in pictures or path.name in (".venv.lock", ".git")
        if path.is_file() and not generated:
            yield path


def test_no_file_names_a_place_of_one_machine() -> None:
    places = re.compile("|".join(["/wor" + r"k\b", "/op" + "t/"]))
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if places.search(line)
    ]
    assert found == []
