"""The command line in a subprocess: help, version, exit codes, one line for every mistake."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_folder import make_hostile_folder
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
    "plan",
    "train",
    "verify-resume",
    "sample",
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
        (("doctor", "--preset", "huge"), 2, "laptop, paper, tiny"),
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


def test_doctor_prints_one_json_object() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["missing"] == []
    assert {"ray", "torch", "deepspeed"} <= {finding["name"] for finding in summary["findings"]}
