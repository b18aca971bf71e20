"""A source's audio track as a raw file, and how to split it at pauses into chunks that fit in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from uniavgen.ingest.records import AUDIO_RATE, Span

CELL_S = 0.02
"""Resolution of the power envelope."""

PAUSES_S = (0.4, 0.2, 0.1)
"""Pause lengths that are searched for, in this order: 0.4 s separates sentences, not syllables. Heuristic, as
are the two constants below."""

PAUSE_DB = 10.0
"""A pause is at least this far below the mean power of the searched stretch."""

SEARCH_SHARE = 0.25
"""The split is searched for in this last share of a chunk's maximum length."""

_BLOCK_S = 60.0


@dataclass(frozen=True)
class AudioFile:
    """Raw int16 mono at 16 kHz in the file `path`, `samples` long; sample 0 is at the container's time 0.

    Steps read only the span they need, so memory does not grow with the length of the source.
    """

    path: str
    samples: int

    @property
    def duration_s(self) -> float:
        return self.samples / AUDIO_RATE

    def span(self, start_s: float, end_s: float) -> np.ndarray:
        """int16 [round((end_s - start_s) * 16000)] between two times, with silence outside the track."""
        first, last = round(start_s * AUDIO_RATE), round(end_s * AUDIO_RATE)
        low, high = min(max(0, first), self.samples), min(max(0, last), self.samples)
        inside = (
            np.fromfile(self.path, np.int16, count=high - low, offset=low * 2)
            if high > low
            else np.zeros(0, np.int16)
        )
        before = min(max(0, -first), last - first)
        return np.pad(inside, (before, last - first - before - len(inside)))


@contextmanager
def made_audio(seconds: float) -> Iterator[AudioFile]:
    """Noise as an audio file, on which models are tried."""
    noise = np.random.default_rng(0).normal(0, 3000, round(seconds * AUDIO_RATE)).astype(np.int16)
    with tempfile.NamedTemporaryFile(suffix=".s16") as file:
        file.write(noise.tobytes())
        file.flush()
        yield AudioFile(file.name, len(noise))


def mean_power(audio: AudioFile, start_s: float, end_s: float) -> np.ndarray:
    """Mean power float32 [cells] of each whole 20 ms cell between two times, read one minute at a time."""
    cell = round(CELL_S * AUDIO_RATE)
    blocks = [np.zeros(0, np.float32)]
    for block_s in np.arange(start_s, end_s, _BLOCK_S):
        pcm = audio.span(block_s, min(end_s, block_s + _BLOCK_S)).astype(np.float32) / 32768
        blocks.append(np.square(pcm[: len(pcm) // cell * cell].reshape(-1, cell)).mean(axis=1))
    return np.concatenate(blocks)


def quietest_time(audio: AudioFile, start_s: float, end_s: float) -> float:
    """The time between two times at which a split does least harm: the quietest point of the longest pause.

    A pause is rated by its loudest cell, so that a real pause is preferred to a soft syllable.
    """
    from scipy.ndimage import maximum_filter1d, uniform_filter1d

    power = mean_power(audio, start_s, end_s)
    for pause_s in PAUSES_S:
        width = round(pause_s / CELL_S)
        if len(power) <= 2 * width:
            continue
        loudest = maximum_filter1d(power, width)[width // 2 : len(power) - width // 2]
        first = int(loudest.argmin())
        if pause_s == PAUSES_S[-1] or loudest[first] <= power.mean() * 10 ** (-PAUSE_DB / 10):
            smoothed = uniform_filter1d(power, 5)[first : first + width]
            lowest = np.flatnonzero(smoothed <= smoothed.min() * 1.001)  # digital silence: take its middle
            return start_s + (first + float(lowest.mean()) + 0.5) * CELL_S
    return (start_s + end_s) / 2


def split_at_pauses(audio: AudioFile, max_s: float) -> list[Span]:
    """Spans of at most `max_s` that cover the whole track; each but the last ends in a pause."""
    spans: list[Span] = []
    start = 0.0
    while audio.duration_s - start > max_s:
        end = quietest_time(audio, start + max_s * (1 - SEARCH_SHARE), start + max_s)
        spans.append(Span(start, end))
        start = end
    return [*spans, Span(start, audio.duration_s)]
