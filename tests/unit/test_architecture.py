"""Structure of the packages: import direction, private names, folder sizes, import levels, cycles."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from paths import ROOT

FLOORS = {
    "shards": set(),
    "ingest": {"shards"},
    "curation": {"shards"},
    "train": {"shards"},
    "orchestration": {"shards", "ingest", "curation", "train"},
}
HEAVY = {
    "torch",
    "ray",
    "pyannote",
    "mediapipe",
    "deepspeed",
    "whisperx",
    "mlflow",
    "cv2",
    "av",
    "duckdb",
    "deltalake",
}
MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
MAX_MODULES_PER_FOLDER = 20
MAX_INGEST_LEVELS = 6


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, imported name) of every import in a module, wherever it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def forbidden_imports(floor: str, source: str) -> list[str]:
    """What a module of `floor` imports but may not: a higher floor, a private name, an old top-level name."""
    found = []
    for module, name in imports(ast.parse(source)):
        parts = module.split(".")
        if parts[0] in FLOORS:
            found.append(f"{module} without uniavgen")
        target = parts[1] if parts[0] == "uniavgen" and len(parts) > 1 else ""
        if target == "api" or (module == "uniavgen" and name not in {*FLOORS, "__version__"}):
            found.append(f"{module}.{name} of the Python API, which stands above all floors")
        if target in FLOORS and target != floor and target not in FLOORS[floor]:
            found.append(f"{floor} imports {module}")
        private = [part for part in [*parts, name] if part.startswith("_") and not part.startswith("__")]
        if target in FLOORS and private:
            found.append(f"private name {module}.{name}")
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def import_graph() -> dict[str, set[str]]:
    """Module -> modules of the floors that it imports, also inside functions; names without `uniavgen.`."""
    names = {module_name(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        targets = set()
        for module, name in imports(ast.parse(path.read_text())):
            own = module.removeprefix("uniavgen.")
            targets |= {f"{own}.{name}"} & names or {own} & names
        graph[module_name(path)] = targets - {module_name(path)}
    return graph


def longest_chain(graph: dict[str, set[str]]) -> dict[str, int]:
    """Module -> its import level: 1 if it imports nothing of the graph. Raises ValueError for a cycle."""
    levels: dict[str, int] = {}

    def level(name: str, trail: tuple[str, ...]) -> int:
        if name in trail:
            raise ValueError(" -> ".join([*trail[trail.index(name) :], name]))
        if name not in levels:
            below = [level(other, (*trail, name)) for other in sorted(graph[name]) if other in graph]
            levels[name] = 1 + max(below, default=0)
        return levels[name]

    for name in graph:
        level(name, ())
    return levels


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_private_names_are_not_imported(path: Path) -> None:
    assert forbidden_imports(path.relative_to(ROOT).parts[0], path.read_text()) == []


@pytest.mark.parametrize(
    ("floor", "source"),
    [
        ("shards", "from uniavgen.ingest.io.probe_client import probe_video"),
        ("ingest", "import uniavgen.train.flow_matching"),
        ("curation", "def f():\n    from uniavgen.orchestration import cli"),
        ("train", "from uniavgen.shards.weights import _fetch"),
        ("train", "from shards.weights import resolve"),
        ("orchestration", "from uniavgen.api import Corpus"),
        ("orchestration", "def f():\n    import uniavgen"),
        ("curation", "from uniavgen import Corpus"),
    ],
)
def test_the_import_check_finds_a_violation(floor: str, source: str) -> None:
    assert forbidden_imports(floor, source)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_have_at_most_450_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450


def test_no_folder_holds_more_than_20_modules() -> None:
    counts: dict[Path, int] = {}
    for path in MODULES:
        counts[path.parent] = counts.get(path.parent, 0) + (path.name != "__init__.py")
    assert {str(path): count for path, count in counts.items() if count > MAX_MODULES_PER_FOLDER} == {}


def test_no_import_cycle_between_modules() -> None:
    longest_chain(import_graph())


def test_the_cycle_check_finds_a_cycle() -> None:
    with pytest.raises(ValueError, match="b -> c -> b"):
        longest_chain({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_ingest_has_at_most_six_import_levels() -> None:
    inside = {name: targets for name, targets in import_graph().items() if name.split(".")[0] == "ingest"}
    levels = longest_chain(inside)
    assert {name: level for name, level in levels.items() if level > MAX_INGEST_LEVELS} == {}


def test_every_package_is_listed_for_installation() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in MODULES if path.name == "__init__.py"}
    assert {path.parent for path in MODULES} == folders, "a folder of modules without __init__.py"
    assert listed == {"uniavgen", *(f"uniavgen.{'.'.join(path.relative_to(ROOT).parts)}" for path in folders)}


def test_the_command_line_imports_nothing_heavy() -> None:
    program = "import sys, uniavgen.orchestration.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert {name.split(".")[0] for name in done.stdout.split()} & HEAVY == set()
