"""Buckets of samples with similar length and aspect ratio.

Every shard holds its share of each bucket, and a batch is drawn from one bucket. `Buckets` divides at bounds;
`WindowBuckets` assigns each sample the best fitting one of several training windows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

from uniavgen.shards.timing import VIDEO_FPS

if TYPE_CHECKING:
    import numpy as np


ASPECT_STEP = 0.1
"""Windows whose aspect ratios differ by less than this share fit a clip equally well. Heuristic: a crop of a
tenth is hardly visible."""


class Buckets(BaseModel):
    """Upper bounds of the buckets. Samples above the last bound form one more bucket."""

    model_config = ConfigDict(extra="forbid")
    seconds: tuple[float, ...] = Field(
        default=(3.0, 5.0, 7.0),
        description="bounds between lengths in s (heuristic: quarters of the clips' 2 to 10 s)",
    )
    aspects: tuple[float, ...] = Field(
        default=(),
        description="bounds between aspect ratios (width / height), for example [0.8, 1.25] for portrait, "
        "square and landscape",
    )

    @field_validator("seconds", "aspects")
    @classmethod
    def _check_rising(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if any(second <= first for first, second in pairwise(bounds)):
            raise ValueError(f"bounds must rise, got {list(bounds)}")
        return bounds

    def of(self, seconds: np.ndarray, width_px: np.ndarray, height_px: np.ndarray) -> np.ndarray:
        """Bucket numbers int64 [n] from lengths and frame sizes [n]. A bound belongs to the bucket below."""
        import numpy as np

        length = np.searchsorted(np.array(self.seconds), seconds, side="left")
        shape = np.searchsorted(np.array(self.aspects), width_px / np.maximum(height_px, 1), side="left")
        return (length * (len(self.aspects) + 1) + shape).astype(np.int64)


class WindowShape(BaseModel):
    """Size of the window that training cuts from a sample: pixel frames at 16 fps, height and width in px."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    frames: int = Field(gt=1, description="pixel frames at 16 fps, 4n + 1")
    height: int = Field(gt=0, description="px, a multiple of 32")
    width: int = Field(gt=0, description="px, a multiple of 32")


class WindowBuckets(BaseModel):
    """One bucket per window shape. `batches` are their batch sizes; empty: the stream's `batch` for all."""

    model_config = ConfigDict(extra="forbid")
    shapes: tuple[WindowShape, ...] = Field(min_length=1)
    batches: tuple[int, ...] = ()

    def of(self, seconds: np.ndarray, width_px: np.ndarray, height_px: np.ndarray) -> np.ndarray:
        """Bucket numbers int64 [n] from lengths and frame sizes, each [n].

        Of the windows that a clip is long enough for: the nearest in aspect ratio, of those the longest, of
        those the largest. A clip too short for all of them gets the shortest window, where training skips and
        counts it.
        """
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
