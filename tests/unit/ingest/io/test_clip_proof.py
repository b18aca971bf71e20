"""Comparison of a clip with its analysis: lags, levels and movements that are made are measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.ingest.io.clip_proof import (
    CELLS_ACROSS,
    CELLS_DOWN,
    ClipPictures,
    compare_pictures,
    compare_sound,
)

RATE = 8000
WHOLE_GRID = slice(0, CELLS_DOWN), slice(0, CELLS_ACROSS)


def syllables(seconds: float, seed: int) -> np.ndarray:
    """Noise in syllables of 0.2 s with pauses: float32 [n]."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.2, round(seconds * RATE))
    loud = np.repeat(rng.random(round(seconds * 5) + 1) > 0.4, RATE // 5)[: len(noise)]
    return (noise * np.where(loud, 1.0, 0.001)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    lag=st.integers(-RATE + 100, RATE - 100),
    gain_db=st.floats(-20, 12),
    noise=st.sampled_from((0.0, 0.01)),
    seed=st.integers(0, 50),
)
def test_lag_and_level_are_measured(lag: int, gain_db: float, noise: float, seed: int) -> None:
    source = syllables(6.0, seed)
    clip = source[RATE - lag : RATE - lag + 3 * RATE] * np.float32(10 ** (gain_db / 20))
    clip = clip + np.random.default_rng(1).normal(0, noise * clip.std(), len(clip)).astype(np.float32)
    proof = compare_sound(clip, source[: 5 * RATE])
    assert proof.lag_ms == pytest.approx(lag / RATE * 1000, abs=0.2)
    if abs(lag) < 100:
        assert proof.level_db == pytest.approx(gain_db, abs=1.0)
    if abs(lag) > 240:
        assert "lag" in proof.fault
    elif abs(lag) < 120 and abs(gain_db) < 2:
        assert not proof.fault


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 50))
def test_other_speech_and_silence_differ(seed: int) -> None:
    source, other = syllables(5.0, seed), syllables(3.0, seed + 1000)
    assert compare_sound(other, source).fault
    assert compare_sound(np.zeros(3 * RATE, np.float32), source).fault
    assert compare_sound(source[RATE : 4 * RATE], np.zeros(5 * RATE, np.float32)).fault
    assert not compare_sound(np.zeros(3 * RATE, np.float32), np.zeros(5 * RATE, np.float32)).fault


def moving(frames: int, seed: int) -> np.ndarray:
    """Cells that change smoothly: uint8 [frames, 9, 16]."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 2.0, (frames, CELLS_DOWN, CELLS_ACROSS)).cumsum(axis=0)
    return np.asarray(np.clip(120 + steps - steps.mean(axis=0), 0, 255), np.uint8)


@settings(max_examples=30, deadline=None)
@given(shift=st.integers(-20, 20), seed=st.integers(0, 50))
def test_pictures_of_another_time_differ(shift: int, seed: int) -> None:
    analysed, index = moving(120, seed), np.arange(0, 60, 3)
    cells = analysed[30 + shift + index].astype(np.float32)
    proof = compare_pictures(ClipPictures(index, cells, *WHOLE_GRID), analysed, 30)
    if abs(shift) <= 1:  # a frame between two places of the grid
        assert not proof.fault
    elif abs(shift) >= 15:
        assert proof.fault


def test_frozen_pictures_differ_and_still_ones_do_not() -> None:
    analysed, index = moving(120, 1), np.arange(0, 60, 3)
    frozen = np.repeat(analysed[30:31].astype(np.float32), len(index), axis=0)
    assert compare_pictures(ClipPictures(index, frozen, *WHOLE_GRID), analysed, 30).fault
    still = np.repeat(analysed[30:31], 120, axis=0)
    proof = compare_pictures(ClipPictures(index, frozen, *WHOLE_GRID), still, 30)
    assert (proof.fault, proof.motion_error) == ("", None)
    assert compare_pictures(ClipPictures(index, frozen + 10, *WHOLE_GRID), still, 30).fault
