"""Pauses between the words of an utterance whose words have no times, and a part of it between two pauses.

Pauses come from the level of the audio. Which words a pause separates is estimated: all letters last equally
long, pauses not counted, and a pause belongs to the nearest gap, rather to one with punctuation. A pause that
is near to no gap is not used. All numbers here are heuristics.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from uniavgen.shards.text import word_spans
from uniavgen.shards.timing import SAMPLE_RATE

HOP = SAMPLE_RATE // 100
"""Samples of a frame of the level: 10 ms."""
SILENT_DB = -30.0
"""Level below that of speech (95th percentile) that counts as silence."""
SHORTEST_PAUSE_S = 0.1
NEAR_S = 0.3
"""Largest distance in speaking time between a pause and the estimated time of its gap."""
PUNCTUATION_S = 0.3
"""Distance that punctuation at a gap makes up for."""


class Cut(NamedTuple):
    """A place where an utterance may be cut: seconds, and the number of words before it."""

    seconds: float
    words: int


def silent_frames(waveform: np.ndarray) -> np.ndarray:
    """bool [n]: whether each 10 ms of float32 audio are silent."""
    frames = waveform[: len(waveform) // HOP * HOP].reshape(-1, HOP).astype(np.float64)
    level = np.sqrt((frames**2).mean(axis=1))
    if not len(level):
        return np.zeros(0, bool)
    return level < np.percentile(level, 95) * 10 ** (SILENT_DB / 20)


def find_pauses(silent: np.ndarray) -> list[tuple[int, int]]:
    """Runs [start, stop) of silent frames inside the utterance that last at least `SHORTEST_PAUSE_S`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], silent.astype(np.int8), [0]])))
    runs = [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
    return [
        (start, stop)
        for start, stop in runs
        if start > 0 and stop < len(silent) and (stop - start) * HOP >= SHORTEST_PAUSE_S * SAMPLE_RATE
    ]


def cuts_at_gaps(text: str, waveform: np.ndarray) -> list[Cut]:
    """Where an utterance may be cut, in order, with its start and its end."""
    spans, silent = word_spans(text), silent_frames(waveform)
    start, end = Cut(0.0, 0), Cut(len(waveform) / SAMPLE_RATE, len(spans))
    letters = np.cumsum([stop - first for first, stop in spans])
    if len(spans) < 2:
        return [start, end]
    spoken = np.concatenate([[0], np.cumsum(~silent)]) * (HOP / SAMPLE_RATE)
    expected = letters[:-1] / letters[-1] * spoken[-1]
    favoured = np.array([not text[stop - 1].isalnum() for _, stop in spans[:-1]]) * PUNCTUATION_S
    nearest: dict[int, tuple[float, float]] = {}
    for first, stop in find_pauses(silent):
        distance = np.abs(expected - spoken[first])
        gap = int(np.argmin(distance - favoured))
        if distance[gap] <= NEAR_S + favoured[gap] and distance[gap] < nearest.get(gap, (np.inf, 0))[0]:
            nearest[gap] = float(distance[gap]), (first + stop) / 2 * HOP / SAMPLE_RATE
    inside = [Cut(seconds, gap + 1) for gap, (_, seconds) in sorted(nearest.items())]
    # the estimate may cross two gaps: times must rise with the words
    rising = [cut for before, cut in pairwise([start, *inside]) if cut.seconds > before.seconds]
    return [start, *rising, end]


def choose_part(cuts: list[Cut], window_s: float, random: np.random.Generator) -> tuple[Cut, Cut] | None:
    """A random part between two cuts that fits the window, as long as its start allows; None if none does.

    Parts of less than half the longest one are not chosen.
    """
    parts = []
    for number, start in enumerate(cuts[:-1]):
        fitting = [cut for cut in cuts[number + 1 :] if cut.seconds - start.seconds <= window_s]
        if fitting:
            parts.append((start, fitting[-1]))
    if not parts:
        return None
    longest = max(end.seconds - start.seconds for start, end in parts)
    parts = [part for part in parts if part[1].seconds - part[0].seconds >= longest / 2]
    return parts[int(random.integers(len(parts)))]


def words_between(text: str, start: Cut, end: Cut) -> str:
    """The text between two cuts."""
    spans = word_spans(text)[start.words : end.words]
    return text[spans[0][0] : spans[-1][1]] if spans else ""
