"""Step `diarize`: signals of the speaker turns in a clip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.ingest.measures.clip_parts import covered_seconds
from uniavgen.ingest.measures.diarize import speaker_signals
from uniavgen.ingest.records import Proposal, Span
from uniavgen.shards.corpus.signals import signals_of

spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda p: Span(min(p), max(p))), max_size=8
)


@given(spans, st.integers(0, 30), st.integers(0, 30))
def test_covered_seconds_match_counting(turns: list[Span], start: int, length: int) -> None:
    seconds = sum(
        any(t.start_s <= s and s + 1 <= t.end_s for t in turns) for s in range(start, start + length)
    )
    assert covered_seconds(turns, start, start + length) == seconds


def test_speaker_signals_of_clip_with_two_speakers() -> None:
    turns = [Span(0, 6, "A"), Span(5, 8, "B"), Span(20, 30, "C")]
    signals = speaker_signals(Proposal(0.0, 10.0, "A"), turns)
    assert set(signals) == set(signals_of("diarize"))
    assert signals["speech_ratio"] == pytest.approx(0.6)
    assert signals["overlap_ratio"] == pytest.approx(0.1)
    assert signals["speaker_count"] == 2


def test_without_named_speaker_every_turn_counts() -> None:
    signals = speaker_signals(Proposal(0.0, 10.0), [Span(0, 6, "A"), Span(5, 8, "B")])
    assert (signals["speech_ratio"], signals["overlap_ratio"]) == (0.8, 0)
    assert speaker_signals(Proposal(0.0, 2.0), [])["speech_ratio"] == 0
