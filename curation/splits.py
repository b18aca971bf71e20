"""Train and val, apart by voice: a speaker heard in two videos never stands on both sides.

In: speakers with a voice embedding, and the sides that an earlier decision gave them. Out: a side for every speaker.
Speakers are joined into voice groups wherever two embeddings are closer than a stated cosine (connected components, so
no pair above it is ever torn apart), and whole groups are assigned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curation.config import SplitConfig
from shards.errors import UserError

if TYPE_CHECKING:
    import numpy as np

TRAIN, VAL = "train", "val"
_BLOCK = 2048  # speakers compared at a time: bounds the similarities held to 2048 x n


@dataclass(frozen=True)
class Speaker:
    """A speaker of one source. `voice` float [d] or None; `seconds` of kept clips; `before`: the sides its clips had."""

    id: str
    source: str
    voice: np.ndarray | None
    seconds: float
    before: frozenset[str] = frozenset()


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


def assign_splits(speakers: Sequence[Speaker], config: SplitConfig) -> dict[str, str]:
    """`train` or `val` for every speaker id. See `assign_groups` for the rule."""
    group_of = group_speakers(speakers, config)
    members: dict[int, list[Speaker]] = {}
    for speaker in speakers:
        members.setdefault(group_of[speaker.id], []).append(speaker)
    groups = {i: _group(part) for i, part in members.items()}
    sides = dict(zip(groups, assign_groups(list(groups.values()), config), strict=True))
    return {speaker: sides[group] for speaker, group in group_of.items()}


def _group(speakers: Sequence[Speaker]) -> Group:
    before = frozenset().union(*(speaker.before for speaker in speakers))
    # a voice that turns out to link both sides goes to train: val never holds what may have been trained on
    side = TRAIN if TRAIN in before else VAL if VAL in before else ""
    return Group(tuple(sorted(speaker.id for speaker in speakers)), sum(speaker.seconds for speaker in speakers), side)


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


def group_speakers(speakers: Sequence[Speaker], config: SplitConfig) -> dict[str, int]:
    """Number of the voice group of every speaker id. Raises UserError where voices come from two embedders."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ordered = sorted(speakers, key=lambda speaker: speaker.id)
    edges = [_voice_edges(ordered, config.same_voice)]
    if config.join_sources:
        first: dict[str, int] = {}
        pairs = [(i, first.setdefault(speaker.source, i)) for i, speaker in enumerate(ordered)]
        edges.append(np.array(pairs, dtype=np.int64).reshape(-1, 2))
    rows, columns = np.concatenate(edges).T
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(ordered), len(ordered)))
    labels = connected_components(graph, directed=False)[1].tolist()
    return {speaker.id: label for speaker, label in zip(ordered, labels, strict=True)}


def _voice_edges(speakers: Sequence[Speaker], same_voice: float) -> np.ndarray:
    """Pairs of speakers, int64 [n, 2], whose embeddings have at least the cosine `same_voice`."""
    import numpy as np

    voiced = [(i, s.voice) for i, s in enumerate(speakers) if s.voice is not None and 0 < np.linalg.norm(s.voice) < np.inf]
    if len({voice.shape for _, voice in voiced}) > 1:
        raise UserError("voices in this corpus come from two embedders", do="ingest its sources again with one of them")
    if not voiced:
        return np.zeros((0, 2), np.int64)
    index = np.array([i for i, _ in voiced], np.int64)
    matrix = np.stack([voice / np.linalg.norm(voice) for _, voice in voiced]).astype(np.float32)
    pairs = []
    for start in range(0, len(matrix), _BLOCK):
        rows, columns = np.nonzero(matrix[start : start + _BLOCK] @ matrix[start:].T >= same_voice)
        pairs.append(np.stack([index[rows + start], index[columns + start]], axis=1))
    return np.concatenate(pairs)
