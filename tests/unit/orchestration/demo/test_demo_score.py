"""Scores against the truth: a corpus equal to the truth has full scores; each planted error is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniavgen.orchestration.demo.score import normalise, oval_iou, score, true_ovals
from uniavgen.orchestration.demo.truth import DemoTruth, SourceTruth, TurnTruth, WordTruth
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.sample import FaceTrack

ANGLES = np.linspace(0, 2 * np.pi, 36, endpoint=False)


def _oval(centre_x: float) -> tuple[tuple[float, float], ...]:
    return tuple((centre_x + 0.2 * float(np.cos(a)), 0.5 + 0.25 * float(np.sin(a))) for a in ANGLES)


WORDS = ("One", "clear", "day", "we", "sailed", "away", "home")


def _source(name: str, fate: str = "kept", shift_ms: float = 0.0) -> SourceTruth:
    words = tuple(WordTruth(text, 1 + i * 0.5, 1.4 + i * 0.5) for i, text in enumerate(WORDS))
    turns = (TurnTruth("joe", 1.0, 2.4), TurnTruth("ann", 2.5, 4.4))
    face = tuple(_oval(0.5 + 0.002 * i) for i in range(51))
    return SourceTruth(name, 1, 5.0, 25, 64, 64, words, True, turns, (2.44,), face, shift_ms, fate)


TRUTH = DemoTruth(
    "d", (_source("a.mp4"), _source("late.mp4", "sound-late", 400.0), _source("cut.mp4", "truncated"))
)


def _row(uri: str, identity: str, **fields: Any) -> dict[str, Any]:
    turns = [{"label": "S0", "start_s": 1.0, "end_s": 2.4}, {"label": "S1", "start_s": 2.5, "end_s": 4.4}]
    shots = [{"label": "0", "start_s": 0.0, "end_s": 2.44}, {"label": "1", "start_s": 2.44, "end_s": 5.0}]
    return {
        "source_id": identity,
        "uri": f"/videos/{uri}",
        "turns": turns,
        "shots": shots,
        "error": "",
        **fields,
    }


def _clip(identity: str, source: SourceTruth, source_id: str, **fields: Any) -> dict[str, Any]:
    """A clip over 0.9-4.6 s that heard every word 20 ms late."""
    words = [
        {"text": w.text + ",", "start_s": w.start_s - 0.88, "end_s": w.end_s - 0.88, "score": 1.0}
        for w in source.words
    ]
    return {
        "clip_id": identity,
        "source_id": source_id,
        "start_s": 0.9,
        "end_s": 4.6,
        "words": words,
        **fields,
    }


def _corpus(folder: Path, clip: dict[str, Any], source: dict[str, Any] | None = None) -> Corpus:
    corpus = Corpus.create(folder)
    corpus.upsert("sources", [source or _row("a.mp4", "s-a"), _row("late.mp4", "s-late")])
    corpus.upsert("clips", [clip, _clip("c-late", TRUTH.sources[1], "s-late")])
    corpus.upsert("failures", [{"uri": "/videos/cut.mp4", "error_type": "not-a-video", "attempts": 1}])
    decisions = [(clip["clip_id"], True, ""), ("c-late", False, "sync_offset")]
    corpus.upsert("decisions", [{"clip_id": c, "kept": k, "reason": r} for c, k, r in decisions])
    times = clip["start_s"] + np.arange(59) / 16
    track = FaceTrack(
        true_ovals(TRUTH.sources[0], times), np.zeros((59, 4), np.float32), np.ones(59, np.float32)
    )
    path = corpus.media_path(clip["clip_id"], "face.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(track.to_bytes())
    return corpus


def test_corpus_equal_to_the_truth_has_full_scores(tmp_path: Path) -> None:
    measured = score(_corpus(tmp_path, _clip("c-a", TRUTH.sources[0], "s-a", sync_offset_ms=10.0)), TRUTH)
    assert measured.word_error_rate == 0
    assert measured.words_in_clips == 1
    assert measured.word_start_median_ms == pytest.approx(20)
    assert measured.diarization_error_rate == 0
    assert (measured.cuts_planted, measured.cuts_found, measured.cuts_false) == (2, 2, 0)
    assert measured.face_iou_median == pytest.approx(1)
    assert measured.sync_error_median_ms == 10
    assert (measured.clips, measured.clips_kept, measured.good_sources_kept) == (2, 1, 1)
    assert [c.caught_by for c in measured.caught] == ["rule: sync_offset", "failure: not-a-video"]
    assert measured.lost == ()
    assert all(len(row) == 3 for row in measured.rows() + measured.caught_rows())


def test_wrong_and_missing_word_are_two_errors_in_fourteen(tmp_path: Path) -> None:
    clip = _clip("c-a", TRUTH.sources[0], "s-a")
    clip["words"][2]["text"] = "night"
    del clip["words"][4]
    assert score(_corpus(tmp_path, clip), TRUTH).word_error_rate == pytest.approx(2 / 14)


def test_merged_speakers_missed_cuts_and_lost_sources_are_counted(tmp_path: Path) -> None:
    one = [{"label": "S0", "start_s": 1.0, "end_s": 4.4}]
    shots = [{"label": "0", "start_s": 0.0, "end_s": 4.0}, {"label": "1", "start_s": 4.0, "end_s": 5.0}]
    corpus = _corpus(
        tmp_path, _clip("c-a", TRUTH.sources[0], "s-a"), _row("a.mp4", "s-a", turns=one, shots=shots)
    )
    corpus.upsert(
        "decisions",
        [{"clip_id": "c-a", "kept": False, "reason": "face"}, {"clip_id": "c-late", "kept": True}],
    )
    measured = score(corpus, TRUTH)
    assert measured.diarization_error_rate is not None
    assert 0.15 < measured.diarization_error_rate < 0.35
    assert (measured.cuts_found, measured.cuts_false) == (1, 1)
    assert measured.lost == ("a.mp4",)
    assert measured.caught_rows()[0] == ("late.mp4", "sound-late", "NOT CAUGHT")


def test_empty_corpus_has_no_scores(tmp_path: Path) -> None:
    measured = score(Corpus.create(tmp_path), TRUTH)
    assert measured.word_error_rate is None
    assert measured.lost == ("a.mp4",)
    assert "not measured" in measured.rows()[0]


def test_iou_of_a_shifted_oval_and_of_a_missing_face() -> None:
    planted, found = _oval(0.5), _oval(0.6)
    y, x = np.mgrid[0:1:0.002, 0:1:0.002]  # the ellipses of the ovals, counted point by point
    one, two = (((x - c) / 0.2) ** 2 + ((y - 0.5) / 0.25) ** 2 < 1 for c in (0.5, 0.6))
    exact = (one & two).sum() / (one | two).sum()
    track = FaceTrack(np.array([found, found], np.float32), np.zeros((2, 4)), np.array([1.0, 0.0]))
    assert oval_iou(track, np.array([planted, planted])) == pytest.approx([exact, 0], abs=0.02)


def test_true_ovals_are_interpolated_linearly() -> None:
    ovals = true_ovals(TRUTH.sources[0], np.array([0.0, 0.05, 1.0, 99.0]))
    assert ovals[:, :, 0].mean(axis=1) == pytest.approx([0.5, 0.501, 0.52, 0.6], abs=1e-4)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert normalise("Don’t stop -- the 'Old' road, 7 miles!") == [
        "don't",
        "stop",
        "the",
        "old",
        "road",
        "7",
        "miles",
    ]
