"""Step `propose`: clip proposals obey their rules for any words and shots."""

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.ingest.config import ClipConfig
from uniavgen.ingest.measures.propose import check_complete, propose_clips, spoken_proposals
from uniavgen.ingest.records import Probe, SourceRecord, Span, SpokenWord
from uniavgen.shards.errors import UserError

CONFIG = ClipConfig()
FRAME = 1 / 16


@st.composite
def talks(draw: st.DrawFn) -> tuple[list[SpokenWord], list[Span], float]:
    """Words of up to two speakers in sequence, pauses from none to 3 s, and up to three cuts."""
    at, words = draw(st.floats(0, 2)), []
    for _ in range(draw(st.integers(0, 60))):
        at += draw(st.sampled_from([0.0, 0.0, 0.02, 0.3, 0.9, 3.0]))
        end = at + draw(st.floats(0.05, 0.9))
        words.append(SpokenWord("word", at, end, 1.0, draw(st.sampled_from(["A", "A", "A", "B", ""]))))
        at = end
    end_s = round((at + draw(st.floats(0.1, 3))) * 16 + 1) / 16
    cuts = sorted(draw(st.lists(st.floats(0.1, max(0.2, end_s - 0.1)), max_size=3)))
    edges = [0.0, *cuts, end_s]
    return words, [Span(a, b) for a, b in itertools.pairwise(edges)], end_s


@given(talks())
@settings(deadline=None, max_examples=150)
def test_clips_hold_whole_words_of_one_speaker_in_one_shot(
    talk: tuple[list[SpokenWord], list[Span], float],
) -> None:
    words, shots, end_s = talk
    clips = spoken_proposals(words, shots, end_s, CONFIG)
    for clip in clips:
        assert CONFIG.min_s - 1e-6 <= clip.end_s - clip.start_s <= CONFIG.max_s + 1e-6
        assert (clip.start_s * 16).is_integer()
        assert (clip.end_s * 16).is_integer()
        assert any(shot.start_s - 1e-6 <= clip.start_s and clip.end_s <= shot.end_s + 1e-6 for shot in shots)
        assert {word.speaker for word in clip.words} == {clip.speaker}
        assert clip.speaker
        inside = [w for w in words if w.start_s >= clip.start_s + FRAME and w.end_s <= clip.end_s - FRAME]
        assert all(word in clip.words for word in inside)
        for word in words:
            if word in clip.words:
                assert word.start_s >= clip.start_s - 1e-6
                assert word.end_s <= clip.end_s + 1e-6
            else:  # a clip overlaps a neighbouring word by less than a frame, if there is no silence between
                assert min(word.end_s, clip.end_s) - max(word.start_s, clip.start_s) < FRAME
    for before, after in itertools.pairwise(clips):
        assert before.end_s <= after.start_s + 1e-6


def longest_first(words: list[SpokenWord], shot: Span) -> list[tuple[float, float]]:
    """Naive reference of `spoken_proposals` for words of one speaker without a long pause.

    Of all clips that any words make the longest (of several the earliest), then the same before and after it.
    """

    def grid(seconds: float, whole: Callable[[float], int]) -> float:
        return whole(round(seconds * 16, 4)) / 16

    def clip_of(first: int, last: int, low_s: float, high_s: float) -> tuple[float, float] | None:
        start_s, end_s = words[first].start_s, max(word.end_s for word in words[first : last + 1])
        before = max([0.0, *(word.end_s for word in words[:first])])
        after = words[last + 1].start_s if last + 1 < len(words) else shot.end_s + 99
        if before > start_s + 1e-6 or after < end_s - 1e-6:
            return None
        start = grid(max(start_s - CONFIG.pad_s, before, low_s), math.ceil)
        end = grid(min(end_s + CONFIG.pad_s, after, high_s), math.floor)
        start = start if start <= start_s + 1e-6 else grid(start_s, math.floor)
        end = end if end >= end_s - 1e-6 else grid(end_s, math.ceil)
        fits = low_s - 1e-6 <= start and end <= high_s + 1e-6
        return (start, end) if fits and CONFIG.min_s - 1e-6 <= end - start <= CONFIG.max_s + 1e-6 else None

    def divide(first: int, last: int, low_s: float, high_s: float) -> list[tuple[float, float]]:
        spans = {
            (a, b): clip_of(a, b, low_s, high_s) for a in range(first, last + 1) for b in range(a, last + 1)
        }
        held = [(place, span) for place, span in spans.items() if span]
        if not held:
            return []
        (a, b), (start, end) = max(held, key=lambda item: (item[1][1] - item[1][0], -item[0][0], item[0][1]))
        return [*divide(first, a - 1, low_s, start), (start, end), *divide(b + 1, last, end, high_s)]

    return divide(0, len(words) - 1, shot.start_s, shot.end_s) if words else []


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.9]), st.floats(0.05, 1.5)), max_size=30),
    st.floats(0, 2),
)
@settings(deadline=None, max_examples=40)
def test_clips_match_naive_search(said: list[tuple[float, float]], at: float) -> None:
    words = []
    for pause, length in said:
        words.append(SpokenWord("word", at + pause, at + pause + length, 1.0, "A"))
        at += pause + length
    shot = Span(0.0, round((at + 1) * 16) / 16)
    assert [
        (clip.start_s, clip.end_s) for clip in spoken_proposals(words, [shot], shot.end_s, CONFIG)
    ] == longest_first(words, shot)


def test_hours_without_a_pause_are_divided_like_a_minute() -> None:
    words = [SpokenWord("word", t, t + 0.9, 1.0, "A") for t in range(4 * 3600)]
    clips = spoken_proposals(words, [Span(0, len(words))], len(words), CONFIG)
    assert len(clips) == pytest.approx(len(words) / 10, rel=0.02)
    minute = spoken_proposals(words[:60], [Span(0, 60)], 60, CONFIG)
    assert [clip.start_s for clip in clips[:5]] == [clip.start_s for clip in minute[:5]]


@given(talks())
@settings(deadline=None, max_examples=100)
def test_every_source_gives_a_clip_within_its_frames(
    talk: tuple[list[SpokenWord], list[Span], float],
) -> None:
    words, shots, end_s = talk
    clips = propose_clips(words, shots, end_s, CONFIG)
    assert clips
    assert all(0 <= clip.start_s < clip.end_s <= end_s + 1e-6 for clip in clips)


def test_longest_clip_is_taken_first_and_remainder_is_used() -> None:
    words = [SpokenWord(str(i), i * 0.5, i * 0.5 + 0.4, 1.0, "A") for i in range(60)]
    clips = spoken_proposals(words, [Span(0, 30.0)], 30.0, CONFIG)
    assert max(clip.end_s - clip.start_s for clip in clips) > 9.4
    assert sum(clip.end_s - clip.start_s for clip in clips) > 25


def test_two_speakers_are_never_in_one_clip() -> None:
    words = [SpokenWord("w", t, t + 0.3, 1.0, "A" if t < 4 else "B") for t in [i * 0.4 for i in range(20)]]
    assert [clip.speaker for clip in spoken_proposals(words, [Span(0, 9.0)], 9.0, CONFIG)] == ["A", "B"]


def test_long_pause_ends_a_clip() -> None:
    words = [
        SpokenWord("w", t, t + 0.4, 1.0, "A") for t in (0.3, 0.8, 1.3, 1.8, 2.3, 6.0, 6.5, 7.0, 7.5, 8.0)
    ]
    assert len(spoken_proposals(words, [Span(0, 9.0)], 9.0, CONFIG)) == 2


def test_source_without_speech_is_divided_by_its_shots() -> None:
    clips = propose_clips([], [Span(0, 1.0), Span(1.0, 26.0)], 26.0, CONFIG)
    assert [clip.start_s for clip in clips] == pytest.approx([1.0, 9.3125, 17.625], abs=0.07)
    assert all(not clip.speaker and not clip.words for clip in clips)


def test_very_short_source_gives_one_clip_of_its_length() -> None:
    clips = propose_clips([], [Span(0, 0.5)], 0.5, CONFIG)
    assert [(clip.start_s, clip.end_s) for clip in clips] == [(0.0, 0.5)]


def test_file_that_holds_much_less_than_it_declares_is_truncated() -> None:
    record = SourceRecord("/videos/a.mp4")
    record.results = {Probe: Probe(10.0, 64, 48, 25.0, "h264", "aac", True)}
    check_complete(record, 9.6, 0.0)
    check_complete(record, 0.0, 9.6)
    with pytest.raises(UserError, match=r"declares 10\.0 s and holds 5\.0 s"):
        check_complete(record, 5.0, 4.0)
