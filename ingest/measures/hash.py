"""Step `hash`: hashes of how the picture changes, from which the video fingerprints of clips are taken.

A hash of still frames would be the same for every video of one studio, so the hash describes what moves. The
format is defined in `shards.corpus.fingerprints`.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np

from uniavgen.ingest.engine.step import FrameStep
from uniavgen.ingest.records import SourceRecord, VideoHashes
from uniavgen.shards.corpus.fingerprints import FREQUENCIES, VIDEO_HASH_HZ
from uniavgen.shards.timing import VIDEO_FPS

HASH_STRIDE = VIDEO_FPS // VIDEO_HASH_HZ
"""Frames between two video hashes."""

STILL = 1.0
"""Mean size of the change's 63 coefficients (32 x 32 grey levels) below which nothing moves. Heuristic: codec
noise stays under 0.6 on development footage, the calmest talking head is at 2.2."""


class HashStep(FrameStep):
    """Video hashes of a source."""

    name = "hash"
    pool = "sight"
    version = "1"
    needs = ("decode",)
    result = VideoHashes

    def collector(self, record: SourceRecord, shot_frames: Path) -> VideoHasher:
        return VideoHasher()


class VideoHasher:
    """Hashes the frames of the 16 fps grid in order. Holds one second of them at 32 x 32 pixels."""

    def __init__(self) -> None:
        self._sum = np.zeros((32, 32), np.float32)
        self._frames = 0
        self._blocks: deque[np.ndarray] = deque(maxlen=4)
        self._hashes: list[int] = []

    def add_frame(self, index: int, frame: np.ndarray) -> None:
        """Add the next frame, uint8 [H, W, 3] RGB."""
        import cv2

        small = cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA)
        self._sum = self._sum + cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        self._frames += 1
        if self._frames % HASH_STRIDE == 0:
            self._blocks.append(self._sum)
            self._sum = np.zeros((32, 32), np.float32)
            if len(self._blocks) == 4:
                before, after = self._blocks[0] + self._blocks[1], self._blocks[2] + self._blocks[3]
                self._hashes.append(change_hash((after - before) / (2 * HASH_STRIDE)))

    def hashes(self) -> np.ndarray:
        """int64 [n], hash k for time k / 4 s; 0 where nothing moves and in the first and last half second."""
        edge = [0, 0]
        return np.array([*edge, *self._hashes] if self._hashes else [], np.int64)

    def result(self) -> VideoHashes:
        return VideoHashes(self.hashes())


def change_hash(change: np.ndarray) -> int:
    """63-bit hash of a change, float [32, 32] grey levels: signs of its lowest frequencies; 0 if still.

    Source: the perceptual hash of Zauner (2010), with signs instead of a comparison with the median, so that
    a mirrored frame has a known hash.
    """
    import cv2

    spectrum = cv2.dct(np.asarray(change, np.float32))
    lowest = np.array([spectrum[v, u] for v, u in FREQUENCIES])
    if np.abs(lowest).mean() < STILL:
        return 0
    return sum(1 << bit for bit in np.flatnonzero(lowest > 0).tolist())
