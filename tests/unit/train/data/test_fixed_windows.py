"""Fixed windows of cached latents: deterministic, evenly spread over a clip and over many clips."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.train.data.config import CacheConfig, DataConfig
from uniavgen.train.data.crops import fixed_windows


def caching(windows: int) -> DataConfig:
    return DataConfig(frames=9, height=64, width=64, reference_frames=5, cached=CacheConfig(windows=windows))


@given(
    total=st.integers(9, 200),
    windows=st.integers(1, 12),
    key=st.text("0123456789abcdef", min_size=4, max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_fixed_windows_are_even_and_deterministic(total: int, windows: int, key: str) -> None:
    config = caching(windows)
    sample = clip(key, total)
    windows_of_clip = fixed_windows(sample, config)
    assert windows_of_clip == fixed_windows(sample, config)
    starts = [window.start for window in windows_of_clip]
    room = total - config.frames + 1
    assert starts == sorted(set(starts))
    assert starts[0] >= 0
    assert starts[-1] < room
    assert len(starts) == min(windows, room)
    even = room / windows
    assert all(abs(b - a - max(even, 1)) <= 1 for a, b in itertools.pairwise(starts))


def test_fixed_window_starts_are_uniform_over_many_clips() -> None:
    config, room = caching(3), 20
    starts = [
        w.start
        for i in range(600)
        for w in fixed_windows(clip(f"{i:020x}", room + config.frames - 1), config)
    ]
    counts = np.bincount(starts, minlength=room)
    assert len(counts) == room
    assert abs(counts - 600 * 3 / room).max() < 5 * np.sqrt(600 * 3 / room)


def clip(key: str, frames: int) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(key=key, face=SimpleNamespace(score=np.ones(frames, np.float32)))
