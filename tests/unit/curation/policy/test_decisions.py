"""Decisions of a corpus: one row per clip, stable sides, nothing written twice."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from uniavgen.curation.config import SplitConfig
from uniavgen.curation.policy.decisions import BOTH_SIDES, decide, decided_policy, fit_windows
from uniavgen.curation.policy.rules import load_policy, parse_policy
from uniavgen.orchestration.commands.curate import explain_clip, preset_windows, split_warnings
from uniavgen.orchestration.config import Config
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

Make = Callable[..., Any]


def rows(make_clip: Make) -> list[dict[str, Any]]:
    good = [make_clip(f"src{i}", 2.0 * j, person) for i, person in enumerate("aabbcc") for j in range(3)]
    bad = [
        make_clip("src6", 0.0, "d", language="ru"),
        make_clip("src6", 2.0, "d", face_height_px=None, snr_db=1.0),
    ]
    return good + bad


def test_every_clip_has_decision_reason_and_side(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus(rows(make_clip))
    summary = decide(corpus, load_policy("default"))
    decisions = corpus.read("decisions").to_pylist()
    assert {row["clip_id"] for row in decisions} == set(corpus.read("clips")["clip_id"].to_pylist())
    assert (summary.clips, summary.kept, summary.train + summary.val) == (20, 18, 18)
    assert summary.reasons == {"language": 1, "missing: face_height_px": 1}
    assert summary.kept_hours == pytest.approx(18 * 2 / 3600)
    assert [(row.reason, row.clips, row.says) for row in summary.rejected] == [
        ("language", 1, "the rule requires that the language is English"),
        ("missing: face_height_px", 1, "face_height_px was not measured"),
    ]
    assert sum(row.hours for row in summary.rejected) == pytest.approx(summary.hours - summary.kept_hours)
    assert sum(row.failed_first for row in summary.funnel) == 2
    both = next(row for row in decisions if row["reason"] == "missing: face_height_px")
    assert both["failed_rules"] == ["missing: face_height_px", "snr"]
    assert {row["policy_digest"] for row in decisions} == {summary.policy_digest}


def test_train_and_val_share_no_speaker_across_sources(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus(rows(make_clip))
    decide(corpus, load_policy("default"))
    sides = corpus.query(
        "SELECT right(speaker, 1) AS person, split FROM clips JOIN decisions USING (clip_id) WHERE kept"
    )
    pairs = {(row["person"], row["split"]) for row in sides.to_pylist()}
    assert len(pairs) == 3
    assert {split for _, split in pairs} == {"train", "val"}


def test_deciding_again_writes_nothing(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus(rows(make_clip))
    assert decide(corpus, load_policy("default")).written
    versions = corpus.versions()
    again = decide(Corpus.open(corpus.root), load_policy("default"))
    assert not again.written
    assert corpus.versions() == versions


def test_other_policy_moves_no_clip_to_other_side(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus(rows(make_clip))
    decide(corpus, load_policy("default"), SplitConfig(val_share=0.3))
    before = dict(
        zip(*(corpus.read("decisions")[name].to_pylist() for name in ("clip_id", "split")), strict=True)
    )
    loose = parse_policy("extends: default\ndrop: [language]\nrules: []", where="loose")
    summary = decide(corpus, loose, SplitConfig(val_share=0.3))
    after = dict(
        zip(*(corpus.read("decisions")[name].to_pylist() for name in ("clip_id", "split")), strict=True)
    )
    assert summary.kept == 19
    assert after == before


def test_empty_and_undecided_corpus_errors_have_hints(tmp_path: Any) -> None:
    corpus = Corpus.create(tmp_path / "corpus")
    with pytest.raises(UserError, match="uniavgen ingest"):
        decide(corpus, load_policy("default"))
    with pytest.raises(UserError, match="uniavgen curate"):
        decided_policy(corpus)


def test_every_rejected_clip_is_in_the_summary(make_corpus: Make, make_clip: Make) -> None:
    voices = np.eye(3, 192, dtype=np.float32)
    clips = [make_clip(f"s{i}", 0.0, "p", voice=voices[i].tolist()) for i in range(2)]
    corpus = make_corpus(clips)
    split = SplitConfig(val_share=0.3, same_voice=0.8, near_voice=0.5)
    decide(corpus, load_policy("default"), split)
    prints = {"video_hash": list(range(1, 18)), "sound_hash": [7 * i for i in range(1, 20)]}
    between = make_clip("s2", 0.0, "x", voice=(voices[0] + voices[1]).tolist(), luma=None)
    both = make_clip("s2", 5.0, "x", voice=(voices[0] + voices[1]).tolist())
    copies = [make_clip(f"s{3 + i}", 0.0, "y", voice=voices[2].tolist(), **prints) for i in range(2)]
    corpus.upsert("clips", [between, both, *copies])
    summary = decide(corpus, load_policy("default"), split)
    assert {row.reason: row.clips for row in summary.rejected} == {
        "missing: luma": 1,
        BOTH_SIDES: 1,
        "duplicate": 1,
    }
    assert sum(row.clips for row in summary.rejected) == summary.clips - summary.kept
    assert sum(row.hours for row in summary.rejected) == pytest.approx(summary.hours - summary.kept_hours)
    reasons = {row["clip_id"]: row["reason"] for row in corpus.read("decisions").to_pylist()}
    for clip, reason in reasons.items():
        assert explain_clip(corpus.root, Config(), None, clip)["reason"] == reason.removeprefix("missing: ")
    assert summary.val_hours == pytest.approx(2 / 3600)


def test_empty_val_is_said(make_corpus: Make, make_clip: Make) -> None:
    voice = np.eye(1, 192, dtype=np.float32)[0].tolist()
    summary = decide(
        make_corpus([make_clip("s", 2.0 * i, "p", voice=voice) for i in range(3)]), load_policy("default")
    )
    assert (summary.train, summary.val) == (3, 0)
    assert split_warnings(summary, 0.1)[0].startswith("val is empty")
    assert split_warnings(summary, 0.0) == []


def test_clips_that_leave_val_are_counted_and_said(make_corpus: Make, make_clip: Make) -> None:
    voices = np.eye(2, 192, dtype=np.float32)
    corpus = make_corpus([make_clip(f"s{i}", 0.0, "p", voice=voices[i].tolist()) for i in range(2)])
    split = SplitConfig(val_share=0.5, same_voice=0.7, near_voice=0.6)
    first = decide(corpus, load_policy("default"), split)
    assert (first.train, first.val, first.left_val) == (1, 1, 0)
    corpus.upsert("clips", [make_clip("s2", 0.0, "p", voice=(voices[0] + voices[1]).tolist())])
    joined = decide(corpus, load_policy("default"), split)
    assert (joined.train, joined.val, joined.left_val) == (3, 0, 1)
    assert any("moved from val to train" in line for line in split_warnings(joined, 0.5))
    assert decide(corpus, load_policy("default"), split).left_val == 0


def test_changed_words_of_a_policy_are_stored(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus([make_clip("s", 2.0 * i, "p") for i in range(2)])
    clip = corpus.read("clips").to_pylist()[0]["clip_id"]
    text = "extends: default\nrules: []\nkeep: [{clip: %s, who: %s, why: it is fine}]\n"
    assert decide(corpus, parse_policy(text % (clip, "anna"), where="mine")).written
    again = decide(corpus, parse_policy(text % (clip, "eve"), where="mine"))
    assert not again.written
    assert decided_policy(corpus).keep[0].who == "eve"


def test_hours_that_fit_each_window_are_those_of_long_train_clips(make_corpus: Make, make_clip: Make) -> None:
    clips = [make_clip(f"s{i}", 0.0, "p") for i in range(8)]
    for i, clip in enumerate(clips):
        clip |= {"end_s": 2.0 + i, "duration_s": 2.0 + i}
    corpus = make_corpus(clips)
    decide(corpus, parse_policy("rules: [{name: long, column: duration_s, min: 2.5, says: long}]", where="p"))
    kept = {
        row["clip_id"]
        for row in corpus.read("decisions").to_pylist()
        if row["kept"] and row["split"] == "train"
    }
    train = [clip["end_s"] for clip in clips if clip["clip_id"] in kept]
    for fit in fit_windows(corpus, {"short": 16, "middle": 81, "long": 400}):
        long = [seconds for seconds in train if seconds * 16 >= fit.frames]
        assert (fit.clips, fit.hours) == (len(long), pytest.approx(sum(long) / 3600))
        assert fit.share == pytest.approx(sum(long) / sum(train))
    assert preset_windows()["paper"] == 81
