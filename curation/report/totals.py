"""The page's totals: one DuckDB query each over the corpus tables, so that they cost the same to show at any size.

In: a connection with `judged`, the clips with their decisions, and the other tables (`report.judged_corpus`).
Out: plain rows. Seconds are of clips, `kept` counts what the decisions keep.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from uniavgen.curation.config import DuplicateConfig
from uniavgen.curation.duplicates.groups import DUPLICATE, duplicates
from uniavgen.curation.people.splits import LENGTH_S, NEITHER, PITCH_HZ, TRAIN, VAL
from uniavgen.curation.policy.decisions import BOTH_SIDES
from uniavgen.shards.corpus.tables import Corpus

if TYPE_CHECKING:
    import duckdb

LARGEST = 12
"""Languages and speakers that have a row of their own; the rest share one (our choice)."""

BANDS_S = (1, 2, 5, 10, 30, 60, 300)
"""Widths that bands of clip length may have: the smallest that gives at most `MOST_BANDS` of them."""

MOST_BANDS = 14

AFTER_RULES = (DUPLICATE, BOTH_SIDES)
"""Reasons that no rule gives: they take away clips that pass every rule."""

_YIELD = """count(*) AS clips, sum(seconds) AS seconds, count(*) FILTER (kept) AS kept,
    coalesce(sum(seconds) FILTER (kept), 0) AS kept_seconds"""


def rows(connection: duckdb.DuckDBPyConnection, sql: str, **params: Any) -> list[dict[str, Any]]:
    """What a query gives, a dict per row."""
    found: list[dict[str, Any]] = connection.sql(sql, params=params or None).to_arrow_table().to_pylist()
    return found


def totals(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The headline numbers. `passing` clips fail no rule; those of them that are not kept are copies or on both sides."""
    return rows(
        connection,
        """SELECT (SELECT count(*) FROM sources_table) AS sources, (SELECT count(*) FROM failures_table) AS failures,
        (SELECT coalesce(sum(duration_s), 0) FROM sources_table) AS source_seconds, count(*) AS clips,
        (SELECT clips FROM undecided) AS undecided,
        coalesce(sum(seconds), 0) AS clip_seconds, count(*) FILTER (kept) AS kept,
        coalesce(sum(seconds) FILTER (kept), 0) AS kept_seconds, count(*) FILTER (passes) AS passing,
        count(DISTINCT speaker) FILTER (kept AND speaker <> '') AS speakers FROM judged""",
    )[0]


def after_rules(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """What leaves after the last rule: `reason`, `clips`, `seconds`."""
    return rows(
        connection,
        """SELECT reason, count(*) AS clips, sum(seconds) AS seconds FROM judged WHERE passes AND NOT kept
        GROUP BY reason ORDER BY reason""",
    )


def shares(connection: duckdb.DuckDBPyConnection, label: str, rest: str) -> list[dict[str, Any]]:
    """Clips and seconds by an SQL expression, most kept time first; beyond `LARGEST` rows they are one, named `rest`
    and marked as `several`."""
    found = rows(
        connection,
        f"""WITH every AS (SELECT {label} AS label, {_YIELD} FROM judged GROUP BY 1),
        placed AS (SELECT *, row_number() OVER (ORDER BY kept_seconds DESC, seconds DESC, label) AS place FROM every)
        SELECT CASE WHEN place <= {LARGEST} THEN label END AS label, count(*) AS merged, sum(clips)::BIGINT AS clips,
        sum(seconds) AS seconds, sum(kept)::BIGINT AS kept, sum(kept_seconds) AS kept_seconds
        FROM placed GROUP BY 1 ORDER BY min(place)""",
    )
    return [
        row if row["label"] else row | {"label": f"{row['merged']} {rest}", "several": True} for row in found
    ]


def lengths(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Clips and seconds by length, in equal bands that rise; the last holds the rare longer ones."""
    longest = connection.sql("SELECT coalesce(quantile_disc(seconds, 0.998), 0) FROM judged").fetchall()[0][0]
    width = next((width for width in BANDS_S if longest / width <= MOST_BANDS), BANDS_S[-1])
    last = min(MOST_BANDS - 1, int(longest / width))
    found = rows(
        connection,
        f"""SELECT least({last}, floor(seconds / {width}))::INT AS band, {_YIELD} FROM judged GROUP BY 1 ORDER BY 1""",
    )
    open_end = connection.sql(
        f"SELECT count(*) > 0 FROM judged WHERE seconds >= {(last + 1) * width}"
    ).fetchall()[0][0]
    for row in found:
        low = row.pop("band") * width
        ends = open_end and low == last * width
        row["label"] = f"{low} s and more" if ends else f"{low}–{low + width} s"
    return found


def splits(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Train, val and neither in `clips`, `seconds`, `speakers` and `sources`: kept clips, and for neither those that pass every
    rule and had to go. Both sides are there even where they are empty."""
    return rows(
        connection,
        f"""SELECT side AS split, count(clip_id) AS clips, coalesce(sum(seconds), 0) AS seconds,
        count(DISTINCT speaker) AS speakers, count(DISTINCT source_id) AS sources
        FROM (VALUES ('{TRAIN}', 0), ('{VAL}', 1), ('{NEITHER}', 2)) AS sides(side, place)
        LEFT JOIN (SELECT * FROM judged WHERE kept OR reason = '{BOTH_SIDES}') ON split = side
        GROUP BY side, place HAVING place < 2 OR clips > 0 ORDER BY place""",
    )


def strata(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Kept seconds on either side (`train`, `val`) of every `label` of an `axis`: languages, bands of voice pitch and of
    length; beyond `LARGEST` rows they are one."""
    axes = {
        "language": ("coalesce(nullif(language, ''), 'none')", "-sum(seconds)"),
        "voice pitch": (_bands("pitch_hz", PITCH_HZ, "Hz"), "min(nullif(pitch_hz, 'NaN'))"),
        "clip length": (_bands("seconds", LENGTH_S, "s"), "min(seconds)"),
    }
    queries = [
        f"""WITH every AS (SELECT {label} AS label, {order} AS rank,
            coalesce(sum(seconds) FILTER (split = '{TRAIN}'), 0) AS train,
            coalesce(sum(seconds) FILTER (split = '{VAL}'), 0) AS val FROM judged WHERE kept GROUP BY 1),
        placed AS (SELECT *, row_number() OVER (ORDER BY rank NULLS LAST, label) AS place FROM every),
        named AS (SELECT *, CASE WHEN place <= {LARGEST} THEN label END AS name FROM placed)
        SELECT '{axis}' AS axis, coalesce(name, count(*) || ' others') AS label, sum(train) AS train, sum(val) AS val
        FROM named GROUP BY name ORDER BY min(place)"""
        for axis, (label, order) in axes.items()
    ]
    return [row for query in queries for row in rows(connection, query)]


def _bands(column: str, bounds: tuple[float, ...], unit: str) -> str:
    """SQL of the name of the band that a value is in."""
    names = [f"below {bounds[0]:g}", *(f"{low:g}–{high:g}" for low, high in pairwise(bounds))]
    whens = [
        f"WHEN {column} < {bound} THEN '{name} {unit}'" for name, bound in zip(names, bounds, strict=True)
    ]
    absent = f"{column} IS NULL OR isnan({column})"
    return (
        f"CASE WHEN {absent} THEN 'not measured' {' '.join(whens)} ELSE '{bounds[-1]:g} {unit} and more' END"
    )


def sources(connection: duckdb.DuckDBPyConnection, limit: int, pages: list[str]) -> list[dict[str, Any]]:
    """Sources with their yield, those with a page first."""
    return rows(
        connection,
        """SELECT s.source_id, s.uri, s.duration_s, s.width, s.height, s.fps, s.video_codec, s.audio_codec, s.error,
        len(list_distinct(list_transform(s.turns, lambda turn: turn.label))) AS speakers, len(s.shots) AS shots,
        count(j.clip_id) AS clips, count(*) FILTER (j.kept) AS kept,
        string_agg(DISTINCT nullif(j.reason, ''), ', ' ORDER BY nullif(j.reason, '')) AS reasons
        FROM sources_table s LEFT JOIN judged j USING (source_id) GROUP BY ALL
        ORDER BY list_contains($pages, any_value(s.source_id)) DESC, s.uri LIMIT $limit""",
        pages=pages,
        limit=limit,
    )


def copies(
    connection: duckdb.DuckDBPyConnection, corpus: Corpus, config: DuplicateConfig
) -> list[dict[str, Any]]:
    """The clips that were rejected as copies, by `kind`: `clips`, `seconds`, `groups`, and of one example `clip_id`,
    `kept_clip`, `picture`, `sound`, `shared_s`, `mirrored`, `speed` (`curation.duplicates`). The costliest kind first.

    Pairs come from where `curate` kept them; they are sought again only if clips or the configuration changed since.
    """
    if not rows(connection, f"SELECT 1 FROM judged WHERE reason = '{DUPLICATE}' LIMIT 1"):
        return []
    passing = connection.sql("SELECT clip_id, passes AS kept FROM judged").to_arrow_table()
    connection.register("copies_table", duplicates(corpus, passing, config))
    return rows(
        connection,
        f"""SELECT kind, count(*) AS clips, sum(seconds) AS seconds, count(DISTINCT kept_clip) AS groups,
        min_by({{'clip_id': clip_id, 'kept_clip': kept_clip, 'picture': picture, 'sound': sound, 'shared_s': shared_s,
        'mirrored': mirrored, 'speed': speed}}, clip_id) AS example
        FROM copies_table JOIN judged USING (clip_id) WHERE reason = '{DUPLICATE}' AND kept_clip <> clip_id
        GROUP BY kind ORDER BY seconds DESC, kind""",
    )
