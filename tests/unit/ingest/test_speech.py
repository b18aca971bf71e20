"""Who speaks and what is said: on labelled recordings, and on speech cut and joined by hand."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.alignment import fill_gaps, spelled_pronunciation
from ingest.config import DiarizationConfig, TranscriptionConfig
from ingest.records import AUDIO_RATE, Span, SpokenWord
from ingest.transcription import compression_ratio, speech_chunks, with_speaker

OPENING = "it was the best of times it was the worst of times it was the age of wisdom it was the age of foolishness"


@pytest.mark.slow
def test_diarization_error_on_a_labelled_dialogue_is_at_most_a_tenth() -> None:
    import pyannote.audio
    import soundfile
    import torch
    from pyannote.core import Annotation, Segment
    from pyannote.database.util import load_rttm
    from pyannote.metrics.diarization import DiarizationErrorRate

    from ingest.diarization import VOICE_SIZE, Diarizer

    torch.set_num_threads(1)
    sample = Path(pyannote.audio.__file__).parent / "sample" / "sample"
    pcm, rate = soundfile.read(f"{sample}.wav", dtype="int16")
    assert rate == AUDIO_RATE
    diarizer = Diarizer(DiarizationConfig())
    turns, voices = diarizer.diarize(pcm)
    found = Annotation()
    for index, turn in enumerate(turns):
        found[Segment(turn.start_s, turn.end_s), index] = turn.label
    (truth,) = load_rttm(f"{sample}.rttm").values()
    assert DiarizationErrorRate()(truth, found) <= 0.10
    assert set(voices) == {"SPEAKER_00", "SPEAKER_01"}
    assert all(len(voice) == VOICE_SIZE for voice in voices.values())
    assert all(0 <= turn.start_s < turn.end_s <= len(pcm) / AUDIO_RATE for turn in turns)
    assert diarizer.diarize(np.zeros(3 * AUDIO_RATE, np.int16)) == ([], {})
    assert diarizer.diarize(np.zeros(0, np.int16)) == ([], {})


@pytest.mark.slow
def test_a_known_reading_is_written_down_with_times_that_lie_on_its_sound() -> None:
    import re

    import jiwer
    import soundfile
    from scipy.signal import resample_poly

    from ingest.transcription import Transcriber
    from shards.weights import resolve

    pcm, rate = soundfile.read(resolve("two-cities") / "two_cities.wav", dtype="int16")
    pcm = resample_poly(pcm[: 10 * rate].astype(float), AUDIO_RATE, rate).astype(np.int16)
    transcriber = Transcriber(TranscriptionConfig())
    (passage,), words = transcriber.transcribe(pcm, [Span(0.0, 10.0, "SPEAKER_00")])
    heard = [re.sub(r"[^a-z']", "", word.text.lower()) for word in words][: len(OPENING.split())]
    assert jiwer.wer(OPENING[: len(" ".join(heard))], " ".join(heard)[: len(OPENING)]) <= 0.06
    assert (passage.language, passage.language_probability > 0.9) == ("en", True)
    assert passage.no_speech_probability < 0.3
    assert all(a.end_s <= b.start_s + 1e-6 for a, b in itertools.pairwise(words))
    assert all(0 < word.score <= 1 and word.speaker == "SPEAKER_00" for word in words)
    loud = np.abs(pcm.astype(float))
    inside = np.concatenate([loud[round(w.start_s * AUDIO_RATE) : round(w.end_s * AUDIO_RATE)] for w in words])
    assert inside.mean() > 1.15 * loud.mean()  # pauses are no part of any word


turn_lists = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0.1, 60)).map(lambda p: Span(p[0], min(120.0, p[0] + p[1]), "A")), max_size=8
)


@given(turn_lists)
@settings(deadline=None, max_examples=60)
def test_chunks_cover_every_turn_and_none_is_longer_than_asked(turns: list[Span]) -> None:
    chunks = speech_chunks(np.ones(120 * AUDIO_RATE, np.int16), turns, 28.0)
    assert all(chunk.end_s - chunk.start_s <= 28.0 + 1e-6 for chunk in chunks)
    assert all(a.end_s <= b.start_s + 1e-6 for a, b in itertools.pairwise(chunks))
    for turn in turns:
        shared = sum(max(0.0, min(c.end_s, turn.end_s) - max(c.start_s, turn.start_s)) for c in chunks)
        assert shared == pytest.approx(turn.end_s - turn.start_s, abs=1e-6)


def test_speech_without_a_pause_is_split_where_it_is_quietest() -> None:
    pcm = np.full(40 * AUDIO_RATE, 1000, np.int16)
    pcm[20 * AUDIO_RATE : 20 * AUDIO_RATE + 3200] = 0
    first, second = speech_chunks(pcm, [Span(0, 40)], 28.0)
    assert first.end_s == second.start_s == pytest.approx(20.1, abs=0.1)


def test_a_word_belongs_to_the_turn_that_covers_most_of_it() -> None:
    turns = [Span(0, 1.0, "A"), Span(0.9, 3, "B")]
    speakers = [with_speaker(SpokenWord("w", a, b, 1.0), turns).speaker for a, b in ((0.5, 0.95), (0.85, 1.4), (5, 6))]
    assert speakers == ["A", "B", ""]


def test_words_without_times_share_the_gap_by_their_length() -> None:
    assert fill_gaps([None, (1.0, 2.0), None, None], [3, 1, 1, 3], 4.0) == [(0.0, 1.0), (1.0, 2.0), (2.0, 2.5), (2.5, 4.0)]


def test_an_unknown_name_is_spelled_into_phones() -> None:
    assert spelled_pronunciation("gaotian") == "G AE AA T IH AE N"
    assert spelled_pronunciation("thing") == "TH IH NG"


def test_a_loop_compresses_better_than_a_sentence() -> None:
    assert compression_ratio("thank you " * 40) > 2.5 > compression_ratio("a sentence that says something once")
