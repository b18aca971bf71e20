"""`uniavgen ingest --forecast N`: measure a few sources, say what the rest will give and cost, and later how true that was.

Goes in: sources, a corpus, settings. Comes out: N sources measured like any others, `forecast.json` in the corpus, tables.
A later ingest of the rest compares what it finds with that file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration import console
from uniavgen.orchestration.ingest_display import duration
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    from uniavgen.ingest.engine.forecast import Forecast, Sampled
    from uniavgen.ingest.engine.progress import IngestSummary
    from uniavgen.ingest.io.uris import Entry
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.corpus.tables import Corpus

FORECAST_NAME = "forecast.json"
VERSION = 1

SAYS = {
    "video_h": ("length of video", "h"),
    "wall_h": ("time on this machine", "h"),
    "work_h": ("working time of all workers", "h"),
    "clips": ("clips", ""),
    "clip_h": ("length of clips", "h"),
    "kept_h": ("length of clips that the policy keeps", "h"),
    "kept_share": ("kept share of that length", "%"),
    "media_gb": ("storage: cut clips", "GB"),
    "stored_gb": ("storage: results of the steps", "GB"),
    "failures": ("failures and copies", ""),
}
"""What each figure of a forecast is called, and its unit; in the order in which they are shown."""


def waiting_sources(sources: list[str], corpus: Corpus, settings: Config) -> dict[str, Entry]:
    """The sources named that have neither a sources nor a failures row under these settings, by URI."""
    from uniavgen.ingest.io.sources import find_sources

    digest = settings.ingest.digest()
    known = {
        row["uri"]
        for table in ("sources", "failures")
        for row in corpus.read(table, ["uri", "digest"]).to_pylist()
        if row["digest"] == digest
    }
    return {
        entry.uri: entry
        for entry in find_sources(sources, settings.ingest.sources).entries
        if entry.uri not in known
    }


def sampled_sources(corpus: Corpus, entries: Iterable[Entry], policy: str) -> list[Sampled]:
    """What the corpus knows of these measured sources; `policy` decides which clips count as kept."""
    from uniavgen.ingest.engine.forecast import Sampled

    wanted = {entry.uri: entry for entry in entries}
    rows = {row["uri"]: row for row in corpus.read("sources", only=("uri", list(wanted))).to_pylist()}
    kept = kept_clips(corpus, policy)
    clips: dict[str, list[dict[str, Any]]] = {}
    ids = [row["source_id"] for row in rows.values()]
    for clip in corpus.read(
        "clips", ["clip_id", "source_id", "start_s", "end_s"], only=("source_id", ids)
    ).to_pylist():
        clips.setdefault(clip["source_id"], []).append(clip)
    found = []
    for uri, entry in wanted.items():
        row = rows.get(uri)
        if row is None:
            found.append(Sampled(entry.bytes or 0, failed=True))
            continue
        own = clips.get(row["source_id"], [])
        found.append(
            Sampled(
                bytes=entry.bytes or row["bytes"] or 0,
                video_s=row["duration_s"] or 0.0,
                clips=len(own),
                clip_s=sum(clip["end_s"] - clip["start_s"] for clip in own),
                kept_s=sum(clip["end_s"] - clip["start_s"] for clip in own if clip["clip_id"] in kept),
                media_bytes=sum(_media_bytes(corpus, clip["clip_id"]) for clip in own),
                stored_bytes=_folder_bytes(
                    corpus.root / "measured" / row["source_id"][:2] / row["source_id"]
                ),
                step_seconds=dict(row["step_seconds"] or ()),
            )
        )
    return found


def kept_clips(corpus: Corpus, policy: str) -> set[str]:
    """Clips that a policy keeps, without deciding anything in the corpus."""
    from uniavgen.curation.policy.rules import columns_needed, judge, load_policy

    rules = load_policy(policy)
    clips = corpus.read("clips", columns_needed(rules))
    if not len(clips):
        return set()
    verdicts = judge(clips, rules)
    return {
        clip
        for clip, kept in zip(verdicts["clip_id"].to_pylist(), verdicts["kept"].to_pylist(), strict=True)
        if kept
    }


def corpus_totals(corpus: Corpus, policy: str) -> dict[str, float]:
    """What a corpus holds now, under the names of a forecast's figures, and `sources`: all that ended, failed or not."""
    import pyarrow.compute as pc

    kept = kept_clips(corpus, policy)
    durations = corpus.read("sources", ["duration_s"])["duration_s"].to_pylist()
    failures = len(corpus.read("failures", ["uri"]))
    clips = corpus.read("clips", ["clip_id", "start_s", "end_s"])
    lengths = pc.subtract(clips["end_s"], clips["start_s"]).to_pylist()
    return {
        "sources": len(durations) + failures,
        "failures": failures,
        "video_h": sum(value or 0.0 for value in durations) / 3600,
        "clips": len(lengths),
        "clip_h": sum(lengths) / 3600,
        "kept_h": sum(
            length for clip, length in zip(clips["clip_id"].to_pylist(), lengths, strict=True) if clip in kept
        )
        / 3600,
        "media_gb": _folder_bytes(corpus.root / "media") / 1e9,
        "stored_gb": _folder_bytes(corpus.root / "measured") / 1e9,
    }


def make_forecast(
    corpus: Corpus,
    settings: Config,
    chosen: list[Entry],
    rest: list[Entry],
    history: list[tuple[float, float]],
) -> dict[str, Any]:
    """Predict the rest from the chosen, write `forecast.json`, print it; what is written is returned.

    `history` is the pace at which the chosen were measured (see `ingest.forecast.pace`). Raises UserError where none of
    them could be measured.
    """
    from uniavgen.ingest.engine.forecast import pace, predict

    policy = settings.curate.policy
    sampled = sampled_sources(corpus, chosen, policy)
    if all(source.failed for source in sampled):
        raise UserError(
            "none of the sources tried could be measured",
            where=corpus.root,
            hint="see the failures; then try more",
        )
    start_s, workers_busy = pace(history)
    forecast = predict(sampled, [entry.bytes for entry in rest], start_s, workers_busy)
    document = {
        "version": VERSION,
        "digest": settings.ingest.digest(),
        "policy": policy,
        **asdict(forecast),
        "start_s": start_s,
        "workers_busy": workers_busy,
        "before": corpus_totals(corpus, policy),
        "wall_s": 0.0,
    }
    _write(corpus, document)
    _show(forecast)
    return document


def show_actual(corpus: Corpus, summary: IngestSummary) -> dict[str, Any] | None:
    """After an ingest: what came true of the corpus's forecast so far; None where none was made.

    Wall time is added up over the ingests since the forecast, in `forecast.json`.
    """
    path = corpus.root / FORECAST_NAME
    try:
        document = json.loads(path.read_text())
        before, figures = document["before"], document["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    document["wall_s"] += summary.seconds
    _write(corpus, document)
    actual = compared(before, corpus_totals(corpus, document["policy"]), document["wall_s"])
    done = round(actual.pop("sources"))
    if not done:
        return None
    rows = [
        (
            SAYS[name][0],
            _shown(name, figures[name]["mid"]),
            _shown_range(name, figures[name]),
            _shown(name, actual[name]),
        )
        for name in SAYS
        if name in actual
    ]
    title = f"forecast and actual ({done:,} of the {document['sources']:,} sources that were to come)"
    console.table(title, ("what", "forecast", "range", "actual"), rows)
    return {"sources": document["sources"], "done": done, "figures": figures, "actual": actual}


def compared(before: dict[str, float], now: dict[str, float], wall_s: float) -> dict[str, float]:
    """What was added between two totals, as figures of a forecast."""
    added = {name: now[name] - before[name] for name in before}
    share = added["kept_h"] / added["clip_h"] if added["clip_h"] else 0.0
    return added | {"kept_share": share, "wall_h": wall_s / 3600}


def _show(forecast: Forecast) -> None:
    rows = [
        (
            SAYS[name][0],
            _shown(name, forecast.figures[name].mid),
            _shown_range(name, asdict(forecast.figures[name])),
        )
        for name in SAYS
    ]
    title = f"forecast for the other {forecast.sources:,} sources, from {forecast.sampled:,} measured"
    console.table(title, ("what", "forecast", "range"), rows)
    work = sorted(forecast.work_share.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{name} {share:.0%}" for name, share in work)
    console.console.print(f"slowest step: [bold]{forecast.slowest_step}[/] (working time: {told})")
    if forecast.sampled < 5:
        console.console.print("few sources were measured: take the range for a hint only", style="yellow")


def _shown(name: str, value: float) -> str:
    unit = SAYS[name][1]
    if unit == "h" and value < 1:
        return duration(value * 3600)
    if unit == "GB" and value < 0.1:
        return f"{value * 1000:,.1f} MB"
    if unit == "%":
        return f"{value:.0%}"
    return f"{value:,.1f} {unit}" if unit else f"{value:,.0f}"


def _shown_range(name: str, estimate: dict[str, float]) -> str:
    return f"{_shown(name, estimate['low'])} to {_shown(name, estimate['high'])}"


def _write(corpus: Corpus, document: dict[str, Any]) -> None:
    part = corpus.root / f".{FORECAST_NAME}.part"
    part.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(part, corpus.root / FORECAST_NAME)


def _media_bytes(corpus: Corpus, clip: str) -> int:
    paths = (corpus.media_path(clip, extension) for extension in ("mp4", "flac", "face.npz"))
    return sum(path.stat().st_size for path in paths if path.is_file())


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
