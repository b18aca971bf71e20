"""Transcripts and lyrics as symbol ids of one vocabulary for graphemes and phonemes. Imports no torch.

AudioGen-Omni (arXiv 2508.00733) encodes both, without durations; its vocabulary is undisclosed. Ours: 0 is
the filler, then 256 bytes, a word boundary, 39 phonemes, 3 marks of the kind of speech and 8 of the language.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Literal

from uniavgen.shards.errors import UserError
from uniavgen.train.codec.pronunciation import PHONEMES

FILLER, BOUNDARY = 0, 257
KINDS = ("speech", "song", "none")
LANGUAGES = ("en", "zh", "de", "fr", "es", "ru", "ja", "other")
PHONEME_IDS = {phoneme: BOUNDARY + 1 + index for index, phoneme in enumerate(PHONEMES)}
KIND_IDS = {kind: BOUNDARY + 1 + len(PHONEMES) + index for index, kind in enumerate(KINDS)}
LANGUAGE_IDS = {name: BOUNDARY + 1 + len(PHONEMES) + len(KINDS) + i for i, name in enumerate(LANGUAGES)}
VOCABULARY = 1 + max(LANGUAGE_IDS.values())

Kind = Literal["speech", "song", "none"]


def transcript_ids(
    text: str,
    frames: int,
    pronounce: Callable[[str], tuple[str, ...]] | None = None,
    *,
    kind: Kind = "speech",
    language: str = "en",
    phoneme_share: float = 0.5,
    draw: object = 0,
    starts: Sequence[int] | None = None,
) -> list[int]:
    """Ids of a text, left-packed and filled up to `frames`.

    Each English word is written in phonemes with the probability `phoneme_share` (undisclosed; 0.5), a
    function of `draw` and the word's index, else in bytes. `{HH AH L OW}` gives a word's phonemes. starts:
    first frame of each word, which then begins there instead of after the word before. Raises UserError for
    unknown phonemes and for a text that does not fit.
    """
    words = re.findall(r"\{[^{}]*\}|[^\s{}]+", text)
    ids = [KIND_IDS[kind], LANGUAGE_IDS.get(language, LANGUAGE_IDS["other"])]
    if starts is not None and len(starts) != len(words):
        raise UserError(f"{len(starts)} starts for {len(words)} words", where=text[:60], kind="bad-length")
    for index, word in enumerate(words):
        if starts is not None:
            ids += [FILLER] * (starts[index] - len(ids))
        elif index:
            ids.append(BOUNDARY)
        by_phoneme = random.Random(f"{draw}/{index}").random() < phoneme_share
        ids += _word_ids(word, pronounce if by_phoneme and language == "en" else None)
    if len(ids) > frames:
        raise UserError(
            f"the text needs {len(ids)} symbols, the audio has {frames} frames",
            where=text[:60],
            hint="shorten the text or lengthen the audio",
            kind="text-too-long",
        )
    return ids + [FILLER] * (frames - len(ids))


def _word_ids(word: str, pronounce: Callable[[str], tuple[str, ...]] | None) -> list[int]:
    if word.startswith("{"):
        phonemes = tuple(symbol.rstrip("012") for symbol in word.strip("{}").upper().split())
        unknown = [symbol for symbol in phonemes if symbol not in PHONEME_IDS]
        if unknown or not phonemes:
            raise UserError(
                f"unknown phoneme {unknown[0] if unknown else word}",
                hint=f"phonemes: {' '.join(PHONEMES)}",
                kind="unknown-phoneme",
            )
    else:
        phonemes = pronounce(word.strip('.,;:!?"()')) if pronounce else ()
    return [PHONEME_IDS[p] for p in phonemes] or [1 + byte for byte in word.encode()]
