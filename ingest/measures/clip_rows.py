"""From what the steps found to one row of the clips table: the clip's words, its voice and all its signals.

Goes in: a `SourceRecord` and a proposal. Comes out: the row, and the clip's `FaceTrack`. Pure functions; no signal is
judged here, and None says that it could not be measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step_graph import STEPS
from uniavgen.ingest.measures.face_signals import face_signals
from uniavgen.ingest.measures.framing import Framing
from uniavgen.ingest.measures.picture_quality import picture_signals
from uniavgen.ingest.measures.speech_signals import speech_signals
from uniavgen.ingest.models.diarizer import EMBEDDED
from uniavgen.ingest.models.face_reader import OVAL
from uniavgen.ingest.models.text_detector import text_ratio
from uniavgen.ingest.records import (
    AudioMeasures,
    Diarization,
    FacesSeen,
    FaceTable,
    Fingerprints,
    FrameTable,
    Passage,
    Probe,
    Proposal,
    Proposals,
    Shots,
    SourceRecord,
    Span,
    SyncMeasures,
    TextSeen,
    Transcript,
)
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import clip_id
from uniavgen.shards.sample import FaceTrack
from uniavgen.shards.timing import VIDEO_FPS

SOURCE_FACTS = ("duration_s", "width", "height", "fps", "video_codec", "audio_codec", "has_audio")
"""What the sources table takes of a probe."""


SOURCE_DIGITS = 12
"""Digits of its source that a speaker's name begins with. Two of 100,000 sources agree in 8 of them more likely than not, and
their speakers would be one; in 12 with a chance of 2 in 100,000."""


def clip_row(record: SourceRecord, index: int, config: IngestConfig) -> dict[str, Any]:
    """The row of the clips table for the proposal `index`, every signal of `SIGNALS` filled or None."""
    proposal = record.result(Proposals).clips[index]
    sync = record.result(SyncMeasures).clips[index]
    start, end = proposal.start_s, proposal.end_s
    seen, probe = record.result(FacesSeen), record.result(Probe)
    first, last = clip_frames(proposal)
    passage = passage_of(record.result(Transcript).passages, start, end)
    signals: dict[str, float | None] = {
        **_source_signals(probe, start, end),
        **_speech_signals(record, proposal, passage),
        **record.result(AudioMeasures).clips[index].signals,
        **face_signals(
            seen, main_face(faces_within(seen.faces, first, last), sync.track), first, last, probe
        ),
        **sync.signals,
        **picture_signals(record.result(FrameTable), first, last, probe),
        "text_ratio": text_ratio(record.result(TextSeen), first, last),
    }
    return {
        "clip_id": clip_id(record.source_id, start, end),
        "source_id": record.source_id,
        "start_s": start,
        "end_s": end,
        "speaker": f"{record.source_id[:SOURCE_DIGITS]}-S{proposal.speaker.rpartition('_')[2]}"
        if proposal.speaker
        else "",
        "voice": record.result(Diarization).voices.get(proposal.speaker),
        "transcript": " ".join(word.text for word in proposal.words),
        "words": [
            {
                "text": word.text,
                # a word may reach over the clip's edge by less than a frame
                "start_s": round(max(0.0, word.start_s - start), 4),
                "end_s": round(min(end - start, word.end_s - start), 4),
                "score": round(word.score, 4),
            }
            for word in proposal.words
        ],
        "language": passage.language if passage else "",
        "versions": versions(config),
        "sync_curve": sync.curve,
        **vars(record.result(Fingerprints).clips[index]),
        **{name: signals.get(name) for name in SIGNALS},
    }


def source_columns(record: SourceRecord) -> dict[str, Any]:
    """Columns of the source's own row: what the probe says, turns, shots, words, face tracks."""
    probe = vars(record.result(Probe))
    return {
        **{name: value for name, value in probe.items() if name in SOURCE_FACTS},
        "turns": [_span_row(turn) for turn in record.result(Diarization).turns],
        "shots": [_span_row(shot) for shot in record.result(Shots).spans],
        "words": [vars(word) for word in record.result(Transcript).words],
        "tracks": track_rows(record.result(FacesSeen).faces, record.result(Probe).height),
    }


def track_rows(faces: FaceTable, height: int) -> list[dict[str, Any]]:
    """When each face was in the picture, and its median height in pixels of the source."""
    rows = []
    for track in np.unique(faces.track):
        own = faces.rows(faces.track == track)
        tall = float(np.median(own.box[:, 3] - own.box[:, 1])) * height
        first, last = int(own.frame[0]), int(own.frame[-1])
        rows.append(
            {
                "track": int(track),
                "start_s": first / VIDEO_FPS,
                "end_s": (last + 1) / VIDEO_FPS,
                "height_px": round(tall, 1),
            }
        )
    return rows


def face_track(record: SourceRecord, index: int, framing: Framing) -> FaceTrack:
    """The main face in each frame of a clip, in fractions of the picture that `framing` cuts out; zero where it is not seen."""
    clip = record.result(Proposals).clips[index]
    first, last = clip_frames(clip)
    oval = np.zeros((last - first, len(OVAL), 2), np.float32)
    box = np.zeros((last - first, 4), np.float32)
    score = np.zeros(last - first, np.float32)
    faces = clip_face(record, index)
    at = faces.frame - first
    oval[at], box[at], score[at] = framing.moved(faces.oval), framing.moved(faces.box), faces.score
    return FaceTrack(oval, box, score)


def clip_face(record: SourceRecord, index: int) -> FaceTable:
    """Rows of a clip's main face: the one that speaks where that is known, else the largest."""
    within = faces_within(record.result(FacesSeen).faces, *clip_frames(record.result(Proposals).clips[index]))
    return main_face(within, record.result(SyncMeasures).clips[index].track)


def main_face(faces: FaceTable, track: int | None = None) -> FaceTable:
    """The rows of `track`; without one, of the track with the largest sum of face heights; all rows where there is none."""
    if not len(faces.frame):
        return faces
    if track is None:
        heights = faces.box[:, 3] - faces.box[:, 1]
        tracks = np.unique(faces.track)
        weights = [float(heights[faces.track == each].sum()) for each in tracks]
        track = int(tracks[int(np.argmax(weights))])
    return faces.rows(faces.track == track)


def clip_frames(clip: Proposal) -> tuple[int, int]:
    """First frame of a clip on the 16 fps grid, and the one after its last."""
    return round(clip.start_s * VIDEO_FPS), round(clip.end_s * VIDEO_FPS)


def faces_within(faces: FaceTable, first: int, last: int) -> FaceTable:
    """The rows of frames `first` to before `last`."""
    return faces.rows((faces.frame >= first) & (faces.frame < last))


def versions(config: IngestConfig) -> dict[str, str]:
    """What measured a clip: the models by name, the steps' code, and the key of all settings that its row comes from."""
    embedded = config.diarization.model == EMBEDDED
    return {
        "shots": config.shots.detector,
        "speakers": "pyannote segmentation (whisperx) + ecapa" if embedded else config.diarization.model,
        "words": config.transcription.model,
        "word_times": config.transcription.align_model,
        "faces": "mediapipe face_landmarker",
        "face_vectors": config.faces.vectors,
        "sync": config.sync.model,
        "active_face": config.sync.active_model,
        "sound_quality": "dnsmos p.835",
        "text": "pp-ocrv4 detection",
        "steps": ",".join(f"{step.name}={step.version}" for step in STEPS),
        "key": config.keys()["measure"],
    }


def passage_of(passages: list[Passage], start: float, end: float) -> Passage | None:
    """The passage that shares most of [start, end]."""
    shared = [(min(p.end_s, end) - max(p.start_s, start), -index, p) for index, p in enumerate(passages)]
    best = max(shared, default=None, key=lambda item: item[:2])
    return best[2] if best and best[0] > 0 else None


def _source_signals(probe: Probe, start: float, end: float) -> dict[str, float | None]:
    return {
        "has_audio": float(probe.has_audio),
        "duration_s": end - start,
        "width_px": float(probe.width),
        "height_px": float(probe.height),
        "fps": probe.fps,
    }


def _speech_signals(record: SourceRecord, clip: Proposal, passage: Passage | None) -> dict[str, float | None]:
    if not record.result(Probe).has_audio:
        return {}
    return speech_signals(
        clip.words, passage, record.result(Diarization).turns, clip.speaker, clip.start_s, clip.end_s
    )


def _span_row(span: Span) -> dict[str, Any]:
    return {"label": span.label, "start_s": float(span.start_s), "end_s": float(span.end_s)}
