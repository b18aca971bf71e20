"""Who is who: pairs equal a naive loop's, are found once, and follow the corpus as it grows, shrinks and is re-measured."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from uniavgen.curation.config import SplitConfig
from uniavgen.curation.people.identities import Near, components, likeness, nearest, pairs_above, unit_vectors
from uniavgen.curation.people.splits import NEITHER, VAL, Group, assign_sides
from uniavgen.curation.policy.decisions import BOTH_SIDES, decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

Make = Callable[..., Any]
PEOPLE = np.random.default_rng(0).standard_normal((40, 192))


def voice(person: int, noise: float = 0.02, seed: int = 0) -> list[float]:
    return (
        (PEOPLE[person] + noise * np.random.default_rng(seed).standard_normal(192))
        .astype(np.float32)
        .tolist()
    )


def named(corpus: Corpus, config: SplitConfig) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    alike = likeness(corpus, config)
    same, near = [
        {tuple(sorted(alike.speakers[i] for i in pair)) for pair in pairs}
        for pairs in (alike.same, alike.near)
    ]
    return same, near  # type: ignore[return-value]


@pytest.mark.parametrize("first_new", [0, 11, 24])
def test_pairs_in_blocks_equal_those_of_a_naive_loop(first_new: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniavgen.curation.people.identities._BLOCK", 7)
    monkeypatch.setattr("uniavgen.curation.people.identities._TILE", 9)
    of = [i // 2 for i in range(60)]  # two vectors a speaker
    rows = [np.array(voice(speaker % 13, 0.5, i)) for i, speaker in enumerate(of)]
    pairs, cosines = pairs_above(unit_vectors(of, rows, "voice"), 0.5, first_new)
    wanted = set()
    for i, one in enumerate(rows):
        for j, two in enumerate(rows):
            cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
            if of[i] < of[j] and of[j] >= first_new and cosine >= 0.5:
                wanted.add((of[i], of[j]))
    assert {tuple(pair) for pair in pairs.tolist()} == wanted
    assert len(wanted) > 3
    assert (cosines >= 0.5).all()


def test_of_too_many_pairs_the_nearest_are_held_and_all_that_are_surely_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("uniavgen.curation.people.identities._BLOCK", 7)
    monkeypatch.setattr("uniavgen.curation.people.identities._TILE", 9)
    vectors = unit_vectors(range(90), list(np.random.default_rng(1).standard_normal((90, 6))), "voice")
    cosines = np.triu(vectors.matrix @ vectors.matrix.T, 1)
    ranked = np.sort(cosines[cosines >= 0.2])[::-1]
    assert len(ranked) > 600
    for most, always in ((100, 0.99), (20, float(ranked[60]) - 1e-6)):
        pairs, values = pairs_above(vectors, 0.2, most=most, always=always)
        assert len(pairs) <= max(2 * most + 7 * 9, 200)
        surely = max(most, int((ranked >= always).sum()))
        assert np.sort(values)[::-1][:surely] == pytest.approx(ranked[:surely], abs=1e-6)
        assert [cosines[i, j] for i, j in pairs] == pytest.approx(values.tolist(), abs=1e-6)


def test_of_persons_near_each_other_the_nearest_pairs_count_and_two_of_one_person_take_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("uniavgen.curation.people.identities.LEAST_NEAR", 2)
    labels = np.array([0, 0, 1, 2, 3, 3])  # four persons, so two pairs of them may be near
    rows = [
        (0, 1, 0.59, 0),
        (4, 5, 0.58, 0),
        (0, 2, 0.5, 0),
        (1, 2, 0.41, 0),
        (2, 3, 0.55, 0),
        (3, 4, 0.45, 0),
        (0, 5, 0.95, 1),
    ]
    near = Near(
        np.array([row[:2] for row in rows]),
        np.array([row[2] for row in rows], np.float32),
        np.array([r[3] for r in rows]),
    )
    pairs, cut = nearest(labels, near)
    assert {tuple(pair) for pair in pairs.tolist()} == {(0, 2), (1, 2), (2, 3), (0, 5)}
    assert cut == {"voice": pytest.approx(0.5)}
    assert nearest(labels, Near(near.pairs[:3], near.cosine[:3], near.by[:3]))[1] == {}


def test_luck_among_thousands_leaves_few_without_a_side() -> None:
    count, config = 3000, SplitConfig(val_share=0.1)
    vectors = unit_vectors(range(count), list(np.random.default_rng(2).standard_normal((count, 24))), "voice")
    pairs, cosines = pairs_above(vectors, 0.4)
    assert len(pairs) > 20 * count  # each is near forty others, all of them strangers
    near, _ = nearest(np.arange(count), Near(pairs, cosines, np.zeros(len(pairs), int)))
    groups = [Group((f"s{i}",), 10.0) for i in range(count)]
    sides = {
        name: assign_sides(groups, map(tuple, found.tolist()), config)
        for name, found in (("all", pairs), ("few", near))
    }
    assert sides["all"].count(NEITHER) > 0.8 * count
    assert sides["few"].count(NEITHER) < 0.1 * count
    assert sides["few"].count(VAL) == pytest.approx(0.1 * count, rel=0.2)
    assert not any({sides["few"][i], sides["few"][j]} == {"train", "val"} for i, j in near.tolist())


def test_components_join_chains() -> None:
    labels = components(5, [np.array([[0, 1]]), np.array([[1, 4]])]).tolist()
    assert labels[0] == labels[1] == labels[4]
    assert len(set(labels)) == 3


def test_unusable_vectors_count_as_none_and_two_models_are_refused() -> None:
    rows = [None, np.zeros(192), np.full(192, np.nan), np.ones(192)]
    assert unit_vectors([0, 1, 2, 3], rows, "voice").of.tolist() == [3]
    with pytest.raises(UserError, match="two models"):
        unit_vectors([0, 1], [np.ones(192), np.ones(256)], "voice")


def test_what_was_compared_is_not_compared_again(
    make_corpus: Make, make_clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_clip(f"s{i}", 0.0, "p", voice=voice(i % 3, seed=i)) for i in range(9)]
    corpus, config = make_corpus(rows), SplitConfig()
    first = named(corpus, config)
    assert len(first[0]) == 9
    assert first[1] == set()
    compared = []
    monkeypatch.setattr(
        "uniavgen.curation.people.identities.pairs_above",
        lambda *args, **kw: compared.append(args) or pairs_above(*args, **kw),
    )
    assert named(corpus, config) == first
    assert compared == []
    corpus.upsert("clips", [make_clip("s9", 0.0, "p", voice=voice(0, seed=9))])
    grown = named(corpus, config)
    assert len(compared) == 2
    assert grown[0] - first[0] == {("s0-p", "s9-p"), ("s3-p", "s9-p"), ("s6-p", "s9-p")}
    corpus.remove("clips", [rows[0]["clip_id"]])
    assert all("s0-p" not in pair for pair in named(corpus, config)[0])
    fresh = Corpus.open(corpus.root)
    (corpus.root / "identities" / "speakers.parquet").unlink()
    assert named(fresh, config) == named(corpus, config)


def test_a_source_measured_anew_is_compared_anew(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus([make_clip(f"s{i}", 0.0, "p", voice=voice(0, seed=i)) for i in range(2)])
    assert named(corpus, SplitConfig())[0] == {("s0-p", "s1-p")}
    source = corpus.query("SELECT * FROM sources WHERE source_id = 's1'").to_pylist()[0]
    corpus.upsert("sources", [source | {"digest": "another"}])
    corpus.upsert("clips", [make_clip("s1", 0.0, "p", voice=voice(1))])
    assert named(corpus, SplitConfig())[0] == set()


def test_faces_of_two_models_are_refused_though_their_vectors_are_of_one_length(
    make_corpus: Make, make_clip: Make
) -> None:
    face = np.eye(128, dtype=np.float32)[0].tolist()
    rows = [
        make_clip(f"s{i}", 0.0, "p", face=face, versions={"face_vectors": m})
        for i, m in enumerate(("dlib", "sface"))
    ]
    with pytest.raises(UserError, match="two models: dlib, sface"):
        likeness(make_corpus(rows), SplitConfig())


def test_a_face_joins_what_voices_do_not(make_corpus: Make, make_clip: Make) -> None:
    face = np.eye(128, dtype=np.float32)[0].tolist()
    rows = [
        make_clip("s0", 0.0, "p", voice=voice(0), face=face),
        make_clip("s1", 0.0, "p", voice=voice(1), face=face),
    ]
    assert named(make_corpus(rows), SplitConfig())[0] == {("s0-p", "s1-p")}


def test_no_planted_person_leaks_and_a_go_between_is_left_out(make_corpus: Make, make_clip: Make) -> None:
    rows = [
        make_clip(f"s{i:02d}", 2.0 * j, "p", voice=voice(i % 12, seed=i)) for i in range(36) for j in range(2)
    ]
    corpus = make_corpus(rows)
    decide(corpus, load_policy("default"), SplitConfig(val_share=0.3))
    sides = dict(
        zip(*(corpus.read("decisions")[name].to_pylist() for name in ("clip_id", "split")), strict=True)
    )
    for person in range(12):
        assert len({sides[row["clip_id"]] for i, row in enumerate(rows) if i // 2 % 12 == person}) == 1
    assert set(sides.values()) == {"train", "val"}
    train = next(i for i in range(12) if sides[rows[2 * i]["clip_id"]] == "train")
    val = next(i for i in range(12) if sides[rows[2 * i]["clip_id"]] == "val")
    unit = PEOPLE / np.linalg.norm(PEOPLE, axis=1, keepdims=True)
    between = make_clip("zz", 0.0, "x", voice=(unit[train] + unit[val]).astype(np.float32).tolist())
    corpus.upsert("clips", [between])
    summary = decide(
        corpus, load_policy("default"), SplitConfig(val_share=0.3, same_voice=0.8, near_voice=0.5)
    )
    after = {row["clip_id"]: row for row in corpus.read("decisions").to_pylist()}
    assert (after[between["clip_id"]]["kept"], after[between["clip_id"]]["reason"]) == (False, BOTH_SIDES)
    assert summary.reasons == {BOTH_SIDES: 1}
    assert {name: after[name]["split"] for name in sides} == sides
