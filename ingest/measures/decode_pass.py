"""One pass over a source's pictures serves every step that looks at them: faces, shots, the picture itself.

Goes in: a `SourceRecord`. Comes out: the results that are wanted, and no more work than they take.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io import media
from uniavgen.ingest.measures.fingerprints import VideoHasher
from uniavgen.ingest.measures.picture_quality import PictureMeter
from uniavgen.ingest.models.face_embedding import face_encoder, require_encoder
from uniavgen.ingest.models.face_reader import FaceCollector, FaceReader
from uniavgen.ingest.models.text_detector import TextCollector, TextDetector
from uniavgen.ingest.records import (
    FacesSeen,
    FrameTable,
    LocalCopy,
    Probe,
    Shots,
    SourceRecord,
    SpokenWord,
    TextSeen,
    Transcript,
    VideoHashes,
)
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.shards.weights import resolve

TINY_BYTES = media.SHOT_FRAME_SIZE[0] * media.SHOT_FRAME_SIZE[1] * 3
"""One picture of the shot detector's stream."""


class Watching(Step):
    """The decode pass. Its own share of the time is called `decode`."""

    name = "decode"
    gives: ClassVar[dict[str, type]] = {
        "faces": FacesSeen,
        "shots": Shots,
        "picture": FrameTable,
        "text": TextSeen,
        "hash": VideoHashes,
    }

    _reader: Any = None
    _encoder: Any = None
    _shots: Any = None
    _text: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        resolve("face-landmarker", config.faces.landmarker_folder or None)
        resolve("ppocr-det", config.text.folder or None)
        require_encoder(config.faces)

    def load(self, wanted: tuple[str, ...]) -> None:
        from uniavgen.ingest.models.shot_detector import ShotDetector

        if "faces" in wanted and self._reader is None:
            self._reader = FaceReader(self.config.faces)
            self._encoder = face_encoder(self.config.faces)
        if "shots" in wanted and self._shots is None:
            self._shots = ShotDetector(self.config.shots, self.config.device)
        if "text" in wanted and self._text is None:
            self._text = TextDetector(self.config.text)

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        began = time.perf_counter()
        self.spent = dict.fromkeys(wanted, 0.0)
        tiny = self.scratch / f"{record.source_id}.tiny" if "shots" in wanted else None
        try:
            found = self._look(record, wanted, tiny)
            if tiny is not None:
                frames = found["picture"] if "picture" in wanted else record.result(FrameTable)
                with self._timed("shots"):
                    found["shots"] = Shots(
                        self._shots.shots(mapped_pictures(tiny), len(frames.luma) / VIDEO_FPS)
                    )
        finally:
            if tiny is not None:
                tiny.unlink(missing_ok=True)
        self.spent["decode"] = time.perf_counter() - began - sum(self.spent.values())
        return found

    def _look(self, record: SourceRecord, wanted: tuple[str, ...], tiny: Path | None) -> dict[str, Any]:
        path, probe, config = record.result(LocalCopy).path, record.result(Probe), self.config
        if wanted == ("shots",) and tiny is not None:
            media.decode_shot_frames(path, probe, config.shots.fps, tiny, config.limits)
            return {}
        eyes: list[tuple[str, FaceCollector | PictureMeter | TextCollector | HashEye]] = []
        if "faces" in wanted or "text" in wanted:
            looked = frames_of_interest(
                record.result(Transcript).words, config.clips.unspoken_s, config.clips.pad_s
            )
            if "faces" in wanted:
                eyes.append(("faces", FaceCollector(self._reader, config.faces, looked, self._encoder)))
            if "text" in wanted:
                eyes.append(("text", TextCollector(self._text, config.text, looked)))
        if "picture" in wanted:
            eyes.append(("picture", PictureMeter()))
        if "hash" in wanted:
            eyes.append(("hash", HashEye()))
        pictures = media.decode_frames(
            path, probe, config.faces.analysis_side, config.shots.fps, tiny, config.limits
        )
        for frame, picture in enumerate(pictures):
            for name, eye in eyes:
                with self._timed(name):
                    eye.add_frame(frame, picture)
        return {name: eye.result() for name, eye in eyes}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - began


class HashEye:
    """Fed with each picture; gives `VideoHashes`."""

    def __init__(self) -> None:
        self._hasher = VideoHasher()

    def add_frame(self, frame: int, picture: np.ndarray) -> None:
        self._hasher.add(picture)

    def result(self) -> VideoHashes:
        return VideoHashes(self._hasher.hashes())


class PicturesOnDisk(np.memmap):
    """The shot detector's stream: what is read of it is copied and leaves no trace in memory. An hour of it is 350 MB."""

    def __getitem__(self, index: Any) -> Any:
        found = np.array(super().__getitem__(index))
        self._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        return found


def mapped_pictures(tiny: Path) -> np.ndarray:
    """The stream in the file `tiny`: uint8 [N, 27, 48, 3]."""
    count = tiny.stat().st_size // TINY_BYTES
    shape = (count, media.SHOT_FRAME_SIZE[1], media.SHOT_FRAME_SIZE[0], 3)
    return PicturesOnDisk(tiny, np.uint8, "r", shape=shape) if count else np.zeros(shape, np.uint8)


def frames_of_interest(words: list[SpokenWord], unspoken_s: float, pad_s: float) -> Callable[[float], bool]:
    """Whether faces are looked for at a time: in the first `unspoken_s`, from which spans come where speech gives no
    clip, and around all words."""
    spans = [[0.0, unspoken_s]]
    for word in words:
        if word.start_s - pad_s <= spans[-1][1] + 1.0:
            spans[-1][1] = max(spans[-1][1], word.end_s + pad_s)
        else:
            spans.append([word.start_s - pad_s, word.end_s + pad_s])
    starts = np.array([start for start, _ in spans])
    ends = np.array([end for _, end in spans])

    def wanted(at_s: float) -> bool:
        index = int(np.searchsorted(starts, at_s + 1 / VIDEO_FPS, side="right")) - 1
        return index >= 0 and at_s <= ends[index] + 1 / VIDEO_FPS

    return wanted
