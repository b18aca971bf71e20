"""Splits: no voice on both sides, no side empty where it need not be, and nobody changes side as the corpus grows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.config import SplitConfig
from curation.splits import TRAIN, VAL, ClipVoice, Group, assign_groups, assign_splits, group_speakers

VOICES = np.random.default_rng(0).standard_normal((40, 192))
VOICES /= np.linalg.norm(VOICES, axis=1, keepdims=True)


def clip(number: int, person: int, source: int, kept: bool = True, before: str = "") -> ClipVoice:
    """A clip of a person, heard with a little noise; every source names its speakers anew."""
    noise = np.random.default_rng(number).standard_normal(192) * 0.02
    voice = (VOICES[person] + noise).tolist()
    return ClipVoice(f"c{number}", f"s{source}", f"s{source}-p{person}", voice, 3.0 if kept else 0.0, before)


corpora = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.booleans()), min_size=1, max_size=30)
configs = st.builds(SplitConfig, val_share=st.sampled_from([0.05, 0.1, 0.3, 0.5]), join_sources=st.booleans())


@given(corpora, configs)
@settings(max_examples=80, deadline=None)
def test_a_person_is_never_on_both_sides_and_no_side_is_needlessly_empty(people: Any, config: SplitConfig) -> None:
    clips = [clip(i, person, source, kept) for i, (person, source, kept) in enumerate(people)]
    sides = assign_splits(clips, config)
    for person in {person for person, _, _ in people}:
        assert len({sides[f"c{i}"] for i, (one, _, _) in enumerate(people) if one == person}) == 1
    groups = group_speakers(clips, config)
    kept = [c for c in clips if c.seconds]
    if len({groups[c.speaker] for c in kept}) >= 2:
        assert {sides[c.clip_id] for c in kept} == {TRAIN, VAL}
    assert assign_splits(clips[::-1], config) == sides


@given(corpora, corpora)
@settings(max_examples=60, deadline=None)
def test_no_clip_changes_side_when_the_corpus_grows_unless_one_side_was_empty(first: Any, more: Any) -> None:
    config = SplitConfig(val_share=0.3)
    clips = [clip(i, *one) for i, one in enumerate(first)]
    sides = assign_splits(clips, config)
    grown = [clip(i, *one, before=sides.get(f"c{i}", "")) for i, one in enumerate(first + more)]
    after = assign_splits(grown, config)
    if {sides[c.clip_id] for c in clips if c.seconds} == {TRAIN, VAL}:
        assert {name: after[name] for name in sides} == sides


def test_a_new_clip_that_joins_two_voices_of_both_sides_takes_both_to_train() -> None:
    between = (VOICES[0] + VOICES[1]) / np.sqrt(2)
    link = ClipVoice("link", "s9", "s9-x", between.tolist(), 3.0)
    clips = [clip(0, 0, 0, before=TRAIN), clip(1, 1, 1, before=VAL), clip(2, 2, 2, before=VAL), link]
    sides = assign_splits(clips, SplitConfig(val_share=0.3))
    assert sides == {"c0": TRAIN, "c1": TRAIN, "link": TRAIN, "c2": VAL}


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


def test_clips_without_a_speaker_go_by_their_source_and_without_a_voice_by_their_speaker() -> None:
    silent = [ClipVoice(f"q{i}", f"s{i // 2}", "", None, 3.0) for i in range(8)]
    mute = [ClipVoice(f"m{i}", "s9", f"s9-{i}", [float("nan")] * 192, 3.0) for i in range(2)]
    groups = group_speakers([*silent, *mute], SplitConfig())
    assert len(set(groups.values())) == 6
    assert len(set(group_speakers(mute, SplitConfig(join_sources=True)).values())) == 1


def test_grouping_in_blocks_finds_every_pair_that_a_naive_loop_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.splits._BLOCK", 7)
    clips = [clip(i, i % 13, i) for i in range(40)]
    groups = group_speakers(clips, SplitConfig())
    for one in clips:
        for two in clips:
            near = np.dot(one.voice, two.voice) / np.linalg.norm(one.voice) / np.linalg.norm(two.voice) >= 0.4  # type: ignore[arg-type]
            assert (groups[one.speaker] == groups[two.speaker]) == near
