"""Speaker pairs equal those of a naive loop, are stored, and follow the corpus as it grows, shrinks and is
re-measured.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from uniavgen.curation.config import SplitConfig
from uniavgen.curation.people.identities import (
    NearPairs,
    compare_speakers,
    connected_components,
    find_pairs_above,
    limit_near_pairs,
    unit_embeddings,
)
from uniavgen.curation.people.splits import NEITHER, VAL, Person, assign_sides
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


def name_pairs(corpus: Corpus, config: SplitConfig) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    compared = compare_speakers(corpus, config)
    same, near = [
        {tuple(sorted(compared.speakers[i] for i in pair)) for pair in pairs}
        for pairs in (compared.same, compared.near)
    ]
    return same, near  # type: ignore[return-value]


@pytest.mark.parametrize("first_new", [0, 11, 24])
def test_blockwise_pairs_equal_naive_loop(first_new: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniavgen.curation.people.identities._BLOCK", 7)
    monkeypatch.setattr("uniavgen.curation.people.identities._TILE", 9)
    of = [i // 2 for i in range(60)]  # two vectors a speaker
    rows = [np.array(voice(speaker % 13, 0.5, i)) for i, speaker in enumerate(of)]
    pairs, cosines = find_pairs_above(unit_embeddings(of, rows, "voice"), 0.5, first_new)
    expected = set()
    for i, one in enumerate(rows):
        for j, two in enumerate(rows):
            cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
            if of[i] < of[j] and of[j] >= first_new and cosine >= 0.5:
                expected.add((of[i], of[j]))
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert len(expected) > 3
    assert (cosines >= 0.5).all()


def test_nearest_pairs_and_all_same_pairs_are_held_beyond_max_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("uniavgen.curation.people.identities._BLOCK", 7)
    monkeypatch.setattr("uniavgen.curation.people.identities._TILE", 9)
    vectors = unit_embeddings(range(90), list(np.random.default_rng(1).standard_normal((90, 6))), "voice")
    cosines = np.triu(vectors.matrix @ vectors.matrix.T, 1)
    ranked = np.sort(cosines[cosines >= 0.2])[::-1]
    assert len(ranked) > 600
    for most, always in ((100, 0.99), (20, float(ranked[60]) - 1e-6)):
        pairs, values = find_pairs_above(vectors, 0.2, max_pairs=most, always=always)
        assert len(pairs) <= max(2 * most + 7 * 9, 200)
        surely = max(most, int((ranked >= always).sum()))
        assert np.sort(values)[::-1][:surely] == pytest.approx(ranked[:surely], abs=1e-6)
        assert [cosines[i, j] for i, j in pairs] == pytest.approx(values.tolist(), abs=1e-6)


def test_limit_near_pairs_counts_pairs_of_different_persons_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("uniavgen.curation.people.identities.MIN_NEAR_PAIRS", 2)
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
    near = NearPairs(
        np.array([row[:2] for row in rows]),
        np.array([row[2] for row in rows], np.float32),
        np.array([r[3] for r in rows]),
    )
    pairs, raised = limit_near_pairs(labels, near)
    assert {tuple(pair) for pair in pairs.tolist()} == {(0, 2), (1, 2), (2, 3), (0, 5)}
    assert raised == {"voice": pytest.approx(0.5)}
    assert limit_near_pairs(labels, NearPairs(near.pairs[:3], near.cosine[:3], near.kind[:3]))[1] == {}


def test_limited_near_pairs_among_thousands_leave_room_for_val() -> None:
    count, config = 3000, SplitConfig(val_share=0.1)
    vectors = unit_embeddings(
        range(count), list(np.random.default_rng(2).standard_normal((count, 24))), "voice"
    )
    pairs, cosines = find_pairs_above(vectors, 0.4)
    assert len(pairs) > 20 * count  # each is near forty others, all of them strangers
    near, _ = limit_near_pairs(np.arange(count), NearPairs(pairs, cosines, np.zeros(len(pairs), int)))
    persons = [Person((f"s{i}",), 10.0) for i in range(count)]
    sides = {
        name: assign_sides(persons, map(tuple, near_pairs.tolist()), config)
        for name, near_pairs in (("all", pairs), ("few", near))
    }
    assert sides["all"].count(NEITHER) == sides["few"].count(NEITHER) == 0
    assert sides["all"].count(VAL) < 0.01 * count, "nearly all persons are one neighborhood"
    assert sides["few"].count(VAL) == pytest.approx(0.1 * count, rel=0.2)
    assert not any({sides["few"][i], sides["few"][j]} == {"train", "val"} for i, j in near.tolist())


def test_connected_components_join_chains() -> None:
    labels = connected_components(5, [np.array([[0, 1]]), np.array([[1, 4]])]).tolist()
    assert labels[0] == labels[1] == labels[4]
    assert len(set(labels)) == 3


def test_unusable_embeddings_are_skipped_and_two_models_refused() -> None:
    rows = [None, np.zeros(192), np.full(192, np.nan), np.ones(192)]
    assert unit_embeddings([0, 1, 2, 3], rows, "voice").speaker.tolist() == [3]
    with pytest.raises(UserError, match="two models"):
        unit_embeddings([0, 1], [np.ones(192), np.ones(256)], "voice")


def test_stored_pairs_are_not_compared_again(
    make_corpus: Make, make_clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_clip(f"s{i}", 0.0, "p", voice=voice(i % 3, seed=i)) for i in range(9)]
    corpus, config = make_corpus(rows), SplitConfig()
    first = name_pairs(corpus, config)
    assert len(first[0]) == 9
    assert first[1] == set()
    compared = []
    monkeypatch.setattr(
        "uniavgen.curation.people.identities.find_pairs_above",
        lambda *args, **kw: compared.append(args) or find_pairs_above(*args, **kw),
    )
    assert name_pairs(corpus, config) == first
    assert compared == []
    corpus.upsert("clips", [make_clip("s9", 0.0, "p", voice=voice(0, seed=9))])
    grown = name_pairs(corpus, config)
    assert len(compared) == 2
    assert grown[0] - first[0] == {("s0-p", "s9-p"), ("s3-p", "s9-p"), ("s6-p", "s9-p")}
    corpus.remove("clips", [rows[0]["clip_id"]])
    assert all("s0-p" not in pair for pair in name_pairs(corpus, config)[0])
    fresh = Corpus.open(corpus.root)
    (corpus.root / "identities" / "speakers.parquet").unlink()
    assert name_pairs(fresh, config) == name_pairs(corpus, config)


def test_re_measured_source_is_compared_again(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus([make_clip(f"s{i}", 0.0, "p", voice=voice(0, seed=i)) for i in range(2)])
    assert name_pairs(corpus, SplitConfig())[0] == {("s0-p", "s1-p")}
    source = corpus.query("SELECT * FROM sources WHERE source_id = 's1'").to_pylist()[0]
    corpus.upsert("sources", [source | {"digest": "another"}])
    corpus.upsert("clips", [make_clip("s1", 0.0, "p", voice=voice(1))])
    assert name_pairs(corpus, SplitConfig())[0] == set()


def test_face_embeddings_of_two_models_are_refused(make_corpus: Make, make_clip: Make) -> None:
    face = np.eye(128, dtype=np.float32)[0].tolist()
    rows = [
        make_clip(f"s{i}", 0.0, "p", face=face, versions={"face_vectors": m})
        for i, m in enumerate(("dlib", "sface"))
    ]
    with pytest.raises(UserError, match="two models: dlib, sface"):
        compare_speakers(make_corpus(rows), SplitConfig())


def test_equal_faces_join_speakers_with_different_voices(make_corpus: Make, make_clip: Make) -> None:
    face = np.eye(128, dtype=np.float32)[0].tolist()
    rows = [
        make_clip("s0", 0.0, "p", voice=voice(0), face=face),
        make_clip("s1", 0.0, "p", voice=voice(1), face=face),
    ]
    assert name_pairs(make_corpus(rows), SplitConfig())[0] == {("s0-p", "s1-p")}


def test_no_planted_person_leaks_and_person_near_both_sides_is_rejected(
    make_corpus: Make, make_clip: Make
) -> None:
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
