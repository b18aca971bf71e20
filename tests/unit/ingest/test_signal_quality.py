"""Each measurement of sound and picture moves the right way under a planted degradation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.measure import covered
from ingest.quality import SILENCE_DB, clipped_ratio, level_db, snr_db, thumbnail
from ingest.records import Span


def speech_like(seconds: float = 3.0) -> np.ndarray:
    """Noise in bursts with pauses between them, float in -0.3..0.3."""
    times = np.arange(round(seconds * 16_000)) / 16_000
    return 0.1 * np.random.default_rng(0).standard_normal(len(times)) * (np.sin(2 * np.pi * 2 * times) > -0.2)


def as_pcm(sound: np.ndarray) -> np.ndarray:
    return (sound * 32768).clip(-32768, 32767).astype(np.int16)


def test_a_full_scale_square_wave_is_at_0_db_and_a_tenth_at_minus_20() -> None:
    square = np.where(np.arange(16_000) % 100 < 50, 1.0, -1.0)
    assert level_db(as_pcm(square)) == pytest.approx(0, abs=0.01)
    assert level_db(as_pcm(square / 10)) == pytest.approx(-20, abs=0.01)
    assert level_db(np.zeros(100, np.int16)) == SILENCE_DB
    assert level_db(np.zeros(0, np.int16)) is None


def test_snr_falls_as_noise_rises() -> None:
    noise = np.random.default_rng(1).standard_normal(48_000)
    found = [snr_db(as_pcm(speech_like() + level * noise)) for level in (0.0003, 0.003, 0.01, 0.03, 0.1)]
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]
    assert found[2] == pytest.approx(20, abs=3)  # 0.1 against 0.01


def test_clipping_rises_with_the_gain_and_a_lone_peak_is_no_clipping() -> None:
    tone = np.sin(np.arange(16_000) / 20)
    found = [clipped_ratio(as_pcm(tone * gain)) for gain in (0.9, 1.1, 1.5, 3.0)]
    assert found[0] == 0
    assert found == sorted(found)  # type: ignore[type-var]
    lone = np.zeros(1000, np.int16)
    lone[500] = 32767
    assert clipped_ratio(lone) == 0


def test_a_thumbnail_keeps_the_mean_brightness() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (360, 640, 1), np.uint8).repeat(3, axis=2)
    assert thumbnail(picture).shape == (36, 64)
    assert thumbnail(picture).mean() == pytest.approx(picture.mean(), abs=1)


spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda p: Span(min(p), max(p))), max_size=8)


@given(spans, st.integers(0, 30), st.integers(0, 30))
def test_covered_time_equals_counting_seconds(turns: list[Span], start: int, length: int) -> None:
    seconds = sum(any(t.start_s <= s and s + 1 <= t.end_s for t in turns) for s in range(start, start + length))
    assert covered(turns, start, start + length) == seconds
