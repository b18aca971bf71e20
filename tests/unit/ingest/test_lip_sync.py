"""Planted shifts come back with the right sign; strangers do not correlate."""

import numpy as np
import pytest

from ingest.config import SyncConfig
from ingest.records import AUDIO_RATE
from ingest.sync import correlation_curve, lip_sync

CONFIG = SyncConfig()
MARGIN = CONFIG.max_shift_ms / 1000


def syllables(seed: int, seconds: float) -> np.ndarray:
    """Opening 0..1 at 1000 Hz: syllables at irregular times."""
    rng = np.random.default_rng(seed)
    opening, at = np.zeros(round(seconds * 1000)), 0
    while at < len(opening):
        length = int(rng.integers(100, 300))
        bump = rng.uniform(0.3, 1) * np.hanning(length)
        opening[at : at + length] += bump[: len(opening) - at]
        at += int(rng.integers(150, 450))
    return opening


def clip(seed: int, late_ms: float, seconds: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """(lip gap at 16 fps, sound with margins): noise whose level follows the mouth, `late_ms` after it."""
    opening = syllables(seed, seconds + 4)
    lips = opening[2000 + np.round(np.arange(round(seconds * 16)) * 62.5).astype(int)]
    times = np.arange(round((seconds + 2 * MARGIN) * AUDIO_RATE)) / AUDIO_RATE + 2 - MARGIN - late_ms / 1000
    level = np.interp(times * 1000, np.arange(len(opening)), opening)
    noise = np.random.default_rng(seed + 1).standard_normal(len(level))
    return lips, (level * noise * 6000).clip(-32768, 32767).astype(np.int16)


@pytest.mark.parametrize("late_ms", [-400, -120, 0, 80, 250, 400])
def test_a_planted_shift_is_recovered_within_40_ms_and_late_sound_is_positive(late_ms: float) -> None:
    found = [lip_sync(*clip(seed, late_ms), CONFIG) for seed in range(10)]
    errors = [abs(offset - late_ms) for offset, _ in found if offset is not None]
    assert np.sum(np.array(errors) <= 40) >= 9


def test_confidence_tells_own_sound_from_a_stranger_s() -> None:
    own = [lip_sync(*clip(seed, 0), CONFIG)[1] for seed in range(12)]
    strange = [lip_sync(clip(seed, 0)[0], clip(seed + 100, 0)[1], CONFIG)[1] for seed in range(12)]
    wins = [a > b for a in own for b in strange if a is not None and b is not None]
    assert np.mean(wins) >= 0.95


def test_a_face_that_is_hardly_seen_gives_no_offset() -> None:
    lips, pcm = clip(0, 0)
    lips[: len(lips) // 2] = np.nan
    assert lip_sync(lips, pcm, CONFIG) == (None, None)


@pytest.mark.parametrize("still", ["lips", "sound"])
def test_what_does_not_move_gives_no_offset(still: str) -> None:
    lips, pcm = clip(0, 0)
    lips, pcm = (np.full_like(lips, 0.1), pcm) if still == "lips" else (lips, np.zeros_like(pcm))
    assert lip_sync(lips, pcm, CONFIG) == (None, None)


def test_the_curve_equals_a_correlation_written_out() -> None:
    rng = np.random.default_rng(0)
    lips, sound = rng.standard_normal(300), rng.standard_normal(340)
    curve = correlation_curve(lips, sound, 20)
    assert curve is not None
    assert curve == pytest.approx([np.corrcoef(lips, sound[k : k + 300])[0, 1] for k in range(41)])
