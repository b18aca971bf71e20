"""The five tasks: from a batch of clips to `[ref | cond | noisy]` branch inputs, targets and losses; and their schedule.

A task says how much of each modality's clip is given (the rest is generated) and which references stand before it. The
given part is clean and the generated part starts where it ends, so no target is ever seen as a condition. One task is
drawn per micro-step, the same on every rank, and the model is called through one `forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import MELS_PER_FRAME, frames_for_latents, mels_for_frames
from uniavgen.train import flow_matching
from uniavgen.train.batch import (
    CONDITION,
    NOISY,
    REFERENCE,
    BranchInput,
    DualOutput,
    LatentBatch,
    Layout,
    Segment,
    on_device,
)
from uniavgen.train.model.config import FaceConfig
from uniavgen.train.model.face_modulation import mask_iou, mask_loss
from uniavgen.train.options import ObjectiveConfig, Task

Model = Callable[..., DualOutput]
"""A `DualBranch`, or an engine around one: called as model(video, audio, checkpointing=...)."""


@dataclass(frozen=True)
class Draw:
    """What all randomness of a micro-step depends on: never the rank, never the number of ranks.

    `sample_indices`: the place of every sample of this batch in the micro-step's global batch.
    """

    seed: int
    step: int
    sample_indices: tuple[int, ...]


@dataclass(frozen=True)
class Given:
    """What a task hands the model clean: the first latents and mels of the clip, and whether the reference voice."""

    latents: int
    mels: int
    reference_audio: bool


@dataclass
class TaskInputs:
    """Branch inputs with the velocity targets of the whole sequence (zero where clean) and bool [N] of scored frames.

    face [B, N, S]: share of each video token inside the face; face_scored bool [N]. Members are None with their branch.
    """

    video: BranchInput | None
    audio: BranchInput
    video_target: Tensor | None
    audio_target: Tensor
    video_scored: Tensor | None
    audio_scored: Tensor
    face: Tensor | None = None
    face_scored: Tensor | None = None


def given(
    task: Task,
    latents: int | None,
    mels: int,
    *,
    share: float = 0.0,
    reference_audio: bool = False,
    mels_per_frame: Fraction = MELS_PER_FRAME,
) -> Given:
    """How much of a clip of so many latents and mels a task is given (paper, section 3.5).

    `share` of the clip is a continuation's; `reference_audio`: a reference voice is at hand and, where the task leaves
    the choice, wanted. `latents` None: audio-only work. Raises UserError where the task lacks its video or reference
    voice, or a clip is too short to be continued.
    """
    if latents is None and task in (Task.DUBBING, Task.AUDIO_DRIVEN):
        raise UserError(f"task {task} needs video, the batch holds sound only", kind="task-needs-video")
    whole = latents or 0
    if task is Task.JOINT:
        return Given(0, 0, False)
    if task is Task.REFERENCE:
        if not reference_audio:
            raise UserError("task reference needs reference_mel, it is empty", kind="task-needs-voice")
        return Given(0, 0, True)
    if task is Task.CONTINUATION:
        if (latents or mels) < 2:
            raise UserError("a clip of one latent cannot be continued", kind="bad-length")
        if latents is None:
            return Given(0, min(max(round(share * mels), 1), mels - 1), False)
        known = min(max(round(share * latents), 1), latents - 1)
        return Given(known, mels_for_frames(frames_for_latents(known), mels_per_frame), False)
    if task is Task.DUBBING:
        return Given(whole, 0, reference_audio)
    return Given(0, mels, False)


def build(
    batch: LatentBatch,
    parts: Given,
    states: tuple[Tensor | None, Tensor],
    timestep: Tensor | tuple[Tensor, Tensor],
    *,
    gap: int = 0,
) -> tuple[BranchInput | None, BranchInput]:
    """`[ref | cond | noisy]` inputs of both branches.

    `states` are the noisy clips (video [B, 48, T, h, w], mel [B, 100, L]); their first `parts` are replaced by the
    batch's own. `timestep` [B], or one a branch. `gap`: empty clock places before the clip.
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
        # a dubbed film's reference image is its own first frame, which is what latent 0 holds
        reference = batch.video[:, :, :1] if parts.latents == batch.video.shape[2] else batch.reference
        latent, layout = _sequence(reference, batch.video, states[0], parts.latents, gap)
        video = BranchInput(latent, layout, times[0], batch.caption, batch.caption_mask)
    voice = batch.reference_mel if parts.reference_audio else None
    latent, layout = _sequence(voice, batch.mel, states[1], parts.mels, gap)
    return video, BranchInput(latent, layout, times[1], batch.speech_ids, batch.speech_mask)


def prepare(
    batch: LatentBatch,
    task: Task,
    draw: Draw,
    objective: ObjectiveConfig,
    face: FaceConfig,
    *,
    mels_per_frame: Fraction = MELS_PER_FRAME,
) -> TaskInputs:
    """One micro-step's inputs and targets: a pure function of batch, task and draw."""
    if len(draw.sample_indices) != len(batch.mel):
        raise UserError(
            f"{len(draw.sample_indices)} sample indices for a batch of {len(batch.mel)}", kind="bad-shape"
        )
    latents = None if batch.video is None else batch.video.shape[2]
    # the layout is common to all ranks, so its draws know the step alone
    low, high = objective.continuation_min, objective.continuation_max
    share = low + (high - low) * flow_matching.uniform_for(draw.seed, draw.step, -1, "continuation")
    wanted = (
        flow_matching.uniform_for(draw.seed, draw.step, -1, "dubbing-reference") < objective.dubbing_reference
    )
    voice = batch.reference_mel.shape[2] > 0 and (wanted or task is not Task.DUBBING)
    parts = given(
        task, latents, batch.mel.shape[2], share=share, reference_audio=voice, mels_per_frame=mels_per_frame
    )
    batch = drop_text(batch, draw, objective)
    audio_time = _times(draw, objective, "timestep", batch.mel.device)
    video_time = (
        audio_time
        if objective.shared_timestep
        else _times(draw, objective, "video-timestep", batch.mel.device)
    )
    audio_noise = _noise(draw, batch.mel, "audio-noise")
    video_noise = None if batch.video is None else _noise(draw, batch.video, "video-noise")
    states = (
        None
        if batch.video is None or video_noise is None
        else flow_matching.mix(batch.video, video_noise, video_time),
        flow_matching.mix(batch.mel, audio_noise, audio_time),
    )
    video, audio = build(batch, parts, states, (video_time, audio_time), gap=objective.reference_gap)
    inputs = TaskInputs(
        video,
        audio,
        None,
        _target(batch.mel, audio_noise, audio.layout),
        None,
        role_mask(audio.layout, NOISY, device=batch.mel.device),
    )
    if video is not None and batch.video is not None and video_noise is not None:
        inputs.video_target = _target(batch.video, video_noise, video.layout)
        inputs.video_scored = role_mask(video.layout, NOISY, device=batch.video.device)
        inputs.face, inputs.face_scored = _face_target(batch, video.layout, face)
    return inputs


def total_loss(
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
    figures: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """One micro-step's losses: scalars `total`, `video`, `audio`, `mask` (paper: L = L_v + L_a + lambda_m L_m).

    Means over samples, so that averaging over ranks of equal batches gives the global batch's loss. A modality that the
    task does not score has loss 0 but stays in the graph, so every rank and step runs the same parameters. `figures` is
    filled with what the means hide: `video`, `audio` (loss of each sample, [B]), `video_time`, `audio_time` (its diffusion
    time, [B]), `mask_iou` [layers] and `tokens` (of both branches together).
    """
    inputs = prepare(batch, task, draw, objective, face, mels_per_frame=mels_per_frame)
    out = model(inputs.video, inputs.audio, checkpointing=checkpointing)
    assert out.audio is not None
    seen: dict[str, Tensor] = {} if figures is None else figures
    seen["audio"] = flow_matching.velocity_loss(out.audio, inputs.audio_target, inputs.audio_scored)
    seen["audio_time"] = inputs.audio.timestep
    audio, tokens = seen["audio"].mean(), len(batch.mel) * inputs.audio.latent.shape[2]
    video, mask = torch.zeros_like(audio), torch.zeros_like(audio)
    if out.video is not None and inputs.video_target is not None and inputs.video_scored is not None:
        assert inputs.video is not None
        seen["video"] = flow_matching.velocity_loss(out.video, inputs.video_target, inputs.video_scored)
        seen["video_time"] = inputs.video.timestep
        video = seen["video"].mean()
    if out.face_masks is not None and inputs.face is not None and inputs.face_scored is not None:
        mask = mask_loss(out.face_masks, inputs.face, inputs.face_scored, face)
        if figures is not None:
            seen["mask_iou"] = mask_iou(out.face_masks, inputs.face, inputs.face_scored)
        tokens += inputs.face.numel()
    seen["tokens"] = torch.tensor(float(tokens))
    total = objective.video_weight * video + objective.audio_weight * audio + lambda_m * mask
    return {"total": total, "video": video, "audio": audio, "mask": mask}


def task_at(seed: int, draw: int, mix: dict[Task, int]) -> Task:
    """Task of micro-step `draw`: every window of sum(mix) draws holds each task exactly as often as `mix` says.

    Smooth weighted round robin, so shorter windows are even too; the seed turns the cycle and orders equals.
    """
    cycle = _cycle(seed, tuple((task, mix[task]) for task in Task if mix.get(task)))
    return cycle[draw % len(cycle)]


@lru_cache(maxsize=32)
def _cycle(seed: int, mix: tuple[tuple[Task, int], ...]) -> tuple[Task, ...]:
    generator = flow_matching.generator_for(seed, "task-cycle")
    mix = tuple(mix[i] for i in torch.randperm(len(mix), generator=generator).tolist())
    period = sum(count for _, count in mix)
    credit, cycle = dict.fromkeys((task for task, _ in mix), 0), []
    for _ in range(period):
        for task, count in mix:
            credit[task] += count
        chosen = max(credit, key=lambda task: credit[task])
        credit[chosen] -= period
        cycle.append(chosen)
    turn = int(torch.randint(period, (), generator=generator))
    return tuple(cycle[turn:] + cycle[:turn])


def drop_text(batch: LatentBatch, draw: Draw, objective: ObjectiveConfig) -> LatentBatch:
    """The batch with some samples' texts emptied, each decided by (seed, step, sample index)."""

    def kept(mask: Tensor, share: float, purpose: str) -> Tensor:
        stays = [
            flow_matching.uniform_for(draw.seed, draw.step, index, purpose) >= share
            for index in draw.sample_indices
        ]
        return mask & on_device(torch.tensor(stays), mask.device)[:, None]

    caption = batch.caption_mask
    return replace(
        batch,
        speech_mask=kept(batch.speech_mask, objective.speech_dropout, "speech-dropout"),
        caption_mask=None if caption is None else kept(caption, objective.caption_dropout, "caption-dropout"),
    )


def role_mask(layout: Layout, *roles: int, device: torch.device | str = "cpu") -> Tensor:
    """True for the frames of a layout that have one of the roles: bool [N]."""
    return torch.cat([torch.full((s.length,), s.role in roles, device=device) for s in layout])


def validate_batch(batch: LatentBatch, mels_per_frame: Fraction = MELS_PER_FRAME) -> None:
    """Raise UserError naming the first member of a batch that does not fit the others or holds NaN or infinity.

    Meant for where batches are made: on an accelerator, looking at values would wait for it.
    """
    size = len(batch.keys)
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            if len(value) != size:
                raise UserError(
                    f"batch.{name} holds {len(value)} samples, batch.keys {size}", kind="bad-shape"
                )
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                bad = [batch.keys[i] for i in range(size) if not bool(torch.isfinite(value[i]).all())]
                raise UserError(
                    f"batch.{name} holds NaN or infinity", where=", ".join(bad), kind="not-finite"
                )
    if batch.video is None:
        return
    for name in ("reference", "caption", "caption_mask"):
        if getattr(batch, name) is None:
            raise UserError(f"batch.{name} is missing though batch.video is there", kind="bad-shape")
    expected = mels_for_frames(frames_for_latents(batch.video.shape[2]), mels_per_frame)
    if batch.mel.shape[2] != expected:
        raise UserError(
            f"batch.mel has {batch.mel.shape[2]} frames, {batch.video.shape[2]} video latents last {expected}",
            kind="bad-length",
        )


def _sequence(
    reference: Tensor | None, data: Tensor, state: Tensor, known: int, gap: int
) -> tuple[Tensor, Layout]:
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


def _target(data: Tensor, noise: Tensor, layout: Layout) -> Tensor:
    """Velocity of the noisy part, zero before it."""
    noisy = layout[-1].length if layout[-1].role == NOISY else 0
    target = flow_matching.velocity(data, noise)[:, :, data.shape[2] - noisy :]
    clean = sum(s.length for s in layout) - noisy
    return torch.cat([target.new_zeros(*data.shape[:2], clean, *data.shape[3:]), target], dim=2)


def _face_target(batch: LatentBatch, layout: Layout, face: FaceConfig) -> tuple[Tensor | None, Tensor | None]:
    """Face shares of every frame (zero for references) and the frames that are scored."""
    if batch.face is None:
        return None, None
    shares = batch.face.flatten(2)
    before = sum(s.length for s in layout) - shares.shape[1]
    shares = torch.cat([shares.new_zeros(len(shares), before, shares.shape[2]), shares], dim=1)
    roles = (NOISY,) if face.supervise == "noisy" else (NOISY, CONDITION)
    return shares, role_mask(layout, *roles, device=shares.device)


def _times(draw: Draw, objective: ObjectiveConfig, purpose: str, device: torch.device) -> Tensor:
    times = [
        flow_matching.timestep_for(draw.seed, draw.step, i, objective.timestep, purpose)
        for i in draw.sample_indices
    ]
    return on_device(torch.tensor(times, dtype=torch.float32), device)


def _noise(draw: Draw, like: Tensor, purpose: str) -> Tensor:
    """Every sample's own noise, made on the CPU and then moved."""
    noise = [
        flow_matching.noise_for(draw.seed, draw.step, index, like.shape[1:], purpose)
        for index in draw.sample_indices
    ]
    return on_device(torch.stack(noise), like.device).to(like.dtype)
