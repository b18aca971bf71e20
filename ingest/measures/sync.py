"""Step `sync`: which face speaks in each clip, and the offset between its lips and the audio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from uniavgen.ingest.config import IngestConfig, SyncConfig
from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io import media
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.measures.clip_parts import clip_frames, faces_within, main_face
from uniavgen.ingest.models.active_speaker import (
    ActiveFace,
    ClipFaces,
    SpeakingFace,
    choose_face,
    find_speaking_faces,
)
from uniavgen.ingest.models.lip_sync import LipSync, lip_sync
from uniavgen.ingest.models.published_networks import NETWORK_FPS, interpolate_boxes
from uniavgen.ingest.records import (
    AUDIO_RATE,
    ClipSync,
    FacesSeen,
    FaceTable,
    PlayableCopy,
    Probe,
    Proposal,
    Proposals,
    SourceRecord,
    SyncMeasures,
)
from uniavgen.shards.corpus.signals import signals_of
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS


class SyncStep(Step):
    """Active face and lip sync of each clip."""

    name = "sync"
    pool = "sight"
    version = "3"
    needs = ("sound", "faces", "propose")
    settings = ("sync",)
    result = SyncMeasures
    _models: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        for path in (config.sync.syncnet_weights, config.sync.light_asd_weights):
            if path and not Path(path).is_file():
                raise UserError(
                    "no weights here", where=path, hint="check ingest.sync.*_weights", kind="missing-weights"
                )

    def load(self) -> None:
        self._models = self._models or SyncModels(self.config.sync, self.config.device)

    def measure(self, record: SourceRecord) -> SyncMeasures:
        faces, audio = record.result(FacesSeen).faces, record.result(AudioFile)
        clips = record.result(Proposals).clips
        if not audio.samples:
            return SyncMeasures([ClipSync(None, {}) for _ in clips])

        def frames_of(index: int) -> ClipFrames:
            playable = record.result(PlayableCopy)
            return read_clip_frames(playable.path, playable.probe, faces, clips[index], self.config)

        source_clips = ClipsOfSource(faces, audio, clips, self.config.sync.max_shift_ms / 1000)
        return SyncMeasures([_clip_sync(face) for face in self._models.measure(source_clips, frames_of)])

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        measured = record.result(SyncMeasures).clips[index].signals
        return {name: measured.get(name) for name in signals_of("sync")}


def _clip_sync(face: SpeakingFace) -> ClipSync:
    active, sync = face.active, face.sync
    signals = {
        "active_face_confidence": active.confidence,
        "active_face_margin": active.margin,
        "sync_offset_ms": sync.offset_ms,
        "sync_confidence": sync.confidence,
        **sync.scores,
    }
    curve = None if sync.curve is None else [round(float(value), 4) for value in sync.curve]
    return ClipSync(active.main, signals, curve)


@dataclass(frozen=True)
class ClipFrames:
    """Input of the published networks: frames of a clip and the boxes of its face tracks.

    `frames` uint8 [T, H, W, 3] RGB at 25 fps; `boxes` track -> float [T, 4] (x0, y0, x1, y1) in fractions of
    the frame, NaN where the face is not seen.
    """

    frames: np.ndarray
    boxes: Mapping[int, np.ndarray]


class SyncModels:
    """The configured models: embedded, Light-ASD for the active face, SyncNet for the offset.

    The embedded models read lip openings only. The published networks read frames, one clip at a time. Raises
    UserError (missing-weights, wrong-weights) for a file that is absent or holds other weights.
    """

    def __init__(self, config: SyncConfig, device: str = "cpu") -> None:
        self.config = config
        self._light_asd, self._syncnet = None, None
        if config.active_model == "light-asd":
            from uniavgen.ingest.models.light_asd import LightAsd

            self._light_asd = LightAsd(config.light_asd_weights, device)
        if config.model == "syncnet":
            from uniavgen.ingest.models.syncnet import SyncNet

            self._syncnet = SyncNet(config, device)

    @property
    def needs_frames(self) -> bool:
        return self._light_asd is not None or self._syncnet is not None

    def measure(
        self, clips: Sequence[ClipFaces], frames_of: Callable[[int], ClipFrames] | None = None
    ) -> list[SpeakingFace]:
        """One result per clip of a source. `frames_of(index)` is called once per clip if `needs_frames`."""
        embedded = find_speaking_faces(clips, self.config)
        if not self.needs_frames:
            return embedded
        assert frames_of is not None
        return [
            self._measure_clip(clip, frames_of(index), embedded[index]) for index, clip in enumerate(clips)
        ]

    def _measure_clip(self, clip: ClipFaces, video: ClipFrames, embedded: SpeakingFace) -> SpeakingFace:
        active, sync = embedded.active, embedded.sync
        if self._light_asd is not None:
            active = self._active_face(clip, video)
            if active.main != embedded.active.main:
                gap = clip.gaps.get(active.main) if active.main is not None else None
                sync = LipSync() if gap is None else lip_sync(gap, clip.pcm, self.config)
        if self._syncnet is not None:
            box = video.boxes.get(active.main) if active.main is not None else None
            sync = LipSync() if box is None else self._syncnet.lip_sync(video.frames, box, clip.pcm)
        return SpeakingFace(active, sync)

    def _active_face(self, clip: ClipFaces, video: ClipFrames) -> ActiveFace:
        assert self._light_asd is not None
        margin = self.config.max_shift_ms * AUDIO_RATE // 1000
        pcm = clip.pcm[margin : len(clip.pcm) - margin]
        return choose_face(self._light_asd.score_faces(video.frames, video.boxes, pcm), clip.largest)


def read_clip_frames(
    path: str, probe: Probe, faces: FaceTable, clip: Proposal, config: IngestConfig
) -> ClipFrames:
    """A clip's frames at 25 fps, and the box of every face in them."""
    seconds = clip.end_s - clip.start_s
    side = config.faces.analysis_side
    frames = media.decode_clip_frames(path, probe, clip.start_s, seconds, NETWORK_FPS, side, config.limits)
    times = clip.start_s + np.arange(len(frames)) / NETWORK_FPS
    within = faces_within(faces, *clip_frames(clip))
    boxes = {}
    for track in np.unique(within.track):
        rows = within.rows(within.track == track)
        boxes[int(track)] = interpolate_boxes(rows.frame, rows.box, VIDEO_FPS, times)
    return ClipFrames(frames, boxes)


class ClipsOfSource(Sequence[ClipFaces]):
    """Faces and audio of every clip, read on access: hours of audio are never in memory at once."""

    def __init__(self, faces: FaceTable, audio: AudioFile, clips: list[Proposal], margin_s: float) -> None:
        self._faces, self._audio, self._clips, self._margin_s = faces, audio, clips, margin_s

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
        largest = main_face(within).track
        pcm = self._audio.span(clip.start_s - self._margin_s, clip.end_s + self._margin_s)
        main = int(largest[0]) if len(largest) else None
        return ClipFaces(lip_gaps(within, first, last), pcm, main, clip.speaker)


def lip_gaps(faces: FaceTable, first: int, last: int) -> dict[int, np.ndarray]:
    """Lip opening of every face in the frames [first, last): track -> float [F], NaN where it is not seen."""
    gaps = {}
    for track in np.unique(faces.track):
        rows = faces.rows(faces.track == track)
        gap = np.full(last - first, np.nan)
        gap[rows.frame - first] = rows.lip_gap
        gaps[int(track)] = gap
    return gaps
