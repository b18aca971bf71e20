"""Padding that is neither attended to nor scored, samples without interaction, and time in fp32 under
bf16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from uniavgen.shards.errors import UserError
from uniavgen.train.batch import BranchInput, LatentBatch, validate_batch
from uniavgen.train.config import ObjectiveConfig
from uniavgen.train.flow_matching import Draw, uniform_for
from uniavgen.train.model.config import BranchConfig, FaceConfig, ModelConfig
from uniavgen.train.model.dit import Branch, TimeLinear, time_features
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import compute_losses, prepare_inputs
from uniavgen.train.tasks import Task

MakeBatch = Callable[..., LatentBatch]
MakeConfig = Callable[..., ModelConfig]
Randomised = Callable[..., DualBranch]
DRAW = Draw(7, 3, (0, 1))


def audio_only(batch: LatentBatch, lengths: list[int] | None) -> LatentBatch:
    names = ("video", "reference", "caption", "caption_mask", "face")
    return replace(
        batch,
        **dict.fromkeys(names),
        mel_lengths=None if lengths is None else torch.tensor(lengths),
    )


def losses_of(
    model: DualBranch, batch: LatentBatch, task: Task, **objective: float
) -> dict[str, torch.Tensor]:
    details: dict[str, torch.Tensor] = {}
    compute_losses(model, batch, task, DRAW, ObjectiveConfig(**objective), FaceConfig(), 0.0, details=details)
    return details


@pytest.mark.parametrize("task", [Task.JOINT, Task.REFERENCE])
def test_padded_sample_has_the_loss_of_the_same_sample_cut_to_its_length(
    task: Task, make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    """Oracle: the sample alone, without padding, and the squared error over its frames in numpy."""
    model, lengths = randomised(make_config()), [100, 37]
    batch = audio_only(make_batch(), lengths)
    padded = losses_of(model, batch, task, speech_dropout=0)["audio"].detach()
    inputs = prepare_inputs(batch, task, DRAW, ObjectiveConfig(speech_dropout=0), FaceConfig())
    before = inputs.audio.latent.shape[2] - 100
    for index, length in enumerate(lengths):
        alone = BranchInput(
            inputs.audio.latent[index : index + 1, :, : before + length],
            (*inputs.audio.layout[:-1], inputs.audio.layout[-1]._replace(length=length)),
            inputs.audio.timestep[index : index + 1],
            inputs.audio.text[index : index + 1],
            inputs.audio.text_mask[index : index + 1],
        )
        out = model(None, alone).audio.detach().numpy()[0, :, before:]
        target = inputs.audio_target[index, :, before : before + length].numpy()
        assert float(padded[index]) == pytest.approx(float(np.mean((out - target) ** 2)), rel=1e-4)


def test_padding_changes_nothing_and_gets_no_gradient(
    make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    model, batch = randomised(make_config()), audio_only(make_batch(), [60, 37])
    loss = losses_of(model, batch, Task.JOINT)["audio"].detach()
    batch.mel[0, :, 60:], batch.mel[1, :, 37:] = 1e3, -1e3
    batch.mel.requires_grad_()
    changed = losses_of(model, batch, Task.JOINT)["audio"]
    torch.testing.assert_close(changed.detach(), loss)
    changed.sum().backward()
    assert batch.mel.grad is not None
    assert not batch.mel.grad[0, :, 60:].any()
    assert not batch.mel.grad[1, :, 37:].any()
    assert batch.mel.grad[1, :, :37].any()


def test_full_lengths_equal_no_lengths(
    make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    model, batch = randomised(make_config()), make_batch()
    with_lengths, without = (
        losses_of(model, audio_only(batch, lengths), Task.JOINT)["audio"] for lengths in ([100, 100], None)
    )
    torch.testing.assert_close(with_lengths, without)


@pytest.mark.parametrize("lengths", [[0, 5], [5, 101]])
def test_lengths_outside_of_the_window_are_refused(lengths: list[int], make_batch: MakeBatch) -> None:
    with pytest.raises(UserError, match="mel_lengths must be 1 to 100"):
        validate_batch(audio_only(make_batch(), lengths))


def test_lengths_with_video_are_refused(make_batch: MakeBatch) -> None:
    with pytest.raises(UserError, match="audio without video"):
        validate_batch(replace(make_batch(), mel_lengths=torch.tensor([5, 5])))


def test_gate_of_zero_is_the_pass_without_interaction(
    make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    model = randomised(make_config(layers=4))
    inputs = prepare_inputs(make_batch(), Task.JOINT, DRAW, ObjectiveConfig(), FaceConfig())
    mixed = model(inputs.video, inputs.audio, gate=torch.tensor([1.0, 0.0]))
    whole, apart = (model(inputs.video, inputs.audio, interact=interact) for interact in (True, False))
    for name in ("video", "audio"):
        torch.testing.assert_close(getattr(mixed, name)[0], getattr(whole, name)[0])
        torch.testing.assert_close(getattr(mixed, name)[1], getattr(apart, name)[1])
        assert not torch.allclose(getattr(whole, name)[1], getattr(apart, name)[1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gated_step_keeps_every_parameter_in_the_graph(
    checkpointing: bool, make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    model = randomised(make_config())
    objective = ObjectiveConfig(interaction_dropout=1.0)
    losses = compute_losses(
        model, make_batch(), Task.JOINT, DRAW, objective, FaceConfig(), 0.1, checkpointing=checkpointing
    )
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.interactions["1"].a2v.o.weight.grad.any()


def test_interaction_is_dropped_by_seed_step_and_sample_with_its_texts(make_batch: MakeBatch) -> None:
    draw, share = Draw(5, 9, tuple(range(40))), 0.3
    dropped = [uniform_for(5, 9, index, "interaction-dropout") < share for index in range(40)]
    assert 5 < sum(dropped) < 20
    for with_text in (True, False):
        objective = ObjectiveConfig(
            interaction_dropout=share,
            interaction_dropout_text=with_text,
            caption_dropout=0,
            speech_dropout=0,
        )
        inputs = prepare_inputs(make_batch(size=40), Task.JOINT, draw, objective, FaceConfig())
        assert inputs.gate is not None
        assert inputs.video is not None
        assert inputs.gate.tolist() == [float(not gone) for gone in dropped]
        for data in (inputs.video, inputs.audio):
            assert data.text_mask.any(1).tolist() == [not (gone and with_text) for gone in dropped]


def test_no_gate_without_the_field_or_without_video(make_batch: MakeBatch) -> None:
    objective = ObjectiveConfig(interaction_dropout=1.0)
    assert prepare_inputs(make_batch(), Task.JOINT, DRAW, ObjectiveConfig(), FaceConfig()).gate is None
    audio = audio_only(make_batch(), None)
    assert prepare_inputs(audio, Task.JOINT, DRAW, objective, FaceConfig()).gate is None


def branch(fp32_time: bool) -> Branch:
    torch.manual_seed(0)
    config = BranchConfig(
        dim=32, layers=1, heads=2, ffn_dim=32, in_channels=8, text_dim=8, fp32_time=fp32_time
    )
    return Branch(config).bfloat16()


def test_neighbouring_times_stay_apart_in_fp32_under_bf16() -> None:
    """Oracle: the two linear layers in numpy in float64, from the rounded weights."""
    times = torch.tensor([0.5, 0.5001, 0.501])
    made = branch(fp32_time=True)
    embedded = made.time_embedding(time_features(times, 256))
    assert embedded.dtype == torch.float32
    assert made.time_projection(embedded).dtype == torch.float32
    first, second = made.time_embedding[0], made.time_embedding[2]
    hidden = time_features(times, 256).double().numpy() @ first.weight.double().detach().numpy().T
    hidden += first.bias.double().detach().numpy()
    expected = (hidden / (1 + np.exp(-hidden))) @ second.weight.double().detach().numpy().T
    expected += second.bias.double().detach().numpy()
    np.testing.assert_allclose(embedded.detach().numpy(), expected, atol=1e-5)
    rounded = branch(fp32_time=False).time_embedding(time_features(times, 256)).float()
    error = np.abs(rounded.detach().numpy() - expected).max()
    assert error > 50 * np.abs(embedded.detach().numpy() - expected).max()


def test_fp32_time_changes_nothing_in_an_fp32_model() -> None:
    features = time_features(torch.tensor([0.1, 0.9]), 256)
    torch.manual_seed(0)
    one = TimeLinear(256, 8, fp32=False)
    torch.manual_seed(0)
    two = TimeLinear(256, 8, fp32=True)
    assert torch.equal(one(features), two(features))


def test_modulation_of_a_bf16_model_is_fp32_in_every_block() -> None:
    made = branch(fp32_time=True)
    data = BranchInput(
        torch.randn(1, 8, 3, 1, 1),
        (),
        torch.tensor([0.3]),
        torch.zeros(1, 2, 8),
        torch.ones(1, 2, dtype=torch.bool),
    )
    stream = made.begin(data, data.text, (torch.ones(3, 8), torch.zeros(3, 8)))
    assert stream.modulation.dtype == torch.float32
    assert stream.x.dtype == torch.bfloat16
    assert all(row.dtype == torch.float32 for row in made.blocks[0].modulation(stream.modulation))
