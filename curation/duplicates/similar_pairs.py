"""Find pairs of clips that share sound or moving picture, without comparing all with all.

In: the fingerprints of n clips (`shards/hashes.py`). Out: pairs with how far apart they are, over how many seconds, at which
speed, and whether one is mirrored. Clips that share one exact key (an acoustic item, the lowest bits of a video hash, a text
hash) are candidates at the time that the key stands at; a candidate is compared item by item along that alignment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uniavgen.curation.config import DuplicateConfig
from uniavgen.shards.corpus.fingerprints import (
    FREQUENCIES,
    MIRRORED,
    SOUND_ITEM_REACH_S,
    SOUND_ITEM_S,
    VIDEO_HASH_EDGE_S,
    VIDEO_HASH_HZ,
)

if TYPE_CHECKING:
    import numpy as np

NEIGHBOURS = 4
"""Clips that one key brings together with each clip: a key that thousands share costs no more than their number times this."""

KEY_BITS = 48
"""Lowest bits of a video hash that must agree in one place for two clips to be compared. Our choice: 32 would do for a small
corpus, but nods look alike, and at a million clips a key must be rare to be of use."""

VIDEO_BITS, SOUND_BITS = len(FREQUENCIES), 32

ROUGHLY = 0.3
"""Share of bits that may differ around a shared key before two clips are compared in full; our choice."""

OTHER_SPEED = 0.05
"""How much closer a changed speed must fit than the same speed, to be believed; our choice."""

_CHUNK = 1 << 16  # alignments compared at a time: bounds memory to some 64 Ki x items of a clip


@dataclass(frozen=True)
class Prints:
    """Hashes of n clips, one after another: those of clip i are `values[starts[i]:starts[i + 1]]`.

    `values` uint64 [m] (0: nothing to compare), `starts` int64 [n + 1], `first_s` float32 [n]: where (the middle of) a clip's
    first hash stands on the clip's own clock; then one each `period_s`. `reach_s`: how much of the clip one hash looks at.
    """

    values: np.ndarray
    starts: np.ndarray
    first_s: np.ndarray
    period_s: float
    reach_s: float

    @property
    def clip(self) -> np.ndarray:
        """int32 [m]: which clip each hash is of."""
        import numpy as np

        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))

    def time_s(self, clip: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Where the hashes numbered `at` within `values` stand on the clock of their clips."""
        found: np.ndarray = self.first_s[clip] + (at - self.starts[clip]) * self.period_s
        return found


@dataclass(frozen=True)
class Anchors:
    """Places at which two clips may agree: clip `a` at `a_s` with clip `b` at `b_s`; a < b. All arrays [k]."""

    a: np.ndarray
    b: np.ndarray
    a_s: np.ndarray
    b_s: np.ndarray

    def take(self, rows: np.ndarray) -> Anchors:
        return Anchors(self.a[rows], self.b[rows], self.a_s[rows], self.b_s[rows])


@dataclass(frozen=True)
class Fit:
    """How well alignments agree: mean share of differing bits (1: nothing to compare), items compared, seconds shared, and
    whether the mirrored picture fits better. All arrays [k]."""

    distance: np.ndarray
    compared: np.ndarray
    shared_s: np.ndarray
    mirrored: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Pairs of clips that share something, best alignment each; all arrays [k], a < b.

    `picture`, `sound`: share of differing bits, NaN where that does not agree. `shared_s`: seconds of clip `a`.
    """

    a: np.ndarray
    b: np.ndarray
    picture: np.ndarray
    sound: np.ndarray
    shared_s: np.ndarray
    speed: np.ndarray
    mirrored: np.ndarray


def video_prints(values: np.ndarray, starts: np.ndarray, start_s: np.ndarray) -> Prints:
    """Video hashes of clips that begin at `start_s` float [n] of their sources, on whose clock the hashes stand."""
    import numpy as np

    first = np.ceil(np.round((start_s + VIDEO_HASH_EDGE_S) * VIDEO_HASH_HZ, 6)) / VIDEO_HASH_HZ - start_s
    return Prints(
        values.astype(np.uint64), starts, first.astype(np.float32), 1 / VIDEO_HASH_HZ, 2 * VIDEO_HASH_EDGE_S
    )


def sound_prints(values: np.ndarray, starts: np.ndarray) -> Prints:
    """Acoustic fingerprints. Where few of a clip's items differ from their neighbour (a tone, a hum) they say nothing: 0."""
    import numpy as np

    items = values.astype(np.uint64)
    clips = len(starts) - 1
    clip = np.repeat(np.arange(clips), np.diff(starts))
    changes = np.bincount(clip[1:][(items[1:] != items[:-1]) & (clip[1:] == clip[:-1])], minlength=clips)
    lively = changes >= np.diff(starts) / 2
    middle = np.full(clips, SOUND_ITEM_REACH_S / 2, np.float32)
    return Prints(
        np.where(lively[clip], items, np.uint64(0)), starts, middle, SOUND_ITEM_S, SOUND_ITEM_REACH_S
    )


def find_pairs(video: Prints, sound: Prints, text: np.ndarray, config: DuplicateConfig) -> Pairs:
    """All pairs that agree in picture or in sound. `text` int64 [n]: text hashes, 0 where there is none."""
    import numpy as np

    anchors = _joined(
        [
            _sharing(_canonical(video.values) & np.uint64((1 << KEY_BITS) - 1), video, VIDEO_BITS, MIRRORED),
            _sharing(sound.values, sound, SOUND_BITS, 0),
            _saying_the_same(text),
        ]
    )
    found = [_agreeing(anchors, video, sound, speed, config) for speed in config.speeds]
    return _best_of_each(found)


def _canonical(values: np.ndarray) -> np.ndarray:
    """The same value for a video hash and its mirror's: the one whose lowest odd frequency is positive; 0 stays 0."""
    import numpy as np

    lowest = np.uint64(MIRRORED & -MIRRORED)
    turned = np.where(values & lowest, values, values ^ np.uint64(MIRRORED))
    return np.where(values == 0, np.uint64(0), turned)


def _sharing(keys: np.ndarray, prints: Prints, bits: int, mirrors: int) -> Anchors:
    """Anchors where two clips have the same key and agree roughly around it; keys of 0 are left out."""
    import numpy as np

    at = np.flatnonzero(keys)
    clip = prints.clip[at]
    parts = []
    for left, right in _neighbours(keys[at], clip):
        for start in range(0, max(1, len(left)), _CHUNK):
            rows = slice(start, start + _CHUNK)
            one, other = at[left[rows]], at[right[rows]]
            a, b = clip[left[rows]], clip[right[rows]]
            near = _locally_alike(prints, one, other, a, b, bits, mirrors)
            one, other, a, b = one[near], other[near], a[near], b[near]
            parts.append(Anchors(a, b, prints.time_s(a, one), prints.time_s(b, other)))
    return _distinct(_joined(parts), len(prints.starts) - 1)


def _locally_alike(
    prints: Prints, one: np.ndarray, other: np.ndarray, a: np.ndarray, b: np.ndarray, bits: int, mirrors: int
) -> np.ndarray:
    """bool [k]: whether the hashes around place `one` of clip `a` are like those around `other` of clip `b`: a second to
    either side, in which a tenth more speed does no harm. Most chance meetings end here."""
    import numpy as np

    reach = round(1 / prints.period_s)
    around = np.arange(-reach, reach + 1)
    at_a, at_b = one[:, None] + around, other[:, None] + around
    inside = (at_a >= prints.starts[a][:, None]) & (at_a < prints.starts[a + 1][:, None])
    inside &= (at_b >= prints.starts[b][:, None]) & (at_b < prints.starts[b + 1][:, None])
    last = len(prints.values) - 1
    here, there = prints.values[np.clip(at_a, 0, last)], prints.values[np.clip(at_b, 0, last)]
    inside &= (here != 0) & (there != 0)
    apart = here ^ there
    straight = (np.bitwise_count(apart) * inside).sum(axis=1)
    turned = (np.bitwise_count(apart ^ np.uint64(mirrors)) * inside).sum(axis=1)
    alike: np.ndarray = np.minimum(straight, turned) <= ROUGHLY * bits * inside.sum(axis=1)
    return alike


def _saying_the_same(text: np.ndarray) -> Anchors:
    """Clips that say the same, aligned at their starts."""
    import numpy as np

    clip = np.flatnonzero(text).astype(np.int32)
    parts = []
    for left, right in _neighbours(text[clip].astype(np.uint64), clip):
        start = np.zeros(len(left), np.float32)
        parts.append(Anchors(clip[left], clip[right], start, start))
    return _distinct(_joined(parts), len(text))


def _neighbours(keys: np.ndarray, clip: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (i, j) of equal keys (uint64) in different clips, one j for each i at a time, `NEIGHBOURS` times.

    Among many equal keys the order is drawn anew for each key, so that a clip meets other clips under its other keys.
    """
    import numpy as np

    spread = keys * np.uint64(0x9E3779B97F4A7C15)
    drawn = (spread ^ clip.astype(np.uint64)) * np.uint64(0xC2B2AE3D27D4EB4F)
    order = np.argsort(spread & np.uint64(0xFFFFFFFFFF000000) | drawn >> np.uint64(40))
    del spread, drawn
    ordered, of = keys[order], clip[order]
    for step in range(1, NEIGHBOURS + 1):
        hit = np.flatnonzero((ordered[:-step] == ordered[step:]) & (of[:-step] != of[step:]))
        yield order[hit], order[hit + step]


def _distinct(anchors: Anchors, clips: int) -> Anchors:
    """The lower clip first, and one anchor for each pair and lag (in quarter seconds)."""
    import numpy as np

    turn = anchors.a > anchors.b
    a, b = np.where(turn, anchors.b, anchors.a), np.where(turn, anchors.a, anchors.b)
    a_s, b_s = np.where(turn, anchors.b_s, anchors.a_s), np.where(turn, anchors.a_s, anchors.b_s)
    lag = np.clip(np.round((a_s - b_s) * VIDEO_HASH_HZ), -511, 511).astype(np.int64) + 512
    code = (a.astype(np.int64) * clips + b) * 1024 + lag
    return Anchors(a, b, a_s, b_s).take(np.unique(code, return_index=True)[1])


def _joined(parts: list[Anchors]) -> Anchors:
    import numpy as np

    return Anchors(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("a", "b", "a_s", "b_s"))
    )


def _agreeing(anchors: Anchors, video: Prints, sound: Prints, speed: float, config: DuplicateConfig) -> Pairs:
    """Pairs that agree when clip `b` is played `speed` times faster than clip `a`."""
    import numpy as np

    parts = []
    for start in range(0, max(1, len(anchors.a)), _CHUNK):
        part = anchors.take(np.arange(start, min(start + _CHUNK, len(anchors.a))))
        seen = fit(video, part, speed, bits=VIDEO_BITS, mirrors=MIRRORED, slack=1)
        heard = fit(sound, part, speed, bits=SOUND_BITS, mirrors=0, slack=2)
        same_picture = _sure(seen, config.picture_distance, config.min_pictures)
        same_sound = _sure(heard, config.sound_distance, config.min_sounds)
        good = np.flatnonzero(same_picture | same_sound)
        shared = np.maximum(np.where(same_picture, seen.shared_s, 0), np.where(same_sound, heard.shared_s, 0))
        parts.append(
            Pairs(
                part.a[good],
                part.b[good],
                np.where(same_picture, seen.distance, np.nan)[good],
                np.where(same_sound, heard.distance, np.nan)[good],
                shared[good],
                np.full(len(good), speed),
                (seen.mirrored & same_picture)[good],
            )
        )
    return _stacked(parts)


def _sure(found: Fit, distance: float, least: int) -> np.ndarray:
    """Whether alignments agree: up to `distance`, and up to a smaller one where fewer than twice `least` items say so."""
    import numpy as np

    allowed = distance * np.minimum(1.0, found.compared / (2 * least))
    sure: np.ndarray = (found.distance <= allowed) & (found.compared >= least)
    return sure


def fit(prints: Prints, anchors: Anchors, speed: float, *, bits: int, mirrors: int, slack: int) -> Fit:
    """Compare clips along alignments: moment t of clip `a` with b_s + (t - a_s) / speed of clip `b`.

    The best of all lags of at most `slack` items is told; `mirrors` are the bits that a mirror changes, 0: none does.
    """
    best: Fit | None = None
    for shift in range(-slack, slack + 1):
        found = _fit_at(prints, anchors, speed, shift, bits, mirrors)
        best = found if best is None else _better(best, found)
    assert best is not None
    return best


def _fit_at(prints: Prints, anchors: Anchors, speed: float, shift: int, bits: int, mirrors: int) -> Fit:
    import numpy as np

    size_a = prints.starts[anchors.a + 1] - prints.starts[anchors.a]
    size_b = prints.starts[anchors.b + 1] - prints.starts[anchors.b]
    at_a = np.arange(max(1, int(size_a.max(initial=0))))
    moment = prints.first_s[anchors.a][:, None] + at_a * prints.period_s - anchors.a_s[:, None]
    there = anchors.b_s[:, None] + moment / speed - prints.first_s[anchors.b][:, None]
    at_b = np.round(there / prints.period_s).astype(np.int32) + shift
    both = (at_a < size_a[:, None]) & (at_b >= 0) & (at_b < size_b[:, None])
    rows = np.nonzero(both)
    one = prints.values[prints.starts[anchors.a][rows[0]] + at_a[rows[1]]]
    other = prints.values[prints.starts[anchors.b][rows[0]] + at_b[rows]]
    told = (one != 0) & (other != 0)
    compared = np.bincount(rows[0][told], minlength=len(size_a))
    apart = (one ^ other)[told]
    straight = np.bincount(rows[0][told], np.bitwise_count(apart), len(size_a))
    turned = np.bincount(rows[0][told], np.bitwise_count(apart ^ np.uint64(mirrors)), len(size_a))
    mirrored = (turned < straight) & bool(mirrors)
    different = np.where(mirrored, turned, straight) / np.maximum(1, compared) / bits
    aligned = both.sum(axis=1)
    shared = np.where(aligned > 0, (aligned - 1) * prints.period_s + prints.reach_s, 0.0)
    return Fit(np.where(compared > 0, different, 1.0), compared, shared, mirrored)


def _better(one: Fit, other: Fit) -> Fit:
    import numpy as np

    take = other.distance < one.distance
    return Fit(*(np.where(take, getattr(other, name), getattr(one, name)) for name in vars(one)))


def _stacked(parts: list[Pairs]) -> Pairs:
    import numpy as np

    columns = {name: [getattr(part, name) for part in parts] for name in Pairs.__dataclass_fields__}
    return Pairs(**{name: np.concatenate(column) for name, column in columns.items()})


def _best_of_each(found: list[Pairs]) -> Pairs:
    """One row for each pair: the alignment in which picture and sound agree rather than one of them, then the closest."""
    import numpy as np

    every = _stacked(found)
    lone = np.isnan(every.picture).astype(np.int8) + np.isnan(every.sound)
    distance = np.nan_to_num(every.picture, nan=0.5) + np.nan_to_num(every.sound, nan=0.5)
    order = np.lexsort((distance + OTHER_SPEED * (every.speed != 1), lone, every.b, every.a))
    a, b = every.a[order], every.b[order]
    first = np.ones(len(order), bool)
    first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    rows = order[first]
    return Pairs(*(getattr(every, name)[rows] for name in Pairs.__dataclass_fields__))
