"""Train and val, apart by voice: a speaker heard in two videos never stands on both sides.

In: clips with their speaker and voice embedding, and the sides of an earlier decision. Out: a side for every clip.
Speakers are joined into voice groups wherever two embeddings are closer than a stated cosine (connected components, so
no pair above it is ever torn apart), and whole groups are assigned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curation.config import SplitConfig

if TYPE_CHECKING:
    import numpy as np

TRAIN, VAL = "train", "val"
_BLOCK = 2048  # speakers compared at a time: bounds the similarity matrix to 2048 x n


@dataclass(frozen=True)
class ClipVoice:
    """What splitting needs of a clip. `voice` float [192] or None; `seconds` is 0 for a clip that was not kept."""

    clip_id: str
    source_id: str
    speaker: str
    voice: Sequence[float] | None
    seconds: float
    before: str = ""


@dataclass(frozen=True)
class Group:
    """One voice: its speakers, its kept seconds, and the side that its clips were on before ("" for a new voice)."""

    speakers: tuple[str, ...]
    seconds: float
    before: str

    @property
    def draw(self) -> float:
        """A number in [0, 1) that depends on the speakers' ids alone."""
        lowest = min(hashlib.sha256(speaker.encode()).digest() for speaker in self.speakers)
        return int.from_bytes(lowest[:8], "big") / 2**64


def assign_splits(clips: Sequence[ClipVoice], config: SplitConfig) -> dict[str, str]:
    """`train` or `val` for every clip id. Clips without a speaker go by their source. See `assign_groups` for the rule."""
    of_clip = {clip.clip_id: clip.speaker or f"source:{clip.source_id}" for clip in clips}
    group_of = group_speakers(clips, config)
    members: dict[int, set[str]] = {}
    seconds: dict[int, float] = {}
    before: dict[int, set[str]] = {}
    for clip in clips:
        group = group_of[of_clip[clip.clip_id]]
        members.setdefault(group, set()).add(of_clip[clip.clip_id])
        seconds[group] = seconds.get(group, 0.0) + clip.seconds
        before.setdefault(group, set()).add(clip.before)
    groups = {
        # a voice that turns out to link both sides goes to train: val never holds what may have been trained on
        i: Group(tuple(sorted(members[i])), seconds[i], TRAIN if TRAIN in before[i] else VAL if VAL in before[i] else "")
        for i in members
    }
    sides = dict(zip(groups, assign_groups(list(groups.values()), config), strict=True))
    return {clip: sides[group_of[speaker]] for clip, speaker in of_clip.items()}


def assign_groups(groups: Sequence[Group], config: SplitConfig) -> list[str]:
    """A side for every group, in order.

    A group keeps the side it had. A new one goes to val where its draw is below `val_share`, unless it alone holds more
    than `val_share` of all kept seconds (or all of them are unkept). Then, where at least two groups have kept seconds
    and one side has none, one group crosses over: the smallest to val, or the largest to train; new groups before those
    that had a side. With `val_share` 0 everything is train.
    """
    if config.val_share == 0:
        return [TRAIN for _ in groups]
    budget = config.val_share * sum(group.seconds for group in groups)
    drawn = [VAL if group.draw < config.val_share and group.seconds <= budget else TRAIN for group in groups]
    sides = [group.before or side for group, side in zip(groups, drawn, strict=True)]
    kept = [i for i, group in enumerate(groups) if group.seconds > 0]
    if len(kept) >= 2 and len({sides[i] for i in kept}) == 1:
        lonely = VAL if sides[kept[0]] == TRAIN else TRAIN
        order = 1 if lonely == VAL else -1
        crossing = min(kept, key=lambda i: (bool(groups[i].before), order * groups[i].seconds, groups[i].draw))
        sides[crossing] = lonely
    return sides


def group_speakers(clips: Sequence[ClipVoice], config: SplitConfig) -> dict[str, int]:
    """Number of the voice group of every speaker id; a clip without a speaker counts as speaker `source:<source id>`."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    speakers = sorted({clip.speaker or f"source:{clip.source_id}" for clip in clips})
    place = {speaker: i for i, speaker in enumerate(speakers)}
    edges = [_voice_edges(_mean_voices(clips, place), config.same_voice)]
    if config.join_sources:
        first: dict[str, int] = {}
        pairs = {(place[c.speaker], first.setdefault(c.source_id, place[c.speaker])) for c in clips if c.speaker}
        edges.append(np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2))
    rows, columns = np.concatenate(edges).T
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(speakers), len(speakers)))
    labels = connected_components(graph, directed=False)[1]
    return dict(zip(speakers, labels.tolist(), strict=True))


def _mean_voices(clips: Sequence[ClipVoice], place: Mapping[str, int]) -> dict[int, np.ndarray]:
    """Unit-length mean embedding [192] of every speaker that has one: clips weigh alike."""
    import numpy as np

    sums: dict[int, np.ndarray] = {}
    for clip in clips:
        if clip.speaker and clip.voice is not None and len(clip.voice):
            voice = np.asarray(clip.voice, np.float64)
            norm = np.linalg.norm(voice)
            if np.isfinite(norm) and norm > 0:
                sums[place[clip.speaker]] = sums.get(place[clip.speaker], 0.0) + voice / norm
    return {i: total / max(np.linalg.norm(total), 1e-12) for i, total in sums.items()}


def _voice_edges(voices: Mapping[int, np.ndarray], same_voice: float) -> np.ndarray:
    """Pairs of speakers, int64 [n, 2], whose embeddings have at least the cosine `same_voice`."""
    import numpy as np

    if not voices:
        return np.zeros((0, 2), np.int64)
    index = np.array(list(voices), np.int64)
    matrix = np.stack(list(voices.values()))
    pairs = []
    for start in range(0, len(matrix), _BLOCK):
        rows, columns = np.nonzero(matrix[start : start + _BLOCK] @ matrix.T >= same_voice)
        pairs.append(np.stack([index[rows + start], index[columns]], axis=1))
    return np.concatenate(pairs)
