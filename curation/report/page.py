"""The report page: one static, offline HTML page about a corpus, made from its tables.

`report/index.html` shows headline numbers, the funnel, histograms with movable thresholds, kept and rejected
examples, hours by language, speaker and length, splits, duplicates, sources and failures. It plays clips from
`report/clips/`. DuckDB aggregates the totals and examples are few, so the page's size does not depend on the
corpus.
"""

from __future__ import annotations

import base64
import gzip
import os
import shlex
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.curation.config import DuplicateConfig, ReportConfig
from uniavgen.curation.policy.decisions import SAYS_AFTER_RULES, decided_policy
from uniavgen.curation.policy.rules import Policy, load_policy, policy_names
from uniavgen.curation.policy.verdicts import columns_needed, compute_funnel
from uniavgen.curation.report.catalog import read_catalog, read_choices
from uniavgen.curation.report.comparison import Comparable, compare
from uniavgen.curation.report.examples import (
    add_previews,
    choose_examples,
    count_reasons,
    format_bounds,
    order_sources,
    read_clips,
)
from uniavgen.curation.report.judged import judged_corpus
from uniavgen.curation.report.source_pages import choose_sources, write_source_pages
from uniavgen.curation.report.templating import render, unit_after
from uniavgen.curation.report.threshold_sample import (
    Scale,
    is_movable,
    make_histogram,
    make_threshold_data,
)
from uniavgen.curation.report.totals import (
    query_after_rules,
    query_duplicates,
    query_lengths,
    query_rows,
    query_shares,
    query_sources,
    query_splits,
    query_strata,
    query_totals,
)
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS

if TYPE_CHECKING:
    import duckdb

DUPLICATE_KINDS = {
    "copy": "whole copies: re-encoded, cropped, mirrored or at another speed",
    "overlap": "copies of a part",
    "same-sound": "the same sound with another picture",
    "same-picture": "the same picture with another sound",
}
"""Descriptions of the kinds of `find_duplicates`."""


@dataclass(frozen=True)
class ReportSummary:
    """Path and size of the report page, its number of examples, and the number of their reasons."""

    page: Path
    bytes: int
    examples: int
    reasons: int
    seconds: float


def write_report(
    corpus: Corpus,
    config: ReportConfig | None = None,
    duplicates: DuplicateConfig | None = None,
    other: Comparable | None = None,
) -> ReportSummary:
    """Write `report/index.html`, its clips and the source pages.

    `duplicates`: the configuration of `curate`. `other`: a policy or a corpus to show side by side.

    Raises UserError if the corpus has no decisions or the folder cannot be written.
    """
    started = time.monotonic()
    config = config or ReportConfig()
    policy = decided_policy(corpus)
    folder = corpus.root / "report"
    try:
        with judged_corpus(corpus, policy, other=other.decisions if other else None) as connection:
            examples = choose_examples(connection, config)
            source_ids = choose_sources(connection, order_sources(examples), config.source_pages)
            content = _page_content(connection, corpus, policy, config, source_ids)
            content["comparison"] = compare(connection, other) if other else None
            content["duplicates"] = query_duplicates(connection, corpus, duplicates or DuplicateConfig())
            pairs = [row["example"] for row in content["duplicates"]]
            paired = {pair[name] for pair in pairs for name in ("clip_id", "kept_clip")}
            others = read_clips(connection, paired - {clip["clip_id"] for clip in examples})
        clips = add_previews(corpus, folder / "clips", [*examples, *others], policy, config)
        content["examples"] = clips[: len(examples)]
        content["by_id"] = {clip["clip_id"]: clip for clip in clips}
        playable = [clip["clip_id"] for clip in clips if clip["media"]]
        write_source_pages(corpus, folder / "sources", source_ids, playable, policy)
        page = _render_page(content)
        part = folder / ".index.html.part"
        part.write_text(page, encoding="utf-8")
        os.replace(part, folder / "index.html")
    except OSError as error:
        raise UserError(
            f"the report cannot be written: {error.strerror or error}",
            where=folder,
            hint="check permissions and free space, then run it again",
        ) from error
    size, seconds = len(page.encode()), time.monotonic() - started
    return ReportSummary(folder / "index.html", size, len(examples), len(content["reasons"]), seconds)


def _page_content(
    connection: duckdb.DuckDBPyConnection,
    corpus: Corpus,
    policy: Policy,
    config: ReportConfig,
    source_ids: list[str],
) -> dict[str, Any]:
    """The values of the page's template except examples and duplicates. `source_ids` have a source page."""
    needed = ", ".join(f'"{name}"' for name in columns_needed(policy))
    # sorted by a hash, the first rows are a random sample, the same one each time
    clips = connection.sql(f"SELECT {needed} FROM judged ORDER BY md5(clip_id)").to_arrow_table()
    scales, histograms = _histograms(connection, policy, config.bins)
    movable = {rule.column for rule in policy.rules if is_movable(rule)}
    movable_scales = {name: scale for name, scale in scales.items() if name in movable}
    thresholds = make_threshold_data(clips, policy, movable_scales, config.sample_clips)
    sampled = thresholds.pop("ids")
    failures = f"SELECT * FROM failures_table ORDER BY uri LIMIT {config.max_rows}"
    return {
        "name": corpus.root.name,
        "policy": policy,
        "versions": corpus.versions(),
        "totals": query_totals(connection),
        "funnel": compute_funnel(clips, policy),
        "after_rules": query_after_rules(connection),
        "histograms": histograms,
        "thresholds": thresholds,
        "catalog": read_catalog(connection, sampled[: config.max_listed]),
        "choices": read_choices(connection),
        "root": shlex.quote(str(corpus.root.resolve())),
        "hand": _hand_decisions(policy, sampled),
        "rules": _rules(policy),
        "extends": _shipped_name(policy),
        "reasons": count_reasons(connection, policy),
        "languages": query_shares(connection, "coalesce(nullif(language, ''), 'none')", "other languages"),
        "speakers": query_shares(connection, "coalesce(nullif(speaker, ''), 'no speaker')", "other speakers"),
        "persons": query_shares(connection, "coalesce(nullif(person, ''), 'no person')", "other persons"),
        "lengths": query_lengths(connection),
        "splits": query_splits(connection),
        "strata": query_strata(connection),
        "sources": query_sources(connection, config.max_rows, source_ids),
        "pages": source_ids,
        "failures": query_rows(connection, failures),
    }


def _histograms(
    connection: duckdb.DuckDBPyConnection, policy: Policy, bins: int
) -> tuple[dict[str, Scale], dict[str, dict[str, Any]]]:
    """Scale and histogram of every signal; the policy's bounds are its `lines`."""
    import numpy as np

    scales, histograms = {}, {}
    for name, signal in SIGNALS.items():
        table = connection.sql(f'SELECT "{name}" AS x, passes FROM judged').to_arrow_table()
        values = table["x"].to_numpy(zero_copy_only=False).astype(np.float64)
        bounds = [(rule.min, rule.max, rule.equals) for rule in policy.rules if rule.column == name]
        lines = [float(value) for bound in bounds for value in bound if isinstance(value, int | float)]
        passes = table["passes"].to_numpy(zero_copy_only=False)
        scales[name], histogram = make_histogram(values, passes, lines, bins)
        histograms[name] = histogram | {
            "unit": signal.unit,
            "after": unit_after(signal.unit),
            "text": signal.meaning,
            "lines": lines,
        }
    return scales, histograms


def _rules(policy: Policy) -> list[dict[str, Any]]:
    """Every rule: `name`, `document` (as in a policy file), `bounds` as text."""
    return [
        {
            "name": rule.name,
            "document": rule.model_dump(by_alias=True, exclude_defaults=True),
            "bounds": format_bounds(rule),
        }
        for rule in policy.rules
    ]


def _hand_decisions(policy: Policy, sampled: list[str]) -> list[dict[str, Any]]:
    """The policy's decisions by hand, each with the clip's index in the threshold data if it is there."""
    index = {clip: i for i, clip in enumerate(sampled)}
    return [
        decision.model_dump() | {"decision": name, "index": index.get(decision.clip)}
        for name, decisions in (("keep", policy.keep), ("reject", policy.reject))
        for decision in decisions
    ]


def _shipped_name(policy: Policy) -> str:
    """The name of a shipped policy; empty for a user's."""
    is_shipped = policy.name in policy_names() and load_policy(policy.name).digest == policy.digest
    return policy.name if is_shipped else ""


def _render_page(content: dict[str, Any]) -> str:
    players = {
        clip["clip_id"]: {"oval": clip["media"]["oval"], "words": clip["words"], "readings": clip["readings"]}
        for clip in content["by_id"].values()
        if clip["media"]
    }
    names = ("thresholds", "histograms", "rules", "extends", "catalog", "choices", "root", "hand")
    explanations = {row["reason"]: row["says"] for row in content["reasons"]}
    comparison = content["comparison"]
    data = {name: content[name] for name in names} | {
        "other": comparison["name"] if comparison else "",
        "players": players,
        "fps": VIDEO_FPS,
        "policy": content["policy"].name,
        "explanations": explanations,
        "server": False,
    }
    movable: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, rule in enumerate(content["thresholds"]["rules"]):
        movable.setdefault(rule["column"], []).append((number, rule))
    return render(
        "report.html",
        **content,
        fixed=movable.pop("", []),
        movable=movable,
        explanations=explanations,
        explanations_after_rules=SAYS_AFTER_RULES,
        kinds=DUPLICATE_KINDS,
        data=data,
        plotly=_plotly(),
        signals=SIGNALS,
    )


@cache
def _plotly() -> str:
    """The plotting library as gzip in base64: a third of its size."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
