"""The steps of ingest: each is a plain function of one record, or a small class that loads its model once.

Goes in and comes out: a `SourceRecord`. Nothing here knows of Ray; `pipeline` puts the steps into a graph, a test calls
them directly. An exception ends that source alone: `run_step` turns it into the record's failure.
"""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from ingest import media
from ingest.clips import propose_clips
from ingest.config import IngestConfig
from ingest.measure import clip_row, face_track
from ingest.quality import thumbnail
from ingest.records import AUDIO_RATE, Failure, FrameTable, SourceRecord
from shards.clock import VIDEO_FPS
from shards.corpus import Corpus
from shards.errors import UserError


class Step(Protocol):
    """One step: `name` is what failures and timings call it."""

    name: str

    def __call__(self, record: SourceRecord) -> None: ...


def run_step(step: Step, record: SourceRecord) -> SourceRecord:
    """Apply a step unless the record has failed already; keep its seconds, and its failure if it raises."""
    if record.failure is not None:
        return record
    began = time.perf_counter()
    try:
        step(record)
    except OSError as error:
        kind = "no-space" if error.errno == errno.ENOSPC else type(error).__name__
        record.failure = Failure(step.name, kind, f"{step.name} failed: {error}")
    except UserError as error:
        record.failure = Failure(step.name, error.kind or "bad-input", str(error))
    except Exception as error:  # one source's defect must not touch the others
        record.failure = Failure(step.name, type(error).__name__, f"{step.name} failed: {error}".strip())
    record.step_seconds[step.name] = record.step_seconds.get(step.name, 0.0) + time.perf_counter() - began
    if record.failure is not None:
        record.pcm, record.frames = None, None  # nothing downstream needs them
    return record


class Probing:
    """What the file is. Fails on what is no video."""

    name = "probe"

    def __init__(self, config: IngestConfig) -> None:
        self.config = config

    def __call__(self, record: SourceRecord) -> None:
        record.probe = media.probe(record.uri, self.config.limits)


class Sound:
    """The sound track at 16 kHz."""

    name = "sound"

    def __init__(self, config: IngestConfig) -> None:
        self.config = config

    def __call__(self, record: SourceRecord) -> None:
        assert record.probe is not None
        if record.probe.has_audio:
            record.pcm = media.decode_audio(record.uri, record.probe.duration_s, self.config.limits)


class Diarizing:
    """Speakers' turns and voices."""

    name = "diarize"

    def __init__(self, config: IngestConfig) -> None:
        from ingest.diarization import Diarizer

        self._diarizer = Diarizer(config.diarization, config.device)

    def __call__(self, record: SourceRecord) -> None:
        if record.pcm is not None:
            record.turns, record.voices = self._diarizer.diarize(record.pcm)


class Transcribing:
    """Words, their times, their speakers."""

    name = "transcribe"

    def __init__(self, config: IngestConfig) -> None:
        from ingest.transcription import Transcriber

        self._transcriber = Transcriber(config.transcription, config.device, config.stages.speech.threads)

    def __call__(self, record: SourceRecord) -> None:
        if record.pcm is not None:
            record.passages, record.words = self._transcriber.transcribe(record.pcm, record.turns)


class Watching:
    """One pass over the pictures: brightness and change of every frame, faces where clips may be, shots."""

    name = "watch"

    def __init__(self, config: IngestConfig, work: str) -> None:
        from ingest.faces import FaceReader
        from ingest.shots import ShotDetector

        self.config = config
        self.work = work
        self._reader = FaceReader(config.faces)
        self._shots = ShotDetector(config.shots, config.device)

    def __call__(self, record: SourceRecord) -> None:
        from ingest.faces import FaceTracker

        assert record.probe is not None
        wanted = frames_of_interest(record, self.config.clips.unspoken_s, self.config.clips.pad_s)
        tracker = FaceTracker(self.config.faces)
        luma, change, looked, count = [], [], [], []
        before: np.ndarray | None = None
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            shot_file = Path(folder) / "shots.rgb"
            pictures = media.decode_frames(
                record.uri, record.probe, self.config.faces.analysis_side, self.config.shots.fps, shot_file, self.config.limits
            )
            for frame, picture in enumerate(pictures):
                small = thumbnail(picture)
                luma.append(float(small.mean()))
                change.append(255.0 if before is None else float(np.abs(small - before).mean()))
                before = small
                looked.append(wanted(frame / VIDEO_FPS))
                faces = self._reader.read(picture) if looked[-1] else []
                tracker.add(frame, faces)
                counting = looked[-1] and self.config.faces.tile_every and frame % self.config.faces.tile_every == 0
                count.append(self._reader.count(picture, faces) if counting else -1)
            tiny = np.fromfile(shot_file, np.uint8)
        check_complete(record, len(luma) / VIDEO_FPS)
        record.frames = FrameTable(
            np.array(luma, np.float32),
            np.array(change, np.float32),
            np.array(looked),
            np.array(count, np.int16),
            tracker.table(),
        )
        record.shots = self._shots.shots(tiny[: len(tiny) // 3888 * 3888].reshape(-1, 27, 48, 3), len(luma) / VIDEO_FPS)


class Proposing:
    """Which spans become clips."""

    name = "propose"

    def __init__(self, config: IngestConfig) -> None:
        self.config = config

    def __call__(self, record: SourceRecord) -> None:
        assert record.frames is not None
        end_s = len(record.frames.luma) / VIDEO_FPS
        record.proposals = propose_clips(record.words, record.shots, end_s, self.config.clips)


class Measuring:
    """The rows of the clips table."""

    name = "measure"

    def __init__(self, config: IngestConfig) -> None:
        self.config = config

    def __call__(self, record: SourceRecord) -> None:
        record.clips = [clip_row(record, proposal, self.config) for proposal in record.proposals]
        record.pcm = None  # measured; the cut takes its sound from the source


class Cutting:
    """The clips' media files, at their place in the corpus; what is measured only by frames is let go of."""

    name = "cut"

    def __init__(self, config: IngestConfig, corpus_root: str, work: str) -> None:
        self.config = config
        self.corpus = Corpus.open(corpus_root)
        self.work = Path(work)

    def __call__(self, record: SourceRecord) -> None:
        assert record.probe is not None
        size = media.fitted_size(record.probe.width, record.probe.height, self.config.cut.longest_side)
        for row in record.clips:
            frames = round((row["end_s"] - row["start_s"]) * VIDEO_FPS)
            paths = {name: self.corpus.media_path(row["clip_id"], name) for name in ("mp4", "flac", "face.npz")}
            media.cut_clip(
                record.uri, row["start_s"], frames, size, record.probe.has_audio, (paths["mp4"], paths["flac"]), self.work,
                self.config.cut, self.config.limits,
            )  # fmt: skip
            part = self.work / paths["face.npz"].name
            part.write_bytes(face_track(record, row["start_s"], frames).to_bytes())
            part.replace(paths["face.npz"])


STEPS: dict[str, Callable[..., Step]] = {
    step.name: step for step in (Probing, Sound, Diarizing, Transcribing, Watching, Proposing, Measuring, Cutting)
}


def frames_of_interest(record: SourceRecord, unspoken_s: float, pad_s: float) -> Callable[[float], bool]:
    """Whether faces are looked for at a time: in the first `unspoken_s`, from which spans come where speech gives no
    clip, and around all words."""
    spans = [[0.0, unspoken_s]]
    for word in record.words:
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


def check_complete(record: SourceRecord, decoded_s: float) -> None:
    """Raise UserError (truncated) where much less could be decoded than the file declares."""
    assert record.probe is not None
    heard_s = len(record.pcm) / AUDIO_RATE if record.pcm is not None else 0.0
    declared = record.probe.duration_s
    if max(decoded_s, heard_s) < declared - max(1.0, 0.05 * declared):
        raise UserError(
            f"the file declares {declared:.1f} s and holds {max(decoded_s, heard_s):.1f} s",
            where=record.uri,
            do="fetch it again",
            kind="truncated",
        )
