"""Step `transcribe`: word signals of a clip, such as loops, stock phrases and unvoiced words."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.ingest.measures.transcribe import (
    STOCK_PHRASES,
    TranscribeStep,
    stock_phrase,
    unvoiced_ratio,
    word_signals,
)
from uniavgen.ingest.models.transcriber import LONGEST_LOOP, is_repetitive, repeated_ratio
from uniavgen.ingest.records import (
    Diarization,
    Passage,
    Proposal,
    SourceRecord,
    Span,
    SpokenWord,
    Transcript,
)
from uniavgen.shards.corpus.signals import signals_of
from uniavgen.shards.text import plain_text, word_spans

TEXT = "it was the best of times it was the worst of times it was the age of wisdom"
SENTENCE = TEXT.split()


def words_at(texts: list[str], start_s: float = 0.0, length_s: float = 0.3) -> list[SpokenWord]:
    return [
        SpokenWord(t, start_s + i * length_s, start_s + (i + 1) * length_s, 0.5) for i, t in enumerate(texts)
    ]


def naive_looped(plain: list[str]) -> float:
    looped = set()
    for length in range(1, LONGEST_LOOP + 1):
        times = 2 if length >= 3 else 3
        for at in range(len(plain) - length * times + 1):
            if all(plain[at + i] == plain[at + i % length] for i in range(length * times)):
                looped |= set(range(at, at + length * times))
    return len(looped) / len(plain)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_repeated_ratio_matches_naive_search(plain: list[str]) -> None:
    assert repeated_ratio(plain) == pytest.approx(naive_looped(plain))


def test_planted_loop_is_found_and_natural_repetition_is_not() -> None:
    assert repeated_ratio(SENTENCE) == 0
    assert repeated_ratio(["No,", "no!", "Bye", "bye."]) == 0
    assert repeated_ratio([*SENTENCE, *["I", "don't", "know."] * 4]) == pytest.approx(
        12 / (len(SENTENCE) + 12)
    )
    assert repeated_ratio(["so"] * 5) == 1
    assert repeated_ratio(SENTENCE * 2) == 1  # a whole sentence said twice
    assert repeated_ratio([]) is None


def test_repeated_ratio_rises_with_every_repetition() -> None:
    found = [repeated_ratio([*SENTENCE, *["thank", "you", "all"] * n]) for n in (1, 2, 3, 6)]
    assert found == sorted(found)  # type: ignore[type-var]
    assert found[0] == 0 < found[1]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("said", "stock"),
    [
        ("Thanks for watching!", 1),
        ("Thank you. Thank you. Thank you.", 1),
        ("Субтитры сделал DimaTorzok", 1),
        ("Thank you for watching my children yesterday", 0),
        ("I would like to thank you", 0),
        ("The end of the war came early", 0),
    ],
)
def test_stock_phrase_counts_only_if_nothing_else_is_said(said: str, stock: int) -> None:
    assert stock_phrase(said.split()) == stock


@pytest.mark.parametrize("edges", [None, [4, 6, 9], [1, 2, 3, 9]])
def test_stock_phrase_does_not_depend_on_its_division(edges: list[int] | None) -> None:
    for phrase, stock in (("ご視聴ありがとうございました。", 1), ("ご視聴者の皆さんは元気でした。", 0)):
        words = [phrase[a:b] for a, b in word_spans(phrase, edges)]
        assert (stock_phrase(words), stock_phrase(words * 2)) == (stock, stock)


@pytest.mark.parametrize(
    ("natural", "loop"),
    [
        ("我们今天去学校学习，明天也去。", "谢谢大家收看"),
        ("今日は友達と学校に行きました。", "ご視聴ありがとうございました"),
        ("วันนี้ฉันไปโรงเรียนกับเพื่อน", "ขอบคุณที่รับชม"),
        ("आज मैं स्कूल गया था", "देखने के लिए धन्यवाद"),
    ],
)
def test_loops_are_found_in_scripts_without_spaces(natural: str, loop: str) -> None:
    for step in (1, 2, 5):  # however the recogniser divides it
        said = natural + loop * 4
        words = [said[a:b] for a, b in word_spans(said, range(0, len(said), step))]
        assert repeated_ratio(words) > 0.4  # type: ignore[operator]
    assert is_repetitive(natural + loop * 4)
    assert repeated_ratio([natural]) == 0
    assert not is_repetitive(natural)


def test_doubled_words_of_scripts_without_spaces_are_natural() -> None:
    for said in ("看看，试试。", "はいはい、ありがとうありがとう。", "มากมาก ๆ"):
        assert repeated_ratio([said]) == 0, said


def test_stock_phrases_are_normalised() -> None:
    assert {phrase for phrase in STOCK_PHRASES if plain_text(phrase) != phrase} == set()
    assert stock_phrase([]) is None


def test_unvoiced_words_are_counted_by_their_time() -> None:
    words = words_at(["a", "b", "c", "d"], length_s=1.0)
    assert unvoiced_ratio(words, []) == 1
    assert unvoiced_ratio(words, [Span(0, 4, "A")]) == 0
    assert unvoiced_ratio(words, [Span(0, 1.5, "A"), Span(1, 2, "B")]) == pytest.approx(0.5)
    assert unvoiced_ratio([], [Span(0, 4, "A")]) is None
    found = [unvoiced_ratio(words, [Span(0, end, "A")]) for end in (4, 3, 1.2, 0.5)]
    assert found == sorted(found)  # type: ignore[type-var]


def transcript_of_0_3_0(text: str, pieces: list[str], language: str) -> Transcript:
    """One passage of 8 s; its words are the pieces that have letters, as 0.3.0 stored them."""
    kept = [piece.strip() for piece in pieces if any(letter.isalnum() for letter in piece)]
    return Transcript([Passage(0, 8, text, language, 0.9, -0.2, 0.1, 1.4)], words_at(kept))


@pytest.mark.parametrize(
    ("text", "pieces", "language", "is_right"),
    [
        ("It's the best.", [" It's", " the", " best."], "en", True),
        ("One, two - three", [" One,", " two", " -", " three"], "de", False),
        ("twenty-three men", [" twenty", "-three", " men"], "en", False),
        ("Merci d'avoir appelé", [" Merci", " d", "'avoir", " appelé"], "fr", False),
        ("the U.S.A.", [" the", " U", ".S", ".A."], "en", False),
        ("今日は晴れ", ["今日", "は", "晴", "れ"], "ja", False),
        ("กำลัง", ["ก", "ำ", "ล", "ั", "ง"], "th", False),
        ("हिन्दी में", [" हिन्दी", " में"], "hi", False),
        ("Всё как-то так", [" Всё", " как", "-то", " так"], "ru", False),
        ("Всё так", [" Всё", " так"], "ru", True),
    ],
)
def test_words_of_0_3_0_are_put_together_without_whisper(
    text: str, pieces: list[str], language: str, is_right: bool
) -> None:
    record, step = SourceRecord("a"), TranscribeStep.__new__(TranscribeStep)
    record.results[Diarization] = Diarization([Span(0, 8, "A")])
    earlier = transcript_of_0_3_0(text, pieces, language)
    revised = step.revise(record, earlier)
    assert revised is not None
    assert (revised is earlier, revised.variant == "") == (is_right, is_right)
    assert Proposal(0, 8, "A", revised.words).text == text
    assert revised.words[0].start_s == earlier.words[0].start_s
    assert revised.words[-1].end_s == earlier.words[-1].end_s
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in itertools.pairwise(revised.words))


def test_sources_that_0_3_0_may_have_heard_wrong_are_transcribed_again() -> None:
    record, step = SourceRecord("a"), TranscribeStep.__new__(TranscribeStep)
    two = Diarization([Span(0, 4, "A"), Span(4, 8, "B")])
    record.results[Diarization] = two
    assert step.revise(record, transcript_of_0_3_0("a b", [" a", " b"], "en")) is None
    record.results[Diarization] = Diarization([Span(0, 8, "A")])
    assert step.revise(record, transcript_of_0_3_0("a café", [" a", " café"], "en")) is None
    assert step.revise(record, transcript_of_0_3_0("a b", [" other"], "en")) is None
    assert step.revise(record, Transcript()) == Transcript()


def test_word_signals_of_clip() -> None:
    passage = Passage(0, 10, "x", "en", 0.9, -0.2, 0.1, 1.4)
    signals = word_signals(Proposal(0.0, 10.0, "A", words_at(SENTENCE)), passage, [Span(0, 6, "A")])
    assert set(signals) == set(signals_of("transcribe"))
    assert signals["words_per_s"] == pytest.approx(len(SENTENCE) / 10)
    named = ("word_score", "asr_log_probability", "language_probability")
    assert [signals[name] for name in named] == [0.5, -0.2, 0.9]
    text = "今天天气非常好我们一起去公园散步吧"
    division = [text[a:b] for a, b in word_spans(text, [2, 4, 6, 7])]
    one = word_signals(Proposal(0.0, 4.0, "A", words_at([text])), passage, [])
    several = word_signals(Proposal(0.0, 4.0, "A", words_at(division)), passage, [])
    assert one["words_per_s"] == pytest.approx(several["words_per_s"])
    assert 2 < one["words_per_s"] < 4  # type: ignore[operator]
    silent = word_signals(Proposal(0.0, 2.0), None, [])
    assert (silent["word_count"], silent["word_score"], silent["stock_phrase"]) == (0, None, None)
