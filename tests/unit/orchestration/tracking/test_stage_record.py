"""A stage's run in MLflow: opened late if the tracker was down, status, registered weights, descriptions."""

import json
import socket
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.orchestration.tracking.mlflow_runs import MAX_TAG_LENGTH, Run
from uniavgen.orchestration.tracking.run_notes import stage_note, training_note
from uniavgen.orchestration.tracking.stage_record import Record, StageRecord, recorded
from uniavgen.shards.errors import Stopped
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import TrainConfig
from uniavgen.train.launch import StageResult


def dead_address() -> str:
    """An address where no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def record(tmp_path: Path, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> StageRecord:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def log_inputs(run: Run) -> None:
        run.params({"stage": "joint"})

    def note(error: str) -> str:
        return f"so far: {error}"

    parent = Record(tracking, tmp_path, "training", lambda run: None, note)
    assert parent.open()
    return StageRecord(tracking, tmp_path / "joint", "stage joint", log_inputs, note, parent)


def test_next_command_sends_a_stage_that_the_tracker_missed(
    record: StageRecord,
) -> None:
    offline = replace(record, config=TrackingConfig(uri=dead_address()))
    record.home.mkdir()
    with recorded(offline) as running:
        assert running.run is None
        running.logger()(1, {"loss/total": 2.0})
    assert json.loads(offline.log.read_text())["loss/total"] == 2.0
    with recorded(record) as again:
        assert again.run
    stored = MlflowClient(again.run.uri).get_run(again.run.id)
    assert stored.data.metrics["loss/total"] == 2.0
    assert (stored.info.status, stored.data.params) == ("FINISHED", {"stage": "joint"})
    assert stored.data.tags["mlflow.note.content"] == "so far: "
    assert record.parent
    assert record.parent.run
    assert stored.data.tags["mlflow.parentRunId"] == record.parent.run.id


def test_tracker_that_answers_at_the_end_gets_everything(record: StageRecord) -> None:
    online = record.config
    record.config = TrackingConfig(uri=dead_address())
    record.home.mkdir()
    with recorded(record) as running:
        running.logger()(1, {"loss/total": 2.0})
        running.config = online
    assert record.run
    assert MlflowClient(record.run.uri).get_run(record.run.id).data.metrics["loss/total"] == 2.0


def test_training_starts_without_a_tracker(record: StageRecord) -> None:
    """Neither run is opened at the start; both are once the tracker answers, the stage's as a child."""
    assert record.parent
    online, offline = record.config, TrackingConfig(uri=dead_address())
    parent = replace(record.parent, run=None, home=record.home.parent / "other", config=offline)
    stage = replace(record, parent=parent, config=offline)
    record.home.mkdir()
    with recorded(parent), recorded(stage) as running:
        assert (parent.run, running.run) == (None, None)
        parent.describe()
        parent.config = running.config = online
    assert parent.run
    assert running.run
    tags = MlflowClient(running.run.uri).get_run(running.run.id).data.tags
    assert tags["mlflow.parentRunId"] == parent.run.id
    assert MlflowClient(parent.run.uri).get_run(parent.run.id).info.status == "FINISHED"


def result_of(record: StageRecord, *, ran: bool) -> StageResult:
    """A finished stage with weights in its folder."""
    weights = record.home / "model.safetensors"
    weights.write_bytes(b"weights")
    values: dict[str, Any] = {entry.name: {} for entry in fields(StageResult)}
    values |= {
        "stage": "joint",
        "ran": ran,
        "samples_per_s": 1.0,
        "data_wait_share": 0.0,
        "weights": weights,
    }
    return StageResult(**values)


def test_weights_are_registered_once_by_the_next_command_if_the_tracker_missed_them(
    record: StageRecord,
) -> None:
    record.home.mkdir()
    offline = replace(record, config=TrackingConfig(uri=dead_address()))
    with recorded(offline):
        offline.log_result(result_of(offline, ran=True))
    for _ in range(2):
        with recorded(replace(record, run=None)) as again:
            again.log_result(result_of(record, ran=False))
    assert again.run
    versions = MlflowClient(again.run.uri).search_model_versions("name='uniavgen'")
    assert [(version.version, version.run_id) for version in versions] == [(1, again.run.id)]
    assert versions[0].description == "so far: "


@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (Stopped("stopped after step 4"), "KILLED", "so far: stopped after step 4"),
        (KeyboardInterrupt(), "KILLED", "so far: KeyboardInterrupt"),
        (ValueError("planted"), "FAILED", "so far: planted"),
    ],
)
def test_run_has_the_status_and_the_reason_of_its_stage(
    record: StageRecord, error: BaseException, status: str, note: str
) -> None:
    with pytest.raises(type(error)), recorded(record):
        raise error
    assert record.run
    stored = MlflowClient(record.run.uri).get_run(record.run.id)
    assert (stored.info.status, stored.data.tags["mlflow.note.content"]) == (status, note)


def test_run_has_tags_of_code_and_environment(record: StageRecord) -> None:
    run = record.open()
    assert run
    tags = MlflowClient(run.uri).get_run(run.id).data.tags
    import torch

    assert tags["environment.torch"] == torch.__version__.partition("+")[0]
    assert {"code_version", "environment.python", "environment.ray", "mlflow.user"} <= tags.keys()


OUTCOME = {
    "steps": 40,
    "seconds": 12.4,
    "fixed_start": {"video": 1.5, "audio": 2.0},
    "fixed_end": {"video": 1.25, "audio": 1.0},
    "samples_per_s": 3.21,
    "data_wait_share": 0.015,
    "counts": {"short": 0.0, "damaged": 2.0},
    "parameters": {"video": 1_000_000, "total": 1_500_000},
}


def test_descriptions_hold_settings_state_and_outcome_of_stages(tmp_path: Path) -> None:
    config = TrainConfig()
    before = training_note(config, tmp_path, "/corpus")
    assert before.count("| waiting |") == 3
    folder = RunFolder(tmp_path, "joint")
    folder.write(outcome=OUTCOME, done=True)
    folder.weights.write_bytes(b"weights")
    for text in ["using latents", *(f"step {step} is left out" for step in range(9)), "using latents"]:
        folder.log_event("any", text)
    (row,) = [
        line
        for line in training_note(config, tmp_path, "/corpus").splitlines()
        if line.startswith("| joint |")
    ]
    weights = "video, interactions from random weights; audio, speech_text from stage audio"
    assert row == (
        f"| joint | {weights} | clips | joint | 40 x 4 | 0.001 | done "
        "| video 1.500 → 1.250, audio 2.000 → 1.000 |"
    )
    note = stage_note(config, "joint", tmp_path, ["s3://bucket/shards"], "cl4-so2")
    for text in (
        "**done**",
        "audio, speech_text from stage audio. ",
        "Trains all parts on joint: 40 steps of 4 samples, lr 0.001, ",
        "2 workers, ZeRO 2, fp32",
        "Data: `s3://bucket/shards`, corpus version `cl4-so2`.",
        "40 steps in 12 s, 3.21 samples/s, 1.5% of the time waiting for data. ",
        "Clips: damaged 2. Parameters: 1.50 million.",
        f"- (2 older ones are in `{folder.events}`)\n- step 1 is left out",
        "| `smoothed/loss/` | does it learn",
        "| `mask_iou/` |",
    ):
        assert text in note
    audio = stage_note(config, "audio", tmp_path, [], "v", "out of memory")
    assert audio.startswith("**ended: out of memory**")
    assert "mask_iou" not in audio
    mixed = stage_note(config, "multitask", tmp_path, [], "v")
    assert "joint 4, reference 1, continuation 1, dubbing 2, audio-driven 2" in mixed
    assert len(note) < MAX_TAG_LENGTH
