"""Splits: no voice on both sides, no side empty where it need not be, and nobody changes side as the corpus grows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.config import SplitConfig
from curation.splits import TRAIN, VAL, Group, Speaker, assign_groups, assign_splits, group_speakers
from shards.errors import UserError

VOICES = np.random.default_rng(0).standard_normal((40, 192))
VOICES /= np.linalg.norm(VOICES, axis=1, keepdims=True)


def heard(person: int, source: int, seconds: float = 3.0, before: str = "") -> Speaker:
    """A person heard in a source, with a little noise; every source names its speakers anew."""
    noise = np.random.default_rng(100 * person + source).standard_normal(192) * 0.02
    return Speaker(f"s{source}-p{person}", f"s{source}", VOICES[person] + noise, seconds, frozenset({before} - {""}))


speakers = st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 7)), st.sampled_from([0.0, 3.0, 20.0]), min_size=1)
configs = st.builds(SplitConfig, val_share=st.sampled_from([0.05, 0.1, 0.3, 0.5]), join_sources=st.booleans())


@given(speakers, configs)
@settings(max_examples=80, deadline=None)
def test_a_person_is_never_on_both_sides_and_no_side_is_needlessly_empty(people: Any, config: SplitConfig) -> None:
    all_heard = [heard(person, source, seconds) for (person, source), seconds in people.items()]
    sides = assign_splits(all_heard, config)
    for person in {person for person, _ in people}:
        assert len({sides[f"s{source}-p{one}"] for one, source in people if one == person}) == 1
    groups = group_speakers(all_heard, config)
    kept = [speaker.id for speaker in all_heard if speaker.seconds]
    if len({groups[name] for name in kept}) >= 2:
        assert {sides[name] for name in kept} == {TRAIN, VAL}
    assert assign_splits(all_heard[::-1], config) == sides


@given(speakers, speakers)
@settings(max_examples=60, deadline=None)
def test_nobody_changes_side_when_the_corpus_grows_unless_one_side_was_empty(first: Any, more: Any) -> None:
    config = SplitConfig(val_share=0.3)
    sides = assign_splits([heard(who[0], who[1], seconds) for who, seconds in first.items()], config)
    grown = {**more, **first}
    after = assign_splits([heard(who[0], who[1], s, sides.get(f"s{who[1]}-p{who[0]}", "")) for who, s in grown.items()], config)
    if {sides[f"s{source}-p{person}"] for (person, source), seconds in first.items() if seconds} == {TRAIN, VAL}:
        assert {name: after[name] for name in sides} == sides


def test_a_new_voice_that_joins_two_of_both_sides_takes_both_to_train() -> None:
    link = Speaker("s9-x", "s9", (VOICES[0] + VOICES[1]) / np.sqrt(2), 3.0)
    all_heard = [heard(0, 0, before=TRAIN), heard(1, 1, before=VAL), heard(2, 2, before=VAL), link]
    sides = assign_splits(all_heard, SplitConfig(val_share=0.3))
    assert sides == {"s0-p0": TRAIN, "s1-p1": TRAIN, "s9-x": TRAIN, "s2-p2": VAL}


def test_where_chance_gives_val_nothing_the_smallest_voice_goes_there() -> None:
    groups = [Group(("a",), 50.0, ""), Group(("b",), 5.0, ""), Group(("c",), 40.0, "")]
    assert assign_groups(groups, SplitConfig(val_share=0.001)) == [TRAIN, VAL, TRAIN]


def test_a_voice_larger_than_the_whole_share_of_val_stays_in_train() -> None:
    chosen = next(name for name in map(str, range(99)) if Group((name,), 0, "").draw < 0.1)
    others = [Group(("v",), 1.0, VAL), *(Group((f"x{i}",), 1.0, TRAIN) for i in range(9))]
    assert assign_groups([Group((chosen,), 100.0, ""), *others], SplitConfig(val_share=0.1))[0] == TRAIN
    assert assign_groups([Group((chosen,), 0.5, ""), *others], SplitConfig(val_share=0.1))[0] == VAL


def test_the_share_of_voices_in_val_is_about_what_was_asked_for() -> None:
    groups = [Group((f"speaker-{i}",), 1.0, "") for i in range(2000)]
    assert assign_groups(groups, SplitConfig(val_share=0.1)).count(VAL) == pytest.approx(200, abs=45)


def test_a_share_of_zero_leaves_everything_to_train() -> None:
    assert assign_groups([Group(("a",), 1.0, ""), Group(("b",), 1.0, "")], SplitConfig(val_share=0)) == [TRAIN, TRAIN]


def test_speakers_without_a_usable_voice_are_each_their_own_unless_sources_are_joined() -> None:
    mute = [Speaker(f"m{i}", "s9", voice, 3.0) for i, voice in enumerate([None, np.zeros(192), np.full(192, np.nan)])]
    assert len(set(group_speakers(mute, SplitConfig()).values())) == 3
    assert len(set(group_speakers(mute, SplitConfig(join_sources=True)).values())) == 1


def test_voices_of_two_embedders_are_refused() -> None:
    with pytest.raises(UserError, match="two embedders"):
        group_speakers([Speaker("a", "s", np.ones(192), 1.0), Speaker("b", "s", np.ones(256), 1.0)], SplitConfig())


def test_grouping_in_blocks_finds_every_pair_that_a_naive_loop_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.splits._BLOCK", 7)
    all_heard = [heard(i % 13, i) for i in range(40)]
    groups = group_speakers(all_heard, SplitConfig())
    for one in all_heard:
        for two in all_heard:
            assert one.voice is not None
            assert two.voice is not None
            near = np.dot(one.voice, two.voice) / np.linalg.norm(one.voice) / np.linalg.norm(two.voice) >= 0.4
            assert (groups[one.id] == groups[two.id]) == near
