"""Source pages: `report/sources/<source_id>.html` with a timeline (shots, turns, words, faces, lip sync,
clips) and every clip with its signals.

Only a few sources have a page: those of the report's examples, the longest, and those that lost most. The
report stays small at any corpus size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.curation.policy.rules import Policy
from uniavgen.curation.report.templating import render
from uniavgen.shards.corpus.signals import SIGNALS, SYNC_CURVE_STEP_MS
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.text import word_gaps

if TYPE_CHECKING:
    import duckdb

TIME_DIGITS = 2
"""Decimals of times in seconds: finer is not visible."""


def choose_sources(connection: duckdb.DuckDBPyConnection, examples: Sequence[str], limit: int) -> list[str]:
    """At most `limit` source ids: in turn one of `examples`, the longest source, the one that lost most clip
    time.

    `connection` is that of `judged_corpus`.
    """
    longest = connection.sql(
        f"SELECT source_id FROM sources_table ORDER BY duration_s DESC NULLS LAST, source_id LIMIT {limit}"
    ).fetchall()
    worst = connection.sql(
        f"""SELECT source_id FROM judged WHERE NOT kept GROUP BY source_id
        ORDER BY sum(seconds) DESC, source_id LIMIT {limit}"""
    ).fetchall()
    return interleave([examples, [row[0] for row in longest], [row[0] for row in worst]], limit)


def interleave(lists: Iterable[Sequence[str]], limit: int) -> list[str]:
    """The first `limit` different names, taken from the lists in turn."""
    names = dict.fromkeys(name for name in chain.from_iterable(zip_longest(*lists)) if name is not None)
    return list(names)[:limit]


def write_source_pages(
    corpus: Corpus, folder: Path, chosen: Sequence[str], playable: Iterable[str], policy: Policy
) -> None:
    """Write `<source_id>.html` for the `chosen` sources into `folder` and delete other pages.

    `playable`: clips with a preview in `folder/../clips`. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips = corpus.query(
        """SELECT c.*, c.end_s - c.start_s AS seconds, d.kept, d.reason, d.failed_rules, d.split
        FROM chosen c JOIN decisions d USING (clip_id) ORDER BY start_s, clip_id""",
        chosen=corpus.read("clips", only=("source_id", chosen)),
    ).to_pylist()
    for source in corpus.read("sources", only=("source_id", chosen)).to_pylist():
        of_source = [clip for clip in clips if clip["source_id"] == source["source_id"]]
        part = folder / ".part"
        part.write_text(render_source_page(source, of_source, frozenset(playable), policy), encoding="utf-8")
        os.replace(part, folder / f"{source['source_id']}.html")
    for path in folder.glob("*.html"):
        if path.stem not in chosen:
            path.unlink()


def render_source_page(
    source: dict[str, Any], clips: list[dict[str, Any]], playable: frozenset[str], policy: Policy
) -> str:
    """The page of one source as HTML.

    `source` and `clips` (with decisions, sorted by time) are table rows.
    """
    kept = [clip for clip in clips if clip["kept"]]
    reasons: dict[str, int] = {}
    for clip in clips:
        if not clip["kept"]:
            reasons[clip["reason"]] = reasons.get(clip["reason"], 0) + 1
    return render(
        "source.html",
        source=source,
        clips=clips,
        reasons=sorted(reasons.items(), key=lambda item: (-item[1], item[0])),
        kept_seconds=sum(clip["seconds"] for clip in kept),
        clip_seconds=sum(clip["seconds"] for clip in clips),
        kept=len(kept),
        signals=[
            {"name": name, "unit": signal.unit, "text": signal.meaning} for name, signal in SIGNALS.items()
        ],
        timeline=make_timeline(source, clips, playable),
        rules={rule.name: {"column": rule.column, "says": rule.says} for rule in policy.rules},
        steps=sorted((source["step_seconds"] or []), key=lambda item: -item[1]),
        policy=policy,
    )


def make_timeline(
    source: dict[str, Any], clips: list[dict[str, Any]], playable: frozenset[str]
) -> dict[str, Any]:
    """The timeline's data in short lists, times in seconds of the source.

    `speakers` by falling speech time; `turns` [speaker, start, end], `words` [text, start, end, speaker or
    -1, score, white space before it], `shots` [start, end], `tracks` [track, start, end, height px], `clips`
    dicts with the sync `curve` in percent every `curve_step_ms` and `signals` in the order of `SIGNALS`.
    """
    turns, words = source["turns"] or [], source["words"] or []
    heard = " ".join(passage["text"] for passage in source["passages"] or [])
    gaps = word_gaps(heard, [word["text"] for word in words])
    spoken: dict[str, float] = {}
    for turn in turns:
        spoken[turn["label"]] = spoken.get(turn["label"], 0.0) + turn["end_s"] - turn["start_s"]
    speakers = sorted(spoken, key=lambda label: (-spoken[label], label))
    speaker_index = {label: index for index, label in enumerate(speakers)}
    return {
        "duration": source["duration_s"] or max((clip["end_s"] for clip in clips), default=0.0),
        "speakers": [{"name": label, "seconds": round(spoken[label], 1)} for label in speakers],
        "turns": [
            [speaker_index[turn["label"]], _time(turn["start_s"]), _time(turn["end_s"])] for turn in turns
        ],
        "words": [
            [
                w["text"],
                _time(w["start_s"]),
                _time(w["end_s"]),
                speaker_index.get(w["speaker"], -1),
                round(w["score"] or 0.0, 2),
                gap,
            ]
            for w, gap in zip(words, gaps, strict=True)
        ],
        "shots": [[_time(shot["start_s"]), _time(shot["end_s"])] for shot in source["shots"] or []],
        "tracks": [
            [t["track"], _time(t["start_s"]), _time(t["end_s"]), round(t["height_px"] or 0)]
            for t in sorted(source["tracks"] or [], key=lambda t: t["start_s"])
        ],
        "clips": [_timeline_clip(clip, clip["clip_id"] in playable) for clip in clips],
        "curve_step_ms": SYNC_CURVE_STEP_MS,
    }


def _timeline_clip(clip: dict[str, Any], plays: bool) -> dict[str, Any]:
    names = ("clip_id", "speaker", "language", "transcript", "kept", "reason", "split")
    return {
        **{name: clip[name] for name in names},
        "failed": clip["failed_rules"] or [],
        "start": _time(clip["start_s"]),
        "end": _time(clip["end_s"]),
        "plays": plays,
        "curve": [round(100 * value) if math.isfinite(value) else 0 for value in clip["sync_curve"] or []],
        "signals": [_short(clip[name]) for name in SIGNALS],
    }


def _time(seconds: float) -> float:
    return round(seconds, TIME_DIGITS)


def _short(value: float | None) -> float | None:
    """Four significant digits; None for NaN and infinity."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
