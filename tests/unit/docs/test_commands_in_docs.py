"""README and docs name only what exists: commands, settings, make targets, paths, modules, links, kinds."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from paths import ROOT

import uniavgen
from uniavgen.ingest.measures.registry import STEPS
from uniavgen.orchestration.cli import COMMANDS, typer_app
from uniavgen.orchestration.config import Config, load_config

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FLOORS = ("shards", "ingest", "curation", "train", "orchestration")
FOLDERS = (*FLOORS, "uniavgen", "tests", "docs")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
SHELL_LANGUAGES = ("", "sh", "bash")
SETTING = re.compile(rf"^({'|'.join(Config.model_fields)})(\.[a-z0-9_]+)+(=.*|\.\*)?$")
REPO_PATH = re.compile(rf"^({'|'.join(FOLDERS)})(/[\w.-]+)*/?$")
MODULE = re.compile(r"^uniavgen(\.\w+)+(\(.*)?$")


def fenced_blocks(page: Path, languages: tuple[str, ...]) -> list[str]:
    return [block for language, block in FENCE.findall(page.read_text()) if language in languages]


def shell_commands(page: Path) -> Iterator[list[str]]:
    """Words of every simple command in the page's shell blocks, without comments and leading assignments."""
    for block in fenced_blocks(page, SHELL_LANGUAGES):
        for line in block.replace("\\\n", " ").splitlines():
            if "$(" in line or re.search(r"[━·]", line):
                continue
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word not in ("&&", "|", "||", ";"):
                    if words or not re.match(r"^[A-Z_]+=", word):
                        words.append(word)
                elif words:
                    yield words
                    words = []


def inline_codes(page: Path) -> list[str]:
    return INLINE.findall(FENCE.sub("", page.read_text()))


@cache
def parser(command: str) -> Any:
    """The program's own parser of a command."""
    assert command in COMMANDS, f"no command {command}"
    return typer.main.get_command(typer_app(command))


def check_command(words: list[str]) -> None:
    """Parse a full `uniavgen ...` line with the program's own parser, and compose its settings."""
    name, *arguments = words[1:]
    if name in ("--help", "--version"):
        return
    parsed = parser(name).make_context(name, arguments).params
    if name == "submit":
        check_command(["uniavgen", *parsed["command"]])
    preset = f"ablate-{parsed['preset']}" if name == "ablate" else parsed["preset"] or "tiny"
    load_config(preset, None, parsed["set_"] or [])


def check_setting(key: str) -> None:
    """Raise AttributeError where the configuration has no such key; numbers are places in a list."""
    value: Any = Config()
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)


def module_names(module: str) -> set[str]:
    """What a module of the repository defines, and its submodules; empty where it is not there."""
    path = (
        ROOT.joinpath(*module.split(".")) if module == "uniavgen" else ROOT.joinpath(*module.split(".")[1:])
    )
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return set()
    names = {part.stem for part in path.iterdir()} if path.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names | (set(FLOORS) if module == "uniavgen" else set())


def check_module(code: str) -> None:
    parts = code.partition("(")[0].split(".")
    for number in range(1, len(parts)):
        known = module_names(".".join(parts[:number]))
        if not known:  # the part before is a class: its attributes are not followed
            return
        assert parts[number] in known, f"{'.'.join(parts[:number])} has no {parts[number]}"


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_settings_of_shell_blocks_are_accepted(page: Path) -> None:
    for words in shell_commands(page):
        if Path(words[0]).name == "uniavgen":
            check_command(words)
        elif words[0] == "make":
            assert set(words[1:]) <= make_targets()
        elif Path(words[0]).name == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words[1]
        elif words[1:3] == ["-m", "pytest"]:
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_backticks_exist(page: Path) -> None:
    for code in inline_codes(page):
        words = code.split()
        if words[0] == "uniavgen" and len(words) > 1 and re.match(r"^[a-z-]+$", words[1]):
            if words[1].startswith("--"):
                continue
            options = {name for parameter in parser(words[1]).params for name in parameter.opts}
            asked = {word.partition("=")[0] for word in words[2:] if word.startswith("--") and word != "--"}
            assert asked <= options, code
        elif words[0] == "make" and len(words) == 2:
            assert words[1] in make_targets(), code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_backticks_exist(page: Path) -> None:
    for code in inline_codes(page):
        code = code.removeprefix("--set ").replace(": ", "=")
        if SETTING.match(code) and not code.endswith((".py", ".yaml", ".md", ".json")):
            check_setting(code.partition("=")[0].removesuffix(".*"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_modules_in_backticks_exist(page: Path) -> None:
    for code in inline_codes(page):
        if REPO_PATH.match(code) and "/" in code:
            assert (ROOT / code).exists(), code
        elif MODULE.match(code):
            check_module(code)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, link


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=lambda page: page.name)
def test_every_page_is_linked_from_the_readme(page: Path) -> None:
    assert f"(docs/{page.name})" in (ROOT / "README.md").read_text()


def test_every_room_is_described_in_architecture() -> None:
    named = {code.rstrip("/") for code in inline_codes(ROOT / "docs" / "architecture.md")}
    folders = {path.parent for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    rooms = {str(folder.relative_to(ROOT)) for folder in folders} - set(FLOORS)
    assert rooms - named == set()


def test_every_ingest_step_is_described() -> None:
    assert {step.name for step in STEPS} - set(inline_codes(ROOT / "docs" / "ingest.md")) == set()


def error_kinds() -> set[str]:
    """Every `kind=` of an error and every constant that a failure row can carry."""
    kinds = {
        "duplicate",
        "forgotten",
        "lost",
        "worker-died",
        "vanished",
        "bad-input",
        "no-video",
        "not-a-video",
    }
    for path in (file for floor in FLOORS for file in (ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "Error" in ast.unparse(node.func):
                values = [keyword.value for keyword in node.keywords if keyword.arg == "kind"]
                kinds |= {value.value for value in values if isinstance(value, ast.Constant) and value.value}
    return kinds


def test_every_error_kind_is_explained() -> None:
    explained = set(INLINE.findall((ROOT / "docs" / "troubleshooting.md").read_text()))
    assert error_kinds() - explained == set()


def test_every_explained_kind_exists() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    listed = {kind for row in rows for kind in INLINE.findall(row)}
    source = "".join(file.read_text() for floor in FLOORS for file in (ROOT / floor).rglob("*.py"))
    assert {kind for kind in listed if f'"{kind}"' not in source} == set()


def test_every_command_is_shown_in_a_page() -> None:
    shown = {words[1] for page in PAGES for words in shell_commands(page) if words[0] == "uniavgen"}
    named = {code.split()[1] for page in PAGES for code in inline_codes(page) if code.startswith("uniavgen ")}
    assert set(COMMANDS) - shown - named - {"demo"} == set()


@pytest.mark.parametrize(
    "line",
    [
        "uniavgen ingets raw --corpus c",
        "uniavgen ingest raw --korpus c",
        "uniavgen ingest raw --corpus c --set ingest.sync.max_shift=1",
        "uniavgen ingest --corpus c",
        "uniavgen submit -- ingest raw --korpus c",
    ],
)
def test_the_command_check_finds_mistakes(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011
        check_command(shlex.split(line))


def test_the_module_check_finds_mistakes() -> None:
    check_module("uniavgen.shards.corpus.tables")
    check_module('uniavgen.Corpus("c").connect()')
    with pytest.raises(AssertionError, match="no wables"):
        check_module("uniavgen.shards.corpus.wables")


def test_citation_file_has_what_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type", "license"} <= set(citation)
    for entry in [citation, *citation["references"]]:
        assert all("name" in author or "family-names" in author for author in entry["authors"])
        assert {"title", "type"} <= set(entry)
    assert citation["version"] == uniavgen.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## {citation['version']}\n" in changes


def test_pre_commit_runs_what_make_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = " ".join(hook["entry"] for hook in hooks)
    assert [tool in entries for tool in ("ruff format", "ruff check", "make types")] == [True] * 3


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").glob("*.png")}
    assert sizes
    assert {name: size for name, size in sizes.items() if size > 300_000} == {}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_the_notebook_has_no_outputs() -> None:
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
