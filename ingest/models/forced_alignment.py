"""Word times by forced alignment: pocketsphinx with its English acoustic model, or WhisperX with wav2vec2.

For pocketsphinx a word that is not in the dictionary is aligned by an approximate pronunciation from its
spelling, numbers as they are read out (`spoken_forms`); a word of other symbols or scripts shares the time
between its neighbours.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from uniavgen.ingest.models.spoken_forms import spoken_parts
from uniavgen.ingest.records import AUDIO_RATE, SpokenWord
from uniavgen.shards.errors import UserError

POCKETSPHINX = "pocketsphinx"
WHISPERX = "whisperx"

FRAMES_PER_SECOND = 100

BEAMS = (1e-48, 1e-120)
"""Pocketsphinx's default beam, and a wide one at three times the cost for passages with a wrong or truncated
word."""

PHONES = {
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
"""The most common phone of letters, in the dictionary's alphabet: enough to align a name, not to recognise
it."""


class WordAligner(Protocol):
    """Replaces the times of words; words that cannot be aligned keep theirs."""

    def retime(self, pcm: np.ndarray, words: list[SpokenWord], language: str) -> list[SpokenWord]: ...


def word_aligner(model: str, device: str = "cpu") -> WordAligner:
    """`pocketsphinx`, `whisperx` (its default model per language), or a wav2vec2 CTC model by folder or name.

    Raises UserError (missing-weights) if a model cannot be loaded.
    """
    return PocketsphinxAligner() if model == POCKETSPHINX else Wav2Vec2Aligner(model, device)


class PocketsphinxAligner:
    """pocketsphinx in alignment mode, loaded once. English only."""

    def __init__(self) -> None:
        self._decoders = [_decoder(BEAMS[0])]

    def retime(self, pcm: np.ndarray, words: list[SpokenWord], language: str) -> list[SpokenWord]:
        """The words with aligned times; unchanged where the alignment fails."""
        if language != "en":
            return words
        spoken = [spoken_parts(word.text) for word in words]
        all_parts = [part for parts in spoken for part in parts]
        times = self._times(pcm, all_parts) if all_parts else None
        if times is None:
            return words
        spans: list[tuple[float, float] | None] = []
        position = 0
        for parts in spoken:
            own_times = times[position : position + len(parts)]
            spans.append((own_times[0][0], own_times[-1][1]) if own_times else None)
            position += len(parts)
        filled = fill_gaps(spans, [len(word.text) for word in words], len(pcm) / AUDIO_RATE)
        return [
            replace(word, start_s=start, end_s=end) for word, (start, end) in zip(words, filled, strict=True)
        ]

    def _times(self, pcm: np.ndarray, parts: list[str]) -> list[tuple[float, float]] | None:
        """(start, end) in seconds of each part, by the first of `BEAMS` that aligns them."""
        for number, beam in enumerate(BEAMS):
            if number == len(self._decoders):  # few sources need it
                self._decoders.append(_decoder(beam))
            times = _align(self._decoders[number], pcm, parts)
            if times is not None:
                return times
        return None


def _decoder(beam: float) -> Any:
    from pocketsphinx import Decoder

    return Decoder(lm=None, loglevel="FATAL", samprate=AUDIO_RATE, beam=beam, pbeam=beam, wbeam=beam * 1e20)


class Wav2Vec2Aligner:
    """WhisperX's alignment with wav2vec2: one named CTC model for all languages, or WhisperX's default for
    each.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._name = model
        self._device = device
        self._loaded: dict[str, Any] = {}
        if model != WHISPERX:
            self._load("en")  # fail before any work if the name is wrong

    def retime(self, pcm: np.ndarray, words: list[SpokenWord], language: str) -> list[SpokenWord]:
        """The words with aligned times; unchanged where WhisperX has no model for the language or the
        alignment fails.
        """
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
        # WhisperX times every part between spaces, or every character except white space
        parts = [word.text.split() if spaced else list("".join(word.text.split())) for word in words]
        text = (" " if spaced else "").join(part for word_parts in parts for part in word_parts)
        segment = {"text": text, "start": 0.0, "end": len(pcm) / AUDIO_RATE}
        with _without_sentences():
            aligned = align([segment], model, metadata, pcm.astype(np.float32) / 32768, self._device)[
                "word_segments"
            ]
        sizes = [len(word_parts) for word_parts in parts]
        if len(aligned) != sum(sizes):
            return words
        ends = np.cumsum(sizes)
        spans = [_outer_span(aligned[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
        filled = fill_gaps(spans, [len(word.text) for word in words], len(pcm) / AUDIO_RATE)
        return [
            replace(word, start_s=start, end_s=end) for word, (start, end) in zip(words, filled, strict=True)
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
                    hint=f"name a folder with a wav2vec2 CTC model, or align_model={POCKETSPHINX}",
                    kind="missing-weights",
                ) from error
        model, metadata = self._loaded[key]
        return model, {**metadata, "language": language}


def _align(decoder: Any, pcm: np.ndarray, parts: list[str]) -> list[tuple[float, float]] | None:
    """(start, end) in seconds of each part, one or more; None if the alignment fails."""
    for part in set(parts):
        if not decoder.lookup_word(part):
            decoder.add_word(part, spelled_pronunciation(part), True)
    try:
        decoder.set_align_text(" ".join(parts))
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
    except RuntimeError:
        return None
    times = [
        (segment.start_frame / FRAMES_PER_SECOND, (segment.end_frame + 1) / FRAMES_PER_SECOND)
        for segment in (decoder.seg() or ())
        if re.sub(r"\(\d+\)$", "", segment.word) not in ("<s>", "</s>", "<sil>", "(NULL)")
        and not segment.word.startswith("[")
    ]
    return times if len(times) == len(parts) else None


@contextlib.contextmanager
def _without_sentences() -> Iterator[None]:
    """Replace WhisperX's sentence splitter, which is downloaded and not needed for words, by NLTK's untrained
    one.
    """
    from nltk.tokenize.punkt import PunktSentenceTokenizer
    from whisperx import alignment

    original = alignment.nltk_load
    alignment.nltk_load = lambda name: PunktSentenceTokenizer()
    try:
        yield
    finally:
        alignment.nltk_load = original


def _outer_span(parts: list[dict[str, Any]]) -> tuple[float, float] | None:
    """First start and last end of a word's parts; None where one has no time."""
    if any("start" not in part or "end" not in part for part in parts):
        return None
    return float(parts[0]["start"]), float(parts[-1]["end"])


def spelled_pronunciation(word: str) -> str:
    """Approximate phones of a word that is not in the dictionary, from its letters."""
    return " ".join(PHONES[letters] for letters in re.findall("|".join(PHONES), word)) or "AH"


def fill_gaps(
    spans: list[tuple[float, float] | None], weights: list[int], end_s: float
) -> list[tuple[float, float]]:
    """Replace each run of None: its words divide the time between their neighbours by weight."""
    filled: list[tuple[float, float]] = []
    index = 0
    while index < len(spans):
        span = spans[index]
        if span is not None:
            filled.append(span)
            index += 1
            continue
        run_end = next((i for i in range(index, len(spans)) if spans[i] is not None), len(spans))
        start = filled[-1][1] if filled else 0.0
        following = spans[run_end] if run_end < len(spans) else None
        end = following[0] if following else end_s
        edges = start + (end - start) * np.cumsum([0, *weights[index:run_end]]) / max(
            1, sum(weights[index:run_end])
        )
        filled += [(float(a), float(b)) for a, b in itertools.pairwise(edges)]
        index = run_end
    return filled
