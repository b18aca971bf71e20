"""Is the sound in step with the lips? A correlation that needs no trained network, and that knows when it does not know.

Goes in: the opening of the lips on the 16 fps grid and the sound. Comes out: `sync_offset_ms`, positive when the sound is
late (what SyncNet calls the audio lagging), and `sync_confidence` in 0..1: at 0.5 the correlation is as high as that of
unrelated sound in one clip of twenty, below it the offset is unknown, whatever it says. Lips and speech energy share their
*changes*, not their levels: both are differentiated on a 100 Hz grid and compared at every shift (levels look fine on
animated faces and are near chance on real ones).
"""

from __future__ import annotations

import numpy as np

from ingest.config import SyncConfig
from ingest.records import AUDIO_RATE
from shards.clock import VIDEO_FPS

GRID_HZ = 100
LIP_HZ = 8.0
"""Both signals are smoothed to this: lips do not open and close faster, and pictures at 16 fps do not show more."""

UNRELATED = 0.79
"""Peak of the curve that unrelated sound stays below in 95 of 100 clips of one second; it shrinks with the square root of
the length. Measured on five real speakers, each against the others' sound (0.35 at 5 s, 0.28 at 8 s)."""

PEAK_WIDTH, RIVAL = 15, 0.85
"""A second peak further than 150 ms off and at least this high beside the first makes the offset unknown (our choice)."""


def lip_sync(lip_gap: np.ndarray, pcm: np.ndarray, config: SyncConfig) -> tuple[float | None, float | None]:
    """Offset in ms and confidence of a clip.

    `lip_gap` float [F] at 16 fps, NaN where the face is not seen; `pcm` int16 with `max_shift_ms` of sound before the
    first frame and after the last. (None, None) where a quarter of the frames or more lack the face.
    """
    seen = np.isfinite(lip_gap)
    if len(lip_gap) < VIDEO_FPS or seen.mean() < 0.75:
        return None, None
    lips = _lip_change(lip_gap, seen)
    sound = _sound_change(pcm, config)
    reach = config.max_shift_ms * GRID_HZ // 1000
    curve = correlation_curve(lips, sound, reach)
    if curve is None:
        return None, None
    best = int(curve.argmax())
    offset = (best - reach + _vertex(curve, best)) * 1000 / GRID_HZ
    if best in (0, 2 * reach):
        return offset, 0.0  # still rising at the end of the range: no peak was found
    confidence = float(np.clip(0.5 * curve[best] * np.sqrt(len(lips) / GRID_HZ) / UNRELATED, 0.0, 1.0))
    elsewhere = np.concatenate([curve[: max(0, best - PEAK_WIDTH)], curve[best + PEAK_WIDTH + 1 :]])
    ambiguous = elsewhere.max(initial=0.0) > RIVAL * curve[best]
    return offset, min(confidence, 0.49) if ambiguous else confidence


def correlation_curve(lips: np.ndarray, sound: np.ndarray, reach: int) -> np.ndarray | None:
    """Pearson correlation at every shift [-reach, reach]: float [2 reach + 1], index 2 reach is the sound `reach` late.

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
    curve: np.ndarray = (windows @ centred) / (count * lips[:count].std() * np.maximum(spread, spread.max() * 1e-3))
    return curve


def _lip_change(lip_gap: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Derivative of the lip opening on the 100 Hz grid, from frame 0 to the end of the last frame."""
    from scipy.interpolate import CubicSpline

    at = np.arange(len(lip_gap)) / VIDEO_FPS
    opening = np.interp(at, at[seen], lip_gap[seen])
    grid = np.arange(round(len(lip_gap) / VIDEO_FPS * GRID_HZ)) / GRID_HZ
    return _smooth(np.gradient(CubicSpline(at, opening)(np.minimum(grid, at[-1]))))


def _sound_change(pcm: np.ndarray, config: SyncConfig) -> np.ndarray:
    """Derivative of the speech band's RMS envelope on the 100 Hz grid."""
    from scipy.signal import butter, sosfiltfilt

    band = butter(4, [config.low_hz, config.high_hz], "bandpass", fs=AUDIO_RATE, output="sos")
    speech = sosfiltfilt(band, pcm.astype(np.float64) / 32768)
    hop = AUDIO_RATE // GRID_HZ
    energy = np.square(speech[: len(speech) // hop * hop].reshape(-1, hop)).mean(axis=1)
    # a cell of 10 ms is centred 5 ms after its start: half a cell, moved back by averaging with its neighbour
    level = np.sqrt(0.5 * (energy + np.concatenate([energy[:1], energy[:-1]])))
    return _smooth(np.gradient(level))


def _smooth(signal: np.ndarray) -> np.ndarray:
    from scipy.signal import butter, sosfiltfilt

    smoothed: np.ndarray = sosfiltfilt(butter(2, LIP_HZ, "lowpass", fs=GRID_HZ, output="sos"), signal)
    return smoothed


def _vertex(curve: np.ndarray, best: int) -> float:
    """Where a parabola through the peak and its neighbours is highest, in steps from `best`."""
    if not 0 < best < len(curve) - 1:
        return 0.0
    before, peak, after = curve[best - 1 : best + 2]
    bend = before - 2 * peak + after
    return float(0.5 * (before - after) / bend) if bend < 0 else 0.0
