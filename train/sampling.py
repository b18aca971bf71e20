"""Sampling of UniAVGen: Euler steps from noise to latents for any task, with modality-aware guidance
(MA-CFG)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import MELS_PER_FRAME
from uniavgen.train import flow_matching
from uniavgen.train.batch import NOISY, BranchInput, DualOutput, LatentBatch, validate_batch
from uniavgen.train.config import SamplingConfig
from uniavgen.train.model.objective import Model, build_inputs
from uniavgen.train.tasks import ClipCondition, Task, clip_condition
from uniavgen.train.timestep_config import shift_time

Velocities = tuple[Tensor | None, Tensor | None]
"""Of the video clip and of the audio clip; also their states."""


@torch.no_grad()
def sample(
    model: Model,
    batch: LatentBatch,
    task: Task,
    config: SamplingConfig,
    seed: int,
    *,
    sample_indices: tuple[int, ...] | None = None,
    gap: int = 0,
    shifts: tuple[float, float] = (1.0, 1.0),
    on_step: Callable[[int, int], None] | None = None,
    mels_per_frame: Fraction = MELS_PER_FRAME,
) -> tuple[Tensor | None, Tensor]:
    """Video latents [B, 48, T, h, w] (None without video) and mels [B, 100, L] of the full clip.

    The task's given part is read from `video` and `mel` of the batch; otherwise only their shapes matter
    (zeros will do). `gap`: empty positions between references and clip, as the model was trained with
    (`objective.reference_gap`). `shifts`: of the times of video and audio where `config` names none. Noise
    is a function of the seed and of each sample's index (0, 1, .. if None), not of the other samples in the
    batch. `on_step(done, steps)` reports progress. Raises UserError for conditions that do not fit, and for
    an empty speech text where speech is generated.
    """
    validate_batch(batch, mels_per_frame)
    if "audio" in task.spec.generates and not bool(batch.speech_mask.any(dim=1).all()):
        raise UserError(
            "the text to be spoken is empty",
            hint="give the words, or choose task audio-driven",
            kind="empty-text",
        )
    condition = sampling_condition(batch, task, config, mels_per_frame)
    indices = sample_indices or tuple(range(len(batch.mel)))
    states: Velocities = (
        _noise(batch.video, seed, indices, "video-noise"),
        _noise(batch.mel, seed, indices, "audio-noise"),
    )
    times = time_grids(config, shifts)
    for step, (now, after) in enumerate(pairwise(zip(*times, strict=True))):
        video_u, audio_u = guided_velocities(model, batch, condition, states, now, config, gap=gap)
        states = euler(states[0], video_u, now[0], after[0]), euler(states[1], audio_u, now[1], after[1])
        if on_step is not None:
            on_step(step + 1, config.steps)
    video, audio = build_inputs(batch, condition, _with_audio(states), _times(batch, (0.0, 0.0)))
    mels = audio.latent[:, :, -batch.mel.shape[2] :]
    if video is None or batch.video is None:
        return None, mels
    return video.latent[:, :, -batch.video.shape[2] :], mels


def sampling_condition(
    batch: LatentBatch, task: Task, config: SamplingConfig, mels_per_frame: Fraction = MELS_PER_FRAME
) -> ClipCondition:
    """The clean part of the clips: a continuation begins with `config.continuation_share` of them."""
    latents = None if batch.video is None else batch.video.shape[2]
    share = continuation_share(config, latents)
    return clip_condition(
        task,
        latents,
        batch.mel.shape[2],
        share=share,
        has_voice=batch.reference_mel.shape[2] > 0,
        mels_per_frame=mels_per_frame,
    )


def continuation_share(config: SamplingConfig, latents: int | None) -> float:
    """The share of a clip of so many video latents that a continuation gets."""
    if config.continuation_latents and latents:
        return config.continuation_latents / latents
    return config.continuation_share


def time_grids(config: SamplingConfig, shifts: tuple[float, float]) -> tuple[list[float], list[float]]:
    """The times of both branches at every step: one even grid, shifted for each of them.

    `shifts`: where `config` names none.
    """
    video, audio = shifts if config.shift is None else (config.shift, config.shift)
    audio = audio if config.audio_shift is None else config.audio_shift
    return time_grid(config.steps, video), time_grid(config.steps, audio)


def time_grid(steps: int, shift: float) -> list[float]:
    """Times 1 = t_0 > .. > t_steps = 0, evenly spaced and then shifted."""
    return [shift_time(1 - step / steps, shift) for step in range(steps + 1)]


def euler(x: Tensor | None, u: Tensor | None, now: float, after: float) -> Tensor | None:
    """x at the next, smaller time: x + (t' - t) dx/dt."""
    return x if x is None or u is None else x + (after - now) * u


def guided_velocities(
    model: Model,
    batch: LatentBatch,
    condition: ClipCondition,
    states: Velocities,
    t: tuple[float, float],
    config: SamplingConfig,
    *,
    gap: int = 0,
) -> Velocities:
    """Velocities of both clips at their times t: u0 + s (u - u0) in the interval (one pass each), else u."""
    times = _times(batch, t)
    video, audio = build_inputs(batch, condition, _with_audio(states), times, gap=gap)
    u = _clip_velocities(model(video, audio), batch)
    low, high = config.interval
    guided = [low <= time <= high for time in t]
    if config.guidance == "none" or not any(guided):
        return u
    if config.guidance == "text" or config.empty_text:
        batch = _without_text(batch)
        video, audio = build_inputs(batch, condition, _with_audio(states), times, gap=gap)
    if config.guidance == "text":
        u0 = _clip_velocities(model(video, audio), batch)
    else:
        # without interaction, a branch that generates nothing has no effect
        u0 = _clip_velocities(model(_if_noisy(video), _if_noisy(audio), interact=False), batch)
    return (
        guide(u0[0], u[0], config.video_scale) if guided[0] else u[0],
        guide(u0[1], u[1], config.audio_scale) if guided[1] else u[1],
    )


def guide(u0: Tensor | None, u: Tensor | None, scale: float) -> Tensor | None:
    """u0 + s (u - u0) (paper, MA-CFG)."""
    return u if u is None or u0 is None else u0 + scale * (u - u0)


def _clip_velocities(out: DualOutput, batch: LatentBatch) -> Velocities:
    """A model's output without the references that precede the clip."""
    video = audio = None
    if out.video is not None and batch.video is not None:
        video = out.video[:, :, -batch.video.shape[2] :].float()
    if out.audio is not None:
        audio = out.audio[:, :, -batch.mel.shape[2] :].float()
    return video, audio


def _if_noisy(data: BranchInput | None) -> BranchInput | None:
    return None if data is None or data.layout[-1].role != NOISY else data


def _without_text(batch: LatentBatch) -> LatentBatch:
    caption = None if batch.caption_mask is None else torch.zeros_like(batch.caption_mask)
    return replace(batch, speech_mask=torch.zeros_like(batch.speech_mask), caption_mask=caption)


def _times(batch: LatentBatch, t: tuple[float, float]) -> tuple[Tensor, Tensor]:
    video, audio = (torch.full((len(batch.mel),), time, device=batch.mel.device) for time in t)
    return video, audio


def _with_audio(states: Velocities) -> tuple[Tensor | None, Tensor]:
    assert states[1] is not None
    return states[0], states[1]


def _noise(like: Tensor | None, seed: int, indices: tuple[int, ...], purpose: str) -> Tensor | None:
    if like is None:
        return None
    return torch.stack([flow_matching.noise_for(seed, 0, i, like.shape[1:], purpose) for i in indices]).to(
        like.device
    )
