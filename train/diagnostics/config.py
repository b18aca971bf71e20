"""Configuration of step health, warnings and validation: heuristics, the paper does not mention them.

Imports nothing heavy.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HealthConfig(_Config):
    """Limits above which a step is skipped, and limits for warnings."""

    window: int = Field(
        default=100, gt=1, description="good steps of the same task with which a new step is compared"
    )
    loss_spike: float = Field(
        default=5.0,
        gt=1,
        description="a loss over this multiple of the window's median is a spike; from half a window on",
    )
    grad_spike: float = Field(
        default=20.0, gt=1, description="the same for the norm of the gradient before clipping"
    )
    rewind_after: int = Field(
        default=5,
        gt=0,
        description="bad steps in a row after which training goes back to the last checkpoint",
    )
    max_rewinds: int = Field(
        default=2, ge=0, description="times that a stage goes back before it stops with an error"
    )
    watch_every: int = Field(default=50, gt=0, description="steps between two checks for warnings")
    slow_rank: float = Field(
        default=1.5,
        gt=1,
        description="a worker is slow if it takes this multiple of the median worker's time",
    )
    data_wait: float = Field(
        default=0.2, gt=0, description="share of a step spent waiting for data above which there is a warning"
    )
    mask_mean: float = Field(
        default=0.01, ge=0, description="mean of the face masks below which there is a warning"
    )


class ValidationConfig(_Config):
    """Validation on clips of the split val: losses during a stage, generated videos at its end."""

    every: int = Field(default=0, ge=0, description="steps between validation losses; 0: none")
    clips: int = Field(
        default=4, gt=0, description="number of clips, the first ones of val; a multiple of the workers"
    )
    times: list[float] = Field(
        default=[0.1, 0.3, 0.5, 0.7, 0.9],
        min_length=1,
        description="diffusion times in 0..1 at which the loss is computed",
    )
    films: int = Field(
        default=0,
        ge=0,
        description="clips of val for which each task generates videos at a stage's end, with and without "
        "guidance; 0: none",
    )

    @field_validator("times")
    @classmethod
    def _check_times(cls, times: list[float]) -> list[float]:
        if not all(0 < time < 1 for time in times):
            raise ValueError(f"must lie between 0 and 1, got {times}")
        return times
