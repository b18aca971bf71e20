"""A long source is parted in pauses, into pieces that cover it, whatever it holds."""

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


def saved(folder: Path, pcm: np.ndarray) -> AudioFile:
    path = folder / "sound.s16"
    pcm.astype(np.int16).tofile(path)
    return AudioFile(str(path), len(pcm))


def with_words(seconds: float, words: list[tuple[float, float]]) -> np.ndarray:
    """A quiet room with loud words in it."""
    pcm = np.random.default_rng(0).normal(0, 20, round(seconds * AUDIO_RATE))
    for start, end in words:
        first, last = round(start * AUDIO_RATE), round(end * AUDIO_RATE)
        pcm[first:last] += 3000 * np.sin(np.arange(last - first) / 5)
    return pcm


word_lists = st.lists(st.tuples(st.floats(0.1, 1.5), st.floats(0.15, 1.2)), min_size=30, max_size=50)
"""(length of a word, pause after it)"""


@given(word_lists)
@settings(deadline=None, max_examples=8)
def test_no_cut_goes_through_a_word_and_no_piece_is_too_long(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[float, float]]
) -> None:
    edges = np.cumsum([0.5, *itertools.chain(*lengths)])
    words = list(zip(edges[:-1:2], edges[1::2], strict=True))
    sound = saved(tmp_path_factory.mktemp("sound"), with_words(edges[-1], words))
    pieces = split_at_pauses(sound, 12.0)
    assert [pieces[0].start_s, pieces[-1].end_s] == [0.0, sound.duration_s]
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(pieces))
    assert all(0 < piece.end_s - piece.start_s <= 12.0 for piece in pieces)
    assert all(piece.end_s - piece.start_s >= 12.0 * (1 - SEARCH_SHARE) for piece in pieces[:-1])
    for piece in pieces[:-1]:
        assert not [w for w in words if w[0] + CELL_S < piece.end_s < w[1] - CELL_S]


def test_a_short_source_is_one_piece(tmp_path: Path) -> None:
    (piece,) = split_at_pauses(saved(tmp_path, np.zeros(5 * AUDIO_RATE)), 12.0)
    assert (piece.start_s, piece.end_s) == (0.0, 5.0)


def test_a_real_pause_is_preferred_to_a_soft_syllable(tmp_path: Path) -> None:
    pcm = with_words(10.0, [(0, 4.0), (4.1, 7.0), (7.0 + PAUSES_S[0] + 0.1, 10)])
    pcm[round(4.0 * AUDIO_RATE) : round(4.1 * AUDIO_RATE)] = 0  # quieter than the pause, and shorter
    assert 7.0 < quietest_time(saved(tmp_path, pcm), 0.0, 10.0) < 7.0 + PAUSES_S[0] + 0.1


def test_speech_without_a_pause_is_parted_at_its_quietest_moment(tmp_path: Path) -> None:
    pcm = with_words(10.0, [(0, 10)])
    pcm[round(6.0 * AUDIO_RATE) : round(6.12 * AUDIO_RATE)] *= 0.01
    assert 6.0 < quietest_time(saved(tmp_path, pcm), 0.0, 10.0) < 6.12


def test_the_envelope_is_the_mean_power_of_each_cell_across_block_borders(tmp_path: Path) -> None:
    pcm = np.random.default_rng(1).integers(-20000, 20000, 130 * AUDIO_RATE)
    found = mean_power(saved(tmp_path, pcm), 3.0, 129.0)
    cells = pcm[3 * AUDIO_RATE : 129 * AUDIO_RATE].reshape(-1, 320) / 32768
    np.testing.assert_allclose(found, np.square(cells).mean(axis=1), rtol=1e-4)


def test_digital_silence_is_parted_too(tmp_path: Path) -> None:
    pieces = split_at_pauses(saved(tmp_path, np.zeros(40 * AUDIO_RATE)), 12.0)
    assert all(9.0 <= piece.end_s - piece.start_s <= 12.0 for piece in pieces[:-1])
