"""Which face speaks in each clip of a source, and whether lips and sound are in step there.

Goes in: the source's faces, its sound, the proposals. Comes out: `SyncMeasures`. Pictures are opened for named models alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.io import media
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.measures.clip_rows import clip_frames, faces_within, main_face
from uniavgen.ingest.models.active_speaker import ClipFaces
from uniavgen.ingest.models.published_networks import NETWORK_FPS, interpolate_boxes
from uniavgen.ingest.models.sync_models import ClipFrames, SyncModels
from uniavgen.ingest.records import (
    ClipSync,
    FacesSeen,
    FaceTable,
    LocalCopy,
    Probe,
    Proposal,
    Proposals,
    SourceRecord,
    SyncMeasures,
)
from uniavgen.shards.timing import VIDEO_FPS


def clip_syncs(record: SourceRecord, reader: SyncModels, config: IngestConfig) -> SyncMeasures:
    """One entry per clip; without sound nothing is known. Clips of one voice help each other."""
    faces, sound, clips = (
        record.result(FacesSeen).faces,
        record.result(AudioFile),
        record.result(Proposals).clips,
    )
    if not sound.samples:
        return SyncMeasures([ClipSync(None, {}) for _ in clips])

    def pictures(index: int) -> ClipFrames:
        return clip_pictures(record.result(LocalCopy).path, record.result(Probe), faces, clips[index], config)

    found = []
    for each in reader.measure(ClipsOfSource(faces, sound, clips, config.sync.max_shift_ms / 1000), pictures):
        signals = {
            "active_face_confidence": each.active.confidence,
            "active_face_margin": each.active.margin,
            "sync_offset_ms": each.sync.offset_ms,
            "sync_confidence": each.sync.confidence,
            **each.sync.scores,
        }
        curve = None if each.sync.curve is None else [round(float(value), 4) for value in each.sync.curve]
        found.append(ClipSync(each.active.main, signals, curve))
    return SyncMeasures(found)


def clip_pictures(
    path: str, probe: Probe, faces: FaceTable, clip: Proposal, config: IngestConfig
) -> ClipFrames:
    """A clip's pictures as the named networks take them, and where each face is in them."""
    seconds = clip.end_s - clip.start_s
    side = config.faces.analysis_side
    pictures = media.decode_clip_frames(path, probe, clip.start_s, seconds, NETWORK_FPS, side, config.limits)
    first, last = clip_frames(clip)
    within = faces_within(faces, first, last)
    tracks = {int(track): within.rows(within.track == track) for track in np.unique(within.track)}
    times = clip.start_s + np.arange(len(pictures)) / NETWORK_FPS
    return ClipFrames(
        pictures,
        {track: interpolate_boxes(own.frame, own.box, VIDEO_FPS, times) for track, own in tracks.items()},
    )


class ClipsOfSource(Sequence[ClipFaces]):
    """Every clip's faces and sound, read when asked for: those of many hours are never in memory together."""

    def __init__(self, faces: FaceTable, sound: AudioFile, clips: list[Proposal], margin_s: float) -> None:
        self._faces, self._sound, self._clips, self._margin_s = faces, sound, clips, margin_s

    def __len__(self) -> int:
        return len(self._clips)

    @overload
    def __getitem__(self, index: int) -> ClipFaces: ...

    @overload
    def __getitem__(self, index: slice) -> list[ClipFaces]: ...

    def __getitem__(self, index: int | slice) -> ClipFaces | list[ClipFaces]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        clip = self._clips[index]
        first, last = clip_frames(clip)
        within = faces_within(self._faces, first, last)
        largest = main_face(within)
        pcm = self._sound.span(clip.start_s - self._margin_s, clip.end_s + self._margin_s)
        return ClipFaces(
            lip_gaps(within, first, last),
            pcm,
            int(largest.track[0]) if len(largest.track) else None,
            clip.speaker,
        )


def lip_gaps(faces: FaceTable, first: int, last: int) -> dict[int, np.ndarray]:
    """Opening of the lips of every face in frames `first` to before `last`: track -> float [F], NaN where it is not seen."""
    found = {}
    for track in np.unique(faces.track):
        own = faces.rows(faces.track == track)
        gap = np.full(last - first, np.nan)
        gap[own.frame - first] = own.lip_gap
        found[int(track)] = gap
    return found
