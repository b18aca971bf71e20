"""Timestep distributions, seeded draws, the task schedule, the path and the masked loss."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.train import flow_matching
from uniavgen.train.flow_matching import task_at
from uniavgen.train.tasks import PAPER_MIX, Task
from uniavgen.train.timestep_config import TimestepConfig


def times(**config: object) -> torch.Tensor:
    chosen = TimestepConfig(**config)
    return torch.tensor([flow_matching.timestep_for(0, step, 0, chosen) for step in range(4000)])


def test_timesteps_follow_configured_distribution() -> None:
    u = times(distribution="uniform")
    assert u.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    normal = torch.logit(times(distribution="logit-normal", mean=0.5, std=2.0))
    assert normal.mean().item() == pytest.approx(0.5, abs=0.1)
    assert normal.std().item() == pytest.approx(2.0, abs=0.1)
    shifted = times(distribution="shifted", shift=5.0)
    assert shifted.median().item() == pytest.approx(5 * 0.5 / (1 + 4 * 0.5), abs=0.03)
    assert shifted.min() >= 0
    assert shifted.max() <= 1


def test_draws_depend_on_seed_step_and_sample_only() -> None:
    first = flow_matching.noise_for(1, 2, 3, (4, 5))
    torch.manual_seed(99)
    assert torch.equal(first, flow_matching.noise_for(1, 2, 3, (4, 5)))
    others = [flow_matching.noise_for(*key, (4, 5)) for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (1, 23, 0))]
    others.append(flow_matching.noise_for(1, 2, 3, (4, 5), "video-noise"))
    assert all(not torch.equal(first, other) for other in others)
    many = torch.cat([flow_matching.noise_for(0, step, 0, (1000,)) for step in range(20)])
    assert many.mean().abs() < 0.03
    assert abs(many.std() - 1) < 0.03


def test_path_runs_from_data_to_noise_at_target_velocity() -> None:
    data, noise = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(flow_matching.mix(data, noise, torch.zeros(3)), data)
    assert torch.equal(flow_matching.mix(data, noise, torch.ones(3)), noise)
    step = flow_matching.mix(data, noise, torch.full((3,), 0.51)) - flow_matching.mix(
        data, noise, torch.full((3,), 0.5)
    )
    torch.testing.assert_close(step / 0.01, flow_matching.velocity(data, noise), atol=1e-4, rtol=1e-3)


def test_velocity_loss_is_mean_over_scored_frames() -> None:
    predicted, target = torch.randn(2, 3, 4, 5, 2, 2)
    scored = torch.tensor([False, True, False, True, True])
    expected = (predicted - target)[:, :, scored].square().flatten(1).mean(1)
    predicted[:, :, 0], target[:, :, 2] = torch.inf, torch.nan
    predicted.requires_grad_()
    loss = flow_matching.velocity_loss(predicted, target, scored)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert not predicted.grad[:, :, ~scored].any()
    assert not flow_matching.velocity_loss(predicted, target, torch.zeros(5, dtype=torch.bool)).any()


@given(seed=st.integers(0, 10_000), start=st.integers(0, 10_000), length=st.integers(1, 60))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_task_mix_is_exact_over_any_window(seed: int, start: int, length: int) -> None:
    period = Counter(task_at(seed, start + i, PAPER_MIX) for i in range(10))
    assert period == {
        Task.JOINT: 4,
        Task.REFERENCE: 1,
        Task.CONTINUATION: 1,
        Task.DUBBING: 2,
        Task.AUDIO_DRIVEN: 2,
    }
    window = Counter(task_at(seed, start + i, PAPER_MIX) for i in range(length))
    for task, share in PAPER_MIX.items():
        assert abs(window[task] - length * share / 10) <= 1.2


def test_task_order_depends_on_seed_and_omits_zero_weights() -> None:
    cycles = {tuple(task_at(seed, i, PAPER_MIX) for i in range(10)) for seed in range(20)}
    assert len(cycles) > 5
    assert {task_at(0, i, {Task.JOINT: 1, Task.DUBBING: 0}) for i in range(5)} == {Task.JOINT}
