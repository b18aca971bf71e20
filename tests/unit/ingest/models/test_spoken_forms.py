"""Words as they are read out: the parts that the pronunciation dictionary aligns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import texts

from uniavgen.ingest.models.spoken_forms import ONES, spell_number, spoken_parts


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Twenty-three,", "twenty three"),
        ("23", "twenty three"),
        ("$23.50", "twenty three point five zero dollars"),
        ("3%", "three percent"),
        ("21st", "twenty first"),
        ("20th", "twentieth"),
        ("1984", "nineteen eighty four"),
        ("1905", "nineteen oh five"),
        ("1900", "nineteen hundred"),
        ("2005", "two thousand five"),
        ("1,250,000", "one million two hundred fifty thousand"),
        ("007", "zero zero seven"),
        ("café", "cafe"),
        ("cafe\u0301", "cafe"),
        ("Straße", "strasse"),
        ("don’t", "don't"),
        ("'tis", "tis"),
        ("AT&T", "at and t"),
        ("١٢", "twelve"),
        ("東京", ""),
        ("—", ""),
    ],
)
def test_spoken_form(written: str, spoken: str) -> None:
    assert " ".join(spoken_parts(written)) == spoken


@given(texts)
def test_parts_are_letters_only(text: str) -> None:
    assert all(part and set(part) <= set("abcdefghijklmnopqrstuvwxyz'") for part in spoken_parts(text))


@given(st.integers(0, 999))
def test_small_numbers_are_read_as_sums(number: int) -> None:
    values = {name: value for value, name in enumerate(ONES)}
    values |= {name: 10 * value for value, name in enumerate(["twenty", "thirty", "forty", "fifty"], 2)}
    values |= {name: 10 * value for value, name in enumerate(["sixty", "seventy", "eighty", "ninety"], 6)}
    total = 0
    for word in spell_number(str(number)):
        total = total * 100 if word == "hundred" else total + values[word]
    assert total == number
