"""Real runs of a very small model: DeepSpeed on one and two workers, every ZeRO stage, resumed, and through Ray."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from made_runs import Run, read_metrics, small_plan, train_together, write_metrics
from made_samples import make_sample, write_shards

from shards import weights
from shards.errors import UserError
from train.checkpoint import RunFolder, load_weights
from train.options import Task
from train.stages import StageConfig

pytestmark = pytest.mark.slow
MIX = {Task.JOINT: 1, Task.REFERENCE: 1, Task.CONTINUATION: 1, Task.DUBBING: 1, Task.AUDIO_DRIVEN: 1}
MIXED = StageConfig(name="multitask", steps=5, batch=4, tasks=MIX, lambda_start=0.1)
AUDIO = StageConfig(name="audio", steps=12, batch=4, lr=3e-3, warmup=0)
JOINT = StageConfig(name="joint", steps=3, batch=2, takes_from="audio", starts_fresh=["video", "interactions"])
RUNS = {
    "zero0": (2, {"zero_stage": 0}),
    "zero1": (2, {"zero_stage": 1}),
    "zero2": (2, {"zero_stage": 2}),
    "zero3": (2, {"zero_stage": 3}),
    "micro": (2, {"zero_stage": 2, "micro_batch": 1}),
    "alone": (1, {"zero_stage": 2}),
}


@pytest.fixture(scope="module", autouse=True)
def captions() -> None:
    if not weights.present("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path) -> dict[str, Path]:
    """The same five mixed-task steps in every configuration; and one of them interrupted after two steps and resumed."""
    folders = {name: tmp_path_factory.mktemp(name) for name in [*RUNS, "resumed", "bf16"]}
    of = {n: Run(small_plan([MIXED], world, every=2, **ds), "multitask", folders[n]) for n, (world, ds) in RUNS.items()}
    bf16 = Run(small_plan([MIXED], 2, zero_stage=2, dtype="bf16"), "multitask", folders["bf16"])
    half = RunFolder(folders["zero2"], "multitask").checkpoint(2)
    resumed = Run(of["zero2"].config, "multitask", folders["resumed"], half)
    # ZeRO-3 replaces PyTorch's linear by one that rounds differently, for the rest of the process: it goes last
    two = [of["zero0"], of["zero1"], of["zero2"], resumed, of["micro"], bf16, of["zero3"]]
    train_together(two, shards_dir, 2)
    train_together([of["alone"]], shards_dir, 1)
    return folders


def losses(run_dir: Path) -> list[float]:
    return [metrics["loss/total"] for step, metrics in sorted(read_metrics(run_dir).items()) if step]


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero3", "micro", "alone"])
def test_losses_do_not_depend_on_workers_zero_stage_or_accumulation(runs: dict[str, Path], name: str) -> None:
    assert len(losses(runs[name])) == MIXED.steps
    assert losses(runs[name]) == pytest.approx(losses(runs["zero2"]), rel=2e-5)


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero3", "micro", "alone"])
def test_gradient_norms_do_not_depend_on_them_either(runs: dict[str, Path], name: str) -> None:
    norms = [[metrics["grad_norm"] for step, metrics in read_metrics(runs[n]).items() if step] for n in (name, "zero2")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert min(norms[0]) > 0


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero3", "micro", "alone"])
def test_the_weights_left_behind_are_whole_and_the_same(runs: dict[str, Path], name: str) -> None:
    these, those = load_weights(runs[name], "multitask"), load_weights(runs["zero2"], "multitask")
    assert these.keys() == those.keys()
    for key, tensor in these.items():
        torch.testing.assert_close(tensor, those[key], atol=1e-4, rtol=1e-3)


def test_bf16_trains_close_to_fp32_and_leaves_fp32_weights(runs: dict[str, Path]) -> None:
    assert losses(runs["bf16"]) == pytest.approx(losses(runs["zero2"]), rel=0.05)
    assert {tensor.dtype for tensor in load_weights(runs["bf16"], "multitask").values()} == {torch.float32}


def test_a_resumed_run_continues_bit_for_bit(runs: dict[str, Path]) -> None:
    straight, resumed = read_metrics(runs["zero2"]), read_metrics(runs["resumed"])
    assert sorted(resumed) == [3, 4, 5]
    for step in resumed:
        assert resumed[step]["loss/total"] == straight[step]["loss/total"]
    these, those = load_weights(runs["resumed"], "multitask"), load_weights(runs["zero2"], "multitask")
    assert all(torch.equal(these[key], those[key]) for key in those)


def test_a_checkpoint_names_the_shards_that_its_run_keeps_to(runs: dict[str, Path], shards_dir: Path) -> None:
    shards = json.loads((shards_dir / "manifest.json").read_text())["shards"]
    for name in ("zero2", "resumed"):
        state = RunFolder(runs[name], "multitask").state(5)
        assert state["shards"] == {shard["name"]: shard["sha256"] for shard in shards}


def test_every_step_tells_its_losses_by_task_and_its_pace(runs: dict[str, Path]) -> None:
    metrics = read_metrics(runs["zero2"])
    tasks = {name.split("/")[1] for step in metrics.values() for name in step if name.startswith("task/")}
    assert tasks == {str(task) for task in MIX}
    assert {"lambda_m", "lr", "grad_norm", "time/samples_per_s", "time/data_wait_s", "clips/short"} <= metrics[1].keys()
    assert metrics[1]["lambda_m"] == pytest.approx(0.1)
    assert metrics[5]["lambda_m"] == 0
    dubbed = next(step for step in metrics.values() if "task/dubbing/audio" in step)
    assert "loss/video" not in dubbed


def test_another_configuration_or_world_size_does_not_resume(runs: dict[str, Path], tmp_path: Path) -> None:
    from train.trainer import resume

    folder = RunFolder(runs["zero2"], "multitask")
    plan = small_plan([MIXED], 2, zero_stage=2)
    with pytest.raises(UserError, match="by 2 workers, now there are 4"):
        resume(None, folder, plan, MIXED, 4)
    with pytest.raises(UserError, match="stage.lr"):
        resume(None, folder, plan, MIXED.model_copy(update={"lr": 1.0}), 2)


@pytest.fixture(scope="module")
def ray_cluster():
    import ray

    # the workers must find the receiver of metrics, which stands beside this file
    there = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=there)
    yield
    ray.shutdown()


def test_ray_train_runs_a_stage_once_and_tells_failures_in_one_line(
    ray_cluster: None, shards_dir: Path, tmp_path: Path
) -> None:
    from train.launch import run_stage

    plan = small_plan([AUDIO, JOINT])
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
        run_stage(small_plan([AUDIO.model_copy(update={"lr": 1.0}), JOINT]), "audio", shards_dir, tmp_path)

    short = write_shards(tmp_path / "short", [make_sample("s", 6)])
    with pytest.raises(UserError, match=r"lower train\.data\.frames") as caught:
        run_stage(plan, "joint", short, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="CPUs"):
        run_stage(plan.model_copy(update={"workers": 2, "cpus_per_worker": 8}), "joint", shards_dir, tmp_path)
