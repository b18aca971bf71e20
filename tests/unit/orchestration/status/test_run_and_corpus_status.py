"""Status of a training run and of a corpus, from files alone."""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from uniavgen.ingest.engine.progress import Progress, StepProgress
from uniavgen.ingest.engine.run_dir import PROGRESS_FILE, make_run_dir
from uniavgen.orchestration.cli import typer_app
from uniavgen.orchestration.config import Config
from uniavgen.orchestration.status.corpus_status import corpus_status
from uniavgen.orchestration.status.run_status import latest_steps, run_status, steps_per_s
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.heartbeat import Heartbeat
from uniavgen.shards.jsonl import append_row
from uniavgen.train.checkpoint.run_folder import MANIFEST, RunFolder
from uniavgen.train.checkpoint.run_lock import ALIVE_FILE


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose first stage has done 10 of its steps, two a second, and has a checkpoint at step 8."""
    folder, config = RunFolder(tmp_path / "run", "audio"), Config().train
    folder.write(config=config.model_dump(mode="json"), done=False)
    for step in range(1, 11):
        row = {"step": step, "time": 1000 + step / 2, "loss/total": 10.0 / step}
        append_row(folder.path / "metrics.jsonl", row)
        append_row(folder.path / "metrics.jsonl", {"step": step, "time": 1000, "validation/audio": 1.0})
    (folder.checkpoint(8)).mkdir(parents=True)
    (folder.checkpoint(8) / MANIFEST).write_text("{}")
    for event in ("spike", "spike", "saved"):
        folder.log_event(event, "text")
    return tmp_path / "run"


def test_run_shows_steps_rate_checkpoint_and_events_by_kind(run: Path) -> None:
    total = Config().train.stage("audio").steps
    status = run_status(run)
    assert status["state"] == "not running"
    stage = status["stages"][0]
    assert (stage["stage"], stage["done"], stage["left"]) == ("audio", 10, total - 10)
    assert stage["steps_per_s"] == pytest.approx(2.0)
    assert stage["time_left_s"] is None  # nothing trains
    assert (stage["checkpoint"], stage["loss"]) == (8, 1.0)
    assert stage["events"] == {"spike": 2, "saved": 1}
    with Heartbeat(run / ALIVE_FILE):
        status = run_status(run)
    assert status["state"] == "alive"
    assert status["stages"][0]["time_left_s"] == pytest.approx((total - 10) / 2)


def test_killed_training_is_dead_since_its_last_sign(run: Path) -> None:
    document = {"host": socket.gethostname(), "pid": 2**22 - 1, "started": 1.0, "time": 5.0}
    (run / ALIVE_FILE).write_text(json.dumps(document | {"process_started": 1.0, "content": {}}))
    status = run_status(run)
    assert (status["state"], status["since"]) == ("dead", 5.0)
    assert status["stages"][0]["time_left_s"] is None


def test_repeated_steps_after_a_resume_count_once(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    for step, at in ((1, 0), (2, 1), (3, 2), (4, 3), (3, 100), (4, 101)):
        append_row(log, {"step": step, "time": at, "loss/total": 1.0})
    assert [(row["step"], row["time"]) for row in latest_steps(log)] == [(1, 0), (2, 1), (3, 100), (4, 101)]
    assert steps_per_s([]) is None


def test_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training run here"):
        run_status(tmp_path)


def progress(done: int) -> Progress:
    step = StepProgress("probe", done=done, running=1, queued=3, seconds=2.0 * done, video_seconds=9.0)
    return Progress(done, done + 4, 7, 9.0, {"no-audio": 1}, 20.0, (step,))


def test_corpus_shows_the_ingest_at_work_and_then_its_death(
    make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> None:
    corpus = make_corpus([make_clip("a", 0.0, "a"), make_clip("b", 0.0, "b")])
    failure = {"uri": "x.mp4", "stage": "probe", "error_type": "not-a-video", "message": "", "attempts": 1}
    corpus.upsert("failures", [failure | {"uri": f"{n}.mp4"} for n in range(3)])
    assert corpus_status(corpus.root)["ingests"] == []
    with make_run_dir(corpus.root) as run_dir:
        with Heartbeat(run_dir / PROGRESS_FILE) as beat:
            time.sleep(1.1)
            beat.update(progress=asdict(progress(done=4)), work_began_s=0.0)
            status = corpus_status(corpus.root)
            left_behind = (run_dir / PROGRESS_FILE).read_text()
        assert (status["sources"], status["clips"], status["failures"]) == (2, 2, {"not-a-video": 3})
        ingest = status["ingests"][0]
        assert (ingest["state"], ingest["done"], ingest["left"]) == ("alive", 4, 4)
        assert ingest["failures"] == {"no-audio": 1}
        # 4 sources took 8 of the workers' seconds in 20 s; 3.5 more take 7 of them
        assert ingest["time_left_s"] == pytest.approx(7 * 20 / 8)
        document = json.loads(left_behind) | {"pid": 2**22 - 1}
        (run_dir / PROGRESS_FILE).write_text(json.dumps(document))
        dead = corpus_status(corpus.root)["ingests"][0]
        assert (dead["state"], dead["since"], dead["time_left_s"]) == ("dead", document["time"], None)


def test_command_prints_json_and_people_read_stderr(run: Path) -> None:
    done = CliRunner().invoke(typer_app("status"), ["--run", str(run), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["stages"][0]["done"] == 10
    assert "audio" in done.stderr


@pytest.mark.parametrize(
    "options", [[], ["--run", "r", "--corpus", "c"], ["--run", "r", "--watch", "--json"]]
)
def test_command_wants_one_thing(options: list[str]) -> None:
    done = CliRunner().invoke(typer_app("status"), options)
    assert done.exit_code == 2
