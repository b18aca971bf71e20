"""The demo, run once: its measurements, corpus, shards, training, report and repetition."""

import hashlib
import json
import re
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from running import Demo, uniavgen

from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.sample import decode_audio, decode_video, from_members

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_measurements_agree_with_the_truth(demo: Demo) -> None:
    score = demo.summary["score"]
    assert score["word_error_rate"] <= 0.06
    assert score["diarization_error_rate"] <= 0.10
    assert score["word_start_median_ms"] <= 30
    assert score["face_iou_median"] >= 0.85
    assert score["sync_error_median_ms"] <= 40
    assert score["cuts_found"] == score["cuts_planted"]


def test_every_input_is_in_sources_or_failures_but_not_in_both(demo: Demo) -> None:
    corpus = Corpus.open(demo.corpus)
    counts = Counter(corpus.read("sources")["uri"].to_pylist() + corpus.read("failures")["uri"].to_pylist())
    videos = {str(path) for path in (demo.folder / "videos").iterdir() if path.name != "truth.json"}
    assert set(counts) == videos
    assert set(counts.values()) == {1}


def test_every_planted_defect_is_caught_by_its_rule(demo: Demo) -> None:
    caught = {entry["planted"]: entry["caught_by"] for entry in demo.summary["score"]["caught"]}
    assert caught["no-sound"] == "rule: has_audio"
    assert caught["no-face"] == "rule: face_coverage"
    assert caught["sound-late"] == "rule: sync"
    assert caught["truncated"].startswith("failure: ")
    assert caught["not-a-video"].startswith("failure: ")


def test_good_sources_are_kept_and_every_clip_has_a_reason(demo: Demo) -> None:
    score = demo.summary["score"]
    assert score["good_sources_kept"] == score["good_sources"]
    rows = (
        Corpus.open(demo.corpus)
        .query("SELECT kept, reason FROM clips LEFT JOIN decisions USING (clip_id)")
        .to_pylist()
    )
    assert rows
    assert all(row["kept"] is not None and row["kept"] == (row["reason"] == "") for row in rows)


def test_clips_have_2_to_10_seconds_and_complete_words(demo: Demo) -> None:
    rows = (
        Corpus.open(demo.corpus)
        .query("SELECT clips.* FROM clips JOIN decisions USING (clip_id) WHERE kept")
        .to_pylist()
    )
    for row in rows:
        assert 2 <= row["end_s"] - row["start_s"] <= 10
        assert all(0 <= word["start_s"] < word["end_s"] <= row["duration_s"] + 1e-6 for word in row["words"])


def test_tar_and_webdataset_read_the_shards(demo: Demo) -> None:
    import webdataset

    shards = demo.corpus / "shards"
    manifest = json.loads((shards / "manifest.json").read_text())
    speakers: dict[str, set[str]] = {"train": set(), "val": set()}
    for shard in manifest["shards"]:
        path = shards / shard["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        listed = subprocess.run(
            ["tar", "tf", str(path)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(listed) == 4 * shard["samples"]
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
        assert len(samples) == shard["samples"]
        for members in samples:
            sample = from_members(members)
            frames, waveform = decode_video(sample.video), decode_audio(sample.audio)
            assert abs(len(frames) / 16 - len(waveform) / 24_000) <= 1 / 16
            assert len(sample.face.oval) == len(frames)
            speakers[shard["split"]].add(sample.meta.speaker)
    assert speakers["train"]
    assert speakers["val"]
    assert not speakers["train"] & speakers["val"]


def test_no_member_is_a_link_or_a_pickle(demo: Demo) -> None:
    for path in (demo.corpus / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isfile()
                assert member.name.split(".", 1)[1] in {"mp4", "flac", "face.npz", "json"}


def test_stream_visits_every_sample_once_per_epoch(demo: Demo) -> None:
    stream = SampleStream(str(demo.corpus / "shards"), "train", seed=3)
    epochs = [
        [stream.sample_at(epoch * len(stream) + index).key for index in range(len(stream))]
        for epoch in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(stream.keys)
    assert epochs[0] != epochs[1]


def test_loss_falls_in_every_stage(demo: Demo) -> None:
    stages = {result["stage"]: result for result in demo.summary["train"]["stages"]}
    assert set(stages) == {"audio", "joint", "multitask"}
    for name, fresh in (
        ("audio", ["audio"]),
        ("joint", ["video", "audio"]),
        ("multitask", ["video", "audio"]),
    ):
        for modality in fresh:
            assert stages[name]["fixed_end"][modality] < stages[name]["fixed_start"][modality], (
                name,
                modality,
            )


def test_mlflow_has_runs_inputs_metrics_and_artifacts(demo: Demo) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{demo.folder / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("uniavgen")
    assert experiment is not None
    runs = {run.data.tags["mlflow.runName"]: run for run in client.search_runs([experiment.experiment_id])}
    name = demo.folder.name
    stages = {f"stage {stage} of {name}/run" for stage in ("audio", "joint", "multitask")}
    plan = next(run for run_name, run in runs.items() if run_name.startswith("plan demo in "))
    assert set(runs) == {plan.info.run_name, f"corpus {name}/corpus", f"training {name}/run"} | stages
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert all(run.data.tags["mlflow.note.content"] for run in runs.values())
    corpus, parent = runs[f"corpus {name}/corpus"], runs[f"training {name}/run"]
    for run in (corpus, parent):
        assert run.data.tags["mlflow.parentRunId"] == plan.info.run_id
    assert corpus.data.metrics["corpus/clips"] > 20
    assert corpus.data.params["policy_digest"]
    assert {item.path for item in client.list_artifacts(corpus.info.run_id)} == {"funnel", "report", "shards"}
    for stage in ("audio", "joint", "multitask"):
        run = runs[f"stage {stage} of {name}/run"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert [entry.dataset.digest for entry in run.inputs.dataset_inputs] == [
            run.data.params["corpus_version"]
        ]
        assert {"loss/total", "lr", "grad_norm", "time/samples_per_s", "lambda_m"} <= set(run.data.metrics)
    lambdas = [
        metric.value
        for metric in client.get_metric_history(runs[f"stage joint of {name}/run"].info.run_id, "lambda_m")
    ]
    assert lambdas[0] == pytest.approx(0.1)
    assert lambdas[-1] == pytest.approx(0)
    tasks = {
        key.split("/")[1]
        for key in runs[f"stage multitask of {name}/run"].data.metrics
        if key.startswith("task/")
    }
    assert tasks == {"joint", "reference", "continuation", "dubbing", "audio-driven"}
    assert [item.path for item in client.list_artifacts(parent.info.run_id, "samples")]


def test_generated_video_has_video_and_audio_streams(demo: Demo) -> None:
    import av

    with av.open(demo.summary["sample"]["movie"], mode="r") as video:
        assert (len(video.streams.video), len(video.streams.audio)) == (1, 1)
        frames = sum(1 for _ in video.decode(video=0))
    assert frames == demo.summary["sample"]["frames"]


@pytest.mark.parametrize("task", ["reference", "continuation", "dubbing", "audio-driven"])
def test_every_task_can_be_sampled(demo: Demo, task: str, tmp_path: Path) -> None:
    options = ("--run", demo.folder / "run", "--corpus", demo.corpus, "--out", tmp_path / "video.mp4")
    uniavgen(
        "sample", *options, "--task", task, "--set", "sample.steps=2", "--set", f"tracking.folder={tmp_path}"
    )
    assert (tmp_path / "video.mp4").stat().st_size > 1000


def test_report_shows_funnel_signals_and_clips(demo: Demo) -> None:
    page = Path(demo.summary["report"]).read_text()
    assert len(page) < 8_000_000
    absent = [reason for reason in ("has_audio", "face_coverage", "sync") if reason not in page]
    assert absent == []
    # findall, so that a failure shows the matches and not megabytes of page
    assert re.findall(r"<(?:script|link|img|video)[^>]*https?://[^\s>]*", page) == [], (
        "the page must work offline"
    )
    clips = sorted((demo.corpus / "report").rglob("*.mp4"))
    assert len(clips) >= 12


def test_second_run_changes_nothing(demo: Demo) -> None:
    before = {path: path.stat().st_mtime_ns for path in (demo.corpus / "shards").iterdir()}
    versions = Corpus.open(demo.corpus).versions()
    again = uniavgen("demo", "--folder", demo.folder)
    assert set(again["steps"].values()) == {"skipped"}
    assert again["score"] == demo.summary["score"]
    assert Corpus.open(demo.corpus).versions() == versions
    after = {path: path.stat().st_mtime_ns for path in (demo.corpus / "shards").iterdir()}
    assert {path: at for path, at in after.items() if path.suffix == ".tar"} == {
        path: at for path, at in before.items() if path.suffix == ".tar"
    }


def test_shards_hold_what_was_decided(demo: Demo) -> None:
    summary = uniavgen(
        "shard", "--corpus", demo.corpus, "--verify", "--set", f"tracking.folder={demo.folder / 'mlflow'}"
    )
    assert summary["defects"] == []


def test_deleted_source_cannot_be_ingested_again(demo: Demo) -> None:
    """Must be the last test: the other tests need the source."""
    store = ("--set", f"tracking.folder={demo.folder / 'mlflow'}")
    name = "ann_geese.webm"
    row = (
        Corpus.open(demo.corpus)
        .query(f"SELECT source_id FROM sources WHERE uri LIKE '%{name}'")
        .to_pylist()[0]
    )
    done = uniavgen("forget", name, "--corpus", demo.corpus, *store)
    assert done["clips"] >= 1
    assert [run["stage"] for run in done["trainings"]] == ["audio", "joint", "multitask"]
    left = [path for path in demo.corpus.rglob("*") if path.is_file() and row["source_id"] in path.as_posix()]
    assert left == []
    shards = [path.read_bytes() for path in (demo.corpus / "shards").rglob("*") if path.is_file()]
    assert not any(row["source_id"].encode() in data for data in shards)
    again = uniavgen("ingest", demo.folder / "videos" / name, "--corpus", demo.corpus, *store)
    assert again["failures"] == {"forgotten": 1}
    assert uniavgen("shard", "--corpus", demo.corpus, "--verify", *store)["defects"] == []
