"""Audio-visual offset by cross-correlation, with a calibrated confidence. No learned weights.

Input is the lip opening at 16 fps and the audio. Lips and speech share their changes, not their levels, and
most of all in the region of the second formant (Grant and Seitz 2000, J. Acoust. Soc. Am. 108). So the
loudness of each octave from 500 Hz to 4 kHz is differentiated, the octaves are added with equal weight, and
the sum is correlated with the derivative of the lip opening at every shift on a 100 Hz grid. The sign is that
of SyncNet: a positive offset means late audio.

A confidence of 0.5 means a peak that unrelated audio reaches in one clip of fifty; below it the offset is
unknown. An offset belongs to the source rather than to the clip, so clips of one face and voice are read
together (`sync_clips`).
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
"""Cutoff of both signals: lips do not move faster, and 16 fps do not show more."""

LOUDNESS = 0.6
"""Exponent of the amplitude that gives loudness (Stevens 1957)."""

UNRELATED = 0.92
"""98th percentile of the peak over all shifts with unrelated audio, for a clip of one second; it falls with
the square root of the length. Measured on real and animated speakers, each with the others' audio, equal at
3, 5 and 8 s."""

UNRELATED_NEAR = 0.75
"""The same for the peak within `NEAR_MS` of one given shift."""

NEAR_MS = 60.0
"""Largest difference between the offsets of clips of one source (the spread of 5 s clips, rounded up)."""

PEAK_WIDTH, RIVAL = 15, 0.85
"""A second peak more than 150 ms away and at least this share of the first makes the offset unknown.
Heuristic."""

KNOWN = 0.5
"""Confidence from which an offset counts as known."""


@dataclass(frozen=True)
class LipSync:
    """Offset of a clip's audio against its lips.

    `offset_ms` is positive for late audio; `confidence` 0..1, below 0.5 the offset is unknown; `curve`
    float32 [2 max_shift + 1] is the correlation at every shift in steps of 10 ms, the last for audio that is
    `max_shift_ms` late. All None where the face is missing in 25 % of the frames or more, nothing moves, or
    the clip is under 1 s. `scores`: a configured model's own scores by signal name.
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

    `lip_gap` float [F] at 16 fps, NaN where the face is not seen; `pcm` int16 at 16 kHz with `max_shift_ms`
    of audio before the first frame and after the last.
    """
    curve = sync_curve(lip_gap, pcm, config)
    return LipSync() if curve is None else offset_from_curve(curve, len(lip_gap) / VIDEO_FPS)


def sync_clips(curves: Sequence[tuple[np.ndarray | None, float]]) -> list[LipSync]:
    """Sync of several clips of one source, face and voice from their (curve, length in seconds).

    For a clip whose own offset is unknown, the mean curve of the other clips gives the expected offset:
    unrelated audio has a peak there less often than anywhere. A clip with a known offset of its own, and one
    without a peak at the expected offset (dubbed, another take), keeps its own result.
    """
    results = []
    for (curve, length_s), expected in zip(curves, expected_offsets(curves), strict=True):
        if curve is None:
            results.append(LipSync())
            continue
        alone = offset_from_curve(curve, length_s)
        results.append(
            offset_near(curve, length_s, expected, alone) if expected.known and not alone.known else alone
        )
    return results


def expected_offsets(curves: Sequence[tuple[np.ndarray | None, float]]) -> list[LipSync]:
    """For each clip the offset in the mean curve of the others, weighted by length; None where no other has a
    curve.
    """
    weighted = [
        (0.0, 0.0) if curve is None else (curve * np.float64(length_s), length_s)
        for curve, length_s in curves
    ]
    total, total_s = sum(product for product, _ in weighted), sum(length_s for _, length_s in weighted)
    results = []
    for product, length_s in weighted:
        others_s = total_s - length_s
        mean = (total - product) / others_s if others_s > 1e-6 else None
        results.append(
            LipSync() if mean is None else offset_from_curve(np.asarray(mean, np.float32), others_s)
        )
    return results


def sync_curve(lip_gap: np.ndarray, pcm: np.ndarray, config: SyncConfig) -> np.ndarray | None:
    """The correlation at every shift; None where it cannot be measured. Arguments and result as in
    `LipSync`.
    """
    seen = np.isfinite(lip_gap)
    if len(lip_gap) < VIDEO_FPS or seen.mean() < 0.75:
        return None
    reach = config.max_shift_ms * GRID_HZ // 1000
    return correlation_curve(lip_change(lip_gap), audio_change(pcm, config), reach)


def offset_from_curve(curve: np.ndarray, length_s: float) -> LipSync:
    """Offset and confidence from the highest point of the curve of a clip of `length_s` seconds."""
    best = int(curve.argmax())
    offset = _offset_ms(curve, best)
    if best in (0, len(curve) - 1):
        return LipSync(offset, 0.0, curve)  # still rising at the end of the range: no peak
    confidence = _confidence(curve[best], length_s, UNRELATED)
    elsewhere = np.concatenate([curve[: max(0, best - PEAK_WIDTH)], curve[best + PEAK_WIDTH + 1 :]])
    ambiguous = elsewhere.max(initial=0.0) > RIVAL * curve[best]
    return LipSync(offset, min(confidence, KNOWN - 0.01) if ambiguous else confidence, curve)


def offset_near(curve: np.ndarray, length_s: float, expected: LipSync, alone: LipSync) -> LipSync:
    """Offset and confidence from the highest point within `NEAR_MS` of `expected`; `alone` where there is no
    peak.
    """
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


def correlation_curve(lips: np.ndarray, audio: np.ndarray, reach: int) -> np.ndarray | None:
    """Pearson correlation at every shift [-reach, reach]: float32 [2 reach + 1]; index 2 reach is audio
    `reach` late.

    `lips` [n] against `audio` [n + 2 reach], which starts `reach` earlier. None where either is constant.
    """
    count = min(len(lips), len(audio) - 2 * reach)
    if count < GRID_HZ or lips[:count].std() < 1e-9:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(audio[: count + 2 * reach], count)
    spread = windows.std(axis=1)
    if spread.max() < 1e-9:
        return None
    centred = lips[:count] - lips[:count].mean()
    curve = (windows @ centred) / (count * lips[:count].std() * np.maximum(spread, spread.max() * 1e-3))
    return curve.astype(np.float32)


def lip_change(lip_gap: np.ndarray) -> np.ndarray:
    """Derivative of the lip opening per 10 ms on the 100 Hz grid, from frame 0 to the end of the last frame.

    `lip_gap` float [F] at 16 fps; NaN is interpolated.
    """
    from scipy.interpolate import CubicSpline

    seen = np.isfinite(lip_gap)
    times = np.arange(len(lip_gap)) / VIDEO_FPS
    opening = np.interp(times, times[seen], lip_gap[seen])
    grid = np.arange(round(len(lip_gap) / VIDEO_FPS * GRID_HZ)) / GRID_HZ
    return smooth(np.gradient(CubicSpline(times, opening)(np.minimum(grid, times[-1]))))


def audio_change(pcm: np.ndarray, config: SyncConfig) -> np.ndarray:
    """Derivative of the loudness on the 100 Hz grid, octaves of the speech band added with equal weight:
    float [n / 160].
    """
    loudness = octave_loudness(pcm, config)
    total = np.zeros(len(loudness))
    if len(total) < GRID_HZ // 2:
        return total  # too short to be smoothed
    for octave in loudness.T:
        change = smooth(np.gradient(octave))
        total += change / max(float(change.std()), 1e-12)
    return total


def octave_loudness(pcm: np.ndarray, config: SyncConfig) -> np.ndarray:
    """Loudness of each octave from `low_hz` to `high_hz` at 0, 10, 20 ... ms: float [n / 160, octaves]."""
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
    """Zero-phase low-pass filter of a signal on the 100 Hz grid."""
    from scipy.signal import butter, sosfiltfilt

    smoothed: np.ndarray = sosfiltfilt(butter(2, cutoff_hz, "lowpass", fs=GRID_HZ, output="sos"), signal)
    return smoothed


def _confidence(peak: float, length_s: float, unrelated: float) -> float:
    return float(np.clip(KNOWN * peak * np.sqrt(length_s) / unrelated, 0.0, 1.0))


def _offset_ms(curve: np.ndarray, best: int) -> float:
    return float((best - len(curve) // 2 + _vertex(curve, best)) * 1000 / GRID_HZ)


def _vertex(curve: np.ndarray, best: int) -> float:
    """Vertex of the parabola through the peak and its neighbours, in steps from `best`."""
    if not 0 < best < len(curve) - 1:
        return 0.0
    before, peak, after = (float(value) for value in curve[best - 1 : best + 2])
    bend = before - 2 * peak + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0
