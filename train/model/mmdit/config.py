"""Configuration of the video-to-audio transformer. Imports no torch.

`mmaudio(name)` gives the published sizes of MMAudio (arXiv 2412.15322); each value is that of its released
code. `audiogen_omni(name)` gives AudioGen-Omni (arXiv 2508.00733), of which no code, weights or sizes are
public: a field whose value that paper does not disclose says so.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uniavgen.shards.errors import UserError
from uniavgen.train.model.config import SpeechTextConfig

AUDIO, SYNC = "audio", "sync"
"""Names of the audio stream, which is also its block, and of the frame condition."""

Activation = Literal["none", "selu", "silu"]


def exact(number: Fraction | float) -> Fraction:
    """The decimal number that was meant: 0.8 as 4/5, so that 0.8 s at 31.25 Hz are 25 latents and not 26."""
    return Fraction(number).limit_denominator(1_000_000)


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AudioGrid(_Config):
    """Time grid of the audio latents: `hop * stride` samples a latent."""

    sample_rate: int = Field(default=16_000, gt=0, description="Hz of the waveform")
    hop: int = Field(default=256, gt=0, description="samples between two mel frames")
    stride: int = Field(default=2, gt=0, description="mel frames in a latent: the VAE's stride in time")

    @property
    def rate(self) -> Fraction:
        """Latents per second."""
        return Fraction(self.sample_rate, self.hop * self.stride)

    def latents(self, seconds: Fraction | float) -> int:
        """Latents that cover `seconds`, rounded up (8 s: 250 at 16 kHz, 345 at 44.1 kHz)."""
        return math.ceil(exact(seconds) * self.rate)

    def samples(self, latents: int) -> int:
        """Waveform samples of `latents`: a multiple of hop * stride, so 353280 and not 352800 for 345."""
        return latents * self.hop * self.stride

    def seconds(self, latents: int) -> Fraction:
        """Duration of `latents`."""
        return latents / self.rate


class StreamConfig(_Config):
    """One input whose tokens take part in the joint attention."""

    name: str = Field(pattern="^[a-z_]+$", description="name of the input, also in weights")
    block: str = Field(
        pattern="^[a-z_]+$",
        description="block weights that the tokens pass through; streams of one block are concatenated",
    )
    channels: int = Field(ge=1, description="width of the features")
    rate: float | None = Field(
        default=None, gt=0, description="tokens per second; none: no time, the number of tokens is `tokens`"
    )
    tokens: int = Field(default=77, ge=1, description="tokens of an input without a rate")
    feed_forward: Literal["conv", "linear"] = Field(
        description="conv: convolutions over 3 tokens after attention and in the MLP; linear: none"
    )
    activation: Activation = Field(default="none", description="between the input's projection and its MLP")
    empty: Literal["learned", "frozen"] = Field(
        default="learned",
        description="stand-in for a missing input. learned: one vector for all tokens; frozen: features of "
        "all tokens, such as those of an empty text, which training never changes",
    )
    pools_into: tuple[str, ...] = Field(
        default=(), description="blocks whose modulation receives the mean of this stream's tokens"
    )
    updates: bool = Field(
        default=True,
        description="false: tokens are only read by the other streams and stay as they are (text-frozen)",
    )
    ids: bool = Field(default=False, description="the input is symbol ids for the transcript encoder")


class FrameConfig(_Config):
    """The input that modulates audio frame by frame: synchronisation features in segments."""

    channels: int = Field(default=768, ge=1, description="width of the features")
    segment: int = Field(default=8, ge=1, description="features of a segment, which has learned positions")
    fps: int = Field(default=25, gt=0, description="frames per second of the video that is encoded")
    segment_frames: int = Field(default=16, gt=0, description="video frames of a segment")
    segment_step: int = Field(default=8, gt=0, description="video frames between two segments")
    activation: Activation = Field(default="selu", description="between the projection and its MLP")
    pools_into: tuple[str, ...] = Field(
        default=(), description="blocks whose modulation also receives the mean of the features"
    )

    def length(self, seconds: Fraction | float) -> int:
        """Features of a video of `seconds` (8 s: 192). Raises UserError below one segment."""
        frames = int(exact(seconds) * self.fps)
        if frames < self.segment_frames:
            raise UserError(
                f"a video of {float(seconds):.2f} s has {frames} frames at {self.fps} fps, a segment needs "
                f"{self.segment_frames}",
                hint=f"use at least {self.segment_frames / self.fps:.2f} s",
                kind="too-short",
            )
        return ((frames - self.segment_frames) // self.segment_step + 1) * self.segment


class MMDiTConfig(_Config):
    """A transformer over audio latents that attends to any number of other inputs."""

    dim: int = Field(ge=8, description="width of all tokens")
    heads: int = Field(ge=1, description="attention heads (64 channels each in MMAudio)")
    joint_layers: int = Field(ge=1, description="N1: layers in which all streams attend to each other")
    audio_layers: int = Field(ge=0, description="N2: layers of the audio stream alone")
    mlp_ratio: float = Field(default=4.0, gt=0, description="inner width over `dim`, before SwiGLU's 2/3")
    mlp_multiple: int = Field(
        default=256, ge=1, description="the inner width is rounded up to a multiple of this"
    )
    channels: int = Field(ge=1, description="channels of the audio latents")
    grid: AudioGrid = AudioGrid()
    audio_activation: Activation = Field(
        default="selu", description="between the audio's projection and its MLP"
    )
    audio_feed_forward: Literal["conv", "linear"] = Field(default="conv", description="as that of a stream")
    streams: tuple[StreamConfig, ...] = Field(description="the inputs beside audio, in attention order")
    frame: FrameConfig | None = Field(default=None, description="the frame condition; none: no such input")
    condition_mlp: bool = Field(
        default=True, description="whether the sum of the pooled streams passes an MLP (MMAudio: yes)"
    )
    final_condition: Literal["global", "frame"] = Field(
        default="global",
        description="condition of the last layer. MMAudio's released weights need `global`, which its author "
        "calls a slip",
    )
    time_width: int = Field(default=256, ge=2, description="sinusoidal features of the diffusion time")
    time_period: float = Field(
        default=10_000.0,
        gt=0,
        description="longest period: 10000 for MMAudio's first weights, 1 for its second. The time is in "
        "0..1 and is not scaled",
    )
    positions: Literal["none", "all", "unaligned", "aligned"] = Field(
        default="aligned",
        description="rotary positions. aligned: streams with a rate by time, so that equal times have equal "
        "phase, others none (PAAPI); unaligned: streams with a rate by index; all: all streams, those "
        "without a rate by index; none: none",
    )
    align_by: Literal["length", "rate"] = Field(
        default="length",
        description="what aligns a stream to audio: the ratio of their lengths (MMAudio) or of their rates",
    )
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    mask_missing: bool = Field(
        default=False, description="whether tokens of missing inputs are invisible to the other streams"
    )
    mask_padding: bool = Field(
        default=False, description="whether padding is invisible and not pooled (MMAudio attends to it)"
    )
    transcript: SpeechTextConfig | None = Field(
        default=None, description="encoder of symbol ids to features; none: no stream has ids"
    )

    @model_validator(mode="after")
    def _check(self) -> MMDiTConfig:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(f"dim {self.dim} / heads {self.heads} must be an even whole number")
        if self.time_width % 2:
            raise ValueError(f"time_width must be even, got {self.time_width}")
        names = [AUDIO, *(stream.name for stream in self.streams)] + ([SYNC] if self.frame else [])
        if len(set(names)) < len(names):
            raise ValueError(f"streams: each name must differ, got {', '.join(names)}")
        for stream in self.streams:
            self._check_stream(stream)
        if self.frame:
            self._check_pools("frame", self.frame.pools_into)
        return self

    def _check_stream(self, stream: StreamConfig) -> None:
        self._check_pools(stream.name, stream.pools_into)
        first = next(other for other in self.streams if other.block == stream.block)
        if stream.block == AUDIO:
            raise ValueError(f"streams.{stream.name}: the block {AUDIO} is for audio alone")
        if (first.feed_forward, first.updates) != (stream.feed_forward, stream.updates):
            raise ValueError(
                f"streams.{stream.name} and streams.{first.name} share the block {stream.block}: "
                f"feed_forward and updates must be equal"
            )
        if stream.ids and self.transcript is None:
            raise ValueError(f"streams.{stream.name} has ids: name the encoder `transcript`")
        if stream.ids and self.transcript and stream.channels != self.transcript.dim:
            raise ValueError(
                f"streams.{stream.name}.channels is {stream.channels}, transcript.dim {self.transcript.dim}"
            )
        if stream.empty == "frozen" and stream.rate is not None:
            raise ValueError(f"streams.{stream.name}: `frozen` needs a fixed number of tokens, so no rate")

    def _check_pools(self, name: str, pools_into: tuple[str, ...]) -> None:
        unknown = sorted(set(pools_into) - {*self.blocks})
        if unknown:
            raise ValueError(f"{name}.pools_into: no block {', '.join(unknown)}; {', '.join(self.blocks)}")

    @property
    def blocks(self) -> dict[str, tuple[StreamConfig, ...]]:
        """Block name -> its streams, in attention order; audio is first and has none."""
        names = dict.fromkeys(stream.block for stream in self.streams)
        by_block = {name: tuple(s for s in self.streams if s.block == name) for name in names}
        return {AUDIO: (), **by_block}

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def hidden(self) -> int:
        """Inner width of the SwiGLU: 2/3 of `mlp_ratio * dim`, rounded up to `mlp_multiple` (448 -> 1280)."""
        return self.mlp_multiple * math.ceil(int(2 * int(self.dim * self.mlp_ratio) / 3) / self.mlp_multiple)

    def convolutional(self, block: str) -> bool:
        """Whether a block has convolutions."""
        kind = self.audio_feed_forward if block == AUDIO else self.blocks[block][0].feed_forward
        return kind == "conv"

    def length(self, stream: StreamConfig, seconds: Fraction | float) -> int:
        """Tokens of a stream for `seconds` of audio. Raises UserError if there is none."""
        if stream.ids:
            return self.grid.latents(seconds)
        if stream.rate is None:
            return stream.tokens
        tokens = int(exact(seconds) * exact(stream.rate))
        if not tokens:
            raise UserError(
                f"{float(seconds):.3f} s are shorter than one token of {stream.name} ({stream.rate:g} Hz)",
                hint=f"use at least {1 / stream.rate:.3f} s",
                kind="too-short",
            )
        return tokens

    def lengths(self, seconds: Fraction | float) -> dict[str, int]:
        """Latents, tokens and frame features for `seconds`, by name; 8 s at 16 kHz: audio 250, clip 64, text
        77, sync 192."""
        lengths = {AUDIO: self.grid.latents(seconds)}
        lengths |= {stream.name: self.length(stream, seconds) for stream in self.streams}
        return lengths | ({SYNC: self.frame.length(seconds)} if self.frame else {})


def _clip(activation: Activation = "none") -> StreamConfig:
    return StreamConfig(
        name="clip",
        block="clip",
        channels=1024,
        rate=8,
        feed_forward="conv",
        activation=activation,
        pools_into=(AUDIO, "clip", "text"),
    )


def _text(activation: Activation = "none") -> StreamConfig:
    return StreamConfig(
        name="text",
        block="text",
        channels=1024,
        tokens=77,
        feed_forward="linear",
        activation=activation,
        empty="frozen",
        pools_into=(AUDIO, "clip", "text"),
    )


GRID_16K = AudioGrid()
GRID_44K = AudioGrid(sample_rate=44_100, hop=512)

MMAUDIO: dict[str, tuple[AudioGrid, int, int, int, int]] = {
    "mmaudio-small-16k": (GRID_16K, 20, 448, 4, 8),
    "mmaudio-small-44k": (GRID_44K, 40, 448, 4, 8),
    "mmaudio-medium-44k": (GRID_44K, 40, 896, 4, 8),
    "mmaudio-large-44k": (GRID_44K, 40, 896, 7, 14),
    "mmaudio-large-44k-v2": (GRID_44K, 40, 896, 7, 14),
}
"""Name -> time grid, latent channels, width, N1, N2. Heads are 64 wide."""

AUDIOGEN_OMNI: dict[str, tuple[int, int, int, int]] = {
    "audiogen-omni-tiny": (128, 2, 2, 2),
    "audiogen-omni-small": (448, 7, 4, 8),
    "audiogen-omni-large": (896, 14, 7, 14),
}
"""Name -> width, heads, N1, N2. All undisclosed: MMAudio's sizes, and a small one for two cores."""

TRANSCRIPT_VOCABULARY = 308
"""Symbols of `train.codec.transcript`."""


def mmaudio(name: str) -> MMDiTConfig:
    """A published size of MMAudio. Raises UserError for an unknown name."""
    if name not in MMAUDIO:
        raise UserError(f"unknown model {name!r}", hint=f"models: {', '.join(MMAUDIO)}", kind="unknown-model")
    grid, channels, dim, joint, audio = MMAUDIO[name]
    second = name.endswith("-v2")
    act: Activation = "silu" if second else "none"
    conv_act: Activation = "silu" if second else "selu"
    return MMDiTConfig(
        dim=dim,
        heads=dim // 64,
        joint_layers=joint,
        audio_layers=audio,
        channels=channels,
        grid=grid,
        audio_activation=conv_act,
        streams=(_clip(act), _text(act)),
        frame=FrameConfig(activation=conv_act),
        time_width=dim if second else 256,
        time_period=1.0 if second else 10_000.0,
    )


def audiogen_omni(
    name: str = "audiogen-omni-small",
    *,
    caption_channels: int = 1024,
    positions: Literal["none", "all", "unaligned", "aligned"] = "aligned",
    caption_updates: bool = True,
) -> MMDiTConfig:
    """AudioGen-Omni in the reading of `docs/video-to-audio.md`. Raises UserError for an unknown name.

    caption_channels: width of Flan-T5 (512, 768, 1024 or 2048; the size is undisclosed). Published: four
    streams, transcript and caption in one middle stream, rotary positions on all but the caption, each
    stream modulated by the means of the others. Undisclosed: every number.
    """
    if name not in AUDIOGEN_OMNI:
        raise UserError(
            f"unknown model {name!r}", hint=f"models: {', '.join(AUDIOGEN_OMNI)}", kind="unknown-model"
        )
    dim, heads, joint, audio = AUDIOGEN_OMNI[name]
    encoder = SpeechTextConfig(dim=min(dim, 512), layers=4, vocabulary=TRANSCRIPT_VOCABULARY)
    middles = ("text",) if caption_updates else ("text", "caption")
    video = _clip().model_copy(update={"pools_into": (AUDIO, *middles)})
    middle: dict[str, Any] = {"feed_forward": "linear", "pools_into": (AUDIO, "clip")}
    transcript = StreamConfig(
        name="transcript",
        block="text",
        channels=encoder.dim,
        rate=float(GRID_16K.rate),
        ids=True,
        **middle,
    )
    # a caption that is only read cannot share a block with the transcript
    caption = StreamConfig(
        name="caption",
        block="text" if caption_updates else "caption",
        channels=caption_channels,
        updates=caption_updates,
        **middle,
    )
    return MMDiTConfig(
        dim=dim,
        heads=heads,
        joint_layers=joint,
        audio_layers=audio,
        channels=20,
        streams=(video, transcript, caption),
        frame=FrameConfig(pools_into=(AUDIO, *middles)),
        condition_mlp=False,
        positions=positions,
        align_by="rate",
        mask_missing=True,
        mask_padding=True,
        transcript=encoder,
    )
