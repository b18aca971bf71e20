"""Which face in a clip speaks, if any: lip movement of each face against the audio. No learned weights.

The question differs from that of `lip_sync`. Sync asks at which offset the audio is: it needs one clear peak,
at any offset. Active speaker detection asks whether this mouth makes this sound: it takes the best likely
offset, does not compare it with others, and treats a mouth that hardly moves as silent. So a clip with an
unknown offset can have a known speaker, and a peak at 550 ms is a known offset but weak evidence for a
speaker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from uniavgen.ingest.config import SyncConfig
from uniavgen.ingest.models.lip_sync import (
    GRID_HZ,
    KNOWN,
    LipSync,
    audio_change,
    correlation_curve,
    expected_offsets,
    lip_change,
    sync_clips,
)
from uniavgen.shards.timing import VIDEO_FPS

LIKELY_MS = 300.0
"""One standard deviation of the offsets expected in videos: a match at a larger offset is weighted down.
Heuristic."""

SPEAKING = 0.15
"""RMS of the change of the lip opening, in face heights per second, from which a mouth moves enough to speak.
Measured over 4 s: real speakers 0.20-0.50, chewing 0.14-0.25, silent mouths 0.003-0.04."""

UNRELATED_PEAK = 0.70
"""95th percentile of the weighted peak of mouths that say something else, for a clip of one second; it falls
with the square root of the length. Measured on real and animated faces at 3, 5 and 8 s."""


@dataclass(frozen=True)
class ActiveFace:
    """Which face speaks in a clip; None where nothing could be measured.

    `track`: the face that speaks, None if unknown. `main`: the face that the numbers describe: `track`, else
    the largest. `confidence` 0..1: at 0.5 its mouth matches the audio better than 95 of 100 mouths that say
    something else or nothing; below that no visible face is known to speak. `margin` -1..1: the confidence
    minus that of the best other face (0 if there is none). `fits`: the confidence of every face.
    """

    track: int | None = None
    main: int | None = None
    confidence: float | None = None
    margin: float | None = None
    fits: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FaceCurve:
    """A face against the audio: correlation float32 [shifts] (None: it does not move), its length, and its
    movement as a share of `SPEAKING`, at most 1.
    """

    curve: np.ndarray | None
    length_s: float
    moving: float


@dataclass(frozen=True)
class ClipFaces:
    """Input of one clip: the lip opening of each track, float [F] at 16 fps (NaN: not seen); int16 audio at
    16 kHz with `max_shift_ms` on either side; the track of the largest face; the label of the voice that
    speaks ("" if unknown).
    """

    gaps: Mapping[int, np.ndarray]
    pcm: np.ndarray
    largest: int | None = None
    speaker: str = ""


@dataclass(frozen=True)
class SpeakingFace:
    """Result of one clip: which face speaks, and the sync of the main face."""

    active: ActiveFace
    sync: LipSync


def find_active_face(
    gaps: Mapping[int, np.ndarray],
    pcm: np.ndarray,
    config: SyncConfig,
    expected_ms: float = 0.0,
    largest: int | None = None,
) -> ActiveFace:
    """Which face speaks in one clip.

    Arguments as in `ClipFaces`; `expected_ms` is the offset of the source, if known.
    """
    return choose_face(score_faces(correlate_faces(gaps, pcm, config), expected_ms), largest)


def find_speaking_faces(clips: Iterable[ClipFaces], config: SyncConfig) -> list[SpeakingFace]:
    """For every clip of one source: which face speaks, and the sync of that face.

    Clips of one voice are read together.

    Each clip's speaker is searched for at the offset on which the other clips of its voice agree: in a source
    whose audio is 400 ms late, every mouth matches 400 ms late.
    """
    curves: list[Mapping[int, FaceCurve]] = []
    largest: list[int | None] = []
    by_voice: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):  # each clip is read once: a lazy sequence need not keep its audio
        curves.append(correlate_faces(clip.gaps, clip.pcm, config))
        largest.append(clip.largest)
        by_voice[clip.speaker].append(index)
    results: list[SpeakingFace] = [SpeakingFace(ActiveFace(), LipSync())] * len(curves)
    for indices in by_voice.values():
        first_pass = [
            main_curve(curves[index], choose_face(score_faces(curves[index], 0.0), largest[index]))
            for index in indices
        ]
        final = []
        for index, others in zip(indices, expected_offsets(first_pass), strict=True):
            expected_ms = others.offset_ms if others.known and others.offset_ms is not None else 0.0
            final.append(choose_face(score_faces(curves[index], expected_ms), largest[index]))
        mains = [main_curve(curves[index], active) for index, active in zip(indices, final, strict=True)]
        for index, active, sync in zip(indices, final, sync_clips(mains), strict=True):
            results[index] = SpeakingFace(active, sync)
    return results


def correlate_faces(
    gaps: Mapping[int, np.ndarray], pcm: np.ndarray, config: SyncConfig
) -> dict[int, FaceCurve]:
    """Correlate every face with the audio over the span in which it is seen.

    Left out are faces seen for less than 1 s or in less than 75 % of their span, and all faces where the
    audio is constant.
    """
    reach = config.max_shift_ms * GRID_HZ // 1000
    audio = audio_change(pcm, config)
    if not len(audio) or float(audio.std()) < 1e-9:
        return {}
    curves = {}
    for track, gap in gaps.items():
        seen = np.flatnonzero(np.isfinite(gap))
        if not len(seen):
            continue
        first, last = int(seen[0]), int(seen[-1]) + 1
        if last - first < VIDEO_FPS or len(seen) < 0.75 * (last - first):
            continue
        lips = lip_change(gap[first:last])
        start = round(first / VIDEO_FPS * GRID_HZ)
        curve = correlation_curve(lips, audio[start : start + len(lips) + 2 * reach], reach)
        curves[track] = FaceCurve(
            curve, (last - first) / VIDEO_FPS, min(1.0, float(lips.std()) * GRID_HZ / SPEAKING)
        )
    return curves


def score_faces(curves: Mapping[int, FaceCurve], expected_ms: float) -> dict[int, float]:
    """Confidence of each face as in `ActiveFace`, but not limited to 1; `expected_ms` is the most likely
    offset.
    """
    return {track: _fit(face, expected_ms) for track, face in curves.items()}


def choose_face(fits: Mapping[int, float], largest: int | None = None) -> ActiveFace:
    """The best matching face if its confidence reaches `KNOWN`; else the numbers of the largest (or best)
    face.
    """
    if not fits:
        return ActiveFace(main=largest)
    best = max(fits, key=lambda track: (fits[track], -track))
    track = best if fits[best] >= KNOWN else None
    main = track if track is not None else (largest if largest is not None else best)
    confidences = {face: min(1.0, fit) for face, fit in fits.items()}
    if main not in confidences:
        return ActiveFace(None, main, fits=confidences)
    rivals = [confidence for other, confidence in confidences.items() if other != main]
    return ActiveFace(
        track, main, confidences[main], confidences[main] - max(rivals, default=0.0), confidences
    )


def _fit(face: FaceCurve, expected_ms: float) -> float:
    if face.curve is None:
        return 0.0
    shifts_ms = (np.arange(len(face.curve)) - len(face.curve) // 2) * 1000 / GRID_HZ
    likely = np.exp(-0.5 * np.square((shifts_ms - expected_ms) / LIKELY_MS))
    peak = float((face.curve * likely).max())
    return max(0.0, float(KNOWN * peak * np.sqrt(face.length_s) * face.moving / UNRELATED_PEAK))


def main_curve(curves: Mapping[int, FaceCurve], active: ActiveFace) -> tuple[np.ndarray | None, float]:
    """Curve and length of the main face; (None, 0) where it was not measured."""
    face = curves.get(active.main) if active.main is not None else None
    return (face.curve, face.length_s) if face else (None, 0.0)
