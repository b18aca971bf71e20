"""Changed settings on resume: each takes effect on the weights, in every layout, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import Run, small_config, train_together

from uniavgen.shards import weights
from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.changes import check_changes, settings_that_matter
from uniavgen.train.checkpoint.run_folder import RunFolder, load_weights
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.launch import check_stage

LR, DECAY, STEP = 3e-3, 0.01, 2
STAGE = StageConfig(name="joint", steps=3, batch=2, lr=LR, warmup=0, weight_decay=DECAY, grad_clip=1.0)
ZERO = (0, 1, 2, 3)
CLIP: dict[str, Any] = {"grad_clip": 1e-3}
BOTH: dict[str, Any] = {"grad_clip": 1e-3, "weight_decay": 100.0}
WILDCARDS = "[exp1] x*y #1? "
"""Legal characters of a folder's name that are special in a glob pattern or a URL."""
Runs = dict[tuple[str, int], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path) -> Runs:
    """Weights after step 3, resumed at step 2 with changes, by ZeRO stage.

    `begun`: without a stop. `step 2`: the weights of the checkpoint. `converted`: from ZeRO 0 or 2.
    """
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    home = tmp_path_factory.mktemp("changes")

    def run(name: str, zero: int, source: int | None = None, **changes: Any) -> Run:
        config = small_config([STAGE.model_copy(update=changes)], 2, every=STEP, zero_stage=zero)
        folder = home / f"{WILDCARDS}{name} {zero}"
        folder.mkdir()
        begun = RunFolder(home / f"{WILDCARDS}begun {source}", "joint").checkpoint(STEP)
        checkpoints = () if source is None else (begun,)
        without_fixed = config.model_copy(update={"fixed_steps": 0})
        return Run(without_fixed, "joint", folder, checkpoints, accept_changes=True)

    todo: dict[tuple[str, int], Run] = {}
    for zero in ZERO:  # ZeRO 3 goes last: it changes how this process rounds
        todo["begun", zero] = run("begun", zero)
        todo["both", zero] = run("both", zero, zero, **BOTH)
        if zero == 0:
            todo["clipping", 0] = run("clipping", 0, 0, **CLIP)
        if zero == 2:
            todo["as before", 2] = run("as before", 2, 2)
            todo["step 2", 2] = run("step 2", 2, 2, steps=STEP)
            todo["learning rate", 2] = run("learning rate", 2, 2, lr=10 * LR)
            todo["converted", 1] = run("converted", 1, 0, **BOTH)
        if zero == 3:
            todo["converted", 3] = run("converted", 3, 2, **BOTH)
    train_together(list(todo.values()), shards_dir, 2)
    failed = [path.read_text() for path in sorted(home.glob("*/error-0.txt"))]
    assert failed == []
    return {key: load_weights(run.run_dir, "joint") for key, run in todo.items()}


def assert_close(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> None:
    assert these.keys() == those.keys()
    for name, tensor in these.items():
        torch.testing.assert_close(tensor, those[name], atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_resumed_run_in_folder_with_wildcards_continues(runs: Runs) -> None:
    assert_close(runs["as before", 2], runs["begun", 2])


@pytest.mark.slow
@pytest.mark.parametrize("key", [*(("both", zero) for zero in ZERO), ("converted", 1), ("converted", 3)])
def test_weight_decay_and_clipping_take_effect(runs: Runs, key: tuple[str, int]) -> None:
    """AdamW: w_3 = w_2 - lr decay w_2 - lr m / (sqrt(v) + eps). Clipping acts on the third term alone.

    That term is known from ZeRO 0, where this package's own code clips; under ZeRO DeepSpeed's does.
    """
    before, clipped = runs["step 2", 2], runs["clipping", 0]
    assert_close(
        runs[key], {name: tensor - LR * (100.0 - DECAY) * before[name] for name, tensor in clipped.items()}
    )


@pytest.mark.slow
def test_clipping_changes_the_step(runs: Runs) -> None:
    head = "video.head.head.weight"
    assert (runs["clipping", 0][head] - runs["begun", 0][head]).abs().max() > 1e-4


@pytest.mark.slow
def test_learning_rate_takes_effect(runs: Runs) -> None:
    """The step of AdamW is proportional to the learning rate."""
    before = runs["step 2", 2]
    for name, now in runs["begun", 2].items():
        expected = before[name] + 10 * (now - before[name])
        torch.testing.assert_close(runs["learning rate", 2][name], expected, atol=2e-4, rtol=1e-2, msg=name)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[RunFolder, TrainConfig]:
    """A stage that stopped at step 2: a checkpoint of which nothing but its settings is read."""
    config = small_config([STAGE])
    folder = RunFolder(tmp_path / "run", "joint")
    path = folder.checkpoint(STEP)
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"settings": settings_that_matter(config, STAGE)}))
    (path / "manifest.json").write_text("{}")
    return folder, config


def changed(config: TrainConfig, dotted: str, value: Any) -> TrainConfig:
    """The configuration with one setting changed; `stage.` is the stage."""
    content = config.model_dump(mode="json")
    target: Any = content
    for part in (path := dotted.replace("stage.", "stages.0.").split("."))[:-1]:
        target = target[int(part)] if part.isdigit() else target[part]
    target[path[-1]] = value
    return TrainConfig.model_validate(content)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("stage.steps", 1),
        ("stage.trains", ["audio"]),
        ("stage.starts_fresh", ["video"]),
        ("stage.pretrained.video", "wan.safetensors"),
        ("data.latents", "off"),
        ("data.cached.windows", 8),
        ("fixed_steps", 3),
        ("model.video.ffn_dim", 128),
    ],
)
def test_change_that_cannot_act_is_refused(
    saved: tuple[RunFolder, TrainConfig], setting: str, value: Any
) -> None:
    folder, config = saved
    now = changed(config, setting, value)
    with pytest.raises(UserError) as caught:
        check_changes(folder, STEP, now, now.stage("joint"), accept=True)
    assert caught.value.kind == "changed-configuration"
    assert "\n" not in str(caught.value)
    assert "--accept-changes" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("stage.steps", STEP),
        ("stage.steps", 9),
        ("stage.weight_decay", 1.0),
        ("stage.batch", 4),
        ("stage.tasks", {"dubbing": 1}),
        ("model.interaction.window", 2),
        ("data.frames", 17),
        ("ema", 0.5),
        ("seed", 5),
    ],
)
def test_change_that_acts_needs_acceptance(
    saved: tuple[RunFolder, TrainConfig], setting: str, value: Any
) -> None:
    folder, config = saved
    now = changed(config, setting, value)
    with pytest.raises(UserError, match="--accept-changes"):
        check_changes(folder, STEP, now, now.stage("joint"), accept=False)
    names = check_changes(folder, STEP, now, now.stage("joint"), accept=True)
    assert all(name.startswith(setting) for name in names)
    assert names


def test_changes_are_refused_before_workers_start(
    saved: tuple[RunFolder, TrainConfig], shards_dir: Path
) -> None:
    folder, config = saved
    now = changed(config, "stage.lr", 1.0)
    with pytest.raises(UserError, match=r"another stage\.lr"):
        check_stage(now, "joint", shards_dir, folder.path.parent)
    assert not check_stage(now, "joint", shards_dir, folder.path.parent, accept_changes=True)


def test_finished_stage_is_extended_if_accepted(
    saved: tuple[RunFolder, TrainConfig], shards_dir: Path
) -> None:
    folder, config = saved
    run_dir = folder.path.parent
    folder.write(done=True, config=config.model_dump(mode="json"))
    folder.weights.write_bytes(b"weights")
    longer = changed(config, "stage.steps", 9)
    assert check_stage(config, "joint", shards_dir, run_dir)
    with pytest.raises(UserError, match="train joint further with --accept-changes"):
        check_stage(longer, "joint", shards_dir, run_dir)
    assert not check_stage(longer, "joint", shards_dir, run_dir, accept_changes=True)
    (folder.checkpoint(STEP) / "manifest.json").unlink()
    with pytest.raises(UserError) as caught:
        check_stage(longer, "joint", shards_dir, run_dir, accept_changes=True)
    assert caught.value.kind == "missing-checkpoint"
