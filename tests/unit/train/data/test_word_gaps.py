"""Cuts of utterances at pauses: made speech whose words and pauses are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.shards.config import EmiliaConfig
from uniavgen.shards.emilia.sample import Utterance, UtteranceMeta
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import crop_utterance
from uniavgen.train.data.word_gaps import Cut, choose_part, cuts_at_gaps, find_pauses, silent_frames

RATE = 24_000
SYLLABLE_S = 0.05
"""Seconds of a letter."""
GAPS = EmiliaConfig(word_gaps=True, padding="ignored")


def speak(
    words: list[str], pauses: list[float], seed: int = 0
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Noise of 50 ms a letter for each word, then its pause; quiet noise everywhere. Audio and word times."""
    random = np.random.default_rng(seed)
    pieces, times, now = [], [], 0.0
    for word, pause in zip(words, pauses, strict=True):
        length = len(word) * SYLLABLE_S
        pieces += [0.2 * random.standard_normal(round(length * RATE)), np.zeros(round(pause * RATE))]
        times.append((now, now + length))
        now += length + pause
    audio = np.concatenate(pieces)
    return (audio + 1e-4 * random.standard_normal(len(audio))).astype(np.float32), times


def utterance(text: str, waveform: np.ndarray) -> Utterance:
    meta = UtteranceMeta(text=text, duration=len(waveform) / RATE, speaker="a", language="en", dnsmos=3.5)
    return Utterance("a", meta, waveform)


WORDS = ["this", "sentence", "has", "pauses,", "and", "more", "of", "them.", "The", "last", "part", "ends"]
PAUSES = [0, 0, 0, 0.4, 0, 0, 0, 0.5, 0, 0, 0, 0]


def test_cuts_lie_in_the_pauses_between_the_right_words() -> None:
    waveform, times = speak(WORDS, PAUSES)
    cuts = cuts_at_gaps(" ".join(WORDS), waveform)
    assert [cut.words for cut in cuts] == [0, 4, 8, 12]
    for cut in cuts[1:3]:
        assert times[cut.words - 1][1] < cut.seconds < times[cut.words][0]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=20),
    pause_every=st.integers(1, 5),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_cut_falls_into_a_word(lengths: list[int], pause_every: int, seed: int) -> None:
    words = ["x" * length for length in lengths]
    pauses = [0.3 if (number + 1) % pause_every == 0 else 0.0 for number in range(len(words))]
    waveform, times = speak(words, pauses, seed)
    cuts = cuts_at_gaps(" ".join(words), waveform)
    assert [cut.seconds for cut in cuts] == sorted({cut.seconds for cut in cuts})
    for cut in cuts[1:-1]:
        assert times[cut.words - 1][1] <= cut.seconds <= times[cut.words][0] + 0.31
        assert not any(start + 0.011 < cut.seconds < end - 0.011 for start, end in times)


def test_crop_of_a_long_utterance_has_whole_words_their_text_and_its_length() -> None:
    waveform, times = speak(WORDS, PAUSES)
    config = DataConfig(frames=25, reference_frames=5)  # 1.5625 s
    seen = set()
    for seed in range(12):
        crop = crop_utterance(
            utterance(" ".join(WORDS), waveform), None, config, np.random.default_rng(seed), GAPS
        )
        words = crop.speech_text.split()
        assert crop.audio_samples is not None
        first = next(i for i in range(len(WORDS)) if WORDS[i : i + len(words)] == words)
        seen.add(first)
        start = crop.start / 16
        assert start - 0.07 <= times[first][0]
        assert times[first + len(words) - 1][1] <= start + 0.07 + crop.audio_samples / RATE
        assert not crop.waveform[crop.audio_samples :].any()
        assert np.abs(crop.waveform[: crop.audio_samples]).max() > 0.1
    assert len(seen) > 1


def test_utterance_without_pauses_is_cropped_anywhere() -> None:
    waveform, _ = speak(["word"] * 20, [0.0] * 20)
    config = DataConfig(frames=17, reference_frames=5)
    crop = crop_utterance(utterance("word " * 20, waveform), None, config, np.random.default_rng(0), GAPS)
    assert crop.audio_samples == 17 * 1500
    assert crop.speech_text.split() == ["word"] * len(crop.speech_text.split())


def test_short_utterance_has_its_own_length_only_where_padding_is_ignored() -> None:
    waveform, _ = speak(["hello"], [0.0])
    config = DataConfig(frames=17, reference_frames=5)
    for emilia, expected in ((GAPS, len(waveform)), (EmiliaConfig(), None), (None, None)):
        crop = crop_utterance(utterance("hello", waveform), None, config, np.random.default_rng(0), emilia)
        assert crop.audio_samples == expected
        assert crop.speech_text == "hello"


@pytest.mark.parametrize(
    "waveform", [np.zeros(0, np.float32), np.zeros(100, np.float32), np.zeros(9600, np.float32)]
)
def test_silence_and_nothing_have_no_cuts_inside(waveform: np.ndarray) -> None:
    assert len(cuts_at_gaps("two words", waveform)) == 2
    assert find_pauses(silent_frames(waveform)) == []


def test_chosen_part_fits_the_window_and_is_as_long_as_its_start_allows() -> None:
    cuts = [Cut(0, 0), Cut(2, 3), Cut(4, 6), Cut(9, 10)]
    parts = {choose_part(cuts, 5.0, np.random.default_rng(seed)) for seed in range(30)}
    assert parts == {(cuts[0], cuts[2]), (cuts[2], cuts[3])}
    assert choose_part([Cut(0, 0), Cut(9, 5)], 5.0, np.random.default_rng(0)) is None
