"""Clips to search, sort and filter on the report page: a bounded list in the page, or all clips from the
server.

Both have one format: columns of equal length (`COLUMNS`), and `signals` by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uniavgen.curation.report.totals import query_rows
from uniavgen.shards.corpus.signals import SIGNALS

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
}
"""Columns of a catalog, and their SQL over `judged`."""

FILTERS = ("source", "speaker", "person", "language", "reason")
"""Columns with a filter of their own."""

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
    """A page of the catalog of all clips, and `total`: how many match.

    `query`: `text` (words of the transcript, or the beginning of a clip id), `decision` (`kept`, `rejected`
    or ""), a value for any of `FILTERS`, `sort` (a signal), `order` (`down` or `up`), `offset`, `limit`.
    Raises ValueError for others.
    """
    conditions, values = ["true"], {}
    for number, word in enumerate(query.get("text", "").lower().split()):
        conditions.append(
            f"(contains(lower(transcript), $word{number}) OR starts_with(clip_id, $word{number}))"
        )
        values[f"word{number}"] = word
    if query.get("decision") in ("kept", "rejected"):
        conditions.append("kept" if query["decision"] == "kept" else "NOT kept")
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
    total = query_rows(connection, f"SELECT count(*) AS n FROM judged WHERE {where}", **values)[0]["n"]
    limit = min(MAX_PAGE, max(1, int(query.get("limit", "24"))))
    offset = min(total, max(0, int(query.get("offset", "0"))))
    rows = query_rows(
        connection,
        f"""SELECT {_select()} FROM judged WHERE {where}
        ORDER BY {order}md5(clip_id) LIMIT {limit} OFFSET {offset}""",
        **values,
    )
    return _columns(rows) | {"total": total}


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
