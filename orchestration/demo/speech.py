"""The demo's voices: speech whose words, phones and turns are known.

In: sentences and a seed. Out: utterances with word and phone times, and sound tracks put together from them.
Three voices come from one Piper model: played faster or slower (with the speaking rate set against it) pitch and
formants move together, and a speaker embedder hears different people. The fourth is a real recorded reading.
Same seed, same samples, on one version of onnxruntime: its noise generators are seeded when a session is made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from orchestration.demo.visemes import Phone
from shards.weights import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

RATE = 48_000
"""Sample rate of all demo speech before a source's codec changes it."""

VOICES: dict[str, Fraction] = {"joe": Fraction(1), "ann": Fraction(11, 9), "bob": Fraction(7, 9)}
"""Piper voices by name: how much faster than recorded they are played. ECAPA cosine between them is 0.0-0.4, within 0.8."""

PIPER_LATE_S = 0.050
"""Piper's phone times come this much after the sound they stand for (measured; subtracted here)."""

PASSAGES: tuple[tuple[float, float, str], ...] = (
    (1.00, 8.45, "it was the best of times it was the worst of times it was the age of wisdom it was the age of foolishness"),
    (13.15, 20.70, "it was the season of light it was the season of darkness it was the spring of hope it was the winter of despair"),
    (
        20.98,
        28.50,
        "we had everything before us we had nothing before us we were all going direct to heaven "
        "we were all going direct the other way",
    ),
    (
        28.90,
        36.75,
        "in short the period was so far like the present period that some of its noisiest authorities "
        "insisted on its being received",
    ),
)
"""Parts of the recorded reading (start, end in seconds, words), cut in its pauses."""

_VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())
_STRESS, _LENGTHENING, _PUNCTUATION = "ˈˌ", "ːʲ", ",.;:!?"


@dataclass(frozen=True)
class SpokenWord:
    """A word and when it is said, in seconds."""

    text: str
    start_s: float
    end_s: float

    def shifted(self, by_s: float) -> SpokenWord:
        return SpokenWord(self.text, self.start_s + by_s, self.end_s + by_s)


@dataclass(frozen=True)
class Utterance:
    """Sound float32 [n] at `RATE` with its words and phones; `exact` is False where times were aligned, not planted."""

    voice: str
    waveform: np.ndarray
    words: tuple[SpokenWord, ...]
    phones: tuple[Phone, ...]
    exact: bool


@dataclass(frozen=True)
class Track:
    """A whole sound track: sound float32 [n] at `RATE`, its utterances' words and phones on the track's clock,
    one turn (voice, start, end) for each utterance, and the instants between utterances where a picture may cut."""

    waveform: np.ndarray
    words: tuple[SpokenWord, ...]
    phones: tuple[Phone, ...]
    turns: tuple[tuple[str, float, float], ...]
    gaps: tuple[float, ...]
    exact: bool

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / RATE


class Narrator:
    """Speaks sentences with the Piper voice. A new one with the same seed speaks the same samples."""

    def __init__(self, seed: int) -> None:
        import onnxruntime
        from piper import PiperVoice
        from piper.config import PiperConfig

        folder = resolve("piper-joe")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        onnxruntime.set_seed(seed)  # noise nodes take their seed from here when the session is made
        session = onnxruntime.InferenceSession(_patched_model(), sess_options=options, providers=["CPUExecutionProvider"])
        config = PiperConfig.from_dict(json.loads((folder / "voice.onnx.json").read_text()))
        self._voice = PiperVoice(session=session, config=config)

    def say(self, sentence: str, voice: str) -> Utterance:
        """One sentence in a voice of `VOICES`. Raises ValueError where a word of it has no phones of its own."""
        from piper import SynthesisConfig

        speed = VOICES[voice]
        settings = SynthesisConfig(length_scale=float(speed) * 1.04, noise_scale=0.5, noise_w_scale=0.5)
        chunks = list(self._voice.synthesize(sentence, settings, include_alignments=True))
        if len(chunks) != 1 or not chunks[0].phoneme_alignments:
            raise ValueError(f"not one aligned sentence: {sentence!r}")
        clock = float(chunks[0].sample_rate * speed)
        spans = [(a.phoneme, int(a.num_samples) / clock) for a in chunks[0].phoneme_alignments]
        words, phones = _words_and_phones(sentence, spans, PIPER_LATE_S / float(speed))
        waveform = _resample(chunks[0].audio_float_array, Fraction(chunks[0].sample_rate) * speed)
        return Utterance(voice, _level(waveform), words, phones, exact=True)


def read_passage(number: int) -> Utterance:
    """A passage of the real reading; its times come from forced alignment by pocketsphinx (about 10 ms, not exact)."""
    import soundfile

    start_s, end_s, text = PASSAGES[number]
    waveform, rate = soundfile.read(resolve("two-cities") / "two_cities.wav", dtype="float32")
    part = waveform[round(start_s * rate) : round(end_s * rate)]
    words, phones = align(_resample(part, Fraction(rate), 16_000), text)
    return Utterance("reader", _level(_resample(part, Fraction(rate))), words, phones, exact=False)


def align(waveform: np.ndarray, text: str) -> tuple[tuple[SpokenWord, ...], tuple[Phone, ...]]:
    """Words and phones of `text` in sound float32 [n] at 16 kHz.

    Phones share their word's time by weight (vowels 2, consonants 1): the aligner's own phone pass fails on long pauses.
    """
    import numpy as np
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=16_000, loglevel="FATAL")
    decoder.set_align_text(text)
    decoder.start_utt()
    decoder.process_raw((np.clip(waveform, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    words, phones = [], []
    for segment in decoder.seg():
        if segment.word.startswith("<"):
            continue
        start_s, end_s = segment.start_frame / 100, (segment.end_frame + 1) / 100
        words.append(SpokenWord(segment.word.split("(")[0], start_s, end_s))
        symbols = decoder.lookup_word(segment.word).split()
        edges = np.cumsum([0.0] + [2.0 if s in _VOWELS else 1.0 for s in symbols])
        edges = start_s + (end_s - start_s) * edges / edges[-1]
        phones += [Phone(s, float(a), float(b)) for s, a, b in zip(symbols, edges, edges[1:], strict=False)]
    if [w.text for w in words] != text.split():
        raise ValueError(f"the words were not found in the sound: {text!r}")
    return tuple(words), tuple(phones)


def assemble(utterances: Sequence[Utterance], seed: int) -> Track:
    """Utterances one after the other with pauses of 0.55-0.80 s, over a quiet room (noise at -62 dBFS)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    parts, words, phones, turns, gaps = [], [], [], [], []
    clock = 0.40
    for index, utterance in enumerate(utterances):
        first, last = utterance.words[0].start_s, utterance.words[-1].end_s
        pause = 0.55 + 0.25 * float(rng.random())
        begin = round((clock - first) * RATE) / RATE if index else max(0.0, clock - first)
        if index:
            gaps.append(clock - pause_before / 2)
        parts.append((round(begin * RATE), utterance.waveform))
        words += [w.shifted(begin) for w in utterance.words]
        phones += [p.shifted(begin) for p in utterance.phones]
        turns.append((utterance.voice, first + begin, last + begin))
        clock, pause_before = last + begin + pause, pause
    total = round((turns[-1][2] + 0.50) * RATE)
    waveform = (rng.standard_normal(total) * 10 ** (-62 / 20)).astype(np.float32)
    for start, sound in parts:
        first_sample = max(0, -start)
        piece = sound[first_sample : first_sample + total - max(0, start)]
        waveform[max(0, start) : max(0, start) + len(piece)] += piece
    return Track(waveform, tuple(words), tuple(phones), tuple(turns), tuple(gaps), all(u.exact for u in utterances))


@lru_cache(maxsize=1)
def _patched_model() -> bytes:
    """The voice model with its phone durations as a second output."""
    import onnx
    from piper.patch_voice_with_alignment import add_alignment_output

    model = onnx.load(str(resolve("piper-joe") / "voice.onnx"))
    add_alignment_output(model)
    data: bytes = model.SerializeToString()
    return data


def _words_and_phones(
    sentence: str, spans: list[tuple[str, float]], late_s: float
) -> tuple[tuple[SpokenWord, ...], tuple[Phone, ...]]:
    """Times of words and phones from Piper's tokens (symbol, seconds); a stress mark's time goes to the next phone."""
    groups: list[list[Phone]] = [[]]
    clock, pending = -late_s, 0.0
    for symbol, length in spans:
        if symbol in _STRESS:
            pending += length
        elif symbol in _LENGTHENING and groups[-1]:
            last = groups[-1].pop()
            groups[-1].append(Phone(last.symbol, last.start_s, last.end_s + length))
            clock += length
        elif symbol in " ^$" or symbol in _PUNCTUATION:
            if groups[-1] and symbol == " ":
                groups.append([])
            clock += length
        else:
            groups[-1].append(Phone(symbol, clock, clock + pending + length))
            clock, pending = clock + pending + length, 0.0
    texts = [w.strip(_PUNCTUATION) for w in sentence.split()]
    groups = [g for g in groups if g]
    if len(groups) != len(texts):
        raise ValueError(f"{len(texts)} words but {len(groups)} spoken: {sentence!r}")
    words = tuple(SpokenWord(t, g[0].start_s, g[-1].end_s) for t, g in zip(texts, groups, strict=True))
    return words, tuple(phone for group in groups for phone in group)


def _resample(waveform: np.ndarray, rate: Fraction, to: int = RATE) -> np.ndarray:
    from scipy.signal import resample_poly

    ratio = to / rate
    result: Any = resample_poly(waveform, ratio.numerator, ratio.denominator)
    return result.astype("float32")


def _level(waveform: np.ndarray, target_db: float = -21.0) -> np.ndarray:
    """Scaled to one loudness (RMS of the louder half of 20 ms frames), peaks kept under full scale."""
    import numpy as np

    frames = waveform[: len(waveform) // 960 * 960].reshape(-1, 960)
    power = np.sort((frames**2).mean(axis=1))
    gain = 10 ** (target_db / 20) / np.sqrt(power[len(power) // 2 :].mean() + 1e-12)
    return (waveform * min(gain, 0.95 / np.abs(waveform).max())).astype(np.float32)
