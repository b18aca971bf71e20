"""Temporal alignment: index tables of the audio tokens and latents that attend to each other, computed once
per layout.

A2V: the window C_i of audio tokens for each latent i. V2A: the pair of latents and the weight alpha for each
audio token j (paper, section 3.2). Latent 0 covers one pixel frame and every other latent four; a pixel frame
owns the mel frames that start in it, 5.859 on average (supplement 6.2). References belong to no time of the
clip and take no part. With `positions: time` the tables also hold rotary angles: the time of a latent or mel
frame is the middle of its span, in units of video latents.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import LATENT_STRIDE, frame_of_mel, frames_for_latents, latent_of_frame
from uniavgen.train.batch import CONDITION, NOISY, REFERENCE, TokenLayout
from uniavgen.train.model.config import BranchConfig, InteractionConfig, ModelConfig
from uniavgen.train.model.dit import Rope, as_rope, rotary_angles

Frame = tuple[int, int, int]
"""Role, position in the clip and index in the sequence, of one latent (video) or mel frame (audio)."""


@dataclass(frozen=True)
class Queries:
    """The range [start, stop) of a sequence that the interaction updates: its noisy part.

    Without a noisy part (the task gives the full modality) one condition frame queries with `gate` 0: every
    parameter stays in the graph of every rank, and the stream is unchanged.
    """

    start: int
    stop: int
    gate: float


@dataclass(frozen=True)
class Times:
    """Rotary tables by time, of the frames that query and of the frames that serve as keys."""

    queries: Rope
    keys: Rope


@dataclass(frozen=True)
class AudioWindows:
    """A2V: the window C_i of each latent. `keys` is the range [start, stop) of the audio sequence.

    index int64 [T * K]: audio token of each window slot, from the start of keys (None for sgi: all tokens);
    bias fp32 [T, 1, 1, K]: log of how often the window holds that token (the paper replicates border blocks),
    -inf for padding, None if all are zero. times: only with `positions: time`.
    """

    queries: Queries
    keys: tuple[int, int]
    index: Tensor | None
    bias: Tensor | None
    times: Times | None = None


@dataclass(frozen=True)
class LatentPairs:
    """V2A: the latents of each audio token. `keys` is the range [start, stop) of the video sequence.

    Audio tokens are grouped by their latent, padded to Q slots a group: token_of_slot int64 [G * Q] (from the
    start of queries), slot_of_token int64 [n], frames int64 [G * m * P] (latents of a group, from the start
    of keys; P = 2 with interpolation, else 1), alpha fp32 [G, Q, 1, 1], bias fp32 [G, m] or None. All None
    for sgi. times: only with `positions: time`.
    """

    queries: Queries
    keys: tuple[int, int]
    token_of_slot: Tensor | None
    slot_of_token: Tensor | None
    frames: Tensor | None
    alpha: Tensor | None
    bias: Tensor | None
    slots: int = 1
    times: Times | None = None


@dataclass(frozen=True)
class Alignment:
    """The tables of both directions."""

    a2v: AudioWindows
    v2a: LatentPairs


Table = TypeVar("Table", AudioWindows, LatentPairs)


@lru_cache(maxsize=64)
def align(config: ModelConfig, video: TokenLayout, audio: TokenLayout, device: torch.device) -> Alignment:
    """Tables of both directions on `device`, cached by layout. Raises UserError for a bad layout."""
    interaction = config.interaction
    a2v = _to_device(audio_windows(interaction, video, audio), device)
    v2a = _to_device(latent_pairs(interaction, video, audio), device)
    if interaction.positions == "none":
        return Alignment(a2v, v2a)
    latent_times = {index: latent_time(latent) for _, latent, index in _clip_frames(video)}
    mel_times = {index: mel_time(mel, interaction.mels_per_frame) for _, mel, index in _clip_frames(audio)}
    return Alignment(
        replace(a2v, times=_times(config.video, a2v.queries, latent_times, mel_times, device)),
        replace(v2a, times=_times(config.audio, v2a.queries, mel_times, latent_times, device)),
    )


def latent_time(latent: int) -> float:
    """Middle of a latent's pixel frames, in units of video latents: 1/8, 3/4, 7/4, ..."""
    frames = _pixel_frames(latent)
    return (frames[0] + frames[-1] + 1) / 2 / LATENT_STRIDE


def mel_time(mel: int, mels_per_frame: Fraction) -> float:
    """Middle of a mel frame, in units of video latents."""
    return float((mel + Fraction(1, 2)) / mels_per_frame / LATENT_STRIDE)


def audio_windows(config: InteractionConfig, video: TokenLayout, audio: TokenLayout) -> AudioWindows:
    """The window C_i of each updated latent (paper, A2V). Raises UserError if a window is empty."""
    queries, keys = _queries(video), _clip_range(audio)
    if config.a2v == "sgi":
        return AudioWindows(queries, keys, None, None)
    frame_unit = config.window_unit == "frame" and config.a2v == "ati"
    blocks: dict[int, list[int]] = defaultdict(list)
    for _, mel, index in _clip_frames(audio):
        frame = frame_of_mel(mel, config.mels_per_frame)
        blocks[frame if frame_unit else latent_of_frame(frame)].append(index - keys[0])
    reach = config.window if config.a2v == "ati" else 0
    _check_window(config, video, reach)
    first, last = min(blocks), max(blocks)
    rows = []
    for _, latent, _ in _query_frames(video, queries):
        own = _pixel_frames(latent) if frame_unit else range(latent, latent + 1)
        # out-of-range blocks replicate the first or last block
        window = [min(max(block, first), last) for block in range(own[0] - reach, own[-1] + reach + 1)]
        rows.append(Counter(token for block in window for token in blocks.get(block, ())))
        if not rows[-1]:
            raise UserError(
                f"no audio within the window of video latent {latent}",
                hint="make both branches cover the same time",
            )
    return AudioWindows(queries, keys, *_table(rows))


def latent_pairs(config: InteractionConfig, video: TokenLayout, audio: TokenLayout) -> LatentPairs:
    """Latents and weights of each updated audio token (paper, V2A, and supplement 6.2)."""
    queries, keys = _queries(audio), _clip_range(video)
    if config.v2a == "sgi":
        return LatentPairs(queries, keys, None, None, None, None, None)
    frames_at: dict[int, list[Frame]] = defaultdict(list)
    for frame in _clip_frames(video):
        frames_at[frame[1]].append(frame)
    groups: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for _, mel, index in _query_frames(audio, queries):
        latent, alpha = _interpolation(config, mel, min(frames_at), max(frames_at))
        groups[latent].append((index - queries.start, alpha))
    pair = 2 if config.v2a == "ati" else 1
    latents = {}
    for latent in groups:
        if latent not in frames_at:
            raise UserError(f"no video at latent {latent}", hint="make both branches cover the same time")
        latents[latent] = [
            (this - keys[0], after - keys[0])[:pair] for this, after in _pairs(frames_at, latent)
        ]
    width, slots = max(map(len, groups.values())), max(map(len, latents.values()))
    token_of_slot: list[int] = []
    alphas: list[float] = []
    slot_of_token = [0] * (queries.stop - queries.start)
    for number, tokens in enumerate(groups.values()):
        for slot, (token, _) in enumerate(tokens):
            slot_of_token[token] = number * width + slot
        padded = tokens + [tokens[0]] * (width - len(tokens))
        token_of_slot += [token for token, _ in padded]
        alphas += [weight for _, weight in padded]
    frames = [frame for pairs in latents.values() for chosen in _pad(pairs, slots) for frame in chosen]
    bias = torch.tensor(
        [[0.0 if slot < len(pairs) else -math.inf for slot in range(slots)] for pairs in latents.values()]
    )
    return LatentPairs(
        queries,
        keys,
        torch.tensor(token_of_slot),
        torch.tensor(slot_of_token),
        torch.tensor(frames),
        torch.tensor(alphas).view(len(groups), width, 1, 1) if pair == 2 else None,
        bias if bool(bias.any()) else None,
        slots,
    )


def _times(
    branch: BranchConfig,
    queries: Queries,
    query_times: dict[int, float],
    key_times: dict[int, float],
    device: torch.device,
) -> Times:
    """Rotary tables of both sides, from the times of the two clips by index in their sequences."""

    def rope(times: list[float]) -> Rope:
        positions = torch.tensor(times, dtype=torch.float64)
        return as_rope(rotary_angles(positions, branch.head_dim, branch.rope_theta), device)

    querying = [time for index, time in query_times.items() if queries.start <= index < queries.stop]
    return Times(rope(querying), rope(list(key_times.values())))


def _to_device(table: Table, device: torch.device) -> Table:
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in vars(table).items() if isinstance(value, Tensor)
    }
    return replace(table, **moved)


def _pixel_frames(latent: int) -> range:
    """Pixel frames that a latent covers."""
    end = frames_for_latents(latent + 1)
    return range(max(0, end - LATENT_STRIDE), end)


def _interpolation(config: InteractionConfig, mel: int, first: int, last: int) -> tuple[int, float]:
    """Latent i and weight alpha of a mel frame: C_j = (1 - alpha) H_i + alpha H_(i+1).

    The last latent has alpha 0.
    """
    k = config.mels_per_frame
    frame = frame_of_mel(mel, k)
    latent = min(max(latent_of_frame(frame), first), last)
    if config.v2a == "sti" or latent == last or latent != latent_of_frame(frame):
        return latent, 0.0
    own = _pixel_frames(latent)
    if config.interpolate_over == "latent":
        return latent, float((mel - own[0] * k) / (len(own) * k))
    # a latent is replicated to its pixel frames, so only the last of them is interpolated with the next
    # latent
    return latent, float(mel / k - frame) if frame == own[-1] else 0.0


def _pairs(frames_at: dict[int, list[Frame]], latent: int) -> list[tuple[int, int]]:
    """Sequence indices of a latent's frames, each with the next frame, of the same role if possible."""
    pairs = []
    for role, _, index in frames_at[latent]:
        following = frames_at.get(latent + 1, [(role, latent, index)])
        pairs.append((index, next((frame[2] for frame in following if frame[0] == role), following[0][2])))
    return pairs


def _pad(pairs: list[tuple[int, ...]], slots: int) -> list[tuple[int, ...]]:
    return pairs + [pairs[0]] * (slots - len(pairs))


def _table(rows: list[Counter[int]]) -> tuple[Tensor, Tensor | None]:
    """Counted tokens per row as index and bias, padded to a multiple of 8 as fused kernels require."""
    width = max(map(len, rows))
    width += -width % 8 if any(len(row) < width for row in rows) else 0
    index = torch.zeros(len(rows), width, dtype=torch.int64)
    bias = torch.full((len(rows), width), -math.inf)
    for number, row in enumerate(rows):
        index[number, : len(row)] = torch.tensor(list(row))
        bias[number, : len(row)] = torch.tensor([math.log(count) for count in row.values()])
    return index.flatten(), bias[:, None, None, :] if bool(bias.any()) else None


def _clip_frames(layout: TokenLayout) -> list[Frame]:
    """Every frame of the clip (conditions and noisy part), in sequence order."""
    frames, index = [], 0
    for role, start, length in layout:
        if role != REFERENCE:
            frames += [(role, start + offset, index + offset) for offset in range(length)]
        index += length
    return frames


def _query_frames(layout: TokenLayout, queries: Queries) -> list[Frame]:
    """The frames of the clip that query."""
    first = queries.start - _clip_range(layout)[0]
    return _clip_frames(layout)[first:][: queries.stop - queries.start]


def _clip_range(layout: TokenLayout) -> tuple[int, int]:
    """The range [start, stop) of the sequence that belongs to the clip: everything after the references."""
    start = sum(s.length for s in layout if s.role == REFERENCE)
    stop = sum(s.length for s in layout)
    if (
        start == stop
        or any(s.role == REFERENCE for s in layout[1:])
        or any(s.start < 0 for s in layout if s.role != REFERENCE)
    ):
        raise UserError(
            f"layout {layout} must be at most one reference, then frames of the clip", kind="bad-layout"
        )
    return start, stop


def _queries(layout: TokenLayout) -> Queries:
    """The range of the noisy part, which must be last; without one, the clip's first frame with gate 0."""
    clip, _ = _clip_range(layout)
    noisy = [s.length for s in layout if s.role == NOISY]
    stop = sum(s.length for s in layout)
    if len(noisy) > 1 or (noisy and layout[-1].role != NOISY) or sum(s.role == CONDITION for s in layout) > 1:
        raise UserError(
            f"layout {layout} must be in the order reference, condition, noisy", kind="bad-layout"
        )
    return Queries(stop - noisy[0], stop, 1.0) if noisy else Queries(clip, clip + 1, 0.0)


def _check_window(config: InteractionConfig, video: TokenLayout, reach: int) -> None:
    latents = max(latent for _, latent, _ in _clip_frames(video)) + 1
    span = frames_for_latents(latents) if config.window_unit == "frame" else latents
    if reach >= span:
        raise UserError(
            f"interaction.window is {reach} {config.window_unit}s, the clip has only {span}",
            hint=f"use a window of at most {span - 1} or longer clips",
            kind="window-too-large",
        )
