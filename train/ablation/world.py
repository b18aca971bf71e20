"""Made latents of talking faces ("the made world"), in which audio and face are related by known formulas.

With them one can measure whether a model learns the relation. A batch is a pure function of a seed and of
clip indices. A hidden speech track drives mouth and loudness (lip sync), the look of the face determines the
timbre of the voice, and one expression track shows in both. Texts and references tell who speaks and what,
but not when. Other faces move in the background. `train.ablation.readout` inverts the formulas.

The mouth moves before the audio, in real speech by 100-300 ms (Chandrasekaran et al. 2009, The natural
statistics of audiovisual speech). Sizes, rates and amplitudes are heuristics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from uniavgen.shards.timing import LATENT_STRIDE, SAMPLE_RATE, VIDEO_FPS
from uniavgen.train import flow_matching
from uniavgen.train.ablation.config import BANDS, CHANNELS, FACE_TOKENS, WorldConfig
from uniavgen.train.batch import LatentBatch

SKIN, MOUTH, BROW, LOOK, SCENE = slice(0, 1), slice(1, 5), slice(5, 6), slice(6, 9), slice(9, 10)
"""Channels of a video latent: face, mouth at each of four frames, expression, look (3), background."""

LOUDNESS, TIMBRE, PITCH, VOWEL = slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 7)
"""Coordinates of a mel frame in its orthonormal basis: loudness, timbre (3), pitch, vowel (2)."""

SPEECH_MEAN, SPEECH_STD = 0.48, 0.34
"""Mean and deviation of the speech track, measured once; they standardise loudness and mouth."""
MOUTH_GAIN = 1.5
"""Makes up for the smoothing by the lead kernel, which reduces the movement of the mouth."""

SYLLABLES = b"aeo"
SILENCE_S = 0.35


@dataclass(frozen=True)
class Truth:
    """The hidden values behind the clips of a batch.

    speech [B, L]: speech track at mel frames; mouth [B, F]: opening at pixel frames, standardised; expression
    [B, T]; look [B, 3]; corner [B, T, 2]: upper left corner of the face (row, column) in tokens.
    """

    speech: Tensor
    mouth: Tensor
    expression: Tensor
    look: Tensor
    corner: Tensor


def world_batch(config: WorldConfig, seed: int, indices: tuple[int, ...]) -> LatentBatch:
    """The clips `indices` of the data set `seed`.

    A patch is one latent, so video is [B, 10, T, rows, columns].
    """
    return world_clips(config, seed, indices)[0]


def world_clips(config: WorldConfig, seed: int, indices: tuple[int, ...]) -> tuple[LatentBatch, Truth]:
    """The same clips and their hidden values."""
    draws = _Draws(seed, indices)
    mel_times, latent_times = mel_times_of(config), latent_times_of(config)
    speech, vowel, ids, spoken = _speech(draws, config, mel_times)
    look = draws.normal(3)
    expression = _track(draws, latent_times)
    mouth = mouth_of(standardised(speech), config)
    corner = _corner(draws, config, mouth)
    behind = _background(draws, config, latent_times)
    video = paint(config, corner, _by_latent(mouth), expression, look, behind)
    coordinates = torch.cat(
        [
            standardised(speech)[..., None],
            timbre_of(look)[:, None].expand(-1, len(mel_times), -1),
            interpolate(expression, latent_times, mel_times)[..., None],
            vowel,
        ],
        dim=-1,
    )
    neutral = _neutral_face(draws, config, look)
    other = _speech(draws, config, mel_times[: config.reference_mels])
    voice = torch.cat(
        [
            standardised(other[0])[..., None],
            timbre_of(look)[:, None].expand(-1, config.reference_mels, -1),
            torch.zeros(len(indices), config.reference_mels, 1),
            other[1],
        ],
        dim=-1,
    )
    scene = behind[1]
    batch = LatentBatch(
        keys=[f"world{seed}-{index}" for index in indices],
        mel=_noisy(draws, coordinates @ mel_basis(), config).transpose(1, 2),
        reference_mel=_noisy(draws, voice @ mel_basis(), config).transpose(1, 2),
        speech_ids=ids,
        speech_mask=spoken,
        video=_noisy(draws, video, config),
        reference=_noisy(draws, neutral, config),
        caption=torch.stack([scene, scene.flip(-1)], dim=1),
        caption_mask=torch.ones(len(indices), 2, dtype=torch.bool),
        face=face_shares(config, corner),
    )
    return batch, Truth(speech, mouth, expression, look, corner)


def standardised(speech: Tensor) -> Tensor:
    """The speech track as loudness: mean 0, standard deviation 1 over the data set."""
    return (speech - SPEECH_MEAN) / SPEECH_STD


def mouth_of(loudness: Tensor, config: WorldConfig) -> Tensor:
    """Lip sync: mouth opening at pixel frames [B, F] from loudness at mel frames [B, L].

    A Gaussian kernel over the audio `lead_s` later, renormalised at the end of the clip.
    """
    return MOUTH_GAIN * loudness @ _lead(config).T


def timbre_of(look: Tensor) -> Tensor:
    """Timbre [B, 3] of the voice from the look [B, 3] of the face: a fixed rotation."""
    return look @ _rotation().T


@lru_cache(maxsize=1)
def mel_basis() -> Tensor:
    """Orthonormal rows [7, 8]: a level, then cosines over the bands (DCT-II), as for log-mel envelopes."""
    band = torch.arange(BANDS, dtype=torch.float64) + 0.5
    rows = torch.stack([torch.cos(math.pi * k * band / BANDS) for k in range(VOWEL.stop)])
    return (rows / rows.norm(dim=1, keepdim=True)).float()


def areas(config: WorldConfig, corner: Tensor, top: float = 0.0, bottom: float = FACE_TOKENS) -> Tensor:
    """Share of each token covered by rows top..bottom of a face at corner [..., 2]: [..., rows, columns]."""

    def overlap(low: Tensor, high: Tensor, count: int) -> Tensor:
        edge = torch.arange(count, dtype=corner.dtype)
        return (torch.minimum(high[..., None], edge + 1) - torch.maximum(low[..., None], edge)).clamp(min=0)

    rows = overlap(corner[..., 0] + top, corner[..., 0] + bottom, config.rows)
    columns = overlap(corner[..., 1], corner[..., 1] + FACE_TOKENS, config.columns)
    return rows[..., :, None] * columns[..., None, :]


def face_shares(config: WorldConfig, corner: Tensor) -> Tensor:
    """The face mask target [B, T, rows, columns] of a face at corner [B, T, 2]."""
    return areas(config, corner)


def paint(
    config: WorldConfig,
    corner: Tensor,
    mouth: Tensor,
    expression: Tensor,
    look: Tensor,
    behind: tuple[Tensor, Tensor],
) -> Tensor:
    """Video latents [B, 10, T, rows, columns]. A token that the face touches shows nothing of the background.

    corner [B, T, 2]; mouth [B, T, 4]; expression [B, T]; look [B, 3]; behind: background [B, 10, T, rows,
    columns], scene.
    """
    face, middle = areas(config, corner), FACE_TOKENS / 2
    upper, lower = areas(config, corner, 0.0, middle), areas(config, corner, middle, FACE_TOKENS)
    video = behind[0] * (face == 0)[:, None]
    video[:, SKIN] += 2 * face[:, None]
    video[:, MOUTH] += mouth.transpose(1, 2)[..., None, None] * lower[:, None]
    video[:, BROW] += (expression[..., None, None] * upper)[:, None]
    video[:, LOOK] += look[:, :, None, None, None] * face[:, None]
    return video


class _Draws:
    """Random numbers of a batch: each clip has its own generator, used in a fixed order."""

    def __init__(self, seed: int, indices: tuple[int, ...]) -> None:
        self.generators = [flow_matching.generator_for(seed, index, "world") for index in indices]

    def normal(self, *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])

    def uniform(self, *shape: int) -> Tensor:
        return torch.stack([torch.rand(shape, generator=generator) for generator in self.generators])


def _speech(draws: _Draws, config: WorldConfig, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Track [B, L], vowel [B, L, 2], byte ids int64 [B, S] of syllables, mask; mel times [L] are in s.

    Syllables follow each other after random pauses. The text has their kinds, but not their times and stress.
    """
    end = float(times[-1])
    count = 2 + math.ceil(end / 0.2)
    gaps, stress = 0.16 + SILENCE_S * draws.uniform(count) ** 2, 0.6 + 0.6 * draws.uniform(count)
    onsets = gaps.cumsum(1) - 0.3 * draws.uniform(1)
    kinds = (draws.uniform(count) * len(SYLLABLES)).long()
    bumps = stress[..., None] * torch.exp(-0.5 * ((times - onsets[..., None]) / 0.06) ** 2)
    angle = 2 * math.pi * kinds / len(SYLLABLES)
    vowel = bumps.transpose(1, 2) @ torch.stack([angle.cos(), angle.sin()], dim=-1)
    letters = torch.tensor(list(SYLLABLES))[kinds] + 1
    inside = (onsets > 0) & (onsets < end)
    order = (~inside).long().argsort(dim=1, stable=True)
    return (
        bumps.sum(1),
        1.5 * vowel,
        letters.gather(1, order),
        inside.gather(1, order) | (torch.arange(count) == 0),
    )


def _track(draws: _Draws, times: Tensor) -> Tensor:
    """A smooth random track [B, n] of variance 1 at `times` [n]: a mean and a slow wave."""
    mean, swing = draws.normal(2, 1).unbind(1)
    phase = 2 * math.pi * (draws.uniform(1) + times * (0.2 + 0.3 * draws.uniform(1)))
    return (mean + swing * math.sqrt(2) * phase.sin()) / math.sqrt(2)


def _corner(draws: _Draws, config: WorldConfig, mouth: Tensor) -> Tensor:
    """Corner of the face [B, T, 2]: it drifts, nods with the speech, and stays inside the frame."""
    room = torch.tensor([config.rows - FACE_TOKENS, config.columns - FACE_TOKENS])
    times = latent_times_of(config)
    start, drift = draws.uniform(1, 2) * room, 0.3 * draws.normal(1, 2)
    nod = 0.15 * _by_latent(mouth)[..., -1]
    corner = start + drift * times[:, None] + torch.stack([nod, torch.zeros_like(nod)], dim=-1)
    return torch.minimum(corner.clamp(min=0), room)


def _background(draws: _Draws, config: WorldConfig, times: Tensor) -> tuple[Tensor, Tensor]:
    """Background [B, 10, T, rows, columns] with other faces, and the scene [B, 2] of the caption."""
    scene = draws.normal(2)
    slope = torch.linspace(-1, 1, config.columns)
    background = torch.zeros(len(scene), CHANNELS, len(times), config.rows, config.columns)
    background[:, SCENE] = (scene[:, :1] + scene[:, 1:] * slope)[:, None, None, None, :] / math.sqrt(2)
    room = torch.tensor([config.rows - 1.0, config.columns - 1.0])
    for _ in range(config.strangers):
        start, stop, look = draws.uniform(1, 2) * room, draws.uniform(1, 2) * room, draws.normal(3)
        path = start + (stop - start) * (times / times[-1])[:, None]
        axes = [
            (path[..., axis, None] - torch.arange(size)).abs()
            for axis, size in ((0, config.rows), (1, config.columns))
        ]
        shape = (1 - axes[0]).clamp(min=0)[..., :, None] * (1 - axes[1]).clamp(min=0)[..., None, :]
        mouth = mouth_of(standardised(_speech(draws, config, mel_times_of(config))[0]), config)
        background[:, MOUTH] += _by_latent(mouth).transpose(1, 2)[..., None, None] * shape[:, None]
        background[:, LOOK] += look[:, :, None, None, None] * shape[:, None]
        background[:, BROW] += (_track(draws, times)[..., None, None] * shape)[:, None]
    return background, scene


def _neutral_face(draws: _Draws, config: WorldConfig, look: Tensor) -> Tensor:
    """The reference frame [B, 10, 1, rows, columns]: same look, other corner, closed mouth, no background."""
    room = torch.tensor([config.rows - FACE_TOKENS, config.columns - FACE_TOKENS])
    empty = torch.zeros(len(look), CHANNELS, 1, config.rows, config.columns)
    still = torch.zeros(len(look), 1, LATENT_STRIDE)
    return paint(config, draws.uniform(1, 2) * room, still, still[..., 0], look, (empty, look))


def _by_latent(track: Tensor) -> Tensor:
    """A track [B, F] at pixel frames as four values per latent [B, T, 4]; the first latent repeats one."""
    first = track[:, :1].expand(-1, LATENT_STRIDE)
    return torch.cat([first, track[:, 1:]], dim=1).unflatten(1, (-1, LATENT_STRIDE))


def interpolate(values: Tensor, times: Tensor, wanted: Tensor) -> Tensor:
    """Linear interpolation: a track [B, n] at `times` [n] -> [B, m] at `wanted` [m], constant outside."""
    after = torch.searchsorted(times, wanted).clamp(1, len(times) - 1)
    share = ((wanted - times[after - 1]) / (times[after] - times[after - 1])).clamp(0, 1)
    return values[:, after - 1] * (1 - share) + values[:, after] * share


def _noisy(draws: _Draws, clean: Tensor, config: WorldConfig) -> Tensor:
    return clean + config.texture * draws.normal(*clean.shape[1:])


def mel_times_of(config: WorldConfig) -> Tensor:
    """Time in seconds of each mel frame: [L]."""
    return torch.arange(config.mels) * (config.hop / SAMPLE_RATE)


def latent_times_of(config: WorldConfig) -> Tensor:
    """Time in seconds of the last pixel frame of each latent: [T]."""
    return torch.arange(config.latents) * (LATENT_STRIDE / VIDEO_FPS)


@lru_cache(maxsize=8)
def _lead(config: WorldConfig) -> Tensor:
    """Weights [F, L] of the audio that determines the mouth of each pixel frame; rows sum to 1."""
    frame = torch.arange(config.frames)[:, None] / VIDEO_FPS
    weight = torch.exp(-0.5 * ((mel_times_of(config) - frame - config.lead_s) / config.spread_s) ** 2)
    return weight / weight.sum(1, keepdim=True)


@lru_cache(maxsize=1)
def _rotation() -> Tensor:
    """A fixed rotation [3, 3] that keeps no axis."""
    generator = flow_matching.generator_for("timbre of a look")
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q.float()
