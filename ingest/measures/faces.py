"""Step `faces`: faces in every frame, their landmarks, and embeddings that tell persons apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step import FrameStep
from uniavgen.ingest.measures.clip_parts import analysed_times, clip_face, clip_frames
from uniavgen.ingest.models.face_embedding import face_encoder, require_encoder
from uniavgen.ingest.models.face_reader import FaceCollector, FaceReader
from uniavgen.ingest.records import FacesSeen, FaceTable, Probe, Proposals, SourceRecord, Transcript
from uniavgen.shards.corpus.signals import signals_of
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.shards.weights import resolve


class FaceStep(FrameStep):
    """Tracked faces, in the frames around words and at the start of the source."""

    name = "faces"
    pool = "sight"
    version = "3"
    needs = ("decode", "transcribe")
    settings = ("faces", "clips.unspoken_s", "clips.pad_s")
    result = FacesSeen
    _reader: Any = None
    _encoder: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        resolve("face-landmarker", config.faces.landmarker_folder or None)
        require_encoder(config.faces)

    def load(self) -> None:
        if self._reader is None:
            self._reader = FaceReader(self.config.faces)
            self._encoder = face_encoder(self.config.faces)

    def try_models(self) -> None:
        frame = np.zeros((64, 64, 3), np.uint8)
        self._reader.read(frame)
        self._reader.detections(frame)
        if self._encoder:
            self._encoder.encode(frame, np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.5, 0.8]]))

    def collector(self, record: SourceRecord, shot_frames: Path) -> FaceCollector:
        clips = self.config.clips
        analysed = analysed_times(record.result(Transcript).words, clips.unspoken_s, clips.pad_s)
        return FaceCollector(self._reader, self.config.faces, analysed, self._encoder)

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        first, last = clip_frames(record.result(Proposals).clips[index])
        main = clip_face(record, index)
        return face_signals(record.result(FacesSeen), main, first, last, record.result(Probe))


def face_signals(
    seen: FacesSeen, main: FaceTable, first: int, last: int, probe: Probe
) -> dict[str, float | None]:
    """Signals of the frames [first, last) of a source. `main` holds the rows of the clip's main face."""
    signals: dict[str, float | None] = dict.fromkeys(signals_of("faces"))
    analysed = int(seen.looked[first:last].sum())
    if not analysed:
        return signals
    with_face = np.zeros(len(seen.denied[first:last]), bool)
    frames = seen.faces.frame
    with_face[frames[(frames >= first) & (frames < last)] - first] = True
    signals["face_coverage"] = float(with_face.sum()) / analysed
    signals["face_count"] = lasting_count(seen.face_count[first:last])
    signals["face_lock_ratio"] = lock_ratio(with_face, seen.denied[first:last])
    return signals | _main_face_signals(main, probe) if len(main.frame) else signals


def lock_ratio(with_face: np.ndarray, denied: np.ndarray) -> float | None:
    """Share of the frames with landmarks in which the detector confirms them; None without landmarks.

    `with_face` bool [F] marks frames with a confirmed face, `denied` int [F] counts unconfirmed landmark
    sets.
    """
    with_landmarks = (with_face | (denied > 0)).sum()
    return float(with_face.sum() / with_landmarks) if with_landmarks else None


def lasting_count(counts: np.ndarray) -> float | None:
    """Number of faces visible together in a fifth of the counted frames or more: the 80th percentile.

    `counts` int [F], -1 where not counted. None if nothing was counted.
    """
    counted = counts[counts >= 0]
    return float(np.percentile(counted, 80, method="lower")) if len(counted) else None


def steadiness(main: FaceTable, aspect: float) -> float | None:
    """1 minus the mean movement of the face centre between neighbouring frames, relative to the face height.

    `aspect` is the frame's width over its height. None if no two frames are neighbours.
    """
    neighbours = np.diff(main.frame) == 1
    if not neighbours.any():
        return None
    centre = (main.box[:, :2] + main.box[:, 2:]) / 2 * (aspect, 1.0)
    moved = np.linalg.norm(np.diff(centre, axis=0), axis=1) / _heights(main)[1:]
    return float(np.clip(1.0 - moved[neighbours].mean(), 0.0, 1.0))


def _main_face_signals(main: FaceTable, probe: Probe) -> dict[str, float | None]:
    neighbours = np.diff(main.frame) == 1
    opening_change = np.abs(np.diff(main.lip_gap))[neighbours]
    return {
        "face_height_px": float(np.median(_heights(main))) * probe.height,
        "face_yaw_deg": float(np.median(np.abs(main.yaw))),
        "face_pitch_deg": float(np.median(np.abs(main.pitch))),
        "face_roll_deg": float(np.median(np.abs(main.roll))),
        "face_score": float(np.median(main.score)),
        "sharpness": float(np.median(main.sharpness)),
        "face_steadiness": steadiness(main, probe.width / max(1, probe.height)),
        "mouth_motion": float(opening_change.mean() * VIDEO_FPS) if neighbours.any() else None,
    }


def _heights(faces: FaceTable) -> np.ndarray:
    heights: np.ndarray = faces.box[:, 3] - faces.box[:, 1]
    return heights
