"""What is said: WhisperX for the words, forced alignment for their times.

Goes in: int16 [n] at 16 kHz and the speakers' turns. Comes out: passages (what Whisper heard at once, with its language,
log-probability and no-speech probability) and words. A word's score is Whisper's probability of its tokens. Its times come
from forced alignment (`alignment`) for English; for other languages, and where alignment fails, from Whisper's own
attention, which starts words some 65-110 ms early.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ingest.alignment import WordAligner
from ingest.config import TranscriptionConfig
from ingest.records import AUDIO_RATE, Passage, Span, SpokenWord
from shards.errors import UserError
from shards.weights import REGISTRY, resolve

SPEECH_PAD_S = 0.15
"""Sound taken along either side of a stretch of speech, so that no word loses its edge."""


def whisper_source(config: TranscriptionConfig) -> str:
    """What WhisperX shall load: the folder of registered weights, a folder of the user's, or a model name for the hub."""
    if config.model in REGISTRY:
        return str(resolve(config.model))
    if os.sep in config.model and not (Path(config.model) / "model.bin").is_file():
        raise UserError(
            "no CTranslate2 Whisper model here", where=config.model, do="name a folder with model.bin", kind="missing-weights"
        )
    return config.model


class Transcriber:
    """WhisperX with one Whisper model, loaded once."""

    def __init__(self, config: TranscriptionConfig, device: str = "cpu", threads: int = 1) -> None:
        os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # whisperx imports pyannote, which counts its users otherwise
        logging.getLogger("whisperx").setLevel(logging.ERROR)
        from whisperx.asr import find_numeral_symbol_tokens, load_model

        self.config = config
        self._model = _remembering_model()(
            whisper_source(config), device=device, compute_type=config.compute_type, cpu_threads=threads
        )
        suppressed = [-1]
        if config.spell_numbers:
            suppressed += find_numeral_symbol_tokens(self._tokenizer("en"))
        with contextlib.redirect_stdout(sys.stderr):  # it announces its arguments
            self._pipeline = load_model(
                "",
                device=device,
                model=self._model,
                vad_model=_whole_chunk(),
                language=config.language,
                asr_options={"beam_size": config.beam_size, "suppress_tokens": suppressed},
            )
        self._aligner = WordAligner()

    def transcribe(self, pcm: np.ndarray, turns: list[Span]) -> tuple[list[Passage], list[SpokenWord]]:
        """Passages and words in order of time; nothing where there is no turn. Each word carries its speaker's label."""
        chunks = speech_chunks(pcm, turns, self.config.chunk_seconds)
        if not chunks:
            return [], []
        sound = pcm.astype(np.float32) / 32768
        longest = max(chunks, key=lambda chunk: (chunk.end_s - chunk.start_s, -chunk.start_s))
        language, probability = self._language(_cut(sound, longest))
        passages, words = [], []
        for chunk in chunks:
            passage, heard = self._passage(_cut(sound, chunk), _cut(pcm, chunk), chunk, language, probability)
            passages.append(passage)
            words += heard
        return passages, [with_speaker(word, turns) for word in words]

    def _language(self, sound: np.ndarray) -> tuple[str, float]:
        """The language of up to 30 s of sound and its probability; one that the user fixed has what Whisper gives it."""
        encoded = self._model.encode(self._features(sound))
        ranked = [(token[2:-2], float(p)) for token, p in self._model.model.detect_language(encoded)[0]]
        if self.config.language:
            return self.config.language, dict(ranked).get(self.config.language, 0.0)
        return ranked[0]

    def _passage(
        self, sound: np.ndarray, pcm: np.ndarray, chunk: Span, language: str, probability: float
    ) -> tuple[Passage, list[SpokenWord]]:
        found = self._pipeline.transcribe(sound, batch_size=1, language=language)["segments"]
        text = " ".join(segment["text"].strip() for segment in found).strip()
        log_probability = float(found[0]["avg_logprob"]) if found else 0.0
        tokenizer = self._tokenizer(language)
        encoded = self._model.encode(self._features(sound))
        asked = self._model.model.generate(
            encoded, [list(tokenizer.sot_sequence)], max_length=8, beam_size=1, return_no_speech_prob=True
        )
        passage = Passage(
            chunk.start_s, chunk.end_s, text, language, probability, log_probability,
            float(asked[0].no_speech_prob), compression_ratio(text),
        )  # fmt: skip
        words = self._attended_words(tokenizer, text, encoded, len(sound))
        if language == "en":
            words = self._aligner.retime(pcm, words)
        return passage, [shifted(word, chunk.start_s) for word in words]

    def _attended_words(self, tokenizer: Any, text: str, encoded: Any, samples: int) -> list[SpokenWord]:
        """Words with times by Whisper's cross-attention and their probabilities, punctuation kept on its word."""
        from faster_whisper.transcribe import merge_punctuations

        tokens = tokenizer.encode(" " + text) if text else []
        rows = self._model.find_alignment(tokenizer, [tokens], encoded, max(1, samples // 160)) if tokens else [[]]
        found = rows[0] if rows else []
        merge_punctuations(found, "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、")
        return [
            SpokenWord(word["word"].strip(), float(word["start"]), float(word["end"]), float(word["probability"]))
            for word in found
            if any(letter.isalnum() for letter in word["word"])
        ]

    def _features(self, sound: np.ndarray) -> Any:
        from whisperx.audio import N_SAMPLES, log_mel_spectrogram

        mels = self._model.feat_kwargs.get("feature_size") or 80
        return log_mel_spectrogram(sound, n_mels=mels, padding=N_SAMPLES - len(sound))

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language=language)


def speech_chunks(pcm: np.ndarray, turns: list[Span], longest_s: float) -> list[Span]:
    """Stretches of speech of at most `longest_s`, padded a little: turns are joined up to that length, and speech that
    goes on without a pause is split at its quietest tenth of a second."""
    length = len(pcm) / AUDIO_RATE
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
            middle = _quietest(pcm, start + longest_s / 2, start + longest_s)
            chunks.append([start, middle])
            start = middle
        if chunks and end - chunks[-1][0] <= longest_s:
            chunks[-1][1] = end
        else:
            chunks.append([start, end])
    return [Span(start, end) for start, end in chunks]


def with_speaker(word: SpokenWord, turns: list[Span]) -> SpokenWord:
    """The word with the label of the turn that covers most of it, "" where none does."""
    shares: dict[str, float] = {}
    for turn in turns:
        shared = min(word.end_s, turn.end_s) - max(word.start_s, turn.start_s)
        if shared > 0:
            shares[turn.label] = shares.get(turn.label, 0.0) + shared
    speaker = max(sorted(shares), key=lambda label: shares[label]) if shares else ""
    return SpokenWord(word.text, word.start_s, word.end_s, word.score, speaker)


def shifted(word: SpokenWord, by_s: float) -> SpokenWord:
    """The word, later by `by_s`."""
    return SpokenWord(word.text, word.start_s + by_s, word.end_s + by_s, word.score, word.speaker)


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of its zlib form (Whisper's own measure): a high one betrays a loop."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _cut(sound: np.ndarray, span: Span) -> np.ndarray:
    return sound[round(span.start_s * AUDIO_RATE) : round(span.end_s * AUDIO_RATE)]


def _quietest(pcm: np.ndarray, start_s: float, end_s: float) -> float:
    """Middle of the tenth of a second with the least energy between two times."""
    step = AUDIO_RATE // 10
    first = round(start_s * AUDIO_RATE)
    part = pcm[first : round(end_s * AUDIO_RATE)].astype(np.float32)
    energy = np.square(part[: len(part) // step * step].reshape(-1, step)).mean(axis=1)
    return (first + (int(energy.argmin()) + 0.5) * step) / AUDIO_RATE


def _remembering_model() -> type:
    """WhisperX's model that keeps its last encoding: language, words, no-speech and alignment then share one pass."""
    from whisperx.asr import WhisperModel

    class RememberingModel(WhisperModel):
        _heard: tuple[bytes, Any] = (b"", None)

        def encode(self, features: Any) -> Any:
            key = np.ascontiguousarray(features).tobytes()
            if self._heard[0] != key:
                self._heard = (key, super().encode(features))
            return self._heard[1]

    return RememberingModel


def _whole_chunk() -> Any:
    """A voice detector for WhisperX that calls all of it speech: what it is given was cut from the speakers' turns."""
    from whisperx.diarize import Segment
    from whisperx.vads.vad import Vad

    class WholeChunk(Vad):
        def __init__(self) -> None:
            super().__init__(0.5)

        def __call__(self, audio: Any, **kwargs: Any) -> list[Any]:
            return [Segment(0.0, audio["waveform"].shape[-1] / AUDIO_RATE, "")]

        @staticmethod
        def preprocess_audio(audio: np.ndarray) -> np.ndarray:
            return audio

        @staticmethod
        def merge_chunks(segments: list[Any], chunk_size: float, onset: float, offset: float) -> list[dict[str, Any]]:
            return [{"start": s.start, "end": s.end, "segments": [(s.start, s.end)]} for s in segments]

    return WholeChunk()
