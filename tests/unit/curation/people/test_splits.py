"""Splits: no person on two sides, no side empty, val has its share of every stratum, and no person changes
side.
"""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.curation.config import SplitConfig
from uniavgen.curation.people.splits import (
    NEITHER,
    TRAIN,
    VAL,
    Person,
    assign_sides,
    group_speakers,
    stratum_of,
)

seconds = st.sampled_from([0.0, 0.01, 3.0, 20.0, 5000.0])
pairs = st.tuples(st.integers(0, 24), st.integers(0, 24))
worlds = st.tuples(st.lists(seconds, min_size=1, max_size=25), st.sets(pairs, max_size=12)).map(
    lambda world: (world[0], {(a, b) for a, b in world[1] if a < b < len(world[0])})
)
shares = st.sampled_from([0.05, 0.1, 0.3, 0.5])


def person(i: int, kept: float, before: str = "", stratum: str = "") -> Person:
    return Person((f"speaker-{i}",), kept, frozenset({before} - {""}), (stratum,))


@given(worlds, shares)
@settings(max_examples=150, deadline=None)
def test_near_persons_are_never_on_two_sides(world: tuple, share: float) -> None:
    kept, near = world
    sides = assign_sides([person(i, s) for i, s in enumerate(kept)], near, SplitConfig(val_share=share))
    for one, two in near:
        assert {sides[one], sides[two]} != {TRAIN, VAL}
    assert set(sides) <= {TRAIN, VAL, NEITHER}
    if not near and sum(s > 0 for s in kept) >= 2:
        assert {sides[i] for i, s in enumerate(kept) if s} == {TRAIN, VAL}


@given(worlds, worlds, shares)
@settings(max_examples=150, deadline=None)
def test_no_person_changes_side_as_corpus_grows(first: tuple, more: tuple, share: float) -> None:
    config = SplitConfig(val_share=share)
    sides = assign_sides([person(i, s) for i, s in enumerate(first[0])], first[1], config)
    grown = [person(i, s, sides[i]) for i, s in enumerate(first[0])]
    grown += [person(100 + i, s) for i, s in enumerate(more[0])]
    links = (
        set(first[1])
        | {(a + len(sides), b + len(sides)) for a, b in more[1]}
        | {(a, b + len(sides)) for a, b in more[1] if a < len(sides)}
    )
    after = assign_sides(grown, links, config)
    for i, side in enumerate(sides):
        assert side == NEITHER or after[i] == side
    for one, two in links:
        assert {after[one], after[two]} != {TRAIN, VAL}


def test_new_person_near_both_sides_goes_to_neither() -> None:
    persons = [person(0, 3, TRAIN), person(1, 3, VAL), person(2, 3)]
    assert assign_sides(persons, [(0, 2), (1, 2)], SplitConfig(val_share=0.3)) == [TRAIN, VAL, NEITHER]


def test_persons_of_both_sides_found_to_be_one_go_to_train() -> None:
    joined = Person(("a", "b"), 5.0, frozenset({TRAIN, VAL}))
    assert assign_sides([joined, person(1, 3, VAL)], [], SplitConfig(val_share=0.5)) == [TRAIN, VAL]
    near = [(0, 1), (1, 2)]
    others = [person(i, 3, VAL) for i in (1, 2, 3)]
    assert assign_sides([joined, *others], near, SplitConfig(val_share=0.5)) == [TRAIN, TRAIN, TRAIN, VAL]


def test_person_near_val_joins_val_beyond_its_share() -> None:
    persons = [person(0, 10, VAL), *(person(i, 10, TRAIN) for i in range(1, 10)), person(10, 10)]
    assert assign_sides(persons, [(0, 10)], SplitConfig(val_share=0.1))[10] == VAL


def test_val_prefers_persons_with_few_neighbors() -> None:
    persons = [Person((f"s{i}",), 10.0, crowding=i % 5) for i in range(50)]
    sides = assign_sides(persons, [], SplitConfig(val_share=0.1))
    assert {p.crowding for p, side in zip(persons, sides, strict=True) if side == VAL} == {0}


@given(worlds, st.lists(st.sampled_from(["", "", TRAIN, VAL]), min_size=25, max_size=25), shares)
@settings(max_examples=60, deadline=None)
def test_loss_equals_that_of_exhaustive_search(world: tuple, before: list[str], share: float) -> None:
    """Up to 12 persons: no assignment loses less, and both sides are used if another as good does."""
    kept, near = world[0][:12], {pair for pair in world[1] if max(pair) < 12}
    persons = [person(i, seconds, before[i]) for i, seconds in enumerate(kept)]
    sides = assign_sides(persons, near, SplitConfig(val_share=share))
    fewest, fewest_with_both = losses_of_every_assignment(persons, near)
    lost = sum(p.seconds for p, side in zip(persons, sides, strict=True) if side == NEITHER)
    assert lost == pytest.approx(fewest)
    if fewest_with_both == pytest.approx(fewest):
        assert {side for p, side in zip(persons, sides, strict=True) if p.seconds} - {NEITHER} == {TRAIN, VAL}
    decided = [
        person(i, p.seconds, side.replace(NEITHER, ""))
        for i, (p, side) in enumerate(zip(persons, sides, strict=True))
    ]
    assert assign_sides(decided, near, SplitConfig(val_share=share)) == sides, (
        "nothing changes the second time"
    )


def losses_of_every_assignment(persons: list[Person], near: set[tuple[int, int]]) -> tuple[float, float]:
    """Fewest seconds lost by any valid assignment, and by any that uses both sides (infinity: none does)."""
    old = {i: side for i, p in enumerate(persons) for side in p.before}
    choices = [[(TRAIN, VAL, NEITHER).index(old[i])] if i in old else [0, 1, 2] for i in range(len(persons))]
    sides = np.stack([axis.ravel() for axis in np.meshgrid(*map(np.array, choices), indexing="ij")], axis=1)
    valid = np.ones(len(sides), bool)
    for one, other in near:
        if one not in old or other not in old:
            valid &= (sides[:, one] == sides[:, other]) | (sides[:, one] == 2) | (sides[:, other] == 2)
    sides, seconds = sides[valid], np.array([p.seconds for p in persons])
    lost = ((sides == 2) * seconds).sum(axis=1)
    both = np.logical_and(*((((sides == side) * seconds).sum(axis=1) > 0) for side in (0, 1)))
    return float(lost.min()), float(lost[both].min(initial=np.inf))


def test_smallest_person_goes_to_val_if_none_fits() -> None:
    assert assign_sides([person(0, 50), person(1, 5), person(2, 40)], [], SplitConfig(val_share=0.001)) == [
        TRAIN,
        VAL,
        TRAIN,
    ]


def test_val_gets_its_share_of_every_stratum() -> None:
    draw = np.random.default_rng(1)
    persons = [
        person(i, float(draw.uniform(1, 9)), stratum=draw.choice(["en", "de", "zh"], p=[0.8, 0.15, 0.05]))
        for i in range(3000)
    ]
    sides = assign_sides(persons, [], SplitConfig(val_share=0.1))
    total, val = defaultdict(float), defaultdict(float)
    for one, side in zip(persons, sides, strict=True):
        total[one.stratum] += one.seconds
        val[one.stratum] += one.seconds * (side == VAL)
    assert {key: val[key] / total[key] for key in total} == pytest.approx(dict.fromkeys(total, 0.1), abs=0.01)


def test_persons_without_kept_clips_are_split_by_share() -> None:
    sides = assign_sides([person(i, 0.0) for i in range(2000)], [], SplitConfig(val_share=0.1))
    assert sides.count(VAL) == pytest.approx(200, abs=45)


def test_zero_val_share_puts_all_in_train() -> None:
    assert assign_sides([person(0, 1), person(1, 1)], [], SplitConfig(val_share=0)) == [TRAIN, TRAIN]


def test_group_speakers_gives_groups_and_near_pairs() -> None:
    members, near = group_speakers(["c", "a", "b", "d"], [7, 7, 3, 5], [(0, 2), (1, 2), (0, 1)])
    assert members == [("a", "c"), ("b",), ("d",)]
    assert near == {(0, 1)}


def test_stratum_has_configured_axes() -> None:
    config = SplitConfig(strata=["language", "pitch", "duration"])
    assert stratum_of(config, "en", 150.0, 8.0) == ("en", "1", "2")
    assert stratum_of(config, "", None, float("nan")) == ("?", "?", "?")
    assert stratum_of(SplitConfig(strata=[]), "en", 1.0, 1.0) == ()
