"""What-if, explain and sensitivity equal judging again, and write nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from uniavgen.curation.policy.decisions import decide, decided_policy
from uniavgen.curation.policy.rules import load_policy, parse_policy
from uniavgen.curation.policy.verdicts import judge
from uniavgen.curation.policy.what_if import clips_for, explain, sensitivity, what_if, with_thresholds
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

Make = Callable[..., Any]


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    """60 clips with random brightness, noise and sync; some values missing."""
    draw = np.random.default_rng(5)
    rows = []
    for i in range(60):
        changes: dict[str, Any] = {"snr_db": float(draw.uniform(0, 30)), "luma": float(draw.uniform(0, 255))}
        changes |= {
            "sync_offset_ms": float(draw.normal(0, 150)),
            "sync_confidence": float(draw.uniform(0.3, 0.9)),
        }
        if i % 9 == 0:
            changes["snr_db"] = None
        rows.append(
            make_clip(f"s{i % 7}", 2.0 * i, "p", end_s=2.0 * i + 2 + i % 3, duration_s=2.0 + i % 3, **changes)
        )
    made: Corpus = make_corpus(rows)
    return made


def brute_yield(corpus: Corpus, assignments: list[str]) -> tuple[int, float]:
    policy = with_thresholds(load_policy("default"), assignments)
    clips = clips_for(corpus, policy)
    kept = judge(clips, policy)["kept"].to_numpy(zero_copy_only=False)
    hours = (clips["end_s"].to_numpy() - clips["start_s"].to_numpy()) / 3600
    return int(kept.sum()), float(hours[kept].sum())


@pytest.mark.parametrize(
    "assignments", [["snr=20"], ["luma.min=100", "luma.max=150"], ["sync_offset_ms.max=20"], ["snr=99"]]
)
def test_what_if_equals_judging_with_changed_policy(corpus: Corpus, assignments: list[str]) -> None:
    decide(corpus, load_policy("default"))
    versions = corpus.versions()
    answer = what_if(corpus, load_policy("default"), assignments)
    assert (answer.after.clips, answer.after.hours) == pytest.approx(brute_yield(corpus, assignments))
    assert (answer.before.clips, answer.before.hours) == pytest.approx(brute_yield(corpus, []))
    assert corpus.versions() == versions
    assert decided_policy(corpus) == load_policy("default")


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("snrr=3", "did you mean 'snr'"),
        ("luma=3", "several bounds"),
        ("snr=loud", "not a number"),
        ("snr", "NAME=VALUE"),
        ("speech=1", "no number to set"),
        ("snr.most=1", "no bound 'most'"),
    ],
)
def test_invalid_assignment_is_refused_with_hint(assignment: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        with_thresholds(load_policy("default"), [assignment])


def test_sensitivity_equals_judging_at_every_threshold(corpus: Corpus) -> None:
    policy = load_policy("default")
    by_bound = {(row.rule, row.bound): row for row in sensitivity(clips_for(corpus, policy), policy, steps=6)}
    assert {("snr", "min"), ("luma", "min"), ("luma", "max"), ("sync", "min"), ("sync", "max")} <= set(
        by_bound
    )
    for key in (("snr", "min"), ("luma", "max"), ("sync", "min")):
        row = by_bound[key]
        assert row.threshold in row.thresholds
        for threshold, clips, hours in zip(row.thresholds, row.clips, row.hours, strict=True):
            assert (clips, hours) == pytest.approx(
                brute_yield(corpus, [f"{row.rule}.{row.bound}={threshold!r}"])
            )


def test_sensitivity_sorts_by_gain(make_corpus: Make, make_clip: Make) -> None:
    rows = [
        make_clip("s", 2.0 * i, "p", snr_db=1.0 if i < 3 else 30.0, luma=5.0 if i == 9 else 100.0)
        for i in range(10)
    ]
    clips = clips_for(make_corpus(rows), load_policy("default"))
    first, second = sensitivity(clips, load_policy("default"))[:2]
    assert (first.rule, first.gain, first.clips_now) == ("snr", 3 / 6, 6)
    assert (second.rule, second.gain) == ("luma", 1 / 6)


def test_explain_gives_verdict_of_every_rule(make_corpus: Make, make_clip: Make) -> None:
    clip = make_clip("src6", 2.0, "d", face_height_px=None, snr_db=1.0)
    corpus = make_corpus([clip, make_clip("src6", 0.0, "d")])
    explained = {row["rule"]: row for row in explain(corpus, load_policy("default"), clip["clip_id"][:12])}
    assert explained["language"]["verdict"] == "passed"
    assert explained["face_height"]["verdict"] == "missing"
    assert (explained["snr"]["verdict"], explained["snr"]["values"]) == ("failed", {"snr_db": 1.0})
    with pytest.raises(UserError, match="no such clip"):
        explain(corpus, load_policy("default"), "it's nothing")
    with pytest.raises(UserError, match="2 clips begin"):
        explain(corpus, load_policy("default"), "")


def test_sensitivity_is_empty_without_numeric_bounds(corpus: Corpus) -> None:
    policy = parse_policy("rules: [{name: speech, sql: transcript <> '', says: s}]", where="text")
    assert sensitivity(clips_for(corpus, policy), policy) == []
