"""FLOPs of a forward pass, by formula. Imports no torch.

A multiplication and its addition count as two, as in torch's counter; element-wise operations are not
counted. A training step costs three forward passes, four with activation checkpointing.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from uniavgen.shards.timing import frames_for_latents
from uniavgen.train.model.config import BranchConfig, ModelConfig


class Shapes(BaseModel):
    """Sizes of one sample's input; latents and mels include references and conditions."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    latents: int = Field(ge=0, description="Video latent frames, 0 without video.")
    height: int = Field(ge=0, description="Latent rows.")
    width: int = Field(ge=0, description="Latent columns.")
    mels: int = Field(ge=0, description="Mel frames, 0 without audio.")
    reference_latents: int = Field(
        default=0, ge=0, description="Of the latents, references: they take no part in interactions."
    )
    reference_mels: int = Field(default=0, ge=0, description="Of the mels, references.")
    caption_tokens: int = Field(default=512, ge=0, description="Text tokens of the caption.")
    speech_tokens: int = Field(default=128, ge=0, description="Bytes of the text to be spoken.")

    @property
    def clip_latents(self) -> int:
        """Latents without the references."""
        return self.latents - self.reference_latents

    @property
    def clip_mels(self) -> int:
        """Mel frames without the references."""
        return self.mels - self.reference_mels


def forward_flops(config: ModelConfig, shapes: Shapes, *, interact: bool = True) -> dict[str, float]:
    """FLOPs of one sample's forward pass: `video`, `audio`, `speech_text`, `interactions`, `total`."""
    ph, pw = config.video.patch
    side = (shapes.height // ph) * (shapes.width // pw)
    speech = config.speech_text
    counts = {
        "video": _branch(config.video, shapes.latents * side, shapes.caption_tokens),
        "audio": _branch(config.audio, shapes.mels, shapes.speech_tokens),
        "speech_text": 2.0
        * shapes.speech_tokens
        * speech.layers
        * (2 * speech.dim**2 * speech.expansion + speech.dim * speech.kernel),
    }
    if not shapes.mels:
        counts["speech_text"] = 0.0
    layers = len(config.interaction.layer_indices(config.video.layers))
    meets = interact and shapes.latents and shapes.mels
    counts["interactions"] = (
        layers * _interaction(config, shapes.clip_latents, side, shapes.clip_mels) if meets else 0.0
    )
    return counts | {"total": sum(counts.values())}


def _branch(config: BranchConfig, tokens: int, text: int) -> float:
    """Two FLOPs per weight and token, and per pair of tokens and channel, for scores and for values."""
    if not tokens:
        return 0.0
    text = text if config.text_len is None else config.text_len
    dim, patch = config.dim, config.in_channels * math.prod(config.patch)
    per_token = 4 * dim**2 + 2 * dim**2 + 2 * dim * config.ffn_dim
    layer = tokens * per_token + text * 2 * dim**2 + 2 * dim * tokens * (tokens + text)
    times = 2 * (config.freq_dim * dim + dim**2 + 6 * dim**2)
    return 2.0 * (
        config.layers * layer + 2 * tokens * patch * dim + times + text * (config.text_dim * dim + dim**2)
    )


def _interaction(config: ModelConfig, latents: int, side: int, mels: int) -> float:
    """Projections of both directions, and attention over the keys that each aligner lets a query see."""
    video, audio, how = config.video.dim, config.audio.dim, config.interaction
    tokens = latents * side
    window = audio_keys(config, latents, mels)
    seen = {"sgi": tokens, "sti": side, "ati": 2 * side}[how.v2a]
    projections = (
        tokens * 2 * video**2 + mels * 2 * audio * video + mels * 2 * audio**2 + tokens * 2 * audio * video
    )
    return 2.0 * (projections + 2 * video * tokens * window + 2 * audio * mels * seen)


def audio_keys(config: ModelConfig, latents: int, mels: int) -> float:
    """Mel frames that a video token attends to: all, those of its own latent, or those of its window."""
    how = config.interaction
    per_latent = mels / frames_for_latents(latents) * 4
    blocks = {"frame": 1 + how.window / 2, "latent": 1 + 2 * how.window}[how.window_unit]
    return {"sgi": mels, "sti": per_latent, "ati": min(mels, blocks * per_latent)}[how.a2v]
