"""Distribution of the diffusion time in training, and its shift by the size of a clip. Imports nothing heavy.

    t = s u / (1 + (s - 1) u)        more noise for s > 1 (Esser et al. 2024, Stable Diffusion 3, eq. 23; Wan)
    s(n) = s * sqrt(n / n_0)         for n tokens, if s fits n_0 tokens (the same, sqrt(m / n))

Tokens of one clip repeat information: a clip of more tokens needs more noise to hide it. The paper
names neither distribution nor shift.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


def shift_time(t: float, shift: float) -> float:
    """Time moved towards noise: s t / (1 + (s - 1) t); shift 1 changes nothing."""
    return shift * t / (1 + (shift - 1) * t)


def shift_for(tokens: int, shift: float, at_tokens: int) -> float:
    """The shift for a clip of so many tokens, if `shift` fits `at_tokens`; where one is 0: `shift` itself."""
    return shift * math.sqrt(tokens / at_tokens) if at_tokens and tokens else shift


class TimestepConfig(BaseModel):
    """Distribution of the diffusion time t in 0..1 (1 is noise) in training. Undisclosed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    distribution: Literal["uniform", "logit-normal", "shifted"] = Field(
        default="logit-normal",
        description="Undisclosed. logit-normal: sigmoid of a normal variable (Stable Diffusion 3), with "
        "most draws where the velocity is hard to predict; shifted: `uniform` moved towards "
        "noise by `shift` (Wan's schedule).",
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
    shift_tokens: int = Field(
        default=0,
        ge=0,
        description="Video tokens or mel frames of a clip at which `shift` fits; at n it is shift * sqrt(n / "
        "shift_tokens) (Stable Diffusion 3). 0: `shift` at any size.",
    )

    @property
    def draw(self) -> tuple[str, float, float]:
        """What is drawn before the shift: two distributions with the same share their draws."""
        if self.distribution == "logit-normal":
            return self.distribution, self.mean, self.std
        return "uniform", 0.0, 1.0

    def shift_at(self, tokens: int) -> float:
        """The shift for a clip of so many tokens; 1 where the distribution has none."""
        if self.distribution != "shifted":
            return 1.0
        return shift_for(tokens, self.shift, self.shift_tokens)
