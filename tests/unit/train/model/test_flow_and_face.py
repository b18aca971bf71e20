"""Timestep distributions, seeded draws, the masked losses, face masks and the lambda schedule."""

import math

import pytest
import torch

from uniavgen.train import flow_matching
from uniavgen.train.config import TimestepConfig
from uniavgen.train.model.config import FaceConfig
from uniavgen.train.model.interaction import FaceMask
from uniavgen.train.model.objective import lambda_at, mask_iou, mask_loss


def times(**config: object) -> torch.Tensor:
    chosen = TimestepConfig(**config)
    return torch.tensor([flow_matching.timestep_for(0, step, 0, chosen) for step in range(4000)])


def test_timesteps_follow_the_named_distribution() -> None:
    u = times(distribution="uniform")
    assert u.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    normal = torch.logit(times(distribution="logit-normal", mean=0.5, std=2.0))
    assert normal.mean().item() == pytest.approx(0.5, abs=0.1)
    assert normal.std().item() == pytest.approx(2.0, abs=0.1)
    shifted = times(distribution="shifted", shift=5.0)
    assert shifted.median().item() == pytest.approx(5 * 0.5 / (1 + 4 * 0.5), abs=0.03)
    assert shifted.min() >= 0
    assert shifted.max() <= 1


def test_draws_are_functions_of_seed_step_and_sample_only() -> None:
    first = flow_matching.noise_for(1, 2, 3, (4, 5))
    torch.manual_seed(99)
    assert torch.equal(first, flow_matching.noise_for(1, 2, 3, (4, 5)))
    others = [flow_matching.noise_for(*key, (4, 5)) for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (1, 23, 0))]
    others.append(flow_matching.noise_for(1, 2, 3, (4, 5), "video-noise"))
    assert all(not torch.equal(first, other) for other in others)
    many = torch.cat([flow_matching.noise_for(0, step, 0, (1000,)) for step in range(20)])
    assert many.mean().abs() < 0.03
    assert abs(many.std() - 1) < 0.03


def test_the_path_runs_from_data_to_noise_at_the_target_velocity() -> None:
    data, noise = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(flow_matching.mix(data, noise, torch.zeros(3)), data)
    assert torch.equal(flow_matching.mix(data, noise, torch.ones(3)), noise)
    step = flow_matching.mix(data, noise, torch.full((3,), 0.51)) - flow_matching.mix(
        data, noise, torch.full((3,), 0.5)
    )
    torch.testing.assert_close(step / 0.01, flow_matching.velocity(data, noise), atol=1e-4, rtol=1e-3)


def test_the_velocity_loss_is_the_mean_over_scored_frames_whatever_the_rest_holds() -> None:
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


def test_lambda_falls_linearly_and_only_when_decayed() -> None:
    assert [lambda_at(FaceConfig(), p) for p in (0, 0.5, 1, 2)] == pytest.approx([0.1, 0.05, 0, 0])
    assert [lambda_at(FaceConfig(mode="fixed"), p) for p in (0, 1)] == [0.1, 0.1]
    assert lambda_at(FaceConfig(mode="unsupervised"), 0) == lambda_at(FaceConfig(mode="none"), 0) == 0


def test_the_mask_follows_its_definition() -> None:
    head, video = FaceMask(8, 1e-6), torch.randn(2, 3, 4, 8)
    torch.nn.init.normal_(head.norm.weight)
    torch.nn.init.normal_(head.norm.bias)
    mask = head(video)
    assert mask.shape == (2, 3, 4, 1)
    x = video[1, 2, 3]
    normed = (x - x.mean()) / math.sqrt(x.var(unbiased=False) + 1e-6)
    logit = head.linear.weight[0] @ (head.norm.weight * normed + head.norm.bias) + head.linear.bias[0]
    assert mask[1, 2, 3, 0].item() == pytest.approx(1 / (1 + math.exp(-logit.item())), abs=1e-6)


def test_the_mask_loss_reduces_as_its_field_says() -> None:
    masks, face = torch.rand(3, 2, 5, 4), torch.rand(2, 5, 4)
    scored = torch.tensor([False, True, True, True, False])
    squared = sum(((masks[layer] - face)[:, scored] ** 2).sum() for layer in range(3)) / 2
    for reduction, divisor in (("sum", 1), ("sum-layers", 12), ("mean", 36)):
        loss = mask_loss(masks, face, scored, FaceConfig(reduction=reduction))
        assert loss.item() == pytest.approx((squared / divisor).item(), rel=1e-5)
        assert mask_loss(masks, face, torch.zeros(5, dtype=torch.bool), FaceConfig(reduction=reduction)) == 0


def test_mask_overlap_is_told_per_layer() -> None:
    face = torch.zeros(1, 2, 4)
    face[0, 1, :2] = 1
    masks = torch.stack([face, 1 - face, torch.ones_like(face)])
    scored = torch.tensor([False, True])
    assert mask_iou(masks, face, scored).tolist() == pytest.approx([1, 0, 0.5])
