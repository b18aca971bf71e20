"""Metrics of a run: losses by task, modality and diffusion time, masks, norms, throughput, validation."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from made_runs import Run, read_metrics, small_config, train_together
from made_samples import make_sample, write_shards

from uniavgen.shards import weights
from uniavgen.train.checkpoint.run_folder import load_weights
from uniavgen.train.config import DeepSpeedConfig, ObjectiveConfig, StageConfig
from uniavgen.train.diagnostics.config import ValidationConfig
from uniavgen.train.diagnostics.metrics import TIME_BUCKETS, summed
from uniavgen.train.diagnostics.validation import fixed_objective
from uniavgen.train.flow_matching import Draw
from uniavgen.train.tasks import Task
from uniavgen.train.timestep_config import TimestepConfig

STAGE = StageConfig(name="multitask", steps=5, batch=2, tasks=dict.fromkeys(Task, 1), lambda_start=0.1)


def test_losses_are_summed_by_diffusion_time() -> None:
    details = {"audio": torch.tensor([1.0, 2.0, 4.0, 8.0]), "audio_time": torch.tensor([0.05, 0.1, 0.5, 1.0])}
    lists = summed(details)
    assert lists["audio_by_time"] == [3.0, 0.0, 4.0, 0.0, 8.0]
    assert lists["audio_count"] == [2, 0, 1, 0, 1]
    assert len(lists["audio_count"]) == TIME_BUCKETS


@pytest.mark.parametrize("time", [0.1, 0.5, 0.97])
def test_fixed_objective_has_one_time_and_no_text_dropout(time: float) -> None:
    from uniavgen.train.flow_matching import timestep_for

    objective = fixed_objective(
        ObjectiveConfig(timestep=TimestepConfig(distribution="shifted")), STAGE.tasks, time
    )
    times = [timestep_for(0, Draw(0, step, (0,)).step, 0, objective.timestep) for step in range(20)]
    assert times == [pytest.approx(time, abs=1e-9)] * 20
    assert objective.caption_dropout == objective.speech_dropout == 0


def check_validation_of_average(home: Path, averaged: Path, followed: Path) -> None:
    """The average has losses of its own, and looking at it changes no weight; see the runs below."""
    name = "joint/video"
    with_average, without = read_metrics(averaged)[4], read_metrics(home)[4]
    assert with_average[f"validation/{name}"] == without[f"validation/{name}"]
    assert with_average[f"validation_ema/{name}"] != with_average[f"validation/{name}"]
    assert not any(entry.startswith("validation_ema") for entry in without)
    ours, theirs = (load_weights(folder, "multitask") for folder in (home, averaged))
    assert all(torch.equal(ours[entry], theirs[entry]) for entry in ours)
    same = read_metrics(followed)[4]
    compared = {entry for entry in same if entry.startswith("validation/")}
    assert compared
    for entry in compared:
        assert same[entry.replace("validation/", "validation_ema/", 1)] == pytest.approx(
            same[entry], rel=1e-6
        )


@pytest.mark.slow
def test_run_writes_detailed_and_validation_metrics(tmp_path: Path) -> None:
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    samples = [make_sample(f"clip{number}", 24, seed=number) for number in range(4)]
    shards = write_shards(tmp_path / "shards", samples[:2])
    write_shards(shards, samples[2:], "val")
    home = tmp_path / "run"
    home.mkdir()
    plan = small_config([STAGE], 1, zero_stage=2)
    plan = plan.model_copy(update={"validation": ValidationConfig(every=2, clips=2, times=[0.2, 0.8])})
    averaged, followed = tmp_path / "averaged", tmp_path / "followed"
    runs = [Run(plan, "multitask", home)]
    runs.append(Run(plan.model_copy(update={"ema": 0.9}), "multitask", averaged))
    # an average without memory is the weights themselves
    in_bf16 = plan.model_copy(update={"ema": 1e-12, "deepspeed": DeepSpeedConfig(zero_stage=3, dtype="bf16")})
    runs.append(Run(in_bf16, "multitask", followed))
    averaged.mkdir()
    followed.mkdir()
    train_together(runs, shards, 1)
    steps = read_metrics(home)
    check_validation_of_average(home, averaged, followed)
    names = {name for metrics in steps.values() for name in metrics}
    for task in Task:
        for modality in task.spec.generates:
            assert any(name.startswith(f"loss_at/{task}/{modality}/t") for name in names), task
            both = [steps[4][f"validation/{task}/{modality}/t{time}"] for time in ("0.2", "0.8")]
            assert steps[4][f"validation/{task}/{modality}"] == pytest.approx(sum(both) / 2)
        assert not any(
            name.startswith(f"validation/{task}/") and name.split("/")[2] not in task.spec.generates
            for name in names
        )
    assert "validation/joint/video" not in steps[3]
    assert steps[2]["validation/joint/video"] != steps[4]["validation/joint/video"]
    last = steps[5]
    assert 0 <= last["mask_iou/interaction-00"] <= 1
    assert last["output_norm/1.a2v"] > 0
    assert last["output_norm/1.v2a"] > 0
    assert last["time/tokens_per_s"] > last["time/samples_per_s"]
    assert last["compute/tflops_per_s"] > 0
    assert last["memory/host_peak_gib"] > 0.1
    # a step's loss is the mean over the times that its samples had
    alone = 0
    for metrics in steps.values():
        parts = {
            name: value
            for name, value in metrics.items()
            if name.startswith("loss_at/") and "/audio/" in name
        }
        if len(parts) == 1 and "loss/audio" in metrics:
            assert next(iter(parts.values())) == pytest.approx(metrics["loss/audio"])
            alone += 1
    assert alone
    assert all(math.isfinite(value) for metrics in steps.values() for value in metrics.values())
