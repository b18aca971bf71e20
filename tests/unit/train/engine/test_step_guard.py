"""StepGuard on a real optimizer: what it clips, skips and reports."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from uniavgen.train.engine.deepspeed_engine import StepGuard


class PlainEngine:
    """The interface of DeepSpeed's engine that trains fp32 without ZeRO."""

    def __init__(self, model: nn.Module) -> None:
        self.basic_optimizer = self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def was_step_applied(self) -> bool:
        return True

    def get_global_grad_norm(self) -> None:
        return None


def two_models(scale: float) -> tuple[nn.Module, nn.Module]:
    """Equal models with equal gradients."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
        (scale * model(torch.randn(4, 5)).square().sum()).backward()
        models.append(model)
    return models[0], models[1]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_step_guard_clips_like_pytorch_and_reports_unclipped_norm(scale: float, clip: float) -> None:
    guarded, bare = two_models(scale)
    engine = PlainEngine(guarded)
    guard = StepGuard(engine, clip)
    norm = torch.nn.utils.clip_grad_norm_(bare.parameters(), clip or math.inf)
    guard.set_limits(skip=False, max_norm=math.inf)
    engine.optimizer.step()
    torch.optim.AdamW(bare.parameters(), lr=0.1).step()
    assert guard.applied
    assert guard.grad_norm == pytest.approx(float(norm), rel=1e-6)
    for ours, theirs in zip(guarded.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=0)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("skip", "max_norm", "spoiled"), [(True, math.inf, 0.0), (False, 1e-3, 0.0), (False, math.inf, math.nan)]
)
def test_skipped_step_changes_neither_weights_nor_moments(
    skip: bool, max_norm: float, spoiled: float
) -> None:
    model, before = two_models(1.0)
    engine = PlainEngine(model)
    guard = StepGuard(engine, 1.0)
    first = next(model.parameters())
    assert first.grad is not None
    first.grad += spoiled
    guard.set_limits(skip=skip, max_norm=max_norm)
    engine.optimizer.step()
    assert not guard.applied
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert all(not state["exp_avg"].any() for state in engine.optimizer.state.values())
    model.zero_grad()
    model(torch.ones(1, 5)).sum().backward()
    guard.set_limits(skip=False, max_norm=math.inf)
    engine.optimizer.step()
    assert guard.applied, "the next step is applied"
