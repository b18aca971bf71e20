"""Step `shots`: shot boundaries, from small frames that the decode pass writes to a file."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.engine.step import FrameStep
from uniavgen.ingest.io.media import SHOT_FRAME_SIZE
from uniavgen.ingest.models.shot_detector import ShotDetector
from uniavgen.ingest.records import FrameTable, Shots, SourceRecord
from uniavgen.shards.timing import VIDEO_FPS

SHOT_FRAME_BYTES = SHOT_FRAME_SIZE[0] * SHOT_FRAME_SIZE[1] * 3


class ShotStep(FrameStep):
    """Shots that cover the source."""

    name = "shots"
    pool = "sight"
    version = "3"
    needs = ("decode",)
    settings = ("shots",)
    result = Shots
    reads_shot_frames = True
    _detector: Any = None

    def load(self) -> None:
        self._detector = self._detector or ShotDetector(self.config.shots, self.config.device)

    def try_models(self) -> None:
        frames = np.zeros((8, SHOT_FRAME_SIZE[1], SHOT_FRAME_SIZE[0], 3), np.uint8)
        frames[4:] = 255  # the network is run where something changes
        self._detector.shots(frames, len(frames) / self.config.shots.fps)

    def collector(self, record: SourceRecord, shot_frames: Path) -> ShotCollector:
        return ShotCollector(self._detector, record, shot_frames)


class ShotCollector:
    """Counts the frames of the pass, then detects shots in the small frames of the file."""

    def __init__(self, detector: ShotDetector, record: SourceRecord, shot_frames: Path) -> None:
        self._detector, self._record, self._path = detector, record, shot_frames
        self._frames = 0

    def add_frame(self, index: int, frame: np.ndarray) -> None:
        self._frames = index + 1

    def result(self) -> Shots:
        # without a pass over the 16 fps grid, an earlier one has counted its frames
        frames = self._frames or len(self._record.result(FrameTable).luma)
        return Shots(self._detector.shots(map_shot_frames(self._path), frames / VIDEO_FPS))


class MappedFrames(np.memmap):
    """Frames in a file. What is read is copied and its pages are released: an hour of frames is 350 MB."""

    def __getitem__(self, index: Any) -> Any:
        frames = np.array(super().__getitem__(index))
        self._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        return frames


def map_shot_frames(path: Path) -> np.ndarray:
    """The small frames in the file `path`: uint8 [N, 27, 48, 3] RGB."""
    count = path.stat().st_size // SHOT_FRAME_BYTES
    shape = (count, SHOT_FRAME_SIZE[1], SHOT_FRAME_SIZE[0], 3)
    return MappedFrames(path, np.uint8, "r", shape=shape) if count else np.zeros(shape, np.uint8)
