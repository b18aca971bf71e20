"""Which of the faces in a clip speaks, and is it any of them: explicit answers, not a guess from size.

Goes in: the lip opening of every face track of a clip, and its sound. Comes out: an `ActiveFace`, and for all clips of a
source at once, since an offset belongs to the source, a `SpeakingFace` each.

The answer differs from lip sync in what it asks. Sync asks *where* the sound lies: it needs one clear peak, anywhere. This
asks *whether* this mouth makes this sound: it takes the best shift that is likely, need not tell it from its rivals, and counts
a mouth that hardly moves as silent. So a clip whose offset is unknown can still have a known speaker, and the other way round
a peak at 550 ms is a known offset and a poor speaker.
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
    correlation_curve,
    expected_offsets,
    lip_change,
    sound_change,
    sync_clips,
)
from uniavgen.shards.timing import VIDEO_FPS

LIKELY_MS = 300.0
"""Spread of the offsets that videos have (one sigma, our choice): a fit at a larger shift counts less."""

SPEAKING = 0.15
"""Root mean square of the lip opening's change, in face heights a second, from which a mouth moves enough to speak. Real
speakers show 0.20-0.50 over 4 s, chewing 0.14-0.25, silent mouths 0.003-0.04."""

UNSPOKEN = 0.70
"""Weighted peak that mouths saying something else stay below in 95 of 100 clips of one second; it shrinks with the square
root of the length. Measured on real and animated faces at 3, 5 and 8 s."""


@dataclass(frozen=True)
class ActiveFace:
    """Who speaks in a clip.

    `track`: the face that speaks, None where that is not known. `main`: the face that the numbers are about: `track`, else
    the largest. `confidence` 0..1: at 0.5 its mouth fits the sound better than 95 of 100 mouths that say something else or
    nothing; below it no visible face is known to speak. `margin` -1..1: its lead over the best other face's confidence (over
    none: its own confidence). `fits`: confidence of every face. None where nothing could be measured.
    """

    track: int | None = None
    main: int | None = None
    confidence: float | None = None
    margin: float | None = None
    fits: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FaceCurve:
    """A face against the sound: correlation float32 [shifts] (None: it does not move), length, and movement over `SPEAKING`."""

    curve: np.ndarray | None
    length_s: float
    moving: float


@dataclass(frozen=True)
class ClipFaces:
    """What a clip shows and sounds: for each track its lip opening float [F] at 16 fps (NaN: not seen); int16 sound at 16 kHz
    with `max_shift_ms` either side; the track of the largest face; the voice that speaks ("" where none is known)."""

    gaps: Mapping[int, np.ndarray]
    pcm: np.ndarray
    largest: int | None = None
    speaker: str = ""


@dataclass(frozen=True)
class SpeakingFace:
    """Of one clip: who speaks, and the sync of its main face."""

    active: ActiveFace
    sync: LipSync


def find_active_face(
    gaps: Mapping[int, np.ndarray],
    pcm: np.ndarray,
    config: SyncConfig,
    expected_ms: float = 0.0,
    largest: int | None = None,
) -> ActiveFace:
    """Which of the faces speaks in one clip; arguments as in `ClipFaces`, `expected_ms` the offset of the source if known."""
    return choose_face(score_faces(correlate_faces(gaps, pcm, config), expected_ms), largest)


def find_speaking_faces(clips: Iterable[ClipFaces], config: SyncConfig) -> list[SpeakingFace]:
    """For every clip of one source: who speaks, then the sync of that face, clips of one voice helping each other.

    The offset that the other clips of a voice agree on is where each clip's speaker is looked for: in a source whose sound
    is 400 ms late, every mouth fits 400 ms late.
    """
    curves: list[Mapping[int, FaceCurve]] = []
    largest: list[int | None] = []
    by_voice: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(
        clips
    ):  # each clip is looked at once: a lazy sequence need not keep its sound
        curves.append(correlate_faces(clip.gaps, clip.pcm, config))
        largest.append(clip.largest)
        by_voice[clip.speaker].append(index)
    found: list[SpeakingFace] = [SpeakingFace(ActiveFace(), LipSync())] * len(curves)
    for own in by_voice.values():
        guesses = [
            main_curve(curves[index], choose_face(score_faces(curves[index], 0.0), largest[index]))
            for index in own
        ]
        final = []
        for index, others in zip(own, expected_offsets(guesses), strict=True):
            expected_ms = others.offset_ms if others.known and others.offset_ms is not None else 0.0
            final.append(choose_face(score_faces(curves[index], expected_ms), largest[index]))
        mains = [main_curve(curves[index], active) for index, active in zip(own, final, strict=True)]
        for index, active, sync in zip(own, final, sync_clips(mains), strict=True):
            found[index] = SpeakingFace(active, sync)
    return found


def correlate_faces(
    gaps: Mapping[int, np.ndarray], pcm: np.ndarray, config: SyncConfig
) -> dict[int, FaceCurve]:
    """Every face against the sound, over the stretch in which it is seen; faces seen for under 1 s, or in under three
    quarters of their stretch, are left out, and all are where the sound does not change."""
    reach = config.max_shift_ms * GRID_HZ // 1000
    sound = sound_change(pcm, config)
    if not len(sound) or float(sound.std()) < 1e-9:
        return {}
    found = {}
    for track, gap in gaps.items():
        seen = np.flatnonzero(np.isfinite(gap))
        if not len(seen):
            continue
        first, last = int(seen[0]), int(seen[-1]) + 1
        if last - first < VIDEO_FPS or len(seen) < 0.75 * (last - first):
            continue
        lips = lip_change(gap[first:last])
        start = round(first / VIDEO_FPS * GRID_HZ)
        curve = correlation_curve(lips, sound[start : start + len(lips) + 2 * reach], reach)
        found[track] = FaceCurve(
            curve, (last - first) / VIDEO_FPS, min(1.0, float(lips.std()) * GRID_HZ / SPEAKING)
        )
    return found


def score_faces(curves: Mapping[int, FaceCurve], expected_ms: float) -> dict[int, float]:
    """How well each face fits the sound: 0.5 as for `ActiveFace`, above 1 too; `expected_ms` is the likeliest shift."""
    return {track: _fit(face, expected_ms) for track, face in curves.items()}


def choose_face(fits: Mapping[int, float], largest: int | None = None) -> ActiveFace:
    """The face that fits best, if it fits well enough to be known; else the numbers of the largest (or best) face."""
    if not fits:
        return ActiveFace(main=largest)
    best = max(fits, key=lambda track: (fits[track], -track))
    track = best if fits[best] >= KNOWN else None
    main = track if track is not None else (largest if largest is not None else best)
    sure = {face: min(1.0, fit) for face, fit in fits.items()}
    if main not in sure:
        return ActiveFace(None, main, fits=sure)
    rivals = [confidence for other, confidence in sure.items() if other != main]
    return ActiveFace(track, main, sure[main], sure[main] - max(rivals, default=0.0), sure)


def _fit(face: FaceCurve, expected_ms: float) -> float:
    if face.curve is None:
        return 0.0
    shifts_ms = (np.arange(len(face.curve)) - len(face.curve) // 2) * 1000 / GRID_HZ
    likely = np.exp(-0.5 * np.square((shifts_ms - expected_ms) / LIKELY_MS))
    peak = float((face.curve * likely).max())
    return max(0.0, float(KNOWN * peak * np.sqrt(face.length_s) * face.moving / UNSPOKEN))


def main_curve(curves: Mapping[int, FaceCurve], active: ActiveFace) -> tuple[np.ndarray | None, float]:
    """The curve and length of the face that an answer is about; (None, 0) where it was not measured."""
    face = curves.get(active.main) if active.main is not None else None
    return (face.curve, face.length_s) if face else (None, 0.0)
