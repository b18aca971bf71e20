"""Two policies on one corpus, or two corpora, side by side on the report page."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniavgen.curation.config import DuplicateConfig, SplitConfig
from uniavgen.curation.policy.decisions import compute_decisions, decided_policy
from uniavgen.curation.policy.rules import Policy
from uniavgen.curation.report.judged import judged_corpus
from uniavgen.curation.report.totals import query_rows, query_splits, query_totals
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MAX_ROWS = 20
"""Reasons and languages listed; the rest share one row."""

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Comparable:
    """What a corpus is compared with: decisions by another policy, or another corpus.

    `name`, and `here` for the corpus of the page: shown on the page. `decisions`: of all its clips.
    """

    name: str
    here: str
    corpus: Corpus
    policy: Policy
    decisions: pa.Table

    def judged(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return judged_corpus(self.corpus, self.policy, self.decisions)


def other_policy(
    corpus: Corpus, policy: Policy, split: SplitConfig, duplicates: DuplicateConfig
) -> Comparable:
    """The decisions that a policy would make. Writes nothing."""
    decisions, _ = compute_decisions(corpus, policy, split, duplicates, cache=False)
    return Comparable(
        f"policy {policy.name}", f"policy {decided_policy(corpus).name}", corpus, policy, decisions
    )


def other_corpus(corpus: Corpus, other: Corpus) -> Comparable:
    """Another corpus with its decisions. Raises UserError if it has none."""
    policy = decided_policy(other)
    here, there = (one.root.resolve() for one in (corpus, other))
    names = [str(root) if here.name == there.name else root.name for root in (there, here)]
    return Comparable(f"corpus {names[0]}", f"corpus {names[1]}", other, policy, other.read("decisions"))


def compare(connection: duckdb.DuckDBPyConnection, other: Comparable) -> dict[str, Any]:
    """Rows of a corpus (`here`) beside those of `other` (`there`).

    `connection` is that of `judged_corpus`, made with `other.decisions`. Returns `name` and `here`, `totals`
    (`label`, `unit`, `here`, `there`), `overlap` (`label`, `clips`, `seconds`), `reasons` and `languages`
    (`label`, clips and seconds of both), and `signals` (quantiles of kept clips of both).
    """
    with other.judged() as there:
        return {
            "name": other.name,
            "here": other.here,
            "totals": _totals(connection, there),
            "overlap": _overlap(connection, there),
            "reasons": _beside(connection, there, "reason", "NOT kept", "other reasons"),
            "languages": _beside(
                connection, there, "coalesce(nullif(language, ''), 'none')", "kept", "other languages"
            ),
            "signals": _signals(connection, there),
        }


def _totals(here: duckdb.DuckDBPyConnection, there: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    labels = {
        "sources": ("sources", "count"),
        "clips": ("clips", "count"),
        "clip_seconds": ("time of all clips", "seconds"),
        "kept": ("kept clips", "count"),
        "kept_seconds": ("time of kept clips", "seconds"),
        "speakers": ("speakers in kept clips", "count"),
        "persons": ("persons in kept clips", "count"),
    }
    sides = [query_totals(connection) for connection in (here, there)]
    rows = [
        {"label": label, "unit": unit, "here": sides[0][name], "there": sides[1][name]}
        for name, (label, unit) in labels.items()
    ]
    splits = [{row["split"]: row["seconds"] for row in query_splits(c)} for c in (here, there)]
    return rows + [
        {"label": f"time in {name}", "unit": "seconds", "here": splits[0][name], "there": splits[1][name]}
        for name in ("train", "val")
    ]


def _overlap(here: duckdb.DuckDBPyConnection, there: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Clips by where they are kept. A clip that one side does not have counts as not kept there."""
    both = "kept AND other = 'kept'"
    (shared,) = query_rows(
        here, f"SELECT count(*) AS clips, sum(seconds) AS seconds FROM judged WHERE {both}"
    )
    kept = [
        query_rows(c, "SELECT count(*) AS clips, sum(seconds) AS seconds FROM judged WHERE kept")[0]
        for c in (here, there)
    ]
    both_seconds = shared["seconds"] or 0.0
    rows = [{"label": "kept by both", "clips": shared["clips"], "seconds": both_seconds}]
    return rows + [
        {
            "label": label,
            "clips": side["clips"] - shared["clips"],
            "seconds": max(0.0, (side["seconds"] or 0.0) - both_seconds),
        }
        for label, side in zip(("kept only here", "kept only there"), kept, strict=True)
    ]


def _beside(
    here: duckdb.DuckDBPyConnection, there: duckdb.DuckDBPyConnection, label: str, where: str, rest: str
) -> list[dict[str, Any]]:
    """Clips and seconds of both sides by the SQL expression `label`, most time first."""
    query = f"""SELECT {label} AS label, count(*) AS clips, sum(seconds) AS seconds FROM judged
        WHERE {where} GROUP BY 1"""
    none = {"clips": 0, "seconds": 0.0}
    sides = [{row["label"]: row for row in query_rows(connection, query)} for connection in (here, there)]
    rows = [
        {"label": name, "here": sides[0].get(name, none), "there": sides[1].get(name, none)}
        for name in sides[0] | sides[1]
    ]
    rows.sort(key=lambda row: (-max(row["here"]["seconds"], row["there"]["seconds"]), row["label"]))
    if len(rows) <= MAX_ROWS:
        return rows
    others = rows[MAX_ROWS - 1 :]
    merged = {
        side: {key: sum(row[side][key] for row in others) for key in none} for side in ("here", "there")
    }
    return [*rows[: MAX_ROWS - 1], {"label": f"{len(others)} {rest}", **merged}]


def _signals(here: duckdb.DuckDBPyConnection, there: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Quantiles of every signal that kept clips of both sides have; the most different first."""
    rows = []
    for name, signal in SIGNALS.items():
        # one signal at a time: exact quantiles hold its values in memory
        values = f"""SELECT quantile_cont("{name}", {list(QUANTILES)}) AS q FROM judged
            WHERE kept AND "{name}" IS NOT NULL AND isfinite("{name}")"""
        sides = [query_rows(connection, values)[0]["q"] for connection in (here, there)]
        if not all(sides):
            continue
        low, high = min(side[0] for side in sides), max(side[-1] for side in sides)
        moved = abs(sides[0][1] - sides[1][1]) / (high - low) if high > low else 0.0
        rows.append(
            {
                "name": name,
                "signal": signal,
                "sides": dict(zip(("here", "there"), sides, strict=True)),
                "low": low,
                "high": high,
                "moved": moved,
            }
        )
    return sorted(rows, key=lambda row: (-row["moved"], row["name"]))
