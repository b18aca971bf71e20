"""Splitting a long audio track at pauses into chunks that cover it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.ingest.io.audio import (
    CELL_S,
    PAUSES_S,
    SEARCH_SHARE,
    AudioFile,
    mean_power,
    quietest_time,
    split_at_pauses,
)
from uniavgen.ingest.records import AUDIO_RATE


def save_audio(folder: Path, pcm: np.ndarray) -> AudioFile:
    path = folder / "audio.s16"
    pcm.astype(np.int16).tofile(path)
    return AudioFile(str(path), len(pcm))


def with_words(seconds: float, words: list[tuple[float, float]]) -> np.ndarray:
    """Room noise with loud words."""
    pcm = np.random.default_rng(0).normal(0, 20, round(seconds * AUDIO_RATE))
    for start, end in words:
        first, last = round(start * AUDIO_RATE), round(end * AUDIO_RATE)
        pcm[first:last] += 3000 * np.sin(np.arange(last - first) / 5)
    return pcm


word_lists = st.lists(st.tuples(st.floats(0.1, 1.5), st.floats(0.15, 1.2)), min_size=30, max_size=50)
"""(length of a word, pause after it)"""


@given(word_lists)
@settings(deadline=None, max_examples=8)
def test_no_split_inside_a_word_and_no_chunk_too_long(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[float, float]]
) -> None:
    edges = np.cumsum([0.5, *itertools.chain(*lengths)])
    words = list(zip(edges[:-1:2], edges[1::2], strict=True))
    audio = save_audio(tmp_path_factory.mktemp("audio"), with_words(edges[-1], words))
    chunks = split_at_pauses(audio, 12.0)
    assert [chunks[0].start_s, chunks[-1].end_s] == [0.0, audio.duration_s]
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(chunks))
    assert all(0 < chunk.end_s - chunk.start_s <= 12.0 for chunk in chunks)
    assert all(chunk.end_s - chunk.start_s >= 12.0 * (1 - SEARCH_SHARE) for chunk in chunks[:-1])
    for chunk in chunks[:-1]:
        assert not [w for w in words if w[0] + CELL_S < chunk.end_s < w[1] - CELL_S]


def test_short_track_is_one_chunk(tmp_path: Path) -> None:
    (chunk,) = split_at_pauses(save_audio(tmp_path, np.zeros(5 * AUDIO_RATE)), 12.0)
    assert (chunk.start_s, chunk.end_s) == (0.0, 5.0)


def test_real_pause_is_preferred_to_soft_syllable(tmp_path: Path) -> None:
    pcm = with_words(10.0, [(0, 4.0), (4.1, 7.0), (7.0 + PAUSES_S[0] + 0.1, 10)])
    pcm[round(4.0 * AUDIO_RATE) : round(4.1 * AUDIO_RATE)] = 0  # quieter than the pause, and shorter
    assert 7.0 < quietest_time(save_audio(tmp_path, pcm), 0.0, 10.0) < 7.0 + PAUSES_S[0] + 0.1


def test_speech_without_pause_is_split_at_its_quietest_time(tmp_path: Path) -> None:
    pcm = with_words(10.0, [(0, 10)])
    pcm[round(6.0 * AUDIO_RATE) : round(6.12 * AUDIO_RATE)] *= 0.01
    assert 6.0 < quietest_time(save_audio(tmp_path, pcm), 0.0, 10.0) < 6.12


def test_mean_power_of_each_cell_across_block_borders(tmp_path: Path) -> None:
    pcm = np.random.default_rng(1).integers(-20000, 20000, 130 * AUDIO_RATE)
    power = mean_power(save_audio(tmp_path, pcm), 3.0, 129.0)
    cells = pcm[3 * AUDIO_RATE : 129 * AUDIO_RATE].reshape(-1, 320) / 32768
    np.testing.assert_allclose(power, np.square(cells).mean(axis=1), rtol=1e-4)


def test_digital_silence_is_split(tmp_path: Path) -> None:
    chunks = split_at_pauses(save_audio(tmp_path, np.zeros(40 * AUDIO_RATE)), 12.0)
    assert all(9.0 <= chunk.end_s - chunk.start_s <= 12.0 for chunk in chunks[:-1])
