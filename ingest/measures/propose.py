"""Step `propose`: which intervals of a source become clips.

A clip is one shot, one speaker, whole words with a little silence around them, 2-10 s. Starts and ends lie on
the 16 fps grid, so that a clip's frames are the analysed frames. A source without usable speech still gives
clips (of its shots), so that curation can reject them with a reason.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from uniavgen.ingest.config import ClipConfig
from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.records import (
    FrameTable,
    Probe,
    Proposal,
    Proposals,
    Shots,
    SourceRecord,
    Span,
    SpokenWord,
    Transcript,
)
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS

EPSILON = 1e-6


class ProposeStep(Step):
    """Clip proposals. Fails for a file that holds much less than it declares."""

    name = "propose"
    pool = "sight"
    version = "1"
    needs = ("sound", "transcribe", "shots", "picture")
    settings = ("clips",)
    result = Proposals

    def measure(self, record: SourceRecord) -> Proposals:
        end_s = len(record.result(FrameTable).luma) / VIDEO_FPS
        check_complete(record, end_s, record.result(AudioFile).duration_s)
        words, shots = record.result(Transcript).words, record.result(Shots).spans
        return Proposals(propose_clips(words, shots, end_s, self.config.clips))

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        clip = record.result(Proposals).clips[index]
        return {"duration_s": clip.end_s - clip.start_s}


def check_complete(record: SourceRecord, video_s: float, audio_s: float) -> None:
    """Raise UserError (truncated) if much less could be decoded than the file declares."""
    probe = record.result(Probe)
    declared_s, decoded_s = max(probe.declared_s, probe.duration_s), max(video_s, audio_s)
    if decoded_s < declared_s - max(1.0, 0.05 * declared_s):
        raise UserError(
            f"the file declares {declared_s:.1f} s and holds {decoded_s:.1f} s",
            where=record.uri,
            hint="fetch it again",
            kind="truncated",
        )


def propose_clips(
    words: list[SpokenWord], shots: list[Span], end_s: float, config: ClipConfig
) -> list[Proposal]:
    """Clip proposals of one source. `shots` cover the source, `end_s` is the end of its last frame."""
    spoken = spoken_proposals(words, shots, end_s, config)
    return spoken or unspoken_proposals(words, shots, end_s, config)


def spoken_proposals(
    words: list[SpokenWord], shots: list[Span], end_s: float, config: ClipConfig
) -> list[Proposal]:
    """Clips of speech that never overlap.

    In every run of one speaker's words the longest clip that fits, then the longest that fits on either side
    of it, and so on.
    """
    words = sorted(words, key=lambda word: (word.start_s, word.end_s))
    ended_by = [0.0, *itertools.accumulate((word.end_s for word in words), max)]
    clips: list[Proposal] = []
    for shot in shots:
        room = Span(
            shot.start_s + (config.shot_margin_s if shot.start_s > 0 else 0.0),
            min(end_s, shot.end_s - (config.shot_margin_s if shot.end_s < end_s else 0.0)),
        )
        for first, last in _runs(words, room, config.max_pause_s):
            reached = clips[-1].end_s if clips else 0.0
            free = Span(max(room.start_s, reached), room.end_s)
            clips += _divide(words, ended_by, first, last, free, config)
    return clips


def unspoken_proposals(
    words: list[SpokenWord], shots: list[Span], end_s: float, config: ClipConfig
) -> list[Proposal]:
    """Spans of the shots within the first `unspoken_s`, in equal parts of at most `max_s`.

    One span from the start of the source if no shot is long enough. A clip has the words wholly inside it,
    and a speaker if they have only one.
    """
    limit = min(end_s, config.unspoken_s) if config.unspoken_s else 0.0
    spans = []
    for shot in shots:
        start, end = _grid_up(shot.start_s), _grid_down(min(shot.end_s, limit))
        parts = max(1, math.ceil((end - start) / config.max_s - EPSILON))
        edges = [_grid_down(start + (end - start) * part / parts) for part in range(parts + 1)]
        spans += [(a, b) for a, b in itertools.pairwise(edges) if b - a >= config.min_s - EPSILON]
    if not spans:
        spans = [(0.0, max(1 / VIDEO_FPS, _grid_down(min(end_s, config.max_s))))]
    clips = []
    for start, end in spans:
        inside = [word for word in words if word.start_s >= start and word.end_s <= end]
        speakers = {word.speaker for word in inside}
        clips.append(Proposal(start, end, speakers.pop() if len(speakers) == 1 else "", inside))
    return clips


def _runs(words: list[SpokenWord], shot: Span, max_pause_s: float) -> list[tuple[int, int]]:
    """Index ranges [first, last] of words in one shot, by one known speaker, without a long pause."""
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
    words: list[SpokenWord], ended_by: list[float], first: int, last: int, room: Span, config: ClipConfig
) -> list[Proposal]:
    """Clips of words first..last within `room`, in order of time.

    The longest (of several the first), then the longest on either side of it, and so on. The longest clip of
    every word is cached; a new clip changes it for the words next to that clip only, so that the cost of
    hours of speech without a pause is nearly linear in the number of words.
    """
    longest: dict[int, _Candidate | None] = {}
    lengths = np.zeros(last + 1 - first, int)  # in frames of the grid, where equal lengths are equal numbers
    starts = [word.start_s for word in words[first : last + 1]]

    def update(begin: int, end: int, until: int, within: Span) -> None:
        for start in range(begin, end):
            latest = first + bisect_right(starts, words[start].start_s + config.max_s) - 1
            clip = _longest_from(words, ended_by, start, min(until, latest), within, config)
            longest[start] = clip
            lengths[start - first] = round((clip.end_s - clip.start_s) * VIDEO_FPS) if clip else 0

    update(first, last + 1, last, room)
    clips: list[Proposal] = []
    open_: list[tuple[int, int, Span]] = [(first, last, room)]
    while open_:
        begin, end, space = open_.pop()
        if begin > end:
            continue
        start = begin + int(lengths[begin - first : end + 1 - first].argmax())
        best = longest[start]
        if best is None:
            continue
        clips.append(Proposal(best.start_s, best.end_s, words[start].speaker, words[start : best.last + 1]))
        before, after = Span(space.start_s, best.start_s), Span(best.end_s, space.end_s)
        late = first + bisect_left(
            starts, best.start_s - config.max_s - config.pad_s, begin - first, start - first
        )
        update(late, start, start - 1, before)
        near_s = best.end_s + config.pad_s + 1 / VIDEO_FPS
        early = first + bisect_right(starts, near_s, best.last + 1 - first, end + 1 - first)
        update(best.last + 1, early, end, after)
        open_ += [(begin, start - 1, before), (best.last + 1, end, after)]
    return sorted(clips, key=lambda clip: clip.start_s)


@dataclass(frozen=True)
class _Candidate:
    """A possible clip, and the index of its last word."""

    start_s: float
    end_s: float
    last: int


def _longest_from(
    words: list[SpokenWord], ended_by: list[float], first: int, last: int, room: Span, config: ClipConfig
) -> _Candidate | None:
    """The longest clip that starts with word `first` and ends with word `last` at the latest."""
    for end in range(last, first - 1, -1):
        span = _padded(words, ended_by, first, end, room, config.pad_s)
        if span and config.min_s - EPSILON <= span[1] - span[0] <= config.max_s + EPSILON:
            return _Candidate(*span, end)
    return None


def _padded(
    words: list[SpokenWord], ended_by: list[float], first: int, last: int, room: Span, pad_s: float
) -> tuple[float, float] | None:
    """Start and end of words first..last with up to `pad_s` of silence, without other words, in `room`."""
    start_s, end_s = words[first].start_s, max(word.end_s for word in words[first : last + 1])
    before, after = ended_by[first], words[last + 1].start_s if last + 1 < len(words) else math.inf
    if before > start_s + EPSILON or after < end_s - EPSILON:
        return None  # another word overlaps
    start = _grid_up(max(start_s - pad_s, before, room.start_s))
    end = _grid_down(min(end_s + pad_s, after, room.end_s))
    # without silence beside a word, the next grid line lies inside its neighbour by less than a frame
    start = start if start <= start_s + EPSILON else _grid_down(start_s)
    end = end if end >= end_s - EPSILON else _grid_up(end_s)
    inside = start >= room.start_s - EPSILON and end <= room.end_s + EPSILON
    return (start, end) if inside else None


def _grid_up(seconds: float) -> float:
    return math.ceil(seconds * VIDEO_FPS - EPSILON) / VIDEO_FPS


def _grid_down(seconds: float) -> float:
    return math.floor(seconds * VIDEO_FPS + EPSILON) / VIDEO_FPS
