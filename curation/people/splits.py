"""Split train and val by person: nobody who is heard or seen in two sources is on both sides.

`assign_sides` gives every person `train`, `val`, or `neither` if the person would connect the two. A person
keeps an assigned side, so no clip changes side as the corpus grows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from uniavgen.curation.config import SplitConfig

TRAIN, VAL, NEITHER = "train", "val", "neither"

PITCH_HZ = (120.0, 165.0, 220.0)
"""Bounds of the voice pitch bands: adult speech spans about 85-255 Hz. Heuristic."""

LENGTH_S = (4.0, 7.0)
"""Bounds of the clip length bands. Heuristic."""


@dataclass(frozen=True)
class Person:
    """One person: its speakers, its kept seconds, the sides its clips had before, and its stratum."""

    speakers: tuple[str, ...]
    seconds: float
    before: frozenset[str] = field(default_factory=frozenset)
    stratum: tuple[str, ...] = ()

    @property
    def draw(self) -> float:
        """A number in [0, 1) that depends only on the speakers' ids."""
        lowest = min(hashlib.sha256(speaker.encode()).digest() for speaker in self.speakers)
        return int.from_bytes(lowest[:8], "big") / 2**64


def assign_sides(
    persons: Sequence[Person], near: Iterable[tuple[int, int]], config: SplitConfig
) -> list[str]:
    """A side for every person, in order. `near` are pairs of persons that may be one.

    1. A person keeps its side. One that had both sides (two persons found to be one) goes to train: val never
       has what may have been trained on.
    2. New persons follow in the order of `draw`. Near both sides: neither. Near one side: that side, but val
       only while its share is not full (else neither). Near nobody: val if its stratum lacks as much there,
       else train.
    3. If at least two persons have kept seconds and all are on one side, one new person changes side: the
       smallest to val, or the largest to train; never one near somebody on the side it leaves.
    """
    if config.val_share == 0:
        return [TRAIN for _ in persons]
    neighbors: dict[int, set[int]] = defaultdict(set)
    for one, two in near:
        neighbors[one].add(two)
        neighbors[two].add(one)
    sides = [_previous_side(person) for person in persons]
    lacking = _lacking_seconds(persons, sides, config.val_share)
    new = sorted((i for i, side in enumerate(sides) if not side), key=lambda i: persons[i].draw)
    for i in new:
        person = persons[i]
        near_sides = {sides[other] for other in neighbors[i]} & {TRAIN, VAL}
        fits = (
            person.seconds <= lacking[person.stratum] + 1e-9
            if person.seconds
            else person.draw < config.val_share
        )
        if near_sides == {TRAIN, VAL}:
            sides[i] = NEITHER
        elif near_sides == {VAL}:
            sides[i] = VAL if fits else NEITHER
        else:
            sides[i] = VAL if fits and TRAIN not in near_sides else TRAIN
        if sides[i] == VAL:
            lacking[person.stratum] -= person.seconds
    _fill_empty_side(persons, sides, neighbors, new)
    return sides


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


def _lacking_seconds(
    persons: Sequence[Person], sides: Sequence[str], share: float
) -> dict[tuple[str, ...], float]:
    """Seconds that val lacks in every stratum."""
    lacking: dict[tuple[str, ...], float] = defaultdict(float)
    for person, side in zip(persons, sides, strict=True):
        lacking[person.stratum] += share * person.seconds
        if side == VAL:
            lacking[person.stratum] -= person.seconds
    return lacking


def _fill_empty_side(
    persons: Sequence[Person], sides: list[str], neighbors: dict[int, set[int]], new: list[int]
) -> None:
    kept = [i for i, person in enumerate(persons) if person.seconds > 0 and sides[i] != NEITHER]
    if len(kept) < 2 or len({sides[i] for i in kept}) != 1:
        return
    full = sides[kept[0]]
    movable = [i for i in kept if i in set(new) and not any(sides[other] == full for other in neighbors[i])]
    if movable:
        sign = 1 if full == TRAIN else -1
        crossing = min(movable, key=lambda i: (sign * persons[i].seconds, persons[i].draw))
        sides[crossing] = VAL if full == TRAIN else TRAIN
