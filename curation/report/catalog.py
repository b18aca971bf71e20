"""Clips to search, sort and filter on the report page: a bounded list in the page, or all clips from the
server.

Both have one format: columns of equal length (`COLUMNS`), and `signals` by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uniavgen.curation.policy.rules import Policy
from uniavgen.curation.policy.verdicts import judge
from uniavgen.curation.policy.what_if import clips_for, with_thresholds
from uniavgen.curation.report.totals import query_rows
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus

if TYPE_CHECKING:
    import duckdb

COLUMNS = {
    "id": "clip_id",
    "source": "uri",
    "start": "round(start_s, 2)",
    "seconds": "round(seconds, 2)",
    "speaker": "coalesce(speaker, '')",
    "person": "person",
    "language": "coalesce(language, '')",
    "kept": "kept",
    "reason": "reason",
    "split": "split",
    "text": "coalesce(transcript, '')",
    "other": "other",
}
"""Columns of a catalog, and their SQL over `judged`."""

FILTERS = ("source", "speaker", "person", "language", "reason")
"""Columns with a filter of their own."""

DECISIONS = {
    "": "true",
    "kept": "kept",
    "rejected": "NOT kept",
    "changed": "now IS NOT NULL",
    "only-here": "kept AND other <> 'kept'",
    "only-there": "NOT kept AND other = 'kept'",
}
"""Conditions of the filter by decision. `changed`: by the thresholds of `judge_changes`. `only-here` and
`only-there`: compared with another policy or corpus."""

MAX_CHOICES = 200
"""Values that a filter offers; the most frequent ones."""

MAX_PAGE = 200
"""Clips in one answer of the server."""

_SIGNAL_DIGITS = 5


def read_catalog(connection: duckdb.DuckDBPyConnection, clip_ids: Sequence[str]) -> dict[str, Any]:
    """The catalog of these clips, in their order."""
    return _columns(
        query_rows(
            connection,
            f"""SELECT {_select()} FROM
            (SELECT unnest($clips) AS clip_id, generate_subscripts($clips, 1) AS number)
            JOIN judged USING (clip_id) ORDER BY number""",
            clips=list(clip_ids),
        )
    )


def search_catalog(connection: duckdb.DuckDBPyConnection, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the catalog of all clips, with `total` (how many match) and a column `now` (see
    `judge_changes`, which must have been called).

    `query`: `text` (words of the transcript, or the beginning of a clip id), `decision` (of `DECISIONS`), a
    value for any of `FILTERS`, `sort` (a signal), `order` (`down` or `up`), `offset`, `limit`. Raises
    ValueError for others.
    """
    decision = query.get("decision", "")
    if decision not in DECISIONS:
        raise ValueError(f"no decision {decision!r}")
    conditions, values = [DECISIONS[decision]], {}
    for number, word in enumerate(query.get("text", "").lower().split()):
        conditions.append(
            f"(contains(lower(transcript), $word{number}) OR starts_with(clip_id, $word{number}))"
        )
        values[f"word{number}"] = word
    for name in FILTERS:
        if value := query.get(name):
            conditions.append(
                f"list_contains(failed_rules, ${name})" if name == "reason" else f"{COLUMNS[name]} = ${name}"
            )
            values[name] = value
    sort = query.get("sort", "")
    if sort and sort not in SIGNALS:
        raise ValueError(f"no signal {sort!r}")
    order = (
        f"nullif(\"{sort}\", 'NaN') {'ASC' if query.get('order') == 'up' else 'DESC'} NULLS LAST, "
        if sort
        else ""
    )
    where = " AND ".join(conditions)
    clips = f"FROM judged LEFT JOIN changes USING (clip_id) WHERE {where}"
    total = query_rows(connection, f"SELECT count(*) AS n {clips}", **values)[0]["n"]
    limit = min(MAX_PAGE, max(1, int(query.get("limit", "24"))))
    offset = min(total, max(0, int(query.get("offset", "0"))))
    rows = query_rows(
        connection,
        f"""SELECT {_select()}, coalesce(now, '') AS now {clips}
        ORDER BY {order}md5(clip_id) LIMIT {limit} OFFSET {offset}""",
        **values,
    )
    return _columns(rows) | {"total": total, "now": [row["now"] for row in rows]}


def judge_changes(
    connection: duckdb.DuckDBPyConnection,
    corpus: Corpus,
    policy: Policy,
    thresholds: Sequence[str] = (),
    dropped: Collection[str] = (),
) -> None:
    """Make the table `changes`: `clip_id` and `now` (`now passes` or `now fails`) of the clips whose result
    the policy with these thresholds (as for `--what-if`) and without these rules turns around.

    Raises UserError for an unknown rule.
    """
    import pyarrow as pa

    moved = with_thresholds(policy, thresholds)
    rules = tuple(rule for rule in moved.rules if rule.name not in dropped)
    if not rules:
        raise ValueError("every rule is off")
    if thresholds or dropped:
        moved = replace(moved, rules=rules)
        verdicts = judge(clips_for(corpus, moved), moved).select(["clip_id", "kept"])
    else:
        verdicts = pa.table({"clip_id": pa.array([], pa.string()), "kept": pa.array([], pa.bool_())})
    connection.register("moved", verdicts)
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE changes AS
        SELECT clip_id, CASE WHEN moved.kept THEN 'now passes' ELSE 'now fails' END AS now
        FROM judged JOIN moved USING (clip_id) WHERE judged.passes <> moved.kept"""
    )
    connection.unregister("moved")


def read_choices(connection: duckdb.DuckDBPyConnection) -> dict[str, list[list[Any]]]:
    """The most frequent values of every filter, with their numbers of clips."""
    return {
        name: [
            [row["value"], row["clips"]]
            for row in query_rows(
                connection,
                f"""SELECT {COLUMNS[name]} AS value, count(*) AS clips FROM judged
                WHERE {COLUMNS[name]} <> '' GROUP BY 1 ORDER BY clips DESC, value LIMIT {MAX_CHOICES}""",
            )
        ]
        for name in FILTERS
    }


def _select() -> str:
    columns = [f"{sql} AS {name}" for name, sql in COLUMNS.items()]
    return ", ".join(
        [*columns, "failed_rules AS failed", *(f'"{name}" AS "signal {name}"' for name in SIGNALS)]
    )


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    catalog: dict[str, Any] = {name: [row[name] for row in rows] for name in [*COLUMNS, "failed"]}
    catalog["signals"] = {name: [_short(row[f"signal {name}"]) for row in rows] for name in SIGNALS}
    return catalog


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_SIGNAL_DIGITS}g}")
