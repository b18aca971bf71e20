"""English words as they are read out, in the letters of a pronunciation dictionary.

Only for alignment: "$23" takes the time of "twenty three dollars". Of several readings of a number the usual
one is taken; a wrong one costs some accuracy of the times around it.
"""

from __future__ import annotations

import re
import unicodedata

ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
POWERS = ((1_000_000_000, "billion"), (1_000_000, "million"), (1_000, "thousand"), (100, "hundred"))
ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
SYMBOLS = {"&": "and", "%": "percent", "+": "plus", "@": "at", "=": "equals", "°": "degrees"}
CURRENCIES = {"$": "dollars", "€": "euros", "£": "pounds", "¥": "yen"}
LETTERS = str.maketrans(
    {"’": "'", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
)
"""Letters that Unicode does not decompose, with what English dictionaries write for them."""

LONGEST_NUMBER = 12
"""Digits of the longest number that is read as one; longer ones are read digit by digit. Heuristic."""

_PART = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)(st\b|nd\b|rd\b|th\b)?|[a-z']+|[&%+@=°]")


def spoken_parts(text: str) -> list[str]:
    """The parts of a word in letters a-z and apostrophes: no accents, compounds split, numbers spelled."""
    # casefold first: it gives letters for ß, and NFKD then splits accents from their letters
    decomposed = unicodedata.normalize("NFKD", text.casefold().translate(LETTERS))
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    parts: list[str] = []
    for match in _PART.finditer(plain):
        if match[1]:
            number = spell_number(match[1])
            parts += _ordinal(number) if match[2] else number
        else:
            part = SYMBOLS.get(match[0], match[0].strip("'"))
            parts += [part] if part else []
    return parts + [name for symbol, name in CURRENCIES.items() if symbol in plain]


def spell_number(digits: str) -> list[str]:
    """Words of a number such as "1,250", "3.5" or the year "1984"."""
    whole, _, decimals = digits.replace(",", "").partition(".")
    spelled = [ONES[int(digit)] for digit in decimals]
    tail = ["point", *spelled] if spelled else []
    if len(whole) > LONGEST_NUMBER or (whole.startswith("0") and len(whole) > 1):
        return [ONES[int(digit)] for digit in whole] + tail
    century, rest = divmod(int(whole), 100)
    is_year = len(whole) == 4 and "," not in digits and not tail and (11 <= century <= 19 or century == 20)
    if is_year and not (century == 20 and rest < 10):
        low = ["hundred"] if not rest else ["oh", ONES[rest]] if rest < 10 else _cardinal(rest)
        return _cardinal(century) + low
    return _cardinal(int(whole)) + tail


def _cardinal(number: int) -> list[str]:
    if number < 20:
        return [ONES[number]]
    if number < 100:
        tens, ones = divmod(number, 10)
        return [TENS[tens - 2], *([ONES[ones]] if ones else [])]
    power, name = next((power, name) for power, name in POWERS if number >= power)
    count, rest = divmod(number, power)
    return [*_cardinal(count), name, *(_cardinal(rest) if rest else [])]


def _ordinal(number: list[str]) -> list[str]:
    last = number[-1]
    ordinal = ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return [*number[:-1], ordinal]
