"""Step `transcribe`: words, their times and their speakers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.measures.clip_parts import clip_passage, covered_seconds
from uniavgen.ingest.models.transcriber import Transcriber, repeated_ratio, whisper_model_path
from uniavgen.ingest.records import (
    Diarization,
    Passage,
    Probe,
    Proposal,
    Proposals,
    SourceRecord,
    Span,
    SpokenWord,
    Transcript,
)
from uniavgen.shards.corpus.signals import signals_of
from uniavgen.shards.text import count_words, plain_text

STOCK_PHRASES = frozenset(
    {
        # credits and farewells of subtitled videos, Whisper's training data; it outputs them for noise
        "halt",
        "thank you",
        "thank you very much",
        "thank you so much",
        "thanks",
        "thank you for watching",
        "thanks for watching",
        "thank you so much for watching",
        "thank you for listening",
        "thanks for listening",
        "please subscribe",
        "please subscribe to my channel",
        "like and subscribe",
        "dont forget to like and subscribe",
        "subscribe",
        "see you next time",
        "see you in the next video",
        "ill see you in the next video",
        "ill see you next time",
        "bye",
        "bye bye",
        "goodbye",
        "you",
        "the end",
        "to be continued",
        "music",
        "applause",
        "foreign",
        "silence",
        "im sorry",
        "im going to go ahead and get started",
        "this is the end of the video",
        "subtitles by the amaraorg community",
        "transcription by castingwords",
        "subtitles by",
        "captions by",
        "untertitel der amaraorgcommunity",
        "untertitel im auftrag des zdf für funk 2017",
        "vielen dank",
        "soustitres réalisés par la communauté damaraorg",
        "soustitres réalisés para la communauté damaraorg",
        "merci davoir regardé cette vidéo",
        "subtítulos realizados por la comunidad de amaraorg",
        "gracias",
        "sottotitoli creati dalla comunità amaraorg",
        "legendas pela comunidade amaraorg",
        "obrigado",
        "продолжение следует",
        "субтитры сделал dimatorzok",
        "спасибо за просмотр",
        "спасибо",
        "ご視聴ありがとうございました",
        "请不吝点赞 订阅 转发 打赏支持明镜与点点栏目",
        "시청해주셔서 감사합니다",
    }
)
"""Phrases that Whisper outputs where nobody speaks, in lower case without punctuation: those that its users
report, and those that the embedded weights output for noise, tones and silence. A clip that consists of one
of them is marked by the signal `stock_phrase`."""


class TranscribeStep(Step):
    """What is said."""

    name = "transcribe"
    pool = "speech"
    version = "3"
    needs = ("sound", "diarize")
    settings = ("transcription",)
    result = Transcript
    _transcriber: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        whisper_model_path(config.transcription)

    def load(self) -> None:
        if self._transcriber is None:
            self._transcriber = Transcriber(
                self.config.transcription, self.config.device, self.config.pools.speech.threads
            )

    def measure(self, record: SourceRecord) -> Transcript:
        turns = record.result(Diarization).turns
        return Transcript(*self._transcriber.transcribe(record.result(AudioFile), turns))

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        if not record.result(Probe).has_audio:
            return dict.fromkeys(signals_of("transcribe"))
        clip = record.result(Proposals).clips[index]
        passage = clip_passage(record.result(Transcript).passages, clip)
        return word_signals(clip, passage, record.result(Diarization).turns)


def word_signals(clip: Proposal, passage: Passage | None, turns: Sequence[Span]) -> dict[str, float | None]:
    """Signals of a clip's words. `passage` holds them; `turns` are all speaker turns of the source."""
    words = clip.words
    texts = [word.text for word in words]
    count = sum(count_words(text) for text in texts)
    return {
        "word_count": count,
        "words_per_s": count / (clip.end_s - clip.start_s),
        "word_score": float(np.mean([word.score for word in words])) if words else None,
        "language_probability": passage.language_probability if passage else None,
        "asr_log_probability": passage.log_probability if passage else None,
        "no_speech_probability": passage.no_speech_probability if passage else None,
        "asr_compression_ratio": passage.compression_ratio if passage else None,
        "repeated_ratio": repeated_ratio(texts),
        "stock_phrase": stock_phrase(texts),
        "unvoiced_word_ratio": unvoiced_ratio(words, turns),
    }


def stock_phrase(texts: Sequence[str]) -> float | None:
    """1 if the words are one of `STOCK_PHRASES`, once or repeated, and nothing else; None without words.

    White space does not count: how a phrase is divided into words depends on the recogniser.
    """
    if not texts:
        return None
    letters = _letters("".join(texts))
    repeated = any(letters == phrase * (len(letters) // len(phrase)) for phrase in _stock_letters())
    return float(bool(letters) and repeated)


@cache
def _stock_letters() -> frozenset[str]:
    return frozenset(_letters(phrase) for phrase in STOCK_PHRASES)


def _letters(text: str) -> str:
    return plain_text(text).replace(" ", "")


def unvoiced_ratio(words: Sequence[SpokenWord], turns: Sequence[Span]) -> float | None:
    """Share of the words' time outside every speaker turn; None without words."""
    length = sum(word.end_s - word.start_s for word in words)
    if length <= 0:
        return None
    first_s, last_s = min(word.start_s for word in words), max(word.end_s for word in words)
    near = [turn for turn in turns if turn.end_s > first_s and turn.start_s < last_s]
    return 1.0 - sum(covered_seconds(near, word.start_s, word.end_s) for word in words) / length
