"""Learning-rate schedules and the groups of parameters that decay, against values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from uniavgen.train.config import StageConfig, lr_at
from uniavgen.train.engine.deepspeed_engine import adamw_settings, parameter_groups
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.dual_branch import DualBranch


def rates(steps: int, **settings: object) -> list[float]:
    stage = StageConfig.model_validate({"name": "joint", "lr": 2.0, "steps": steps, "warmup": 0, **settings})
    return [lr_at(stage, step) for step in range(steps)]


def test_cosine_schedule_falls_from_lr_to_lr_end_at_the_last_step() -> None:
    values = rates(5, schedule="cosine", lr_end=0.1)
    assert values == pytest.approx([2.0, 0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2, 1.1, 0.463604, 0.2], abs=1e-6)


def test_step_schedule_falls_every_so_many_steps_and_not_below_lr_end() -> None:
    values = rates(7, schedule="step", lr_every=2, lr_factor=0.5, lr_end=0.2)
    assert values == pytest.approx([2, 2, 1, 1, 0.5, 0.5, 0.4])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_is_the_same_under_every_schedule(schedule: str) -> None:
    values = rates(100, schedule=schedule, warmup=4)
    assert values[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])


def test_schedule_of_one_step_is_the_learning_rate() -> None:
    assert rates(1, schedule="cosine") == [2.0]


@pytest.mark.parametrize("betas", [(1.0, 0.9), (-0.1, 0.9), (0.9,)])
def test_betas_outside_of_zero_to_one_are_refused(betas: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="betas"):
        StageConfig.model_validate({"name": "joint", "betas": betas})


def test_betas_and_eps_reach_the_optimizer() -> None:
    chosen = adamw_settings(StageConfig(name="joint", betas=(0.8, 0.95), eps=1e-6))
    assert (chosen["betas"], chosen["eps"]) == ([0.8, 0.95], 1e-6)


def test_matrices_alone_decay(make_config: Callable[..., ModelConfig]) -> None:
    model = DualBranch(make_config())
    together = parameter_groups(model.named_parameters(), StageConfig(name="joint"))
    assert [len(group["params"]) for group in together] == [len(list(model.parameters()))]
    decayed, kept = parameter_groups(model.named_parameters(), StageConfig(name="joint", decayed="matrices"))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    # the oracle goes by the class of the module that owns a parameter, not by its shape
    matrices = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv1d)
    }
    assert set(decayed["names"]) == matrices
    assert set(kept["names"]) == {name for name, _ in model.named_parameters()} - matrices


def test_one_adamw_step_leaves_norms_and_biases_undecayed(make_config: Callable[..., ModelConfig]) -> None:
    model = DualBranch(make_config())
    stage = StageConfig(name="joint", decayed="matrices", lr=0.5, weight_decay=0.2)
    groups = parameter_groups(model.named_parameters(), stage)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        [{name: group[name] for name in ("params", "weight_decay")} for group in groups], lr=stage.lr
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(
        after["video.blocks.0.ffn.0.weight"], 0.9 * before["video.blocks.0.ffn.0.weight"]
    )
    for name in ("video.blocks.0.norm3.weight", "audio.blocks.1.modulation.table", "audio.head.head.bias"):
        assert torch.equal(after[name], before[name])
