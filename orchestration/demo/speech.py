"""Speech of the demo with known words, phones and turns.

Three voices come from one Piper model. It is played faster or slower, with the speaking rate set against it:
pitch and formants move together, so a speaker embedding separates the voices. The fourth voice is a real
recorded reading. A sentence in a voice gives the same samples every time, because the model's noise is a
fixed array.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.demo.reading import PASSAGES, PHRASES
from uniavgen.orchestration.demo.visemes import Phone
from uniavgen.shards.weights import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from onnx import ModelProto
    from piper import PiperVoice

RATE = 48_000
"""Sample rate of all demo speech before a source's codec changes it."""

VOICES: dict[str, tuple[Fraction, float]] = {
    "joe": (Fraction(1), 1.0),
    "ann": (Fraction(11, 9), 1.31),
    "bob": (Fraction(7, 9), 0.76),
}
"""Piper voices: playback speed, and Piper's `length_scale` that compensates for it.

ECAPA speaker embeddings: cosine below 0.5 between two voices, above 0.55 between two sentences of one voice
(tested)."""

NOISE = 0.4
"""Piper's `noise_scale` and `noise_w_scale`, below its defaults 0.667 and 0.8 for clearer speech.
Heuristic."""

PIPER_LATE_S = 0.050
"""Delay of Piper's phone times, measured on word starts; it is subtracted here."""

MOUTH_LAG_S = 0.027
"""Delay of the lips after the corrected phones: lips and audio then agree within 10 ms in every voice."""

_STRESS, _LENGTHENING, _PUNCTUATION = "ˈˌ", "ːʲ", ",.;:!?"


@dataclass(frozen=True)
class SpokenWord:
    """A spoken word; times in seconds."""

    text: str
    start_s: float
    end_s: float

    def shifted(self, by_s: float) -> SpokenWord:
        return SpokenWord(self.text, self.start_s + by_s, self.end_s + by_s)


@dataclass(frozen=True)
class Utterance:
    """A waveform float32 [n] at `RATE` with words and phones. `exact` is False if their times were
    aligned.
    """

    voice: str
    waveform: np.ndarray
    words: tuple[SpokenWord, ...]
    phones: tuple[Phone, ...]
    exact: bool


@dataclass(frozen=True)
class Track:
    """Utterances joined to an audio track, float32 [n] at `RATE`; all times are from its start.

    `turns`: one (voice, start, end) per utterance. `gaps`: instants between utterances, where the video may
    cut.
    """

    waveform: np.ndarray
    words: tuple[SpokenWord, ...]
    phones: tuple[Phone, ...]
    turns: tuple[tuple[str, float, float], ...]
    gaps: tuple[float, ...]
    exact: bool

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / RATE


def say(sentence: str, voice: str) -> Utterance:
    """A sentence in a voice of `VOICES`; the same samples every time.

    Raises ValueError if a word has no phones of its own.
    """
    from piper import SynthesisConfig

    speed, pace = VOICES[voice]
    settings = SynthesisConfig(length_scale=pace, noise_scale=NOISE, noise_w_scale=NOISE)
    chunks = list(_piper().synthesize(sentence, settings, include_alignments=True))
    if len(chunks) != 1 or not chunks[0].phoneme_alignments:
        raise ValueError(f"not one aligned sentence: {sentence!r}")
    clock = float(chunks[0].sample_rate * speed)
    spans = [(a.phoneme, int(a.num_samples) / clock) for a in chunks[0].phoneme_alignments]
    words, phones = _words_and_phones(sentence, spans, PIPER_LATE_S / float(speed))
    waveform = _resample(chunks[0].audio_float_array, Fraction(chunks[0].sample_rate) * speed)
    seen = tuple(phone.shifted(MOUTH_LAG_S / float(speed)) for phone in phones)
    return Utterance(voice, _level(waveform), words, seen, exact=True)


def read_passage(number: int) -> Utterance:
    """A passage of the real reading (`reading.PASSAGES`); its times were aligned."""
    import soundfile

    waveform, rate = soundfile.read(resolve("two-cities") / "two_cities.wav", dtype="float32")
    words: list[SpokenWord] = []
    phones: list[Phone] = []
    for text, start, spoken in chain.from_iterable(PHRASES[slice(*PASSAGES[number])]):
        clock = start / 100
        for symbol, length in (phone.split(":") for phone in spoken.split()):
            phones.append(Phone(symbol, clock, clock + int(length) / 100))
            clock += int(length) / 100
        words.append(SpokenWord(text, start / 100, clock))
    begin_s = words[0].start_s - 0.15
    part = waveform[round(begin_s * rate) : round((words[-1].end_s + 0.15) * rate)]
    return Utterance(
        "reader",
        _level(_resample(part, Fraction(rate))),
        tuple(w.shifted(-begin_s) for w in words),
        tuple(p.shifted(-begin_s) for p in phones),
        exact=False,
    )


def assemble(utterances: Sequence[Utterance], seed: int) -> Track:
    """Join utterances with pauses of 0.55-0.80 s, over background noise at -62 dBFS."""
    import numpy as np

    rng = np.random.default_rng(seed)
    parts, words, phones, turns, gaps = [], [], [], [], []
    clock, pause_before = 0.40, 0.0
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
    for start, speech in parts:
        first_sample = max(0, -start)
        inside = speech[first_sample : first_sample + total - max(0, start)]
        waveform[max(0, start) : max(0, start) + len(inside)] += inside
    return Track(
        waveform, tuple(words), tuple(phones), tuple(turns), tuple(gaps), all(u.exact for u in utterances)
    )


@lru_cache(maxsize=1)
def _piper() -> PiperVoice:
    """The Piper voice, with phone durations as a second output and constant noise."""
    import onnx
    import onnxruntime
    from piper import PiperVoice
    from piper.config import PiperConfig
    from piper.patch_voice_with_alignment import add_alignment_output

    folder = resolve("piper-joe")
    model = onnx.load(str(folder / "voice.onnx"))
    add_alignment_output(model)
    _freeze_noise(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return PiperVoice(session, PiperConfig.from_dict(json.loads((folder / "voice.onnx.json").read_text())))


def _freeze_noise(model: ModelProto) -> None:
    """Replace every random node by a fixed Gaussian array: ONNX Runtime's generator cannot be reset."""
    import numpy as np
    from onnx import helper, numpy_helper

    noise = np.random.default_rng(0).standard_normal((1, 192, 4096)).astype(np.float32)  # 47 s of speech
    model.graph.initializer.append(numpy_helper.from_array(noise, "fixed_noise"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.int64), "fixed_noise_start"))
    nodes = []
    for node in model.graph.node:
        if node.op_type != "RandomNormalLike":
            nodes.append(node)
            continue
        shape = f"{node.output[0]}_shape"
        nodes.append(helper.make_node("Shape", [node.input[0]], [shape]))
        nodes.append(helper.make_node("Slice", ["fixed_noise", "fixed_noise_start", shape], [node.output[0]]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _words_and_phones(
    sentence: str, spans: list[tuple[str, float]], late_s: float
) -> tuple[tuple[SpokenWord, ...], tuple[Phone, ...]]:
    """Words and phones from Piper's tokens (symbol, seconds).

    A stress mark's time is added to the next phone.
    """
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
    """Scale to one level: RMS of the louder half of 20 ms frames; peaks stay below full scale."""
    import numpy as np

    frames = waveform[: len(waveform) // 960 * 960].reshape(-1, 960)
    power = np.sort((frames**2).mean(axis=1))
    gain = 10 ** (target_db / 20) / np.sqrt(power[len(power) // 2 :].mean() + 1e-12)
    return (waveform * min(gain, 0.95 / np.abs(waveform).max())).astype(np.float32)
