"""The objective, the tasks and the sampler, as configuration; this module imports no torch."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from uniavgen.shards.errors import UserError


class Task(StrEnum):
    """The five tasks of the paper, in its order (section 3.5)."""

    JOINT = "joint"
    REFERENCE = "reference"
    CONTINUATION = "continuation"
    DUBBING = "dubbing"
    AUDIO_DRIVEN = "audio-driven"

    @property
    def scored(self) -> tuple[str, ...]:
        """The modalities that the task generates, and so scores."""
        return {"dubbing": ("audio",), "audio-driven": ("video",)}.get(self.value, ("video", "audio"))


PAPER_MIX: dict[Task, int] = dict(zip(Task, (4, 1, 1, 2, 2), strict=True))
"""Draws of each task in ten (paper: 4:1:1:2:2)."""


def task_named(name: str) -> Task:
    """The task of that name. Raises UserError listing the names otherwise."""
    try:
        return Task(name)
    except ValueError:
        raise UserError(
            f"unknown task {name!r}", hint=f"tasks: {', '.join(Task)}", kind="unknown-task"
        ) from None


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TimestepConfig(_Config):
    """How the diffusion time t in 0..1 (1 is noise) is drawn in training; the paper does not say."""

    distribution: Literal["uniform", "logit-normal", "shifted"] = Field(
        default="logit-normal",
        description="Undisclosed. logit-normal: sigmoid of a normal variable (Stable Diffusion 3), which spends draws where "
        "the velocity is hard; shifted: `uniform` moved towards noise by `shift` (Wan's schedule).",
    )
    mean: float = Field(default=0.0, description="Mean of the logit-normal's normal variable.")
    std: float = Field(
        default=1.0, gt=0, description="Standard deviation of the logit-normal's normal variable."
    )
    shift: float = Field(
        default=5.0,
        gt=0,
        description="s of `shifted`: t = s u / (1 + (s - 1) u). Wan 2.2 TI2V samples with 5.",
    )


class ObjectiveConfig(_Config):
    """What one micro-step's loss is made of."""

    timestep: TimestepConfig = TimestepConfig()
    shared_timestep: bool = Field(
        default=True,
        description="Both branches at the same t. Undisclosed; true, as the sampler moves both along one schedule.",
    )
    caption_dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of samples trained on an empty caption. Undisclosed; 0.1 is usual for guidance.",
    )
    speech_dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of samples trained on an empty speech text, drawn apart from the caption's.",
    )
    video_weight: float = Field(
        default=1.0, ge=0, description="Weight of the video velocity loss (paper: 1)."
    )
    audio_weight: float = Field(
        default=1.0, ge=0, description="Weight of the audio velocity loss (paper: 1)."
    )
    continuation_min: float = Field(
        default=0.2, gt=0, lt=1, description="Least share of a clip that a continuation is given."
    )
    continuation_max: float = Field(
        default=0.5, gt=0, lt=1, description="Largest share of a clip that a continuation is given."
    )
    dubbing_reference: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of dubbing steps with reference audio, which the paper calls optional there.",
    )
    reference_gap: int = Field(
        default=0,
        ge=0,
        description="Empty clock places between a reference and the clip. Undisclosed; 0 puts it right before.",
    )
    mix: dict[Task, int] = Field(
        default=PAPER_MIX, description="Draws of each task in one period of the schedule (paper: 4:1:1:2:2)."
    )

    @field_validator("mix")
    @classmethod
    def _mix(cls, mix: dict[Task, int]) -> dict[Task, int]:
        if any(count < 0 for count in mix.values()) or not sum(mix.values()):
            raise ValueError(f"mix needs counts of at least 0 that do not sum to 0, got {mix}")
        return mix

    @model_validator(mode="after")
    def _shares(self) -> ObjectiveConfig:
        if self.continuation_min > self.continuation_max:
            raise ValueError(
                f"continuation_min {self.continuation_min} exceeds continuation_max {self.continuation_max}"
            )
        return self


class SamplerConfig(_Config):
    """Euler steps from noise (t = 1) to data (t = 0), with guidance on a part of the way."""

    steps: int = Field(default=50, ge=1, description="Euler steps (paper: 50).")
    guidance: Literal["none", "text", "modality-aware"] = Field(
        default="modality-aware",
        description="text: against an empty text; modality-aware: against one pass with both interactions removed (MA-CFG).",
    )
    video_scale: float = Field(default=3.0, description="s_v of the paper.")
    audio_scale: float = Field(default=2.0, description="s_a of the paper.")
    interval: tuple[float, float] = Field(
        default=(0.5, 1.0), description="Guided range of t, both ends in; 1 is noise (paper: 0.5..1)."
    )
    empty_text: bool = Field(
        default=True,
        description="Empty text too in the pass without interaction, which the paper does for efficiency.",
    )
    shift: float = Field(
        default=1.0,
        gt=0,
        description="s of the steps t = s u / (1 + (s - 1) u). Undisclosed; 1 is even steps, Wan 2.2 TI2V takes 5.",
    )
    continuation_latents: int = Field(
        default=1, ge=1, description="Video latents that a continuation is given when sampling."
    )

    @field_validator("interval")
    @classmethod
    def _interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"interval must be two times in order in 0..1, got {interval}")
        return interval
