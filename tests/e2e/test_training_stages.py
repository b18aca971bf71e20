"""All stages from one configuration file: audio on Emilia shards, others on the corpus; verify-resume."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_emilia import Spoken, write_spoken
from running import COMMAND, uniavgen

from uniavgen.shards import weights
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.write.writer import write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIGURATION = """
tracking: {{folder: {home}/mlflow, registered_model: talking-heads}}
sample: {{steps: 2}}
train:
  workers: 1
  fixed_steps: 2
  model:
    video: {{dim: 32, layers: 2, heads: 2, ffn_dim: 64, text_dim: 384, freq_dim: 32}}
    audio: {{dim: 32, layers: 2, heads: 2, ffn_dim: 64, text_dim: 16, freq_dim: 32}}
    speech_text: {{dim: 16, layers: 1}}
  data: {{frames: 13, height: 64, width: 64, reference_frames: 5, caption_tokens: 12}}
  validation: {{every: 2, clips: 2, times: [0.5], films: 1}}
  stages:
    - {{name: audio, steps: 4, batch: 2, emilia: {{shards: [{home}/Emilia/EN], languages: [en]}}}}
    - {{name: joint, steps: 2, batch: 2, takes_from: audio, starts_fresh: [video, interactions]}}
    - name: multitask
      steps: 2
      batch: 2
      takes_from: joint
      tasks: {{joint: 1, dubbing: 1}}
      lambda_start: 0.0
      lambda_end: 0.0
"""


@pytest.fixture
def corpus(make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]) -> Corpus:
    """Four clips in train and two in val, decided and in shards."""
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    rows = [make_clip("a", 2.0 * i, "a") for i in range(4)] + [make_clip("b", 2.0 * i, "b") for i in range(2)]
    corpus = make_corpus(rows)
    decided = {"kept": True, "reason": "", "failed_rules": [], "policy_digest": "d"}
    split = {"a": "train", "b": "val"}
    corpus.upsert(
        "decisions",
        [{"clip_id": row["clip_id"], "split": split[row["source_id"]], **decided} for row in rows],
    )
    write_shards(corpus, ShardConfig(), caption=lambda row: ("One person speaks.", "test"))
    return corpus


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Configuration file. Its utterances are shorter than the window of 0.81 s, but for one."""
    spoken = [
        Spoken(f"EN_B00000_S0000{i}_W000000", f"voice{i % 2}", 200 + 50 * i, 0.5 + 0.05 * i) for i in range(4)
    ]
    write_spoken(
        tmp_path / "Emilia" / "EN" / "EN-B000000.tar",
        [*spoken, Spoken("EN_B00000_S00009_W000000", "long", 300, 2.0)],
    )
    path = tmp_path / "train.yaml"
    path.write_text(CONFIGURATION.format(home=tmp_path))
    return path


def test_three_stages_train_and_are_recorded_in_mlflow(
    corpus: Corpus, config_file: Path, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    folders = ("--corpus", corpus.root, "--run", tmp_path / "run")
    arguments = ("train", "all", *folders, "--config", config_file, "--name", "baseline")
    done = {stage["stage"]: stage for stage in uniavgen(*arguments)["stages"]}
    assert list(done) == ["audio", "joint", "multitask"]
    assert {name: stage["steps"] for name, stage in done.items()} == {"audio": 4, "joint": 2, "multitask": 2}
    assert "weights from stage audio:" in done["joint"]["key_report"]

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (experiment,) = [entry for entry in client.search_experiments() if entry.name == "uniavgen"]
    runs = {run.data.tags["mlflow.runName"]: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("baseline")
    assert sorted(runs) == [f"stage {stage} of baseline" for stage in ("audio", "joint", "multitask")]
    runs = {name.removesuffix(" of baseline"): run for name, run in runs.items()}
    note = parent.data.tags["mlflow.note.content"]
    for row in (
        "| audio | audio, speech_text from random weights | audio shards |",
        "| joint | video, interactions from random weights; audio, speech_text from stage audio | clips |",
        "| multitask | video, audio, speech_text, interactions from stage joint | clips |",
    ):
        (line,) = [line for line in note.splitlines() if line.startswith(row)]
        assert "| done |" in line
    stored = client.download_artifacts(parent.info.run_id, "configuration.yaml")
    assert f"{tmp_path}/Emilia/EN" in Path(stored).read_text()
    assert "tracking" not in Path(stored).read_text()

    speech = runs["stage audio"].data
    assert "4 utterances in 1 audio shards; left out: length 1" in speech.tags["mlflow.note.content"]
    assert {"validation/joint/audio", "loss/audio"} <= set(speech.metrics)
    assert "loss/video" not in speech.metrics
    for name, run in runs.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        stage = name.removeprefix("stage ")
        assert client.get_model_version_by_alias("talking-heads", stage).run_id == run.info.run_id
    for stage, tasks in {"joint": {"joint"}, "multitask": {"joint", "dubbing"}}.items():
        files = client.list_artifacts(runs[f"stage {stage}"].info.run_id, "validation")
        videos = {tuple(Path(file.path).stem.split("-", 1)) for file in files if file.path.endswith(".mp4")}
        assert {task for task, _ in videos} == tasks
        assert {f"validation/{task}/audio" for task in tasks} <= set(runs[f"stage {stage}"].data.metrics)

    assert not any(stage["ran"] for stage in uniavgen(*arguments)["stages"])


def test_stage_without_data_is_refused_before_the_first_stage_starts(
    config_file: Path, tmp_path: Path
) -> None:
    Corpus.create(tmp_path / "corpus")
    arguments = [
        str(COMMAND),
        "train",
        "all",
        "--corpus",
        f"{tmp_path}/corpus",
        "--run",
        f"{tmp_path}/run",
        "--config",
        str(config_file),
    ]
    refused = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1
    (output,) = refused.stderr.strip().splitlines()
    assert output.startswith("error: ")
    assert f"{tmp_path}/corpus/shards" in output
    assert not (tmp_path / "run" / "audio").exists()


def test_verify_resume_finds_an_interrupted_stage_equal_bit_for_bit(
    corpus: Corpus, config_file: Path, tmp_path: Path
) -> None:
    arguments = (
        "verify-resume",
        "--corpus",
        corpus.root,
        "--run",
        tmp_path / "run",
        "--config",
        config_file,
        "--steps",
        5,
    )
    summary = uniavgen(
        *arguments,
        "--stage",
        "multitask",
        "--set",
        "train.validation.every=0",
        "--set",
        "train.validation.films=0",
    )
    assert summary["equal"]
    compared = {kind: entry["compared"] for kind, entry in summary["comparisons"].items()}
    assert compared.keys() == {"losses", "sample ids", "weights"}
    assert (compared["losses"], compared["sample ids"]) == (10, 10)
    output = (tmp_path / "run" / "verify-resume" / "interrupted.log").read_text()
    assert json.loads(
        (tmp_path / "run" / "verify-resume" / "interrupted" / "multitask" / "stage.json").read_text()
    )["done"], output
