"""Step `picture`: brightness and change of every frame, for brightness, motion, black and frozen frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from uniavgen.ingest.engine.step import FrameStep
from uniavgen.ingest.io.clip_proof import picture_cells
from uniavgen.ingest.measures.clip_parts import clip_frames
from uniavgen.ingest.records import FrameTable, Proposals, SourceRecord

STILL, STILL_SHARE = 0.05, 0.1
"""A frame repeats the one before if it differs by less than STILL (of 255 levels, on a frame 64 pixels wide),
or by less than STILL_SHARE of the clip's 90th percentile. Heuristic: an encode at x264's crf 30 changes
repeated frames by up to 0.24, while a talking head moves by 0.5 to 5; frames that stay still for long settle
below 0.05."""

THUMBNAIL_WIDTH = 64
"""Width in pixels of the frames that are compared."""

BLACK = 16.0
"""Mean brightness below which a frame counts as black (the bottom of broadcast range)."""

FIRST_CHANGE = 255.0
"""Change of a source's first frame, which has none before it."""


class PictureStep(FrameStep):
    """Brightness and change of every frame."""

    name = "picture"
    pool = "sight"
    version = "2"
    needs = ("decode",)
    result = FrameTable

    def collector(self, record: SourceRecord, shot_frames: Path) -> PictureCollector:
        return PictureCollector()

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        first, last = clip_frames(record.result(Proposals).clips[index])
        return picture_signals(record.result(FrameTable), first, last)


class PictureCollector:
    """Measures each frame of the 16 fps grid against the one before."""

    def __init__(self) -> None:
        self._luma: list[float] = []
        self._change: list[float] = []
        self._cells: list[np.ndarray] = []
        self._before: np.ndarray | None = None

    def add_frame(self, index: int, frame: np.ndarray) -> None:
        small = thumbnail(frame)
        self._luma.append(float(small.mean()))
        self._change.append(
            FIRST_CHANGE if self._before is None else float(np.abs(small - self._before).mean())
        )
        self._cells.append(picture_cells(small))
        self._before = small

    def result(self) -> FrameTable:
        cells = np.array(self._cells, np.uint8)
        return FrameTable(np.array(self._luma, np.float32), np.array(self._change, np.float32), cells)


def picture_signals(frames: FrameTable, first: int, last: int) -> dict[str, float | None]:
    """Signals of the frames [first, last); None where there is nothing to measure."""
    luma, change = frames.luma[first:last], frames.change[first + 1 : last]
    return {
        "luma": float(luma.mean()) if len(luma) else None,
        "motion": float(change.mean()) if len(change) else None,
        "black_ratio": float((luma < BLACK).mean()) if len(luma) else None,
        "frozen_ratio": frozen_ratio(change),
    }


def frozen_ratio(change: np.ndarray) -> float | None:
    """Share of frames equal to the one before, from their changes float [n]; None without frames."""
    if not len(change):
        return None
    return float((change < max(STILL, STILL_SHARE * float(np.quantile(change, 0.9)))).mean())


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """Brightness float32 [h, THUMBNAIL_WIDTH] of uint8 [H, W, 3] RGB, to compare frames cheaply."""
    import cv2

    height, width = frame.shape[:2]
    size = THUMBNAIL_WIDTH, max(1, round(THUMBNAIL_WIDTH * height / width))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small @ np.array([0.299, 0.587, 0.114], np.float32), np.float32)
