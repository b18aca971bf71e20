"""Which codecs a run uses, by name: the only place where a codec is chosen. Imports nothing heavy.

The defaults need no download beyond the embedded weights; each stands in for a component of the paper and says so.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from uniavgen.shards.timing import MEL_HOP, SAMPLE_RATE

VIDEO_CHANNELS = 48
"""Channels of a video latent, Wan2.2's z."""
VIDEO_STRIDE = 16
"""Pixels per latent, in height and in width."""
TOKEN_STRIDE = 2 * VIDEO_STRIDE
"""Pixels per video token: the DiT's patch is (1, 2, 2)."""

CAPTION_WIDTHS = {"minilm": 384, "umt5": 4096}
"""Width of the caption features by encoder, known before any weights are loaded."""


class MelConfig(BaseModel):
    """The log-mel that serves as audio latent. The paper names Vocos and 24 kHz only; the rest are Vocos-24k's values."""

    model_config = ConfigDict(extra="forbid")
    sample_rate: int = Field(default=SAMPLE_RATE, description="Hz; the samples' rate (paper: 24 kHz)")
    n_fft: int = Field(default=1024, description="samples per analysis window (Vocos)")
    hop: int = Field(default=MEL_HOP, description="samples between frames (Vocos; the paper is silent)")
    mels: int = Field(default=100, description="mel bands, 0 Hz to half the rate on the HTK scale (Vocos)")
    floor: float = Field(default=1e-7, description="smallest magnitude before the logarithm (Vocos)")
    mean: float = Field(
        default=-1.2, description="subtracted from the log-mel; measured over eight real talking clips"
    )
    std: float = Field(default=2.5, description="divides the log-mel; measured over the same clips, pooled")


class CodecConfig(BaseModel):
    """Codec names and, where weights are the user's own, the folder that holds them."""

    model_config = ConfigDict(extra="forbid")
    video: Literal["dct", "wan2.2"] = Field(
        default="dct", description="`dct` needs no weights and stands in for `wan2.2` (paper)"
    )
    video_weights: str = Field(
        default="", description="folder of AutoencoderKLWan in diffusers layout, for `wan2.2`"
    )
    caption: Literal["minilm", "umt5"] = Field(
        default="minilm", description="`minilm` is embedded and stands in for `umt5` (paper)"
    )
    caption_weights: str = Field(
        default="", description="folder or hub id of the encoder; empty: the embedded weights"
    )
    vocoder: Literal["griffin-lim", "vocos"] = Field(
        default="griffin-lim", description="`griffin-lim` stands in for `vocos` (paper)"
    )
    vocoder_weights: str = Field(
        default="", description="folder or hub id of Vocos (config.yaml and pytorch_model.bin)"
    )
    mel: MelConfig = Field(default_factory=MelConfig, description="the audio latent")

    @property
    def caption_width(self) -> int:
        """Width Dc of the caption features."""
        return CAPTION_WIDTHS[self.caption]
