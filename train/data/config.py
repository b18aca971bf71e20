"""Configuration of the training data: window, codecs, cached latents. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from uniavgen.shards.buckets import WindowShape
from uniavgen.shards.config import ErrorBudgetConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import latents_for_frames, mels_for_frames
from uniavgen.train.codec.config import TOKEN_STRIDE
from uniavgen.train.codec.registry import CodecConfig

CropName = Literal["centre", "face", "tracked", "stabilised"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CacheConfig(_Config):
    """Cached latents. Only `windows` and `dtype` are part of the cache's digest."""

    windows: int = Field(
        default=4,
        gt=0,
        description="windows cached per clip, evenly placed; training on cached latents sees no others",
    )
    dtype: Literal["float16", "float32"] = Field(
        default="float16",
        description="storage type; float16 rounds by 2e-4 of the standard deviation (measured on real clips)",
    )
    workers: int = Field(default=1, gt=0, description="Ray actors, each with its own codecs")
    num_cpus: float = Field(
        default=1, gt=0, description="CPUs that an actor reserves, and its PyTorch threads"
    )
    num_gpus: float = Field(
        default=0, ge=0, description="share of a GPU that an actor reserves; 0: it runs on CPUs"
    )


class DataConfig(_Config):
    """The window of a sample that training sees, and the codecs that encode it."""

    frames: int = Field(
        default=17, gt=1, description="pixel frames of the window at 16 fps, 4n + 1 (paper-sized: 81)"
    )
    height: int = Field(default=128, gt=0, description="px, a multiple of 32 (paper-sized: 480)")
    width: int = Field(default=128, gt=0, description="px, a multiple of 32 (paper-sized: 832)")
    crop: CropName = Field(
        default="centre",
        description="part of the frame that is kept. centre: its middle, as in runs of 0.5 and older; face: "
        "as much of the frame as fits the window, around the face of the clip (the median of its boxes); "
        "tracked: a crop of one size that follows the face; stabilised: it also turns and scales with the "
        "head, whose motion leaves the video. tracked and stabilised are ours, not the paper's",
    )
    relative: bool = Field(
        default=False,
        description="video latents minus those of a still video of the reference frame, which generation "
        "adds again: the model learns motion, not the person. Ours, not the paper's",
    )
    mouth_mask: bool = Field(
        default=False,
        description="make the share of each latent that is inside the mouth's box, for "
        "objective.mouth_weight. Ours, not the paper's",
    )
    reference_frames: int = Field(
        default=17, gt=0, description="length of the reference audio, in pixel frames"
    )
    caption_tokens: int = Field(
        default=32, gt=0, description="caption length in tokens; longer ones are cut (Wan: 512)"
    )
    speech_bytes: int = Field(
        default=64, gt=0, description="speech text length in bytes; longer ones are cut and counted"
    )
    buckets: list[WindowShape] = Field(
        default_factory=list,
        description="window shapes {frames, height, width}, instead of one: each clip is cut to the shape "
        "that fits it best, each step has one shape",
    )
    balance: Literal["samples", "flops"] = Field(
        default="samples",
        description="flops: steps of cheaper window shapes take whole multiples of the stage's batch",
    )
    shards: str = Field(
        default="", description="folder or URL (s3://...) of the shards; empty: those of the corpus"
    )
    seed: int = Field(default=0, ge=0, description="seed of the order of samples and of their windows")
    prefetch: int = Field(default=2, ge=0, description="batches that are made ahead of their step")
    codecs: CodecConfig = Field(default_factory=CodecConfig, description="video, caption and audio codecs")
    latents: Literal["auto", "require", "off"] = Field(
        default="auto",
        description="auto: cached latents if they fit codecs and window, else encode during training; "
        "require: stop without cached latents",
    )
    cached: CacheConfig = Field(default_factory=CacheConfig, description="cached latents")
    damage: ErrorBudgetConfig = Field(
        default_factory=ErrorBudgetConfig,
        description="error budget: damaged samples that are replaced, per worker",
    )

    @field_validator("frames")
    @classmethod
    def _check_frames(cls, frames: int) -> int:
        try:
            latents_for_frames(frames)
        except UserError as error:
            raise ValueError(str(error)) from error
        return frames

    @field_validator("height", "width")
    @classmethod
    def _check_side(cls, side: int) -> int:
        if side % TOKEN_STRIDE:
            raise ValueError(f"must be a multiple of {TOKEN_STRIDE} px (VAE 16 x patch 2), got {side}")
        return side

    @model_validator(mode="after")
    def _check_buckets(self) -> DataConfig:
        if len(set(self.buckets)) < len(self.buckets):
            raise ValueError("buckets: a window shape is listed twice")
        for shape in self.buckets:
            self._check_frames(shape.frames)
            self._check_side(shape.height)
            self._check_side(shape.width)
        if self.buckets and self.latents == "require":
            raise ValueError(
                "buckets: latents are cached for one window shape only; set latents to auto or off"
            )
        return self

    @property
    def follows_face(self) -> bool:
        """Whether each frame has a crop of its own, which follows the face."""
        return self.crop in ("tracked", "stabilised")

    @property
    def mels(self) -> int:
        """Mel frames L of the window."""
        return mels_for_frames(self.frames)

    @property
    def reference_mels(self) -> int:
        """Mel frames Lr of the reference audio."""
        return mels_for_frames(self.reference_frames)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Video latent (T, h, w) of the window."""
        return (
            latents_for_frames(self.frames),
            self.height // (TOKEN_STRIDE // 2),
            self.width // (TOKEN_STRIDE // 2),
        )
