"""Transcription: WhisperX for the words, forced alignment for their times.

Input is an `AudioFile` and the speakers' turns; one chunk of audio is in memory at a time. Results are
passages (a chunk's text with its language, log-probability and no-speech probability) and words, which with
what is between them are the passage's text. A word's score is Whisper's probability of its tokens. Times
come from `forced_alignment`; where that fails, from Whisper's cross-attention, which starts words 65-110 ms
early.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import TranscriptionConfig
from uniavgen.ingest.io.audio import AudioFile, quietest_time
from uniavgen.ingest.models.forced_alignment import word_aligner
from uniavgen.ingest.models.lean_imports import lean_imports
from uniavgen.ingest.models.speech_chunks import divide_speech
from uniavgen.ingest.records import AUDIO_RATE, Passage, Span, SpokenWord
from uniavgen.shards.errors import UserError
from uniavgen.shards.text import counted_units, has_letters, script_gap, word_gaps, word_spans
from uniavgen.shards.weights import REGISTRY, resolve

FULL_PAD_S = 30.0
"""Silence that fills Whisper's whole window after a chunk of any length."""

MIN_LOOP = 3
"""Words of a phrase that people do not say twice in a row; a shorter one is a loop the third time.
Heuristic."""

LONGEST_LOOP = 30
"""Words of the longest phrase whose repetition is detected: a long sentence. Heuristic."""

MAX_COMPRESSION_RATIO = 2.4
"""Compression ratio above which Whisper decodes again (its default)."""

CONFIDENT = 0.5
"""Probability of a language above which it is more likely than all others together."""

SHORT_S = 5.0
"""Length of speech below which a language with a lower probability is not believed. Heuristic: of 3 s of
English Whisper made Danish."""


def whisper_model_path(config: TranscriptionConfig) -> str:
    """The model that WhisperX loads: a folder of registered weights, a folder of the user, or a name on the
    hub.
    """
    if config.model in REGISTRY:
        return str(resolve(config.model))
    if os.sep in config.model and not (Path(config.model) / "model.bin").is_file():
        raise UserError(
            "the folder has no CTranslate2 Whisper model",
            where=config.model,
            hint="name a folder with model.bin",
            kind="missing-weights",
        )
    return config.model


class Transcriber:
    """WhisperX with one Whisper model, loaded once."""

    def __init__(self, config: TranscriptionConfig, device: str = "cpu", threads: int = 1) -> None:
        os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # telemetry off: whisperx imports pyannote
        logging.getLogger("whisperx").setLevel(logging.ERROR)
        with lean_imports():
            from whisperx.asr import find_numeral_symbol_tokens, load_model

        self.config = config
        self._model = _shared_encoding_model()(
            whisper_model_path(config), device=device, compute_type=config.compute_type, cpu_threads=threads
        )
        suppressed = [-1]
        if config.spell_numbers:
            suppressed += find_numeral_symbol_tokens(self._tokenizer("en"))
        options = {"beam_size": config.beam_size, "suppress_tokens": suppressed}
        with contextlib.redirect_stdout(sys.stderr):  # it prints its arguments
            # speech comes from the diarization, so the voice activity detector is not loaded
            pipeline = load_model(
                "", device=device, model=self._model, vad_model=object(), asr_options=options
            )
        self._options = pipeline.options
        self._aligner = word_aligner(config.align_model, device)

    def transcribe(self, audio: AudioFile, turns: list[Span]) -> tuple[list[Passage], list[SpokenWord]]:
        """Passages and words in order of time; both empty without turns. Each word has its speaker's label.

        Each chunk is of one speaker, whose language is detected in the longest of them.
        """
        chunks = speech_chunks(audio, turns, self.config.chunk_seconds)
        longest: dict[str, Span] = {}
        for chunk in sorted(chunks, key=lambda chunk: (chunk.start_s - chunk.end_s, chunk.start_s)):
            longest.setdefault(chunk.label, chunk)
        encodings = {
            label: self._encode(audio, chunk, self.config.encoder_pad_s) for label, chunk in longest.items()
        }
        seconds = {label: chunk.end_s - chunk.start_s for label, chunk in longest.items()}
        languages = self._languages(encodings, seconds)
        passages: list[Passage] = []
        words: list[SpokenWord] = []
        for chunk in chunks:
            is_encoded = chunk is longest[chunk.label]
            encoded = (
                encodings[chunk.label]
                if is_encoded
                else self._encode(audio, chunk, self.config.encoder_pad_s)
            )
            passage, chunk_words = self._passage(audio, chunk, encoded, *languages[chunk.label])
            if passages and words and chunk_words:
                gap = script_gap(passages[-1].text, passage.text)
                chunk_words[0] = replace(chunk_words[0], gap=gap)
            passages.append(passage)
            words += chunk_words
        return passages, assign_word_speakers(words, turns)

    def detect_language(self, audio: AudioFile) -> tuple[str, float]:
        """The language of up to 30 s and its probability."""
        whole = Span(0.0, min(audio.duration_s, FULL_PAD_S))
        return self._languages({"": self._encode(audio, whole, 0.0)}, {"": whole.end_s})[""]

    def _encode(self, audio: AudioFile, chunk: Span, pad_s: float) -> Any:
        """Encoder output of a chunk, computed once for language, words, no-speech and attention.

        Whisper was trained on 30 s, and its encoder's cost grows with its input. Ten seconds of silence after
        the speech work as well as 30 s (measured). With less Whisper may repeat a sentence, so repetitive
        text is decoded again in full.
        """
        from whisperx.audio import N_SAMPLES, log_mel_spectrogram

        waveform = audio.span(chunk.start_s, chunk.end_s).astype(np.float32) / 32768
        padding = min(N_SAMPLES - len(waveform), round(pad_s * AUDIO_RATE))
        mels = self._model.feat_kwargs.get("feature_size") or 80
        features = log_mel_spectrogram(waveform[:N_SAMPLES], n_mels=mels, padding=max(0, padding))
        return self._model.encode(features[:, : features.shape[1] // 2 * 2])  # the encoder halves the frames

    def _languages(
        self, encodings: Mapping[str, Any], seconds: Mapping[str, float]
    ) -> dict[str, tuple[str, float]]:
        """The language of each speaker and its probability; a configured language has the probability that
        Whisper gives it.
        """
        ranked = {
            label: [(token[2:-2], float(p)) for token, p in self._model.model.detect_language(encoded)[0]]
            for label, encoded in encodings.items()
        }
        if self.config.language:
            fixed = self.config.language
            return {label: (fixed, dict(each).get(fixed, 0.0)) for label, each in ranked.items()}
        return choose_languages(ranked, seconds)

    def _passage(
        self, audio: AudioFile, chunk: Span, encoded: Any, language: str, probability: float
    ) -> tuple[Passage, list[SpokenWord]]:
        tokenizer = self._tokenizer(language)
        decoded = self._model.generate_segment_batched(encoded, tokenizer, self._options)
        if is_repetitive(decoded["text"][0]) and self.config.encoder_pad_s < FULL_PAD_S:
            encoded = self._encode(audio, chunk, FULL_PAD_S)
            decoded = self._model.generate_segment_batched(encoded, tokenizer, self._options)
        text = decoded["text"][0].strip()
        silence = self._model.model.generate(
            encoded, [list(tokenizer.sot_sequence)], max_length=8, beam_size=1, return_no_speech_prob=True
        )
        passage = Passage(
            chunk.start_s,
            chunk.end_s,
            text,
            language,
            probability,
            float(decoded["avg_logprob"][0]),
            float(silence[0].no_speech_prob),
            compression_ratio(text),
            chunk.label,
        )
        words = self._attended_words(tokenizer, text, encoded, chunk.end_s - chunk.start_s)
        words = self._aligner.retime(audio.span(chunk.start_s, chunk.end_s), words, language)
        return passage, [
            replace(
                word,
                start_s=word.start_s + chunk.start_s,
                end_s=word.end_s + chunk.start_s,
                speaker=chunk.label,
            )
            for word in words
        ]

    def _attended_words(self, tokenizer: Any, text: str, encoded: Any, seconds: float) -> list[SpokenWord]:
        """Words with probabilities and times by Whisper's cross-attention."""
        tokens = tokenizer.encode(" " + text) if text else []
        frames = max(1, round(seconds * 100))
        rows = self._model.find_alignment(tokenizer, [tokens], encoded, frames) if tokens else [[]]
        return words_of_pieces(text, rows[0] if rows else [], seconds)

    def _tokenizer(self, language: str) -> Any:
        return piece_tokenizer()(
            self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language=language
        )


def speech_chunks(audio: AudioFile, turns: Sequence[Span], max_s: float) -> list[Span]:
    """The speech of a source in chunks of one speaker and at most `max_s` (`divide_speech`)."""
    return divide_speech(
        turns, audio.duration_s, max_s, lambda start_s, end_s: quietest_time(audio, start_s, end_s)
    )


def choose_languages(
    ranked: Mapping[str, Sequence[tuple[str, float]]], seconds: Mapping[str, float]
) -> dict[str, tuple[str, float]]:
    """Language of each speaker with its probability, from Whisper's (language, probability), likeliest first.

    `seconds` is the length of speech in which each was detected. Little speech is easily taken for another
    language. So a speaker with less than `SHORT_S`, whose likeliest language has a probability below
    `CONFIDENT`, has the likeliest of those that are confident for others in the source.
    """
    confident = {each[0][0] for each in ranked.values() if each[0][1] >= CONFIDENT}
    chosen = {}
    for label, each in ranked.items():
        unsure = each[0][1] < CONFIDENT and seconds[label] < SHORT_S
        shared = [pair for pair in each if pair[0] in confident] if unsure else []
        chosen[label] = max(shared, key=lambda pair: pair[1], default=each[0])
    return chosen


def words_of_pieces(text: str, pieces: Sequence[Mapping[str, Any]], seconds: float) -> list[SpokenWord]:
    """Words of a passage from the recogniser's pieces of " " + `text`, each a character or more.

    A piece has `word` (its text), `tokens`, `start`, `end` and `probability`. Pieces without letters give a
    word no time and no score. Should the pieces not be the text, its words share the time by length.
    """
    ends = [end - 1 for end in accumulate(len(piece["word"]) for piece in pieces)]
    if "".join(piece["word"] for piece in pieces) != " " + text:
        spans, ends = word_spans(text), []
    else:
        spans = word_spans(text, ends)
    gaps = word_gaps(text, [text[start:end] for start, end in spans])
    gaps[:1] = [" "] * len(gaps[:1])  # before the passage
    words = []
    for (start, end), gap in zip(spans, gaps, strict=True):
        if not ends:
            share = seconds / max(1, len(text))
            words.append(SpokenWord(text[start:end], start * share, end * share, 0.0, gap=gap))
            continue
        inside = [
            piece for piece in pieces[bisect_right(ends, start) : bisect_left(ends, end) + 1] if piece["word"]
        ]
        timed = [piece for piece in inside if has_letters(piece["word"])] or inside
        tokens = [len(piece["tokens"]) for piece in timed]
        score = float(np.average([piece["probability"] for piece in timed], weights=tokens))
        start_s, end_s = float(timed[0]["start"]), float(timed[-1]["end"])
        words.append(SpokenWord(text[start:end], start_s, end_s, score, gap=gap))
    return words


def assign_word_speakers(words: list[SpokenWord], turns: list[Span]) -> list[SpokenWord]:
    """Label each word with the speaker whose turns cover most of it; "" where none does.

    Of two that cover it equally, the one who has the word already (its chunk's speaker) keeps it.
    """
    turns = sorted(turns, key=lambda turn: turn.start_s)
    starts, max_ends = (
        [turn.start_s for turn in turns],
        list(accumulate((turn.end_s for turn in turns), max)),
    )
    labelled = []
    for word in words:
        shares: dict[str, float] = {}
        for turn in turns[bisect_right(max_ends, word.start_s) : bisect_left(starts, word.end_s)]:
            overlap_s = min(word.end_s, turn.end_s) - max(word.start_s, turn.start_s)
            if overlap_s > 0:
                shares[turn.label] = shares.get(turn.label, 0.0) + overlap_s
        ranked = sorted(shares, key=lambda label: (-round(shares[label], 6), label != word.speaker, label))
        labelled.append(replace(word, speaker=ranked[0] if ranked else ""))
    return labelled


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes after zlib (Whisper's own measure): high for repetitive text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def is_repetitive(text: str) -> bool:
    """Whether a transcript repeats itself, or compresses above Whisper's own limit."""
    return (repeated_ratio(text.split()) or 0.0) > 0 or compression_ratio(text) > MAX_COMPRESSION_RATIO


def repeated_ratio(texts: Sequence[str]) -> float | None:
    """Share of words in a loop: a phrase of three words or more said twice in a row, a shorter one thrice.

    In scripts without spaces each letter counts as a part of a word (`shards.text`). None without words.
    People say "no, no" and "bye bye"; a recogniser that loops goes on.
    """
    units = [unit for text in texts for unit in counted_units(text)]
    if not units:
        return None
    plain = [text for text, _ in units]
    weights = np.array([words for _, words in units])
    words_before = np.concatenate([[0.0], np.cumsum(weights)])
    looped = np.zeros(len(plain), bool)
    for length in range(1, min(int(LONGEST_LOOP / weights.min()), len(plain) // 2) + 1):
        run = 0  # consecutive units that equal the unit one phrase earlier
        for index in range(length, len(plain)):
            run = run + 1 if plain[index] == plain[index - length] else 0
            phrase_words = words_before[index + 1] - words_before[index + 1 - length]
            times = 2 if phrase_words >= MIN_LOOP - 1e-6 else 3
            if run >= length * (times - 1) and phrase_words <= LONGEST_LOOP + 1e-6:
                looped[index - run - length + 1 : index + 1] = True
    return float(weights[looped].sum() / weights.sum())


def _shared_encoding_model() -> type:
    """WhisperX's model that also accepts encoder output: language, words, no-speech and attention share one
    encoding.
    """
    from ctranslate2 import StorageView
    from whisperx.asr import WhisperModel

    class SharedEncodingModel(WhisperModel):
        def encode(self, features: Any) -> Any:
            return features if isinstance(features, StorageView) else super().encode(features)

    return SharedEncodingModel


def piece_tokenizer() -> type:
    """Whisper's tokenizer that divides text into the smallest pieces of whole characters: which of them are
    one word is decided here (`words_of_pieces`), since the library joins pieces by rules of its own.
    """
    from faster_whisper.tokenizer import Tokenizer

    class PieceTokenizer(Tokenizer):
        def split_to_word_tokens(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
            pieces: tuple[list[str], list[list[int]]] = self.split_tokens_on_unicode(tokens)
            return pieces

    return PieceTokenizer
