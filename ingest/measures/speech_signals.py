"""What is said in a clip, in numbers: how much speech, whose, how surely heard, and whether the recogniser made it up.

Goes in: the clip's words, the passage that Whisper heard them in, the source's turns. Comes out: the signals of
`SPEECH_SIGNALS`, as `shards.corpus.signals` describes them; None where there is nothing to measure. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from uniavgen.ingest.records import Passage, Span, SpokenWord

SPEECH_SIGNALS = (
    "speech_ratio",
    "overlap_ratio",
    "speaker_count",
    "word_count",
    "words_per_s",
    "word_score",
    "language_probability",
    "asr_log_probability",
    "no_speech_probability",
    "asr_compression_ratio",
    "repeated_ratio",
    "stock_phrase",
    "unvoiced_word_ratio",
)
"""What `speech_signals` measures of a clip; all None for a source without a sound track."""

LONGEST_LOOP = 30
"""Words of the longest phrase whose repetition is looked for: a long sentence (our choice)."""

STOCK_PHRASES = frozenset(
    {
        # credits and farewells of subtitled videos, which Whisper was trained on and says in silence, noise and music
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
"""What Whisper invents where nobody speaks, lower case without punctuation: phrases that its users report and those that
the embedded weights said to noise, tones and silence. A clip that says one of them and nothing else is marked, not judged."""


def speech_signals(
    words: Sequence[SpokenWord],
    passage: Passage | None,
    turns: Sequence[Span],
    speaker: str,
    start_s: float,
    end_s: float,
) -> dict[str, float | None]:
    """`SPEECH_SIGNALS` of the clip between two times (s); `speaker` is the label of who speaks in it, "" where unknown."""
    length = end_s - start_s
    heard = [turn for turn in turns if turn.end_s > start_s and turn.start_s < end_s]
    own = [turn for turn in heard if turn.label == speaker] if speaker else heard
    other = [turn for turn in heard if turn.label != speaker] if speaker else []
    both = covered(own, start_s, end_s) + covered(other, start_s, end_s) - covered(heard, start_s, end_s)
    texts = [word.text for word in words]
    return {
        "speech_ratio": covered(own, start_s, end_s) / length,
        "overlap_ratio": both / length,
        "speaker_count": float(len({turn.label for turn in heard})),
        "word_count": float(len(words)),
        "words_per_s": len(words) / length,
        "word_score": float(np.mean([word.score for word in words])) if words else None,
        "language_probability": passage.language_probability if passage else None,
        "asr_log_probability": passage.log_probability if passage else None,
        "no_speech_probability": passage.no_speech_probability if passage else None,
        "asr_compression_ratio": passage.compression_ratio if passage else None,
        "repeated_ratio": repeated_ratio(texts),
        "stock_phrase": stock_phrase(texts),
        "unvoiced_word_ratio": unvoiced_ratio(words, turns),
    }


def covered(spans: Sequence[Span], start_s: float, end_s: float) -> float:
    """Seconds of [start_s, end_s] that the union of the spans covers."""
    total, reached = 0.0, start_s
    for span in sorted(spans, key=lambda span: span.start_s):
        low, high = max(span.start_s, reached), min(span.end_s, end_s)
        if high > low:
            total += high - low
            reached = high
    return total


def repeated_ratio(texts: Sequence[str]) -> float | None:
    """Share of words that stand in a loop: a phrase of three words or more said twice at once, a shorter one three times.

    None without words. People say "no, no" and "bye bye"; a recogniser that loops goes on.
    """
    plain = [plain_text(text) for text in texts]
    if not plain:
        return None
    looped = np.zeros(len(plain), bool)
    for length in range(1, min(LONGEST_LOOP, len(plain) // 2) + 1):
        times = 2 if length >= 3 else 3
        run = 0  # words that equal the one a phrase before them, without a break
        for index in range(length, len(plain)):
            run = run + 1 if plain[index] == plain[index - length] else 0
            if run >= length * (times - 1):
                looped[index - run - length + 1 : index + 1] = True
    return float(looped.mean())


def stock_phrase(texts: Sequence[str]) -> float | None:
    """1 where the words are one of `STOCK_PHRASES`, once or again and again, and nothing else; None without words."""
    if not texts:
        return None
    plain = [word for word in (plain_text(text) for text in texts) if word]
    for length in range(1, len(plain) + 1):
        phrase = plain[:length]
        if (
            len(plain) % length == 0
            and phrase * (len(plain) // length) == plain
            and " ".join(phrase) in STOCK_PHRASES
        ):
            return 1.0
    return 0.0


def unvoiced_ratio(words: Sequence[SpokenWord], turns: Sequence[Span]) -> float | None:
    """Share of the words' time in which no turn of anybody is; None without words."""
    length = sum(word.end_s - word.start_s for word in words)
    if length <= 0:
        return None
    first_s, last_s = min(word.start_s for word in words), max(word.end_s for word in words)
    near = [
        turn for turn in turns if turn.end_s > first_s and turn.start_s < last_s
    ]  # of hours of turns a few
    return 1.0 - sum(covered(near, word.start_s, word.end_s) for word in words) / length


def plain_text(text: str) -> str:
    """Lower case, letters and digits alone, single spaces between words."""
    return " ".join(re.sub(r"[^\w\s]|_", "", text.lower()).split())
