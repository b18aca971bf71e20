"""The house: imports point down the floors only, private names stay at home, and the command line starts fast."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {
    "shards": set(),
    "ingest": {"shards"},
    "curation": {"shards"},
    "train": {"shards"},
    "orchestration": {"shards", "ingest", "curation", "train"},
}
HEAVY = {"torch", "ray", "pyannote", "mediapipe", "deepspeed", "whisperx", "mlflow", "cv2", "av", "duckdb", "deltalake"}
MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, imported name) of every import in a module, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def trespasses(floor: str, source: str) -> list[str]:
    """What a module of `floor` imports although it may not."""
    found = []
    for module, name in imports(ast.parse(source)):
        target = module.split(".")[0]
        if target in FLOORS and target != floor and target not in FLOORS[floor]:
            found.append(f"{floor} imports {module}")
        if target in FLOORS and any(part.startswith("_") and not part.startswith("__") for part in [*module.split("."), name]):
            found.append(f"private name {module}.{name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_private_names_stay_at_home(path: Path) -> None:
    assert trespasses(path.relative_to(ROOT).parts[0], path.read_text()) == []


@pytest.mark.parametrize(
    ("floor", "source"),
    [
        ("shards", "from ingest.media import probe"),
        ("ingest", "import train.flow"),
        ("curation", "def f():\n    from orchestration import cli"),
        ("train", "from shards.weights import _fetch"),
    ],
)
def test_the_check_sees_a_trespass(floor: str, source: str) -> None:
    assert trespasses(floor, source)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_within_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450


def test_the_command_line_imports_nothing_heavy() -> None:
    program = "import sys, orchestration.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} & HEAVY == set()
