"""Train and val, apart by person: one who is heard or seen in two videos never stands on both sides.

In: groups of speakers that are surely one person, the pairs of groups that may be, and the sides that earlier decisions
gave them. Out: a side for every group: `train`, `val`, or `neither` where it would tie the two together. A group that has a
side keeps it for ever, so a clip never changes side as the corpus grows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from uniavgen.curation.config import SplitConfig

TRAIN, VAL, NEITHER = "train", "val", "neither"

PITCH_HZ = (120.0, 165.0, 220.0)
"""Bounds of the pitch bands: voices, not sexes (our choice; adult speech spans about 85-255 Hz)."""

LENGTH_S = (4.0, 7.0)
"""Bounds of the bands of clip length (our choice)."""


@dataclass(frozen=True)
class Group:
    """One person: the speakers, the kept seconds, the sides that its clips were on before, and its stratum."""

    speakers: tuple[str, ...]
    seconds: float
    before: frozenset[str] = field(default_factory=frozenset)
    stratum: tuple[str, ...] = ()

    @property
    def draw(self) -> float:
        """A number in [0, 1) that depends on the speakers' ids alone."""
        lowest = min(hashlib.sha256(speaker.encode()).digest() for speaker in self.speakers)
        return int.from_bytes(lowest[:8], "big") / 2**64


def assign_sides(groups: Sequence[Group], near: Iterable[tuple[int, int]], config: SplitConfig) -> list[str]:
    """A side for every group, in order; `near` are pairs of groups that may be one person.

    1. A group keeps the side it had. Where it had both (two persons of old turn out to be one), it goes to train: val
       never holds what may have been trained on.
    2. New groups follow in the order of their draw. One that is near both sides goes to neither; near one side, it
       joins that side, but val only while its share is not full (else neither). One that is near nobody goes to val where
       it fits into what val still lacks of its stratum, else to train.
    3. Where two groups or more have kept seconds and one side has none, one new group crosses over: the smallest to
       val, or the largest to train; never one that is near somebody of the side it leaves.
    """
    if config.val_share == 0:
        return [TRAIN for _ in groups]
    beside: dict[int, set[int]] = defaultdict(set)
    for one, two in near:
        beside[one].add(two)
        beside[two].add(one)
    sides = [_kept_side(group) for group in groups]
    room = _room(groups, sides, config.val_share)
    new = sorted((i for i, side in enumerate(sides) if not side), key=lambda i: groups[i].draw)
    for i in new:
        group = groups[i]
        around = {sides[other] for other in beside[i]} & {TRAIN, VAL}
        fits = (
            group.draw < config.val_share
            if not group.seconds
            else group.seconds <= room[group.stratum] + 1e-9
        )
        if around == {TRAIN, VAL}:
            sides[i] = NEITHER
        elif around == {VAL}:
            sides[i] = VAL if fits else NEITHER
        else:
            sides[i] = VAL if fits and TRAIN not in around else TRAIN
        if sides[i] == VAL:
            room[group.stratum] -= group.seconds
    _fill_empty_side(groups, sides, beside, new)
    return sides


def group_speakers(
    speakers: Sequence[str], labels: Sequence[int], near: Iterable[tuple[int, int]]
) -> tuple[list[tuple[str, ...]], set[tuple[int, int]]]:
    """Speakers by component label, groups in the order of their first speaker's name; and the pairs of groups that the
    pairs of speakers `near` (by place) connect."""
    members: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        members[label].append(place)
    ordered = sorted(members.values(), key=lambda places: min(speakers[place] for place in places))
    group_of = {place: i for i, places in enumerate(ordered) for place in places}
    pairs = {(min(a, b), max(a, b)) for one, two in near if (a := group_of[one]) != (b := group_of[two])}
    return [tuple(sorted(speakers[place] for place in places)) for places in ordered], pairs


def stratum_of(
    config: SplitConfig, language: str | None, pitch_hz: float | None, clip_s: float | None
) -> tuple[str, ...]:
    """The stratum that values put a person into, by the axes that the configuration names."""
    told = {
        "language": language or "?",
        "pitch": _band(pitch_hz, PITCH_HZ),
        "duration": _band(clip_s, LENGTH_S),
    }
    return tuple(told[axis] for axis in config.strata)


def _band(value: float | None, bounds: tuple[float, ...]) -> str:
    return "?" if value is None or value != value else str(sum(value >= bound for bound in bounds))


def _kept_side(group: Group) -> str:
    return next((side for side in (TRAIN, VAL) if side in group.before), "")


def _room(groups: Sequence[Group], sides: Sequence[str], share: float) -> dict[tuple[str, ...], float]:
    """Seconds that val still lacks in every stratum."""
    room: dict[tuple[str, ...], float] = defaultdict(float)
    for group, side in zip(groups, sides, strict=True):
        room[group.stratum] += share * group.seconds
        if side == VAL:
            room[group.stratum] -= group.seconds
    return room


def _fill_empty_side(
    groups: Sequence[Group], sides: list[str], beside: dict[int, set[int]], new: list[int]
) -> None:
    kept = [i for i, group in enumerate(groups) if group.seconds > 0 and sides[i] != NEITHER]
    if len(kept) < 2 or len({sides[i] for i in kept}) != 1:
        return
    full = sides[kept[0]]
    free = [i for i in kept if i in set(new) and not any(sides[other] == full for other in beside[i])]
    if free:
        order = 1 if full == TRAIN else -1
        sides[min(free, key=lambda i: (order * groups[i].seconds, groups[i].draw))] = (
            VAL if full == TRAIN else TRAIN
        )
