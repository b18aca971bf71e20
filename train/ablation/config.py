"""Configuration of `uniavgen ablate`: made data, small model, training and measurement. Imports no torch.

The defaults are the preset `quick`. All values are heuristics: the paper's ablations train the full model for
10k steps.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS, frames_for_latents, mels_for_frames
from uniavgen.train.config import ObjectiveConfig, SamplingConfig

CHANNELS, BANDS = 10, 8
"""Channels of the made video latents, and bands of the made mels."""
FACE_TOKENS = 2.0
"""Side of the square face, in tokens. The upper half is the brow, the lower half the mouth."""

TableName = Literal[
    "interaction", "face", "layers", "position", "strategy", "guidance", "positions", "timesteps"
]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorldConfig(_Config):
    """Size and difficulty of the made data."""

    latents: int = Field(
        default=9, ge=2, description="Video latents T of a clip; 9 are 33 pixel frames or 2.06 s."
    )
    rows: int = Field(default=3, ge=3, description="Height of a frame in tokens.")
    columns: int = Field(default=4, ge=3, description="Width of a frame in tokens.")
    hop: int = Field(
        default=1024, gt=0, description="Samples per mel frame; 1024 are 1.46 mel frames per pixel frame."
    )
    lead_s: float = Field(
        default=0.12,
        ge=0,
        description="Seconds by which the mouth moves before the audio; 0.1-0.3 s in real speech "
        "(Chandrasekaran et al. 2009, The natural statistics of audiovisual speech).",
    )
    spread_s: float = Field(
        default=0.05, gt=0, description="Standard deviation in seconds of the kernel around `lead_s`."
    )
    strangers: int = Field(default=2, ge=0, description="Other faces that move in the background.")
    texture: float = Field(
        default=0.1, ge=0, description="Standard deviation of white noise on every latent and mel value."
    )
    reference_mels: int = Field(default=12, ge=1, description="Mel frames of the reference audio.")

    @property
    def frames(self) -> int:
        """Pixel frames F of a clip."""
        return frames_for_latents(self.latents)

    @property
    def mels_per_frame(self) -> Fraction:
        return Fraction(SAMPLE_RATE, self.hop * VIDEO_FPS)

    @property
    def mels(self) -> int:
        """Mel frames L of a clip."""
        return mels_for_frames(self.frames, self.mels_per_frame)


class SmallModelConfig(_Config):
    """Both branches of the small models.

    What a row does not change has the default value of the full model.
    """

    dim: int = Field(default=32, description="Width of both branches.")
    layers: int = Field(default=4, description="Blocks of both branches.")
    heads: int = Field(default=2, description="Attention heads of both branches.")
    ffn_dim: int = Field(default=64, description="Inner width of both feed-forward parts.")
    window: int = Field(
        default=4,
        ge=0,
        description="A2V window in pixel frames: 12 of 33 frames in all, the paper's share (28 of 81).",
    )


class AblateConfig(_Config):
    """`uniavgen ablate`."""

    tables: tuple[TableName, ...] = Field(
        default=("interaction",),
        min_length=1,
        description="Tables to run; `positions` and `timesteps` are not in the paper.",
    )
    seeds: int = Field(
        default=3, ge=2, description="Trainings of every row, with other weights, data and noise."
    )
    branch_steps: int = Field(
        default=700,
        ge=2,
        description="Optimizer steps of both branches without interaction, once per seed; rows start there.",
    )
    steps: int = Field(
        default=350, ge=2, description="Optimizer steps of every row after that, with its interaction."
    )
    batch: int = Field(default=16, ge=1, description="Clips per step; no clip is used twice.")
    lr: float = Field(
        default=3e-3, gt=0, description="AdamW's peak learning rate; falls linearly to 0 over the last 30 %."
    )
    warmup: int = Field(default=50, ge=0, description="Steps of linear warm-up.")
    clips: int = Field(default=256, ge=2, description="Held-out clips that are generated and measured.")
    world: WorldConfig = Field(default_factory=WorldConfig, description="the made data")
    model: SmallModelConfig = Field(default_factory=SmallModelConfig, description="the small models")
    objective: ObjectiveConfig = Field(
        default_factory=ObjectiveConfig, description="the loss; rows set the task mix"
    )
    sampler: SamplingConfig = Field(
        default_factory=lambda: SamplingConfig(steps=16, guidance="none"),
        description="sampler for held-out clips; no guidance, so that rows differ by training only",
    )

    @model_validator(mode="after")
    def _fits(self) -> AblateConfig:
        if min(self.world.rows, self.world.columns) <= FACE_TOKENS:
            raise ValueError(
                f"world.rows and world.columns must exceed the face's side, {FACE_TOKENS:g} tokens"
            )
        if self.model.window >= self.world.frames:
            raise ValueError(
                f"model.window {self.model.window} must be below the clip's {self.world.frames} frames"
            )
        return self
