"""Which audio tokens and video frames meet: index tables from the two clocks, made on the host once per layout.

In: the two branches' layouts (roles and clock places). Out: for audio-into-video (A2V) the audio tokens that each video
frame sees, for video-into-audio (V2A) the latent pair and weight that each audio token sees. Latent 0 owns one pixel
frame and every other owns four; a pixel frame owns the mel frames that start in it, 5.859 on average (supplement 6.2).
References belong to no instant of the clip and take no part. With `positions: time` the tables also hold rotary angles:
every latent and mel frame stands at the middle of the time that it owns, counted in video latents.
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

Place = tuple[int, int, int]
"""Role, clock place and index in the sequence, of one frame (video) or mel frame (audio)."""


@dataclass(frozen=True)
class Queries:
    """The run [start, stop) of a sequence that the interaction updates: its noisy part.

    A task may leave a branch without a noisy part. Then one condition frame asks with `gate` 0, so that every parameter
    stays in the graph of every rank and the stream still comes out unchanged.
    """

    start: int
    stop: int
    gate: float


@dataclass(frozen=True)
class Times:
    """Rotary tables by time of the frames that ask and of the frames that answer, for heads of the asking branch."""

    queries: Rope
    keys: Rope


@dataclass(frozen=True)
class AudioWindows:
    """A2V. `keys` [start, stop) of the audio sequence; sgi has no `index`; `times` only with positions.

    index int64 [T * K]: audio token of each slot, counted from keys' start; bias fp32 [T, 1, 1, K]: log of how often
    that token stands in the window (the paper replicates border blocks), -inf for padding; None if all zero.
    """

    queries: Queries
    keys: tuple[int, int]
    index: Tensor | None
    bias: Tensor | None
    times: Times | None = None


@dataclass(frozen=True)
class LatentPairs:
    """V2A. `keys` [start, stop) of the video sequence; sgi has no tables; `times` only with positions.

    Audio tokens are grouped by the latent they belong to: ask int64 [G * Q] (token of each slot, counted from queries'
    start), answer int64 [n] (slot of each token), frames int64 [G * m * P] (latents that a group sees, counted from keys'
    start; P = 2 if any is interpolated, else 1), alpha fp32 [G, Q, 1, 1], bias fp32 [G, m] or None.
    """

    queries: Queries
    keys: tuple[int, int]
    ask: Tensor | None
    answer: Tensor | None
    frames: Tensor | None
    alpha: Tensor | None
    bias: Tensor | None
    slots: int = 1
    times: Times | None = None


@dataclass(frozen=True)
class Alignment:
    a2v: AudioWindows
    v2a: LatentPairs


Table = TypeVar("Table", AudioWindows, LatentPairs)


@lru_cache(maxsize=64)
def align(config: ModelConfig, video: TokenLayout, audio: TokenLayout, device: torch.device) -> Alignment:
    """Tables of both directions on `device`, kept for the next call with the same layouts. Raises UserError."""
    how = config.interaction
    a2v = _moved(audio_windows(how, video, audio), device)
    v2a = _moved(latent_pairs(how, video, audio), device)
    if how.positions == "none":
        return Alignment(a2v, v2a)
    seen = {index: latent_time(latent) for _, latent, index in _places(video)}
    heard = {index: mel_time(mel, how.mels_per_frame) for _, mel, index in _places(audio)}
    return Alignment(
        replace(a2v, times=_times(config.video, a2v.queries, seen, heard, device)),
        replace(v2a, times=_times(config.audio, v2a.queries, heard, seen, device)),
    )


def latent_time(latent: int) -> float:
    """Middle of the pixel frames that a latent owns, counted in video latents: 1/8, 3/4, 7/4, ..."""
    own = _frames_of(latent)
    return (own[0] + own[-1] + 1) / 2 / LATENT_STRIDE


def mel_time(mel: int, mels_per_frame: Fraction) -> float:
    """Middle of a mel frame on the same clock."""
    return float((mel + Fraction(1, 2)) / mels_per_frame / LATENT_STRIDE)


def audio_windows(config: InteractionConfig, video: TokenLayout, audio: TokenLayout) -> AudioWindows:
    """Audio tokens that each updated video frame sees (paper, A2V). Raises UserError if a frame has none."""
    queries, keys = _queries(video), _clip(audio)
    if config.a2v == "sgi":
        return AudioWindows(queries, keys, None, None)
    frame_unit = config.window_unit == "frame" and config.a2v == "ati"
    blocks: dict[int, list[int]] = defaultdict(list)
    for _, mel, index in _places(audio):
        frame = frame_of_mel(mel, config.mels_per_frame)
        blocks[frame if frame_unit else latent_of_frame(frame)].append(index - keys[0])
    reach = config.window if config.a2v == "ati" else 0
    _check_window(config, video, reach)
    first, last = min(blocks), max(blocks)
    rows = []
    for _, latent, _ in _places(video)[queries.start - _clip(video)[0] :][: queries.stop - queries.start]:
        own = _frames_of(latent) if frame_unit else range(latent, latent + 1)
        window = [min(max(block, first), last) for block in range(own[0] - reach, own[-1] + reach + 1)]
        rows.append(Counter(token for block in window for token in blocks.get(block, ())))
        if not rows[-1]:
            raise UserError(
                f"no audio within the window of video latent {latent}",
                hint="make both branches cover the same time",
            )
    return AudioWindows(queries, keys, *_table(rows))


def latent_pairs(config: InteractionConfig, video: TokenLayout, audio: TokenLayout) -> LatentPairs:
    """Latents and weights that each updated audio token sees (paper, V2A, and supplement 6.2)."""
    queries, keys = _queries(audio), _clip(video)
    if config.v2a == "sgi":
        return LatentPairs(queries, keys, None, None, None, None, None)
    at: dict[int, list[Place]] = defaultdict(list)
    for place in _places(video):
        at[place[1]].append(place)
    groups: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for _, mel, index in _places(audio)[queries.start - _clip(audio)[0] :][: queries.stop - queries.start]:
        latent, alpha = _interpolation(config, mel, min(at), max(at))
        groups[latent].append((index - queries.start, alpha))
    pair = 2 if config.v2a == "ati" else 1
    seen = {}
    for latent in groups:
        if latent not in at:
            raise UserError(f"no video at latent {latent}", hint="make both branches cover the same time")
        seen[latent] = [(own - keys[0], after - keys[0])[:pair] for own, after in _partners(at, latent)]
    width, slots = max(map(len, groups.values())), max(map(len, seen.values()))
    ask: list[int] = []
    alphas: list[float] = []
    answer = [0] * (queries.stop - queries.start)
    for number, tokens in enumerate(groups.values()):
        for slot, (token, _) in enumerate(tokens):
            answer[token] = number * width + slot
        padded = tokens + [tokens[0]] * (width - len(tokens))
        ask += [token for token, _ in padded]
        alphas += [weight for _, weight in padded]
    frames = [frame for pairs in seen.values() for chosen in _padded(pairs, slots) for frame in chosen]
    bias = torch.tensor(
        [[0.0 if slot < len(pairs) else -math.inf for slot in range(slots)] for pairs in seen.values()]
    )
    return LatentPairs(
        queries,
        keys,
        torch.tensor(ask),
        torch.tensor(answer),
        torch.tensor(frames),
        torch.tensor(alphas).view(len(groups), width, 1, 1) if pair == 2 else None,
        bias if bool(bias.any()) else None,
        slots,
    )


def _times(
    branch: BranchConfig,
    queries: Queries,
    own: dict[int, float],
    keys: dict[int, float],
    device: torch.device,
) -> Times:
    """Rotary tables of both sides; `own` and `keys` are the two clips' times by index in their sequences."""

    def rope(times: list[float]) -> Rope:
        places = torch.tensor(times, dtype=torch.float64)
        return as_rope(rotary_angles(places, branch.head_dim, branch.rope_theta), device)

    asking = [time for index, time in own.items() if queries.start <= index < queries.stop]
    return Times(rope(asking), rope(list(keys.values())))


def _moved(table: Table, device: torch.device) -> Table:
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in vars(table).items() if isinstance(value, Tensor)
    }
    return replace(table, **moved)


def _frames_of(latent: int) -> range:
    """Pixel frames that a latent owns."""
    end = frames_for_latents(latent + 1)
    return range(max(0, end - LATENT_STRIDE), end)


def _interpolation(config: InteractionConfig, mel: int, first: int, last: int) -> tuple[int, float]:
    """Latent i and weight alpha of a mel frame: it sees (1 - alpha) H_i + alpha H_(i+1). The last latent stands alone."""
    k = config.mels_per_frame
    frame = frame_of_mel(mel, k)
    latent = min(max(latent_of_frame(frame), first), last)
    if config.v2a == "sti" or latent == last or latent != latent_of_frame(frame):
        return latent, 0.0
    own = _frames_of(latent)
    if config.interpolate_over == "latent":
        return latent, float((mel - own[0] * k) / (len(own) * k))
    # a latent is replicated to its pixel frames, so only the last of them leads over to the next latent
    return latent, float(mel / k - frame) if frame == own[-1] else 0.0


def _partners(at: dict[int, list[Place]], latent: int) -> list[tuple[int, int]]:
    """Sequence indices of the latent's frames, each with the frame that follows it: of its own role if there is one."""
    pairs = []
    for role, _, index in at[latent]:
        after = at.get(latent + 1, [(role, latent, index)])
        pairs.append((index, next((place[2] for place in after if place[0] == role), after[0][2])))
    return pairs


def _padded(pairs: list[tuple[int, ...]], slots: int) -> list[tuple[int, ...]]:
    return pairs + [pairs[0]] * (slots - len(pairs))


def _table(rows: list[Counter[int]]) -> tuple[Tensor, Tensor | None]:
    """Counted tokens per row as an index and a bias, padded to a multiple of 8 (fused kernels align their bias so)."""
    width = max(map(len, rows))
    width += -width % 8 if any(len(row) < width for row in rows) else 0
    index = torch.zeros(len(rows), width, dtype=torch.int64)
    bias = torch.full((len(rows), width), -math.inf)
    for number, row in enumerate(rows):
        index[number, : len(row)] = torch.tensor(list(row))
        bias[number, : len(row)] = torch.tensor([math.log(count) for count in row.values()])
    return index.flatten(), bias[:, None, None, :] if bool(bias.any()) else None


def _places(layout: TokenLayout) -> list[Place]:
    """Every frame of the clip (conditions and noisy part), in sequence order."""
    places, index = [], 0
    for role, start, length in layout:
        if role != REFERENCE:
            places += [(role, start + step, index + step) for step in range(length)]
        index += length
    return places


def _clip(layout: TokenLayout) -> tuple[int, int]:
    """The run [start, stop) of the sequence that belongs to the clip: everything after the references."""
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
    """The noisy run, which must stand last; without one, the clip's first frame at gate 0."""
    clip, _ = _clip(layout)
    noisy = [s.length for s in layout if s.role == NOISY]
    stop = sum(s.length for s in layout)
    if len(noisy) > 1 or (noisy and layout[-1].role != NOISY) or sum(s.role == CONDITION for s in layout) > 1:
        raise UserError(
            f"layout {layout} must be in the order reference, condition, noisy", kind="bad-layout"
        )
    return Queries(stop - noisy[0], stop, 1.0) if noisy else Queries(clip, clip + 1, 0.0)


def _check_window(config: InteractionConfig, video: TokenLayout, reach: int) -> None:
    latents = max(latent for _, latent, _ in _places(video)) + 1
    span = frames_for_latents(latents) if config.window_unit == "frame" else latents
    if reach >= span:
        raise UserError(
            f"interaction.window is {reach} {config.window_unit}s, the clip has only {span}",
            hint=f"use a window of at most {span - 1} or longer clips",
            kind="window-too-large",
        )
