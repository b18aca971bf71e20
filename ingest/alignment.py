"""Word times by forced alignment, with the English acoustic model that pocketsphinx carries.

Goes in: int16 [n] at 16 kHz and the words said in it, in order. Comes out: the same words with times. A word that the
dictionary lacks is aligned by a rough pronunciation after its spelling; one without letters shares the time between its
neighbours.
"""

from __future__ import annotations

import itertools
import re

import numpy as np

from ingest.records import AUDIO_RATE, SpokenWord

FRAMES_PER_SECOND = 100

SOUNDS = {
    "ch": "CH", "ck": "K", "ee": "IY", "ng": "NG", "oo": "UW", "ou": "AW", "ow": "OW", "ph": "F", "qu": "K W", "sh": "SH",
    "th": "TH", "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH",
    "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V",
    "w": "W", "x": "K S", "y": "IY", "z": "Z",
}  # fmt: skip
"""A letter's commonest phone in the dictionary's alphabet: enough to place a name in time, not to recognise it."""


class WordAligner:
    """A pocketsphinx decoder in alignment mode, loaded once."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        # wide beams: a whole passage is lost to one misheard or half-cut word otherwise
        self._decoder = Decoder(lm=None, loglevel="FATAL", samprate=AUDIO_RATE, beam=1e-120, pbeam=1e-120, wbeam=1e-100)

    def retime(self, pcm: np.ndarray, words: list[SpokenWord]) -> list[SpokenWord]:
        """The words with aligned times; unchanged where the sound cannot be aligned with them."""
        spoken = [_parts(word.text) for word in words]
        for part in {part for parts in spoken for part in parts}:
            if not self._decoder.lookup_word(part):
                self._decoder.add_word(part, spelled_pronunciation(part), True)
        times = self._align(pcm, [part for parts in spoken for part in parts])
        if times is None:
            return words
        spans: list[tuple[float, float] | None] = []
        position = 0
        for parts in spoken:
            found = times[position : position + len(parts)]
            spans.append((found[0][0], found[-1][1]) if found else None)
            position += len(parts)
        filled = fill_gaps(spans, [len(word.text) for word in words], len(pcm) / AUDIO_RATE)
        return [
            SpokenWord(word.text, start, end, word.score, word.speaker)
            for word, (start, end) in zip(words, filled, strict=True)
        ]

    def _align(self, pcm: np.ndarray, parts: list[str]) -> list[tuple[float, float]] | None:
        if not parts:
            return None
        try:
            self._decoder.set_align_text(" ".join(parts))
            self._decoder.start_utt()
            self._decoder.process_raw(pcm.tobytes(), full_utt=True)
            self._decoder.end_utt()
        except RuntimeError:
            return None
        found = [
            (segment.start_frame / FRAMES_PER_SECOND, (segment.end_frame + 1) / FRAMES_PER_SECOND)
            for segment in (self._decoder.seg() or ())
            if re.sub(r"\(\d+\)$", "", segment.word) not in ("<s>", "</s>", "<sil>", "(NULL)")
            and not segment.word.startswith("[")
        ]
        return found if len(found) == len(parts) else None


def spelled_pronunciation(word: str) -> str:
    """Phones of a word by its letters alone, for words that no dictionary has."""
    return " ".join(SOUNDS[hit] for hit in re.findall("|".join(SOUNDS), word)) or "AH"


def fill_gaps(spans: list[tuple[float, float] | None], weights: list[int], end_s: float) -> list[tuple[float, float]]:
    """Spans for every word: those that are None divide the time between their neighbours, by their weights."""
    filled: list[tuple[float, float]] = []
    index = 0
    while index < len(spans):
        span = spans[index]
        if span is not None:
            filled.append(span)
            index += 1
            continue
        after = next((i for i in range(index, len(spans)) if spans[i] is not None), len(spans))
        start = filled[-1][1] if filled else 0.0
        following = spans[after] if after < len(spans) else None
        end = following[0] if following else end_s
        edges = start + (end - start) * np.cumsum([0, *weights[index:after]]) / max(1, sum(weights[index:after]))
        filled += [(float(a), float(b)) for a, b in itertools.pairwise(edges)]
        index = after
    return filled


def _parts(text: str) -> list[str]:
    """A word as the dictionary spells it: lower case, without punctuation, compounds apart."""
    plain = text.lower().replace("’", "'")
    return [part.strip("'") for part in re.findall(r"[a-z']+", plain) if part.strip("'")]
