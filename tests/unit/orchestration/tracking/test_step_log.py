"""Metrics reach a real MLflow server (database and artifact store), also after it was down."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.orchestration.tracking.mlflow_runs import Run, open_run, system_metrics, warn_on_error
from uniavgen.orchestration.tracking.step_log import Backlog, StepLogger, read_smoothed

START_TIMEOUT_S = 300.0
"""A busy machine may need minutes for what is 20 s of work."""


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """Start `mlflow server` on loopback with database and artifacts in the folder; yields once it answers."""
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "store"),
    ]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *store], cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=2)
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def history(client: MlflowClient, run: Run, name: str) -> dict[int, float]:
    return {metric.step: metric.value for metric in client.get_metric_history(run.id, name)}


@pytest.mark.slow
def test_server_that_was_down_gets_every_metric_once_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    home, port, log = tmp_path / "mlflow", free_port(), tmp_path / "metrics.jsonl"
    before = open_run(
        TrackingConfig(folder=str(home)), tmp_path / "home", "opened before the server went down", ""
    )
    run = Run(f"http://127.0.0.1:{port}", before.id)
    on_metrics, started = StepLogger(run, log)(), time.monotonic()
    for step in (1, 2, 3):
        on_metrics(step, {"loss/total": 4.0 / step, "broken": float("nan")})
    assert time.monotonic() - started < 2  # training does not wait for it
    with pytest.raises(MlflowException):
        Backlog(run, log).send()
    with warn_on_error("a tag"), run:
        run.tags({"a": "tag"})
    with server(home, port) as uri:
        Backlog(run, log).send()
        client = MlflowClient(uri)
        assert history(client, run, "loss/total") == {1: 4.0, 2: 2.0, 3: pytest.approx(4 / 3)}
        assert set(history(client, run, "smoothed/loss/total")) == {1, 2, 3}
        assert Backlog(run, log).send() == 0
        # a run that was created on the server has its artifacts in the server's store
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(b"weights")
        with open_run(
            TrackingConfig(uri=uri, experiment="served"), tmp_path / "other", "stage joint", ""
        ) as served:
            aliases = ("audio", "joint")
            versions = [
                served.register_model("generator", weights, alias, f"is {alias}") for alias in aliases
            ]
            assert versions == [1, 2]
        newest = client.get_model_version_by_alias("generator", "joint")
        assert (newest.run_id, newest.description) == (served.id, "is joint")
        assert client.get_registered_model("generator").description.startswith("Joint audio-video")
        assert [item.path for item in client.list_artifacts(served.id, "model-joint")] == [
            "model-joint/model.safetensors"
        ]
        assert list((home / "store").rglob("model.safetensors"))
        assert client.get_run(served.id).info.status == "FINISHED"


def test_backlog_continues_where_it_stopped_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    with open_run(TrackingConfig(folder=str(tmp_path / "mlflow")), tmp_path / "home", "stage", "") as run:
        backlog = Backlog(run, log)
        assert backlog.send() == 0
        log.write_text(
            json.dumps({"step": 1, "loss/total": 2.0}) + "\n" + json.dumps({"step": 2, "loss/total": 1.0})[:9]
        )
        assert backlog.send() == 1
        with log.open("a") as file:
            file.write(json.dumps({"step": 2, "loss/total": 1.0})[9:] + "\n")
        assert Backlog(run, log).send() == 1
        with system_metrics(run, 0.2):
            time.sleep(1.0)
    client = MlflowClient(run.uri)
    assert history(client, run, "loss/total") == {1: 2.0, 2: 1.0}
    assert history(client, run, "system/cpu_utilization_percentage")
    assert list(json.loads(backlog.offset_file.read_text()).values()) == [os.path.getsize(log)]


def test_incomplete_line_is_skipped_by_backlog_and_next_process(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "smoothed/loss/total": 3.0, "loss/total": 3.0}\n{"step": 2, "ti')
    with open_run(TrackingConfig(folder=str(tmp_path / "mlflow")), tmp_path / "home", "stage", "") as run:
        StepLogger(None, log)()(3, {"loss/total": 3.0})
        assert Backlog(run, log).send() == 2
        assert Backlog(run, log).send() == 0
    assert history(MlflowClient(run.uri), run, "loss/total") == {1: 3.0, 3: 3.0}
    assert history(MlflowClient(run.uri), run, "smoothed/loss/total")[3] == pytest.approx(3.0)


def test_smoothing_continues_from_the_log_of_an_earlier_process(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "smoothed/loss/total": 3.0}\n{"step": 2, "smoothed/loss/total": 2.5}\n')
    assert read_smoothed(log) == {"loss/total": 2.5}
    assert read_smoothed(tmp_path / "none") == {}


def test_another_tracker_gets_all_metrics_and_the_first_one_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a chosen tracker the note in the folder is followed, from any current folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home, log = tmp_path / "home", tmp_path / "home" / "metrics.jsonl"
    monkeypatch.chdir(tmp_path)
    runs = []
    for step, config in enumerate((TrackingConfig(), TrackingConfig(), TrackingConfig(folder="other")), 1):
        with open_run(config, home, "stage", "") as run:
            StepLogger(None, log)()(step, {"loss": float(step)})
            sent = Backlog(run, log).send()
        runs.append((run, sent))
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
    (first, _), (again, _), (other, _) = runs
    assert again == first
    assert [sent for _, sent in runs] == [1, 1, 3]
    assert history(MlflowClient(first.uri), first, "loss") == {1: 1.0, 2: 2.0}
    assert history(MlflowClient(other.uri), other, "loss") == {1: 1.0, 2: 2.0, 3: 3.0}
    assert not (tmp_path / "elsewhere" / "mlflow").exists()


def test_mark_of_an_old_release_belongs_to_the_noted_run(tmp_path: Path) -> None:
    run, log = Run("sqlite:///a.db", "1"), tmp_path / "metrics.jsonl"
    backlog, note = Backlog(run, log), tmp_path / "tracking.json"
    note.write_text("{}")
    backlog.offset_file.write_text("57")
    os.utime(note, (1, 1))
    assert backlog.offset() == 57
    os.utime(backlog.offset_file, (0, 0))  # the note was replaced after the mark
    assert backlog.offset() == 0
