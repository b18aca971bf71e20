"""Sizes of video latents and configuration of the audio latent. Imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from uniavgen.shards.timing import MEL_HOP, SAMPLE_RATE

VIDEO_CHANNELS = 48
"""Channels of a video latent (Wan2.2)."""
VIDEO_STRIDE = 16
"""Pixels per latent, in height and in width."""
TOKEN_STRIDE = 2 * VIDEO_STRIDE
"""Pixels per video token: the DiT's patch is (1, 2, 2)."""


class MelConfig(BaseModel):
    """The log-mel that serves as audio latent.

    The paper names Vocos and 24 kHz; the rest are Vocos-24k's values.
    """

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
