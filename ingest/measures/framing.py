"""Which part of the picture a clip shows, and at what size.

Goes in: the size of the shown source picture, the main face's boxes, the cut's settings. Comes out: a `Framing`, constant
within the clip, which also moves coordinates of the source picture into the clip's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from uniavgen.ingest.config import CutConfig


@dataclass(frozen=True)
class Framing:
    """`x`, `y`, `crop_width`, `crop_height` in pixels of the shown source picture of `source_width` x `source_height`;
    that part is scaled to `width` x `height`."""

    source_width: int
    source_height: int
    x: int
    y: int
    crop_width: int
    crop_height: int
    width: int
    height: int

    def moved(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] or boxes [..., 4] (x, y in turn) from fractions of the source picture to fractions of the clip's."""
        origin = np.array([self.x, self.y], points.dtype)
        span = np.array([self.crop_width, self.crop_height], points.dtype)
        pairs = points.reshape(*points.shape[:-1], points.shape[-1] // 2, 2)
        moved = (pairs * np.array([self.source_width, self.source_height], points.dtype) - origin) / span
        return moved.reshape(points.shape).astype(points.dtype)


def framing(width: int, height: int, boxes: np.ndarray, cut: CutConfig) -> Framing:
    """The framing of one clip from a picture of `width` x `height`; `boxes` [N, 4] (x0, y0, x1, y1) are the main face's, in
    fractions of the picture.

    `cut.crop` "none" keeps the whole picture, less what the size's multiple asks to leave out at the edges. "face" keeps a
    part of `cut.crop_aspect` round the median box, `cut.crop_faces` times as high as the face, moved inside of the picture
    and made smaller where it does not fit; round the middle where no face was seen. The size keeps within `cut.pixels`,
    in multiples of `cut.multiple`, and is never enlarged.
    """
    part, centre = (float(width), float(height)), (width / 2, height / 2)
    if cut.crop == "face":
        wanted = float(height)
        if len(boxes):
            x0, y0, x1, y1 = np.median(boxes, axis=0) * (width, height, width, height)
            centre, wanted = ((x0 + x1) / 2, (y0 + y1) / 2), (y1 - y0) * cut.crop_faces
        high = min(wanted, float(height), width / cut.crop_aspect)
        part = (high * cut.crop_aspect, high)
    out_width, out_height = size_within(*part, cut.pixels, cut.multiple)
    # the size's own aspect differs from the part's by its rounding: leave out, do not distort
    scale = min(part[0] / out_width, part[1] / out_height)
    crop_width = min(width, max(1, round(out_width * scale)))
    crop_height = min(height, max(1, round(out_height * scale)))
    x = min(max(0, round(centre[0] - crop_width / 2)), width - crop_width)
    y = min(max(0, round(centre[1] - crop_height / 2)), height - crop_height)
    return Framing(width, height, x, y, crop_width, crop_height, out_width, out_height)


def size_within(width: float, height: float, pixels: int, multiple: int) -> tuple[int, int]:
    """Width and height in multiples of `multiple` and of at most `pixels` in all, the aspect kept as near as that goes;
    not larger than the picture, but never less than one multiple."""
    scale = min(1.0, math.sqrt(pixels / (width * height)))
    most = max(1, pixels // multiple**2)
    # a hair more than the exact size must not cost a whole multiple
    across = min(most, max(1, int(width * scale / multiple + 1e-6)))
    down = min(most // across, max(1, int(height * scale / multiple + 1e-6)))
    larger = [(a, d) for a in (across, across + 1) for d in (down, down + 1) if a * d <= most]
    fits = [(a, d) for a, d in larger if a * multiple <= width and d * multiple <= height]
    best = max(fits, key=lambda size: size[0] * size[1], default=(across, down))
    return best[0] * multiple, best[1] * multiple
