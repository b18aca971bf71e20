"""Split train and val by person: nobody who is heard or seen in two sources is on both sides.

Persons that may be the same person are near. Near persons are never on two sides, so whole neighborhoods
(connected components of near persons) go to one side. A person keeps its side, so no clip changes side as the
corpus grows. A person is on neither side, and its clips are lost, only if it connects persons who already are
on two sides.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from uniavgen.curation.config import SplitConfig

TRAIN, VAL, NEITHER = "train", "val", "neither"

PITCH_HZ = (120.0, 165.0, 220.0)
"""Bounds of the voice pitch bands: adult speech spans about 85-255 Hz. The constants here are heuristics."""

LENGTH_S = (4.0, 7.0)
"""Bounds of the clip length bands."""


@dataclass(frozen=True)
class Person:
    """One person: its speakers, its kept seconds, the sides its clips had before, and its stratum.

    `crowding` counts its near pairs, also those beyond `max_near_pairs`: a crowded person will get more near
    persons as the corpus grows.
    """

    speakers: tuple[str, ...]
    seconds: float
    before: frozenset[str] = field(default_factory=frozenset)
    stratum: tuple[str, ...] = ()
    crowding: int = 0

    @property
    def draw(self) -> float:
        """A number in [0, 1) that depends only on the speakers' ids."""
        lowest = min(hashlib.sha256(speaker.encode()).digest() for speaker in self.speakers)
        return int.from_bytes(lowest[:8], "big") / 2**64


def assign_sides(
    persons: Sequence[Person], near: Iterable[tuple[int, int]], config: SplitConfig
) -> list[str]:
    """A side for every person, in order. `near` are pairs of persons that may be one.

    1. A person keeps its side. One that had both sides (two persons found to be one) goes to train, and so do
       the persons near it in val: val never has what may have been trained on.
    2. A neighborhood of new persons that is near one side goes there. If it is near both, the persons with
       the fewest kept seconds that separate the two go to neither (a minimum vertex cut).
    3. A neighborhood near nobody goes to val if val lacks as much of each of its strata, else to train; the
       least crowded first.
    4. If one side is empty, the smallest neighborhood that can changes side.

    So a new corpus loses no clip, and a grown one the fewest possible seconds.
    """
    if config.val_share == 0:
        return [TRAIN for _ in persons]
    split = _Split(persons, near, config.val_share)
    free = []
    for members in split.new_neighborhoods():
        sides_near = split.sides_near(members)
        if sides_near == {TRAIN, VAL}:
            split.separate(members)
        elif sides_near:
            split.assign(members, sides_near.pop())
        else:
            free.append(members)
    for members in sorted(free, key=split.val_order):
        split.assign(members, VAL if split.fits_val(members) else TRAIN)
    split.fill_empty_side(free)
    return split.sides


class _Split:
    """Sides under construction: `sides` by person ("" while undecided), `near` by person."""

    def __init__(self, persons: Sequence[Person], near: Iterable[tuple[int, int]], val_share: float) -> None:
        self.persons, self.val_share = persons, val_share
        self.near: dict[int, set[int]] = defaultdict(set)
        for one, other in near:
            self.near[one].add(other)
            self.near[other].add(one)
        self.sides = [_previous_side(person) for person in persons]
        self._leave_val([i for i, person in enumerate(persons) if {TRAIN, VAL} <= person.before])
        self.new = {i for i, side in enumerate(self.sides) if not side}
        self.lacking: dict[tuple[str, ...], float] = defaultdict(float)
        for person, side in zip(persons, self.sides, strict=True):
            self.lacking[person.stratum] += (val_share - (side == VAL)) * person.seconds

    def _leave_val(self, joined: list[int]) -> None:
        """Move the val persons that are near these train persons, and those near them, to train."""
        stack = list(joined)
        while stack:
            for other in self.near.get(stack.pop(), ()):
                if self.sides[other] == VAL:
                    self.sides[other] = TRAIN
                    stack.append(other)

    def assign(self, members: Iterable[int], side: str) -> None:
        for i in members:
            change = (side == VAL) - (self.sides[i] == VAL)
            self.lacking[self.persons[i].stratum] -= change * self.persons[i].seconds
            self.sides[i] = side

    def seconds(self, members: Iterable[int]) -> float:
        return sum(self.persons[i].seconds for i in members)

    def new_neighborhoods(self) -> list[list[int]]:
        """Connected components of the new persons, sorted by their smallest draw."""
        draws = {i: self.persons[i].draw for i in self.new}
        return _components(sorted(self.new, key=draws.__getitem__), self.near)

    def sides_near(self, members: Iterable[int]) -> set[str]:
        """Sides of decided persons near the members."""
        return {self.sides[other] for i in members for other in self.near.get(i, ())} & {TRAIN, VAL}

    def val_order(self, members: list[int]) -> tuple[int, float]:
        return sum(self.persons[i].crowding for i in members), self.persons[members[0]].draw

    def fits_val(self, members: list[int]) -> bool:
        needed: dict[tuple[str, ...], float] = defaultdict(float)
        for i in members:
            needed[self.persons[i].stratum] += self.persons[i].seconds
        if not any(needed.values()):
            return self.persons[members[0]].draw < self.val_share
        return all(seconds <= self.lacking[stratum] + 1e-9 for stratum, seconds in needed.items() if seconds)

    def separate(self, members: list[int]) -> None:
        """Assign a neighborhood near both sides so that the fewest kept seconds are lost."""
        lost = {i for i in members if len(self.sides_near([i])) == 2}
        self.assign(lost, NEITHER)
        for part in _components([i for i in members if i not in lost], self.near):
            if self.sides_near(part) == {TRAIN, VAL}:
                cut = self._smallest_cut(part)
                self.assign(cut, NEITHER)
                pieces = _components([i for i in part if i not in cut], self.near)
            else:
                pieces = [part]
            for piece in pieces:
                self.assign(piece, VAL if self.sides_near(piece) == {VAL} else TRAIN)

    def _smallest_cut(self, members: list[int]) -> set[int]:
        """The members with the fewest kept seconds whose removal disconnects train and val."""
        import numpy as np
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import breadth_first_order, maximum_flow

        # each person is an edge from node 2k to node 2k + 1 whose capacity is its seconds; near persons are
        # joined by edges of unlimited capacity
        index = {i: k for k, i in enumerate(members)}
        source, sink, unlimited = 2 * len(members), 2 * len(members) + 1, np.iinfo(np.int32).max
        # milliseconds, or a larger unit if their sum exceeded the integers of `maximum_flow`
        per_second = min(1000.0, unlimited / 2 / max(self.seconds(members), 1.0))
        edges = []
        for i, k in index.items():
            # one more, so that of persons without kept seconds few are cut
            edges.append((2 * k, 2 * k + 1, 1 + round(per_second * self.persons[i].seconds)))
            edges += [(2 * k + 1, 2 * index[other], unlimited) for other in self.near[i] if other in index]
            if TRAIN in self.sides_near([i]):
                edges.append((source, 2 * k, unlimited))
            if VAL in self.sides_near([i]):
                edges.append((2 * k + 1, sink, unlimited))
        rows, columns, capacities = np.array(edges, np.int64).T
        shape = (sink + 1, sink + 1)
        graph = coo_array((capacities.astype(np.int32), (rows, columns)), shape=shape).tocsr()
        residual = graph - maximum_flow(graph, source, sink).flow
        residual.data = np.maximum(residual.data, 0)
        residual.eliminate_zeros()
        reached = set(breadth_first_order(residual, source, return_predecessors=False).tolist())
        return {i for i, k in index.items() if 2 * k in reached and 2 * k + 1 not in reached}

    def fill_empty_side(self, free: list[list[int]]) -> None:
        """Move the smallest possible neighborhood to an empty val, or the largest to an empty train."""
        kept = [i for i, person in enumerate(self.persons) if person.seconds > 0 and self.sides[i] != NEITHER]
        if len(kept) < 2 or len({self.sides[i] for i in kept}) != 1:
            return
        full, empty = (TRAIN, VAL) if self.sides[kept[0]] == TRAIN else (VAL, TRAIN)
        movable = [members for members in free if self.seconds(members) > 0]
        if len(movable) < 2 and not (movable and self.seconds(kept) > self.seconds(movable[0])):
            # persons without kept seconds may be lost: no clip is
            parts = _components(sorted(kept, key=lambda i: self.persons[i].draw), self.near)
            movable = [part for part in parts if self._may_move(part, full)] if len(parts) > 1 else []
        if not movable:
            return
        sign = 1 if empty == VAL else -1
        moved = min(movable, key=lambda part: (sign * self.seconds(part), self.persons[part[0]].draw))
        self.assign(moved, empty)
        between = {other for i in moved for other in self.near.get(i, ()) if self.sides[other] == full}
        self.assign(between, NEITHER)
        self.assign([i for i in between if full not in self.sides_near([i])], empty)

    def _may_move(self, members: Iterable[int], side: str) -> bool:
        """Whether the members, and persons of `side` near them, have no side from before."""
        near = {other for i in members for other in self.near.get(i, ()) if self.sides[other] == side}
        return self.new.issuperset(members) and self.new.issuperset(near)


def _components(members: Sequence[int], near: dict[int, set[int]]) -> list[list[int]]:
    """Connected components of these persons, each in their order."""
    order = {i: number for number, i in enumerate(members)}
    seen: set[int] = set()
    components = []
    for start in members:
        if start in seen:
            continue
        seen.add(start)
        component, stack = [start], [start]
        while stack:
            for other in near.get(stack.pop(), ()):
                if other in order and other not in seen:
                    seen.add(other)
                    component.append(other)
                    stack.append(other)
        components.append(sorted(component, key=order.__getitem__))
    return components


def group_speakers(
    speakers: Sequence[str], labels: Sequence[int], near: Iterable[tuple[int, int]]
) -> tuple[list[tuple[str, ...]], set[tuple[int, int]]]:
    """Speakers grouped by label, groups sorted by their first speaker; and the pairs of groups with near
    speakers.

    `near` are pairs of indices into `speakers`.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    groups = sorted(members.values(), key=lambda indices: min(speakers[index] for index in indices))
    group_of = {index: group for group, indices in enumerate(groups) for index in indices}
    pairs = {(min(a, b), max(a, b)) for one, two in near if (a := group_of[one]) != (b := group_of[two])}
    return [tuple(sorted(speakers[index] for index in indices)) for indices in groups], pairs


def stratum_of(
    config: SplitConfig, language: str | None, pitch_hz: float | None, clip_s: float | None
) -> tuple[str, ...]:
    """The stratum of a person with these values, by the configured axes."""
    axes = {
        "language": language or "?",
        "pitch": _band(pitch_hz, PITCH_HZ),
        "duration": _band(clip_s, LENGTH_S),
    }
    return tuple(axes[name] for name in config.strata)


def _band(value: float | None, bounds: tuple[float, ...]) -> str:
    return "?" if value is None or value != value else str(sum(value >= bound for bound in bounds))


def _previous_side(person: Person) -> str:
    return next((side for side in (TRAIN, VAL) if side in person.before), "")
