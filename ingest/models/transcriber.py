"""Transcription: WhisperX for the words, forced alignment for their times.

Input is an `AudioFile` and the speakers' turns; one chunk of audio is in memory at a time. Results are
passages (a chunk's text with its language, log-probability and no-speech probability) and words. A word's
score is Whisper's probability of its tokens. Times come from `forced_alignment`; where that fails, from
Whisper's cross-attention, which starts words 65-110 ms early.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import TranscriptionConfig
from uniavgen.ingest.io.audio import AudioFile, quietest_time
from uniavgen.ingest.models.forced_alignment import word_aligner
from uniavgen.ingest.records import AUDIO_RATE, Passage, Span, SpokenWord
from uniavgen.shards.errors import UserError
from uniavgen.shards.weights import REGISTRY, resolve

SPEECH_PAD_S = 0.15
"""Audio added on either side of speech, so that words are not truncated."""

FULL_PAD_S = 30.0
"""Silence that fills Whisper's whole window after a chunk of any length."""

LONGEST_LOOP = 30
"""Words of the longest phrase whose repetition is detected: a long sentence. Heuristic."""

MAX_COMPRESSION_RATIO = 2.4
"""Compression ratio above which Whisper decodes again (its default)."""


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

        The language is detected in the longest chunk.
        """
        chunks = speech_chunks(audio, turns, self.config.chunk_seconds)
        if not chunks:
            return [], []
        longest = max(chunks, key=lambda chunk: (chunk.end_s - chunk.start_s, -chunk.start_s))
        first = self._encode(audio, longest, self.config.encoder_pad_s)
        language, probability = self._language(first)
        passages, words = [], []
        for chunk in chunks:
            encoded = first if chunk is longest else self._encode(audio, chunk, self.config.encoder_pad_s)
            passage, chunk_words = self._passage(audio, chunk, encoded, language, probability)
            passages.append(passage)
            words += chunk_words
        return passages, assign_word_speakers(words, turns)

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

    def _language(self, encoded: Any) -> tuple[str, float]:
        """The language and its probability; a configured language has the probability that Whisper gives
        it.
        """
        ranked = [(token[2:-2], float(p)) for token, p in self._model.model.detect_language(encoded)[0]]
        if self.config.language:
            return self.config.language, dict(ranked).get(self.config.language, 0.0)
        return ranked[0]

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
        )
        words = self._attended_words(tokenizer, text, encoded, chunk.end_s - chunk.start_s)
        words = self._aligner.retime(audio.span(chunk.start_s, chunk.end_s), words, language)
        return passage, [shift_word(word, chunk.start_s) for word in words]

    def _attended_words(self, tokenizer: Any, text: str, encoded: Any, seconds: float) -> list[SpokenWord]:
        """Words with probabilities and times by Whisper's cross-attention; punctuation stays with its
        word.
        """
        from faster_whisper.transcribe import merge_punctuations

        tokens = tokenizer.encode(" " + text) if text else []
        frames = max(1, round(seconds * 100))
        rows = self._model.find_alignment(tokenizer, [tokens], encoded, frames) if tokens else [[]]
        words = rows[0] if rows else []
        merge_punctuations(words, "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、")
        return [
            SpokenWord(
                word["word"].strip(), float(word["start"]), float(word["end"]), float(word["probability"])
            )
            for word in words
            if any(letter.isalnum() for letter in word["word"])
        ]

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(
            self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language=language
        )


def speech_chunks(audio: AudioFile, turns: list[Span], max_s: float) -> list[Span]:
    """Spans of speech of at most `max_s`, slightly padded: turns are joined up to that length, and longer
    speech without a pause is split where it is quietest.
    """
    duration = audio.duration_s
    spoken: list[list[float]] = []
    for turn in sorted(turns, key=lambda turn: turn.start_s):
        start, end = max(0.0, turn.start_s - SPEECH_PAD_S), min(duration, turn.end_s + SPEECH_PAD_S)
        if spoken and start <= spoken[-1][1]:
            spoken[-1][1] = max(spoken[-1][1], end)
        else:
            spoken.append([start, end])
    chunks: list[list[float]] = []
    for start, end in spoken:
        while end - start > max_s:
            split = quietest_time(audio, start + max_s / 2, start + max_s)
            chunks.append([start, split])
            start = split
        if chunks and end - chunks[-1][0] <= max_s:
            chunks[-1][1] = end
        else:
            chunks.append([start, end])
    return [Span(start, end) for start, end in chunks]


def assign_word_speakers(words: list[SpokenWord], turns: list[Span]) -> list[SpokenWord]:
    """Label each word with the speaker whose turns cover most of it; "" where none does."""
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
        speaker = max(sorted(shares), key=lambda label: shares[label]) if shares else ""
        labelled.append(SpokenWord(word.text, word.start_s, word.end_s, word.score, speaker))
    return labelled


def shift_word(word: SpokenWord, by_s: float) -> SpokenWord:
    """The word, shifted by `by_s`."""
    return SpokenWord(word.text, word.start_s + by_s, word.end_s + by_s, word.score, word.speaker)


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes after zlib (Whisper's own measure): high for repetitive text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def is_repetitive(text: str) -> bool:
    """Whether a transcript repeats itself, or compresses above Whisper's own limit."""
    return (repeated_ratio(text.split()) or 0.0) > 0 or compression_ratio(text) > MAX_COMPRESSION_RATIO


def repeated_ratio(texts: Sequence[str]) -> float | None:
    """Share of words in a loop: a phrase of three words or more said twice in a row, a shorter one thrice.

    None without words. People say "no, no" and "bye bye"; a recogniser that loops goes on.
    """
    plain = [plain_text(text) for text in texts]
    if not plain:
        return None
    looped = np.zeros(len(plain), bool)
    for length in range(1, min(LONGEST_LOOP, len(plain) // 2) + 1):
        times = 2 if length >= 3 else 3
        run = 0  # consecutive words that equal the word one phrase earlier
        for index in range(length, len(plain)):
            run = run + 1 if plain[index] == plain[index - length] else 0
            if run >= length * (times - 1):
                looped[index - run - length + 1 : index + 1] = True
    return float(looped.mean())


def plain_text(text: str) -> str:
    """Lower case, letters and digits only, single spaces between words."""
    return " ".join(re.sub(r"[^\w\s]|_", "", text.lower()).split())


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
