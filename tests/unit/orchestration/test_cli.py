"""The command line in a subprocess: help, version, exit codes, one line for every mistake."""

import inspect
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from hostile_folder import make_hostile_folder
from typer.models import ArgumentInfo
from typer.testing import CliRunner

from uniavgen import __version__
from uniavgen.orchestration import cli
from uniavgen.shards.corpus.tables import Corpus

COMMAND = Path(sys.executable).parent / "uniavgen"
COMMANDS = (
    "demo",
    "ingest",
    "curate",
    "caption",
    "shard",
    "cache-latents",
    "report",
    "forget",
    "export-corpus",
    "plan",
    "bill",
    "train",
    "verify-resume",
    "sample",
    "evaluate",
    "export",
    "run",
    "status",
    "ablate",
    "submit",
    "settings",
    "doctor",
    "ui",
)


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(COMMAND), *(str(argument) for argument in arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_command_names() -> None:
    assert list(cli.COMMANDS) == list(COMMANDS)


def test_overview_lists_every_command_within_80_columns() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, summary in cli.COMMANDS.items():
        assert f"  {name:13}  {summary}\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert run("-h").stdout == done.stdout
    assert (run().returncode, run().stderr) == (2, done.stdout)


def test_overview_needs_less_than_300_ms() -> None:
    assert min(cpu_seconds("--help") for _ in range(3)) < 0.3


def cpu_seconds(*arguments: str) -> float:
    """CPU time of the command: unlike wall-clock time it does not depend on what else runs on the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_version_is_that_of_the_package() -> None:
    assert run("--version").stdout == f"uniavgen {__version__}\n"


@pytest.mark.parametrize("hostile", [False, True])
def test_python_m_uniavgen_is_the_command(tmp_path: Path, hostile: bool) -> None:
    folder = make_hostile_folder(tmp_path) if hostile else tmp_path
    (folder / "uniavgen.py").unlink(missing_ok=True)  # `python -m` itself would run that one
    done = subprocess.run(
        [sys.executable, "-m", "uniavgen", "settings", "train.seed", "--json"],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert (done.returncode, done.stdout) == (0, '{"train.seed": 0}\n'), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_summary_example_and_common_options(command: str) -> None:
    done = CliRunner().invoke(
        cli.typer_app(command), ["--help"], prog_name=f"uniavgen {command}", terminal_width=80
    )
    assert done.exit_code == 0
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[2] == cli.COMMANDS[command]
    assert f"Example: uniavgen {command} " in done.stdout
    for option in ("--config", "--set", "--json", "--preset", "-h, --help"):
        assert option in done.stdout


def test_misspelt_command_is_answered_with_the_nearest_one() -> None:
    done = run("ingst", "video.mp4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("Error: no such command: ingst; did you mean ingest?\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("ingest", "absent.mp4", "--corpus", "c"), 1, "absent.mp4"),
        (("ingest", "empty", "--corpus", "c"), 1, "empty"),
        (("ingest", "video.mp4", "--corpus", "taken"), 1, "not empty"),
        (("ingest", "--corpus", "c"), 2, "Missing argument"),
        (("ingest", "video.mp4", "--corpus", "c", "--step", "faces"), 2, "--retry"),
        (("ingest", "video.mp4", "--corpus", "corpus", "--retry", "--step", "watch"), 1, "transcribe"),
        (("ingest", "video.mp4", "--corpus", "corpus", "--retry", "--stage", "watch"), 1, "--step"),
        (("ingest", "video.mp4", "--corpus", "c", "--forecast", "2", "--retry"), 2, "--retry"),
        (("ingest", "video.mp4", "--corpus", "c", "--forecast", "0"), 2, "--forecast"),
        (("curate", "--corpus", "absent"), 1, "uniavgen ingest"),
        (("curate", "--corpus", "older"), 1, "version 0"),
        (("curate", "--corpus", "corpus", "--policy", "absent.yaml"), 1, "absent.yaml"),
        (("curate", "--corpus", "corpus", "--what-if", "snrr=3"), 1, "did you mean 'snr'"),
        (("curate", "--corpus", "corpus", "--what-if", "snr=3"), 1, "uniavgen ingest"),
        (("curate", "--corpus", "corpus", "--explain", "abc"), 1, "no such clip"),
        (("curate", "--corpus", "corpus", "--explain", "abc", "--sensitivity"), 2, "one of them"),
        (("caption", "--corpus", "corpus", "--set", "caption.backend=openai"), 1, "uniavgen curate"),
        (("forget", "show.mp4", "--corpus", "corpus"), 1, "no such source"),
        (("forget", "--corpus", "corpus"), 2, "--speaker"),
        (("forget", "--speaker", "x", "--corpus", "corpus"), 1, "no such speaker"),
        (("shard", "--corpus", "corpus"), 1, "uniavgen curate"),
        (("report", "--corpus", "absent"), 1, "uniavgen ingest"),
        (("train", "audio", "--preset", "tiny", "--corpus", "corpus", "--run", "r"), 1, "uniavgen shard"),
        (
            ("train", "joint", "--preset", "tiny", "--corpus", "corpus", "--run", "r"),
            1,
            "uniavgen train audio",
        ),
        (
            ("train", "warmup", "--preset", "tiny", "--corpus", "corpus", "--run", "r"),
            2,
            "audio, joint, multitask",
        ),
        (("sample", "--corpus", "corpus", "--run", "r", "--task", "sing"), 2, "dubbing"),
        (("sample", "--corpus", "corpus", "--run", "r"), 1, "uniavgen train"),
        (("curate", "--corpus", "corpus", "--set", "curate.policie=x"), 2, "did you mean curate.policy"),
        (("doctor", "--preset", "huge"), 2, "laptop, paper, talk, tiny"),
        (("ui",), 1, "uniavgen demo"),
        (("train", "all", "--corpus", "corpus", "--run", "r"), 2, "tiny (minutes on two CPU cores)"),
        (("forget", "show.mp4", "--corpus", "corpus", "--dry-run"), 1, "no such source"),
        (("plan", "--mfu", "0"), 2, "a share of the peak"),
        (("shard", "--corpus", "corpus", "--verify", "--to", "there"), 2, "--to copies"),
        (
            (
                "train",
                "audio",
                "--preset",
                "tiny",
                "--corpus",
                "corpus",
                "--run",
                "r",
                "--set",
                "train.data.shards=nostore://b",
            ),
            1,
            "unknown kind of store",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_mistake_is_one_line_and_leaves_no_file(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "video.mp4").write_bytes(b"not opened")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    Corpus.create(tmp_path / "corpus")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "corpus.json").write_text(json.dumps({"corpus_version": 0}))
    before = set(tmp_path.rglob("*"))
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    new = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before}
    assert {name for name in new if not name.startswith("mlflow")} == set()


HEAVY = (
    *("torch", "ray", "mlflow", "deepspeed", "transformers", "pyannote", "whisperx", "mediapipe", "cv2"),
    *("duckdb", "deltalake", "pyarrow", "pandas", "av", "scipy", "diffusers"),
)
TYPOS = {
    ("trian", "all"): "did you mean train?",
    ("train", "all", "--corpsu", "c"): "--corpus",
    ("train", "jiont", "--corpus", "c", "--run", "r", "--preset", "tiny"): "did you mean joint?",
    ("train", "all", "--corpus", "c", "--run", "r", "--preset", "tinny"): "did you mean tiny?",
    ("train", "all", "--corpus", "c", "--run", "r", "--preset", "tiny", "--set", "train.sed=1"): "train.seed",
    ("sample", "--corpus", "c", "--run", "r", "--task", "dubing"): "did you mean dubbing?",
    ("curate", "--corpus", "c", "--policy", "defualt"): "did you mean default?",
    ("ingest", "v.mp4", "--corpus", "c", "--retry", "--step", "transcrib"): "did you mean transcribe?",
    (
        "ingest",
        "v.mp4",
        "--corpus",
        "c",
        "--set",
        "ingest.transcription.modell=x",
    ): "ingest.transcription.model",
    ("plan", "--gpu", "h10"): "did you mean h100?",
    ("settings", "train.deepsped"): "train.deepspeed",
    ("ablate", "--run", "r", "--preset", "ful"): "did you mean full?",
    ("submit", "--", "ingset", "v.mp4"): "did you mean ingest?",
    ("run", "plan.yaml", "--only", "trian"): "did you mean train?",
    ("run", "plan.yaml", "--preset", "laptpo"): "did you mean laptop?",
    ("run", "wrong.yaml"): "did you mean steps.curate?",
}
ANSWER = """
import contextlib, io, json, sys
from uniavgen.orchestration.cli import main

typos, heavy = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))
for words in typos:
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, errors.getvalue(), sorted(heavy & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, list[str]]]:
    """Exit code, text and heavy modules of every typo, all from one process."""
    folder = tmp_path_factory.mktemp("typos")
    Corpus.create(folder / "c")
    (folder / "v.mp4").write_bytes(b"not opened")
    (folder / "plan.yaml").write_text("sources: [v.mp4]\n")
    (folder / "wrong.yaml").write_text("sources: [v.mp4]\nsteps: [ingest, cruate]\n")
    arguments = [json.dumps(list(TYPOS)), json.dumps(HEAVY)]
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, *arguments], capture_output=True, text=True, cwd=folder, timeout=120
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(TYPOS), done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["c", "plan.yaml", "v.mp4", "wrong.yaml"]
    return {typo: tuple(line) for typo, line in zip(TYPOS, lines, strict=True)}


@pytest.mark.parametrize("typo", TYPOS, ids=" ".join)
def test_typo_is_answered_with_the_nearest_name_before_heavy_imports(
    typo: tuple[str, ...], answers: dict[tuple[str, ...], tuple[int, str, list[str]]]
) -> None:
    code, text, heavy = answers[typo]
    assert code in (1, 2)
    assert TYPOS[typo] in text
    assert heavy == []


def path_options() -> list[tuple[str, str, list[str]]]:
    """Command, path option, and words that give every other required option."""
    found = []
    for command in COMMANDS:
        function = cli.typer_app(command).registered_commands[0].callback
        assert function is not None
        parameters = inspect.signature(function, eval_str=True).parameters
        words, paths = {}, []
        for name, parameter in parameters.items():
            kind, about = get_args(parameter.annotation)
            option = (*(getattr(about, "param_decls", None) or ()), f"--{name}")[0]
            words[name] = [] if isinstance(about, ArgumentInfo) else [option]
            required = parameter.default is inspect.Parameter.empty
            if Path in (kind, *get_args(kind)):
                paths.append(name)
            elif not required:
                del words[name]
                continue
            words[name].append("x")
        for path in paths:
            others = [
                word
                for name, given in words.items()
                if name != path and parameters[name].default is inspect.Parameter.empty
                for word in given
            ]
            found.append((command, " ".join(words[path][:-1]), others))
    return found


def test_every_command_with_a_folder_is_among_the_path_options() -> None:
    options = {(command, option) for command, option, _ in path_options()}
    assert options >= {
        ("ingest", "--corpus"),
        ("train", "--run"),
        ("run", ""),
        ("export", "--out"),
        ("ui", "--folder"),
    }
    assert {command for command, option in options if option == "--config"} == set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "option", "others"), path_options(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_path_option_refuses_urls_in_one_line_and_makes_no_folder(
    command: str, option: str, others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "s3://bucket/made/by/hand"
    done = CliRunner().invoke(cli.typer_app(command), [*others, *([option] if option else []), url])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"s3:// is not supported here ({url})" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_file_uri_is_a_local_path(tmp_path: Path) -> None:
    Corpus.create(tmp_path / "my corpus")
    uri = (tmp_path / "my corpus").as_uri()
    assert "%20" in uri
    done = CliRunner().invoke(cli.typer_app("status"), ["--corpus", uri, "--json"])
    assert json.loads(done.stdout)["corpus"] == str(tmp_path / "my corpus")


def test_doctor_prints_one_json_object() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["missing"] == []
    assert {"ray", "torch", "deepspeed"} <= {finding["name"] for finding in summary["findings"]}
