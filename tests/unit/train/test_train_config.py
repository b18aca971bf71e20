"""The training configuration: defaults, the paper's values, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from uniavgen.shards.errors import UserError
from uniavgen.train.config import DeepSpeedConfig, StageConfig, TrainConfig, lr_at, tiny_stages
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.stage_stream import split_batch
from uniavgen.train.engine.deepspeed_engine import deepspeed_settings
from uniavgen.train.tasks import PAPER_MIX


def test_default_stages_pass_weights_on() -> None:
    stages = TrainConfig().stages
    assert [(s.name, s.takes_from) for s in stages] == [
        ("audio", None),
        ("joint", "audio"),
        ("multitask", "joint"),
    ]
    assert stages[2].tasks == PAPER_MIX


def test_optimizer_is_the_papers() -> None:
    file = deepspeed_settings(TrainConfig(), StageConfig(name="joint", batch=32, lr=5e-6), 8)
    assert file["optimizer"]["type"] == "AdamW"
    assert (
        file["optimizer"]["params"] | {"betas": [0.9, 0.999], "eps": 1e-8, "lr": 5e-6}
        == file["optimizer"]["params"]
    )


def test_train_config_imports_nothing_heavy() -> None:
    heavy = "[m for m in ('torch', 'ray', 'deepspeed') if m in sys.modules]"
    code = f"import sys, uniavgen.train.config, uniavgen.train.planning; print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"frames": 16}}, r"4n \+ 1"),
        ({"data": {"height": 100}}, "multiple of 32"),
        ({"data": {"hight": 128}}, "hight"),
        ({"stages": [{"name": "joint", "takes_from": "audio"}]}, "not an earlier stage"),
        ({"stages": [{"name": "audio"}, {"name": "audio"}]}, "listed twice"),
        ({"stages": [{"name": "audio", "tasks": {"joint": 0}}]}, "positive weight"),
        ({"stages": [{"name": "audio", "tasks": {"sing": 1}}]}, "sing|joint"),
    ],
)
def test_inconsistent_configuration_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(changes)


def test_unknown_stage_lists_known_ones() -> None:
    with pytest.raises(UserError, match="audio, joint, multitask"):
        TrainConfig().stage("dance")


@pytest.mark.parametrize(
    ("world", "micro", "accumulated"), [(1, 0, 1), (2, 0, 1), (4, 0, 1), (1, 2, 4), (2, 2, 2), (2, 1, 4)]
)
def test_global_batch_does_not_depend_on_world_size(world: int, micro: int, accumulated: int) -> None:
    config = TrainConfig(deepspeed=DeepSpeedConfig(micro_batch=micro))
    stage = StageConfig(name="joint", batch=8)
    file = deepspeed_settings(config, stage, world)
    assert file["train_batch_size"] == 8
    assert file["gradient_accumulation_steps"] == accumulated
    places = [split_batch(8, world, rank, config.micro_batch(stage, world)) for rank in range(world)]
    assert sorted(place for worker in places for part in worker for place in part) == list(range(8))
    assert {len(worker) for worker in places} == {accumulated}


@pytest.mark.parametrize(("world", "micro"), [(3, 0), (2, 3), (16, 0)])
def test_unsplittable_batch_is_refused(world: int, micro: int) -> None:
    with pytest.raises(UserError, match="does not split"):
        TrainConfig(deepspeed=DeepSpeedConfig(micro_batch=micro)).micro_batch(
            StageConfig(name="joint", batch=8), world
        )


def test_learning_rate_warms_up_and_stays_constant() -> None:
    stage = StageConfig(name="audio", lr=1.0, warmup=3)
    assert [lr_at(stage, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_stage_overrides_lambda_schedule() -> None:
    config = TrainConfig()
    joint, multitask = tiny_stages()[1:]
    assert (
        joint.face_config(config.model.face).lambda_start,
        joint.face_config(config.model.face).lambda_end,
    ) == (0.1, 0.0)
    assert (
        multitask.face_config(config.model.face).lambda_start,
        multitask.face_config(config.model.face).lambda_end,
    ) == (0.0, 0.0)


def test_window_size_in_latents_and_mels() -> None:
    data = DataConfig(frames=81, height=480, width=832)
    assert data.latent_shape == (21, 30, 52)
    assert data.mels == 475
