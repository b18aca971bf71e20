"""A long source in pieces of bounded length, parted where it is quiet.

Goes in: a `Sound`. Comes out: spans that cover it without a gap, each short enough to be held in memory.
"""

from __future__ import annotations

import numpy as np

from uniavgen.ingest.io.audio_file import Sound
from uniavgen.ingest.records import AUDIO_RATE, Span

CELL_S = 0.02
"""Cells in which loudness is taken."""

PAUSES_S = (0.4, 0.2, 0.1)
"""Pauses looked for, best first: one of 0.4 s parts sentences, not the syllables of a word (our choice)."""

PAUSE_DB = 10.0
"""How far a pause lies below the mean power around it (our choice)."""

SEARCHED = 0.25
"""Share of a piece, before its bound, in which the cut is looked for (our choice)."""

_BLOCK_S = 60.0


def envelope(sound: Sound, start_s: float, end_s: float) -> np.ndarray:
    """Mean power float32 [cells] of each whole 20 ms cell between two times, read a minute at a time."""
    cell = round(CELL_S * AUDIO_RATE)
    parts = [np.zeros(0, np.float32)]
    for at_s in np.arange(start_s, end_s, _BLOCK_S):
        pcm = sound.span(at_s, min(end_s, at_s + _BLOCK_S)).astype(np.float32) / 32768
        parts.append(np.square(pcm[: len(pcm) // cell * cell].reshape(-1, cell)).mean(axis=1))
    return np.concatenate(parts)


def quietest(sound: Sound, start_s: float, end_s: float) -> float:
    """The time between two times where a cut does least harm: in the longest kind of pause there is, where it is quietest.

    A stretch counts by its loudest cell, so that a real pause is preferred to a soft syllable.
    """
    from scipy.ndimage import maximum_filter1d, uniform_filter1d

    power = envelope(sound, start_s, end_s)
    for pause_s in PAUSES_S:
        width = round(pause_s / CELL_S)
        if len(power) <= 2 * width:
            continue
        loudest = maximum_filter1d(power, width)[width // 2 : len(power) - width // 2]
        first = int(loudest.argmin())
        if pause_s == PAUSES_S[-1] or loudest[first] <= power.mean() * 10 ** (-PAUSE_DB / 10):
            smooth = uniform_filter1d(power, 5)[first : first + width]
            lowest = np.flatnonzero(smooth <= smooth.min() * 1.001)  # digital silence: its middle
            return start_s + (first + float(lowest.mean()) + 0.5) * CELL_S
    return (start_s + end_s) / 2


def split_pieces(sound: Sound, longest_s: float) -> list[Span]:
    """Spans of at most `longest_s` that cover the whole sound; each but the last ends in a pause."""
    pieces: list[Span] = []
    start = 0.0
    while sound.duration_s - start > longest_s:
        end = quietest(sound, start + longest_s * (1 - SEARCHED), start + longest_s)
        pieces.append(Span(start, end))
        start = end
    return [*pieces, Span(start, sound.duration_s)]
