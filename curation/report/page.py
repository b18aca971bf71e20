"""The report: one static page about a corpus, made from its tables, that works offline and stays small.

In: a corpus with decisions. Out: `report/index.html` beside the `report/clips/*.mp4` that it plays: headline numbers,
the funnel, histograms with thresholds to move, kept and rejected examples, hours by language, speaker and length, splits,
copies, sources and failures. Totals are aggregated by DuckDB and examples are few, so the page's size does not depend on
the corpus.
"""

from __future__ import annotations

import base64
import gzip
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.curation.config import DuplicateConfig, ReportConfig
from uniavgen.curation.policy.decisions import decided_policy
from uniavgen.curation.policy.rules import Policy, columns_needed, funnel, load_policy, policy_names
from uniavgen.curation.report.examples import (
    SAYS_AFTER_RULES,
    bound_text,
    choose,
    named,
    reasons,
    sources_of,
    with_media,
)
from uniavgen.curation.report.source_pages import choose_sources, write_source_pages
from uniavgen.curation.report.templating import render
from uniavgen.curation.report.threshold_sample import Scale, histogram, movable, sample
from uniavgen.curation.report.totals import (
    AFTER_RULES,
    after_rules,
    copies,
    lengths,
    rows,
    shares,
    sources,
    splits,
    strata,
    totals,
)
from uniavgen.shards.corpus.schema import KEYS, schema
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS

if TYPE_CHECKING:
    import duckdb

HEAVY = ("voice", "versions", "words", "video_hash", "sound_hash", "text_hash", "face", "sync_curve")
"""Columns of the clips table that no total needs and that would fill the memory."""

KINDS = {
    "copy": "whole copies: re-encoded, cropped, mirrored or at another speed",
    "overlap": "copies of a part",
    "same-sound": "the same speech with another picture",
    "same-picture": "the same picture with another sound",
}
"""What the kinds of copies (`curation.duplicates`) are, for people."""


@dataclass(frozen=True)
class ReportSummary:
    """Where the page is, its size, how many clips it plays, and of how many reasons."""

    page: Path
    bytes: int
    examples: int
    reasons: int
    seconds: float


def write_report(
    corpus: Corpus, config: ReportConfig | None = None, duplicates: DuplicateConfig | None = None
) -> ReportSummary:
    """Write `report/index.html` and its clips; `duplicates` is the configuration that `curate` decided with.

    Raises UserError where nothing was decided or the folder refuses.
    """
    started = time.monotonic()
    config = config or ReportConfig()
    policy = decided_policy(corpus)
    folder = corpus.root / "report"
    try:
        with judged_corpus(corpus, policy) as connection:
            chosen = choose(connection, config)
            pages = choose_sources(connection, sources_of(chosen), config.source_pages)
            facts = _facts(connection, corpus, policy, config, pages)
            facts["copies"] = copies(connection, corpus, duplicates or DuplicateConfig())
            pairs = {row["example"][name] for row in facts["copies"] for name in ("clip_id", "kept_clip")}
            beside = named(connection, pairs - {clip["clip_id"] for clip in chosen})
        clips = with_media(corpus, folder / "clips", [*chosen, *beside], policy, config)
        facts["examples"] = clips[: len(chosen)]
        facts["by_id"] = {clip["clip_id"]: clip for clip in clips}
        write_source_pages(
            corpus, folder / "sources", pages, [clip["clip_id"] for clip in clips if clip["media"]], policy
        )
        page = _render(facts)
        part = folder / ".index.html.part"
        part.write_text(page, encoding="utf-8")
        os.replace(part, folder / "index.html")
    except OSError as error:
        hint = "check rights and space, then run it again"
        raise UserError(
            f"the report cannot be written: {error.strerror or error}", where=folder, hint=hint
        ) from error
    size, seconds = len(page.encode()), time.monotonic() - started
    return ReportSummary(folder / "index.html", size, len(chosen), len(facts["reasons"]), seconds)


@contextmanager
def judged_corpus(corpus: Corpus, policy: Policy) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with `judged`: clips with decisions, without the columns that are HEAVY; `undecided`: how many clips have
    none; and every other table as `<name>_table`.

    `passes` says whether a clip passes every rule; copies, and persons on both sides, pass and are not kept.
    """
    import duckdb

    columns = {name: schema(name).names for name in KEYS}
    unread = set(HEAVY) - set(columns_needed(policy))
    columns["clips"] = [name for name in columns["clips"] if name not in unread]
    columns["sources"] = [name for name in columns["sources"] if name != "words"]
    with duckdb.connect() as connection:
        for name in KEYS:
            connection.register(f"{name}_table", corpus.read(name, columns[name]))
        connection.execute(
            """CREATE TEMP TABLE judged AS SELECT c.*, d.kept, d.reason, d.failed_rules, d.split,
            list_has_all($after, d.failed_rules) AS passes, c.end_s - c.start_s AS seconds, coalesce(s.uri, '') AS uri
            FROM clips_table c JOIN decisions_table d USING (clip_id) LEFT JOIN sources_table s USING (source_id)""",
            {"after": list(AFTER_RULES)},
        )
        connection.execute(
            """CREATE TEMP TABLE undecided AS SELECT count(*) AS clips
            FROM (SELECT clip_id FROM clips_table EXCEPT SELECT clip_id FROM judged)"""
        )
        connection.unregister("clips_table")  # a second copy of everything, and large
        yield connection


def _facts(
    connection: duckdb.DuckDBPyConnection,
    corpus: Corpus,
    policy: Policy,
    config: ReportConfig,
    pages: list[str],
) -> dict[str, Any]:
    """Everything the page says but its examples, as plain data; `pages` are the sources that have a page of their own."""
    needed = ", ".join(f'"{name}"' for name in columns_needed(policy))
    # in the order of a hash, the first of any kind are as good as random, and the same ones next time
    clips = connection.sql(f"SELECT {needed} FROM judged ORDER BY md5(clip_id)").to_arrow_table()
    scales, histograms = _histograms(connection, policy, config.bins)
    moved = {rule.column for rule in policy.rules if movable(rule)}
    return {
        "name": corpus.root.name,
        "policy": policy,
        "versions": corpus.versions(),
        "totals": totals(connection),
        "funnel": funnel(clips, policy),
        "after_rules": after_rules(connection),
        "histograms": histograms,
        "thresholds": sample(
            clips, policy, {name: scales[name] for name in scales if name in moved}, config.sample_clips
        ),
        "rules": [_rule_facts(rule.name, policy) for rule in policy.rules],
        "extends": _shipped_as(policy),
        "reasons": reasons(connection, policy),
        "languages": shares(connection, "coalesce(nullif(language, ''), 'none')", "other languages"),
        "speakers": shares(connection, "coalesce(nullif(speaker, ''), 'no speaker')", "other speakers"),
        "lengths": lengths(connection),
        "splits": splits(connection),
        "strata": strata(connection),
        "sources": sources(connection, config.max_rows, pages),
        "pages": pages,
        "failures": rows(connection, f"SELECT * FROM failures_table ORDER BY uri LIMIT {config.max_rows}"),
    }


def _histograms(
    connection: duckdb.DuckDBPyConnection, policy: Policy, bins: int
) -> tuple[dict[str, Scale], dict[str, dict[str, Any]]]:
    """The scale and the histogram of every signal; bounds of the policy are `lines` on it."""
    import numpy as np

    scales, found = {}, {}
    for name, signal in SIGNALS.items():
        table = connection.sql(f'SELECT "{name}" AS x, passes FROM judged').to_arrow_table()
        values = table["x"].to_numpy(zero_copy_only=False).astype(np.float64)
        bounds = [(rule.min, rule.max, rule.equals) for rule in policy.rules if rule.column == name]
        lines = [float(value) for bound in bounds for value in bound if isinstance(value, int | float)]
        scales[name], counts = histogram(values, table["passes"].to_numpy(zero_copy_only=False), lines, bins)
        found[name] = counts | {"unit": signal.unit, "text": signal.meaning, "lines": lines}
    return scales, found


def _rule_facts(name: str, policy: Policy) -> dict[str, Any]:
    """A rule as the page writes it: as it stands in the policy's file, and what it asks."""
    place = [rule.name for rule in policy.rules].index(name)
    document = policy.document()["rules"][place]
    return {"name": name, "document": document, "asks": bound_text(policy.rules[place])}


def _shipped_as(policy: Policy) -> str:
    """The name of the shipped policy that this one is; empty where it is the user's own."""
    same = policy.name in policy_names() and load_policy(policy.name).digest == policy.digest
    return policy.name if same else ""


def _render(facts: dict[str, Any]) -> str:
    players = {
        clip["clip_id"]: {"oval": clip["media"]["oval"], "words": clip["words"], "readings": clip["readings"]}
        for clip in facts["by_id"].values()
        if clip["media"]
    }
    data = {name: facts[name] for name in ("thresholds", "histograms", "rules", "extends")}
    data |= {"players": players, "fps": VIDEO_FPS, "policy": facts["policy"].name, "corpus": facts["name"]}
    placed = list(enumerate(facts["thresholds"]["rules"]))
    columns = {
        rule["column"]: [pair for pair in placed if pair[1]["column"] == rule["column"]] for _, rule in placed
    }
    facts |= {"fixed": columns.pop("", []), "moving": columns}
    prose = {
        "says_of": {row["reason"]: row["says"] for row in facts["reasons"]},
        "says_after": SAYS_AFTER_RULES,
        "kinds": KINDS,
    }
    return render("report.html", **facts, **prose, data=data, plotly=_plotly(), signals=SIGNALS)


@cache
def _plotly() -> str:
    """The plotting library as gzip in base64: a third of its size."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
