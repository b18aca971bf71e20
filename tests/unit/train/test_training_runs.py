"""Real runs of a very small model: DeepSpeed on one and two workers, every ZeRO stage, resumed, and through
Ray."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import Run, read_metrics, small_config, train_together, write_metrics
from made_samples import make_sample, write_shards
from paths import FACTORIES
from safetensors.torch import load_file

from uniavgen.shards import weights
from uniavgen.shards.errors import UserError
from uniavgen.shards.jsonl import read_rows
from uniavgen.train.checkpoint.run_folder import RunFolder, differing, load_weights
from uniavgen.train.config import StageConfig
from uniavgen.train.diagnostics.config import HealthConfig
from uniavgen.train.flow_matching import task_at
from uniavgen.train.tasks import Task

pytestmark = pytest.mark.slow
MIX = {Task.JOINT: 1, Task.REFERENCE: 1, Task.CONTINUATION: 1, Task.DUBBING: 1, Task.AUDIO_DRIVEN: 1}
MIXED = StageConfig(name="multitask", steps=5, batch=4, tasks=MIX, lambda_start=0.1)
AUDIO = StageConfig(name="audio", steps=12, batch=4, lr=3e-3, warmup=0)
JOINT = StageConfig(
    name="joint", steps=3, batch=2, takes_from="audio", starts_fresh=["video", "interactions"]
)
STRAIGHT = {
    "zero0": (2, {"zero_stage": 0}),
    "zero1": (2, {"zero_stage": 1}),
    "zero2": (2, {"zero_stage": 2}),
    "zero3": (2, {"zero_stage": 3}),
    "zero3 again": (2, {"zero_stage": 3, "micro_batch": 1, "activation_checkpointing": True}),
    "micro": (2, {"zero_stage": 2, "micro_batch": 1, "activation_checkpointing": True}),
    "alone": (1, {"zero_stage": 2}),
    "plain": (1, {"zero_stage": 0}),
}
SHORT_TEMPER = HealthConfig(rewind_after=2, max_rewinds=1, watch_every=2)
MOVED = {
    "1 worker to 2": ("alone", 2, 2, {"zero_stage": 2}),
    "2 workers to 1": ("1 worker to 2", 4, 1, {"zero_stage": 2}),
    "ZeRO 0 to 1": ("zero0", 2, 2, {"zero_stage": 1}),
    "ZeRO 2 to 0": ("zero2", 2, 2, {"zero_stage": 0}),
    "ZeRO 2 to 3": ("zero2", 2, 2, {"zero_stage": 3}),
    "ZeRO 3 to 2": ("ZeRO 2 to 3", 4, 2, {"zero_stage": 2}),
}
"""Runs that go on from another's checkpoint: whose, after how many steps, on how many workers, and how."""


@pytest.fixture(scope="module", autouse=True)
def captions() -> None:
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path) -> dict[str, Path]:
    """The same five mixed-task steps in every configuration, interrupted and moved to another, and with
    spoiled batches."""
    home = tmp_path_factory.mktemp("runs")
    others = [
        "resumed",
        "damaged",
        "all damaged",
        "bf16",
        "offload",
        "spoiled",
        "left out",
        "twice",
        "twice out",
        "verdict",
    ]
    others += ["full disk", "full disk of one", "fp16", "apart", "twice zero3"]
    folders = {name: home / name.replace(" ", "-") for name in [*STRAIGHT, *MOVED, *others]}
    for folder in folders.values():
        folder.mkdir()

    def run(
        name: str,
        world: int,
        spoiled: tuple[int, ...] = (),
        saved: tuple[tuple[str, int], ...] = (),
        **ds: Any,
    ) -> Run:
        plan = small_config([MIXED], world, every=2, **ds).model_copy(
            update={"ema": 0.9, "trace": True, "health": SHORT_TEMPER}
        )
        checkpoints = tuple(RunFolder(folders[of], "multitask").checkpoint(step) for of, step in saved)
        return Run(plan, "multitask", folders[name], checkpoints, spoiled)

    def moved(name: str) -> Run:
        source, step, world, ds = MOVED[name]
        return run(name, world, saved=((source, step),), **ds)

    for name, avoid in {"left out": [1], "twice out": [2, 3]}.items():
        RunFolder(folders[name], "multitask").write(rewinds={"times": 1, "avoid": avoid})
    train_together([run(name, 1, **STRAIGHT[name][1]) for name in ("alone", "plain")], shards_dir, 1)
    two = [
        run(name, world, **ds)
        for name, (world, ds) in STRAIGHT.items()
        if name in ("zero0", "zero1", "zero2", "micro")
    ]
    two += [moved(name) for name in ("1 worker to 2", "ZeRO 0 to 1", "ZeRO 2 to 0")]
    two += [
        run("resumed", 2, saved=(("zero2", 2),)),
        run("bf16", 2, dtype="bf16"),
        run("offload", 2, offload="cpu"),
    ]
    two += [
        run("spoiled", 2, spoiled=(1,)),
        run("left out", 2),
        run("twice", 2, spoiled=(2, 3)),
        run("twice out", 2),
    ]
    two += [run("verdict", 2, spoiled=(0, 1, 2, 3, 4))]
    two += [replace(run("full disk of one", 2, saved=(("zero2", 2),)), largest_file=100_000)]
    # ZeRO-3 replaces PyTorch's linear by one that rounds differently, for the rest of the process: it goes
    # last
    two += [run(name, 2, **STRAIGHT[name][1]) for name in ("zero3", "zero3 again")]
    two += [moved("ZeRO 2 to 3"), moved("ZeRO 3 to 2"), run("twice zero3", 2, spoiled=(2, 3), zero_stage=3)]
    other = write_shards(home / "shards", [make_sample(f"clip{i}", 24 + i, seed=i + 1) for i in range(8)])
    two += [replace(run("apart", 2), shards_of_last=other)]
    train_together(two, shards_dir, 2)
    for name, steps in {"damaged": (2, 4), "all damaged": (4,)}.items():
        for step in steps:
            path = RunFolder(folders[name], "multitask").checkpoint(step)
            shutil.copytree(RunFolder(folders["alone"], "multitask").checkpoint(step), path)
        flip_a_bit(next(path.glob("state/*optim_states.pt")))
    full = replace(run("full disk", 1, saved=(("alone", 2),)), largest_file=1_000_000)
    one = [
        moved("2 workers to 1"),
        run("damaged", 1),
        run("all damaged", 1),
        run("fp16", 1, dtype="fp16"),
        full,
    ]
    train_together(one, shards_dir, 1)
    return folders


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def told(run_dir: Path, event: str) -> list[dict[str, Any]]:
    """What a run said of a kind of event."""
    path = RunFolder(run_dir, "multitask").events
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line for line in lines if line["event"] == event]


def losses(run_dir: Path) -> list[float]:
    return [metrics["loss/total"] for step, metrics in sorted(read_metrics(run_dir).items()) if step]


@pytest.mark.parametrize("name", [name for name in STRAIGHT if name != "zero2"])
def test_losses_do_not_depend_on_workers_zero_stage_or_accumulation(runs: dict[str, Path], name: str) -> None:
    assert len(losses(runs[name])) == MIXED.steps
    assert losses(runs[name]) == pytest.approx(losses(runs["zero2"]), rel=2e-5)


@pytest.mark.parametrize("name", [name for name in STRAIGHT if name != "zero2"])
def test_gradient_norms_do_not_depend_on_workers_zero_stage_or_accumulation(
    runs: dict[str, Path], name: str
) -> None:
    norms = [
        [metrics["grad_norm"] for step, metrics in read_metrics(runs[n]).items() if step]
        for n in (name, "zero2")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert min(norms[0]) > 0


@pytest.mark.parametrize("name", [name for name in STRAIGHT if name != "zero2"])
def test_final_weights_are_complete_and_equal(runs: dict[str, Path], name: str) -> None:
    these, those = load_weights(runs[name], "multitask"), load_weights(runs["zero2"], "multitask")
    assert these.keys() == those.keys()
    for key, tensor in these.items():
        torch.testing.assert_close(tensor, those[key], atol=1e-4, rtol=1e-3)


def test_optimizer_offload_changes_nothing(runs: dict[str, Path]) -> None:
    assert losses(runs["offload"]) == pytest.approx(losses(runs["zero2"]), rel=2e-5)


def test_bf16_trains_close_to_fp32_and_writes_fp32_weights(runs: dict[str, Path]) -> None:
    assert losses(runs["bf16"]) == pytest.approx(losses(runs["zero2"]), rel=0.05)
    assert {tensor.dtype for tensor in load_weights(runs["bf16"], "multitask").values()} == {torch.float32}


def same_weights(one: Path, other: Path, *, ema: bool = False) -> bool:
    these, those = (
        load_weights(one, "multitask", ema=ema),
        load_weights(other, "multitask", ema=ema),
    )
    return these.keys() == those.keys() and all(torch.equal(these[key], those[key]) for key in those)


@pytest.mark.parametrize("ema", [False, True])
def test_resumed_run_continues_bit_for_bit(runs: dict[str, Path], ema: bool) -> None:
    straight, resumed = read_metrics(runs["zero2"]), read_metrics(runs["resumed"])
    assert sorted(resumed) == [3, 4, 5]
    for step in resumed:
        assert resumed[step]["loss/total"] == straight[step]["loss/total"]
    assert same_weights(runs["resumed"], runs["zero2"], ema=ema)


@pytest.mark.parametrize("name", MOVED)
def test_run_resumes_with_other_workers_and_zero_stages(runs: dict[str, Path], name: str) -> None:
    step = MOVED[name][1]
    assert losses(runs[name]) == pytest.approx(losses(runs["zero2"])[step:], rel=2e-5)
    assert len(told(runs[name], "converted")) == 1
    for ema in (False, True):
        these, those = (load_weights(runs[n], "multitask", ema=ema) for n in (name, "zero2"))
        assert these.keys() == those.keys()
        for key, tensor in these.items():
            torch.testing.assert_close(tensor, those[key], atol=1e-5, rtol=1e-3)
    assert not list(RunFolder(runs[name], "multitask").checkpoints.glob(".*")), (
        "the converted copy is not kept"
    )


def test_ema_follows_weights_step_by_step(runs: dict[str, Path]) -> None:
    """Checkpoint 4 and the end are one step apart: average_5 = d average_4 + (1 - d) weights_5 with d =
    min(0.9, 5 / 14)."""
    before = load_file(RunFolder(runs["zero2"], "multitask").checkpoint(4) / "ema.safetensors")
    weights, after = (load_weights(runs["zero2"], "multitask", ema=ema) for ema in (False, True))
    for name, tensor in after.items():
        torch.testing.assert_close(
            tensor, before[name] * 5 / 14 + weights[name] * 9 / 14, atol=1e-6, rtol=1e-5
        )
    assert not torch.equal(after["audio.head.head.weight"], weights["audio.head.head.weight"])


def test_damaged_checkpoint_is_named_and_previous_one_used(runs: dict[str, Path]) -> None:
    (event,) = told(runs["damaged"], "damaged")
    assert re.fullmatch(
        r"checkpoint 4 is damaged \(state/.*optim_states.pt has another SHA-256 .*\); resuming from 2",
        event["text"],
    )
    assert sorted(read_metrics(runs["damaged"])) == [3, 4, 5]
    assert same_weights(runs["damaged"], runs["alone"])
    assert differing_files(runs["damaged"], 4) == []


def differing_files(run_dir: Path, step: int) -> list[str]:
    folder = RunFolder(run_dir, "multitask")
    return differing(folder.checkpoint(step), folder.manifest(step))


def test_run_without_complete_checkpoint_stops_and_deletes_nothing(runs: dict[str, Path]) -> None:
    said = (runs["all damaged"] / "error-0.txt").read_text()
    assert said.startswith("damaged-checkpoint: all checkpoints are damaged; the newest, 4: state/")
    assert RunFolder(runs["all damaged"], "multitask").steps() == [4]


@pytest.mark.parametrize(("name", "workers"), [("full disk", 1), ("full disk of one", 2)])
def test_full_disk_during_save_keeps_previous_checkpoint(
    runs: dict[str, Path], name: str, workers: int
) -> None:
    """Where only the last of the workers lacks room, the others hear of it and do not wait."""
    for rank in range(workers):
        said = (runs[name] / f"error-{rank}.txt").read_text()
        assert re.match(
            r"save-failed: checkpoint 4 cannot be written: .*; free space and run the same command again",
            said,
        )
    folder = RunFolder(runs[name], "multitask")
    assert folder.steps() == [2]
    assert differing_files(runs[name], 2) == []


def test_fp16_trains_or_reports_unsupported_processor(runs: dict[str, Path]) -> None:
    """Without a GPU that is the processor's choice: PyTorch computes in fp16 on some only."""
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        assert losses(runs["fp16"]) == pytest.approx(losses(runs["zero2"]), rel=0.05)
    else:
        assert (
            "no-fp16: this processor does not compute in fp16" in (runs["fp16"] / "error-0.txt").read_text()
        )


def test_nan_batch_on_one_rank_is_skipped_on_all(runs: dict[str, Path]) -> None:
    metrics = read_metrics(runs["spoiled"])
    assert [metrics[step]["skipped"] for step in range(1, 6)] == [0, 1, 0, 0, 0]
    assert math.isnan(metrics[2]["loss/total"])
    assert same_weights(runs["spoiled"], runs["left out"])
    assert same_weights(runs["spoiled"], runs["left out"], ema=True)
    (event,) = told(runs["spoiled"], "skipped")
    assert event["text"] == f"step 2 skipped ({task_at(0, 1, MIX)}): loss is nan"
    bad = [sample for sample in event["samples"] if sample["tensors"]["mel"]["not_finite"]]
    assert [sample["places"] for sample in bad] == [[2, 3]]
    assert len(bad[0]["keys"]) == 2


@pytest.mark.parametrize("name", ["spoiled", "left out"])
def test_checkpoint_due_at_skipped_step_is_saved_after_next(runs: dict[str, Path], name: str) -> None:
    assert RunFolder(runs[name], "multitask").steps() == [3, 4, 5]


def test_bad_steps_in_a_row_rewind_and_are_omitted(runs: dict[str, Path]) -> None:
    (event,) = told(runs["twice"], "rewind")
    assert event["text"] == "2 bad steps in a row: back to step 2, to continue without them"
    assert event["steps"] == [3, 4]
    assert RunFolder(runs["twice"], "multitask").read()["rewinds"] == {"times": 1, "avoid": [2, 3]}
    assert RunFolder(runs["twice"], "multitask").read()["outcome"]["steps"] == 3
    assert same_weights(runs["twice"], runs["twice out"])


@pytest.mark.parametrize("name", ["twice", "twice zero3"])
def test_rewind_frees_previous_model(runs: dict[str, Path], name: str) -> None:
    assert len(told(runs[name], "rewind")) == 1
    assert [(runs[name] / f"living-{rank}.txt").read_text() for rank in range(2)] == ["0\n0\n"] * 2
    assert losses(runs[name])[-1] == pytest.approx(losses(runs["twice out"])[-1], rel=2e-5)


def test_different_shards_on_one_rank_stop_all_ranks(runs: dict[str, Path]) -> None:
    for rank in range(2):
        said = (runs["apart"] / f"error-{rank}.txt").read_text()
        assert said == (
            "not-shared: rank 1 sees different shards or cached latents than rank 0; use shared storage"
        )
    assert not (runs["apart"] / "metrics.jsonl").exists()


def test_persistently_bad_run_stops_on_all_ranks(runs: dict[str, Path]) -> None:
    for rank in (0, 1):
        said = (runs["verdict"] / f"error-{rank}.txt").read_text()
        assert (
            "diverged: training diverged: 2 bad steps in a row up to step 4, again after going back 1 time"
            in said
        )


def load_trace(run_dir: Path) -> list[dict[str, Any]]:
    paths = sorted(RunFolder(run_dir, "multitask").path.glob("trace-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_trace_names_every_sample_of_global_batch(runs: dict[str, Path]) -> None:
    def ids(name: str) -> dict[int, dict[str, str]]:
        found: dict[int, dict[str, str]] = {}
        for entry in load_trace(runs[name]):
            found.setdefault(entry["step"], {}).update(entry["keys"])
        return found

    assert sorted(ids("zero2")) == list(range(MIXED.steps))
    assert all(sorted(keys) == ["0", "1", "2", "3"] for keys in ids("zero2").values())
    assert ids("alone") == ids("zero2") == ids("micro")


def test_checkpoint_names_its_shards(runs: dict[str, Path], shards_dir: Path) -> None:
    shards = json.loads((shards_dir / "manifest.json").read_text())["shards"]
    for name in ("zero2", "resumed"):
        state = RunFolder(runs[name], "multitask").state(5)
        assert state["shards"] == {shard["name"]: shard["sha256"] for shard in shards}


def test_step_metrics_have_losses_by_task_and_pace(runs: dict[str, Path]) -> None:
    metrics = read_metrics(runs["zero2"])
    tasks = {name.split("/")[1] for step in metrics.values() for name in step if name.startswith("task/")}
    assert tasks == {str(task) for task in MIX}
    assert {
        "lambda_m",
        "lr",
        "grad_norm",
        "time/samples_per_s",
        "time/data_wait_s",
        "samples/short",
    } <= metrics[1].keys()
    assert metrics[1]["lambda_m"] == pytest.approx(0.1)
    assert metrics[5]["lambda_m"] == 0
    dubbed = next(step for step in metrics.values() if "task/dubbing/audio" in step)
    assert "loss/video" not in dubbed


@pytest.fixture(scope="module")
def ray_cluster():
    import ray

    # the workers must find the receiver of metrics, which is in the factories folder
    there = {"env_vars": {"PYTHONPATH": str(FACTORIES)}}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=there)
    yield
    ray.shutdown()


def test_ray_train_runs_stage_once_and_reports_failures_in_one_line(
    ray_cluster: None, shards_dir: Path, tmp_path: Path
) -> None:
    from uniavgen.train.launch import run_stage

    plan = small_config([AUDIO, JOINT])
    with pytest.raises(UserError, match="starts from stage audio"):
        run_stage(plan, "joint", shards_dir, tmp_path)
    factory = partial(write_metrics, tmp_path / "metrics.jsonl")
    result = run_stage(plan, "audio", shards_dir, tmp_path, factory)
    assert result.ran
    assert result.steps == AUDIO.steps
    assert result.fixed_end["audio"] < result.fixed_start["audio"]
    assert result.loss_end["audio"] < result.loss_start["audio"]
    assert result.weights.is_file()
    assert sorted(read_metrics(tmp_path)) == list(range(AUDIO.steps + 1))
    assert {key.split(".")[0] for key in load_weights(tmp_path, "audio")} == {"audio", "speech_text"}

    again = run_stage(plan, "audio", shards_dir, tmp_path)
    assert not again.ran
    assert again.loss_end == result.loss_end
    with pytest.raises(UserError, match="stage.lr"):
        run_stage(small_config([AUDIO.model_copy(update={"lr": 1.0}), JOINT]), "audio", shards_dir, tmp_path)

    short = write_shards(tmp_path / "short", [make_sample("s", 6)])
    with pytest.raises(UserError, match=r"lower train\.data\.frames") as caught:
        run_stage(plan.model_copy(update={"max_restarts": 2}), "joint", short, tmp_path)
    assert "\n" not in str(caught.value)
    told = [row["event"] for row in read_rows(RunFolder(tmp_path, "joint").events).rows]
    assert "restart" not in told, "what a person must put right is not tried again"
    with pytest.raises(UserError, match="CPUs"):
        run_stage(plan.model_copy(update={"workers": 2, "cpus_per_worker": 8}), "joint", shards_dir, tmp_path)
