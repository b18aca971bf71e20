"""The objective of UniAVGen: from a batch and a task to `[ref | cond | noisy]` branch inputs, targets and
losses.

L = L_v + L_a + lambda_m L_m (paper, section 3). The given part of a clip is clean, and the generated part
starts where it ends, so no target is ever seen as a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import MELS_PER_FRAME
from uniavgen.train import flow_matching
from uniavgen.train.batch import (
    CONDITION,
    NOISY,
    REFERENCE,
    BranchInput,
    DualOutput,
    LatentBatch,
    Segment,
    TokenLayout,
    on_device,
)
from uniavgen.train.config import ObjectiveConfig
from uniavgen.train.flow_matching import Draw, bounded_weight
from uniavgen.train.mel_augmentation import augment_mel
from uniavgen.train.model.config import FaceConfig
from uniavgen.train.tasks import ClipCondition, Task, clip_condition
from uniavgen.train.timestep_config import TimestepConfig

Model = Callable[..., DualOutput]
"""A `DualBranch`, or an engine around one: called as model(video, audio, checkpointing=...)."""


@dataclass
class TaskInputs:
    """Branch inputs, velocity targets of the full sequence (zero where clean), bool [N] of scored frames.

    audio_scored is bool [B, N] where samples have padding. face [B, N, S]: share of each video token inside
    the face; face_scored bool [N]; video_weight [B, 1, N, h, w]: weight of each latent in the loss, None for
    an even mean. gate [B]: 0 for samples without interaction; None: all have it. Members are None with their
    branch.
    """

    video: BranchInput | None
    audio: BranchInput
    video_target: Tensor | None
    audio_target: Tensor
    video_scored: Tensor | None
    audio_scored: Tensor
    face: Tensor | None = None
    face_scored: Tensor | None = None
    video_weight: Tensor | None = None
    gate: Tensor | None = None


class UniAVGenObjective:
    """The loss of one stage (`train.model.family.Objective`)."""

    def __init__(self, config: ObjectiveConfig, face: FaceConfig, *, checkpointing: bool = False) -> None:
        self.config, self.face, self.checkpointing = config, face, checkpointing

    def weights(self, progress: float) -> dict[str, float]:
        """`lambda_m` after the share `progress` (0..1) of the stage."""
        return {"lambda_m": lambda_at(self.face, progress)}

    def losses(
        self,
        model: Model,
        batch: LatentBatch,
        task: Task,
        draw: Draw,
        weights: Mapping[str, float],
        details: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """`compute_losses` with the settings of the stage."""
        return compute_losses(
            model,
            batch,
            task,
            draw,
            self.config,
            self.face,
            weights.get("lambda_m", 0.0),
            checkpointing=self.checkpointing,
            details=details,
        )


def compute_losses(
    model: Model,
    batch: LatentBatch,
    task: Task,
    draw: Draw,
    objective: ObjectiveConfig,
    face: FaceConfig,
    lambda_m: float,
    *,
    checkpointing: bool = False,
    mels_per_frame: Fraction = MELS_PER_FRAME,
    details: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Losses of one micro-step: scalars `total` = L_v + L_a + lambda_m L_m, `video`, `audio`, `mask`.

    Means over samples, so that averaging over ranks of equal batches gives the global batch's loss. A
    modality that the task does not generate has loss 0 but stays in the graph, so every rank and step runs
    the same parameters. `details` receives what the means hide: `video`, `audio` (loss of each sample, [B]),
    `video_time`, `audio_time` (its diffusion time, [B]), `mask_iou` [layers] and `tokens` (of both branches
    together). Samples without interaction (`objective.interaction_dropout`) keep the loss of their face
    masks.
    """
    inputs = prepare_inputs(batch, task, draw, objective, face, mels_per_frame=mels_per_frame)
    extra = {} if inputs.gate is None else {"gate": inputs.gate}
    out = model(inputs.video, inputs.audio, checkpointing=checkpointing, **extra)
    assert out.audio is not None
    per_sample: dict[str, Tensor] = {} if details is None else details
    bound = objective.weight_bound
    per_sample["audio"] = flow_matching.velocity_loss(out.audio, inputs.audio_target, inputs.audio_scored)
    per_sample["audio"] = per_sample["audio"] * bounded_weight(inputs.audio.timestep, bound)
    per_sample["audio_time"] = inputs.audio.timestep
    audio, tokens = per_sample["audio"].mean(), len(batch.mel) * inputs.audio.latent.shape[2]
    video, mask = torch.zeros_like(audio), torch.zeros_like(audio)
    if out.video is not None and inputs.video_target is not None and inputs.video_scored is not None:
        assert inputs.video is not None
        per_sample["video"] = flow_matching.velocity_loss(
            out.video, inputs.video_target, inputs.video_scored, inputs.video_weight
        )
        per_sample["video"] = per_sample["video"] * bounded_weight(inputs.video.timestep, bound)
        per_sample["video_time"] = inputs.video.timestep
        video = per_sample["video"].mean()
    if out.face_masks is not None and inputs.face is not None and inputs.face_scored is not None:
        mask = mask_loss(out.face_masks, inputs.face, inputs.face_scored, face)
        if details is not None:
            per_sample["mask_iou"] = mask_iou(out.face_masks, inputs.face, inputs.face_scored)
        tokens += inputs.face.numel()
    per_sample["tokens"] = torch.tensor(float(tokens))
    total = objective.video_weight * video + objective.audio_weight * audio + lambda_m * mask
    return {"total": total, "video": video, "audio": audio, "mask": mask}


def prepare_inputs(
    batch: LatentBatch,
    task: Task,
    draw: Draw,
    objective: ObjectiveConfig,
    face: FaceConfig,
    *,
    mels_per_frame: Fraction = MELS_PER_FRAME,
) -> TaskInputs:
    """Inputs and targets of one micro-step: a pure function of batch, task and draw."""
    if len(draw.sample_indices) != len(batch.mel):
        raise UserError(
            f"{len(draw.sample_indices)} sample indices for a batch of {len(batch.mel)}", kind="bad-shape"
        )
    condition = draw_condition(batch, task, draw, objective, mels_per_frame)
    gate = draw_gate(batch, draw, objective)
    batch = drop_text(batch, draw, objective, gate if objective.interaction_dropout_text else None)
    batch = augment_mel(batch, task, draw, objective.mel_augmentation)
    of_video, of_audio = objective.timesteps
    purpose = "timestep" if objective.shared_timestep else "video-timestep"
    video_time = _draw_times(draw, of_video, purpose, batch.tokens[0], batch.mel.device)
    audio_time = _draw_times(draw, of_audio, "timestep", batch.tokens[1], batch.mel.device)
    audio_noise = _draw_noise(draw, batch.mel, "audio-noise")
    audio_state = flow_matching.mix(batch.mel, audio_noise, audio_time)
    video_noise = video_state = None
    if batch.video is not None:
        video_noise = _draw_noise(draw, batch.video, "video-noise")
        video_state = flow_matching.mix(batch.video, video_noise, video_time)
    video, audio = build_inputs(
        batch, condition, (video_state, audio_state), (video_time, audio_time), gap=objective.reference_gap
    )
    inputs = TaskInputs(
        video,
        audio,
        None,
        _target(batch.mel, audio_noise, audio.layout),
        None,
        role_mask(audio.layout, NOISY, device=batch.mel.device),
        gate=gate,
    )
    if audio.visible is not None:
        inputs.audio_scored = inputs.audio_scored & audio.visible
    if video is not None and batch.video is not None and video_noise is not None:
        inputs.video_target = _target(batch.video, video_noise, video.layout)
        inputs.video_scored = role_mask(video.layout, NOISY, device=batch.video.device)
        inputs.face, inputs.face_scored = _face_target(batch, video.layout, face)
        inputs.video_weight = _mouth_weight(batch, video.layout, objective.mouth_weight)
    return inputs


def draw_condition(
    batch: LatentBatch, task: Task, draw: Draw, objective: ObjectiveConfig, mels_per_frame: Fraction
) -> ClipCondition:
    """The clean part of the clips in a micro-step.

    All ranks share the layout, so its draws depend on the step alone.
    """
    low, high = objective.continuation_min, objective.continuation_max
    share = low + (high - low) * flow_matching.uniform_for(draw.seed, draw.step, -1, "continuation")
    has_voice = batch.reference_mel.shape[2] > 0
    if task.spec.reference_voice == "optional":
        used = flow_matching.voice_is_used(task, draw.seed, draw.step, objective.dubbing_reference)
        has_voice = has_voice and used
    latents = None if batch.video is None else batch.video.shape[2]
    return clip_condition(
        task, latents, batch.mel.shape[2], share=share, has_voice=has_voice, mels_per_frame=mels_per_frame
    )


def build_inputs(
    batch: LatentBatch,
    condition: ClipCondition,
    states: tuple[Tensor | None, Tensor],
    timestep: Tensor | tuple[Tensor, Tensor],
    *,
    gap: int = 0,
) -> tuple[BranchInput | None, BranchInput]:
    """`[ref | cond | noisy]` inputs of both branches.

    `states` are the noisy clips (video [B, 48, T, h, w], mel [B, 100, L]); their beginning that `condition`
    gives is replaced by the batch's own. `timestep` [B], or one a branch. `gap`: empty positions before the
    clip.
    """
    times = timestep if isinstance(timestep, tuple) else (timestep, timestep)
    video = None
    if batch.video is not None:
        if (
            batch.reference is None
            or batch.caption is None
            or batch.caption_mask is None
            or states[0] is None
        ):
            raise UserError("a batch with video needs reference, caption and caption_mask", kind="bad-shape")
        # latent 0 holds one pixel frame, the first
        reference = batch.video[:, :, :1] if condition.reference_is_first_frame else batch.reference
        latent, layout = _sequence(reference, batch.video, states[0], condition.latents, gap)
        video = BranchInput(latent, layout, times[0], batch.caption, batch.caption_mask)
    voice = batch.reference_mel if condition.reference_voice else None
    latent, layout = _sequence(voice, batch.mel, states[1], condition.mels, gap)
    visible = _visible(batch, layout)
    return video, BranchInput(latent, layout, times[1], batch.speech_ids, batch.speech_mask, visible)


def draw_gate(batch: LatentBatch, draw: Draw, objective: ObjectiveConfig) -> Tensor | None:
    """[B] 1, and 0 for samples without interaction; None if there is none, or no interaction to remove."""
    if not objective.interaction_dropout or batch.video is None:
        return None
    kept = [
        float(
            flow_matching.uniform_for(draw.seed, draw.step, index, "interaction-dropout")
            >= objective.interaction_dropout
        )
        for index in draw.sample_indices
    ]
    return on_device(torch.tensor(kept), batch.mel.device)


def drop_text(
    batch: LatentBatch, draw: Draw, objective: ObjectiveConfig, gate: Tensor | None = None
) -> LatentBatch:
    """The batch with some samples' texts emptied, each decided by (seed, step, sample index).

    So are those of the samples whose `gate` [B] is 0.
    """

    def drop(mask: Tensor, share: float, purpose: str) -> Tensor:
        kept = [
            flow_matching.uniform_for(draw.seed, draw.step, index, purpose) >= share
            for index in draw.sample_indices
        ]
        mask = mask & on_device(torch.tensor(kept), mask.device)[:, None]
        return mask if gate is None else mask & gate.bool().to(mask.device)[:, None]

    caption = batch.caption_mask
    return replace(
        batch,
        speech_mask=drop(batch.speech_mask, objective.speech_dropout, "speech-dropout"),
        caption_mask=None if caption is None else drop(caption, objective.caption_dropout, "caption-dropout"),
    )


def role_mask(layout: TokenLayout, *roles: int, device: torch.device | str = "cpu") -> Tensor:
    """True for the frames of a layout that have one of the roles: bool [N]."""
    return torch.cat([torch.full((s.length,), s.role in roles, device=device) for s in layout])


def _sequence(
    reference: Tensor | None, data: Tensor, state: Tensor, known: int, gap: int
) -> tuple[Tensor, TokenLayout]:
    """Latent and layout of `[reference | data[:known] | state[known:]]` along time, empty parts left out."""
    length = data.shape[2]
    before = 0 if reference is None else reference.shape[2]
    segments = [
        Segment(REFERENCE, -before - gap, before),
        Segment(CONDITION, 0, known),
        Segment(NOISY, known, length - known),
    ]
    clean = [] if reference is None else [reference.to(state.dtype)]
    latent = torch.cat([*clean, data[:, :, :known].to(state.dtype), state[:, :, known:]], dim=2)
    return latent, tuple(s for s in segments if s.length)


def _visible(batch: LatentBatch, layout: TokenLayout) -> Tensor | None:
    """Frames of the audio sequence that hold audio, bool [B, N]; None without padding. References have
    none."""
    if batch.mel_lengths is None:
        return None
    position = torch.cat([torch.arange(s.start, s.start + s.length) for s in layout])
    return on_device(position, batch.mel.device)[None] < batch.mel_lengths[:, None]


def _target(data: Tensor, noise: Tensor, layout: TokenLayout) -> Tensor:
    """Velocity of the noisy part, zero before it."""
    noisy = layout[-1].length if layout[-1].role == NOISY else 0
    target = flow_matching.velocity(data, noise)[:, :, data.shape[2] - noisy :]
    clean = sum(s.length for s in layout) - noisy
    return torch.cat([target.new_zeros(*data.shape[:2], clean, *data.shape[3:]), target], dim=2)


def _face_target(
    batch: LatentBatch, layout: TokenLayout, face: FaceConfig
) -> tuple[Tensor | None, Tensor | None]:
    """Face shares of every frame (zero for references) and the frames that are scored."""
    if batch.face is None:
        return None, None
    shares = batch.face.flatten(2)
    before = sum(s.length for s in layout) - shares.shape[1]
    shares = torch.cat([shares.new_zeros(len(shares), before, shares.shape[2]), shares], dim=1)
    roles = (NOISY,) if face.supervise == "noisy" else (NOISY, CONDITION)
    return shares, role_mask(layout, *roles, device=shares.device)


def _mouth_weight(batch: LatentBatch, layout: TokenLayout, weight: float) -> Tensor | None:
    """Weight [B, 1, N, h, w] of every latent: `weight` inside the mouth's box, 1 outside; None if even."""
    if weight == 1:
        return None
    if batch.mouth is None:
        raise UserError("batch.mouth is missing, which mouth_weight needs", kind="bad-shape")
    before = sum(s.length for s in layout) - batch.mouth.shape[1]
    shares = F.pad(batch.mouth, (0, 0, 0, 0, before, 0))
    return (1 + (weight - 1) * shares).unsqueeze(1)


def _draw_times(
    draw: Draw, config: TimestepConfig, purpose: str, tokens: int, device: torch.device
) -> Tensor:
    times = [
        flow_matching.timestep_for(draw.seed, draw.step, i, config, purpose, tokens)
        for i in draw.sample_indices
    ]
    return on_device(torch.tensor(times, dtype=torch.float32), device)


def _draw_noise(draw: Draw, like: Tensor, purpose: str) -> Tensor:
    """Every sample's own noise, made on the CPU and then moved."""
    noise = [
        flow_matching.noise_for(draw.seed, draw.step, index, like.shape[1:], purpose)
        for index in draw.sample_indices
    ]
    return on_device(torch.stack(noise), like.device).to(like.dtype)


def lambda_at(config: FaceConfig, progress: float) -> float:
    """lambda_m after the share `progress` (0..1) of a stage: 0.1 falling linearly to 0 by default (paper)."""
    if config.mode in ("none", "unsupervised"):
        return 0.0
    if config.mode == "fixed":
        return config.lambda_start
    return config.lambda_start + (config.lambda_end - config.lambda_start) * min(max(progress, 0.0), 1.0)


def mask_loss(masks: Tensor, face: Tensor, scored: Tensor, config: FaceConfig) -> Tensor:
    """L_m = sum_l || M_l - M_gt ||^2, reduced as `config.reduction` says; 0 where nothing is scored.

    masks [layers, B, N, S]; face [B, N, S] the share of each token inside the face; scored bool [N], frames
    that count.
    """
    error = F.mse_loss(masks.float(), face.float().expand_as(masks), reduction="none") * scored[:, None]
    per_sample = error.sum(dim=(0, 2, 3))
    if config.reduction != "sum":
        per_sample = per_sample / (scored.sum() * face.shape[-1]).clamp(min=1)
    if config.reduction == "mean":
        per_sample = per_sample / masks.shape[0]
    return per_sample.mean()


@torch.no_grad()
def mask_iou(masks: Tensor, face: Tensor, scored: Tensor) -> Tensor:
    """IoU of each layer's mask and the face at threshold 0.5: [layers]; 1 if both are empty."""
    inside, known = (masks > 0.5) & scored[:, None], (face > 0.5) & scored[:, None]
    both, either = (inside & known).sum((1, 2, 3)), (inside | known).sum((1, 2, 3))
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(either, dtype=torch.float32))
