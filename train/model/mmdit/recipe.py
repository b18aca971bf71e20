"""Settings of training and sampling of the video-to-audio transformer. Imports no torch.

Defaults are MMAudio's published values; AudioGen-Omni discloses none.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from uniavgen.train.config import TimestepConfig

DROP_GROUPS = {"video": ("clip", "sync"), "text": ("text", "caption"), "transcript": ("transcript",)}
"""Draw -> the inputs that it drops together."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SoundObjectiveConfig(_Config):
    """The loss of one micro-step: mean squared error of the velocity, over time and channels."""

    timestep: TimestepConfig = Field(
        default=TimestepConfig(), description="diffusion time (MMAudio: logit-normal, mean 0, std 1)"
    )
    dropout: dict[str, float] = Field(
        default={"video": 0.1, "text": 0.1, "transcript": 0.1},
        description="share of samples trained without an input, drawn independently: video (frame features "
        "and synchronisation together, MMAudio: 0.1), text (MMAudio: 0.1), transcript (undisclosed)",
    )
    joint_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of samples trained without any input, beside `dropout` (MMAudio: 0; undisclosed "
        "for AudioGen-Omni)",
    )

    @field_validator("dropout")
    @classmethod
    def _check_dropout(cls, dropout: dict[str, float]) -> dict[str, float]:
        for name, share in dropout.items():
            if name not in DROP_GROUPS:
                raise ValueError(f"unknown input {name!r}: {', '.join(DROP_GROUPS)}")
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in 0..1, got {share}")
        return dropout


class SoundSamplingConfig(_Config):
    """Euler steps from noise to data with guidance."""

    steps: int = Field(default=25, ge=1, description="Euler steps, evenly spaced (MMAudio: 25)")
    guidance: float = Field(
        default=4.5,
        ge=0,
        description="s of u0 + s (u - u0), where u0 has no input (MMAudio: 4.5; undisclosed for "
        "AudioGen-Omni); up to 1: no guidance",
    )
    negative_text: str = Field(
        default="", description="text of the pass without input: what the sound shall not be; empty: none"
    )
