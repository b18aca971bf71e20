"""`uniavgen plan`: the paper's numbers, the smallest cluster, storage, and errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_shards import sample_named, write_tars
from typer.testing import CliRunner

from uniavgen.orchestration.cli import typer_app
from uniavgen.orchestration.config import load_config
from uniavgen.orchestration.planning.cards import GPUS, find_gpu
from uniavgen.orchestration.planning.step_time import gpu_machine, step_time
from uniavgen.orchestration.planning.training_plan import data_needs, plan_training
from uniavgen.shards.buckets import WindowShape
from uniavgen.shards.errors import UsageError, UserError
from uniavgen.train.config import TrainConfig
from uniavgen.train.data.stage_stream import data_for
from uniavgen.train.planning import (
    explain_out_of_memory,
    find_fitting_setting,
    sample_flops,
    smallest_cluster,
    stage_memory,
    usable,
)

GIB = 2**30


def paper(**deepspeed: object) -> TrainConfig:
    config = load_config("paper").train
    return config.model_copy(update={"deepspeed": config.deepspeed.model_copy(update=deepspeed)})


def test_paper_preset_on_eight_gpus_has_the_published_numbers() -> None:
    summary = plan_training(load_config("paper").train, 8, "h200", 0.4, None, None)
    assert summary["parameters"]["total"] == pytest.approx(7.05e9, rel=0.01)
    states = summary["memory"]["joint"]["zero-2"]["with_checkpointing"]
    # 2 bytes of weights, and an eighth of 2 + 12 of gradients and optimizer (arXiv 1910.02054)
    assert states["weights"] + states["gradients"] + states["optimizer"] == pytest.approx(
        7.055e9 * (2 + 14 / 8), rel=0.01
    )
    joint = next(stage for stage in summary["stages"] if stage["stage"] == "joint")
    assert joint["step"]["compute"] == pytest.approx(32 / 8 * 0.86, rel=0.05)
    seconds = joint["step_s"] * 30_000 + joint["saving_s"] + joint["start_s"]
    assert joint["days"] == pytest.approx(seconds / 86_400)
    assert summary["deepspeed"]["joint"]["gradient_accumulation_steps"] == 4
    assert summary["fits"] == {"audio": True, "joint": True, "multitask": True}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_memory_falls_with_more_gpus_and_higher_zero_stages(zero: int) -> None:
    config, lower = paper(zero_stage=zero), paper(zero_stage=max(zero - 1, 0))
    stage = config.stage("joint")
    peaks = [stage_memory(config, stage, workers).peak for workers in (1, 2, 4, 8, 16, 32)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[3] <= stage_memory(lower, stage, 8).peak


def test_smallest_cluster_fits_and_half_of_it_does_not() -> None:
    config, limit = paper(), usable(79.6 * GIB)
    stage = config.stage("joint")
    smallest = smallest_cluster(config, stage, limit, offload=False)
    assert smallest
    workers, setting = smallest
    assert stage_memory(config.model_copy(update={"deepspeed": setting}), stage, workers).peak <= limit
    assert workers > 1
    assert find_fitting_setting(config, stage, workers // 2, limit, offload=False) is None


def test_out_of_memory_names_settings_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = paper(zero_stage=0)
    monkeypatch.setattr("uniavgen.train.planning.device_memory", lambda device, workers: 79.6 * GIB)
    error = explain_out_of_memory(
        RuntimeError("CUDA out of memory. Tried to allocate"), config, config.stage("joint"), "cuda"
    )
    assert isinstance(error, UserError)
    assignments = [part for part in error.hint.split() if "=" in part]
    advised = load_config("paper", assignments=["train.deepspeed.zero_stage=0", *assignments]).train
    workers = advised.workers
    assert stage_memory(advised, advised.stage("joint"), workers).peak <= usable(79.6 * GIB)
    assert (
        explain_out_of_memory(RuntimeError("shapes do not match"), config, config.stage("joint"), "cuda")
        is None
    )


def test_storage_is_the_size_of_shards_and_latents(tmp_path: Path) -> None:
    """Reference: arrays of the shapes that `LatentSample` documents, and a corpus without a val split."""
    data = load_config().train.data
    (t, h, w), windows = data.latent_shape, data.cached.windows
    shapes = [(48, t, h, w), (48, 1, h, w), (t, h // 2, w // 2), (100, data.mels), (100, data.reference_mels)]
    arrays = [np.zeros((windows, *shape), data.cached.dtype) for shape in shapes]
    arrays.append(np.zeros((data.caption_tokens, data.codecs.caption_width), data.cached.dtype))
    write_tars(tmp_path / "shards", [[sample_named("a"), sample_named("b")], [sample_named("c")]])
    needs = data_needs(load_config().train, tmp_path, None)
    assert needs["latents_gb"] * 1e9 / 3 == pytest.approx(sum(array.nbytes for array in arrays))
    assert needs["clips"] == 3
    assert needs["shards_gb"] * 1e9 == pytest.approx(
        sum(tar.stat().st_size for tar in (tmp_path / "shards").glob("*.tar"))
    )
    with pytest.raises(UserError, match="the corpus has no shards"):
        data_needs(load_config().train, tmp_path / "absent", None)


def test_of_several_windows_the_costliest_is_planned() -> None:
    buckets = [
        WindowShape(frames=f, height=h, width=w) for f, h, w in ((9, 256, 256), (49, 256, 320), (81, 96, 96))
    ]
    config = load_config("paper").train
    several = config.model_copy(update={"data": config.data.model_copy(update={"buckets": buckets})})
    alone = config.model_copy(update={"data": data_for(config.data, buckets[1])})
    for name in ("joint", "multitask"):
        stage = config.stage(name)
        assert (
            stage_memory(several, stage, 8) == stage_memory(alone, stage, 8) != stage_memory(config, stage, 8)
        )
        assert sample_flops(several, stage) == sample_flops(alone, stage)


def test_codecs_on_line_cost_as_much_as_counted_and_cached_latents_nothing() -> None:
    """Reference: Wan2.2's VAE encodes 81 x 480 x 832 in 113.5 TFLOP; half of an H200's fp32 peak is 33.5."""
    config = load_config("paper").train
    stage, machine = config.stage("joint"), gpu_machine(find_gpu("h200"), 0.4)
    online = step_time(config, stage, 32, machine, cached=False)
    cached = step_time(config, stage, 32, machine, cached=True)
    assert online.codecs == pytest.approx(113.5 / 33.5, rel=0.1)
    assert online.waits_for == "codecs"
    assert (cached.codecs, cached.loader, cached.waits_for) == (0, 0, "compute")
    assert online.total - cached.total == pytest.approx(online.codecs)


def test_short_sequences_wait_for_launches_until_the_micro_batch_grows() -> None:
    config, machine = load_config("paper").train, gpu_machine(find_gpu("h200"), 0.4)
    stage = config.stage("audio")
    steps = {
        micro: step_time(
            config.model_copy(
                update={"deepspeed": config.deepspeed.model_copy(update={"micro_batch": micro})}
            ),
            stage,
            8,
            machine,
            cached=False,
        )
        for micro in (1, 32)
    }
    assert [step.waits_for for step in steps.values()] == ["launches", "compute"]
    assert steps[1].launches == pytest.approx(32 * steps[32].launches)
    assert steps[1].compute == steps[32].compute


def test_slow_loading_decides_the_step() -> None:
    config = load_config("laptop").train
    stage = config.stages[-1]
    fast = gpu_machine(find_gpu("80,100000,100000"), 1.0)
    step = step_time(config, stage, 1, fast, cached=False)
    assert step.total == max(step.loader, max(step.compute, step.launches) + step.codecs + step.optimizer)


def test_price_is_gpu_hours_times_the_price_of_one() -> None:
    summary = plan_training(load_config("paper").train, 8, "H200", None, None, None, 2.5)
    assert summary["usd"] == pytest.approx(2.5 * summary["gpu_hours"])
    cached = summary["with_cached_latents"]
    assert cached["usd"] == pytest.approx(2.5 * cached["gpu_hours"])
    assert cached["gpu_hours"] < summary["gpu_hours"]
    assert plan_training(load_config("paper").train, 8, "h200", None, None, None)["usd"] is None


def test_gpus_have_names_and_can_be_given_by_their_numbers() -> None:
    assert set(GPUS) == {"h100", "h200", "a100", "l40s", "4090", "a10"}
    assert find_gpu("A100-80g") is GPUS["a100"]
    assert find_gpu("24,165,1008").memory_gib == 24
    for wrong in ("h900", "24,165", "24,-1,1008", "24,nan,1008", "inf,1,1"):
        with pytest.raises(UsageError, match=r"GPU"):
            find_gpu(wrong)


def test_command_prints_a_summary_and_refuses_a_batch_that_cannot_be_divided() -> None:
    run, app = CliRunner(), typer_app("plan")
    done = run.invoke(app, ["--gpus", "1", "--gpu", "24,165,1008", "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert {stage["stage"] for stage in summary["stages"]} == {"audio", "joint", "multitask"}
    wrong = run.invoke(app, ["--gpus", "3"])
    assert wrong.exit_code == 1
    assert "train.stages.audio.batch" in wrong.stderr
    assert run.invoke(app, ["--mfu", "2"]).exit_code == 2


def test_tables_fit_into_80_columns_and_the_answer_comes_first(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "uniavgen",
        "plan",
        "--preset",
        "paper",
        "--gpus",
        "8",
        "--usd-per-hour",
        "3",
    ]
    done = subprocess.run(
        command, env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, cwd=tmp_path
    )
    lines = done.stderr.splitlines()
    assert all(word in lines[0] for word in ("days", "GPU-hours", "USD"))
    tables = [line for line in lines if line[:1] in "│┃┏└"]
    assert max(map(len, tables)) <= 80
    for title in ("waits for", "launches", "multitask", "activ."):
        assert any(title in line for line in tables)
