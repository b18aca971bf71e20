"""Step `measure`: rows of the clips table and measured columns of the sources table, from all steps' results.

No signal is judged here; None means that it could not be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step import Step, StepGraph
from uniavgen.ingest.measures.clip_parts import clip_passage
from uniavgen.ingest.models.diarizer import EMBEDDED
from uniavgen.ingest.records import (
    Diarization,
    FacesSeen,
    FaceTable,
    Fingerprints,
    MeasuredRows,
    Passage,
    Probe,
    Proposal,
    Proposals,
    Shots,
    SourceRecord,
    Span,
    SpokenWord,
    StreamInfo,
    SyncMeasures,
    Transcript,
)
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import clip_id
from uniavgen.shards.timing import VIDEO_FPS

PROBE_COLUMNS = (
    *("duration_s", "width", "height", "fps", "video_codec", "audio_codec", "has_audio"),
    *("video_stream", "audio_stream", "transfer", "mono"),
)
"""Columns of the sources table that come from the probe."""

SOURCE_DIGITS = 12
"""Digits of the source_id that a speaker's name begins with. Among 100,000 sources, two share the first 8
digits with a probability above one half, and their speakers would be merged; for 12 digits it is 2 in
100,000."""


class MeasureStep(Step):
    """Rows of one source."""

    name = "measure"
    pool = "sight"
    version = "5"
    needs = ("diarize", "faces", "picture", "text", "listen", "sync", "fingerprint")
    result = MeasuredRows

    def measure(self, record: SourceRecord) -> MeasuredRows:
        count = len(record.result(Proposals).clips)
        rows = [clip_row(record, index, self.graph) for index in range(count)]
        return MeasuredRows(rows, source_columns(record))


def clip_row(record: SourceRecord, index: int, graph: StepGraph) -> dict[str, Any]:
    """The row of the clips table for clip proposal `index`, with the signals of every step."""
    clip = record.result(Proposals).clips[index]
    passage = clip_passage(record.result(Transcript).passages, clip)
    signals: dict[str, float | None] = {}
    for step in graph.steps:
        signals |= step.signals(record, index)
    return {
        "clip_id": clip_id(record.source_id, clip.start_s, clip.end_s),
        "source_id": record.source_id,
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "speaker": speaker_name(record.source_id, clip.speaker),
        "voice": record.result(Diarization).voices.get(clip.speaker),
        "transcript": clip.text,
        "words": [_word_row(word, clip) for word in clip.words],
        "language": passage.language if passage else "",
        "versions": versions(graph, record),
        "sync_curve": record.result(SyncMeasures).clips[index].curve,
        **vars(record.result(Fingerprints).clips[index]),
        **{name: signals[name] for name in SIGNALS},
    }


def speaker_name(source_id: str, label: str) -> str:
    """Name of a diarized speaker in the whole corpus; "" for an unknown one."""
    return f"{source_id[:SOURCE_DIGITS]}-S{label.rpartition('_')[2]}" if label else ""


def source_columns(record: SourceRecord) -> dict[str, Any]:
    """Columns of the source's own row: probe, turns, shots, languages, passages, words, face tracks."""
    probe = vars(record.result(Probe))
    return {
        **{name: value for name, value in probe.items() if name in PROBE_COLUMNS},
        "streams": [_stream_row(stream) for stream in record.result(Probe).streams],
        "turns": [_span_row(turn) for turn in record.result(Diarization).turns],
        "shots": [_span_row(shot) for shot in record.result(Shots).spans],
        "language": main_language(record.result(Transcript).passages),
        "passages": [_passage_row(passage) for passage in record.result(Transcript).passages],
        "words": [_spoken_word_row(word) for word in record.result(Transcript).words],
        "tracks": track_rows(record.result(FacesSeen).faces, record.result(Probe).height),
    }


def main_language(passages: Sequence[Passage]) -> str:
    """The language that most of the speech is in; "" without speech."""
    seconds: dict[str, float] = {}
    for passage in passages:
        seconds[passage.language] = seconds.get(passage.language, 0.0) + passage.end_s - passage.start_s
    return max(sorted(seconds), key=lambda language: seconds[language], default="")


def track_rows(faces: FaceTable, height: int) -> list[dict[str, Any]]:
    """Start, end and median face height of every face track. `height` is the frame height in pixels."""
    rows = []
    for track in np.unique(faces.track):
        track_faces = faces.rows(faces.track == track)
        face_height = float(np.median(track_faces.box[:, 3] - track_faces.box[:, 1])) * height
        first, last = int(track_faces.frame[0]), int(track_faces.frame[-1])
        rows.append(
            {
                "track": int(track),
                "start_s": first / VIDEO_FPS,
                "end_s": (last + 1) / VIDEO_FPS,
                "height_px": round(face_height, 1),
            }
        )
    return rows


def versions(graph: StepGraph, record: SourceRecord) -> dict[str, str]:
    """What measured a clip: models by name, code versions of all steps, and the key of the row."""
    return {
        **_model_names(graph.config),
        "steps": ",".join(f"{step.name}={step.version}" for step in graph.steps),
        "key": graph.key("measure", record.result),
    }


def _model_names(config: IngestConfig) -> dict[str, str]:
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
    }


def _word_row(word: SpokenWord, clip: Proposal) -> dict[str, Any]:
    return {
        "text": word.text,
        # a word may reach over the clip's edge by less than a frame
        "start_s": round(max(0.0, word.start_s - clip.start_s), 4),
        "end_s": round(min(clip.end_s - clip.start_s, word.end_s - clip.start_s), 4),
        "score": round(word.score, 4),
    }


def _stream_row(stream: StreamInfo) -> dict[str, Any]:
    return {**vars(stream), "roles": list(stream.roles)}


def _spoken_word_row(word: SpokenWord) -> dict[str, Any]:
    return {name: value for name, value in vars(word).items() if name != "gap"}


def _passage_row(passage: Passage) -> dict[str, Any]:
    names = ("start_s", "end_s", "text", "language", "language_probability", "speaker")
    return {name: getattr(passage, name) for name in names}


def _span_row(span: Span) -> dict[str, Any]:
    return {"label": span.label, "start_s": float(span.start_s), "end_s": float(span.end_s)}
