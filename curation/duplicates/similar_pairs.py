"""Find pairs of clips that share audio or moving picture, without comparing all with all.

Clips that share one exact key (an audio fingerprint item, the lowest bits of a video hash, a text hash) are
candidates, aligned at the time of that key. A candidate is compared item by item along this alignment
(`fit`), at several speeds.
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
"""Clips that one key pairs with each clip: a key that n clips share costs n times this. The constants here
are heuristics."""

KEY_BITS = 48
"""Lowest bits of a video hash that must be equal for two clips to become candidates. 32 is enough for a small
corpus; at a million clips a key must be rare, and nods look alike."""

VIDEO_BITS, AUDIO_BITS = len(FREQUENCIES), 32

LOCAL_DISTANCE = 0.3
"""Largest share of differing bits around a shared key for a full comparison."""

SPEED_PENALTY = 0.05
"""How much closer a changed speed must fit than the same speed."""

_CHUNK = 1 << 16  # alignments compared at a time: bounds memory to 64 Ki x items per clip


@dataclass(frozen=True)
class Prints:
    """Hashes of n clips in one array: those of clip i are `values[starts[i]:starts[i + 1]]`.

    `values` uint64 [m] (0: nothing to compare), `starts` int64 [n + 1], `first_s` float32 [n]: time of (the
    middle of) a clip's first hash, in seconds of the clip; then one hash each `period_s`. One hash covers
    `reach_s` of the clip.
    """

    values: np.ndarray
    starts: np.ndarray
    first_s: np.ndarray
    period_s: float
    reach_s: float

    @property
    def clip(self) -> np.ndarray:
        """int32 [m]: the clip of each hash."""
        import numpy as np

        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))

    def time_s(self, clip: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Times of the hashes `index` (into `values`) of these clips, in seconds of their clips."""
        time: np.ndarray = self.first_s[clip] + (index - self.starts[clip]) * self.period_s
        return time


@dataclass(frozen=True)
class Anchors:
    """Candidate alignments: clip `a` at `a_s` with clip `b` at `b_s`; a < b. All arrays [k]."""

    a: np.ndarray
    b: np.ndarray
    a_s: np.ndarray
    b_s: np.ndarray

    def take(self, rows: np.ndarray) -> Anchors:
        return Anchors(self.a[rows], self.b[rows], self.a_s[rows], self.b_s[rows])


@dataclass(frozen=True)
class Fit:
    """Agreement of alignments, all arrays [k]: mean share of differing bits (1: nothing to compare), items
    compared, seconds shared, and whether the mirrored picture fits better.
    """

    distance: np.ndarray
    compared: np.ndarray
    shared_s: np.ndarray
    mirrored: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Similar pairs of clips with the best alignment of each; all arrays [k], a < b.

    `picture`, `sound`: share of differing bits, NaN if that part does not match. `shared_s`: seconds of clip
    `a`.
    """

    a: np.ndarray
    b: np.ndarray
    picture: np.ndarray
    sound: np.ndarray
    shared_s: np.ndarray
    speed: np.ndarray
    mirrored: np.ndarray


def video_prints(values: np.ndarray, starts: np.ndarray, start_s: np.ndarray) -> Prints:
    """Video hashes of clips that start at `start_s` float [n] of their sources; hash times are on the
    source's grid.
    """
    import numpy as np

    first = np.ceil(np.round((start_s + VIDEO_HASH_EDGE_S) * VIDEO_HASH_HZ, 6)) / VIDEO_HASH_HZ - start_s
    return Prints(
        values.astype(np.uint64), starts, first.astype(np.float32), 1 / VIDEO_HASH_HZ, 2 * VIDEO_HASH_EDGE_S
    )


def audio_prints(values: np.ndarray, starts: np.ndarray) -> Prints:
    """Audio fingerprints.

    All items of a clip are 0 if most equal their neighbour (a tone, a hum): they identify nothing.
    """
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


def find_pairs(video: Prints, audio: Prints, text: np.ndarray, config: DuplicateConfig) -> Pairs:
    """All pairs that match in picture or audio. `text` int64 [n]: text hashes, 0 for none."""
    import numpy as np

    anchors = _concatenate(
        [
            _anchors_at_keys(
                _mirror_invariant(video.values) & np.uint64((1 << KEY_BITS) - 1), video, VIDEO_BITS, MIRRORED
            ),
            _anchors_at_keys(audio.values, audio, AUDIO_BITS, 0),
            _anchors_of_equal_text(text),
        ]
    )
    return _best_per_pair([_matching(anchors, video, audio, speed, config) for speed in config.speeds])


def _mirror_invariant(values: np.ndarray) -> np.ndarray:
    """Equal for a video hash and its mirror's: the one whose lowest odd frequency is positive. 0 stays 0."""
    import numpy as np

    lowest = np.uint64(MIRRORED & -MIRRORED)
    positive = np.where(values & lowest, values, values ^ np.uint64(MIRRORED))
    return np.where(values == 0, np.uint64(0), positive)


def _anchors_at_keys(keys: np.ndarray, prints: Prints, bits: int, mirrors: int) -> Anchors:
    """Anchors where two clips have the same key and roughly agree around it; keys of 0 are left out."""
    import numpy as np

    nonzero = np.flatnonzero(keys)
    clip = prints.clip[nonzero]
    parts = []
    for left, right in _pairs_of_equal_keys(keys[nonzero], clip):
        for start in range(0, max(1, len(left)), _CHUNK):
            rows = slice(start, start + _CHUNK)
            one, other = nonzero[left[rows]], nonzero[right[rows]]
            a, b = clip[left[rows]], clip[right[rows]]
            near = _locally_similar(prints, one, other, a, b, bits, mirrors)
            one, other, a, b = one[near], other[near], a[near], b[near]
            parts.append(Anchors(a, b, prints.time_s(a, one), prints.time_s(b, other)))
    return _distinct(_concatenate(parts), len(prints.starts) - 1)


def _locally_similar(
    prints: Prints, one: np.ndarray, other: np.ndarray, a: np.ndarray, b: np.ndarray, bits: int, mirrors: int
) -> np.ndarray:
    """bool [k]: whether the hashes within a second of index `one` of clip `a` and `other` of clip `b` agree
    roughly.

    A tenth more speed does no harm within a second. Most chance matches end here.
    """
    import numpy as np

    reach = round(1 / prints.period_s)
    around = np.arange(-reach, reach + 1)
    index_a, index_b = one[:, None] + around, other[:, None] + around
    inside = (index_a >= prints.starts[a][:, None]) & (index_a < prints.starts[a + 1][:, None])
    inside &= (index_b >= prints.starts[b][:, None]) & (index_b < prints.starts[b + 1][:, None])
    last = len(prints.values) - 1
    hash_a, hash_b = prints.values[np.clip(index_a, 0, last)], prints.values[np.clip(index_b, 0, last)]
    inside &= (hash_a != 0) & (hash_b != 0)
    difference = hash_a ^ hash_b
    as_is = (np.bitwise_count(difference) * inside).sum(axis=1)
    mirrored = (np.bitwise_count(difference ^ np.uint64(mirrors)) * inside).sum(axis=1)
    similar: np.ndarray = np.minimum(as_is, mirrored) <= LOCAL_DISTANCE * bits * inside.sum(axis=1)
    return similar


def _anchors_of_equal_text(text: np.ndarray) -> Anchors:
    """Clips with the same text, aligned at their starts."""
    import numpy as np

    clip = np.flatnonzero(text).astype(np.int32)
    parts = []
    for left, right in _pairs_of_equal_keys(text[clip].astype(np.uint64), clip):
        start = np.zeros(len(left), np.float32)
        parts.append(Anchors(clip[left], clip[right], start, start))
    return _distinct(_concatenate(parts), len(text))


def _pairs_of_equal_keys(keys: np.ndarray, clip: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs (i, j) of equal keys (uint64) in different clips, at most `NEIGHBOURS` j for each i.

    Equal keys are ordered by a hash of key and clip, so that a clip is paired with other clips at its other
    keys.
    """
    import numpy as np

    spread = keys * np.uint64(0x9E3779B97F4A7C15)
    drawn = (spread ^ clip.astype(np.uint64)) * np.uint64(0xC2B2AE3D27D4EB4F)
    order = np.argsort(spread & np.uint64(0xFFFFFFFFFF000000) | drawn >> np.uint64(40))
    del spread, drawn
    ordered_keys, ordered_clips = keys[order], clip[order]
    for step in range(1, NEIGHBOURS + 1):
        same_key = ordered_keys[:-step] == ordered_keys[step:]
        hits = np.flatnonzero(same_key & (ordered_clips[:-step] != ordered_clips[step:]))
        yield order[hits], order[hits + step]


def _distinct(anchors: Anchors, clips: int) -> Anchors:
    """The lower clip first, and one anchor per pair and lag (in quarter seconds)."""
    import numpy as np

    swap = anchors.a > anchors.b
    a, b = np.where(swap, anchors.b, anchors.a), np.where(swap, anchors.a, anchors.b)
    a_s, b_s = np.where(swap, anchors.b_s, anchors.a_s), np.where(swap, anchors.a_s, anchors.b_s)
    lag = np.clip(np.round((a_s - b_s) * VIDEO_HASH_HZ), -511, 511).astype(np.int64) + 512
    code = (a.astype(np.int64) * clips + b) * 1024 + lag
    return Anchors(a, b, a_s, b_s).take(np.unique(code, return_index=True)[1])


def _concatenate(parts: list[Anchors]) -> Anchors:
    import numpy as np

    return Anchors(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("a", "b", "a_s", "b_s"))
    )


def _matching(anchors: Anchors, video: Prints, audio: Prints, speed: float, config: DuplicateConfig) -> Pairs:
    """Pairs that match when clip `b` is played `speed` times as fast as clip `a`."""
    import numpy as np

    parts = []
    for start in range(0, max(1, len(anchors.a)), _CHUNK):
        part = anchors.take(np.arange(start, min(start + _CHUNK, len(anchors.a))))
        video_fit = fit(video, part, speed, bits=VIDEO_BITS, mirrors=MIRRORED, slack=1)
        audio_fit = fit(audio, part, speed, bits=AUDIO_BITS, mirrors=0, slack=2)
        same_picture = _is_match(video_fit, config.picture_distance, config.min_pictures)
        same_sound = _is_match(audio_fit, config.sound_distance, config.min_sounds)
        rows = np.flatnonzero(same_picture | same_sound)
        shared = np.maximum(
            np.where(same_picture, video_fit.shared_s, 0), np.where(same_sound, audio_fit.shared_s, 0)
        )
        parts.append(
            Pairs(
                part.a[rows],
                part.b[rows],
                np.where(same_picture, video_fit.distance, np.nan)[rows],
                np.where(same_sound, audio_fit.distance, np.nan)[rows],
                shared[rows],
                np.full(len(rows), speed),
                (video_fit.mirrored & same_picture)[rows],
            )
        )
    return _concatenate_pairs(parts)


def _is_match(fits: Fit, distance: float, min_items: int) -> np.ndarray:
    """bool [k]: at most `distance` apart; proportionally less below twice `min_items` compared items."""
    import numpy as np

    allowed = distance * np.minimum(1.0, fits.compared / (2 * min_items))
    matches: np.ndarray = (fits.distance <= allowed) & (fits.compared >= min_items)
    return matches


def fit(prints: Prints, anchors: Anchors, speed: float, *, bits: int, mirrors: int, slack: int) -> Fit:
    """Compare clips along alignments: time t of clip `a` with b_s + (t - a_s) / speed of clip `b`.

    Returns the best of all lags of at most `slack` items. `mirrors`: the bits that mirroring inverts, 0 for
    none.
    """
    best: Fit | None = None
    for shift in range(-slack, slack + 1):
        shifted = _fit_at(prints, anchors, speed, shift, bits, mirrors)
        best = shifted if best is None else _better(best, shifted)
    assert best is not None
    return best


def _fit_at(prints: Prints, anchors: Anchors, speed: float, shift: int, bits: int, mirrors: int) -> Fit:
    import numpy as np

    size_a = prints.starts[anchors.a + 1] - prints.starts[anchors.a]
    size_b = prints.starts[anchors.b + 1] - prints.starts[anchors.b]
    index_a = np.arange(max(1, int(size_a.max(initial=0))))
    from_anchor = prints.first_s[anchors.a][:, None] + index_a * prints.period_s - anchors.a_s[:, None]
    time_b = anchors.b_s[:, None] + from_anchor / speed - prints.first_s[anchors.b][:, None]
    index_b = np.round(time_b / prints.period_s).astype(np.int32) + shift
    overlap = (index_a < size_a[:, None]) & (index_b >= 0) & (index_b < size_b[:, None])
    rows = np.nonzero(overlap)
    hash_a = prints.values[prints.starts[anchors.a][rows[0]] + index_a[rows[1]]]
    hash_b = prints.values[prints.starts[anchors.b][rows[0]] + index_b[rows]]
    usable = (hash_a != 0) & (hash_b != 0)
    row, difference = rows[0][usable], (hash_a ^ hash_b)[usable]
    compared = np.bincount(row, minlength=len(size_a))
    bits_as_is = np.bincount(row, np.bitwise_count(difference), len(size_a))
    bits_mirrored = np.bincount(row, np.bitwise_count(difference ^ np.uint64(mirrors)), len(size_a))
    mirrored = (bits_mirrored < bits_as_is) & bool(mirrors)
    different = np.where(mirrored, bits_mirrored, bits_as_is) / np.maximum(1, compared) / bits
    aligned = overlap.sum(axis=1)
    shared = np.where(aligned > 0, (aligned - 1) * prints.period_s + prints.reach_s, 0.0)
    return Fit(np.where(compared > 0, different, 1.0), compared, shared, mirrored)


def _better(one: Fit, other: Fit) -> Fit:
    import numpy as np

    closer = other.distance < one.distance
    return Fit(*(np.where(closer, getattr(other, name), getattr(one, name)) for name in vars(one)))


def _concatenate_pairs(parts: list[Pairs]) -> Pairs:
    import numpy as np

    columns = {name: [getattr(part, name) for part in parts] for name in Pairs.__dataclass_fields__}
    return Pairs(**{name: np.concatenate(column) for name, column in columns.items()})


def _best_per_pair(parts: list[Pairs]) -> Pairs:
    """One row per pair: an alignment with both picture and sound before one with either, then the closest."""
    import numpy as np

    every = _concatenate_pairs(parts)
    missing = np.isnan(every.picture).astype(np.int8) + np.isnan(every.sound)
    distance = np.nan_to_num(every.picture, nan=0.5) + np.nan_to_num(every.sound, nan=0.5)
    order = np.lexsort((distance + SPEED_PENALTY * (every.speed != 1), missing, every.b, every.a))
    a, b = every.a[order], every.b[order]
    first = np.ones(len(order), bool)
    first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    rows = order[first]
    return Pairs(*(getattr(every, name)[rows] for name in Pairs.__dataclass_fields__))
