"""The command as people type it: help at once, exit codes, one clear line for every mistake."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    "submit",
    "ablate",
    "settings",
    "doctor",
    "ui",
)


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(COMMAND), *(str(argument) for argument in arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_these_are_all_the_commands() -> None:
    assert sorted(cli.COMMANDS) == sorted(COMMANDS)


def test_help_answers_in_under_a_second() -> None:
    best = min(timed_help() for _ in range(3))
    assert best < 1.0


def timed_help() -> float:
    started = time.monotonic()
    assert run("--help").returncode == 0
    return time.monotonic() - started


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_common_options(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    for option in ("--config", "--set", "--json", "--preset"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("ingest", "absent.mp4", "--corpus", "c"), 1, "absent.mp4"),
        (("ingest", "empty", "--corpus", "c"), 1, "empty"),
        (("ingest", "video.mp4", "--corpus", "taken"), 1, "not empty"),
        (("ingest", "--corpus", "c"), 2, "Missing argument"),
        (("ingest", "video.mp4", "--corpus", "c", "--stage", "faces"), 2, "--retry"),
        (("ingest", "video.mp4", "--corpus", "corpus", "--retry", "--stage", "watch"), 1, "transcribe"),
        (("ingest", "video.mp4", "--corpus", "c", "--forecast", "2", "--retry"), 2, "--retry"),
        (("ingest", "video.mp4", "--corpus", "c", "--forecast", "0"), 2, "--forecast"),
        (("curate", "--corpus", "absent"), 1, "uniavgen ingest"),
        (("curate", "--corpus", "older"), 1, "version 0"),
        (("curate", "--corpus", "corpus", "--policy", "absent.yaml"), 1, "absent.yaml"),
        (("curate", "--corpus", "corpus", "--what-if", "snrr=3"), 1, "did you mean 'snr'"),
        (("curate", "--corpus", "corpus", "--what-if", "snr=3"), 1, "uniavgen ingest"),
        (("curate", "--corpus", "corpus", "--explain", "abc"), 1, "no such clip"),
        (("curate", "--corpus", "corpus", "--explain", "abc", "--sensitivity"), 2, "one question"),
        (("caption", "--corpus", "corpus", "--set", "caption.backend=openai"), 1, "uniavgen curate"),
        (("forget", "show.mp4", "--corpus", "corpus"), 1, "no such source"),
        (("forget", "--corpus", "corpus"), 2, "--speaker"),
        (("forget", "--speaker", "x", "--corpus", "corpus"), 1, "no such speaker"),
        (("shard", "--corpus", "corpus"), 1, "uniavgen curate"),
        (("report", "--corpus", "absent"), 1, "uniavgen ingest"),
        (("train", "audio", "--corpus", "corpus", "--run", "r"), 1, "uniavgen shard"),
        (("train", "joint", "--corpus", "corpus", "--run", "r"), 1, "uniavgen train audio"),
        (("train", "warmup", "--corpus", "corpus", "--run", "r"), 2, "audio, joint, multitask"),
        (("sample", "--corpus", "corpus", "--run", "r", "--task", "sing"), 2, "dubbing"),
        (("sample", "--corpus", "corpus", "--run", "r"), 1, "uniavgen train"),
        (("curate", "--corpus", "corpus", "--set", "curate.policie=x"), 2, "did you mean curate.policy"),
        (("doctor", "--preset", "huge"), 2, "laptop, paper, tiny"),
        (("ui",), 1, "uniavgen demo"),
        (("plan", "--mfu", "0"), 2, "a share of the peak"),
        (("shard", "--corpus", "corpus", "--verify", "--to", "there"), 2, "--to copies"),
        (
            ("train", "audio", "--corpus", "corpus", "--run", "r", "--set", "train.data.shards=nostore://b"),
            1,
            "unknown kind of store",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_clear_line(
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
    assert {name for name in new if not name.startswith("mlflow")} <= set(), "nothing half-written"


def test_doctor_prints_one_json_object() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["missing"] == []
    assert {"ray", "torch", "deepspeed"} <= {finding["name"] for finding in summary["findings"]}
