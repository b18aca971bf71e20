"""Configuration of step health, diagnostics and validation. The paper is silent on all of it: heuristics. Imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HealthConfig(_Config):
    """When a step is too bad to be taken, and what is worth a warning. The paper is silent on all of it: ours."""

    window: int = Field(
        default=100, gt=1, description="good steps of the same task that a new one is compared with"
    )
    loss_spike: float = Field(
        default=5.0,
        gt=1,
        description="a loss over so many times the window's median is a spike, once half the window is full",
    )
    grad_spike: float = Field(
        default=20.0, gt=1, description="the same for the norm of the gradient, before it is clipped"
    )
    rewind_after: int = Field(
        default=5, gt=0, description="bad steps in a row, after which training goes back to a checkpoint"
    )
    max_rewinds: int = Field(
        default=2, ge=0, description="times that a stage goes back before it stops with a verdict"
    )
    watch_every: int = Field(
        default=50, gt=0, description="steps between two looks at the figures that only warn"
    )
    slow_rank: float = Field(
        default=1.5, gt=1, description="a worker over so many times the median worker's time is slow"
    )
    data_wait: float = Field(
        default=0.2, gt=0, description="share of the step spent waiting for data that is worth a warning"
    )
    mask_mean: float = Field(
        default=0.01, ge=0, description="mean of the face masks under which they are vanishing"
    )


class ValidationConfig(_Config):
    """What is looked at on the clips of val: losses while a stage trains, films when it ends. The paper is silent: ours."""

    every: int = Field(default=0, ge=0, description="steps between validation losses; 0: none")
    clips: int = Field(
        default=4, gt=0, description="first clips of val, always the same; a multiple of the workers"
    )
    times: list[float] = Field(
        default=[0.1, 0.3, 0.5, 0.7, 0.9],
        min_length=1,
        description="diffusion times in 0..1 at which the loss is taken",
    )
    films: int = Field(
        default=0,
        ge=0,
        description="clips of val from which each task is sampled at a stage's end, guidance on and off; 0: none",
    )

    @field_validator("times")
    @classmethod
    def _inside(cls, times: list[float]) -> list[float]:
        if not all(0 < time < 1 for time in times):
            raise ValueError(f"must lie between 0 and 1, got {times}")
        return times
