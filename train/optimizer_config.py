"""Configuration of the optimizer of a stage, and its learning rate at every step. Imports nothing heavy.

The paper names AdamW (0.9, 0.999, 1e-8) and the learning rates. The other values are heuristics.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class OptimizerConfig(BaseModel):
    """AdamW, its schedule, and gradient clipping."""

    model_config = ConfigDict(extra="forbid")

    lr: float = Field(default=1e-3, gt=0, description="AdamW learning rate after the warm-up")
    schedule: Literal["constant", "cosine", "step"] = Field(
        default="constant",
        description="learning rate after the warm-up; constant, because the paper names no decay; cosine: "
        "falls to `lr_end` of it at the last step; step: times `lr_factor` every `lr_every` steps, not below "
        "`lr_end`",
    )
    lr_end: float = Field(
        default=0.0, ge=0, le=1, description="lowest learning rate of cosine and step, as a share of `lr`"
    )
    lr_every: int = Field(default=1000, gt=0, description="steps between two falls of the schedule step")
    lr_factor: float = Field(default=0.5, gt=0, le=1, description="factor of each fall of the schedule step")
    warmup: int = Field(default=4, ge=0, description="steps of linear warm-up (undisclosed; heuristic)")
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999), description="AdamW's decay rates of the two moments (paper)"
    )
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon (paper)")
    grad_clip: float = Field(
        default=1.0,
        ge=0,
        description="largest global gradient norm, 0 for none (undisclosed; Wan uses 1)",
    )
    weight_decay: float = Field(
        default=0.01, ge=0, description="AdamW's weight decay (undisclosed; PyTorch's default)"
    )
    decayed: Literal["all", "matrices"] = Field(
        default="all",
        description="weights that decay; matrices: not norms, biases and modulation, whose size carries "
        "meaning (as in most training of transformers)",
    )

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in 0..1, 1 excluded, got {betas}")
        return betas


def lr_factor_at(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of 0-based `step` of `steps`, as a share of `config.lr`: warm-up times schedule."""
    rise = min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "constant" or step < config.warmup:
        return rise
    after = step - config.warmup
    if config.schedule == "step":
        return max(config.lr_end, config.lr_factor ** (after // config.lr_every))
    share = min(1.0, after / max(1, steps - 1 - config.warmup))
    return config.lr_end + (1 - config.lr_end) * (1 + math.cos(math.pi * share)) / 2
