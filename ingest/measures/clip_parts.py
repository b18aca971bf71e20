"""Which frames, faces, passages and turns of a source belong to one clip. Helpers of several measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from uniavgen.ingest.records import (
    FacesSeen,
    FaceTable,
    Passage,
    Proposal,
    Proposals,
    SourceRecord,
    Span,
    SpokenWord,
    SyncMeasures,
)
from uniavgen.shards.timing import VIDEO_FPS

MERGE_GAP_S = 1.0
"""Words closer than this share one stretch of analysed frames. Heuristic."""


def clip_frames(clip: Proposal) -> tuple[int, int]:
    """First frame of a clip on the 16 fps grid, and the one after its last."""
    return round(clip.start_s * VIDEO_FPS), round(clip.end_s * VIDEO_FPS)


def faces_within(faces: FaceTable, first: int, last: int) -> FaceTable:
    """The rows of frames [first, last)."""
    return faces.rows((faces.frame >= first) & (faces.frame < last))


def main_face(faces: FaceTable, track: int | None = None) -> FaceTable:
    """The rows of `track`, or without one those of the track with the largest sum of face heights."""
    if not len(faces.frame):
        return faces
    if track is None:
        heights = faces.box[:, 3] - faces.box[:, 1]
        tracks = np.unique(faces.track)
        sums = [float(heights[faces.track == each].sum()) for each in tracks]
        track = int(tracks[int(np.argmax(sums))])
    return faces.rows(faces.track == track)


def clip_face(record: SourceRecord, index: int) -> FaceTable:
    """Rows of the main face of clip proposal `index`: the active speaker if known, else the largest face."""
    clip = record.result(Proposals).clips[index]
    faces = faces_within(record.result(FacesSeen).faces, *clip_frames(clip))
    return main_face(faces, record.result(SyncMeasures).clips[index].track)


def clip_passage(passages: Sequence[Passage], clip: Proposal) -> Passage | None:
    """The passage that overlaps a clip most; None if none does."""
    overlaps = [
        (min(passage.end_s, clip.end_s) - max(passage.start_s, clip.start_s), -index, passage)
        for index, passage in enumerate(passages)
    ]
    best = max(overlaps, default=None, key=lambda item: item[:2])
    return best[2] if best and best[0] > 0 else None


def covered_seconds(spans: Sequence[Span], start_s: float, end_s: float) -> float:
    """Length of the part of [start_s, end_s] that the union of the spans covers."""
    total, reached = 0.0, start_s
    for span in sorted(spans, key=lambda span: span.start_s):
        low, high = max(span.start_s, reached), min(span.end_s, end_s)
        if high > low:
            total += high - low
            reached = high
    return total


def analysed_times(words: list[SpokenWord], unspoken_s: float, pad_s: float) -> Callable[[float], bool]:
    """Whether a time is analysed for faces and text: the first `unspoken_s`, which become clips if there is
    no usable speech, and everything within `pad_s` of a word."""
    spans = [[0.0, unspoken_s]]
    for word in words:
        if word.start_s - pad_s <= spans[-1][1] + MERGE_GAP_S:
            spans[-1][1] = max(spans[-1][1], word.end_s + pad_s)
        else:
            spans.append([word.start_s - pad_s, word.end_s + pad_s])
    starts = np.array([start for start, _ in spans])
    ends = np.array([end for _, end in spans])

    def is_analysed(at_s: float) -> bool:
        index = int(np.searchsorted(starts, at_s + 1 / VIDEO_FPS, side="right")) - 1
        return index >= 0 and at_s <= ends[index] + 1 / VIDEO_FPS

    return is_analysed
