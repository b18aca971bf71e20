"""Chunks for the recogniser: they cover all speech, and each is of one speaker."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.models.speech_chunks import SPEECH_PAD_S, speaker_runs
from uniavgen.ingest.models.transcriber import speech_chunks
from uniavgen.ingest.records import AUDIO_RATE, Span

LENGTH_S = 120.0


def saved(folder: Path, pcm: np.ndarray) -> AudioFile:
    path = folder / "sound.s16"
    pcm.astype(np.int16).tofile(path)
    return AudioFile(str(path), len(pcm))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> AudioFile:
    return saved(tmp_path_factory.mktemp("chunks"), np.ones(round(LENGTH_S) * AUDIO_RATE))


def turn_lists(labels: str) -> st.SearchStrategy[list[Span]]:
    # times on a grid of 0.1 s, so that turns also touch and end together
    turn = st.tuples(st.integers(0, 1150), st.integers(1, 400), st.sampled_from(labels))
    return st.lists(turn.map(lambda t: Span(t[0] / 10, min(LENGTH_S, (t[0] + t[1]) / 10), t[2])), max_size=9)


def speakers_at(turns: list[Span], at_s: float) -> set[str]:
    return {turn.label for turn in turns if turn.start_s < at_s < turn.end_s}


@given(turn_lists("ABC"))
@settings(deadline=None, max_examples=100)
def test_chunks_cover_all_turns_and_never_two_speakers(sound: AudioFile, turns: list[Span]) -> None:
    chunks = speech_chunks(sound, turns, 28.0)
    assert all(chunk.end_s - chunk.start_s <= 28.0 + 1e-6 for chunk in chunks)
    assert all(a.end_s <= b.start_s + 1e-6 for a, b in itertools.pairwise(chunks))
    assert all(0 <= chunk.start_s <= chunk.end_s <= LENGTH_S for chunk in chunks)
    for turn in turns:
        shared = sum(max(0.0, min(c.end_s, turn.end_s) - max(c.start_s, turn.start_s)) for c in chunks)
        assert shared == pytest.approx(turn.end_s - turn.start_s, abs=1e-6)
    edges = sorted({edge for span in [*turns, *chunks] for edge in (span.start_s, span.end_s)})
    for chunk in chunks:
        alone = set()
        for start, end in itertools.pairwise(edges):
            speakers = speakers_at(turns, (start + end) / 2)
            if chunk.start_s < (start + end) / 2 < chunk.end_s and len(speakers) == 1 and end - start > 1e-9:
                alone |= speakers
        assert alone <= {chunk.label}


@given(turn_lists("A"))
@settings(deadline=None, max_examples=40)
def test_one_speaker_has_the_chunks_of_release_0_3_0(sound: AudioFile, turns: list[Span]) -> None:
    chunks = speech_chunks(sound, turns, 28.0)
    spoken: list[list[float]] = []
    for turn in sorted(turns, key=lambda turn: turn.start_s):
        start, end = max(0.0, turn.start_s - SPEECH_PAD_S), min(LENGTH_S, turn.end_s + SPEECH_PAD_S)
        if spoken and start <= spoken[-1][1]:
            spoken[-1][1] = max(spoken[-1][1], end)
        else:
            spoken.append([start, end])
    joined: list[list[float]] = []
    for start, end in spoken:
        if joined and end - joined[-1][0] <= 28.0:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    if all(end - start <= 28.0 for start, end in spoken):
        edges = [edge for chunk in chunks for edge in (chunk.start_s, chunk.end_s)]
        assert edges == pytest.approx([edge for span in joined for edge in span])


def test_long_speech_is_split_at_its_quietest_time(tmp_path: Path) -> None:
    pcm = np.full(40 * AUDIO_RATE, 1000)
    pcm[20 * AUDIO_RATE : 20 * AUDIO_RATE + 3200] = 0
    first, second = speech_chunks(saved(tmp_path, pcm), [Span(0, 40)], 28.0)
    assert first.end_s == second.start_s == pytest.approx(20.1, abs=0.1)


def spans_of(turns: list[Span]) -> list[tuple[float, float, str]]:
    runs = speaker_runs(turns, lambda start_s, end_s: (start_s + end_s) / 2)
    return [(span.start_s, span.end_s, span.label) for run in runs for span in run]


def test_overlapping_speech_belongs_to_who_speaks_alone_beside_it() -> None:
    short_answer = [Span(0, 9, "A"), Span(4, 5, "B")]
    assert spans_of(short_answer) == [(0, 9, "A")]
    change = [Span(0, 5, "A"), Span(4, 9, "B")]
    assert spans_of(change) == [(0, 4.5, "A"), (4.5, 9, "B")]
    together = [Span(0, 3, "B"), Span(0, 3, "A")]
    assert spans_of(together) == [(0, 3, "A")]
    answer_after = [Span(0, 3, "A"), Span(0, 5, "B"), Span(6, 8, "B")]
    assert spans_of(answer_after) == [(0, 5, "B"), (6, 8, "B")]


def test_silence_between_two_speakers_is_divided(sound: AudioFile) -> None:
    first, second = speech_chunks(sound, [Span(1, 5, "A"), Span(5.1, 9, "B")], 28.0)
    assert (first.end_s, second.start_s) == (pytest.approx(5.05), pytest.approx(5.05))
    assert (first.label, second.label) == ("A", "B")
