"""Buckets of samples that are alike in length and in shape of picture: shards are mixed from them, batches drawn from one.

In: seconds and picture sizes of samples. Out: a bucket's number for each.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    import numpy as np


class Buckets(BaseModel):
    """Upper bounds of the buckets; what lies over the last bound is a bucket of its own, so no sample is without one."""

    model_config = ConfigDict(extra="forbid")
    seconds: tuple[float, ...] = Field(
        default=(3.0, 5.0, 7.0), description="bounds between lengths, s (our choice: quarters of the 2 to 10 s that clips last)"
    )
    aspects: tuple[float, ...] = Field(
        default=(), description="bounds between widths over heights, for example [0.8, 1.25]: portrait, square, landscape"
    )

    @field_validator("seconds", "aspects")
    @classmethod
    def _rise(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if any(second <= first for first, second in pairwise(bounds)):
            raise ValueError(f"bounds must rise, got {list(bounds)}")
        return bounds

    def of(self, seconds: np.ndarray, width_px: np.ndarray, height_px: np.ndarray) -> np.ndarray:
        """Bucket numbers int64 [n], from lengths and picture sizes, each [n]; a bound belongs to the bucket below it."""
        import numpy as np

        length = np.searchsorted(np.array(self.seconds), seconds, side="left")
        shape = np.searchsorted(np.array(self.aspects), width_px / np.maximum(height_px, 1), side="left")
        return (length * (len(self.aspects) + 1) + shape).astype(np.int64)
