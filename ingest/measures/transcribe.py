"""Step `transcribe`: words, their times and their speakers."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io.audio import AudioFile, made_audio
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
from uniavgen.shards.text import count_words, find_words, has_marks, plain_text, script_gap, word_spans

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


_UNREAD = re.compile(r"[^\W_a-z]", re.IGNORECASE)
"""Letters and digits that the English aligner of version 2 passed over."""


class TranscribeStep(Step):
    """What is said."""

    name = "transcribe"
    pool = "speech"
    version = "3"
    earlier_version = "2"
    has_variants = True
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

    def try_models(self) -> None:
        with made_audio(0.5) as audio:
            self._transcriber.detect_language(audio)

    def measure(self, record: SourceRecord) -> Transcript:
        turns = record.result(Diarization).turns
        passages, words = self._transcriber.transcribe(record.result(AudioFile), turns)
        return Transcript(passages, words, f"words {self.version}")

    def revise(self, record: SourceRecord, earlier: Transcript) -> Transcript | None:
        """Version 2 joined the turns of several speakers, in one language, and pieces of words by spaces.

        The passages hold the text as it was recognised, so words are put together anew without Whisper.
        """
        if len({turn.label for turn in record.result(Diarization).turns}) > 1:
            return None
        words = rejoined_words(earlier)
        if words is None:
            return None
        if words == earlier.words and not any(has_marks(word.text) for word in words):
            return earlier
        return Transcript(earlier.passages, words, f"words {self.version}")

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        if not record.result(Probe).has_audio:
            return dict.fromkeys(signals_of("transcribe"))
        clip = record.result(Proposals).clips[index]
        passage = clip_passage(record.result(Transcript).passages, clip)
        return word_signals(clip, passage, record.result(Diarization).turns)


def rejoined_words(earlier: Transcript) -> list[SpokenWord] | None:
    """The words of version 2 (pieces, without white space), put together as their passages have them.

    None where a passage does not tell, or its times were aligned without what version 2 could not read out:
    digits, and letters with accents.
    """
    ends = [passage.end_s for passage in earlier.passages]
    pieces: list[list[SpokenWord]] = [[] for _ in earlier.passages]
    for piece in earlier.words:
        index = bisect_right(ends, (piece.start_s + piece.end_s) / 2)
        pieces[min(index, len(ends) - 1)].append(piece)
    words: list[SpokenWord] = []
    for passage, own in zip(earlier.passages, pieces, strict=True):
        spans = find_words(passage.text, [piece.text for piece in own])
        if spans is None or (passage.language == "en" and _UNREAD.search(passage.text)):
            return None
        joined = _rejoin(passage.text, own, spans)
        if joined is None:
            return None
        if joined and words:
            joined[0] = replace(joined[0], gap=script_gap(words[-1].text, joined[0].text))
        words += joined
    return words


def _rejoin(
    text: str, pieces: Sequence[SpokenWord], spans: Sequence[tuple[int, int]]
) -> list[SpokenWord] | None:
    """Words of a passage from pieces that lie at `spans` of it; None if a word has no piece."""
    words: list[SpokenWord] = []
    reached = 0
    for start, end in word_spans(text, [piece_end for _, piece_end in spans]):
        inside = [piece for piece, span in zip(pieces, spans, strict=True) if start <= span[0] < end]
        if not inside:
            return None
        score = float(np.mean([piece.score for piece in inside]))
        speaker = next((piece.speaker for piece in inside if piece.speaker), "")
        gap = text[reached:start] if words else " "
        words.append(SpokenWord(text[start:end], inside[0].start_s, inside[-1].end_s, score, speaker, gap))
        reached = end
    return words


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
