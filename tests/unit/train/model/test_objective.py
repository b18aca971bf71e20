"""The objective: inputs and targets of each task, no leaks, losses, text dropout, face masks."""

from collections.abc import Callable

import pytest
import torch

from uniavgen.shards.errors import UserError
from uniavgen.train.batch import (
    CONDITION,
    NOISY,
    REFERENCE,
    BranchInput,
    DualOutput,
    LatentBatch,
    validate_batch,
)
from uniavgen.train.config import ObjectiveConfig
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.config import FaceConfig, ModelConfig
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import (
    compute_losses,
    drop_text,
    lambda_at,
    mask_iou,
    mask_loss,
    prepare_inputs,
    role_mask,
)
from uniavgen.train.tasks import Task

MakeBatch = Callable[..., LatentBatch]
DRAW = Draw(7, 3, (0, 1))
FACE = FaceConfig()


def shape_of(data: BranchInput) -> list[tuple[int, int, int]]:
    return [tuple(s) for s in data.layout]


@pytest.mark.parametrize(
    ("task", "video", "audio"),
    [
        (Task.JOINT, [(REFERENCE, -1, 1), (NOISY, 0, 5)], [(NOISY, 0, 100)]),
        (Task.REFERENCE, [(REFERENCE, -1, 1), (NOISY, 0, 5)], [(REFERENCE, -9, 9), (NOISY, 0, 100)]),
        (
            Task.CONTINUATION,
            [(REFERENCE, -1, 1), (CONDITION, 0, 2), (NOISY, 2, 3)],
            [(CONDITION, 0, 30), (NOISY, 30, 70)],
        ),
        (Task.DUBBING, [(REFERENCE, -1, 1), (CONDITION, 0, 5)], [(REFERENCE, -9, 9), (NOISY, 0, 100)]),
        (Task.AUDIO_DRIVEN, [(REFERENCE, -1, 1), (NOISY, 0, 5)], [(CONDITION, 0, 100)]),
    ],
)
def test_layout_of_each_task(task: Task, video: list, audio: list, make_batch: MakeBatch) -> None:
    objective = ObjectiveConfig(continuation_min=0.4, continuation_max=0.4, dubbing_reference=1)
    inputs = prepare_inputs(make_batch(), task, DRAW, objective, FACE)
    assert shape_of(inputs.video) == video
    assert shape_of(inputs.audio) == audio
    assert [name for name in ("video", "audio") if getattr(inputs, f"{name}_scored").any()] == list(
        task.spec.generates
    )
    assert inputs.video.latent.shape[2] == len(inputs.video.role) == len(inputs.video.position)


def test_clean_parts_are_data_and_noisy_parts_lie_on_path(make_batch: MakeBatch) -> None:
    batch = make_batch()
    inputs = prepare_inputs(
        batch, Task.CONTINUATION, DRAW, ObjectiveConfig(continuation_min=0.4, continuation_max=0.4), FACE
    )
    latent, t = inputs.video.latent, inputs.video.timestep.view(-1, 1, 1, 1, 1)
    assert torch.equal(latent[:, :, :1], batch.reference)
    assert torch.equal(latent[:, :, 1:3], batch.video[:, :, :2])
    # x_t - t u = x_0 and x_t + (1 - t) u = noise
    torch.testing.assert_close(
        latent[:, :, 3:] - t * inputs.video_target[:, :, 3:], batch.video[:, :, 2:], atol=1e-5, rtol=0
    )
    assert not inputs.video_target[:, :, :3].any()
    noise = latent[:, :, 3:] + (1 - t) * inputs.video_target[:, :, 3:]
    assert noise.mean().abs() < 0.1
    assert abs(noise.std() - 1) < 0.1


def test_dubbing_uses_first_frame_as_reference_image(make_batch: MakeBatch) -> None:
    batch = make_batch()
    inputs = prepare_inputs(batch, Task.DUBBING, DRAW, ObjectiveConfig(), FACE)
    assert torch.equal(inputs.video.latent, torch.cat([batch.video[:, :, :1], batch.video], dim=2))


@pytest.mark.parametrize("task", list(Task))
def test_no_task_leaks_its_target_into_its_condition(task: Task, make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch.video.requires_grad_()
    batch.mel.requires_grad_()
    inputs = prepare_inputs(batch, task, DRAW, ObjectiveConfig(), FACE)
    for data, clip, reference in (
        (inputs.video, batch.video, inputs.video.layout[0].length),
        (inputs.audio, batch.mel, inputs.audio.latent.shape[2] - 100),
    ):
        clean = role_mask(data.layout, REFERENCE, CONDITION)
        target = role_mask(data.layout, NOISY)[reference:]
        (grad,) = torch.autograd.grad(
            data.latent[:, :, clean].sum(), clip, allow_unused=True, retain_graph=True
        )
        assert grad is None or not grad[:, :, target].any()
        # and what is noisy never shows a target beyond the (1 - t) of its own place
        if target.any():
            (grad,) = torch.autograd.grad(data.latent[:, :, ~clean].sum(), clip, retain_graph=True)
            share = (1 - data.timestep).view(-1, *[1] * (grad.dim() - 1)).expand_as(grad)
            torch.testing.assert_close(grad[:, :, target], share[:, :, target])


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("supervise", ["noisy", "clip"])
def test_clean_tokens_get_no_gradient(task: Task, supervise: str, make_batch: MakeBatch) -> None:
    outputs = []

    def model(video: BranchInput, audio: BranchInput, checkpointing: bool = False) -> DualOutput:
        masks = torch.rand(3, 2, video.latent.shape[2], 4).requires_grad_()
        outs = [torch.randn_like(data.latent).requires_grad_() for data in (video, audio)]
        outputs.append((video, audio, *outs, masks))
        return DualOutput(*outs, face_masks=masks)

    compute_losses(model, make_batch(), task, DRAW, ObjectiveConfig(), FaceConfig(supervise=supervise), 0.1)[
        "total"
    ].backward()
    video, audio, out_v, out_a, masks = outputs[0]
    for data, out, name in ((video, out_v, "video"), (audio, out_a, "audio")):
        noisy = role_mask(data.layout, NOISY)
        assert not out.grad[:, :, ~noisy].any()
        assert noisy.any() == (name in task.spec.generates)
        assert out.grad[:, :, noisy].all()
    roles = (NOISY,) if supervise == "noisy" else (NOISY, CONDITION)
    scored = role_mask(video.layout, *roles)
    assert not masks.grad[:, :, ~scored].any()
    assert masks.grad[:, :, scored].all()


@pytest.mark.parametrize("task", list(Task))
def test_every_parameter_gets_a_gradient_in_every_task(
    task: Task, make_batch: MakeBatch, make_config: Callable[..., ModelConfig]
) -> None:
    config = make_config()
    model = DualBranch(config)
    compute_losses(model, make_batch(), task, DRAW, ObjectiveConfig(), config.face, 0.1)["total"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_audio_only_batch_trains_audio_parts(
    make_batch: MakeBatch, make_config: Callable[..., ModelConfig]
) -> None:
    config = make_config()
    model, batch = DualBranch(config), make_batch()
    batch.video = batch.reference = batch.caption = batch.caption_mask = batch.face = None
    for task in (Task.JOINT, Task.REFERENCE, Task.CONTINUATION):
        losses = compute_losses(model, batch, task, DRAW, ObjectiveConfig(), config.face, 0.1)
        assert losses["video"] == losses["mask"] == 0
        assert losses["audio"] > 0.5
    losses["total"].backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"audio", "speech_text"}
    for task in (Task.DUBBING, Task.AUDIO_DRIVEN):
        with pytest.raises(UserError, match="needs video"):
            compute_losses(model, batch, task, DRAW, ObjectiveConfig(), config.face, 0.1)


def test_draws_do_not_depend_on_other_samples_in_batch(make_batch: MakeBatch) -> None:
    batch = make_batch(size=3)
    full = prepare_inputs(batch, Task.JOINT, Draw(1, 2, (0, 1, 2)), ObjectiveConfig(), FACE)
    half = make_batch(size=3)
    for name in (
        "mel",
        "reference_mel",
        "speech_ids",
        "speech_mask",
        "video",
        "reference",
        "caption",
        "caption_mask",
        "face",
    ):
        setattr(half, name, getattr(half, name)[2:])
    alone = prepare_inputs(half, Task.JOINT, Draw(1, 2, (2,)), ObjectiveConfig(), FACE)
    for ours, theirs in ((full.video, alone.video), (full.audio, alone.audio)):
        assert torch.equal(ours.latent[2:], theirs.latent)
        assert torch.equal(ours.timestep[2:], theirs.timestep)
        assert torch.equal(ours.text_mask[2:], theirs.text_mask)
    other = prepare_inputs(batch, Task.JOINT, Draw(1, 3, (0, 1, 2)), ObjectiveConfig(), FACE)
    assert not torch.equal(full.audio.latent, other.audio.latent)


def test_branches_share_timestep_unless_configured_otherwise(make_batch: MakeBatch) -> None:
    shared = prepare_inputs(make_batch(), Task.JOINT, DRAW, ObjectiveConfig(), FACE)
    assert torch.equal(shared.video.timestep, shared.audio.timestep)
    apart = prepare_inputs(make_batch(), Task.JOINT, DRAW, ObjectiveConfig(shared_timestep=False), FACE)
    assert not torch.equal(apart.video.timestep, apart.audio.timestep)


def test_text_dropout_rate_per_sample(make_batch: MakeBatch) -> None:
    batch, objective, dropped = (
        make_batch(size=4),
        ObjectiveConfig(caption_dropout=0.25, speech_dropout=0.5),
        torch.zeros(2),
    )
    for step in range(500):
        out = drop_text(batch, Draw(0, step, (0, 1, 2, 3)), objective)
        dropped += torch.tensor([(~m.any(dim=1)).sum() for m in (out.caption_mask, out.speech_mask)])
    assert (dropped / 2000).tolist() == pytest.approx([0.25, 0.5], abs=0.03)
    assert batch.caption_mask.all()


def test_bad_batches_are_named(make_batch: MakeBatch) -> None:
    validate_batch(make_batch())
    for name, value, message in (
        ("mel", torch.zeros(2, 100, 99), "batch.mel has 99 frames, 5 video latents last 100"),
        ("caption", None, "batch.caption is missing"),
        ("reference_mel", torch.zeros(3, 100, 9), "batch.reference_mel holds 3 samples"),
        (
            "video",
            torch.full((2, 48, 5, 4, 4), torch.nan),
            r"batch.video holds NaN or infinity \(clip0, clip1\)",
        ),
    ):
        batch = make_batch()
        setattr(batch, name, value)
        with pytest.raises(UserError, match=message):
            validate_batch(batch)
    with pytest.raises(UserError, match="1 sample indices for a batch of 2"):
        prepare_inputs(make_batch(), Task.JOINT, Draw(0, 0, (0,)), ObjectiveConfig(), FACE)
    with pytest.raises(UserError, match="reference_mel"):
        prepare_inputs(make_batch(voice=0), Task.REFERENCE, DRAW, ObjectiveConfig(), FACE)


def test_lambda_falls_linearly_only_when_decayed() -> None:
    assert [lambda_at(FaceConfig(), p) for p in (0, 0.5, 1, 2)] == pytest.approx([0.1, 0.05, 0, 0])
    assert [lambda_at(FaceConfig(mode="fixed"), p) for p in (0, 1)] == [0.1, 0.1]
    assert lambda_at(FaceConfig(mode="unsupervised"), 0) == lambda_at(FaceConfig(mode="none"), 0) == 0


def test_mask_loss_reductions() -> None:
    masks, face = torch.rand(3, 2, 5, 4), torch.rand(2, 5, 4)
    scored = torch.tensor([False, True, True, True, False])
    squared = sum(((masks[layer] - face)[:, scored] ** 2).sum() for layer in range(3)) / 2
    for reduction, divisor in (("sum", 1), ("sum-layers", 12), ("mean", 36)):
        loss = mask_loss(masks, face, scored, FaceConfig(reduction=reduction))
        assert loss.item() == pytest.approx((squared / divisor).item(), rel=1e-5)
        assert mask_loss(masks, face, torch.zeros(5, dtype=torch.bool), FaceConfig(reduction=reduction)) == 0


def test_mask_iou_per_layer() -> None:
    face = torch.zeros(1, 2, 4)
    face[0, 1, :2] = 1
    masks = torch.stack([face, 1 - face, torch.ones_like(face)])
    scored = torch.tensor([False, True])
    assert mask_iou(masks, face, scored).tolist() == pytest.approx([1, 0, 0.5])
