"""Compare an ingested corpus with the truth about the demo videos: tables and face tracks; nothing is
decoded.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.demo.truth import FACE_RATE_HZ, DemoTruth, SourceTruth, WordTruth
from uniavgen.shards.sample import FaceTrack, rasterise_oval
from uniavgen.shards.timing import VIDEO_FPS

if TYPE_CHECKING:
    import numpy as np

    from uniavgen.shards.corpus.tables import Corpus

DER_COLLAR_S = 0.25
"""Tolerance at turn boundaries in the diarization error rate."""
CUT_TOLERANCE_S = 0.15
_GRID = 64
"""Cells per side of the grid on which face masks are compared."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Caught:
    """A planted bad source and what caught it: "failure: KIND", "rule: REASON", or "" if nothing did."""

    name: str
    planted: str
    caught_by: str


@dataclass(frozen=True)
class DemoScore:
    """Scores against the truth; None if there was nothing to compare.

    Words, faces and sync are scored in the clips of good sources (words also if only the picture is bad),
    turns and cuts over whole sources. Rates and IoU are 0..1.
    """

    word_error_rate: float | None
    words: int
    words_in_clips: float | None
    word_start_median_ms: float | None
    word_start_p90_ms: float | None
    diarization_error_rate: float | None
    cuts_planted: int
    cuts_found: int
    cuts_false: int
    face_iou_median: float | None
    face_iou_p10: float | None
    sync_error_median_ms: float | None
    sync_within_80_ms: float | None
    clips: int
    clips_kept: int
    voices_kept: int
    good_sources: int
    good_sources_kept: int
    lost: tuple[str, ...]
    caught: tuple[Caught, ...]

    @property
    def bad_caught(self) -> int:
        return sum(bool(entry.caught_by) for entry in self.caught)

    def rows(self) -> list[tuple[str, str, str]]:
        """Rows for a table: what, value, target."""
        return [
            ("word error rate", _format(self.word_error_rate, "{:.3f}"), "<= 0.05"),
            ("spoken words inside clips", _format(self.words_in_clips, "{:.0%}"), ">= 90%"),
            (
                "word start error, median / 90 %",
                f"{_format(self.word_start_median_ms)} / {_format(self.word_start_p90_ms)} ms",
                "<= 30 ms",
            ),
            (
                f"diarization error rate (collar {DER_COLLAR_S} s)",
                _format(self.diarization_error_rate, "{:.3f}"),
                "<= 0.10",
            ),
            (
                "planted cuts found / false cuts",
                f"{self.cuts_found} of {self.cuts_planted} / {self.cuts_false}",
                "all / 0",
            ),
            (
                "face oval IoU, median / 10 %",
                f"{_format(self.face_iou_median, '{:.2f}')} / {_format(self.face_iou_p10, '{:.2f}')}",
                ">= 0.85",
            ),
            ("audio-visual offset error, median", f"{_format(self.sync_error_median_ms)} ms", "<= 40 ms"),
            ("clips with offset error under 80 ms", _format(self.sync_within_80_ms, "{:.0%}"), ">= 90%"),
            (
                "clips kept / voices",
                f"{self.clips_kept} of {self.clips} / {self.voices_kept}",
                ">= 25 / >= 3",
            ),
            ("good sources with a kept clip", f"{self.good_sources_kept} of {self.good_sources}", "all"),
            ("planted bad sources caught", f"{self.bad_caught} of {len(self.caught)}", "all"),
        ]

    def caught_rows(self) -> list[tuple[str, str, str]]:
        """Rows for a table: file, planted defect, what caught it."""
        return [(entry.name, entry.planted, entry.caught_by or "NOT CAUGHT") for entry in self.caught]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and MLflow."""
        return {**asdict(self), "bad_caught": self.bad_caught}


def score(corpus: Corpus, truth: DemoTruth) -> DemoScore:
    """Compare a corpus with the truth. Sources are matched by file name."""
    known = {source.name: source for source in truth.sources}
    rows = {
        name: row
        for row in corpus.read("sources").to_pylist()
        if (name := os.path.basename(row["uri"])) in known
    }
    by_id = {row["source_id"]: known[name] for name, row in rows.items()}
    clips = [clip for clip in corpus.read("clips").to_pylist() if clip["source_id"] in by_id]
    decisions = {row["clip_id"]: row for row in corpus.read("decisions").to_pylist()}
    failures = {os.path.basename(row["uri"]): row for row in corpus.read("failures").to_pylist()}
    kept = [clip for clip in clips if decisions.get(clip["clip_id"], {}).get("kept")]
    good_kept = {by_id[clip["source_id"]].name for clip in kept}
    good = [source.name for source in truth.sources if source.good]
    good_clips = [clip for clip in clips if by_id[clip["source_id"]].good]
    return DemoScore(
        **_word_scores([(clip, by_id[clip["source_id"]]) for clip in clips], by_id.values()),
        diarization_error_rate=_diarization(rows, known),
        **_cut_scores(rows, known),
        **_face_scores(corpus, good_clips, by_id),
        **_sync_scores(good_clips, by_id),
        clips=len(clips),
        clips_kept=len(kept),
        voices_kept=len({_voice_of(clip, by_id[clip["source_id"]]) for clip in kept} - {""}),
        good_sources=len(good),
        good_sources_kept=sum(name in good_kept for name in good),
        lost=tuple(name for name in good if name not in good_kept),
        caught=tuple(
            _caught(s, rows.get(s.name), clips, decisions, failures.get(s.name))
            for s in truth.sources
            if not s.good
        ),
    )


def normalise(text: str) -> list[str]:
    """Words for comparison: lower case; letters, digits and inner apostrophes only."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)*", text.lower().replace("’", "'"))


def _word_scores(pairs: Sequence[tuple[Row, SourceTruth]], sources: Iterable[SourceTruth]) -> dict[str, Any]:
    """Pooled word error rate in clips, and errors of the starts of correctly recognised words."""
    import jiwer
    import numpy as np

    edits = total = 0
    errors_ms: list[float] = []
    for clip, source in pairs:
        said = [w for w in source.words if clip["start_s"] <= (w.start_s + w.end_s) / 2 < clip["end_s"]]
        if not said:
            continue
        heard = [(t, word) for word in clip["words"] or [] for t in normalise(word["text"])]
        reference = [(t, word) for word in said for t in normalise(word.text)]
        total += len(reference)
        if not heard:
            edits += len(reference)
            continue
        result = jiwer.process_words(" ".join(t for t, _ in reference), " ".join(t for t, _ in heard))
        edits += result.substitutions + result.deletions + result.insertions
        if source.exact_times:
            errors_ms += _start_errors(reference, heard, result.alignments[0], clip["start_s"])
    spoken = sum(len(normalise(source.text)) for source in sources)
    return {
        "word_error_rate": edits / total if total else None,
        "words": total,
        "words_in_clips": total / spoken if spoken else None,
        "word_start_median_ms": float(np.median(errors_ms)) if errors_ms else None,
        "word_start_p90_ms": float(np.percentile(errors_ms, 90)) if errors_ms else None,
    }


def _start_errors(
    reference: Sequence[tuple[str, WordTruth]],
    heard: Sequence[tuple[str, Row]],
    alignment: Any,
    clip_start_s: float,
) -> list[float]:
    """Absolute errors in ms of the starts of the words that jiwer aligned as equal."""
    errors = []
    for chunk in alignment:
        if chunk.type == "equal":
            for r, h in zip(
                range(chunk.ref_start_idx, chunk.ref_end_idx),
                range(chunk.hyp_start_idx, chunk.hyp_end_idx),
                strict=True,
            ):
                errors.append(abs(clip_start_s + heard[h][1]["start_s"] - reference[r][1].start_s) * 1000)
    return errors


def _diarization(rows: Mapping[str, Row], known: Mapping[str, SourceTruth]) -> float | None:
    """Diarization error rate over all sources with speech (pyannote.metrics)."""
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    metric = DiarizationErrorRate(collar=DER_COLLAR_S)
    for name, row in rows.items():
        if not known[name].turns:
            continue
        reference, hypothesis = Annotation(uri=name), Annotation(uri=name)
        for number, turn in enumerate(known[name].turns):
            reference[Segment(turn.start_s, turn.end_s), number] = turn.voice
        for number, turn in enumerate(row["turns"] or []):
            hypothesis[Segment(turn["start_s"], turn["end_s"]), number] = turn["label"]
        metric(reference, hypothesis, uem=Timeline([Segment(0, known[name].duration_s)]))
    return float(abs(metric)) if metric["total"] else None


def _cut_scores(rows: Mapping[str, Row], known: Mapping[str, SourceTruth]) -> dict[str, int]:
    """Planted cuts found within CUT_TOLERANCE_S, and false cuts, over all sources that show a face."""
    planted = hits = false = 0
    for name, row in rows.items():
        if not known[name].face:
            continue
        starts = sorted(shot["start_s"] for shot in row["shots"] or [])[1:]
        unmatched = list(starts)
        for cut in known[name].cuts_s:
            near = min(unmatched, key=lambda start: abs(start - cut), default=None)
            planted += 1
            if near is not None and abs(near - cut) <= CUT_TOLERANCE_S:
                hits += 1
                unmatched.remove(near)
        false += len(unmatched)
    return {"cuts_planted": planted, "cuts_found": hits, "cuts_false": false}


def _face_scores(corpus: Corpus, clips: Iterable[Row], by_id: Mapping[str, SourceTruth]) -> dict[str, Any]:
    """IoU of measured and true face ovals, frame by frame; a frame without a face counts as 0."""
    import numpy as np

    overlaps: list[np.ndarray] = []
    for clip in clips:
        path, source = corpus.media_path(clip["clip_id"], "face.npz"), by_id[clip["source_id"]]
        if path.is_file() and source.face:
            track = FaceTrack.from_bytes(path.read_bytes())
            times = clip["start_s"] + np.arange(len(track.oval)) / VIDEO_FPS
            overlaps.append(oval_iou(track, true_ovals(source, times)))
    iou = np.concatenate(overlaps) if overlaps else np.zeros(0)
    if not len(iou):
        return {"face_iou_median": None, "face_iou_p10": None}
    return {"face_iou_median": float(np.median(iou)), "face_iou_p10": float(np.percentile(iou, 10))}


def true_ovals(source: SourceTruth, times: np.ndarray) -> np.ndarray:
    """True face ovals float32 [n, 36, 2] at `times` [n] (seconds), linear between the stored ones."""
    import numpy as np

    stored = np.array(source.face, np.float32)
    position = np.clip(times * FACE_RATE_HZ, 0, len(stored) - 1)
    before = np.floor(position).astype(int)
    after = np.minimum(before + 1, len(stored) - 1)
    share = (position - before).astype(np.float32)[:, None, None]
    ovals: np.ndarray = stored[before] * (1 - share) + stored[after] * share
    return ovals


def oval_iou(track: FaceTrack, true: np.ndarray) -> np.ndarray:
    """IoU [n] of a track's ovals with true ones [n, P, 2], as soft masks on a grid."""
    import numpy as np

    measured = rasterise_oval(track.oval, track.score, _GRID, _GRID, supersample=4)
    planted = rasterise_oval(true, np.ones(len(true)), _GRID, _GRID, supersample=4)
    both = np.minimum(measured, planted).sum(axis=(1, 2))
    either = np.maximum(measured, planted).sum(axis=(1, 2))
    iou: np.ndarray = both / np.maximum(either, 1e-9)
    return iou


def _sync_scores(clips: Iterable[Row], by_id: Mapping[str, SourceTruth]) -> dict[str, Any]:
    """Difference of measured and planted audio-visual offset (positive: audio late)."""
    import numpy as np

    offsets = [(clip.get("sync_offset_ms"), by_id[clip["source_id"]].shift_ms) for clip in clips]
    errors = np.array([abs(measured - planted) for measured, planted in offsets if measured is not None])
    if not len(errors):
        return {"sync_error_median_ms": None, "sync_within_80_ms": None}
    return {
        "sync_error_median_ms": float(np.median(errors)),
        "sync_within_80_ms": float(np.mean(errors < 80)),
    }


def _voice_of(clip: Row, source: SourceTruth) -> str:
    """The true voice that speaks longest in a clip; "" if none does."""
    spoken: Counter[str] = Counter()
    for turn in source.turns:
        spoken[turn.voice] += max(0.0, min(turn.end_s, clip["end_s"]) - max(turn.start_s, clip["start_s"]))
    voice, length = max(spoken.items(), key=lambda item: item[1], default=("", 0.0))
    return voice if length > 0 else ""


def _caught(
    source: SourceTruth,
    row: Row | None,
    clips: Iterable[Row],
    decisions: Mapping[str, Row],
    failure: Row | None,
) -> Caught:
    """What caught a planted bad source: its failure row, or the reasons that rejected all its clips."""
    if failure:
        return Caught(source.name, source.fate, f"failure: {failure['error_type']}")
    verdicts = [
        decisions.get(clip["clip_id"]) for clip in clips if row and clip["source_id"] == row["source_id"]
    ]
    if verdicts and all(decision and not decision["kept"] for decision in verdicts):
        reasons = Counter(decision["reason"] for decision in verdicts if decision)
        return Caught(
            source.name, source.fate, "rule: " + ", ".join(reason for reason, _ in reasons.most_common())
        )
    if row and not verdicts and row["error"]:
        return Caught(source.name, source.fate, f"source: {row['error']}")
    return Caught(source.name, source.fate, "")


def _format(value: float | None, form: str = "{:.0f}") -> str:
    return "not measured" if value is None else form.format(value)
