"""Measure clips: read face and voice from latents, and how well they agree with the made data's formulas.

The readers invert the formulas of `train.ablation.world`. Nothing here is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.train.ablation.config import FACE_TOKENS, WorldConfig
from uniavgen.train.ablation.world import (
    BROW,
    LOOK,
    LOUDNESS,
    MOUTH,
    PITCH,
    SKIN,
    TIMBRE,
    areas,
    interpolate,
    latent_times_of,
    mel_basis,
    mel_times_of,
    mouth_of,
    timbre_of,
)

CORNER_STEP = 0.05
"""Grid step of the search for the face, in tokens."""
LAGS = 8
"""Largest lag that is searched, in pixel frames either way: half a second."""


@dataclass(frozen=True)
class Face:
    """Read from video: corner [B, T, 2], mouth [B, F], expression [B, T], look [B, 3]."""

    corner: Tensor
    mouth: Tensor
    expression: Tensor
    look: Tensor


@dataclass(frozen=True)
class Voice:
    """Read from audio: loudness [B, L], expression [B, T] (pitch at the latents' times), timbre [B, 3]."""

    loudness: Tensor
    expression: Tensor
    timbre: Tensor


def read_face(video: Tensor, config: WorldConfig) -> Face:
    """Find the face in video [B, 10, T, rows, columns] by the skin channel, then fit its parts."""
    corner = find_face(video[:, SKIN].squeeze(1), config)
    middle = FACE_TOKENS / 2
    mouth = _part(video[:, MOUTH], areas(config, corner, middle, FACE_TOKENS))
    first = mouth[:, :, 0].mean(1, keepdim=True)
    return Face(
        corner,
        torch.cat([first, mouth[:, :, 1:].transpose(1, 2).flatten(1)], dim=1),
        _part(video[:, BROW], areas(config, corner, 0.0, middle)).squeeze(1),
        _part(video[:, LOOK], areas(config, corner)).mean(2),
    )


def find_face(skin: Tensor, config: WorldConfig) -> Tensor:
    """Corner [B, T, 2] of the face whose covered areas are nearest to `skin` [B, T, rows, columns]."""
    axes = [
        torch.arange(0, size - FACE_TOKENS + CORNER_STEP / 2, CORNER_STEP)
        for size in (config.rows, config.columns)
    ]
    corners = torch.cartesian_prod(*axes)
    shapes = 2 * areas(config, corners).flatten(1)
    distance = shapes.square().sum(1) - 2 * skin.flatten(2) @ shapes.T
    return corners[distance.argmin(-1)]


def read_voice(mel: Tensor, config: WorldConfig) -> Voice:
    """Read loudness, pitch and timbre from mel [B, 8, L]: its coordinates in `mel_basis`."""
    coordinates = mel.transpose(1, 2) @ mel_basis().T
    return Voice(
        coordinates[..., LOUDNESS].squeeze(-1),
        interpolate(coordinates[..., PITCH].squeeze(-1), mel_times_of(config), latent_times_of(config)),
        coordinates[..., TIMBRE].mean(1),
    )


def agreement(video: Tensor, mel: Tensor, config: WorldConfig) -> dict[str, Tensor]:
    """How well video and audio of each clip [B] agree.

    `sync` (for LS): correlation of the mouth with the mouth that the audio implies. `sync_error_ms`: size of
    the shift with the largest correlation, within half a second. `timbre` (for TC) and `expression` (for EC):
    cosine between voice and face. Except for the error, unrelated halves give 0 on average and the truth
    gives 1.
    """
    face, voice = read_face(video, config), read_voice(mel, config)
    implied_mouth = mouth_of(voice.loudness, config)
    by_lag = torch.stack(
        [correlation(*_shifted(face.mouth, implied_mouth, lag)) for lag in range(-LAGS, LAGS + 1)], dim=1
    )
    error = (by_lag.argmax(1) - LAGS).abs() * (1000 / VIDEO_FPS)
    return {
        "sync": by_lag[:, LAGS],
        "sync_error_ms": error,
        "timbre": torch.cosine_similarity(voice.timbre, timbre_of(face.look), dim=1),
        "expression": torch.cosine_similarity(voice.expression, face.expression, dim=1),
    }


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's r of each row: [B, n], [B, n] -> [B]; 0 if a row is constant."""
    return torch.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)


def _part(channels: Tensor, area: Tensor) -> Tensor:
    """Value [B, c, T] of a part of `channels` [B, c, T, rows, columns] that covers `area` of the tokens."""
    return (channels * area[:, None]).sum((-2, -1)) / area.square().sum((-2, -1))[:, None]


def _shifted(a: Tensor, b: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    """The overlapping parts of two tracks if b is shifted by `lag` frames."""
    length = a.shape[1] - abs(lag)
    return a[:, max(lag, 0) :][:, :length], b[:, max(-lag, 0) :][:, :length]
