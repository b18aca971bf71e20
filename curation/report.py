"""The report: one static page about a corpus, made from its tables, that works offline and stays small.

In: a corpus with decisions. Out: `report/index.html` beside the `report/clips/*.mp4` that it plays: headline numbers,
the funnel, a histogram per signal with its thresholds, kept and rejected examples, splits, sources and failures. Totals
are aggregated by DuckDB, so the page's size depends on the number of examples and not on the corpus.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.config import ReportConfig
from curation.decisions import decided_policy
from curation.policy import Policy, Rule, funnel
from curation.previews import preview, words_of
from curation.questions import clips_for
from curation.source_pages import by_turns, choose_sources, write_source_pages
from curation.templating import render
from shards.clock import VIDEO_FPS
from shards.corpus import KEYS, SIGNALS, Corpus, schema
from shards.errors import UserError

if TYPE_CHECKING:
    import duckdb

VECTORS = ("voice", "versions", "video_hash", "sound_hash", "text_hash", "face", "sync_curve")
"""Columns of the clips table that no total needs and that would fill the memory."""


@dataclass(frozen=True)
class ReportSummary:
    """Where the page is, its size, and how many clips it plays."""

    page: Path
    bytes: int
    examples: int
    reasons: int
    seconds: float


def write_report(corpus: Corpus, config: ReportConfig | None = None) -> ReportSummary:
    """Write `report/index.html` and its clips. Raises UserError where nothing was decided or the folder refuses."""
    started = time.monotonic()
    config = config or ReportConfig()
    policy = decided_policy(corpus)
    folder = corpus.root / "report"
    try:
        with _judged(corpus) as connection:
            chosen = _chosen(connection, config)
            pages = choose_sources(connection, _example_sources(chosen), config.source_pages)
            facts = _facts(connection, corpus, policy, config, pages)
        facts["examples"] = _examples(corpus, folder / "clips", chosen, policy)
        playable = [clip["clip_id"] for group in facts["examples"] for clip in group["clips"] if clip["media"]]
        write_source_pages(corpus, folder / "sources", pages, playable, policy)
        page = _render(facts)
        part = folder / ".index.html.part"
        part.write_text(page, encoding="utf-8")
        os.replace(part, folder / "index.html")
    except OSError as error:
        do = "check rights and space, then run it again"
        raise UserError(f"the report cannot be written: {error.strerror or error}", where=folder, do=do) from error
    shown = sum(len(group["clips"]) for group in facts["examples"])
    reasons = len(facts["examples"]) - 1
    return ReportSummary(folder / "index.html", len(page.encode()), shown, reasons, time.monotonic() - started)


@contextmanager
def _judged(corpus: Corpus) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that holds every table as `<name>_table`, and `judged`: clips with decisions, without vectors."""
    import duckdb

    columns = {name: schema(name).names for name in KEYS}
    columns["clips"] = [name for name in columns["clips"] if name not in VECTORS]
    columns["sources"] = [name for name in columns["sources"] if name != "words"]
    with duckdb.connect() as connection:
        for name in KEYS:
            connection.register(f"{name}_table", corpus.read(name, columns[name]))
        connection.execute(
            """CREATE TEMP TABLE judged AS SELECT c.*, d.kept, d.reason, d.failed_rules, d.split,
            c.end_s - c.start_s AS seconds, coalesce(s.uri, '') AS uri FROM clips_table c JOIN decisions_table d USING (clip_id)
            LEFT JOIN sources_table s USING (source_id)"""
        )
        yield connection


def _facts(
    connection: duckdb.DuckDBPyConnection, corpus: Corpus, policy: Policy, config: ReportConfig, pages: list[str]
) -> dict[str, Any]:
    """Everything the page says but its examples, as plain data; `pages` are the sources that have a page of their own."""
    return {
        "name": corpus.root.name,
        "policy": policy,
        "versions": corpus.versions(),
        "totals": _totals(connection),
        "funnel": funnel(clips_for(corpus, policy), policy),
        "histograms": [_histogram(connection, name, policy, config.bins) for name in SIGNALS],
        "languages": _shares(connection, "coalesce(nullif(language, ''), 'none')"),
        "splits": _splits(connection),
        "sources": _sources(connection, config.max_rows, pages),
        "pages": pages,
        "failures": _rows(connection, f"SELECT * FROM failures_table ORDER BY uri LIMIT {config.max_rows}"),
    }


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
    return rows


def _totals(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    return _rows(
        connection,
        """SELECT (SELECT count(*) FROM sources_table) AS sources, (SELECT count(*) FROM failures_table) AS failures,
        (SELECT coalesce(sum(duration_s), 0) FROM sources_table) AS source_seconds, count(*) AS clips,
        (SELECT count(*) FROM clips_table) - count(*) AS undecided,
        coalesce(sum(seconds), 0) AS clip_seconds, count(*) FILTER (kept) AS kept,
        coalesce(sum(seconds) FILTER (kept), 0) AS kept_seconds,
        count(DISTINCT speaker) FILTER (kept AND speaker <> '') AS speakers FROM judged""",
    )[0]


def _splits(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    return _rows(
        connection,
        """SELECT split, count(*) AS clips, sum(seconds) AS seconds, count(DISTINCT speaker) AS speakers,
        count(DISTINCT source_id) AS sources FROM judged WHERE kept GROUP BY split ORDER BY split""",
    )


def _shares(connection: duckdb.DuckDBPyConnection, label: str) -> list[dict[str, Any]]:
    return _rows(
        connection,
        f"""SELECT {label} AS label, count(*) AS clips, sum(seconds) AS seconds, count(*) FILTER (kept) AS kept,
        coalesce(sum(seconds) FILTER (kept), 0) AS kept_seconds FROM judged GROUP BY 1 ORDER BY seconds DESC, 1 LIMIT 12""",
    )


def _sources(connection: duckdb.DuckDBPyConnection, limit: int, pages: list[str]) -> list[dict[str, Any]]:
    """Sources with their yield, those with a page first."""
    found = connection.sql(
        """SELECT s.source_id, s.uri, s.duration_s, s.width, s.height, s.fps, s.video_codec, s.audio_codec, s.error,
        len(list_distinct(list_transform(s.turns, lambda turn: turn.label))) AS speakers, len(s.shots) AS shots,
        count(j.clip_id) AS clips, count(*) FILTER (j.kept) AS kept,
        string_agg(DISTINCT nullif(j.reason, ''), ', ' ORDER BY nullif(j.reason, '')) AS reasons
        FROM sources_table s LEFT JOIN judged j USING (source_id) GROUP BY ALL
        ORDER BY list_contains($pages, any_value(s.source_id)) DESC, s.uri LIMIT $limit""",
        params={"pages": pages, "limit": limit},
    )
    rows: list[dict[str, Any]] = found.to_arrow_table().to_pylist()
    return rows


def _chosen(connection: duckdb.DuckDBPyConnection, config: ReportConfig) -> list[dict[str, Any]]:
    """Clips to play: kept ones from as many speakers as there are, and a few of every reason."""
    rows = _rows(
        connection,
        f"""SELECT * EXCLUDE (turn, place) FROM (
            SELECT *, row_number() OVER (PARTITION BY reason ORDER BY turn, clip_id) AS place FROM (
                SELECT *, row_number() OVER (PARTITION BY reason, speaker ORDER BY clip_id) AS turn FROM judged))
        WHERE place <= CASE WHEN kept THEN {config.max_kept} ELSE {config.per_reason} END ORDER BY reason, place""",
    )
    counts = {
        row["reason"]: row
        for row in _rows(connection, "SELECT reason, count(*) AS n, sum(seconds) AS s FROM judged GROUP BY 1")
    }
    counts.setdefault("", {"reason": "", "n": 0, "s": 0.0})
    order = sorted(counts, key=lambda reason: (reason != "", -counts[reason]["n"], reason))
    return [{"count": counts[r], "reason": r, "rows": [row for row in rows if row["reason"] == r]} for r in order]


def _histogram(connection: duckdb.DuckDBPyConnection, name: str, policy: Policy, bins: int) -> dict[str, Any]:
    """A signal's kept and rejected clips in equal bins; the outermost bins hold the rare values beyond them.
    The range covers the thresholds too."""
    bounds = [
        {"value": value, "rule": rule.name, "keeps": keeps} for rule in policy.rules for value, keeps in _thresholds(rule, name)
    ]
    measured = f'SELECT "{name}" AS x, kept FROM judged WHERE isfinite("{name}")'
    low, high, count, total = connection.sql(
        f"SELECT quantile_cont(x, 0.002), quantile_cont(x, 0.998), count(*), (SELECT count(*) FROM judged) FROM ({measured})"
    ).fetchall()[0]
    signal = SIGNALS[name]
    told = {"name": name, "unit": signal.unit, "text": signal.text, "bounds": bounds, "missing": total - count, "count": count}
    if not count:
        return told | {"x": [], "kept": [], "rejected": [], "width": 1.0}
    lines = [bound["value"] for bound in bounds]
    low, high = min([low, *lines]), max([high, *lines])
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    width = (high - low) / bins
    found = connection.sql(
        f"""SELECT greatest(0, least({bins - 1}, floor((x - {low!r}) / {width!r})))::INT AS bin,
        count(*) FILTER (kept), count(*) FILTER (NOT kept) FROM ({measured}) GROUP BY bin"""
    ).fetchall()
    kept, rejected = [0] * bins, [0] * bins
    for place, keeps, loses in found:
        kept[place], rejected[place] = keeps, loses
    return told | {"x": [low + (i + 0.5) * width for i in range(bins)], "kept": kept, "rejected": rejected, "width": width}


def _thresholds(rule: Rule, name: str) -> list[tuple[float, str]]:
    """Bounds that a rule puts on a signal, and which side of them it keeps."""
    if rule.column != name:
        return []
    pairs = [(rule.min, "above"), (rule.max, "below"), (rule.equals, "at")]
    return [(float(value), keeps) for value, keeps in pairs if isinstance(value, int | float)]


def _example_sources(chosen: Sequence[dict[str, Any]]) -> list[str]:
    """Sources of the clips that the page plays, the first of every group before the second of any."""
    return by_turns([[row["source_id"] for row in group["rows"]] for group in chosen], sys.maxsize)


def _examples(corpus: Corpus, folder: Path, chosen: Sequence[dict[str, Any]], policy: Policy) -> list[dict[str, Any]]:
    """The chosen clips with their media; previews of clips that are not on the page any more are deleted."""
    says = {rule.name: rule.says for rule in policy.rules}
    groups = []
    folder.mkdir(parents=True, exist_ok=True)
    for group in chosen:
        reason = group["reason"]
        clips = [_example(row, preview(corpus, row["clip_id"], folder)) for row in group["rows"]]
        missing = reason.removeprefix("missing: ")
        told = f"{missing} was not measured" if reason != missing else says.get(reason, "")
        groups.append(
            {"reason": reason, "says": told, "clips": clips, "n": group["count"]["n"], "seconds": group["count"]["s"]}
        )
    used = {clip["media"]["file"] for group in groups for clip in group["clips"] if clip["media"]}
    for path in folder.glob("*.mp4"):
        if path.name not in used:
            path.unlink()
    return groups


def _example(row: dict[str, Any], media: dict[str, Any] | None) -> dict[str, Any]:
    return {**row, "signals": {name: row[name] for name in SIGNALS}, "words": words_of(row), "media": media}


def _render(facts: dict[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    ovals = {
        clip["clip_id"]: {"oval": clip["media"]["oval"], "words": clip["words"]}
        for group in facts["examples"]
        for clip in group["clips"]
        if clip["media"]
    }
    return render("report.html", **facts, tracks=ovals, plotly=get_plotlyjs(), signals=SIGNALS, fps=VIDEO_FPS)
