"""Words of texts in many scripts: they tile the text, whatever pieces a recogniser gives."""

import itertools
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from texts import SENTENCES, texts

from uniavgen.shards.text import (
    count_words,
    counted_units,
    find_words,
    has_letters,
    join_words,
    plain_text,
    script_gap,
    word_gaps,
    word_spans,
)


@given(texts, st.data())
def test_words_and_gaps_are_the_text_character_by_character(text: str, data: st.DataObject) -> None:
    edges = data.draw(st.one_of(st.none(), st.sets(st.integers(0, max(0, len(text))))))
    spans = word_spans(text, edges)
    assert bool(spans) == has_letters(text)
    assert all(a < b <= c for (a, b), (c, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=False))
    between = [text[b:c] for (_, b), (c, _) in itertools.pairwise(spans)]
    assert not "".join(between).strip()
    words = [text[a:b] for a, b in spans]
    if words:
        assert join_words(words, word_gaps(text, words)) == text.strip()
    for word in words:
        assert has_letters(word)
        assert word == word.strip()


@given(texts, st.data())
def test_part_of_the_words_is_a_part_of_the_text(text: str, data: st.DataObject) -> None:
    words = [text[a:b] for a, b in word_spans(text)]
    first = data.draw(st.integers(0, len(words)))
    last = data.draw(st.integers(first, len(words)))
    part = join_words(words[first:last], word_gaps(text, words)[first:last])
    assert part in text
    assert part == part.strip()


@pytest.mark.parametrize("language", ["en", "fr", "de", "ru", "hi", "ar", "he", "vi", "decomposed"])
def test_pieces_do_not_divide_words_of_scripts_with_spaces(language: str) -> None:
    text = SENTENCES[language]
    oracle = [word for word in text.split() if any(letter.isalnum() for letter in word)]
    words = [text[a:b] for a, b in word_spans(text, range(len(text)))]
    assert [word for word in words if word in oracle] == [word for word in oracle if word in words]
    assert len(words) == len(oracle)
    assert "".join("".join(words).split()) == "".join(text.split())


@given(st.sampled_from(sorted(SENTENCES.values())))
def test_no_word_starts_with_a_mark(text: str) -> None:
    for start, _ in word_spans(text):
        assert unicodedata.category(text[start]) not in ("Mn", "Mc", "Me")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("twenty-three mother-in-law", ["twenty-three", "mother-in-law"]),
        ("d'avoir l’heure", ["d'avoir", "l’heure"]),
        ("the U.S.A. is", ["the", "U.S.A.", "is"]),
        ("it costs $ 5 , ok", ["it", "costs", "$ 5 ,", "ok"]),
        ("« Bonjour » dit-il", ["« Bonjour »", "dit-il"]),
        ("今日は", ["今", "日", "は"]),
        ("「はい」と", ["「は", "い」", "と"]),
        ("iPhoneを", ["iPhone", "を"]),
        ("เที่ยว", ["เที่", "ย", "ว"]),
        ("กำลัง", ["กำ", "ลั", "ง"]),
        ("♪ ...", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert [text[a:b] for a, b in word_spans(text)] == words


def test_pieces_of_the_recogniser_are_words_without_spaces() -> None:
    text = "私たちは学生です。"
    edges = [3, 4, 6, 9]
    assert [text[a:b] for a, b in word_spans(text, edges)] == ["私たち", "は", "学生", "です。"]


def test_words_of_another_text_are_joined_by_script() -> None:
    assert find_words("something else", ["well", "known"]) is None
    assert join_words(["well", "known"], word_gaps("something else", ["well", "known"])) == "well known"
    assert join_words(["今日", "は", "ok"], word_gaps("", ["今日", "は", "ok"])) == "今日は ok"
    assert (script_gap("です。", "はい"), script_gap("done.", "今")) == ("", " ")


def test_words_dropped_by_release_0_3_0_leave_the_others_in_place() -> None:
    # it stored pieces without letters nowhere
    assert find_words("well-known ♪ 今", ["well", "-known", "今"]) == [(0, 4), (4, 10), (13, 14)]


@pytest.mark.parametrize(
    ("language", "low", "high"),
    # words of the sentences, counted by a reader; a compound without a space is one
    [("en", 11, 11), ("fr", 9, 10), ("zh", 12, 20), ("ja", 10, 17), ("th", 10, 16), ("ko", 7, 9)],
)
def test_counted_words_compare_across_scripts(language: str, low: int, high: int) -> None:
    assert low <= count_words(SENTENCES[language]) <= high


@given(texts)
def test_count_does_not_depend_on_the_division(text: str) -> None:
    words = [text[a:b] for a, b in word_spans(text, range(0, len(text), 3))]
    assert sum(count_words(word) for word in words) == pytest.approx(count_words(text))
    assert all(weight > 0 and unit == plain_text(unit) for unit, weight in counted_units(text))


def test_plain_text_keeps_vowel_signs() -> None:
    assert plain_text("हिन्दी, กำลัง!") == "हिन्दी กำลัง"
    assert plain_text("It's  DONE.") == "its done"
    assert plain_text(unicodedata.normalize("NFD", "Été")) == "été"


@given(st.text(alphabet="0a « :»“.日", max_size=30))
@example("0 0 « : 0")
def test_words_never_overlap(text: str) -> None:
    ends = [0, *(end for _, end in word_spans(text))]
    assert all(before <= start for before, (start, _) in zip(ends, word_spans(text), strict=False))
