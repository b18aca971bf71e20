"""How good the picture is: brightness, motion, black and frozen frames, bits per pixel.

Goes in: pictures uint8 [H, W, 3] RGB of the 16 fps grid, one after another. Comes out: a `FrameTable`, and from it the
signals of a clip under their names in `shards.corpus.signals`.
"""

from __future__ import annotations

import numpy as np

from uniavgen.ingest.records import FrameTable, Probe

STILL, STILL_SHARE = 0.05, 0.1
"""A frame is the one before, shown again, where it differs by less than this (of 255 levels, on a 64-pixel picture), or by
less than this share of the clip's liveliest tenth (our choice: an encode at x264's crf 30 changes repeated frames by up to
0.24, where a film of a talking head moves by 0.5 to 5; frames that stay still for long settle below 0.05)."""

BLACK = 16.0
"""Mean brightness below which a frame counts as black (the bottom of broadcast range)."""

FIRST_CHANGE = 255.0
"""Change of a source's first frame, which has none before it."""


class PictureMeter:
    """Fed with every picture of the 16 fps grid in order; gives `FrameTable`."""

    def __init__(self) -> None:
        self._luma: list[float] = []
        self._change: list[float] = []
        self._before: np.ndarray | None = None

    def add_frame(self, frame: int, picture: np.ndarray) -> None:
        small = thumbnail(picture)
        self._luma.append(float(small.mean()))
        self._change.append(
            FIRST_CHANGE if self._before is None else float(np.abs(small - self._before).mean())
        )
        self._before = small

    def result(self) -> FrameTable:
        return FrameTable(np.array(self._luma, np.float32), np.array(self._change, np.float32))


def picture_signals(frames: FrameTable, first: int, last: int, probe: Probe) -> dict[str, float | None]:
    """Signals of the frames [first, last): luma, motion, black_ratio, frozen_ratio, and the source's bits_per_pixel and
    interlaced_ratio. None where there is nothing to measure."""
    luma, change = frames.luma[first:last], frames.change[first + 1 : last]
    return {
        "luma": float(luma.mean()) if len(luma) else None,
        "motion": float(change.mean()) if len(change) else None,
        "black_ratio": float((luma < BLACK).mean()) if len(luma) else None,
        "frozen_ratio": frozen_ratio(change),
        "bits_per_pixel": bits_per_pixel(probe),
        "interlaced_ratio": probe.interlaced_ratio,
    }


def frozen_ratio(change: np.ndarray) -> float | None:
    """Share of frames equal to the one before, from their changes float [n]; None where there are none."""
    if not len(change):
        return None
    return float((change < max(STILL, STILL_SHARE * float(np.quantile(change, 0.9)))).mean())


def bits_per_pixel(probe: Probe) -> float | None:
    """Bits that the source spends on one pixel of one frame; None where its bit rate or frame rate cannot be told."""
    pixels_per_s = probe.width * probe.height * probe.fps
    return probe.bit_rate / pixels_per_s if probe.bit_rate > 0 and pixels_per_s > 0 else None


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Brightness float32 [h, 64] of uint8 [H, W, 3] RGB, small enough to compare frames cheaply."""
    import cv2

    height, width = picture.shape[:2]
    small = cv2.resize(picture, (64, max(1, round(64 * height / width))), interpolation=cv2.INTER_AREA)
    return np.asarray(small @ np.array([0.299, 0.587, 0.114], np.float32), np.float32)
