"""Words of a text: where they lie, what lies between them, how many they are.

Most scripts write white space between words. Han, kana, Thai, Lao, Khmer, Myanmar, Tibetan and some others do
not. A text in them is divided where speech recognition divides it, or at every character, but never inside
what a reader sees as one character, before a closing mark, or after an opening one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import regex

LETTERS_PER_WORD = {"Han": 1.6, "Hiragana": 2.5, "Katakana": 2.5, "other": 3.5}
"""Letters that count as one word in scripts without spaces, so that speaking rates compare with those of
other languages. Heuristic: text of Chinese has 1.5 to 1.7 characters a word, kana and the others more."""

_SCRIPTS = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"),
    *("Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"),
)
_UNSPACED = regex.compile("[" + "".join(rf"\p{{scx={script}}}" for script in _SCRIPTS) + "]")
_KNOWN_LENGTH = {name: regex.compile(rf"\p{{scx={name}}}") for name in LETTERS_PER_WORD if name != "other"}
_LETTER = regex.compile(r"[\p{L}\p{N}]")
_FIRST = regex.compile(r"[\p{L}\p{N}\p{Ps}\p{Pi}]")
_NEVER_FIRST = regex.compile(
    r"[\p{M}\p{Grapheme_Extend}\p{GCB=SpacingMark}\p{LB=NS}\p{LB=CJ}"
    "\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3]"  # vowels of Thai and Lao that follow their consonant
)
_NEVER_LAST = regex.compile(
    r"[\p{Ps}\p{Pi}\p{Sc}\p{Logical_Order_Exception}\p{Indic_Syllabic_Category=Invisible_Stacker}\u200d]"
)
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}\p{Sc}¿¡]+")
_NOT_PLAIN = regex.compile(r"[^\w\s\p{M}]|_")


def has_letters(text: str) -> bool:
    """Whether a text has a letter or a digit of any script."""
    return bool(_LETTER.search(text))


def is_unspaced(text: str) -> bool:
    """Whether a letter of a script without spaces occurs in the text."""
    return any(_UNSPACED.match(letter) for letter in _LETTER.findall(text))


def has_marks(text: str) -> bool:
    """Whether combining marks occur that no composed letter replaces, such as vowel signs of Hindi."""
    return bool(regex.search(r"\p{M}", unicodedata.normalize("NFC", text)))


def word_spans(text: str, edges: Iterable[int] | None = None) -> list[tuple[int, int]]:
    """Start and end of each word; between two words there is white space or nothing.

    Without `edges` text without spaces is divided at every character, else only at these positions (the ends
    of a recogniser's pieces). A symbol that stands alone belongs to the word before it, an opening one to the
    word after it. Empty for a text without letters and digits.
    """
    allowed = None if edges is None else set(edges)
    runs = [span for run in re.finditer(r"\S+", text) for span in _divide(text, *run.span(), allowed)]
    words: list[tuple[int, int]] = []
    opening: int | None = None  # start of symbols that belong to the next word
    for start, end in runs:
        if has_letters(text[start:end]):
            words.append((start if opening is None else opening, end))
            opening = None
        elif opening is not None:
            continue  # it follows an opening symbol, so it belongs to the next word too
        elif words and not _OPENING.fullmatch(text[start:end]):
            words[-1] = (words[-1][0], end)
        else:
            opening = start
    if opening is not None and words:
        words[-1] = (words[-1][0], runs[-1][1])
    return words


def _divide(text: str, start: int, end: int, allowed: set[int] | None) -> list[tuple[int, int]]:
    """Words of a run without white space."""
    cuts, last_letter = [start], ""
    for at in range(start, end):
        if last_letter and (allowed is None or at in allowed) and _may_divide(text, at, end, last_letter):
            cuts.append(at)
            last_letter = ""
        if _LETTER.match(text[at]):
            last_letter = text[at]
    return list(zip(cuts, [*cuts[1:], end], strict=True))


def _may_divide(text: str, at: int, end: int, last_letter: str) -> bool:
    """Whether a word may start at `at`, after a word with `last_letter`, in a run that ends at `end`."""
    next_letter = _LETTER.search(text, at, end)
    if not next_letter or not _FIRST.match(text[at]):
        return False
    if _NEVER_FIRST.match(text[at]) or _NEVER_LAST.match(text[at - 1]):
        return False
    return bool(_UNSPACED.match(last_letter) or _UNSPACED.match(next_letter.group()))


def find_words(text: str, words: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where words that follow one another in a text lie; None if one of them is not there."""
    spans, reached = [], 0
    for word in words:
        start = text.find(word, reached)
        if start < 0:
            return None
        reached = start + len(word)
        spans.append((start, reached))
    return spans


def word_gaps(text: str, words: Sequence[str]) -> list[str]:
    """The white space before each word in the text; by the script if they are not words of this text."""
    spans = find_words(text, words)
    if spans is None:
        return [script_gap(before, word) for before, word in zip(["", *words[:-1]], words, strict=True)]
    ends = [0, *(end for _, end in spans)]
    return [text[before:start] for before, (start, _) in zip(ends[:-1], spans, strict=True)]


def script_gap(before: str, after: str) -> str:
    """What is usually between two words: nothing in scripts without spaces, else a space."""
    left, right = _LETTER.findall(before), _LETTER.findall(after)
    return "" if left and right and _UNSPACED.match(left[-1]) and _UNSPACED.match(right[0]) else " "


def join_words(words: Iterable[str], gaps: Iterable[str]) -> str:
    """Words joined with the white space before each of them, without white space at the ends."""
    return "".join(gap + word for gap, word in zip(gaps, words, strict=True)).strip()


def counted_units(text: str) -> list[tuple[str, float]]:
    """The words of a text in plain form, each with the number of words it counts for.

    In scripts without spaces a unit is a character, and counts as a part of a word (`LETTERS_PER_WORD`).
    """
    units = []
    for start, end in word_spans(text):
        plain = plain_text(text[start:end])
        if plain:
            units.append((plain, _words_in(plain)))
    return units


def count_words(text: str) -> float:
    """Number of words; an estimate from the number of letters in scripts without spaces."""
    return sum(words for _, words in counted_units(text))


def _words_in(unit: str) -> float:
    letters = [letter for letter in _LETTER.findall(unit) if _UNSPACED.match(letter)]
    if not letters:
        return 1.0
    return sum(
        1
        / LETTERS_PER_WORD[
            next((name for name, script in _KNOWN_LENGTH.items() if script.match(letter)), "other")
        ]
        for letter in letters
    )


def plain_text(text: str) -> str:
    """Lower case, letters, digits and combining marks only, composed, single spaces between words."""
    return " ".join(_NOT_PLAIN.sub("", unicodedata.normalize("NFC", text.lower())).split())
