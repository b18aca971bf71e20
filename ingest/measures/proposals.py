"""Which spans of a source become clips: one shot, one speaker, whole words, a little silence either side, 2-10 s.

Goes in: words with speakers, turns, shots. Comes out: proposals in order of time that never overlap, longest first where
they compete. Pure functions. Starts and ends stand on the 16 fps grid, so that clip frames are the analysed frames.
A source without usable speech still gives spans (of its shots), so that curation can reject it for a reason.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from uniavgen.ingest.config import ClipConfig
from uniavgen.ingest.records import Proposal, Span, SpokenWord
from uniavgen.shards.timing import VIDEO_FPS

EPSILON = 1e-6


def propose_clips(
    words: list[SpokenWord], shots: list[Span], end_s: float, config: ClipConfig
) -> list[Proposal]:
    """Proposals of one source. `shots` cover the source, `end_s` is where its pictures end."""
    spoken = spoken_proposals(words, shots, end_s, config)
    return spoken or unspoken_proposals(words, shots, end_s, config)


def spoken_proposals(
    words: list[SpokenWord], shots: list[Span], end_s: float, config: ClipConfig
) -> list[Proposal]:
    """Clips of speech: in every stretch of one speaker's words the longest that fits, then the longest of what is left on
    either side of it, and so on; none overlaps another."""
    words = sorted(words, key=lambda word: (word.start_s, word.end_s))
    heard_until = [0.0, *itertools.accumulate((word.end_s for word in words), max)]
    found: list[Proposal] = []
    for shot in shots:
        room = Span(
            shot.start_s + (config.shot_margin_s if shot.start_s > 0 else 0.0),
            min(end_s, shot.end_s - (config.shot_margin_s if shot.end_s < end_s else 0.0)),
        )
        for first, last in _runs(words, room, config.max_pause_s):
            taken = found[-1].end_s if found else 0.0
            stretch = Span(max(room.start_s, taken), room.end_s)
            found += _divide(words, heard_until, first, last, stretch, config)
    return found


def unspoken_proposals(
    words: list[SpokenWord], shots: list[Span], end_s: float, config: ClipConfig
) -> list[Proposal]:
    """Spans of the shots within the first `unspoken_s`, in equal parts of at most `max_s`; the whole source where no shot
    is long enough. Words that lie wholly inside come along; the speaker is named where it is one."""
    limit = min(end_s, config.unspoken_s) if config.unspoken_s else 0.0
    spans = []
    for shot in shots:
        start, end = _grid_up(shot.start_s), _grid_down(min(shot.end_s, limit))
        parts = max(1, math.ceil((end - start) / config.max_s - EPSILON))
        edges = [_grid_down(start + (end - start) * part / parts) for part in range(parts + 1)]
        spans += [(a, b) for a, b in itertools.pairwise(edges) if b - a >= config.min_s - EPSILON]
    if not spans:
        spans = [(0.0, max(1 / VIDEO_FPS, _grid_down(min(end_s, config.max_s))))]
    found = []
    for start, end in spans:
        inside = [word for word in words if word.start_s >= start and word.end_s <= end]
        speakers = {word.speaker for word in inside}
        found.append(Proposal(start, end, speakers.pop() if len(speakers) == 1 else "", inside))
    return found


def _runs(words: list[SpokenWord], shot: Span, max_pause_s: float) -> list[tuple[int, int]]:
    """Index ranges [first, last] of words in one shot, of one known speaker, without a long pause."""
    runs: list[tuple[int, int]] = []
    for index, word in enumerate(words):
        if not word.speaker or word.start_s < shot.start_s or word.end_s > shot.end_s:
            continue
        if runs and runs[-1][1] == index - 1:
            before = words[index - 1]
            if before.speaker == word.speaker and word.start_s - before.end_s <= max_pause_s:
                runs[-1] = (runs[-1][0], index)
                continue
        runs.append((index, index))
    return runs


def _divide(
    words: list[SpokenWord], heard_until: list[float], first: int, last: int, room: Span, config: ClipConfig
) -> list[Proposal]:
    """Clips of words first..last within `room`, in order of time: the longest (of several the first), then on either side of
    it the longest of what is left there, and so on.

    Every word's longest clip is kept; a cut changes it for the words close to the cut alone, so that hours of speech
    without a pause cost little more than their words.
    """
    reach: dict[int, _Candidate | None] = {}
    lengths = np.zeros(last + 1 - first, int)  # in frames of the grid, where equal lengths are equal numbers
    starts = [word.start_s for word in words[first : last + 1]]

    def look(begin: int, end: int, until: int, within: Span) -> None:
        for start in range(begin, end):
            latest = first + bisect_right(starts, words[start].start_s + config.max_s) - 1
            reach[start] = found = _longest_from(
                words, heard_until, start, min(until, latest), within, config
            )
            lengths[start - first] = round((found.end_s - found.start_s) * VIDEO_FPS) if found else 0

    look(first, last + 1, last, room)
    clips: list[Proposal] = []
    open_: list[tuple[int, int, Span]] = [(first, last, room)]
    while open_:
        begin, end, space = open_.pop()
        if begin > end:
            continue
        start = begin + int(lengths[begin - first : end + 1 - first].argmax())
        best = reach[start]
        if best is None:
            continue
        clips.append(Proposal(best.start_s, best.end_s, words[start].speaker, words[start : best.last + 1]))
        before, after = Span(space.start_s, best.start_s), Span(best.end_s, space.end_s)
        late = first + bisect_left(
            starts, best.start_s - config.max_s - config.pad_s, begin - first, start - first
        )
        look(late, start, start - 1, before)
        near_s = best.end_s + config.pad_s + 1 / VIDEO_FPS
        early = first + bisect_right(starts, near_s, best.last + 1 - first, end + 1 - first)
        look(best.last + 1, early, end, after)
        open_ += [(begin, start - 1, before), (best.last + 1, end, after)]
    return sorted(clips, key=lambda clip: clip.start_s)


@dataclass(frozen=True)
class _Candidate:
    """A clip that a word may begin, and its last word."""

    start_s: float
    end_s: float
    last: int


def _longest_from(
    words: list[SpokenWord], heard_until: list[float], first: int, last: int, room: Span, config: ClipConfig
) -> _Candidate | None:
    """The longest clip that starts with a word and ends by word `last`."""
    for end in range(last, first - 1, -1):
        span = _padded(words, heard_until, first, end, room, config.pad_s)
        if span and config.min_s - EPSILON <= span[1] - span[0] <= config.max_s + EPSILON:
            return _Candidate(*span, end)
    return None


def _padded(
    words: list[SpokenWord], heard_until: list[float], first: int, last: int, room: Span, pad_s: float
) -> tuple[float, float] | None:
    """Start and end around words first..last: up to `pad_s` of silence, nothing of another word, inside the room."""
    start_s, end_s = words[first].start_s, max(word.end_s for word in words[first : last + 1])
    before, after = heard_until[first], words[last + 1].start_s if last + 1 < len(words) else math.inf
    if before > start_s + EPSILON or after < end_s - EPSILON:
        return None  # another word is said at the same time
    start = _grid_up(max(start_s - pad_s, before, room.start_s))
    end = _grid_down(min(end_s + pad_s, after, room.end_s))
    # a word without silence beside it: the grid's next line lies inside the neighbour then, by less than a frame
    start = start if start <= start_s + EPSILON else _grid_down(start_s)
    end = end if end >= end_s - EPSILON else _grid_up(end_s)
    inside = start >= room.start_s - EPSILON and end <= room.end_s + EPSILON
    return (start, end) if inside else None


def _grid_up(seconds: float) -> float:
    return math.ceil(seconds * VIDEO_FPS - EPSILON) / VIDEO_FPS


def _grid_down(seconds: float) -> float:
    return math.floor(seconds * VIDEO_FPS + EPSILON) / VIDEO_FPS
