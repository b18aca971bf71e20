"""Word times by forced alignment: with the English acoustic model that pocketsphinx carries, or WhisperX's wav2vec2.

Goes in: int16 [n] at 16 kHz, the words said in it, in order, and their language. Comes out: the same words with times. For
pocketsphinx a word that the dictionary lacks is aligned by a rough pronunciation after its spelling; one without letters
shares the time between its neighbours.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from uniavgen.ingest.records import AUDIO_RATE, SpokenWord
from uniavgen.shards.errors import UserError

POCKETSPHINX = "pocketsphinx"
WHISPERX = "whisperx"

FRAMES_PER_SECOND = 100

BEAMS = (1e-48, 1e-120)
"""Pocketsphinx's own beam, and a wide one that costs thrice as much: a passage with a misheard or half-cut word needs it."""

SOUNDS = {
    "ch": "CH",
    "ck": "K",
    "ee": "IY",
    "ng": "NG",
    "oo": "UW",
    "ou": "AW",
    "ow": "OW",
    "ph": "F",
    "qu": "K W",
    "sh": "SH",
    "th": "TH",
    "a": "AE",
    "b": "B",
    "c": "K",
    "d": "D",
    "e": "EH",
    "f": "F",
    "g": "G",
    "h": "HH",
    "i": "IH",
    "j": "JH",
    "k": "K",
    "l": "L",
    "m": "M",
    "n": "N",
    "o": "AA",
    "p": "P",
    "q": "K",
    "r": "R",
    "s": "S",
    "t": "T",
    "u": "AH",
    "v": "V",
    "w": "W",
    "x": "K S",
    "y": "IY",
    "z": "Z",
}
"""A letter's commonest phone in the dictionary's alphabet: enough to place a name in time, not to recognise it."""


class WordAligner(Protocol):
    """Gives words better times; words that it cannot align keep those that they have."""

    def retime(self, pcm: np.ndarray, words: list[SpokenWord], language: str) -> list[SpokenWord]: ...


def word_aligner(model: str, device: str = "cpu") -> WordAligner:
    """`pocketsphinx`; `whisperx` for its own choice per language; else a wav2vec2 CTC model by folder or name.

    Raises UserError (missing-weights) where a named model cannot be loaded.
    """
    return PocketsphinxAligner() if model == POCKETSPHINX else Wav2Vec2Aligner(model, device)


class PocketsphinxAligner:
    """pocketsphinx in alignment mode, loaded once. English alone."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoders = [
            Decoder(lm=None, loglevel="FATAL", samprate=AUDIO_RATE, beam=beam, pbeam=beam, wbeam=beam * 1e20)
            for beam in BEAMS
        ]

    def retime(self, pcm: np.ndarray, words: list[SpokenWord], language: str) -> list[SpokenWord]:
        """The words with aligned times; unchanged where the sound cannot be aligned with them."""
        if language != "en":
            return words
        spoken = [_parts(word.text) for word in words]
        for part in {part for parts in spoken for part in parts}:
            for decoder in self._decoders:
                if not decoder.lookup_word(part):
                    decoder.add_word(part, spelled_pronunciation(part), True)
        everything = [part for parts in spoken for part in parts]
        times = next(
            (found for decoder in self._decoders if (found := _aligned(decoder, pcm, everything))), None
        )
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


class Wav2Vec2Aligner:
    """WhisperX's alignment with a wav2vec2 CTC model: one named by the user for all languages, or its own for each."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._name = model
        self._device = device
        self._loaded: dict[str, Any] = {}
        if model != WHISPERX:
            self._load("en")  # a wrong name shall be told before any work is done

    def retime(self, pcm: np.ndarray, words: list[SpokenWord], language: str) -> list[SpokenWord]:
        """The words with aligned times; unchanged where WhisperX has no model for the language or finds no alignment."""
        from whisperx.alignment import (
            DEFAULT_ALIGN_MODELS_HF,
            DEFAULT_ALIGN_MODELS_TORCH,
            LANGUAGES_WITHOUT_SPACES,
            align,
        )

        known = language in DEFAULT_ALIGN_MODELS_TORCH or language in DEFAULT_ALIGN_MODELS_HF
        if not words or (self._name == WHISPERX and not known):
            return words
        model, metadata = self._load(language)
        spaced = language not in LANGUAGES_WITHOUT_SPACES
        text = (" " if spaced else "").join(word.text for word in words)
        segment = {"text": text, "start": 0.0, "end": len(pcm) / AUDIO_RATE}
        with _without_sentences():
            found = align([segment], model, metadata, pcm.astype(np.float32) / 32768, self._device)[
                "word_segments"
            ]
        sizes = [1 if spaced else len(word.text) for word in words]
        if len(found) != sum(sizes):
            return words
        ends = np.cumsum(sizes)
        spans = [_outer_span(found[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
        filled = fill_gaps(spans, [len(word.text) for word in words], len(pcm) / AUDIO_RATE)
        return [
            SpokenWord(word.text, start, end, word.score, word.speaker)
            for word, (start, end) in zip(words, filled, strict=True)
        ]

    def _load(self, language: str) -> Any:
        from whisperx.alignment import load_align_model

        key = language if self._name == WHISPERX else ""
        if key not in self._loaded:
            try:
                with contextlib.redirect_stdout(sys.stderr):  # it prints what failed
                    name = None if self._name == WHISPERX else self._name
                    self._loaded[key] = load_align_model(language, self._device, model_name=name)
            except Exception as error:  # every library below raises its own
                raise UserError(
                    f"the alignment model for {language} cannot be loaded",
                    where=self._name,
                    hint=f"name a folder with a wav2vec2 CTC model and its processor, or align_model={POCKETSPHINX}",
                    kind="missing-weights",
                ) from error
        model, metadata = self._loaded[key]
        return model, {**metadata, "language": language}


def _aligned(decoder: Any, pcm: np.ndarray, parts: list[str]) -> list[tuple[float, float]] | None:
    """(start, end) in s of each part; None where the decoder loses its way."""
    if not parts:
        return None
    try:
        decoder.set_align_text(" ".join(parts))
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
    except RuntimeError:
        return None
    found = [
        (segment.start_frame / FRAMES_PER_SECOND, (segment.end_frame + 1) / FRAMES_PER_SECOND)
        for segment in (decoder.seg() or ())
        if re.sub(r"\(\d+\)$", "", segment.word) not in ("<s>", "</s>", "<sil>", "(NULL)")
        and not segment.word.startswith("[")
    ]
    return found if len(found) == len(parts) else None


@contextlib.contextmanager
def _without_sentences() -> Iterator[None]:
    """WhisperX fetches a sentence splitter from the network for what is used of it nowhere here: words. NLTK's untrained
    one stands in."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer
    from whisperx import alignment

    loads = alignment.nltk_load
    alignment.nltk_load = lambda name: PunktSentenceTokenizer()
    try:
        yield
    finally:
        alignment.nltk_load = loads


def _outer_span(parts: list[dict[str, Any]]) -> tuple[float, float] | None:
    """From the first start to the last end of a word's parts; None where one has no time."""
    if any("start" not in part or "end" not in part for part in parts):
        return None
    return float(parts[0]["start"]), float(parts[-1]["end"])


def spelled_pronunciation(word: str) -> str:
    """Phones of a word by its letters alone, for words that no dictionary has."""
    return " ".join(SOUNDS[hit] for hit in re.findall("|".join(SOUNDS), word)) or "AH"


def fill_gaps(
    spans: list[tuple[float, float] | None], weights: list[int], end_s: float
) -> list[tuple[float, float]]:
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
        edges = start + (end - start) * np.cumsum([0, *weights[index:after]]) / max(
            1, sum(weights[index:after])
        )
        filled += [(float(a), float(b)) for a, b in itertools.pairwise(edges)]
        index = after
    return filled


def _parts(text: str) -> list[str]:
    """A word as the dictionary spells it: lower case, without punctuation, compounds apart."""
    plain = text.lower().replace("’", "'")
    return [part.strip("'") for part in re.findall(r"[a-z']+", plain) if part.strip("'")]
