"""What is said: WhisperX for the words, forced alignment for their times.

Goes in: a `Sound` and the speakers' turns; one chunk of it is in memory at a time. Comes out: passages (what Whisper heard
at once, with its language, log-probability and no-speech probability) and words. A word's score is Whisper's probability of
its tokens. Its times come from forced alignment (`alignment`); where that cannot be had, from Whisper's own attention, which
starts words some 65-110 ms early.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import zlib
from bisect import bisect_left, bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import TranscriptionConfig
from uniavgen.ingest.io.audio import AudioFile, quietest_time
from uniavgen.ingest.measures.speech_signals import repeated_ratio
from uniavgen.ingest.models.forced_alignment import word_aligner
from uniavgen.ingest.records import AUDIO_RATE, Passage, Span, SpokenWord
from uniavgen.shards.errors import UserError
from uniavgen.shards.weights import REGISTRY, resolve

SPEECH_PAD_S = 0.15
"""Sound taken along either side of a stretch of speech, so that no word loses its edge."""

FULL_PAD_S = 30.0
"""Silence that fills Whisper's whole window, whatever stands before it."""

LOOPING_COMPRESSION = 2.4
"""Whisper's own bound on the compression ratio, above which it decodes again."""


def whisper_model_path(config: TranscriptionConfig) -> str:
    """What WhisperX shall load: the folder of registered weights, a folder of the user's, or a model name for the hub."""
    if config.model in REGISTRY:
        return str(resolve(config.model))
    if os.sep in config.model and not (Path(config.model) / "model.bin").is_file():
        raise UserError(
            "no CTranslate2 Whisper model here",
            where=config.model,
            hint="name a folder with model.bin",
            kind="missing-weights",
        )
    return config.model


class Transcriber:
    """WhisperX with one Whisper model, loaded once."""

    def __init__(self, config: TranscriptionConfig, device: str = "cpu", threads: int = 1) -> None:
        os.environ["PYANNOTE_METRICS_ENABLED"] = (
            "0"  # whisperx imports pyannote, which counts its users otherwise
        )
        logging.getLogger("whisperx").setLevel(logging.ERROR)
        from whisperx.asr import find_numeral_symbol_tokens, load_model

        self.config = config
        self._model = _model_that_takes_encodings()(
            whisper_model_path(config), device=device, compute_type=config.compute_type, cpu_threads=threads
        )
        suppressed = [-1]
        if config.spell_numbers:
            suppressed += find_numeral_symbol_tokens(self._tokenizer("en"))
        asked = {"beam_size": config.beam_size, "suppress_tokens": suppressed}
        with contextlib.redirect_stdout(sys.stderr):  # it announces its arguments
            # the speakers' turns say where speech is: the voice detector that it would load is never asked
            pipeline = load_model("", device=device, model=self._model, vad_model=object(), asr_options=asked)
        self._options = pipeline.options
        self._aligner = word_aligner(config.align_model, device)

    def transcribe(self, sound: AudioFile, turns: list[Span]) -> tuple[list[Passage], list[SpokenWord]]:
        """Passages and words in order of time; nothing where there is no turn. Each word carries its speaker's label.

        The language is that of the longest chunk.
        """
        chunks = speech_chunks(sound, turns, self.config.chunk_seconds)
        if not chunks:
            return [], []
        longest = max(chunks, key=lambda chunk: (chunk.end_s - chunk.start_s, -chunk.start_s))
        first = self._encoded(sound, longest, self.config.encoder_pad_s)
        language, probability = self._language(first)
        passages, words = [], []
        for chunk in chunks:
            encoded = first if chunk is longest else self._encoded(sound, chunk, self.config.encoder_pad_s)
            passage, heard = self._passage(sound, chunk, encoded, language, probability)
            passages.append(passage)
            words += heard
        return passages, assign_word_speakers(words, turns)

    def _encoded(self, sound: AudioFile, chunk: Span, pad_s: float) -> Any:
        """The encoder's view of a chunk, made once for language, words, no-speech and attention.

        Whisper was trained on 30 s, and its encoder costs by what it is given. Ten seconds of silence after the speech do as
        well as all of them (measured); with few it may say a sentence twice, so what loops is heard again in full.
        """
        from whisperx.audio import N_SAMPLES, log_mel_spectrogram

        waveform = sound.span(chunk.start_s, chunk.end_s).astype(np.float32) / 32768
        padding = min(N_SAMPLES - len(waveform), round(pad_s * AUDIO_RATE))
        mels = self._model.feat_kwargs.get("feature_size") or 80
        features = log_mel_spectrogram(waveform[:N_SAMPLES], n_mels=mels, padding=max(0, padding))
        return self._model.encode(features[:, : features.shape[1] // 2 * 2])  # the encoder halves the frames

    def _language(self, encoded: Any) -> tuple[str, float]:
        """The language and its probability; one that the user fixed has what Whisper gives it."""
        ranked = [(token[2:-2], float(p)) for token, p in self._model.model.detect_language(encoded)[0]]
        if self.config.language:
            return self.config.language, dict(ranked).get(self.config.language, 0.0)
        return ranked[0]

    def _passage(
        self, sound: AudioFile, chunk: Span, encoded: Any, language: str, probability: float
    ) -> tuple[Passage, list[SpokenWord]]:
        tokenizer = self._tokenizer(language)
        found = self._model.generate_segment_batched(encoded, tokenizer, self._options)
        if is_repetitive(found["text"][0]) and self.config.encoder_pad_s < FULL_PAD_S:
            encoded = self._encoded(sound, chunk, FULL_PAD_S)
            found = self._model.generate_segment_batched(encoded, tokenizer, self._options)
        text = found["text"][0].strip()
        asked = self._model.model.generate(
            encoded, [list(tokenizer.sot_sequence)], max_length=8, beam_size=1, return_no_speech_prob=True
        )
        passage = Passage(
            chunk.start_s,
            chunk.end_s,
            text,
            language,
            probability,
            float(found["avg_logprob"][0]),
            float(asked[0].no_speech_prob),
            compression_ratio(text),
        )
        words = self._attended_words(tokenizer, text, encoded, chunk.end_s - chunk.start_s)
        words = self._aligner.retime(sound.span(chunk.start_s, chunk.end_s), words, language)
        return passage, [shift_word(word, chunk.start_s) for word in words]

    def _attended_words(self, tokenizer: Any, text: str, encoded: Any, seconds: float) -> list[SpokenWord]:
        """Words with times by Whisper's cross-attention and their probabilities, punctuation kept on its word."""
        from faster_whisper.transcribe import merge_punctuations

        tokens = tokenizer.encode(" " + text) if text else []
        frames = max(1, round(seconds * 100))
        rows = self._model.find_alignment(tokenizer, [tokens], encoded, frames) if tokens else [[]]
        found = rows[0] if rows else []
        merge_punctuations(found, "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、")
        return [
            SpokenWord(
                word["word"].strip(), float(word["start"]), float(word["end"]), float(word["probability"])
            )
            for word in found
            if any(letter.isalnum() for letter in word["word"])
        ]

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(
            self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language=language
        )


def speech_chunks(sound: AudioFile, turns: list[Span], longest_s: float) -> list[Span]:
    """Stretches of speech of at most `longest_s`, padded a little: turns are joined up to that length, and speech that
    goes on without a pause is split where it is quietest."""
    length = sound.duration_s
    spoken: list[list[float]] = []
    for turn in sorted(turns, key=lambda turn: turn.start_s):
        start, end = max(0.0, turn.start_s - SPEECH_PAD_S), min(length, turn.end_s + SPEECH_PAD_S)
        if spoken and start <= spoken[-1][1]:
            spoken[-1][1] = max(spoken[-1][1], end)
        else:
            spoken.append([start, end])
    chunks: list[list[float]] = []
    for start, end in spoken:
        while end - start > longest_s:
            middle = quietest_time(sound, start + longest_s / 2, start + longest_s)
            chunks.append([start, middle])
            start = middle
        if chunks and end - chunks[-1][0] <= longest_s:
            chunks[-1][1] = end
        else:
            chunks.append([start, end])
    return [Span(start, end) for start, end in chunks]


def assign_word_speakers(words: list[SpokenWord], turns: list[Span]) -> list[SpokenWord]:
    """Each word with the label of the turn that covers most of it, "" where none does."""
    turns = sorted(turns, key=lambda turn: turn.start_s)
    starts, heard_until = (
        [turn.start_s for turn in turns],
        list(accumulate((turn.end_s for turn in turns), max)),
    )
    found = []
    for word in words:
        shares: dict[str, float] = {}
        for turn in turns[bisect_right(heard_until, word.start_s) : bisect_left(starts, word.end_s)]:
            shared = min(word.end_s, turn.end_s) - max(word.start_s, turn.start_s)
            if shared > 0:
                shares[turn.label] = shares.get(turn.label, 0.0) + shared
        speaker = max(sorted(shares), key=lambda label: shares[label]) if shares else ""
        found.append(SpokenWord(word.text, word.start_s, word.end_s, word.score, speaker))
    return found


def shift_word(word: SpokenWord, by_s: float) -> SpokenWord:
    """The word, later by `by_s`."""
    return SpokenWord(word.text, word.start_s + by_s, word.end_s + by_s, word.score, word.speaker)


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of its zlib form (Whisper's own measure): a high one betrays a loop."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def is_repetitive(text: str) -> bool:
    """Whether a transcript repeats itself as recognisers do, or compresses like one that does (Whisper's own bound)."""
    return (repeated_ratio(text.split()) or 0.0) > 0 or compression_ratio(text) > LOOPING_COMPRESSION


def _model_that_takes_encodings() -> type:
    """WhisperX's model, which may also be given what it has encoded: language, words, no-speech and attention share it."""
    from ctranslate2 import StorageView
    from whisperx.asr import WhisperModel

    class SharedEncodingModel(WhisperModel):
        def encode(self, features: Any) -> Any:
            return features if isinstance(features, StorageView) else super().encode(features)

    return SharedEncodingModel
