"""A stage's run in MLflow: opened late where the tracker was away, ended as the stage ended, described for people."""

import json
import socket
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from uniavgen.orchestration.tracking.mlflow_runs import MOST_TEXT, Run, TrackingConfig
from uniavgen.orchestration.tracking.run_notes import plan_note, stage_note
from uniavgen.orchestration.tracking.stage_record import Record, StageRecord, recorded
from uniavgen.shards.errors import Stopped
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import TrainConfig
from uniavgen.train.launch import StageResult


def nowhere() -> str:
    """The address of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageRecord:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = TrackingConfig(folder=str(tmp_path / "mlflow"))

    def about(run: Run) -> None:
        run.params({"stage": "joint"})

    def note(error: str) -> str:
        return f"so far: {error}"

    parent = Record(config, tmp_path, "training", lambda run: None, note)
    assert parent.open()
    return StageRecord(config, tmp_path / "joint", "stage joint", about, note, parent)


def test_a_tracker_that_is_away_all_the_time_gets_the_stage_from_the_next_command(
    record: StageRecord,
) -> None:
    away = replace(record, config=TrackingConfig(uri=nowhere()))
    record.home.mkdir()
    with recorded(away) as running:
        assert running.run is None
        running.logger()(1, {"loss/total": 2.0})
    assert json.loads(away.log.read_text())["loss/total"] == 2.0
    with recorded(record) as again:
        assert again.run
    found = MlflowClient(again.run.uri).get_run(again.run.id)
    assert found.data.metrics["loss/total"] == 2.0
    assert (found.info.status, found.data.params) == ("FINISHED", {"stage": "joint"})
    assert found.data.tags["mlflow.note.content"] == "so far: "
    assert record.parent
    assert record.parent.run
    assert found.data.tags["mlflow.parentRunId"] == record.parent.run.id


def test_a_tracker_that_is_back_at_the_end_gets_all_of_it_then(record: StageRecord) -> None:
    there = record.config
    record.config = TrackingConfig(uri=nowhere())
    record.home.mkdir()
    with recorded(record) as running:
        running.logger()(1, {"loss/total": 2.0})
        running.config = there
    assert record.run
    assert MlflowClient(record.run.uri).get_run(record.run.id).data.metrics["loss/total"] == 2.0


def test_a_tracker_that_is_away_at_the_start_keeps_no_training_from_its_start(record: StageRecord) -> None:
    """Neither run is opened then; both are when it is back, the stage's below the training's."""
    assert record.parent
    there, nobody = record.config, TrackingConfig(uri=nowhere())
    parent = replace(record.parent, run=None, home=record.home.parent / "other", config=nobody)
    stage = replace(record, parent=parent, config=nobody)
    record.home.mkdir()
    with recorded(parent), recorded(stage) as running:
        assert (parent.run, running.run) == (None, None)
        parent.describe()
        parent.config = running.config = there
    assert parent.run
    assert running.run
    tags = MlflowClient(running.run.uri).get_run(running.run.id).data.tags
    assert tags["mlflow.parentRunId"] == parent.run.id
    assert MlflowClient(parent.run.uri).get_run(parent.run.id).info.status == "FINISHED"


def result_of(record: StageRecord, *, ran: bool) -> StageResult:
    """A finished stage, whose weights stand in its folder."""
    weights = record.home / "model.safetensors"
    weights.write_bytes(b"weights")
    figures: dict[str, Any] = {entry.name: {} for entry in fields(StageResult)}
    figures |= {
        "stage": "joint",
        "ran": ran,
        "samples_per_s": 1.0,
        "data_wait_share": 0.0,
        "weights": weights,
    }
    return StageResult(**figures)


def test_weights_that_a_tracker_missed_are_registered_by_the_next_command_and_then_not_again(
    record: StageRecord,
) -> None:
    record.home.mkdir()
    away = replace(record, config=TrackingConfig(uri=nowhere()))
    with recorded(away):
        away.finished(result_of(away, ran=True))
    for _ in range(2):
        with recorded(replace(record, run=None)) as again:
            again.finished(result_of(record, ran=False))
    assert again.run
    versions = MlflowClient(again.run.uri).search_model_versions("name='uniavgen'")
    assert [(version.version, version.run_id) for version in versions] == [(1, again.run.id)]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Stopped("stopped after step 4"), "KILLED", "so far: stopped after step 4"),
        (KeyboardInterrupt(), "KILLED", "so far: KeyboardInterrupt"),
        (ValueError("planted"), "FAILED", "so far: planted"),
    ],
)
def test_a_run_ends_as_its_stage_did_and_says_why(
    record: StageRecord, error: BaseException, status: str, said: str
) -> None:
    with pytest.raises(type(error)), recorded(record):
        raise error
    assert record.run
    found = MlflowClient(record.run.uri).get_run(record.run.id)
    assert (found.info.status, found.data.tags["mlflow.note.content"]) == (status, said)


def test_a_run_says_what_made_it_and_where(record: StageRecord) -> None:
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


def test_descriptions_tell_what_came_of_every_stage(tmp_path: Path) -> None:
    config = TrainConfig()
    before = plan_note(config, tmp_path, "/corpus")
    assert before.count("| waiting |") == 3
    folder = RunFolder(tmp_path, "joint")
    folder.write(outcome=OUTCOME, done=True)
    folder.weights.write_bytes(b"weights")
    for text in ["using latents", *(f"step {step} is left out" for step in range(9)), "using latents"]:
        folder.tell("any", text)
    (row,) = [
        line for line in plan_note(config, tmp_path, "/corpus").splitlines() if line.startswith("| joint |")
    ]
    assert row == (
        "| joint | stage audio | clips | joint | 40 x 4 | 0.001 | done | video 1.500 → 1.250, audio 2.000 → 1.000 |"
    )
    note = stage_note(config, "joint", tmp_path, ["s3://bucket/shards"], "cl4-so2")
    for said in (
        "**done**",
        "from stage audio; trains all its parts on joint: 40 steps of 4 samples, lr 0.001, 2 workers, ZeRO 2, fp32",
        "Data: `s3://bucket/shards`, corpus version `cl4-so2`.",
        "40 steps in 12 s, 3.21 samples/s, 1.5% of it waiting for data. Clips: damaged 2. Parameters: 1.50 million.",
        f"- (2 earlier ones are in `{folder.events}`)\n- step 1 is left out",
        "| `smoothed/loss/` | does it learn",
        "| `mask_iou/` |",
    ):
        assert said in note
    sound = stage_note(config, "audio", tmp_path, [], "v", "out of memory")
    assert sound.startswith("**ended: out of memory**")
    assert "mask_iou" not in sound
    mixed = stage_note(config, "multitask", tmp_path, [], "v")
    assert "joint 4, reference 1, continuation 1, dubbing 2, audio-driven 2" in mixed
    assert len(note) < MOST_TEXT
