"""Forecast of an ingest from a few measured sources (`uniavgen ingest --forecast N`), and how well it held.

The forecast is stored as `forecast.json` in the corpus. Every later ingest compares the corpus with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.output import console
from uniavgen.orchestration.output.ingest_display import format_duration
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    from uniavgen.ingest.engine.forecast import Forecast, Sampled
    from uniavgen.ingest.engine.progress import IngestSummary
    from uniavgen.ingest.io.uris import Entry
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.corpus.tables import Corpus

FORECAST_NAME = "forecast.json"
VERSION = 1

LABELS = {
    "video_h": ("duration of the videos", "h"),
    "wall_h": ("wall-clock time on this machine", "h"),
    "work_h": ("working time of all workers", "h"),
    "clips": ("clips", ""),
    "clip_h": ("duration of the clips", "h"),
    "kept_h": ("duration of the clips that the policy keeps", "h"),
    "kept_share": ("kept share of the clips' duration", "%"),
    "media_gb": ("storage: clips", "GB"),
    "stored_gb": ("storage: step cache", "GB"),
    "failures": ("failures and duplicates", ""),
}
"""Name and unit of every predicted quantity, in the order in which they are printed."""

FEW_SOURCES = 5
"""Below this number of measured sources a warning is printed. Heuristic."""


def waiting_sources(sources: list[str], corpus: Corpus, settings: Config) -> dict[str, Entry]:
    """By URI, the named sources that have no row in sources or failures under these settings."""
    from uniavgen.ingest.io.sources import find_sources
    from uniavgen.ingest.measures.registry import step_graph

    digest = step_graph(settings.ingest).digest
    known = {
        row["uri"]
        for table in ("sources", "failures")
        for row in corpus.read(table, ["uri", "digest"]).to_pylist()
        if row["digest"] == digest
    }
    return {
        entry.uri: entry
        for entry in find_sources(sources, settings.ingest.sources).entries
        if entry.uri not in known and not entry.problem
    }


def sampled_sources(corpus: Corpus, entries: Iterable[Entry], policy: str) -> list[Sampled]:
    """Results of these measured sources in the corpus; `policy` decides which clips count as kept."""
    from uniavgen.ingest.engine.forecast import Sampled

    by_uri = {entry.uri: entry for entry in entries}
    rows = {row["uri"]: row for row in corpus.read("sources", only=("uri", list(by_uri))).to_pylist()}
    kept = kept_clips(corpus, policy)
    clips: dict[str, list[dict[str, Any]]] = {}
    ids = [row["source_id"] for row in rows.values()]
    for clip in corpus.read(
        "clips", ["clip_id", "source_id", "start_s", "end_s"], only=("source_id", ids)
    ).to_pylist():
        clips.setdefault(clip["source_id"], []).append(clip)
    sampled = []
    for uri, entry in by_uri.items():
        row = rows.get(uri)
        if row is None:
            sampled.append(Sampled(entry.bytes or 0, failed=True))
            continue
        of_source = clips.get(row["source_id"], [])
        sampled.append(
            Sampled(
                bytes=entry.bytes or row["bytes"] or 0,
                video_s=row["duration_s"] or 0.0,
                clips=len(of_source),
                clip_s=sum(clip["end_s"] - clip["start_s"] for clip in of_source),
                kept_s=sum(clip["end_s"] - clip["start_s"] for clip in of_source if clip["clip_id"] in kept),
                media_bytes=sum(media_bytes(corpus, clip["clip_id"]) for clip in of_source),
                stored_bytes=folder_bytes(corpus.root / "measured" / row["source_id"][:2] / row["source_id"]),
                step_seconds=dict(row["step_seconds"] or ()),
            )
        )
    return sampled


def kept_clips(corpus: Corpus, policy: str) -> set[str]:
    """Ids of the clips that a policy keeps; no decision is written."""
    from uniavgen.curation.policy.rules import load_policy
    from uniavgen.curation.policy.verdicts import columns_needed, judge

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
    """Totals of a corpus, under the names of `LABELS`, and `sources`: all that ended, failed or not."""
    import pyarrow.compute as pc

    kept = kept_clips(corpus, policy)
    durations = corpus.read("sources", ["duration_s"])["duration_s"].to_pylist()
    # a clip that failed alone is no source
    failures = sum(not uri.startswith("clip:") for uri in corpus.read("failures", ["uri"])["uri"].to_pylist())
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
        "media_gb": folder_bytes(corpus.root / "media") / 1e9,
        "stored_gb": folder_bytes(corpus.root / "measured") / 1e9,
    }


def make_forecast(
    corpus: Corpus,
    settings: Config,
    chosen: list[Entry],
    others: list[Entry],
    history: list[tuple[float, float]],
) -> dict[str, Any]:
    """Predict the results of `others` from the `chosen` sources; write, print and return the forecast.

    `history` is `IngestDisplay.history` of the ingest that measured the chosen ones. Raises UserError if none
    of them could be measured.
    """
    from uniavgen.ingest.engine.forecast import pace, predict
    from uniavgen.ingest.measures.registry import step_graph

    policy = settings.curate.policy
    sampled = sampled_sources(corpus, chosen, policy)
    if all(source.failed for source in sampled):
        raise UserError(
            "none of the sources tried could be measured",
            where=corpus.root,
            hint="read the failures above, then name more sources",
        )
    start_s, workers_busy = pace(history)
    forecast = predict(sampled, [entry.bytes for entry in others], start_s, workers_busy)
    document = {
        "version": VERSION,
        "digest": step_graph(settings.ingest).digest,
        "policy": policy,
        **asdict(forecast),
        "start_s": start_s,
        "workers_busy": workers_busy,
        "before": corpus_totals(corpus, policy),
        "wall_s": 0.0,
    }
    _write(corpus, document)
    _show_forecast(forecast)
    return document


def show_actual(corpus: Corpus, summary: IngestSummary) -> dict[str, Any] | None:
    """Compare the corpus with its forecast after an ingest and print both; None if there is no forecast.

    Wall-clock time is added up in `forecast.json` over the ingests since the forecast.
    """
    path = corpus.root / FORECAST_NAME
    try:
        document = json.loads(path.read_text())
        before, predicted = document["before"], document["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    document["wall_s"] += summary.seconds
    _write(corpus, document)
    actual = difference(before, corpus_totals(corpus, document["policy"]), document["wall_s"])
    done = round(actual.pop("sources"))
    if not done:
        return None
    rows = [
        (
            LABELS[name][0],
            _format(name, predicted[name]["mid"]),
            _format_range(name, predicted[name]),
            _format(name, actual[name]),
        )
        for name in LABELS
        if name in actual
    ]
    title = f"forecast and actual ({done:,} of {document['sources']:,} predicted sources)"
    console.table(title, ("what", "forecast", "range", "actual"), rows)
    return {"sources": document["sources"], "done": done, "figures": predicted, "actual": actual}


def difference(before: dict[str, float], now: dict[str, float], wall_s: float) -> dict[str, float]:
    """What was added between two totals, under the names of `LABELS`."""
    added = {name: now[name] - before[name] for name in before}
    share = added["kept_h"] / added["clip_h"] if added["clip_h"] else 0.0
    return added | {"kept_share": share, "wall_h": wall_s / 3600}


def _show_forecast(forecast: Forecast) -> None:
    rows = [
        (
            LABELS[name][0],
            _format(name, forecast.figures[name].mid),
            _format_range(name, asdict(forecast.figures[name])),
        )
        for name in LABELS
    ]
    title = f"forecast for the other {forecast.sources:,} sources, from {forecast.sampled:,} measured ones"
    console.table(title, ("what", "forecast", "range"), rows)
    work = sorted(forecast.work_share.items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in work)
    console.console.print(f"slowest step: [bold]{forecast.slowest_step}[/] (working time: {shares})")
    if forecast.sampled < FEW_SOURCES:
        console.print_warning("few sources were measured: the ranges are rough")


def _format(name: str, value: float) -> str:
    unit = LABELS[name][1]
    if unit == "h" and value < 1:
        return format_duration(value * 3600)
    if unit == "GB" and value < 0.1:
        return f"{value * 1000:,.1f} MB"
    if unit == "%":
        return f"{value:.0%}"
    return f"{value:,.1f} {unit}" if unit else f"{value:,.0f}"


def _format_range(name: str, estimate: dict[str, float]) -> str:
    return f"{_format(name, estimate['low'])} to {_format(name, estimate['high'])}"


def _write(corpus: Corpus, document: dict[str, Any]) -> None:
    unfinished = corpus.root / f".{FORECAST_NAME}.part"
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(unfinished, corpus.root / FORECAST_NAME)


def media_bytes(corpus: Corpus, clip: str) -> int:
    paths = (corpus.media_path(clip, extension) for extension in ("mp4", "flac", "face.npz"))
    return sum(path.stat().st_size for path in paths if path.is_file())


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
