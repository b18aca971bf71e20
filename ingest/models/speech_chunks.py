"""Divide the speech of a source into chunks for the recogniser, each of one speaker.

Whisper recognises one language in a chunk, and drops or translates what follows in another. So a chunk never
holds time in which another speaker speaks alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

from uniavgen.ingest.records import Span

SPEECH_PAD_S = 0.15
"""Audio added on either side of speech, so that words are not truncated."""


Quietest = Callable[[float, float], float]
"""The time between two times at which a split does least harm."""


def divide_speech(turns: Sequence[Span], duration_s: float, max_s: float, quietest: Quietest) -> list[Span]:
    """Spans of speech of at most `max_s` in order of time, slightly padded, labelled with their speaker.

    Neighbouring turns of a speaker are joined up to that length, unless another one speaks alone between
    them. Longer speech without a pause is split where it is quietest. `duration_s` is that of the audio.
    """
    runs = speaker_runs(turns, quietest)
    # silence between two speakers is divided between them
    limits = [(before[-1].end_s + after[0].start_s) / 2 for before, after in itertools.pairwise(runs)]
    chunks: list[Span] = []
    for run, low, high in zip(runs, [0.0, *limits], [*limits, duration_s], strict=False):
        chunks += _run_chunks(run, Span(low, min(high, duration_s)), max_s, quietest)
    return chunks


def _run_chunks(run: Sequence[Span], room: Span, max_s: float, quietest: Quietest) -> list[Span]:
    """Chunks of successive turns of one speaker, within `room`."""
    spoken: list[list[float]] = []
    for turn in run:
        start = max(room.start_s, turn.start_s - SPEECH_PAD_S)
        end = min(room.end_s, turn.end_s + SPEECH_PAD_S)
        if spoken and start <= spoken[-1][1]:
            spoken[-1][1] = max(spoken[-1][1], end)
        else:
            spoken.append([start, end])
    chunks: list[list[float]] = []
    for start, end in spoken:
        while end - start > max_s:
            split = quietest(start + max_s / 2, start + max_s)
            chunks.append([start, split])
            start = split
        if chunks and end - chunks[-1][0] <= max_s:
            chunks[-1][1] = end
        else:
            chunks.append([start, end])
    return [Span(start, end, run[0].label) for start, end in chunks]


def speaker_runs(turns: Sequence[Span], quietest: Quietest) -> list[list[Span]]:
    """Spans that cover all turns and do not overlap, grouped while the speaker stays the same.

    Time in which several speak belongs to the speaker who spoke alone just before or after it, and between
    two of them it is divided where it is quietest. Where nobody spoke alone, it belongs to the one who
    comes first by label.
    """
    spans: list[Span] = []
    for stretch in _stretches(turns):
        spans += _owned(stretch, quietest)
    runs: list[list[Span]] = []
    for span in spans:
        if runs and runs[-1][0].label == span.label:
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs


_Interval = tuple[float, float, frozenset[str]]
"""Start, end, and who speaks."""


def _stretches(turns: Sequence[Span]) -> list[list[_Interval]]:
    """Stretches of speech between silences, as intervals in which the speakers stay the same."""
    changes: dict[float, Counter[str]] = {}
    for turn in turns:
        if turn.end_s > turn.start_s:
            changes.setdefault(turn.start_s, Counter())[turn.label] += 1
            changes.setdefault(turn.end_s, Counter())[turn.label] -= 1
    speaking: Counter[str] = Counter()
    stretches: list[list[_Interval]] = []
    for start, end in itertools.pairwise(sorted(changes)):
        speaking.update(changes[start])
        who = frozenset(label for label, count in speaking.items() if count > 0)
        if not who:
            continue
        if stretches and stretches[-1][-1][1] == start:
            last = stretches[-1][-1]
            is_same = last[2] == who or (len(last[2]) > 1 and len(who) > 1)
            if is_same:
                stretches[-1][-1] = (last[0], end, last[2] | who)
            else:
                stretches[-1].append((start, end, who))
        else:
            stretches.append([(start, end, who)])
    return stretches


def _owned(stretch: Sequence[_Interval], quietest: Quietest) -> list[Span]:
    """The intervals of a stretch as spans of one speaker each; time of several is given to one of them."""
    spans: list[Span] = []
    for index, (start, end, who) in enumerate(stretch):
        if len(who) == 1:
            spans.append(Span(start, end, min(who)))
            continue
        before = min(stretch[index - 1][2]) if index else None
        after = min(stretch[index + 1][2]) if index + 1 < len(stretch) else None
        if before is not None and after is not None and before != after:
            middle = min(max(quietest(start, end), start), end)
            spans += [Span(start, middle, before), Span(middle, end, after)]
        else:
            spans.append(Span(start, end, before or after or min(who)))
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].label == span.label:
            merged[-1] = Span(merged[-1].start_s, span.end_s, span.label)
        else:
            merged.append(span)
    return merged
