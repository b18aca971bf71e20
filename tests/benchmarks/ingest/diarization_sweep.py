"""Diarization error by clustering threshold, smallest voice, speech threshold and stride.

Run: python tests/benchmarks/ingest/diarization_sweep.py [--cache FOLDER]. It mixes conversations (synthetic
and recorded voices, short turns, planted overlap, half of them over a noisy telephone band), segments each
once, and scores every setting. pyannote's sample.wav is not among them and is scored at the end only, at the
default settings.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pyannote.core import Annotation, Segment, SlidingWindow, SlidingWindowFeature
from scipy.signal import butter, resample_poly, sosfilt

from uniavgen.ingest.config import DiarizationConfig
from uniavgen.ingest.models.diarizer import ChunkSpeech, EmbeddedDiarizer, assign_speakers, chunk_turns
from uniavgen.ingest.records import AUDIO_RATE, Span

CASTS = (
    ("joe", "ann"),
    ("joe", "bob"),
    ("ann", "bob"),
    ("joe", "reader"),
    ("bob", "reader"),
    ("ann", "beckett"),
    ("joe", "ann", "bob"),
    ("bob", "clone", "ann"),
    ("joe",),
    ("reader",),
)
CLUSTER_THRESHOLDS = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)
SMALLEST_VOICES_S = (1.0, 2.0, 4.0, 6.0, 9.0)
SPEECH_THRESHOLDS = (0.5, 0.35, 0.65)
SCHEDULES = ((1, 1), (1, 2), (1, 3), (1, 5), (2, 1), (2, 2), (3, 1), (5, 1))
"""(every n-th window, speaker embeddings in every m-th of those)."""


@dataclass
class Conversation:
    """int16 [n] at 16 kHz and its true speaker turns."""

    name: str
    pcm: np.ndarray
    turns: list[Span]


@cache
def utterances(voice: str) -> list[np.ndarray]:
    """float32 [n] utterances of one voice at 16 kHz, long and short."""
    import soundfile

    from uniavgen.orchestration.demo import script, speech
    from uniavgen.shards.weights import resolve

    if voice in speech.VOICES:
        said = [speech.say(sentence, voice) for sentence in script.SENTENCES[8:17]]
        whole = [resample_poly(u.waveform, 1, 3) for u in said]
        # every third is a short answer: its first four words
        pairs = enumerate(zip(whole, said, strict=True))
        return [w[: round(u.words[3].end_s * AUDIO_RATE)] if i % 3 == 2 else w for i, (w, u) in pairs]
    path = {
        "reader": resolve("two-cities") / "two_cities.wav",
        "beckett": resolve("short-readings") / "beckett.wav",
        "clone": resolve("short-readings") / "clone-test.wav",
    }[voice]
    waveform, rate = soundfile.read(path, dtype="float32")
    waveform = resample_poly(waveform, AUDIO_RATE, rate)
    stretches = spoken(waveform)
    return [waveform[round(s.start_s * AUDIO_RATE) : round(s.end_s * AUDIO_RATE)] for s in stretches]


def spoken(waveform: np.ndarray, pause_s: float = 0.4, below_db: float = 35.0) -> list[Span]:
    """Spans within `below_db` of the loudest 20 ms, split at pauses."""
    power = np.square(waveform[: len(waveform) // 320 * 320].reshape(-1, 320)).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (-below_db / 10))
    parts = np.split(loud, np.flatnonzero(np.diff(loud) > pause_s / 0.02) + 1)
    return [Span(p[0] * 0.02, (p[-1] + 1) * 0.02) for p in parts if len(p) > 10]


def conversation(cast: tuple[str, ...], seed: int, least_s: float = 26.0) -> Conversation:
    """The cast takes turns, sometimes with overlap; odd seeds have the band and noise of a telephone."""
    rng = np.random.default_rng(seed)
    said = {voice: itertools.cycle(utterances(voice)) for voice in cast}
    sound, turns, clock = np.zeros(round((least_s + 20) * AUDIO_RATE), np.float32), [], 0.4
    for index in itertools.count():
        voice = cast[index % len(cast)]
        waveform = next(said[voice])
        waveform = waveform * (0.08 / np.sqrt(np.square(waveform).mean() + 1e-9)) * rng.uniform(0.6, 1.4)
        first = round(clock * AUDIO_RATE)
        sound[first : first + len(waveform)] += waveform[: len(sound) - first]
        turns += [
            Span(clock + s.start_s, clock + s.end_s, voice) for s in spoken(waveform, 0.2, 25.0)
        ]  # recordings breathe
        overlap = len(cast) > 1 and index % 4 == 3
        clock += len(waveform) / AUDIO_RATE + (-0.8 if overlap else rng.uniform(0.15, 0.8))
        if clock > least_s:
            break
    sound = sound[: round((max(turn.end_s for turn in turns) + 0.5) * AUDIO_RATE)]
    if seed % 2:
        sound = sosfilt(butter(4, (300, 3400), "bandpass", fs=AUDIO_RATE, output="sos"), sound)
        sound = sound + 0.008 * rng.standard_normal(len(sound))
    return Conversation(
        "+".join(cast) + ("~" if seed % 2 else ""),
        (sound * 32767).clip(-32768, 32767).astype(np.int16),
        turns,
    )


def annotation(turns: list[Span]) -> Annotation:
    found = Annotation()
    for index, turn in enumerate(turns):
        found[Segment(turn.start_s, turn.end_s), index] = turn.label
    return found


def chunk_of(
    diarizer: EmbeddedDiarizer, talk: Conversation, cache: Path, speech_threshold: float
) -> ChunkSpeech:
    """Segmentation and speaker embeddings of a conversation, cached on disk."""
    path = cache / f"{talk.name}-{len(talk.pcm)}-{speech_threshold}.npz"
    if not path.exists():
        chunk = diarizer.segment(talk.pcm)
        window = chunk.scores.sliding_window
        np.savez(
            path,
            scores=chunk.scores.data,
            voices=chunk.voices,
            window=[window.start, window.duration, window.step],
        )
    kept = np.load(path)
    start, duration, step = kept["window"]
    scores = SlidingWindowFeature(kept["scores"], SlidingWindow(start=start, duration=duration, step=step))
    return diarizer.chunk_speech(scores, kept["voices"])


def thinned(diarizer: EmbeddedDiarizer, chunk: ChunkSpeech, windows: int, voices: int) -> ChunkSpeech:
    """The chunk with every n-th window only, and speaker embeddings in every m-th of them."""
    old = chunk.scores.sliding_window
    step = SlidingWindow(start=old.start, duration=old.duration, step=old.step * windows)
    kept = np.full_like(chunk.voices[::windows], np.nan)
    kept[::voices] = chunk.voices[:: windows * voices]
    return diarizer.chunk_speech(SlidingWindowFeature(chunk.scores.data[::windows], step), kept)


def error_rate(
    talks: list[Conversation], chunks: list[ChunkSpeech], threshold: float, smallest_s: float, voices: int
) -> float:
    """Diarization error rate over all conversations together, without a collar, overlap counted."""
    from pyannote.metrics.diarization import DiarizationErrorRate

    metric = DiarizationErrorRate()
    for talk, chunk in zip(talks, chunks, strict=True):
        (labels,), _ = assign_speakers(
            [chunk], threshold, smallest_s / (chunk.scores.sliding_window.step * voices)
        )
        metric(annotation(talk.turns), annotation(chunk_turns(chunk, labels)))
    return float(abs(metric))


def sample() -> Conversation:
    import pyannote.audio
    import soundfile
    from pyannote.database.util import load_rttm

    base = Path(pyannote.audio.__file__).parent / "sample" / "sample"
    (truth,) = load_rttm(f"{base}.rttm").values()
    turns = [Span(turn.start, turn.end, label) for turn, _, label in truth.itertracks(yield_label=True)]
    return Conversation("sample.wav", soundfile.read(f"{base}.wav", dtype="int16")[0], turns)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "diarization-sweep")
    cache = parser.parse_args().cache
    cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    talks = [conversation(cast, seed) for seed, cast in enumerate(CASTS)]
    print(
        f"{len(talks)} conversations, {sum(len(t.pcm) for t in talks) / AUDIO_RATE:.0f} s:",
        *(t.name for t in talks),
    )
    at = {}
    for speech_threshold in SPEECH_THRESHOLDS:
        # the default threshold has embeddings in every window, so that sparser schedules can be derived
        stride = 1 if speech_threshold == DiarizationConfig().segmentation_threshold else 3
        config = DiarizationConfig(
            segmentation_threshold=speech_threshold, segmentation_step=0.1, voice_stride=stride
        )
        diarizer = EmbeddedDiarizer(config)
        at[speech_threshold] = diarizer, [chunk_of(diarizer, talk, cache, speech_threshold) for talk in talks]
    for speech_threshold, (diarizer, whole) in at.items():
        chunks = [thinned(diarizer, chunk, 1, 3) for chunk in whole]
        print(
            f"\nDER %, speech threshold {speech_threshold}; "
            "rows: smallest voice in s, columns: clustering threshold"
        )
        print("      ", *(f"{t:6.2f}" for t in CLUSTER_THRESHOLDS))
        for smallest in SMALLEST_VOICES_S:
            row = [error_rate(talks, chunks, t, smallest, 3) for t in CLUSTER_THRESHOLDS]
            print(f"{smallest:6.1f}", *(f"{100 * x:6.1f}" for x in row))
    default = DiarizationConfig()
    diarizer, chunks = at[default.segmentation_threshold]
    last = sample()
    checked = chunk_of(diarizer, last, cache, default.segmentation_threshold)
    print(
        "\nDER %, default speech threshold; "
        "rows: step in s / embeddings every s; columns: clustering threshold"
    )
    print("              ", *(f"{t:6.2f}" for t in CLUSTER_THRESHOLDS))
    for windows, voices in SCHEDULES:
        thin = [thinned(diarizer, chunk, windows, voices) for chunk in chunks]
        row = [error_rate(talks, thin, t, default.min_voice_s, voices) for t in CLUSTER_THRESHOLDS]
        print(f"{0.5 * windows:6.1f} {0.5 * windows * voices:6.1f} ", *(f"{100 * x:6.1f}" for x in row))
        thin = [thinned(diarizer, checked, windows, voices)]
        row = [error_rate([last], thin, t, default.min_voice_s, voices) for t in CLUSTER_THRESHOLDS]
        print("   sample.wav ", *(f"{100 * x:6.1f}" for x in row))


if __name__ == "__main__":
    main()
