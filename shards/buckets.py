"""Buckets of samples that are alike in length and in shape of picture: shards are mixed from them, batches drawn from one.

In: seconds and picture sizes of samples. Out: a bucket's number for each. `Buckets` divides at bounds; `WindowBuckets` gives
each sample the window, of a few, that fits it best.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

from uniavgen.shards.timing import VIDEO_FPS

if TYPE_CHECKING:
    import numpy as np


ASPECT_STEP = 0.1
"""Windows whose aspects are within this share of each other serve a clip alike (our choice): a tenth is cropped unseen."""


class Buckets(BaseModel):
    """Upper bounds of the buckets; what lies over the last bound is a bucket of its own, so no sample is without one."""

    model_config = ConfigDict(extra="forbid")
    seconds: tuple[float, ...] = Field(
        default=(3.0, 5.0, 7.0),
        description="bounds between lengths, s (our choice: quarters of the 2 to 10 s that clips last)",
    )
    aspects: tuple[float, ...] = Field(
        default=(),
        description="bounds between widths over heights, for example [0.8, 1.25]: portrait, square, landscape",
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


class WindowShape(BaseModel):
    """A window that training takes of a sample: pixel frames at 16 fps, height and width in px."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    frames: int = Field(gt=1, description="pixel frames at 16 fps, 4n + 1")
    height: int = Field(gt=0, description="px, a multiple of 32")
    width: int = Field(gt=0, description="px, a multiple of 32")


class WindowBuckets(BaseModel):
    """One bucket per window shape; `batches` are the samples of a batch of each, all the stream's `batch` where it is empty."""

    model_config = ConfigDict(extra="forbid")
    shapes: tuple[WindowShape, ...] = Field(min_length=1)
    batches: tuple[int, ...] = ()

    def of(self, seconds: np.ndarray, width_px: np.ndarray, height_px: np.ndarray) -> np.ndarray:
        """Bucket numbers int64 [n]: of the windows that a clip is long enough for, the nearest in aspect, of those the longest,
        of those the largest. A clip too short for all gets the shortest, where it is passed over and counted."""
        import numpy as np

        frames = np.array([shape.frames for shape in self.shapes])
        aspects = np.log([shape.width / shape.height for shape in self.shapes])
        have = np.floor(seconds * VIDEO_FPS + 0.5)[:, None]
        fits = np.where((frames <= have).any(1, keepdims=True), frames <= have, frames == frames.min())
        stretch = np.abs(np.log(width_px / np.maximum(height_px, 1))[:, None] - aspects)
        stretch = np.where(fits, np.round(stretch / ASPECT_STEP), np.inf)
        rank = sorted(
            range(len(frames)), key=lambda i: (-frames[i], -self.shapes[i].height * self.shapes[i].width, i)
        )
        return np.array(rank)[np.argmin(stretch[:, rank], axis=1)].astype(np.int64)
