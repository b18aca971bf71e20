"""Is the sound in step with the lips? A correlation that needs no trained network, and that knows when it does not know.

Goes in: the opening of the lips on the 16 fps grid and the sound. Comes out: a `LipSync`. The sign is SyncNet's: a positive
offset says that the sound comes late. Lips and speech share their *changes*, not their levels (levels look fine on animated
faces and are near chance on real ones), and most of all in the region of the second formant (Grant and Seitz 2000, J. Acoust.
Soc. Am. 108): so the loudness of each octave from 500 Hz to 4 kHz is differentiated, they are added with one weight, and the
sum is compared with the derivative of the lip opening at every shift, on a 100 Hz grid.

Confidence is 0.5 where the peak is as high as that of unrelated sound in one clip of fifty. Below it the offset is unknown,
whatever it says; None says that nothing could be measured. An offset belongs to the source rather than to the clip, so clips
of one face and voice help each other (`sync_together`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from uniavgen.ingest.config import SyncConfig
from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.shards.timing import VIDEO_FPS

GRID_HZ = 100
LIP_HZ = 8.0
"""Both signals are smoothed to this: lips do not open and close faster, and pictures at 16 fps do not show more."""

LOUDNESS = 0.6
"""Loudness grows with this power of the amplitude (Stevens 1957)."""

UNRELATED = 0.92
"""Peak over all shifts that unrelated sound stays below in 98 of 100 clips of one second; it shrinks with the square root of
the length. Measured on real and on animated speakers, each against the others' sound, alike at 3, 5 and 8 s."""

UNRELATED_NEAR = 0.75
"""The same for the peak within `NEAR_MS` of one given shift."""

NEAR_MS = 60.0
"""How close a clip's offset lies to that of its source's other clips (the spread of 5 s clips, rounded up)."""

PEAK_WIDTH, RIVAL = 15, 0.85
"""A second peak further than 150 ms off and at least this high beside the first makes the offset unknown (our choice)."""

KNOWN = 0.5
"""Confidence from which an offset is known."""


@dataclass(frozen=True)
class LipSync:
    """How a clip's sound lies to its lips.

    `offset_ms` positive where the sound is late; `confidence` 0..1, below 0.5 the offset is unknown; `curve` float32
    [2 max_shift + 1]: the correlation at every shift in steps of 10 ms, the last one for sound that is `max_shift_ms` late.
    All None where the face is not seen in a quarter of the frames or more, or nothing moves, or the clip is under 1 s.
    `scores`: a named model's own, by signal.
    """

    offset_ms: float | None = None
    confidence: float | None = None
    curve: np.ndarray | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        return self.confidence is not None and self.confidence >= KNOWN


def lip_sync(lip_gap: np.ndarray, pcm: np.ndarray, config: SyncConfig) -> LipSync:
    """Sync of one clip by itself.

    `lip_gap` float [F] at 16 fps, NaN where the face is not seen; `pcm` int16 at 16 kHz with `max_shift_ms` of sound before
    the first frame and after the last.
    """
    curve = sync_curve(lip_gap, pcm, config)
    return LipSync() if curve is None else offset_from_curve(curve, len(lip_gap) / VIDEO_FPS)


def sync_clips(curves: Sequence[tuple[np.ndarray | None, float]]) -> list[LipSync]:
    """Sync of several clips of one source, face and voice from their curves: (curve, length in seconds) each.

    Where a clip is not sure by itself, the mean curve of the *other* clips says where to look: a peak of its own at that
    place is rarer in unrelated sound than one anywhere. A clip that is sure by itself, and one that shows nothing at that
    place (dubbed, another take), keeps its own answer.
    """
    found = []
    for (curve, length_s), expected in zip(curves, expected_offsets(curves), strict=True):
        if curve is None:
            found.append(LipSync())
            continue
        alone = offset_from_curve(curve, length_s)
        found.append(
            offset_near(curve, length_s, expected, alone) if expected.known and not alone.known else alone
        )
    return found


def expected_offsets(curves: Sequence[tuple[np.ndarray | None, float]]) -> list[LipSync]:
    """For each clip what the mean curve of the others says, weighted by length; all None where no other has a curve."""
    weighted = [
        (0.0, 0.0) if curve is None else (curve * np.float64(length_s), length_s)
        for curve, length_s in curves
    ]
    total, total_s = sum(product for product, _ in weighted), sum(length_s for _, length_s in weighted)
    found = []
    for product, length_s in weighted:
        others_s = total_s - length_s
        mean = (total - product) / others_s if others_s > 1e-6 else None
        found.append(LipSync() if mean is None else offset_from_curve(np.asarray(mean, np.float32), others_s))
    return found


def sync_curve(lip_gap: np.ndarray, pcm: np.ndarray, config: SyncConfig) -> np.ndarray | None:
    """The correlation at every shift; None where it cannot be measured. Arguments and result as in `LipSync`."""
    seen = np.isfinite(lip_gap)
    if len(lip_gap) < VIDEO_FPS or seen.mean() < 0.75:
        return None
    reach = config.max_shift_ms * GRID_HZ // 1000
    return correlation_curve(lip_change(lip_gap), sound_change(pcm, config), reach)


def offset_from_curve(curve: np.ndarray, length_s: float) -> LipSync:
    """Offset and confidence from the curve of `length_s` seconds: its highest point, anywhere."""
    best = int(curve.argmax())
    offset = _offset_ms(curve, best)
    if best in (0, len(curve) - 1):
        return LipSync(offset, 0.0, curve)  # still rising at the end of the range: no peak was found
    confidence = _confidence(curve[best], length_s, UNRELATED)
    elsewhere = np.concatenate([curve[: max(0, best - PEAK_WIDTH)], curve[best + PEAK_WIDTH + 1 :]])
    ambiguous = elsewhere.max(initial=0.0) > RIVAL * curve[best]
    return LipSync(offset, min(confidence, KNOWN - 0.01) if ambiguous else confidence, curve)


def offset_near(curve: np.ndarray, length_s: float, expected: LipSync, alone: LipSync) -> LipSync:
    """Offset and confidence from the highest point within `NEAR_MS` of an expected offset; `alone` where none is there."""
    assert expected.offset_ms is not None
    centre = (len(curve) // 2) + expected.offset_ms * GRID_HZ / 1000
    reach = NEAR_MS * GRID_HZ / 1000
    first, last = max(1, int(np.ceil(centre - reach))), min(len(curve) - 2, int(np.floor(centre + reach)))
    if last < first:
        return alone
    best = first + int(curve[first : last + 1].argmax())
    confidence = _confidence(curve[best], length_s, UNRELATED_NEAR)
    peaked = curve[best] >= max(curve[best - 1], curve[best + 1])
    return LipSync(_offset_ms(curve, best), confidence, curve) if peaked and confidence >= KNOWN else alone


def correlation_curve(lips: np.ndarray, sound: np.ndarray, reach: int) -> np.ndarray | None:
    """Pearson correlation at every shift [-reach, reach]: float32 [2 reach + 1], index 2 reach is the sound `reach` late.

    `lips` [n] against `sound` [n + 2 reach], which starts `reach` earlier. None where either does not move at all.
    """
    count = min(len(lips), len(sound) - 2 * reach)
    if count < GRID_HZ or lips[:count].std() < 1e-9:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(sound[: count + 2 * reach], count)
    spread = windows.std(axis=1)
    if spread.max() < 1e-9:
        return None
    centred = lips[:count] - lips[:count].mean()
    curve = (windows @ centred) / (count * lips[:count].std() * np.maximum(spread, spread.max() * 1e-3))
    return curve.astype(np.float32)


def lip_change(lip_gap: np.ndarray) -> np.ndarray:
    """Derivative of the lip opening per 10 ms on the 100 Hz grid, from frame 0 to the end of the last frame.

    `lip_gap` float [F] at 16 fps; where it is NaN the opening is interpolated.
    """
    from scipy.interpolate import CubicSpline

    seen = np.isfinite(lip_gap)
    at = np.arange(len(lip_gap)) / VIDEO_FPS
    opening = np.interp(at, at[seen], lip_gap[seen])
    grid = np.arange(round(len(lip_gap) / VIDEO_FPS * GRID_HZ)) / GRID_HZ
    return smooth(np.gradient(CubicSpline(at, opening)(np.minimum(grid, at[-1]))))


def sound_change(pcm: np.ndarray, config: SyncConfig) -> np.ndarray:
    """Derivative of the loudness on the 100 Hz grid, the octaves of the speech band added with one weight: float [n / 160]."""
    loudness = octave_loudness(pcm, config)
    total = np.zeros(len(loudness))
    if len(total) < GRID_HZ // 2:
        return total  # too short to be smoothed
    for octave in loudness.T:
        change = smooth(np.gradient(octave))
        total += change / max(float(change.std()), 1e-12)
    return total


def octave_loudness(pcm: np.ndarray, config: SyncConfig) -> np.ndarray:
    """Loudness of each octave from `low_hz` to `high_hz`: float [n / 160, octaves], at 0, 10, 20 ... ms."""
    hop, width = AUDIO_RATE // GRID_HZ, AUDIO_RATE // 40  # windows of 25 ms, centred on the grid
    padded = np.pad(pcm.astype(np.float32) / 32768, width // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[: len(pcm) // hop * hop : hop]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(width).astype(np.float32), 512)))
    frequency = np.fft.rfftfreq(512, 1 / AUDIO_RATE)
    octaves = max(1, round(np.log2(config.high_hz / config.low_hz)))
    edges = np.geomspace(config.low_hz, config.high_hz, octaves + 1)
    bands = [(frequency >= low) & (frequency < high) for low, high in pairwise(edges)]
    return np.stack([power[:, band].sum(axis=1) for band in bands], axis=1) ** (LOUDNESS / 2)


def smooth(signal: np.ndarray, cutoff_hz: float = LIP_HZ) -> np.ndarray:
    """A signal on the 100 Hz grid without what is faster than `cutoff_hz`, and without delay."""
    from scipy.signal import butter, sosfiltfilt

    smoothed: np.ndarray = sosfiltfilt(butter(2, cutoff_hz, "lowpass", fs=GRID_HZ, output="sos"), signal)
    return smoothed


def _confidence(peak: float, length_s: float, unrelated: float) -> float:
    return float(np.clip(KNOWN * peak * np.sqrt(length_s) / unrelated, 0.0, 1.0))


def _offset_ms(curve: np.ndarray, best: int) -> float:
    return float((best - len(curve) // 2 + _vertex(curve, best)) * 1000 / GRID_HZ)


def _vertex(curve: np.ndarray, best: int) -> float:
    """Where a parabola through the peak and its neighbours is highest, in steps from `best`."""
    if not 0 < best < len(curve) - 1:
        return 0.0
    before, peak, after = (float(value) for value in curve[best - 1 : best + 2])
    bend = before - 2 * peak + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0
