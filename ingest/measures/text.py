"""Step `text`: burned-in text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step import FrameStep
from uniavgen.ingest.measures.clip_parts import analysed_times, clip_frames
from uniavgen.ingest.models.text_detector import TextCollector, TextDetector
from uniavgen.ingest.records import Proposals, SourceRecord, TextSeen, Transcript
from uniavgen.shards.weights import resolve


class TextStep(FrameStep):
    """Share of the frame under text, in some frames."""

    name = "text"
    pool = "sight"
    version = "1"
    needs = ("decode", "transcribe")
    settings = ("text", "clips.unspoken_s", "clips.pad_s")
    result = TextSeen
    _detector: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        resolve("ppocr-det", config.text.folder or None)

    def load(self) -> None:
        self._detector = self._detector or TextDetector(self.config.text)

    def try_models(self) -> None:
        self._detector.covered(np.zeros((64, 64, 3), np.uint8))

    def collector(self, record: SourceRecord, shot_frames: Path) -> TextCollector:
        clips = self.config.clips
        analysed = analysed_times(record.result(Transcript).words, clips.unspoken_s, clips.pad_s)
        return TextCollector(self._detector, self.config.text, analysed)

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        first, last = clip_frames(record.result(Proposals).clips[index])
        return {"text_ratio": text_ratio(record.result(TextSeen), first, last)}


def text_ratio(text: TextSeen, first: int, last: int) -> float | None:
    """Mean share under text of the analysed frames of [first, last); None if none was analysed."""
    ratios = text.ratio[first:last]
    ratios = ratios[np.isfinite(ratios)]
    return float(ratios.mean()) if len(ratios) else None
