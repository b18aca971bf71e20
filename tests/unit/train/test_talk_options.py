"""Options of the objective for small talking models, each against a plain computation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from uniavgen.orchestration.config import load_config
from uniavgen.shards.errors import UserError
from uniavgen.train import flow_matching
from uniavgen.train.batch import DualOutput
from uniavgen.train.config import ObjectiveConfig, TrainConfig
from uniavgen.train.flow_matching import Draw, bounded_weight, velocity_loss
from uniavgen.train.mel_augmentation import augment_mel, change_mel, shift_bands
from uniavgen.train.model.config import FaceConfig
from uniavgen.train.model.objective import compute_losses, prepare_inputs
from uniavgen.train.own_options import MelAugmentationConfig
from uniavgen.train.tasks import Task

DRAW = Draw(0, 3, (0, 1))
GIVEN = [task for task in Task if "audio" not in task.spec.generates]


@given(st.floats(0.001, 1), st.floats(0.1, 100))
@settings(max_examples=50, deadline=None)
def test_bounded_weight_bounds_the_weight_of_an_x0_error(t: float, bound: float) -> None:
    error = 0.7  # of x0
    weighted = float(bounded_weight(torch.tensor([t], dtype=torch.float64), bound)) * (error / t) ** 2
    assert weighted == pytest.approx(min(1 / t**2, bound) * error**2)


def test_weighted_loss_is_the_weighted_mean() -> None:
    generator = np.random.default_rng(0)
    predicted, target = generator.normal(size=(2, 2, 3, 4, 2, 2)).astype(np.float32)
    weight = generator.uniform(1, 6, size=(2, 1, 4, 2, 2)).astype(np.float32)
    scored = np.array([False, True, True, False])
    given = (torch.from_numpy(array) for array in (predicted, target, scored, weight))
    loss = velocity_loss(*given)
    expected = [
        np.average(
            (predicted[i] - target[i])[:, scored] ** 2,
            weights=np.broadcast_to(weight[i][:, scored], (3, 2, 2, 2)),
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)
    even = velocity_loss(torch.from_numpy(predicted), torch.from_numpy(target), torch.from_numpy(scored))
    ones = velocity_loss(
        torch.from_numpy(predicted),
        torch.from_numpy(target),
        torch.from_numpy(scored),
        torch.ones(2, 1, 4, 2, 2),
    )
    torch.testing.assert_close(ones, even)


def zero_model(video, audio, *, checkpointing=False):
    return DualOutput(torch.zeros_like(video.latent), torch.zeros_like(audio.latent), None)


@pytest.mark.parametrize("task", [Task.JOINT, Task.AUDIO_DRIVEN, Task.CONTINUATION])
def test_mouth_weight_and_bound_weigh_the_losses_of_every_task(make_batch, task: Task) -> None:
    batch = make_batch()
    batch = replace(batch, mouth=(torch.rand(2, 5, 4, 4) > 0.7).float())
    plain, ours = ObjectiveConfig(), ObjectiveConfig(mouth_weight=6.0, weight_bound=2.0)
    inputs = prepare_inputs(batch, task, DRAW, ours, FaceConfig())
    details: dict[str, torch.Tensor] = {}
    compute_losses(zero_model, batch, task, DRAW, ours, FaceConfig(), 0.0, details=details)
    before = inputs.video_target.shape[2] - 5
    scored = inputs.video_scored[before:]
    squares = inputs.video_target[:, :, before:][:, :, scored].square().mean(1)
    weights = 1 + 5 * batch.mouth[:, scored]
    expected = (squares * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)
    expected = expected * (2 * inputs.video.timestep**2).clamp(max=1)
    torch.testing.assert_close(details["video"], expected)
    unweighted: dict[str, torch.Tensor] = {}
    compute_losses(zero_model, batch, task, DRAW, plain, FaceConfig(), 0.0, details=unweighted)
    if float(unweighted["audio"].sum()):
        times = (2 * inputs.audio.timestep**2).clamp(max=1)
        torch.testing.assert_close(details["audio"], unweighted["audio"] * times)


def test_mouth_weight_without_masks_is_refused(make_batch) -> None:
    with pytest.raises(UserError, match=r"batch\.mouth"):
        prepare_inputs(make_batch(), Task.JOINT, DRAW, ObjectiveConfig(mouth_weight=2.0), FaceConfig())
    with pytest.raises(ValidationError, match=r"data\.mouth_mask"):
        TrainConfig(objective=ObjectiveConfig(mouth_weight=2.0))


@given(st.integers(-5, 5))
def test_shifted_bands_are_the_neighbours(bands: int) -> None:
    mel = torch.arange(8.0)[:, None].expand(8, 3)
    expected = np.clip(np.arange(8) - bands, 0, 7)
    np.testing.assert_array_equal(shift_bands(mel, bands)[:, 1].numpy(), expected)


@pytest.mark.parametrize("task", list(Task))
def test_only_given_audio_is_changed(make_batch, task: Task) -> None:
    batch, config = make_batch(), MelAugmentationConfig(gain=0.3, shift=2, noise=0.1)
    changed = augment_mel(batch, task, DRAW, config)
    assert torch.equal(changed.mel, batch.mel) == (task not in GIVEN)
    assert torch.equal(changed.reference_mel, batch.reference_mel)
    assert augment_mel(batch, task, DRAW, MelAugmentationConfig()) is batch


def test_changes_depend_on_seed_step_and_sample_only(make_batch) -> None:
    batch, config = make_batch(), MelAugmentationConfig(gain=0.3, shift=2, noise=0.1)
    both = augment_mel(batch, GIVEN[0], DRAW, config).mel
    torch.testing.assert_close(change_mel(batch.mel[1], 0, 3, 1, config), both[1])
    assert not torch.equal(change_mel(batch.mel[1], 0, 4, 1, config), both[1])
    assert not torch.equal(change_mel(batch.mel[1], 1, 3, 1, config), both[1])


def test_gain_moves_all_numbers_alike_and_keeps_time() -> None:
    mel = torch.randn(100, 20)
    offsets = [change_mel(mel, 0, step, 0, MelAugmentationConfig(gain=0.5)) - mel for step in range(200)]
    assert max(float(offset.std()) for offset in offsets) < 1e-5
    assert np.std([float(offset.mean()) for offset in offsets]) == pytest.approx(0.5, rel=0.2)


def test_talk_preset_has_every_option_and_paper_preset_has_none() -> None:
    talk, paper = (load_config(name).train for name in ("talk", "paper"))
    assert talk.model.video.places == (4, 4)
    assert [talk.model.video.prediction, talk.model.audio.prediction] == ["data", "data"]
    assert talk.data.codecs.video == "fitted"
    assert (talk.data.crop, talk.data.relative, talk.data.mouth_mask) == ("stabilised", True, True)
    defaults = ObjectiveConfig()
    for name in ("weight_bound", "mouth_weight", "mel_augmentation"):
        assert getattr(talk.objective, name) != getattr(defaults, name)
        assert getattr(paper.objective, name) == getattr(defaults, name)
    assert (paper.data.follows_face, paper.data.relative, paper.data.mouth_mask) == (False, False, False)
    assert (paper.model.video.places, paper.model.video.prediction) == (None, "velocity")
    assert flow_matching.timestep_for(0, 0, 0, talk.objective.timestep) > 0


@pytest.mark.parametrize(
    "changes", [{"height": 160}, {"buckets": [{"frames": 33, "height": 128, "width": 128}]}]
)
def test_places_must_be_the_grid_of_the_window(changes: dict[str, object]) -> None:
    talk = load_config("talk").train.model_dump()
    talk["data"] = {**talk["data"], **changes}
    with pytest.raises(ValidationError, match=r"video\.places"):
        TrainConfig.model_validate(talk)
